"""One call from permit to answer: where it goes, how often it is tried, and what an error knows about that.

The dispatcher owns the sessions and the permits of a factory's runtimes. They are closed when the last runtime that
retained the dispatcher releases it.
"""

from __future__ import annotations

import asyncio
import math
import random as random_module
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

from faasrt.config import Settings
from faasrt.emitter import Emitter
from faasrt.errors import (
    DeadlineExceededError,
    OverloadedError,
    ProtocolError,
    QueueFullError,
    RejectedError,
    ServiceError,
)
from faasrt.metrics import EndpointState
from faasrt.protocol.executions import Request
from faasrt.protocol.messages import RunRequest
from faasrt.protocol.profile import EndpointProfile
from faasrt.protocol.validation import decode_validation
from faasrt.protocol.verdict import raise_for_status
from faasrt.results import HealthStatus, ValidationResult
from faasrt.transport.attempt import Attempt
from faasrt.transport.balancer import Endpoint, is_elsewhere
from faasrt.transport.exchange import Exchange
from faasrt.transport.gate import Fleet, Gate, Permit
from faasrt.transport.home import HomeLoop
from faasrt.transport.profiles import Profiles
from faasrt.transport.retry import Exposure, RetryBudget, wait_before_retry
from faasrt.transport.session import Body, BodyTooLargeError
from faasrt.transport.trace import CallTrace

_VALIDATION_BODY_BYTES = 4 * 2**20
_UNKNOWN = EndpointProfile()
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

    def request(self, profile: EndpointProfile, timeout_ms: int) -> Request[T]: ...


class Dispatcher:
    """Sends requests for the runtimes of one factory.

    Args:
        settings: Endpoints, clocks and bounds.
        emit: Takes the events that belong to no call.
        clock: A monotonic clock in seconds.
        random: Gives a number in [0, 1), for jitter and for choices.
    """

    def __init__(
        self,
        settings: Settings,
        emit: Emitter,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._settings = settings
        self.clock = clock
        self._random = random
        self._exchange = Exchange(settings, clock)
        self._profiles = Profiles(self._exchange.ask, clock)
        self._gate = Gate(settings.limiter, settings.breaker, clock=clock, random=random, emit=emit)
        # One for each family: what goes well with one language is no reason to hammer the servers of another.
        self._budgets: dict[str, RetryBudget] = defaultdict(lambda: RetryBudget(settings.retry))
        self._users = 0
        self._home = HomeLoop("runtime")

    def retain(self) -> None:
        """Count one more runtime that uses this dispatcher."""
        self._users += 1

    async def release(self) -> None:
        """Count one runtime less; the last one closes the sessions."""
        self._users -= 1
        if self._users == 0:
            self._home.leave()
            self._profiles.clear()
            self._gate.close()
            await self._exchange.aclose()

    async def run(
        self,
        endpoints: Sequence[str],
        execution: Execution[T],
        *,
        idempotent: bool,
        trace: CallTrace,
        patient: bool = False,
    ) -> T:
        """Send an execution to one of the endpoints, again if it may be, and give what the answer says.

        The call as a whole ends by its deadline: `queue_timeout_s` for its waits, and the time of one attempt. Waiting
        for an endpoint's health report extends the deadline, by `health_s` for each report at most.

        Args:
            endpoints: Base URLs of replicas.
            execution: What to run.
            idempotent: Whether it may run more than once.
            trace: The call.
            patient: Whether to wait for the first permit without limit, in a queue of any length; the call's deadline
                counts from there.

        Raises:
            QueueFullError: Too many callers wait already.
            ServiceError: The infrastructure failed; see the error tree.

        Cancellation: gives the permit back and drops the connection.
        """
        self._home.check()
        family, run = execution.run.language.family.value, execution.run
        fleet = self._gate.fleet(family, endpoints)
        if not execution.needs_profile:
            fleet.open()
        timeouts, limiter = self._settings.timeouts, self._settings.limiter
        timeout_s = run.timeout_ms / 1000
        call_s = limiter.queue_timeout_s + timeout_s + timeouts.grace_s
        deadline = math.inf if patient else trace.started + call_s
        failed: ServiceError | None = None
        exposure = Exposure()
        tried: tuple[str, ...] = ()
        try:
            while True:
                try:
                    permit = await self._permit(fleet, trace, tried, deadline, patient=patient)
                    if patient:
                        deadline = min(deadline, self.clock() + call_s)
                except (QueueFullError, DeadlineExceededError):
                    if failed is None:
                        raise
                    raise failed from None  # what the retry was for says more than that it could not be made
                try:
                    result = await self._run_once(permit, execution, trace, deadline)
                    self._budgets[family].deposit()
                    return result
                except ServiceError as error:
                    exposure.add(error)
                    tried += (permit.endpoint.url,)
                    wait_s = wait_before_retry(
                        error,
                        attempt=trace.attempts,
                        idempotent=idempotent,
                        elsewhere=is_elsewhere(fleet.endpoints, self.clock(), tried),
                        left_s=deadline + trace.probed_s - self.clock(),
                        least_s=min(timeout_s, max(0.1, timeout_s / 10)),
                        settings=self._settings.retry,
                        budget=self._budgets[family],
                        random=self._random,
                    )
                    if wait_s is None:
                        raise
                    failed = error
                trace.retry_scheduled(failed, wait_s)
                await asyncio.sleep(wait_s)
        except ServiceError as error:
            trace.inform(error)
            raise

    async def validate(self, endpoints: Sequence[str], body: bytes, *, trace: CallTrace) -> ValidationResult:
        """Send a program to be parsed, once, and give the judgement.

        Raises:
            QueueFullError: Too many callers wait already.
            ServiceError: The infrastructure failed.
        """
        self._home.check()
        fleet = self._gate.fleet(trace.language.family.value, endpoints)
        fleet.open()
        within_s = self._settings.sandbox.timeout_limit_s + self._settings.timeouts.grace_s
        try:
            permit = await self._permit(fleet, trace, (), self.clock() + self._settings.limiter.queue_timeout_s)
            trace.attempts, trace.endpoint = 1, permit.endpoint.url
            with self._attempt(permit):
                try:
                    answer = await self._exchange.post(
                        permit.endpoint.url,
                        "/validate_code",
                        Body(body),
                        within_s=within_s,
                        max_body_bytes=_VALIDATION_BODY_BYTES,
                        headers=trace.headers(),
                    )
                except BodyTooLargeError:
                    raise ProtocolError("the answer is larger than any validation", sent="yes") from None
                raise_for_status(answer)
                return decode_validation(answer.body)
        except ServiceError as error:
            trace.inform(error)
            raise

    async def probe_all(self, endpoints: Sequence[str]) -> HealthStatus:
        """Probe several endpoints at once; every failure is an unhealthy answer, none is raised."""
        self._home.check()
        return await self._exchange.probe_all(endpoints)

    @property
    def in_flight(self) -> int:
        """Calls that hold a permit."""
        return self._gate.in_flight

    @property
    def queued(self) -> int:
        """Callers that wait for a permit."""
        return self._gate.queued

    def states(self) -> tuple[EndpointState, ...]:
        """Give what is known of each endpoint that was used."""
        now = self.clock()
        return tuple(
            EndpointState(
                endpoint=endpoint.url,
                family=family,
                state=endpoint.breaker.state,
                ejected_s=endpoint.breaker.ejected_s(now),
                limit=endpoint.limit.limit,
                in_flight=endpoint.limit.in_flight,
                zombies=endpoint.limit.zombies(now),
            )
            for family, endpoint in self._gate.endpoints()
        )

    async def _permit(
        self, fleet: Fleet, trace: CallTrace, avoid: Collection[str], deadline: float, *, patient: bool = False
    ) -> Permit:
        permit = self._gate.take(fleet, avoid)
        if permit is not None:
            return permit
        awaited = self.clock()
        within_s, queue_timeout_s = None, self._settings.limiter.queue_timeout_s
        if deadline < math.inf:
            within_s = min(queue_timeout_s, deadline + trace.probed_s - awaited)
            if not fleet.is_open:
                within_s += self._settings.timeouts.health_s  # the first caller may be waiting for a health report
        try:
            return await self._gate.acquire(fleet, avoid=avoid, within_s=within_s, patient=patient)
        finally:
            waited_s = self.clock() - awaited
            trace.queued_s += waited_s
            if not patient:
                trace.probed_s += max(0.0, waited_s - queue_timeout_s)

    async def _profile(self, endpoint: Endpoint, trace: CallTrace) -> EndpointProfile:
        known = self._profiles.known(endpoint.url)
        if known is None:
            asked = self.clock()
            try:
                known = await self._profiles.get(endpoint.url, self._settings.timeouts.health_s)
            finally:
                trace.probed_s += self.clock() - asked
        return known

    async def _run_once(self, permit: Permit, execution: Execution[T], trace: CallTrace, deadline: float) -> T:
        url = permit.endpoint.url
        with self._attempt(permit) as attempt:
            try:
                trace.attempt_started(url)
                result = await self._run_at(attempt, execution, deadline, trace)
            except BaseException as error:
                trace.attempt_finished(error, attempt.status)
                if isinstance(error, ServiceError) and not isinstance(error, (OverloadedError, RejectedError)):
                    self._profiles.forget(url)
                raise
            trace.attempt_finished(None, attempt.status)
            return result

    async def _run_at(self, attempt: Attempt, execution: Execution[T], deadline: float, trace: CallTrace) -> T:
        timeouts, run = self._settings.timeouts, execution.run
        endpoint, profile = attempt.permit.endpoint, _UNKNOWN
        if execution.needs_profile:
            profile = await self._profile(endpoint, trace)
            endpoint.limit.learn(profile.capacities.get(run.language.family))
            self._gate.pump()
        # The program has its whole time from here on: a probe must not cost any of it.
        started, deadline = self.clock(), deadline + trace.probed_s
        if profile.starts_slowly:
            deadline += timeouts.startup_s
            started += timeouts.startup_s
        # A server must not work on what nobody waits for any more.
        now, timeout_ms = self.clock(), run.timeout_ms
        if (deadline - now) * 1000 < timeout_ms:
            timeout_ms, attempt.shortened = int((deadline - now) * 1000), True
            if timeout_ms < 1:
                raise DeadlineExceededError("no time was left to send the program", sent="no")
        request = execution.request(profile, timeout_ms)
        attempt.body, timeout_s = Body(request.body), request.timeout_ms / 1000
        attempt.runs_s = timeout_s + (timeouts.startup_s if profile.starts_slowly else 0.0)
        attempt.cancels_on_disconnect = profile.cancels_on_disconnect
        deadline += (request.timeout_ms - timeout_ms) / 1000  # several cases take longer than one
        ends = min(started + timeout_s + timeouts.grace_s, deadline)
        try:
            answer = await self._exchange.post(
                endpoint.url,
                "/run_code",
                attempt.body,
                within_s=ends - now,
                max_body_bytes=4 * run.sandbox.max_output_bytes + 262_144,
                headers=trace.headers(),
            )
        except BodyTooLargeError:
            attempt.status = 200  # of another one only the beginning is read
            return request.read(None)
        attempt.status = answer.status
        result = request.read(answer)
        if attempt.shortened and request.timed_out(result):
            # It had less time than it was promised, which is no fault of the code's.
            words = f"the code was ended after the {timeout_ms} ms that were left of the call's time"
            raise DeadlineExceededError(words, sent="yes")
        return result

    def _attempt(self, permit: Permit) -> Attempt:
        return Attempt(permit, self._gate, self.clock, self._settings.retry)
