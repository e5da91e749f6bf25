"""The embedded FaaS as a server: its protocol, its errors, its start and end."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

import faasrt
from faasrt import ConfigurationError, Outcome, RuntimeClosedError, RuntimeManager, SandboxConfig, Settings
from faasrt._version import __version__
from faasrt.local import LocalFaaS, server as local_server
from faasrt.local.engine_tasks import EngineTasks
from faasrt.local.engines.deno.engine import DenoEngine
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.errors import NotStartedError
from faasrt.local.jail.level import FoundLevel
from support.documents import text_of
from support.helpers import WASM
from support.served import PATIENCE_S, at_work_in

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def faas() -> AsyncIterator[LocalFaaS]:
    """A server without Python, because that starts fast."""
    async with LocalFaaS(["js", "ts"], workers=1, sandbox=SandboxConfig(timeout_limit_s=60)) as server:
        await server.wait_ready("js")
        yield server


async def post(url: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    async with aiohttp.ClientSession() as session:
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with session.post(url, headers=headers, **sent) as response:
            return response.status, await response.json(), response.headers


async def get(url: str, **headers: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


RUN = {"language": "js", "code": "console.log(1)"}


async def test_answers_have_the_fields_of_the_reference_servers(faas: LocalFaaS) -> None:
    """A coze-loop backend can read them. faasrt's own fields are added."""
    status, body, _ = await post(f"{faas.url}/run_code", {**RUN, "timeout": 30_000, "priority": "normal", "ext": {}})
    assert status == 200
    assert body["output"] == {"stdout": "1\n", "stderr": "", "ret_val": ""}
    metadata = body["metadata"]
    assert metadata["language"] == "javascript"
    assert metadata["runtime"].startswith("Deno ")
    assert (metadata["status"], metadata["exit_code"], metadata["timed_out"]) == ("success", 0, False)
    assert isinstance(metadata["duration"], int)
    assert metadata["task_id"]
    assert metadata["instance_id"]
    assert set(metadata["pool_stats"]) == {"totalInstances", "idleInstances", "activeInstances"}
    assert (body["outcome"], body["error_info"], body["truncated"]) == ("OK", None, [])


async def test_health_says_that_no_level_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The level is "none", and there are a reason and a remedy. An engine without a jail has no level at its start."""

    async def refuse(*_: object) -> FoundLevel:
        return FoundLevel("", "refused by the kernel", "use another kernel")

    monkeypatch.setattr(local_server, "find_level", refuse)
    async with LocalFaaS(["js", "python"], engines=WASM, workers=1) as faas:
        languages = faas.health()["languages"]
    assert [languages[name]["level"] for name in ("javascript", "python")] == ["none", ""]
    assert languages["javascript"]["level_reason"] == "refused by the kernel"
    assert languages["javascript"]["level_remedy"] == "use another kernel"


async def test_health_and_metrics_of_a_server(faas: LocalFaaS) -> None:
    """`/health` lists languages and capabilities. `/metrics` has the same values as JSON and as Prometheus text."""
    await post(f"{faas.url}/run_code", RUN)
    async with RuntimeManager(settings=Settings(endpoints={"js": faas.url})) as manager:
        status = await manager.get_health_status()
        async with manager.session("js"):
            pass
    details = status.endpoints[0].details
    assert status.healthy
    assert details["capabilities"]["lossless"] is True
    assert details["languages"]["typescript"]["status"] == "ready"
    capacity = details["languages"]["javascript"]["capacity"]
    assert capacity >= 4  # the number of workers, or more if there is memory
    _, text = await get(f"{faas.url}/metrics")
    assert '"OK"' in text
    _, text = await get(f"{faas.url}/metrics", Accept="text/plain;version=0.0.4")
    assert 'faasrt_local_executions_total{language="javascript",outcome="OK"}' in text
    assert f'faasrt_local_capacity{{engine="deno"}} {capacity}' in text
    families = [*text_string_to_metric_families(text)]
    samples = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    metrics = json.loads((await get(f"{faas.url}/metrics"))[1])
    (engine,) = metrics.pop("engines").values()
    for language, outcomes in engine.pop("executions").items():
        for outcome, count in outcomes.items():
            assert samples.pop(("faasrt_local_executions_total", language, outcome)) == count
    info = {name: engine.pop(name) for name in ("language", "level", "runtime")}
    assert samples.pop(("faasrt_local_engine_info", "deno", *info.values(), __version__)) == 1
    assert samples.pop(("faasrt_local_utilization_ratio", "deno", "javascript")) == engine.pop("utilization") == 0
    names = {name: f"{name}_total" if name in ("refused", "failed") else name for name in engine}
    assert ("faasrt_local_idle", "deno") in samples
    samples["faasrt_local_idle", "deno"] = engine["idle"]  # a process may have started meanwhile
    expected = {(f"faasrt_local_{names[name]}", "deno"): value for name, value in engine.items()}
    samples["faasrt_local_connections",] = metrics["connections"]  # they are closed a moment later
    assert samples.pop(("faasrt_local_ended_sessions_total", "closed")) == metrics.pop("ended_sessions")["closed"]
    counters = ("refused_connections", "refused_while_draining", "opened_sessions", "forked_sessions", "session_runs")
    for name in counters:
        metrics[f"{name}_total"] = metrics.pop(name)
    assert samples == expected | {(f"faasrt_local_{name}",): value for name, value in metrics.items()}
    assert metrics["draining"] is False
    documented = re.findall(r"^\| `(faasrt_local_\w+)`", text_of("faasrt/docs/logging-and-metrics.md"), re.MULTILINE)
    assert sorted(documented) == sorted({sample.name for family in families for sample in family.samples})


async def test_the_server_does_not_import_prometheus_client() -> None:
    """The import takes time, and only requests for Prometheus text need it."""
    program = "import sys, faasrt.local.server; sys.exit('prometheus_client' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0


@pytest.mark.parametrize("language", ["py", "js"])
async def test_network_access_cannot_be_enabled(local: RuntimeManager, language: str) -> None:
    """`network_enabled=True` is a ConfigurationError for a server, and a RejectedError for a program."""
    sandbox = SandboxConfig(network_enabled=True)
    with pytest.raises(ConfigurationError, match="network_enabled must be False"):
        LocalFaaS([language], sandbox=sandbox)
    with pytest.raises(faasrt.RejectedError, match="no sandbox of this server has a network"):
        await local.run_code("1", language, sandbox=sandbox)


@pytest.mark.parametrize(
    "arguments",
    [
        {"languages": []},
        {"workers": 0},
        {"workers": True},
        {"workers": "2"},
        {"host": "0.0.0.0"},
        {"host": "example.com"},
        {"drain_s": 0},
        {"queue_timeout_s": "1"},
        {"token": ""},
        {"token": " x"},
        {"sandbox": {}},
        {"sandbox": SandboxConfig(memory_limit_mb=1)},
    ],
)
async def test_invalid_arguments_are_a_configuration_error(arguments: dict[str, Any]) -> None:
    """The constructor raises ConfigurationError, also for a host that others can reach if there is no token."""
    with pytest.raises(ConfigurationError):
        LocalFaaS(**arguments)


async def test_a_port_in_use_is_a_configuration_error(
    faas: LocalFaaS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process and no file of the failed start is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(3):
        second = LocalFaaS(["js"], port=int(faas.url.rpartition(":")[2]))
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await second.start()
        await second.aclose()
        # Every process of a server, also one that is starting, has its working directory in the server's folder.
        assert not at_work_in(tmp_path, psutil.Process().children())
        assert not list(tmp_path.iterdir())


async def test_a_server_starts_once_and_may_be_closed_twice() -> None:
    """Before the start and after closing, `url` raises RuntimeClosedError. Different tasks may start and close it."""
    faas = LocalFaaS(["js"], workers=1)
    with pytest.raises(RuntimeClosedError):
        faas.url  # noqa: B018
    with pytest.raises(RuntimeClosedError):
        faas.listener  # noqa: B018
    with pytest.raises(RuntimeClosedError):
        await faas.wait_ready("js")
    await asyncio.create_task(faas.start())
    with pytest.raises(RuntimeClosedError):
        await faas.start()
    with pytest.raises(faasrt.UnsupportedLanguageError):
        await faas.wait_ready("python")
    await asyncio.create_task(faas.aclose())
    await faas.aclose()
    with pytest.raises(RuntimeClosedError):
        faas.url  # noqa: B018


@pytest.mark.parametrize("is_starting", [False, True])
async def test_a_server_that_was_closed_does_not_start(*, is_starting: bool) -> None:
    """This also holds for one that is closed while it starts. It has no URL."""
    faas = LocalFaaS(["js"], workers=1)
    starting = asyncio.create_task(faas.start())
    if is_starting:
        await asyncio.sleep(0)
    await faas.aclose()
    with pytest.raises(RuntimeClosedError, match="this LocalFaaS was closed"):
        await starting
    with pytest.raises(RuntimeClosedError, match="not running"):
        faas.url  # noqa: B018


async def test_the_error_that_ends_a_server_is_raised_when_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged at once. The server has no URL any more."""
    gate = asyncio.Event()

    async def fail() -> None:
        await gate.wait()
        raise ValueError("a bug")

    class FailingTasks(EngineTasks):
        def __init__(self, group: asyncio.TaskGroup) -> None:
            super().__init__(group)
            group.create_task(fail())

    monkeypatch.setattr("faasrt.local.server.EngineTasks", FailingTasks)
    faas = LocalFaaS(["js"], workers=1)
    await faas.start()
    gate.set()
    await faas.wait_closed()
    assert "ValueError: a bug" in caplog.text
    with pytest.raises(RuntimeClosedError, match="not running"):
        faas.url  # noqa: B018
    with pytest.raises(faasrt.ServerError, match="the embedded FaaS failed: ValueError: a bug"):
        await faas.aclose()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            OSError(errno.EMFILE, "too many files"),
            ConfigurationError,
            "cannot start the server: too many files; raise the limit of open files",
        ),
        (NotStartedError("no memory"), faasrt.ServerError, "cannot start a jail now: no memory"),
    ],
)
async def test_a_server_that_cannot_start_says_why(
    error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("faasrt.local.server.find_level", fail)
    with pytest.raises(kind, match=f"^{message}$"):
        await LocalFaaS(["js"], workers=1).start()


FAILING = """
import asyncio, sys
from faasrt.cli.commands import run
from faasrt.local import server
async def fail():
    await asyncio.sleep(0.1)
    raise ValueError("a bug")
class FailingTasks(server.EngineTasks):
    def __init__(self, group):
        super().__init__(group)
        group.create_task(fail())
server.EngineTasks = FailingTasks
sys.exit(run(["serve", "--port", "0", "-l", "bash"]))
"""


async def test_a_server_that_fails_exits() -> None:
    """It does not wait for a signal, because nothing listens any more. The log has the error."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FAILING, stdout=DEVNULL, stderr=PIPE)
    _, stderr = await process.communicate()
    assert process.returncode == 3
    assert b"| ValueError: a bug\n" in stderr
    assert b"ServerError: the embedded FaaS failed: ValueError: a bug\n" in stderr


async def test_closing_waits_for_programs_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of a running program still arrives."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def execute(self: DenoEngine, job: EngineJob) -> EngineResult:
        begun.set()
        await go_on.wait()
        return EngineResult(outcome=Outcome.OK, stdout="ended\n")

    monkeypatch.setattr(DenoEngine, "execute", execute)
    faas = LocalFaaS(["js"], workers=1, drain_s=PATIENCE_S)
    await faas.start()
    await faas.wait_ready("js")
    call = asyncio.create_task(post(f"{faas.url}/run_code", RUN))
    await begun.wait()
    closing = asyncio.create_task(faas.aclose())
    done, _ = await asyncio.wait({closing, call}, timeout=0.1)
    assert not done
    go_on.set()
    assert (await call)[1]["output"]["stdout"] == "ended\n"
    await closing


async def test_a_language_that_cannot_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is a 503 with `x-faasrt-not-started`. JavaScript runs, and `/health` reports "degraded"."""
    readonly = tmp_path / "file"
    readonly.write_text("no folder can be made below a file")
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(readonly))
    async with LocalFaaS(["python", "js"], workers=1, engines=WASM) as faas:
        await faas.wait_ready("js")
        with pytest.raises(faasrt.ServerError, match="FAASRT_CACHE_DIR") as info:
            await faas.wait_ready("python")
        assert info.value.sent == "no"
        assert "attempts" not in str(info.value)
        status, answer, headers = await post(f"{faas.url}/run_code", {"language": "python", "code": "1"})
        assert (status, headers["x-faasrt-not-started"]) == (503, "1")
        assert "compiled" in answer["details"]
        status, _, _ = await post(f"{faas.url}/run_code", RUN)
        assert status == 200
        _, text = await get(f"{faas.url}/health")
        assert '"degraded"' in text


MANY_PROGRAMS = """
import asyncio, gc, psutil, sys, tempfile, faasrt
from pathlib import Path
PROGRAMS = [
    ("py", "print({})"), ("js", "console.log({})"), ("ts", "const x: number = {}; console.log(x)"),
    ("py", "import json; return_val(json.dumps({})); print({})"), ("js", "setTimeout(() => console.log({}), 5)"),
]
async def main(count):
    gate = asyncio.Semaphore(16)
    async def one(manager, number):
        language, code = PROGRAMS[number % len(PROGRAMS)]
        async with gate:
            result = await manager.run_code(code.replace("{}", str(number)), language)
        assert (result.outcome, result.stdout) == ("OK", f"{number}\\n"), result
    async with faasrt.RuntimeManager.local(engines={"python": sys.argv[1]}) as manager:
        await asyncio.gather(*(one(manager, number) for number in range(count)))
        assert process.children()
    return len(asyncio.all_tasks())
process = psutil.Process()
asyncio.run(main(20))  # imports, thread pools and the like remain
descriptors = process.num_fds()
print(asyncio.run(main(60)), len(process.children(recursive=True)), process.num_fds() - descriptors)
print([path.name for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith("faasrt-")])
"""


@pytest.mark.servers
@pytest.mark.parametrize("engine", ["native", "wasm"])
@pytest.mark.usefixtures("wasm_sandbox")
async def test_a_closed_manager_leaves_nothing_behind(tmp_path: Path, engine: str) -> None:
    """After 60 programs, 16 at once, all results are right, and no process, descriptor, task or file is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        MANY_PROGRAMS,
        engine,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=-1,
        stderr=-1,
    )
    stdout, stderr = await process.communicate()
    assert (stdout.decode(), stderr.decode()) == ("1 0 0\n[]\n", "")


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("py", "print('\\x01' * 900_000)"),
        ("js", "console.log('\\x01'.repeat(900_000))"),
        ("py", "import sys\nprint('\"' * 10**6)\nprint('\"' * 10**6, file=sys.stderr)\nreturn_val('\"' * 10**6)"),
    ],
)
async def test_output_that_grows_in_json_is_cut(local: RuntimeManager, language: str, code: str) -> None:
    """Output within its limit may exceed it when it is escaped. It is cut, `truncated` names it, the outcome is OK."""
    result = await local.run_code(code, language)
    assert result.outcome is Outcome.OK
    assert "stdout" in result.truncated
    assert len(result.stdout) > 100_000


async def test_large_output_does_not_fill_the_servers_memory(local: RuntimeManager) -> None:
    """100 MB of output are cut, and the server's memory grows by less than 48 MiB."""
    process = psutil.Process()
    before = process.memory_info().rss
    for language, code in (("py", "print('x' * 100_000_000)"), ("js", "for (;;) console.log('x'.repeat(1e6))")):
        result = await local.run_code(code, language, sandbox=SandboxConfig(memory_limit_mb=128))
        assert result.outcome in (Outcome.OUTPUT_LIMIT, Outcome.USER_ERROR, Outcome.MEMORY_LIMIT)
    for line in (
        "for _ in range(100): print('x' * 1_000_000)",
        "import sys\nfor _ in range(10**6): sys.stdout.write('x' * 100)",
    ):
        result = await local.run_code(line, "py")
        assert (result.outcome, result.truncated) == (Outcome.OUTPUT_LIMIT, {"stdout"})
        assert len(result.stdout) <= 1_048_576
    assert process.memory_info().rss - before < 48 * 2**20


async def test_a_local_manager_refuses_endpoints() -> None:
    """`RuntimeManager.local` uses only its own FaaS as endpoint."""
    with pytest.raises(ConfigurationError, match="endpoints"):
        RuntimeManager.local(settings=Settings(endpoints={"py": "http://127.0.0.1:1"}))


@pytest.mark.parametrize("engine", ["native", "wasm"])
@pytest.mark.usefixtures("wasm_sandbox")
async def test_the_event_loop_is_never_blocked(engine: str) -> None:
    """Client, server and engines make no blocking call in the thread of the event loop."""
    from blockbuster import blockbuster_ctx

    with blockbuster_ctx():
        async with RuntimeManager.local(workers=1, engines={"python": engine}) as manager:
            for language, code in (("py", "print(1)"), ("js", "console.log(1)"), ("ts", "console.log(1)")):
                assert (await manager.run_code(code, language)).stdout == "1\n"
                async with manager.stream_code(code, language) as run:
                    assert [chunk.text async for chunk in run] == ["1\n"]
                assert (await manager.validate_code(code, language)).valid
            assert (await manager.run_code("while True: pass", "py", 100)).outcome is Outcome.TIMEOUT
            assert (await manager.get_health_status()).healthy
