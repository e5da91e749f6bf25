"""Turns the messages of runners into fields of an `EngineResult`.

A program can forge the messages of its runner (see `runner_sources.py`), so they are not trusted. The workers of the
engine "wasm" import this module too, so it must load quickly.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from faasrt.languages import Language
from faasrt.protocol.displays import MAX_DISPLAYS, is_binary
from faasrt.protocol.frames import cut_ret_val
from faasrt.protocol.return_val import take_return_val
from faasrt.protocol.streams import OutputBuffer, cut_text
from faasrt.results import Display, ErrorInfo, Outcome

_MAX_FORMATS = 16  # of one display
_MIME_TYPE = re.compile(r"[!-~]{1,64}/[!-~]{1,64}")
# The number of UTF-8 bytes that are kept of an exception's name, and of its traceback.
_ERROR_BYTES = 32_768
_DECODER = json.JSONDecoder()
_MAX_FIELDS = 7  # of a message
_FIELD = re.compile(r'"([a-z]+)":([0-9]{1,9}|null)?')
_BEGINNING = re.compile(rb'\{"[a-z]{1,20}":["0-9n]')


def decode_message(data: bytes, start: int = 0) -> dict[str, Any]:
    """Decode an object with strings, small numbers and null, which begins at `start`. Return {} if it is malformed.

    Other JSON is not decoded, because some of it takes seconds and hundreds of MB.
    """
    message: dict[str, Any] = {}
    if _BEGINNING.match(data, start) is None:
        return {}  # before anything is copied
    try:
        text = data[start:].decode("utf-8", "surrogatepass")
        at = 1
        for _ in range(_MAX_FIELDS):
            field = _FIELD.match(text, at)
            if field is None:
                return {}
            name, value = field.groups()
            at = field.end()
            if value is not None:
                message[name] = json.loads(value)
            elif text.startswith('"', at):
                # A regular expression for strings would take twice as long as decoding them.
                message[name], at = _DECODER.raw_decode(text, at)
            else:
                return {}
            if text.startswith("}", at):
                return message if at + 1 == len(text) else {}
            if not text.startswith(",", at):
                return {}
            at += 1
    except ValueError:
        pass
    return {}


def read_text(message: Mapping[str, Any], name: str) -> str:
    text = message.get(name)
    return text if isinstance(text, str) else ""


def read_error(message: Mapping[str, Any], limit: int, *, unnamed: str) -> dict[str, Any]:
    """Return the fields of an `EngineResult` for an error. `limit` is the number of UTF-8 bytes to keep of its
    message.
    """
    in_compiler = message.get("phase") == "compile"
    name, traceback = (cut_text(read_text(message, key), _ERROR_BYTES)[0] for key in ("name", "traceback"))
    return {
        "outcome": Outcome.SYNTAX_ERROR if in_compiler else Outcome.USER_ERROR,
        "error": ErrorInfo(name or unnamed, cut_text(read_text(message, "message"), limit)[0], traceback),
        "exit_code": 1,
        "line": _read_position(message.get("line")),
        "column": _read_position(message.get("column")),
    }


def read_python_error(message: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Read an error, but an uncaught MemoryError of a program is the outcome MEMORY_LIMIT. One of the compiler is not:
    it means that the program is nested too deeply.
    """
    fields = read_error(message, limit, unnamed="Exception")
    if fields["outcome"] is Outcome.USER_ERROR and fields["error"].name == "MemoryError":
        return {"outcome": Outcome.MEMORY_LIMIT}
    return fields


class DisplayReader:
    """Reads the messages of `runners/python_displays.py`. `max_bytes` limits all MIME types and contents."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._displays: dict[int, dict[str, str | bytes | None]] = {}  # by number; None is content that is left out
        self._complete = True

    def add(self, message: Mapping[str, Any]) -> None:
        number, kind, content = message.get("number"), read_text(message, "type"), message.get("content")
        if not isinstance(number, int) or not (content is None or isinstance(content, str)):
            return
        formats = self._displays.get(number, {})
        if _MIME_TYPE.fullmatch(kind) is None or kind in formats:
            return
        if len(formats) == _MAX_FORMATS or (not formats and len(self._displays) == MAX_DISPLAYS):
            self._complete = False
            return
        formats[kind] = self._decode(kind, content)
        self._displays[number] = formats

    def _decode(self, kind: str, content: str | None) -> str | bytes | None:
        size = len(kind)
        if content is None or size > self._left:
            return None
        data = content.encode("utf-8", "replace")
        if is_binary(kind):
            try:
                data = binascii.a2b_base64(data)
            except binascii.Error:
                return None
        size += len(data)
        if size > self._left:
            return None
        self._left -= size
        return data if is_binary(kind) else data.decode()

    def add_to(self, fields: dict[str, Any]) -> None:
        displays = []
        for formats in self._displays.values():
            omitted = sorted(kind for kind, content in formats.items() if content is None)
            data: dict[str, Any] = {kind: content for kind, content in formats.items() if content is not None}
            displays.append(Display(data, tuple(omitted)))
        fields["displays"] = tuple(displays)
        if not self._complete or any(display.omitted for display in displays):
            fields["truncated"] = sorted({*fields["truncated"], "displays"})


def _read_position(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**31 else None


def cut_streams(
    stdout: OutputBuffer, stderr: OutputBuffer, ret_val: bytes, limit: int, *, own_return_val: Language | None
) -> dict[str, Any]:
    """`own_return_val` is set if the program defines a `return_val` of its own, which prints the return value to
    stdout.
    """
    streams = {"stdout": stdout.cut(), "stderr": stderr.cut(), "ret_val": cut_ret_val(ret_val, limit)}
    texts = {name: text for name, (text, _) in streams.items()}
    truncated = frozenset(name for name, (_, was_cut) in streams.items() if was_cut)
    if own_return_val is not None and not ret_val:
        texts["stdout"], texts["ret_val"], truncated = take_return_val(texts["stdout"], own_return_val, truncated)
    return {**texts, "truncated": sorted(truncated)}
