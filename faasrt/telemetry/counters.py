"""Counts events for `get_metrics()`: a few additions for each, however many calls there are."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Container

from faasrt.events import AttemptFinished, AttemptStarted, CallFinished, Event
from faasrt.metrics import LATENCY_BOUNDS_S, CallMetrics, EndpointState, Latency, Metrics, add_up

_COUNTED = frozenset({AttemptStarted, AttemptFinished, CallFinished})


class _Figures:
    """The running counts of one language at one endpoint."""

    __slots__ = ("attempts", "buckets", "errors", "in_flight", "outcomes", "retries", "sum_s")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.in_flight = self.attempts = self.retries = 0
        self.buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def snapshot(self) -> CallMetrics:
        return CallMetrics(
            outcomes=dict(self.outcomes),
            errors=dict(self.errors),
            in_flight=self.in_flight,
            attempts=self.attempts,
            retries=self.retries,
            latency=Latency(counts=tuple(self.buckets), sum_s=self.sum_s),
        )


class CountersSink:
    """Counts by language and endpoint."""

    def __init__(self) -> None:
        self._figures: defaultdict[tuple[str, str], _Figures] = defaultdict(_Figures)

    def __call__(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            figures = self._figures[event.language, event.endpoint]
            figures.in_flight += 1
            figures.attempts += 1
            figures.retries += event.attempt > 1
        elif isinstance(event, AttemptFinished):
            self._figures[event.language, event.endpoint].in_flight -= 1
        elif isinstance(event, CallFinished):
            figures = self._figures[event.language, event.endpoint]
            if event.outcome is not None:
                figures.outcomes[event.outcome] += 1
            else:
                figures.errors[event.error or "unknown"] += 1
            figures.buckets[bisect_left(LATENCY_BOUNDS_S, event.total_s)] += 1
            figures.sum_s += event.total_s

    def hears(self, kind: type[Event]) -> bool:
        """Tell whether an event counts."""
        return kind in _COUNTED

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
