"""The metrics of the Prometheus sink agree with `get_metrics()`, the log and `faasrt health`."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from faasrt import (
    BreakerSettings,
    ConfigurationError,
    LimiterSettings,
    Metrics,
    RuntimeManager,
    ServerError,
    ServiceError,
    Settings,
)
from faasrt.telemetry.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    ExecutionFinished,
    ExecutionStarted,
    ReplicaRemoved,
)
from faasrt.telemetry.metrics import LATENCY_BOUNDS_S
from faasrt.telemetry.prometheus import PrometheusSink
from faasrt.testing import FakeFaaS, Reply
from support.helpers import QUICK, manager_for, until_active

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

_ROUNDED = 0.000_05  # times in the log have four decimals


def scrape(registry: CollectorRegistry) -> Samples:
    """Return every sample by name and labels, without the times of creation."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def total(samples: Samples, name: str, *by: str) -> dict[Any, float]:
    """Return the sums of a metric by some of its labels, without those that are 0."""
    sums: Counter[Any] = Counter()
    for (found, labels), value in samples.items():
        if found == name:
            sums[tuple(dict(labels)[label] for label in by)] += value  # type: ignore[assignment]
    return {key: value for key, value in sums.items() if value}


def read_lines(messages: Iterable[str]) -> list[dict[str, Any]]:
    """Return the fields of log lines, including those that are left out because they are empty."""
    empty = {"endpoint": "", "outcome": None, "error": None}
    return [
        {"event": message.split()[0]}
        | empty
        | {name: ast.literal_eval(value) for name, value in re.findall(r"(\w+)=('[^']*'|\S+)", message)}
        for message in messages
    ]


def check_agreement(metrics: Metrics, samples: Samples, lines: list[dict[str, Any]]) -> None:
    """Assert that `get_metrics()`, the Prometheus samples and the log lines have the same values."""
    finished = [line for line in lines if line["event"] == "call_finished"]
    started = [line for line in lines if line["event"] == "attempt_started"]
    ended = [line for line in lines if line["event"] == "attempt_finished"]

    # Calls, by how they ended and where.
    ends = Counter((line["endpoint"], line["outcome"] or "", line["error"] or "") for line in finished)
    assert total(samples, "faasrt_calls_total", "endpoint", "outcome", "error") == ends
    counted = Counter[tuple[str, str, str]]()
    for endpoint, counters in metrics.endpoints.items():
        counted.update({(endpoint, outcome, ""): count for outcome, count in counters.outcomes.items()})
        counted.update({(endpoint, "", error): count for error, count in counters.errors.items()})
    assert counted == {key: count for key, count in ends.items() if key[0]}
    assert metrics.total.outcomes == Counter(line["outcome"] for line in finished if line["outcome"])
    assert metrics.total.errors == Counter(line["error"] for line in finished if line["error"])

    # Attempts and retries.
    attempts = Counter((line["language"], line["endpoint"]) for line in started)
    retries = Counter((line["language"], line["endpoint"]) for line in started if line["attempt"] > 1)
    assert total(samples, "faasrt_attempts_total", "language", "endpoint") == attempts
    assert total(samples, "faasrt_retries_total", "language", "endpoint") == retries
    assert (metrics.total.attempts, metrics.total.retries) == (attempts.total(), retries.total())

    # Attempts in flight.
    in_flight = attempts - Counter((line["language"], line["endpoint"]) for line in ended)
    assert total(samples, "faasrt_attempts_in_flight", "language", "endpoint") == in_flight
    assert metrics.total.in_flight == in_flight.total()
    by_family = Counter[tuple[str, str]]()
    for (language, endpoint), count in in_flight.items():
        by_family["python" if language == "python" else "javascript", endpoint] += count
    assert {(state.family, state.endpoint): state.in_flight for state in metrics.states if state.in_flight} == by_family

    # Times: the same buckets, and the same sum.
    buckets = total(samples, "faasrt_call_duration_seconds_bucket", "le")
    upper = [buckets.get((str(bound),), 0) for bound in LATENCY_BOUNDS_S] + [buckets.get(("+Inf",), 0)]
    assert [high - low for low, high in zip([0, *upper], upper, strict=False)] == list(metrics.total.latency.counts)
    for name, seconds in {
        "faasrt_call_duration_seconds": [line["total_s"] for line in finished],
        "faasrt_attempt_duration_seconds": [line["duration_s"] for line in ended],
        "faasrt_queue_duration_seconds": [line["queued_s"] for line in finished],
    }.items():
        assert sum(total(samples, f"{name}_count").values()) == len(seconds)
        assert sum(total(samples, f"{name}_sum").values()) == pytest.approx(sum(seconds), abs=_ROUNDED * len(seconds))
    seconds = [line["total_s"] for line in finished]
    assert metrics.total.latency.sum_s == pytest.approx(sum(seconds), abs=_ROUNDED * len(seconds))

    # The endpoints. The log has the changes: the last one holds.
    states = {(state.family, state.endpoint): state for state in metrics.states}
    limits = {(line["family"], line["endpoint"]): line["limit"] for line in lines if line["event"] == "limit_changed"}
    changes = {
        (line["family"], line["endpoint"]): line["state"] for line in lines if line["event"] == "endpoint_changed"
    }
    assert total(samples, "faasrt_endpoint_concurrency_limit", "family", "endpoint") == pytest.approx(
        limits, abs=_ROUNDED
    )
    assert {key: states[key].limit for key in limits} == pytest.approx(limits, abs=_ROUNDED)
    open_breakers = {key: 1 for key, state in changes.items() if state == "open"}
    assert total(samples, "faasrt_endpoint_breaker_open", "family", "endpoint") == open_breakers
    assert {key for key, state in states.items() if state.breaker != "closed"} == set(open_breakers)


async def until_stable(manager: RuntimeManager, calls: list[asyncio.Task[Any]]) -> None:
    """Wait until each call has ended, waits for a permit, or has sent its request."""
    while True:
        metrics, left = manager.get_metrics(), sum(not call.done() for call in calls)
        if (metrics.in_flight + metrics.queued, metrics.total.in_flight) == (left, metrics.in_flight):
            return
        await asyncio.sleep(0)


async def test_metrics_sinks_and_log_agree(unused_tcp_port: int, caplog: pytest.LogCaptureFixture) -> None:
    """`get_metrics()`, the Prometheus sink and the log have the same values during and after a mixed load."""
    caplog.set_level("DEBUG", "faasrt")
    registry = CollectorRegistry()
    replies = {
        "user": Reply(outcome="USER_ERROR"),
        "timeout": Reply(outcome="TIMEOUT"),
        "crash": Reply.crash(),
        "reject": Reply(status=400),
        "lost": Reply(disconnect=True),
        "busy": Reply.overloaded("0"),
        "hang": Reply(hang=True),
    }
    async with FakeFaaS() as one, FakeFaaS() as other:
        for fake in (one, other):
            fake.handler = lambda body: replies.get(body["code"], Reply.ok("x"))
        settings = Settings(
            endpoints={"py": [one.url, other.url], "ts": one.url, "js": f"http://127.0.0.1:{unused_tcp_port}"},
            retry=QUICK,
            breaker=BreakerSettings(consecutive_failures=20, base_open_s=1_000, max_open_s=1_000),
            limiter=LimiterSettings(max_concurrency=4),
        )
        async with RuntimeManager(settings=settings, telemetry=[PrometheusSink(registry)]) as manager:

            def check() -> None:
                lines = read_lines(record.getMessage() for record in caplog.records if record.name == "faasrt")
                check_agreement(manager.get_metrics(), scrape(registry), lines)

            async def run(code: str, language: str = "py") -> Any:
                return (await asyncio.gather(manager.run_code(code, language), return_exceptions=True))[0]

            check()
            for code in ("ok", "user", "timeout", "crash", "reject", "lost", "busy") * 3:
                for language in ("py", "ts"):
                    await run(code, language)
                await asyncio.gather(run("ok"), run("ok", "ts"), run("user"))
            for _ in range(5):
                await run("ok", "js")
            check()

            calls: list[asyncio.Task[Any]] = []
            while len(calls) < manager.get_metrics().total.in_flight + 2:  # two wait
                calls.append(asyncio.create_task(run("hang")))
                await until_stable(manager, calls)
            check()
            assert manager.get_metrics().total.in_flight > 0
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            check()

            errors = manager.get_metrics().total.errors
    assert manager.get_metrics().total.retries > 0
    assert set(errors) == {
        "CancelledError",
        "ConnectError",
        "ConnectionLostError",
        "OverloadedError",
        "RejectedError",
        "ServerError",
    }
    assert errors["CancelledError"] == len(calls)
    assert total(scrape(registry), "faasrt_attempts_in_flight") == {}


async def test_metrics_and_log_show_an_open_breaker(caplog: pytest.LogCaptureFixture) -> None:
    """`get_metrics()`, the gauge and the log show the breaker as open only while it is open."""
    caplog.set_level("DEBUG", "faasrt")
    registry = CollectorRegistry()
    breaker = BreakerSettings(consecutive_failures=2, base_open_s=0.001, max_open_s=0.001)
    sink = PrometheusSink(registry)
    async with FakeFaaS() as fake, manager_for(fake.url, retry=QUICK, breaker=breaker, telemetry=[sink]) as manager:
        for reply, is_open in ((Reply(), {}), (Reply.crash(), {}), (Reply.crash(), {(): 1}), (Reply(), {})):
            fake.script(reply)
            with contextlib.suppress(ServerError):
                await manager.run_code("1", "py")
            assert total(scrape(registry), "faasrt_endpoint_breaker_open") == is_open
            lines = read_lines(record.getMessage() for record in caplog.records if record.name == "faasrt")
            check_agreement(manager.get_metrics(), scrape(registry), lines)


async def test_number_of_series_does_not_grow_with_calls() -> None:
    """Two hundred different programs have the same series as one program. Labels contain only configured values."""
    registry = CollectorRegistry()
    async with FakeFaaS() as fake, manager_for(fake.url, telemetry=[PrometheusSink(registry)]) as manager:
        await manager.run_code("0", "py")
        before = set(scrape(registry))
        await asyncio.gather(*(manager.run_code(f"print({n})", "py", 1_000 + n) for n in range(200)))
        after = scrape(registry)
    assert set(after) == before
    values = {value for _, labels in after for name, value in labels if name != "le"}
    assert values == {"python", fake.url, "OK", ""}
    assert after["faasrt_attempts_total", frozenset({("language", "python"), ("endpoint", fake.url)})] == 201


async def test_managers_may_share_a_sink() -> None:
    """The metrics of the sink are the sums over all its managers."""
    registry = CollectorRegistry()
    sink = PrometheusSink(registry)
    async with FakeFaaS() as fake:
        for _ in range(2):
            async with manager_for(fake.url, telemetry=[sink]) as manager:
                await manager.run_code("1", "py")
    assert total(scrape(registry), "faasrt_calls_total") == {(): 2}


def test_a_replica_that_leaves_one_of_two_managers() -> None:
    """If another manager that shares the sink has a request there, the series stay until the replica leaves it, too."""
    registry, url = CollectorRegistry(), "http://faas:8000#10.0.0.1"
    sink = PrometheusSink(registry)
    started = AttemptStarted(call_id="1", language="python", attempt=1, endpoint=url)
    sink(started)
    sink(ReplicaRemoved(endpoint=url))
    assert total(scrape(registry), "faasrt_attempts_in_flight", "endpoint") == {(url,): 1}
    sink(AttemptFinished(**attrs.asdict(started), duration_s=1, status=200, error=None, reason=None))
    assert total(scrape(registry), "faasrt_attempts_total", "endpoint") == {(url,): 1}
    assert min(scrape(registry).values()) == 0
    sink(ReplicaRemoved(endpoint=url))
    assert scrape(registry) == {}


def test_two_sinks_need_two_registries_or_namespaces() -> None:
    """A second sink for the same registry is refused, and the registry does not change."""
    registry = CollectorRegistry()
    PrometheusSink(registry)
    before = generate_latest(registry)
    with pytest.raises(ConfigurationError, match="share one sink"):
        PrometheusSink(registry)
    assert generate_latest(registry) == before
    PrometheusSink(registry, namespace="other")
    PrometheusSink(CollectorRegistry())


def test_a_refused_sink_registers_no_metric() -> None:
    """If only the last metric of a sink exists already, the sink is refused, and registers none of the others."""
    from prometheus_client import Gauge

    registry = CollectorRegistry()
    other = Gauge("faasrt_endpoint_breaker_open", "Another gauge.", registry=registry)
    with pytest.raises(ConfigurationError, match="faasrt_endpoint_breaker_open"):
        PrometheusSink(registry)
    registry.unregister(other)
    PrometheusSink(registry)


@pytest.mark.parametrize("namespace", ["", "a b", "1a", "é", None, "a-b"])
def test_wrong_arguments_are_refused(namespace: Any) -> None:
    """The message names the argument."""
    with pytest.raises(ConfigurationError, match="namespace"):
        PrometheusSink(CollectorRegistry(), namespace=namespace)
    with pytest.raises(ConfigurationError, match="registry"):
        PrometheusSink(namespace)


def test_missing_extra_is_named() -> None:
    """Without prometheus-client, importing the sink raises an error that names the extra. faasrt can be imported."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None; import faasrt.client.manager, faasrt.telemetry.prometheus"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: faasrt.telemetry.prometheus needs prometheus-client: pip install 'faasrt[prometheus]'"
    )


async def test_the_health_report_agrees_with_the_metrics() -> None:
    """The server reports the same capacity and the same number of running programs as the sinks of the client."""
    registry = CollectorRegistry()
    seen: list[Any] = []
    async with RuntimeManager.local(["js"], workers=1, telemetry=[PrometheusSink(registry), seen.append]) as manager:
        at = (await manager.run_code("1", "js")).endpoint
        await asyncio.gather(manager.run_code("throw 1", "js"), manager.run_code("1", "js"))
        calls = [asyncio.create_task(manager.run_code("setInterval(() => {}, 1_000)", "js")) for _ in range(3)]
        await until_active(manager, "javascript", 3)
        reported = await manager.get_health_status()
        samples, metrics = scrape(registry), manager.get_metrics()
        running = Counter(type(event) for event in seen)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    (endpoint,) = reported.endpoints
    assert endpoint.healthy
    language = endpoint.details["languages"]["javascript"]
    assert language["active"] + language["queued"] == running[ExecutionStarted] - running[ExecutionFinished] == 3
    assert metrics.total.in_flight == 3
    assert total(samples, "faasrt_attempts_in_flight", "endpoint") == {(at,): language["active"]}
    assert total(samples, "faasrt_endpoint_concurrency_limit", "endpoint") == {(at,): language["capacity"]}
    assert [state.limit for state in metrics.states] == [language["capacity"]]
    assert total(samples, "faasrt_endpoint_breaker_open") == {}
    assert total(samples, "faasrt_calls_total", "outcome") == {("OK",): 2, ("USER_ERROR",): 1}


async def test_the_embedded_faas_has_the_same_label_after_each_start() -> None:
    """Results, errors, health, log lines and metrics of managers that share a sink name one endpoint, whatever its port
    is.
    """
    registry = CollectorRegistry()
    sink, seen = PrometheusSink(registry), list[Any]()
    urls, names = set(), set()
    for _ in range(2):
        settings = Settings(retry=QUICK)
        async with RuntimeManager.local(["js"], workers=1, settings=settings, telemetry=[sink, seen.append]) as manager:
            runtime = await manager.get_runtime("js")
            names.add((await runtime.run_code("1")).endpoint)
            metrics = manager.get_metrics()
            names |= {*metrics.endpoints, *(state.endpoint for state in metrics.states)}
            assert manager.local_faas is not None
            urls.add(manager.local_faas.url)
            names |= {health.endpoint for health in (await manager.get_health_status()).endpoints}
            await manager.local_faas.aclose()  # as if it had crashed
            with pytest.raises(ServiceError) as caught:
                await runtime.run_code("1")
            names.add(caught.value.endpoint)
    assert (names, len(urls)) == ({"http://local"}, 2)
    assert {event.endpoint for event in seen if getattr(event, "endpoint", "")} == names
    labels = {
        sample.labels["endpoint"]
        for metric in registry.collect()
        for sample in metric.samples
        if "endpoint" in sample.labels
    }
    assert labels == names
    assert total(scrape(registry), "faasrt_calls_total", "outcome")["OK",] == 2


async def test_the_health_report_agrees_with_the_metrics_on_failures(unused_tcp_port: int) -> None:
    """An unreachable endpoint has an open breaker in the metrics, and its health report says so, too."""
    registry = CollectorRegistry()
    seen: list[Any] = []
    sink = PrometheusSink(registry)
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with manager_for(url, retry=QUICK, telemetry=[sink, seen.append]) as manager:
        await asyncio.gather(*(manager.run_code("1", "py") for _ in range(5)), return_exceptions=True)
        states = manager.get_metrics().states
        reported = await manager.get_health_status()
    assert [(entry.endpoint, entry.healthy) for entry in reported.endpoints] == [(url, False)]
    assert [(state.endpoint, state.breaker) for state in states] == [(url, "open")]
    assert total(scrape(registry), "faasrt_endpoint_breaker_open", "endpoint") == {(url,): 1}
    assert {event.error for event in seen if isinstance(event, CallFinished)} == {"ConnectError"}
