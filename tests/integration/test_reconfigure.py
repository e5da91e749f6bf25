"""`LocalFaaS.reconfigure` and `LocalFaaS.drain`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest

from faasrt import (
    ConfigurationError,
    RuntimeClosedError,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    UnsupportedLanguageError,
)
from faasrt.local import LocalFaaS
from faasrt.local.engine_tasks import EngineTasks
from faasrt.local.engines.deno.engine import DenoEngine
from faasrt.local.engines.engine import EngineOptions
from support.helpers import Clock, fast_forward
from support.levels import NATIVE
from support.served import connected, exchange, request, until

RUN = request(b'{"language": "bash", "code": "echo 1"}')


@contextlib.asynccontextmanager
async def bash(**options: Any) -> AsyncIterator[LocalFaaS]:
    """Start a server with the engine that is ready soonest. It needs namespaces."""
    async with LocalFaaS(["bash"], workers=1, **options) as faas:
        await faas.wait_ready("bash")
        yield faas


@NATIVE
async def test_all_options_change_together() -> None:
    """Later requests have the new limits, token and languages. `reconfigure` returns the names of what changed."""
    async with bash() as faas:
        assert await faas.reconfigure(LocalFaaS(["bash"], workers=1)) == []
        wanted = LocalFaaS(["js", "bash"], workers=1, token="t", sandbox=SandboxConfig(timeout_limit_s=1))
        assert await faas.reconfigure(wanted) == ["languages", "sandbox", "max_sandbox", "token"]
        assert (faas.token, faas.languages, faas.sandbox.timeout_limit_s) == ("t", ("javascript", "bash"), 1)
        assert repr(faas) == f"<LocalFaaS of javascript, bash at {faas.url}>"
        await faas.wait_ready("js")
        assert (await exchange(faas.url, RUN)).status == 401
        headers = {"Authorization": "Bearer t"}
        health = (await exchange(faas.url, request(method="GET", target="/health", headers=headers))).json()
        assert health["limits"]["timeout_limit_s"] == 1
        assert await faas.reconfigure(LocalFaaS(["js"], workers=1)) == ["languages", "sandbox", "max_sandbox", "token"]
        with pytest.raises(UnsupportedLanguageError):
            await faas.wait_ready("bash")


def test_options_cannot_be_assigned() -> None:
    """A server that runs would ignore them, and so would serve without a token that was assigned."""
    faas = LocalFaaS(["bash"], token="secret")
    for field in attrs.fields(LocalFaaS):
        if field.init:
            with pytest.raises(AttributeError, match=f"{field.name} cannot be assigned: pass another LocalFaaS"):
                setattr(faas, field.name, getattr(faas, field.name))
    assert repr(faas) == "<LocalFaaS of bash (not running)>"


@NATIVE
async def test_an_engine_with_the_same_options_runs_on() -> None:
    """The processes of the engine stay when only the token, the time limit or another language changes."""
    async with bash() as faas:
        engine = faas.engine("bash")
        await faas.reconfigure(LocalFaaS(["bash", "js"], workers=1, sandbox=SandboxConfig(timeout_limit_s=3)))
        assert faas.engine("bash") is engine
        await faas.reconfigure(LocalFaaS(["bash", "js"], workers=2))
        assert faas.engine("bash") is not engine


@NATIVE
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


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> dict[str, asyncio.Event]:
    """Let Deno's engine start for ever. Return the events of its start and of its end."""
    events = {"begun": asyncio.Event(), "ended": asyncio.Event()}

    async def serve(self: DenoEngine) -> None:
        events["begun"].set()
        try:
            await asyncio.Event().wait()
        finally:
            events["ended"].set()

    monkeypatch.setattr(DenoEngine, "serve", serve)
    return events


@NATIVE
async def test_cancellation_keeps_the_old_options(starting: dict[str, asyncio.Event]) -> None:
    """The new engine is stopped."""
    async with bash() as faas:
        change = asyncio.create_task(faas.reconfigure(LocalFaaS(["js"], workers=1)))
        await starting["begun"].wait()
        change.cancel()
        with pytest.raises(asyncio.CancelledError):
            await change
        assert starting["ended"].is_set()
        assert faas.languages == ("bash",)
        assert (await exchange(faas.url, RUN)).status == 200


@NATIVE
async def test_closing_ends_a_change(starting: dict[str, asyncio.Event]) -> None:
    """`reconfigure` raises an error, and the server closes."""
    async with bash() as faas:
        change = asyncio.create_task(faas.reconfigure(LocalFaaS(["js"], workers=1)))
        await starting["begun"].wait()
    with pytest.raises(RuntimeClosedError, match="closed"):
        await change
    assert starting["ended"].is_set()


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


@NATIVE
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


@NATIVE
async def test_the_probes_follow_the_engine() -> None:
    """`/readyz` is 503 while the engine starts or cannot run. `/livez` is 200."""
    async with bash() as faas:
        engine = faas.engine("bash")
        assert engine is not None
        for ready, problem, status in ((False, "", "starting"), (False, "no memory", "failed"), (True, "", "ready")):
            engine.ready, engine.problem = ready, problem
            answer = await exchange(faas.url, request(method="GET", target="/readyz"))
            assert (answer.status, answer.json()) == (200 if ready else 503, {"status": status})
            assert (await exchange(faas.url, request(method="GET", target="/livez"))).json() == {"status": "alive"}
        async with connected(faas.url) as connection:
            await connection.send(request(method="HEAD", target="/livez"))
            assert (await connection.answer(head_only=True)).status == 200


@NATIVE
async def test_draining_waits_for_idle_connections() -> None:
    """Their clients may be about to send a request. It is refused instead of meeting a closed connection."""
    async with bash() as faas, connected(faas.url) as kept:
        await kept.send(RUN)
        assert (await kept.answer()).status == 200
        draining = asyncio.create_task(faas.drain())
        await until(lambda: faas.listener.draining)
        assert (await exchange(faas.url, request(method="GET", target="/livez"))).status == 200
        assert not draining.done()
        await kept.send(RUN)
        answer = await kept.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        await draining
        assert not faas.listener.connections


@NATIVE
async def test_draining_waits_five_seconds_for_idle_connections(clock: Clock) -> None:
    """One that stays open does not hold up the end for longer, even if `drain_s` is more."""
    async with bash(drain_s=1_000) as faas, connected(faas.url):
        await until(lambda: len(faas.listener.ordinary) == 1)
        began = clock()
        await fast_forward(clock, faas.drain(), 0.5)
        assert 5 <= clock() - began < 1_000
        assert len(faas.listener.ordinary) == 1


async def test_a_wait_for_an_engine_goes_on_with_the_one_that_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    serve, begun = DenoEngine.serve, asyncio.Event()

    async def serve_unless_first(self: DenoEngine) -> None:
        if self.options.workers == 1:
            begun.set()
            await asyncio.Event().wait()
        await serve(self)

    monkeypatch.setattr(DenoEngine, "serve", serve_unless_first)
    async with LocalFaaS(["js"], workers=1) as faas:
        waiting = asyncio.create_task(faas.wait_ready("js"))
        await begun.wait()
        await faas.reconfigure(LocalFaaS(["js"], workers=2))
        await waiting


async def test_a_call_that_waits_for_an_engine_learns_that_its_manager_was_closed(
    starting: dict[str, asyncio.Event],
) -> None:
    async with RuntimeManager.local(["js"]) as manager:
        call = asyncio.create_task(manager.run_code("1", "js"))
        await starting["begun"].wait()
        for _ in range(10):
            await asyncio.sleep(0)  # the call waits until Deno can run
        await manager.aclose()
        with pytest.raises(RuntimeClosedError):
            await call
