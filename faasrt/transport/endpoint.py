from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence

import attrs

from faasrt.errors import ServiceError
from faasrt.protocol.health import EndpointProfile
from faasrt.transport.adaptive_limit import AdaptiveLimit
from faasrt.transport.breaker import Breaker
from faasrt.transport.latency import EndpointLatency

UNKNOWN_S = 30.0
"""The seconds after which an endpoint that did not answer `GET /health` is asked again. A call in a compiled language
does not wait for this time.
"""

MANY = 16
"""From this number of endpoints on, a choice looks at a few random ones instead of all."""

_DRAWS = 10
# So an endpoint that answered lately is used for some more calls before an unknown one is tried.
_COST_OF_UNKNOWN = 3.0
# A fixed part, because of several idle endpoints, the one with the largest limit must not get all calls.
_LOAD_OF_CALL = 0.25
# If an endpoint fails a health request faster than this, the next call may ask again at once.
_FAST_FAILURE_S = 0.5


@attrs.define(eq=False)
class Endpoint:
    """One replica, for one family of languages.

    `last_error` is a copy of the error of the last call that failed because of this endpoint.
    """

    url: str
    breaker: Breaker
    limit: AdaptiveLimit
    latency: EndpointLatency = attrs.field(factory=EndpointLatency)
    family: str = ""
    last_error: ServiceError | None = None

    def may_take_probe(self, now: float, *, is_needed: bool = False) -> bool:
        """Return whether the next call may be the probe of its breaker.

        Abandoned calls do not prevent it, because they may have ended together with the server.
        """
        return self.breaker.may_probe(now, is_needed=is_needed) and self.limit.in_flight < self.limit.limit

    def is_preferred(self, now: float) -> bool:
        limit = self.limit
        return (
            self.breaker.state == "closed"
            and limit.has_room(now)
            and not limit.is_backing_off(now)
            and not self.latency.is_failing(now)
        )

    def cost(self, now: float) -> float:
        return (_LOAD_OF_CALL + self.limit.load(now)) * self.latency.slowness(now, self.limit.in_flight)


def has_alternative(endpoints: Sequence[Endpoint], now: float, tried: Collection[str]) -> bool:
    return any(endpoint.url not in tried and endpoint.is_preferred(now) for endpoint in endpoints)


def choose(
    endpoints: Sequence[Endpoint],
    now: float,
    *,
    avoid: Collection[str],
    random: Callable[[], float],
    recent: Sequence[Endpoint] = (),
) -> Endpoint | None:
    """Choose an endpoint that has room; None if none may be used.

    If the breaker of an endpoint may be probed, that endpoint gets the call. Otherwise two random endpoints are
    compared, and the one gets it on which a call costs less: the less loaded one, unless it is known to be slow. If
    every breaker is open or half-open, all endpoints are used as if their breakers were closed. An endpoint that is
    failing gets one call every few seconds, unless all are failing.

    In a group of many endpoints, it looks only at some of them, also for probes. A client with few calls would know
    nothing about most of them, so one that has just answered quickly is compared, too, and gets the call if it is idle.

    Args:
        avoid: Base URLs of endpoints to use only if no other endpoint has room.
        recent: Those of the replicas that have answered lately, faster than usual.
    """
    if len(endpoints) >= MANY:
        drawn = _draw(endpoints, now, avoid=avoid, random=random, recent=recent)
        if drawn is not None:
            return drawn
    closed = [endpoint for endpoint in endpoints if endpoint.breaker.state == "closed"]
    if len(closed) < len(endpoints):
        for endpoint in endpoints:
            if endpoint.may_take_probe(now):
                return endpoint
    # If the others are full, wait for them: an endpoint that is down always has room.
    candidates = closed or endpoints
    usable = [endpoint for endpoint in candidates if not endpoint.latency.is_failing(now)] or candidates
    available = [endpoint for endpoint in usable if endpoint.limit.has_room(now)]
    # An endpoint that refuses calls has the smallest load, and would get all further calls.
    available = [endpoint for endpoint in available if not endpoint.limit.is_backing_off(now)] or available
    available = [endpoint for endpoint in available if endpoint.url not in avoid] or available
    if len(available) < 2:
        return available[0] if available else None
    first = int(random() * len(available))
    second = (first + 1 + int(random() * (len(available) - 1))) % len(available)
    return min(available[first], available[second], key=lambda endpoint: endpoint.cost(now))


def _draw(
    endpoints: Sequence[Endpoint],
    now: float,
    *,
    avoid: Collection[str],
    random: Callable[[], float],
    recent: Sequence[Endpoint],
) -> Endpoint | None:
    """Choose between a recent and two random endpoints; None if no healthy one with room was found."""

    def cost(endpoint: Endpoint) -> float:
        return endpoint.cost(now) * (1.0 if endpoint.latency.is_known(now) else _COST_OF_UNKNOWN)

    found: list[Endpoint] = []
    most = 2
    if recent:
        endpoint = recent[int(random() * len(recent))]
        if endpoint.is_preferred(now) and endpoint.url not in avoid:
            found.append(endpoint)
            most = 3
    for _ in range(_DRAWS):
        endpoint = endpoints[int(random() * len(endpoints))]
        if endpoint.may_take_probe(now):
            return endpoint
        if endpoint.is_preferred(now) and endpoint.url not in avoid and endpoint not in found:
            found.append(endpoint)
            if len(found) == most:
                break
    return min(found, key=cost, default=None)


class Profiles:
    """The profiles of endpoints.

    A profile is used until the endpoint sends another health report. The first call after a failure requests one,
    because another server may have replaced the endpoint. If the endpoint does not answer, the last profile is still
    used, with `confirmed` false. `unknown` is for one that has never answered.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[EndpointProfile | None]],
        clock: Callable[[], float] = time.monotonic,
        unknown: Callable[[str], EndpointProfile] = lambda url: EndpointProfile(),
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._unknown = unknown
        self._known: dict[str, EndpointProfile] = {}
        # When an endpoint that did not answer may be asked again.
        self._ask_again_at: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._fetches: dict[str, int] = defaultdict(int)

    def cached(self, url: str) -> EndpointProfile | None:
        known = self._known.get(url)
        if known is not None and known.confirmed:
            return known
        return self._current(url) if self._clock() < self._ask_again_at.get(url, 0.0) else None

    async def fetch(self, url: str, within_s: float) -> EndpointProfile:
        """Fetch a profile, or return the last one if the endpoint does not answer in time. Concurrent callers share one
        request.

        Cancellation: if another caller waits, it sends the request again.
        """
        fetches_before, fetching = self._fetches[url], False
        answered, hung, lock = None, True, self._locks[url]
        try:
            async with asyncio.timeout(within_s), lock:
                if self._locks.get(url) is not lock:  # the endpoint was discarded
                    return self._unknown(url)
                if self._fetches[url] != fetches_before:
                    # Another caller sent the request. Even if it failed, the waiting callers must not all repeat it.
                    return self._current(url)
                fetching, started = True, self._clock()
                answered = await self._fetch(url)
                hung = answered is None and self._clock() - started > _FAST_FAILURE_S
        except TimeoutError:
            if not fetching:
                return self._current(url)
        if self._locks.get(url) is not lock:  # the endpoint was discarded
            return answered or self._unknown(url)
        self._fetches[url] += 1
        if answered is not None and (answered.answered or not self._current(url).answered):
            self._known[url] = answered
        elif answered is not None or hung:
            # The server may still run code, so not every call must wait for its health report.
            self._ask_again_at[url] = self._clock() + UNKNOWN_S
        return self._current(url)

    def set(self, url: str, profile: EndpointProfile) -> None:
        self._known[url] = profile

    def mark_stale(self, url: str, *, is_replaced: bool = False) -> None:
        """Make the next call request the profile of an endpoint that failed. Another server may have replaced it.

        An endpoint that did not answer is not asked for `UNKNOWN_S`, because otherwise each failing call would wait.
        With `is_replaced`, an answer has shown that the profile is wrong, and it is removed.
        """
        known = self._known.pop(url, None)
        if known is not None and not is_replaced:
            self._known[url] = attrs.evolve(known, confirmed=False) if known.confirmed else known

    def __contains__(self, url: str) -> bool:
        return any(url in kept for kept in (self._known, self._ask_again_at, self._fetches, self._locks))

    def discard(self, url: str) -> None:
        for kept in (self._known, self._ask_again_at, self._fetches, self._locks):
            kept.pop(url, None)

    def clear(self) -> None:
        """Remove all profiles, and the locks, which belong to an event loop."""
        self._known.clear()
        self._ask_again_at.clear()
        self._locks.clear()

    def _current(self, url: str) -> EndpointProfile:
        return self._known.get(url) or self._unknown(url)
