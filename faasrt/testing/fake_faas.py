from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import anyio
from aiohttp import web

from faasrt._attribute_docs import list_attributes
from faasrt.inputs import INPUT_FIELDS
from faasrt.languages import Language
from faasrt.protocol.sessions import TOO_MANY
from faasrt.results import ErrorInfo, Outcome
from faasrt.testing.fake_sessions import FakeSession, FakeSessions, check_run
from faasrt.testing.loopback import LoopbackServer
from faasrt.testing.replies import Reply

_HEALTH: dict[str, Any] = {
    "status": "healthy",
    "version": "fake",
    "capabilities": {
        "lossless": True,
        "enforces_timeouts": True,
        "cancels_on_disconnect": True,
        "validates": False,
        "sessions": True,
        "displays": True,
    },
    "limits": {},
    "languages": {
        language.value: {
            "input": [*INPUT_FIELDS],
            "compile_limit_s": 0 if language.has_return_val else 30,
            "sessions": ["run", "fork", "files"] if language.has_return_val else [],
            "displays": language.has_return_val,
        }
        for language in Language
    },
}
_FULL = Reply(status=429, details="the capacity is used up", retry_after=1, not_started=True)
_TOO_MANY = Reply(
    status=503,
    body=json.dumps({"error": TOO_MANY, "details": "no more may be open"}).encode(),
    retry_after=1,
    not_started=True,
)
_KEEP_ALIVE_S = 86_400.0


@list_attributes
class FakeFaaS(LoopbackServer):
    r"""A scripted FaaS on 127.0.0.1, for tests: `async with FakeFaaS() as fake: fake.url`.

    The answer to a program is the first of these that applies: status 429 if `capacity` is used up; the reply of
    `handler`; the next reply passed to `script`; `default`. All of them can be changed at any time. A client that
    closes its sending half counts as disconnected, and gets no answer.

    Programs of sessions get these answers too. The other requests of sessions are answered as by `faasrt serve`.

    Args:
        host: The IPv4 address on which it listens. On Linux, several fakes at 127.0.0.1, 127.0.0.2 and so on can have
            the same port, as the replicas behind one name. Default: "127.0.0.1".
        port: The port. Default: 0, which takes a free one.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> async with FakeFaaS() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply.overloaded(retry_after=0), Reply.ok("hi\n"))
        ...     result = await manager.run_code("print('hi')", "python")
        ...     print(result.stdout.strip(), result.attempts, fake.executions, fake.requests[0]["code"])
        hi 2 1 print('hi')
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(lambda: _Connection(self), host, port)
        self.default = Reply()
        """The reply if no other one applies. Default: `Reply()`, a program that succeeded."""
        self.handler: Callable[[dict[str, Any]], Reply] | None = None
        """A function that takes the decoded body of a request and returns the reply. If it raises an error, the answer
        has status 500. Default: None."""
        self.capacity: int | None = None
        """The maximum number of programs in flight. A further program is answered with 429, `Retry-After: 1` and
        `x-faasrt-not-started: 1`, and uses no scripted reply. Default: None, no limit."""
        self.max_sessions: int | None = None
        """The maximum number of open sessions. A further one is refused with 503, `Retry-After: 1` and
        `x-faasrt-not-started: 1`. Default: None, no limit."""
        self.health: dict[str, Any] = {}
        """Fields for the answer to `GET /health`, merged into the default fields; `capabilities` and `limits` are
        merged key by key. By default the FaaS is lossless, so that programs are sent without envelopes."""
        self.health_status = 200
        """The HTTP status of `/health`. Default: 200."""
        self.executions = 0
        """The number of programs that count as run: the request was read completely, and the reply has
        `Reply.executes`."""
        self.requests: list[dict[str, Any]] = []
        """The decoded bodies of `/run_code`, and of runs in sessions, including refused ones, in the order in which
        they were read."""
        self.in_flight = 0
        """The number of requests that were read and not answered yet, without those refused for `capacity`."""
        self.peak = 0
        """The highest value of `in_flight`."""
        self.probes = 0
        """The number of requests to `/health`."""
        self._script: deque[Reply] = deque()
        self._sessions = FakeSessions()

    def script(self, *replies: Reply) -> None:
        """Add replies for the next requests, one per request, in the order in which the requests are read."""
        self._script.extend(replies)

    @property
    def scripted(self) -> int:
        """The number of scripted replies that are left."""
        return len(self._script)

    @property
    def sessions(self) -> Mapping[str, FakeSession]:
        """The open sessions by id."""
        return self._sessions.open

    def end_session(self, session_id: str, reason: str = "the session was idle for 600 s") -> None:
        """End a session. Further requests are answered with 404 and the reason."""
        self._sessions.end(session_id, reason)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        method, path = request.method, request.path
        if (method, path) == ("GET", "/health"):
            self.probes += 1
            self._notify()
            return web.json_response(self._health(), status=self.health_status)
        _, room, session_id, action, *_ = f"{path}///".split("/")
        if (method, path) != ("POST", "/run_code") and room != "sessions":
            return web.json_response({"error": "Not Found"}, status=404)
        try:
            fields = json.loads(body if body or room != "sessions" else "{}")
            if not isinstance(fields, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            details = f"the body must be a JSON object: {error}"
            return web.json_response({"error": "bad request", "details": details}, status=400)
        if room == "sessions" and (method, action) != ("POST", "run"):
            return self._answer_session(method, session_id, action, fields)
        self.requests.append(fields)
        if self.capacity is not None and self.in_flight >= self.capacity:
            return _FULL.make_response()
        if room != "sessions":
            return await self._run(request, fields, self._choose_reply(fields))
        session = self.sessions.get(session_id)
        if session is None:
            return self._sessions.lost(session_id)
        try:
            check_run(session, fields)
        except (ValueError, TypeError, AttributeError) as error:
            return web.json_response({"error": "bad request", "details": str(error)}, status=400)
        return await self._run_in_session(request, session_id, session, fields)

    def _answer_session(self, method: str, session_id: str, action: str, fields: dict[str, Any]) -> web.Response:
        try:
            if session_id:
                return self._sessions.answer(method, session_id, action, fields)
            if method != "POST":
                return web.json_response({"error": "Method Not Allowed"}, status=405)
            if self.max_sessions is not None and len(self.sessions) >= self.max_sessions:
                return _TOO_MANY.make_response()
            return self._sessions.start(fields)
        except (ValueError, TypeError, AttributeError) as error:  # a field has the wrong type
            return web.json_response({"error": "bad request", "details": str(error)}, status=400)
        finally:
            self._notify()

    async def _run_in_session(
        self, request: web.BaseRequest, session_id: str, session: FakeSession, fields: dict[str, Any]
    ) -> web.StreamResponse:
        async with session.turn:
            if session_id not in self.sessions:
                return self._sessions.lost(session_id)
            session.runs += 1
            program = {"language": session.language, **fields}
            reply = self._choose_reply(fields)
            try:
                async with asyncio.timeout(None) as session.timeout:
                    answer = await self._run(request, program, reply, in_session=True)
            except TimeoutError:
                reply = Reply(outcome=Outcome.USER_ERROR, error=ErrorInfo("KeyboardInterrupt"))
                answer = reply.make_response(program, in_session=True)
            finally:
                session.timeout = None
            if reply.session_ended and session_id in self.sessions:
                self.end_session(session_id, reply.session_ended)
            return answer

    def _choose_reply(self, program: dict[str, Any]) -> Reply:
        if self.handler is None:
            return self._script.popleft() if self._script else self.default
        try:
            return self.handler(program)
        except Exception as error:
            return Reply(status=500, details=f"the handler of the fake FaaS failed: {error!r}")

    async def _run(
        self, request: web.BaseRequest, program: dict[str, Any], reply: Reply, *, in_session: bool = False
    ) -> web.StreamResponse:
        """Answer as if the program had run. aiohttp cancels this when the client disconnects."""
        started = asyncio.get_running_loop().time()
        self.executions += reply.executes
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._notify()
        try:
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
            if reply.disconnect:
                cast(asyncio.Transport, request.transport).abort()
            if reply.hang or reply.disconnect:
                await anyio.sleep_forever()
            duration_ms = round((asyncio.get_running_loop().time() - started) * 1_000)
            return reply.make_response(program, duration_ms, in_session=in_session)
        finally:
            self.in_flight -= 1
            self._notify()

    def _health(self) -> dict[str, Any]:
        health = _HEALTH | {"status": "healthy" if self.health_status == 200 else "unhealthy"} | self.health
        for name in ("capabilities", "limits"):
            if isinstance(health[name], dict):
                health[name] = _HEALTH[name] | health[name]
        return health


class _Connection(web.RequestHandler):
    def __init__(self, fake: FakeFaaS) -> None:
        server = web.Server(fake._handle, handler_cancellation=True)
        options: dict[str, Any] = {"access_log": None, "keepalive_timeout": _KEEP_ALIVE_S}
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._fake = fake

    async def start(self) -> None:
        self._fake._admit(cast(asyncio.Transport, self.transport))
        await super().start()
