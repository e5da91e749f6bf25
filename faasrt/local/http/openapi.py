"""The OpenAPI document of the embedded FaaS, which `GET /openapi.json` returns.

The file `openapi.json` is its template. `tests/integration/test_openapi.py` checks it against a running server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from faasrt._version import __version__
from faasrt.config import SandboxConfig
from faasrt.inputs import INPUT_FIELDS
from faasrt.languages import Language
from faasrt.local.engines.engine import Engine
from faasrt.local.http import limits

# Read at import, so that the event loop never waits for the file.
_TEMPLATE = resources.files("faasrt.local.http").joinpath("openapi.json").read_text("utf-8")


def build_document(engines: Mapping[Language, Engine], sandbox: SandboxConfig) -> dict[str, Any]:
    """Fill the template with the languages and limits of a server."""
    memory_mb = {language: engine.min_memory_mb for language, engine in engines.items()}
    text = _TEMPLATE
    for name, value in {
        "VERSION": __version__,
        "MAX_BODY_BYTES": limits.MAX_BODY_BYTES,
        "MAX_STRUCTURE_BYTES": limits.MAX_STRUCTURE_BYTES,
        "MAX_TIMEOUT_MS": f"{sandbox.timeout_limit_s * 1000:g}",
        "MIN_MEMORY": ", ".join(f"{mb} for {language}" for language, mb in memory_mb.items()),
        "LEAST_MEMORY_MB": min(memory_mb.values()),
        "LANGUAGES": list(engines),
        "LANGUAGE_NAMES": sorted(name for language in engines for name in language.names),
        "NETWORK_ENABLED": {"const": False},
    }.items():
        # A placeholder that is a whole JSON string is replaced with its quotes, by a value of any type.
        text = text.replace(f'"{{{name}}}"', json.dumps(value)).replace(f"{{{name}}}", str(value))
    filled: dict[str, Any] = json.loads(text)
    fields = {name: schema.get("properties", {}) for name, schema in filled["components"]["schemas"].items()}
    for name in INPUT_FIELDS:
        if not all(name in engine.input_fields for engine in engines.values()):
            del fields["RunRequest"][name]
    health = fields["Health"]["languages"]
    health["required"] = list(engines)
    engine = fields["Metrics"]["engines"]["additionalProperties"]["properties"]
    for by_language in (health, engine["executions"]):
        by_language["properties"] = dict.fromkeys(engines, by_language["properties"]["LANGUAGE"])
    return filled
