"""Cuts long streams to their head and tail, with a marker in between that states the number of bytes lost."""

from __future__ import annotations

import re
from collections.abc import Mapping

STREAM_NAMES = ("stdout", "stderr", "ret_val")
_MARKER = "\n... {} bytes cut ...\n"
_MARKER_START = _MARKER.partition("{")[0]
_ANY_MARKER = re.compile(r"\n\.\.\. [0-9]{1,16} bytes cut \.\.\.\n")


def cut(data: bytes, limit: int) -> tuple[str, bool]:
    """Decode a stream, cut it to `limit` bytes of UTF-8 with its marker, and return the text and whether it was cut.
    `data` may contain lone surrogates; bytes that are not UTF-8 become U+FFFD.
    """
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    return cut_text(text, limit)


def join_cut(head: bytes, tail: bytes, size: int, limit: int) -> str:
    """Join the head and the tail of a stream of `size` bytes with the marker between them, cut to `limit` bytes of
    UTF-8, at least 1.
    """
    # The longest possible marker: its number has at most as many digits as the size of the stream.
    room = limit - len(_MARKER.format(size))
    if room <= 0:
        return head[:limit].decode("utf-8", "ignore")
    head, tail = head[: room - room // 2], tail[max(0, len(tail) - room // 2) :]
    marker = _MARKER.format(size - len(head) - len(tail))
    return head.decode("utf-8", "ignore") + marker + tail.decode("utf-8", "ignore")


def find_marker(text: str) -> slice | None:
    """Return the position of the marker in a text that was cut. If there are several, return the most central one."""
    middle = len(text) // 2
    at, before = middle, None
    while before is None and (at := text.rfind(_MARKER_START, 0, at)) >= 0:
        before = _ANY_MARKER.match(text, at)
    after = _ANY_MARKER.search(text, middle)
    found = [slice(*match.span()) for match in (before, after) if match]
    return min(found, key=lambda span: abs(span.start + span.stop - len(text)), default=None)


def cut_text(text: str, limit: int) -> tuple[str, bool]:
    """Cut a text to a size in UTF-8 bytes, like `cut`. A text within the limit is returned unchanged."""
    if 4 * len(text) <= limit:
        return text, False
    data = text.encode("utf-8", "surrogatepass")
    return (text, False) if len(data) <= limit else (join_cut(data, data, len(data), limit), True)


def cut_texts(texts: Mapping[str, str], limit: int) -> tuple[dict[str, str], frozenset[str]]:
    """Cut texts like `cut_text`. Return the texts by name, and the names of those that were cut."""
    found = {name: cut_text(text, limit) for name, text in texts.items() if 4 * len(text) > limit}
    cut_names = frozenset(name for name, (_, was_cut) in found.items() if was_cut)
    return {**texts, **{name: found[name][0] for name in cut_names}}, cut_names
