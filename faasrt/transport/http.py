"""One exchange over HTTP: connections, time limits, and which failure means that nothing was sent.

It knows nothing of retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ipaddress
import math
import os
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import attrs
from aiohttp.abc import AbstractResolver, AbstractStreamWriter, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from faasrt._endpoint_urls import address_of, configured_url, split_endpoint
from faasrt._version import __version__
from faasrt.config import Settings
from faasrt.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    ProtocolError,
    ServiceError,
)
from faasrt.languages import Language
from faasrt.protocol.health import NO_HEALTH, HealthReport, read_fingerprints
from faasrt.protocol.json_lines import ACCEPT, CONTENT_TYPE, media_type
from faasrt.protocol.program import (
    COUNTS_RUNNING_TIME_HEADER,
    NOT_STARTED_HEADER,
    PATIENCE_HEADER,
    PROGRAM_SUSPECT_HEADER,
)
from faasrt.protocol.registry import protocol_of
from faasrt.protocol.response import Answer, decode_object
from faasrt.results import EndpointHealth
from faasrt.transport.live_reader import LineTooLongError, LiveReader
from faasrt.transport.tls_failures import permanent_error

# The client closes idle connections before servers do (aiohttp's and Node's servers wait for at least 5 s). If a server
# closes a connection during a POST, it is unknown whether the code ran.
_KEEP_ALIVE_S = 4.0
_PIECE_BYTES = 65_536
_WRITE_BYTES = 262_144
_FAILURE_BODY_BYTES = 65_536
_HEALTH_BODY_BYTES = 262_144
VALIDATE_PATH = "/validate_code"
# The health reports that are requested at once. Each has its own connection.
_MOST_PROBES = 64


class BodyTooLargeError(Exception):
    """The body of an answer is too large; the connection was closed. Callers convert this error."""


class _Connector(aiohttp.TCPConnector):
    """Never reuses a connection on which data arrived while it was idle.

    If a server answers twice or late, the next call on the connection would get the result of another call. aiohttp
    checks this when a connection returns to the pool, but not when it is taken from the pool.
    """

    # A private method of aiohttp, because its caller, the public `connect`, does not tell which connections are new. A
    # new one with data would be replaced again and again.
    async def _get(self, key: Any, traces: Any) -> Any:
        while (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                return connection
            connection.close()
        return None


if not hasattr(aiohttp.TCPConnector, "_get"):
    raise ImportError(f"aiohttp {aiohttp.__version__} does not work with faasrt: install an older version")


class _FixedResolver(AbstractResolver):
    def __init__(self, address: str) -> None:
        self._address = address
        self._family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=self._family,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        pass


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


def max_calls(settings: Settings) -> tuple[int, int]:
    """Return the largest number of calls in flight: to all endpoints together, and to each of them.

    It is lower than `max_concurrency` if the connector of the caller's session allows few connections. Otherwise calls
    would wait for a connection, out of order, and after their deadline has started. One connection is left for requests
    to `/health`.
    """
    most = per_host = settings.limiter.max_concurrency
    if (connector := _limited_connector(settings)) is not None:
        most = min(most, max(1, connector.limit - 1)) if connector.limit else most
        per_host = min(most, max(1, connector.limit_per_host - 1)) if connector.limit_per_host else most
    return most, per_host


def _limited_connector(settings: Settings) -> aiohttp.BaseConnector | None:
    connector = None if settings.http_session is None else settings.http_session.connector
    return connector if connector is not None and (connector.limit or connector.limit_per_host) else None


@attrs.define(eq=False)
class _SignsOfLife:
    """When an endpoint last answered, when it last did not, and who asks whether it still does."""

    answered_at: float = -math.inf
    silent_at: float = -math.inf
    asking: asyncio.Lock = attrs.field(factory=asyncio.Lock)


class HttpClient:
    """Sends requests over one session for each endpoint, which is opened on first use."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._urls: dict[str, dict[str, URL]] = {}
        # The URLs of endpoints with other names.
        self._addresses: dict[str, str] = {}
        self._signs: defaultdict[str, _SignsOfLife] = defaultdict(_SignsOfLife)
        self.configure(settings)

    def set_address(self, endpoint: str, url: str) -> None:
        self._addresses[endpoint] = url
        self._urls.pop(endpoint, None)

    def address(self, endpoint: str) -> str:
        return self._addresses.get(endpoint, endpoint)

    def _base_url(self, endpoint: str) -> str:
        return self._addresses.get(endpoint) or split_endpoint(endpoint)[1]

    def configure(self, settings: Settings) -> None:
        """Use these settings for further requests. Connections stay open."""
        self._settings = settings
        connect_s = settings.timeouts.connect_s
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_s)
        # `connect` includes DNS, but also the wait for a free connection of the session.
        self._may_wait = _limited_connector(settings) is not None
        if self._may_wait:
            self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        # Names of headers are compared without regard to case, so that none is sent twice.
        self._headers = CIMultiDict({"Accept": "*/*", "User-Agent": f"faasrt/{__version__}"})
        for name, value in settings.headers.items():
            self._headers[name] = value
        self._headers["Accept-Encoding"] = "identity"
        if settings.token:
            self._headers["Authorization"] = f"Bearer {settings.token}"
        self._options: dict[str, Any] = {"allow_redirects": False, "timeout": self._timeout}
        if settings.ssl is not None:
            self._options["ssl"] = settings.ssl
        if settings.proxy is not None:
            self._options["proxy"] = settings.proxy
        for session in self._sessions.values():
            session.headers.clear()
            session.headers.update(self._headers)

    async def send(
        self,
        endpoint: str,
        path: str,
        body: RequestBody,
        *,
        within_s: float,
        max_body_bytes: int,
        wait_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
        live: LiveReader | None = None,
        method: str = "POST",
    ) -> Answer:
        """Send one request, and read its answer.

        Args:
            wait_s: Further time, which the server has only while it answers other requests. So a server that hangs is
                noticed after `within_s`, or at most `health_s` later. If its protocol has no profile, it has this time
                only if it answers a request to its health path within `within_s`, and claims the time there.
            live: Reads the output while the program runs, if the server sends it. The time that the caller needs for
                the output does not count for `within_s`.

        Raises:
            DeadlineExceededError: There was no answer within `within_s` seconds; or no connection of the caller's
                session was free (`sent` is "no").
            ConnectError: The server was never reached.
            ConnectionLostError: The connection broke after the request may have been sent.
            ProtocolError: The answer is not HTTP, or is compressed although the request forbids it.
            BodyTooLargeError: The status is 200 and the body exceeds `max_body_bytes`. With other statuses, only the
                beginning of the body is read.

        Cancellation: closes the connection.
        """
        headers = {PATIENCE_HEADER: f"{within_s:.2f}", **(headers or {})}
        if live is not None:
            headers["Accept"] = ACCEPT
        began, has_wait = self._clock() if wait_s else 0.0, wait_s > 0 and protocol_of(endpoint).has_profile
        try:
            async with asyncio.timeout(within_s + (wait_s if has_wait else 0.0)) as timeout:
                session = self._settings.http_session
                if session is None:
                    session = self._sessions.get(endpoint) or self._open_session(endpoint)
                else:
                    headers = self._add_default_headers(headers)
                url = self._url(endpoint, path)
                request = session.request(method, url, data=body, headers=headers, **self._options)
                if wait_s:
                    async with self._watching(endpoint, timeout, within_s, wait_s, has_wait=has_wait):
                        answer = await _exchange(request, body, max_body_bytes, live, timeout)
                    if has_wait:
                        self._signs[endpoint].answered_at = self._clock()
                else:
                    answer = await _exchange(request, body, max_body_bytes, live, timeout)
        except TimeoutError:
            if wait_s:
                within_s = max(within_s, self._clock() - began)
            within = f"within {round(within_s, 2):g} s"
            if not body.sending and self._may_wait:
                raise DeadlineExceededError(
                    f"no connection of `http_session` was free {within}: raise the limit of "
                    "its connector, or make fewer requests with it",
                    sent="no",
                ) from None
            if not body.sending:
                message = f"cannot connect {within}; is the FaaS running there?"
                raise ConnectError(message, sent="no") from None
            raise DeadlineExceededError(
                f"no answer {within}: the FaaS hangs, is overloaded, or does not enforce timeouts"
            ) from None
        if answer.status != 200 and body.sending:
            answer.elapsed_ms = (self._clock() - body.sending_since) * 1000
        return answer

    @contextlib.asynccontextmanager
    async def _watching(
        self, endpoint: str, timeout: asyncio.Timeout, within_s: float, wait_s: float, *, has_wait: bool
    ) -> AsyncIterator[None]:
        """End a time limit of `within_s + wait_s` earlier if the endpoint does not answer other requests any more. If
        it is only `within_s`, because `has_wait` is false, add `wait_s` if the endpoint claims it.
        """
        loop, lead_s = asyncio.get_running_loop(), min(self._settings.timeouts.health_s, within_s / 2)
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            watch = self._watch(endpoint, timeout, wait_s, lead_s, has_wait=has_wait)
            tasks.append(loop.create_task(watch))

        timer = loop.call_later(within_s - lead_s, start)
        try:
            yield
        finally:
            timer.cancel()
            for task in tasks:
                task.cancel()
                await asyncio.wait([task])

    async def _watch(
        self, endpoint: str, timeout: asyncio.Timeout, wait_s: float, lead_s: float, *, has_wait: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while wait_s > 0:
            step_s = min(wait_s, self._settings.timeouts.health_s)  # a busy server may need as long for its answer
            if timeout.when() is not None:
                answers = await self._answers(endpoint, step_s)
                if answers != has_wait:
                    if (ends_at := timeout.when()) is not None and not timeout.expired():
                        timeout.reschedule(ends_at + wait_s if answers else max(ends_at - wait_s, loop.time()))
                    has_wait = answers
                if not answers:
                    return
            wait_s -= step_s
            ends_at = timeout.when()  # None while output waits for the caller
            await asyncio.sleep(step_s if ends_at is None else ends_at - wait_s - lead_s - loop.time())

    async def _answers(self, endpoint: str, within_s: float) -> bool:
        """Return whether the endpoint has answered a request in the last `within_s` seconds, or answers one now. Only
        one call at a time asks it, and those that wait meanwhile take over its result.
        """
        signs, asked_at = self._signs[endpoint], self._clock()
        async with signs.asking:
            if self._clock() < signs.answered_at + within_s:
                return True
            if signs.silent_at >= asked_at:
                return False
            grants_time = await self._grants_time(endpoint)
            if grants_time:
                signs.answered_at = self._clock()
            else:
                signs.silent_at = self._clock()
            return grants_time

    async def _grants_time(self, endpoint: str) -> bool:
        """Return whether the endpoint answers a request to its health path. Only faasrt's own server can say that its
        time limits do not count the wait for a CPU. A profile says it before; otherwise this answer does.
        """
        protocol = protocol_of(endpoint)
        try:
            async with asyncio.timeout(self._settings.timeouts.health_s):
                answer = await self.get_health(endpoint)
            protocol.read_health(answer)
        except (TimeoutError, ServiceError, BodyTooLargeError, ConfigurationError):
            return False
        return protocol.has_profile or answer.counts_running_time

    async def get_health(self, endpoint: str) -> Answer:
        """Request the health on a separate connection.

        A server may close the connection after a health report, so no program must be sent on it.
        """
        url = URL(self._base_url(endpoint) + protocol_of(endpoint).health_path)
        if (session := self._settings.http_session) is not None:
            headers = self._add_default_headers({"Connection": "close"})
            return await _exchange(session.get(url, headers=headers, **self._options), None, _HEALTH_BODY_BYTES)
        connector = aiohttp.TCPConnector(force_close=True, resolver=_resolver_for(endpoint))
        async with self._new_session(connector) as session:
            return await _exchange(session.get(url, **self._options), None, _HEALTH_BODY_BYTES)

    def _add_default_headers(self, headers: Mapping[str, str] | None) -> Mapping[str, str]:
        if self._settings.http_session is not None and self._settings.http_session.closed:
            raise ConfigurationError("`http_session` of the settings is closed: reconfigure with one that is open")
        merged = self._headers.copy()
        merged.update(headers or {})
        return merged

    async def get_report(self, endpoint: str) -> HealthReport:
        protocol = protocol_of(endpoint)
        try:
            answer = await self.get_health(endpoint)
            return HealthReport(protocol.read_profile(answer), _fingerprints_in(answer, endpoint))
        except ConnectError as error:
            unknown = attrs.evolve(protocol.profile, failure=copy.copy(error)) if error.permanent else None
            return HealthReport(unknown)
        except ConnectionLostError:
            return HealthReport(None)
        except (ProtocolError, BodyTooLargeError):
            return HealthReport(protocol.profile)

    async def probe(self, endpoint: str) -> EndpointHealth:
        """Return the health of an endpoint. A failed probe is an unhealthy result, not an exception."""
        started, health_s = self._clock(), self._settings.timeouts.health_s
        try:
            async with asyncio.timeout(health_s):
                answer = await self.get_health(endpoint)
            status, version, details = protocol_of(endpoint).read_health(answer)
            error = "" if status == "healthy" else f"the server reports the status {status!r}"
        except TimeoutError:
            status, version, details, error = "unreachable", "", {}, f"no answer within {health_s:g} s: the FaaS hangs"
        except (ServiceError, BodyTooLargeError, ConfigurationError) as failure:
            unreachable = isinstance(failure, (ConnectError, ConnectionLostError))
            status, version, details = "unreachable" if unreachable else "failed", "", {}
            error = str(failure) or "the answer is larger than any health report"
        return EndpointHealth(
            endpoint=endpoint,
            healthy=not error,
            status=status,
            latency_s=self._clock() - started,
            version=version,
            error=error,
            details=details,
        )

    async def probe_all(self, endpoints: Sequence[str]) -> list[EndpointHealth]:
        room = asyncio.Semaphore(_MOST_PROBES)

        async def probe(endpoint: str) -> EndpointHealth:
            async with room:
                return await self.probe(endpoint)

        async with asyncio.TaskGroup() as group:
            probes = [group.create_task(probe(endpoint)) for endpoint in endpoints]
        return [probe.result() for probe in probes]

    async def close_session(self, endpoint: str) -> None:
        """Close the connections to an endpoint that has no calls in flight."""
        self._urls.pop(endpoint, None)
        self._signs.pop(endpoint, None)
        if (session := self._sessions.pop(endpoint, None)) is not None:
            await session.close()

    def take_sessions(self) -> Sequence[aiohttp.ClientSession]:
        """Return the sessions, which the caller must close. A later request opens new ones."""
        sessions, self._sessions = self._sessions, {}
        return list(sessions.values())

    def _url(self, endpoint: str, path: str) -> URL:
        urls = self._urls.get(endpoint)
        if urls is None:
            http_url = self._base_url(endpoint)
            paths = (protocol_of(endpoint).run_path, VALIDATE_PATH)
            urls = self._urls[endpoint] = {path: URL(http_url + path) for path in paths}
        try:
            return urls[path]
        except KeyError:
            return URL(self._base_url(endpoint) + path)  # that of a session

    def _open_session(self, endpoint: str) -> aiohttp.ClientSession:
        connector = _Connector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, resolver=_resolver_for(endpoint))
        session = self._sessions[endpoint] = self._new_session(connector)
        return session

    def _new_session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            auto_decompress=False,
            trust_env=False,
        )


async def close_sessions(sessions: Sequence[aiohttp.ClientSession]) -> None:
    for session in sessions:
        # aiohttp raises RuntimeError if the event loop was closed before, together with its connections.
        with contextlib.suppress(RuntimeError):
            await session.close()


def _resolver_for(endpoint: str) -> AbstractResolver | None:
    address = address_of(endpoint)
    return _FixedResolver(address) if address else None


async def _exchange(
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
        raise ConnectError("cannot connect in time; is the FaaS running there?", sent="no") from None
    except aiohttp.ClientResponseError as error:
        # The text of the error itself can contain the URL of the proxy, with its password.
        reason = error.message[:300]
        if error.request_info.method == "CONNECT":  # sent to the proxy, which has not connected to the server
            message = f"the proxy does not connect to the FaaS (HTTP {error.status}): {reason}"
            raise ConnectError(message, sent="no") from None
        raise ProtocolError(f"the answer is not HTTP: {reason}", sent="yes") from None
    except (aiohttp.ClientError, OSError) as error:
        if body is not None and not body.sending:
            raise ConnectError(f"cannot connect: {_reason(error)}", sent="no") from None
        raise ConnectionLostError(f"the connection broke: {_reason(error)}", sent="maybe") from None


def _connect_error(error: aiohttp.ClientConnectorError) -> ConnectError:
    if (failure := permanent_error(error)) is not None:
        return failure
    reason = _connect_reason(error.os_error)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return ConnectError(f"cannot connect to the proxy: {reason}", sent="no")
    failure = ConnectError(f"cannot connect: {reason}; is the FaaS running there?", sent="no")
    failure.connection_refused = isinstance(error.os_error, ConnectionRefusedError)
    return failure


def _connect_reason(error: OSError) -> str:
    if error.errno is None or error.errno <= 0 or isinstance(error, ssl.SSLError):
        return str(error.strerror or error)[:300]  # that of a look-up in the DNS, or of TLS
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


def _fingerprints_in(answer: Answer, endpoint: str) -> dict[Language, str | None]:
    if answer.status in NO_HEALTH:
        return read_fingerprints({}, configured_url(endpoint))
    if answer.status != 200:
        return {}  # the server fails now
    health = {}
    with contextlib.suppress(ProtocolError):
        health = decode_object(answer.body)
    return read_fingerprints(health, configured_url(endpoint))


def _check_encoding(response: aiohttp.ClientResponse) -> None:
    encoding = response.headers.get("Content-Encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        message = f"the answer is compressed although the request forbids it: {encoding[:40]}"
        raise ProtocolError(message, sent="yes", status=response.status)


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


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "Server disconnected"  # its message can be the part of the answer that has arrived
    return str(error)[:300] or type(error).__name__
