"""Decodes streams, and cuts long ones to their head and tail, with a marker in between that states the bytes lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

STREAM_NAMES = ("stdout", "stderr", "ret_val")
_MARKER = "\n... {} bytes cut ...\n"
_MARKER_START = _MARKER.partition("{")[0]
_ANY_MARKER = re.compile(r"\n\.\.\. [0-9]{1,16} bytes cut \.\.\.\n")
_SURROGATE = rb"\xed[\xa0-\xbf][\x80-\xbf]"
# Begins with a fixed byte, which the module `re` finds ten times as fast as a group.
_SURROGATES = re.compile(rb"(%b(?:%b)*+)" % (_SURROGATE, _SURROGATE))
_MAX_SURROGATES = 10_000


def decode(data: bytes) -> str:
    """Decode UTF-8, which may contain lone surrogates. Other bytes become U+FFFD."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        pass
    # Every second part is a run of surrogates. With very many runs, the last ones become U+FFFD too.
    parts = _SURROGATES.split(data, _MAX_SURROGATES)
    return "".join(part.decode("utf-8", ("replace", "surrogatepass")[index % 2]) for index, part in enumerate(parts))


class TextDecoder:
    """Decodes a stream piece by piece. The texts together are `decode` of the whole stream."""

    def __init__(self) -> None:
        self._incomplete = b""

    def feed(self, data: bytes) -> str:
        data = self._incomplete + data
        size = _incomplete_bytes(data)
        self._incomplete = data[len(data) - size :]
        return decode(data[: len(data) - size])

    def finish(self) -> str:
        data, self._incomplete = self._incomplete, b""
        return decode(data)


def _incomplete_bytes(data: bytes) -> int:
    """Return the number of bytes at the end that may be the beginning of a character."""
    for size in range(1, min(4, len(data) + 1)):
        byte = data[-size]
        if byte >= 0xC0:  # the first byte of a character of two to four bytes
            return size if size < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            break
    return 0


def cut(data: bytes, limit: int) -> tuple[str, bool]:
    """Decode a stream, cut it to `limit` bytes of UTF-8 with its marker, and return whether it was cut. `data` may
    contain lone surrogates; bytes that are not UTF-8 become U+FFFD.
    """
    return cut_text(decode(data), limit)


def join_cut(head: bytes, tail: bytes, size: int, limit: int) -> str:
    """Join the head and the tail of a stream of `size` bytes with the marker between them, cut to `limit` bytes of
    UTF-8, at least 1.
    """
    # The longest possible marker: its number has at most as many digits as the size of the stream.
    room = limit - len(_MARKER.format(size))
    if room <= 0:
        return _decode_head(head[:limit])
    head, tail = head[: room - room // 2], tail[max(0, len(tail) - room // 2) :]
    marker = _MARKER.format(size - len(head) - len(tail))
    return _decode_head(head) + marker + _decode_tail(tail)


def _decode_head(data: bytes) -> str:
    """Decode without the incomplete character at the end."""
    return decode(data[: len(data) - _incomplete_bytes(data)])


def _decode_tail(data: bytes) -> str:
    """Decode without the incomplete character at the beginning."""
    start = 0
    while start < min(3, len(data)) and 0x80 <= data[start] < 0xC0:
        start += 1
    return decode(data[start:])


def find_marker(text: str) -> slice | None:
    """Return the position of the marker in a text that was cut; of several, the most central one."""
    middle = len(text) // 2
    at, before = middle, None
    while before is None and (at := text.rfind(_MARKER_START, 0, at)) >= 0:
        before = _ANY_MARKER.match(text, at)
    after = _ANY_MARKER.search(text, middle)
    found = [slice(*match.span()) for match in (before, after) if match]
    return min(found, key=lambda span: abs(span.start + span.stop - len(text)), default=None)


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which are not characters and cannot be sent."""
    return text.encode(errors="replace").decode()


def cut_text(text: str, limit: int) -> tuple[str, bool]:
    """Cut a text to a size in UTF-8 bytes, like `cut`. A text within the limit is returned unchanged."""
    if 4 * len(text) <= limit:
        return text, False
    data = text.encode("utf-8", "surrogatepass")
    return (text, False) if len(data) <= limit else (join_cut(data, data, len(data), limit), True)


def cut_texts(texts: Mapping[str, str], limit: int) -> tuple[dict[str, str], frozenset[str]]:
    found, cut_names = dict(texts), []
    for name, text in texts.items():
        if 4 * len(text) > limit:
            found[name], was_cut = cut_text(text, limit)
            if was_cut:
                cut_names.append(name)
    return found, frozenset(cut_names)


class OutputBuffer:
    """Collects a stream, and keeps its head and its tail. A stream of up to twice the limit is kept as a whole.

    Args:
        limit: The number of UTF-8 bytes to which `cut` cuts the stream.
    """

    def __init__(self, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._head, self._tail = bytearray(), bytearray()

    def add(self, data: bytes) -> None:
        """Add the next bytes. The work is linear in their number."""
        self.size += len(data)
        room = self._limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._limit + 1:
            del self._tail[: -self._limit - 1]

    @property
    def data(self) -> bytes:
        return bytes(self._head + self._tail)

    def map(self, function: Callable[[bytes], bytes]) -> OutputBuffer:
        mapped = OutputBuffer(self._limit)
        if self._is_whole:
            mapped.add(function(self.data))
        else:
            mapped.size = self.size
            mapped._head, mapped._tail = (bytearray(function(bytes(part))) for part in (self._head, self._tail))
        return mapped

    def cut(self) -> tuple[str, bool]:
        if not self.size:
            return "", False
        if self._is_whole:
            return cut(self.data, self._limit)
        head, tail = (decode(bytes(part)).encode("utf-8", "surrogatepass") for part in (self._head, self._tail))
        return join_cut(head, tail, self.size, self._limit), True

    @property
    def _is_whole(self) -> bool:
        return self.size == len(self._head) + len(self._tail)
