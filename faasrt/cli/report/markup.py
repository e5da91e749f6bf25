"""HTML in which nothing but `element` makes tags: whatever else is put in is text, made harmless and visible."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# What a browser would obey, drop or refuse where it should show it: control characters, those that turn the direction
# of writing, line separators, the byte order mark, lone surrogates, and what is no character at all.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
_VOID = {"input", "br"}


class Markup(str):
    """HTML that `element` made."""

    __slots__ = ()


def clean(text: str) -> str:
    """Give the text with everything unseen in it as an escape; CR LF is a line end."""
    return _UNSEEN.sub(_spell, text.replace("\r\n", "\n"))


def _spell(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def excerpt(text: str, max_bytes: int) -> str:
    """Give the text, clean; when its HTML would be larger than `max_bytes`, its head and the larger part of its tail.

    Args:
        text: Any text.
        max_bytes: Bytes of HTML, as UTF-8, that what is kept may take; the words about what was left out come on top.
    """
    if len(text) <= max_bytes and _bytes_of(clean(text)) <= max_bytes:
        return clean(text)
    kept = min(max_bytes, len(text) - 1)
    while True:
        at = kept // 3
        head, tail = clean(text[:at]), clean(text[len(text) - kept + at :])
        if _bytes_of(head + tail) <= max_bytes:
            return f"{head}\n… {len(text) - kept:,} characters left out …\n{tail}"
        kept = kept * 3 // 4


def one_line(text: str, max_chars: int) -> str:
    """Give the text on one line, clean, cut at its end."""
    line = clean(" ".join(text[: 2 * max_chars].split()))
    return line if len(line) <= max_chars and len(text) <= 2 * max_chars else f"{line[:max_chars]}…"


def _bytes_of(text: str) -> int:
    return len(html.escape(text, quote=False).encode())


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Give an element.

    Args:
        name: The tag's name.
        children: Markup, which goes in as it is; None, which is left out; iterables of these; anything else is text.
        attributes: Their values are text; `class_` is `class`, other underscores are hyphens. None and False leave one
            out, True gives it no value.
    """
    parts = [f"<{name}"]
    for attribute, value in attributes.items():
        spelt = attribute.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {spelt}")
        elif value is not None and value is not False:
            parts.append(f' {spelt}="{html.escape(clean(str(value)))}"')
    inner = "".join(_markup(child) for child in children)
    return Markup("".join(parts) + (">" if name in _VOID else f">{inner}</{name}>"))


def join(*children: object) -> Markup:
    """Give the children, one after another."""
    return Markup("".join(_markup(child) for child in children))


def _markup(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return "".join(_markup(part) for part in child)
    return html.escape(clean(str(child)), quote=False)
