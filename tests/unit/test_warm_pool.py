"""The number of warm processes follows the demand, and programs wait for a process only for some time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from faasrt import Language, Outcome
from faasrt.local.engines.engine import Engine, EngineJob, EngineOptions, EngineResult, Watch
from faasrt.local.engines.warm_pool import HEAD_START_S, WarmPool
from faasrt.local.errors import NotStartedError
from faasrt.protocol.execution_limits import ExecutionLimits
from support.helpers import Clock

LIMITS = ExecutionLimits(timeout_ms=1_000, memory_limit_mb=64, max_output_bytes=1_000)
JOB = EngineJob(language=Language.PYTHON, code="1", limits=LIMITS)


class FakeProcess:
    """A process that ends only when it is killed."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.alive = True
        self._functions: list[Callable[[], None]] = []

    def when_ended(self, function: Callable[[], None]) -> None:
        self._functions.append(function)

    def kill(self) -> None:
        self.alive = False
        self.ended.set()
        while self._functions:
            self._functions.pop()()


class FakeEngine(Engine):
    """Runs each program in a process of its own, until the test lets all programs end.

    Attributes:
        processes: The processes that have not ended.
        can_start: Whether a start succeeds.
        may_start: Lets starts go on.
        go_on: Lets programs end.
        started_at: The times of all attempts to start a process.
    """

    name, package, min_memory_mb = "fake", "faasrt", 1
    languages = (Language.PYTHON,)

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(EngineOptions(folder=folder, workers=16, memory_limit_mb=128))
        self._pool = WarmPool(self, self._start, retry_start_s=(0.5, 4.0))
        self._clock = clock
        self._all: list[FakeProcess] = []
        self.can_start = True
        self.may_start, self.go_on = asyncio.Event(), asyncio.Event()
        self.may_start.set()
        self.started_at: list[float] = []

    @property
    def processes(self) -> list[FakeProcess]:
        return [process for process in self._all if process.alive]

    async def _prepare(self, resources: AsyncExitStack) -> Watch:
        return asyncio.Event().wait  # type: ignore[return-value]

    async def _start(self) -> FakeProcess:
        self.started_at.append(self._clock())
        await self.may_start.wait()
        if not self.can_start:
            raise NotStartedError("no memory")
        self._all.append(FakeProcess())
        return self._all[-1]

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        process = await self._pool.get()
        try:
            await self.go_on.wait()
            return EngineResult(outcome=Outcome.OK)
        finally:
            process.kill()


async def settle() -> None:
    """Let the event loop do all that is due."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
async def engine(tmp_path: Path, clock: Clock) -> AsyncIterator[FakeEngine]:
    """Yield an engine whose time only passes when the test advances the clock."""
    clock.stop()
    engine = FakeEngine(tmp_path, clock)
    running = asyncio.create_task(engine.run())
    await settle()
    yield engine
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not engine.processes


async def test_the_pool_follows_demand(engine: FakeEngine, clock: Clock) -> None:
    """It keeps as many warm processes as programs recently ran at once. That number is halved every 30 s."""
    assert engine.idle == 2
    programs = [asyncio.create_task(engine.execute(JOB)) for _ in range(12)]
    await settle()
    clock.advance(HEAD_START_S)
    await settle()
    assert (engine.active, engine.idle, len(engine.processes)) == (12, 12, 24)
    engine.go_on.set()
    await asyncio.gather(*programs)
    await settle()
    sizes = []
    for _ in range(5):
        sizes.append(engine.idle)
        clock.advance(30)
        await settle()
    assert sizes == [12, 6, 3, 2, 2]


async def test_a_short_program_ends_before_its_process_is_replaced(engine: FakeEngine, clock: Clock) -> None:
    """Otherwise the start of another process would slow it down. A program that waits gets a process at once."""
    first = asyncio.create_task(engine.execute(JOB))
    await settle()
    assert (engine.active, engine.idle, len(engine.processes)) == (1, 1, 2)
    others = [asyncio.create_task(engine.execute(JOB)) for _ in range(2)]
    await settle()
    assert (engine.active, engine.idle, len(engine.processes)) == (3, 0, 3)
    engine.go_on.set()
    await asyncio.gather(first, *others)
    await settle()
    assert (engine.active, engine.idle, len(engine.processes)) == (0, 3, 3)


async def test_a_killed_warm_process_is_replaced_and_gets_no_program(engine: FakeEngine) -> None:
    """This also holds for one that the engine does not know yet to have ended."""
    engine.go_on.set()
    for process in engine.processes:
        process.alive = False
    assert (await engine.execute(JOB)).outcome is Outcome.OK
    for process in engine.processes:
        process.kill()
    await settle()
    assert engine.idle == len(engine.processes) == 2


async def test_a_program_waits_for_a_process_only_for_some_time(engine: FakeEngine, clock: Clock) -> None:
    """After 20 s it is not started. If a process starts before, it begins."""
    engine.may_start.clear()
    programs = [asyncio.create_task(engine.execute(JOB)) for _ in range(3)]
    await settle()
    for _ in range(5):
        clock.advance(19.9 / 5)
        await settle()
    assert (engine.active, engine.idle, len(engine.processes)) == (3, 0, 2)
    late = asyncio.create_task(engine.execute(JOB))
    await settle()
    clock.advance(0.5)
    with pytest.raises(NotStartedError, match="no sandbox became ready within 20 s"):
        await programs[2]
    engine.may_start.set()
    engine.go_on.set()
    assert [result.outcome for result in await asyncio.gather(*programs[:2], late)] == ["OK"] * 3


async def test_a_program_waits_for_the_next_start_after_a_failed_one(engine: FakeEngine, clock: Clock) -> None:
    """It runs if the next start succeeds, which begins half a second later."""
    engine.can_start = False
    for process in engine.processes:
        process.kill()
    await settle()
    assert (engine.ready, engine.will_retry) == (False, True)
    program = asyncio.create_task(engine.execute(JOB))
    await settle()
    clock.advance(0.3)
    await settle()
    engine.can_start = True
    engine.go_on.set()
    clock.advance(0.2)
    assert (await program).outcome is Outcome.OK


async def test_a_program_does_not_wait_for_an_engine_that_has_failed(engine: FakeEngine, clock: Clock) -> None:
    """After three failed starts it fails with the error of the last one."""
    engine.can_start = False
    began = clock()
    for process in engine.processes:
        process.kill()
    program = asyncio.create_task(engine.execute(JOB))
    while not program.done():
        await settle()
        clock.advance(0.1)
    with pytest.raises(NotStartedError, match="no memory"):
        await program
    assert 1.5 < clock() - began < 2.6


async def test_pauses_after_failed_starts_double(engine: FakeEngine, clock: Clock) -> None:
    """The engine tries again after half a second, one second, and so on up to four seconds."""
    engine.can_start = False
    for process in engine.processes:
        process.kill()
    began = clock()
    for _ in range(150):
        await settle()
        clock.advance(0.1)
    times = sorted({round(at - began, 3) for at in engine.started_at if at >= began})
    assert times == pytest.approx([0, 0.5, 1.5, 3.5, 7.5, 11.5], abs=0.11)
    assert engine.problem == "no memory"
    assert not engine.ready
