"""The protocol of the embedded FaaS as an OpenAPI document, which `GET /openapi.json` answers.

It is written by hand, and held against the running server by `tests/test_openapi.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from faasrt._version import __version__
from faasrt.config import SandboxConfig
from faasrt.languages import Language
from faasrt.local import limits
from faasrt.local.pool import Pool
from faasrt.protocol.messages import NOT_STARTED_HEADER
from faasrt.results import Outcome

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_REFUSALS = {
    "400": "The request is no HTTP or no JSON, a field is wrong, or a limit is asked for that cannot be given.",
    "401": "The token is missing or wrong.",
    "403": "The Host is not this server's, or the request comes from a web page.",
    "404": "There is no such path.",
    "405": "The path has another method; see Allow.",
    "408": "The body did not arrive in time; nothing was started.",
    "413": f"The body is larger than {limits.MAX_BODY_BYTES} bytes.",
    "415": "The body is not declared as application/json, or it is compressed.",
    "429": "No sandbox came free in time, or too much waits already; nothing was started.",
    "500": "The engine failed; the program may have begun.",
    "503": "The language is not ready, or too many connections are open; nothing was started.",
}
_NOT_STARTED = {"408", "429", "503"}
_WITH_RETRY_AFTER = {"429", "503"}
_READ_ONLY = ("400", "401", "403", "405", "500", "503")


def document(pools: Mapping[Language, Pool], sandbox: SandboxConfig) -> dict[str, Any]:
    """Write the document of one server.

    Args:
        pools: The pool of each language that it serves.
        sandbox: Its own limits.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "faasrt embedded FaaS",
            "version": __version__,
            "description": "Runs programs that nobody has vetted, each in a fresh sandbox. "
            "The shapes are those of coze-loop's evaluation runtime.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": {
            "/run_code": {"post": _post("Run a program", "RunRequest", "RunResult")},
            "/validate_code": {"post": _post("Parse a program, without running it", "ValidateRequest", "Validation")},
            "/health": {"get": _health()},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _get("This document", {"type": "object"})},
        },
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Where the server was given a token."}
            },
            "schemas": _schemas(pools, sandbox),
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object(
    properties: dict[str, Any], *, required: Sequence[str] | None = None, closed: bool = True
) -> dict[str, Any]:
    """Describe an object; every property is there unless `required` says which are."""
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": not closed}


def _refusal(status: str) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if status in _NOT_STARTED:
        headers[NOT_STARTED_HEADER] = {"required": True, "schema": {"const": "1"}}
    if status in _WITH_RETRY_AFTER:
        words = "Seconds after which another try makes sense."
        headers["Retry-After"] = {"required": True, "schema": _COUNT, "description": words}
    if status == "405":
        headers["Allow"] = {"required": True, "schema": _TEXT}
    return {"description": _REFUSALS[status], "headers": headers, "content": _json(_ref("Refusal"))}


def _post(summary: str, request: str, result: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "description": f"At most {limits.MAX_BODY_BYTES} bytes, not compressed. In more than "
            f"{limits.MAX_STRUCTURE_BYTES} bytes, only the strings may be large.",
            "content": _json(_ref(request)),
        },
        "responses": {
            "200": {"description": "The verdict.", "content": _json(_ref(result))},
            **{status: _refusal(status) for status in _REFUSALS},
        },
    }


def _get(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": _json(schema)},
            **{status: _refusal(status) for status in _READ_ONLY},
        },
    }


def _health() -> dict[str, Any]:
    operation = _get("What can run, and under which limits", _ref("Health"))
    operation["responses"]["503"] = {
        "description": "No language can run, or too many connections are open.",
        "content": _json({"anyOf": [_ref("Health"), _ref("Refusal")]}),
    }
    return operation


def _metrics() -> dict[str, Any]:
    operation = _get("Counters and gauges, by engine", _ref("Metrics"))
    words = "In the Prometheus text format where text/plain or OpenMetrics is accepted, and JSON is not."
    operation["responses"]["200"]["description"] = words
    operation["responses"]["200"]["content"]["text/plain"] = {"schema": _TEXT}
    return operation


def _schemas(pools: Mapping[Language, Pool], sandbox: SandboxConfig) -> dict[str, Any]:
    languages = tuple(pools)
    program = {
        "language": {
            "type": "string",
            "enum": sorted(name for language in languages for name in language.names),
            "description": "In any case.",
        },
        "code": {"type": "string"},
        "timeout": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "description": f"Milliseconds of wall-clock time, at most {sandbox.timeout_limit_s * 1000:g}.",
        },
        "priority": {"type": ["string", "null"], "description": "Not used."},
        "ext": {"type": ["object", "null"], "description": "Not used."},
        "sandbox": _ref("Sandbox"),
    }
    runnable = {**program, "code": {"type": "string", "pattern": r"\S"}}
    return {
        "RunRequest": _object(runnable, required=("language", "code"), closed=False),
        "ValidateRequest": _object(program, required=("language", "code"), closed=False),
        "Sandbox": _sandbox(pools, sandbox),
        "RunResult": _run_result(languages),
        "Validation": _object(
            {"valid": {"type": "boolean"}, "diagnostics": _list(_ref("Diagnostic")), "checked_by": _TEXT}
        ),
        "Diagnostic": _object({"message": _TEXT, "line": _place(), "column": _place()}),
        "Health": _health_schema(languages),
        "Metrics": _metrics_schema(languages),
        "Refusal": _object({"error": _TEXT, "details": _TEXT}),
    }


def _sandbox(pools: Mapping[Language, Pool], own: SandboxConfig) -> dict[str, Any]:
    """Describe the limits of a request, which only lower the server's: more is taken as the most that there is."""
    least = {language: pool.engine.min_memory_mb for language, pool in pools.items()}
    network: dict[str, Any] = {"type": "boolean"} if own.network_enabled else {"const": False}
    properties = {
        "memory_limit_mb": {
            "type": "number",
            "minimum": min(least.values()),
            "description": "MiB; at least " + ", ".join(f"{mb} for {language}" for language, mb in least.items()) + ".",
        },
        "timeout_ms": _POSITIVE,
        "max_output_bytes": {**_POSITIVE, "description": "UTF-8 bytes to keep of each stream."},
        "network_enabled": network,
    }
    return _object(properties, required=())


def _run_result(languages: Sequence[Language]) -> dict[str, Any]:
    pool_stats = _object({"totalInstances": _COUNT, "idleInstances": _COUNT, "activeInstances": _COUNT})
    metadata = {
        "language": {"enum": list(languages)},
        "runtime": _TEXT,
        "duration": {**_COUNT, "description": "Milliseconds."},
        "status": {"enum": ["success", "error"]},
        "exit_code": {"type": ["integer", "null"]},
        "timed_out": {"type": "boolean"},
        "task_id": _TEXT,
        "instance_id": _TEXT,
        "pool_stats": pool_stats,
    }
    streams = {"stdout": _TEXT, "stderr": _TEXT, "ret_val": _TEXT}
    error = _object({"name": _TEXT, "message": _TEXT, "traceback": _TEXT})
    properties = {
        "output": _object(streams),
        "metadata": _object(metadata),
        "outcome": {"enum": list(Outcome)},
        "error_info": {"anyOf": [error, {"type": "null"}]},
        "truncated": _list({"enum": list(streams)}),
    }
    return _object(properties)


def _health_schema(languages: Sequence[Language]) -> dict[str, Any]:
    language = {
        "status": {"enum": ["ready", "starting", "failed"]},
        "detail": _TEXT,
        "runtime": _TEXT,
        "capacity": _COUNT,
        "active": _COUNT,
        "idle": _COUNT,
        "queued": _COUNT,
    }
    own = {
        "memory_limit_mb": _POSITIVE,
        "timeout_limit_s": _POSITIVE,
        "max_output_bytes": _POSITIVE,
        "network_enabled": {"type": "boolean"},
    }
    capabilities = {name: {"type": "boolean"} for name in ("faithful", "enforces_timeouts", "validates")}
    properties = {
        "status": {"enum": ["healthy", "degraded", "starting", "unhealthy"]},
        "version": _TEXT,
        "capabilities": _object(capabilities),
        "limits": _object(own),
        "languages": _object({name: _object(language) for name in languages}),
    }
    return _object(properties)


def _metrics_schema(languages: Sequence[Language]) -> dict[str, Any]:
    counts = _object(dict.fromkeys(Outcome, _COUNT), required=())
    engine = {"executions": _object(dict.fromkeys(languages, counts), required=())}
    engine |= dict.fromkeys(("refused", "failed", "active", "idle", "queued", "capacity"), _COUNT)
    return _object({"engines": {"type": "object", "additionalProperties": _object(engine)}})


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _place() -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": 1}
