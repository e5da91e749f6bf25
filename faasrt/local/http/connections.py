"""Limits the number of the embedded FaaS's connections, and the time of each.

Each phase of a request has a timeout: aiohttp's keep-alive timeout for idle connections and for the head, the timeout
in `request_body.read_fields` for the body, and the timeout in this module for a client that does not read its answer.
aiohttp has neither this timeout nor a limit of connections.

A connection above the limit gets a 503 that says that nothing was started, so that its client asks another server at
once; in the backlog it would wait for no result. With TLS it is closed before the handshake, which costs the server
nothing and tells the client the same. A few connections above the limit may still send `GET /livez` and `GET /readyz`,
because a server that is only busy must not be restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, cast

from aiohttp import web

from faasrt import _strict_json
from faasrt.local.http import limits
from faasrt.local.http.body_memory import Memory, Share
from faasrt.local.http.refusals import RefusalLog
from faasrt.local.http.responses import OVERLOADED_HEADERS, error_response
from faasrt.local.time_limit import TimeLimit
from faasrt.telemetry.logs import log_error

_POLL_S = 0.05
_PROBES = (b"GET /livez ", b"GET /readyz ")


class RequestCounter:
    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._count -= 1
        if self._count == 0:
            self._none.set()

    async def until_idle(self) -> None:
        await self._none.wait()


class Listener(web.Server):
    """Creates an asyncio protocol for each accepted connection.

    Attributes:
        max_connections: A lower number does not close connections.
        ordinary: The open connections, including connections whose TLS handshake is not complete.
        refused_while_draining: The number of programs that were refused because the server is about to stop.
        draining: Whether the server refuses new programs, and closes each connection after its answer.
    """

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        max_connections: int,
        refusals: RefusalLog,
    ) -> None:
        super().__init__(handle, handler_cancellation=True)
        self.max_connections = max_connections
        self.ordinary: set[BoundedConnection] = set()
        self.spare: set[BoundedConnection] = set()
        self.refused = self.refused_while_draining = 0
        self._refusals = refusals
        self.refusing: set[asyncio.Transport] = set()
        self.draining = False
        self._time = asyncio.get_running_loop().time
        self._started = self._time()
        self.memory = Memory(self._time)

    @property
    def uptime_s(self) -> float:
        """The time since the server began to listen, in seconds."""
        return self._time() - self._started

    def admit(self, *, encrypted: bool) -> BoundedConnection | Refusal | None:
        """Return the protocol for an accepted connection; None to close it at once."""
        if len(self.ordinary) < self.max_connections:
            return BoundedConnection(self, is_spare=False)
        if len(self.spare) < limits.SPARE_CONNECTIONS:
            return BoundedConnection(self, is_spare=True)
        if not encrypted:
            return Refusal(self)
        self.refuse()
        return None

    def refuse(self) -> None:
        self.refused += 1
        self._refusals.count_connection(self.max_connections)

    async def until_closed(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while (self.ordinary or self.spare or self.connections) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    async def close(self, timeout_s: float) -> None:
        """Close all connections. Wait up to `timeout_s` for requests in flight, then cancel them."""
        await asyncio.sleep(0)  # so that the requests on accepted connections begin
        self.pre_shutdown()
        await self.shutdown(max(timeout_s, _POLL_S))  # zero would be no limit
        for transport in self.refusing:
            transport.abort()


class Refusal(asyncio.Protocol):
    """Answers that too many connections are open, and closes the connection.

    Before, it discards the input for a moment: if input is unread, the system resets the connection, and the client may
    lose the answer. This is done for a limited number of connections at once.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = writer = cast(asyncio.Transport, transport)
        self._listener.refuse()
        writer.write(_REFUSAL)
        if len(self._listener.refusing) >= limits.accepted_at_once():
            writer.close()
            return
        self._listener.refusing.add(writer)
        if writer.can_write_eof():
            with contextlib.suppress(OSError):  # the client has reset the connection
                writer.write_eof()
        self._timer = asyncio.get_running_loop().call_later(limits.SPARE_TIMEOUT_S, writer.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._timer is not None and self._transport is not None:
            self._timer.cancel()
            self._listener.refusing.discard(self._transport)


class BoundedConnection(web.RequestHandler):
    """One connection. It is closed if its client does not read an answer within REQUEST_TIMEOUT_S. A spare one may only
    send one probe.
    """

    def __init__(self, listener: Listener, *, is_spare: bool) -> None:
        super().__init__(
            listener,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=limits.REQUEST_TIMEOUT_S,
            lingering_time=limits.LINGER_S,
            # A compressed body could grow a thousandfold. `read_fields` refuses it.
            auto_decompress=False,
        )
        self._listener = listener
        self._is_answering = False
        self._answer_timer: asyncio.TimerHandle | None = None
        self._time_limit: TimeLimit | None = None
        self.is_spare = is_spare
        self._head = b""
        self._counted_in = listener.spare if is_spare else listener.ordinary
        self._counted_in.add(self)

    def begin_answer(self, share: Share, size: int) -> None:
        """Limit the time for reading an answer, from when the client has first not read everything, unless it runs
        already.
        """
        if not self._is_answering and self.transport is not None:
            self._is_answering = True
            share.answer(size, self.transport.abort)
            if self.transport.get_write_buffer_size():
                self._start_answer_timer(self.transport)

    def end_answer(self) -> None:
        self._is_answering = False
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._is_answering and self._answer_timer is None and self.transport is not None:
            self._start_answer_timer(self.transport)

    def _start_answer_timer(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self._answer_timer = loop.call_later(limits.REQUEST_TIMEOUT_S, transport.abort)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Without a buffer, the end of an answer waits for the client. Otherwise, a client that never reads the last 64
        # KiB would keep its connection for ever, because closing it waits for the buffer. The TLS transports of asyncio
        # and uvloop would take this limit for a full buffer: see `faasrt.local.http.tls`.
        cast(asyncio.Transport, transport).set_write_buffer_limits(0)
        # asyncio would read 256 KiB at once, and parse them before it serves other connections. If eight clients put
        # each byte into a chunk of its own, the others then wait five times as long.
        with contextlib.suppress(AttributeError):  # another event loop, such as uvloop; TLS reads as much by itself
            cast(Any, transport).max_size = limits.READ_BYTES
        super().connection_made(transport)
        if self.is_spare:
            self._time_limit = TimeLimit(limits.SPARE_TIMEOUT_S, self._refuse)

    def data_received(self, data: bytes) -> None:
        if self.is_spare and not self._head.startswith(_PROBES):
            self._head += data  # the head of a probe may arrive in pieces
            if not any(self._head.startswith(probe) or probe.startswith(self._head) for probe in _PROBES):
                self._refuse()
                return
        super().data_received(data)

    def _refuse(self) -> None:
        transport, self.transport = self.transport, None
        self.connection_lost(None)
        if transport is not None:
            refusal = Refusal(self._listener)
            transport.set_protocol(refusal)
            refusal.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._counted_in.discard(self)
        self.end_answer()
        if self._time_limit is not None:
            self._time_limit.cancel()
            self._time_limit = None
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # aiohttp would log a traceback that contains parts of the request.
        if request.writer.output_size > 0:
            raise ConnectionError("the request failed after a part of the answer had been sent")
        if exc is not None and status >= 500:
            log_failure(exc)
        details = (message or "").partition("\n")[0].rstrip(": ")[:200]
        error = "bad request" if status < 500 else "internal error"
        response = error_response(status, error, details or "the request is not valid HTTP")
        response.force_close()
        return response


def log_failure(error: BaseException) -> None:
    """Log the traceback of an unexpected error, without the message, which may quote a request."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log_error("a request failed with %s, raised from:\n%s", type(error).__name__, frames, name="faasrt.local")


_BODY = _strict_json.dump_bytes({"error": "overloaded", "details": "too many connections are open"})
_HEADERS = {
    "Content-Type": "application/json",
    "Content-Length": len(_BODY),
    "Connection": "close",
    **OVERLOADED_HEADERS,
}
_HEAD = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS.items())
_REFUSAL = f"HTTP/1.1 503 Service Unavailable\r\n{_HEAD}\r\n".encode() + _BODY
