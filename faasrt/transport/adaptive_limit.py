"""How many calls an endpoint may have in flight: learned from its answers."""

from __future__ import annotations

import heapq
from collections.abc import Callable

_INITIAL = 16
_SHRINK, _FIRST_SHRINK = 0.9, 0.5


class AdaptiveLimit:
    """A limit with slow start, and then additive increase and multiplicative decrease (AIMD), as in TCP.

    The limit is 1 until the first call has asked the endpoint for its capacity. If the endpoint states one, the limit
    is this. Else, each success first increases the limit by one, so that it doubles in the time of a call. When the
    endpoint is overloaded or does not answer in time, the limit is halved, but not to less than 0.9 of where it began.
    From then on, with a limit of N, N successes increase it by one, and such a failure multiplies it by 0.9. A success
    counts only while at least half of the limit is in use, and a failure once for all calls in flight at that time.
    """

    def __init__(self, cap: int, on_change: Callable[[], None] = lambda: None) -> None:
        self._max = cap
        self._cap = cap
        self._on_change = on_change
        self._limit = 1.0
        self._capacity: int | None = None
        self._backing_off_until = float("-inf")
        self._successes = 0
        self._in_slow_start = True
        self._shrunk_at = float("-inf")
        self._abandoned: list[float] = []
        self.is_initialized = False
        self.in_flight = 0

    @property
    def limit(self) -> float:
        return self._limit

    @property
    def expected_growth(self) -> int:
        """How far the limit will rise when the capacity is known, if the server states none."""
        return 0 if self.is_initialized else min(_INITIAL, self._max) - 1

    def set_capacity(self, capacity: int | None) -> bool:
        """Set the limit and its maximum to the capacity of the endpoint, which is None if it is unknown. Return whether
        this is another one than before.
        """
        if self.is_initialized and capacity in (None, self._capacity):
            return False
        self.is_initialized, self._limit = True, float(min(_INITIAL, self._max))
        if capacity is not None:
            self._capacity, self._in_slow_start = capacity, False
            self._cap = max(1, min(self._max, capacity))
            self._limit = float(self._cap)
        self._on_change()
        return True

    def set_cap(self, cap: int) -> None:
        """Change the maximum. A limit that only the old one restricted rises at once."""
        was_restricted = self.is_initialized and self._limit >= self._cap
        self._max = cap
        self._cap = cap if self._capacity is None else max(1, min(cap, self._capacity))
        start = min(_INITIAL, cap) if self._capacity is None else self._cap
        limit = min(self._limit, float(self._cap))
        self._set(max(limit, float(start)) if was_restricted else limit)

    def abandoned(self, now: float) -> int:
        """Return the number of calls that the client gave up and the server may still run."""
        while self._abandoned and self._abandoned[0] <= now:
            heapq.heappop(self._abandoned)
        return len(self._abandoned)

    def next_release(self) -> float | None:
        return self._abandoned[0] if self._abandoned else None

    def has_room(self, now: float) -> bool:
        abandoned = self.abandoned(now) if self._abandoned else 0
        return self.in_flight + abandoned + 1 <= self._limit

    def load(self, now: float) -> float:
        return (self.in_flight + self.abandoned(now)) / self._limit

    def grow(self) -> None:
        """Record a success. Call this before `in_flight` is reduced."""
        if 2 * self.in_flight < self._limit:
            return
        self._successes += 1
        if self._in_slow_start or self._successes >= self._limit:
            self._successes = 0
            self._set(min(float(self._cap), self._limit + 1))

    def shrink(self, now: float, started: float) -> None:
        if started > self._shrunk_at:
            limit = self._limit * _SHRINK
            if self._in_slow_start:
                limit = max(self._limit * _FIRST_SHRINK, min(_INITIAL * _SHRINK, limit))
            self._shrunk_at, self._successes, self._in_slow_start = now, 0, False
            self._set(max(1.0, limit))

    def _set(self, limit: float) -> None:
        if limit != self._limit:
            self._limit = limit
            self._on_change()

    def back_off(self, until: float) -> None:
        self._backing_off_until = max(self._backing_off_until, until)

    def is_backing_off(self, now: float) -> bool:
        return now < self._backing_off_until

    def charge_abandoned(self, until: float) -> None:
        """Count a call that may run on the server until this time."""
        heapq.heappush(self._abandoned, until)

    def clear_abandoned(self) -> None:
        """Stop counting abandoned calls: the server has stopped, and so have its programs."""
        self._abandoned.clear()
