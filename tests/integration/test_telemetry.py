"""Sinks: their events and headers. A failing sink never fails a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, get_args

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict

from faasrt import (
    BreakerSettings,
    ConfigurationError,
    RetrySettings,
    RuntimeFactory,
    RuntimeManager,
    ServiceError,
    Settings,
)
from faasrt.local import LocalFaaS
from faasrt.telemetry.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    EndpointChanged,
    Event,
    ExecutionFinished,
    ExecutionStarted,
    LimitChanged,
)
from faasrt.testing import FakeFaaS, Reply
from support.helpers import QUICK, Serve, manager_for
from support.served import until
from support.servers import discover_and_leave


class Sender:
    """A sink that adds headers to requests, one mapping per request. If one is an exception, the sink raises it."""

    def __init__(self, *headers: Any) -> None:
        self.headers = list(headers)
        self.call_ids: list[str] = []

    def __call__(self, event: Event) -> None: ...

    def request_headers(self, call_id: str) -> Mapping[str, str]:
        self.call_ids.append(call_id)
        headers = self.headers.pop(0) if self.headers else {}
        if isinstance(headers, Exception):
            raise headers
        return headers


class Recorder:
    """A FaaS that keeps the headers of each request. Its first `refusals` answers are 429."""

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
def test_wrong_sinks_are_refused(make: Callable[..., Any], telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example a sink that is not in a list, a class, or a coroutine function."""
    monkeypatch.setenv("COZE_LOOP_FAAS_URL", "http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="telemetry"):
        make(telemetry=telemetry)


async def test_the_last_event_of_a_call_has_the_times_of_its_result(serve: Serve) -> None:
    """It also counts the attempts, including one that was refused."""
    events: list[Event] = []
    async with manager_for(await serve(Recorder(refusals=1).handle), telemetry=[events.append]) as manager:
        result = await manager.run_code("1", "python")
    (finished,) = [event for event in events if isinstance(event, CallFinished)]
    assert (finished.total_s, finished.queued_s) == (result.timings.total_s, result.timings.queued_s)
    assert (finished.attempts, len(result.timings.attempts_s)) == (2, 2)


def test_manager_refuses_a_factory_with_sinks() -> None:
    """The sinks of a factory are those that were passed to the factory."""
    with pytest.raises(ConfigurationError, match="telemetry"):
        RuntimeManager(RuntimeFactory(), telemetry=[print])
    RuntimeManager(RuntimeFactory(), telemetry=[])


async def test_every_constructor_accepts_sinks(serve: Serve) -> None:
    """Sinks may be in any iterable, and each sink gets every event."""
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


async def test_sinks_are_kept_when_the_embedded_faas_starts() -> None:
    """The manager then creates a new factory, because the URL is known only then."""
    seen: list[Event] = []
    async with RuntimeManager.local(["js"], workers=1, telemetry=[seen.append]) as manager:
        await manager.run_code("1", "js")
    assert [event.outcome for event in seen if isinstance(event, CallFinished)] == ["OK"]


async def test_a_sink_adds_headers(serve: Serve) -> None:
    """Headers are requested for each attempt and each validation. Headers of the client do not change."""
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
    assert sender.call_ids[:2] == [seen[0].call_id] * 2
    assert sender.call_ids[2] != sender.call_ids[1]


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
async def test_invalid_headers_of_a_sink_are_ignored(
    serve: Serve, headers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The call succeeds, the headers of other sinks are sent, and the failure is logged once."""
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


async def test_events_have_the_status_of_the_answer() -> None:
    """`AttemptFinished` has the HTTP status of results and errors, or None if there was no answer."""
    seen: list[Any] = []
    async with FakeFaaS() as fake, manager_for(fake.url, retry=QUICK, telemetry=[seen.append]) as manager:
        fake.script(
            Reply.overloaded("0"),
            Reply(status=408),  # a timeout of a proxy
            Reply(status=400),
            Reply(disconnect=True),
            Reply(body=b"[]"),
            Reply(headers={"Content-Encoding": "gzip"}),
            Reply(body=b" " * 5_000_000),
            Reply(),
        )
        for _ in range(5):
            with pytest.raises(ServiceError):
                await manager.run_code("1", "py")
        assert [(await manager.run_code("1", "py")).outcome.name for _ in range(2)] == ["OUTPUT_LIMIT", "OK"]
    finished = [(event.status, event.error) for event in seen if isinstance(event, AttemptFinished)]
    assert finished == [
        (429, "OverloadedError"),
        (408, "ServerError"),
        (400, "RejectedError"),
        (None, "ConnectionLostError"),
        (200, "ProtocolError"),
        (200, "ProtocolError"),
        (200, None),
        (200, None),
    ]


async def test_changes_of_the_limit_are_events() -> None:
    """The first limit and each change are an event. The last one is the limit in the metrics."""
    seen: list[Any] = []
    async with FakeFaaS() as fake, manager_for(fake.url, retry=QUICK, telemetry=[seen.append]) as manager:
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


async def test_embedded_faas_emits_events() -> None:
    """Runs, validations and cancelled runs have events, with their trace and the `task_id` of the metadata."""
    seen: list[Any] = []
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    state = {"tracestate": "vendor=1"}
    sender = Sender({"traceparent": trace, **state}, {"traceparent": trace.upper(), **state}, state)
    async with RuntimeManager.local(["js"], workers=1, telemetry=[seen.append, sender]) as manager:
        result = await manager.run_code("console.log(1)", "js", timeout_ms=5_000)
        assert (await manager.validate_code("1", "js")).valid
        call = asyncio.create_task(manager.run_code("setInterval(() => {}, 1_000)", "js"))
        await until(lambda: sum(isinstance(event, ExecutionStarted) for event in seen) == 3)
        call.cancel()
        await until(lambda: sum(isinstance(event, ExecutionFinished) for event in seen) == 3)
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


async def test_refusals_of_the_embedded_faas_are_events() -> None:
    """The event has the status of the refusal, and no outcome."""
    seen: list[Any] = []
    faas = LocalFaaS(["js"], workers=1, max_programs=4, queue_timeout_s=0.01, telemetry=[seen.append])
    async with faas, manager_for(faas.url, retry=RetrySettings(max_attempts=1)) as manager:
        await faas.wait_ready("js")
        endless = [asyncio.create_task(manager.run_code("setInterval(() => {}, 1_000)", "js")) for _ in range(4)]
        await until(lambda: sum(isinstance(event, ExecutionStarted) for event in seen) == 4)
        async with aiohttp.ClientSession() as session:
            body = {"language": "javascript", "code": "1"}
            async with session.post(f"{faas.url}/run_code", json=body) as response:
                assert response.status == 429
        (refused,) = (event for event in seen if isinstance(event, ExecutionFinished))
        for task in endless:
            task.cancel()
    assert (refused.outcome, refused.error, refused.status) == (None, "BusyError", 429)


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INVALID = [
    "",
    "00",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
    f"{TRACE}-more",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
    "print('secret')",
]


async def test_an_invalid_or_repeated_traceparent_is_ignored() -> None:
    """The program runs, and the event does not contain the header."""
    requests = [[("traceparent", value)] for value in INVALID] + [[("traceparent", TRACE)] * 2]
    assert [started.traceparent for started in await executions_of(*requests)] == [None] * len(requests)


async def test_tracestates_of_executions() -> None:
    """Several headers are joined. A tracestate that is too long or not ASCII is ignored."""
    states = [["a=1", "b=2"], ["a=" + "x" * 511], ["a=\u00e9"], [""], []]
    requests = [[("traceparent", TRACE), *(("tracestate", one) for one in several)] for several in states]
    started = await executions_of(*requests)
    assert [(one.traceparent, one.tracestate) for one in started] == [(TRACE, "a=1,b=2"), *[(TRACE, None)] * 4]


async def executions_of(*requests: list[tuple[str, str]]) -> list[ExecutionStarted]:
    """Return the event of each request, given by its headers, to an embedded FaaS. Its engine need not be ready."""
    seen: list[Any] = []
    async with LocalFaaS(["js"], workers=1, telemetry=[seen.append]) as faas, aiohttp.ClientSession() as session:
        body = {"language": "javascript", "code": "1"}
        for headers in requests:
            async with session.post(f"{faas.url}/run_code", json=body, headers=CIMultiDict(headers)) as response:
                assert response.status in (200, 503)
    return [event for event in seen if isinstance(event, ExecutionStarted)]


@pytest.mark.parametrize("kind", [CallStarted, AttemptStarted, AttemptFinished, LimitChanged, EndpointChanged])
@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt])
async def test_a_sink_that_raises_a_base_exception_leaks_no_permit(
    kind: type[Event], error: type[BaseException]
) -> None:
    """The exception ends the call, the permit is released, and the error is counted."""

    def sink(event: Event) -> None:
        if isinstance(event, kind):
            raise error

    options = {"breaker": BreakerSettings(consecutive_failures=1), "retry": RetrySettings(max_attempts=1)}
    async with FakeFaaS() as fake, manager_for(fake.url, telemetry=[sink], **options) as manager:
        fake.script(Reply.crash())
        with pytest.raises(error):
            await manager.run_code("1", "py")
        metrics = manager.get_metrics()
    assert (metrics.in_flight, metrics.total.in_flight) == (0, 0)
    assert [state.in_flight for state in metrics.states] == [0] * len(metrics.states)
    assert metrics.total.errors == {error.__name__: 1}


async def test_sinks_add_at_most_32_headers(serve: Serve) -> None:
    """Further headers are ignored, and the call succeeds."""
    faas = Recorder()
    sender = Sender({f"x-{number}": "1" for number in range(200)})
    async with manager_for(await serve(faas.handle), telemetry=[sender]) as manager:
        assert (await manager.run_code("1", "py")).ok
    assert len([name for name in faas.seen[0] if name.lower().removeprefix("x-").isdigit()]) == 32


class SelectiveSink:
    """A sink that is enabled for some types of events. With "fail", `is_enabled_for` raises."""

    def __init__(self, enabled: Any) -> None:
        self.enabled = enabled
        self.seen: list[type[Event]] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(type(event))

    def is_enabled_for(self, kind: type[Event]) -> bool:
        if self.enabled == "fail":
            raise ZeroDivisionError
        return kind in self.enabled


@pytest.mark.parametrize(("enabled", "created"), [((), ()), ((CallStarted,), (CallStarted,)), ("fail", ())])
async def test_events_without_subscribers_are_not_created(
    enabled: Any, created: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A sink decides with `is_enabled_for`. If that raises, the call still succeeds."""
    sink = SelectiveSink(enabled)
    async with FakeFaaS() as fake, manager_for(fake.url, telemetry=[sink]) as manager:
        assert (await manager.run_code("1", "py")).ok
    assert set(sink.seen) - {LimitChanged} == set(created)
    assert caplog.text.count("a telemetry sink failed") == (enabled == "fail")


KINDS = set(get_args(Event))


class FailingSink:
    """A sink that raises for one type of event."""

    def __init__(self, kind: type | None) -> None:
        self.kind = kind
        self.failures = 0
        self.seen: set[type[Event]] = set()

    def __call__(self, event: Event) -> None:
        self.seen.add(type(event))
        if self.kind is not None and isinstance(event, self.kind):
            self.failures += 1
            raise ZeroDivisionError(f"cannot take {event}")


async def test_failing_sinks_do_not_fail_calls(caplog: pytest.LogCaptureFixture) -> None:
    """Calls have the same results, all sinks get all events, and each sink that fails is logged once."""
    failing, good = [FailingSink(kind) for kind in (*sorted(KINDS, key=repr), object)], FailingSink(None)
    breaker = BreakerSettings(consecutive_failures=2, base_open_s=0.001, max_open_s=0.001)
    telemetry = [*failing, good]
    async with FakeFaaS() as fake, manager_for(fake.url, retry=QUICK, breaker=breaker, telemetry=telemetry) as manager:
        fake.script(Reply.overloaded("0"), Reply.crash(), Reply.crash(), Reply.ok("x"))
        calls = [manager.run_code("1", "py", idempotent=True), manager.run_code("1", "py")]
        ends = [type((await asyncio.gather(call, return_exceptions=True))[0]).__name__ for call in calls]
        assert ends == ["ServerError", "ExecutionResult"]
        fake.default = Reply(hang=True)
        call = asyncio.create_task(manager.run_code("1", "py"))
        await fake.wait_until(lambda: fake.in_flight == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        metrics = manager.get_metrics()
        assert (metrics.total.calls, metrics.in_flight, metrics.total.in_flight) == (3, 0, 0)
        assert caplog.text.count("a telemetry sink failed") == sum(sink.failures > 0 for sink in failing) > 5
    caplog.clear()
    for sink in failing:
        sink.failures = 0
    async with RuntimeManager.local(["js"], workers=1, telemetry=telemetry) as manager:
        assert (await manager.run_code("console.log(1)", "js")).stdout == "1\n"
        assert (await manager.validate_code("1", "js")).valid
    # The client and the FaaS share one dispatcher.
    assert caplog.text.count("a telemetry sink failed") == sum(sink.failures > 0 for sink in failing) > 5
    await discover_and_leave(telemetry)
    assert all(sink.seen == KINDS for sink in telemetry)
