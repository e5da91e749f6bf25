"""`LocalFaaS.reconfigure` and `LocalFaaS.drain`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from faasrt import (
    ConfigurationError,
    Language,
    RuntimeClosedError,
    SandboxConfig,
    ServerError,
    UnsupportedLanguageError,
)
from faasrt.local import LocalFaaS
from faasrt.local.engines.base import EngineOptions
from faasrt.local.engines.deno import DenoEngine
from faasrt.local.listening import EngineTasks
from support.rawhttp import connected, exchange, request
from support.served import until

RUN = request(b'{"language": "bash", "code": "echo 1"}')


@contextlib.asynccontextmanager
async def bash(**options: Any) -> AsyncIterator[LocalFaaS]:
    async with LocalFaaS(["bash"], workers=1, **options) as faas:
        await faas.wait_ready("bash")
        yield faas


async def test_all_options_change_together() -> None:
    """Later requests have the new limits, token and languages. `reconfigure` returns the names of what changed."""
    async with bash() as faas:
        assert await faas.reconfigure(LocalFaaS(["bash"], workers=1)) == []
        wanted = LocalFaaS(["js", "bash"], workers=1, token="t", sandbox=SandboxConfig(timeout_limit_s=1))
        assert await faas.reconfigure(wanted) == ["languages", "sandbox", "token"]
        assert (faas.token, faas.languages, faas.sandbox.timeout_limit_s) == ("t", ("javascript", "bash"), 1)
        await faas.wait_ready("js")
        assert (await exchange(faas.url, RUN)).status == 401
        headers = {"Authorization": "Bearer t"}
        health = (await exchange(faas.url, request(method="GET", target="/health", headers=headers))).json()
        assert health["limits"]["timeout_limit_s"] == 1
        assert await faas.reconfigure(LocalFaaS(["js"], workers=1)) == ["languages", "sandbox", "token"]
        with pytest.raises(UnsupportedLanguageError):
            await faas.wait_ready("bash")


async def test_an_engine_with_the_same_options_runs_on() -> None:
    """The processes of the engine stay when only the token, the time limit or another language changes."""
    async with bash() as faas:
        engine = faas._queues[Language.BASH].engine
        await faas.reconfigure(LocalFaaS(["bash", "js"], workers=1, sandbox=SandboxConfig(timeout_limit_s=3)))
        assert faas._queues[Language.BASH].engine is engine
        await faas.reconfigure(LocalFaaS(["bash", "js"], workers=2))
        assert faas._queues[Language.BASH].engine is not engine


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"port": 99}, ConfigurationError, "port cannot change while the server runs"),
        ({"host": "localhost"}, ConfigurationError, "host cannot change while the server runs"),
        (
            {"ssl": ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)},
            ConfigurationError,
            "cannot switch TLS on or off",
        ),
        (
            {"languages": ["python"], "python": "/bin/false"},
            ServerError,
            "native cannot run: the interpreter /bin/false",
        ),
    ],
    ids=["port", "host", "ssl", "engine"],
)
async def test_a_wrong_option_changes_nothing(options: dict[str, Any], error: type[Exception], reason: str) -> None:
    """All old options stay, also those that could change, and no process of a new engine is left."""
    async with bash() as faas:
        assert (await exchange(faas.url, RUN)).status == 200
        children = {child.pid for child in psutil.Process().children()}
        with pytest.raises(error, match=reason):
            await faas.reconfigure(LocalFaaS(**{"languages": ["bash"], "workers": 2, "token": "t", **options}))
        assert (faas.token, faas.workers, faas.languages) == (None, 1, ("bash",))
        assert (await exchange(faas.url, RUN)).status == 200
        assert {child.pid for child in psutil.Process().children()} <= children


async def test_cancellation_keeps_the_old_options() -> None:
    """The new engine is stopped."""
    async with bash() as faas:
        tasks = {*faas._engine_tasks._tasks}
        change = asyncio.create_task(faas.reconfigure(LocalFaaS(["js"], workers=1)))
        await until(lambda: {*faas._engine_tasks._tasks} != tasks)
        change.cancel()
        with pytest.raises(asyncio.CancelledError):
            await change
        assert {*faas._engine_tasks._tasks} == tasks
        assert faas.languages == ("bash",)
        assert (await exchange(faas.url, RUN)).status == 200


async def test_closing_ends_a_change() -> None:
    """`reconfigure` raises an error, and the server closes."""
    async with bash() as faas:
        tasks = {*faas._engine_tasks._tasks}
        change = asyncio.create_task(faas.reconfigure(LocalFaaS(["js"], workers=1)))
        await until(lambda: {*faas._engine_tasks._tasks} != tasks)
    with pytest.raises(RuntimeClosedError, match="closed"):
        await change


async def test_an_engine_that_is_cancelled_before_it_begins_is_not_awaited(tmp_path: Path) -> None:
    """`start_ready` raises an error, although the task of the engine makes no step. So does each later call."""
    engine = DenoEngine(EngineOptions(workers=1, folder=tmp_path, memory_limit_mb=128))
    async with asyncio.TaskGroup() as group:
        tasks = EngineTasks(group)
        start = asyncio.create_task(tasks.start_ready([engine], ()))
        asyncio.get_running_loop().call_soon(tasks.cancel)
        async with asyncio.timeout(30):
            with pytest.raises(RuntimeClosedError, match="closed"):
                await start
            with pytest.raises(RuntimeClosedError, match="closed"):
                await tasks.start_ready([engine], ())


async def test_only_a_running_server_can_change_or_drain() -> None:
    """RuntimeClosedError is also raised for options of a server that was started."""
    faas = LocalFaaS(["bash"], workers=1)
    with pytest.raises(RuntimeClosedError):
        await faas.reconfigure(LocalFaaS(["bash"], workers=2))
    with pytest.raises(RuntimeClosedError):
        await faas.drain()
    async with bash() as running:
        with pytest.raises(RuntimeClosedError, match="one that was not started"):
            await running.reconfigure(running)


async def test_the_probes_follow_the_engine() -> None:
    """`/readyz` is 503 while the engine starts or cannot run. `/livez` is 200."""
    async with bash() as faas:
        engine = faas._queues[Language.BASH].engine
        for ready, problem, status in ((False, "", "starting"), (False, "no memory", "failed"), (True, "", "ready")):
            engine.ready, engine.problem = ready, problem
            answer = await exchange(faas.url, request(method="GET", target="/readyz"))
            assert (answer.status, answer.json()) == (200 if ready else 503, {"status": status})
            assert (await exchange(faas.url, request(method="GET", target="/livez"))).json() == {"status": "alive"}
        async with connected(faas.url) as connection:
            await connection.send(request(method="HEAD", target="/livez"))
            assert (await connection.answer(head_only=True)).status == 200


async def test_draining_waits_for_idle_connections() -> None:
    """Their clients may be about to send a request. It is refused instead of meeting a closed connection."""
    async with bash() as faas, connected(faas.url) as kept:
        await kept.send(RUN)
        assert (await kept.answer()).status == 200
        draining = asyncio.create_task(faas.drain())
        await until(lambda: faas._listener.draining)
        assert (await exchange(faas.url, request(method="GET", target="/livez"))).status == 200
        assert not draining.done()
        await kept.send(RUN)
        answer = await kept.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        await draining
        assert not faas._listener.connections
