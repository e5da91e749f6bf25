"""Events as Prometheus metrics; needs the extra `prometheus`.

Example:
    >>> from prometheus_client import REGISTRY, generate_latest
    >>> from faasrt.telemetry.prometheus import PrometheusSink
    >>> async with faasrt.RuntimeManager.from_env(telemetry=[PrometheusSink()]) as manager:
    ...     result = await manager.run_code("print(6 * 7)", "python")
    >>> REGISTRY.get_sample_value("faasrt_attempts_total", {"language": "python", "endpoint": result.endpoint})
    1.0
    >>> text = generate_latest()  # what an application answers its scraper

The metrics, with their labels:

* `faasrt_calls_total` (language, endpoint, outcome, error): calls that have ended. `outcome` is empty when a call
  failed, and `error` when it did not; `endpoint` is the last one that was tried, and empty when none was.
* `faasrt_attempts_total`, `faasrt_retries_total` (language, endpoint): requests, and those after the first of a call.
* `faasrt_queue_seconds` (language): a histogram of the waits for a permit, all those of a call together.
* `faasrt_attempt_seconds`, `faasrt_call_seconds` (language, endpoint): histograms of requests, and of whole calls.
* `faasrt_in_flight` (language, endpoint): requests whose answer has not come yet.
* `faasrt_endpoint_limit`, `faasrt_endpoint_ejected` (family, endpoint): calls that an endpoint gets at once at most,
  and 1 while it is left out. They are there as soon as it has been used.

Labels are languages, base URLs, outcomes and names of classes: as many as the configuration has, however many calls
there are. The figures are those of `get_metrics()`, of all managers that share the sink; the limit and ejection of an
endpoint that several of them use are what the last one has said. Where prometheus_client shares metrics by files
(`PROMETHEUS_MULTIPROC_DIR`), processes add up. What the embedded FaaS runs is not counted again; it has a `/metrics` of
its own.
"""

from __future__ import annotations

from typing import TypeVar

from faasrt.errors import ConfigurationError
from faasrt.events import AttemptFinished, AttemptStarted, CallFinished, EndpointChanged, Event, LimitChanged
from faasrt.metrics import LATENCY_BOUNDS_S

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "faasrt.telemetry.prometheus needs prometheus-client: pip install 'faasrt[prometheus]'", name=error.name
    ) from None

_HEARD = frozenset({AttemptStarted, AttemptFinished, CallFinished, EndpointChanged, LimitChanged})
_AT, _OF = ("language", "endpoint"), ("family", "endpoint")
_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


class _Children(dict[tuple[str, ...], _Metric]):
    """The children of a metric by their labels; `Metric.labels` takes several times as long as a look into this."""

    def __init__(self, metric: _Metric) -> None:
        super().__init__()
        self.metric: _Metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> _Metric:
        child = self[labels] = self.metric.labels(*labels)
        return child


class PrometheusSink:
    """Counts into a registry; the module tells what.

    Give one sink to all managers of a process, as a registry takes a metric only once.

    Args:
        registry: Where the metrics are registered.
        namespace: The first part of their names.

    Raises:
        ConfigurationError: An argument is wrong, or the registry has such metrics already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, namespace: str = "faasrt") -> None:
        if not isinstance(registry, CollectorRegistry):
            raise ConfigurationError(f"registry must be a CollectorRegistry, got {type(registry).__name__}")
        if not isinstance(namespace, str) or not namespace.isidentifier() or not namespace.isascii():
            raise ConfigurationError(f"namespace must be a name such as 'faasrt', got {namespace!r}")

        def counter(name: str, words: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, words, labels, namespace=namespace, registry=None)

        def histogram(name: str, words: str, labels: tuple[str, ...]) -> Histogram:
            return Histogram(name, words, labels, namespace=namespace, registry=None, buckets=LATENCY_BOUNDS_S)

        def gauge(name: str, words: str, labels: tuple[str, ...]) -> Gauge:
            # Where several processes share their metrics by files, those that live are added up.
            return Gauge(name, words, labels, namespace=namespace, registry=None, multiprocess_mode="livesum")

        self._calls = _Children(counter("calls", "Calls that have ended.", (*_AT, "outcome", "error")))
        self._attempts = _Children(counter("attempts", "Requests made.", _AT))
        self._retries = _Children(counter("retries", "Requests made after the first of a call.", _AT))
        self._queue = _Children(histogram("queue_seconds", "Waits for a permit, by call.", ("language",)))
        self._attempt = _Children(histogram("attempt_seconds", "Times of requests.", _AT))
        self._call = _Children(histogram("call_seconds", "Times of calls.", _AT))
        self._in_flight = _Children(gauge("in_flight", "Requests whose answer has not come yet.", _AT))
        self._limit = _Children(gauge("endpoint_limit", "Calls that an endpoint gets at once at most.", _OF))
        self._ejected = _Children(gauge("endpoint_ejected", "Whether an endpoint is left out.", _OF))
        self._register(registry)

    def __call__(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            at = event.language, event.endpoint
            self._attempts[at].inc()
            self._in_flight[at].inc()
            if event.attempt > 1:
                self._retries[at].inc()
        elif isinstance(event, AttemptFinished):
            at = event.language, event.endpoint
            self._in_flight[at].dec()
            self._attempt[at].observe(event.duration_s)
        elif isinstance(event, CallFinished):
            self._calls[event.language, event.endpoint, event.outcome or "", event.error or ""].inc()
            self._queue[event.language,].observe(event.queued_s)
            self._call[event.language, event.endpoint].observe(event.total_s)
        elif isinstance(event, LimitChanged):
            self._limit[event.family, event.endpoint].set(event.limit)
            self._ejected[event.family, event.endpoint]  # is there from now on
        elif isinstance(event, EndpointChanged):
            self._ejected[event.family, event.endpoint].set(event.state == "ejected")

    def hears(self, kind: type[Event]) -> bool:
        """Tell whether an event counts."""
        return kind in _HEARD

    def _register(self, registry: CollectorRegistry) -> None:
        done: list[Counter | Gauge | Histogram] = []
        children = (self._calls, self._attempts, self._retries, self._queue, self._attempt, self._call)
        try:
            for metric in [held.metric for held in (*children, self._in_flight, self._limit, self._ejected)]:
                registry.register(metric)
                done.append(metric)
        except ValueError as error:
            for metric in done:
                registry.unregister(metric)
            words = "the registry has such metrics already: share one sink, or give another registry or namespace"
            raise ConfigurationError(f"{words} ({error})") from None
