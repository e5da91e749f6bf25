"""An engine that has worked restarts at once, and one that cannot start waits longer each time."""

from __future__ import annotations

import asyncio
import gc
import io
import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest
import structlog

from faasrt import Language
from faasrt.inputs import ProgramInput
from faasrt.local.engines.deno.engine import DenoEngine
from faasrt.local.engines.engine import Engine, EngineJob, EngineOptions, EngineResult, Watch
from faasrt.local.engines.native.engine import NativeEngine, PythonTier
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.protocol.execution_limits import ExecutionLimits
from support.helpers import Clock

LIMITS = ExecutionLimits(timeout_ms=1_000, memory_limit_mb=64, max_output_bytes=1_000)
JOB = EngineJob(language=Language.PYTHON, code="1", limits=LIMITS)


class FailingEngine(Engine):
    """Starts in two seconds, is ready for the given seconds, or never ready if they are None, and then fails.

    Attributes:
        started_at: The times of the starts.
        failed_at: The times of the failures.
        attempt_s: How long an attempt to run a program takes until it fails.
        attempts: The number of these attempts.
    """

    name, package, min_memory_mb = "failing", "faasrt", 1
    languages = (Language.PYTHON,)

    def __init__(self, folder: Path, ready_s: Iterable[float | None], clock: Clock) -> None:
        super().__init__(EngineOptions(folder=folder, workers=1, memory_limit_mb=128))
        self._wanted_ready_s, self._clock = iter(ready_s), clock
        self.started_at: list[float] = []
        self.failed_at: list[float] = []
        self.attempt_s, self.attempts = 0.0, 0

    async def serve(self) -> None:
        self.started_at.append(self._clock())
        ready_s = next(self._wanted_ready_s, "no more")
        if ready_s == "no more":
            raise asyncio.CancelledError
        self._clock.advance(2)
        if isinstance(ready_s, float):
            self.mark_ready()
            self._clock.advance(ready_s)
        self.failed_at.append(self._clock())
        raise EngineError("failed")

    async def _prepare(self, resources: AsyncExitStack) -> Watch:
        raise EngineError("not used, because serve does not start processes")

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        self.attempts += 1
        self._clock.advance(self.attempt_s)
        raise NotStartedError("failed")

    @property
    def idle(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("ready_s", "pauses"),
    [
        ([60.0, 1.5, 1.5, 1.5], [0, 0, 0, 0]),
        ([None] * 8, [5, 10, 20, 40, 80, 160, 300, 300]),
        ([0.1, 0.1, None], [5, 10, 20]),
        ([None, None, 1.5, None], [5, 10, 0, 0]),
        ([1.5, None, None, None, None, 1.5, None], [0, 0, 0, 5, 10, 0, 0]),
        ([1.5, None, 1.5, None, None, None], [0, 0, 0, 0, 0, 5]),
    ],
)
async def test_pauses_before_restarts(
    ready_s: list[float | None], pauses: list[float], tmp_path: Path, clock: Clock
) -> None:
    """An engine that restarts at once will_retry, so programs wait for it."""
    clock.stop()
    engine = FailingEngine(tmp_path, ready_s, clock)
    assert engine.will_retry
    running = asyncio.create_task(engine.run())
    while not running.done():
        for _ in range(20):
            await asyncio.sleep(0)
        if not running.done():
            assert engine.will_retry is (pauses[len(engine.failed_at) - 1] == 0)
        clock.advance(0.5)
    assert not engine.will_retry
    assert [
        start - failure for start, failure in zip(engine.started_at[1:], engine.failed_at, strict=True)
    ] == pytest.approx(pauses)


@pytest.mark.parametrize(("attempt_s", "attempts"), [(0, 4), (60, 1), (4, 2)])
async def test_a_program_that_cannot_begin_is_tried_again_for_a_while(
    attempt_s: float, attempts: int, tmp_path: Path, clock: Clock
) -> None:
    """There is a limit on the attempts, and on their time."""
    clock.stop()
    engine = FailingEngine(tmp_path, [], clock)
    engine.attempt_s = attempt_s
    with pytest.raises(NotStartedError):
        await engine.execute(JOB)
    assert (engine.attempts, engine.active) == (attempts, 0)


async def test_a_tier_of_packages_does_not_repeat_the_attempts_of_its_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is logged once, too."""

    class FailingTier(PythonTier):
        attempts = 0

        async def _run(self, job: EngineJob, headroom_mb: int = 0) -> EngineResult:
            self.attempts += 1
            raise NotStartedError("failed")

    class EngineWithTier(NativeEngine):
        def _choose_tier(self, code: str) -> PythonTier:
            return tier

    options = EngineOptions(folder=tmp_path, workers=1, memory_limit_mb=128)
    tier = FailingTier(options, [])
    tier.ready = True
    with pytest.raises(NotStartedError):
        await EngineWithTier(options).execute(JOB)
    assert (tier.attempts, tier.active) == (4, 0)
    assert caplog.messages == ["the engine native: failed"]


@pytest.mark.parametrize(
    ("make_engine", "job"),
    [
        (NativeEngine, attrs.evolve(JOB, code="import numpy")),
        (DenoEngine, attrs.evolve(JOB, language=Language.JAVASCRIPT, input=ProgramInput(collect=("a.txt",)))),
    ],
    ids=["native", "deno"],
)
@pytest.mark.filterwarnings("error")  # such as one about a coroutine that was never awaited
async def test_a_program_that_comes_while_the_engine_ends_has_not_started(
    make_engine: type[NativeEngine | DenoEngine], job: EngineJob, tmp_path: Path
) -> None:
    """It needs a tier of packages, or the jail for files, which cannot start any more."""
    engine = make_engine(EngineOptions(folder=tmp_path, workers=1, memory_limit_mb=128, level="namespaces"))
    if isinstance(engine, NativeEngine):
        engine.packages = frozenset({"numpy"})

    async def run_at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(NotStartedError, match="the engine is ending"):
                await engine.execute(job)

    async def fail() -> None:
        raise EngineError("the launcher has died")

    async def serve() -> None:
        async with asyncio.TaskGroup() as engine._group:
            engine._group.create_task(run_at_the_end())
            engine._group.create_task(fail())

    with pytest.raises(ExceptionGroup) as group:
        await serve()
    assert [str(error) for error in group.value.exceptions] == ["the launcher has died"]
    gc.collect()
    if isinstance(engine, NativeEngine):
        assert not engine._tiers


@pytest.mark.parametrize("error", [EngineError("it broke"), ValueError("it broke")], ids=["expected", "unexpected"])
async def test_failures_are_logged_through_structlog_if_it_is_configured(
    error: Exception, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(output),
    )

    async def fail(self: FailingEngine) -> None:
        raise error

    monkeypatch.setattr(FailingEngine, "serve", fail)
    engine = FailingEngine(tmp_path, [], clock)
    running = asyncio.create_task(engine.run())
    try:
        await engine.until_ready_or_failed()
        running.cancel()
        await asyncio.wait([running])
    finally:
        structlog.reset_defaults()
    (line,) = map(json.loads, output.getvalue().splitlines())
    expected = isinstance(error, EngineError)
    assert line["event"] == ("the engine failing: it broke" if expected else "the engine failing failed")
    assert line["level"] == ("warning" if expected else "error")
    assert not caplog.records
