"""Text from results, made visible and short enough for a page."""

from __future__ import annotations

import html
import re

# Characters that a browser interprets, drops or refuses to show: control characters, bidirectional controls, line
# separators, the byte order mark, lone surrogates and noncharacters.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


def clean(text: str) -> str:
    r"""Return the text with invisible characters as escapes such as `\x1b`, and CR LF as LF."""
    return _INVISIBLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def excerpt(text: str, max_bytes: int) -> str:
    """Return the clean text, cut in the middle when its HTML is larger than `max_bytes` in UTF-8. The line that says
    how much was left out comes on top.
    """
    if len(text) <= max_bytes and _html_bytes(clean(text)) <= max_bytes:
        return clean(text)
    kept = min(max_bytes, len(text) - 1)
    while True:
        at = kept // 3
        head, tail = clean(text[:at]), clean(text[len(text) - kept + at :])
        if _html_bytes(head + tail) <= max_bytes:
            return f"{head}\n… {len(text) - kept:,} characters left out …\n{tail}"
        kept = kept * 3 // 4


def one_line(text: str, max_chars: int) -> str:
    """Return the text on one line, clean, cut at its end."""
    line = clean(" ".join(text[: 2 * max_chars].split()))
    return line if len(line) <= max_chars and len(text) <= 2 * max_chars else f"{line[:max_chars]}…"


def _html_bytes(text: str) -> int:
    return len(html.escape(text).encode())
