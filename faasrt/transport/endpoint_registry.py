"""The endpoints of a factory, and all that is known and open for each: connections, permits and health reports.

Only this module adds and removes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Sequence

from faasrt._endpoint_urls import address_of
from faasrt.config import Settings
from faasrt.errors import (
    ConnectError,
    OverloadedError,
    ProtocolError,
    RejectedError,
    ServiceError,
    UnsupportedLanguageError,
)
from faasrt.languages import Language
from faasrt.protocol.cases import MAX_REQUEST_BYTES
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.registry import protocol_of
from faasrt.results import EndpointHealth, HealthStatus
from faasrt.telemetry.dispatch import EventDispatcher
from faasrt.telemetry.events import ReplicaRemoved
from faasrt.telemetry.metrics import EndpointState
from faasrt.transport.endpoint import Endpoint
from faasrt.transport.groups import EndpointGroup
from faasrt.transport.http import HttpClient, close_sessions
from faasrt.transport.lifecycle import BackgroundTasks, LoopAffinity, run_for_each
from faasrt.transport.pool import Permit, PermitPool
from faasrt.transport.profile_cache import ProfileCache
from faasrt.transport.replicas import ReplicaDirectory, has_names


class EndpointRegistry:
    """The endpoints that the runtimes of a factory share, with their connections and permits.

    Runtimes retain and release it; the last `release` closes the connections. A call in flight uses the settings at its
    start, with the endpoints now for each attempt.
    """

    def __init__(
        self,
        settings: Settings,
        emit: EventDispatcher,
        clock: Callable[[], float],
        on_removed: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.http = HttpClient(settings, clock)
        self.loop = LoopAffinity("runtime")
        self._emit = emit
        self.clock = clock
        self._on_removed = on_removed
        self.profiles = ProfileCache(self.http.get_report, clock)
        self._tasks = BackgroundTasks()
        self._replicas = ReplicaDirectory(
            settings,
            clock=clock,
            random=random.random,
            emit=emit,
            on_change=lambda: self.pool.refresh(),
            is_busy=lambda: bool(self.pool.in_flight or self.pool.queued),
        )
        self.pool = PermitPool(
            settings,
            clock=clock,
            random=random.random,
            emit=emit,
            replicas_of=self._replicas.expand,
            capacity_of=self._capacity_of,
            on_idle=self._remove,
        )
        # The groups of languages whose URLs have no names.
        self._groups: dict[Language | str, EndpointGroup] = {}
        # The endpoints that have left and were not reported yet, in this order.
        self._left: dict[str, None] = {}
        self._users = 0

    def retain(self) -> None:
        self._users += 1

    def add(self, endpoint: str, url: str, profile: EndpointProfile) -> None:
        """Use an endpoint whose name is not its URL. Its profile is known, so its first call requests none."""
        self.http.set_address(endpoint, url)
        self.profiles.set(endpoint, profile)

    async def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._emit.flush()
            for url in list(self._left):
                self._report_removal(url)
            for _, endpoint in self.pool.groups.endpoints():
                if address_of(endpoint.url):
                    self._emit(ReplicaRemoved(endpoint=endpoint.url))
            self.loop.release()
            self.profiles.clear()
            self.pool.cancel_timer()
            # Before the first await, because a runtime that is created during it has look-ups and sessions of its own.
            tasks, sessions = (*self._replicas.stop(), *self._tasks.cancel()), self.http.take_sessions()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                await close_sessions(sessions)

    def urls(self, language: Language | str) -> tuple[str, ...]:
        urls = self.settings.endpoints.get(language, ())
        if urls or language in (Language.PYTHON, Language.JAVASCRIPT):
            return urls
        every = dict.fromkeys(url for replicas in self.settings.endpoints.values() for url in replicas)
        return tuple(url for url in every if protocol_of(url).lists(language))

    def reconfigure(self, settings: Settings) -> None:
        """Use other settings for further calls, and other endpoints for further attempts and for waiting calls.

        Endpoints that stay keep their circuit breaker, limit and connections.
        """
        if self._users:
            self.loop.check()
        self.settings = settings
        self._groups.clear()
        self.http.configure(settings)
        self._replicas.configure(settings)
        self.pool.reconfigure(settings, lambda group: self._urls(group.language, validates=group.validates))

    def _capacity_of(self, url: str, family: str) -> int | None:
        profile = self.profiles.cached(url)
        return None if profile is None else profile.capacities.get(family)

    async def fingerprints(self, language: Language | str) -> dict[str, str | None]:
        self.loop.check()
        with contextlib.suppress(ConnectError):
            await self._replicas.update(self.urls(language))
        replicas = self._replicas.expand(self.urls(language))
        return await self.profiles.fingerprints(language, replicas, self.settings.timeouts.health_s)

    def max_cases_bytes(self, language: Language | str) -> int:
        limits = (protocol_of(url).profile.max_cases_bytes for url in self.urls(language))
        return min((limit for limit in limits if limit is not None), default=MAX_REQUEST_BYTES)

    async def starts_slowly(self, language: Language | str) -> bool:
        """Return whether an endpoint starts an interpreter for each request, so that executions should be few."""
        return any(profile.cold_start for profile in await self._all_profiles(language))

    async def validates_another_python(self, version: str) -> bool:
        """Return whether the endpoints of Python validate programs, and not all for this version, such as "3.12"."""
        profiles = await self._all_profiles(Language.PYTHON)
        return all(profile.validates for profile in profiles) and any(profile.python != version for profile in profiles)

    async def _all_profiles(self, language: Language | str) -> list[EndpointProfile]:
        """Return the known profiles of the replicas. For each URL without a known profile, request the profile of one
        replica.
        """
        self.loop.check()
        with contextlib.suppress(ConnectError):
            await self._replicas.update(self.urls(language))
        profiles: list[EndpointProfile] = []
        unknown: list[str] = []
        for url in self.urls(language):
            replicas = self._replicas.expand([url])
            cached = [profile for replica in replicas if (profile := self.profiles.cached(replica)) is not None]
            profiles += cached
            unknown += [] if cached else replicas[:1]
        health_s = self.settings.timeouts.health_s
        return profiles + await run_for_each(lambda replica: self.profiles.fetch(replica, health_s), unknown)

    async def all_replicas(self) -> Sequence[str]:
        """Look up the names, and return all base URLs. Raise ConnectError if none is known."""
        self.loop.check()
        urls = tuple(dict.fromkeys(url for replicas in self.settings.endpoints.values() for url in replicas))
        await self._replicas.update(urls)
        return self._replicas.expand(urls)

    async def probe_all(self, urls: Sequence[str]) -> HealthStatus:
        self.loop.check()
        async with asyncio.TaskGroup() as group:
            probes = [group.create_task(self._probe(url)) for url in urls]
        return HealthStatus(tuple(health for probe in probes for health in probe.result()))

    async def _probe(self, url: str) -> list[EndpointHealth]:
        try:
            await self._replicas.update([url])
        except ConnectError as error:
            return [
                EndpointHealth(endpoint=url, healthy=False, status="unreachable", latency_s=0.0, error=error.message)
            ]
        return await self.http.probe_all(self._replicas.expand([url]))

    def record_failure(self, permit: Permit, error: BaseException, *, runs_for_s: float = 0.0) -> None:
        """Return the permit of a call that failed to the pool. After some errors, ask the endpoint for its health."""
        if isinstance(error, ServiceError) and not isinstance(error, (OverloadedError, RejectedError)):
            self.profiles.mark_stale(permit.endpoint.url, is_replaced=isinstance(error, ProtocolError))
        self.pool.release(permit, error, runs_for_s=runs_for_s)

    def states(self) -> tuple[EndpointState, ...]:
        now = self.clock()
        return tuple(
            EndpointState(
                endpoint=endpoint.url,
                family=family,
                breaker=endpoint.breaker.state,
                open_s=endpoint.breaker.open_s(now),
                limit=endpoint.limit.limit,
                in_flight=endpoint.limit.in_flight,
                abandoned=endpoint.limit.abandoned(now),
            )
            for family, endpoint in self.pool.groups.endpoints()
        )

    def replicas(
        self, language: Language | str, excluded: frozenset[str], *, validates: bool = False
    ) -> Sequence[Endpoint]:
        urls = self._urls(language, validates=validates)
        return self.pool.groups.get(language, urls, validates=validates, excluded=excluded).endpoints

    def _urls(self, language: Language | str, *, validates: bool) -> tuple[str, ...]:
        urls = self.urls(language)
        return tuple(url for url in urls if protocol_of(url).validates) if validates else urls

    def known_group(self, language: Language | str, excluded: frozenset[str], validates: bool) -> EndpointGroup | None:
        """Return the replicas for a language now; None if `group` must find them."""
        return None if excluded or validates else self._groups.get(language)

    async def group(
        self,
        language: Language | str,
        *,
        deadline: float = math.inf,
        validates: bool = False,
        excluded: frozenset[str] = frozenset(),
    ) -> EndpointGroup:
        """Return the replicas for a language now, after a look-up of their names if it is necessary.

        Args:
            deadline: The time of the clock at which a look-up must have ended.

        Raises:
            UnsupportedLanguageError: The language has left the settings.
            RejectedError: No endpoint of the language validates programs.
            ConnectError: A name has no known address, or it was not found in time, and no other URL has one.
        """
        while True:
            urls = self._urls(language, validates=validates)
            if not urls:
                if validates and self.urls(language):
                    raise RejectedError(f"no endpoint of {language} validates programs", sent="no")
                raise unsupported_error(language)
            if has_names(urls):
                failure = await self._look_up(urls, deadline)
                if self._urls(language, validates=validates) != urls:
                    continue  # the settings have changed meanwhile
                if failure is not None:
                    raise failure
            group = self.pool.groups.get(language, urls, validates=validates, excluded=excluded)
            if not (validates or excluded or has_names(urls)):
                self._groups[language] = group
            return group

    async def _look_up(self, urls: Sequence[str], deadline: float) -> ConnectError | None:
        try:
            async with asyncio.timeout(deadline - self.clock() if deadline < math.inf else None):
                await self._replicas.update(urls)
        except ConnectError as error:
            return error
        except TimeoutError:
            if not self._replicas.expand(urls):
                message = "no address of the name was found before the deadline of the call"
                return ConnectError(message, endpoint=urls[0], sent="no")
        return None

    def _remove(self, url: str) -> None:
        self._left[url] = None
        self._tasks.start(self._forget(url))

    async def _forget(self, url: str) -> None:
        # In a task of its own, because the last call reports its end after it has given back the permit.
        if url in self._left and self._report_removal(url):
            await self.http.close_session(url)

    def _report_removal(self, url: str) -> bool:
        """Report and forget an endpoint that has left. Return False if it has come back."""
        del self._left[url]
        if self.pool.groups.is_used(url):
            return False
        self.profiles.discard(url)
        self._on_removed(url)
        self._emit(ReplicaRemoved(endpoint=url))
        return True


def unsupported_error(language: Language | str) -> UnsupportedLanguageError:
    return UnsupportedLanguageError(f"{language} is not supported any more: no endpoint is configured for it")
