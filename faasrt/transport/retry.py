"""Whether a failed attempt is followed by another, and when: decided from what happened, and from nothing else.

The table is in the docstring of `faasrt.transport`. Whatever is done again has time left to it, an attempt left to it,
and its price in the budget. The user's own failures are results, and never come here.
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


class Happened(enum.Enum):
    """What became of an attempt that gave no result."""

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


def classify(error: ServiceError) -> Happened:
    """Tell what happened from the error of an attempt."""
    if isinstance(error, ConnectError):
        return Happened.NEVER_SENT
    if isinstance(error, OverloadedError):
        promised = error.status == 429 or error.retry_after_s is not None or error.not_started
        return Happened.REFUSED if promised else Happened.FAILED
    if isinstance(error, ServerError):
        if error.status == 504:
            return Happened.LOST
        return Happened.FINAL if error.status == 200 else Happened.FAILED
    lost = isinstance(error, (ConnectionLostError, DeadlineExceededError, ProtocolError))
    return Happened.LOST if lost and error.sent != "no" else Happened.FINAL


class RetryBudget:
    """A bucket that retries are paid from and successes fill, so that a dead fleet is not hammered.

    Args:
        settings: Its size, the price and the credit.
    """

    def __init__(self, settings: RetrySettings) -> None:
        self._settings = settings
        self.level = settings.budget

    def deposit(self) -> None:
        """Note a success."""
        self.level = min(self._settings.budget, self.level + self._settings.success_credit)

    def spend(self) -> bool:
        """Pay for a retry; False when the bucket does not hold its price."""
        if self.level < self._settings.retry_cost:
            return False
        self.level -= self._settings.retry_cost
        return True


def wait_before_retry(
    error: ServiceError,
    *,
    attempt: int,
    idempotent: bool,
    elsewhere: bool,
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
        elsewhere: Whether another endpoint is well, has room, and has not been tried: then nobody need be waited for.
        left_s: Seconds until the call's deadline.
        least_s: Seconds below which another attempt has no prospects.
        settings: Attempts and waits.
        budget: Is paid when the answer is another attempt.
        random: Gives a number in [0, 1).

    Returns:
        The seconds to wait before it; None to raise the error.
    """
    happened = classify(error)
    if happened is Happened.FINAL or attempt >= settings.max_attempts:
        return None
    if happened in (Happened.FAILED, Happened.LOST) and not idempotent:
        return None
    throttled = isinstance(error, OverloadedError) and not elsewhere
    base_s = settings.throttled_base_delay_s if throttled else settings.base_delay_s
    most_s = settings.throttled_max_delay_s if throttled else settings.max_delay_s
    # Full jitter: callers that failed together come back apart.
    wait_s = random() * min(most_s, base_s * 2.0 ** (attempt - 1))
    asked_s = error.retry_after_s if isinstance(error, OverloadedError) else None
    if asked_s is not None and not elsewhere:
        if asked_s > settings.max_retry_after_s:
            return None
        wait_s = asked_s + random() * settings.base_delay_s
    if wait_s + least_s > left_s:
        return None
    # What was never sent, and finds another endpoint well, burdens nobody twice.
    free = happened is Happened.NEVER_SENT and elsewhere
    return wait_s if free or budget.spend() else None


class Exposure:
    """Whether the code of a call can have run in one of its attempts."""

    def __init__(self) -> None:
        self._sent: Sent = "no"

    def add(self, error: ServiceError) -> None:
        """Take in how an attempt failed, and have the error tell of all attempts so far."""
        happened, sent = classify(error), error.sent
        if self._sent != "no":
            error.sent = max(self._sent, error.sent, key=_SENT.index)
            if isinstance(error, OverloadedError):
                error.not_started = False
        if happened not in (Happened.NEVER_SENT, Happened.REFUSED):
            self._sent = max(self._sent, sent, key=_SENT.index)


_SENT: tuple[Sent, ...] = ("no", "maybe", "yes")
