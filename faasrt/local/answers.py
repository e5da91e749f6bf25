"""Answers in JSON; a refusal is `{"error", "details"}`, whoever gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from faasrt.protocol.messages import NOT_STARTED_HEADER

RETRY_AFTER_S = 1
OVERLOADED_HEADERS = {"Retry-After": str(RETRY_AFTER_S), NOT_STARTED_HEADER: "1"}


def answer(status: int, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with a JSON object."""
    return web.Response(status=status, body=encode(fields), content_type="application/json", headers=headers)


def failure(status: int, error: str, details: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Refuse, in the words of the reference servers."""
    return answer(status, {"error": error, "details": details}, headers)


def encode(fields: Mapping[str, Any]) -> bytes:
    """Give the JSON in UTF-8."""
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # A program may print lone surrogates, which only an escape can carry.
        return json.dumps(fields).encode()
