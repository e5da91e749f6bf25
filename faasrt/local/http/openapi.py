"""The OpenAPI document. `tests/integration/test_openapi.py` checks its template, `openapi.json`, against a server."""

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
from faasrt.protocol import piston, sandboxfusion

# Read at import, so that the event loop never waits for the file.
_TEMPLATE = resources.files("faasrt.local.http").joinpath("openapi.json").read_text("utf-8")
# The fields for files in requests of SandboxFusion.
_SANDBOXFUSION_NAMES = {"files": "files", "collect": "fetch_files"}


def build_document(engines: Mapping[Language, Engine], sandbox: SandboxConfig) -> dict[str, Any]:
    memory_mb = {language: engine.min_memory_mb for language, engine in engines.items()}
    in_sessions = [language for language, engine in engines.items() if engine.session_features]
    text = _TEMPLATE
    for name, value in {
        "VERSION": __version__,
        "MAX_BODY_BYTES": limits.MAX_BODY_BYTES,
        "MAX_STRUCTURE_BYTES": limits.MAX_STRUCTURE_BYTES,
        "MAX_TIMEOUT_MS": f"{sandbox.timeout_limit_s * 1000:g}",
        "MAX_MILLISECONDS": sandbox.timeout_limit_s * 1000,
        "MAX_TIMEOUT_S": sandbox.timeout_limit_s,
        "MAX_TOTAL_TIMEOUT_S": sandboxfusion.max_total_timeout_s(sandbox.timeout_limit_s),
        "MAX_MEMORY_MB": sandbox.memory_limit_mb,
        "MAX_MEMORY_BYTES": sandbox.memory_limit_mb * 2**20,
        "MIN_MEMORY": ", ".join(f"{mb} for {language}" for language, mb in memory_mb.items()),
        "LEAST_MEMORY_MB": min(memory_mb.values()),
        "LEAST_MEMORY_BYTES": min(memory_mb.values()) * 2**20,
        "LANGUAGES": list(engines),
        "LANGUAGE_NAMES": sorted(name for language in engines for name in language.names),
        "SANDBOXFUSION_LANGUAGES": sandboxfusion.names_of(engines),
        "PISTON_LANGUAGES": piston.names_of(engines),
        "NETWORK_ENABLED": {"enum": [False, None]},
        # A list of values cannot be empty.
        "SESSION_LANGUAGES": sorted(name for language in in_sessions or engines for name in language.names),
        "DISPLAYS": {
            "enum": [None, False, True] if all(engine.has_displays for engine in engines.values()) else [None, False],
            "description": "Whether to return what the program displays.",
        },
    }.items():
        # A placeholder that is a whole JSON string is replaced with its quotes, by a value of any type.
        text = text.replace(f'"{{{name}}}"', json.dumps(value)).replace(f"{{{name}}}", str(value))
    filled: dict[str, Any] = json.loads(text)
    fields = {name: schema.get("properties", {}) for name, schema in filled["components"]["schemas"].items()}
    for name in INPUT_FIELDS:
        if not all(name in engine.input_fields for engine in engines.values()):
            del fields["RunRequest"][name]
            if name in _SANDBOXFUSION_NAMES:
                del fields["SandboxFusionRequest"][_SANDBOXFUSION_NAMES[name]]
                del fields["SandboxFusionNotebook"][_SANDBOXFUSION_NAMES[name]]
    if Language.PYTHON not in in_sessions:
        # Any notebook is answered with a SandboxError.
        filled["components"]["schemas"]["SandboxFusionNotebook"] = {"type": "object"}
    health = fields["Health"]["languages"]
    health["required"] = list(engines)
    engine = fields["Metrics"]["engines"]["additionalProperties"]["properties"]
    for by_language in (health, engine["executions"]):
        by_language["properties"] = dict.fromkeys(engines, by_language["properties"]["LANGUAGE"])
    return filled
