"""How a text that is too long is cut: its head and its tail stay, and a marker says how much is gone."""

from __future__ import annotations

_MARKER = "\n... {} bytes cut ...\n"


def cut(data: bytes, limit: int) -> tuple[str, bool]:
    """Decode a stream and cut it to a size in UTF-8 bytes.

    Args:
        data: UTF-8 bytes, with lone surrogates where a program printed some; what is neither becomes U+FFFD.
        limit: The most bytes to keep, the marker included; from 1.

    Returns:
        The text, and whether it was cut.
    """
    if len(data) <= limit:
        text = _decode(data)
        # A replaced byte grows to three: the limit is on what the reader gets.
        if "\ufffd" not in text or len(data := text.encode("utf-8", "surrogatepass")) <= limit:
            return text, False
    # As wide as the marker can get: the figure in it never has more digits than the whole size.
    room = limit - len(_MARKER.format(len(data)))
    if room <= 0:
        return data[:limit].decode("utf-8", "ignore"), True
    tail = room // 2
    head = data[: room - tail].decode("utf-8", "ignore")
    return head + _MARKER.format(len(data) - room) + data[len(data) - tail :].decode("utf-8", "ignore"), True


def cut_text(text: str, limit: int) -> tuple[str, bool]:
    """Cut a text to a size in UTF-8 bytes, as `cut` does; a text within the limit comes back untouched."""
    if len(text) * 4 <= limit:
        return text, False
    data = text.encode("utf-8", "surrogatepass")
    return (text, False) if len(data) <= limit else cut(data, limit)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")
