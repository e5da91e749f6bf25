"""Choices between replicas, to which `benchmarks.simulate` compares that of the package.

All of them use the package's breakers and limits. Each looks at a few endpoints only, as the package does in a large
group. If it finds none that is healthy and has room, the package's own function looks at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import attrs

from benchmarks.simulation import SLOTS, Balancer, Replica, index_of
from faasrt.transport.endpoint import Endpoint, choose

_DRAWS = 20


class Package:
    """The choice of the package itself."""

    choose = staticmethod(choose)

    def finished(self, endpoint: Endpoint, took_s: float | None, now: float) -> None:
        """Record nothing: the pool does that."""


class Random(Package):
    """A random endpoint."""

    def choose(
        self,
        endpoints: Sequence[Endpoint],
        now: float,
        *,
        avoid: Collection[str],
        random: Callable[[], float],
        recent: Any = (),
    ) -> Endpoint | None:
        """Return the first of some random endpoints that is healthy and has room."""
        for _ in range(_DRAWS):
            endpoint = endpoints[int(random() * len(endpoints))]
            if endpoint.breaker.may_probe(now) or _is_usable(endpoint, now, avoid):
                return endpoint
        return choose(endpoints, now, avoid=avoid, random=random)


class RoundRobin(Package):
    """The endpoints in turn. Each client begins at another one."""

    def __init__(self) -> None:
        self._positions: dict[int, int] = {}

    def choose(
        self,
        endpoints: Sequence[Endpoint],
        now: float,
        *,
        avoid: Collection[str],
        random: Callable[[], float],
        recent: Any = (),
    ) -> Endpoint | None:
        """Return the next endpoint that is healthy and has room."""
        key, count = id(endpoints), len(endpoints)
        position = self._positions.get(key)
        if position is None:
            position = int(random() * count)
        for step in range(_DRAWS):
            endpoint = endpoints[(position + step) % count]
            if endpoint.breaker.may_probe(now) or _is_usable(endpoint, now, avoid):
                self._positions[key] = position + step + 1
                return endpoint
        self._positions[key] = position + _DRAWS
        return choose(endpoints, now, avoid=avoid, random=random)


class LeastLoaded(Package):
    """The less loaded of two random endpoints, whatever their latency."""

    def choose(
        self,
        endpoints: Sequence[Endpoint],
        now: float,
        *,
        avoid: Collection[str],
        random: Callable[[], float],
        recent: Any = (),
    ) -> Endpoint | None:
        """Return the endpoint with the smaller cost."""
        candidates: list[Endpoint] = []
        for _ in range(_DRAWS):
            endpoint = endpoints[int(random() * len(endpoints))]
            if endpoint.breaker.may_probe(now):
                return endpoint
            if endpoint not in candidates and _is_usable(endpoint, now, avoid):
                candidates.append(endpoint)
                if len(candidates) == 2:
                    return min(candidates, key=lambda endpoint: self.cost(endpoint, now))
        return choose(endpoints, now, avoid=avoid, random=random)

    def cost(self, endpoint: Endpoint, now: float) -> float:
        """Return the part of the limit that is in use."""
        return endpoint.limit.load(now)


@attrs.define(eq=False)
class PeakEwma(LeastLoaded):
    """The smaller product of calls in flight and recent latency, of two random endpoints, as in Finagle.

    A latency above the average replaces it at once; a smaller one moves it, the more the longer the last answer is ago.
    """

    decay_s: float = 10.0
    # By endpoint: the average, and when it was updated.
    _averages: dict[Endpoint, tuple[float, float]] = attrs.field(factory=dict, init=False)

    def cost(self, endpoint: Endpoint, now: float) -> float:
        """Return the expected time until an answer."""
        average, updated = self._averages.get(endpoint, (0.0, now))
        average *= math.exp((updated - now) / self.decay_s)
        return (endpoint.limit.in_flight + 1) * average

    def finished(self, endpoint: Endpoint, took_s: float | None, now: float) -> None:
        """Record an answer."""
        if took_s is None:
            return
        average, updated = self._averages.get(endpoint, (0.0, now))
        weight = math.exp((updated - now) / self.decay_s)
        average = took_s if took_s > average else average * weight + took_s * (1 - weight)
        self._averages[endpoint] = average, now


class Oracle(Package):
    """Knows the true queues, speeds and states of all replicas, and is one mind for all clients."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._speeds = sorted({replica.slowness for replica in replicas})
        # By slowness and number of outstanding calls: the replicas. The values of the dictionaries mean nothing.
        self._levels: dict[tuple[float, int], dict[int, None]] = defaultdict(dict)
        self._level_of = [0] * len(replicas)
        for replica in replicas:
            self._levels[replica.slowness, 0][replica.index] = None

    def choose(
        self,
        endpoints: Sequence[Endpoint],
        now: float,
        *,
        avoid: Collection[str],
        random: Callable[[], float],
        recent: Any = (),
    ) -> Endpoint | None:
        """Return the endpoint on which a program would end first."""
        best: tuple[float, int] | None = None
        for slowness in self._speeds:
            for level in range(100 * SLOTS):
                cost = slowness * max(1.0, (level + 1) / SLOTS)
                if best is not None and cost >= best[0]:
                    break
                index = self._find(self._levels[slowness, level])
                if index is not None:
                    best = cost, index
                    break
        chosen = choose(endpoints, now, avoid=avoid, random=random) if best is None else endpoints[best[1]]
        if chosen is not None:
            self._move(index_of(chosen), 1)
        return chosen

    def _find(self, level: dict[int, None]) -> int | None:
        return next((index for index in level if self._replicas[index].state == "up"), None)

    def finished(self, endpoint: Endpoint, took_s: float | None, now: float) -> None:
        """Record the end of an attempt."""
        self._move(index_of(endpoint), -1)

    def _move(self, index: int, step: int) -> None:
        slowness = self._replicas[index].slowness
        del self._levels[slowness, self._level_of[index]][index]
        self._level_of[index] += step
        self._levels[slowness, self._level_of[index]][index] = None


def _is_usable(endpoint: Endpoint, now: float, avoid: Collection[str]) -> bool:
    return (
        endpoint.breaker.state == "closed"
        and endpoint.limit.has_room(now)
        and not endpoint.limit.is_backing_off(now)
        and endpoint.url not in avoid
    )


BALANCERS: dict[str, Callable[[Sequence[Replica]], Balancer]] = {
    "random": lambda replicas: Random(),
    "round robin": lambda replicas: RoundRobin(),
    "load": lambda replicas: LeastLoaded(),
    "peak EWMA": lambda replicas: PeakEwma(),
    "faasrt": lambda replicas: Package(),
    "oracle": Oracle,
}
"""By name: makes a balancer for a fleet."""
