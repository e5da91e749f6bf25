"""The engine of Deno, without a client: which processes it keeps, and failures that must not end it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from faasrt import Language, Outcome
from faasrt.inputs import ProgramInput
from faasrt.local import LocalFaaS
from faasrt.local.engines.deno import engine as deno_engine
from faasrt.local.engines.deno.engine import DenoEngine
from faasrt.local.engines.deno.session import DenoSession
from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.live_output import LiveOutput
from faasrt.local.engines.session import EngineSessionOptions
from faasrt.local.errors import NotStartedError
from faasrt.local.jail.jail import JailedProcess
from support.levels import NATIVE
from support.served import until
from support.session_programs import LIMITS


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[DenoEngine]:
    async with LocalFaaS(["javascript"], workers=1) as faas:
        await faas.wait_ready("javascript")
        engine = faas.engine("javascript")
        assert isinstance(engine, DenoEngine)
        yield engine


def job(code: str, *, live: LiveOutput | None = None, **program_input: Any) -> EngineJob:
    return EngineJob(
        language=Language.JAVASCRIPT, code=code, limits=LIMITS, live=live, input=ProgramInput(**program_input)
    )


async def test_each_process_that_starts_is_used_or_is_the_spare(
    engine: DenoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a session opens while the spare starts, and its own process is ready after the spare."""
    start_tracked = engine._start_tracked
    gates = [asyncio.Event() for _ in range(4)]  # of the first session, the spare, the second session, and one more
    calls = 0
    started: list[JailedProcess] = []

    async def start(*arguments: Any) -> JailedProcess:
        nonlocal calls
        gate = gates[calls]
        calls += 1
        await gate.wait()
        started.append(await start_tracked(*arguments))
        return started[-1]

    monkeypatch.setattr(engine, "_start_tracked", start)

    async def open_session() -> DenoSession:
        return await engine.open_session(EngineSessionOptions(language=Language.JAVASCRIPT, limits=LIMITS))

    gates[0].set()
    first = await open_session()
    await until(lambda: calls == 2)
    opening = asyncio.create_task(open_session())
    await until(lambda: calls == 3)
    gates[1].set()
    await until(lambda: engine._spares)
    gates[2].set()
    second = await opening
    gates[3].set()
    await asyncio.gather(*engine._spare_starts.values())
    [(_, spare)] = engine._spares.values()
    assert {child for child in started if child.alive} == {first._child, second._child, spare}
    for session in (first, second):
        await session.aclose()


@NATIVE
async def test_a_jail_that_cannot_be_opened_ends_only_the_programs_that_need_it(
    engine: DenoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program goes on, and the jail is opened for a later program."""

    def fail(*arguments: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    live = LiveOutput()
    other = job("console.log(1); await new Promise((done) => setTimeout(done, 1000)); console.log(2)", live=live)
    running = asyncio.create_task(engine.execute(other))
    assert await live.take() is not None
    read = job("console.log(Deno.readTextFileSync('a.txt'))", files={"a.txt": b"text"})
    with monkeypatch.context() as patched:
        patched.setattr(deno_engine, "open_jail", fail)
        with pytest.raises(NotStartedError, match="Too many open files"):
            await engine.execute(read)
    result = await running
    assert (result.outcome, result.stdout) == (Outcome.OK, "1\n2\n")
    assert (await engine.execute(read)).stdout == "text\n"


@NATIVE
async def test_a_jail_whose_task_never_begins_is_not_waited_for(engine: DenoEngine) -> None:
    """The task is cancelled when the engine ends in the same moment."""
    tasks: list[asyncio.Task[None]] = []

    class Group(asyncio.TaskGroup):
        def create_task(self, *arguments: Any, **options: Any) -> Any:
            tasks.append(super().create_task(*arguments, **options))
            return tasks[-1]

    async with Group() as group:
        engine._group, own = group, engine._group
        waiting = asyncio.create_task(engine._open_folder_jail())
        while not tasks:
            await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(NotStartedError, match="the engine is closed"):
            await waiting
        engine._group = own
    read = job("console.log(Deno.readTextFileSync('a.txt'))", files={"a.txt": b"text"})
    assert (await engine.execute(read)).stdout == "text\n"
