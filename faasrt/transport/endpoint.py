"""One replica with its breaker, limit and latency, and the choice between replicas."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import attrs

from faasrt.errors import ServiceError
from faasrt.transport.adaptive_limit import AdaptiveLimit
from faasrt.transport.breaker import Breaker
from faasrt.transport.latency import EndpointLatency

MANY = 16
"""From this number of endpoints on, a choice looks at a few random ones instead of all."""

_DRAWS = 10
# With this factor, an endpoint that has answered lately gets some more calls before an unknown endpoint is tried.
_COST_OF_UNKNOWN = 3.0
# Added to the load of an endpoint, whatever its limit is. Otherwise, if several endpoints are idle, the endpoint with
# the largest limit would get all calls.
_LOAD_OF_CALL = 0.25


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
    compared. The call goes to the endpoint on which it costs less: the less loaded endpoint, unless this endpoint is
    known to be slow. If every breaker is open or half-open, all endpoints are used as if their breakers were closed. An
    endpoint that is failing gets one call every few seconds, unless all are failing.

    In a group of many endpoints, only some of the endpoints are considered, even for probes. A client with few calls
    knows nothing about most of them. So an endpoint that has just answered quickly is compared, too, and gets the call
    if it is idle.

    Args:
        avoid: Base URLs of endpoints to use only if no other endpoint has room.
        recent: Replicas that have answered lately, faster than usual.
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
    """Choose between a recent and two random endpoints; None if no healthy endpoint with room was found."""

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
