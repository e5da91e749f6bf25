"""Listens on a port, and accepts connections, with TLS or without it."""

from __future__ import annotations

import asyncio
import socket
from ssl import SSLContext

from faasrt.local.errors import AddressError
from faasrt.local.http import limits
from faasrt.local.http.connections import BoundedConnection, Listener, Refusal
from faasrt.local.http.tls import TlsConnection
from faasrt.telemetry.logs import log_error

_PAUSE_S = 1.0


class ListeningSockets:
    """Accepts connections for a listener.

    asyncio's own server, measured with Python 3.11, does not report to a protocol that its TLS handshake has failed, so
    connections could not be counted before it. It cannot change its certificates, resets the connections in its backlog
    when it closes, and logs an error for each of them when no descriptor is free.
    """

    def __init__(self, listener: Listener, ssl: SSLContext | None) -> None:
        self.ssl = ssl
        self._listener = listener
        self._sockets: list[socket.socket] = []
        self._connecting: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> str:
        loop, sockets = asyncio.get_running_loop(), []
        try:
            # It resolves the name, and binds a socket for each address.
            server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
            sockets = [listening.dup() for listening in server.sockets]
            server.close()
            for listening in sockets:
                listening.setblocking(False)
                listening.listen(limits.backlog())
        except (OSError, UnicodeError) as error:
            for listening in sockets:
                listening.close()
            reason = getattr(error, "strerror", None) or error
            raise AddressError(f"cannot listen on {host}:{port}: {reason}") from None
        self._sockets = sockets
        for listening in sockets:
            self._resume(listening)
        host, port = self._sockets[0].getsockname()[:2]
        scheme = "http" if self.ssl is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def close(self) -> None:
        """Accept the connections in the backlog, which the system would reset, and stop listening."""
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)
            self._accept(listening, limits.backlog())
            listening.close()

    def cancel(self) -> None:
        for task in self._connecting:
            task.cancel()

    def _resume(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening, limits.accepted_at_once())

    def _accept(self, listening: socket.socket, count: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor or no memory is free
                log_error("cannot accept connections: %s", error.strerror or error, name="faasrt.local")
                loop.remove_reader(listening)
                loop.call_later(_PAUSE_S, self._resume, listening)
                return
            protocol = self._listener.admit(encrypted=self.ssl is not None)
            if protocol is None:
                accepted.close()
                continue
            accepted.setblocking(False)
            task = loop.create_task(self._connect(accepted, protocol))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket, protocol: BoundedConnection | Refusal) -> None:
        outer: asyncio.BaseProtocol = protocol
        if self.ssl is not None:
            is_spare = isinstance(protocol, BoundedConnection) and protocol.is_spare
            timeout_s = limits.SPARE_TIMEOUT_S if is_spare else limits.HANDSHAKE_TIMEOUT_S
            outer = TlsConnection(protocol, self.ssl, timeout_s)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: outer, accepted)
        except BaseException as error:
            protocol.connection_lost(error)
            if isinstance(error, OSError):  # the connection was lost at once
                return
            raise
        if isinstance(outer, TlsConnection):
            await outer.until_open()
