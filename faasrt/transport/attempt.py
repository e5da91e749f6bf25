"""One attempt: it holds a permit while it lasts, and notes in the endpoint what became of it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from faasrt.config import RetrySettings
from faasrt.errors import (
    ConnectError,
    DeadlineExceededError,
    OverloadedError,
    RejectedError,
    ServiceError,
)
from faasrt.transport.gate import Gate, Permit


class Attempt:
    """Use it as `with Attempt(...)`, around the exchange.

    Args:
        permit: Given back at the end.
        timeout_s: Seconds that the code has.
        gate: Where the permit comes from.
        clock: A monotonic clock in seconds.
        settings: How long an endpoint that refuses is left alone.

    Attributes:
        started: When it began.
        shortened: Whether the code has fewer seconds than were asked for.
        status: The HTTP status of the answer; None before there is one.
    """

    __slots__ = ("_clock", "_gate", "_settings", "permit", "shortened", "started", "status", "timeout_s")

    def __init__(
        self, permit: Permit, timeout_s: float, gate: Gate, clock: Callable[[], float], settings: RetrySettings
    ) -> None:
        self.permit = permit
        self.timeout_s = timeout_s
        self.shortened = False
        self.status: int | None = None
        self.started = clock()
        self._gate = gate
        self._clock = clock
        self._settings = settings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        endpoint = self.permit.endpoint
        try:
            if error is None:
                endpoint.limit.grow()
                endpoint.breaker.succeed(self._clock(), self.started)
            elif isinstance(error, ServiceError):
                self._note_failure(error)
        finally:
            self._gate.release(self.permit)

    def _note_failure(self, error: ServiceError) -> None:
        now, started = self._clock(), self.started
        limit, breaker = self.permit.endpoint.limit, self.permit.endpoint.breaker
        if isinstance(error, DeadlineExceededError):
            if error.sent == "maybe":
                # It may have begun as late as just now.
                limit.haunt(now + self.timeout_s)
            if self.shortened:
                return  # the time was used up elsewhere
        if isinstance(error, (OverloadedError, DeadlineExceededError)):
            limit.shrink(now, started)
        if isinstance(error, OverloadedError):
            retry = self._settings
            asked_s = retry.throttled_base_delay_s if error.retry_after_s is None else error.retry_after_s
            limit.cool(now + min(asked_s, retry.max_retry_after_s))
        if isinstance(error, ConnectError):
            limit.exorcise()
        if isinstance(error, RejectedError) or (isinstance(error, OverloadedError) and error.status == 429):
            breaker.succeed(now, started)  # it answered for itself, and will again
        else:
            breaker.fail(now, started, canary=self.permit.canary)
