"""The state of one call: deadline, attempts, times and events. It lasts for all attempts, and an `Attempt` for one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Self

import attrs

from faasrt._endpoint_urls import configured_url
from faasrt.config import Settings
from faasrt.errors import QueueFullError, RuntimeClosedError, ServiceError
from faasrt.languages import Language
from faasrt.protocol.program import CALL_ID_HEADER, Program
from faasrt.results import ExecutionResult, Timings
from faasrt.telemetry.dispatch import EventDispatcher
from faasrt.telemetry.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    RetryScheduled,
    hash_code,
)
from faasrt.telemetry.metrics import CallCounters, Counters
from faasrt.transport.retry import FailedAttempts, min_attempt_s


class Call:
    """The state of one call. As a context manager, it reports an error that ends the call.

    Only calls with a `program` have events and metrics.

    `counters` is not a sink, so that most calls need no events. `owner` identifies the call for
    `Transport.fail_waiting`. The deadline is infinite until the call has its first permit.
    """

    def __init__(
        self,
        emit: EventDispatcher,
        counters: Counters,
        clock: Callable[[], float],
        settings: Settings,
        owner: object,
        language: Language | str,
        program: Program | None = None,
    ) -> None:
        self._emit = emit
        self._has_listeners = emit.wants_calls()
        self._counters = counters
        self._endpoint_counters: CallCounters | None = None
        self._clock = clock
        self._id = ""
        self.attempt_began = 0.0
        self._attempts_s: tuple[float, ...] = ()
        self._timings: Timings | None = None
        self._program = program
        self.settings = settings
        self.owner = owner
        self.failed = FailedAttempts(settings.retry, program is not None and program.idempotent)
        self.language = language
        self.started = clock()
        self.deadline = math.inf
        self.queued_s = 0.0
        self.attempts = 0
        self.endpoint = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._finished(None, error)

    @property
    def _call_id(self) -> str:
        if not self._id:
            self._id = f"{random.getrandbits(64):016x}"
        return self._id

    @property
    def _language(self) -> str:
        return str(self.language)

    def call_started(self) -> None:
        program = self._program
        if program is None or not (self._has_listeners and self._emit.is_enabled_for(CallStarted)):
            return  # encoding and hashing the code is slow
        data = program.code.encode("utf-8", "surrogatepass")
        self._emit(
            CallStarted(
                call_id=self._call_id,
                language=self._language,
                code_bytes=len(data),
                code_hash=hash_code(data),
                timeout_ms=program.timeout_ms,
            )
        )

    def headers(self) -> dict[str, str] | None:
        """Return None if there are no sinks. The id of the call is that in their events."""
        if not (self._has_listeners or self._emit.adds_headers):
            return None
        return {CALL_ID_HEADER: self._call_id, **self._emit.request_headers(self._call_id)}

    def attempt_started(self, endpoint: str) -> float:
        self.attempts += 1
        self.endpoint = endpoint
        started = self.attempt_began = self._clock()
        if self._program is None:
            return started
        self._endpoint_counters = self._counters.at(self.language, endpoint)
        self._endpoint_counters.attempt_started(retry=self.attempts > 1)
        if self._has_listeners and self._emit.is_enabled_for(AttemptStarted):
            self._emit(
                AttemptStarted(call_id=self._call_id, language=self._language, attempt=self.attempts, endpoint=endpoint)
            )
        return started

    def attempt_finished(self, error: BaseException | None, status: int | None) -> None:
        if self._program is None:
            return
        duration_s = self._clock() - self.attempt_began
        self._attempts_s += (duration_s,)
        if self._endpoint_counters is not None:
            self._endpoint_counters.attempt_finished()
        if error is not None or (self._has_listeners and self._emit.is_enabled_for(AttemptFinished)):
            self._emit(
                AttemptFinished(
                    call_id=self._call_id,
                    language=self._language,
                    attempt=self.attempts,
                    endpoint=self.endpoint,
                    duration_s=duration_s,
                    status=getattr(error, "status", None) if status is None else status,
                    error=None if error is None else type(error).__name__,
                    reason=_reason_of(error),
                )
            )

    def retry_scheduled(self, error: BaseException, wait_s: float) -> None:
        if self._program is None:
            return
        self._emit(
            RetryScheduled(
                call_id=self._call_id,
                language=self._language,
                attempt=self.attempts,
                endpoint=self.endpoint,
                error=type(error).__name__,
                reason=_reason_of(error),
                wait_s=wait_s,
            )
        )

    def start_deadline(self, within_s: float) -> None:
        """Let the call end within some seconds. Retries do not restart the time."""
        if self.failed.error is None:
            self.deadline = self._clock() + within_s

    @property
    def retry_until(self) -> float:
        """The latest time at which another attempt may begin."""
        return self.deadline - (0.0 if self._program is None else min_attempt_s(self._program.timeout_ms / 1000))

    def describe_error(self, error: ServiceError) -> None:
        error.endpoint, error.attempts = self.endpoint or error.endpoint, self.attempts
        error.elapsed_s = self._clock() - self.started

    @property
    def timings(self) -> Timings:
        """The times of the call, up to the first access. The cases of an execution share them."""
        if self._timings is None:
            self._timings = Timings(self.queued_s, self._clock() - self.started, self._attempts_s)
        return self._timings

    def describe(self, result: ExecutionResult) -> ExecutionResult:
        return attrs.evolve(result, timings=self.timings, attempts=self.attempts, endpoint=self.endpoint)

    def finish(self, result: ExecutionResult) -> ExecutionResult:
        self._finished(result, None)
        return result

    def _finished(self, result: ExecutionResult | None, error: BaseException | None) -> None:
        total_s = self.timings.total_s
        outcome = None if result is None else str(result.outcome)
        name = None if error is None else type(error).__name__
        # The replica of the last attempt may have left since. Then its metrics were added to the metrics of its URL.
        endpoint = self.endpoint if self._counters.has(self.endpoint) else configured_url(self.endpoint)
        self._counters.at(self.language, endpoint).call_finished(outcome, name, total_s)
        if error is not None or (self._has_listeners and self._emit.is_enabled_for(CallFinished)):
            texts = () if result is None else (result.stdout, result.stderr, result.ret_val)
            self._emit(
                CallFinished(
                    call_id=self._call_id,
                    language=self._language,
                    endpoint=endpoint,
                    outcome=outcome,
                    error=name,
                    reason=_reason_of(error),
                    attempts=self.attempts,
                    queued_s=self.queued_s,
                    total_s=total_s,
                    output_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
                )
            )


def _reason_of(error: BaseException | None) -> str | None:
    """Return the part of an error message that faasrt wrote. The rest may contain output of a program."""
    if isinstance(error, ServiceError):
        return error.reason
    return error.message if isinstance(error, (QueueFullError, RuntimeClosedError)) else None
