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
    ProtocolError,
    RejectedError,
    ServiceError,
)
from faasrt.transport.gate import Gate, Permit
from faasrt.transport.session import Body

# A server may end a program this many seconds after its limit.
_MARGIN_S = 1.0


class Attempt:
    """Use it as `with Attempt(...)`, around the exchange.

    Args:
        permit: Given back at the end.
        gate: Where the permit comes from.
        clock: A monotonic clock in seconds.
        settings: How long an endpoint that refuses is left alone.

    Attributes:
        started: When it began.
        shortened: Whether the code has fewer seconds than were asked for.
        status: The HTTP status of the answer; None before there is one.
        body: The request, once there is one that has code run.
        runs_s: Seconds that the server may spend on it.
        cancels_on_disconnect: Whether the server ends the code when the connection is dropped.
    """

    __slots__ = (
        "_clock",
        "_gate",
        "_settings",
        "body",
        "cancels_on_disconnect",
        "permit",
        "runs_s",
        "shortened",
        "started",
        "status",
    )

    def __init__(self, permit: Permit, gate: Gate, clock: Callable[[], float], settings: RetrySettings) -> None:
        self.permit = permit
        self.body: Body | None = None
        self.runs_s = 0.0
        self.cancels_on_disconnect = False
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
            else:
                if self._may_still_run(error):
                    # It may have begun as late as just now.
                    endpoint.limit.haunt(self._clock() + self.runs_s + _MARGIN_S)
                if isinstance(error, ServiceError):
                    self._note_failure(error)
        finally:
            self._gate.release(self.permit)

    def _may_still_run(self, error: BaseException) -> bool:
        """Whether the server may still run the code of a call that was cancelled, lost or given up."""
        if self.body is None or not self.body.sending or self.cancels_on_disconnect:
            return False
        # A gateway that answers 504 has given up as well. Whatever else answers has ended with the code.
        return self.status == 504 or (self.status is None and not isinstance(error, ProtocolError))

    def _note_failure(self, error: ServiceError) -> None:
        now, started = self._clock(), self.started
        limit, breaker = self.permit.endpoint.limit, self.permit.endpoint.breaker
        if isinstance(error, DeadlineExceededError) and self.shortened:
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
