"""Answers in JSON; a refusal is `{"error", "details"}`, whoever gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from faasrt import strict_json
from faasrt.protocol.messages import NOT_STARTED_HEADER

RETRY_AFTER_S = 1
OVERLOADED_HEADERS = {"Retry-After": str(RETRY_AFTER_S), NOT_STARTED_HEADER: "1"}


def answer(status: int, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with a JSON object."""
    return web.Response(
        status=status, body=strict_json.dump_bytes(fields), content_type="application/json", headers=headers
    )


def failure(status: int, error: str, details: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Refuse, in the words of the reference servers."""
    return answer(status, {"error": error, "details": details}, headers)
