"""Events as Prometheus metrics; needs the extra `prometheus`.

Example:
    >>> from prometheus_client import REGISTRY, generate_latest
    >>> from faasrt.telemetry.prometheus import PrometheusSink
    >>> async with faasrt.RuntimeManager.from_env(telemetry=[PrometheusSink()]) as manager:
    ...     result = await manager.run_code("print(6 * 7)", "python")
    >>> REGISTRY.get_sample_value("faasrt_attempts_total", {"language": "python", "endpoint": result.endpoint})
    1.0
    >>> text = generate_latest()  # the body of /metrics

The metrics, with their labels:

* `faasrt_calls_total` (language, endpoint, outcome, error): calls that ended. `outcome` is empty if the call failed,
  and `error` is empty if it did not. `endpoint` is the endpoint of the last attempt, and empty if there was no attempt.
* `faasrt_attempts_total`, `faasrt_retries_total` (language, endpoint): requests, and requests after the first of a
  call.
* `faasrt_queue_duration_seconds` (language): a histogram of the time that calls waited for permits.
* `faasrt_attempt_duration_seconds`, `faasrt_call_duration_seconds` (language, endpoint): histograms of the durations of
  requests and of calls.
* `faasrt_attempts_in_flight` (language, endpoint): requests without an answer yet.
* `faasrt_endpoint_concurrency_limit` (family, endpoint): the maximum number of calls in flight at an endpoint.
* `faasrt_endpoint_breaker_open` (family, endpoint): 1 while the circuit breaker is open, else 0.
* `faasrt_replicas` (endpoint): the number of known addresses of the name in a `dns+` URL.
* `faasrt_lookup_failing` (endpoint): 1 while the look-ups of this name fail, else 0.

The metrics of an endpoint exist after its first use. When the endpoint has left the settings, or the addresses of its
name, its metrics are removed as soon as its last call has ended. The metrics of discovered addresses are also removed
when the last runtime is closed. Another manager that shares the sink may still use the endpoint. If that manager has a
request there, the metrics stay. Otherwise they begin again at 0 with its next call. With `PROMETHEUS_MULTIPROC_DIR`,
metrics are not removed.

Labels are languages, base URLs, addresses, outcomes and class names. So the number of series depends on the number of
endpoints that are used now, and not on the number of calls. As long as no endpoint has left, the values equal
`get_metrics()`, summed over the managers that share the sink. After an endpoint has left, `get_metrics()` still counts
its calls. The limit and the breaker of an endpoint have the last value that any manager reported. With
`PROMETHEUS_MULTIPROC_DIR`, gauges are summed over the live processes. The endpoint of `RuntimeManager.local` is
`http://local`. Executions of the embedded FaaS are not counted; it serves its own `/metrics`.
"""

from __future__ import annotations

import os
from collections import Counter as Counts, defaultdict
from collections.abc import Iterable
from typing import TypeAlias, TypeVar

from faasrt.errors import ConfigurationError
from faasrt.telemetry.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    EndpointChanged,
    Event,
    LimitChanged,
    ReplicaRemoved,
    ReplicasChanged,
)
from faasrt.telemetry.metrics import LATENCY_BOUNDS_S

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "faasrt.telemetry.prometheus needs prometheus-client: pip install 'faasrt[prometheus]'", name=error.name
    ) from None

__all__ = ["PrometheusSink"]

_ENABLED = frozenset(
    {
        *(AttemptStarted, AttemptFinished, CallFinished, EndpointChanged, LimitChanged),
        *(ReplicasChanged, ReplicaRemoved),
    }
)
_Metric: TypeAlias = Counter | Gauge | Histogram
_MetricT = TypeVar("_MetricT", Counter, Gauge, Histogram)


class PrometheusSink:
    """Keeps metrics in a registry, as described in the docstring of the module.

    Share one sink between all managers of a process, because a registry accepts each metric only once.

    Args:
        registry: The registry of the metrics. Default: the global `REGISTRY`.
        namespace: The prefix of the metrics' names. Default: "faasrt".

    Raises:
        ConfigurationError: An argument is wrong, or the registry already has metrics of these names.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, namespace: str = "faasrt") -> None:
        if not isinstance(registry, CollectorRegistry):
            raise ConfigurationError(f"registry must be a CollectorRegistry, got {type(registry).__name__}")
        if not isinstance(namespace, str) or not namespace.isidentifier() or not namespace.isascii():
            raise ConfigurationError(f"namespace must be an ASCII identifier such as 'faasrt', got {namespace!r}")

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(name, help_text, labels, namespace=namespace, registry=None)

        def histogram(name: str, help_text: str, *labels: str) -> Histogram:
            return Histogram(name, help_text, labels, namespace=namespace, registry=None, buckets=LATENCY_BOUNDS_S)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(name, help_text, labels, namespace=namespace, registry=None, multiprocess_mode="livesum")

        self._calls = counter("calls", "Calls that ended.", "language", "endpoint", "outcome", "error")
        self._attempts = counter("attempts", "Requests.", "language", "endpoint")
        self._retries = counter("retries", "Requests after the first of a call.", "language", "endpoint")
        self._queue_s = histogram("queue_duration_seconds", "Waits of calls for permits.", "language")
        self._attempt_s = histogram("attempt_duration_seconds", "Durations of requests.", "language", "endpoint")
        self._call_s = histogram("call_duration_seconds", "Durations of calls.", "language", "endpoint")
        self._in_flight = gauge("attempts_in_flight", "Requests without an answer yet.", "language", "endpoint")
        limit_help = "The maximum number of calls in flight at an endpoint."
        self._limit = gauge("endpoint_concurrency_limit", limit_help, "family", "endpoint")
        open_help = "Whether the circuit breaker of an endpoint is open."
        self._open = gauge("endpoint_breaker_open", open_help, "family", "endpoint")
        self._replicas = gauge("replicas", "Known addresses of the name in a URL.", "endpoint")
        self._failing = gauge("lookup_failing", "Whether the look-ups of the name in a URL fail.", "endpoint")
        self._metrics = tuple(vars(self).values())
        # By endpoint: its series, and the requests without an answer yet.
        self._series: defaultdict[str, set[tuple[_Metric, tuple[str, ...]]]] = defaultdict(set)
        self._running: Counts[str] = Counts()
        try:
            # Register one collector for all metrics, so that the registry accepts all or none.
            registry.register(self)
        except ValueError as error:
            message = (
                "the registry already has metrics of these names: share one sink, or use another registry or namespace"
            )
            raise ConfigurationError(f"{message} ({error})") from None

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; the registry calls this."""
        for metric in self._metrics:
            yield from metric.collect()

    def describe(self) -> Iterable[Metric]:
        """Yield the metrics without samples; the registry calls this to find names that are taken."""
        for metric in self._metrics:
            yield from metric.describe()

    def __call__(self, event: Event) -> None:
        endpoint = getattr(event, "endpoint", "")
        if isinstance(event, AttemptStarted):
            self._running[endpoint] += 1
            self._at(endpoint, self._attempts, event.language, endpoint).inc()
            self._at(endpoint, self._in_flight, event.language, endpoint).inc()
            if event.attempt > 1:
                self._at(endpoint, self._retries, event.language, endpoint).inc()
        elif isinstance(event, AttemptFinished):
            self._running[endpoint] -= 1
            self._at(endpoint, self._in_flight, event.language, endpoint).dec()
            self._at(endpoint, self._attempt_s, event.language, endpoint).observe(event.duration_s)
        elif isinstance(event, CallFinished):
            self._at(endpoint, self._calls, event.language, endpoint, event.outcome or "", event.error or "").inc()
            self._queue_s.labels(event.language).observe(event.queued_s)
            self._at(endpoint, self._call_s, event.language, endpoint).observe(event.total_s)
        elif isinstance(event, LimitChanged):
            self._at(endpoint, self._limit, event.family, endpoint).set(event.limit)
            self._at(endpoint, self._open, event.family, endpoint)  # creates the series
        elif isinstance(event, EndpointChanged):
            self._at(endpoint, self._open, event.family, endpoint).set(event.state == "open")
        elif isinstance(event, ReplicasChanged):
            self._at(endpoint, self._replicas, endpoint).set(event.replicas)
            self._at(endpoint, self._failing, endpoint).set(event.error is not None)
        elif isinstance(event, ReplicaRemoved):
            self._remove_series(endpoint)

    def is_enabled_for(self, kind: type[Event]) -> bool:
        """Return whether events of this kind change a metric."""
        return kind in _ENABLED

    def _at(self, endpoint: str, metric: _MetricT, *labels: str) -> _MetricT:
        self._series[endpoint].add((metric, labels))
        return metric.labels(*labels)

    def _remove_series(self, endpoint: str) -> None:
        """Remove the series of an endpoint, so that their number does not grow as replicas come and go."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            return  # series in files cannot be removed
        if self._running[endpoint] > 0:
            return  # another manager uses it, and will report when it does not
        del self._running[endpoint]
        for metric, labels in self._series.pop(endpoint, ()):
            metric.remove(*labels)
