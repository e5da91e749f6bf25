"""The replicas that may get a call in a language, and the callers that wait for one of them.

`PermitPool` gives the permits.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias
from weakref import WeakSet, WeakValueDictionary

import attrs

from faasrt._endpoint_urls import configured_url
from faasrt.config import Settings
from faasrt.errors import ServiceError
from faasrt.languages import Language, family_of
from faasrt.telemetry.events import EndpointChanged, LimitChanged, Sink
from faasrt.transport.adaptive_limit import AdaptiveLimit
from faasrt.transport.breaker import Breaker
from faasrt.transport.endpoint import Endpoint
from faasrt.transport.http import max_calls
from faasrt.transport.latency import EndpointLatency, TypicalLatency

# The number of replicas of a name that are asked whether they can run a program. Replicas of one name are usually
# alike.
_MOST_UNABLE = 3
# A client with few calls in flight needs few replicas.
_MAX_RECENT = 64
# The language, the URLs, `validates` and `excluded` of a group.
_Key: TypeAlias = tuple[Language | str, tuple[str, ...], bool, frozenset[str]]


def exclude(unable: Sequence[str]) -> frozenset[str]:
    """Return the replicas that cannot run a program, and each name that has at least three such replicas."""
    names = Counter(configured_url(replica) for replica in unable)
    return frozenset([*unable, *(url for url, count in names.items() if count >= _MOST_UNABLE)])


@attrs.define(eq=False)
class Waiter:
    """A caller that waits for a permit.

    Attributes:
        queue: `waiters` or `retries` of its group, by ticket.
        granted: Gets a `Permit`, or None if the group has no endpoint any more.
        since: When it began to wait, or when an earlier attempt first found an endpoint down.
    """

    queue: OrderedDict[int, Waiter]
    ticket: int
    granted: asyncio.Future[Any]
    avoid: Collection[str]
    owner: object
    since: float


@attrs.define(eq=False)
class EndpointGroup:
    """The replicas of one language, and the callers that wait for one of them.

    Attributes:
        retries: Callers that have made an attempt. They come first, because their deadlines have begun.
        recent: The replicas that have answered lately, faster than usual.
    """

    language: Language | str
    urls: tuple[str, ...]
    validates: bool = False
    excluded: frozenset[str] = frozenset()
    endpoints: Sequence[Endpoint] = ()
    # By ticket. A caller may leave from any position; an OrderedDict removes it in constant time.
    waiters: OrderedDict[int, Waiter] = attrs.field(factory=OrderedDict)
    retries: OrderedDict[int, Waiter] = attrs.field(factory=OrderedDict)
    members: frozenset[Endpoint] = frozenset()
    recent: deque[Endpoint] = attrs.field(factory=deque)
    _skips_capacity: bool = False

    def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        self.members = frozenset(endpoints)
        self.recent = deque(maxlen=_MAX_RECENT)
        self._skips_capacity = False

    @property
    def first(self) -> Waiter:
        return next(iter((self.retries or self.waiters).values()))

    @property
    def is_initialized(self) -> bool:
        """Whether the capacity of each endpoint is known, or will not be requested."""
        return all(endpoint.limit.is_initialized for endpoint in self.endpoints)

    @property
    def is_available(self) -> bool:
        return any(endpoint.breaker.state == "closed" for endpoint in self.endpoints)

    @property
    def fails_permanently(self) -> bool:
        """Whether the last call to each endpoint failed permanently, so that waiting does not help."""
        return all(getattr(endpoint.last_error, "permanent", False) for endpoint in self.endpoints)

    @property
    def next_probe_at(self) -> float:
        return min((endpoint.breaker.early_probe_at for endpoint in self.endpoints), default=math.inf)

    def next_probe(self, now: float) -> Endpoint | None:
        return next((each for each in self.endpoints if each.may_take_probe(now, is_needed=True)), None)

    def skip_capacity(self) -> None:
        if not self._skips_capacity:
            self._skips_capacity = True
            for endpoint in self.endpoints:
                endpoint.limit.set_capacity(None)

    def add_sample(self, endpoint: Endpoint, duration_s: float, now: float) -> None:
        if endpoint.latency.add(duration_s, now) and endpoint in self.members:
            self.recent.append(endpoint)

    def unavailable_error(self) -> ServiceError | None:
        """Return a copy of the last error of an endpoint, with `sent` "no"; None if a breaker is closed."""
        if self.is_available:
            return None
        for endpoint in self.endpoints:
            if endpoint.last_error is not None:
                error = copy.copy(endpoint.last_error)
                error.endpoint, error.attempts, error.sent = endpoint.url, 0, "no"
                return error
        return None


class EndpointGroups:
    """Keeps the endpoints that get calls, and their groups.

    Args:
        clock: As fast as the clock of the event loop.
        replicas_of: Returns the base URLs of the replicas now that have these URLs in the settings.
        capacity_of: Returns the capacity of an endpoint, if it is known before the first call.
        on_idle: Called with the base URL of a replica that has left, after its last call has ended.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        emit: Sink,
        replicas_of: Callable[[Sequence[str]], Sequence[str]],
        capacity_of: Callable[[str, str], int | None],
        on_idle: Callable[[str], None],
    ) -> None:
        self.limits_changed = False
        self._settings = settings
        self._emit = emit
        self._clock = clock
        self._random = random
        self._replicas_of = replicas_of
        self._capacity_of = capacity_of
        self._on_idle = on_idle
        self._groups: dict[_Key, EndpointGroup] = {}
        # Groups without some replicas, while calls use them.
        self._excluding: WeakValueDictionary[_Key, EndpointGroup] = WeakValueDictionary()
        self._pinned: WeakSet[EndpointGroup] = WeakSet()
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        # Members of `_endpoints` that belong to no group any more, but have calls in flight; with their keys.
        self._leaving: dict[Endpoint, tuple[str, str]] = {}
        # The number of families for which each base URL is in `_endpoints`.
        self._families: Counter[str] = Counter()
        # The keys of the endpoints whose breaker is not closed.
        self.failing: set[tuple[str, str]] = set()
        self._latencies: dict[str, TypicalLatency] = defaultdict(TypicalLatency)

    def get(
        self,
        language: Language | str,
        urls: Sequence[str],
        *,
        validates: bool = False,
        excluded: frozenset[str] = frozenset(),
    ) -> EndpointGroup:
        """Return the group of the replicas that have these URLs in the settings.

        Groups of one family of languages share the endpoints that they have in common. Do not keep a group across an
        await, because `reconfigure` may replace it.
        """
        key = language, tuple(urls), validates, excluded
        groups = self._excluding if excluded else self._groups
        group = groups.get(key)
        if group is None:
            group = groups[key] = EndpointGroup(*key)
        if not group.endpoints:
            group.set_endpoints(self._endpoints_of(group))
        return group

    def pin(self, language: Language | str, url: str) -> EndpointGroup:
        """Return a group of one endpoint, which stays in use as long as the caller keeps the group."""
        group = EndpointGroup(language, (url,))
        endpoint = self._endpoint(family_of(language), url)
        self._leaving.pop(endpoint, None)
        group.set_endpoints([endpoint])
        self._pinned.add(group)
        return group

    def refresh(self) -> None:
        used = {endpoint for group in self._pinned for endpoint in group.endpoints}
        for group in (*self._groups.values(), *self._excluding.values()):
            group.set_endpoints(self._endpoints_of(group))
            used.update(group.endpoints)
        self._leaving = {endpoint: key for key, endpoint in self._endpoints.items() if endpoint not in used}
        for endpoint in list(self._leaving):
            self.drop_if_idle(endpoint)

    def reconfigure(self, settings: Settings, urls_of: Callable[[EndpointGroup], Sequence[str]]) -> None:
        self._settings = settings
        _, max_per_endpoint = max_calls(settings)
        for endpoint in self._endpoints.values():
            endpoint.breaker.reconfigure(settings.breaker)
            endpoint.limit.set_cap(max_per_endpoint)
        for groups in (self._groups, self._excluding):
            all_groups = list(groups.values())
            groups.clear()
            for group in all_groups:
                group.urls = tuple(urls_of(group))
                groups[group.language, group.urls, group.validates, group.excluded] = group
        self.refresh()

    def is_used(self, url: str) -> bool:
        return url in self._families

    def endpoints(self) -> list[tuple[str, Endpoint]]:
        return [(family, endpoint) for (family, _), endpoint in self._endpoints.items()]

    def _endpoints_of(self, group: EndpointGroup) -> list[Endpoint]:
        family = family_of(group.language)
        urls = self._replicas_of([url for url in group.urls if url not in group.excluded])
        return [self._endpoint(family, url) for url in urls if url not in group.excluded]

    def drop_if_idle(self, endpoint: Endpoint) -> None:
        if endpoint in self._leaving and not endpoint.limit.in_flight:
            key = self._leaving.pop(endpoint)
            del self._endpoints[key]
            self.failing.discard(key)
            self._families[endpoint.url] -= 1
            if not self._families[endpoint.url]:
                del self._families[endpoint.url]
                self._on_idle(endpoint.url)

    def _endpoint(self, family: str, url: str) -> Endpoint:
        endpoint = self._endpoints.get((family, url))
        if endpoint is None:

            def on_breaker() -> None:
                if breaker.state == "closed":
                    self.failing.discard((family, url))
                else:
                    self.failing.add((family, url))
                open_s = breaker.open_s(self._clock())
                self._emit(EndpointChanged(endpoint=url, family=family, state=breaker.state, open_s=open_s))

            def on_limit() -> None:
                self.limits_changed = True
                self._emit(LimitChanged(endpoint=url, family=family, limit=limit.limit))

            breaker = Breaker(self._settings.breaker, self._random, on_breaker)
            _, max_per_endpoint = max_calls(self._settings)
            limit = AdaptiveLimit(max_per_endpoint, on_limit)
            if (capacity := self._capacity_of(url, family)) is not None:
                limit.set_capacity(capacity)
            latency = EndpointLatency(self._latencies[family])
            endpoint = self._endpoints[family, url] = Endpoint(url, breaker, limit, latency, family)
            self._families[url] += 1
        return endpoint
