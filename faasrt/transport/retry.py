"""Decides whether a failed attempt is retried, and when.

`faasrt/docs/retries.md` has the table. A retry is made only if time, attempts and tokens in the budget are left.
Failures of the user's code are results, not errors, so they are never retried.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import attrs

from faasrt.config import RetrySettings
from faasrt.errors import (
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    Sent,
    ServerError,
    ServiceError,
    UnsupportedLanguageError,
)

# While many endpoints restart at once, this number of further attempts finds an endpoint that runs.
EXTRA_ATTEMPTS = 6
# A server that is full needs longer than a connection that failed: with the default delays, 1 s, doubling up to 20 s.
THROTTLED_BASE_FACTOR = 20
THROTTLED_MAX_FACTOR = 10
# Ten calls in a row may be retried. In the long run, a fifth of the calls that succeed may be retried, so retries never
# add more than that to the load of servers that are failing.
BUDGET = 50
RETRY_COST = 5
# A crash breaks all connections at once, but a busy client notices some of them later.
CRASH_S = 2.0


class FailureKind(enum.Enum):
    NEVER_SENT = enum.auto()
    """The server was not reached; the code cannot have run."""
    REFUSED = enum.auto()
    """The server says that it did not start the code."""
    FAILED = enum.auto()
    """The server failed; whether the code ran is unknown."""
    LOST = enum.auto()
    """There is no readable answer; whether the code ran is unknown."""
    FINAL = enum.auto()
    """A retry cannot help."""


def classify(error: ServiceError) -> FailureKind:
    if isinstance(error, ConnectError):
        return FailureKind.NEVER_SENT
    if isinstance(error, OverloadedError):
        was_refused = error.status == 429 or error.retry_after_s is not None or error.not_started
        return FailureKind.REFUSED if was_refused else FailureKind.FAILED
    if isinstance(error, ServerError):
        if error.status == 504:
            return FailureKind.LOST
        return FailureKind.FINAL if error.status in (200, 408) else FailureKind.FAILED
    lost = isinstance(error, (ConnectionLostError, DeadlineExceededError, ProtocolError))
    return FailureKind.LOST if lost and error.sent != "no" else FailureKind.FINAL


def is_outage(error: ServiceError) -> bool:
    """Return whether the error shows that the endpoint is down: it was not reached, or it is starting or stopping."""
    if isinstance(error, ConnectError):
        return not is_permanent(error)
    return classify(error) is FailureKind.REFUSED and error.status == 503


def is_permanent(error: ServiceError) -> bool:
    """Return whether the endpoint fails in the same way until its certificate or the settings are changed."""
    return isinstance(error, ConnectError) and error.permanent


def outage_wait_s(settings: RetrySettings) -> float:
    return settings.connect_retry_s if settings.max_attempts > 1 else 0.0


def throttled_delay_s(settings: RetrySettings) -> float:
    return min(settings.base_delay_s * THROTTLED_BASE_FACTOR, settings.max_delay_s * THROTTLED_MAX_FACTOR)


def min_attempt_s(timeout_s: float) -> float:
    return min(timeout_s, max(0.1, timeout_s / 10))


class RetryBudget:
    """A token bucket, which prevents floods of retries to endpoints that are down. A retry takes five tokens, and a
    success adds one. The attempts that an endpoint loses at the same time, because it crashes, are one retry: they were
    sent before the crash, and their number is limited.
    """

    def __init__(self) -> None:
        self.level: float = BUDGET
        self._crashed_at: dict[str, float] = {}  # by URL

    def deposit(self) -> None:
        if self.level < BUDGET:
            self.level += 1

    def spend(self) -> bool:
        if self.level < RETRY_COST:
            return False
        self.level -= RETRY_COST
        return True

    def spend_for_lost(self, url: str, started: float, now: float) -> bool:
        """Spend tokens for an attempt that was lost now, unless those for the same crash have been spent."""
        crashed_at = self._crashed_at.get(url, -math.inf)
        if started <= crashed_at and now <= crashed_at + CRASH_S:
            return True
        if not self.spend():
            return False
        self._crashed_at[url] = now
        return True


_SENT: tuple[Sent, ...] = ("no", "maybe", "yes")


@attrs.define(eq=False)
class FailedAttempts:
    """The attempts of one call that failed.

    Attributes:
        attempt: The number of the last one, from 1. Attempts that found an endpoint down are counted separately, for
            each outage.
        outage_s: The seconds between the first attempt in a row that found an endpoint down and the last one; None if
            the last one did not, or if the call must not wait for endpoints that are down.
        down_since: When the first of these attempts failed.
        unable: The base URLs of endpoints that cannot run the program, or fail permanently. Nothing was sent to them.
        queued_s: The seconds that the call had waited for permits when the last attempt failed.
        sent: Whether the code may have run in any of the attempts.
    """

    _settings: RetrySettings
    _idempotent: bool = False
    error: ServiceError | None = None
    attempt: int = 0
    outage_s: float | None = None
    down_since: float | None = None
    tried: tuple[str, ...] = ()
    unable_error: InvalidRequestError | UnsupportedLanguageError | None = None
    unable: tuple[str, ...] = ()
    excluded: frozenset[str] = frozenset()
    queued_s: float = 0.0
    sent: Sent = "no"
    _outages: int = 0
    _others: int = 0
    _times: tuple[float, float] = (0.0, 0.0)  # of the start and the end of the last one

    def add(self, error: ServiceError, now: float, url: str = "", *, started: float | None = None) -> None:
        """Record a failed attempt, and set `sent` of its error according to all attempts so far. Without `started`,
        the attempt began just now.
        """
        self.error, self._times = error, (now if started is None else started, now)
        if url:
            self.tried += (url,)
        if outage_wait_s(self._settings) and is_outage(error):
            self._outages += 1
            self.down_since = now if self.down_since is None else self.down_since
            self.attempt, self.outage_s = self._outages, now - self.down_since
        else:
            # The server was there, so the next outage is another one.
            self._others, self._outages = self._others + 1, 0
            self.attempt, self.outage_s, self.down_since = self._others, None, None
        kind, sent = classify(error), error.sent
        if self.sent != "no":
            error.sent = max(self.sent, error.sent, key=_SENT.index)
            if isinstance(error, OverloadedError):
                error.not_started = False
        if kind not in (FailureKind.NEVER_SENT, FailureKind.REFUSED):
            self.sent = max(self.sent, sent, key=_SENT.index)

    def retry_delay_s(
        self, *, has_alternative: bool, remaining_s: float, budget: RetryBudget, random: Callable[[], float]
    ) -> float | None:
        """Decide whether to retry, and return the delay in seconds; None to raise the error instead.

        With `has_alternative`, another healthy endpoint has room and has not been tried, so a short delay is enough.
        Another attempt must start within `remaining_s`.
        """
        error, settings, outage_s = self.error, self._settings, self.outage_s
        assert error is not None
        kind = classify(error)
        # Nothing was started, and the next attempt goes elsewhere. While many endpoints restart at the same time, a few
        # attempts may not find an endpoint that runs.
        elsewhere = has_alternative and kind in (FailureKind.NEVER_SENT, FailureKind.REFUSED)
        # The endpoint is excluded, so the next attempt goes elsewhere even if it must wait for room there.
        elsewhere = elsewhere or is_permanent(error)
        max_attempts = settings.max_attempts
        if elsewhere and max_attempts > 1:
            max_attempts += EXTRA_ATTEMPTS
        if kind is FailureKind.FINAL or (self.attempt >= max_attempts and outage_s is None):
            return None
        if kind in (FailureKind.FAILED, FailureKind.LOST) and not self._idempotent:
            return None
        throttled = isinstance(error, OverloadedError) and not has_alternative
        base_s = throttled_delay_s(settings) if throttled else settings.base_delay_s
        max_s = settings.max_delay_s * (THROTTLED_MAX_FACTOR if throttled else 1)
        # Full jitter: callers that failed together retry at different times.
        wait_s = random() * min(max_s, base_s * 2.0 ** min(self.attempt - 1, 60))
        retry_after_s = error.retry_after_s if isinstance(error, OverloadedError) else None
        if retry_after_s is not None and not has_alternative:
            if retry_after_s > settings.max_retry_after_s:
                return None
            wait_s = retry_after_s + random() * settings.base_delay_s
        if wait_s > remaining_s:
            return None
        if outage_s is not None:
            if outage_s + wait_s <= settings.connect_retry_s:
                return wait_s  # the circuit breakers limit the attempts
            if self.attempt >= max_attempts:
                return None
        # A retry adds no load if the endpoint was not reached, or starts or stops, and another one is healthy.
        is_stopping = isinstance(error, OverloadedError) and error.status == 503 and error.not_started
        free = elsewhere and (kind is FailureKind.NEVER_SENT or is_stopping)
        if not free and isinstance(error, ConnectionLostError):
            free = budget.spend_for_lost(self.tried[-1] if self.tried else "", *self._times)
            return wait_s if free else None
        return wait_s if free or budget.spend() else None
