from __future__ import annotations

import html

# Characters that a browser interprets, drops or refuses to show: control characters, bidirectional controls, line
# separators, the byte order mark, lone surrogates and noncharacters.
_INVISIBLE = (
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F),
    *range(0x2066, 0x206A), 0xFEFF, *range(0xFFF9, 0xFFFC), 0xFFFE, 0xFFFF, *range(0xD800, 0xE000),
)  # fmt: skip
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _INVISIBLE}


def clean(text: str) -> str:
    r"""Write invisible characters as escapes such as `\x1b`, and CR LF as LF."""
    return text.replace("\r\n", "\n").translate(_ESCAPES)


def excerpt(text: str, max_bytes: int) -> str:
    """Cut the clean text in the middle when its HTML is larger than `max_bytes` in UTF-8. The line that says how much
    was left out comes on top.
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
    line = clean(" ".join(text[: 2 * max_chars].split()))
    return line if len(line) <= max_chars and len(text) <= 2 * max_chars else f"{line[:max_chars]}…"


def _html_bytes(text: str) -> int:
    return len(html.escape(text).encode())
