"""Choices between replicas, to which `benchmarks.simulate` compares that of the package.

All of them use the package's breakers and limits. Each looks at a few endpoints only, as the package does in a large
group. If it finds none that is healthy and has room, the package's own function looks at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.simulation import SLOTS, Replica, index_of
from faasrt.transport.endpoint import Endpoint, choose

_DRAWS = 20


class Package:
    """The choice of the package itself, for all clients of a fleet."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas

    def choose(self, endpoints: Sequence[Endpoint], now: float, **options: Any) -> Endpoint | None:
        """Return the endpoint of the next call, or None if none has room. The options are those of the package."""
        return choose(endpoints, now, **options)

    def finished(self, endpoint: Endpoint) -> None:
        """Record the end of an attempt."""


class Random(Package):
    """A random endpoint."""

    def choose(self, endpoints: Sequence[Endpoint], now: float, **options: Any) -> Endpoint | None:
        drawn = self.draw(endpoints, options["random"])
        usable = (
            endpoint
            for endpoint in drawn
            if endpoint.breaker.may_probe(now) or _is_usable(endpoint, now, options["avoid"])
        )
        return self.pick(usable, now) or super().choose(endpoints, now, **options)

    def draw(self, endpoints: Sequence[Endpoint], random: Callable[[], float]) -> Iterator[Endpoint]:
        for _ in range(_DRAWS):
            yield endpoints[int(random() * len(endpoints))]

    def pick(self, usable: Iterable[Endpoint], now: float) -> Endpoint | None:
        return next(iter(usable), None)


class RoundRobin(Random):
    """The endpoints in turn. Each client begins at another one."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        super().__init__(replicas)
        self._positions: dict[int, int] = {}

    def draw(self, endpoints: Sequence[Endpoint], random: Callable[[], float]) -> Iterator[Endpoint]:
        key, count = id(endpoints), len(endpoints)
        if key not in self._positions:
            self._positions[key] = int(random() * count)
        for _ in range(_DRAWS):
            self._positions[key] += 1
            yield endpoints[(self._positions[key] - 1) % count]


class LeastLoaded(Random):
    """The less loaded of two random endpoints, whatever their latency."""

    def pick(self, usable: Iterable[Endpoint], now: float) -> Endpoint | None:
        candidates: list[Endpoint] = []
        for endpoint in usable:
            if endpoint.breaker.may_probe(now):
                return endpoint
            if endpoint not in candidates:
                candidates.append(endpoint)
            if len(candidates) == 2:
                return min(candidates, key=lambda endpoint: endpoint.limit.load(now))
        return None


class Oracle(Package):
    """Knows the true queues, speeds and states of all replicas, and is one mind for all clients."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        super().__init__(replicas)
        self._speeds = sorted({replica.slowness for replica in replicas})
        # By slowness and number of outstanding calls: the replicas. The values of the dictionaries mean nothing.
        self._levels: dict[tuple[float, int], dict[int, None]] = defaultdict(dict)
        self._level_of = [0] * len(replicas)
        for replica in replicas:
            self._levels[replica.slowness, 0][replica.index] = None

    def choose(self, endpoints: Sequence[Endpoint], now: float, **options: Any) -> Endpoint | None:
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
        chosen = super().choose(endpoints, now, **options) if best is None else endpoints[best[1]]
        if chosen is not None:
            self._move(index_of(chosen), 1)
        return chosen

    def _find(self, level: dict[int, None]) -> int | None:
        return next((index for index in level if self.replicas[index].state == "up"), None)

    def finished(self, endpoint: Endpoint) -> None:
        self._move(index_of(endpoint), -1)

    def _move(self, index: int, step: int) -> None:
        slowness = self.replicas[index].slowness
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


BALANCERS: dict[str, Callable[[Sequence[Replica]], Package]] = {
    "random": Random,
    "round robin": RoundRobin,
    "load": LeastLoaded,
    "faasrt": Package,
    "oracle": Oracle,
}
