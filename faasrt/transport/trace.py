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

_call_numbers = itertools.count(1)


class CallTrace:
    """One call: its figures are kept up to date, so that an event can tell them however the call ends.

    Args:
        emit: Takes the events.
        clock: A monotonic clock in seconds.
        language: The language of the program.
    """

    __slots__ = (
        "_attempt_started",
        "_awaited",
        "_call_id",
        "_clock",
        "_emit",
        "_language",
        "attempts",
        "attempts_s",
        "endpoint",
        "language",
        "queued_s",
        "started",
    )

    def __init__(self, emit: Emitter, clock: Callable[[], float], language: Language) -> None:
        self._emit = emit
        self._clock = clock
        self.language = language
        self._language = str(language)
        self._call_id = f"c{next(_call_numbers)}"
        self._attempt_started = self._awaited = 0.0
        self.started = clock()
        self.queued_s = 0.0
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
        if not self._emit.is_heard(CallStarted):
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

    def headers(self) -> dict[str, str] | None:
        """Give the headers that the sinks add to the next request."""
        return self._emit.request_headers(self._call_id)

    def permit_awaited(self) -> None:
        """A wait for a permit begins."""
        self._awaited = self._clock()

    def permit_settled(self) -> None:
        """The wait is over, with a permit or without."""
        self.queued_s += self._clock() - self._awaited

    def attempt_started(self, endpoint: str) -> None:
        """A request is about to be sent."""
        self.attempts += 1
        self.endpoint = endpoint
        self._attempt_started = self._clock()
        self._emit(
            AttemptStarted(call_id=self._call_id, language=self._language, attempt=self.attempts, endpoint=endpoint)
        )

    def attempt_finished(self, error: BaseException | None) -> None:
        """Its answer was read and judged, or will not come."""
        duration_s = self._clock() - self._attempt_started
        self.attempts_s.append(duration_s)
        self._emit(
            AttemptFinished(
                call_id=self._call_id,
                language=self._language,
                attempt=self.attempts,
                endpoint=self.endpoint,
                duration_s=duration_s,
                error=type(error).__name__ if error else None,
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
        texts = (result.stdout, result.stderr, result.ret_val) if result else ()
        self._emit(
            CallFinished(
                call_id=self._call_id,
                language=self._language,
                endpoint=self.endpoint,
                outcome=result.outcome.value if result else None,
                error=type(error).__name__ if error else None,
                attempts=self.attempts,
                queued_s=self.queued_s,
                total_s=self.elapsed_s,
                output_bytes=sum(map(_utf8_bytes, texts)),
            )
        )


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
