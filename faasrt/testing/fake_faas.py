"""FakeFaas: a FaaS over a real socket that runs nothing, and answers what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from faasrt.testing.connection import Connection
from faasrt.testing.replies import Reply
from faasrt.testing.requests import BadRequestError, Request, read_request, render_response
from faasrt.testing.server import LoopbackServer

_HEALTH: dict[str, Any] = {
    "status": "healthy",
    "version": "fake",
    "capabilities": {"faithful": True, "enforces_timeouts": True, "validates": False},
    "limits": {},
}
_FULL = Reply(status=429, details="the capacity is used up", retry_after=1, not_started=True)


class FakeFaas(LoopbackServer):
    r"""A scripted FaaS on 127.0.0.1, for tests: `async with FakeFaas() as fake: fake.url`.

    What answers a program is, in this order: 429 when `capacity` is used up; `handler`; the next of the replies given
    to `script`; `default`. All of it can be changed at any time.

    Attributes:
        default: The reply when nothing else is scripted; a program that ended well, at first.
        handler: Given the decoded body of a request, gives its reply; when it raises, that is answered with 500. Its
            reply's `reset_on_request_byte` acts when the request has been read.
        capacity: The most programs in flight, None for no bound. One more is answered with 429, `Retry-After: 1` and
            `x-faasrt-not-started: 1`, and uses up no scripted reply.
        health: What `GET /health` says beyond the usual; it is merged in, `capabilities` and `limits` key by key. By
            default the FaaS calls itself faithful: it is sent programs as they are, and no envelopes.
        health_status: The HTTP status of `/health`.
        executions: The programs that count as run: their request was read whole, and `Reply.executes`.
        requests: The decoded bodies of `/run_code`, in the order in which they were read, refused ones included.
        in_flight: The requests that were read and are not answered yet, without those refused for `capacity`.
        peak: The most that were in flight at once.
        probes: The requests to `/health`.

    Example:
        >>> from faasrt.testing import FakeFaas, Reply
        >>> async with FakeFaas() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply.overloaded(retry_after=0), Reply.ok("hi\n"))
        ...     result = await manager.run_code("print('hi')", "python")
        ...     print(result.stdout.strip(), result.attempts, fake.executions, fake.requests[0]["code"])
        hi 2 1 print('hi')
    """

    def __init__(self) -> None:
        super().__init__()
        self.default = Reply()
        self.handler: Callable[[dict[str, Any]], Reply] | None = None
        self.capacity: int | None = None
        self.health: dict[str, Any] = {}
        self.health_status = 200
        self.executions = 0
        self.requests: list[dict[str, Any]] = []
        self.in_flight = 0
        self.peak = 0
        self.probes = 0
        self._script: deque[Reply] = deque()

    def script(self, *replies: Reply) -> None:
        """Add replies for the next requests, one for each, in the order in which the requests begin to come in."""
        self._script.extend(replies)

    @property
    def scripted(self) -> int:
        """How many scripted replies are left."""
        return len(self._script)

    async def _serve(self, connection: Connection) -> None:
        keep_alive = True
        while keep_alive and await connection.wait_for(1):
            try:
                keep_alive = await self._exchange(connection)
            except BadRequestError as error:
                keep_alive = False
                body = json.dumps({"error": "bad request", "details": str(error)}).encode()
                await connection.write(render_response(error.status, body, {}, keep_alive=False))
        await connection.finish()

    async def _exchange(self, connection: Connection) -> bool:
        """Read one request and answer it; tell whether the connection can serve another."""
        request, program, reply = await self._receive(connection)
        headers: Mapping[str, str] = {}
        if program is not None and reply is not _FULL:
            return await self._run(connection, request, program, reply)
        if reply is _FULL:
            status, body, headers = reply.status, reply.render_body("", 0), reply.render_headers()
        elif (request.method, request.path) == ("GET", "/health"):
            self.probes += 1
            self._notify()
            status, body = self.health_status, json.dumps(self._health()).encode()
        else:
            status, body = 404, b'{"error": "Not Found"}'
        await connection.write(render_response(status, body, headers, keep_alive=request.keep_alive))
        return request.keep_alive

    async def _receive(self, connection: Connection) -> tuple[Request, dict[str, Any] | None, Reply]:
        """Read one request; with a program, give its body and choose its reply."""
        # The next reply is taken at the first byte, as it may say at which one to reset, and it is given back when it
        # turns out not to be needed. A health probe ("GET") takes none.
        scripting = self.handler is None and connection.received.startswith(b"P")
        unused = self._script.popleft() if scripting and self._script else None
        reply = unused or self.default
        stop = reply.reset_on_request_byte if scripting else None
        if stop is not None:
            unused = None
        try:
            request = await read_request(connection, stop=stop)
            if (request.method, request.path) != ("POST", "/run_code"):
                return request, None, reply
            program = _decode(request.body)
            self.requests.append(program)
            if self.capacity is not None and self.in_flight >= self.capacity:
                return request, program, _FULL
            unused = None
        finally:
            if unused is not None:
                self._script.appendleft(unused)
        if self.handler is not None:
            try:
                reply = self.handler(program)
            except Exception as error:
                reply = Reply(status=500, details=f"the handler of the fake FaaS failed: {error!r}")
        return request, program, reply

    async def _run(self, connection: Connection, request: Request, program: dict[str, Any], reply: Reply) -> bool:
        """Do as if a program was run; tell whether the connection can serve another."""
        started = asyncio.get_running_loop().time()
        self.executions += reply.executes
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._notify()
        try:
            if reply.reset_on_request_byte is not None:
                connection.reset()
                return False
            if not await _pause(connection, reply):
                return False
            duration_ms = round((asyncio.get_running_loop().time() - started) * 1_000)
            body = reply.render_body(program.get("language"), duration_ms)
            response = render_response(reply.status, body, reply.render_headers(), keep_alive=request.keep_alive)
            await connection.write(response[: reply.reset_after])
            if reply.reset_after is not None:
                await connection.wait_sent()
                connection.reset()
                return False
            return request.keep_alive
        finally:
            self.in_flight -= 1
            self._notify()

    def _health(self) -> dict[str, Any]:
        health = _HEALTH | {"status": "healthy" if self.health_status == 200 else "unhealthy"} | self.health
        for name in ("capabilities", "limits"):
            if isinstance(health[name], dict):
                health[name] = _HEALTH[name] | health[name]
        return health


def _decode(body: bytes) -> dict[str, Any]:
    try:
        program = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(400, f"the body is not JSON: {error}") from None
    if not isinstance(program, dict):
        raise BadRequestError(400, "the body must be a JSON object")
    return program


async def _pause(connection: Connection, reply: Reply) -> bool:
    """Wait for as long as the reply says; tell whether the client is still there then."""
    if reply.hang:
        await connection.ended.wait()
        return False
    if reply.delay_s:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(reply.delay_s):
                await connection.ended.wait()
                return False
    return True
