"""What an endpoint is: asked once, shared, forgotten after a failure; and no health report does any harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings, strategies as st

from faasrt import (
    DeadlineExceededError,
    LimiterSettings,
    Outcome,
    RejectedError,
    RuntimeManager,
    ServerError,
    TimeoutSettings,
)
from faasrt.protocol.health import EndpointProfile, read_profile
from faasrt.transport.endpoint import UNKNOWN_S, Profiles
from support.helpers import manager_for

Serve = Callable[..., Awaitable[str]]
LOSSLESS = {"status": "healthy", "capabilities": {"lossless": True, "enforces_timeouts": True}}


class Server:
    """Counts health probes and plain and enveloped programs, and sends the given answers."""

    def __init__(self, health: Any = LOSSLESS, health_status: int = 200) -> None:
        self.health, self.health_status = health, health_status
        self.probes = self.plain = self.enveloped = 0
        self.status = 200
        self.delay_s = 0.0
        self.timeouts_ms: list[int] = []
        self.probed, self.release = asyncio.Event(), asyncio.Event()
        self.release.set()

    async def handle(self, request: web.Request) -> web.Response:
        if request.path == "/health":
            self.probes += 1
            self.probed.set()
            await self.release.wait()
            if isinstance(self.health, str):
                return web.Response(text=self.health, status=self.health_status)
            return web.json_response(self.health, status=self.health_status)
        fields = await request.json()
        self.timeouts_ms.append(fields["timeout"])
        await asyncio.sleep(self.delay_s)
        if "faasrt" in fields["code"]:
            self.enveloped += 1
        else:
            self.plain += 1
        return web.json_response({"output": {"stdout": "x"}}, status=self.status)

    async def manager(self, serve: Serve, **options: Any) -> RuntimeManager:
        return manager_for(await serve(self.handle, "/{path:.*}"), **options)


async def test_a_thousand_callers_ask_once(serve: Serve) -> None:
    """Those that come first wait for the one answer."""
    server = Server()
    async with await server.manager(serve) as manager:
        await asyncio.gather(*(manager.run_code("1", "python") for _ in range(1_000)))
    assert (server.probes, server.plain, server.enveloped) == (1, 1_000, 0)


@pytest.mark.parametrize(
    ("health", "status", "enveloped"),
    [
        (LOSSLESS, 200, False),
        (LOSSLESS, 503, False),  # it starts: it still is what it says
        ({"status": "healthy"}, 200, True),
        ({"capabilities": {"lossless": "yes"}}, 200, True),
        ({"capabilities": [1]}, 200, True),
        ("<html>", 200, True),
        ("", 404, True),
        ('{"capabilities": {"lossless": true}, "x": NaN}', 200, True),
        ("[" * 100_000, 200, True),
        ("x" * 1_000_000, 200, True),
    ],
)
async def test_what_a_health_report_means(serve: Serve, health: Any, status: int, enveloped: bool) -> None:
    """Only a server that calls itself lossless gets plain requests; no report is an error of the call."""
    server = Server(health, status)
    async with await server.manager(serve) as manager:
        for _ in range(2):
            assert (await manager.run_code("1", "python")).ok
    assert (server.probes, server.plain, server.enveloped) == (1, 0 if enveloped else 2, 2 if enveloped else 0)


@pytest.mark.parametrize(("mode", "plain", "probes"), [("never", 1, 0), ("always", 0, 1)])
async def test_modes(serve: Serve, mode: str, plain: int, probes: int) -> None:
    """Neither "always" nor "never" listens to what the server calls itself."""
    server = Server()
    async with await server.manager(serve, envelope=mode) as manager:
        await manager.run_code("1", "python")
    assert (server.plain, server.enveloped, server.probes) == (plain, 1 - plain, probes)


async def test_a_failure_is_a_reason_to_ask_again(serve: Serve) -> None:
    """After an endpoint has failed, another server may stand there; a refusal is no failure."""
    server = Server()
    async with await server.manager(serve) as manager:
        await manager.run_code("1", "python")
        server.status = 400
        with pytest.raises(RejectedError):
            await manager.run_code("1", "python")
        assert server.probes == 1
        server.status = 500
        with pytest.raises(ServerError):
            await manager.run_code("1", "python")
        server.status, server.health = 200, {}
        await manager.run_code("1", "python")
    assert (server.probes, server.plain, server.enveloped) == (2, 3, 1)


async def test_a_health_report_that_hangs(serve: Serve) -> None:
    """It is waited for once, for a part of the call's own time, and then the program is sent."""
    server = Server()
    server.release.clear()
    timeouts = TimeoutSettings(grace_s=0.4, health_s=0.2)
    async with await server.manager(serve, timeouts=timeouts) as manager:
        for _ in range(2):
            assert (await manager.run_code("1", "python", timeout_ms=100)).ok
        server.release.set()
    assert (server.probes, server.enveloped) == (1, 2)


async def test_a_health_report_that_hangs_costs_the_program_none_of_its_time(serve: Serve) -> None:
    """The attempt's clock starts after the probe: timeout and grace are there in full."""
    server = Server()
    server.release.clear()
    server.delay_s = 1.1
    timeouts = TimeoutSettings(grace_s=1.5, health_s=0.8)  # half the attempt, as it was, would leave 0.8 s
    async with await server.manager(serve, timeouts=timeouts) as manager:
        result = await manager.run_code("1", "python", timeout_ms=100)
        server.release.set()
    assert (result.ok, result.attempts) == (True, 1)
    assert server.timeouts_ms == [100]


async def test_callers_behind_a_health_report_that_hangs(serve: Serve) -> None:
    """All of them share the one probe, and it does not count as waiting in the queue."""
    server = Server()
    server.release.clear()
    options = {"timeouts": TimeoutSettings(health_s=0.5), "limiter": LimiterSettings(queue_timeout_s=0.1)}
    async with await server.manager(serve, **options) as manager:
        languages = ("python", "js", "python", "ts", "python")
        results = await asyncio.gather(*(manager.run_code("1", language) for language in languages))
        server.release.set()
    assert all(result.ok for result in results)
    assert server.probes == 1


async def test_everything_hangs(serve: Serve) -> None:
    """The call ends by its deadline after the probe, and failing makes no later call wait for the probe again."""
    probes = 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal probes
        probes += request.path == "/health"
        await asyncio.Event().wait()
        raise AssertionError

    url = await serve(handle, "/{path:.*}")
    async with manager_for(url, timeouts=TimeoutSettings(grace_s=0.1, health_s=0.2)) as manager:
        for _ in range(3):
            with pytest.raises(DeadlineExceededError) as caught:
                await manager.run_code("1", "python", timeout_ms=100)
            assert (caught.value.attempts, caught.value.sent) == (1, "maybe")
    assert probes == 1


class Asked:
    """Endpoints that answer as the test says, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now, self.count, self.takes_s = 100.0, 0, 0.0
        self.answer: EndpointProfile | None = None
        self.hangs = False
        self.profiles = Profiles(self.ask, lambda: self.now)

    async def ask(self, endpoint: str) -> EndpointProfile | None:
        self.count += 1
        self.now += self.takes_s
        if self.hangs:
            await asyncio.Event().wait()
        return self.answer

    async def get(self) -> EndpointProfile:
        return await self.profiles.get("http://faas", 0.01 if self.hangs else 10)


async def test_a_probe_in_vain_is_remembered_for_a_while() -> None:
    """Failing calls do not bring the probe back; time does."""
    asked = Asked()
    asked.hangs = True
    for _ in range(3):
        assert await asked.get() == EndpointProfile()
        asked.profiles.forget("http://faas")
    assert asked.count == 1
    asked.now += UNKNOWN_S
    assert asked.profiles.cached("http://faas") is None
    asked.hangs, asked.answer = False, EndpointProfile(lossless=True)
    assert await asked.get() == asked.answer
    assert asked.count == 2
    asked.now += 1_000_000
    assert await asked.get() == asked.answer  # what it said holds until it fails
    asked.profiles.forget("http://faas")
    await asked.get()
    assert asked.count == 3


@pytest.mark.parametrize(("takes_s", "count"), [(0.01, 2), (3.0, 1)], ids=["promptly", "slowly"])
async def test_an_endpoint_that_cannot_be_reached(takes_s: float, count: int) -> None:
    """A refused connection is no reason to wait: it may be back in a moment. One that takes long to fail is."""
    asked = Asked()
    asked.takes_s = takes_s
    for _ in range(2):
        assert await asked.get() == EndpointProfile()
    assert asked.count == count


async def test_cancelled_while_it_asks(serve: Serve) -> None:
    """The next in line asks in place of a caller that is cancelled, and nothing stays behind."""
    server = Server()
    server.release.clear()
    async with await server.manager(serve) as manager:
        first = asyncio.create_task(manager.run_code("1", "python"))
        await server.probed.wait()
        second = asyncio.create_task(manager.run_code("2", "python"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        server.release.set()
        assert (await second).ok
        assert (await manager.get_runtime("python"))._transport.in_flight == 0
    assert (server.probes, server.plain) == (2, 1)


REFERENCE = {
    "status": "healthy",
    "version": "js-faas-v1.0.0",
}


async def test_an_unknown_server_answers_without_a_frame(serve: Serve) -> None:
    """The answer is all there is to judge a program by; a function call without a frame has no value."""
    server = Server({"status": "healthy"})
    async with await server.manager(serve) as manager:
        assert (await manager.run_code("1", "python")).outcome is Outcome.OK
        called = await (await manager.get_runtime("python")).call_function("def f(): pass", "f")
        assert called.outcome is Outcome.CRASHED


async def test_a_reference_server_answers_without_a_frame(serve: Serve) -> None:
    """It returns the announcement of every guest program that it starts, so it did not start this one."""
    server = Server(REFERENCE)
    async with await server.manager(serve) as manager:
        runtime = await manager.get_runtime("python")
        for call in (
            manager.run_code("1", "python"),
            runtime.call_function("def f(): pass", "f"),
            runtime.run_cases("def f(): pass", "f", [(), ()]),
        ):
            with pytest.raises(ServerError, match="did not start its interpreter") as caught:
                await call
            assert (caught.value.status, caught.value.sent) == (200, "yes")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["lossless", "enforces_timeouts", "cancels_on_disconnect", "timeout_limit_s", "max_output_bytes"]
)


@settings(max_examples=300, deadline=None)
@given(
    health=st.dictionaries(
        st.sampled_from(["version", "capabilities", "limits", "x"]), JSON | st.dictionaries(NAMES, JSON), max_size=4
    )
)
def test_any_report_gives_a_profile(health: dict[str, Any]) -> None:
    """Types that are wrong count as not said."""
    profile = read_profile(health)
    assert isinstance(profile, EndpointProfile)
    for number in (profile.timeout_limit_ms, profile.max_output_bytes):
        assert number is None or (isinstance(number, int) and number > 0)
    json.dumps(
        [
            profile.lossless,
            profile.enforces_timeouts,
            profile.cancels_on_disconnect,
            profile.reference,
            profile.cold_start,
        ]
    )
