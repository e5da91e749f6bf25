"""Sharing, closing and cancellation. Permits, connections, tasks and file descriptors are released."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import psutil
import pytest
from aiohttp import web

import faasrt
from faasrt import (
    AssertTest,
    CodeTask,
    ConfigurationError,
    DiscoverySettings,
    ExecutionResult,
    FaasrtError,
    Judgement,
    Language,
    LimiterSettings,
    RetrySettings,
    Runtime,
    RuntimeClosedError,
    RuntimeFactory,
    RuntimeManager,
    Session,
    Settings,
    TestCase,
    TimeoutSettings,
    sync,
)
from faasrt.protocol.program import Program
from faasrt.telemetry.events import CallFinished, CallStarted, Event, RetryScheduled
from faasrt.testing import FakeFaaS, Reply
from support.helpers import NO_WAIT, PATIENT, Clock, Serve, descriptors, descriptors_at_rest, manager_for
from support.served import until

FINE = b'{"output": {"stdout": "hi", "stderr": "", "ret_val": ""}}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(FINE), FINE)
# The server runs no programs, so cancelled calls are not charged as abandoned.
PROFILE = b'{"status": "healthy", "capabilities": {"cancels_on_disconnect": true}}'
HEALTH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(PROFILE), PROFILE)


class StoppingServer:
    """A server that counts connections. It sends `stop_at` bytes of each answer, and the rest when `go` is set."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.arrived, self.go = asyncio.Event(), asyncio.Event()
        self.open = self.connections = self.calls = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /health"):
                    writer.write(HEALTH)
                    continue
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                self.calls += 1
                stop = len(ANSWER) if self.stop_at is None else self.stop_at
                writer.write(ANSWER[:stop])
                await writer.drain()
                if self.stop_at is not None:
                    self.arrived.set()
                    waiting = asyncio.ensure_future(self.go.wait())
                    gone = asyncio.ensure_future(reader.read(1))
                    await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                    for task in (waiting, gone):
                        task.cancel()
                    await asyncio.wait({waiting, gone})
                    if not self.go.is_set():
                        return
                    writer.write(ANSWER[stop:])
        except asyncio.IncompleteReadError:
            pass
        finally:
            self.open -= 1


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def open_sessions() -> list[aiohttp.ClientSession]:
    return [thing for thing in gc.get_objects() if isinstance(thing, aiohttp.ClientSession) and not thing.closed]


async def test_concurrent_callers_share_runtimes_and_sessions(raw_server: Serve) -> None:
    """200 calls to two URLs need two runtimes, two sessions, and at most 20 connections per URL."""
    before = len(open_sessions())
    servers = [StoppingServer(), StoppingServer()]
    urls = [await raw_server(server.handle) for server in servers]
    settings = Settings(
        endpoints={"python": urls[0], "javascript": urls[1]},
        limiter=LimiterSettings(max_concurrency=20),
        envelope="never",
    )
    async with RuntimeManager(settings=settings) as manager:

        async def call(number: int) -> Any:
            language = ("python", "js")[number % 2]
            runtime = await manager.get_runtime(language)
            assert (await runtime.run_code("1")).ok
            return runtime

        runtimes = await asyncio.gather(*(call(number) for number in range(200)))
        assert len({id(runtime) for runtime in runtimes}) == 2
        assert len(open_sessions()) == before + 2
        assert [server.calls for server in servers] == [100, 100]
        assert all(server.connections <= 20 for server in servers)
    await wait_until(lambda: all(server.open == 0 for server in servers))


@pytest.mark.parametrize("stop_at", [0, 1, 20, len(ANSWER) - len(FINE), len(ANSWER) - 1])
async def test_cancelled_calls_release_everything(raw_server: Serve, stop_at: int) -> None:
    """Wherever the answer stops, a cancelled call releases its permit, connection and tasks, and the next call runs."""
    server = StoppingServer(stop_at)
    limiter = LimiterSettings(max_concurrency=1)
    async with manager_for(await raw_server(server.handle), limiter=limiter) as manager:
        await manager.get_runtime("py")
        before = await descriptors_at_rest(), len(asyncio.all_tasks())
        for _ in range(3):
            call = asyncio.create_task(manager.run_code("1", "py"))
            waiting = asyncio.create_task(manager.run_code("1", "py"))
            await server.arrived.wait()
            server.arrived.clear()
            waiting.cancel()  # while it waits for the permit
            call.cancel()  # while it waits for the answer
            ends = await asyncio.gather(call, waiting, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
            await wait_until(lambda: server.open == 0)
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued, metrics.total.in_flight) == (0, 0, 0)
        assert metrics.total.errors == {"CancelledError": 6}
        await wait_until(lambda: (descriptors(), len(asyncio.all_tasks())) == before)
        server.go.set()
        assert (await manager.run_code("1", "py")).ok


@pytest.mark.parametrize("limit", [0, 100])
async def test_calls_that_cannot_connect_end(limit: int) -> None:
    """A call without an answer to its TCP handshake ends after `connect_s`, or when it is cancelled.

    The same holds with a session of the caller's that limits connections.
    """
    import socket

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(4):  # a full backlog: further handshakes get no answer
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit)) as session,
            manager_for(
                url, timeouts=TimeoutSettings(connect_s=0.2), retry=NO_WAIT, http_session=session if limit else None
            ) as manager,
        ):
            with pytest.raises(faasrt.ConnectError, match="cannot connect in time") as info:
                await manager.run_code("1", "py")
            assert info.value.sent == "no"
            call = asyncio.create_task(manager.run_code("1", "py"))
            await wait_until(lambda: manager.get_metrics().in_flight == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert manager.get_metrics().in_flight == 0
    finally:
        for filler in fillers:
            filler.close()
        listener.close()


async def test_closing_waits_for_calls_in_flight(raw_server: Serve) -> None:
    """For up to `close_s`, calls in flight still get their answer. New calls are refused at once."""
    server = StoppingServer(10)
    manager = manager_for(await raw_server(server.handle))
    runtime = await manager.get_runtime("py")
    call = asyncio.create_task(runtime.run_code("1"))
    await server.arrived.wait()
    closing = asyncio.create_task(manager.aclose())
    await wait_until(lambda: runtime.closed)
    for late in (runtime.run_code("1"), manager.run_code("1", "py"), runtime.validate_code("1")):
        with pytest.raises(RuntimeClosedError):
            await late
    assert not closing.done()
    server.go.set()
    assert (await call).ok
    await closing
    await wait_until(lambda: server.open == 0)


async def test_closing_ends_calls_after_close_s(raw_server: Serve) -> None:
    """After `close_s`, all calls raise RuntimeClosedError, including those that wait for a permit."""
    server = StoppingServer(10)
    settings = {"timeouts": TimeoutSettings(close_s=0.05), "limiter": LimiterSettings(max_concurrency=1)}
    manager = manager_for(await raw_server(server.handle), **settings)
    calls = [asyncio.create_task(manager.run_code("1", "py")) for _ in range(3)]
    await server.arrived.wait()
    await manager.aclose()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [RuntimeClosedError] * 3
    await wait_until(lambda: server.open == 0)
    assert manager.get_metrics().total.errors == {"RuntimeClosedError": 3}


async def test_closing_ends_calls_that_wait_before_a_retry(clock: Clock) -> None:
    """They raise RuntimeClosedError at once, as those that wait for a permit do. Time does not pass here."""
    events: list[Event] = []
    async with FakeFaaS() as fake:
        fake.default = Reply.overloaded(retry_after=10)
        manager = manager_for(fake.url, telemetry=[events.append], clock=clock)
        call = asyncio.create_task(manager.run_code("1", "py"))
        await until(lambda: any(isinstance(event, RetryScheduled) for event in events))
        clock.stop()
        await manager.aclose()
        with pytest.raises(RuntimeClosedError, match="waited for a retry"):
            await call
        assert manager.get_metrics().total.errors == {"RuntimeClosedError": 1}


async def test_cancelled_aclose_ends_all_calls(raw_server: Serve) -> None:
    """If `aclose` is cancelled while it waits for calls in flight, they end, and all connections are closed."""
    server = StoppingServer(10)
    manager = manager_for(await raw_server(server.handle))
    call = asyncio.create_task(manager.run_code("1", "py"))
    await server.arrived.wait()
    closing = asyncio.create_task(manager.aclose())
    await wait_until(lambda: not call.done() and manager.get_metrics().in_flight == 1)
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(RuntimeClosedError):
        await call
    await wait_until(lambda: server.open == 0)


async def test_aclose_cancelled_late_closes_the_sessions(raw_server: Serve) -> None:
    """If `aclose` is cancelled while it waits for the process that checks Python code, the sessions still close."""
    server, before = StoppingServer(), len(open_sessions())
    runtime = RuntimeFactory(Settings(endpoints={"py": await raw_server(server.handle)})).create_runtime("py")
    assert (await runtime.run_code("1")).ok
    children, threads = set(psutil.Process().children()), {*threading.enumerate()}
    assert (await runtime.validate_code("1")).valid
    assert len(open_sessions()) == before + 1
    (process,) = set(psutil.Process().children()) - children
    closing = asyncio.create_task(runtime.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert len(open_sessions()) == before
    await wait_until(lambda: not process.is_running())
    # Until Python 3.12, a thread of asyncio waits for the process, and then tells the event loop.
    await wait_until(lambda: not any("waitpid" in thread.name for thread in {*threading.enumerate()} - threads))
    await asyncio.sleep(0)


async def test_call_cancelled_during_aclose_raises_cancelled_error(raw_server: Serve) -> None:
    """A call that its caller cancels while the manager closes does not raise RuntimeClosedError."""
    server = StoppingServer(10)
    manager = manager_for(await raw_server(server.handle), timeouts=TimeoutSettings(close_s=0.05))
    call = asyncio.create_task(manager.run_code("1", "py"))
    await server.arrived.wait()
    closing = asyncio.create_task(manager.aclose())
    await wait_until(lambda: not closing.done())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await closing


async def test_close_runtimes_waits_for_calls_in_flight(raw_server: Serve) -> None:
    """A removed runtime closes when its calls have ended. Meanwhile, new callers get a new runtime."""
    server = StoppingServer(10)
    async with manager_for(await raw_server(server.handle)) as manager:
        old = await manager.get_runtime("py")
        call = asyncio.create_task(old.run_code("1"))
        await server.arrived.wait()
        clearing = asyncio.create_task(manager.close_runtimes())
        await wait_until(lambda: old.closed)
        new = await manager.get_runtime("py")
        assert new is not old
        with pytest.raises(RuntimeClosedError):
            await old.run_code("1")
        assert not clearing.done()
        server.go.set()
        assert (await call).ok
        await clearing
        assert (await new.run_code("1")).ok
        await manager.close_runtimes()
        assert (await manager.run_code("1", "py")).ok
        assert manager.get_metrics().total.outcomes == {"OK": 3}


async def test_aclose_also_ends_the_calls_for_which_close_runtimes_waits(raw_server: Serve) -> None:
    server = StoppingServer(10)
    manager = manager_for(await raw_server(server.handle), timeouts=attrs.evolve(PATIENT, close_s=0.01))
    call = asyncio.create_task(manager.run_code("1", "py"))
    await server.arrived.wait()
    clearing = asyncio.create_task(manager.close_runtimes())
    await asyncio.sleep(0)
    await manager.aclose()
    with pytest.raises(RuntimeClosedError):
        await call
    await clearing


async def _stream(manager: RuntimeManager) -> ExecutionResult:
    async with manager.stream_code(SLOW, "py") as run:
        _ = [chunk async for chunk in run]
    return run.result


async def _map(manager: RuntimeManager) -> Judgement | None:
    async with manager.map([CodeTask(DEFINITION, "py", tests=ASSERTS)]) as results:
        (item,) = [item async for item in results]
    return item.judgement


async def _use(session: Session) -> ExecutionResult:
    first, _, _ = await asyncio.gather(session.run_code(SLOW), session.list_files(), session.run_code("1"))
    return first


SLOW = "import time; time.sleep(0.05)"
THREE = [TestCase("", "")] * 3
ASSERTS = [AssertTest("assert wait(1) is None")]  # in three executions, one after another
DEFINITION = f"def wait(n):\n    {SLOW}"
CALLS: Mapping[str, Callable[[RuntimeManager, Session], Coroutine[Any, Any, Any]]] = {
    "run_code": lambda manager, session: manager.run_code(SLOW, "py"),
    "stream_code": lambda manager, session: _stream(manager),
    "call_function": lambda manager, session: manager.call_function(DEFINITION, "wait", [1], language="py"),
    "run_cases": lambda manager, session: manager.run_cases(DEFINITION, "wait", [[1], [2]], language="py"),
    "judge": lambda manager, session: manager.judge(SLOW, THREE, language="py", concurrency=1),
    "judge by asserts": lambda manager, session: manager.judge(DEFINITION, ASSERTS, language="py"),
    "map": lambda manager, session: _map(manager),
    "validate_code": lambda manager, session: manager.validate_code("let a", "js"),
    "session": lambda manager, session: _use(session),
}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("close", [RuntimeManager.close_runtimes, RuntimeManager.aclose], ids=["runtimes", "manager"])
@pytest.mark.parametrize("kind", CALLS)
async def test_calls_in_flight_get_all_their_executions(local: RuntimeManager, kind: str, close: Any) -> None:
    """A call that began before closing may still send what it consists of, also in other tasks. No event is about a
    call that has not started.
    """
    started: set[str] = set()
    unknown: list[Event] = []

    def check(event: Event) -> None:
        if isinstance(event, CallStarted):
            started.add(event.call_id)
        elif isinstance(event, CallFinished) and event.call_id not in started:
            unknown.append(event)

    assert local.local_faas is not None
    manager = manager_for(local.local_faas.url, telemetry=[check], timeouts=attrs.evolve(PATIENT, close_s=30))
    async with manager, manager.session("py") as session:
        await manager.get_runtime("js")
        call = asyncio.create_task(CALLS[kind](manager, session))
        while not (manager.get_metrics().in_flight or call.done()):
            await asyncio.sleep(0)
        await close(manager)
        result = await call
    results = result if isinstance(result, list) else [result]
    assert all(each.passed if isinstance(each, Judgement) else getattr(each, "ok", each) for each in results)
    assert not unknown


async def test_a_task_that_outlives_its_call_is_refused() -> None:
    """Only a call in flight lets the tasks that it has started call a closed runtime."""
    late: list[asyncio.Task[ExecutionResult]] = []
    ended = asyncio.Event()

    async def call_late(runtime: Runtime) -> ExecutionResult:
        await ended.wait()
        return await runtime.run_code("1")

    class Store:
        async def get(self, key: str) -> bytes | None:
            late.append(asyncio.create_task(call_late(runtime)))  # within the call
            return None

        async def put(self, key: str, value: bytes) -> None:
            pass

    async with FakeFaaS() as fake:
        settings = Settings(endpoints={"py": fake.url})
        async with RuntimeManager(settings=settings, cache=Store()) as manager:
            runtime = await manager.get_runtime("py")
            assert (await runtime.run_code("1")).ok
            await manager.close_runtimes()
            ended.set()
            with pytest.raises(RuntimeClosedError, match="is closed"):
                await late[0]


async def test_a_refused_stream_reports_no_call() -> None:
    """The call of a stream that is entered after closing has neither events nor metrics."""
    events: list[Event] = []
    async with FakeFaaS() as fake, manager_for(fake.url, telemetry=[events.append]) as manager:
        runtime = await manager.get_runtime("py")
        run = runtime.stream_code("1")
        await manager.close_runtimes()
        with pytest.raises(RuntimeClosedError):
            async with run:
                _ = [chunk async for chunk in run]
        assert not events
        assert not manager.get_metrics().total.calls


async def test_a_call_that_begins_while_the_last_runtime_closes_keeps_its_session() -> None:
    """Closing waits for the look-ups of names. A runtime that is created meanwhile has sessions of its own."""
    stuck, stopped, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def resolve(host: str, port: int) -> list[str]:
        try:
            stuck.set()
            await asyncio.Event().wait()
        finally:
            stopped.set()
            await go_on.wait()  # a resolver that closes its connections when it is cancelled
        return []

    async with FakeFaaS() as fake:
        endpoints = {"python": "dns+http://faas.test:8000", "javascript": fake.url}
        settings = Settings(endpoints=endpoints, discovery=DiscoverySettings(resolve=resolve))
        async with RuntimeManager(settings=settings) as manager:
            assert (await manager.run_code("1", "js")).ok
            lost = asyncio.create_task(manager.run_code("1", "python"))
            await stuck.wait()
            lost.cancel()
            await asyncio.wait({lost})
            closing = asyncio.create_task(manager.close_runtimes())
            await stopped.wait()
            fake.script(Reply(delay_s=0.05))
            call = asyncio.create_task(manager.run_code("1", "js"))
            await fake.wait_until(lambda: fake.in_flight == 1)
            go_on.set()
            await closing
            assert (await call).ok


async def test_closing_copies_of_a_runtime_closes_it_once() -> None:
    """The other runtimes of the factory stay open."""
    async with FakeFaaS() as fake:
        factory = RuntimeFactory(Settings(endpoints={"py": fake.url}))
        async with factory.create_runtime("py") as other:
            runtime = factory.create_runtime("py")
            assert (await other.run_code("1")).ok
            accepted = fake.accepted
            for one in (copy.copy(runtime), runtime, copy.copy(runtime)):
                await one.aclose()
            assert (await other.run_code("1")).ok
            assert fake.accepted == accepted  # the session was not closed
        await fake.wait_until(lambda: fake.connections == 0)


async def test_a_manager_whose_server_cannot_start_keeps_no_file_and_no_thread_open(tmp_path: Path) -> None:
    """An `async with` or `with` that fails leaves the cache closed, because nothing else would close it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = {"port": taken.getsockname()[1], "cache": tmp_path}
        threads = set(threading.enumerate())
        with pytest.raises(ConfigurationError, match="cannot listen"):
            async with RuntimeManager.local(["js"], **options):
                pass
        assert not [file.path for file in psutil.Process().open_files() if Path(file.path).is_relative_to(tmp_path)]

        def enter() -> None:
            with pytest.raises(ConfigurationError, match="cannot listen"), sync.RuntimeManager.local(["js"], **options):
                pass

        await asyncio.to_thread(enter)
        assert not [file.path for file in psutil.Process().open_files() if Path(file.path).is_relative_to(tmp_path)]
        assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == "faasrt.sync"]


def kept_programs(code: str) -> list[Program]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Program) and thing.code == code]


@pytest.mark.parametrize("end", ["ServerError", "ConnectError", "OverloadedError", "a result"])
async def test_a_failed_attempt_does_not_keep_its_program_in_memory(end: str) -> None:
    """Neither the endpoint, whose last error other callers may get, nor a reference cycle keeps it."""
    code = f"program {end}"
    replies = {"ServerError": [Reply.crash()], "OverloadedError": [Reply.overloaded("0")] * 3}
    async with (
        FakeFaaS() as fake,
        manager_for(fake.url, retry=RetrySettings(base_delay_s=0.001, connect_retry_s=0.1)) as manager,
    ):
        await manager.get_runtime("py")
        fake.script(*replies.get(end, [Reply.overloaded("0")]))
        if end == "ConnectError":
            fake.down()

        async def call() -> str:
            try:
                await manager.run_code(code, "py")
            except FaasrtError as error:
                return type(error).__name__
            return "a result"

        gc.disable()
        try:
            assert await asyncio.create_task(call()) == end
            if end == "ConnectError":
                gc.collect()  # in Python 3.13, a connection that fails leaves a reference cycle of asyncio behind
            assert not kept_programs(code)
        finally:
            gc.enable()


async def test_waiting_calls_that_end_together_have_errors_of_their_own() -> None:
    """Raising an error adds the frames of its caller to it, so two callers must not share one."""
    async with (
        FakeFaaS() as fake,
        manager_for(
            fake.url, limiter=LimiterSettings(max_concurrency=1), timeouts=TimeoutSettings(close_s=0.01)
        ) as manager,
    ):
        fake.default = Reply(hang=True)
        calls = [asyncio.create_task(manager.run_code("1", "py")) for _ in range(3)]
        await fake.wait_until(lambda: fake.in_flight == 1)
        await manager.aclose()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [RuntimeClosedError] * 3
        assert len(set(map(id, ends))) == 3


# Each case is too large to share a request with another one, so three executions are needed.
CASES = [("x" * 600_000,)] * 3


def several_executions(manager: RuntimeManager, way: str) -> asyncio.Task[list[Any]]:
    async def run_cases() -> list[Any]:
        return await (await manager.get_runtime("py")).run_cases("def f(x): pass", "f", CASES)

    async def run_map() -> list[Any]:
        tasks = [faasrt.CodeTask("def f(x): pass", "py", function="f", args=case) for case in CASES]
        return [item.error or item.result async for item in manager.map(tasks, concurrency=1, coalesce=3)]

    return asyncio.create_task(run_cases() if way == "run_cases" else run_map())


@pytest.mark.parametrize("closing", ["close_runtimes", "aclose"])
@pytest.mark.parametrize("way", ["run_cases", "map"])
async def test_several_executions_are_one_call_in_flight(raw_server: Serve, way: str, closing: str) -> None:
    """Closing waits for all executions of a `run_cases`, and of the tasks of a `map`."""
    server = StoppingServer(10)
    async with manager_for(await raw_server(server.handle)) as manager:
        runtime = await manager.get_runtime("py")
        call = several_executions(manager, way)
        await server.arrived.wait()
        closed = asyncio.create_task(getattr(manager, closing)())
        await wait_until(lambda: runtime.closed)
        server.go.set()
        assert [type(result) for result in await call] == [faasrt.ExecutionResult] * 3
        await closed
    assert server.calls == 3


async def test_closing_ends_several_executions_after_close_s(raw_server: Serve) -> None:
    """A `run_cases` raises RuntimeClosedError, and starts no further executions."""
    server = StoppingServer(10)
    manager = manager_for(await raw_server(server.handle), timeouts=TimeoutSettings(close_s=0.05))
    call = several_executions(manager, "run_cases")
    await server.arrived.wait()
    await manager.aclose()
    with pytest.raises(RuntimeClosedError):
        await call
    assert (server.calls, manager.get_metrics().total.errors) == (1, {"RuntimeClosedError": 1})
    assert call.cancelling() == 0


async def test_failed_creation_of_a_runtime_is_not_cached(raw_server: Serve) -> None:
    """The next callers create the runtime again, once for all of them."""
    server = StoppingServer()
    made = 0

    class Factory(RuntimeFactory):
        def create_runtime(self, language: str | Language) -> faasrt.Runtime:
            nonlocal made
            made += 1
            if made == 1:
                raise ConfigurationError("not yet")
            return super().create_runtime(language)

    factory = Factory(Settings(endpoints={"py": await raw_server(server.handle)}))
    async with RuntimeManager(factory) as manager:
        with pytest.raises(ConfigurationError, match="not yet"):
            await manager.get_runtime("py")
        runtimes = await asyncio.gather(*(manager.get_runtime("py") for _ in range(1_000)))
    assert made == 2
    assert len(set(runtimes)) == 1


async def test_unclosed_manager_warns(raw_server: Serve) -> None:
    """The warning names the manager and how to close it. A closed or unused manager causes no warning."""
    server = StoppingServer()
    url = await raw_server(server.handle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager: RuntimeManager | None = manager_for(url)
        await manager.get_runtime("py")
        del manager
        gc.collect()
        assert [str(warning.message) for warning in caught if "RuntimeManager" in str(warning.message)] == [
            "unclosed <RuntimeManager of python, javascript, typescript>: use async with, or await aclose()"
        ]
        caught.clear()
        manager = manager_for(url)
        await manager.get_runtime("py")
        await manager.aclose()
        del manager
        manager = manager_for(url)
        del manager
        gc.collect()
        assert not caught


def run_script(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_one_manager_per_run() -> None:
    """Several runs of an event loop, each with its own manager and embedded FaaS, work with asyncio and uvloop."""
    code = """
import asyncio, uvloop, faasrt
async def main(n):
    async with faasrt.RuntimeManager.local(workers=1) as manager:
        programs = [(f"print({n})", "py"), (f"console.log({n})", "js")]
        results = await asyncio.gather(*(manager.run_code(*program) for program in programs))
        print(*(result.stdout.strip() for result in results), bool(await manager.validate_code("x = 1", "py")))
for n, run in enumerate([asyncio.run, uvloop.run, asyncio.run]):
    run(main(n))
"""
    assert run_script(code) == "0 0 True\n1 1 True\n2 2 True\n"


def test_manager_of_another_event_loop_is_an_error() -> None:
    """A manager that stays open after `asyncio.run` can only be closed in the next run. Then no process is left."""
    code = """
import asyncio, psutil, faasrt
manager = faasrt.RuntimeManager.local(["js"], workers=1)
async def run():
    return (await manager.run_code("console.log(1)", "js")).stdout.strip()
print(asyncio.run(run()))
try:
    asyncio.run(run())
except faasrt.ConfigurationError as error:
    print("another event loop" in str(error))
asyncio.run(manager.aclose())
print(psutil.wait_procs(psutil.Process().children(), timeout=30)[1])  # it takes a moment until the processes have ended
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "1\nTrue\n[]\n"), done.stderr


def test_a_local_check_in_another_event_loop_is_an_error() -> None:
    """The process that checks Python belongs to the event loop that has started it. It ends when the runtime is closed,
    also in another loop.
    """
    code = """
import asyncio, psutil, faasrt
runtime = faasrt.RuntimeFactory(faasrt.Settings.from_url("http://faas:8000")).create_runtime("py")
print(asyncio.run(runtime.validate_code("1")).valid)
try:
    asyncio.run(runtime.validate_code("1"))
except faasrt.ConfigurationError as error:
    print("another event loop" in str(error))
children = psutil.Process().children()
asyncio.run(runtime.aclose())
print(len(children), psutil.wait_procs(children, timeout=30)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n1 []\n"), done.stderr


async def test_metrics_count_outcomes_errors_and_attempts(serve: Serve, unused_tcp_port: int) -> None:
    """The metrics have counters per endpoint and in total, and a histogram of the duration."""

    async def handler(request: web.Request) -> web.Response:
        code = (await request.json())["code"]
        return web.json_response(
            {"output": {}, "outcome": code} if code.isupper() else {"error": "x"}, status=200 if code.isupper() else 500
        )

    url, dead = await serve(handler), f"http://127.0.0.1:{unused_tcp_port}"
    settings = Settings(endpoints={"py": url, "js": dead}, envelope="never", retry=NO_WAIT)
    async with RuntimeManager(settings=settings) as manager:
        for code in ("OK", "OK", "TIMEOUT", "fail"):
            with contextlib.suppress(faasrt.ServerError):
                await manager.run_code(code, "py")
        with pytest.raises(faasrt.ConnectError):
            await manager.run_code("1", "js")
        python = (await manager.get_runtime("py")).get_metrics()
        everything = manager.get_metrics()
    assert python.total.outcomes == {"OK": 2, "TIMEOUT": 1}
    assert python.total.errors == {"ServerError": 1}
    assert list(python.endpoints) == [url]
    assert everything.total.errors == {"ServerError": 1, "ConnectError": 1}
    assert everything.endpoints[dead].errors == {"ConnectError": 1}
    assert (everything.total.calls, everything.total.attempts, everything.total.retries) == (5, 7, 2)
    assert everything.total.latency.count == 5
    assert everything.total.latency.sum_s > 0
    assert (everything.in_flight, everything.queued, everything.total.in_flight) == (0, 0, 0)
    import json

    assert json.loads(json.dumps(everything.to_dict()))["total"]["outcomes"] == {"OK": 2, "TIMEOUT": 1}


async def test_a_failing_sink_does_not_fail_calls(raw_server: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged once."""

    class Logger:
        def log(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    server = StoppingServer()
    settings = Settings(endpoints={"py": await raw_server(server.handle)})
    async with RuntimeManager(settings=settings, logger=Logger()) as manager:
        assert (await manager.run_code("1", "py")).ok
        assert (await manager.run_code("1", "py")).ok
    assert caplog.text.count("a telemetry sink failed") == 1


async def test_events_of_a_call(raw_server: Serve) -> None:
    """Each event has its level. All events of a call have the same id."""
    lines: list[tuple[int, str, dict[str, Any]]] = []

    class Logger:
        def log(self, level: int, event: str, **fields: Any) -> None:
            lines.append((level, event, fields))

    server = StoppingServer()
    settings = Settings(endpoints={"py": await raw_server(server.handle)})
    async with RuntimeManager(settings=settings, logger=Logger()) as manager:
        await manager.run_code("print(1)", "py")
    assert [(level, event) for level, event, _ in lines] == [
        (10, "call_started"),
        (10, "attempt_started"),
        (10, "limit_changed"),  # the capacity of the endpoint is known now
        (10, "attempt_finished"),
        (20, "call_finished"),
    ]
    assert len({fields["call_id"] for _, event, fields in lines if event != "limit_changed"}) == 1
    assert lines[0][2]["code_bytes"] == 8
    assert lines[-1][2]["outcome"] == "OK"


async def test_metrics_of_a_runtime_are_those_of_its_languages() -> None:
    """The calls in flight, those that wait, and the states of endpoints."""
    async with FakeFaaS() as fake, FakeFaaS() as other:
        fake.default = Reply(hang=True)
        settings = Settings(endpoints={"py": fake.url, "js": [fake.url, other.url]})
        async with RuntimeManager(settings=settings) as manager:
            python, js = [await manager.get_runtime(language) for language in ("py", "js")]
            calls = [asyncio.create_task(python.run_code("1")) for _ in range(17)]
            await until(lambda: fake.in_flight == 16)
            for runtime, counts in ((python, (16, 1)), (js, (0, 0))):
                metrics = runtime.get_metrics()
                assert (metrics.in_flight, metrics.queued) == counts
                assert {state.family for state in metrics.states} <= {str(runtime.language)}
            assert (manager.get_metrics().in_flight, manager.get_metrics().queued) == (16, 1)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
