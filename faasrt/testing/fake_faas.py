"""FakeFaaS: a FaaS on a real socket that sends scripted answers, and does not run programs."""

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

from faasrt.inputs import INPUT_FIELDS
from faasrt.languages import Language
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
    "languages": {
        language.value: {"input": [*INPUT_FIELDS], "compile_limit_s": 0 if language.has_return_val else 30}
        for language in Language
    },
}
_FULL = Reply(status=429, details="the capacity is used up", retry_after=1, not_started=True)
_NOT_FOUND = Reply(status=404, body=b'{"error": "Not Found"}')
_MAX_LINE_BYTES = 65_536
_KEEP_ALIVE_S = 86_400.0


class FakeFaaS(LoopbackServer):
    r"""A scripted FaaS on 127.0.0.1, for tests: `async with FakeFaaS() as fake: fake.url`.

    The answer to a program is the first of these that applies: status 429 if `capacity` is used up; the reply of
    `handler`; the next reply passed to `script`; `default`. All of them can be changed at any time. A client that
    closes its sending half counts as disconnected, and gets no answer.

    Args:
        host: The IPv4 address on which it listens. On Linux, several fakes at 127.0.0.1, 127.0.0.2 and so on can have
            the same port, as the replicas behind one name. Default: "127.0.0.1".
        port: The port. Default: 0, which takes a free one.

    Attributes:
        default: The reply if no other one applies. Default: `Reply()`, a program that succeeded.
        handler: A function that takes the decoded body of a request and returns the reply. If it raises an error, the
            answer has status 500. With a `reset_on_request_byte`, the connection is reset when the request has been
            read. Default: None.
        capacity: The maximum number of programs in flight. A further program is answered with 429, `Retry-After: 1` and
            `x-faasrt-not-started: 1`, and uses no scripted reply. Default: None, no limit.
        health: Fields for the answer to `GET /health`, merged into the default fields; `capabilities` and `limits` are
            merged key by key. By default the FaaS is lossless, so that programs are sent without envelopes.
        health_status: The HTTP status of `/health`. Default: 200.
        executions: The number of programs that count as run: the request was read completely, and the reply has
            `Reply.executes`.
        requests: The decoded bodies of `/run_code`, including refused ones, in the order in which they were read.
        in_flight: The number of requests that were read and not answered yet, without those refused for `capacity`.
        peak: The highest value of `in_flight`.
        probes: The number of requests to `/health`.

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
        """Add replies for the next requests, one per request, in the order in which the requests are read.

        A reply with `reset_on_request_byte` is used for the next request that begins to arrive.
        """
        self._script.extend(replies)

    @property
    def scripted(self) -> int:
        """The number of scripted replies that are left."""
        return len(self._script)

    def _next_reply(self) -> Reply:
        return self._script.popleft() if self._script else self.default

    def _next_request_reset(self) -> Reply | None:
        """Return the reply for a request that begins to arrive, if this reply resets the connection; else None."""
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
        """Answer as if the program had run. aiohttp cancels this when the client disconnects."""
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
    """A connection in aiohttp. If the reply may reset the connection, aiohttp gets only a complete request."""

    def __init__(self, fake: FakeFaaS) -> None:
        loop, server = asyncio.get_running_loop(), web.Server(fake._handle, handler_cancellation=True)
        options: dict[str, Any] = {"access_log": None, "keepalive_timeout": _KEEP_ALIVE_S}
        super().__init__(server, loop=loop, max_line_size=_MAX_LINE_BYTES, max_field_size=_MAX_LINE_BYTES, **options)
        self._fake = fake
        self._is_idle = True
        self._chosen: Reply | None = None
        self._held: bytearray | None = None

    async def start(self) -> None:
        self._fake._admit(cast(asyncio.Transport, self.transport))
        await super().start()

    def data_received(self, data: bytes) -> None:
        """Pass bytes to aiohttp, but hold back a request if its reply may reset it. asyncio calls this."""
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
        """Return the reply that `data_received` chose for the completed request; None if it chose none."""
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
    """A response that consists of exactly the bytes of a reply, including the head."""

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
        """Do nothing, because the head is part of the bytes."""

    async def send(self) -> None:
        """Send the bytes, and then the reset if there is one. A second call does nothing."""
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
            # The kernel sends RST instead of FIN if it closes a socket with unread bytes. So wait up to a second for
            # the client to close first; aiohttp then cancels this.
            self._connection.close()
            write_eof(self._connection.transport)
            await asyncio.sleep(LINGER_S)


def _refuse(request: web.BaseRequest, status: int, details: str) -> web.StreamResponse:
    body = json.dumps({"error": "bad request", "details": details}).encode()
    return _Response(request, Reply(status=status, body=body, headers={"Connection": "close"}))


def _request_size(received: bytearray) -> float:
    """Return the size of a request in bytes, including its head; infinity until the head is complete."""
    end = received.find(b"\r\n\r\n", 0, _MAX_LINE_BYTES)
    length = re.search(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", received[: end + 2], re.IGNORECASE)
    return end + 4 + int(length[1] if length else 0) if end >= 0 else math.inf
