"""One call from permit to answer: the deadline, the attempt, and what an error knows about both.

The dispatcher owns the sessions and the permits of a factory's runtimes. They are closed when the last runtime that
retained the dispatcher releases it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Sequence

import attrs

from faasrt.config import Settings
from faasrt.errors import DeadlineExceededError, ProtocolError, ServiceError
from faasrt.protocol.verdict import Answer, judge, raise_for_status
from faasrt.results import EndpointHealth, ExecutionOutput, ExecutionResult, Outcome, Timings
from faasrt.transport.limiter import Limiter
from faasrt.transport.session import BodyTooLargeError, EndpointSession

_HEALTH_BODY_BYTES = 262_144


@attrs.define
class CallTrace:
    """What is known of a call so far; kept up to date so that an event can tell it however the call ends."""

    started: float
    queued_s: float = 0.0
    attempts: int = 0
    endpoint: str = ""


class Dispatcher:
    """Sends requests for the runtimes of one factory.

    Args:
        settings: Endpoints, clocks and bounds.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self.clock = clock
        self._limiter = Limiter(settings.limiter)
        self._sessions: dict[str, EndpointSession] = {}
        self._turns: dict[tuple[str, ...], itertools.cycle[str]] = {}
        self._users = 0

    def retain(self) -> None:
        """Count one more runtime that uses this dispatcher."""
        self._users += 1

    async def release(self) -> None:
        """Count one runtime less; the last one closes the sessions."""
        self._users -= 1
        if self._users == 0:
            sessions, self._sessions = self._sessions, {}
            for session in sessions.values():
                await session.aclose()

    async def run(
        self, endpoints: Sequence[str], body: bytes, *, timeout_ms: int, max_output_bytes: int, trace: CallTrace
    ) -> ExecutionResult:
        """Send a program to one of the endpoints, once, and give the verdict.

        Raises:
            QueueFullError: Too many callers wait already.
            ServiceError: The infrastructure failed; see the error tree.

        Cancellation: gives the permit back and drops the connection.
        """
        await self._limiter.acquire()
        try:
            trace.queued_s = self.clock() - trace.started
            sent_at = self.clock()
            with _Informed(self, trace):
                trace.attempts, trace.endpoint = 1, self._next(tuple(endpoints))
                try:
                    answer = await self._attempt(
                        trace.endpoint,
                        "/run_code",
                        body,
                        within_s=timeout_ms / 1000 + self._settings.timeouts.grace_s,
                        max_body_bytes=4 * max_output_bytes + 262_144,
                    )
                    result = judge(answer, timeout_ms=timeout_ms, max_output_bytes=max_output_bytes)
                except BodyTooLargeError:
                    result = _flooded()
            now = self.clock()
            timings = Timings(queued=trace.queued_s, total=now - trace.started, attempts=(now - sent_at,))
            return attrs.evolve(result, timings=timings, attempts=trace.attempts, endpoint=trace.endpoint)
        finally:
            self._limiter.release()

    async def validate(self, endpoints: Sequence[str], body: bytes, *, trace: CallTrace) -> bytes:
        """Send a program to be parsed, and give the body of the answer.

        Raises:
            ServiceError: The infrastructure failed.
        """
        await self._limiter.acquire()
        try:
            with _Informed(self, trace):
                trace.attempts, trace.endpoint = 1, self._next(tuple(endpoints))
                sandbox, timeouts = self._settings.sandbox, self._settings.timeouts
                answer = await self._attempt(
                    trace.endpoint,
                    "/validate_code",
                    body,
                    within_s=sandbox.timeout_limit_s + timeouts.grace_s,
                    max_body_bytes=4 * sandbox.max_output_bytes + 262_144,
                )
                raise_for_status(answer)
                return answer.body
        except BodyTooLargeError:
            raise ProtocolError("the answer is larger than any validation", endpoint=trace.endpoint) from None
        finally:
            self._limiter.release()

    async def probe(self, endpoint: str) -> EndpointHealth:
        """Ask an endpoint for its health; every failure is an unhealthy answer, none is raised."""
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
            details = json.loads(answer.body)
            status = details.get("status")
            healthy, error = status == "healthy", "" if status == "healthy" else f"status: {status}"
            version = str(details.get("version", ""))
        except (ServiceError, BodyTooLargeError, ValueError, AttributeError, RecursionError) as failure:
            healthy, error, version, details = False, str(failure) or type(failure).__name__, "", {}
        return EndpointHealth(
            endpoint=endpoint,
            healthy=healthy,
            latency_s=self.clock() - started,
            version=version,
            error=error,
            details=details,
        )

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
        session = self._sessions.get(endpoint)
        if session is None:
            session = self._sessions[endpoint] = EndpointSession(
                endpoint, connect_s=self._settings.timeouts.connect_s, token=self._settings.token
            )
        try:
            async with asyncio.timeout(within_s):
                return await session.exchange(path, body, max_body_bytes=max_body_bytes)
        except TimeoutError:
            raise DeadlineExceededError(
                f"no answer within {within_s:g} s: the FaaS hangs, is overloaded, or does not enforce timeouts"
            ) from None

    def _next(self, endpoints: tuple[str, ...]) -> str:
        """Take the replicas of a language in turn."""
        if endpoints not in self._turns:
            self._turns[endpoints] = itertools.cycle(endpoints)
        return next(self._turns[endpoints])


class _Informed:
    """Tell a `ServiceError` that passes through which endpoint, attempt and time it belongs to."""

    def __init__(self, dispatcher: Dispatcher, trace: CallTrace) -> None:
        self._dispatcher = dispatcher
        self._trace = trace

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if isinstance(error, ServiceError):
            error.endpoint, error.attempts = self._trace.endpoint, self._trace.attempts
            error.elapsed_s = self._dispatcher.clock() - self._trace.started


def _flooded() -> ExecutionResult:
    return ExecutionResult(
        outcome=Outcome.OUTPUT_LIMIT,
        output=ExecutionOutput(stderr="the answer was larger than the output limit allows; it was not read"),
        truncated=frozenset({"stdout", "stderr", "ret_val"}),
    )
