"""Admission: who may run a program in an engine now, who waits, and who is sent away before anything has run."""

from __future__ import annotations

from collections import Counter

import anyio

from faasrt.languages import Language
from faasrt.local.engines.base import Engine, EngineError, Job, Verdict

MAX_QUEUE = 1_000
# Shorter than the grace that clients give an answer: who has waited in vain hears that nothing was started.
QUEUE_TIMEOUT_S = 1.5


class BusyError(Exception):
    """The program was not started. `status` is the HTTP status to answer with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Pool:
    """Runs programs in an engine: as many at once as it can, first come, first served.

    Args:
        engine: The engine.
        max_queue: The most programs that wait.
        queue_timeout_s: The longest that one waits, in seconds.
    """

    def __init__(self, engine: Engine, *, max_queue: int = MAX_QUEUE, queue_timeout_s: float = QUEUE_TIMEOUT_S) -> None:
        self.engine = engine
        self._max_queue, self._queue_timeout_s = max_queue, queue_timeout_s
        self._permits = anyio.CapacityLimiter(engine.capacity)
        self.outcomes: Counter[tuple[Language, str]] = Counter()
        self.refused = self.failed = 0

    @property
    def queued(self) -> int:
        """Programs that wait."""
        return self._permits.statistics().tasks_waiting

    async def execute(self, job: Job) -> Verdict:
        """Run one program when its turn has come.

        Raises:
            BusyError: It was not started: the engine is not ready, or too much waits already.
            NotStartedError: The engine failed before the program began.
            EngineError: The engine failed; the program may have begun.

        Cancellation: ends the program, and lets the next one in.
        """
        engine = self.engine
        if not engine.ready:
            self.refused += 1
            raise BusyError(engine.problem or f"{engine.name} is not ready: {engine.activity}", 503)
        if self._permits.available_tokens <= 0 and self.queued >= self._max_queue:
            self.refused += 1
            raise BusyError(f"{self._max_queue} programs wait already", 429)
        try:
            with anyio.fail_after(self._queue_timeout_s):
                await self._permits.acquire()
        except TimeoutError:
            self.refused += 1
            raise BusyError(f"no sandbox came free within {self._queue_timeout_s:g} s", 429) from None
        try:
            verdict = await engine.execute(job)
        except EngineError:
            self.failed += 1
            raise
        finally:
            self._permits.release()
        self.outcomes[job.language, verdict.outcome.value] += 1
        return verdict
