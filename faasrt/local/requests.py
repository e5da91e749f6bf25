"""The body of a request, checked: what is wrong with it is said in words, and nothing of it is run."""

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
from faasrt.local import limits
from faasrt.local.engines.base import Engine, Job
from faasrt.protocol.messages import NOT_STARTED_HEADER

_STRINGS = json.JSONDecoder()
_LEAST_TIMEOUT_MS = 1.0
_SANDBOX_FIELDS = ("memory_limit_mb", "timeout_ms", "max_output_bytes", "network_enabled")


class BadRequestError(Exception):
    """The request is wrong; the message says how. Answered with 400."""


async def read_body(request: web.BaseRequest, share: limits.Share) -> bytes:
    """Read the body of a request, which may be neither too large, nor compressed, nor slow.

    Args:
        request: The request; whether it may come in at all has been seen to.
        share: What it may hold of the server's memory.

    Raises:
        web.HTTPException: The body is refused.
        BadRequestError: It does not arrive as HTTP has it.
        BusyError: Too much is held already.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(
            text="a compressed body is refused: send it without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )
    _check_size(request.content_length or 0)
    if request.headers.get("Expect", "").lower() == "100-continue":
        # Only now, so that a body which is refused is not sent in vain.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    body = bytearray()
    try:
        async with asyncio.timeout(limits.REQUEST_TIMEOUT_S):
            while chunk := await request.content.readany():
                _check_size(len(body) + len(chunk))
                share.take(len(chunk))
                body += chunk
    except TimeoutError:
        # In this protocol a 408 means that the program ran out of time, unless it says that none was started.
        raise web.HTTPRequestTimeout(
            text=f"the body did not arrive within {limits.REQUEST_TIMEOUT_S:g} s",
            headers={NOT_STARTED_HEADER: "1", "Connection": "close"},
        ) from None
    except web.RequestPayloadError:
        raise BadRequestError("the body is cut short, or not encoded as its headers say") from None
    return bytes(body)


def _check_size(size: int) -> None:
    if size > limits.MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(
            limits.MAX_BODY_BYTES, size, text=f"the body may be {limits.MAX_BODY_BYTES} bytes at most"
        )


def decode_body(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadRequestError: It is none: not UTF-8, not JSON as RFC 8259 has it, too deep, or no object; a name comes twice;
            or it is large, and not because of the strings in it.
    """
    try:
        text = body.decode("utf-8")
        if len(text) > limits.MAX_STRUCTURE_BYTES:
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
    """Refuse a large text whose size is not that of its strings.

    A program of 8 MiB is decoded in 10 ms, but as many brackets take half a second and a few hundred MB; and a thread
    would not help, as the decoder never lets go of the interpreter.
    """
    outside = count = end = 0
    while (start := text.find('"', end)) >= 0 and count <= limits.MAX_STRINGS:
        outside += start - end
        count += 1
        _, end = _STRINGS.raw_decode(text, start)
    if start < 0:
        outside += len(text) - end
    if count > limits.MAX_STRINGS or outside > limits.MAX_STRUCTURE_BYTES:
        raise BadRequestError("the body holds too many values: only its strings may be large")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # Whoever looked at the request before may have believed the other one.
        raise ValueError("a name comes twice in one object")
    return fields


def read_language(fields: dict[str, Any], served: tuple[Language, ...]) -> Language:
    """Read `language`.

    Raises:
        BadRequestError: It is missing, unknown or not served.
    """
    name = fields.get("language")
    if not isinstance(name, str):
        raise BadRequestError("'language' must be a string")
    try:
        language = Language.parse(name)
    except UnsupportedLanguageError as error:
        raise BadRequestError(str(error)) from None
    if language not in served:
        raise BadRequestError(f"{language} is not served here; this server runs {', '.join(served)}")
    return language


def read_job(fields: dict[str, Any], language: Language, engine: Engine, own: SandboxConfig) -> Job:
    """Read a program, which may be empty, and its limits; a request can only lower those of the server.

    Raises:
        BadRequestError: A field is wrong, or asks for a limit or freedom that cannot be given.
    """
    code = fields.get("code")
    if not isinstance(code, str):
        raise BadRequestError("'code' must be a string")
    _check_unused(fields)
    asked = fields.get("sandbox", {})
    if not isinstance(asked, dict):
        raise BadRequestError("'sandbox' must be an object")
    if unknown := asked.keys() - set(_SANDBOX_FIELDS):
        raise BadRequestError(f"'sandbox' has no {min(unknown)[:50]!r}; it may hold {', '.join(_SANDBOX_FIELDS)}")
    timeouts_ms = [own.timeout_limit_s * 1000]
    timeouts_ms += [_positive(fields, "timeout")] if fields.get("timeout") is not None else []
    timeouts_ms += [_positive(asked, "timeout_ms")] if "timeout_ms" in asked else []
    memory_limit_mb, max_output_bytes = own.memory_limit_mb, own.max_output_bytes
    if "memory_limit_mb" in asked:
        memory_limit_mb = min(memory_limit_mb, int(_positive(asked, "memory_limit_mb")))
    if memory_limit_mb < engine.min_memory_mb:
        raise BadRequestError(
            f"'memory_limit_mb' must be at least {engine.min_memory_mb} for {language}: a sandbox needs that to start"
        )
    if "max_output_bytes" in asked:
        max_output_bytes = max(1, min(max_output_bytes, int(_positive(asked, "max_output_bytes"))))
    network_enabled = asked.get("network_enabled", False)
    if not isinstance(network_enabled, bool):
        raise BadRequestError("'network_enabled' must be true or false")
    if network_enabled and not (own.network_enabled and engine.can_enable_network):
        why = "this server does not allow it" if engine.can_enable_network else f"no {language} sandbox can"
        raise BadRequestError(f"'network_enabled' is refused: {why}")
    return Job(
        language=language,
        code=code,
        timeout_ms=max(_LEAST_TIMEOUT_MS, min(timeouts_ms)),
        memory_limit_mb=memory_limit_mb,
        max_output_bytes=max_output_bytes,
        network_enabled=network_enabled,
    )


def _check_unused(fields: dict[str, Any]) -> None:
    """Check what coze-loop sends and no server uses; null is what Go makes of an empty map."""
    if not isinstance(fields.get("priority", ""), str | None):
        raise BadRequestError("'priority' must be a string")
    if not isinstance(fields.get("ext", {}), dict | None):
        raise BadRequestError("'ext' must be an object")


def _positive(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        # Of a list or an object nothing is shown: it may be nested too deeply to be printed.
        shown = str(value)[:50] if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"
        raise BadRequestError(f"'{name}' must be a finite number above 0, got {shown}")
    return min(value, 1e12)  # an int may be too large for a float
