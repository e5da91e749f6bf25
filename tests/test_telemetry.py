"""Sinks: who gets the events, what they may send along, and that none of them fails a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from aiohttp import web

from faasrt import ConfigurationError, RuntimeFactory, RuntimeManager, Settings
from faasrt.events import CallFinished, Event

Serve = Callable[..., Awaitable[str]]


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
