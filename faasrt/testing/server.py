"""What FakeFaas and FaultProxy share: a loopback socket that can go down and come back, and its connections."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

from faasrt.errors import RuntimeClosedError
from faasrt.testing.connection import Connection

_BACKLOG = 4096  # asyncio's 100 would cost those who come at once a second each


class LoopbackServer(abc.ABC):
    """A server on 127.0.0.1 with a port of its own, opened once, by `async with`.

    It belongs to the event loop that it is opened in, and is not safe to use from other threads.

    Attributes:
        accepted: How many connections it has accepted.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self._port = 0
        self._held: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._life: asyncio.Task[None] | None = None
        self._ready, self._closing, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end; it stays the same while the server is down, and once closed.

        Raises:
            RuntimeClosedError: The server was not opened yet.
        """
        if not self._port:
            raise RuntimeClosedError(f"this {type(self).__name__} is not open: use it with 'async with'")
        return f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this server's counters holds; it is looked at whenever one of them changes.

        There is no time limit: put the call under `asyncio.timeout` where it may be in vain.

        Args:
            condition: For example `lambda: fake.in_flight == 3`.
        """
        while not condition():
            await self._changed.wait()

    def down(self) -> None:
        """Refuse connections, and close those that are open, as if the process had died; harmless when down.

        The port stays reserved, and the counters go on.
        """
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self._held = _bind(self._port)
        self._drop()

    async def up(self) -> None:
        """Listen again, on the same port; harmless when up.

        Raises:
            RuntimeClosedError: The server is closed, or was not opened.

        Cancellation: it may listen already.
        """
        if self._life is None or self._closing.is_set():
            raise RuntimeClosedError(f"this {type(self).__name__} is closed: make a new one")
        if self._server is None:
            assert self._held is not None
            held, self._held = self._held, None
            loop = asyncio.get_running_loop()
            # Not started in the same call, which waits: `down` has to see the server.
            self._server = await loop.create_server(
                lambda: Connection(self._start), sock=held, backlog=_BACKLOG, start_serving=False
            )
            await self._server.start_serving()

    async def aclose(self) -> None:
        """Close the socket and every connection. Closing twice is harmless.

        Raises:
            ExceptionGroup: Serving a connection failed with a defect of this package.

        Cancellation: it goes on closing.
        """
        self._closing.set()
        # The life is done already, too, where the event loop that it lived in has been closed under it.
        if self._life is not None and not self._life.done():
            await asyncio.wait({self._life})
        if self._life is not None and not self._life.cancelled():
            self._life.result()

    async def __aenter__(self) -> Self:
        if self._life is not None:
            raise RuntimeClosedError(f"a {type(self).__name__} can be opened once: make a new one")
        self._held = _bind(0)
        self._port = self._held.getsockname()[1]
        # A task of its own, and the only one outside a task group: fixtures are opened and closed in two other tasks.
        self._life = asyncio.create_task(self._live(), name=f"faasrt-{type(self).__name__}")
        try:
            await self._ready.wait()
            await self.up()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    @abc.abstractmethod
    async def _serve(self, connection: Connection) -> None:
        """Serve a connection, which is closed afterwards. A ConnectionError says that the client is gone."""

    def _notify(self) -> None:
        self._changed.set()
        self._changed.clear()

    def _drop(self, *, reset: bool = False) -> None:
        for connection, task in self._connections.items():
            if reset:
                connection.reset()
            connection.abort()
            task.cancel()

    async def _live(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._group:
                self._ready.set()
                await self._closing.wait()
                self.down()
        finally:
            self._closing.set()
            self.down()
            if self._held is not None:
                self._held.close()
                self._held = None

    def _start(self, connection: Connection) -> None:
        if self._server is None:
            connection.abort()  # asyncio had accepted it when the server went down
            return
        self.accepted += 1
        task = self._group.create_task(self._attend(connection))
        self._connections[connection] = task
        task.add_done_callback(lambda _: self._forget(connection))
        self._notify()

    async def _attend(self, connection: Connection) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await self._serve(connection)
        finally:
            await connection.aclose()

    def _forget(self, connection: Connection) -> None:
        del self._connections[connection]
        self._notify()


def _bind(port: int) -> socket.socket:
    """Reserve a port: nobody is given it, and connecting to it is refused until somebody listens."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(("127.0.0.1", port))
    except BaseException:
        held.close()
        raise
    return held
