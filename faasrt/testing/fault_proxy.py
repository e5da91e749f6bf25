from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import attrs
from attrs.validators import and_, ge, gt, instance_of, le, optional

from faasrt._attribute_docs import list_attributes
from faasrt.errors import ConfigurationError
from faasrt.testing.loopback import LINGER_S, LoopbackServer, reset, wait_sent, write_eof

_SECONDS: Any = and_(ge(0), le(1e9))
_BYTES = optional(and_(instance_of(int), ge(0)))
_BURST_BYTES = 2**18
# With a limited bandwidth, the proxy forwards the bytes of this time at once, and then pauses.
_PORTION_S = 0.02


@list_attributes
@attrs.frozen(kw_only=True)
class Toxics:
    """The faults in one direction of a connection; by default no faults.

    Bytes are counted per connection, from the beginning of the connection or from the time when the toxics were set,
    whichever is later.

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
    """The delay of each burst of bytes, and of the end of the connection, in seconds, from 0 to 1e9. Default: 0."""
    bandwidth_bytes_per_s: float | None = attrs.field(default=None, validator=optional(and_(gt(0), le(1e15))))
    """The maximum bytes per second, above 0 and at most 1e15. Default: None, no limit."""
    slice_bytes: int | None = attrs.field(default=None, validator=optional(and_(instance_of(int), ge(1))))
    """The maximum number of bytes to forward at a time, at least 1. Default: None, no limit."""
    slice_pause_s: float = attrs.field(default=0.0, validator=_SECONDS)
    """The pause after each slice in seconds, from 0 to 1e9; without slices, after each burst. Default: 0."""
    limit_bytes: int | None = attrs.field(default=None, validator=_BYTES)
    """Close both sides (FIN) after this number of bytes; 0 means before the first byte. Default: None."""
    half_close: bool = False
    """Whether to send FIN in this direction only, and discard the bytes after it. The FIN is sent after `limit_bytes`
    bytes, or after the first bytes if that is None. Default: False."""
    reset: bool = False
    """Whether to reset (RST) both sides of all open connections and of each new one. Default: False."""
    reset_after_bytes: int | None = attrs.field(default=None, validator=_BYTES)
    """Reset both sides after this number of bytes; 0 means before the first byte. Default: None."""
    timeout: bool = False
    """Whether to discard everything, including the end of the connection, and keep the connection open, as if the cable
    was pulled. Default: False."""

    def piece_bytes(self, passed: int) -> int:
        """Return the number of bytes to forward next, after `passed` bytes."""
        rate, limits = self.bandwidth_bytes_per_s, (self.limit_bytes, self.reset_after_bytes)
        return min(
            _BURST_BYTES if self.slice_bytes is None else self.slice_bytes,
            _BURST_BYTES if rate is None else max(1, int(rate * _PORTION_S)),
            *[max(0, limit - passed) for limit in limits if limit is not None],
        )

    def pause_s(self, size: int) -> float:
        """Return the seconds to wait after forwarding `size` bytes."""
        return self.slice_pause_s + (size / self.bandwidth_bytes_per_s if self.bandwidth_bytes_per_s else 0.0)

    def must_reset(self, passed: int) -> bool:
        """Return whether to reset the connection after `passed` bytes."""
        return self.reset_after_bytes is not None and passed >= self.reset_after_bytes

    def must_send_eof(self, passed: int) -> bool:
        """Return whether to send FIN after `passed` bytes."""
        return passed >= self.limit_bytes if self.limit_bytes is not None else self.half_close and passed > 0


class _Side(asyncio.Protocol):
    """The connection to the client, or to the server.

    asyncio's streams lose bytes that arrived before a reset, and cannot wait for bytes without reading them.
    """

    transport: asyncio.Transport

    def __init__(self, serve: Callable[[_Side], Coroutine[None, None, None]] | None = None) -> None:
        self.was_reset = False
        self._serve = serve
        self._received = bytearray()
        self._has_ended = False
        self._arrived = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._serve is not None:
            self._task = asyncio.get_running_loop().create_task(self._serve(self))

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._arrived.set()
        if len(self._received) >= _BURST_BYTES:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._has_ended = True
        self._arrived.set()
        return True  # the other direction stays open

    def connection_lost(self, error: Exception | None) -> None:
        self.was_reset = error is not None
        self.eof_received()

    async def wait_arrived(self) -> bool:
        await self._arrived.wait()
        return bool(self._received)

    def take(self) -> bytes:
        burst, self._received = bytes(self._received), bytearray()
        if not self._has_ended:
            self._arrived.clear()
            self.transport.resume_reading()
        return burst


@list_attributes
class FaultProxy(LoopbackServer):
    """A proxy on 127.0.0.1 in front of a server, for tests: `async with FaultProxy(server_url) as proxy: proxy.url`.

    New toxics affect open connections too, and end the pauses of the old toxics. `proxy.upstream = proxy.downstream =
    Toxics(...)` sets both directions, and `Toxics()` removes the faults. If the server cannot be reached, the client is
    reset. If one side resets its connection, the other side is reset too.

    Args:
        target_url: The http or https URL of the server. The bytes are not parsed.

    Raises:
        ConfigurationError: `target_url` is not an http or https URL with a host.

    Example:
        >>> from faasrt.testing import FakeFaaS, FaultProxy, Toxics
        >>> async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy:
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
        super().__init__(lambda: _Side(self._serve))
        try:
            parts = urlsplit(target_url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (KeyError, ValueError):
            raise ConfigurationError(f"target_url must be an http or https URL, got {target_url!r}") from None
        if not parts.hostname:
            raise ConfigurationError(f"target_url must contain a host, got {target_url!r}")
        self._target = (parts.hostname, port)
        self._scheme, self._path = parts.scheme, parts.path.rstrip("/")
        self.upstream = Toxics()
        """The toxics of the bytes from clients to the server. Default: `Toxics()`."""
        self.downstream = Toxics()
        """The toxics of the bytes from the server to clients. Default: `Toxics()`."""
        self.bytes_upstream = 0
        """The number of bytes forwarded to the server, over all connections."""
        self.bytes_downstream = 0
        """The number of bytes forwarded to clients, over all connections."""
        self.bytes_dropped = 0
        """The number of bytes that `timeout` and `half_close` have discarded, over all connections."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, Toxics):
            self._notify()
            if value.reset:
                self.reset_all()

    @property
    def url(self) -> str:
        """The target's URL with the proxy's address in place of the server's.

        Raises:
            RuntimeClosedError: The proxy was not opened yet.
        """
        return super().url.replace("http", self._scheme, 1) + self._path

    def reset_all(self) -> None:
        """Reset (RST) both sides of every open connection. New connections are not affected."""
        self._drop(by_reset=True)

    async def _serve(self, client: _Side) -> None:
        transports = self._admit(client.transport)
        must_close = False
        try:
            try:
                if self.upstream.reset or self.downstream.reset:
                    raise ConnectionResetError
                _, server = await asyncio.get_running_loop().create_connection(_Side, *self._target)
                transports.append(server.transport)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._forward("upstream", client, server))
                    group.create_task(self._forward("downstream", server, client))
            except* EOFError:
                must_close = True
            except* OSError:
                must_close = False
                for transport in transports:
                    reset(transport)
            # Not in the `except*`, which puts a cancellation into a group in some versions of CPython 3.11.
            if must_close:
                await _close(server, client)
        finally:
            for transport in transports:
                transport.abort()

    async def _forward(self, direction: str, source: _Side, target: _Side) -> None:
        """Forward the bytes in one direction until the connection ends. Raise EOFError if both sides must be closed,
        and OSError if both must be reset.
        """
        passed, counted_toxics, sent_eof = 0, getattr(self, direction), False
        while await source.wait_arrived():
            await self._pause(direction, getattr(self, direction).latency_s)
            burst = source.take()
            while burst and not (sent_eof or getattr(self, direction).timeout):
                toxics: Toxics = getattr(self, direction)
                if counted_toxics is not toxics:
                    passed, counted_toxics = 0, toxics
                piece = burst[: toxics.piece_bytes(passed)]
                burst = burst[len(piece) :]
                target.transport.write(piece)
                await wait_sent(target.transport, by_kernel=toxics.must_reset(passed + len(piece)))
                if target.transport.is_closing():
                    raise ConnectionResetError
                passed += len(piece)
                setattr(self, f"bytes_{direction}", getattr(self, f"bytes_{direction}") + len(piece))
                self._notify()
                if toxics.must_reset(passed):
                    raise ConnectionResetError
                sent_eof = toxics.must_send_eof(passed)
                if sent_eof and not toxics.half_close:
                    raise EOFError
                if sent_eof:
                    write_eof(target.transport)
                else:
                    await self._pause(direction, toxics.pause_s(len(piece)))
            self.bytes_dropped += len(burst)
            self._notify()
        await self._pause(direction, getattr(self, direction).latency_s)
        await self.wait_until(lambda: not getattr(self, direction).timeout)
        if source.was_reset:
            raise ConnectionResetError
        write_eof(target.transport)

    async def _pause(self, direction: str, seconds: float) -> None:
        toxics = getattr(self, direction)
        if seconds > 0:
            with anyio.move_on_after(seconds):
                await self.wait_until(lambda: getattr(self, direction) is not toxics)


async def _close(*sides: _Side) -> None:
    """Read for up to LINGER_S: the kernel sends RST instead of FIN if it closes a socket with unread bytes."""
    with anyio.move_on_after(LINGER_S):
        for side in sides:
            write_eof(side.transport)
        for side in sides:
            while await side.wait_arrived():
                side.take()
