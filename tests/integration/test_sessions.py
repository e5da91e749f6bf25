"""Sessions of the client: over real HTTP, at a server whose programs can wait for events of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from faasrt import (
    BreakerSettings,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    DiscoverySettings,
    InvalidRequestError,
    LimiterSettings,
    Outcome,
    OverloadedError,
    ProtocolError,
    RejectedError,
    RetrySettings,
    RuntimeClosedError,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    ServiceError,
    Session,
    SessionLostError,
    Settings,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt.local import LocalFaaS
from faasrt.local.engines.session import EngineSession, EngineSessionOptions
from faasrt.telemetry.events import AttemptStarted, CallFinished, CallStarted, EndpointChanged, Event, ReplicasChanged
from faasrt.testing import FakeFaaS, FaultProxy, Reply, Toxics
from support.helpers import NO_WAIT, PATIENT, manager_for
from support.served import until
from support.sessions import EvalSession

pytestmark = pytest.mark.asyncio(loop_scope="session")
WAIT = "session.reached = True; await asyncio.Event().wait()"
"""A program that ends only when it is interrupted."""


class Server:
    """A server, the sessions of its engine, and the latest of them."""

    def __init__(self, url: str, sessions: list[EvalSession]) -> None:
        self.url, self.sessions = url, sessions

    @property
    def last(self) -> EvalSession:
        return self.sessions[-1]

    async def until_runs(self, session: EvalSession | None = None) -> None:
        """Wait until a session runs `WAIT`."""
        await until(lambda: getattr(session or self.last, "reached", False))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[Server]:
    opened: list[EvalSession] = []

    async def open_session(options: EngineSessionOptions) -> EngineSession:
        opened.append(EvalSession(options))
        return opened[-1]

    async with LocalFaaS(["python"], workers=2) as faas:
        await faas.wait_ready("python")
        engine = faas.engine("python")
        assert engine is not None
        engine.session_features = ("run", "fork", "files")
        engine.open_session = open_session  # type: ignore[method-assign]
        yield Server(faas.url, opened)


@pytest_asyncio.fixture(loop_scope="session")
async def manager(server: Server) -> AsyncIterator[RuntimeManager]:
    async with manager_for(server.url) as manager:
        yield manager


async def text_of(session: Session, code: str) -> str:
    return (await session.run_code(code)).stdout.strip()


async def test_variables_and_files_live_on_between_runs(server: Server, manager: RuntimeManager) -> None:
    """Each run has its own outcome, output and displays. The session ends with the block."""
    async with manager.session("python", files={"a.txt": "one"}) as session:
        assert (await session.run_code("x = 41")).outcome is Outcome.OK
        result = await session.run_code("print(x + 1); display(text_html='<b>', image_png=b'png')")
        assert (result.stdout, result.endpoint, result.attempts) == ("42\n", server.url, 1)
        assert (result.displays[0].html, result.displays[0].png) == ("<b>", b"png")
        assert (await session.run_code("1 / 0")).error.name == "ZeroDivisionError"  # type: ignore[union-attr]
        await session.write_files({"b/c.bin": b"\xff\x00", "a.txt": "two"})
        assert await session.read_files(["*.txt", "b/*"]) == {"a.txt": b"two", "b/c.bin": b"\xff\x00"}
        assert (session.language, session.endpoint) == ("python", server.url)
        assert repr(session) == f"<Session python at {server.url}>"
        assert session.id not in repr(session)
        assert not server.last.closed
    assert server.last.closed
    assert repr(session) == f"<Session python at {server.url} (closed)>"


async def test_a_runtime_has_sessions_too(server: Server, manager: RuntimeManager) -> None:
    runtime = await manager.get_runtime("python")
    async with runtime.session() as session:
        assert await text_of(session, "print(7)") == "7"
    assert server.last.closed


async def test_options_of_a_run(server: Server, manager: RuntimeManager) -> None:
    """The limits of a run are those of its session, unless it has its own. Its memory limit is that of the session."""
    sandbox = SandboxConfig(memory_limit_mb=100, timeout_limit_s=20, max_output_bytes=5_000)
    async with manager.session("python", sandbox=sandbox) as session:
        limits = server.last.options.limits
        assert (limits.memory_limit_mb, limits.timeout_ms, limits.max_output_bytes) == (100, 20_000, 5_000)
        result = await session.run_code(WAIT, timeout_ms=50, ext={"trace": "1"}, stdin="in", priority="high")
        assert (result.outcome, result.error.message) == (Outcome.TIMEOUT, "timeout after 50 ms (timeout_ms)")  # type: ignore[union-attr]
        [job] = server.last.jobs
        assert (job.input.stdin, job.limits.timeout_ms, job.limits.memory_limit_mb) == (b"in", 50, 100)
        lower = SandboxConfig(memory_limit_mb=64, timeout_limit_s=0.06, max_output_bytes=100)
        result = await session.run_code(WAIT, sandbox=lower)
        limits = server.last.jobs[-1].limits
        assert (limits.timeout_ms, limits.memory_limit_mb, limits.max_output_bytes) == (60, 100, 100)
        assert result.error.message == "timeout after 60 ms (timeout_ms)"  # type: ignore[union-attr]
        with pytest.raises(InvalidRequestError, match="at most the sandbox's limit of 20000 ms"):
            await session.run_code("1", timeout_ms=20_001)


BAD_SESSIONS: list[tuple[dict[str, Any], str]] = [
    ({"idle_timeout_s": 0}, "idle_timeout_s must be a number above 0 and at most 86400, got 0"),
    ({"idle_timeout_s": 86_401}, "idle_timeout_s must be"),
    ({"idle_timeout_s": True}, "idle_timeout_s must be"),
    ({"idle_timeout_s": float("nan")}, "idle_timeout_s must be"),
    ({"idle_timeout_s": "600"}, "idle_timeout_s must be"),
    ({"sandbox": {}}, "sandbox must be a SandboxConfig, got dict"),
    ({"files": {"../a": ""}}, "the path of a file must be a relative path"),
    ({"files": ["a"]}, "files must map paths to contents"),
]


@pytest.mark.parametrize(("options", "message"), BAD_SESSIONS)
async def test_wrong_options_of_a_session_are_refused_at_once(
    manager: RuntimeManager, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        manager.session("python", **options)


async def test_wrong_arguments_send_nothing(server: Server, manager: RuntimeManager) -> None:
    with pytest.raises(UnsupportedLanguageError, match="a manager has no default language"):
        manager.session(None)
    with pytest.raises(UnsupportedLanguageError):
        manager.session("no language")
    session = manager.session("python")
    with pytest.raises(InvalidRequestError, match="the session is not open: enter it with `async with`"):
        await session.run_code("1")
    with pytest.raises(InvalidRequestError, match="the session is not open"):
        _ = session.id
    await session.aclose()
    calls: list[tuple[Any, str]] = [
        (lambda: session.run_code(" "), "code must not be empty"),
        (lambda: session.run_code(1), "code must be a str, got int"),  # type: ignore[arg-type]
        (lambda: session.run_code("1", timeout_ms=0), "timeout_ms must be finite and above 0"),
        (lambda: session.run_code("1", stdin=1), "stdin must be a str or bytes"),  # type: ignore[arg-type]
        (lambda: session.run_code("1", ext={"a": 1}), "ext must map str to str"),  # type: ignore[dict-item]
        (lambda: session.run_code("1", priority=""), "priority must be"),  # type: ignore[arg-type]
        (lambda: session.fork(idle_timeout_s=-1), "idle_timeout_s must be"),
        (lambda: session.write_files({"/a": ""}), "is absolute"),
        (lambda: session.write_files("a"), "files must map"),  # type: ignore[arg-type]
        (lambda: session.read_files("*"), "patterns must be a sequence of strings"),
        (lambda: session.read_files(["../*"]), "a pattern in patterns must be a relative path"),
    ]
    async with session:
        before = manager.get_metrics().total.attempts
        for call, message in calls:
            with pytest.raises(InvalidRequestError, match=message):
                await call()
        with pytest.raises(InvalidRequestError, match="code must not be empty"):
            session.stream_code("")
        assert manager.get_metrics().total.attempts == before
        async with session:  # one that is open can be entered again
            pass
    for call, _ in calls[-1:]:
        with pytest.raises((InvalidRequestError, RuntimeClosedError)):
            await call()
    with pytest.raises(RuntimeClosedError, match="this session was closed: open another"):
        await session.run_code("1")
    with pytest.raises(RuntimeClosedError, match="this session was closed"):
        await session.interrupt()
    with pytest.raises(RuntimeClosedError, match="this session was closed"):
        async with session:
            pass
    await session.aclose()


@pytest.mark.parametrize("kind", ["{}", "piston+{}", "sandboxfusion+{}"])
async def test_servers_without_sessions_refuse(kind: str) -> None:
    """Nothing but the health report was requested."""
    async with FakeFaaS() as fake, RuntimeManager.from_url(kind.format(fake.url)) as manager:
        fake.health = {"languages": {"python": {"input": []}}}
        with pytest.raises(InvalidRequestError, match=r"has no sessions for python; faasrt/docs/sessions\.md names"):
            async with manager.session("python"):
                pass
        assert fake.requests == []
        assert manager.get_metrics().in_flight == 0


async def test_displays_need_a_server_that_returns_them(manager: RuntimeManager) -> None:
    """The native engine does. A server that does not gets no program."""
    result = await manager.run_code("6 * 7", "python", displays=True)
    assert [display.text for display in result.displays] == ["42"]
    assert result.to_dict()["displays"] == [{"data": {"text/plain": "42"}, "omitted": []}]
    assert (await manager.run_code("6 * 7", "python")).displays == ()
    with pytest.raises(TypeError, match="unexpected keyword argument 'displays'"):
        await manager.call_function("def f(): return 1", "f", language="python", displays=True)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequestError, match="displays must be True or False, got 1"):
        await manager.run_code("1", "python", displays=1)  # type: ignore[arg-type]
    async with FakeFaaS() as fake, RuntimeManager.from_url(fake.url) as other:
        fake.health = {"languages": {"python": {"input": []}}}
        with pytest.raises(
            InvalidRequestError, match="cannot return displays of python programs: the embedded FaaS returns"
        ):
            await other.run_code("1", "python", displays=True)
        assert fake.requests == []


async def test_a_server_that_is_down_may_return_displays(unused_tcp_port: int) -> None:
    """The call is tried again, as every call that did not reach its server, and does not blame its arguments."""
    async with manager_for(f"http://127.0.0.1:{unused_tcp_port}", retry=NO_WAIT) as manager:
        with pytest.raises(ConnectError, match="cannot connect: Connection refused") as down:
            await manager.run_code("1", "python", displays=True)
        assert down.value.sent == "no"


async def test_a_run_ends_when_its_session_is_closed() -> None:
    """It had begun, so the error is not that of a program that did not run."""
    async with (
        FakeFaaS() as fake,
        RuntimeManager.from_url(fake.url) as manager,
        manager.session("python") as session,
    ):
        fake.script(Reply(status=404, details="the session was closed", delay_s=1))
        run = asyncio.create_task(session.run_code("1"))
        await fake.wait_until(lambda: fake.in_flight == 1)
        await session.aclose()
        with pytest.raises(RuntimeClosedError, match="this session was closed while the call was in flight"):
            await run
        assert session.lost_reason == ""


async def test_runs_wait_for_their_turn_in_order(server: Server, manager: RuntimeManager) -> None:
    async with manager.session("python") as session:
        await session.run_code("order = []")
        runs = [asyncio.create_task(session.run_code("session.reached = True; await gate.wait(); order.append(0)"))]
        runs += [asyncio.create_task(session.run_code(f"order.append({n})")) for n in range(1, 20)]
        await server.until_runs()
        await asyncio.sleep(0)
        assert manager.get_metrics().in_flight == 1
        server.last.gate.set()
        assert all(result.ok for result in await asyncio.gather(*runs))
        assert await text_of(session, "print(order)") == str([*range(20)])


async def test_cancellation_interrupts_the_run(server: Server, manager: RuntimeManager) -> None:
    """The session stays, and the permit is returned. A run that waits for its turn is not sent."""
    async with manager.session("python") as session:
        run = asyncio.create_task(session.run_code(WAIT))
        await server.until_runs()
        waiting = asyncio.create_task(session.run_code("x = 1"))
        await asyncio.sleep(0)
        waiting.cancel()
        run.cancel()
        await asyncio.wait({run, waiting})
        assert run.cancelled()
        assert waiting.cancelled()
        assert manager.get_metrics().in_flight == 0
        assert (await session.run_code("print(x)")).error.name == "NameError"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["run_code", "fork", "read_files", "interrupt"])
async def test_cancellation_at_any_moment_returns_the_permit(
    server: Server, manager: RuntimeManager, name: str
) -> None:
    """Whatever the call waits for, the next one works, and nothing is left."""
    async with manager.session("python") as session:
        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "run_code": lambda: session.run_code("await asyncio.sleep(0.001)"),
            "fork": session.fork,
            "read_files": lambda: session.read_files(["*"]),
            "interrupt": session.interrupt,
        }
        for turns in range(25):
            tasks = [asyncio.create_task(calls[name]()) for _ in range(2)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            metrics = manager.get_metrics()
            assert (metrics.in_flight, metrics.queued) == (0, 0)
            assert await text_of(session, "print(1)") == "1"


async def test_interrupt_ends_the_run_of_another_task(server: Server) -> None:
    """It needs no permit, so it also works while the run has the last one."""
    limiter = LimiterSettings(max_concurrency=1)
    async with manager_for(server.url, limiter=limiter) as manager, manager.session("python") as session:
        assert not await session.interrupt()
        run = asyncio.create_task(session.run_code(WAIT))
        await server.until_runs()
        assert await session.interrupt()
        result = await run
        assert (result.outcome, result.error.name) == (Outcome.USER_ERROR, "KeyboardInterrupt")  # type: ignore[union-attr]


async def test_leaving_a_streamed_run_interrupts_it(server: Server, manager: RuntimeManager) -> None:
    async with manager.session("python") as session:
        async with session.stream_code("print('a')") as run:
            assert [chunk async for chunk in run] == []  # programs of this server have no live output
        assert (run.result.stdout, run.live) == ("a\n", True)
        async with session.stream_code(WAIT) as run:
            await server.until_runs()
        assert await text_of(session, "print(1)") == "1"


async def test_forks_are_sessions_of_their_own(server: Server, manager: RuntimeManager) -> None:
    async with manager.session("python") as session:
        await session.run_code("x = 1")
        async with await session.fork(idle_timeout_s=5) as branch:
            assert branch.id != session.id
            assert await text_of(branch, "print(x)") == "1"
        with pytest.raises(RuntimeClosedError):
            await branch.run_code("1")
        assert await text_of(session, "print(x)") == "1"
        server.last.faults["fork"] = "it has threads"  # type: ignore[assignment]
        with pytest.raises(RejectedError, match="cannot fork: it has threads") as caught:
            await session.fork()
        assert (caught.value.status, caught.value.error, caught.value.details) == (409, "cannot fork", "it has threads")
        await session.run_code("1")


async def test_files_that_do_not_fit_are_an_error(server: Server, manager: RuntimeManager) -> None:
    async with manager.session("python", sandbox=SandboxConfig(max_output_bytes=1_000)) as session:
        await session.write_files({"large": b"x" * 1_001, "small": b"x"})
        with pytest.raises(RejectedError, match="all are more than 1000 bytes together: name fewer"):
            await session.read_files(["*"])
        assert await session.read_files(["small"]) == {"small": b"x"}
        assert await session.list_files() == {"large": 1_001, "small": 1}
        await session.write_files({f"{n}/{'long' * 20}": "" for n in range(20)})
        with pytest.raises(RejectedError, match="cannot read files: there are too many to list"):
            await session.list_files()
        server.last.faults["write_files"] = "the folder is full"  # type: ignore[assignment]
        with pytest.raises(RejectedError, match="cannot write files: the folder is full"):
            await session.write_files({"a": ""})


async def test_later_calls_say_why_the_session_has_ended(server: Server, manager: RuntimeManager) -> None:
    """The run that ends it has a result, which says so. Later calls send nothing."""
    async with manager.session("python") as session:
        result = await session.run_code("session.mark_ended('it crashed')")
        assert result.metadata["session"] == {"ended": "it crashed"}
        attempts = manager.get_metrics().total.attempts
        for call in (lambda: session.run_code("1"), session.fork, lambda: session.read_files(["*"]), session.interrupt):
            with pytest.raises(SessionLostError, match="the session is lost: it crashed") as caught:
                await call()
            assert (caught.value.sent, caught.value.endpoint) == ("no", server.url)
        assert session.lost_reason == "it crashed"
        assert manager.get_metrics().total.attempts == attempts
        assert repr(session).endswith("(lost)>")


async def test_a_session_that_ends_between_calls_is_lost(server: Server, manager: RuntimeManager) -> None:
    async with manager.session("python") as session:
        server.last.mark_ended("its process was killed")
        await until(lambda: server.last.closed)
        with pytest.raises(SessionLostError, match="the session is lost: its process was killed") as caught:
            await session.run_code("1")
        assert (caught.value.status, caught.value.sent, caught.value.endpoint) == (404, "yes", server.url)
        assert manager.get_metrics().total.errors == {"SessionLostError": 1}
        assert [state.breaker for state in manager.get_metrics().states] == ["closed"]


async def test_a_server_that_is_gone_loses_the_session(server: Server) -> None:
    """The error of the connection is the cause. Leaving the block raises nothing."""
    timeouts = TimeoutSettings(grace_s=30, health_s=10)
    async with (
        FaultProxy(server.url) as proxy,
        manager_for(proxy.url, retry=NO_WAIT, timeouts=timeouts) as manager,
        manager.session("python") as session,
    ):
        await session.run_code("x = 1")
        proxy.down()
        with contextlib.suppress(ConnectionLostError, SessionLostError):
            await session.run_code("x")  # the connection may not be closed yet
        for call in (lambda: session.run_code("x"), lambda: session.read_files(["*"]), session.interrupt):
            with pytest.raises(SessionLostError, match="the server of the session cannot be reached") as caught:
                await call()
            assert isinstance(caught.value.__cause__, ConnectError)
            assert (caught.value.sent, caught.value.endpoint) == ("no", proxy.url)
        assert session.lost_reason == ""
        await proxy.up()
        assert await text_of(session, "print(x)") == "1"
        proxy.down()


@pytest.mark.parametrize("how", ["lost", "cancelled"])
async def test_a_session_whose_opening_is_not_answered_is_ended(server: Server, how: str) -> None:
    """So is a fork. The client has chosen the id, so that it can name the session."""
    async with FaultProxy(server.url) as proxy, manager_for(proxy.url) as manager, manager.session("python") as first:

        async def enter() -> None:
            await manager.session("python").__aenter__()

        async def fork() -> None:
            await first.fork()

        for opens, opened in ((enter, server.sessions), (fork, server.last.forks)):
            count = len(opened)
            # The requests that end the sessions arrive, too.
            proxy.downstream = Toxics(limit_bytes=0) if how == "lost" else Toxics(timeout=True)
            opening = asyncio.create_task(opens())
            if how == "cancelled":
                await until(lambda: len(opened) > count)  # noqa: B023
                opening.cancel()
            with pytest.raises((ConnectionLostError, asyncio.CancelledError)):
                await opening
            await until(lambda: len(opened) > count and opened[-1].closed)  # noqa: B023
            proxy.downstream = Toxics(reset=True)  # the answers to these requests will not come
            await until(lambda: proxy.connections == 0)
            proxy.downstream = Toxics()
        assert await text_of(first, "print('on')") == "on"


async def test_requests_wait_for_a_server_that_is_down(server: Server) -> None:
    """Like runs, because they were never sent. Closing the manager ends the wait."""
    events: list[Event] = []
    options = {"retry": RetrySettings(connect_retry_s=60), "breaker": BreakerSettings(consecutive_failures=1)}
    async with (
        FaultProxy(server.url) as proxy,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client,
        manager_for(proxy.url, telemetry=[events.append], http_session=client, **options) as manager,
        manager.session("python") as session,
    ):

        async def write_while_down() -> asyncio.Task[None]:
            proxy.down()
            events.clear()
            writing = asyncio.create_task(session.write_files({"a": "1"}))
            await until(lambda: any(isinstance(event, EndpointChanged) for event in events))
            return writing

        writing = await write_while_down()
        await proxy.up()
        await writing
        assert await session.read_files(["*"]) == {"a": b"1"}
        writing = await write_while_down()
        await manager.aclose()
        with pytest.raises(RuntimeClosedError):
            await writing


async def test_closing_the_manager_ends_its_sessions(server: Server) -> None:
    """Runs in flight, and those that wait, raise RuntimeClosedError. Forks are ended, too."""
    first = len(server.sessions)
    manager = manager_for(server.url, timeouts=TimeoutSettings(connect_s=30, health_s=30, grace_s=30, close_s=0.01))
    session = await manager.session("python").__aenter__()
    await session.fork()
    runs = [asyncio.create_task(session.run_code(WAIT)) for _ in range(2)]
    await server.until_runs()
    await manager.aclose()
    for error in await asyncio.gather(*runs, return_exceptions=True):
        assert isinstance(error, RuntimeClosedError)
    assert all(each.closed for each in server.sessions[first:])
    with pytest.raises(RuntimeClosedError):
        await session.run_code("1")
    with pytest.raises(RuntimeClosedError):
        await manager.resume_session(session.id)


@pytest.mark.parametrize("kind", ["error", "cancelled"])
async def test_the_session_ends_however_the_block_is_left(server: Server, manager: RuntimeManager, kind: str) -> None:
    async def block() -> None:
        async with manager.session("python"):
            if kind == "error":
                raise ValueError
            await asyncio.Event().wait()

    before = len(server.sessions)
    task = asyncio.create_task(block())
    await until(lambda: len(server.sessions) > before)
    await until(lambda: task.done() or manager.get_metrics().in_flight == 0)
    task.cancel()
    await asyncio.wait({task})
    task.cancel()  # has no effect on a task that has ended
    await until(lambda: server.last.closed)


async def test_another_manager_resumes_a_session(server: Server, manager: RuntimeManager) -> None:
    """With or without the endpoint. Closing this manager does not end the session; `aclose` of the session does."""
    async with manager.session("python") as session:
        await session.run_code("x = 41")
        async with manager_for(server.url) as other:
            same = await other.resume_session(session.id)
            assert (same.id, same.endpoint, same.language) == (session.id, session.endpoint, "python")
            assert await text_of(same, "print(x + 1)") == "42"
        assert await text_of(session, "print(x)") == "41"
        async with manager_for(server.url) as other:
            async with await other.resume_session(session.id, session.endpoint) as same:
                await same.run_code("x = 0")
            with pytest.raises(SessionLostError, match="the session was closed"):
                await other.resume_session(session.id)
        with pytest.raises(SessionLostError, match="the session was closed"):
            await session.run_code("x")
    with pytest.raises(SessionLostError, match=r"no endpoint has the session \(1 asked\): .*it was never here"):
        await manager.resume_session("a" * 32)
    with pytest.raises(InvalidRequestError, match="endpoint must be the URL of one of this manager, got 'http://x'"):
        await manager.resume_session("a" * 32, "http://x")
    for wrong in ("", "../health", "a/b", 1, None):
        with pytest.raises(InvalidRequestError, match="the id of a session must be"):
            await manager.resume_session(wrong)  # type: ignore[arg-type]


async def test_resuming_says_which_endpoint_failed(server: Server, unused_tcp_port: int) -> None:
    """If no other endpoint has the session, the error is that of the endpoint that failed."""
    gone = f"http://127.0.0.1:{unused_tcp_port}"
    async with RuntimeManager.from_url([server.url, gone], timeouts=PATIENT) as manager:
        with pytest.raises(ConnectError) as caught:
            await manager.resume_session("a" * 32)
        assert (caught.value.endpoint, caught.value.sent) == (gone, "no")
        async with manager_for(server.url) as other, other.session("python") as session:
            assert (await manager.resume_session(session.id)).endpoint == server.url


async def test_a_session_outlives_the_manager_that_resumed_it(server: Server, manager: RuntimeManager) -> None:
    """Nothing is sent after that manager was closed."""
    async with manager.session("python") as session:
        async with manager_for(server.url) as other:
            same = await other.resume_session(session.id)
        await same.aclose()
        with pytest.raises(RuntimeClosedError):
            await same.run_code("1")
        assert (await session.run_code("1")).ok


async def test_a_session_stays_at_an_endpoint_that_has_left_the_settings(server: Server) -> None:
    """New calls go to the new endpoint, and those of the session to its own."""
    async with FakeFaaS() as fake, RuntimeManager.from_url(server.url, timeouts=PATIENT) as manager:
        async with manager.session("python") as session:
            await session.run_code("x = 1")
            await manager.reconfigure(Settings.from_url(fake.url, timeouts=PATIENT))
            assert (await manager.run_code("1", "python")).endpoint == fake.url
            assert (await session.run_code("print(x)")).stdout == "1\n"
            await session.write_files({"a": "b"})
            async with await session.fork() as branch:
                assert branch.endpoint == server.url
        assert server.last.closed


async def test_a_session_stays_at_its_replica() -> None:
    """Several addresses of one name are replicas. A replica that has left the name keeps its sessions."""
    async with FakeFaaS("127.0.0.1") as one, FakeFaaS("127.0.0.2", int(one.url.rpartition(":")[2])) as two:
        addresses = ["127.0.0.1", "127.0.0.2"]

        async def resolve(host: str, port: int) -> list[str]:
            return addresses

        url = f"dns+http://faas.test:{one.url.rpartition(':')[2]}"
        discovery = DiscoverySettings(resolve=resolve, period_s=0.01)
        changes: list[Event] = []
        manager = RuntimeManager.from_url(url, discovery=discovery, timeouts=PATIENT, telemetry=[changes.append])
        async with manager, contextlib.AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(manager.session("python")) for _ in range(20)]
            assert len(one.sessions) + len(two.sessions) == 20
            own = {session.endpoint.partition("#")[2]: session for session in sessions}
            assert own.keys() == set(addresses)
            addresses.remove("127.0.0.2")
            changes.clear()
            while not any(isinstance(change, ReplicasChanged) for change in changes):
                await manager.run_code("1", "python")  # names are only looked up while they are used
            assert (await own["127.0.0.2"].run_code("1")).ok
            same = await manager.resume_session(own["127.0.0.1"].id)
            assert same.endpoint == own["127.0.0.1"].endpoint
            await stack.aclose()
            assert not one.sessions
            assert not two.sessions


async def test_sessions_use_the_connections_of_the_caller(server: Server) -> None:
    """Even if there is only one for all calls: an interrupt has another one."""
    connector = aiohttp.TCPConnector(limit=2)
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        manager_for(server.url, http_session=client) as manager,
    ):
        async with manager.session("python") as session:
            run = asyncio.create_task(session.run_code(WAIT))
            await server.until_runs()
            assert await session.interrupt()
            assert (await run).outcome is Outcome.USER_ERROR
        assert server.last.closed


async def test_a_run_is_a_call_of_metrics_and_events(server: Server) -> None:
    """Opening is a call, too. No event has the id or the output."""
    events: list[Event] = []
    async with manager_for(server.url, telemetry=[events.append]) as manager:
        async with manager.session("python") as session:
            await session.run_code("print('secret')")
            await session.run_code("1 / 0")
            await session.read_files(["*"])
        metrics = manager.get_metrics().total
        assert (dict(metrics.outcomes), dict(metrics.errors)) == ({"OK": 2, "USER_ERROR": 1}, {})
    for kind in (CallStarted, AttemptStarted, CallFinished):
        assert sum(type(event) is kind for event in events) == 3
    assert session.id not in str(events)
    assert "secret" not in str(events)


async def test_another_endpoint_opens_the_session_if_one_cannot(server: Server) -> None:
    """One has no sessions, and one has no room for more. The runs of a session go to its own endpoint."""
    async with FakeFaaS() as fake, LocalFaaS(["python"], workers=1, max_sessions=1) as full:
        fake.health = {"languages": {"python": {"input": []}}}
        await full.wait_ready("python")
        async with RuntimeManager.from_url([fake.url, full.url, server.url], timeouts=PATIENT) as manager:
            async with contextlib.AsyncExitStack() as stack:
                sessions = [await stack.enter_async_context(manager.session("python")) for _ in range(6)]
                results = await asyncio.gather(*(session.run_code("1") for session in sessions for _ in range(3)))
                assert [result.endpoint for result in results[::3]] == [session.endpoint for session in sessions]
                assert Counter(session.endpoint for session in sessions)[full.url] <= 1
            assert fake.requests == []
        async with manager_for(full.url, retry=RetrySettings(max_attempts=1)) as manager, manager.session("python"):
            with pytest.raises(OverloadedError, match="too many sessions: the limit of open sessions is 1"):
                await manager.session("python").__aenter__()


async def test_a_server_with_too_many_sessions_runs_programs() -> None:
    """Calls that wait for another session, or for a fork, do not open its circuit breaker, nor lower its limit."""
    events: list[Event] = []
    retry = RetrySettings(connect_retry_s=0, max_attempts=1)
    async with LocalFaaS(["python"], workers=4, max_sessions=1) as full:
        await full.wait_ready("python")
        async with (
            RuntimeManager.from_url(full.url, retry=retry, telemetry=[events.append]) as manager,
            manager.session("python") as session,
        ):
            (before,) = manager.get_metrics().states
            for _ in range(6):
                for opening in (manager.session("python").__aenter__, session.fork):
                    with pytest.raises(OverloadedError, match="too many sessions"):
                        await opening()
            (after,) = manager.get_metrics().states
            assert (after.breaker, after.limit >= before.limit) == ("closed", True)
            assert await text_of(session, "print(1)") == "1"
            assert (await manager.run_code("print(1)", "python")).stdout == "1\n"
    assert [event for event in events if isinstance(event, EndpointChanged)] == []


async def test_a_session_belongs_to_its_event_loop(server: Server, manager: RuntimeManager) -> None:
    """So it cannot be ended in another one, in which its manager may be closed."""
    async with manager.session("python") as session:
        for call in (lambda: session.run_code("1"), session.fork, session.interrupt, session.aclose):
            with pytest.raises(ConfigurationError, match="belongs to another event loop"):
                await asyncio.to_thread(asyncio.run, call())
    async with aiohttp.ClientSession() as client, manager_for(server.url, http_session=client) as other:
        await other.session("python").__aenter__()
        with pytest.raises(ConfigurationError, match="belongs to another event loop"):
            await asyncio.to_thread(asyncio.run, other.aclose())


ENDLESS = {
    "python": "x = 1\nwhile True:\n    print('tick', flush=True)\n    import time; time.sleep(0.01)",
    "typescript": "var x: number = 1; for (;;) { console.log('tick'); await new Promise((r) => setTimeout(r, 10)); }",
}


@pytest.mark.parametrize("name", ["native", "wasm", "deno"])
async def test_a_run_that_is_left_keeps_its_state(name: str, local: RuntimeManager, local_wasm: RuntimeManager) -> None:
    """On each engine: its output arrives while it runs, leaving the block interrupts it, and the session goes on."""
    manager = local_wasm if name == "wasm" else local
    language = "typescript" if name == "deno" else "python"
    async with manager.session(language) as session:
        async with session.stream_code(ENDLESS[language], timeout_ms=30_000) as run:
            assert "tick" in (await anext(run)).text
            assert run.live
        result = await session.run_code("x + 1")
        assert (result.outcome, result.displays[0].text, result.endpoint) == (Outcome.OK, "2", "http://local")
        assert session.endpoint == manager.local_faas.url  # type: ignore[union-attr]
        same = await manager.resume_session(session.id, session.endpoint)
        assert (await same.run_code("x")).displays[0].text == "1"


@pytest.mark.parametrize("name", ["native", "wasm", "deno"])
async def test_a_run_whose_session_is_closed_by_another_client_is_lost(
    name: str, local: RuntimeManager, local_wasm: RuntimeManager
) -> None:
    """On each engine: the error says that the session was closed. The program is not reported as crashed."""
    manager = local_wasm if name == "wasm" else local
    language = "typescript" if name == "deno" else "python"
    async with manager.session(language) as session:
        async with session.stream_code(ENDLESS[language], timeout_ms=30_000) as run:
            assert "tick" in (await anext(run)).text
            async with await manager.resume_session(session.id, session.endpoint):
                pass
            with pytest.raises(SessionLostError, match="the session was closed"):
                async for _ in run:
                    pass
        with pytest.raises(SessionLostError, match="the session was closed"):
            await session.run_code("1")


EATERS = {
    "python": "data = []\nwhile True: data.append(bytearray(10**6))",
    "javascript": "const data = []; for (;;) data.push(new Array(1e5).fill(data.length))",
}


@pytest.mark.parametrize("name", ["native", "wasm", "deno"])
async def test_a_session_that_eats_memory_ends_alone(
    name: str, local: RuntimeManager, local_wasm: RuntimeManager
) -> None:
    """On each engine, another session works meanwhile, and keeps its state."""
    manager = local_wasm if name == "wasm" else local
    language = "javascript" if name == "deno" else "python"
    async with manager.session(language) as eater, manager.session(language) as other:
        await other.run_code("var x = 0" if name == "deno" else "x = 0")
        eating = asyncio.create_task(eater.run_code(EATERS[language], timeout_ms=30_000))
        count = 0
        while not eating.done() or count == 0:
            count += 1
            result = await other.run_code("x += 1; x" if name != "deno" else "x += 1")
            assert (result.outcome, result.displays[0].text) == (Outcome.OK, str(count))
        assert (await eating).outcome is Outcome.MEMORY_LIMIT


async def test_a_run_is_sent_once_unless_it_was_never_started() -> None:
    """A run that was refused is repeated. One whose answer is lost is not, also with `idempotent` in the settings."""
    retry = RetrySettings(idempotent=True, base_delay_s=0.001, max_delay_s=0.002)
    async with (
        FakeFaaS() as fake,
        RuntimeManager.from_url(fake.url, retry=retry, timeouts=PATIENT) as manager,
        manager.session("python") as session,
    ):
        fake.script(Reply.unavailable(0, not_started=True), Reply.overloaded(0), Reply.ok("1"))
        result = await session.run_code("1")
        assert (result.stdout, result.attempts, fake.executions) == ("1", 3, 1)
        for reply, kind, sent in (
            (Reply(disconnect=True), ConnectionLostError, "maybe"),
            (Reply.crash(), ServerError, "yes"),
            (Reply.unavailable(), OverloadedError, "yes"),
            (Reply(body=b"{"), ProtocolError, "yes"),
            (Reply(body=b'{"output": {}, "displays": [7]}'), ProtocolError, "yes"),
            (Reply(body=b'{"output": {}, "displays": [], "session": 7}'), ProtocolError, "yes"),
        ):
            fake.script(reply)
            before = fake.executions
            with pytest.raises(kind) as caught:
                await session.run_code("1")
            assert (caught.value.sent, caught.value.attempts, fake.executions) == (sent, 1, before + 1)
            assert caught.value.endpoint == fake.url
        assert (await session.run_code("1")).ok
        assert manager.get_metrics().in_flight == 0


@pytest.mark.asyncio(loop_scope="function")
async def test_requests_that_were_refused_are_repeated(serve: Any) -> None:
    """Like runs. One that the server may have done is sent once, also with `idempotent` in the settings."""
    replies: list[Reply] = []
    requests: list[tuple[str, str, bytes]] = []

    async def handle(request: web.Request) -> web.Response:
        if request.path == "/health":
            return web.json_response(HEALTH)
        requests.append((request.method, request.path, await request.read()))
        if replies:
            return replies.pop().make_response()
        return web.json_response({**OPENED, "files": {}, "sizes": {}, "interrupted": True}, status=201)

    url = await serve(handle, "/{path:.*}")
    retry = RetrySettings(idempotent=True, connect_retry_s=0, base_delay_s=0.001, max_delay_s=0.002)
    refused = [Reply.unavailable(0, not_started=True), Reply.overloaded()]
    async with RuntimeManager.from_url(url, retry=retry, timeouts=PATIENT) as manager:
        replies += refused
        session = await manager.session("python").__aenter__()
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            session.fork,
            lambda: session.write_files({"a": ""}),
            lambda: session.read_files(["*"]),
            session.list_files,
            session.interrupt,
        ]
        for call in calls:
            replies += refused
            requests.clear()
            await call()
            assert len(requests) == 3
            assert len(set(requests)) == 1  # a fork has the same id
            for _ in range(10):
                await session.list_files()  # successes refill the budget
            for last, attempts in (([Reply.overloaded()] * 3, 3), ([Reply.unavailable()], 1), ([Reply.crash()], 1)):
                replies += last
                requests.clear()
                with pytest.raises(ServiceError) as caught:
                    await call()
                sent = [request for request in requests if request[0] != "DELETE"]  # it ends a fork without an answer
                assert (caught.value.attempts, len(sent), replies) == (attempts, attempts, [])
                assert caught.value.status == last[0].status
            for _ in range(10):
                await session.list_files()
        replies += refused
        requests.clear()
        await session.aclose()
        assert [method for method, *_ in requests] == ["DELETE"] * 3
        assert manager.get_metrics().in_flight == 0


async def test_a_run_that_the_server_does_not_end_ends_at_its_deadline() -> None:
    timeouts = TimeoutSettings(grace_s=0.05)
    async with FakeFaaS() as fake, RuntimeManager.from_url(fake.url, timeouts=timeouts) as manager:
        fake.script(Reply(hang=True))
        async with manager.session("python") as session:
            with pytest.raises(DeadlineExceededError):
                await session.run_code("1", timeout_ms=50)
            assert (await session.run_code("1")).ok


HEALTH = {
    "version": "test",
    "capabilities": {"lossless": True},
    "languages": {"python": {"sessions": ["run", "fork", "files"], "capacity": 4}},
}
OPENED = {"id": "a", "language": "python", "limits": {}}
HOSTILE: list[Any] = [
    b"",
    b"7",
    b"[" * 200_000,
    b"x" * 70_000,
    {},
    {**OPENED, "id": "../../health"},
    {**OPENED, "id": "a" * 201},
    {**OPENED, "id": 7},
    {**OPENED, "language": "cobol"},
    {**OPENED, "language": ["python"]},
    {**OPENED, "limits": None},
    {**OPENED, "limits": {"memory_limit_mb": "x"}},
    {**OPENED, "limits": {"timeout_limit_s": -1}},
    {**OPENED, "limits": {"max_output_bytes": [1]}},
]


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
async def test_no_answer_about_a_session_raises_another_error(serve: Any, answer: Any) -> None:
    """Malformed answers to the opening of a session, to a fork and to other requests are ServiceErrors."""
    bad = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    is_bad = False

    async def handle(request: web.Request) -> web.Response:
        if request.path == "/health":
            return web.json_response(HEALTH)
        if is_bad:
            return web.Response(body=bad, status=201, content_type="application/json")
        return web.json_response(OPENED, status=201)

    async with RuntimeManager.from_url(await serve(handle, "/{path:.*}"), timeouts=PATIENT) as manager:
        session = await manager.session("python").__aenter__()
        is_bad = True
        url = session.endpoint
        for opening in (manager.session("python").__aenter__(), session.fork(), manager.resume_session("a")):
            with pytest.raises(ServiceError) as caught:
                await opening
            assert url in str(caught.value)
        calls = session.run_code("1"), session.read_files(["*"]), session.write_files({}), session.interrupt()
        for call in (*calls, session.list_files()):
            with contextlib.suppress(ServiceError):
                await call
        await session.aclose()


async def test_files_and_forks_do_not_wait_in_the_queue_of_another_endpoint() -> None:
    """`max_queue` counts the callers that wait. A session whose own endpoint has room never waits."""
    async with FakeFaaS() as fake, FakeFaaS() as busy:
        busy.default = Reply(hang=True)
        settings = Settings(
            endpoints={"python": busy.url, "javascript": fake.url},
            limiter=LimiterSettings(max_queue=1),
            timeouts=PATIENT,
        )
        async with RuntimeManager(settings=settings) as manager, manager.session("js") as session:
            python = await manager.get_runtime("python")
            programs = [asyncio.create_task(python.run_code("1")) for _ in range(17)]
            await until(lambda: manager.get_metrics().queued == 1)
            await session.write_files({"a.txt": "hi"})
            assert await session.list_files() == {"a.txt": 2}
            async with await session.fork() as branch:
                assert await branch.read_files(["*"]) == {"a.txt": b"hi"}
            for program in programs:
                program.cancel()
            await asyncio.wait(programs)
