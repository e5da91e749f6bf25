"""Frames: the messages in which guest programs return their records through a server.

A frame is `faasrt1:` and base64 of JSON in UTF-8, on one line:

    {"nonce": str, "final": bool, "progress": bool, "records": [record ...]}

A frame begins with the nonce of its call; text without the nonce is output of the program. A final frame contains all
records. A frame without records announces the start of the guest program: if a server returns no frame at all, it did
not start its interpreter. With `progress`, each record is also sent as soon as its case ends, and is used if no final
frame follows. These frames go to stderr, one record per frame, because servers return that stream when a process dies.
On a lossless server they are return values that contain all records so far. A record is

    {"index": int, "outcome": str, "exit_code": int | null, "ms": number, "error": {"name", "message", "traceback"},
     "stdout": stream, "stderr": stream, "ret_val": stream, "files": {path: content}, "has_all_files": bool}

where `error`, `files` and `has_all_files` are optional, and `stdout` and `stderr` are missing if the server returns
them itself. Contents of files are encoded as in `faasrt.inputs`. The index is the number of the case, 0 for a program,
and -1 for the definitions that all cases share. A stream (and `message`) is a text; or `{"base64": str}` of its UTF-8,
if JSON escapes would be larger; or `{"head": ..., "tail": ..., "lost": int}`, if the guest program cut it.

The digit in the prefix is the version of the format. It changes when older readers would misread newer frames.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

import attrs

from faasrt import _strict_json
from faasrt.errors import InvalidRequestError
from faasrt.inputs import MAX_FILES, bytes_from_wire, check_path
from faasrt.protocol.streams import STREAM_NAMES, cut, cut_text, join_cut
from faasrt.results import ErrorInfo, Outcome

_PREFIX = "faasrt1:"
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
# An unclosed string extends to the end, so that it is not searched again from each of its quotes.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
# The size of a frame's JSON without its strings: a few hundred records of a few hundred characters each.
_MAX_STRUCTURE = 262_144
# Frames that cannot be decoded were written by a program that found the nonce. Give up after this number of them.
_MAX_FORGED = 1_000
_ERROR_BYTES = 32_768
_LARGEST_NUMBER = 1e15


@attrs.frozen(kw_only=True)
class Record:
    """How a program or a case ended, as reported by the guest program. `texts` are the streams by name, each cut to the
    limit; `truncated` contains "files" if some files are missing.
    """

    outcome: Outcome
    texts: Mapping[str, str]
    truncated: frozenset[str] = frozenset()
    error: ErrorInfo | None = None
    exit_code: int | None = None
    duration_ms: float = 0.0
    files: Mapping[str, bytes] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class GuestReport:
    """The content of all frames of an answer. With `final`, the guest program reached its end."""

    records: Mapping[int, Record] = attrs.field(factory=dict)
    started: bool = False
    final: bool = False
    progress: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every case that ended has a record, so that the first one without ended the execution."""
        return self.final or self.progress


NO_REPORT = GuestReport()


def frame_bytes(max_output_bytes: int) -> int:
    """Return the size of the largest frame: three streams in base64, and room for other fields."""
    return 4 * max_output_bytes + 204_800


def max_files_json_bytes(max_output_bytes: int) -> int:
    return 3 * max_output_bytes // 2 + 32_768


def take_frames(texts: Mapping[str, str], nonce: str, max_output_bytes: int) -> tuple[GuestReport, dict[str, str]]:
    """Separate the frames of a call from the other output of its server, and the newlines around them.

    Each text is searched once, for the text with which every frame of the call begins. So the work is linear in the
    length of the output.
    """
    rest, frames = {}, []
    for name, text in texts.items():
        rest[name], found = _split(text, nonce)
        frames += found
    records: dict[int, Record] = {}
    for frame in frames:
        listed = frame.get("records")
        for fields in listed if isinstance(listed, list) else ():
            records |= _read_record(fields, max_output_bytes)
    final, progress = (any(frame.get(name) is True for frame in frames) for name in ("final", "progress"))
    return GuestReport(records=records, started=bool(frames), final=final, progress=progress), rest


def _split(text: str, nonce: str) -> tuple[str, list[dict[str, Any]]]:
    # Base64 encodes three bytes as four characters, so the incomplete group at the end is left out.
    head = f'{{"nonce":"{nonce}",'.encode()
    beginning = _PREFIX + base64.b64encode(head[: len(head) - len(head) % 3]).decode()
    frames: list[dict[str, Any]] = []
    pieces: list[str] = []
    kept = at = forged = 0
    while forged < _MAX_FORGED and (at := text.find(beginning, at)) >= 0:
        end = at + len(beginning)
        if match := _BASE64.match(text, end):
            end = match.end()
        frame = _decode(text[at + len(_PREFIX) : end])
        if frame is not None and frame.get("nonce") == nonce:
            frames.append(frame)
            # The guest program writes a newline before and after each frame.
            pieces.append(text[kept:at].removesuffix("\n"))
            end += text.startswith("\n", end)
            kept = end
        else:
            forged += 1
        at = end
    return "".join([*pieces, text[kept:]]), frames


def is_frame(text: str, limit: int) -> bool:
    return (
        len(text) <= frame_bytes(limit)
        and text.startswith(_PREFIX)
        and _BASE64.fullmatch(text, len(_PREFIX)) is not None
    )


def cut_ret_val(data: bytes, limit: int) -> tuple[str, bool]:
    """Cut a return value, unless it is a frame, which contains all streams."""
    if data.startswith(_PREFIX.encode()) and is_frame(text := data.decode("latin-1"), limit):
        return text, False
    return cut(data, limit)


def _decode(text: str) -> dict[str, Any] | None:
    try:
        decoded = base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass")
        if len(decoded) > _MAX_STRUCTURE and len(_STRING.sub("", decoded)) > _MAX_STRUCTURE:
            return None  # decoding would take very long, and only a program can have forged such a frame
        value = _strict_json.loads(decoded)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_record(fields: Any, limit: int) -> dict[int, Record]:
    """Return {index: record}, or {} if the record is malformed, because a program can forge its records."""
    if not isinstance(fields, dict):
        return {}
    index: Any = fields.get("index")
    exit_code: Any = fields.get("exit_code")
    ms: Any = fields.get("ms")
    if not (_is_number(index, int) and _is_number(ms, (int, float)) and ms >= 0):
        return {}
    if not (exit_code is None or _is_number(exit_code, int)) or fields.get("outcome") not in list(Outcome):
        return {}
    files, has_all_files = _read_files(fields.get("files"), limit)
    has_all_files = has_all_files and fields.get("has_all_files", True) is True
    streams = {name: _read_stream(fields[name], limit) for name in STREAM_NAMES if name in fields}
    record = Record(
        outcome=Outcome(fields["outcome"]),
        texts={name: text for name, (text, _) in streams.items()},
        truncated=frozenset(name for name, (_, was_cut) in streams.items() if was_cut).union(
            [] if has_all_files else ["files"]
        ),
        error=_read_error(fields.get("error"), limit),
        exit_code=exit_code,
        duration_ms=float(ms),
        files=files,
    )
    return {index: record}


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _read_stream(value: Any, limit: int) -> tuple[str, bool]:
    if isinstance(value, dict) and "lost" in value:
        head, tail = (_text(value.get(name)).encode("utf-8", "surrogatepass") for name in ("head", "tail"))
        lost = value["lost"] if _is_number(value["lost"], int) and value["lost"] > 0 else 0
        return join_cut(head, tail, len(head) + lost + len(tail), limit), True
    return cut_text(_text(value), limit)


def _read_files(fields: Any, limit: int) -> tuple[dict[str, bytes], bool]:
    found: dict[str, bytes] = {}
    if not isinstance(fields, dict):
        return found, True
    for path, value in fields.items():
        try:
            content = bytes_from_wire(value, "a file")
            size = len(check_path(path, "a path").encode()) + len(content)
        except InvalidRequestError:
            return found, False
        if size > limit or len(found) >= MAX_FILES:
            return found, False
        found[path] = content
        limit -= size
    return found, True


def _text(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("base64"), str):
        try:
            return base64.b64decode(value["base64"]).decode("utf-8", "surrogatepass")
        except ValueError:
            return ""
    return value if isinstance(value, str) else ""


def _read_error(fields: Any, limit: int) -> ErrorInfo | None:
    if not isinstance(fields, dict):
        return None
    name, traceback = (cut_text(_text(fields.get(key)), _ERROR_BYTES)[0] for key in ("name", "traceback"))
    return ErrorInfo(name or "Error", _read_stream(fields.get("message"), limit)[0], traceback)
