"""Events as OpenTelemetry spans; needs the extra `otel`, and an SDK that the application installs.

Example:
    >>> from opentelemetry import trace
    >>> from faasrt.telemetry.otel import OpenTelemetrySink
    >>> tracer = trace.get_tracer("my-app")
    >>> async with faasrt.RuntimeManager.from_env(telemetry=[OpenTelemetrySink()]) as manager:
    ...     with tracer.start_as_current_span("grade"):
    ...         result = await manager.run_code("print(6 * 7)", "python")  # its span is a child of "grade"

A call is one CLIENT span; `run_cases` has one for each execution. Its parent is the current span of the caller. It has
the attributes that OpenTelemetry's semantic conventions define for HTTP clients, with the values of the last
attempt (`http.request.method`, `url.full`, `http.request.resend_count`, `http.response.status_code`, `server.address`,
`server.port`, `error.type`, and `network.peer.address` for a replica that was discovered), and fields of the events:
`faasrt.call_id`, `faasrt.language`, `faasrt.outcome` and others. Attempts, retries and changes of the endpoint's
circuit breaker are span events: `faasrt.attempt_started` and others.

The status of a span is ERROR when the call raised an error or was cancelled. A program that fails is not an error of
the service; `faasrt.outcome` holds how it ended. A run of a session looks like a call of its own: its span does not
show the id of the session, which is a secret.

Each attempt sends the W3C headers `traceparent` and `tracestate` of the call's span. A validation by the server has no
span of its own, and sends the headers of the current span. The embedded FaaS continues the trace: an execution is a
SERVER span. Spans never contain code, input or output.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs

from faasrt._endpoint_urls import address_of, split_endpoint
from faasrt._version import __version__
from faasrt.languages import family_of, parse_language
from faasrt.protocol.registry import protocol_of
from faasrt.telemetry.events import (
    EVENT_NAMES,
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

try:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider, get_tracer, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "faasrt.telemetry.otel needs opentelemetry-api: pip install 'faasrt[otel]'", name=error.name
    ) from None

__all__ = ["OpenTelemetrySink"]

_Attributes = dict[str, str | int | float]


@attrs.define(eq=False)
class _Call:
    span: Span
    family: str
    endpoint: str = ""
    status: int | None = None


class OpenTelemetrySink:
    """Creates spans from events, as described in the docstring of the module.

    Args:
        tracer_provider: The provider of the tracer. Default: None, which means the global one; it may be set later.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("faasrt", __version__, tracer_provider)
        self._propagator = TraceContextTextMapPropagator()
        self._calls: dict[str, _Call] = {}
        self._executions: dict[str, Span] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallStarted):
            self._start_call(event)
        elif isinstance(event, (AttemptStarted, AttemptFinished, RetryScheduled)):
            self._add_attempt_event(self._calls[event.call_id], event)
        elif isinstance(event, CallFinished):
            self._finish_call(self._calls.pop(event.call_id, None), event)
        elif isinstance(event, EndpointChanged):
            fields = _address(event.endpoint) | _fields(event, "state", "open_s")
            for call in self._calls.values():
                if (call.endpoint, call.family) == (event.endpoint, event.family):
                    call.span.add_event("faasrt.endpoint_changed", fields)
        elif isinstance(event, ExecutionStarted):
            self._start_execution(event)
        elif isinstance(event, ExecutionFinished):
            self._finish_execution(event)

    def request_headers(self, call_id: str) -> dict[str, str]:
        """Return the trace context of a call, or of the current span if the call has no span."""
        call = self._calls.get(call_id)
        # Without an SDK, pass on the context of the upstream service.
        has_span = call is not None and call.span.get_span_context().is_valid
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(call.span) if call and has_span else None)
        return headers

    def _start_call(self, event: CallStarted) -> None:
        fields = _fields(event, "call_id", "language", "code_bytes", "code_hash", "timeout_ms")
        fields["http.request.method"] = "POST"
        # The event is emitted in the caller's task, so the parent is the caller's span.
        span = self._tracer.start_span("POST /run_code", kind=SpanKind.CLIENT, attributes=fields)
        self._calls[event.call_id] = _Call(span, family_of(parse_language(event.language)))

    def _add_attempt_event(self, call: _Call, event: AttemptStarted | AttemptFinished | RetryScheduled) -> None:
        address = _address(event.endpoint)
        if isinstance(event, AttemptStarted):
            call.endpoint = event.endpoint
            call.span.set_attributes(address)
        elif isinstance(event, AttemptFinished):
            call.status = event.status
        fields = address | _fields(event, "attempt", "duration_s", "wait_s")
        fields |= _result(getattr(event, "status", None), getattr(event, "error", None))
        call.span.add_event(f"faasrt.{EVENT_NAMES[type(event)]}", fields)

    def _finish_call(self, call: _Call | None, event: CallFinished) -> None:
        if call is None:
            return
        fields = _fields(event, "outcome", "attempts", "queued_s", "output_bytes")
        call.span.set_attributes(fields | _result(call.status, event.error))
        if event.attempts > 1:
            call.span.set_attribute("http.request.resend_count", event.attempts - 1)
        if event.error is not None:
            call.span.set_status(StatusCode.ERROR)
        call.span.end()

    def _start_execution(self, event: ExecutionStarted) -> None:
        # An empty context, because the current span belongs to the task that started the FaaS.
        parent = Context()
        if event.traceparent is not None:
            headers = {"traceparent": event.traceparent, "tracestate": event.tracestate or ""}
            parent = self._propagator.extract(headers, parent)
        fields = _fields(event, "execution_id", "language", "code_bytes", "code_hash", "timeout_ms")
        fields |= {"http.request.method": "POST", "url.scheme": "http"}
        fields |= {"http.route": event.path, "url.path": event.path}
        self._executions[event.execution_id] = self._tracer.start_span(
            f"POST {event.path}", parent, kind=SpanKind.SERVER, attributes=fields
        )

    def _finish_execution(self, event: ExecutionFinished) -> None:
        span = self._executions.pop(event.execution_id)
        # According to the semantic conventions, a 4xx is not an error of the server.
        failed = event.error is not None and (event.status is None or event.status >= 500)
        span.set_attributes(_fields(event, "outcome") | _result(event.status, event.error if failed else None))
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end()


def _address(endpoint: str) -> _Attributes:
    base_url, address = split_endpoint(endpoint)[1], address_of(endpoint)
    url = urlsplit(base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    attributes: _Attributes = {"server.address": url.hostname or "", "server.port": port}
    if address:
        attributes["network.peer.address"] = address
    return attributes | {"url.full": base_url + protocol_of(endpoint).run_path}


def _fields(event: Event, *names: str) -> _Attributes:
    values = {f"faasrt.{name}": value for name in names if (value := getattr(event, name, None)) is not None}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def _result(status: int | None, error: str | None) -> _Attributes:
    attributes = {"http.response.status_code": status, "error.type": error}
    return {name: value for name, value in attributes.items() if value is not None}
