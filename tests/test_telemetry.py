"""Sinks: who gets the events, what they may send along, and that none of them fails a call."""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, get_args

import aiohttp
import attrs
import pytest
import structlog
from aiohttp import web
from helpers import manager_for
from multidict import CIMultiDict

from faasrt import BreakerSettings, ConfigurationError, RetrySettings, RuntimeFactory, RuntimeManager, Settings
from faasrt.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    EndpointChanged,
    Event,
    ExecutionFinished,
    ExecutionStarted,
    LimitChanged,
    RetryScheduled,
)
from faasrt.local import LocalFaaS
from faasrt.telemetry.logs import LogSink
from faasrt.testing import FakeFaas, Reply

Serve = Callable[..., Awaitable[str]]
QUICK = RetrySettings(base_delay_s=0.001, max_delay_s=0.002, throttled_base_delay_s=0.001, throttled_max_delay_s=0.002)


class Sender:
    """A sink that sends headers along; an exception among them is raised."""

    def __init__(self, *headers: Any) -> None:
        self.headers = list(headers)
        self.asked: list[str] = []

    def __call__(self, event: Event) -> None: ...

    def request_headers(self, call_id: str) -> Mapping[str, str]:
        self.asked.append(call_id)
        headers = self.headers.pop(0) if self.headers else {}
        if isinstance(headers, Exception):
            raise headers
        return headers


class Recorder:
    """A FaaS that keeps the headers of every request; its first answers are 429."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.seen: list[Mapping[str, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(request.headers.copy())
        if self.refusals:
            self.refusals -= 1
            return web.json_response({}, status=429, headers={"Retry-After": "0"})
        return web.json_response(
            {"output": {"stdout": body["code"]}, "valid": True, "diagnostics": [], "checked_by": "me"}
        )


async def an_async_sink(event: Event) -> None: ...


class AsyncSink:
    async def __call__(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    "telemetry", [None, "sink", 1, {}, print, [None], ["sink"], [Sender], [an_async_sink], [AsyncSink()]]
)
@pytest.mark.parametrize("make", [RuntimeFactory, RuntimeManager, RuntimeManager.from_env, RuntimeManager.local])
def test_what_is_no_sink_is_refused(make: Callable[..., Any], telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a sink without a list around it, nor a class, nor a coroutine function; and it is said at once."""
    monkeypatch.setenv("COZE_LOOP_FAAS_URL", "http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="telemetry"):
        make(telemetry=telemetry)


def test_a_factory_has_sinks_of_its_own() -> None:
    """A manager takes a factory or sinks, as with the logger."""
    with pytest.raises(ConfigurationError, match="telemetry"):
        RuntimeManager(RuntimeFactory(), telemetry=[print])
    RuntimeManager(RuntimeFactory(), telemetry=[])


async def test_every_way_to_make_runtimes_takes_sinks(serve: Serve) -> None:
    """Factory, manager and environment; any iterable will do, and all the sinks get every event."""
    url = await serve(Recorder().handle)
    first: list[Event] = []
    second: list[Event] = []
    settings = Settings(endpoints={"py": url})
    managers = [
        RuntimeManager(RuntimeFactory(settings, telemetry=(first.append, second.append))),
        RuntimeManager(settings=settings, telemetry=iter([first.append, second.append])),
        RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": url}, telemetry=[first.append, second.append]),
    ]
    for manager in managers:
        async with manager:
            await manager.run_code("1", "py")
    assert [event.outcome for event in first if isinstance(event, CallFinished)] == ["OK"] * 3
    assert first == second


async def test_sinks_stay_when_the_embedded_faas_has_started() -> None:
    """Its address is known only then, and with it a new factory is made."""
    seen: list[Event] = []
    async with RuntimeManager.local(["js"], workers=1, telemetry=[seen.append]) as manager:
        await manager.run_code("1", "js")
    assert [event.outcome for event in seen if isinstance(event, CallFinished)] == ["OK"]


async def test_a_sink_sends_headers_along(serve: Serve) -> None:
    """With each attempt anew, and with the check of a program; what the client sets itself stays as it is."""
    faas = Recorder(refusals=1)
    url = await serve(faas.handle, "/{path}")
    sender = Sender({"X-Number": "1"}, {"x-number": "2"}, {"x-number": "3"})
    other = Sender({"x-other": "a"}, {"x-number": "4"})
    seen: list[Any] = []
    settings = Settings(endpoints={"py": url}, envelope="never")
    async with RuntimeManager(settings=settings, telemetry=[sender, other, seen.append]) as manager:
        assert (await manager.run_code("x", "py")).attempts == 2
        assert (await manager.validate_code("x", "py", where="remote")).valid
    sent = [(headers.get("X-Number"), headers.get("X-Other")) for headers in faas.seen]
    assert sent == [("1", "a"), ("4", None), ("3", None)]
    assert {headers["Content-Type"] for headers in faas.seen} == {"application/json"}
    assert sender.asked[:2] == [seen[0].call_id] * 2
    assert sender.asked[2] != sender.asked[1]


@pytest.mark.parametrize(
    "headers",
    [
        ZeroDivisionError(),
        None,
        {"x": "a\r\nInjected: 1"},
        {"x": "a\nb"},
        {"x": "a\0b"},
        {"x": "é"},
        {"x": "a" * 4_097},
        {"x": 1},
        {1: "x"},
        {"": "x"},
        {"a b": "x"},
        {"x\r\nInjected": "1"},
        {"Content-Length": "1"},
        {"Transfer-Encoding": "chunked"},
        {"content-type": "text/plain"},
        {"HOST": "elsewhere"},
        {"Authorization": "Bearer other"},
        {"Expect": "100-continue"},
    ],
)
async def test_headers_that_cannot_be_sent_fail_no_call(
    serve: Serve, headers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """They are left out, others are sent, and it is told of once, however often it happens."""
    faas = Recorder()
    settings = Settings(endpoints={"py": await serve(faas.handle)}, envelope="never", token="t")
    bad, good = Sender(headers, headers), Sender({"x-good": "1"}, {"x-good": "2"})
    async with RuntimeManager(settings=settings, telemetry=[bad, good]) as manager:
        for _ in range(2):
            assert (await manager.run_code("x", "py")).stdout == "x"
    assert [headers["X-Good"] for headers in faas.seen] == ["1", "2"]
    assert not any({"X", "Injected", "Expect"} & set(headers) for headers in faas.seen)
    assert {headers["Authorization"] for headers in faas.seen} == {"Bearer t"}
    assert caplog.text.count("a telemetry sink failed") == 1


async def test_the_status_of_an_answer_is_an_events() -> None:
    """That of a result too; an answer that did not come has none."""
    seen: list[Any] = []
    async with FakeFaas() as fake, manager_for(fake.url, retry=QUICK, telemetry=[seen.append]) as manager:
        fake.script(
            Reply.overloaded("0"),
            Reply(status=408),  # this server's word for a program that ran out of time
            Reply(status=400),
            Reply(reset_after=0),
            Reply(body=b"[]"),
            Reply(headers={"Content-Encoding": "gzip"}),
            Reply(body=b" " * 5_000_000),
            Reply(),
        )
        for _ in range(7):
            await asyncio.gather(manager.run_code("1", "py"), return_exceptions=True)
    finished = [(event.status, event.error) for event in seen if isinstance(event, AttemptFinished)]
    assert finished == [
        (429, "OverloadedError"),
        (408, None),
        (400, "RejectedError"),
        (None, "ConnectionLostError"),
        (200, "ProtocolError"),
        (200, "ProtocolError"),
        (200, None),
        (200, None),
    ]


async def test_limits_are_events() -> None:
    """Each change is told, the first knowledge too, and the last is what the metrics show."""
    seen: list[Any] = []
    async with FakeFaas() as fake, manager_for(fake.url, retry=QUICK, telemetry=[seen.append]) as manager:
        fake.script(Reply(), Reply.overloaded("0"))
        for _ in range(3):
            await manager.run_code("1", "py")
        (state,) = manager.get_metrics().states
    changes = [event for event in seen if isinstance(event, LimitChanged)]
    assert [(event.endpoint, event.family, event.limit) for event in changes] == [
        (fake.url, "python", 16),
        (fake.url, "python", pytest.approx(14.4)),
    ]
    assert changes[-1].limit == state.limit


async def test_the_embedded_faas_tells_of_its_executions() -> None:
    """What was run, what was only parsed, what was given up, and under which trace; with the id of the metadata."""
    seen: list[Any] = []
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    state = {"tracestate": "vendor=1"}
    sender = Sender({"traceparent": trace, **state}, {"traceparent": trace.upper(), **state}, state)
    async with RuntimeManager.local(["js"], workers=1, telemetry=[seen.append, sender]) as manager:
        result = await manager.run_code("console.log(1)", "js", timeout_ms=5_000)
        assert (await manager.validate_code("1", "js")).valid
        call = asyncio.create_task(manager.run_code("while (true);", "js"))
        while sum(isinstance(event, ExecutionStarted) for event in seen) < 3:
            await asyncio.sleep(0.001)
        call.cancel()
        while sum(isinstance(event, ExecutionFinished) for event in seen) < 3:
            await asyncio.sleep(0.001)
    started = [event for event in seen if isinstance(event, ExecutionStarted)]
    finished = [event for event in seen if isinstance(event, ExecutionFinished)]
    assert [(event.path, event.traceparent, event.tracestate) for event in started] == [
        ("/run_code", trace, "vendor=1"),
        ("/validate_code", None, None),
        ("/run_code", None, None),
    ]
    assert (started[0].code_bytes, started[0].timeout_ms) == (14, 5_000)
    assert started[0].code_hash == next(event for event in seen if isinstance(event, CallStarted)).code_hash
    assert [event.execution_id for event in started] == [event.execution_id for event in finished]
    assert started[0].execution_id == result.metadata["task_id"]
    assert [(event.outcome, event.status, event.error) for event in finished] == [
        ("OK", 200, None),
        ("OK", 200, None),
        (None, None, "CancelledError"),
    ]


async def test_what_the_embedded_faas_refuses_is_told_as_well() -> None:
    """With the status of the refusal, and no outcome."""
    seen: list[Any] = []
    faas = LocalFaaS(["js"], workers=1, queue_timeout_s=0.01, telemetry=[seen.append])
    async with faas, manager_for(faas.url, retry=RetrySettings(max_attempts=1)) as manager:
        await faas.wait_ready("js")
        endless = [asyncio.create_task(manager.run_code("while (true);", "js")) for _ in range(4)]
        while sum(isinstance(event, ExecutionStarted) for event in seen) < 4:
            await asyncio.sleep(0.001)
        async with aiohttp.ClientSession() as session:
            body = {"language": "javascript", "code": "1"}
            async with session.post(f"{faas.url}/run_code", json=body) as response:
                assert response.status == 429
        (refused,) = (event for event in seen if isinstance(event, ExecutionFinished))
        for task in endless:
            task.cancel()
    assert (refused.outcome, refused.error, refused.status) == (None, "BusyError", 429)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
        "print('secret')",
    ],
)
async def test_a_wrong_traceparent_is_ignored(traceparent: str) -> None:
    """The program is refused or run as without it, and nothing of the header is told."""
    (told,) = await executions_of([("traceparent", traceparent)])
    assert told.traceparent is None


async def test_two_traceparents_are_none() -> None:
    """Nobody can say which one is meant."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    (told,) = await executions_of([("traceparent", trace), ("traceparent", trace)])
    assert told.traceparent is None


@pytest.mark.parametrize(
    ("states", "told"),
    [(["a=1", "b=2"], "a=1,b=2"), (["a=" + "x" * 511], None), (["a=\u00e9"], None), ([""], None), ([], None)],
)
async def test_what_comes_along_with_a_traceparent(states: list[str], told: str | None) -> None:
    """It may be spread over several headers, and is left out when it is too long, or no ASCII."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    (started,) = await executions_of([("traceparent", trace), *(("tracestate", state) for state in states)])
    assert (started.traceparent, started.tracestate) == (trace, told)


async def executions_of(headers: list[tuple[str, str]]) -> list[ExecutionStarted]:
    """What an embedded FaaS tells of a request with these headers; its engine need not be ready for that."""
    seen: list[Any] = []
    async with LocalFaaS(["js"], workers=1, telemetry=[seen.append]) as faas, aiohttp.ClientSession() as session:
        body = {"language": "javascript", "code": "1"}
        async with session.post(f"{faas.url}/run_code", json=body, headers=CIMultiDict(headers)) as response:
            assert response.status in (200, 503)
    return [event for event in seen if isinstance(event, ExecutionStarted)]


@pytest.mark.parametrize("kind", [CallStarted, AttemptStarted, AttemptFinished, LimitChanged, EndpointChanged])
@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt])
async def test_what_is_stronger_than_an_exception_costs_no_permit(
    kind: type[Event], error: type[BaseException]
) -> None:
    """It ends the call, as it would anywhere, and what the call held is given back and counted."""

    def sink(event: Event) -> None:
        if isinstance(event, kind):
            raise error

    options = {"breaker": BreakerSettings(consecutive_failures=1), "retry": RetrySettings(max_attempts=1)}
    async with FakeFaas() as fake, manager_for(fake.url, telemetry=[sink], **options) as manager:
        fake.script(Reply.crash())
        with pytest.raises(error):
            await manager.run_code("1", "py")
        metrics = manager.get_metrics()
    assert (metrics.in_flight, metrics.total.in_flight) == (0, 0)
    assert [state.in_flight for state in metrics.states] == [0] * len(metrics.states)
    assert metrics.total.errors == {error.__name__: 1}


async def test_sinks_cannot_send_more_headers_than_a_server_takes(serve: Serve) -> None:
    """The first 32 go out, and the call goes well."""
    faas = Recorder()
    sender = Sender({f"x-{number}": "1" for number in range(200)})
    async with manager_for(await serve(faas.handle), telemetry=[sender]) as manager:
        assert (await manager.run_code("1", "py")).ok
    assert len([name for name in faas.seen[0] if name.lower().startswith("x-")]) == 32


class Picky:
    """A sink that says which events it hears; "fail" raises."""

    def __init__(self, said: Any) -> None:
        self.said = said
        self.seen: list[type[Event]] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(type(event))

    def hears(self, kind: type[Event]) -> bool:
        if self.said == "fail":
            raise ZeroDivisionError
        return kind in self.said


@pytest.mark.parametrize(("said", "made"), [((), ()), ((CallStarted,), (CallStarted,)), ("fail", ())])
async def test_what_nobody_hears_is_not_made(said: Any, made: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A sink says so with `hears`, which cannot fail a call either."""
    sink = Picky(said)
    async with FakeFaas() as fake, manager_for(fake.url, telemetry=[sink]) as manager:
        assert (await manager.run_code("1", "py")).ok
    assert set(sink.seen) - {LimitChanged} == set(made)
    assert caplog.text.count("a telemetry sink failed") == (said == "fail")


EVENTS: list[Event] = [
    CallStarted(call_id="c1", language="python", code_bytes=1, code_hash="0" * 16, timeout_ms=1.0),
    AttemptStarted(call_id="c1", language="python", attempt=1, endpoint="http://x"),
    AttemptFinished(
        call_id="c1", language="python", attempt=1, endpoint="http://x", duration_s=1.0, status=500, error="ServerError"
    ),
    RetryScheduled(call_id="c1", language="python", attempt=1, endpoint="http://x", error="ServerError", wait_s=0.5),
    EndpointChanged(endpoint="http://x", family="python", state="ejected", ejected_s=5.0),
    LimitChanged(endpoint="http://x", family="python", limit=14.4),
    CallFinished(
        call_id="c1",
        language="python",
        endpoint="http://x",
        outcome="OK",
        error=None,
        attempts=2,
        queued_s=0.0,
        total_s=2.0,
        output_bytes=3,
    ),
    ExecutionStarted(
        execution_id="task-1",
        language="python",
        path="/run_code",
        code_bytes=1,
        code_hash="0" * 16,
        timeout_ms=1.0,
        traceparent=None,
        tracestate=None,
    ),
    ExecutionFinished(execution_id="task-1", language="python", outcome="OK", error=None, status=200, total_s=1.0),
]
KINDS = set(get_args(Event))
LEVELS = {
    "call_started": "debug",
    "attempt_started": "debug",
    "attempt_finished": "debug",
    "retry_scheduled": "warning",
    "endpoint_changed": "warning",
    "limit_changed": "debug",
    "call_finished": "info",
    "execution_started": "debug",
    "execution_finished": "debug",
}


def failed(event: Event) -> Event:
    return attrs.evolve(event, error="ServerError") if hasattr(event, "error") else event  # type: ignore[misc]


def test_every_event_becomes_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """With its name, every field that it has, and its level; a failure is a warning, a cancellation is none."""
    caplog.set_level("DEBUG", "faasrt")
    sink = LogSink()
    assert {type(event) for event in EVENTS} == KINDS
    for event in EVENTS:
        for told in (event, failed(event)):
            caplog.clear()
            sink(told)
            (record,) = caplog.records
            fields = attrs.asdict(told)
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(told).__name__).lower()
            level = "warning" if fields.get("error") else LEVELS[name]
            words = [f"event={name!r}", *(f"{field}={value!r}" for field, value in fields.items()), f"level={level!r}"]
            assert record.getMessage() == " ".join(words)
            assert (record.name, record.levelname) == ("faasrt", level.upper())
        if hasattr(event, "error") and not isinstance(event, RetryScheduled):
            caplog.clear()
            sink(attrs.evolve(event, error="CancelledError"))  # type: ignore[misc]
            assert caplog.records[0].levelname == LEVELS[name].upper()


def test_a_line_goes_to_the_applications_own_logger() -> None:
    """As structlog has it: the name, and the fields as they are, whatever else was bound."""
    lines: list[dict[str, Any]] = []

    def keep(logger: Any, method: str, fields: Any) -> Any:
        lines.append({"method": method, **fields})
        raise structlog.DropEvent

    sink = LogSink(structlog.wrap_logger(None, processors=[keep], wrapper_class=structlog.stdlib.BoundLogger, app="a"))
    for event in EVENTS:
        sink(event)
    assert [line.pop("app") for line in lines] == ["a"] * len(EVENTS)
    assert [line.pop("method") for line in lines] == [
        "warning" if getattr(event, "error", None) else LEVELS[line["event"]]
        for event, line in zip(EVENTS, lines, strict=True)
    ]
    assert [line.pop("event") for line in lines] == list(LEVELS)
    assert lines == [attrs.asdict(event) for event in EVENTS]


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_what_is_heard_becomes_a_line(level: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log says that it hears an event exactly when one that tells of no failure becomes a line."""
    caplog.set_level(level, "faasrt")
    sink = LogSink()
    for event in EVENTS:
        caplog.clear()
        fine = attrs.evolve(event, error=None) if isinstance(event, AttemptFinished) else event
        sink(fine)
        assert sink.hears(type(event)) == bool(caplog.records)


class Failing:
    """A sink that cannot take one kind of event, nor tell headers."""

    def __init__(self, kind: type | None) -> None:
        self.kind = kind
        self.failures = 0
        self.seen: set[type[Event]] = set()

    def __call__(self, event: Event) -> None:
        self.seen.add(type(event))
        if self.kind is not None and isinstance(event, self.kind):
            self.failures += 1
            raise ZeroDivisionError(f"cannot take {event}")


@pytest.mark.parametrize("kind", [*sorted(KINDS, key=repr), object])
async def test_a_sink_that_fails_fails_no_call(kind: type, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever event it cannot take: calls end as they would, other sinks get everything, and it is told of once."""
    bad, good = Failing(kind), Failing(None)
    breaker = BreakerSettings(consecutive_failures=2, base_ejection_s=0.001, max_ejection_s=0.001)
    telemetry = [bad, good]
    async with FakeFaas() as fake, manager_for(fake.url, retry=QUICK, breaker=breaker, telemetry=telemetry) as manager:
        fake.script(Reply.overloaded("0"), Reply.crash(), Reply.crash(), Reply.ok("x"))
        calls = [manager.run_code("1", "py", idempotent=True), manager.run_code("1", "py")]
        ends = [type((await asyncio.gather(call, return_exceptions=True))[0]).__name__ for call in calls]
        assert ends == ["ServerError", "ExecutionResult"]
        fake.default = Reply(hang=True)
        call = asyncio.create_task(manager.run_code("1", "py"))
        while not fake.in_flight:
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        metrics = manager.get_metrics()
        assert (metrics.total.calls, metrics.in_flight, metrics.total.in_flight) == (3, 0, 0)
        assert caplog.text.count("a telemetry sink failed") == (bad.failures > 0)
    caplog.clear()
    bad.failures = 0
    async with RuntimeManager.local(["js"], workers=1, telemetry=telemetry) as manager:
        assert (await manager.run_code("console.log(1)", "js")).stdout == "1\n"
        assert (await manager.validate_code("1", "js")).valid
    # The client and the FaaS share what they know of it.
    assert caplog.text.count("a telemetry sink failed") == (bad.failures > 0)
    assert good.seen == bad.seen == KINDS


@pytest.mark.parametrize("kind", ["filtering", "stdlib", "lazy"])
async def test_the_level_of_the_applications_logger_holds(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Below it no line is made, no record, and no hash of a program; and it may be configured after the manager."""
    output = io.StringIO()
    if kind == "stdlib":
        caplog.set_level("INFO", "app")
        logger = structlog.wrap_logger(
            logging.getLogger("app"),
            processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    elif kind == "filtering":
        wrapper = structlog.make_filtering_bound_logger("info")
        logger = structlog.wrap_logger(structlog.WriteLogger(output), wrapper_class=wrapper).bind(app="a")
    else:
        logger = structlog.get_logger()
    sink = LogSink(logger)
    try:
        if kind == "lazy":
            structlog.configure(
                wrapper_class=structlog.make_filtering_bound_logger("info"),
                logger_factory=structlog.WriteLoggerFactory(output),
            )
        assert [event for event in KINDS if sink.hears(event)] == [
            event for event in KINDS if event in (RetryScheduled, EndpointChanged, CallFinished)
        ]
        for event in EVENTS:
            sink(event)
    finally:
        structlog.reset_defaults()
    lines = caplog.text if kind == "stdlib" else output.getvalue()
    told = [name for name in LEVELS if name in lines]
    assert told == ["attempt_finished", "retry_scheduled", "endpoint_changed", "call_finished"]


def test_a_logger_that_knows_no_levels_gets_everything() -> None:
    """Such as one for the standard library's loggers around another one."""
    output = io.StringIO()
    wrapper = structlog.stdlib.BoundLogger
    sink = LogSink(structlog.wrap_logger(structlog.WriteLogger(output), wrapper_class=wrapper))
    fine = [event for event in EVENTS if not getattr(event, "error", None)]
    for event in fine:
        assert sink.hears(type(event))
        sink(event)
    assert output.getvalue().count("\n") == len(fine)
