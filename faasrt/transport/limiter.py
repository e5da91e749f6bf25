"""How many calls one endpoint gets at once: a limit that grows while all goes well, and shrinks when it does not."""

from __future__ import annotations

import heapq
from collections.abc import Callable

_START = 16
_SHRINK = 0.9


class AdaptiveLimit:
    """Additive increase, multiplicative decrease.

    Until it is known what the endpoint is, the limit is one: the first call finds that out for the others. Then it
    grows by one for each full window of successes during which at least half of it was used, and shrinks to 0.9 of
    itself when the endpoint is overloaded or does not answer in time: once for all calls that were under way then.

    Args:
        cap: The most it may become.
        on_change: Called when it has changed, and when it is first known.

    Attributes:
        in_flight: Calls that wait for their answer.
        opened: Whether it is known what the endpoint is, or need not be.
    """

    def __init__(self, cap: int, on_change: Callable[[], None] = lambda: None) -> None:
        self._most = cap
        self._cap = cap
        self._on_change = on_change
        self._limit = 1.0
        self._learned: int | None = None
        self.opened = False
        self._cool_until = float("-inf")
        self._successes = 0
        self._shrunk_at = float("-inf")
        self._zombies: list[float] = []
        self.in_flight = 0

    @property
    def limit(self) -> float:
        """Calls that may be in flight, from 1."""
        return self._limit

    @property
    def to_come(self) -> int:
        """By how much the limit will at least grow once it is known what the endpoint is, as far as anybody can say."""
        return 0 if self.opened else min(_START, self._most) - 1

    def learn(self, capacity: int | None) -> None:
        """Note the size that the endpoint gives itself: the limit starts there, and does not pass it."""
        if self.opened and capacity in (None, self._learned):
            return
        self.opened, self._limit = True, float(min(_START, self._most))
        if capacity is not None:
            self._learned = capacity
            self._cap = max(1, min(self._most, capacity))
            self._limit = float(self._cap)
        self._on_change()

    def zombies(self, now: float) -> int:
        """Calls that were given up here and may still run there."""
        while self._zombies and self._zombies[0] <= now:
            heapq.heappop(self._zombies)
        return len(self._zombies)

    def next_room(self) -> float | None:
        """When the next zombie is gone; None without any."""
        return self._zombies[0] if self._zombies else None

    def has_room(self, now: float) -> bool:
        """Whether another call may be sent."""
        return self.in_flight + self.zombies(now) + 1 <= self._limit

    def load(self, now: float) -> float:
        """How full the endpoint is; 1 is full."""
        return (self.in_flight + self.zombies(now)) / self._limit

    def take(self) -> None:
        """Note a call that is sent."""
        self.in_flight += 1

    def give(self) -> None:
        """Note that it has ended."""
        self.in_flight -= 1

    def grow(self) -> None:
        """Note a success; before `give`."""
        if 2 * self.in_flight < self._limit:
            return
        self._successes += 1
        if self._successes >= self._limit:
            self._successes = 0
            self._set(min(float(self._cap), self._limit + 1))

    def shrink(self, now: float, started: float) -> None:
        """Note that the endpoint was overloaded, or did not answer, in a call that started then."""
        if started > self._shrunk_at:
            self._shrunk_at, self._successes = now, 0
            self._set(max(1.0, self._limit * _SHRINK))

    def _set(self, limit: float) -> None:
        if limit != self._limit:
            self._limit = limit
            self._on_change()

    def cool(self, until: float) -> None:
        """Note that the endpoint asks to be left alone until then: others are preferred, if there are any."""
        self._cool_until = max(self._cool_until, until)

    def is_cooling(self, now: float) -> bool:
        """Whether it has asked to be left alone."""
        return now < self._cool_until

    def exorcise(self) -> None:
        """Note that the server is gone, and with it what may have run there."""
        self._zombies.clear()

    def haunt(self, until: float) -> None:
        """Note a call that was given up and may still run on the server until then."""
        heapq.heappush(self._zombies, until)
