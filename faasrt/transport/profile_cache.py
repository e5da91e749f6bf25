"""The profiles of endpoints, requested when they are first needed, and again after a failure."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

import attrs

from faasrt.protocol.health import EndpointProfile

UNKNOWN_S = 30.0
"""The seconds after which an endpoint that did not answer `GET /health` is asked again. A call in a compiled language
does not wait for this time.
"""

# If an endpoint fails a health request faster than this, the next call may ask again at once.
_FAST_FAILURE_S = 0.5


class ProfileCache:
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
