"""FakeFaas: a FaaS on a real socket that sends scripted answers and runs no programs."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import anyio
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from faasrt.testing.loopback import LINGER_S, LoopbackServer, reset, wait_sent, write_eof
from faasrt.testing.replies import Reply

_HEALTH: dict[str, Any] = {
    "status": "healthy",
    "version": "fake",
    "capabilities": {
        "lossless": True,
        "enforces_timeouts": True,
        "cancels_on_disconnect": True,
        "validates": False,
    },
    "limits": {},
}
_FULL = Reply(status=429, details="the capacity is used up", retry_after=1, not_started=True)
_NOT_FOUND = Reply(status=404, body=b'{"error": "Not Found"}')
_MAX_LINE_BYTES = 65_536
_KEEP_ALIVE_S = 86_400.0


class FakeFaas(LoopbackServer):
    r"""A scripted FaaS on 127.0.0.1, for tests: `async with FakeFaas() as fake: fake.url`.

    The answer to a program is the first of these that applies: 429 when `capacity` is used up; the reply of `handler`;
    the next reply given to `script`; `default`. All of them can be changed at any time. A client that closes its
    sending half counts as disconnected, and gets no answer.

    Attributes:
        default: The reply when nothing else is scripted; initially that of a program that succeeded.
        handler: Takes the decoded body of a request and returns its reply; an exception is answered with 500. A
            `reset_on_request_byte` of this reply takes effect when the request has been read.
        capacity: The most programs in flight; None for no limit. A further program is answered with 429,
            `Retry-After: 1` and `x-faasrt-not-started: 1`, and uses no scripted reply.
        health: Fields for the answer of `GET /health`, merged into the default ones; `capabilities` and `limits` are
            merged key by key. By default the FaaS is lossless, so that programs are sent without envelopes.
        health_status: The HTTP status of `/health`.
        executions: The number of programs that count as run: their request was read completely, and `Reply.executes`.
        requests: The decoded bodies of `/run_code`, in the order in which they were read, refused ones included.
        in_flight: The number of requests that were read but not answered yet, without those refused for `capacity`.
        peak: The highest value of `in_flight`.
        probes: The number of requests to `/health`.

    Example:
        >>> from faasrt.testing import FakeFaas, Reply
        >>> async with FakeFaas() as fake, RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}) as manager:
        ...     fake.script(Reply.overloaded(retry_after=0), Reply.ok("hi\n"))
        ...     result = await manager.run_code("print('hi')", "python")
        ...     print(result.stdout.strip(), result.attempts, fake.executions, fake.requests[0]["code"])
        hi 2 1 print('hi')
    """

    def __init__(self) -> None:
        super().__init__(lambda: _Connection(self))
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
        """Add replies for the next requests, one for each, in the order in which the requests are read.

        A reply with `reset_on_request_byte` goes to the next request that begins.
        """
        self._script.extend(replies)

    @property
    def scripted(self) -> int:
        """The number of scripted replies that are left."""
        return len(self._script)

    def _next_reply(self) -> Reply:
        return self._script.popleft() if self._script else self.default

    def _next_request_reset(self) -> Reply | None:
        """Return the reply to a request that begins if it resets the connection within the request."""
        reply = self._script[0] if self._script else self.default
        return self._next_reply() if self.handler is None and reply.reset_on_request_byte is not None else None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if "Transfer-Encoding" in request.headers:
            return _refuse(request, 411, "a body needs a Content-Length")
        body = await request.content.read()
        request_reset = cast(_Connection, request.protocol).end_request()
        if (request.method, request.path) == ("GET", "/health"):
            self.probes += 1
            self._notify()
            return _Response(request, Reply(status=self.health_status, body=json.dumps(self._health()).encode()))
        if (request.method, request.path) != ("POST", "/run_code"):
            return _Response(request, _NOT_FOUND)
        try:
            program = json.loads(body)
        except (ValueError, RecursionError) as error:
            return _refuse(request, 400, f"the body is not JSON: {error}")
        if not isinstance(program, dict):
            return _refuse(request, 400, "the body must be a JSON object")
        self.requests.append(program)
        if self.capacity is not None and self.in_flight >= self.capacity:
            return _Response(request, _FULL)
        try:
            reply = self.handler(program) if self.handler else request_reset or self._next_reply()
        except Exception as error:
            reply = Reply(status=500, details=f"the handler of the fake FaaS failed: {error!r}")
        return await self._run(request, program, reply)

    async def _run(self, request: web.BaseRequest, program: dict[str, Any], reply: Reply) -> web.StreamResponse:
        """Answer as if the program had been run. aiohttp cancels this when the client disconnects."""
        started = asyncio.get_running_loop().time()
        self.executions += reply.executes
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._notify()
        try:
            if reply.reset_on_request_byte is not None:
                reply = Reply(reset_after=0)
            if reply.hang:
                await anyio.sleep_forever()
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
            duration_ms = round((asyncio.get_running_loop().time() - started) * 1_000)
            response = _Response(request, reply, program.get("language"), duration_ms)
            await response.send()
            return response
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
    """A connection in aiohttp. It holds back a request that its reply may reset until the request is complete."""

    def __init__(self, fake: FakeFaas) -> None:
        loop, server = asyncio.get_running_loop(), web.Server(fake._handle, handler_cancellation=True)
        options: dict[str, Any] = {"access_log": None, "keepalive_timeout": _KEEP_ALIVE_S}
        super().__init__(server, loop=loop, max_line_size=_MAX_LINE_BYTES, max_field_size=_MAX_LINE_BYTES, **options)
        self._fake = fake
        self._is_idle = True
        self._chosen: Reply | None = None
        self._held: bytearray | None = None

    async def start(self) -> None:
        """Serve the connection to its end; aiohttp runs this in a task."""
        self._fake._admit(cast(asyncio.Transport, self.transport))
        await super().start()

    def data_received(self, data: bytes) -> None:
        """Pass on bytes, except those of a request that its reply may reset; asyncio calls this."""
        if self._is_idle and data:
            self._is_idle = False
            # A health probe ("GET") uses no reply.
            self._chosen = self._fake._next_request_reset() if data.startswith(b"P") else None
            self._held = bytearray() if self._chosen else None
        if self._chosen is not None and self._held is not None:
            self._held += data
            stop = cast(int, self._chosen.reset_on_request_byte)
            if _request_size(self._held) > min(stop, len(self._held)):
                if len(self._held) >= stop:
                    reset(cast(asyncio.Transport, self.transport))
                return
            data, self._held = bytes(self._held), None
        super().data_received(data)

    def end_request(self) -> Reply | None:
        """Return the reply that `data_received` chose for the completed request, or None."""
        chosen, self._chosen, self._is_idle = self._chosen, None, True
        return chosen

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Return the answer to bytes that are not HTTP, or to an unexpected error in this package."""
        if status != 400:
            return super().handle_error(request, status, exc, message)
        return _refuse(request, 431 if isinstance(exc, LineTooLong) else 400, message or "")


class _Response(web.StreamResponse):
    """A response that consists of the bytes of a reply only."""

    def __init__(self, request: web.BaseRequest, reply: Reply, language: Any = "", duration_ms: int = 0) -> None:
        super().__init__()
        self._connection = cast(_Connection, request.protocol)
        self._is_kept = request.keep_alive and reply.headers.get("Connection") != "close"
        self._resets = reply.reset_after is not None
        self._unsent = reply.render(language, duration_ms, keep_alive=self._is_kept)[: reply.reset_after]

    @property
    def keep_alive(self) -> bool:
        """Whether the connection can serve another request."""
        return self._is_kept

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: the head is part of the bytes."""

    async def send(self) -> None:
        """Send the bytes, and the reset that comes after them; the second call does nothing."""
        transport, data, self._unsent = self._connection.transport, self._unsent, b""
        if transport is not None and not transport.is_closing():
            transport.write(data)
            await wait_sent(transport, by_kernel=self._resets)
            if self._resets:
                reset(transport)

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the response, and end the connection unless it is kept."""
        await self.send()
        if not self._is_kept and self._connection.transport is not None:
            # A kernel that closes over unread bytes sends RST in place of FIN, so the client gets a second to close
            # first. Then aiohttp cancels this.
            self._connection.close()
            write_eof(self._connection.transport)
            await asyncio.sleep(LINGER_S)


def _refuse(request: web.BaseRequest, status: int, details: str) -> web.StreamResponse:
    body = json.dumps({"error": "bad request", "details": details}).encode()
    return _Response(request, Reply(status=status, body=body, headers={"Connection": "close"}))


def _request_size(received: bytearray) -> float:
    """Return the size of a request in bytes; infinite until its head is complete."""
    end = received.find(b"\r\n\r\n", 0, _MAX_LINE_BYTES)
    length = re.search(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", received[: end + 2], re.IGNORECASE)
    return end + 4 + int(length[1] if length else 0) if end >= 0 else math.inf
