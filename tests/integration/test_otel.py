"""The OpenTelemetry sink: one span per call, and one trace through caller, client and server."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from faasrt import BreakerSettings, LimiterSettings, Outcome, RetrySettings, RuntimeManager
from faasrt._version import __version__
from faasrt.local import LocalFaaS
from faasrt.telemetry.events import AttemptStarted, CallFinished, CallStarted, hash_code
from faasrt.telemetry.otel import OpenTelemetrySink
from faasrt.testing import FakeFaaS, Reply
from support.helpers import QUICK, Serve, manager_for
from support.served import until

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans(SpanProcessor):
    """A tracer provider that keeps ended spans, a sink that uses it, and weak references to its spans."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.provider.add_span_processor(self)
        self.started: list[weakref.ref[trace.Span]] = []
        self.sink = OpenTelemetrySink(self.provider)
        self.tracer = self.provider.get_tracer("test")

    def on_start(self, span: trace.Span, parent_context: Context | None = None) -> None:
        self.started.append(weakref.ref(span))

    def ended(self, kind: SpanKind = SpanKind.CLIENT) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]

    def open(self, kind: SpanKind = SpanKind.CLIENT) -> int:
        """Return the number of spans that have not ended."""
        spans = [span for started in self.started if isinstance(span := started(), ReadableSpan)]
        return sum(span.kind is kind and span.end_time is None for span in spans)


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def fake() -> AsyncIterator[FakeFaaS]:
    async with FakeFaaS() as fake:
        yield fake


def events_of(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of a span, without addresses and durations."""
    left_out = {"server.address", "server.port", "url.full", "faasrt.duration_s", "faasrt.wait_s", "faasrt.open_s"}
    return [
        (event.name, {name: value for name, value in (event.attributes or {}).items() if name not in left_out})
        for event in span.events
    ]


def traceparent(span: ReadableSpan | trace.Span) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


async def error_of(call: Awaitable[Any]) -> str:
    found: tuple[Any] = await asyncio.gather(call, return_exceptions=True)
    return type(found[0]).__name__


async def test_span_of_a_call(spans: Spans, fake: FakeFaaS) -> None:
    """A call has a CLIENT span, whose parent is the span of the caller. It has attributes of HTTP and of the call."""
    fake.script(Reply.ok("é\n"))
    async with manager_for(fake.url, telemetry=[spans.sink]) as manager:
        with spans.tracer.start_as_current_span("caller") as caller:
            await manager.run_code("print('é')", "python", timeout_ms=5_000)
            assert trace.get_current_span() is caller
    (span,) = spans.ended()
    attributes = dict(span.attributes or {})
    assert (span.name, span.parent) == ("POST /run_code", caller.get_span_context())
    assert span.instrumentation_scope is not None
    assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("faasrt", __version__)
    assert attributes.pop("faasrt.call_id")
    assert 0 <= attributes.pop("faasrt.queued_s") < 10  # type: ignore[operator]
    assert attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": int(fake.url.rpartition(":")[2]),
        "url.full": f"{fake.url}/run_code",
        "faasrt.language": "python",
        "faasrt.code_bytes": 11,
        "faasrt.code_hash": hash_code("print('é')".encode()),
        "faasrt.timeout_ms": 5_000,
        "faasrt.outcome": "OK",
        "faasrt.attempts": 1,
        "faasrt.output_bytes": 3,
    }
    assert events_of(span) == [
        ("faasrt.attempt_started", {"faasrt.attempt": 1}),
        ("faasrt.attempt_finished", {"faasrt.attempt": 1, "http.response.status_code": 200}),
    ]
    assert span.status.status_code is StatusCode.UNSET


async def test_a_span_has_the_url_of_the_service(spans: Spans) -> None:
    retry = RetrySettings(connect_retry_s=0)
    async with manager_for("piston+http://127.0.0.1:1/api/v2", telemetry=[spans.sink], retry=retry) as manager:
        assert await error_of(manager.run_code("1", "python")) == "ConnectError"
    assert (spans.ended()[0].attributes or {})["url.full"] == "http://127.0.0.1:1/api/v2/execute"


async def test_spans_of_concurrent_calls_have_the_right_parents(spans: Spans, fake: FakeFaaS) -> None:
    """The parent of each span is the span of its own caller, even with many calls in flight."""

    async def one(number: int) -> tuple[int, int]:
        with spans.tracer.start_as_current_span(str(number)) as caller:
            await manager.run_code("1", "python", 1_000 + number)
            return 1_000 + number, caller.get_span_context().span_id

    async with manager_for(fake.url, telemetry=[spans.sink]) as manager:
        callers = await asyncio.gather(*map(one, range(50)))
    parents = [
        ((span.attributes or {})["faasrt.timeout_ms"], span.parent.span_id) for span in spans.ended() if span.parent
    ]
    assert sorted(parents) == sorted(callers)


async def test_retries_and_breaker_changes_are_span_events(spans: Spans, fake: FakeFaaS) -> None:
    """The events are in order, with errors. The span has the status of the last attempt and the number of retries."""
    fake.script(Reply.overloaded("0"), Reply.crash(), Reply())
    breaker = BreakerSettings(consecutive_failures=1, base_open_s=0.001, max_open_s=0.001)
    async with manager_for(fake.url, retry=QUICK, breaker=breaker, telemetry=[spans.sink]) as manager:
        assert (await manager.run_code("1", "python", idempotent=True)).attempts == 3
    (span,) = spans.ended()
    assert events_of(span) == [
        ("faasrt.attempt_started", {"faasrt.attempt": 1}),
        (
            "faasrt.attempt_finished",
            {"faasrt.attempt": 1, "http.response.status_code": 429, "error.type": "OverloadedError"},
        ),
        ("faasrt.retry_scheduled", {"faasrt.attempt": 1, "error.type": "OverloadedError"}),
        ("faasrt.attempt_started", {"faasrt.attempt": 2}),
        (
            "faasrt.attempt_finished",
            {"faasrt.attempt": 2, "http.response.status_code": 500, "error.type": "ServerError"},
        ),
        ("faasrt.endpoint_changed", {"faasrt.state": "open"}),
        ("faasrt.retry_scheduled", {"faasrt.attempt": 2, "error.type": "ServerError"}),
        ("faasrt.attempt_started", {"faasrt.attempt": 3}),
        ("faasrt.attempt_finished", {"faasrt.attempt": 3, "http.response.status_code": 200}),
        ("faasrt.endpoint_changed", {"faasrt.state": "closed"}),
    ]
    attributes = dict(span.attributes or {})
    assert (attributes["http.request.resend_count"], attributes["http.response.status_code"]) == (2, 200)
    assert "error.type" not in attributes
    assert span.status.status_code is StatusCode.UNSET


async def test_breaker_changes_are_in_spans_of_the_endpoint_only(spans: Spans, fake: FakeFaaS) -> None:
    """Spans of calls to another endpoint, or in another family of languages, do not contain these events."""
    breaker = BreakerSettings(consecutive_failures=1)
    replies = {"fail": Reply.crash(), "hang": Reply(hang=True)}
    async with FakeFaaS() as other:
        for server in (fake, other):
            server.handler = lambda body: replies[body["code"]]
        async with (
            manager_for(fake.url, breaker=breaker, telemetry=[spans.sink]) as manager,
            manager_for(other.url, telemetry=[spans.sink]) as other_manager,
        ):
            calls = [
                asyncio.create_task(place.run_code("hang", language))
                for place, language in ((manager, "python"), (manager, "javascript"), (other_manager, "python"))
            ]
            await until(lambda: fake.in_flight + other.in_flight == 3)
            assert await error_of(manager.run_code("fail", "python")) == "ServerError"
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
    changed = {
        (attributes["url.full"], attributes["faasrt.language"])
        for span in spans.ended()
        if "faasrt.endpoint_changed" in [event.name for event in span.events]
        for attributes in [span.attributes or {}]
    }
    assert changed == {(f"{fake.url}/run_code", "python")}


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.OK}))
async def test_a_failed_program_is_no_error_of_its_span(spans: Spans, fake: FakeFaaS, outcome: Outcome) -> None:
    """The outcome of the program is only an attribute of the span."""
    fake.script(Reply(outcome=outcome, stderr="boom"))
    async with manager_for(fake.url, telemetry=[spans.sink]) as manager:
        await manager.run_code("1", "python")
    (span,) = spans.ended()
    assert (span.status.status_code, (span.attributes or {})["faasrt.outcome"]) == (StatusCode.UNSET, outcome)
    assert "error.type" not in (span.attributes or {})


async def test_service_errors_are_errors_of_the_span(spans: Spans, fake: FakeFaaS, unused_tcp_port: int) -> None:
    """The span has the class of the error and the status if known, but no text of the server."""
    dead = f"http://127.0.0.1:{unused_tcp_port}"
    limiter = LimiterSettings(max_concurrency=1, max_queue=1)
    async with manager_for(fake.url, retry=QUICK, telemetry=[spans.sink]) as manager:
        for reply in (Reply.crash(), Reply(status=400, details="no"), Reply(disconnect=True), Reply(body=b"[]")):
            fake.script(reply)
            await error_of(manager.run_code("1", "python"))
    async with manager_for(dead, retry=QUICK, telemetry=[spans.sink]) as manager:
        await error_of(manager.run_code("1", "python"))
    async with manager_for(fake.url, limiter=limiter, telemetry=[spans.sink]) as manager:
        fake.default = Reply(hang=True)
        calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(2)]
        await until(lambda: manager.get_metrics().queued and manager.get_metrics().total.in_flight)
        assert await error_of(manager.run_code("1", "python")) == "QueueFullError"
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    found = [
        (attributes["error.type"], attributes.get("http.response.status_code"), "server.address" in attributes)
        for span in spans.ended()
        for attributes in [span.attributes or {}]
    ]
    assert found[:6] == [
        ("ServerError", 500, True),
        ("RejectedError", 400, True),
        ("ConnectionLostError", None, True),
        ("ProtocolError", 200, True),
        ("ConnectError", None, True),
        ("QueueFullError", None, False),
    ]
    assert sorted(found[6:]) == [("CancelledError", None, False), ("CancelledError", None, True)]
    assert {(span.status.status_code, span.status.description) for span in spans.ended()} == {(StatusCode.ERROR, None)}


async def test_sink_keeps_no_ended_spans(spans: Spans, fake: FakeFaaS) -> None:
    """Three hundred calls with all kinds of results have an ended span each, and the sink keeps none of them."""
    codes = ["ok", "user", "crash", "busy", "lost", "hang"]
    replies = [Reply(), Reply(outcome="USER_ERROR"), Reply.crash(), Reply.overloaded("0"), Reply(disconnect=True)]
    fake.handler = lambda body: dict(zip(codes, [*replies, Reply(hang=True)], strict=True))[body["code"]]
    limiter = LimiterSettings(max_queue=200)
    async with manager_for(fake.url, retry=QUICK, limiter=limiter, telemetry=[spans.sink]) as manager:
        calls = [asyncio.create_task(manager.run_code(codes[n % 6], "python")) for n in range(300)]
        await until(lambda: manager.get_metrics().total.calls >= 100)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        metrics = manager.get_metrics()
    assert len(spans.ended()) == metrics.total.calls == 300
    assert {"CancelledError", "QueueFullError", "ServerError"} <= set(metrics.total.errors)
    gc.collect()
    assert not any(span() for span in spans.started)


async def test_attempts_and_validations_send_the_trace(serve: Serve, spans: Spans) -> None:
    """Attempts send the traceparent of the call's span, validations that of the caller's span, both with tracestate."""
    seen: list[Mapping[str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers.copy())
        if len(seen) == 1:
            return web.json_response({}, status=429, headers={"Retry-After": "0"})
        return web.json_response({"output": {}, "valid": True, "diagnostics": [], "checked_by": "me"})

    url = await serve(handle, "/{path:(run_code|validate_code)}")
    parent = TraceContextTextMapPropagator().extract({"traceparent": TRACE, "tracestate": "vendor=1,other=a:b"})
    async with manager_for(url, retry=QUICK, telemetry=[spans.sink]) as manager:
        with spans.tracer.start_as_current_span("caller", parent) as caller:
            await manager.run_code("1", "python")
            await manager.validate_code("1", "python", where="remote")
        await manager.validate_code("1", "python", where="remote")
    (span,) = spans.ended()
    sent = [headers.get("traceparent") for headers in seen]
    assert sent == [traceparent(span), traceparent(span), traceparent(caller), None]
    assert TRACE.split("-")[1] in traceparent(span)
    assert [headers.get("tracestate") for headers in seen] == ["vendor=1,other=a:b"] * 3 + [None]


async def test_embedded_faas_continues_the_trace(spans: Spans) -> None:
    """The server's span is a child of the client's, which is a child of the caller's. All have the same tracestate."""
    upstream = TraceContextTextMapPropagator().extract({"traceparent": TRACE, "tracestate": "vendor=1"})
    with spans.tracer.start_as_current_span("start"):
        manager = RuntimeManager.local(["js"], workers=1, telemetry=[spans.sink])
        await manager.get_runtime("js")
    async with manager:
        with spans.tracer.start_as_current_span("caller", upstream) as caller:
            result = await manager.run_code("console.log(1)", "js", timeout_ms=5_000)
            await manager.run_code("throw 1", "js")
            await manager.validate_code("1", "js")
        await manager.validate_code("1", "js")
        call = asyncio.create_task(manager.run_code("setInterval(() => {}, 1_000)", "js"))
        await until(lambda: spans.open(SpanKind.SERVER) == 1)
        call.cancel()
        await until(lambda: spans.open(SpanKind.SERVER) == 0)
    clients = spans.ended()
    servers = spans.ended(SpanKind.SERVER)
    parents = [span.parent and span.parent.span_id for span in servers]
    assert parents == [
        clients[0].get_span_context().span_id,
        clients[1].get_span_context().span_id,
        caller.get_span_context().span_id,
        None,  # the span in which the FaaS was started is not the caller
        clients[2].get_span_context().span_id,
    ]
    assert [span.parent.is_remote for span in servers if span.parent] == [True] * 4
    assert servers[0].get_span_context().trace_id == caller.get_span_context().trace_id
    assert servers[0].get_span_context().trace_state == {"vendor": "1"}
    attributes = dict(servers[0].attributes or {})
    assert attributes.pop("faasrt.code_hash") == (clients[0].attributes or {})["faasrt.code_hash"]
    assert attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/run_code",
        "url.path": "/run_code",
        "url.scheme": "http",
        "faasrt.execution_id": result.metadata["task_id"],
        "faasrt.language": "javascript",
        "faasrt.code_bytes": 14,
        "faasrt.timeout_ms": 5_000,
        "faasrt.outcome": "OK",
    }
    found = [
        (span.name, span.status.status_code, (span.attributes or {}).get("faasrt.outcome"), error_type(span))
        for span in servers[1:]
    ]
    assert found == [
        ("POST /run_code", StatusCode.UNSET, "USER_ERROR", None),
        ("POST /validate_code", StatusCode.UNSET, "OK", None),
        ("POST /validate_code", StatusCode.UNSET, "OK", None),
        ("POST /run_code", StatusCode.ERROR, None, "CancelledError"),
    ]


def error_type(span: ReadableSpan) -> Any:
    return (span.attributes or {}).get("error.type")


async def test_a_429_is_no_error_of_the_server_span(spans: Spans) -> None:
    """The embedded FaaS refuses a program because it is busy, so this is not a failure of the server."""
    faas = LocalFaaS(["js"], workers=1, max_programs=4, queue_timeout_s=1, telemetry=[spans.sink])
    async with faas, manager_for(faas.url) as manager, aiohttp.ClientSession() as session:

        async def refused(status: int) -> None:
            body = {"language": "javascript", "code": "1"}
            async with session.post(f"{faas.url}/run_code", json=body, headers={"traceparent": "0-1"}) as response:
                assert response.status == status

        await faas.wait_ready("js")
        calls = [asyncio.create_task(manager.run_code("setInterval(() => {}, 1_000)", "js")) for _ in range(4)]
        await until(lambda: spans.open(SpanKind.SERVER) == 4)
        await refused(429)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    span = spans.ended(SpanKind.SERVER)[0]
    assert (span.status.status_code, error_type(span), span.parent) == (StatusCode.UNSET, None, None)
    assert (span.attributes or {})["http.response.status_code"] == 429


@pytest.mark.parametrize(
    ("endpoint", "address", "port"),
    [
        ("http://faas", "faas", 80),
        ("https://faas.example/deep/path", "faas.example", 443),
        ("https://[::1]:8443", "::1", 8443),
    ],
)
def test_address_and_port_of_the_endpoint(spans: Spans, endpoint: str, address: str, port: int) -> None:
    """Host and port are attributes, even if the URL contains no port."""
    spans.sink(CallStarted(call_id="c", language="python", code_bytes=1, code_hash="0" * 16, timeout_ms=1.0))
    spans.sink(AttemptStarted(call_id="c", language="python", attempt=1, endpoint=endpoint))
    spans.sink(
        CallFinished(
            call_id="c",
            language="python",
            endpoint=endpoint,
            outcome="OK",
            error=None,
            attempts=1,
            queued_s=0.0,
            total_s=1.0,
            output_bytes=0,
        )
    )
    (span,) = spans.ended()
    attributes = span.attributes or {}
    assert (attributes["server.address"], attributes["server.port"]) == (address, port)
    assert attributes["url.full"] == f"{endpoint}/run_code"


def test_sink_works_without_the_sdk() -> None:
    """With only the API installed, calls work, and the trace of an upstream service is sent to the server."""
    code = f"""if True:
        import asyncio, sys
        sys.modules["opentelemetry.sdk"] = None
        from aiohttp import web
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        from faasrt import RuntimeManager, Settings
        from faasrt.telemetry.otel import OpenTelemetrySink

        async def main():
            async def handle(request):
                print(request.headers.get("traceparent"))
                return web.json_response({{"output": {{}}}})

            server = web.Server(handle)
            runner = web.ServerRunner(server)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = "http://127.0.0.1:%d" % runner.addresses[0][1]
            settings = Settings(endpoints={{"py": url}}, envelope="never")
            async with RuntimeManager(settings=settings, telemetry=[OpenTelemetrySink()]) as manager:
                await manager.run_code("1", "py")
                context.attach(TraceContextTextMapPropagator().extract({{"traceparent": "{TRACE}"}}))
                await manager.run_code("1", "py")
            await runner.cleanup()

        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"None\n{TRACE}\n", "")


def test_missing_extra_is_named() -> None:
    """Without opentelemetry-api, importing the sink raises an error that names the extra. faasrt can be imported."""
    code = "import sys; sys.modules['opentelemetry'] = None; import faasrt.client.manager, faasrt.telemetry.otel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: faasrt.telemetry.otel needs opentelemetry-api: pip install 'faasrt[otel]'"
    )
