"""One request and its answer over HTTP, and which failure means that nothing was sent."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from faasrt.errors import ConnectError, ConnectionLostError, ProtocolError
from faasrt.protocol.answer import Answer
from faasrt.protocol.json_lines import CONTENT_TYPE, media_type
from faasrt.protocol.program import COUNTS_RUNNING_TIME_HEADER, NOT_STARTED_HEADER, PROGRAM_SUSPECT_HEADER
from faasrt.transport.live_reader import LineTooLongError, LiveReader
from faasrt.transport.tls_failures import permanent_error

_PIECE_BYTES = 65_536
_WRITE_BYTES = 262_144
_FAILURE_BODY_BYTES = 65_536
IS_RUNNING = "is the FaaS running there?"


class BodyTooLargeError(Exception):
    """The body of an answer is too large; the connection was closed. Callers convert this error."""


class RequestBody(aiohttp.Payload):
    """The JSON of a request. Before `sending` is true, the server cannot have run anything."""

    _value: bytes

    def __init__(self, data: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(data, content_type="application/json")
        self._size = len(data)
        self._clock = clock
        self.sending, self.sending_since = False, 0.0

    @property
    def autoclose(self) -> bool:
        return True

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.sending, self.sending_since = True, self._clock()
        if len(self._value) <= _WRITE_BYTES:
            await writer.write(self._value)
            return
        # A large body is written in pieces, so that the event loop can do other work.
        for start in range(0, len(self._value), _WRITE_BYTES):
            await writer.write(self._value[start : start + _WRITE_BYTES])
            await asyncio.sleep(0)


async def exchange(
    request: Awaitable[aiohttp.ClientResponse],
    body: RequestBody | None,
    max_body_bytes: int,
    live: LiveReader | None = None,
    timeout: asyncio.Timeout | None = None,
) -> Answer:
    try:
        response = await request
        try:
            _check_encoding(response)
            content, limit = response.content, max_body_bytes
            if response.status != 200:
                limit = _FAILURE_BODY_BYTES
            elif live is not None and timeout is not None and media_type(response.headers) == CONTENT_TYPE:
                return await live.read(content, max_body_bytes, timeout)
            # A short answer has often arrived completely, together with its headers.
            data = content.read_nowait() if content.is_eof() else await _read_pieces(content, limit)
            return _make_answer(response, data, limit)
        except LineTooLongError:
            response.close()
            raise BodyTooLargeError from None
        except BaseException:
            response.close()
            raise
    except aiohttp.ClientConnectorError as error:
        raise _connect_error(error) from None
    except aiohttp.ConnectionTimeoutError:
        raise ConnectError("cannot connect in time", hint=IS_RUNNING, sent="no") from None
    except aiohttp.ClientResponseError as error:
        # The text of the error itself can contain the URL of the proxy, with its password.
        quote = error.message[:300]
        if error.request_info.method == "CONNECT":  # sent to the proxy, which has not connected to the server
            reason = f"the proxy does not connect to the FaaS (HTTP {error.status})"
            raise ConnectError(reason, quote=quote, sent="no") from None
        raise ProtocolError("the answer is not HTTP", quote=quote, sent="yes") from None
    except (aiohttp.ClientError, OSError) as error:
        if body is not None and not body.sending:
            raise ConnectError("cannot connect", quote=_text_of(error), sent="no") from None
        raise ConnectionLostError("the connection broke", quote=_text_of(error), sent="maybe") from None


def _connect_error(error: aiohttp.ClientConnectorError) -> ConnectError:
    if (failure := permanent_error(error)) is not None:
        return failure
    quote = _text_of_os_error(error.os_error)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return ConnectError("cannot connect to the proxy", quote=quote, sent="no")
    is_refused = isinstance(error.os_error, ConnectionRefusedError)
    return ConnectError("cannot connect", quote=quote, hint=IS_RUNNING, sent="no", connection_refused=is_refused)


def _text_of_os_error(error: OSError) -> str:
    if error.errno is None or error.errno <= 0 or isinstance(error, ssl.SSLError):
        return str(error.strerror or error)[:300]  # the text of a DNS or TLS error
    return os.strerror(error.errno)  # without the address, which the text of the error repeats


def _make_answer(response: aiohttp.ClientResponse, body: bytes, limit: int) -> Answer:
    status = response.status
    if len(body) > limit:
        response.close()  # its connection cannot be reused, because the body was not read to its end
        if status == 200:
            raise BodyTooLargeError
        body = body[:limit]
    headers = response.headers
    if status == 200:
        return Answer(200, body, counts_running_time=headers.get(COUNTS_RUNNING_TIME_HEADER) == "1")
    return Answer(
        status=status,
        body=body,
        retry_after_s=read_retry_after(headers.get("Retry-After")),
        not_started=headers.get(NOT_STARTED_HEADER) == "1",
        program_suspect=headers.get(PROGRAM_SUSPECT_HEADER) == "1",
    )


def _check_encoding(response: aiohttp.ClientResponse) -> None:
    encoding = response.headers.get("Content-Encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        reason = "the answer is compressed although the request forbids it"
        raise ProtocolError(reason, quote=encoding[:40], sent="yes", status=response.status)


async def _read_pieces(content: aiohttp.StreamReader, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in content.iter_chunked(_PIECE_BYTES):
        size += len(piece)
        pieces.append(piece)
        if size > limit:
            break
    return b"".join(pieces)


def read_retry_after(text: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds in `Retry-After`, a number or an HTTP date; None if it is malformed."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return seconds if 0 <= seconds < math.inf else None
    with contextlib.suppress(ValueError, OverflowError):
        moment = parsedate_to_datetime(text)
        return max(0.0, moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now())
    return None


def _text_of(error: BaseException) -> str:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "Server disconnected"  # its message can be the part of the answer that has arrived
    return str(error)[:300] or type(error).__name__
