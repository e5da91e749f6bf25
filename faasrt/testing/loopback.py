from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Self, cast

from faasrt._attribute_docs import list_attributes
from faasrt.errors import RuntimeClosedError

LINGER_S = 1.0
_BACKLOG = 4096  # asyncio's default of 100 would make a burst of clients wait for a retransmitted SYN
_SENT_POLL_S = 0.001
# From linux/sockios.h: the number of bytes in the kernel that are not sent yet. This does not count bytes that are not
# acknowledged yet: the peer has them, and the acknowledgement may take another 40 ms.
_SIOCOUTQNSD = 0x894B


@list_attributes
class LoopbackServer:
    """A server on 127.0.0.1 with its own port, opened once with `async with`.

    It belongs to the event loop in which it is opened, and is not thread-safe.

    Args:
        make_protocol: Returns the protocol for a new connection. The task that serves the connection must first call
            `_admit`.
        host: The loopback address.
        port: The port; 0 takes a free one.
    """

    def __init__(
        self, make_protocol: Callable[[], asyncio.BaseProtocol], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.accepted = 0
        """The number of accepted connections."""
        self._make_protocol = make_protocol
        self._host = host
        self._wanted_port, self._port = port, 0
        # `_server` is set while the server is up, and `_reserved` while it is down.
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._connections: dict[asyncio.Task[Any], list[asyncio.WriteTransport]] = {}
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash. It does not change when the server is down or closed.

        Raises:
            RuntimeClosedError: The server was not opened yet.
        """
        if not self._port:
            raise RuntimeClosedError(f"this {type(self).__name__} is not open: use it with 'async with'")
        return f"http://{self._host}:{self._port}"

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the counters of this server is true. It is checked when a counter changes.

        There is no time limit: use `asyncio.timeout` if the condition may never be true.

        Args:
            condition: A function, for example `lambda: fake.in_flight == 3`.
        """
        while not condition():
            await self._changed.wait()

    def down(self) -> None:
        """Refuse connections, and close the open ones, as if the process had died. Harmless if already down.

        The port stays reserved, and the counters are kept.
        """
        if self._server is not None:
            self._server.close()
            self._server, self._reserved = None, _bind(self._host, self._port)
        self._drop()

    async def up(self) -> None:
        """Listen again, on the same port. Harmless if already up.

        Raises:
            RuntimeClosedError: The server is closed, or was not opened.

        Cancellation: the server may already listen.
        """
        if self._server is None:
            if self._reserved is None:
                raise RuntimeClosedError(f"this {type(self).__name__} is closed: make a new one")
            # Call `start_serving` separately, because it waits: a concurrent `down` must find `_server`.
            self._server = await asyncio.get_running_loop().create_server(
                self._make_protocol, sock=self._reserved, backlog=_BACKLOG, start_serving=False
            )
            self._reserved = None
            await self._server.start_serving()

    async def aclose(self) -> None:
        """Close the socket and every connection. Closing twice is harmless.

        Cancellation: the socket and the connections are still closed, in the background.
        """
        for opened in (self._server, self._reserved):
            if opened is not None:
                opened.close()
        self._server = self._reserved = None
        self._drop()
        if self._connections:
            await asyncio.wait(self._connections)

    async def __aenter__(self) -> Self:
        if self._port:
            raise RuntimeClosedError(f"a {type(self).__name__} can be opened only once: make a new one")
        self._reserved = _bind(self._host, self._wanted_port)
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
        """Count a connection as open until the current task ends. Return the transports that are closed together with
        it, to which the caller may append.
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
        for task, transports in self._connections.items():
            for transport in transports:
                reset(transport) if by_reset else transport.abort()
            task.cancel()


def reset(transport: asyncio.WriteTransport) -> None:
    """Close a connection at once, with RST. Harmless if already closed."""
    if not transport.is_closing():
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def write_eof(transport: asyncio.WriteTransport) -> None:
    """Send FIN after the written bytes; the other direction stays open. Harmless if already closed."""
    # write_eof raises OSError if the peer has reset the connection and asyncio has not reported this yet.
    with contextlib.suppress(OSError):
        if not transport.is_closing():
            transport.write_eof()


async def wait_sent(transport: asyncio.WriteTransport, *, by_kernel: bool = False) -> None:
    """Wait until all written bytes are in the kernel. With `by_kernel`, on Linux, wait until the kernel has sent them.

    Use this before a reset, which discards bytes that are not sent yet.
    """
    # asyncio has no event for this, so poll.
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


def _bind(host: str, port: int) -> socket.socket:
    """Reserve a port. No other program can bind it, and connections are refused until a server listens."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((host, port))
    return reserved
