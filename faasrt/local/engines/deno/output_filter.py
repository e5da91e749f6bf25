"""Removes the traces of Deno from the output of a program: the URL of its code, and messages about memory."""

from __future__ import annotations

import re

# V8 begins its diagnostics with the first two when its heap is full, and Deno with the last one when it cannot start a
# thread. They are not output of the program.
_DIAGNOSTICS = (b"\n<--- Last few GCs --->", b"\n\n#\n# Fatal", b"\n" + b"=" * 60 + b"\nDeno ")
_DIAGNOSTICS_BYTES = 65_536


def find_diagnostics(data: bytes) -> int:
    return min((position for start in _DIAGNOSTICS if (position := data.find(start)) >= 0), default=len(data))


class OutputFilter:
    """Replaces the URL of the program in the output of a Deno process, while the output arrives.

    Args:
        has_position: Whether to replace the URL only if a colon and a digit follow it.

    Attributes:
        holds_diagnostics: Whether to hold back diagnostics, which are output of the program unless it has run out
            of memory.
    """

    def __init__(self, url: bytes, name: bytes, has_position: bool) -> None:
        self._url = re.compile(re.escape(url) + (rb"(?=:\d)" if has_position else b"")) if url else None
        self._name = name
        # If the end of the output is a beginning of this, it may be the beginning of a URL to be replaced.
        self._unfinished = url + b":" if has_position and url else url[:-1]
        self._pending = b""
        self.holds_diagnostics = False
        self.held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Return the next bytes of the output, without an end that may be the beginning of the URL."""
        data = self._pending + data
        if self._url is not None:
            data = self._url.sub(self._name, data)
        sizes = range(min(len(self._unfinished), len(data)), 0, -1)
        size = next((size for size in sizes if data.endswith(self._unfinished[:size])), 0)
        self._pending = data[len(data) - size :]
        return self._hold(data[: len(data) - size])

    def finish(self) -> bytes:
        data, self._pending = self._pending, b""
        return self._hold(data)

    def _hold(self, data: bytes) -> bytes:
        if not self.holds_diagnostics:
            return data
        size = 0 if self.held else find_diagnostics(data)
        self.held += data[size:]
        if len(self.held) <= _DIAGNOSTICS_BYTES:
            return data[:size]
        # V8 prints less. So this is output of the program.
        self.holds_diagnostics, held, self.held = False, self.held, bytearray()
        return data[:size] + bytes(held)
