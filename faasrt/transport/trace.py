"""What is known of a call so far, and the events that tell it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

from faasrt.emitter import Emitter
from faasrt.errors import ServiceError
from faasrt.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    RetryScheduled,
    hash_code,
)
from faasrt.languages import Language
from faasrt.results import ExecutionResult, Timings, complete
from faasrt.transport.counters import Counters, Figures

_call_numbers = itertools.count(1)


class CallTrace:
    """One call: its figures are kept up to date, so that an event can tell them however the call ends.

    Args:
        emit: Takes the events.
        counters: Counts for `get_metrics()`, which is done here rather than by a sink: there are no records to be made
            when nobody hears them.
        clock: A monotonic clock in seconds.
        language: The language of the program.
    """

    __slots__ = (
        "_attempt_started",
        "_call_id",
        "_clock",
        "_counters",
        "_emit",
        "_figures",
        "_language",
        "attempts",
        "attempts_s",
        "endpoint",
        "language",
        "probed_s",
        "queued_s",
        "started",
    )

    def __init__(self, emit: Emitter, counters: Counters, clock: Callable[[], float], language: Language) -> None:
        self._emit = emit
        self._counters = counters
        self._figures: Figures | None = None
        self._clock = clock
        self.language = language
        self._language = str(language)
        self._call_id = f"c{next(_call_numbers)}"
        self._attempt_started = 0.0
        self.started = clock()
        self.queued_s = 0.0
        self.probed_s = 0.0  # of waiting for health reports, by which the call's deadline is extended
        self.attempts_s: list[float] = []
        self.attempts = 0
        self.endpoint = ""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call began."""
        return self._clock() - self.started

    def inform(self, error: ServiceError) -> None:
        """Tell an error which endpoint, attempt and time it belongs to."""
        error.endpoint, error.attempts, error.elapsed_s = self.endpoint, self.attempts, self.elapsed_s

    def call_started(self, code: str, timeout_ms: float) -> None:
        """The call was checked and accepted."""
        if not self._emit.hears(CallStarted):
            return  # a hash takes longer than all the rest of an event
        data = code.encode("utf-8", "surrogatepass")
        self._emit(
            CallStarted(
                call_id=self._call_id,
                language=self._language,
                code_bytes=len(data),
                code_hash=hash_code(data),
                timeout_ms=timeout_ms,
            )
        )

    def headers(self) -> dict[str, str]:
        """Give the headers that the sinks add to the next request."""
        return self._emit.request_headers(self._call_id)

    def attempt_started(self, endpoint: str) -> None:
        """A request is about to be sent."""
        self.attempts += 1
        self.endpoint = endpoint
        self._attempt_started = self._clock()
        figures = self._figures = self._counters.at(self._language, endpoint)
        figures.attempt_started(retry=self.attempts > 1)
        if self._emit.hears(AttemptStarted):
            self._emit(
                AttemptStarted(call_id=self._call_id, language=self._language, attempt=self.attempts, endpoint=endpoint)
            )

    def attempt_finished(self, error: BaseException | None, status: int | None) -> None:
        """Its answer was read and judged, or will not come."""
        duration_s = self._clock() - self._attempt_started
        self.attempts_s.append(duration_s)
        if self._figures is not None:
            self._figures.attempt_finished()
        if error is not None or self._emit.hears(AttemptFinished):
            self._emit(
                AttemptFinished(
                    call_id=self._call_id,
                    language=self._language,
                    attempt=self.attempts,
                    endpoint=self.endpoint,
                    duration_s=duration_s,
                    status=getattr(error, "status", None) if status is None else status,
                    error=_name_of(error),
                )
            )

    def retry_scheduled(self, error: BaseException, wait_s: float) -> None:
        """The last attempt failed, and another will be made."""
        self._emit(
            RetryScheduled(
                call_id=self._call_id,
                language=self._language,
                attempt=self.attempts,
                endpoint=self.endpoint,
                error=type(error).__name__,
                wait_s=wait_s,
            )
        )

    def stamp(self) -> Callable[[ExecutionResult], ExecutionResult]:
        """Give what tells a result all that is known of its call at this moment."""
        timings = Timings(queued=self.queued_s, total=self.elapsed_s, attempts=tuple(self.attempts_s))
        return functools.partial(complete, timings=timings, attempts=self.attempts, endpoint=self.endpoint)

    def call_finished(self, result: ExecutionResult | None, error: BaseException | None) -> None:
        """The call ended."""
        total_s = self._clock() - self.started
        outcome, failure = str(result.outcome) if result else None, _name_of(error)
        figures = self._counters.at(self._language, "") if self._figures is None else self._figures
        figures.call_finished(outcome, failure, total_s)
        if error is not None or self._emit.hears(CallFinished):
            texts = (result.stdout, result.stderr, result.ret_val) if result else ()
            self._emit(
                CallFinished(
                    call_id=self._call_id,
                    language=self._language,
                    endpoint=self.endpoint,
                    outcome=outcome,
                    error=failure,
                    attempts=self.attempts,
                    queued_s=self.queued_s,
                    total_s=total_s,
                    output_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
                )
            )


def _name_of(error: BaseException | None) -> str | None:
    return None if error is None else type(error).__name__
