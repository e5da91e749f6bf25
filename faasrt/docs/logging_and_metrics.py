r"""Log lines, metrics and traces: what there is, and how to switch it on.

Logs, metrics and traces hold ids, sizes, hashes and times. They never hold code, input or output of a program.

## Logs

faasrt logs one line per call: at INFO when the call has a result, at WARNING when the infrastructure failed. Attempts
and retries are at DEBUG. It is silent until the application configures logging, with the standard library:

```python
import asyncio
import logging
import sys

from faasrt import RuntimeManager

logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
logging.getLogger("faasrt").setLevel(logging.INFO)


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        await manager.run_code("print(6 * 7)", "python")


asyncio.run(main())
```

```text
INFO faasrt call_finished call_id='...' language='python' endpoint='http://local' outcome='OK' attempts=1 ...
```

or with structlog, whose processors and context variables then apply to faasrt's lines too:

```python
import asyncio

import structlog

from faasrt import RuntimeManager


def keep(logger, name, event):
    return {key: event[key] for key in ("event", "request", "outcome") if key in event}


structlog.configure(
    processors=[structlog.contextvars.merge_contextvars, keep, structlog.processors.KeyValueRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger("INFO"),
)


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        with structlog.contextvars.bound_contextvars(request="r-17"):
            await manager.run_code("1 / 0", "python")


asyncio.run(main())
```

```text
event='call_finished' request='r-17' outcome='USER_ERROR'
```

`RuntimeManager(logger=...)` sets a logger of either kind for one manager. `faasrt.telemetry.logs` lists the lines.

## Metrics without a library

`manager.get_metrics()` returns outcomes, errors, attempts, retries, a latency histogram and the state of each endpoint.

```python
import asyncio

from faasrt import RuntimeManager


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        for code in ("print(1)", "print(2)", "1 / 0"):
            await manager.run_code(code, "python")
        total = manager.get_metrics().total
        print(dict(total.outcomes), "attempts:", total.attempts, "retries:", total.retries)


asyncio.run(main())
```

```text
{'OK': 2, 'USER_ERROR': 1} attempts: 3 retries: 0
```

## Prometheus

`telemetry=[PrometheusSink()]` counts calls, attempts and retries, and measures queueing and durations, by language and
endpoint. It needs `pip install 'faasrt[prometheus]'`. `faasrt.docs.cookbook` has a program, and
`faasrt.telemetry.prometheus` the names of the metrics. `faasrt deploy prometheus-rules` prints alerts for clients and
servers, and `faasrt deploy grafana-dashboard` a dashboard. The most useful alerts on a client:

| alert | expression |
|---|---|
| infrastructure failures | `rate(faasrt_calls_total{error!=""}[5m])` above 1 % of all calls |
| an endpoint gets no calls | `faasrt_endpoint_breaker_open == 1` for a minute |
| the queue grows | 0.95 quantile of `faasrt_queue_duration_seconds` above your budget |
| timeouts rise | `rate(faasrt_calls_total{outcome="TIMEOUT"}[5m])` |

`faasrt serve` has a `/metrics` of its own, about the programs of all its clients.

## The metrics of a server

`GET /metrics` of the embedded FaaS returns JSON, or the Prometheus text format to a client that accepts it. If
the server has a token, `/metrics` needs the token as well, because it shows usage. So give it to the scraper
(`authorization: {credentials_file: ...}` in Prometheus). Only `/livez` and `/readyz` need none.

| metric | labels | means |
|---|---|---|
| `faasrt_local_executions_total` | language, outcome | programs that ran |
| `faasrt_local_refused_total` | engine | programs refused because the queue was full or the engine not ready |
| `faasrt_local_failed_total` | engine | programs whose engine failed |
| `faasrt_local_queued` | engine | programs that wait for a sandbox |
| `faasrt_local_active` | engine | running programs |
| `faasrt_local_capacity` | engine | programs that can run at once |
| `faasrt_local_utilization_ratio` | engine, language | running programs / capacity, for a family of languages |
| `faasrt_local_idle` | engine | processes that wait for a program |
| `faasrt_local_ready` | engine | 1 if the engine can run programs |
| `faasrt_local_engine_info` | engine, language, level, runtime, version | always 1 |
| `faasrt_local_connections` | | open connections |
| `faasrt_local_refused_connections_total` | | connections refused because too many were open |
| `faasrt_local_refused_while_draining_total` | | programs refused because the server was about to stop |
| `faasrt_local_max_connections` | | the largest number of open connections |
| `faasrt_local_draining` | | 1 if the server refuses programs because it is about to stop |
| `faasrt_local_sessions` | | open sessions |
| `faasrt_local_max_sessions` | | the largest number of open sessions |
| `faasrt_local_opened_sessions_total` | | sessions that were opened, with forks |
| `faasrt_local_forked_sessions_total` | | forks of sessions |
| `faasrt_local_session_runs_total` | | programs that began in sessions; `executions_total` counts them too |
| `faasrt_local_ended_sessions_total` | reason | sessions that have ended, see below |

The reasons for the end of a session are `closed` (by its client), `idle` (for too long), `run` (a program crashed,
exceeded a limit, or could not be interrupted), `lost` (its process ended between two programs) and `stopped` (the
server).

An autoscaler follows `faasrt_local_utilization_ratio`, for example with a target of 0.7, and `faasrt_local_queued`,
which still grows when all sandboxes are busy. Programs wait for a short time only (`queue_timeout_s`), so a rising
`rate(faasrt_local_refused_total[5m])` means that there are too few servers.

After `reconfigure` or SIGHUP, an engine that is replaced may still run its last programs. The gauges (`active`, `idle`,
`queued`, `capacity`) describe the new engine only; the counters go on. Requests that are refused because they are
wrong, or hold too much memory together, are in the access log only.

`faasrt serve --access-log` logs each request. With `--log-format json` all lines on stderr are JSON objects.

## OpenTelemetry

A call is a span, with its attempts as events. The trace continues in the FaaS by the header `traceparent`. This needs
`pip install 'faasrt[otel]' opentelemetry-sdk`.

```python
import asyncio

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from faasrt import RuntimeManager
from faasrt.telemetry.otel import OpenTelemetrySink

spans = InMemorySpanExporter()  # in production: an exporter of OTLP
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)


async def main():
    async with RuntimeManager.local(["python"], telemetry=[OpenTelemetrySink()]) as manager:
        await manager.run_code("print(1)", "python")
    for span in spans.get_finished_spans():
        print(span.kind.name, span.attributes["faasrt.outcome"])


asyncio.run(main())
```

```text
SERVER OK
CLIENT OK
```

## Your own sink

A sink is any callable. It is called with every event of `faasrt.telemetry.events`, in the event loop, so it must not
block. A sink that fails is logged once and never fails a call.

```python
import asyncio

from faasrt import RetrySettings, RuntimeManager
from faasrt.telemetry.events import CallFinished


def alert(event):
    if isinstance(event, CallFinished) and event.error:
        print(event.language, event.error, "after", event.attempts, "attempts")


async def main():
    retry = RetrySettings(connect_retry_s=0)  # do not wait for a server: nothing listens on this port
    async with RuntimeManager.from_url("http://127.0.0.1:9", retry=retry, telemetry=[alert]) as manager:
        await asyncio.gather(manager.run_code("print(1)", "python"), return_exceptions=True)


asyncio.run(main())
```

```text
python ConnectError after 3 attempts
```
"""

__docformat__ = "markdown"
