"""One TCP connection whose every byte and whose way of ending are in the hands of its owner."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from typing import cast

_PAUSE_BYTES = 2**18
_LINGER_S = 1.0
_SENT_POLL_S = 0.001
# From linux/sockios.h: the bytes that the kernel holds and has not sent yet. Those not yet acknowledged do not count:
# they are with the peer, whose acknowledgement may take another 40 ms.
_SIOCOUTQNSD = 0x894B


class Connection(asyncio.Protocol):
    """A connection with one reader and one writer.

    asyncio's streams would do, but for two things: they lose what came in before a reset, and do not tell that the
    peer is gone unless one reads.

    Args:
        made: Called when the connection stands.

    Attributes:
        received: What has come in and was not taken yet.
        ended: Set when nothing more will come in: the peer has closed, or reset, or the connection is closed here.
        was_reset: Whether it ended with an RST, whoever sent it.
    """

    def __init__(self, made: Callable[[Connection], None] = lambda _: None) -> None:
        self.received = bytearray()
        self.ended = asyncio.Event()
        self.was_reset = False
        self._made = made
        self._wanted = 0
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio calls this."""
        # uvloop's is one in all but name.
        self._transport = cast(asyncio.Transport, transport)
        # Then `write` returns when the kernel has everything, and closing at once loses nothing.
        self._transport.set_write_buffer_limits(0)
        self._made(self)

    def data_received(self, data: bytes) -> None:
        """Asyncio calls this."""
        self.received += data
        if len(self.received) >= max(_PAUSE_BYTES, self._wanted):
            self._transport.pause_reading()
        self._news.set()

    def eof_received(self) -> bool:
        """Asyncio calls this; the other direction stays open."""
        self.ended.set()
        self._news.set()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Asyncio calls this."""
        self.was_reset = self.was_reset or error is not None
        for event in (self.ended, self._news, self._writable, self._closed):
            event.set()

    def pause_writing(self) -> None:
        """Asyncio calls this."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Asyncio calls this."""
        self._writable.set()

    async def wait_for(self, size: int) -> bool:
        """Wait until so many bytes can be taken; False when the connection ended before.

        Cancellation: nothing is lost.
        """
        while len(self.received) < size and not self.ended.is_set():
            self._wanted = size
            self._transport.resume_reading()
            self._news.clear()
            await self._news.wait()
        return len(self.received) >= size

    def take(self, size: int) -> bytes:
        """Take up to so many bytes of what has come in."""
        data = bytes(self.received[:size])
        del self.received[:size]
        if len(self.received) < _PAUSE_BYTES:
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Hand bytes to the kernel, and wait until it has all of them.

        Raises:
            ConnectionResetError: The connection is gone.

        Cancellation: what was not written yet still will be, unless the connection is closed.
        """
        if not self._transport.is_closing():
            self._transport.write(data)
            await self._writable.wait()
        if self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")

    async def wait_sent(self) -> None:
        """Wait until the kernel has sent everything: a reset throws away what it has not. Only Linux can tell."""
        # The kernel has no event for this.
        while not self._closed.is_set() and self._unsent_bytes():  # noqa: ASYNC110
            await asyncio.sleep(_SENT_POLL_S)

    def write_eof(self) -> None:
        """Send FIN after what was written; bytes can still come in."""
        # The peer's reset may be known to the kernel before asyncio tells of it.
        with contextlib.suppress(OSError):
            if not self._transport.is_closing():
                self._transport.write_eof()

    async def finish(self) -> None:
        """Send FIN, and give the peer a second to close: a kernel that closes over unread bytes sends RST instead."""
        self.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while await self.wait_for(1):
                    self.take(len(self.received))

    def reset(self) -> None:
        """Close at once with RST; harmless when closed."""
        if not self._transport.is_closing():
            self.was_reset = True
            lingering = self._transport.get_extra_info("socket")
            lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def abort(self) -> None:
        """Close at once, with FIN where everything that came in was read; harmless when closed."""
        self._transport.abort()

    async def aclose(self) -> None:
        """Close at once, and wait until the socket is closed.

        Cancellation: it is closed all the same.
        """
        self.abort()
        await self._closed.wait()

    def _unsent_bytes(self) -> int:
        if sys.platform != "linux":
            return 0
        import fcntl

        answer = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), _SIOCOUTQNSD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)
