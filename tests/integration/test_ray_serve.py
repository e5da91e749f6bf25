"""`faasrt.ray.serve` on a real Ray cluster: clients run programs through Ray Serve."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from faasrt import (
    ConfigurationError,
    ExecutionResult,
    Outcome,
    RejectedError,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    ServiceError,
)
from support.documents import docstrings, run_examples
from support.served import PATIENCE_S, is_gone, until, with_word

pytestmark = [
    pytest.mark.ray,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
MAX_REPLICAS = 2
TIMEOUT_LIMIT_S = 600


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Start a cluster and Ray Serve, and return the port of its proxy."""
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        yield port
        serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def url(port: int) -> str:
    """Serve the application below a prefix, and return its URL."""
    from ray import serve

    import faasrt.ray.serve

    args = {"token": "secret", "workers": "1", "max_replicas": str(MAX_REPLICAS), "languages": "py,js"}
    args["timeout_limit_s"] = str(TIMEOUT_LIMIT_S)
    serve.run(faasrt.ray.serve.app(args), name="served", route_prefix="/code")
    return f"http://127.0.0.1:{port}/code"


@pytest_asyncio.fixture(loop_scope="module")
async def manager(url: str) -> AsyncIterator[RuntimeManager]:
    async with RuntimeManager.from_url(url, token="secret") as manager:
        yield manager


async def replica_count() -> int:
    from ray import serve

    status = await asyncio.to_thread(serve.status)
    states: dict[Any, int] = status.applications["served"].deployments["faasrt"].replica_states
    return states.get("RUNNING", 0)


async def test_results_are_exact(manager: RuntimeManager) -> None:
    """Python and JavaScript programs have the same results as on the embedded FaaS, and are sent without envelope."""
    python = await manager.run_code(
        "import sys; print({'a': 1}); print('é\\n', file=sys.stderr); return_val([1])", "py"
    )
    assert (python.outcome, python.stdout, python.stderr) == (Outcome.OK, "{'a': 1}\n", "é\n\n")
    assert (python.value, python.metadata["engine"]) == ([1], "native")
    failed = await manager.run_code("print(input())\nraise SystemExit(3)", "python", stdin="in")
    assert (failed.outcome, failed.exit_code, failed.stdout) == (Outcome.USER_ERROR, 3, "in\n")
    script = await manager.run_code("console.log({ a: 1 }); setTimeout(() => { throw new Error('late') })", "js")
    assert (script.outcome, script.stdout, script.error.message) == (Outcome.USER_ERROR, "{ a: 1 }\n", "late")
    write = "open('a', 'wb').write(bytes([255]))"
    assert (await manager.run_code(write, "python", collect=["a"])).files == {"a": b"\xff"}
    assert (await manager.call_function("def f(a): return a * 2", "f", ["ab"], language="python")).value == "abab"
    assert not (await manager.validate_code("x = (", "python", where="remote")).valid


async def test_a_time_limit_ends_a_program(manager: RuntimeManager) -> None:
    result = await manager.run_code("while (true) {}", "js", 300)
    assert (result.outcome, result.error.message) == (Outcome.TIMEOUT, "timeout after 300 ms (timeout_ms)")


async def test_output_arrives_at_the_end(manager: RuntimeManager) -> None:
    """`stream_code` yields the output of the whole program."""
    async with manager.stream_code("print(1); print(2)", "python") as run:
        assert [chunk.text async for chunk in run] == ["1\n2\n"]
    assert run.result.outcome is Outcome.OK


async def test_the_token_is_required(url: str) -> None:
    async with RuntimeManager.from_url(url, token="wrong") as manager:
        with pytest.raises(RejectedError) as caught:
            await manager.run_code("print(1)", "python")
        assert caught.value.status == 401
        health = (await manager.get_health_status()).endpoints[0]
        assert not health.healthy


async def test_the_health_report_describes_all_replicas(manager: RuntimeManager) -> None:
    """It states no capacity, because the number of replicas changes, and no live output."""
    [health] = (await manager.get_health_status()).endpoints
    assert health.healthy
    assert set(health.details["languages"]) == {"python", "javascript"}
    assert "capacity" not in health.details["languages"]["python"]
    assert health.details["capabilities"]["streams"] is False
    assert health.details["capabilities"]["lossless"] is True


async def active_programs(url: str) -> int:
    """Return the number of Python programs that one of the replicas runs."""
    headers = {"Authorization": "Bearer secret"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{url}/metrics") as response:
        active: int = (await response.json())["engines"]["native"]["active"]
        return active


async def start_endless(manager: RuntimeManager, url: str) -> list[asyncio.Task[ExecutionResult]]:
    """Start an endless program for each replica, and wait until one runs.

    Both may be on the same replica. So many requests at once look for them, which Ray Serve sends to all replicas.
    """
    sandbox = SandboxConfig(timeout_limit_s=TIMEOUT_LIMIT_S)
    calls = [manager.run_code("while True: pass", "python", sandbox=sandbox) for _ in range(MAX_REPLICAS)]
    endless = [asyncio.create_task(call) for call in calls]
    async with asyncio.timeout(PATIENCE_S):
        while not any(await asyncio.gather(*(active_programs(url) for _ in range(8)))):
            await asyncio.sleep(0.05)
    return endless


async def test_a_disconnect_ends_the_program(manager: RuntimeManager, url: str) -> None:
    """A replica runs one program at once. The programs that follow can run only if the endless ones have ended."""
    endless = await start_endless(manager, url)
    for task in endless:
        task.cancel()
    await asyncio.wait(endless)
    assert all(task.cancelled() for task in endless)
    results = await asyncio.gather(*(manager.run_code("print(1)", "python") for _ in range(8)))
    assert all(result.ok for result in results)


async def test_a_replica_that_dies_is_replaced(manager: RuntimeManager, url: str) -> None:
    """Its programs end with it, and do not run again. Programs run on the new replica."""
    endless = await start_endless(manager, url)
    replicas = with_word(psutil.Process().children(recursive=True), "ServeReplica:served")
    processes = [child for replica in replicas for child in replica.children(recursive=True)]
    assert processes
    for replica in replicas:
        replica.kill()
    errors = await asyncio.gather(*endless, return_exceptions=True)
    assert all(isinstance(error, ServerError) and error.attempts == 1 for error in errors)
    await until(lambda: all(map(is_gone, processes)))
    async with asyncio.timeout(2 * PATIENCE_S):
        while True:
            try:
                assert (await manager.run_code("print(1)", "python")).ok
                return
            except ServiceError:
                await asyncio.sleep(0.5)


async def test_replicas_are_added_under_load(manager: RuntimeManager) -> None:
    """When more programs run or wait than there are workers, there is another replica soon."""

    async def run_until(done: asyncio.Event) -> None:
        while not done.is_set():
            assert (await manager.run_code("import time; time.sleep(0.3)", "python")).ok

    done = asyncio.Event()
    async with asyncio.timeout(2 * PATIENCE_S), asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(run_until(done))
        while await replica_count() < MAX_REPLICAS:
            await asyncio.sleep(0.2)
        done.set()


async def test_example_in_the_docstring(port: int) -> None:
    from ray import serve

    name = "faasrt.ray.serve.app"
    text = dict(docstrings())[name]
    await run_examples(name, text.replace(":8000", f":{port}"))
    await asyncio.to_thread(serve.delete, "default")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "needs a token: set FAASRT_TOKEN"),
        ({"token": ""}, "needs a token"),
        ({"token": "a", "worker": "1"}, "no argument 'worker', only token, workers"),
        ({"token": "a", "workers": "many"}, "workers has a wrong value: 'many'"),
        ({"token": "a", "workers": "0"}, "workers must be a whole number from 1"),
        ({"token": "a", "engines": "wasm"}, "engines has a wrong value: 'wasm'"),
        ({"token": "a", "engines": "python=v8"}, "the engine of python must be one of native, wasm"),
        ({"token": "a", "memory_limit_mb": "1"}, "memory_limit_mb must be at least"),
        ({"token": "a", "max_replicas": 0}, "max_replicas must be"),
        ({"token": "a", "min_replicas": 5, "max_replicas": 4}, "max_replicas must be"),
    ],
)
async def test_wrong_arguments_are_refused(args: dict[str, Any], words: str) -> None:
    """The error comes from the builder, before anything is deployed."""
    import faasrt.ray.serve

    with pytest.raises(ConfigurationError, match=words):
        faasrt.ray.serve.app(args)


async def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import faasrt.ray.serve

    monkeypatch.setenv("FAASRT_TOKEN", "secret")
    faasrt.ray.serve.app({"python": "/usr/bin/python3", "level": "auto"})


async def test_a_replica_that_cannot_start_can_be_closed() -> None:
    from faasrt.ray.serve import ServedFaaS

    replica: Any = SimpleNamespace()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="cannot listen"):
        await ServedFaaS.__init__(replica, {"languages": ["js"], "port": taken.getsockname()[1]})
    await ServedFaaS.__del__(replica)
