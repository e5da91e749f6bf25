"""Permits: who may send a call now, and to which endpoint; the others wait in the order in which they came."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Collection, Sequence

import attrs

from faasrt.config import BreakerSettings, LimiterSettings
from faasrt.errors import DeadlineExceededError, QueueFullError
from faasrt.events import EndpointChanged, LimitChanged, Sink
from faasrt.transport.balancer import Choice, Endpoint, choose
from faasrt.transport.breaker import Breaker
from faasrt.transport.limiter import AdaptiveLimit


@attrs.define
class Permit:
    """A call in flight.

    Attributes:
        endpoint: Where it goes.
        canary: Its number, when it is the one that tries an ejected endpoint.
    """

    endpoint: Endpoint
    canary: int | None = None


@attrs.frozen(eq=False)
class _Waiter:
    ticket: int
    granted: asyncio.Future[Permit]
    avoid: Collection[str]
    patient: bool


@attrs.define(eq=False)
class Fleet:
    """The replicas of one family of languages, and the callers that wait for one of them."""

    endpoints: Sequence[Endpoint]
    waiters: deque[_Waiter] = attrs.field(factory=deque)

    @property
    def is_open(self) -> bool:
        """Whether each endpoint has been asked what it is, or need not be asked."""
        return all(endpoint.limit.opened for endpoint in self.endpoints)

    def open(self) -> None:
        """Note that nobody will ask the endpoints for their size: no call need wait for that."""
        for endpoint in self.endpoints:
            endpoint.limit.learn(None)


class Gate:
    """A bound on all calls in flight, and one on each endpoint's.

    A caller gets both at once or neither, so that nobody holds what another could use.

    Args:
        limiter: The bounds.
        breaker: When an endpoint is left out.
        clock: A monotonic clock in seconds, the event loop's or one that keeps its pace.
        random: Gives a number in [0, 1).
        emit: Told when an endpoint was ejected, or is back, and when its limit has changed.

    Attributes:
        in_flight: Calls that hold a permit.
        queued: Callers that wait for one.
    """

    def __init__(
        self,
        limiter: LimiterSettings,
        breaker: BreakerSettings,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        emit: Sink = lambda event: None,
    ) -> None:
        self._settings = limiter
        self._emit = emit
        self._breaker_settings = breaker
        self._clock = clock
        self._random = random
        self._fleets: dict[tuple[str, tuple[str, ...]], Fleet] = {}
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._tickets = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self.in_flight = 0
        self.queued = self._impatient = 0

    def fleet(self, family: str, urls: Sequence[str]) -> Fleet:
        """Give the replicas of a family of languages; an endpoint is the same one in every fleet."""
        key = family, tuple(urls)
        fleet = self._fleets.get(key)
        if fleet is None:
            fleet = self._fleets[key] = Fleet([self._endpoint(family, url) for url in key[1]])
        return fleet

    def endpoints(self) -> list[tuple[str, Endpoint]]:
        """Give every endpoint with its family."""
        return [(family, endpoint) for (family, _), endpoint in self._endpoints.items()]

    def take(self, fleet: Fleet, avoid: Collection[str]) -> Permit | None:
        """Take a permit for one of the endpoints, if nobody has to wait for it.

        Args:
            fleet: The endpoints.
            avoid: Base URLs that are taken only if no other has room.
        """
        if fleet.waiters or self.in_flight >= self._settings.max_concurrency:
            return None
        choice = choose(fleet.endpoints, self._clock(), avoid=avoid, random=self._random)
        return None if choice is None else self._grant(choice)

    async def acquire(
        self, fleet: Fleet, *, avoid: Collection[str], within_s: float | None, patient: bool = False
    ) -> Permit:
        """Take a permit for one of the endpoints, and wait for it if need be; first come, first served.

        Args:
            fleet: The endpoints.
            avoid: Base URLs that are taken only if no other has room.
            within_s: The most seconds to wait; None waits without limit.
            patient: Whether the queue may have any length, because the caller bounds it; others do not count it.

        Raises:
            QueueFullError: `max_queue` callers wait already.
            DeadlineExceededError: No permit came free in time; nothing was sent.

        Cancellation: leaves the queue, and holds no permit.
        """
        permit = self.take(fleet, avoid)
        if permit is not None:
            return permit
        settings = self._settings
        # Those who only wait until it is known what an endpoint is are in flight in all but name.
        to_come = sum(endpoint.limit.to_come for endpoint in fleet.endpoints)
        most = settings.max_queue + min(to_come, settings.max_concurrency - self.in_flight)
        if not patient and self._impatient >= most:
            raise QueueFullError(
                f"{self._impatient} callers already wait for a permit: slow down, or raise max_queue or "
                f"max_concurrency ({settings.max_concurrency})"
            )
        waiter = _Waiter(next(self._tickets), asyncio.get_running_loop().create_future(), avoid, patient)
        fleet.waiters.append(waiter)
        self._count(waiter, 1)
        self.pump()
        try:
            async with asyncio.timeout(within_s):
                return await waiter.granted
        except BaseException as error:
            self._leave(fleet, waiter)
            if not isinstance(error, TimeoutError):
                raise
            abandoned = sum(endpoint.limit.zombies(self._clock()) for endpoint in fleet.endpoints)
            still_run = f" ({abandoned} calls that were given up may still run there)" if abandoned else ""
            raise DeadlineExceededError(
                f"no permit came free within {within_s:g} s: the endpoints are full{still_run}, see "
                "get_metrics().states; add replicas, or raise max_concurrency or queue_timeout_s",
                sent="no",
            ) from None

    def release(self, permit: Permit) -> None:
        """Give a permit back, after what became of the call was noted in the endpoint."""
        self.in_flight -= 1
        permit.endpoint.limit.give()
        if permit.canary is not None:
            permit.endpoint.breaker.forgo_canary(self._clock(), permit.canary)
        self.pump()

    def close(self) -> None:
        """Stop waiting for time to make room."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, waiter: _Waiter, change: int) -> None:
        self.queued += change
        self._impatient += 0 if waiter.patient else change

    def _leave(self, fleet: Fleet, waiter: _Waiter) -> None:
        if waiter.granted.done() and not waiter.granted.cancelled():
            # Granted in the very moment in which its caller went away: the next one gets it.
            self.release(waiter.granted.result())
        elif waiter in fleet.waiters:
            fleet.waiters.remove(waiter)
            self._count(waiter, -1)

    def _grant(self, choice: Choice) -> Permit:
        self.in_flight += 1
        choice.endpoint.limit.take()
        return Permit(choice.endpoint, choice.endpoint.breaker.send_canary() if choice.canary else None)

    def pump(self) -> None:
        """Grant what can be granted; to be called when a limit has been raised."""
        if not self.queued:
            return
        now = self._clock()
        blocked: list[Fleet] = []
        waiting = [fleet for fleet in self._fleets.values() if fleet.waiters]
        while waiting and self.in_flight < self._settings.max_concurrency:
            # Between the fleets too, who came first goes first, unless no endpoint of theirs has room.
            fleet = min(waiting, key=lambda fleet: fleet.waiters[0].ticket)
            waiter = fleet.waiters[0]
            if not waiter.granted.done():  # or its caller has just been cancelled
                choice = choose(fleet.endpoints, now, avoid=waiter.avoid, random=self._random)
                if choice is None:
                    blocked.append(fleet)
                    waiting.remove(fleet)
                    continue
                waiter.granted.set_result(self._grant(choice))
            fleet.waiters.popleft()
            self._count(waiter, -1)
            if not fleet.waiters:
                waiting.remove(fleet)
        self._wake_later(blocked, now)

    def _wake_later(self, blocked: list[Fleet], now: float) -> None:
        """Come back when time alone makes room: a zombie is gone, or an ejection is over."""
        self.close()
        times = [
            moment
            for fleet in blocked
            for endpoint in fleet.endpoints
            for moment in (
                endpoint.limit.next_room(),
                endpoint.breaker.until if endpoint.breaker.state == "ejected" else None,
            )
            if moment is not None and moment > now
        ]
        if times:
            self._timer = asyncio.get_running_loop().call_later(min(times) - now, self.pump)

    def _endpoint(self, family: str, url: str) -> Endpoint:
        endpoint = self._endpoints.get((family, url))
        if endpoint is None:

            def tell_state() -> None:
                ejected_s = breaker.ejected_s(self._clock())
                self._emit(EndpointChanged(endpoint=url, family=family, state=breaker.state, ejected_s=ejected_s))

            def tell_limit() -> None:
                self._emit(LimitChanged(endpoint=url, family=family, limit=limit.limit))

            breaker = Breaker(self._breaker_settings, self._random, tell_state)
            limit = AdaptiveLimit(self._settings.max_concurrency, tell_limit)
            endpoint = self._endpoints[family, url] = Endpoint(url, breaker, limit)
        return endpoint
