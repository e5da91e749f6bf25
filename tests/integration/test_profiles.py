"""Profiles of endpoints are requested once from `/health`, shared by all calls, and kept until there is another."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, strategies as st

from faasrt import (
    ConnectError,
    DeadlineExceededError,
    InvalidRequestError,
    LimiterSettings,
    Outcome,
    ProtocolError,
    RejectedError,
    RetrySettings,
    RuntimeFactory,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    Settings,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt.protocol.health import EndpointProfile, HealthReport, read_profile
from faasrt.testing import FakeFaaS
from faasrt.transport.http import HttpClient
from faasrt.transport.profile_cache import UNKNOWN_S, ProfileCache
from support.helpers import PATIENT, Clock, Serve, fast_forward, manager_for
from support.served import until

LOSSLESS = {"status": "healthy", "capabilities": {"lossless": True, "enforces_timeouts": True}}


class Server:
    """A server that counts requests to `/health` and programs with or without envelope, and sends the given answers."""

    def __init__(self, health: Any = LOSSLESS, health_status: int = 200) -> None:
        self.health, self.health_status = health, health_status
        self.probes = self.plain = self.enveloped = 0
        self.status = 200
        self.answer: dict[str, Any] = {"output": {"stdout": "x"}}
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
        if request.path == "/validate_code":
            await asyncio.sleep(self.delay_s)
            return web.json_response({"valid": True, "diagnostics": [], "checked_by": "x"}, status=self.status)
        self.timeouts_ms.append(fields["timeout"])
        await asyncio.sleep(self.delay_s)
        if "faasrt" in fields["code"]:
            self.enveloped += 1
        else:
            self.plain += 1
        return web.json_response(self.answer, status=self.status)

    async def wait_for_programs(self, count: int) -> None:
        await until(lambda: len(self.timeouts_ms) == count)

    async def manager(self, serve: Serve, **options: Any) -> RuntimeManager:
        return manager_for(await serve(self.handle, "/{path:.*}"), **options)


async def test_concurrent_callers_request_health_once(serve: Serve) -> None:
    """A hundred concurrent calls share one request to `/health`."""
    server = Server()
    async with await server.manager(serve) as manager:
        await asyncio.gather(*(manager.run_code("1", "python") for _ in range(100)))
    assert (server.probes, server.plain, server.enveloped) == (1, 100, 0)


@pytest.mark.parametrize(
    ("health", "status", "enveloped"),
    [
        (LOSSLESS, 200, False),
        (LOSSLESS, 503, False),  # a server that starts up reports its capabilities, too
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
async def test_only_lossless_servers_get_programs_without_envelope(
    serve: Serve, health: Any, status: int, enveloped: bool
) -> None:
    """An invalid answer of `/health` is not an error of the call."""
    server = Server(health, status)
    async with await server.manager(serve) as manager:
        for _ in range(2):
            assert (await manager.run_code("1", "python")).ok
    assert (server.probes, server.plain, server.enveloped) == (1, 0 if enveloped else 2, 2 if enveloped else 0)


COMPILES = {**LOSSLESS, "languages": {"python": {}, "cpp": {"compile_limit_s": 30}}}


@pytest.mark.parametrize(
    ("health", "status"),
    [
        ("<html>", 502),
        ("<html>", 200),
        ("", 401),
        ({"detail": "slow down"}, 429),
        ({"detail": "starting"}, 503),
        ("x" * 1_000_000, 200),
    ],
)
async def test_a_failed_health_report_does_not_say_which_languages_run(serve: Serve, health: Any, status: int) -> None:
    """The call can be repeated, and the next one requests the report again."""
    server = Server(health, status)
    url, retry = await serve(server.handle, "/{path:.*}"), RetrySettings(connect_retry_s=0)
    async with RuntimeManager.from_url({"cpp": url}, retry=retry) as manager:
        with pytest.raises(ConnectError, match="no answer to GET /health that names the languages") as caught:
            await manager.run_code("int main() {}", "cpp")
        assert caught.value.sent == "no"
        server.health, server.health_status = COMPILES, 200
        assert (await manager.run_code("int main() {}", "cpp")).ok


async def test_a_slow_failure_is_requested_again_for_a_compiled_language(serve: Serve, clock: Clock) -> None:
    """Programs of other languages are sent without a report in the meantime."""
    server = Server({"detail": "starting"}, 503)
    server.release.clear()
    settings = Settings.from_url(
        await serve(server.handle, "/{path:.*}"), timeouts=PATIENT, retry=RetrySettings(max_attempts=1)
    )
    async with RuntimeManager(RuntimeFactory(settings, clock=clock)) as manager:
        assert (await fast_forward(clock, manager.run_code("1", "python"))).ok
        for probes in (2, 3):
            with pytest.raises(ConnectError, match="no answer to GET /health that names the languages"):
                await fast_forward(clock, manager.run_code("int main() {}", "cpp"))
            assert (await manager.run_code("1", "python")).ok
            assert server.probes == probes
        server.release.set()
        server.health, server.health_status = COMPILES, 200
        assert (await manager.run_code("int main() {}", "cpp")).ok


async def test_validation_does_not_need_the_report(serve: Serve, clock: Clock) -> None:
    """A server that does not answer `/health` is asked once."""
    server = Server()
    server.release.clear()
    settings = Settings.from_url(await serve(server.handle, "/{path:.*}"), timeouts=PATIENT)
    async with RuntimeManager(RuntimeFactory(settings, clock=clock)) as manager:
        assert (await fast_forward(clock, manager.validate_code("int main() {}", "cpp"))).valid
        for _ in range(2):
            assert (await manager.validate_code("int main() {}", "cpp")).valid
        server.release.set()
    assert server.probes == 1


async def test_concurrent_calls_share_a_report_that_lacks_the_language(serve: Serve) -> None:
    """Each of them is refused, although the first one that is refused forgets the report."""
    server = Server()
    url = await serve(server.handle, "/{path:.*}")
    async with RuntimeManager.from_url(url, retry=RetrySettings(max_attempts=1)) as manager:
        calls = [manager.run_code("int main() {}", "cpp") for _ in range(4)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, UnsupportedLanguageError)


async def test_a_missing_toolchain_is_named_until_it_is_installed(serve: Serve) -> None:
    """The error has the reason in the health report. The next call requests the report again."""
    server = Server({**LOSSLESS, "missing": {"cpp": "g++ is not installed on the server", "go": 5}})
    url = await serve(server.handle, "/{path:.*}")
    async with RuntimeManager.from_url(url) as manager:
        with pytest.raises(
            UnsupportedLanguageError, match="does not run go programs: it does not list the language; `"
        ):
            await manager.run_code("x", "go")
        message = f"does not run cpp programs: g.. is not installed on the server; `faasrt languages --url {url}`"
        with pytest.raises(UnsupportedLanguageError, match=message):
            await manager.run_code("int main() {}", "cpp")
        server.health = COMPILES
        assert (await manager.run_code("int main() {}", "cpp")).ok


@pytest.mark.parametrize("options", [{}, {"stdin": "a"}, {"argv": ["a"]}, {"displays": True}], ids=str)
async def test_a_program_in_a_language_that_is_not_listed_is_not_sent(serve: Serve, options: dict[str, Any]) -> None:
    """The error says so, whatever the program needs, also for a session. Another replica that lists it gets it."""
    listed = {"input": ["stdin", "argv"], "displays": True, "sessions": ["run"]}
    lacking = Server({**LOSSLESS, "languages": {"python": listed}, "missing": {"typescript": "deno is not installed"}})
    running = Server({**LOSSLESS, "languages": {"typescript": listed}})
    urls = [await serve(server.handle, "/{path:.*}") for server in (lacking, running)]
    message = "does not run typescript programs: deno is not installed; `faasrt languages"
    async with RuntimeManager.from_url(urls[0]) as manager:
        with pytest.raises(UnsupportedLanguageError, match=message):
            await manager.run_code("let a", "typescript", **options)
        with pytest.raises(UnsupportedLanguageError, match=message):
            async with manager.session("typescript"):
                pass
    async with RuntimeManager.from_url({"typescript": urls}) as manager:
        for _ in range(10):
            assert (await manager.run_code("let a", "typescript", **options)).ok
    assert (lacking.plain, running.plain) == (0, 10)


async def test_replicas_of_different_kinds(serve: Serve) -> None:
    """A call goes to a replica that can run its program. It fails only if there is none, and nothing was sent."""
    plain, compiling = Server(), Server(COMPILES)
    urls = [await serve(server.handle, "/{path:.*}") for server in (plain, compiling)]
    async with RuntimeManager.from_url({"cpp": urls}) as manager:
        for _ in range(10):
            assert (await manager.run_code("int main() {}", "cpp")).endpoint == urls[1]
        assert (plain.plain, plain.probes, compiling.plain) == (0, 1, 10)
    async with RuntimeManager.from_url({"go": urls}) as manager:
        with pytest.raises(UnsupportedLanguageError, match="does not run go programs"):
            await manager.run_code("x", "go")
        assert manager.get_metrics().in_flight == 0


async def test_validation_waits_for_the_compiler(serve: Serve, clock: Clock) -> None:
    """The server may compile for longer than programs may run."""
    server = Server(COMPILES)
    server.delay_s = 40
    settings = Settings.from_url(
        await serve(server.handle, "/{path:.*}"), timeouts=PATIENT, sandbox=SandboxConfig(timeout_limit_s=5)
    )
    async with RuntimeManager(RuntimeFactory(settings, clock=clock)) as manager:
        assert (await fast_forward(clock, manager.validate_code("int main() {}", "cpp"))).valid
        with pytest.raises(DeadlineExceededError):
            await fast_forward(clock, manager.validate_code("let x", "js"))
    assert server.probes == 1


async def test_a_server_that_starts_during_a_call_gets_programs_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It listens just after `/health` was refused. A program in an envelope could lose output there."""
    get_health = HttpClient.get_health
    async with FakeFaaS() as fake:

        async def start_after_refusal(client: HttpClient, endpoint: str) -> Any:
            try:
                return await get_health(client, endpoint)
            except ConnectError:
                await fake.up()
                raise

        monkeypatch.setattr(HttpClient, "get_health", start_after_refusal)
        fake.down()
        async with manager_for(fake.url, retry=RetrySettings(base_delay_s=0.001)) as manager:
            result = await manager.run_code("1", "python")
    assert (result.outcome, result.attempts) == (Outcome.OK, 2)
    assert [request["code"] for request in fake.requests] == ["1"]


@pytest.mark.parametrize(("mode", "plain", "probes"), [("never", 1, 0), ("always", 0, 1)])
async def test_envelope_always_and_never(serve: Serve, mode: str, plain: int, probes: int) -> None:
    """With envelope="always" or "never", the capabilities of the server do not matter."""
    server = Server()
    async with await server.manager(serve, envelope=mode) as manager:
        await manager.run_code("1", "python")
    assert (server.plain, server.enveloped, server.probes) == (plain, 1 - plain, probes)


async def test_health_is_requested_again_after_a_failure(serve: Serve) -> None:
    """After a ServerError, there may be another server at the URL. A RejectedError is not such a failure."""
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


PYODIDE = {"version": "pyodide-faas-v1.0.0", "languages": {"python": {"input": ["stdin"]}}}
"""An answer to a plain program with an input that the server reads needs no frame."""

COMPILES_INPUT = {**LOSSLESS, "languages": {"cpp": {"compile_limit_s": 30, "input": ["stdin"]}}}


@pytest.mark.parametrize("health", ["hangs", "502", "refuses"])
@pytest.mark.parametrize(("report", "language", "delay_s"), [(COMPILES_INPUT, "cpp", 0), (PYODIDE, "python", 60)])
async def test_a_profile_holds_until_there_is_another(
    serve: Serve, health: str, report: Any, language: str, delay_s: float, clock: Clock
) -> None:
    """A server that fails, and whose `/health` then fails, still compiles, and still has the time for its start."""
    server = Server(report)
    server.answer = {"output": {"stdout": "x"}, "outcome": "OK"}
    settings = Settings.from_url(
        {language: await serve(server.handle, "/{path:.*}")},
        timeouts=TimeoutSettings(grace_s=30, startup_s=300, health_s=10),
        envelope="never",
        retry=RetrySettings(max_attempts=1),
    )
    async with RuntimeManager(RuntimeFactory(settings, clock=clock)) as manager:
        server.status = 500
        with pytest.raises(ServerError):
            await manager.run_code("1", language, stdin="x")
        server.status, server.delay_s = 200, delay_s
        if health == "hangs":
            server.release.clear()
        else:
            server.health, server.health_status = ("<html>", 502) if health == "502" else ({}, 429)
        call = manager.run_code("1", language, stdin="x", timeout_ms=100)
        assert (await fast_forward(clock, call)).ok
        assert server.probes == 2
        server.release.set()


async def test_calls_are_not_abandoned_on_a_server_whose_health_hangs(serve: Serve, clock: Clock) -> None:
    """The last report, which says `cancels_on_disconnect`, stays in use while `/health` hangs."""
    server = Server({**LOSSLESS, "capabilities": {"lossless": True, "cancels_on_disconnect": True}})
    async with await server.manager(serve, clock=clock) as manager:
        assert (await manager.run_code("1", "python")).ok
        server.answer, server.delay_s = {"output": {}, "outcome": "OK"}, 600
        server.release.clear()
        for _ in range(3):
            with pytest.raises(DeadlineExceededError):
                await fast_forward(clock, manager.run_code("1", "python", timeout_ms=30_000))
        assert [state.abandoned for state in manager.get_metrics().states] == [0]
        server.release.set()


async def test_a_server_of_another_kind_is_noticed_while_health_hangs(serve: Serve, clock: Clock) -> None:
    """An answer without an outcome does not come from a lossless server. Then the profile is unknown."""
    server = Server(COMPILES)
    async with await server.manager(serve, clock=clock) as manager:
        server.status = 500
        with pytest.raises(ServerError):
            await manager.run_code("1", "python")
        server.status = 200
        server.release.clear()
        with pytest.raises(ProtocolError, match="another kind of server has replaced") as caught:
            await fast_forward(clock, manager.run_code("1", "python"))
        assert caught.value.sent == "yes"
        assert (await manager.run_code("1", "python")).ok
        server.release.set()
    assert (server.probes, server.plain, server.enveloped) == (2, 2, 1)


async def test_hanging_health_is_requested_once(serve: Serve, clock: Clock) -> None:
    """The first call waits for `/health` for up to `health_s`. Then all programs are sent with an envelope."""
    server = Server()
    server.release.clear()
    async with await server.manager(serve, clock=clock) as manager:
        assert (await fast_forward(clock, manager.run_code("1", "python"))).ok
        assert (await manager.run_code("1", "python")).ok
        server.release.set()
    assert (server.probes, server.enveloped) == (1, 2)


async def test_hanging_health_does_not_shorten_the_timeout(serve: Serve, clock: Clock) -> None:
    """The time of the attempt starts after the request to `/health`, so the program has its full timeout and grace."""
    server = Server()
    server.release.clear()
    server.delay_s = 20
    async with await server.manager(serve, clock=clock) as manager:
        result = await fast_forward(clock, manager.run_code("1", "python", timeout_ms=100))
        server.release.set()
    assert (result.ok, result.attempts) == (True, 1)
    assert server.timeouts_ms == [100]


async def test_concurrent_callers_share_a_hanging_health_request(serve: Serve, clock: Clock) -> None:
    """The wait for `/health` does not count as time in the queue."""
    server = Server()
    server.release.clear()
    async with await server.manager(serve, clock=clock, limiter=LimiterSettings(queue_timeout_s=20)) as manager:
        languages = ("python", "js", "python", "ts", "python")
        calls = asyncio.gather(*(manager.run_code("1", language) for language in languages))
        results = await fast_forward(clock, calls)
        server.release.set()
    assert all(result.ok for result in results)
    assert server.probes == 1


async def test_calls_end_if_health_and_programs_hang(serve: Serve, clock: Clock) -> None:
    """Each call ends at its deadline. Only the first call waits for `/health`."""
    server = Server()
    server.release.clear()
    server.delay_s = 600
    timeouts = TimeoutSettings(grace_s=5, health_s=30)
    async with await server.manager(serve, clock=clock, timeouts=timeouts) as manager:
        for programs in (1, 2, 3):
            call = asyncio.create_task(manager.run_code("1", "python", timeout_ms=100))
            await until(lambda: server.probed.is_set())
            if programs == 1:
                clock.advance(31)
            await server.wait_for_programs(programs)
            clock.advance(6)
            with pytest.raises(DeadlineExceededError) as caught:
                await call
            assert (caught.value.attempts, caught.value.sent) == (1, "maybe")
    assert server.probes == 1


class HealthRequests:
    """`ProfileCache` with simulated requests to `/health`, and a clock that the test sets."""

    def __init__(self) -> None:
        self.now, self.count, self.takes_s = 100.0, 0, 0.0
        self.answer: EndpointProfile | None = None
        self.hangs = False
        self.profiles = ProfileCache(self.ask, lambda: self.now)

    async def ask(self, endpoint: str) -> HealthReport:
        self.count += 1
        self.now += self.takes_s
        if self.hangs:
            await asyncio.Event().wait()
        return HealthReport(self.answer)

    async def get(self) -> EndpointProfile:
        known = self.profiles.cached("http://faas")
        return known or await self.profiles.fetch("http://faas", 0.01 if self.hangs else 10)


async def test_failed_health_requests_are_not_repeated_at_once() -> None:
    """After a request without an answer, `/health` is requested again only after UNKNOWN_S, even if calls fail."""
    requests = HealthRequests()
    requests.hangs = True
    for _ in range(3):
        assert await requests.get() == EndpointProfile()
        requests.profiles.mark_stale("http://faas")
    assert requests.count == 1
    requests.now += UNKNOWN_S
    assert requests.profiles.cached("http://faas") is None
    requests.hangs, requests.answer = False, EndpointProfile(lossless=True)
    assert await requests.get() == requests.answer
    assert requests.count == 2
    requests.now += 1_000_000
    assert await requests.get() == requests.answer  # a profile is kept until the endpoint fails
    requests.profiles.mark_stale("http://faas")
    await requests.get()
    assert requests.count == 3


@pytest.mark.parametrize(("takes_s", "count"), [(0.01, 2), (3.0, 1)], ids=["promptly", "slowly"])
async def test_health_is_requested_again_after_a_prompt_failure(takes_s: float, count: int) -> None:
    """After a refused connection, the next call requests `/health` again. After a slow failure, it does not."""
    requests = HealthRequests()
    requests.takes_s = takes_s
    for _ in range(2):
        assert await requests.get() == EndpointProfile()
    assert requests.count == count


async def test_health_is_requested_again_after_a_failed_validation(serve: Serve) -> None:
    server = Server()
    async with await server.manager(serve) as manager:
        await manager.run_code("1", "python")
        server.status = 500
        with pytest.raises(ServerError):
            await manager.validate_code("let x", "js")
        server.status = 200
        await manager.run_code("1", "python")
    assert server.probes == 2


async def test_nothing_is_kept_about_an_endpoint_that_left_during_its_health_report() -> None:
    """Callers that wait get the profile of an unknown server, without further requests."""
    requests = HealthRequests()
    requests.hangs = True
    callers = [asyncio.create_task(requests.get()) for _ in range(3)]
    while not requests.count:
        await asyncio.sleep(0)
    assert "http://faas" in requests.profiles
    requests.profiles.discard("http://faas")
    assert await asyncio.gather(*callers) == [EndpointProfile()] * 3
    assert requests.count == 1
    assert "http://faas" not in requests.profiles


async def test_another_caller_requests_health_after_a_cancellation(serve: Serve) -> None:
    """If the caller that waits for `/health` is cancelled, the next caller requests it, and no permit is lost."""
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
        assert manager.get_metrics().in_flight == 0
    assert (server.probes, server.plain) == (2, 1)


REFERENCE = {
    "status": "healthy",
    "version": "js-faas-v1.0.0",
}


async def test_unknown_servers_may_answer_without_a_frame(serve: Serve) -> None:
    """Then the outcome of a program is that of the answer. A function call is CRASHED, because it has no value."""
    server = Server({"status": "healthy"})
    async with await server.manager(serve) as manager:
        assert (await manager.run_code("1", "python")).outcome is Outcome.OK
        called = await (await manager.get_runtime("python")).call_function("def f(): pass", "f")
        assert called.outcome is Outcome.CRASHED


async def test_reference_servers_must_answer_with_a_frame(serve: Serve) -> None:
    """A reference server returns a frame of every program that it starts. An answer without one is a ServerError."""
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


@pytest.mark.parametrize(
    ("level", "advice"),
    [
        (
            {"level": "filters", "level_remedy": "run it as root"},
            "the level of its jail is filters. To get a higher one: run it as root",
        ),
        ({"level": "filters", "level_remedy": ""}, "the level of its jail is filters. The highest is namespaces"),
        ({"level": "namespaces"}, "use another FaaS, such as the embedded one"),
        ({"level": 1, "level_remedy": 2}, "use another FaaS, such as the embedded one"),
    ],
)
async def test_a_refusal_of_files_names_the_level_and_how_to_get_a_higher_one(
    serve: Serve, level: dict[str, Any], advice: str
) -> None:
    """If the server says which level of the jail it has. Other servers cannot do better."""
    server = Server({**LOSSLESS, "languages": {"javascript": {"input": ["stdin"], **level}}})
    async with await server.manager(serve) as manager:
        with pytest.raises(InvalidRequestError) as caught:
            await manager.run_code("1", "js", files={"a": "b"})
    assert str(caught.value).endswith(f"cannot pass files to javascript programs: {advice}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["lossless", "enforces_timeouts", "cancels_on_disconnect", "timeout_limit_s", "max_output_bytes"]
)


@given(
    health=st.dictionaries(
        st.sampled_from(["version", "capabilities", "limits", "x"]), JSON | st.dictionaries(NAMES, JSON), max_size=4
    )
)
def test_read_profile_accepts_any_answer(health: dict[str, Any]) -> None:
    """Values of wrong types are ignored."""
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
