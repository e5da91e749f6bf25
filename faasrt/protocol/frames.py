"""Frames: how a guest program hands its record back through a server, and how it is read here.

A frame is `faasrt1:` and base64 of JSON in UTF-8, on one line:

    {"nonce": str, "final": bool, "records": [record ...]}

The nonce is that of the call: a frame without it is the user's own print. A final frame holds every record. The others
tell of the progress as cases end, and count when no final one follows: on the process's stderr, a record each, as some
servers show that stream when a process has ended hard; or, to a faithful server, as return values that hold all so far.
A record is

    {"index": int, "outcome": str, "exit_code": int | null, "ms": number, "error": {"name", "message", "traceback"},
     "stdout": stream, "stderr": stream, "ret_val": stream}

of which `error` may be missing, and `stdout` and `stderr` are when the server was trusted with them. The index is the
case's, 0 for a program, and -1 for the definitions that all cases share. A stream (`message` is one too) is a text; or
`{"base64": str}` of its
UTF-8 where escapes would grow it; or `{"head": ..., "tail": ..., "lost": int}` where it was cut inside.

The digit in the prefix is the version: it changes when a reader of today would misread a frame of tomorrow.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from faasrt import strict_json
from faasrt.protocol.streams import cut, cut_text, join_cut
from faasrt.results import Outcome, UserError

_PREFIX = "faasrt1:"
_FRAME = re.compile(_PREFIX + r"([A-Za-z0-9+/]+={0,2})")
_FRAME_LINE = re.compile(rf"\n?{_FRAME.pattern}\n?")
_ERROR_BYTES = 32_768
_LARGEST_NUMBER = 1e15
_OUTCOMES = frozenset(Outcome)


@attrs.frozen(kw_only=True)
class Record:
    """How a program or a case ended, as the guest program saw it.

    Attributes:
        texts: By name the streams that the frame holds, each cut to the limit.
        truncated: The names of those that were cut.
        duration_ms: Milliseconds of wall-clock time.
    """

    outcome: Outcome
    texts: Mapping[str, str]
    truncated: frozenset[str] = frozenset()
    error: UserError | None = None
    exit_code: int | None = None
    duration_ms: float = 0.0


@attrs.frozen(kw_only=True)
class Report:
    """All that the frames of an answer say.

    Attributes:
        records: By index.
        begun: Whether the guest program said anything at all.
        final: Whether it came to its end.
    """

    records: Mapping[int, Record] = attrs.field(factory=dict)
    begun: bool = False
    final: bool = False


def frame_bytes(max_output_bytes: int) -> int:
    """Give the size of the largest frame: three streams within their limit, in base64, and room for the rest."""
    return 4 * max_output_bytes + 204_800


def read_frames(texts: Iterable[str], nonce: str, max_output_bytes: int) -> Report:
    """Find the frames of a call in what its server gave back. What is no frame of the call is passed over."""
    records: dict[int, Record] = {}
    begun = final = False
    for text in texts:
        for match in _FRAME.finditer(text):
            frame = _decode(match[1])
            if frame is None or frame.get("nonce") != nonce:
                continue
            begun, final = True, final or frame.get("final") is True
            listed = frame.get("records")
            for fields in listed if isinstance(listed, list) else ():
                read = _read_record(fields, max_output_bytes)
                if read is not None:
                    records[read[0]] = read[1]
    return Report(records=records, begun=begun, final=final)


def without_frames(text: str, nonce: str) -> str:
    """Give a text without the lines that are frames of the call."""

    def drop(match: re.Match[str]) -> str:
        frame = _decode(match[1])
        return "" if frame is not None and frame.get("nonce") == nonce else match[0]

    # The guest program puts each on a line of its own, by a line end before it and one behind it.
    return _FRAME_LINE.sub(drop, text)


def is_frame(text: str, limit: int) -> bool:
    """Tell whether a text looks like a frame that carries streams within a limit."""
    return text.startswith(_PREFIX) and len(text) <= frame_bytes(limit) and text.isascii()


def cut_ret_val(data: bytes, limit: int) -> tuple[str, bool]:
    """Cut a return value as `cut` does; but a frame may be as large as what it carries."""
    if data.startswith(_PREFIX.encode()) and is_frame(text := data.decode("utf-8", "replace"), limit):
        return text, False
    return cut(data, limit)


def _decode(text: str) -> dict[str, Any] | None:
    try:
        value = strict_json.loads(base64.b64decode(text).decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_record(fields: Any, limit: int) -> tuple[int, Record] | None:
    """Read a record; None when it is none. A program can forge its own, which must harm nobody."""
    if not isinstance(fields, dict):
        return None
    index: Any = fields.get("index")
    exit_code: Any = fields.get("exit_code")
    ms: Any = fields.get("ms")
    outcome = fields.get("outcome")
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        return None
    if not _is_number(index, int) or not _is_number(ms, (int, float)) or ms < 0:
        return None
    if exit_code is not None and not _is_number(exit_code, int):
        return None
    texts: dict[str, str] = {}
    truncated: set[str] = set()
    for name in ("stdout", "stderr", "ret_val"):
        if name in fields:
            text, was_cut = _read_stream(fields[name], limit)
            texts[name] = text
            truncated |= {name} if was_cut else set()
    record = Record(
        outcome=Outcome(outcome),
        texts=texts,
        truncated=frozenset(truncated),
        error=_read_error(fields.get("error"), limit),
        exit_code=exit_code,
        duration_ms=float(ms),
    )
    return index, record


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _read_stream(value: Any, limit: int) -> tuple[str, bool]:
    if isinstance(value, dict) and "lost" in value:
        head, tail = (_text(value.get(name)).encode("utf-8", "surrogatepass") for name in ("head", "tail"))
        lost = value["lost"] if _is_number(value["lost"], int) and value["lost"] > 0 else 0
        return join_cut(head, tail, lost, limit), True
    return cut_text(_text(value), limit)


def _text(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("base64"), str):
        try:
            return base64.b64decode(value["base64"]).decode("utf-8", "surrogatepass")
        except ValueError:
            return ""
    return value if isinstance(value, str) else ""


def _read_error(fields: Any, limit: int) -> UserError | None:
    if not isinstance(fields, dict):
        return None
    name, traceback = (cut_text(_text(fields.get(key)), _ERROR_BYTES)[0] for key in ("name", "traceback"))
    return UserError(name or "Error", _read_stream(fields.get("message"), limit)[0], traceback)
