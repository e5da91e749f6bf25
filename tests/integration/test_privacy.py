"""Sinks, spans, metrics and log lines contain no code, input or output of programs, and no text of servers."""

from __future__ import annotations

import ast
import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

import faasrt
from faasrt import BreakerSettings, ErrorInfo, RetrySettings, RuntimeManager, ServiceError, Settings, errors
from faasrt.telemetry.events import AttemptFinished, CallFinished, Event, RetryScheduled
from faasrt.telemetry.logs import LogSink
from faasrt.telemetry.otel import OpenTelemetrySink
from faasrt.telemetry.prometheus import PrometheusSink
from faasrt.testing import FakeFaaS, Reply
from support.helpers import manager_for
from support.served import until
from support.servers import discover_and_leave

# The text that must not appear, and its base64 form.
SECRET = "s3cretS3CRETs3cret"
HIDDEN = (SECRET, "czNjcmV0UzNDUkVUczNjcmV0")
ERROR = ErrorInfo(name=SECRET, message=SECRET, traceback=SECRET)
REPLIES = [
    Reply(stdout=SECRET, stderr=SECRET, ret_val=f'"{SECRET}"'),
    Reply(outcome="USER_ERROR", stderr=SECRET, error=ERROR, exit_code=3),
    Reply(status=400, details=SECRET),
    Reply(status=500, details=SECRET),
    Reply(status=429, details=SECRET, retry_after="0"),
    Reply(body=SECRET.encode()),
    Reply(body=json.dumps({"output": SECRET, "error": SECRET}).encode()),
    Reply(headers={"Content-Encoding": SECRET}),
    Reply(headers={"Retry-After": SECRET}, status=503, details=SECRET),
    Reply(disconnect=True),
]


class AllSinks:
    """All sinks of faasrt, and the text of everything that they received or wrote."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.registry = CollectorRegistry()
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.lines = io.StringIO()
        logger = structlog.wrap_logger(structlog.WriteLogger(self.lines), [structlog.processors.JSONRenderer()])
        self.sinks = [
            self.events.append,
            PrometheusSink(self.registry),
            OpenTelemetrySink(provider),
            LogSink(logger),
            self.fail,
        ]

    def fail(self, event: Event) -> None:
        raise ZeroDivisionError(f"cannot take {event}")

    def shown(self) -> str:
        spans = [span.to_json() for span in self.exporter.get_finished_spans()]
        metrics = generate_latest(self.registry).decode()
        return "\n".join([*map(repr, self.events), metrics, self.lines.getvalue(), *spans])


async def use_everything(manager: RuntimeManager, language: str) -> None:
    """Call every method, with the secret in every argument that can contain it. Failures are expected."""
    code = f"/* {SECRET} */" if language == "js" else f"# {SECRET}"
    function = f"function f{SECRET}(a) {{ return a }}" if language == "js" else f"def f{SECRET}(a): return a"
    runtime = await manager.get_runtime(language)
    calls: list[Any] = [
        manager.run_code(code, language, ext={SECRET: SECRET}, priority=SECRET, idempotent=True),
        manager.run_code(f"{code}\nthrow Error('{SECRET}')", language),
        runtime.call_function(function, f"f{SECRET}", [SECRET]),
        runtime.run_cases(function, f"f{SECRET}", [(SECRET,), ({SECRET: SECRET},)]),
        runtime.validate_code(f"{SECRET} +", where="remote"),
    ]
    for call in calls:
        await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("envelope", ["auto", "always"])
async def test_telemetry_contains_no_text_of_users(envelope: Any, caplog: pytest.LogCaptureFixture) -> None:
    """For any answer of the server, events, sinks, the log at DEBUG and `get_metrics()` do not contain the secret."""
    caplog.set_level("DEBUG")
    sinks = AllSinks()
    breaker = BreakerSettings(consecutive_failures=3, base_open_s=0.001, max_open_s=0.001)
    retry = RetrySettings(base_delay_s=0.001, max_delay_s=0.002)
    async with FakeFaaS() as fake:
        fake.health = {"version": SECRET}
        settings = Settings(endpoints={"py": fake.url}, retry=retry, breaker=breaker, envelope=envelope)
        async with RuntimeManager(settings=settings, telemetry=sinks.sinks) as manager:
            for reply in REPLIES:
                fake.default = reply
                await use_everything(manager, "py")
            fake.default = Reply(hang=True)
            call = asyncio.create_task(manager.run_code(SECRET, "py"))
            await fake.wait_until(lambda: fake.in_flight == 1)
            call.cancel()
            await asyncio.wait([call])
            shown = sinks.shown() + caplog.text + json.dumps(manager.get_metrics().to_dict())
        assert SECRET in str(fake.requests[0])
    async with RuntimeManager.local(["js"], workers=1, telemetry=sinks.sinks) as manager:
        await use_everything(manager, "js")
        call = asyncio.create_task(manager.run_code(f"while (true) console.log('{SECRET}')", "js"))
        await until(lambda: manager.get_metrics().total.in_flight)
        call.cancel()
        await asyncio.wait([call])
        assert manager.local_faas is not None
        url = manager.local_faas.url
        async with aiohttp.ClientSession() as session:
            for accepted in ("application/json", "text/plain"):
                async with session.get(f"{url}/metrics", headers={"Accept": accepted}) as response:
                    shown += await response.text()
        shown += sinks.shown() + caplog.text + json.dumps(manager.get_metrics().to_dict())
    await discover_and_leave(sinks.sinks)
    shown += sinks.shown() + caplog.text
    assert {type(event) for event in sinks.events} == set(get_args(Event))
    assert not [hidden for hidden in HIDDEN if hidden in shown]
    # Check that the text contains the output of all sinks.
    for word in (
        "faasrt_calls_total",
        "faasrt.code_hash",
        "call_finished",
        '"event": "call_finished"',
        "a telemetry sink failed",
        "USER_ERROR",
    ):
        assert word in shown


def answer(body: Any, *, status: str = "200 OK", headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data


SECRETS = {"error": SECRET, "details": SECRET, SECRET: SECRET}
STATUSES = (301, 400, 401, 403, 404, 408, 413, 415, 418, 429, 500, 501, 502, 503, 504)
ANSWERS: dict[str, bytes] = {
    **{str(status): answer(SECRETS, status=f"{status} {SECRET}") for status in STATUSES},
    **{f"{status} text": answer(SECRET, status=f"{status} {SECRET}") for status in (404, 429, 500)},
    "location": answer("", status="302 Found", headers=f"Location: http://{SECRET}\r\n"),
    "retry after": answer(SECRETS, status="503 Busy", headers=f"Retry-After: {SECRET}\r\n"),
    "encoding": answer("", headers=f"Content-Encoding: {SECRET}\r\n"),
    "transfer encoding": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {SECRET}\r\n\r\n{SECRET}".encode(),
    "length": f"HTTP/1.1 200 OK\r\nContent-Length: {SECRET}\r\n\r\n{SECRET}".encode(),
    "chunk": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n{SECRET}".encode(),
    "cut": answer(SECRETS)[:-5],
    "not HTTP": f"{SECRET}\r\n\r\n".encode(),
    "version": f"{SECRET}/1.1 200 OK\r\n\r\n".encode(),
    "status": f"HTTP/1.1 {SECRET} OK\r\n\r\n".encode(),
    "header": f"HTTP/1.1 200 OK\r\n{SECRET}\r\n\r\n".encode(),
    "long header": f"HTTP/1.1 200 OK\r\nX: {SECRET * 1_000}\r\n\r\n".encode(),
    "error": answer(SECRETS),
    "error object": answer({"error": {SECRET: SECRET}, "details": [SECRET]}),
    "text": answer(SECRET),
    "string": answer(json.dumps(SECRET)),
    "list": answer([SECRET]),
    "open string": answer(f'{{"{SECRET}": "{SECRET}'),
    "escape": answer(f'{{"output": "\\{SECRET}"}}'),
    "extra": answer(f'{{"output": {{}}}} {SECRET}'),
    "key": answer(f"{{{SECRET}: 1}}"),
    "constant": answer(f'{{"{SECRET}": NaN}}'),
    "not UTF-8": answer(SECRET.encode() + b"\xff"),
    "no output": answer({SECRET: SECRET}),
    "output": answer({"output": SECRET}),
    "stream": answer({"output": {"stdout": [SECRET]}}),
    "metadata": answer({"output": {}, "metadata": SECRET}),
    "exit code": answer({"output": {}, "metadata": {"exit_code": SECRET}}),
    "duration": answer({"output": {}, "metadata": {"duration": SECRET}}),
    "truncated": answer({"output": {}, "truncated": [SECRET]}),
    "outcome": answer({"output": {}, "outcome": SECRET}),
    "error info": answer({"output": {}, "outcome": "OK", "error_info": SECRET}),
    "name": answer({"output": {}, "outcome": "USER_ERROR", "error_info": {"name": [SECRET]}}),
    "notice": answer({"output": {}, "notice": [SECRET]}),
    "not started": answer({"output": {"stderr": SECRET}, "metadata": {"exit_code": 1, "runtime": "pyodide"}}),
}


@pytest.mark.parametrize("envelope", ["never", "always"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_reasons_contain_no_text_of_the_server(
    name: str,
    envelope: str,
    raw_server: Callable[..., Awaitable[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Events of a failed call have a reason. It contains no text of the server, wherever the answer contains text."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        await reader.readexactly(int(sizes[0]) if sizes else 0)
        writer.write(ANSWERS[name])
        await writer.drain()

    caplog.set_level("DEBUG", "faasrt")
    seen: list[Event] = []
    retry = RetrySettings(base_delay_s=0.001, max_delay_s=0.001, idempotent=True)
    url = await raw_server(handle)
    async with manager_for(url, envelope=envelope, retry=retry, telemetry=[seen.append]) as manager:
        (error,) = await asyncio.gather(manager.run_code(SECRET, "py"), return_exceptions=True)
    if isinstance(error, BaseException):
        assert isinstance(error, ServiceError)
        failures = [event for event in seen if isinstance(event, AttemptFinished | RetryScheduled | CallFinished)]
        assert len(failures) == 2 * error.attempts
        assert all(event.reason for event in failures)
        assert failures[-1].reason == error.reason
    else:
        assert (name, envelope) == ("not started", "never")  # without an envelope, this is the stderr of a program
    shown = caplog.text + repr(seen)
    assert "call_finished" in shown
    assert SECRET not in shown


# Expressions that may be in the reason of an error: numbers, names of faasrt, and types of JSON values.
ALLOWED = {
    "status",
    "error.status",  # of a proxy
    "code",  # the exit code
    "language",  # a name that the client has checked
    "context.language",
    "name",  # a field of the protocol
    "type(value).__name__",
    "error.start",
    "timeout_ms",
    "within_s",
    "within",  # a number of seconds
    "round(within_s or 0.0, 2)",
    "still_run",  # a number of calls
    "self.queued",
    "problem",  # of a certificate, from a table
    "max_queue",
    "self._max_concurrency",
}
SOURCES = sorted(
    path for part in ("transport", "protocol") for path in (Path(faasrt.__file__).parent / part).rglob("*.py")
)
REPORTED = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type)
    and issubclass(kind, (errors.ServiceError, errors.QueueFullError, errors.RuntimeClosedError))
}


def reasons(path: Path) -> Iterator[ast.expr]:
    """Yield the first arguments of all errors of a source file whose reason is reported."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assigned = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REPORTED:
                reason = node.args[0]
                yield assigned[reason.id] if isinstance(reason, ast.Name) else reason


def test_reasons_in_the_source_contain_no_text_of_others() -> None:
    """The reason of an error consists of constants, numbers and names of faasrt. Text of others is in its quote."""
    found = [(path.name, reason) for path in SOURCES for reason in reasons(path)]
    assert len(found) > 25
    for name, reason in found:
        assert isinstance(reason, ast.JoinedStr | ast.Constant), (name, ast.unparse(reason))
        for part in reason.values if isinstance(reason, ast.JoinedStr) else []:
            if isinstance(part, ast.FormattedValue):
                assert ast.unparse(part.value) in ALLOWED, (name, ast.unparse(reason))
