"""The metrics of a server, as JSON and in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from faasrt._version import __version__
from faasrt.local.http.admission import AdmissionQueue
from faasrt.local.http.connections import Listener
from faasrt.local.http.sessions import Sessions

if TYPE_CHECKING:
    from prometheus_client import Metric

_ENGINE_METRICS = {
    "refused": "Programs refused before they ran.",
    "failed": "Programs whose engine failed.",
    "active": "Running programs.",
    "idle": "Processes waiting for a program.",
    "queued": "Programs waiting for a sandbox.",
    "capacity": "Programs that can run at once.",
    "ready": "Whether the engine can run programs.",
}
_COUNTERS = (
    *("refused", "failed", "refused_connections", "refused_while_draining"),
    *("opened_sessions", "forked_sessions", "session_runs"),
)
_SERVER_METRICS = {
    "connections": "Open connections.",
    "refused_connections": "Connections refused because too many were open.",
    "refused_while_draining": "Programs refused because the server was about to stop.",
    "max_connections": "The largest number of open connections.",
    "draining": "Whether the server is about to stop, and refuses programs.",
    "sessions": "Open sessions.",
    "max_sessions": "The largest number of open sessions.",
    "opened_sessions": "Sessions that were opened, with forks.",
    "forked_sessions": "Sessions that were forked from another one.",
    "session_runs": "Programs that began in sessions.",
}
_INFO = ("language", "level", "runtime")


def collect_metrics(queues: Iterable[AdmissionQueue], listener: Listener, sessions: Sessions) -> dict[str, Any]:
    engines = {}
    for queue in queues:
        engine, counts = queue.engine, queue.counts
        executions: dict[str, dict[str, int]] = {}
        for (language, outcome), count in sorted(counts.outcomes.items()):
            executions.setdefault(language, {})[outcome] = count
        engines[engine.name] = {
            "executions": executions,
            "refused": counts.refused,
            "failed": counts.failed,
            "queued": queue.queued,
            "active": engine.active,
            "idle": engine.idle,
            "capacity": engine.capacity,
            "utilization": engine.active / engine.capacity,
            "ready": engine.ready,
            "language": engine.languages[0].family,
            "level": engine.level,
            "runtime": engine.runtime,
        }
    return {
        "engines": engines,
        "connections": len(listener.ordinary) + len(listener.spare),
        "refused_connections": listener.refused,
        "refused_while_draining": listener.refused_while_draining,
        "max_connections": listener.max_connections,
        "draining": listener.draining,
        "sessions": len(sessions),
        "max_sessions": sessions.max_sessions,
        "opened_sessions": sessions.counts.opened,
        "forked_sessions": sessions.counts.forks,
        "session_runs": sessions.counts.runs,
        "ended_sessions": dict(sessions.counts.ended),
    }


def format_metrics(metrics: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the Prometheus text format and its content type. Call this in a thread: it imports prometheus_client."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(metrics))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector:
    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        engines = self.metrics["engines"]
        labels = ("language", "outcome")
        executions = CounterMetricFamily("faasrt_local_executions", "Programs that ran, by outcome.", labels=labels)
        for engine in engines.values():
            for language, outcomes in engine["executions"].items():
                for outcome, count in outcomes.items():
                    executions.add_metric((language, outcome), count)
        yield executions
        for name, documentation in _ENGINE_METRICS.items():
            kind = CounterMetricFamily if name in _COUNTERS else GaugeMetricFamily
            family = kind(f"faasrt_local_{name}", documentation, labels=("engine",))
            for engine_name, engine in engines.items():
                family.add_metric((engine_name,), engine[name])
            yield family
        utilization = GaugeMetricFamily(
            "faasrt_local_utilization_ratio",
            "Running programs divided by capacity, from 0 to 1.",
            labels=("engine", "language"),
        )
        info = InfoMetricFamily("faasrt_local_engine", "The engine of a family of languages.", labels=("engine",))
        for engine_name, engine in engines.items():
            utilization.add_metric((engine_name, engine["language"]), engine["utilization"])
            info.add_metric((engine_name,), {name: engine[name] for name in _INFO} | {"version": __version__})
        yield utilization
        yield info
        ended = CounterMetricFamily(
            "faasrt_local_ended_sessions", "Sessions that have ended, by reason.", labels=("reason",)
        )
        for reason, count in self.metrics["ended_sessions"].items():
            ended.add_metric((reason,), count)
        yield ended
        for name, documentation in _SERVER_METRICS.items():
            kind = CounterMetricFamily if name in _COUNTERS else GaugeMetricFamily
            yield kind(f"faasrt_local_{name}", documentation, value=self.metrics[name])
