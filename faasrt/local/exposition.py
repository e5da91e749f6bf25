"""The answers of `GET /metrics`: JSON, or the Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from faasrt.local.admission import AdmissionQueue

if TYPE_CHECKING:
    from prometheus_client import Metric

_DOCUMENTATION = {
    "refused": "Programs refused before they ran.",
    "failed": "Programs whose engine failed.",
    "active": "Running programs.",
    "idle": "Processes waiting for a program.",
    "queued": "Programs waiting for a sandbox.",
    "capacity": "Programs that can run at once.",
}
_COUNTERS = ("refused", "failed")


def collect_metrics(queues: Iterable[AdmissionQueue]) -> dict[str, Any]:
    """Return the metrics of each engine, as an object for JSON."""
    engines = {}
    for queue in queues:
        executions: dict[str, dict[str, int]] = {}
        for (language, outcome), count in sorted(queue.outcomes.items()):
            executions.setdefault(language, {})[outcome] = count
        of_engine = {name: getattr(queue.engine, name) for name in ("active", "idle", "capacity")}
        of_queue = {name: getattr(queue, name) for name in ("refused", "failed", "queued")}
        engines[queue.engine.name] = {"executions": executions, **of_queue, **of_engine}
    return {"engines": engines}


def format_metrics(metrics: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the metrics of `collect_metrics` in the Prometheus text format, and the content type. The first call
    imports prometheus_client, which blocks, so call this in a thread.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(metrics["engines"]))
    return generate_latest(registry), CONTENT_TYPE_LATEST


@attrs.frozen(eq=False)
class _Collector:
    engines: Mapping[str, Any]

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ("language", "outcome")
        executions = CounterMetricFamily("faasrt_local_executions", "Programs that ran, by outcome.", labels=labels)
        for engine in self.engines.values():
            for language, outcomes in engine["executions"].items():
                for outcome, count in outcomes.items():
                    executions.add_metric((language, outcome), count)
        yield executions
        for name, documentation in _DOCUMENTATION.items():
            kind = CounterMetricFamily if name in _COUNTERS else GaugeMetricFamily
            family = kind(f"faasrt_local_{name}", documentation, labels=("engine",))
            for engine_name, engine in self.engines.items():
                family.add_metric((engine_name,), engine[name])
            yield family
