"""Decides whether a failed attempt is followed by another, and when.

The table is in the docstring of `faasrt.transport`. A retry needs time, an attempt and its price in the budget. The
user's own failures are results, and never come here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from faasrt.config import RetrySettings
from faasrt.errors import (
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    OverloadedError,
    ProtocolError,
    Sent,
    ServerError,
    ServiceError,
)


class FailureKind(enum.Enum):
    """How an attempt failed."""

    NEVER_SENT = enum.auto()
    """The server was not reached; the code cannot have run."""
    REFUSED = enum.auto()
    """The server says that it did not start the code."""
    FAILED = enum.auto()
    """The server failed; whether the code ran is unknown."""
    LOST = enum.auto()
    """No answer came that can be read; whether the code ran is unknown."""
    FINAL = enum.auto()
    """Repeating it cannot help, or there is no time."""


def classify(error: ServiceError) -> FailureKind:
    """Return the kind of failure that the error of an attempt stands for."""
    if isinstance(error, ConnectError):
        return FailureKind.NEVER_SENT
    if isinstance(error, OverloadedError):
        promised = error.status == 429 or error.retry_after_s is not None or error.not_started
        return FailureKind.REFUSED if promised else FailureKind.FAILED
    if isinstance(error, ServerError):
        if error.status == 504:
            return FailureKind.LOST
        return FailureKind.FINAL if error.status == 200 else FailureKind.FAILED
    lost = isinstance(error, (ConnectionLostError, DeadlineExceededError, ProtocolError))
    return FailureKind.LOST if lost and error.sent != "no" else FailureKind.FINAL


class RetryBudget:
    """A bucket that retries are paid from and successes fill, so that dead endpoints are not flooded with retries.

    Args:
        settings: Its size, the price and the credit.
    """

    def __init__(self, settings: RetrySettings) -> None:
        self._settings = settings
        self.level = settings.budget

    def deposit(self) -> None:
        """Record a success."""
        self.level = min(self._settings.budget, self.level + self._settings.success_credit)

    def spend(self) -> bool:
        """Pay for a retry; return False when the bucket does not hold its price."""
        if self.level < self._settings.retry_cost:
            return False
        self.level -= self._settings.retry_cost
        return True


def wait_before_retry(
    error: ServiceError,
    *,
    attempt: int,
    idempotent: bool,
    has_alternative: bool,
    left_s: float,
    least_s: float,
    settings: RetrySettings,
    budget: RetryBudget,
    random: Callable[[], float],
) -> float | None:
    """Decide on another attempt.

    Args:
        error: How the last one failed.
        attempt: Its number, from 1.
        idempotent: Whether the code may run more than once.
        has_alternative: Whether another healthy endpoint has room and has not been tried, so that no wait is needed.
        left_s: Seconds until the call's deadline.
        least_s: The least seconds that make another attempt useful.
        settings: Attempts and waits.
        budget: Pays for the attempt.
        random: Returns a number in [0, 1).

    Returns:
        The seconds to wait before it; None to raise the error.
    """
    kind = classify(error)
    if kind is FailureKind.FINAL or attempt >= settings.max_attempts:
        return None
    if kind in (FailureKind.FAILED, FailureKind.LOST) and not idempotent:
        return None
    throttled = isinstance(error, OverloadedError) and not has_alternative
    base_s = settings.throttled_base_delay_s if throttled else settings.base_delay_s
    most_s = settings.throttled_max_delay_s if throttled else settings.max_delay_s
    # Full jitter: callers that failed together retry at different times.
    wait_s = random() * min(most_s, base_s * 2.0 ** (attempt - 1))
    asked_s = error.retry_after_s if isinstance(error, OverloadedError) else None
    if asked_s is not None and not has_alternative:
        if asked_s > settings.max_retry_after_s:
            return None
        wait_s = asked_s + random() * settings.base_delay_s
    if wait_s + least_s > left_s:
        return None
    # A request that was never sent, and has another endpoint, adds no load.
    free = kind is FailureKind.NEVER_SENT and has_alternative
    return wait_s if free or budget.spend() else None


class SendState:
    """Whether the code of a call can have run in one of its attempts."""

    def __init__(self) -> None:
        self._sent: Sent = "no"

    def add(self, error: ServiceError) -> None:
        """Record a failed attempt, and make its error cover all attempts so far."""
        kind, sent = classify(error), error.sent
        if self._sent != "no":
            error.sent = max(self._sent, error.sent, key=_SENT.index)
            if isinstance(error, OverloadedError):
                error.not_started = False
        if kind not in (FailureKind.NEVER_SENT, FailureKind.REFUSED):
            self._sent = max(self._sent, sent, key=_SENT.index)


_SENT: tuple[Sent, ...] = ("no", "maybe", "yes")
