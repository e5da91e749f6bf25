"""Reads and checks the bodies of requests. A program runs only if every field of its request is valid. Otherwise, the
functions raise BadRequestError.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

import attrs
from aiohttp import web

from faasrt import _strict_json
from faasrt.config import SandboxConfig
from faasrt.errors import InvalidRequestError, UnsupportedLanguageError
from faasrt.inputs import ProgramInput, check_patterns
from faasrt.languages import Language
from faasrt.local.engines.engine import Engine, EngineJob
from faasrt.local.engines.session import EngineSessionOptions
from faasrt.local.http import limits
from faasrt.local.http.admission import BusyError
from faasrt.local.http.body_memory import Share
from faasrt.local.sandbox_limits import SandboxLimits
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.program import NOT_STARTED_HEADER
from faasrt.protocol.sessions import check_new_id
from faasrt.results import Outcome

_STRING_DECODER = json.JSONDecoder()
_MIN_TIMEOUT_MS = 1.0
_LARGEST = 1e12  # more than the largest limit of a server; an int may be too large for a float
_SANDBOXFUSION_FIELDS = ("run_timeout", "memory_limit_MB")
_SANDBOX_FIELDS = ("memory_limit_mb", "timeout_ms", "max_output_bytes", "network_enabled")


class BadRequestError(Exception):
    """The server answers 400 with this message. `logged` is as in `RefusedError`."""

    def __init__(self, message: str, logged: str = "") -> None:
        super().__init__(message)
        self.logged = logged


async def read_fields(request: web.BaseRequest, share: Share) -> dict[str, Any]:
    """Read and decode the body of a request whose headers have been checked, and count its bytes in `share`.

    Raises:
        web.HTTPException: The body is compressed, larger than `limits.MAX_BODY_BYTES`, or too slow.
        BadRequestError: The body does not match its headers, or see `decode_body`.
        BusyError: Other requests hold too much memory, or one of them needed the memory of this slow one.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(
            text="the body must not be compressed: send it without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )
    _check_size(request.content_length or 0)
    if request.headers.get("Expect", "").lower() == "100-continue":
        # Sent after the checks above, so that clients do not send a body that will be refused.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    try:
        if request.content.is_eof():  # the whole body has arrived with the head
            data = request.content.read_nowait()
            _check_size(len(data))
            share.add(len(data))
            return decode_body(data)
        body = bytearray()
        async with asyncio.timeout(limits.REQUEST_TIMEOUT_S) as limit:

            def end_wait() -> None:
                if not limit.expired():
                    limit.reschedule(0)

            share.receive(end_wait)
            while chunk := await request.content.readany():
                _check_size(len(body) + len(chunk))
                share.add(len(chunk))
                body += chunk
            if share.evicted:
                raise TimeoutError  # the wait for the last piece had just ended
            share.run()
    except TimeoutError:
        if share.evicted:
            # Like an overload before the body: the client tries again, perhaps with another server.
            raise BusyError("other requests needed the memory of this one, whose body arrived slowly") from None
        # Without this header, a 408 says that a proxy, or a reference server, stopped waiting for the program.
        raise web.HTTPRequestTimeout(
            text=f"the body did not arrive within {limits.REQUEST_TIMEOUT_S:g} s",
            headers={NOT_STARTED_HEADER: "1", "Connection": "close"},
        ) from None
    except web.RequestPayloadError:
        raise BadRequestError("the body is incomplete, or is not encoded as its headers say") from None
    fields = decode_body(body)
    if len(body) > limits.MAX_STRUCTURE_BYTES:
        await asyncio.sleep(0)  # other requests need not wait for the next steps too, which take as long
    return fields


def _check_size(size: int) -> None:
    if size > limits.MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(
            limits.MAX_BODY_BYTES, size, text=f"the body must have at most {limits.MAX_BODY_BYTES} bytes"
        )


def decode_body(body: bytes | bytearray) -> dict[str, Any]:
    """Decode a body. Raise BadRequestError unless it is a JSON object of RFC 8259 without duplicate names, not nested
    deeply, and large only because of strings.
    """
    try:
        text = body.decode("utf-8")
        if len(text) > limits.MAX_STRUCTURE_BYTES:
            _check_structure(text)
        fields = _strict_json.loads(text, object_pairs_hook=_dict_without_duplicates)
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
    """Refuse a large JSON text unless it is large because of its strings.

    Decoding one string of 8 MiB takes 10 ms. Decoding 8 MiB of brackets takes half a second and a few hundred MB, and
    blocks the event loop even from a thread, because the decoder never releases the GIL.
    """
    outside = count = end = 0
    while (start := text.find('"', end)) >= 0 and count <= limits.MAX_STRINGS:
        outside += start - end
        count += 1
        _, end = _STRING_DECODER.raw_decode(text, start)
    if start < 0:
        outside += len(text) - end
    if count > limits.MAX_STRINGS or outside > limits.MAX_STRUCTURE_BYTES:
        raise BadRequestError(
            f"the body contains too many values: it may have {limits.MAX_STRINGS} strings, and "
            f"{limits.MAX_STRUCTURE_BYTES} characters outside of strings"
        )


def _dict_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # A proxy in front of this server may have checked the other value.
        raise ValueError("an object has two fields of the same name")
    return fields


def parse_language(fields: dict[str, Any], served: tuple[Language, ...], reasons: Mapping[Language, str]) -> Language:
    try:
        language = Language.parse(_get(fields, "language", str, "a string"))
    except UnsupportedLanguageError as error:
        raise BadRequestError(str(error)) from None
    if language not in served:
        reason = reasons.get(language) or f"it runs {', '.join(served)}"
        raise BadRequestError(f"this server does not run {language}: {reason}")
    return language


def parse_job(fields: dict[str, Any], language: Language, engine: Engine, own: SandboxLimits) -> EngineJob:
    """Return the program of a request, which may be empty. Limits above the largest in `own` are lowered to these."""
    code = _get(fields, "code", str, "a string")
    limits = _parse_limits(fields, own)
    displays = _get(fields, "displays", bool, "true or false", False)
    if displays and not engine.has_displays:
        raise BadRequestError(f"'displays' cannot be used for {language}: the engine {engine.name} has none")
    job = EngineJob(
        language=language, code=code, limits=limits, input=_parse_input(fields, language), displays=displays
    )
    check_job(job, engine)
    return job


def parse_session(
    fields: dict[str, Any], language: Language, engine: Engine, own: SandboxLimits
) -> EngineSessionOptions:
    if fields.get("timeout") is not None:
        raise BadRequestError("'timeout' belongs in the runs of a session, and 'timeout_ms' in its 'sandbox'")
    limits = _parse_limits(fields, own)
    check_job(EngineJob(language=language, code="", limits=limits), engine)
    return EngineSessionOptions(language=language, limits=limits, files=parse_files(fields, engine))


def parse_session_job(
    fields: dict[str, Any], session: EngineSessionOptions, engine: Engine, own: SandboxConfig
) -> EngineJob:
    """Return a program for a session, whose limits are `own`."""
    if fields.get("language") is not None and parse_language(fields, tuple(Language), {}) is not session.language:
        raise BadRequestError(f"'language' must be that of the session, {session.language}")
    for name in ("argv", "files", "collect"):
        if fields.get(name):
            raise BadRequestError(f"'{name}' cannot be used in a session: write and read its files instead")
    job = parse_job(fields, session.language, engine, SandboxLimits(own, own))
    if job.limits.memory_limit_mb < own.memory_limit_mb:
        raise BadRequestError(f"'memory_limit_mb' cannot be lower than that of the session, {own.memory_limit_mb}")
    # Clients repeat the limits of the session in their runs. If the server had lowered one, it is still the server's.
    lowered = {
        Outcome.TIMEOUT: job.limits.timeout_ms < session.limits.timeout_ms,
        Outcome.MEMORY_LIMIT: False,
        Outcome.OUTPUT_LIMIT: job.limits.max_output_bytes < session.limits.max_output_bytes,
    }
    set_by_server = tuple(outcome for outcome in session.limits.set_by_server if not lowered[outcome])
    return attrs.evolve(job, limits=attrs.evolve(job.limits, set_by_server=set_by_server), displays=True)


def parse_idle_timeout(fields: dict[str, Any]) -> float | None:
    return None if fields.get("idle_timeout_s") is None else _positive(fields, "idle_timeout_s")


def parse_session_id(fields: dict[str, Any]) -> str | None:
    try:
        return None if fields.get("id") is None else check_new_id(fields["id"])
    except InvalidRequestError as error:
        raise BadRequestError(str(error)) from None


def parse_files(fields: dict[str, Any], engine: Engine) -> Mapping[str, bytes]:
    files = _parse_input({"files": fields.get("files")}, None).files
    if files and "files" not in engine.session_features:
        raise BadRequestError(f"'files' cannot be used: the sessions of the engine {engine.name} have no files")
    return files


def parse_patterns(fields: dict[str, Any]) -> tuple[str, ...]:
    try:
        return check_patterns(_get(fields, "patterns", list, "a list of strings"), "'patterns'")
    except InvalidRequestError as error:
        raise BadRequestError(str(error)) from None


def _parse_input(fields: dict[str, Any], language: Language | None) -> ProgramInput:
    try:
        return ProgramInput.from_wire(fields, language)
    except InvalidRequestError as error:
        raise BadRequestError(str(error)) from None


def check_job(job: EngineJob, engine: Engine) -> None:
    if job.limits.memory_limit_mb < engine.min_memory_mb:
        least, language = engine.min_memory_mb, job.language
        raise BadRequestError(
            f"'memory_limit_mb' must be at least {least} for {language}: a sandbox needs this to start",
            f"asked for less memory than a sandbox of {language} needs to start, {least} MiB",
        )
    if missing := [name for name in job.input.used if name not in engine.input_fields]:
        name, where = missing[0], f"{engine.name} at the level {engine.level}" if engine.level else engine.name
        remedy = engine.options.level_remedy
        raise BadRequestError(
            f"'{name}' cannot be used for {job.language}: the engine {where} has no such input",
            f"had {name} for {job.language}, but the engine {where} has no such input{remedy and f'; {remedy}'}",
        )


def _get(fields: dict[str, Any], name: str, kind: Any, words: str, default: Any = None) -> Any:
    value = fields.get(name)
    if value is None:  # Go encodes a missing value as null
        value = default
    if not isinstance(value, kind):
        raise BadRequestError(f"'{name}' must be {words}")
    return value


def _parse_limits(fields: dict[str, Any], own: SandboxLimits) -> ExecutionLimits:
    # coze-loop sends these two fields, which are not used.
    _get(fields, "priority", str, "a string", "")
    _get(fields, "ext", dict, "an object", {})
    if not fields.keys().isdisjoint(_SANDBOXFUSION_FIELDS):
        # Its clients would take the answer for a failure of each program.
        where = (
            "the URL of SandboxFusion's clients ends with /sandboxfusion, and that of verl with /sandboxfusion/run_code"
        )
        raise BadRequestError(
            f"this is a request of SandboxFusion: {where}", f"to /run_code were those of SandboxFusion: {where}"
        )
    if misplaced := fields.keys() & set(_SANDBOX_FIELDS):
        raise BadRequestError(f"'{min(misplaced)}' belongs in 'sandbox'")
    sandbox = _get(fields, "sandbox", dict, "an object", {})
    if unknown := sandbox.keys() - set(_SANDBOX_FIELDS):
        raise BadRequestError(f"'sandbox' has no field {min(unknown)[:50]!r}, only {', '.join(_SANDBOX_FIELDS)}")
    if _get(sandbox, "network_enabled", bool, "true or false", False):
        raise BadRequestError("'network_enabled' must be false: no sandbox of this server has a network")
    requested = {
        Outcome.TIMEOUT: min(_positive(fields, "timeout"), _positive(sandbox, "timeout_ms")),
        Outcome.MEMORY_LIMIT: _positive(sandbox, "memory_limit_mb"),
        Outcome.OUTPUT_LIMIT: _positive(sandbox, "max_output_bytes"),
    }
    defaults, largest = (
        (each.timeout_limit_s * 1000, each.memory_limit_mb, each.max_output_bytes)
        for each in (own.default, own.largest)
    )
    timeout_ms, memory_limit_mb, max_output_bytes = (
        default if limit == math.inf else min(limit, most)
        for limit, default, most in zip(requested.values(), defaults, largest, strict=True)
    )
    return ExecutionLimits(
        timeout_ms=max(_MIN_TIMEOUT_MS, timeout_ms),
        memory_limit_mb=int(memory_limit_mb),
        max_output_bytes=max(1, int(max_output_bytes)),
        set_by_server=tuple(
            outcome for outcome, limit in zip(requested, largest, strict=True) if limit < requested[outcome]
        ),
    )


def _positive(fields: dict[str, Any], name: str) -> float:
    """Return a field, or infinity if it is missing."""
    value: object = fields.get(name)
    if value is None:
        return math.inf
    if isinstance(value, (int, float)) and value > 0 and value is not True:
        return min(value, _LARGEST)
    # Lists and objects are not printed, because they may be nested too deeply.
    shown = str(value)[:50] if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"
    raise BadRequestError(f"'{name}' must be a finite number above 0, got {shown}")
