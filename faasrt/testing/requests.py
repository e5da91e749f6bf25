"""HTTP/1.1 as far as a FaaS needs it: bodies with a Content-Length, and connections that are kept."""

from __future__ import annotations

import http
from collections.abc import Mapping

import attrs

from faasrt.testing.connection import Connection

_MAX_HEAD_BYTES = 65_536
_HEAD_END = b"\r\n\r\n"


class BadRequestError(Exception):
    """What came in is no request that can be read; the connection is of no more use.

    Attributes:
        status: The HTTP status to answer with.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.frozen(kw_only=True)
class Request:
    """A request.

    Attributes:
        method: Such as "POST".
        path: Without the query.
        keep_alive: Whether the client means to use the connection again.
        size: The bytes of the whole request.
        body: Its body; empty until it has been read.
    """

    method: str
    path: str
    keep_alive: bool
    size: int
    body: bytes = b""


async def read_request(connection: Connection, *, stop: int | None = None) -> Request:
    """Read one request.

    Args:
        connection: Where from.
        stop: After so many bytes, unless that was the whole request, the connection is reset.

    Raises:
        BadRequestError: It is no request, or one with a chunked body.
        ConnectionError: The client went away, or was reset.

    Cancellation: what has come in stays there.
    """
    head: Request | None = None
    while True:
        size = len(connection.received)
        head = head or _parse_head(connection.received)
        if head is not None and size >= head.size and (stop is None or stop >= head.size):
            whole = connection.take(head.size)
            return attrs.evolve(head, body=whole[whole.index(_HEAD_END) + len(_HEAD_END) :])
        if stop is not None and size >= stop:
            connection.reset()
            raise ConnectionResetError("the request was cut, as its reply says")
        wanted = size + 1 if head is None or stop is not None else head.size
        if not await connection.wait_for(wanted):
            raise ConnectionAbortedError("the client went away within a request")


def render_response(status: int, body: bytes, headers: Mapping[str, str], *, keep_alive: bool) -> bytes:
    """Write a whole response; a header given replaces the one that would be written, whatever its case."""
    fields = {
        "content-type": ("Content-Type", "application/json"),
        "content-length": ("Content-Length", str(len(body))),
        "connection": ("Connection", "keep-alive" if keep_alive else "close"),
    }
    fields |= {name.lower(): (name, value) for name, value in headers.items()}
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields.values())]
    return "\r\n".join(lines).encode("latin-1") + _HEAD_END + body


def _parse_head(received: bytearray) -> Request | None:
    """Read the head of a request; None when it has not come in as a whole."""
    end = received.find(_HEAD_END, 0, _MAX_HEAD_BYTES)
    if end < 0:
        if len(received) >= _MAX_HEAD_BYTES:
            raise BadRequestError(431, f"the head of the request is larger than {_MAX_HEAD_BYTES} bytes")
        return None
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequestError(400, f"no HTTP/1 request line: {first[:100]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "transfer-encoding" in headers:
        raise BadRequestError(411, "a body without a Content-Length is not read here")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal() and len(length) < 16):
        raise BadRequestError(400, f"no Content-Length: {length[:100]!r}")
    return Request(
        method=words[0],
        path=words[1].partition("?")[0],
        keep_alive=words[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close",
        size=end + len(_HEAD_END) + int(length),
    )
