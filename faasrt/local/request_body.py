"""Reads and checks the body of a request. A program only runs when every field of its request is valid."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from aiohttp import web

from faasrt import strict_json
from faasrt.config import SandboxConfig
from faasrt.errors import UnsupportedLanguageError
from faasrt.languages import Language
from faasrt.local import http_limits
from faasrt.local.engines.base import Engine, EngineJob
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.request import NOT_STARTED_HEADER
from faasrt.results import Outcome

_STRING_DECODER = json.JSONDecoder()
_MIN_TIMEOUT_MS = 1.0
_SANDBOX_FIELDS = ("memory_limit_mb", "timeout_ms", "max_output_bytes", "network_enabled")


class BadRequestError(Exception):
    """The request is invalid; the message names the problem. Answered with 400."""


async def read_body(request: web.BaseRequest, reserve: http_limits.Reserve) -> bytes:
    """Read the body of a request. It must be small enough, not compressed, and arrive in time.

    Args:
        request: The request. Access must have been checked.
        reserve: http_limits.Reserves the bytes of the body.

    Raises:
        web.HTTPException: The body is refused.
        BadRequestError: The body is not valid HTTP.
        BusyError: Other requests hold too much memory.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(
            text="a compressed body is refused: send it without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )
    _check_size(request.content_length or 0)
    if request.headers.get("Expect", "").lower() == "100-continue":
        # Sent after the checks above, so that a client does not send a body that is refused.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    body = bytearray()
    try:
        async with asyncio.timeout(http_limits.REQUEST_TIMEOUT_S):
            while chunk := await request.content.readany():
                _check_size(len(body) + len(chunk))
                reserve(len(chunk))
                body += chunk
    except TimeoutError:
        # In this protocol a 408 is a timeout of the program, unless this header says that it was not started.
        raise web.HTTPRequestTimeout(
            text=f"the body did not arrive within {http_limits.REQUEST_TIMEOUT_S:g} s",
            headers={NOT_STARTED_HEADER: "1", "Connection": "close"},
        ) from None
    except web.RequestPayloadError:
        raise BadRequestError("the body is cut short, or not encoded as its headers say") from None
    return bytes(body)


def _check_size(size: int) -> None:
    if size > http_limits.MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(
            http_limits.MAX_BODY_BYTES, size, text=f"the body may be {http_limits.MAX_BODY_BYTES} bytes at most"
        )


def decode_body(body: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        BadRequestError: The body is not UTF-8, not JSON by RFC 8259, nested too deeply, or not an object; it repeats a
            name; or it is large outside of its strings.
    """
    try:
        text = body.decode("utf-8")
        if len(text) > http_limits.MAX_STRUCTURE_BYTES:
            _check_structure(text)
        fields = strict_json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise BadRequestError(f"the body is not JSON: it is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise BadRequestError("the body is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRequestError("the body must be a JSON object")
    return fields


def _check_structure(text: str) -> None:
    """Refuse a large text unless its strings make it large.

    Decoding a program of 8 MiB takes 10 ms. 8 MiB of brackets take half a second and a few hundred MB, and a thread
    would not help, because the decoder never releases the GIL.
    """
    outside = count = end = 0
    while (start := text.find('"', end)) >= 0 and count <= http_limits.MAX_STRINGS:
        outside += start - end
        count += 1
        _, end = _STRING_DECODER.raw_decode(text, start)
    if start < 0:
        outside += len(text) - end
    if count > http_limits.MAX_STRINGS or outside > http_limits.MAX_STRUCTURE_BYTES:
        raise BadRequestError("the body holds too many values: only its strings may be large")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # A proxy that checked the request may have read the other value.
        raise ValueError("a name comes twice in one object")
    return fields


def parse_language(fields: dict[str, Any], served: tuple[Language, ...]) -> Language:
    """Return the language of a request.

    Raises:
        BadRequestError: It is missing, unknown or not served.
    """
    try:
        language = Language.parse(_get(fields, "language", str, "a string"))
    except UnsupportedLanguageError as error:
        raise BadRequestError(str(error)) from None
    if language not in served:
        raise BadRequestError(f"{language} is not served here; this server runs {', '.join(served)}")
    return language


def parse_job(fields: dict[str, Any], language: Language, engine: Engine, own: SandboxConfig) -> EngineJob:
    """Return the program of a request, which may be empty, with its limits.

    Args:
        fields: The decoded body.
        language: The language of the program.
        engine: The engine of the language.
        own: The limits of the server; a request can only lower them.

    Raises:
        BadRequestError: A field is invalid, or the engine cannot enforce a limit.
    """
    code = _get(fields, "code", str, "a string")
    # coze-loop sends these two, and servers do not use them. Go encodes an empty map as null.
    _get(fields, "priority", str | None, "a string", "")
    _get(fields, "ext", dict | None, "an object", {})
    sandbox = _get(fields, "sandbox", dict, "an object", {})
    if unknown := sandbox.keys() - set(_SANDBOX_FIELDS):
        raise BadRequestError(f"'sandbox' has no {min(unknown)[:50]!r}; it may hold {', '.join(_SANDBOX_FIELDS)}")
    network_enabled = _get(sandbox, "network_enabled", bool, "true or false", False)
    if network_enabled:
        raise BadRequestError("'network_enabled' is refused: no sandbox of this server has a network")
    limits = _parse_limits(fields, sandbox, own)
    if limits.memory_limit_mb < engine.min_memory_mb:
        raise BadRequestError(
            f"'memory_limit_mb' must be at least {engine.min_memory_mb} for {language}: a sandbox needs that to start"
        )
    return EngineJob(language=language, code=code, limits=limits)


def _get(fields: dict[str, Any], name: str, kind: Any, words: str, default: Any = None) -> Any:
    value = fields.get(name, default)
    if not isinstance(value, kind):
        raise BadRequestError(f"'{name}' must be {words}")
    return value


def _parse_limits(fields: dict[str, Any], sandbox: dict[str, Any], own: SandboxConfig) -> ExecutionLimits:
    timeout = {} if fields.get("timeout") is None else fields  # Go encodes a missing number as null
    asked = {
        Outcome.TIMEOUT: min(_positive(timeout, "timeout"), _positive(sandbox, "timeout_ms")),
        Outcome.MEMORY_LIMIT: _positive(sandbox, "memory_limit_mb"),
        Outcome.OUTPUT_LIMIT: _positive(sandbox, "max_output_bytes"),
    }
    own_limits = (own.timeout_limit_s * 1000, own.memory_limit_mb, own.max_output_bytes)
    timeout_ms, memory_limit_mb, max_output_bytes = map(min, own_limits, asked.values())
    return ExecutionLimits(
        timeout_ms=max(_MIN_TIMEOUT_MS, timeout_ms),
        memory_limit_mb=int(memory_limit_mb),
        max_output_bytes=max(1, int(max_output_bytes)),
        set_by_server=tuple(
            outcome for outcome, limit in zip(asked, own_limits, strict=True) if limit < asked[outcome]
        ),
    )


def _positive(fields: dict[str, Any], name: str) -> float:
    """Return a number above 0; infinity if the field is missing."""
    if name not in fields:
        return math.inf
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        # Lists and objects are not printed, because they may be nested too deeply.
        shown = str(value)[:50] if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"
        raise BadRequestError(f"'{name}' must be a finite number above 0, got {shown}")
    return min(value, 1e12)  # an int may be too large for a float
