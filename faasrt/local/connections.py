"""Limits the number of the embedded FaaS's connections, and the time of each.

Each connection uses a descriptor and some memory, so their number is limited, and each phase of a request has a
timeout: aiohttp's keep-alive timeout for idle connections and for the head, the timeout in `request_body.read_body` for
the body, and the timeout in this module for a client that does not read its answer.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from faasrt import strict_json
from faasrt.local import http_limits
from faasrt.local.http_responses import OVERLOADED_HEADERS, error_response

_logger = logging.getLogger("faasrt.local")


class Listener(web.Server):
    """Creates an asyncio protocol for each accepted connection. `handle` is cancelled when the client disconnects."""

    def __init__(self, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(handle, handler_cancellation=True)
        self.max_connections = http_limits.max_connections()

    def __call__(self) -> web.RequestHandler:
        return BoundedConnection(self)


class BoundedConnection(web.RequestHandler):
    """One connection. It is closed if its client does not read an answer for REQUEST_TIMEOUT_S."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(
            listener,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=http_limits.REQUEST_TIMEOUT_S,
            lingering_time=http_limits.LINGER_S,
            # A compressed body could grow a thousandfold. `read_body` refuses it.
            auto_decompress=False,
        )
        self._listener = listener
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_limited = self._client_reads = True

    def limit_writing(self, *, limited: bool) -> None:
        """Set whether the connection is closed if its client does not read. Without the limit, the caller has one."""
        self._is_limited = limited
        self._stop_timer()
        if limited and not self._client_reads:
            self._start_timer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast(asyncio.Transport, transport)
        if len(self._listener.connections) >= self._listener.max_connections:
            # Checked here and not before, because asyncio may accept several connections before it calls this method
            # for the first of them, which counts it.
            writer.write(_REFUSAL)
            writer.close()
            self.force_close()
            return
        # Without a buffer, the transport calls `pause_writing` as soon as the client does not read fast enough.
        writer.set_write_buffer_limits(0)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._client_reads = False
        if self._is_limited:
            self._start_timer()

    def resume_writing(self) -> None:
        self._client_reads = True
        self._stop_timer()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self.transport is not None:
            loop = asyncio.get_running_loop()
            self._write_timer = loop.call_later(http_limits.REQUEST_TIMEOUT_S, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

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
    _logger.error("a request failed with %s, raised from:\n%s", type(error).__name__, frames)


_BODY = strict_json.dump_bytes({"error": "overloaded", "details": "too many connections are open"})
_HEADERS = {
    "Content-Type": "application/json",
    "Content-Length": len(_BODY),
    "Connection": "close",
    **OVERLOADED_HEADERS,
}
_HEAD = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS.items())
_REFUSAL = f"HTTP/1.1 503 Service Unavailable\r\n{_HEAD}\r\n".encode() + _BODY
