"""Which of several endpoints gets a call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import attrs

from faasrt.transport.breaker import Breaker
from faasrt.transport.limiter import AdaptiveLimit


@attrs.define(eq=False)
class Endpoint:
    """One replica, for one family of languages.

    Attributes:
        url: Its base URL.
        breaker: Whether it is well.
        limit: How much of it is used.
    """

    url: str
    breaker: Breaker
    limit: AdaptiveLimit


@attrs.define
class Choice:
    """An endpoint that a call may go to.

    Attributes:
        canary: Whether the call is the one that tries an ejected endpoint.
    """

    endpoint: Endpoint
    canary: bool = False


def is_elsewhere(endpoints: Sequence[Endpoint], now: float, tried: Collection[str]) -> bool:
    """Tell whether there is an endpoint that is well, has room, and has not been tried."""
    return any(
        endpoint.url not in tried
        and endpoint.breaker.state == "closed"
        and endpoint.limit.has_room(now)
        and not endpoint.limit.is_cooling(now)
        for endpoint in endpoints
    )


def choose(
    endpoints: Sequence[Endpoint], now: float, *, avoid: Collection[str], random: Callable[[], float]
) -> Choice | None:
    """Choose an endpoint that has room.

    An ejected endpoint whose time is over gets the call as its canary. Otherwise the better one of two endpoints, taken
    at random, gets it: the one that is less full. When every endpoint is ejected, all are treated as if none were: a
    fleet that looks dead is still tried (panic mode).

    Args:
        endpoints: The replicas.
        now: The time.
        avoid: Base URLs that are taken only if no other has room.
        random: Gives a number in [0, 1).

    Returns:
        The choice; None when nobody has room who may be asked.
    """
    if len(endpoints) == 1 and endpoints[0].breaker.state == "closed":
        return Choice(endpoints[0]) if endpoints[0].limit.has_room(now) else None
    closed = [endpoint for endpoint in endpoints if endpoint.breaker.state == "closed"]
    if len(closed) < len(endpoints):
        for endpoint in endpoints:
            if endpoint.breaker.due(now) and endpoint.limit.has_room(now):
                return Choice(endpoint, canary=True)
    roomy = [endpoint for endpoint in closed or endpoints if endpoint.limit.has_room(now)]
    if len(roomy) > 1:
        # One that refuses is empty, and would draw every call.
        roomy = [endpoint for endpoint in roomy if not endpoint.limit.is_cooling(now)] or roomy
        roomy = [endpoint for endpoint in roomy if endpoint.url not in avoid] or roomy
    if len(roomy) < 2:
        return Choice(roomy[0]) if roomy else None
    first = int(random() * len(roomy))
    second = (first + 1 + int(random() * (len(roomy) - 1))) % len(roomy)
    one, other = roomy[first], roomy[second]
    return Choice(one if one.limit.load(now) <= other.limit.load(now) else other)
