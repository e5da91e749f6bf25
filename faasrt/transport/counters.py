"""What `get_metrics()` gives, counted as calls go on: a few additions for each, however many there are."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Container

from faasrt.metrics import LATENCY_BOUNDS_S, CallMetrics, EndpointState, Latency, Metrics, add_up


class Figures:
    """The running counts of one language at one endpoint."""

    __slots__ = ("attempts", "buckets", "errors", "in_flight", "outcomes", "retries", "sum_s")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.in_flight = self.attempts = self.retries = 0
        self.buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def attempt_started(self, *, retry: bool) -> None:
        """A request is about to be sent."""
        self.in_flight += 1
        self.attempts += 1
        self.retries += retry

    def attempt_finished(self) -> None:
        """Its answer was read and judged, or will not come."""
        self.in_flight -= 1

    def call_finished(self, outcome: str | None, error: str | None, total_s: float) -> None:
        """A call ended here, with an outcome or an error."""
        if outcome is not None:
            self.outcomes[outcome] += 1
        else:
            self.errors[error or "unknown"] += 1
        self.buckets[bisect_left(LATENCY_BOUNDS_S, total_s)] += 1
        self.sum_s += total_s

    def snapshot(self) -> CallMetrics:
        return CallMetrics(
            outcomes=dict(self.outcomes),
            errors=dict(self.errors),
            in_flight=self.in_flight,
            attempts=self.attempts,
            retries=self.retries,
            latency=Latency(counts=tuple(self.buckets), sum_s=self.sum_s),
        )


class Counters:
    """Counts by language and endpoint."""

    def __init__(self) -> None:
        self._figures: defaultdict[tuple[str, str], Figures] = defaultdict(Figures)

    def at(self, language: str, endpoint: str) -> Figures:
        """Give the figures of one language at one endpoint; "" is no endpoint."""
        return self._figures[language, endpoint]

    def snapshot(
        self, languages: Container[str], *, in_flight: int, queued: int, states: tuple[EndpointState, ...]
    ) -> Metrics:
        """Give the figures of some languages.

        Args:
            languages: Their wire names.
            in_flight: Calls that hold a permit now.
            queued: Calls that wait for one now.
            states: What is known of the endpoints now.
        """
        by_endpoint: dict[str, list[CallMetrics]] = {}
        for (language, endpoint), figures in self._figures.items():
            if language in languages:
                by_endpoint.setdefault(endpoint, []).append(figures.snapshot())
        together = {endpoint: add_up(parts) for endpoint, parts in by_endpoint.items()}
        total = add_up(together.values())
        together.pop("", None)  # the calls that never came to an endpoint
        return Metrics(total=total, endpoints=together, in_flight=in_flight, queued=queued, states=states)
