"""The last health report of each endpoint: its profile, and the fingerprints of what runs its programs."""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs

from faasrt.errors import ConnectError
from faasrt.languages import Language
from faasrt.protocol.health import EndpointProfile, HealthReport
from faasrt.protocol.registry import protocol_of
from faasrt.transport.lifecycle import run_for_each

MAX_AGE_S = 10.0
"""The seconds for which fingerprints are used. Profiles are used for longer."""
UNKNOWN_S = 30.0
"""The seconds after which an endpoint that did not answer `GET /health` is asked again. A call in a compiled language
does not wait for this time.
"""

# If an endpoint fails a health request faster than this, the next call may ask again at once.
_FAST_FAILURE_S = 0.5


@attrs.define(eq=False)
class _Entry:
    """The last report of an endpoint. Callers that wait for its report keep this object even if the endpoint leaves."""

    unknown: EndpointProfile
    profile: EndpointProfile | None = None
    # The error of the last request, if it did not reach the endpoint.
    unreached: ConnectError | None = None
    # Whether the endpoint has failed since the report with its profile.
    is_stale: bool = False
    # When an endpoint that did not answer may be asked again.
    ask_again_at: float = -math.inf
    # The number of requests that have ended, the time of the last one, and the fingerprints that it returned.
    requests: int = 0
    requested_at: float = -math.inf
    fingerprints: Mapping[Language, str | None] = attrs.field(factory=dict)
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)

    @property
    def current(self) -> EndpointProfile:
        return self.profile or self.unknown

    def set(self, profile: EndpointProfile) -> None:
        self.profile, self.is_stale = profile, profile.failure is not None


class ProfileCache:
    """The profiles of endpoints, and their fingerprints.

    A profile is used until the endpoint sends another health report. The first call after a failure requests one,
    because another server may have replaced the endpoint. If the endpoint does not answer, the last profile is still
    used, and is stale. A fingerprint is used for `MAX_AGE_S`.
    """

    def __init__(
        self, request: Callable[[str], Awaitable[HealthReport]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._request = request
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def cached(self, url: str) -> EndpointProfile | None:
        """Return the profile of an endpoint, or None if it must be fetched."""
        entry = self._entries.get(url)
        if entry is None:
            return None
        if entry.profile is not None and not entry.is_stale:
            return entry.profile
        return entry.current if self._clock() < entry.ask_again_at else None

    def is_stale(self, url: str) -> bool:
        """Return whether an endpoint has failed since its last health report."""
        entry = self._entries.get(url)
        return entry is not None and entry.is_stale

    async def fetch(self, url: str, within_s: float) -> EndpointProfile:
        """Fetch a profile, or return the last one if the endpoint does not answer in time. Concurrent callers share one
        request.

        Cancellation: if another caller waits, it sends the request again.
        """
        entry = self._find(url)
        if protocol_of(url).has_profile:
            await self._update(url, entry, entry.requests, within_s)
        else:
            entry.set(entry.unknown)
        return entry.current

    async def fingerprints(
        self, language: Language | str, urls: Sequence[str], within_s: float
    ) -> dict[str, str | None]:
        """Return the fingerprint of each endpoint, None if it is unknown. A fingerprint that is too old is requested
        again, as by `fetch`.
        """
        entries = {url: self._find(url) for url in urls}
        newest = self._clock() - MAX_AGE_S
        if old := {url: entry.requests for url, entry in entries.items() if entry.requested_at <= newest}:
            await run_for_each(lambda url: self._update(url, entries[url], old[url], within_s), old)
        # A service that runs other languages has one fingerprint for all.
        key = language if isinstance(language, Language) else Language.PYTHON
        return {
            url: entry.fingerprints.get(key) if entry.requested_at > newest else None for url, entry in entries.items()
        }

    async def _update(self, url: str, entry: _Entry, requests_before: int, within_s: float) -> None:
        report, hung, requesting = HealthReport(None), True, False
        try:
            async with asyncio.timeout(within_s), entry.lock:
                if entry.requests != requests_before:
                    # Another caller sent the request. Even if it failed, the waiting callers must not all repeat it.
                    return
                requesting, started = True, self._clock()
                report = await self._request(url)
                hung = report.profile is None and self._clock() - started > _FAST_FAILURE_S
        except TimeoutError:
            if not requesting:
                return
        entry.requests += 1
        entry.requested_at, entry.fingerprints, entry.unreached = self._clock(), report.fingerprints, report.unreached
        profile = report.profile
        if profile is not None and (profile.answered or not entry.current.answered):
            entry.set(profile)
        elif profile is not None or hung:
            # The server may still run code, so not every call must wait for its health report.
            entry.ask_again_at = self._clock() + UNKNOWN_S

    def check_reached(self, url: str) -> None:
        """Raise ConnectError if the profile of an endpoint is unknown, because the last request did not reach it.

        The endpoint may be starting. A program sent now could reach it, but in an envelope, and not as this kind of
        server needs it.
        """
        entry = self._entries.get(url)
        if entry is not None and entry.profile is None and entry.unreached is not None:
            raise copy.copy(entry.unreached)

    def set(self, url: str, profile: EndpointProfile) -> None:
        self._find(url).set(profile)

    def mark_stale(self, url: str, *, is_replaced: bool = False) -> None:
        """Make the next call request the profile of an endpoint that failed. Another server may have replaced it.

        An endpoint that did not answer is not asked for `UNKNOWN_S`, because otherwise each failing call would wait.
        With `is_replaced`, an answer has shown that the profile is wrong, and it is removed.
        """
        entry = self._entries.get(url)
        if entry is not None and entry.profile is not None:
            entry.is_stale = True
            if is_replaced:
                entry.profile = None

    def __contains__(self, url: str) -> bool:
        return url in self._entries

    def discard(self, url: str) -> None:
        self._entries.pop(url, None)

    def clear(self) -> None:
        """Remove all profiles, and the locks, which belong to an event loop."""
        self._entries.clear()

    def _find(self, url: str) -> _Entry:
        entry = self._entries.get(url)
        if entry is None:
            protocol = protocol_of(url)
            unknown = protocol.profile if protocol.has_profile else attrs.evolve(protocol.profile, answered=True)
            entry = self._entries[url] = _Entry(unknown)
        return entry
