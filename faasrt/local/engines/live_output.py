"""The output of a program on its way from an engine to an answer that is sent while the program runs."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from faasrt.protocol.streams import TextDecoder

KEPT_BYTES = 2**20
"""The number of bytes of each stream to keep for the result at most, because the reader gets all of the output."""
_HIGH_BYTES = 65_536
_MAX_PIECES = 1_000  # a program that alternates between its streams fills the queue with short pieces
PIECE_BYTES = 32_768
"""The largest piece. JSON makes it at most six times as long, so that it fits into the shortest line of clients."""


class LiveOutput:
    """A queue of output from an engine, which calls the synchronous methods, to one reader.

    The engine stops reading the output of the program while the queue is full.

    Args:
        held: Whether stdout is not passed on until `release`, because a part of it may not belong to the output.
    """

    def __init__(self, *, held: bool = False) -> None:
        self.on_taken: Callable[[int], None] | None = None
        self._held = held
        self._began = time.perf_counter()
        self._pieces: deque[tuple[str, float, bytearray]] = deque()
        self._size = 0
        self._decoders = {"stdout": TextDecoder(), "stderr": TextDecoder()}
        self._changed = asyncio.Event()
        self._closed = self._discards = False

    def begin(self) -> None:
        """Record that the program begins. The times of its output count from here."""
        self._began = time.perf_counter()

    @property
    def full(self) -> bool:
        return self._size >= _HIGH_BYTES or len(self._pieces) >= _MAX_PIECES

    def put(self, stream: str, data: bytes) -> None:
        if self._discards or (self._held and stream == "stdout"):
            self._notify(len(data))
        else:
            self._add(stream, data)

    def release(self, stdout: str) -> None:
        """Add the whole stdout of a program that has ended, if it was held."""
        if self._held and not self._discards:
            self._add("stdout", stdout.encode("utf-8", "surrogatepass"))

    def close(self) -> None:
        self._closed = True
        self._changed.set()

    def discard(self) -> None:
        self._discards = True
        size, self._size = self._size, 0
        self._pieces.clear()
        self._notify(size)

    async def take(self) -> tuple[str, str, float] | None:
        """Return stream, text and seconds since the start; None at the end."""
        while True:
            if self._pieces:
                stream, elapsed_s, data = self._pieces.popleft()
                self._size -= len(data)
                self._notify(len(data))
                text = self._decoders[stream].feed(bytes(data))
            elif self._closed:
                # A stream may end with an incomplete character.
                texts = {stream: decoder.finish() for stream, decoder in self._decoders.items()}
                stream = next((stream for stream, text in texts.items() if text), "")
                if not stream:
                    return None
                text, elapsed_s = texts.pop(stream), time.perf_counter() - self._began
                for other, rest in texts.items():
                    self._add(other, rest.encode())
            else:
                self._changed.clear()
                await self._changed.wait()
                continue
            if text:
                return stream, text, elapsed_s

    def _add(self, stream: str, data: bytes) -> None:
        self._size += len(data)
        while data:
            last = self._pieces[-1] if self._pieces else None
            if last is None or last[0] != stream or len(last[2]) >= PIECE_BYTES:
                last = (stream, time.perf_counter() - self._began, bytearray())
                self._pieces.append(last)
            room = PIECE_BYTES - len(last[2])
            last[2].extend(data[:room])
            data = data[room:]
        self._changed.set()

    def _notify(self, size: int) -> None:
        if self.on_taken is not None:
            self.on_taken(size)
