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

* `faasrt_calls_total` (language, endpoint, outcome, error): calls that ended. `outcome` is empty when the call failed,
  and `error` when it did not. `endpoint` is that of the last attempt, and empty without one.
* `faasrt_attempts_total`, `faasrt_retries_total` (language, endpoint): requests, and requests after the first of a
  call.
* `faasrt_queue_duration_seconds` (language): a histogram of the time that calls waited for permits.
* `faasrt_attempt_duration_seconds`, `faasrt_call_duration_seconds` (language, endpoint): histograms of the durations of
  requests and of calls.
* `faasrt_attempts_in_flight` (language, endpoint): requests without an answer yet.
* `faasrt_endpoint_concurrency_limit` (family, endpoint): the most calls in flight at an endpoint.
* `faasrt_endpoint_breaker_open` (family, endpoint): 1 while the circuit breaker is open, else 0.

The metrics of an endpoint exist after its first use. Labels are languages, base URLs, outcomes and class names, so the
number of series depends on the configuration and not on the number of calls. The values are those of `get_metrics()`,
summed over the managers that share the sink. The limit and the breaker of an endpoint are those that a manager reported
last. With `PROMETHEUS_MULTIPROC_DIR`, gauges are summed over the live processes. Executions of the embedded FaaS are
not counted; it serves its own `/metrics`.
"""

from __future__ import annotations

from typing import TypeVar

from faasrt.errors import ConfigurationError
from faasrt.telemetry.events import AttemptFinished, AttemptStarted, CallFinished, EndpointChanged, Event, LimitChanged
from faasrt.telemetry.metrics import LATENCY_BOUNDS_S

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "faasrt.telemetry.prometheus needs prometheus-client: pip install 'faasrt[prometheus]'", name=error.name
    ) from None

_ENABLED = frozenset({AttemptStarted, AttemptFinished, CallFinished, EndpointChanged, LimitChanged})
_CALL_LABELS, _ENDPOINT_LABELS = ("language", "endpoint"), ("family", "endpoint")
_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


class _Children(dict[tuple[str, ...], _Metric]):
    """The children of a metric by their labels. A lookup takes a fraction of the time of `Metric.labels`."""

    def __init__(self, metric: _Metric) -> None:
        super().__init__()
        self.metric: _Metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> _Metric:
        child = self[labels] = self.metric.labels(*labels)
        return child


class PrometheusSink:
    """Keeps the metrics of the module in a registry.

    Share one sink between all managers of a process: a registry takes each metric once.

    Args:
        registry: The registry of the metrics.
        namespace: The prefix of their names.

    Raises:
        ConfigurationError: An argument is wrong, or the registry already has metrics of these names.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, namespace: str = "faasrt") -> None:
        if not isinstance(registry, CollectorRegistry):
            raise ConfigurationError(f"registry must be a CollectorRegistry, got {type(registry).__name__}")
        if not isinstance(namespace, str) or not namespace.isidentifier() or not namespace.isascii():
            raise ConfigurationError(f"namespace must be a name such as 'faasrt', got {namespace!r}")

        def counter(name: str, help_text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, help_text, labels, namespace=namespace, registry=None)

        def histogram(name: str, help_text: str, labels: tuple[str, ...]) -> Histogram:
            return Histogram(name, help_text, labels, namespace=namespace, registry=None, buckets=LATENCY_BOUNDS_S)

        def gauge(name: str, help_text: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(name, help_text, labels, namespace=namespace, registry=None, multiprocess_mode="livesum")

        self._calls = _Children(counter("calls", "Calls that ended.", (*_CALL_LABELS, "outcome", "error")))
        self._attempts = _Children(counter("attempts", "Requests.", _CALL_LABELS))
        self._retries = _Children(counter("retries", "Requests after the first of a call.", _CALL_LABELS))
        self._queue_s = _Children(histogram("queue_duration_seconds", "Waits of calls for permits.", ("language",)))
        self._attempt_s = _Children(histogram("attempt_duration_seconds", "Durations of requests.", _CALL_LABELS))
        self._call_s = _Children(histogram("call_duration_seconds", "Durations of calls.", _CALL_LABELS))
        self._in_flight = _Children(gauge("attempts_in_flight", "Requests without an answer yet.", _CALL_LABELS))
        self._limit = _Children(
            gauge("endpoint_concurrency_limit", "The most calls in flight at an endpoint.", _ENDPOINT_LABELS)
        )
        self._open = _Children(
            gauge("endpoint_breaker_open", "Whether the circuit breaker of an endpoint is open.", _ENDPOINT_LABELS)
        )
        self._register(registry)

    def __call__(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            labels = event.language, event.endpoint
            self._attempts[labels].inc()
            self._in_flight[labels].inc()
            if event.attempt > 1:
                self._retries[labels].inc()
        elif isinstance(event, AttemptFinished):
            labels = event.language, event.endpoint
            self._in_flight[labels].dec()
            self._attempt_s[labels].observe(event.duration_s)
        elif isinstance(event, CallFinished):
            self._calls[event.language, event.endpoint, event.outcome or "", event.error or ""].inc()
            self._queue_s[event.language,].observe(event.queued_s)
            self._call_s[event.language, event.endpoint].observe(event.total_s)
        elif isinstance(event, LimitChanged):
            self._limit[event.family, event.endpoint].set(event.limit)
            self._open[event.family, event.endpoint]  # creates the series
        elif isinstance(event, EndpointChanged):
            self._open[event.family, event.endpoint].set(event.state == "open")

    def is_enabled_for(self, kind: type[Event]) -> bool:
        """Return whether events of this kind change a metric."""
        return kind in _ENABLED

    def _register(self, registry: CollectorRegistry) -> None:
        registered: list[Counter | Gauge | Histogram] = []
        counters, histograms = (
            (self._calls, self._attempts, self._retries),
            (self._queue_s, self._attempt_s, self._call_s),
        )
        try:
            for children in (*counters, *histograms, self._in_flight, self._limit, self._open):
                registry.register(children.metric)
                registered.append(children.metric)
        except ValueError as error:
            for metric in registered:
                registry.unregister(metric)
            message = (
                "the registry already has metrics of these names: share one sink, or use another registry or namespace"
            )
            raise ConfigurationError(f"{message} ({error})") from None
