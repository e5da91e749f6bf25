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

# The kind and the meaning of the metrics of each engine, and of the server.
_ENGINE_METRICS = {
    "refused": ("counter", "Programs refused before they ran."),
    "failed": ("counter", "Programs whose engine failed."),
    "active": ("gauge", "Running programs."),
    "idle": ("gauge", "Processes waiting for a program."),
    "queued": ("gauge", "Programs waiting for a sandbox."),
    "capacity": ("gauge", "Programs that can run at once."),
    "ready": ("gauge", "Whether the engine can run programs."),
}
_SERVER_METRICS = {
    "connections": ("gauge", "Open connections."),
    "refused_connections": ("counter", "Connections refused because too many were open."),
    "refused_while_draining": ("counter", "Programs refused because the server was about to stop."),
    "max_connections": ("gauge", "The largest number of open connections."),
    "draining": ("gauge", "Whether the server is about to stop, and refuses programs."),
    "sessions": ("gauge", "Open sessions."),
    "max_sessions": ("gauge", "The largest number of open sessions."),
    "opened_sessions": ("counter", "Sessions that were opened, with forks."),
    "forked_sessions": ("counter", "Sessions that were forked from another one."),
    "session_runs": ("counter", "Programs that began in sessions."),
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

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        engines = self.metrics["engines"]
        labels = ("language", "outcome")
        executions = CounterMetricFamily("faasrt_local_executions", "Programs that ran, by outcome.", labels=labels)
        for engine in engines.values():
            for language, outcomes in engine["executions"].items():
                for outcome, count in outcomes.items():
                    executions.add_metric((language, outcome), count)
        yield executions
        for name, (kind, documentation) in _ENGINE_METRICS.items():
            family = kinds[kind](f"faasrt_local_{name}", documentation, labels=("engine",))
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
        for name, (kind, documentation) in _SERVER_METRICS.items():
            yield kinds[kind](f"faasrt_local_{name}", documentation, value=self.metrics[name])
