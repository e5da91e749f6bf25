"""The base class of FakeFaas and FaultProxy: a loopback server that can go down and up, and its connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Self, cast

from faasrt.errors import RuntimeClosedError

LINGER_S = 1.0
_BACKLOG = 4096  # with asyncio's 100, a burst of clients would wait a second for a retransmitted SYN
_SENT_POLL_S = 0.001
# From linux/sockios.h: the bytes in the kernel that are not sent yet. Bytes that are sent but not acknowledged do not
# count: the peer has them, and its acknowledgement may take another 40 ms.
_SIOCOUTQNSD = 0x894B


class LoopbackServer:
    """A server on 127.0.0.1 with its own port, opened once with `async with`.

    It belongs to the event loop in which it is opened, and is not thread-safe.

    Args:
        make_protocol: Returns the protocol of a new connection. The task that serves it calls `_admit` first.

    Attributes:
        accepted: The number of connections that it has accepted.
    """

    def __init__(self, make_protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        self.accepted = 0
        self._make_protocol = make_protocol
        self._port = 0
        # There is a server when up, a bound socket when down, and neither before opening and after closing.
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._connections: dict[asyncio.Task[Any], list[asyncio.WriteTransport]] = {}
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end; it stays the same when the server is down or closed.

        Raises:
            RuntimeClosedError: The server was not opened yet.
        """
        if not self._port:
            raise RuntimeClosedError(f"this {type(self).__name__} is not open: use it with 'async with'")
        return f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this server's counters holds; it is checked whenever a counter changes.

        There is no time limit: use `asyncio.timeout` where the condition may never hold.

        Args:
            condition: For example `lambda: fake.in_flight == 3`.
        """
        while not condition():
            await self._changed.wait()

    def down(self) -> None:
        """Refuse connections, and close the open ones, as if the process had died; harmless when down.

        The port stays reserved, and the counters are kept.
        """
        if self._server is not None:
            self._server.close()
            self._server, self._reserved = None, _bind(self._port)
        self._drop()

    async def up(self) -> None:
        """Listen again, on the same port; harmless when up.

        Raises:
            RuntimeClosedError: The server is closed, or was not opened.

        Cancellation: the server may already listen.
        """
        if self._server is None:
            if self._reserved is None:
                raise RuntimeClosedError(f"this {type(self).__name__} is closed: make a new one")
            # `start_serving` waits, so it is a call of its own: a concurrent `down` must find the server.
            self._server = await asyncio.get_running_loop().create_server(
                self._make_protocol, sock=self._reserved, backlog=_BACKLOG, start_serving=False
            )
            self._reserved = None
            await self._server.start_serving()

    async def aclose(self) -> None:
        """Close the socket and every connection. Closing twice is harmless.

        Cancellation: everything is still closed, a moment later.
        """
        self.down()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        if self._connections:
            await asyncio.wait(self._connections)

    async def __aenter__(self) -> Self:
        if self._port:
            raise RuntimeClosedError(f"a {type(self).__name__} can be opened once: make a new one")
        self._reserved = _bind(0)
        self._port = self._reserved.getsockname()[1]
        try:
            await self.up()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _admit(self, transport: asyncio.WriteTransport) -> list[asyncio.WriteTransport]:
        """Count a connection as open for as long as the current task runs.

        Returns:
            The transports that are closed with it; more can be added.
        """
        task = cast(asyncio.Task[Any], asyncio.current_task())
        self._connections[task] = [transport]
        task.add_done_callback(self._forget)
        self.accepted += 1
        if self._server is None:
            self._drop()  # asyncio accepted the connection just before the server went down
        self._notify()
        return self._connections[task]

    def _forget(self, task: asyncio.Task[Any]) -> None:
        del self._connections[task]
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed.clear()

    def _drop(self, *, by_reset: bool = False) -> None:
        """Close every connection, and cancel the tasks that serve them."""
        for task, transports in self._connections.items():
            for transport in transports:
                reset(transport) if by_reset else transport.abort()
            task.cancel()


def reset(transport: asyncio.WriteTransport) -> None:
    """Close a connection at once with RST; harmless when closed."""
    if not transport.is_closing():
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def write_eof(transport: asyncio.WriteTransport) -> None:
    """Send FIN after the written bytes; the other direction stays open. Harmless when closed."""
    # The kernel may have seen a reset by the peer that asyncio has not reported yet.
    with contextlib.suppress(OSError):
        if not transport.is_closing():
            transport.write_eof()


async def wait_sent(transport: asyncio.WriteTransport, *, by_kernel: bool = False) -> None:
    """Wait until the kernel has all written bytes; `by_kernel`, until it has sent them, which only Linux reports.

    A reset discards bytes that are not sent yet.
    """
    # asyncio has no event for this.
    while not transport.is_closing() and (  # noqa: ASYNC110
        transport.get_write_buffer_size() or (by_kernel and _unsent_bytes(transport))
    ):
        await asyncio.sleep(_SENT_POLL_S)


def _unsent_bytes(transport: asyncio.WriteTransport) -> int:
    if sys.platform != "linux":
        return 0
    import fcntl

    sock = transport.get_extra_info("socket")
    return int.from_bytes(fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, bytes(4)), sys.byteorder)


def _bind(port: int) -> socket.socket:
    """Reserve a port: no other program can bind it, and connecting to it is refused until a server listens."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", port))
    return reserved
