"""Permits: which call may be sent now, and to which endpoint. The others wait in the order in which they came."""

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

# A server may end a program this many seconds after its limit.
_MARGIN_S = 1.0


@attrs.define(kw_only=True)
class Permit:
    """The permission to send one call.

    Attributes:
        endpoint: The endpoint of the call.
        started: When the permit was granted.
        probe: The number of the probe, when the call is one.
        body: The request, once there is one that has code run.
        run_s: Seconds that the server may spend on it.
        ends_on_disconnect: Whether the server ends the code when the connection is dropped.
        shortened: Whether the code has less time than the caller asked for.
        status: The HTTP status of the answer; None before there is one.
    """

    endpoint: Endpoint
    started: float
    probe: int | None = None
    body: RequestBody | None = None
    run_s: float = 0.0
    ends_on_disconnect: bool = False
    shortened: bool = False
    status: int | None = None

    def may_still_run(self, error: BaseException) -> bool:
        """Return whether the server may still run the code of a call that was cancelled, lost or given up."""
        if self.body is None or not self.body.sending or self.ends_on_disconnect:
            return False
        # A gateway that answers 504 has given up as well. After any other answer the code has ended.
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
    # By ticket. Callers leave from any place, and an OrderedDict takes the same time for all of them.
    waiters: OrderedDict[int, _Waiter] = attrs.field(factory=OrderedDict)

    @property
    def first(self) -> _Waiter:
        """The caller that has waited longest; there must be one."""
        return next(iter(self.waiters.values()))

    @property
    def is_known(self) -> bool:
        """Whether the capacity of each endpoint was asked for, or need not be."""
        return all(endpoint.limit.is_known for endpoint in self.endpoints)

    def skip_capacity(self) -> None:
        """Record that the capacity of the endpoints will not be asked for."""
        for endpoint in self.endpoints:
            endpoint.limit.set_capacity(None)

    def open_error(self) -> ServiceError | None:
        """Return the last error, as that of a call that was not sent, when no breaker is closed; else None."""
        if any(endpoint.breaker.state == "closed" for endpoint in self.endpoints):
            return None
        for endpoint in self.endpoints:
            if endpoint.last_error is not None:
                error = copy.copy(endpoint.last_error)
                error.endpoint, error.attempts, error.sent = endpoint.url, 0, "no"
                return error
        return None


class PermitPool:
    """Limits all calls in flight, and those of each endpoint.

    A caller gets both permissions at once or neither, so that no call holds one that another could use.

    Args:
        settings: The limits.
        clock: A monotonic clock in seconds, the event loop's or one that keeps its pace.
        random: Returns a number in [0, 1).
        emit: Called with the changes of breakers and limits.

    Attributes:
        in_flight: Calls that hold a permit.
        queued: Callers that wait for one.
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
        """Return the replicas of a family of languages; groups share their endpoints."""
        key = family, tuple(urls)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = EndpointGroup([self._endpoint(family, url) for url in key[1]])
        return group

    def endpoints(self) -> list[tuple[str, Endpoint]]:
        """Return every endpoint with its family."""
        return [(family, endpoint) for (family, _), endpoint in self._endpoints.items()]

    def try_acquire(self, group: EndpointGroup, *, avoid: Collection[str] = ()) -> Permit | None:
        """Return a permit for one of the endpoints, or None when the caller has to wait for one.

        Args:
            group: The endpoints.
            avoid: Base URLs that are taken only if no other has room.
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
            within_s: The most seconds to wait; None waits without limit.
            owner: Names the callers that `fail_waiting` ends.

        Raises:
            QueueFullError: `max_queue` callers wait already.
            DeadlineExceededError: No permit came free in time; nothing was sent.
            ServiceError: The breaker of every endpoint is open; nothing was sent. This is the last error.

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
            still_run = f" ({abandoned} calls that were given up may still run there)" if abandoned else ""
            raise DeadlineExceededError(
                f"no permit came free within {within_s:g} s: the endpoints are full{still_run}, see "
                "get_metrics().states; add replicas, or raise max_concurrency or queue_timeout_s",
                sent="no",
            ) from None
        except BaseException:
            self._leave(group, waiter)
            raise

    def release(self, permit: Permit, error: BaseException | None) -> None:
        """Return a permit, and record in the endpoint how its call ended.

        Args:
            permit: The permit.
            error: The error of the call; None when it has a result.
        """
        endpoint = permit.endpoint
        now, is_failure = self._clock(), False
        try:
            if error is None:
                endpoint.limit.grow()
                endpoint.breaker.succeed(now, permit.started)
            else:
                if permit.may_still_run(error):
                    # It may have begun as late as just now.
                    endpoint.limit.charge_abandoned(now + permit.run_s + _MARGIN_S)
                if isinstance(error, ServiceError):
                    is_failure = self._record_failure(permit, error, now)
        finally:  # a sink may raise KeyboardInterrupt
            self.in_flight -= 1
            endpoint.limit.release()
            if permit.probe is not None:
                endpoint.breaker.release_probe(now, permit.probe)
            if is_failure and self.queued:
                self._fail_where_all_open()
            self.wake()

    def fail_waiting(self, owner: object, error: FaasrtError) -> None:
        """Raise an error in the callers of an owner that wait for a permit."""
        for group in self._groups.values():
            for waiter in [waiter for waiter in group.waiters.values() if waiter.owner is owner]:
                self._fail(group, waiter, error)

    def wake(self) -> None:
        """Grant the permits that can be granted."""
        if not self.queued:
            return
        now = self._clock()
        blocked: list[EndpointGroup] = []
        waiting = [group for group in self._groups.values() if group.waiters]
        while waiting and self.in_flight < self._max_concurrency:
            # The oldest caller goes first, unless none of its endpoints has room.
            group = min(waiting, key=lambda group: group.first.ticket)
            waiter = group.first
            if not waiter.granted.done():  # or its caller has just been cancelled
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
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_queue(self, group: EndpointGroup) -> None:
        """Raise the error of a caller that must not wait."""
        error = group.open_error()
        if error is not None and not any(endpoint.limit.in_flight for endpoint in group.endpoints):
            raise error
        max_queue = self._settings.limiter.max_queue
        if max_queue is None:
            return
        # Callers that wait until the capacity is known would be in flight but for that.
        growth = sum(endpoint.limit.expected_growth for endpoint in group.endpoints)
        if self.queued >= max_queue + min(growth, self._max_concurrency - self.in_flight):
            raise QueueFullError(
                f"{self.queued} callers already wait for a permit: slow down, or raise max_queue or "
                f"max_concurrency ({self._max_concurrency})"
            )

    def _record_failure(self, permit: Permit, error: ServiceError, now: float) -> bool:
        """Record an error, and return whether the endpoint failed."""
        limit, breaker = permit.endpoint.limit, permit.endpoint.breaker
        if isinstance(error, DeadlineExceededError) and permit.shortened:
            return False  # the time was used up elsewhere
        if isinstance(error, (OverloadedError, DeadlineExceededError)):
            limit.shrink(now, permit.started)
        if isinstance(error, OverloadedError):
            retry = self._settings.retry
            asked_s = retry.throttled_base_delay_s if error.retry_after_s is None else error.retry_after_s
            limit.back_off(now + min(asked_s, retry.max_retry_after_s))
        if isinstance(error, ConnectError) and error.refused:
            limit.clear_abandoned()  # the server is gone, and its programs with it
        if isinstance(error, RejectedError) or (isinstance(error, OverloadedError) and error.status == 429):
            breaker.succeed(now, permit.started)  # the endpoint works
            return False
        if not error.blames_endpoint:
            return False
        permit.endpoint.last_error = error
        breaker.fail(now, permit.started, probe=permit.probe)
        return True

    def _fail_where_all_open(self) -> None:
        for group in self._groups.values():
            while group.waiters and (error := group.open_error()) is not None:
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
                # Granted in the very moment in which its caller went away: the next one gets it.
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
        """Wake up when time alone makes room: an abandoned call is over, or a breaker may be probed."""
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
