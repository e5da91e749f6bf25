"""The body of a request, checked: what is wrong with it is said in words, and nothing of it is run."""

from __future__ import annotations

import json
import math
from typing import Any

from faasrt.config import SandboxConfig
from faasrt.errors import UnsupportedLanguageError
from faasrt.languages import Language
from faasrt.local.engines.base import Engine, Job


class BadRequestError(Exception):
    """The request is wrong; the message says how. Answered with 400."""


def decode_body(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadRequestError: It is none.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRequestError("the body must be a JSON object")
    return fields


def read_language(fields: dict[str, Any], served: tuple[Language, ...]) -> Language:
    """Read `language`.

    Raises:
        BadRequestError: It is missing, unknown or not served.
    """
    try:
        language = Language.parse(fields.get("language", ""))
    except UnsupportedLanguageError as error:
        raise BadRequestError(str(error)) from None
    if language not in served:
        raise BadRequestError(f"{language} is not served here; this server runs {', '.join(served)}")
    return language


def read_code(fields: dict[str, Any]) -> str:
    """Read `code`, which may be empty.

    Raises:
        BadRequestError: It is missing or no string.
    """
    code = fields.get("code")
    if not isinstance(code, str):
        raise BadRequestError("'code' must be a string")
    return code


def read_job(fields: dict[str, Any], language: Language, engine: Engine, own: SandboxConfig) -> Job:
    """Read a program and its limits; a request can only lower those of the server.

    Raises:
        BadRequestError: A field is wrong, or asks for a limit or freedom that cannot be given.
    """
    code = read_code(fields)
    if not code.strip():
        raise BadRequestError("'code' must not be empty")
    asked = fields.get("sandbox", {})
    if not isinstance(asked, dict):
        raise BadRequestError("'sandbox' must be an object")
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
        timeout_ms=min(timeouts_ms),
        memory_limit_mb=memory_limit_mb,
        max_output_bytes=max_output_bytes,
        network_enabled=network_enabled,
    )


def _positive(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise BadRequestError(f"'{name}' must be a finite number above 0, got {str(value)[:50]}")
    return min(value, 1e12)  # an int may be too large for a float
