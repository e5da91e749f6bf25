"""How slow an endpoint is, compared with the others.

Programs differ much more than servers do, so the latency of a few calls says little. An endpoint counts as slow only if
the difference is too large for chance. All averages are of logarithms: a long program among many short ones hardly
changes them, and an endpoint that is ten times slower differs by the same amount for short and for long programs.
"""

from __future__ import annotations

import math

_WEIGHT = 0.1
"""The weight of the latest call in the average of an endpoint, which therefore covers about 20 calls."""
_GROUP_WEIGHT = 0.01
_MIN_RATIO = math.log(2)
"""Smaller differences are not worth a worse balance."""
_MIN_CALLS, _MIN_GROUP_CALLS = 3, 20
"""Fewer calls, of the endpoint and of its group, say nothing."""
_FAILURES = 2
"""This number of failures in a row means that the endpoint is failing. One program may cause a single failure."""
_DEVIATIONS = 3.0
_FORGET_S = 5.0
_SHORTEST_S = 0.001


class TypicalLatency:
    def __init__(self) -> None:
        self.mean = 0.0
        self.variance = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        weight = max(_GROUP_WEIGHT, 1 / self.count)
        difference = value - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference * difference)


class EndpointLatency:
    """The recent latency of an endpoint, compared with the typical one, which endpoints share."""

    def __init__(self, typical: TypicalLatency | None = None) -> None:
        self._typical = typical or TypicalLatency()
        self._mean = 0.0
        self._count = -1  # the first call may take long, because the server starts interpreters
        self._slowness = 1.0
        self._updated = float("-inf")
        self._failures = 0

    def add(self, duration_s: float, now: float) -> bool:
        """Return whether the call was faster than usual."""
        typical, value = self._typical, math.log(max(duration_s, _SHORTEST_S))
        self._updated = now
        self._count += 1
        if self._count == 0:
            return value <= typical.mean
        self._mean += max(_WEIGHT, 1 / self._count) * (value - self._mean)
        # This weighted average varies as much as a plain average of this number of calls.
        calls = min(self._count, 2 / _WEIGHT - 1)
        difference = self._mean - typical.mean
        is_slow = (
            self._count >= _MIN_CALLS
            and typical.count >= _MIN_GROUP_CALLS
            and difference > max(_MIN_RATIO, _DEVIATIONS * math.sqrt(typical.variance / calls))
        )
        self._slowness = math.exp(difference) if is_slow else 1.0
        is_fast = not is_slow and value <= typical.mean
        typical.add(value)
        return is_fast

    def add_failure(self, now: float, *, is_away: bool) -> None:
        """Record a failure. `is_away` means that no program can be the cause."""
        self._failures += _FAILURES if is_away else 1
        self._updated = now

    def add_answer(self) -> None:
        """Record an answer, even if its duration says nothing about the speed of the endpoint."""
        self._failures = 0

    def add_start(self, now: float) -> None:
        """Record a call. If the endpoint has been failing, further calls wait for its answer."""
        if self._failures >= _FAILURES:
            self._updated = now

    def is_failing(self, now: float) -> bool:
        return self._failures >= _FAILURES and self.is_known(now)

    def next_trial(self, now: float) -> float | None:
        return self._updated + _FORGET_S if self.is_failing(now) else None

    def is_known(self, now: float) -> bool:
        """Return whether a call has ended within the last seconds."""
        return now < self._updated + _FORGET_S

    def slowness(self, now: float, in_flight: int) -> float:
        """Return how many times slower the endpoint is than usual; 1 if the difference may be chance.

        After some seconds without the end of a call it is 1 again, so that a call finds out whether the endpoint has
        recovered. While that call is in flight, the endpoint counts as slow.
        """
        return 1.0 if not in_flight and not self.is_known(now) else self._slowness
