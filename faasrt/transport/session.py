"""One pooled `aiohttp.ClientSession` per FaaS base URL, made lazily inside the running loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from faasrt._version import __version__
from faasrt.errors import ConnectError, ConnectionLostError, ProtocolError
from faasrt.protocol.messages import NOT_STARTED_HEADER
from faasrt.protocol.verdict import Answer

# Idle connections are dropped before servers drop them (aiohttp's and Node's servers keep them from 5 s upwards):
# a connection that the server closes under a POST leaves it unknown whether the code ran.
_KEEP_ALIVE_S = 4.0
_PIECE_BYTES = 65_536
_WHOLE_BYTES = 262_144
_FAILURE_BODY_BYTES = 65_536


class BodyTooLargeError(Exception):
    """The body grew past its cap; the connection was dropped. Internal: the dispatcher turns it into a verdict."""


class _Connector(aiohttp.TCPConnector):
    """Never reuses a connection on which something came in while it rested.

    A server that answers twice, or late, would otherwise answer the next call with the result of another. aiohttp looks
    at this when a connection comes back to the pool, but not when it leaves it again.
    """

    async def _get(self, *args: Any, **kwargs: Any) -> Any:
        while (connection := await super()._get(*args, **kwargs)) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()
        return None


class _Request(aiohttp.ClientRequest):
    """Takes the headers of its session as they are: aiohttp has made a copy for it just before.

    A shortcut, and nothing else: an aiohttp that asks for headers in another way makes its own of them.
    """

    def update_headers(self, headers: Any) -> None:
        self.headers = headers


class Body(aiohttp.Payload):
    """The JSON of a request, which knows how far it came.

    Attributes:
        sending: Whether the first of it may have been written: the server cannot have run anything before.
    """

    _value: bytes

    def __init__(self, data: bytes) -> None:
        super().__init__(data, content_type="application/json")
        self._size = len(data)
        self.sending = False

    @property
    def autoclose(self) -> bool:
        """Bytes need no closing."""
        return True

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.sending = True
        data = self._value
        if len(data) <= _WHOLE_BYTES:
            await writer.write(data)
            return
        # What is large must not go out at one go, or nothing else would happen meanwhile.
        for start in range(0, len(data), _WHOLE_BYTES):
            await writer.write(data[start : start + _WHOLE_BYTES])
            await asyncio.sleep(0)


class EndpointSession:
    """The connections to one base URL.

    Args:
        base_url: A checked base URL without a trailing slash.
        connect_s: Seconds for DNS, TCP and TLS together.
        token: A bearer token, or None.
    """

    def __init__(self, base_url: str, *, connect_s: float, token: str | None) -> None:
        self.base_url = base_url
        self._urls = {path: URL(base_url + path) for path in ("/run_code", "/validate_code", "/health")}
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_s)
        self._headers = {
            "Host": URL(base_url).host_port_subcomponent or "",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": f"faasrt/{__version__}",
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str, *, max_body_bytes: int) -> Answer:
        """Ask for something, on a connection of its own; see `post`.

        A program is not to go out on a connection that a server may be closing after its health report.
        """
        async with self._new_session(aiohttp.TCPConnector(force_close=True)) as session:
            return await self._exchange(session.get(self._urls[path], allow_redirects=False), None, max_body_bytes)

    async def post(
        self, path: str, body: Body, *, max_body_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, with some more headers, and read its answer, once.

        The caller bounds the time: this method waits as long as the server drips. How far the request came by then
        `body` tells.

        Raises:
            ConnectError: The server was never reached.
            ConnectionLostError: The connection broke after the request may have been sent.
            ProtocolError: The answer is not HTTP, or is compressed although that was declined.
            BodyTooLargeError: The body of a 200 is larger than `max_body_bytes`. Of a failure only the beginning is
                read, as its words are all that matters.

        Cancellation: drops the connection, since the answer is still on its way.
        """
        session = self._session
        if session is None:
            session = self._session = self._new_session(_Connector(limit=0, keepalive_timeout=_KEEP_ALIVE_S))
        request = session.post(self._urls[path], data=body, headers=headers, allow_redirects=False)
        return await self._exchange(request, body, max_body_bytes)

    async def _exchange(
        self,
        request: Awaitable[aiohttp.ClientResponse],
        sent: Body | None,
        max_body_bytes: int,
    ) -> Answer:
        try:
            response = await request
            try:
                status, headers = response.status, response.headers
                encoding = headers.get("Content-Encoding")
                if encoding is not None and encoding.strip().lower() not in ("", "identity"):
                    raise ProtocolError(
                        f"the answer is compressed ({encoding[:40]}) although that was declined",
                        sent="yes",
                        status=status,
                    )
                body, whole = await _read(response.content, max_body_bytes if status == 200 else _FAILURE_BODY_BYTES)
                if not whole:
                    response.close()  # read to its end it would have given its connection back by itself
                    if status == 200:
                        raise BodyTooLargeError
            except BaseException:
                response.close()
                raise
            if status == 200:
                return Answer(status=200, body=body)
            return Answer(
                status=status,
                body=body,
                retry_after_s=read_retry_after(headers.get("Retry-After")),
                not_started=headers.get(NOT_STARTED_HEADER) == "1",
            )
        except aiohttp.ClientConnectorError as error:
            raise ConnectError(f"cannot connect: {_words(error)}; is the FaaS running there?", sent="no") from None
        except aiohttp.ConnectionTimeoutError:
            raise ConnectError("cannot connect in time; is the FaaS running there?", sent="no") from None
        except aiohttp.ClientResponseError as error:
            raise ProtocolError(f"the answer is not HTTP: {_words(error)}", sent="yes") from None
        except (aiohttp.ClientError, OSError) as error:
            if sent is not None and not sent.sending:
                raise ConnectError(f"cannot connect: {_words(error)}", sent="no") from None
            consequence = "" if sent is None else "; the code may have run"
            raise ConnectionLostError(f"the connection broke: {_words(error)}{consequence}", sent="maybe") from None

    async def aclose(self) -> None:
        """Close the connections; closing twice is harmless, and a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _new_session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            request_class=_Request,
            timeout=self._timeout,
            auto_decompress=False,
            trust_env=False,
        )


async def _read(content: aiohttp.StreamReader, max_bytes: int) -> tuple[bytes, bool]:
    """Read a body up to a size, and tell whether that was all."""
    if content.is_eof():  # it came in one piece with the head, as short answers do
        body = content.read_nowait()
        return body[:max_bytes], len(body) <= max_bytes
    pieces: list[bytes] = []
    size = 0
    async for piece in content.iter_chunked(_PIECE_BYTES):
        size += len(piece)
        pieces.append(piece)
        if size > max_bytes:
            return b"".join(pieces)[:max_bytes], False
    return b"".join(pieces), True


def read_retry_after(text: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Read `Retry-After`, given in seconds or as an HTTP date; None when it is neither, or no time to wait for.

    Args:
        text: The header.
        now: A clock of seconds since the epoch, for dates.
    """
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return seconds if 0 <= seconds < math.inf else None
    with contextlib.suppress(ValueError, OverflowError):
        moment = parsedate_to_datetime(text)
        return max(0.0, moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now())
    return None


def _words(error: BaseException) -> str:
    return str(error)[:300] or type(error).__name__
