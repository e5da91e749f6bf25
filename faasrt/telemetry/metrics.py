"""The counters behind `get_metrics()`, and the records that it returns."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from typing import Any

import attrs

from faasrt._attribute_docs import list_attributes
from faasrt._endpoint_urls import configured_url

__all__ = ["LATENCY_BOUNDS_S", "CallMetrics", "EndpointState", "Latency", "Metrics"]

LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The upper bounds of the latency histogram's buckets, in seconds. One more bucket counts slower calls."""


@list_attributes
@attrs.frozen(kw_only=True)
class Latency:
    """A histogram of the duration of calls.

    Example:
        >>> result = await manager.run_code("print(1)", "python")
        >>> latency = manager.get_metrics().total.latency
        >>> latency.count, latency.sum_s < 60
        (1, True)
    """

    counts: tuple[int, ...] = (0,) * (len(LATENCY_BOUNDS_S) + 1)
    """The number of calls in each bucket. `LATENCY_BOUNDS_S` has the upper bounds of the buckets; the last bucket has
    none. Unlike in Prometheus, the counts are not cumulative."""
    sum_s: float = 0.0
    """The sum of all durations in seconds."""

    @property
    def count(self) -> int:
        """The number of calls."""
        return sum(self.counts)


@list_attributes
@attrs.frozen(kw_only=True)
class CallMetrics:
    """The metrics of one endpoint, or of several together. They count runs of programs and openings of sessions,
    not validations and other requests.

    Example:
        >>> results = [await manager.run_code(code, "python") for code in ("print(1)", "1 / 0")]
        >>> total = manager.get_metrics().total
        >>> total.calls, total.outcomes["OK"], total.outcomes["USER_ERROR"], total.retries
        (2, 1, 1, 0)
    """

    outcomes: Mapping[str, int] = attrs.field(factory=dict)
    """The number of calls by outcome."""
    errors: Mapping[str, int] = attrs.field(factory=dict)
    """The number of failed calls by error class; cancelled calls are under "CancelledError"."""
    in_flight: int = 0
    """The number of requests without an answer yet."""
    attempts: int = 0
    """The number of requests."""
    retries: int = 0
    """The number of requests after the first one of a call."""
    latency: Latency = Latency()
    """The durations of the calls."""

    @property
    def calls(self) -> int:
        """The number of calls that have ended."""
        return sum(self.outcomes.values()) + sum(self.errors.values())


@list_attributes
@attrs.frozen(kw_only=True)
class EndpointState:
    """The state of an endpoint for one family of languages.

    Example:
        >>> result = await manager.run_code("print(1)", "python")
        >>> [(state.family, state.breaker, state.in_flight) for state in manager.get_metrics().states]
        [('python', 'closed', 0)]
    """

    endpoint: str
    """The base URL."""
    family: str
    """The family of languages: "javascript" for JavaScript and TypeScript, else the language."""
    breaker: str = "closed"
    """The state of the circuit breaker: "closed" (healthy), "open" (not used) or "half-open" (being probed)."""
    open_s: float = 0.0
    """The seconds until a call probes the endpoint, at most; 0 unless the breaker is open."""
    limit: float = 0.0
    """The maximum number of calls in flight."""
    in_flight: int = 0
    """The number of calls without an answer yet."""
    abandoned: int = 0
    """The number of calls that the client gave up and the server may still run. They count against the limit."""


@list_attributes
@attrs.frozen(kw_only=True)
class Metrics:
    """A snapshot of the metrics of a runtime, factory or manager.

    Example:
        >>> result = await manager.run_code("print(1)", "python")
        >>> metrics = manager.get_metrics()
        >>> metrics.in_flight, metrics.queued, dict(metrics.endpoints[result.endpoint].outcomes)
        (0, 0, {'OK': 1})
    """

    total: CallMetrics = CallMetrics()
    """The sum over all endpoints, including calls that reached no endpoint, and calls of endpoints that have left the
    settings."""
    endpoints: Mapping[str, CallMetrics] = attrs.field(factory=dict)
    """The metrics by base URL. A call counts for the endpoint of its last attempt. Calls of replicas that have left are
    under the `dns+` URL of the replica."""
    in_flight: int = 0
    """The number of calls that hold a permit; of a runtime, those in its languages."""
    queued: int = 0
    """The number of calls that wait for a permit; of a runtime, those in its languages."""
    states: tuple[EndpointState, ...] = ()
    """The state of each endpoint that was used; of a runtime, for the families of its languages."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that `json.dumps` accepts."""
        return attrs.asdict(self)


@attrs.define(eq=False)
class CallCounters:
    """The counters of one language at one endpoint, or their sum over several."""

    outcomes: Counter[str] = attrs.field(factory=Counter)
    errors: Counter[str] = attrs.field(factory=Counter)
    in_flight: int = 0
    attempts: int = 0
    retries: int = 0
    buckets: list[int] = attrs.field(factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    sum_s: float = 0.0

    def attempt_started(self, *, retry: bool) -> None:
        self.in_flight += 1
        self.attempts += 1
        self.retries += retry

    def attempt_finished(self) -> None:
        self.in_flight -= 1

    def call_finished(self, outcome: str | None, error: str | None, total_s: float) -> None:
        if outcome is not None:
            self.outcomes[outcome] += 1
        else:
            self.errors[error or "unknown"] += 1
        self.buckets[bisect_left(LATENCY_BOUNDS_S, total_s)] += 1
        self.sum_s += total_s

    def add(self, other: CallCounters) -> None:
        self.outcomes.update(other.outcomes)
        self.errors.update(other.errors)
        self.in_flight += other.in_flight
        self.attempts += other.attempts
        self.retries += other.retries
        self.buckets = [own + added for own, added in zip(self.buckets, other.buckets, strict=True)]
        self.sum_s += other.sum_s

    def snapshot(self) -> CallMetrics:
        latency = Latency(counts=tuple(self.buckets), sum_s=self.sum_s)
        return CallMetrics(
            outcomes=dict(self.outcomes),
            errors=dict(self.errors),
            in_flight=self.in_flight,
            attempts=self.attempts,
            retries=self.retries,
            latency=latency,
        )


class Counters:
    def __init__(self) -> None:
        self._counters: defaultdict[str, defaultdict[str, CallCounters]] = defaultdict(
            lambda: defaultdict(CallCounters)
        )

    def at(self, language: str, endpoint: str) -> CallCounters:
        return self._counters[endpoint][language]

    def has(self, endpoint: str) -> bool:
        return endpoint in self._counters

    def fold(self, endpoint: str) -> None:
        """Add the counters of an endpoint that has left to others, so that their number does not grow. The counters of
        a replica are added to the counters of its URL. The counters of any other endpoint are added only to the sum of
        all.
        """
        url = configured_url(endpoint)
        for language, counters in self._counters.pop(endpoint, {}).items():
            self.at(language, url if url != endpoint else "").add(counters)

    def snapshot(
        self, languages: Container[str] | None, *, in_flight: int, queued: int, states: tuple[EndpointState, ...]
    ) -> Metrics:
        total = CallCounters()
        by_endpoint: defaultdict[str, CallCounters] = defaultdict(CallCounters)
        for endpoint, by_language in self._counters.items():
            for language, counters in by_language.items():
                if languages is None or language in languages:
                    total.add(counters)
                    by_endpoint[endpoint].add(counters)
        by_endpoint.pop("", None)  # calls that reached no endpoint, or one that has left
        endpoints = {endpoint: counters.snapshot() for endpoint, counters in by_endpoint.items()}
        return Metrics(total=total.snapshot(), endpoints=endpoints, in_flight=in_flight, queued=queued, states=states)
