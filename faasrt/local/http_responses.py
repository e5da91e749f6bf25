"""JSON responses. The body of every error is `{"error", "details"}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from faasrt import strict_json
from faasrt.protocol.request import NOT_STARTED_HEADER

OVERLOADED_HEADERS = {"Retry-After": "1", NOT_STARTED_HEADER: "1"}


def json_response(status: int, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=strict_json.dump_bytes(fields), content_type="application/json", headers=headers
    )


def error_response(status: int, error: str, details: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an error in the format of coze-loop's servers."""
    return json_response(status, {"error": error, "details": details}, headers)
