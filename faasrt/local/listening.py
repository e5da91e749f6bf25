"""The listening sockets of the embedded FaaS, and the tasks of its engines."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from ssl import SSLContext

from faasrt.errors import ConfigurationError, ServerError
from faasrt.local import http_limits
from faasrt.local.connections import Listener
from faasrt.local.engines.base import Engine


class ListeningSockets:
    """Accepts connections for a listener. `ssl` has the certificates of the server; None for plain HTTP."""

    def __init__(self, listener: Listener, ssl: SSLContext | None) -> None:
        self._listener, self._ssl = listener, ssl
        self._servers: list[asyncio.Server] = []
        self._is_closed = False

    async def open(self, host: str, port: int) -> str:
        """Listen on an address, and return the base URL. Raise ConfigurationError if that is not possible."""
        try:
            self._servers = [await self._serve(self._ssl, host=host, port=port)]
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}") from None
        host, port = self._servers[0].sockets[0].getsockname()[:2]
        scheme = "http" if self._ssl is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def replace_certificates(self, ssl: SSLContext) -> None:
        """Use other certificates for new connections. The sockets, and connections in their backlog, are kept."""
        # asyncio has no other way to change the certificates of a server.
        for server in [*self._servers]:
            for one in server.sockets:
                copy = socket.fromfd(one.fileno(), one.family, one.type)
                self._servers.append(await self._serve(ssl, sock=copy))
            self._servers.remove(server)
            server.close()
        if self._is_closed:
            self.close()

    def close(self) -> None:
        self._is_closed = True
        for server in self._servers:
            server.close()

    async def _serve(self, ssl: SSLContext | None, **address: object) -> asyncio.Server:
        timeout_s = None if ssl is None else http_limits.HANDSHAKE_TIMEOUT_S
        return await asyncio.get_running_loop().create_server(  # type: ignore[call-overload, no-any-return]
            self._listener,
            ssl=ssl,
            backlog=http_limits.backlog(),
            ssl_handshake_timeout=timeout_s,
            ssl_shutdown_timeout=timeout_s,
            **address,
        )


class EngineTasks:
    """Runs engines, each in a task of a task group, until they are stopped."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: dict[Engine, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    def start(self, engines: Iterable[Engine]) -> None:
        for engine in engines:
            self._tasks[engine] = self._group.create_task(engine.run())

    async def start_ready(self, engines: Iterable[Engine], excused: Collection[str]) -> None:
        """Start engines, and wait until they can run programs. Raise ServerError if an engine fails whose name is not
        excused. The others then run on.
        """
        started = [*engines]
        self.start(started)
        for engine in started:
            await engine.until_ready_or_failed()
            if not engine.ready and engine.name not in excused:
                raise ServerError(f"{engine.name} cannot run: {engine.problem}", sent="no")

    async def stop(self, engines: Iterable[Engine]) -> None:
        """End the processes of engines that run no programs."""
        tasks = {self._tasks.pop(engine) for engine in engines if engine in self._tasks}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def stop_after(self, wait: Callable[[], Awaitable[None]], engines: Iterable[Engine]) -> None:
        """Stop engines when `wait` has returned, in a task of the group."""

        async def stop() -> None:
            await wait()
            await self.stop(engines)

        task = self._group.create_task(stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def cancel(self) -> None:
        for task in [*self._tasks.values(), *self._stopping]:
            task.cancel()
