"""What `get_metrics()` gives: counts since the start, and what goes on now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The upper bounds of the latency histogram's buckets, in seconds; one more bucket takes what is slower."""


@attrs.frozen(kw_only=True)
class Latency:
    """A histogram of the time of calls, from the call to its result or error.

    Attributes:
        counts: For each bound of `LATENCY_BOUNDS_S` the calls that took at most so long, and more than the bound
            before; the last figure counts the slower ones.
        sum_s: The seconds of all calls together.

    Example:
        >>> result = await manager.run_code("print(1)", "python")
        >>> latency = manager.get_metrics().total.latency
        >>> latency.count, latency.sum_s < 60
        (1, True)
    """

    counts: tuple[int, ...] = (0,) * (len(LATENCY_BOUNDS_S) + 1)
    sum_s: float = 0.0

    @property
    def count(self) -> int:
        """All calls."""
        return sum(self.counts)


@attrs.frozen(kw_only=True)
class CallMetrics:
    """The figures of one endpoint, or of several together.

    Attributes:
        outcomes: For each outcome the calls that ended so.
        errors: For each class of error the calls that failed so; cancelled calls are under "CancelledError".
        in_flight: Requests whose answer has not come yet.
        attempts: Requests made.
        retries: Requests made after the first of a call.
        latency: How long the calls took.

    Example:
        >>> results = [await manager.run_code(code, "python") for code in ("print(1)", "1 / 0")]
        >>> total = manager.get_metrics().total
        >>> total.calls, total.outcomes["OK"], total.outcomes["USER_ERROR"], total.retries
        (2, 1, 1, 0)
    """

    outcomes: Mapping[str, int] = attrs.field(factory=dict)
    errors: Mapping[str, int] = attrs.field(factory=dict)
    in_flight: int = 0
    attempts: int = 0
    retries: int = 0
    latency: Latency = Latency()

    @property
    def calls(self) -> int:
        """Calls that have ended."""
        return sum(self.outcomes.values()) + sum(self.errors.values())


@attrs.frozen(kw_only=True)
class EndpointState:
    """What is known of an endpoint now.

    Attributes:
        endpoint: Its base URL.
        family: The languages for which it is: "python" or "javascript" (TypeScript too).
        state: "closed" (it is well), "ejected" (it is left out), or "canary" (one call tries whether it is back).
        ejected_s: Seconds until that is tried; 0 unless it is ejected.
        limit: Calls that it gets at once at most.
        in_flight: Calls that wait for its answer.
        zombies: Calls that were given up here and may still run there; they count against the limit.

    Example:
        >>> result = await manager.run_code("print(1)", "python")
        >>> [(state.family, state.state, state.in_flight) for state in manager.get_metrics().states]
        [('python', 'closed', 0)]
    """

    endpoint: str
    family: str
    state: str = "closed"
    ejected_s: float = 0.0
    limit: float = 0.0
    in_flight: int = 0
    zombies: int = 0


@attrs.frozen(kw_only=True)
class Metrics:
    """A snapshot.

    Attributes:
        total: All endpoints together, and the calls that never came to an endpoint.
        endpoints: The figures by base URL; a call counts where its last attempt went.
        in_flight: Calls that hold a permit, of everything that shares the factory.
        queued: Calls that wait for a permit, of everything that shares the factory.
        states: What is known of each endpoint that was used, of everything that shares the factory.

    Example:
        >>> result = await manager.run_code("print(1)", "python")
        >>> metrics = manager.get_metrics()
        >>> metrics.in_flight, metrics.queued, dict(metrics.endpoints[result.endpoint].outcomes)
        (0, 0, {'OK': 1})
    """

    total: CallMetrics = CallMetrics()
    endpoints: Mapping[str, CallMetrics] = attrs.field(factory=dict)
    in_flight: int = 0
    queued: int = 0
    states: tuple[EndpointState, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give every figure as a value that `json.dumps` takes."""
        return attrs.asdict(self)


def add_up(parts: Iterable[CallMetrics]) -> CallMetrics:
    """Add the figures of several endpoints."""
    outcomes: dict[str, int] = {}
    errors: dict[str, int] = {}
    counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
    in_flight = attempts = retries = 0
    sum_s = 0.0
    for part in parts:
        for target, source in ((outcomes, part.outcomes), (errors, part.errors)):
            for name, count in source.items():
                target[name] = target.get(name, 0) + count
        for index, count in enumerate(part.latency.counts):
            counts[index] += count
        sum_s += part.latency.sum_s
        in_flight += part.in_flight
        attempts += part.attempts
        retries += part.retries
    return CallMetrics(
        outcomes=outcomes,
        errors=errors,
        in_flight=in_flight,
        attempts=attempts,
        retries=retries,
        latency=Latency(counts=tuple(counts), sum_s=sum_s),
    )
