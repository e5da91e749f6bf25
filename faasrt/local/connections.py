"""The connections of the embedded FaaS: how many there may be, and how long a client may take.

Whoever connects holds a descriptor and some memory here. So there is a most of connections, and each phase of a request
has its time: while its head is awaited, or nothing is, aiohttp's keep-alive clock runs; the body has a clock in
`requests.read_body`; and an answer that is not taken ends the connection by the clock here.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from faasrt import strict_json
from faasrt.local import limits
from faasrt.local.answers import OVERLOADED_HEADERS, failure

_logger = logging.getLogger("faasrt.local")

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Listener(web.Server):
    """Makes a connection of everything that is accepted.

    Args:
        handle: Answers a request. It is cancelled when its client goes away.
    """

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle, handler_cancellation=True)
        self._most = limits.max_connections()

    @property
    def is_full(self) -> bool:
        """Whether another connection would be one too many."""
        return len(self.connections) >= self._most

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of a connection."""
        return _Connection(self)


class _Connection(web.RequestHandler):
    def __init__(self, listener: Listener) -> None:
        super().__init__(
            listener,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=limits.REQUEST_TIMEOUT_S,
            lingering_time=limits.LINGER_S,
            # A compressed body could grow a thousandfold; read_body refuses it.
            auto_decompress=False,
        )
        self._listener = listener
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast(asyncio.Transport, transport)
        if self._listener.is_full:
            # Looked at here, as several may have been accepted at once before the first of them is counted.
            writer.write(_REFUSAL)
            writer.close()
            self.force_close()
            return
        # Paused as soon as a byte of an answer waits for the client, so that the clock below sees every stall.
        writer.set_write_buffer_limits(0)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            loop = asyncio.get_running_loop()
            self._stalled = loop.call_later(limits.REQUEST_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_clock()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def _stop_clock(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # aiohttp would log the traceback, and in it the request.
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun when it failed")
        if exc is not None and status >= 500:
            log_failure(exc)
        words = (message or "").partition("\n")[0].rstrip(": ")[:200]
        response = failure(
            status, "bad request" if status < 500 else "internal error", words or "no HTTP that is known here"
        )
        response.force_close()
        return response


def log_failure(error: BaseException) -> None:
    """Log where an unexpected error came from; its own words are left out, as they may quote a request."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    _logger.error("a request failed with %s, raised from:\n%s", type(error).__name__, frames)


def _refusal() -> bytes:
    body = strict_json.dump_bytes({"error": "overloaded", "details": "too many connections are open"})
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **OVERLOADED_HEADERS,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n".encode() + body


_REFUSAL = _refusal()
