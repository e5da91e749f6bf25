"""One call from permit to answer: the deadline, the attempt, and what an error knows about both.

The dispatcher owns the sessions and the permits of a factory's runtimes. They are closed when the last runtime that
retained the dispatcher releases it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import attrs

from faasrt.config import BreakerSettings, RetrySettings, Settings
from faasrt.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    OverloadedError,
    ProtocolError,
    RejectedError,
    ServiceError,
)
from faasrt.protocol.executions import Request
from faasrt.protocol.messages import RunRequest, decode_object
from faasrt.protocol.profile import EndpointProfile, read_profile
from faasrt.protocol.validation import decode_validation
from faasrt.protocol.verdict import Answer, raise_for_status
from faasrt.results import EndpointHealth, HealthStatus, ValidationResult
from faasrt.transport.limiter import Limiter
from faasrt.transport.profiles import Profiles
from faasrt.transport.session import BodyTooLargeError, EndpointSession
from faasrt.transport.trace import CallTrace

_HEALTH_BODY_BYTES = 262_144
_VALIDATION_BODY_BYTES = 4 * 2**20
_NO_ANSWER = (ConnectError, ConnectionLostError, DeadlineExceededError)
T = TypeVar("T")


class Execution(Protocol[T]):
    """Something to run, which becomes a request once its endpoint is known.

    Attributes:
        run: The caller's own request.
        needs_profile: Whether the endpoint must be asked what it is.
    """

    @property
    def run(self) -> RunRequest: ...

    @property
    def needs_profile(self) -> bool: ...

    def request(self, profile: EndpointProfile) -> Request[T]: ...


class Dispatcher:
    """Sends requests for the runtimes of one factory.

    Args:
        settings: Endpoints, clocks and bounds.
        clock: A monotonic clock in seconds.

    Raises:
        ConfigurationError: The settings ask for what does not exist yet.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        _refuse_what_is_not_there_yet(settings)
        self._settings = settings
        self.clock = clock
        self._limiter = Limiter(settings.limiter)
        self._profiles = Profiles(self._ask)
        self._sessions: dict[str, EndpointSession] = {}
        self._turns: dict[tuple[str, ...], itertools.cycle[str]] = {}
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def retain(self) -> None:
        """Count one more runtime that uses this dispatcher."""
        self._users += 1

    async def release(self) -> None:
        """Count one runtime less; the last one closes the sessions."""
        self._users -= 1
        if self._users == 0:
            sessions, self._sessions, self._loop = self._sessions, {}, None
            self._profiles.clear()
            for session in sessions.values():
                # A loop that was closed before us has taken its connections with it; aiohttp stumbles over that.
                with contextlib.suppress(RuntimeError):
                    await session.aclose()

    async def run(self, endpoints: Sequence[str], execution: Execution[T], *, trace: CallTrace) -> T:
        """Send an execution to one of the endpoints, once, and give what its answer says.

        Raises:
            QueueFullError: Too many callers wait already.
            ServiceError: The infrastructure failed; see the error tree.

        Cancellation: gives the permit back and drops the connection.
        """
        self._check_loop()
        with _informed(trace):
            await self._limiter.acquire()
            try:
                trace.permit_taken()
                return await self._run_once(self._next(tuple(endpoints)), execution, trace)
            finally:
                self._limiter.release()

    async def _run_once(self, endpoint: str, execution: Execution[T], trace: CallTrace) -> T:
        trace.attempt_started(endpoint)
        try:
            result = await self._run_at(endpoint, execution)
        except BaseException as error:
            trace.attempt_finished(error)
            if isinstance(error, ServiceError) and not isinstance(error, (OverloadedError, RejectedError)):
                self._profiles.forget(endpoint)
            raise
        trace.attempt_finished(None)
        return result

    async def _run_at(self, endpoint: str, execution: Execution[T]) -> T:
        timeouts = self._settings.timeouts
        started = self.clock()
        profile = EndpointProfile()
        if execution.needs_profile:
            # Asking is a part of the attempt, and must leave it the time that it needs.
            ask_s = min(timeouts.health_s, (execution.run.timeout_ms / 1000 + timeouts.grace_s) / 2)
            profile = await self._profiles.get(endpoint, ask_s)
        request = execution.request(profile)
        within_s = request.timeout_ms / 1000 + timeouts.grace_s + (timeouts.startup_s if profile.starts_slowly else 0)
        left_s = within_s - (self.clock() - started)
        if left_s <= 0:
            raise DeadlineExceededError(f"the FaaS did not say within {within_s:g} s what it is", sent="no")
        try:
            answer = await self._attempt(
                endpoint,
                "/run_code",
                request.body,
                within_s=left_s,
                max_body_bytes=4 * execution.run.sandbox.max_output_bytes + 262_144,
            )
        except BodyTooLargeError:
            return request.read(None)
        return request.read(answer)

    async def _ask(self, endpoint: str) -> EndpointProfile | None:
        """Ask an endpoint what it is; None when it does not answer for itself."""
        try:
            answer = await self._session(endpoint).exchange("/health", None, max_body_bytes=_HEALTH_BODY_BYTES)
            profile = read_profile(decode_object(answer.body))
        except (ConnectError, ConnectionLostError):
            return None
        except (ProtocolError, BodyTooLargeError):
            return EndpointProfile()
        return None if answer.status >= 500 and not profile.faithful else profile

    async def validate(self, endpoints: Sequence[str], body: bytes, *, trace: CallTrace) -> ValidationResult:
        """Send a program to be parsed, and give the judgement.

        Raises:
            ServiceError: The infrastructure failed.
        """
        self._check_loop()
        sandbox, timeouts = self._settings.sandbox, self._settings.timeouts
        with _informed(trace):
            await self._limiter.acquire()
            try:
                trace.attempts, trace.endpoint = 1, self._next(tuple(endpoints))
                answer = await self._attempt(
                    trace.endpoint,
                    "/validate_code",
                    body,
                    within_s=sandbox.timeout_limit_s + timeouts.grace_s,
                    max_body_bytes=_VALIDATION_BODY_BYTES,
                )
                raise_for_status(answer)
                return decode_validation(answer.body)
            except BodyTooLargeError:
                raise ProtocolError("the answer is larger than any validation", sent="yes") from None
            finally:
                self._limiter.release()

    async def probe(self, endpoint: str) -> EndpointHealth:
        """Ask an endpoint for its health; every failure is an unhealthy answer, none is raised."""
        self._check_loop()
        started = self.clock()
        try:
            answer = await self._attempt(
                endpoint,
                "/health",
                None,
                within_s=self._settings.timeouts.health_s,
                max_body_bytes=_HEALTH_BODY_BYTES,
            )
            raise_for_status(answer)
            details = decode_object(answer.body)
            status, version = (str(details.get(name, ""))[:200] for name in ("status", "version"))
            error = "" if status == "healthy" else f"the server calls itself {status!r}"
        except (ServiceError, BodyTooLargeError) as failure:
            status, version, details = "unreachable" if isinstance(failure, _NO_ANSWER) else "failed", "", {}
            error = str(failure) or "the answer is larger than any health report"
        return EndpointHealth(
            endpoint=endpoint,
            healthy=not error,
            status=status,
            latency_s=self.clock() - started,
            version=version,
            error=error,
            details=details,
        )

    async def probe_all(self, endpoints: Sequence[str]) -> HealthStatus:
        """Probe several endpoints at once, each under its own deadline."""
        async with asyncio.TaskGroup() as group:
            probes = [group.create_task(self.probe(endpoint)) for endpoint in endpoints]
        return HealthStatus(tuple(probe.result() for probe in probes))

    @property
    def in_flight(self) -> int:
        """Calls that hold a permit."""
        return self._limiter.in_flight

    @property
    def queued(self) -> int:
        """Callers that wait for a permit."""
        return self._limiter.queued

    async def _attempt(
        self, endpoint: str, path: str, body: bytes | None, *, within_s: float, max_body_bytes: int
    ) -> Answer:
        try:
            async with asyncio.timeout(within_s):
                return await self._session(endpoint).exchange(path, body, max_body_bytes=max_body_bytes)
        except TimeoutError:
            raise DeadlineExceededError(
                f"no answer within {within_s:g} s: the FaaS hangs, is overloaded, or does not enforce timeouts"
            ) from None

    def _session(self, endpoint: str) -> EndpointSession:
        session = self._sessions.get(endpoint)
        if session is None:
            session = self._sessions[endpoint] = EndpointSession(
                endpoint, connect_s=self._settings.timeouts.connect_s, token=self._settings.token
            )
        return session

    def _check_loop(self) -> None:
        """Sessions and permits belong to the loop in which they are first used."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError(
                "this runtime belongs to another event loop: close it there, and make a new one in each asyncio.run"
            )

    def _next(self, endpoints: tuple[str, ...]) -> str:
        """Take the replicas of a language in turn."""
        if endpoints not in self._turns:
            self._turns[endpoints] = itertools.cycle(endpoints)
        return next(self._turns[endpoints])


def _refuse_what_is_not_there_yet(settings: Settings) -> None:
    """Refuse settings that would be ignored."""
    if attrs.evolve(settings.retry, idempotent=False) != RetrySettings():
        raise ConfigurationError("no retries are made yet: leave retry at its defaults")
    if settings.breaker != BreakerSettings():
        raise ConfigurationError("no endpoint is ejected yet: leave breaker at its defaults")


@contextlib.contextmanager
def _informed(trace: CallTrace) -> Iterator[None]:
    """Tell a `ServiceError` that passes through which endpoint, attempt and time it belongs to."""
    try:
        yield
    except ServiceError as error:
        error.endpoint, error.attempts, error.elapsed_s = trace.endpoint, trace.attempts, trace.elapsed_s
        raise
