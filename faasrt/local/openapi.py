"""The OpenAPI document of the embedded FaaS, the answer to `GET /openapi.json`.

`openapi.json` is its template, written by hand. `tests/test_openapi.py` checks it against a running server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from faasrt._version import __version__
from faasrt.config import SandboxConfig
from faasrt.languages import Language
from faasrt.local import limits
from faasrt.local.pool import Pool

# Read on import, because the event loop must not wait for a file.
_TEMPLATE = resources.files("faasrt.local").joinpath("openapi.json").read_text("utf-8")


def document(pools: Mapping[Language, Pool], sandbox: SandboxConfig) -> dict[str, Any]:
    """Return the document of one server.

    Args:
        pools: The pool of each language that it serves.
        sandbox: The limits of the server; a request can only lower them.
    """
    least_mb = {language: pool.engine.min_memory_mb for language, pool in pools.items()}
    text = _TEMPLATE
    for name, value in {
        "VERSION": __version__,
        "MAX_BODY_BYTES": limits.MAX_BODY_BYTES,
        "MAX_STRUCTURE_BYTES": limits.MAX_STRUCTURE_BYTES,
        "MAX_TIMEOUT_MS": f"{sandbox.timeout_limit_s * 1000:g}",
        "MIN_MEMORY": ", ".join(f"{mb} for {language}" for language, mb in least_mb.items()),
    }.items():
        text = text.replace(f"{{{name}}}", str(value))
    filled: dict[str, Any] = json.loads(text)
    fields = {name: schema["properties"] for name, schema in filled["components"]["schemas"].items()}
    for request in ("RunRequest", "ValidateRequest"):
        fields[request]["language"]["enum"] = sorted(name for language in pools for name in language.names)
    fields["RunResult"]["metadata"]["properties"]["language"]["enum"] = list(pools)
    fields["Sandbox"]["memory_limit_mb"]["minimum"] = min(least_mb.values())
    if not sandbox.network_enabled:
        fields["Sandbox"]["network_enabled"] = {"const": False}
    health = fields["Health"]["languages"]
    health["required"] = list(pools)
    engine = fields["Metrics"]["engines"]["additionalProperties"]["properties"]
    for by_language in (health, engine["executions"]):
        by_language["properties"] = dict.fromkeys(pools, by_language["properties"]["LANGUAGE"])
    return filled
