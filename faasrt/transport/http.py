"""Sends requests to endpoints within their time limits, over one pool of connections for each.

It knows nothing of retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import attrs
from multidict import CIMultiDict
from yarl import URL

from faasrt._endpoint_urls import configured_url, split_endpoint
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
from faasrt.protocol.answer import Answer, decode_object
from faasrt.protocol.health import NO_HEALTH, HealthReport, read_fingerprints
from faasrt.protocol.json_lines import ACCEPT
from faasrt.protocol.program import (
    PATIENCE_HEADER,
)
from faasrt.protocol.registry import protocol_of
from faasrt.results import EndpointHealth
from faasrt.transport.connector import Connector, resolver_for
from faasrt.transport.exchange import IS_RUNNING, BodyTooLargeError, RequestBody, exchange
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.liveness import Liveness

# The client closes idle connections before servers do (aiohttp's and Node's servers wait for at least 5 s). If a server
# closes a connection during a POST, it is unknown whether the code ran.
_KEEP_ALIVE_S = 4.0
_HEALTH_BODY_BYTES = 262_144
VALIDATE_PATH = "/validate_code"
# The health reports that are requested at once. Each has its own connection.
_MOST_PROBES = 64


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


class HttpClient:
    """Sends requests over one session for each endpoint, which is opened on first use."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._urls: dict[str, dict[str, URL]] = {}
        # The URLs of endpoints with other names.
        self._addresses: dict[str, str] = {}
        self._liveness = Liveness(self.get_health, clock, settings.timeouts.health_s)
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
        self._liveness.health_s = settings.timeouts.health_s
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
                only if it answers a request to its health path within `within_s`, and grants the time there.
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
        began, is_granted = self._clock() if wait_s else 0.0, wait_s > 0 and protocol_of(endpoint).has_profile
        try:
            async with asyncio.timeout(within_s + (wait_s if is_granted else 0.0)) as timeout:
                session = self._settings.http_session
                if session is None:
                    session = self._sessions.get(endpoint) or self._open_session(endpoint)
                else:
                    headers = self._add_default_headers(headers)
                url = self._url(endpoint, path)
                request = session.request(method, url, data=body, headers=headers, **self._options)
                if wait_s:
                    async with self._liveness.watching(endpoint, timeout, within_s, wait_s, is_granted=is_granted):
                        answer = await exchange(request, body, max_body_bytes, live, timeout)
                    if is_granted:
                        self._liveness.record_answer(endpoint)
                else:
                    answer = await exchange(request, body, max_body_bytes, live, timeout)
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
                raise ConnectError(f"cannot connect {within}", hint=IS_RUNNING, sent="no") from None
            raise DeadlineExceededError(
                f"no answer {within}: the FaaS hangs, is overloaded, or does not enforce timeouts"
            ) from None
        if answer.status != 200 and body.sending:
            answer.elapsed_ms = (self._clock() - body.sending_since) * 1000
        return answer

    async def get_health(self, endpoint: str) -> Answer:
        """Request the health on a separate connection.

        A server may close the connection after a health report, so no program must be sent on it.
        """
        url = URL(self._base_url(endpoint) + protocol_of(endpoint).health_path)
        if (session := self._settings.http_session) is not None:
            headers = self._add_default_headers({"Connection": "close"})
            return await exchange(session.get(url, headers=headers, **self._options), None, _HEALTH_BODY_BYTES)
        connector = aiohttp.TCPConnector(force_close=True, resolver=resolver_for(endpoint))
        async with self._new_session(connector) as session:
            return await exchange(session.get(url, **self._options), None, _HEALTH_BODY_BYTES)

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
            error = copy.copy(error)  # without the traceback
            unknown = attrs.evolve(protocol.profile, failure=error) if error.permanent else None
            return HealthReport(unknown, unreached=error)
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
        self._liveness.forget(endpoint)
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
            return URL(self._base_url(endpoint) + path)  # the path of a session

    def _open_session(self, endpoint: str) -> aiohttp.ClientSession:
        connector = Connector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, resolver=resolver_for(endpoint))
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


def _fingerprints_in(answer: Answer, endpoint: str) -> dict[Language, str | None]:
    if answer.status in NO_HEALTH:
        return read_fingerprints({}, configured_url(endpoint))
    if answer.status != 200:
        return {}  # the server fails now
    health = {}
    with contextlib.suppress(ProtocolError):
        health = decode_object(answer.body)
    return read_fingerprints(health, configured_url(endpoint))
