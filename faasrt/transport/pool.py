"""Permits: decides which call may be sent, and to which endpoint. Other calls wait, first come, first served."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

import attrs

from faasrt.config import Settings
from faasrt.errors import (
    ConnectError,
    DeadlineExceededError,
    FaasrtError,
    OverloadedError,
    ProtocolError,
    QueueFullError,
    RejectedError,
    ServiceError,
)
from faasrt.telemetry.events import EndpointChanged, LimitChanged, Sink
from faasrt.transport.breaker import Breaker
from faasrt.transport.endpoint import Endpoint, choose
from faasrt.transport.http import RequestBody
from faasrt.transport.limiter import AdaptiveLimit

# A server may still run a program for this number of seconds after its time limit.
_MARGIN_S = 1.0


@attrs.define(kw_only=True)
class Permit:
    """The permission to send one call.

    Attributes:
        endpoint: The endpoint of the call.
        started: When the permit was granted.
        probe: The number of the probe if the call is a probe of a circuit breaker; None otherwise.
        body: The body of the request; None before it is built, and for requests that run no code.
        run_s: The maximum number of seconds for which the server runs the code.
        cancels_on_disconnect: Whether the server stops the code when the client disconnects.
        has_reduced_timeout: Whether the code has less time than the caller allowed, because part of it is used up.
        status: The HTTP status of the answer; None if there is no answer yet.
    """

    endpoint: Endpoint
    started: float
    probe: int | None = None
    body: RequestBody | None = None
    run_s: float = 0.0
    cancels_on_disconnect: bool = False
    has_reduced_timeout: bool = False
    status: int | None = None

    def may_still_run(self, error: BaseException) -> bool:
        """Return whether the server may still run the code of a call that failed with this error."""
        if self.body is None or not self.body.sending or self.cancels_on_disconnect:
            return False
        # A gateway that answers 504 did not wait for the end of the code. After any other answer the code has ended.
        return self.status == 504 or (self.status is None and not isinstance(error, ProtocolError))


@attrs.frozen(eq=False)
class _Waiter:
    ticket: int
    granted: asyncio.Future[Permit]
    avoid: Collection[str]
    owner: object


@attrs.define(eq=False)
class EndpointGroup:
    """The replicas of one family of languages, and the callers that wait for one of them."""

    endpoints: Sequence[Endpoint]
    # By ticket. A caller may leave from any position; an OrderedDict removes it in constant time.
    waiters: OrderedDict[int, _Waiter] = attrs.field(factory=OrderedDict)

    @property
    def first(self) -> _Waiter:
        """The caller that has waited longest. At least one must be waiting."""
        return next(iter(self.waiters.values()))

    @property
    def is_initialized(self) -> bool:
        """Whether the capacity of each endpoint is known, or will not be requested."""
        return all(endpoint.limit.is_initialized for endpoint in self.endpoints)

    def skip_capacity(self) -> None:
        """Record that the capacity of the endpoints will not be requested."""
        for endpoint in self.endpoints:
            endpoint.limit.set_capacity(None)

    def unavailable_error(self) -> ServiceError | None:
        """Return the error for calls that are not sent because no breaker is closed; None if one is closed.

        It is a copy of the last error of an endpoint.
        """
        if any(endpoint.breaker.state == "closed" for endpoint in self.endpoints):
            return None
        for endpoint in self.endpoints:
            if endpoint.last_error is not None:
                error = copy.copy(endpoint.last_error)
                error.endpoint, error.attempts, error.sent = endpoint.url, 0, "no"
                return error
        return None


class PermitPool:
    """Limits the calls in flight: of the manager, and of each endpoint.

    A permit covers both limits. A caller that waits for one of them does not count for the other.

    Args:
        settings: The limits.
        clock: A monotonic clock in seconds, as fast as the clock of the event loop.
        random: Returns a number in [0, 1).
        emit: Called with the events of breakers and limits.

    Attributes:
        in_flight: The number of calls that hold a permit.
        queued: The number of callers that wait for a permit.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        emit: Sink = lambda event: None,
    ) -> None:
        self._settings = settings
        self._max_concurrency = settings.limiter.max_concurrency
        self._emit = emit
        self._clock = clock
        self._random = random
        self._groups: dict[tuple[str, tuple[str, ...]], EndpointGroup] = {}
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._tickets = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self.in_flight = 0
        self.queued = 0

    def group(self, family: str, urls: Sequence[str]) -> EndpointGroup:
        """Return the group of these replicas. Groups of one family share the endpoints that they have in common."""
        key = family, tuple(urls)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = EndpointGroup([self._endpoint(family, url) for url in key[1]])
        return group

    def endpoints(self) -> list[tuple[str, Endpoint]]:
        return [(family, endpoint) for (family, _), endpoint in self._endpoints.items()]

    def try_acquire(self, group: EndpointGroup, *, avoid: Collection[str] = ()) -> Permit | None:
        """Return a permit for one of the endpoints, or None if the caller must wait. Endpoints whose base URL is in
        `avoid` are used only if no other one has room.
        """
        if group.waiters or self.in_flight >= self._max_concurrency:
            return None
        now = self._clock()
        endpoint = choose(group.endpoints, now, avoid=avoid, random=self._random)
        return None if endpoint is None else self._grant(endpoint, now)

    async def acquire(
        self,
        group: EndpointGroup,
        *,
        avoid: Collection[str] = (),
        within_s: float | None = None,
        owner: object = None,
    ) -> Permit:
        """Acquire a permit for one of the endpoints; first come, first served.

        Args:
            group, avoid: See `try_acquire`.
            within_s: The maximum number of seconds to wait; None for no limit.
            owner: An object that identifies the caller for `fail_waiting`.

        Raises:
            QueueFullError: `max_queue` callers are waiting already.
            DeadlineExceededError: No permit was free in time; nothing was sent.
            ServiceError: The breaker of every endpoint is open; nothing was sent. The error is that of an earlier call.

        Cancellation: leaves the queue, and holds no permit.
        """
        if permit := self.try_acquire(group, avoid=avoid):
            return permit
        self._check_queue(group)
        waiter = _Waiter(next(self._tickets), asyncio.get_running_loop().create_future(), avoid, owner)
        group.waiters[waiter.ticket] = waiter
        self.queued += 1
        self.wake()
        try:
            async with asyncio.timeout(within_s):
                return await waiter.granted
        except TimeoutError:
            self._leave(group, waiter)
            abandoned = sum(endpoint.limit.abandoned(self._clock()) for endpoint in group.endpoints)
            still_run = f" ({abandoned} abandoned calls may still run there)" if abandoned else ""
            raise DeadlineExceededError(
                f"no permit was free within {within_s:g} s: the endpoints are full{still_run}, see "
                "get_metrics().states; add replicas, or raise max_concurrency or queue_timeout_s",
                sent="no",
            ) from None
        except BaseException:
            self._leave(group, waiter)
            raise

    def release(self, permit: Permit, error: BaseException | None) -> None:
        """Take a permit back, and record how its call ended. `error` is None if it has a result."""
        endpoint = permit.endpoint
        now, is_failure = self._clock(), False
        try:
            if error is None:
                endpoint.limit.grow()
                endpoint.breaker.succeed(now, permit.started)
            else:
                if permit.may_still_run(error):
                    # The code may have started only now.
                    endpoint.limit.charge_abandoned(now + permit.run_s + _MARGIN_S)
                if isinstance(error, ServiceError):
                    is_failure = self._record_failure(permit, error, now)
        finally:  # a telemetry sink may raise KeyboardInterrupt
            self.in_flight -= 1
            endpoint.limit.release()
            if permit.probe is not None:
                endpoint.breaker.release_probe(now, permit.probe)
            if is_failure and self.queued:
                self._fail_unavailable_groups()
            self.wake()

    def fail_waiting(self, owner: object, error: FaasrtError) -> None:
        """Raise an error in the waiting callers with this owner."""
        for group in self._groups.values():
            for waiter in [waiter for waiter in group.waiters.values() if waiter.owner is owner]:
                self._fail(group, waiter, error)

    def wake(self) -> None:
        """Grant permits to waiting callers while there is room."""
        if not self.queued:
            return
        now = self._clock()
        blocked: list[EndpointGroup] = []
        waiting = [group for group in self._groups.values() if group.waiters]
        while waiting and self.in_flight < self._max_concurrency:
            # The caller that has waited longest comes first, unless none of its endpoints has room.
            group = min(waiting, key=lambda group: group.first.ticket)
            waiter = group.first
            if not waiter.granted.done():  # the future is done if its caller has just been cancelled
                endpoint = choose(group.endpoints, now, avoid=waiter.avoid, random=self._random)
                if endpoint is None:
                    blocked.append(group)
                    waiting.remove(group)
                    continue
                waiter.granted.set_result(self._grant(endpoint, now))
            del group.waiters[waiter.ticket]
            self.queued -= 1
            if not group.waiters:
                waiting.remove(group)
        self._wake_later(blocked, now)

    def close(self) -> None:
        """Cancel the timer that wakes waiting callers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_queue(self, group: EndpointGroup) -> None:
        """Raise an error if a new caller must not wait."""
        error = group.unavailable_error()
        if error is not None and not any(endpoint.limit.in_flight for endpoint in group.endpoints):
            raise error
        max_queue = self._settings.limiter.max_queue
        if max_queue is None:
            return
        # Callers that only wait until the capacity is known do not count: they will then be sent.
        growth = sum(endpoint.limit.expected_growth for endpoint in group.endpoints)
        if self.queued >= max_queue + min(growth, self._max_concurrency - self.in_flight):
            raise QueueFullError(
                f"{self.queued} calls are already waiting for a permit: send fewer calls, or increase max_queue "
                f"({max_queue}) or max_concurrency ({self._max_concurrency})"
            )

    def _record_failure(self, permit: Permit, error: ServiceError, now: float) -> bool:
        """Record an error, and return whether the endpoint failed."""
        limit, breaker = permit.endpoint.limit, permit.endpoint.breaker
        if isinstance(error, DeadlineExceededError) and permit.has_reduced_timeout:
            return False  # the earlier attempts used up the time, not this endpoint
        if isinstance(error, (OverloadedError, DeadlineExceededError)):
            limit.shrink(now, permit.started)
        if isinstance(error, OverloadedError):
            retry = self._settings.retry
            asked_s = retry.throttled_base_delay_s if error.retry_after_s is None else error.retry_after_s
            limit.back_off(now + min(asked_s, retry.max_retry_after_s))
        if isinstance(error, ConnectError) and error.refused:
            limit.clear_abandoned()  # the server has stopped, and so have its programs
        if isinstance(error, RejectedError) or (isinstance(error, OverloadedError) and error.status == 429):
            breaker.succeed(now, permit.started)  # the endpoint works
            return False
        if not error.blames_endpoint:
            return False
        permit.endpoint.last_error = error
        breaker.fail(now, permit.started, probe=permit.probe)
        return True

    def _fail_unavailable_groups(self) -> None:
        for group in self._groups.values():
            while group.waiters and (error := group.unavailable_error()) is not None:
                self._fail(group, group.first, error)

    def _fail(self, group: EndpointGroup, waiter: _Waiter, error: FaasrtError) -> None:
        del group.waiters[waiter.ticket]
        self.queued -= 1
        if not waiter.granted.done():
            waiter.granted.set_exception(error)

    def _leave(self, group: EndpointGroup, waiter: _Waiter) -> None:
        granted = waiter.granted
        if granted.done() and not granted.cancelled():
            if granted.exception() is None:
                # The permit was granted just when the caller left. The next caller gets it.
                self.in_flight -= 1
                granted.result().endpoint.limit.release()
                if granted.result().probe is not None:
                    granted.result().endpoint.breaker.release_probe(self._clock(), granted.result().probe or 0)
                self.wake()
        elif group.waiters.pop(waiter.ticket, None) is not None:
            self.queued -= 1

    def _grant(self, endpoint: Endpoint, now: float) -> Permit:
        self.in_flight += 1
        endpoint.limit.acquire()
        probe = endpoint.breaker.start_probe() if endpoint.breaker.may_probe(now) else None
        return Permit(endpoint=endpoint, started=now, probe=probe)

    def _wake_later(self, blocked: list[EndpointGroup], now: float) -> None:
        """Set a timer for the next time at which an abandoned call stops counting, or a breaker may be probed."""
        self.close()
        times = [
            moment
            for group in blocked
            for endpoint in group.endpoints
            for moment in (
                endpoint.limit.next_release(),
                endpoint.breaker.open_until if endpoint.breaker.state == "open" else None,
            )
            if moment is not None and moment > now
        ]
        if times:
            self._timer = asyncio.get_running_loop().call_later(min(times) - now, self.wake)

    def _endpoint(self, family: str, url: str) -> Endpoint:
        endpoint = self._endpoints.get((family, url))
        if endpoint is None:

            def on_breaker() -> None:
                open_s = breaker.open_s(self._clock())
                self._emit(EndpointChanged(endpoint=url, family=family, state=breaker.state, open_s=open_s))

            def on_limit() -> None:
                self._emit(LimitChanged(endpoint=url, family=family, limit=limit.limit))

            breaker = Breaker(self._settings.breaker, self._random, on_breaker)
            limit = AdaptiveLimit(self._max_concurrency, on_limit)
            endpoint = self._endpoints[family, url] = Endpoint(url, breaker, limit)
        return endpoint
