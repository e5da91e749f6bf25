"""TLS for the connections of the embedded FaaS.

The TLS transports of asyncio and uvloop, measured with Python 3.11 and uvloop 0.23, do not treat slow clients as
transports without TLS do. Their write buffer does not include the buffer of the transport below, which may hold 190 KiB
more. With a write limit of 0, they pause their protocol although the buffer is empty, until the client sends something.
They read 256 KiB at once, and when they close, they wait for the client to close too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any, cast

from faasrt.local.http import limits

# Enough for about 600 new keys. A client asks for a new key after at least 16 million records.
_MAX_REPLY_BYTES = 16 * 2**10


class TlsConnection(asyncio.Transport, asyncio.BufferedProtocol):
    """The server's end of a TLS connection: a transport for `protocol`, and the protocol of the transport below.

    It buffers only one TLS record in each direction. The transport below has the limits, pauses and buffers, so
    `protocol` meets the same conditions as without TLS.

    If the handshake fails, or takes longer than `timeout_s`, `protocol` gets `connection_lost` without
    `connection_made`. The client may take as long to read the end of the connection.
    """

    __slots__ = (
        "_below",
        "_context",
        "_incoming",
        "_input",
        "_opened",
        "_outgoing",
        "_protocol",
        "_replied_bytes",
        "_timeout_s",
        "_timer",
        "_tls",
    )

    def __init__(self, protocol: asyncio.Protocol, context: ssl.SSLContext, timeout_s: float) -> None:
        super().__init__()
        self._protocol, self._context, self._timeout_s = protocol, context, timeout_s
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._input = bytearray(limits.READ_BYTES)
        self._replied_bytes = 0
        self._opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._below: asyncio.Transport

    async def until_open(self) -> None:
        """Wait until the handshake is complete or has failed. Cancellation closes the connection."""
        try:
            await self._opened
        except asyncio.CancelledError:
            self.abort()
            raise

    # The protocol of the transport below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._start_timer()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._input

    def buffer_updated(self, nbytes: int) -> None:
        self._incoming.write(memoryview(self._input)[:nbytes])
        try:
            if self._opened.done() or self._complete_handshake():
                self._receive()
        except ssl.SSLError:
            self._send()  # an alert that says what is wrong
            self._close_below()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if not self._opened.done():
            self._opened.set_result(False)
        self._protocol.connection_lost(exc)

    def _complete_handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._send()
        self._stop_timer()
        self._opened.set_result(True)
        self._protocol.connection_made(self)
        return True

    def _receive(self) -> None:
        pieces, is_at_end = list[bytes](), False
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := self._tls.read(limits.READ_BYTES):
                pieces.append(piece)
            is_at_end = True
        # TLS itself replies to some records, such as requests for a new key. A client that sent such records without
        # end could fill the memory, because the client need not read the replies.
        self._replied_bytes += self._outgoing.pending
        if self._replied_bytes > _MAX_REPLY_BYTES:
            self.abort()
            return
        self._send()
        if pieces:
            self._protocol.data_received(b"".join(pieces))
        if is_at_end:
            self.close()

    def _send(self) -> None:
        if data := self._outgoing.read():
            self._below.write(data)

    def _close_below(self) -> None:
        self._below.close()
        if self._below.get_write_buffer_size():  # the client does not read
            self._start_timer()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._below.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The transport of the protocol

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._below.is_closing():
            return
        rest, records = memoryview(data), list[bytes]()
        try:
            while rest:
                # One record at a time: a MemoryBIO never gives back the memory that it once needed.
                rest = rest[self._tls.write(rest[: limits.READ_BYTES]) :]
                records.append(self._outgoing.read())
        except ssl.SSLError:  # the client negotiates anew, which TLS 1.3 does not know
            self.abort()
            return
        self._below.write(b"".join(records))

    def close(self) -> None:
        if not self._below.is_closing():
            # This writes that no more data will follow, and then fails, because the client has not written the same.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._send()
            self._close_below()

    def abort(self) -> None:
        self._below.abort()

    def is_closing(self) -> bool:
        return self._below.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return self._below.is_reading()

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._below.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        own = {"sslcontext": self._context, "ssl_object": self._tls}
        return own[name] if name in own else self._below.get_extra_info(name, default)
