"""The queue of an engine: how long a program may wait for its start, and which programs are refused.

All requests that run a program pass it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
from aiohttp import web

from faasrt.languages import Language
from faasrt.local.engines.engine import Engine, EngineJob, EngineResult
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.http.access_log import note_program
from faasrt.local.http.program_permits import MemoryBudget, ProgramPermits
from faasrt.telemetry.dispatch import EventDispatcher
from faasrt.telemetry.events import ExecutionFinished, ExecutionStarted, hash_code

MAX_QUEUE = 1_000
# How long a program waits in the queue if the server does not know how long its client waits for an answer. Clients
# wait longer than this, so they still receive the answer that nothing was started.
QUEUE_TIMEOUT_S = 1.5
_ANSWER_S = 0.5  # the time for an answer to arrive
_task_numbers = itertools.count(1)
_TRACESTATE = re.compile(r"[ -~\t]{1,512}")
# W3C Trace Context allows several tracestate headers, which are joined. Two traceparent headers are invalid.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class BusyError(NotStartedError):
    """The program was not started: the server is overloaded or stops, or the engine is not ready.

    `reason` is for the log of the server, which counts refusals with the same reason: it has no text of a request.
    """

    def __init__(self, message: str, *, kind: str = "overloaded", reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or f"requests, because {message}"
        self.status, self.kind = 429 if kind == "overloaded" else 503, kind


@attrs.define
class ProgramCounts:
    outcomes: Counter[tuple[Language, str]] = attrs.field(factory=Counter)
    refused: int = 0
    failed: int = 0


class AdmissionQueue:
    """Runs programs in an engine, at most `engine.capacity` at once, in the order of their arrival. When
    `queue_timeout_s` changes, programs that already wait keep the old value. If `queue_timeout_s` is None, a program
    may wait for as long as its client waits for the answer, less the time that the program may take.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queue: int = MAX_QUEUE,
        queue_timeout_s: float | None = None,
        counts: ProgramCounts | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self.engine = engine
        self.queue_timeout_s = queue_timeout_s
        self.counts = counts or ProgramCounts()
        self._max_queue = max_queue
        self.queued = 0
        self._permits = ProgramPermits(engine, budget or MemoryBudget())

    async def execute(
        self,
        job: EngineJob,
        *,
        run: Callable[[EngineJob], Awaitable[EngineResult]] | None = None,
        min_timeout_s: float = 0.0,
        waited_s: float = 0.0,
        patience_s: float = math.inf,
    ) -> EngineResult:
        """Wait until the engine is ready and a sandbox is free, and run a program there, or with `run` in a session.

        Args:
            min_timeout_s, waited_s: See `enter`.
            patience_s: How long the client waits for the answer, if this is known. No program starts later.

        Raises:
            BusyError: See `enter`.
            NotStartedError: The engine failed before the program began.
            EngineError: The engine failed; the program may have begun.

        Cancellation: ends the program. The next one in the queue can start.
        """
        if job.limits.max_wall_factor != (factor := self.engine.options.max_wall_factor):
            job = attrs.evolve(job, limits=attrs.evolve(job.limits, max_wall_factor=factor))
        memory_mb = job.limits.memory_limit_mb
        if patience_s < math.inf and (self.queue_timeout_s is None or min_timeout_s):
            compile_s = self.engine.compile_limit_s
            if job.compile_limits is not None:
                compile_s = job.compile_limits.timeout_ms / 1000
            min_timeout_s = max(min_timeout_s, patience_s - job.limits.timeout_ms / 1000 - compile_s - _ANSWER_S)
        queued_ms = await self.enter(memory_mb, min_timeout_s=min_timeout_s, waited_s=waited_s, patience_s=patience_s)
        try:
            result = await (run or self.engine.execute)(job)
        except BusyError:  # there are too many sessions
            self.counts.refused += 1
            raise
        except EngineError:
            self.counts.failed += 1
            raise
        finally:
            self.leave(memory_mb)
        if not job.check:  # a validation runs no program
            self.counts.outcomes[job.language, result.outcome.value] += 1
        result.queued_ms = queued_ms + waited_s * 1000
        return result

    async def enter(
        self, memory_mb: int = 0, *, min_timeout_s: float = 0.0, waited_s: float = 0.0, patience_s: float = math.inf
    ) -> float:
        """Wait until the engine is ready and a sandbox is free, and take it. Return the milliseconds of the wait.
        `leave` must follow.

        Args:
            memory_mb: The memory limit of the program.
            min_timeout_s: The program may wait for this time even if `queue_timeout_s` is shorter.
            waited_s: How long the program has already waited for something else. This counts as a part of the wait.
            patience_s: How long the client waits for the answer.

        Raises:
            BusyError: The queue is full, the wait was too long, or the engine has failed and cannot start.
        """
        began, own_s = time.perf_counter(), QUEUE_TIMEOUT_S if self.queue_timeout_s is None else self.queue_timeout_s
        timeout_s = max(0.0, min(max(own_s, min_timeout_s), patience_s - _ANSWER_S))
        if not self.engine.ready:
            waited_s += await self.wait_ready(timeout_s - waited_s)
        # Without a time limit at first: on a busy machine, a short one may pass although a sandbox is free.
        if not self._permits.take(memory_mb):
            problem = f"no sandbox became free within {round(timeout_s, 2):g} s"
            await self.wait_for(lambda: self._permits.wait(memory_mb), timeout_s - waited_s, problem)
        return (time.perf_counter() - began) * 1000

    def leave(self, memory_mb: int = 0) -> None:
        self._permits.give_back(memory_mb)

    async def wait_ready(self, timeout_s: float) -> float:
        """Wait until the engine is ready, and return the seconds of the wait, which counts towards `max_queue`. Raise
        BusyError if the engine is not ready after this time, or the queue is full.
        """
        engine, loop = self.engine, asyncio.get_running_loop()
        began = loop.time()
        with self._place_in_queue(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await engine.until_ready_or_failed()
        if not engine.ready:
            self.counts.refused += 1
            reason = f"programs that came before {engine.name} was ready; GET /readyz says when a server is"
            problem = engine.problem or f"{engine.name} is not ready: {engine.activity}"
            raise BusyError(problem, kind="not ready", reason=reason)
        return loop.time() - began

    async def wait_for(self, acquire: Callable[[], Awaitable[object]], timeout_s: float, problem: str) -> None:
        """Acquire something, within a time limit. The wait counts towards `max_queue`. Raise BusyError with `problem`
        after the limit.
        """
        try:
            with self._place_in_queue():
                async with asyncio.timeout(timeout_s):
                    await acquire()
        except TimeoutError:
            self.counts.refused += 1
            engine = self.engine
            reason = (
                f"programs that waited longer than their clients do; {engine.name} runs {engine.capacity} at once: "
                "send fewer at once, raise --max-programs, or add servers"
            )
            raise BusyError(problem, reason=reason) from None

    @contextlib.contextmanager
    def _place_in_queue(self) -> Iterator[None]:
        if self.queued >= self._max_queue:
            self.counts.refused += 1
            reason = f"programs that came while {self._max_queue:,} waited for {self.engine.name}: send fewer at once"
            raise BusyError(f"the queue is full: {self._max_queue} programs wait already", reason=reason)
        self.queued += 1
        try:
            yield
        finally:
            self.queued -= 1


async def execute_with_events(
    execute: Callable[..., Awaitable[EngineResult]],
    job: EngineJob,
    *,
    request: web.BaseRequest,
    emit: EventDispatcher,
    path: str | None = None,
    **how: Any,
) -> tuple[str, EngineResult]:
    """Run a program with `execute(job, **how)`, such as `AdmissionQueue.execute`, and emit its events with the trace
    headers of the request. Return its task id and the result. `path` replaces the path of the request in the events.
    """
    started, task_id = time.perf_counter(), f"task-{next(_task_numbers)}"
    note_program(request, task_id=task_id, language=job.language.value)
    if emit.is_enabled_for(ExecutionStarted):
        code = job.code.encode("utf-8", "surrogatepass")
        traceparent = _read_header(request, "traceparent", _TRACEPARENT)
        emit(
            ExecutionStarted(
                execution_id=task_id,
                language=job.language.value,
                path=path or request.path,
                code_bytes=len(code),
                code_hash=hash_code(code),
                timeout_ms=job.limits.timeout_ms,
                traceparent=traceparent,
                tracestate=None if traceparent is None else _read_header(request, "tracestate", _TRACESTATE),
            )
        )

    def finish(**ending: Any) -> None:
        total_s = time.perf_counter() - started
        emit(ExecutionFinished(execution_id=task_id, language=job.language.value, total_s=total_s, **ending))

    try:
        result = await execute(job, **how)
    except BaseException as error:
        status = getattr(error, "status", 500) if isinstance(error, Exception) else None
        note_program(request, error=type(error).__name__)
        finish(outcome=None, error=type(error).__name__, status=status)
        raise
    note_program(request, outcome=result.outcome.value)
    if emit.is_enabled_for(ExecutionFinished):
        finish(outcome=result.outcome.value, error=None, status=200)
    return task_id, result


def _read_header(request: web.BaseRequest, name: str, pattern: re.Pattern[str]) -> str | None:
    value = ",".join(request.headers.getall(name, ()))
    return value if pattern.fullmatch(value) else None
