"""Sessions of the embedded FaaS: what its server does. Programs run in `EvalSession`s, which can wait for the tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.engines.session import EngineSession, EngineSessionOptions
from faasrt.local.errors import NotStartedError
from faasrt.local.http.sessions import OpenSession
from faasrt.protocol.program import NOT_STARTED_HEADER
from faasrt.telemetry.events import Event, ExecutionStarted
from support.helpers import Clock, fast_forward
from support.served import call, connected, request, until
from support.sessions import EvalSession

FOREVER = "await asyncio.Event().wait()"


class Host:
    """A server whose sessions run JavaScript, according to their requests, but Python in this process."""

    def __init__(self, faas: LocalFaaS) -> None:
        self.faas, self.url = faas, faas.url
        self.programs: list[EvalSession] = []
        self.fault: Exception | None = None
        self.gate, self.waiting = asyncio.Event(), 0  # the openings that wait for the gate
        self.gate.set()
        engine = faas.engine("js")
        assert engine is not None
        self.engine = engine
        engine.session_features = ("run", "fork", "files")
        engine.open_session = self._open  # type: ignore[method-assign]

    async def _open(self, options: EngineSessionOptions) -> EngineSession:
        if self.fault is not None:
            raise self.fault
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        self.programs.append(EvalSession(options))
        return self.programs[-1]

    async def open(self, **fields: Any) -> str:
        """Open a session, and return its path."""
        status, answer = await call(self.url, "POST", "/sessions", language="js", **fields)
        assert status == 201, answer
        return f"/sessions/{answer['id']}"

    async def run(self, path: str, code: str, **fields: Any) -> tuple[int, Any]:
        return await call(self.url, "POST", f"{path}/run", code=code, **fields)

    def start(self, path: str, code: str) -> asyncio.Task[tuple[int, Any]]:
        return asyncio.create_task(self.run(path, code))

    async def until_active(self, count: int = 1) -> None:
        await until(lambda: self.engine.active == count)

    async def reason(self, path: str) -> str:
        """Wait until a session is lost, and return why."""
        while (answer := await call(self.url, "GET", path))[0] == 200:
            await asyncio.sleep(0.01)
        assert (answer[0], answer[1]["error"]) == (404, "session lost")
        return str(answer[1]["details"])

    async def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = (await call(self.url, "GET", "/metrics"))[1]
        return metrics


@contextlib.asynccontextmanager
async def hosted(**options: Any) -> AsyncIterator[Host]:
    async with LocalFaaS(["js"], workers=1, max_programs=1, **options) as faas:
        await faas.wait_ready("js")
        yield Host(faas)


async def test_a_session_keeps_its_state() -> None:
    """Its variables and files stay between programs. A fork has both. Each has its own id, limits and description."""
    async with hosted() as host:
        limits = {"memory_limit_mb": 64, "timeout_ms": 2_000, "max_output_bytes": 1_000}
        status, opened = await call(
            host.url, "POST", "/sessions", language="js", sandbox=limits, files={"a.txt": "hi"}, idle_timeout_s=60
        )
        session = f"/sessions/{opened.pop('id')}"
        assert (status, opened) == (
            201,
            {
                "language": "javascript",
                "runtime": host.engine.runtime,
                "engine": "deno",
                "idle_timeout_s": 60.0,
                "features": ["run", "fork", "files"],
                "limits": {
                    "memory_limit_mb": 64,
                    "timeout_limit_s": 2.0,
                    "max_output_bytes": 1_000,
                    "network_enabled": False,
                },
            },
        )
        await host.run(session, "x = 41")
        status, branch = await call(host.url, "POST", f"{session}/fork")
        _, answer = await host.run(session, "x += 1; print(x); display(text_plain='42', image_png=b'png')")
        assert answer["output"]["stdout"] == "42\n"
        assert answer["displays"] == [{"data": {"text/plain": "42", "image/png": "cG5n"}, "omitted": []}]
        assert answer["session"] == {"ended": ""}
        assert (status, branch["idle_timeout_s"]) == (201, 60.0)
        assert (await host.run(f"/sessions/{branch['id']}", "print(x)"))[1]["output"]["stdout"] == "41\n"
        assert await call(host.url, "PUT", f"{session}/files", files={"b/c.txt": {"base64": "/w=="}}) == (200, {})
        found = await call(host.url, "POST", f"{session}/files", patterns=["*"])
        assert found == (200, {"files": {"a.txt": "hi", "b/c.txt": {"base64": "/w=="}}})
        assert await call(host.url, "GET", f"{session}/files") == (200, {"sizes": {"a.txt": 2, "b/c.txt": 1}})
        _, state = await call(host.url, "GET", session)
        assert (state["runs"], state["busy"], state["limits"]) == (2, False, opened["limits"])
        assert not host.programs[0].options.files  # they are not held any longer
        for _ in range(2):
            assert await call(host.url, "DELETE", session) == (200, {})
        assert host.programs[0].closed
        assert await host.reason(session) == "the session was closed"
        metrics = await host.metrics()
    counts = {name: metrics[name] for name in ("sessions", "opened_sessions", "forked_sessions", "session_runs")}
    assert counts == {"sessions": 1, "opened_sessions": 2, "forked_sessions": 1, "session_runs": 3}
    assert metrics["ended_sessions"] == {"closed": 1}
    assert metrics["engines"]["deno"]["executions"] == {"javascript": {"OK": 3}}


async def test_health_names_what_sessions_can_do() -> None:
    """The capability is that of any language. A server without sessions refuses them."""
    async with hosted() as host:
        _, health = await call(host.url, "GET", "/health")
        assert (health["capabilities"]["sessions"], health["capabilities"]["displays"]) == (True, True)
        assert health["languages"]["javascript"]["sessions"] == ["run", "fork", "files"]
        await host.faas.reconfigure(LocalFaaS(["js"], workers=1, max_sessions=0))
        _, health = await call(host.url, "GET", "/health")
        assert (health["capabilities"]["sessions"], health["languages"]["javascript"]["sessions"]) == (False, [])
        status, answer = await call(host.url, "POST", "/sessions", language="js")
        assert (status, answer["details"]) == (400, "this server has no sessions for javascript")


BAD_REQUESTS: list[tuple[str, str | None, dict[str, Any], str]] = [
    # method, action, fields, and a part of the details
    ("POST", None, {"language": "cobol"}, "cobol"),
    ("POST", None, {"language": "python"}, "this server does not run python"),
    ("POST", None, {"language": "js", "sandbox": {"memory_limit_mb": 1}}, "must be at least"),
    ("POST", None, {"language": "js", "sandbox": {"network_enabled": True}}, "must be false"),
    ("POST", None, {"language": "js", "timeout": 100}, "'timeout' belongs in the runs"),
    ("POST", None, {"language": "js", "timeout_ms": 100}, "'timeout_ms' belongs in 'sandbox'"),
    ("POST", None, {"language": "js", "files": {"../a": ""}}, "relative path"),
    ("POST", None, {"language": "js", "idle_timeout_s": 0}, "'idle_timeout_s' must be a finite number above 0"),
    ("POST", None, {"language": "js", "id": "a" * 31}, "must have at least 32 characters"),
    ("POST", None, {"language": "js", "id": "a" * 40 + "/"}, "must be a str of letters"),
    ("POST", "fork", {"id": 7}, "must be a str of letters"),
    ("POST", "run", {}, "'code' must be a string"),
    ("POST", "run", {"code": " "}, "'code' must not be empty"),
    ("POST", "run", {"code": "1", "timeout": -1}, "'timeout' must be"),
    ("POST", "run", {"code": "1", "memory_limit_mb": 64}, "'memory_limit_mb' belongs in 'sandbox'"),
    ("POST", "run", {"code": "1", "language": "python"}, "'language' must be that of the session, javascript"),
    ("POST", "run", {"code": "1", "collect": ["*"]}, "'collect' cannot be used in a session"),
    ("POST", "run", {"code": "1", "sandbox": {"memory_limit_mb": 64}}, "cannot be lower than that of the session"),
    ("POST", "files", {"patterns": "*.txt"}, "'patterns' must be a list of strings"),
    ("POST", "files", {"patterns": ["/etc"]}, "a pattern in 'patterns' must be a relative path"),
    ("PUT", "files", {"files": {"a": 1}}, "the file 'a' must be a string"),
]


async def test_bad_requests() -> None:
    """They are refused, and nothing runs."""
    async with hosted() as host:
        session = await host.open()
        for method, action, fields, details in BAD_REQUESTS:
            path = "/sessions" if action is None else f"{session}/{action}"
            status, answer = await call(host.url, method, path, **fields)
            assert (status, answer["error"]) == (400, "bad request"), fields
            assert details in answer["details"]
        assert (await host.metrics())["session_runs"] == 0


async def test_a_client_can_choose_the_id() -> None:
    """It must be new. A session that is closed while it starts ends at once."""
    async with hosted() as host:
        first, second, third = "a" * 32, "b" * 200, "c" * 40
        assert await host.open(id=first) == f"/sessions/{first}"
        assert (await call(host.url, "POST", f"/sessions/{first}/fork", id=second))[1]["id"] == second
        refused = (409, {"error": "session exists", "details": "a session has had this id: choose a new one at random"})
        assert await call(host.url, "POST", "/sessions", language="js", id=second) == refused
        await call(host.url, "DELETE", f"/sessions/{second}")
        assert await call(host.url, "POST", f"/sessions/{first}/fork", id=second) == refused
        host.gate = asyncio.Event()
        opening = asyncio.create_task(call(host.url, "POST", "/sessions", language="js", id=third))
        await until(lambda: host.waiting == 1)
        assert await call(host.url, "DELETE", f"/sessions/{third}") == (200, {})
        host.gate.set()
        assert await opening == (404, {"error": "session lost", "details": "the session was closed"})
        await until(lambda: host.programs[-1].closed)
        assert (await host.metrics())["sessions"] == 1


async def test_a_fork_that_is_closed_while_it_starts_counts_as_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, going, gate = EvalSession.fork, asyncio.Event(), asyncio.Event()

    async def fork_later(self: EvalSession) -> EngineSession:
        going.set()
        await gate.wait()
        return await fork(self)

    monkeypatch.setattr(EvalSession, "fork", fork_later)
    async with hosted() as host:
        forking = asyncio.create_task(call(host.url, "POST", f"{await host.open()}/fork", id="a" * 32))
        await going.wait()
        await call(host.url, "DELETE", f"/sessions/{'a' * 32}")
        gate.set()
        assert (await forking)[0] == 404
        metrics = await host.metrics()
    assert (metrics["opened_sessions"], metrics["forked_sessions"]) == (2, 1)


async def test_unknown_sessions_and_other_methods() -> None:
    async with hosted() as host:
        unknown = "/sessions/unknown"
        for method, path in (("GET", unknown), ("DELETE", unknown), ("POST", f"{unknown}/fork")):
            status, answer = await call(host.url, method, path)
            assert (status, answer["error"]) == (404, "session lost")
            assert "it was never here, or the server has been restarted" in answer["details"]
        assert (await call(host.url, "GET", f"{unknown}/other"))[1]["error"] == "Not Found"
        for method, path, allowed in (
            ("PUT", unknown, "GET or DELETE or HEAD"),
            ("DELETE", f"{unknown}/files", "GET or POST or PUT or HEAD"),
        ):
            status, answer = await call(host.url, method, path)
            assert status == 405
            assert allowed in answer["details"]


async def test_the_last_ends_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older sessions are unknown, so that the memory for them is limited."""
    monkeypatch.setattr("faasrt.local.http.sessions.MAX_REMEMBERED", 2)
    async with hosted() as host:
        paths = [await host.open() for _ in range(3)]
        for path in paths:
            await call(host.url, "DELETE", path)
        assert "it was never here" in await host.reason(paths[0])
        assert {await host.reason(path) for path in paths[1:]} == {"the session was closed"}


async def test_an_idle_session_ends(clock: Clock) -> None:
    """Its idle limit is at most that of the server, and does not pass while a program runs. The reason is known."""
    async with hosted(session_idle_s=100, sandbox=SandboxConfig(timeout_limit_s=1_000)) as host:
        session = await host.open(idle_timeout_s=1_000)
        program = host.programs[0]
        run = host.start(session, "await gate.wait()")
        await host.until_active()
        clock.advance(150)
        program.gate.set()
        assert (await run)[0] == 200
        clock.advance(50)
        _, state = await call(host.url, "GET", session)
        assert state["idle_s"] >= 50
        assert state["idle_timeout_s"] == 100
        clock.advance(50)
        assert await host.reason(session) == "the session was idle for 100 s"
        assert (await host.run(session, "1"))[0] == 404
        assert program.closed
        assert (await host.metrics())["ended_sessions"] == {"idle": 1}


async def test_programs_wait_for_their_turn(clock: Clock) -> None:
    """They run in the order of their arrival. One that waits too long is refused as if by an overloaded server."""
    async with hosted(queue_timeout_s=100, sandbox=SandboxConfig(timeout_limit_s=1_000)) as host:
        session = await host.open()
        runs = [host.start(session, "await gate.wait(); order = [1]")]
        await host.until_active()
        for number in (2, 3):
            runs.append(host.start(session, f"order.append({number}); print(order)"))
            await until(lambda: _queued(host) == len(runs) - 1)
        _, state = await call(host.url, "GET", session)
        assert state["busy"]
        host.programs[0].gate.set()
        assert [status for status, _ in await asyncio.gather(*runs)] == [200] * 3
        assert (await runs[2])[1]["output"]["stdout"] == "[1, 2, 3]\n"
        running = host.start(session, FOREVER)
        await host.until_active()
        async with aiohttp.ClientSession() as client:
            late = asyncio.create_task(client.post(f"{host.url}{session}/run", json={"code": "1"}))
            await until(lambda: _queued(host) == 1)
            clock.advance(100)
            async with await late as response:
                assert (response.status, response.headers[NOT_STARTED_HEADER]) == (429, "1")
        assert await call(host.url, "POST", f"{session}/interrupt") == (200, {"interrupted": True})
        assert (await running)[1]["error_info"]["name"] == "KeyboardInterrupt"
        assert await call(host.url, "POST", f"{session}/interrupt") == (200, {"interrupted": False})


def _queued(host: Host) -> int:
    health: dict[str, Any] = host.faas.health()
    queued: int = health["languages"]["javascript"]["queued"]
    return queued


async def test_idle_sessions_hold_no_sandbox() -> None:
    """A program takes one, and waits for it in the queue of all programs."""
    async with hosted(queue_timeout_s=0.01) as host:
        first, second = await host.open(), await host.open()
        running = host.start(first, FOREVER)
        await host.until_active()
        assert (await host.run(second, "1"))[0] == 429
        assert (await call(host.url, "POST", "/run_code", language="js", code="1"))[0] == 429
        await call(host.url, "DELETE", first)
        assert (await running)[1]["session"] == {"ended": "the session was closed"}
        assert (await host.run(second, "1"))[0] == 200


async def test_a_disconnect_interrupts_the_program() -> None:
    """The session stays, and its next program runs."""
    async with hosted() as host:
        session = await host.open()
        async with connected(host.url) as connection:
            await connection.send(request(json.dumps({"code": f"x = 1; {FOREVER}"}).encode(), target=f"{session}/run"))
            await host.until_active()
        await host.until_active(0)
        assert (await host.run(session, "print(x)"))[1]["output"]["stdout"] == "1\n"


async def test_output_is_streamed() -> None:
    """A run can be answered with lines of JSON, the last of which is the usual answer."""
    async with hosted() as host, aiohttp.ClientSession() as client:
        session = await host.open()
        headers = {"Accept": "application/x-ndjson"}
        async with client.post(f"{host.url}{session}/run", json={"code": "print(1)"}, headers=headers) as response:
            lines = [json.loads(line) for line in (await response.read()).splitlines()]
    assert lines[-1]["result"]["session"] == {"ended": ""}


@pytest.mark.parametrize(
    ("options", "fields", "details"),
    [
        ({"max_sessions": 1}, {}, "the limit of open sessions is 1"),
        ({"session_memory_mb": 200}, {"sandbox": {"memory_limit_mb": 101}}, "add up to 101 of 200 MiB"),
    ],
)
async def test_too_many_sessions_are_refused(options: dict[str, Any], fields: dict[str, Any], details: str) -> None:
    """Forks count too. The refusal says that nothing was started. When a session has ended, another can be opened."""
    async with hosted(**options) as host, aiohttp.ClientSession() as client:
        host.fault = NotStartedError("no process")
        assert (await call(host.url, "POST", "/sessions", language="js", **fields))[0] == 503
        host.fault = None
        session = await host.open(**fields)
        for path, body in (("/sessions", {"language": "js", **fields}), (f"{session}/fork", {})):
            async with client.post(host.url + path, json=body) as response:
                assert (response.status, response.headers[NOT_STARTED_HEADER]) == (503, "1")
                assert response.headers["Retry-After"] == "1"
                answer = await response.json()
                assert answer["error"] == "too many sessions"
                assert details in answer["details"]
        await call(host.url, "DELETE", session)
        await host.open(**fields)


async def test_what_a_session_cannot_do() -> None:
    """409 with the reason of the engine, and the session goes on."""
    async with hosted() as host:
        session = await host.open()
        host.programs[0].faults |= {"fork": "it has threads", "write_files": "disk full"}
        refusals = [
            await call(host.url, "POST", f"{session}/fork"),
            await call(host.url, "PUT", f"{session}/files", files={"a": ""}),
        ]
        assert refusals == [
            (409, {"error": "cannot fork", "details": "it has threads"}),
            (409, {"error": "cannot write files", "details": "disk full"}),
        ]
        assert (await call(host.url, "POST", f"{session}/fork"))[0] == 201


async def test_a_session_whose_process_ends_is_lost() -> None:
    """The server notices it at once, frees its place, and tells why."""
    async with hosted(max_sessions=1) as host:
        session = await host.open()
        host.programs[0].mark_ended("its process was killed")
        assert await host.reason(session) == "its process was killed"
        session = await host.open()
        _, answer = await host.run(session, "session.mark_ended('the program exited')")
        assert answer["session"] == {"ended": "the program exited"}
        assert await host.reason(session) == "the program exited"
        session = await host.open()
        host.programs[-1].faults["run"] = "no memory"
        status, answer = await host.run(session, "1")
        assert (status, answer) == (500, {"error": "the engine failed", "details": "no memory"})
        assert await host.reason(session) == "no memory"
        assert all(program.closed for program in host.programs)
        assert (await host.metrics())["ended_sessions"] == {"lost": 1, "run": 2}


async def test_an_unexpected_error_ends_only_its_session(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the server goes on."""

    async def fail(self: OpenSession) -> None:
        raise ValueError("a bug")

    async with hosted() as host:
        session = await host.open()
        with monkeypatch.context() as patch:
            patch.setattr(OpenSession, "until_over", fail)
            assert await host.reason(await host.open()) == "an error in the server has ended it"
        assert host.programs[-1].closed
        assert (await host.run(session, "print(1)"))[0] == 200
        assert (await host.metrics())["ended_sessions"] == {"lost": 1}
    assert "ValueError: a bug" in caplog.text


async def test_draining_waits_for_programs_and_ends_sessions(clock: Clock) -> None:
    """Meanwhile nothing new begins in a session, but it can be read and interrupted."""
    async with hosted(drain_s=1_000) as host:
        session, idle = await host.open(), await host.open()
        run = host.start(session, "await gate.wait(); print(1)")
        await host.until_active()
        draining = asyncio.create_task(fast_forward(clock, host.faas.drain(), 0.01))
        await until(lambda: host.faas.listener.draining)
        for method, path in (("POST", f"{session}/run"), ("PUT", f"{session}/files"), ("POST", "/sessions")):
            assert (await call(host.url, method, path, code="1"))[0] == 503
        assert (await call(host.url, "GET", session))[1]["busy"]
        assert await call(host.url, "POST", f"{idle}/interrupt") == (200, {"interrupted": False})
        assert await call(host.url, "POST", f"{idle}/files", patterns=["*"]) == (200, {"files": {}})
        assert not host.programs[0].closed
        host.programs[0].gate.set()
        assert (await run)[1]["output"]["stdout"] == "1\n"
        await draining
        assert host.programs[0].closed


async def test_closing_ends_sessions() -> None:
    """A program that runs longer than `drain_s` is ended."""
    async with hosted(drain_s=0.1) as host:
        session, _ = await host.open(), await host.open()
        run = host.start(session, FOREVER)
        await host.until_active()
    assert all(program.closed for program in host.programs)
    with pytest.raises(aiohttp.ClientError):
        await run


async def test_sessions_survive_new_options() -> None:
    """Open sessions keep their limits. An engine that is replaced ends after its last session."""
    async with hosted() as host:
        session = await host.open()
        sandbox = SandboxConfig(timeout_limit_s=1)
        await host.faas.reconfigure(LocalFaaS(["js"], workers=2, sandbox=sandbox, max_sessions=1))
        assert host.faas.engine("js") is not host.engine
        assert (await host.run(session, "print(1)", timeout=20_000))[0] == 200
        assert (await call(host.url, "GET", session))[1]["limits"]["timeout_limit_s"] == 30
        assert (await call(host.url, "POST", f"{session}/fork"))[0] == 503
        assert host.engine.ready
        await call(host.url, "DELETE", session)
        await until(lambda: not host.engine.ready)
        assert host.engine.problem == "the engine is closed"


async def test_logs_and_events_do_not_contain_the_id(caplog: pytest.LogCaptureFixture) -> None:
    """Everybody who knows the id can use the session. The access log has a short hash of it."""
    events: list[Event] = []
    caplog.set_level(logging.INFO)
    async with hosted(access_log=logging.getLogger("access"), telemetry=[events.append]) as host:
        session = await host.open()
        await host.run(session, "secret = 1")
        await call(host.url, "GET", f"//x{session}/other?{session}")
    session_id = session.removeprefix("/sessions/")
    assert session_id not in caplog.text + repr(events)
    assert "secret" not in caplog.text + repr(events)
    assert caplog.text.count("path=/sessions/~") == 1
    assert caplog.text.count("path=//x/sessions/~") == 1
    (started,) = [event for event in events if isinstance(event, ExecutionStarted)]
    assert (started.path, started.code_bytes) == ("/sessions/{id}/run", 10)
