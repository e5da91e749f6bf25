"""The limit on the calls of an endpoint: it grows while the endpoint answers, and shrinks when it does not."""

from __future__ import annotations

import heapq
from collections.abc import Callable

_INITIAL = 16
_SHRINK = 0.9


class AdaptiveLimit:
    """Additive increase, multiplicative decrease.

    The limit is one until the capacity of the endpoint is known, because the first call asks for it. It grows by one
    for each full window of successes during which at least half of it was used. It shrinks to 0.9 of itself when the
    endpoint is overloaded or does not answer in time, once for all calls that were in flight then.

    Args:
        cap: The largest limit.
        on_change: Called when the limit changes.

    Attributes:
        in_flight: Calls that wait for their answer.
        is_known: Whether the capacity was asked for, or need not be.
    """

    def __init__(self, cap: int, on_change: Callable[[], None] = lambda: None) -> None:
        self._max = cap
        self._cap = cap
        self._on_change = on_change
        self._limit = 1.0
        self._capacity: int | None = None
        self._backing_off_until = float("-inf")
        self._successes = 0
        self._shrunk_at = float("-inf")
        self._abandoned: list[float] = []
        self.is_known = False
        self.in_flight = 0

    @property
    def limit(self) -> float:
        """Calls that may be in flight, from 1."""
        return self._limit

    @property
    def expected_growth(self) -> int:
        """By how much the limit will at least grow once the capacity is known."""
        return 0 if self.is_known else min(_INITIAL, self._max) - 1

    def set_capacity(self, capacity: int | None) -> None:
        """Start at the capacity that the endpoint states, and never exceed it; None when it states none."""
        if self.is_known and capacity in (None, self._capacity):
            return
        self.is_known, self._limit = True, float(min(_INITIAL, self._max))
        if capacity is not None:
            self._capacity = capacity
            self._cap = max(1, min(self._max, capacity))
            self._limit = float(self._cap)
        self._on_change()

    def abandoned(self, now: float) -> int:
        """Return the calls that were given up here and may still run."""
        while self._abandoned and self._abandoned[0] <= now:
            heapq.heappop(self._abandoned)
        return len(self._abandoned)

    def next_release(self) -> float | None:
        """Return when the next abandoned call stops counting; None without any."""
        return self._abandoned[0] if self._abandoned else None

    def has_room(self, now: float) -> bool:
        """Return whether another call may be sent."""
        return self.in_flight + self.abandoned(now) + 1 <= self._limit

    def load(self, now: float) -> float:
        """Return the used share of the limit."""
        return (self.in_flight + self.abandoned(now)) / self._limit

    def acquire(self) -> None:
        """Count a call that is sent."""
        self.in_flight += 1

    def release(self) -> None:
        """Count a call that has ended."""
        self.in_flight -= 1

    def grow(self) -> None:
        """Record a success; before `release`."""
        if 2 * self.in_flight < self._limit:
            return
        self._successes += 1
        if self._successes >= self._limit:
            self._successes = 0
            self._set(min(float(self._cap), self._limit + 1))

    def shrink(self, now: float, started: float) -> None:
        """Record that the endpoint was overloaded, or did not answer, in a call that started then."""
        if started > self._shrunk_at:
            self._shrunk_at, self._successes = now, 0
            self._set(max(1.0, self._limit * _SHRINK))

    def _set(self, limit: float) -> None:
        if limit != self._limit:
            self._limit = limit
            self._on_change()

    def back_off(self, until: float) -> None:
        """Prefer other endpoints until then."""
        self._backing_off_until = max(self._backing_off_until, until)

    def is_backing_off(self, now: float) -> bool:
        """Return whether other endpoints are preferred."""
        return now < self._backing_off_until

    def charge_abandoned(self, until: float) -> None:
        """Count a call that was given up, and may still run on the server until then."""
        heapq.heappush(self._abandoned, until)

    def clear_abandoned(self) -> None:
        """Forget the abandoned calls: the server is gone, and its programs with it."""
        self._abandoned.clear()
