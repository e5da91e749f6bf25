"""JSON responses. The body of every error is `{"error", "details"}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from faasrt import strict_json
from faasrt.local.http.limits import Share
from faasrt.protocol.request import NOT_STARTED_HEADER

OVERLOADED_HEADERS = {"Retry-After": "1", NOT_STARTED_HEADER: "1"}

# aiohttp waits for the client only after more than 64 KiB.
_PIECE_BYTES = 2 * 64 * 2**10


def json_response(status: int, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=strict_json.dump_bytes(fields), content_type="application/json", headers=headers
    )


def error_response(status: int, error: str, details: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an error in the format of coze-loop's servers."""
    return json_response(status, {"error": error, "details": details}, headers)


async def send_response(response: web.StreamResponse, request: web.BaseRequest, share: Share) -> None:
    """Send a response, or the end of one that was begun, and wait until the client has read it."""
    await response.prepare(request)
    if isinstance(response, web.Response) and isinstance(response.body, bytes) and request.method != "HEAD":
        await write_pieces(response, response.body, share)
        await web.StreamResponse.write_eof(response)  # that of Response would send the body again
    else:
        await response.write_eof()
    await request.writer.drain()  # `write` does not wait after less than 64 KiB


async def write_pieces(response: web.StreamResponse, data: bytes, share: Share) -> None:
    """Send a part of a body, and record in `share` how fast the client reads it."""
    for start in range(0, len(data), _PIECE_BYTES):
        piece = memoryview(data)[start : start + _PIECE_BYTES]
        await response.write(piece)
        share.record_progress(len(piece))
