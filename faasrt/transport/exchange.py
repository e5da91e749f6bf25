"""The sessions of a factory's runtimes: one attempt within its time, and the probes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from faasrt.config import Settings
from faasrt.errors import (
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    ProtocolError,
    ServiceError,
)
from faasrt.protocol.messages import decode_object
from faasrt.protocol.profile import EndpointProfile, read_profile
from faasrt.protocol.verdict import Answer, raise_for_status
from faasrt.results import EndpointHealth, HealthStatus
from faasrt.transport.deadlines import Deadlines
from faasrt.transport.session import Body, BodyTooLargeError, EndpointSession

_HEALTH_BODY_BYTES = 262_144
_NO_ANSWER = (ConnectError, ConnectionLostError)


class Exchange:
    """Sends requests over one session for each base URL, made when it is needed.

    Args:
        settings: The clocks, and the token.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._sessions: dict[str, EndpointSession] = {}
        self._deadlines = Deadlines()

    async def post(
        self,
        endpoint: str,
        path: str,
        body: Body,
        *,
        within_s: float,
        max_body_bytes: int,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request, with some more headers, and read its answer; `body` tells how far it came.

        Raises:
            DeadlineExceededError: That took longer than `within_s`.
            ConnectError: It did, before anything was sent; or the server was never reached.
            ServiceError: See `EndpointSession.post`.
            BodyTooLargeError: The answer is larger than `max_body_bytes`.

        Cancellation: drops the connection.
        """
        try:
            with self._deadlines.within(within_s):
                session = self._session(endpoint)
                return await session.post(path, body, max_body_bytes=max_body_bytes, headers=headers)
        except TimeoutError:
            if not body.sending:
                words = f"cannot connect within {within_s:g} s; is the FaaS running there?"
                raise ConnectError(words, sent="no") from None
            raise DeadlineExceededError(
                f"no answer within {within_s:g} s: the FaaS hangs, is overloaded, or does not enforce timeouts"
            ) from None

    async def ask(self, endpoint: str) -> EndpointProfile | None:
        """Ask an endpoint what it is; None when it does not answer for itself."""
        try:
            answer = await self._session(endpoint).get("/health", max_body_bytes=_HEALTH_BODY_BYTES)
            profile = read_profile(decode_object(answer.body))
        except (ConnectError, ConnectionLostError):
            return None
        except (ProtocolError, BodyTooLargeError):
            return EndpointProfile()
        return None if answer.status >= 500 and not profile.faithful else profile

    async def probe(self, endpoint: str) -> EndpointHealth:
        """Ask an endpoint for its health; every failure is an unhealthy answer, none is raised."""
        started, health_s = self._clock(), self._settings.timeouts.health_s
        try:
            async with asyncio.timeout(health_s):
                answer = await self._session(endpoint).get("/health", max_body_bytes=_HEALTH_BODY_BYTES)
            raise_for_status(answer)
            details = decode_object(answer.body)
            status, version = (str(details.get(name, ""))[:200] for name in ("status", "version"))
            error = "" if status == "healthy" else f"the server calls itself {status!r}"
        except TimeoutError:
            status, version, details, error = "unreachable", "", {}, f"no answer within {health_s:g} s: the FaaS hangs"
        except (ServiceError, BodyTooLargeError) as failure:
            status, version, details = "unreachable" if isinstance(failure, _NO_ANSWER) else "failed", "", {}
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

    async def probe_all(self, endpoints: Sequence[str]) -> HealthStatus:
        """Probe several endpoints at once, each under its own deadline."""
        async with asyncio.TaskGroup() as group:
            probes = [group.create_task(self.probe(endpoint)) for endpoint in endpoints]
        return HealthStatus(tuple(probe.result() for probe in probes))

    async def aclose(self) -> None:
        """Close the sessions; a later request opens new ones."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            # A loop that was closed before us has taken its connections with it; aiohttp stumbles over that.
            with contextlib.suppress(RuntimeError):
                await session.aclose()

    def _session(self, endpoint: str) -> EndpointSession:
        session = self._sessions.get(endpoint)
        if session is None:
            session = self._sessions[endpoint] = EndpointSession(
                endpoint, connect_s=self._settings.timeouts.connect_s, token=self._settings.token
            )
        return session
