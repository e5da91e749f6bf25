"""JSON responses. The body of every error is `{"error", "details"}`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from faasrt import _strict_json
from faasrt.local.engines.engine import EngineJob
from faasrt.local.http.body_memory import Share
from faasrt.protocol.answer import max_answer_bytes
from faasrt.protocol.displays import displays_to_wire
from faasrt.protocol.frames import is_frame
from faasrt.protocol.program import NOT_STARTED_HEADER
from faasrt.protocol.streams import cut_text
from faasrt.results import Display

Handler = Callable[[web.BaseRequest, Share], Awaitable[web.StreamResponse]]
"""Answers a request whose headers have been checked."""
OVERLOADED_HEADERS = {"Retry-After": "1", NOT_STARTED_HEADER: "1"}

_COPIED_HEADERS = ("Allow", "WWW-Authenticate", "Accept-Encoding", "Connection", NOT_STARTED_HEADER)
# aiohttp waits for the client only after more than 64 KiB.
_PIECE_BYTES = 2 * 64 * 2**10
_SPARE_BYTES = 12_144  # not used of the largest answer that clients read
# The characters that JSON writes as two bytes, and the other control characters, which it writes as six.
_TWO_BYTES = b'"\\\b\t\n\f\r'
_SIX_BYTES = bytes(byte for byte in range(32) if byte not in _TWO_BYTES)


def json_response(status: int, value: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=_strict_json.dump_bytes(value), content_type="application/json", headers=headers
    )


def error_response(status: int, error: str, details: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return json_response(status, {"error": error, "details": details}, headers)


def copied_headers(error: web.HTTPException) -> dict[str, str]:
    return {name: error.headers[name] for name in _COPIED_HEADERS if name in error.headers}


def fit_response(fields: dict[str, Any], job: EngineJob) -> web.Response:
    """Return the response to a run, with a body that is not too large for clients.

    JSON escapes can make a stream six times as long. Streams that do not fit into `max_answer_bytes` are cut further
    and named in `truncated`.
    """
    max_output_bytes = job.limits.max_output_bytes
    collects, displays = bool(job.input.collect), job.displays
    max_bytes = max_answer_bytes(max_output_bytes, collects=collects, displays=displays) - _SPARE_BYTES
    output, error = fields["output"], fields["error_info"]
    texts = {**output, "message": error["message"]} if error else dict(output)
    # A text that is cut anyway is not encoded, because this would block the event loop.
    if 6 * sum(map(len, texts.values())) <= max_bytes or sum(map(_json_size, texts.values())) <= max_bytes:
        body = _strict_json.dump_bytes(fields)
        if len(body) <= max_bytes:
            return web.Response(body=body, content_type="application/json")
    # A frame has its own size limit and would be useless if cut. `notice` repeats the line that the server wrote to
    # stderr.
    for name, text in output.items():
        if is_frame(text, max_output_bytes) or (name == "stderr" and "notice" in fields):
            del texts[name]
    sizes = {name: _json_size(text) for name, text in texts.items()}
    fields = {**fields, "output": output | dict.fromkeys(output.keys() & texts.keys(), "")}
    if error:
        fields["error_info"] = {**error, "message": ""}
    room = max_bytes - len(_strict_json.dump_bytes(fields))
    truncated = set(fields["truncated"])
    for index, name in enumerate(sorted(texts, key=sizes.__getitem__)):
        max_size = max(0, room // (len(texts) - index))
        if sizes[name] > max_size:
            texts[name], sizes[name] = _cut_to_json_size(texts[name], sizes[name], max_size)
            truncated.add(name)
        room -= sizes[name]
    if error:
        fields["error_info"]["message"] = texts.pop("message")
    fields["output"] |= texts
    return json_response(200, {**fields, "truncated": sorted(truncated - {"message"})})


def fit_displays(displays: Sequence[Display], max_output_bytes: int) -> tuple[list[dict[str, Any]], bool]:
    """Return displays for JSON of at most twice `max_output_bytes`, and whether they are complete: first contents of
    type text/plain, then others in order. `omitted` names the types that do not fit.
    """
    left = 2 * max_output_bytes
    named = []
    for display in displays:
        left -= sum(_json_size(name) + 4 for name in (*display.data, *display.omitted)) + 30
        if left < 0:
            break
        named.append(display)
    kept: set[tuple[int, str]] = set()
    for plain in (True, False):
        for index, display in enumerate(named):
            for name, content in display.data.items():
                if plain is (name == "text/plain"):
                    size = 4 * len(content) // 3 + 6 if isinstance(content, bytes) else _json_size(content)
                    if size <= left:
                        left -= size
                        kept.add((index, name))
    fitting = []
    for index, display in enumerate(named):
        data = {name: content for name, content in display.data.items() if (index, name) in kept}
        fitting.append(Display(data, tuple(sorted({*display.omitted, *(display.data.keys() - data.keys())}))))
    return displays_to_wire(fitting), fitting == [*displays]


def _cut_to_json_size(text: str, size: int, max_size: int) -> tuple[str, int]:
    length = len(text.encode("utf-8", "surrogatepass"))
    # JSON makes a text longer. Try the average growth first. If the kept head and tail grow more than that, use the
    # largest possible growth, which is sixfold.
    for limit in (max_size * length // size, max_size // 6):
        kept = cut_text(text, max(1, limit))[0]
        size = _json_size(kept)
        if size <= max_size:
            break
    return kept, size


def _json_size(text: str) -> int:
    """Return the size of a text in JSON, in bytes. A lone surrogate counts as seven bytes instead of six."""
    data = text.encode("utf-8", "backslashreplace")
    without_six = data.translate(None, _SIX_BYTES)
    without_both = without_six.translate(None, _TWO_BYTES)
    return 2 + len(data) + 5 * (len(data) - len(without_six)) + len(without_six) - len(without_both)


async def send_response(response: web.StreamResponse, request: web.BaseRequest, share: Share, size: int) -> None:
    """Send a response, or the rest of a response that was begun, and wait until the client has read it."""
    await response.prepare(request)
    if size > _PIECE_BYTES and isinstance(response, web.Response) and request.method != "HEAD":
        assert isinstance(response.body, bytes)
        await write_pieces(response, response.body, share)
        await web.StreamResponse.write_eof(response)  # `Response.write_eof` would send the body again
    else:
        await response.write_eof()
    await request.writer.drain()  # `write` does not wait after less than 64 KiB


async def write_pieces(response: web.StreamResponse, data: bytes, share: Share) -> None:
    for start in range(0, len(data), _PIECE_BYTES):
        piece = memoryview(data)[start : start + _PIECE_BYTES]
        await response.write(piece)
        share.record_progress(len(piece))
