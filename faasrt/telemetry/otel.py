"""Events as OpenTelemetry spans; needs the extra `otel`, and an SDK that the application brings.

Example:
    >>> from opentelemetry import trace
    >>> from faasrt.telemetry.otel import OpenTelemetrySink
    >>> tracer = trace.get_tracer("my-app")
    >>> async with faasrt.RuntimeManager.from_env(telemetry=[OpenTelemetrySink()]) as manager:
    ...     with tracer.start_as_current_span("grade"):
    ...         result = await manager.run_code("print(6 * 7)", "python")  # its span is a child of "grade"

A call is one CLIENT span (`run_cases` makes one for each execution), whose parent is the span that is current where
it is called. It has the attributes of HTTP clients in OpenTelemetry's semantic conventions, those of the last attempt
(`http.request.method`, `url.full`, `http.request.resend_count`, `http.response.status_code`, `server.address`,
`server.port`, `error.type`), and fields of its events as `faasrt.call_id`, `faasrt.language`, `faasrt.outcome` and so
on. Attempts, retries, and ejections of the endpoint that the call is at are events of the span:
`faasrt.attempt_started` and the like.

The status of a span is an error when the call raised one, a cancellation included. A program that failed is no such
error: the service did what it was asked to, and `faasrt.outcome` says how the program ended.

Each attempt is sent with the W3C headers `traceparent` and `tracestate` of the call's span; the check of a program,
which has no span, with those of the current one. The embedded FaaS continues the trace: what it runs is a SERVER span.
No span holds code, input or output.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs

from faasrt._version import __version__
from faasrt.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    EndpointChanged,
    Event,
    ExecutionFinished,
    ExecutionStarted,
    RetryScheduled,
)
from faasrt.languages import Language

try:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider, get_tracer, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "faasrt.telemetry.otel needs opentelemetry-api: pip install 'faasrt[otel]'", name=error.name
    ) from None

_Attributes = dict[str, str | int | float]


@attrs.define(eq=False)
class _Call:
    """A call in flight: its span, the languages that it is about, and where and how its last attempt went."""

    span: Span
    family: str
    endpoint: str = ""
    status: int | None = None


class OpenTelemetrySink:
    """Makes spans; the module tells which.

    Args:
        tracer_provider: Where they go; the application's global one when None, which may be set later.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("faasrt", __version__, tracer_provider)
        self._propagator = TraceContextTextMapPropagator()
        self._calls: dict[str, _Call] = {}
        self._executions: dict[str, Span] = {}
        self._addresses: dict[str, _Attributes] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallStarted):
            self._start_call(event)
        elif isinstance(event, (AttemptStarted, AttemptFinished, RetryScheduled)):
            self._tell_attempt(self._calls[event.call_id], event)
        elif isinstance(event, CallFinished):
            self._finish_call(self._calls.pop(event.call_id), event)
        elif isinstance(event, EndpointChanged):
            fields = self._address(event.endpoint) | _fields(event, "state", "ejected_s")
            for call in self._calls.values():
                if (call.endpoint, call.family) == (event.endpoint, event.family):
                    call.span.add_event("faasrt.endpoint_changed", fields)
        elif isinstance(event, ExecutionStarted):
            self._start_execution(event)
        elif isinstance(event, ExecutionFinished):
            self._finish_execution(event)

    def request_headers(self, call_id: str) -> dict[str, str]:
        """Give the trace context of a call; that of the current span when it has none of its own."""
        call = self._calls.get(call_id)
        # Without an SDK, or for a call without a span, what came in from elsewhere is passed on.
        has_span = call is not None and call.span.get_span_context().is_valid
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(call.span) if call and has_span else None)
        return headers

    def _start_call(self, event: CallStarted) -> None:
        fields = _fields(event, "call_id", "language", "code_bytes", "code_hash", "timeout_ms")
        fields["http.request.method"] = "POST"
        # Its parent is the span of whoever makes the call, in whose task the event is.
        span = self._tracer.start_span("POST /run_code", kind=SpanKind.CLIENT, attributes=fields)
        self._calls[event.call_id] = _Call(span, Language(event.language).family.value)

    def _tell_attempt(self, call: _Call, event: AttemptStarted | AttemptFinished | RetryScheduled) -> None:
        fields = self._address(event.endpoint) | _fields(event, "attempt")
        if isinstance(event, AttemptStarted):
            call.endpoint = event.endpoint
            call.span.set_attributes(self._address(event.endpoint))
            call.span.add_event("faasrt.attempt_started", fields)
        elif isinstance(event, AttemptFinished):
            call.status = event.status
            fields |= _fields(event, "duration_s") | _result(event.status, event.error)
            call.span.add_event("faasrt.attempt_finished", fields)
        else:
            fields |= _fields(event, "wait_s") | _result(None, event.error)
            call.span.add_event("faasrt.retry_scheduled", fields)

    def _finish_call(self, call: _Call, event: CallFinished) -> None:
        fields = _fields(event, "outcome", "attempts", "queued_s", "output_bytes")
        call.span.set_attributes(fields | _result(call.status, event.error))
        if event.attempts > 1:
            call.span.set_attribute("http.request.resend_count", event.attempts - 1)
        if event.error is not None:
            call.span.set_status(StatusCode.ERROR)
        call.span.end()

    def _start_execution(self, event: ExecutionStarted) -> None:
        # Not the span that happened to be current when the FaaS was started.
        parent = Context()
        if event.traceparent is not None:
            came = {"traceparent": event.traceparent, "tracestate": event.tracestate or ""}
            parent = self._propagator.extract(came, parent)
        fields = _fields(event, "execution_id", "language", "code_bytes", "code_hash", "timeout_ms")
        fields |= {
            "http.request.method": "POST",
            "http.route": event.path,
            "url.path": event.path,
            "url.scheme": "http",
        }
        self._executions[event.execution_id] = self._tracer.start_span(
            f"POST {event.path}", parent, kind=SpanKind.SERVER, attributes=fields
        )

    def _finish_execution(self, event: ExecutionFinished) -> None:
        span = self._executions.pop(event.execution_id)
        # A refusal below 500 is no error of the server's.
        failed = event.error is not None and (event.status is None or event.status >= 500)
        span.set_attributes(_fields(event, "outcome") | _result(event.status, event.error if failed else None))
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end()

    def _address(self, endpoint: str) -> _Attributes:
        known = self._addresses.get(endpoint)
        if known is None:
            url = urlsplit(endpoint)
            port = url.port or (443 if url.scheme == "https" else 80)
            known = {"server.address": url.hostname or "", "server.port": port, "url.full": f"{endpoint}/run_code"}
            self._addresses[endpoint] = known
        return known


def _fields(event: Event, *names: str) -> _Attributes:
    """Take over fields of an event, those that are None left out."""
    return {f"faasrt.{name}": value for name in names if (value := getattr(event, name)) is not None}


def _result(status: int | None, error: str | None) -> _Attributes:
    """Give the attributes of an answer, as far as there is one, and of an error, if there is one."""
    found: _Attributes = {}
    if status is not None:
        found["http.response.status_code"] = status
    if error is not None:
        found["error.type"] = error
    return found
