"""The queue of programs in front of an engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from faasrt import Language, Outcome
from faasrt.local.engines.engine import EngineJob, EngineOptions, EngineResult
from faasrt.local.http.admission import AdmissionQueue, BusyError
from faasrt.protocol.execution_limits import ExecutionLimits
from support.helpers import Clock

LIMITS = ExecutionLimits(timeout_ms=1_000, memory_limit_mb=64, max_output_bytes=1_000)
JOB = EngineJob(language=Language.PYTHON, code="1", limits=LIMITS)


class FakeEngine:
    """Returns its result for every program. Without a result, programs never end."""

    name, capacity, min_capacity, overhead_mb = "fake", 1, 1, 0
    ready, active, idle, problem, activity = True, 0, 0, "", ""
    options = EngineOptions(workers=1, folder=Path(), memory_limit_mb=128)

    def __init__(self, result: EngineResult | None = None) -> None:
        self.result = result
        self.changed = asyncio.Event()

    async def until_ready_or_failed(self) -> None:
        await self.changed.wait()

    async def execute(self, job: Any) -> Any:
        self.active += 1
        try:
            return self.result or await asyncio.Event().wait()
        finally:
            self.active -= 1


async def start(queue: AdmissionQueue) -> asyncio.Task[EngineResult]:
    """Start a program, and return it when it runs or waits in the queue."""
    queued, active = queue.queued, queue.engine.active
    task = asyncio.create_task(queue.execute(JOB))
    while (queue.queued, queue.engine.active) == (queued, active):
        await asyncio.sleep(0)
    return task


async def test_a_full_queue_and_a_long_wait_are_refused(clock: Clock) -> None:
    """A program beyond `max_queue`, or one that waits longer than `queue_timeout_s`, raises BusyError with 429."""
    clock.stop()
    queue = AdmissionQueue(FakeEngine(), max_queue=1, queue_timeout_s=10)  # type: ignore[arg-type]
    running, waiting = await start(queue), await start(queue)
    with pytest.raises(BusyError, match="wait already") as full:
        await queue.execute(JOB)
    assert full.value.status == 429
    clock.advance(9)
    await asyncio.wait({waiting}, timeout=0)
    assert not waiting.done()
    clock.advance(1)
    with pytest.raises(BusyError, match="became free within 10 s") as late:
        await waiting
    assert late.value.status == 429
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (queue.queued, queue.counts.refused) == (0, 2)


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_sandbox_that_becomes_free_gets_one_program(leaves: bool) -> None:
    """Not a second one that arrives at this moment. If the next one in the queue is cancelled, another one runs."""
    engine = FakeEngine()
    queue = AdmissionQueue(engine)  # type: ignore[arg-type]
    running, waiting = await start(queue), await start(queue)
    running.cancel()
    if leaves:
        waiting.cancel()
    newcomer = asyncio.create_task(queue.execute(JOB))
    await asyncio.wait({running})
    while engine.active != 1:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (engine.active, queue.queued) == (1, 0 if leaves else 1)
    tasks = (waiting, newcomer)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert engine.active == 0


async def test_a_free_sandbox_is_taken_even_if_the_time_limit_has_passed() -> None:
    """On a busy machine, a short `queue_timeout_s` may pass before the program is in the queue."""
    queue = AdmissionQueue(FakeEngine(EngineResult(outcome=Outcome.OK)), queue_timeout_s=1e-9)  # type: ignore[arg-type]
    result = await queue.execute(JOB)
    assert (result.outcome, queue.counts.refused) == (Outcome.OK, 0)


@pytest.mark.parametrize("becomes", ["ready", "failed", "neither"])
async def test_programs_wait_for_an_engine_that_starts(becomes: str, clock: Clock) -> None:
    """They run when it is ready. They are refused with 503 if it cannot start, or not within `queue_timeout_s`."""
    clock.stop()
    engine = FakeEngine(EngineResult(outcome=Outcome.OK))
    engine.ready, engine.activity = False, "starting"
    queue = AdmissionQueue(engine, max_queue=1, queue_timeout_s=10)  # type: ignore[arg-type]
    waiting = await start(queue)
    with pytest.raises(BusyError, match="wait already"):
        await queue.execute(JOB)
    if becomes == "neither":
        clock.advance(10)
    else:
        engine.ready, engine.problem = becomes == "ready", "cannot start"
        engine.changed.set()
    if becomes == "ready":
        assert (await waiting).outcome is Outcome.OK
    else:
        with pytest.raises(BusyError, match="cannot start" if becomes == "failed" else "is not ready: starting") as e:
            await waiting
        assert e.value.status == 503
    assert (queue.queued, queue.counts.refused) == (0, 1 if becomes == "ready" else 2)


async def test_the_wait_for_an_engine_and_for_a_sandbox_have_one_limit(clock: Clock) -> None:
    clock.stop()
    engine = FakeEngine()
    engine.ready = False
    queue = AdmissionQueue(engine, queue_timeout_s=10)  # type: ignore[arg-type]
    first, second = await start(queue), await start(queue)
    clock.advance(6)
    engine.ready = True
    engine.changed.set()
    while engine.active != 1:
        await asyncio.sleep(0)
    clock.advance(5)
    with pytest.raises(BusyError, match="became free within 10 s"):
        await second
    first.cancel()
    await asyncio.wait({first})
