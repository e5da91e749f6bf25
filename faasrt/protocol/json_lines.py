"""Live output: lines of JSON in the answer to a run, instead of one object.

A request with `Accept: application/x-ndjson` asks for them. A server that has the capability `streams` answers with

    {"stream": "stdout" | "stderr", "text": str, "elapsed_ms": number}    output, while the program runs
    {"result": {...}}    the body of the usual answer; the last line
    {"error": {"status": int, "error": str, "details": str, ...}}    instead of a result: the usual answer of a failure

The head of the answer is sent with the first line, so a failure before the first output has its usual status. Further
fields of an error replace headers: `retry_after_s`, `not_started` and `program_suspect`. An answer may have only 10000
lines without text, which are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from faasrt import _strict_json
from faasrt.errors import ProtocolError
from faasrt.protocol.answer import Answer, decode_object
from faasrt.results import OutputChunk

CONTENT_TYPE = "application/x-ndjson"
ACCEPT = f"{CONTENT_TYPE}, application/json;q=0.9, */*;q=0.1"
_STREAMS = ("stdout", "stderr")
_RESULT = re.compile(rb'\s*\{\s*"result"\s*:\s*')
_LARGEST_MS = 1e15


def accepts_lines(accept: str) -> bool:
    for part in accept.split(","):
        name, *parameters = part.split(";")
        if name.strip().lower() == CONTENT_TYPE:
            return not any(re.fullmatch(r"\s*q=0(?:\.0*)?\s*", text) for text in parameters)
    return False


def media_type(headers: Mapping[str, str]) -> str:
    """Return the type in `Content-Type`, without parameters; "" if there is none.

    The `content_type` of aiohttp raises IndexError for some malformed values, such as `application/json; charset*`.
    """
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def encode_chunk(stream: str, text: str, elapsed_ms: float) -> bytes:
    return _strict_json.dump_bytes({"stream": stream, "text": text, "elapsed_ms": elapsed_ms}) + b"\n"


def encode_result(body: bytes) -> bytes:
    return b'{"result": ' + body + b"}\n"


def encode_error(body: bytes, **fields: Any) -> bytes:
    """Return the last line of a failure. `fields` take the place of its headers."""
    return _strict_json.dump_bytes({"error": {**fields, **_strict_json.loads(body.decode())}}) + b"\n"


def decode_line(line: bytes) -> OutputChunk | Answer | None:
    """Decode a line; the answer is the last one, and an empty line is None. Raise ProtocolError if it is malformed."""
    if match := _RESULT.match(line):
        return Answer(status=200, body=line[match.end() : line.rfind(b"}")])
    if not line.strip():
        return None
    fields = decode_object(line)
    if isinstance(fields.get("error"), dict):
        return _decode_error(fields["error"])
    stream, text, elapsed_ms = fields.get("stream"), fields.get("text"), fields.get("elapsed_ms")
    if stream not in _STREAMS or not isinstance(text, str) or elapsed_ms is None or not _is_number(elapsed_ms):
        raise ProtocolError("a line of the answer is neither output nor a result nor an error", sent="yes", status=200)
    return OutputChunk(stream=stream, text=text, elapsed_s=round(elapsed_ms / 1000, 6))


def _decode_error(fields: dict[str, Any]) -> Answer:
    status, retry_after_s = fields.get("status"), fields.get("retry_after_s")
    if type(status) is not int or not 400 <= status < 600:
        raise ProtocolError("the error at the end of the answer has no HTTP status", sent="yes", status=200)
    return Answer(
        status=status,
        body=_strict_json.dump_bytes({name: fields[name] for name in ("error", "details") if name in fields}),
        retry_after_s=retry_after_s if _is_number(retry_after_s) else None,
        not_started=fields.get("not_started") is True,
        program_suspect=fields.get("program_suspect") is True,
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _LARGEST_MS
