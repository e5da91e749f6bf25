"""The first answer of `faasrt mcp` over stdio.

Importing the SDK of MCP takes longer than some clients wait for the first answer on a busy machine. So the usual first
request is answered before, as the SDK does. A test compares the two.
"""

from __future__ import annotations

import json
from typing import Any

from faasrt import __version__

INSTRUCTIONS = "Runs code in a sandbox that keeps variables and files between calls."
_WITH_INITIALIZE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
_WITH_DISCOVER = ("2026-07-28",)
_META = "io.modelcontextprotocol/"
_SERVER = {"name": "faasrt", "version": __version__}
_ABILITIES: dict[str, Any] = {"capabilities": {"tools": {"listChanged": False}}, "instructions": INSTRUCTIONS}


def answer(line: bytes) -> dict[str, Any] | None:
    """Return the answer to a request that begins a connection, None to any other message."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match message:
        case {"jsonrpc": "2.0", "id": int() | str() as number, "method": method, "params": {**params}}:
            pass
        case _:
            return None
    match method, params:
        case (
            "initialize",
            {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": str(), "version": str()}},
        ) if version in _WITH_INITIALIZE:
            result: dict[str, Any] = {**_ABILITIES, "protocolVersion": version, "serverInfo": _SERVER}
        case "server/discover", {"_meta": {**meta}} if _names_version(meta):
            result = {
                "cacheScope": "private",
                **_ABILITIES,
                "resultType": "complete",
                "supportedVersions": [*_WITH_DISCOVER],
                "ttlMs": 0,
                "_meta": {f"{_META}serverInfo": _SERVER},
            }
        case _:
            return None
    return None if isinstance(number, bool) else {"jsonrpc": "2.0", "id": number, "result": result}


def _names_version(meta: dict[Any, Any]) -> bool:
    match meta.get(f"{_META}protocolVersion"), meta.get(f"{_META}clientInfo"), meta.get(f"{_META}clientCapabilities"):
        case version, {"name": str(), "version": str()}, {} if version in _WITH_DISCOVER:
            return True
    return False
