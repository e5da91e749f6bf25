"""FaultProxy: a TCP proxy that spoils what goes through it, in either direction and at any time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from urllib.parse import urlsplit

import anyio
import attrs
from attrs.validators import and_, ge, gt, instance_of, le, optional

from faasrt.errors import ConfigurationError
from faasrt.testing.connection import Connection
from faasrt.testing.server import LoopbackServer

_SECONDS: Any = and_(ge(0), le(1e9))
_BYTES = optional(and_(instance_of(int), ge(0)))
_BURST_BYTES = 2**18
# Bandwidth is given out in portions of so long a time.
_PORTION_S = 0.02


@attrs.frozen(kw_only=True)
class Toxics:
    """What happens to the bytes of one direction. By default nothing does.

    Numbers of bytes are counted for each connection, from its beginning or from when these toxics were set on it.

    Attributes:
        latency_s: Seconds, from 0 to 1e9, for which each burst of bytes is held before it goes on; so is the end.
        bandwidth_bytes_per_s: The most bytes in a second, above 0 and at most 1e15; None for no bound.
        slice_bytes: Forward at most so many bytes at a time, at least 1; None for as many as come.
        slice_pause_s: Seconds, from 0 to 1e9, after each slice, or burst.
        limit_bytes: Close both sides (FIN) when so many bytes went on; 0 in place of the first one.
        half_close: Send FIN in this direction only, after `limit_bytes`, or with None after the first bytes; later ones
            are swallowed, and the other direction goes on.
        reset: Reset (RST) both sides of all connections now, and of each new one at once.
        reset_after_bytes: Reset both sides when so many bytes went on; 0 in place of the first one.
        timeout: Swallow everything, the end included, and keep the connection open: a cable that was pulled.

    Raises:
        ValueError: A value is out of range.
        TypeError: A value has the wrong type.

    Example:
        >>> from faasrt.testing import Toxics
        >>> slow_and_short = Toxics(latency_s=0.2, limit_bytes=100)
        >>> Toxics(latency_s=-1)
        Traceback (most recent call last):
        ValueError: 'latency_s' must be >= 0: -1
    """

    latency_s: float = attrs.field(default=0.0, validator=_SECONDS)
    bandwidth_bytes_per_s: float | None = attrs.field(default=None, validator=optional(and_(gt(0), le(1e15))))
    slice_bytes: int | None = attrs.field(default=None, validator=optional(and_(instance_of(int), ge(1))))
    slice_pause_s: float = attrs.field(default=0.0, validator=_SECONDS)
    limit_bytes: int | None = attrs.field(default=None, validator=_BYTES)
    half_close: bool = False
    reset: bool = False
    reset_after_bytes: int | None = attrs.field(default=None, validator=_BYTES)
    timeout: bool = False

    def piece_bytes(self, passed: int) -> int:
        """Tell how many bytes may go on at once when so many have."""
        sizes = [_BURST_BYTES]
        if self.slice_bytes is not None:
            sizes.append(self.slice_bytes)
        if self.bandwidth_bytes_per_s is not None:
            sizes.append(max(1, int(self.bandwidth_bytes_per_s * _PORTION_S)))
        sizes += [max(0, end - passed) for end in (self.limit_bytes, self.reset_after_bytes) if end is not None]
        return min(sizes)

    def pause_s(self, size: int) -> float:
        """Tell how many seconds a piece of so many bytes takes."""
        sending_s = size / self.bandwidth_bytes_per_s if self.bandwidth_bytes_per_s is not None else 0.0
        return sending_s + self.slice_pause_s

    def resets(self, passed: int) -> bool:
        """Tell whether the connection is reset when so many bytes went on."""
        return self.reset_after_bytes is not None and passed >= self.reset_after_bytes

    def ends(self, passed: int) -> bool:
        """Tell whether FIN is sent when so many bytes went on."""
        return passed >= self.limit_bytes if self.limit_bytes is not None else self.half_close and passed > 0


class _Direction:
    """The settings of one direction, which its pumps look at again for each piece."""

    def __init__(self) -> None:
        self.toxics = Toxics()
        self.version = 0
        self.forwarded_bytes = 0
        self._changed = asyncio.Event()

    def set(self, toxics: Toxics) -> None:
        self.toxics = toxics
        self.version += 1
        self._changed.set()
        self._changed.clear()

    async def pause(self, seconds: float) -> None:
        """Wait; new settings end it."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    async def wait_open(self) -> None:
        """Wait until something can get through."""
        await self.pause(self.toxics.latency_s)
        while self.toxics.timeout:
            await self._changed.wait()


@attrs.define(eq=False)
class _Tunnel:
    """The two connections of one client, and the scope of the pumps between them."""

    client: Connection
    server: Connection
    scope: anyio.CancelScope
    finishes: bool = False

    def reset(self) -> None:
        self.client.reset()
        self.server.reset()
        self.scope.cancel()

    def finish(self) -> None:
        self.finishes = True
        self.scope.cancel()


class FaultProxy(LoopbackServer):
    """A proxy on 127.0.0.1 in front of a server, for tests: `async with FaultProxy(server_url) as proxy: proxy.url`.

    New settings act on open connections too, and end the pauses of the old ones. `proxy.upstream = proxy.downstream =
    Toxics(...)` sets both directions; `Toxics()` heals. A client whose server cannot be reached is reset, and a reset
    by one side is passed on to the other.

    Args:
        target_url: The server's URL, with http or https; its bytes are not looked at.

    Raises:
        ConfigurationError: It is no such URL.

    Example:
        >>> from faasrt.testing import FakeFaas, FaultProxy, Toxics
        >>> async with FakeFaas() as fake, FaultProxy(fake.url) as proxy:
        ...     async with RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": proxy.url}) as manager:
        ...         proxy.downstream = Toxics(reset_after_bytes=0)
        ...         try:
        ...             await manager.run_code("print(1)", "python")
        ...         except ConnectionLostError as error:
        ...             print(error.sent, fake.executions)
        ...         proxy.downstream = Toxics()
        ...         print((await manager.run_code("print(1)", "python")).outcome)
        maybe 1
        OK
    """

    def __init__(self, target_url: str) -> None:
        super().__init__()
        try:
            parts = urlsplit(target_url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (KeyError, ValueError):
            raise ConfigurationError(f"target_url must be an http or https URL, got {target_url!r}") from None
        if not parts.hostname:
            raise ConfigurationError(f"target_url must name a host, got {target_url!r}")
        self._target = (parts.hostname, port)
        self._scheme, self._path = parts.scheme, parts.path.rstrip("/")
        self._upstream, self._downstream = _Direction(), _Direction()

    @property
    def url(self) -> str:
        """The target's URL with the proxy's address in place of the server's.

        Raises:
            RuntimeClosedError: The proxy was not opened yet.
        """
        return super().url.replace("http", self._scheme, 1) + self._path

    @property
    def upstream(self) -> Toxics:
        """What happens to the bytes from clients to the server."""
        return self._upstream.toxics

    @upstream.setter
    def upstream(self, toxics: Toxics) -> None:
        self._set(self._upstream, toxics)

    @property
    def downstream(self) -> Toxics:
        """What happens to the bytes from the server to clients."""
        return self._downstream.toxics

    @downstream.setter
    def downstream(self, toxics: Toxics) -> None:
        self._set(self._downstream, toxics)

    @property
    def bytes_upstream(self) -> int:
        """How many bytes went on to the server, over all connections."""
        return self._upstream.forwarded_bytes

    @property
    def bytes_downstream(self) -> int:
        """How many bytes went on to clients, over all connections."""
        return self._downstream.forwarded_bytes

    def reset_all(self) -> None:
        """Reset (RST) both sides of every open connection; new ones are not affected."""
        self._drop(reset=True)

    def _set(self, direction: _Direction, toxics: Toxics) -> None:
        direction.set(toxics)
        if toxics.reset:
            self.reset_all()

    async def _serve(self, connection: Connection) -> None:
        if self.upstream.reset or self.downstream.reset:
            connection.reset()
            return
        try:
            _, server = await asyncio.get_running_loop().create_connection(Connection, *self._target)
        except OSError:
            connection.reset()
            return
        try:
            async with anyio.create_task_group() as group:
                tunnel = _Tunnel(connection, server, group.cancel_scope)
                group.start_soon(self._pump, self._upstream, connection, server, tunnel)
                group.start_soon(self._pump, self._downstream, server, connection, tunnel)
            if tunnel.finishes:
                server.write_eof()
                await connection.finish()
                await server.finish()
        finally:
            if connection.was_reset:
                server.reset()
            await server.aclose()

    async def _pump(self, direction: _Direction, source: Connection, target: Connection, tunnel: _Tunnel) -> None:
        """Carry one direction of a tunnel to its end, or end the tunnel."""
        passed, version, ended = 0, direction.version, False
        while await source.wait_for(1):
            await direction.pause(direction.toxics.latency_s)
            burst = source.take(_BURST_BYTES)
            while burst and not (ended or direction.toxics.timeout):
                toxics = direction.toxics
                if version != direction.version:
                    passed, version = 0, direction.version
                piece = burst[: toxics.piece_bytes(passed)]
                burst = burst[len(piece) :]
                try:
                    await target.write(piece)
                except ConnectionError:
                    return tunnel.reset()
                passed += len(piece)
                direction.forwarded_bytes += len(piece)
                self._notify()
                if toxics.resets(passed):
                    await target.wait_sent()
                    return tunnel.reset()
                ended = toxics.ends(passed)
                if not ended:
                    await direction.pause(toxics.pause_s(len(piece)))
                elif toxics.half_close:
                    target.write_eof()
                else:
                    return tunnel.finish()
        await direction.wait_open()
        if source.was_reset:
            tunnel.reset()
        else:
            target.write_eof()
