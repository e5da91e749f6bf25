"""A child process in a session of its own, so that it can be ended with everything it may have started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from faasrt.local.engines.base import EngineError

STDOUT, STDERR = 1, 2


class Child(asyncio.SubprocessProtocol):
    """A process whose output goes, as it comes, to a function. Made by `start`.

    Attributes:
        killed: Whether `kill` was called.
        ended: Set when the process is gone and its output has been received to the end.
    """

    def __init__(self) -> None:
        self._receive: Callable[[int, bytes], None] = self._hold
        self._held: list[tuple[int, bytes]] = []
        self.killed = False
        self.ended = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None

    @classmethod
    async def start(cls, argv: Sequence[str], *, env: Mapping[str, str], folder: Path) -> Self:
        """Start a process that sees no more of the environment than `env`, in a folder that tells it nothing.

        Ctrl-C in a terminal does not reach it: its owner ends it in good order.

        Raises:
            EngineError: The system refuses.
        """
        loop = asyncio.get_running_loop()
        try:
            _, child = await loop.subprocess_exec(cls, *argv, env=env, cwd=folder, start_new_session=True)
        except OSError as error:
            raise EngineError(f"cannot start {argv[0]}: {error.strerror or error}") from None
        return child

    def receive(self, function: Callable[[int, bytes], None]) -> None:
        """Send the output, from what has come already, to a function.

        Args:
            function: Called with the descriptor (1 or 2) and the bytes; with none at the end of that stream.
        """
        self._receive = function
        held, self._held = self._held, []
        for fd, data in held:
            function(fd, data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio calls this)."""
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Hand output on (asyncio calls this)."""
        self._receive(fd, data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Hand the end of an output on (asyncio calls this)."""
        if fd in (STDOUT, STDERR):
            self._receive(fd, b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end (asyncio calls this)."""
        self._handle().close()
        self.ended.set()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._handle().get_pid()

    @property
    def returncode(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""
        return self._handle().get_returncode()

    def write(self, data: bytes, *, eof: bool = False) -> None:
        """Send bytes to its stdin, and with `eof` close that after them; a process that is gone gets nothing."""
        pipe: Any = self._handle().get_pipe_transport(0)
        if pipe is not None and not pipe.is_closing():
            pipe.write(data)
            if eof:
                pipe.write_eof()

    def kill(self) -> None:
        """End it and its group at once; harmless when it has ended."""
        self.killed = True
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        pipe = self._handle().get_pipe_transport(0)
        if pipe is not None:
            pipe.close()

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        await self.ended.wait()

    def _hold(self, fd: int, data: bytes) -> None:
        self._held.append((fd, data))

    def _handle(self) -> asyncio.SubprocessTransport:
        assert self._transport is not None
        return self._transport
