"""The addresses behind the names in `dns+` URLs, looked up while calls use them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
from yarl import URL

from faasrt._endpoint_urls import DISCOVERY, replica_at, split_endpoint
from faasrt.config import Settings
from faasrt.discovery import Resolve
from faasrt.errors import ConnectError
from faasrt.telemetry.events import ReplicaRemoved, ReplicasChanged, Sink
from faasrt.transport.lifecycle import BackgroundTasks


@attrs.define(eq=False)
class _Name:
    """The name in one URL.

    Attributes:
        replicas: The replicas that the last successful look-up found.
        checked: Set when the first look-up has ended, since the name is used or used again.
        look_up: A look-up by the system that takes too long continues, because a thread cannot be stopped.
        is_used: Whether a call used the name since the last look-up.
        retry_at: When calls that have other replicas may look the name up again, after its first look-up failed.
    """

    url: str
    replicas: tuple[str, ...] = ()
    failure: str | None = None
    checked: asyncio.Event = attrs.field(factory=asyncio.Event)
    following: asyncio.Task[None] | None = None
    look_up: asyncio.Task[list[str] | Exception] | None = None
    is_used: bool = False
    retry_at: float = -math.inf

    @property
    def is_followed(self) -> bool:
        return self.following is not None and not self.following.done()


class ReplicaDirectory:
    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        emit: Sink,
        on_change: Callable[[], None],
        is_busy: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random
        self._emit = emit
        self._on_change = on_change
        self._is_busy = is_busy
        self._names: dict[str, _Name] = {}
        self._tasks = BackgroundTasks()
        self._reconfigured = asyncio.Event()

    def expand(self, urls: Sequence[str]) -> Sequence[str]:
        if not has_names(urls):
            return urls
        return [endpoint for url in urls for endpoint in self._known(url)]

    async def update(self, urls: Sequence[str]) -> None:
        """Look up the names in these URLs if they are not known, and keep them up to date. Raise ConnectError if no
        replica is known, because the look-ups failed.

        Wait for the look-up of new names, unless there are other replicas, and of names that have not been used for a
        while.
        """
        has_none = not any(map(self._known, urls))
        names = [self._names.setdefault(url, _Name(url)) for url in urls if url.startswith(DISCOVERY)]
        for name in names:
            name.is_used = True
            if has_none:
                if not name.is_followed or name.checked.is_set():  # do not wait for the next period
                    self._start(name)
            elif not name.is_followed and self._clock() >= name.retry_at:
                self._start(name)
        for checked in [name.checked for name in names if has_none or name.replicas]:
            await checked.wait()
        if names and not any(map(self._known, urls)):  # again, because names may have left the settings
            quote = names[0].failure or "the look-up was ended"
            raise ConnectError("no address of the name is known", quote=quote, endpoint=names[0].url, sent="no")

    def configure(self, settings: Settings) -> None:
        """Use other settings. New names are looked up at once if calls are made, which may wait for them."""
        before, self._settings = self._settings, settings
        urls = dict.fromkeys(url for replicas in settings.endpoints.values() for url in replicas)
        for name in list(self._names.values()):
            if name.url not in urls:
                del self._names[name.url]
                if name.following is not None:
                    name.following.cancel()
                self._emit(ReplicaRemoved(endpoint=name.url))
            if name.look_up is not None and (name.url not in urls or settings.discovery != before.discovery):
                name.look_up.cancel()  # another function may resolve the name
                name.look_up = None
        self._reconfigured.set()  # a new period starts at once
        self._reconfigured = asyncio.Event()
        if self._is_busy():
            for url in urls:
                if url.startswith(DISCOVERY) and url not in self._names:
                    self._start(self._names.setdefault(url, _Name(url)))

    def stop(self) -> Sequence[asyncio.Task[Any]]:
        """Cancel all look-ups, and return their tasks. The replicas stay; a later call starts new look-ups."""
        for name in self._names.values():
            name.following = name.look_up = None
        self._reconfigured = asyncio.Event()  # the next call may be made in another event loop
        return self._tasks.cancel()

    def _known(self, url: str) -> Sequence[str]:
        if not url.startswith(DISCOVERY):
            return (url,)
        name = self._names.get(url)
        return () if name is None else name.replicas

    def _start(self, name: _Name) -> None:
        if name.following is not None:
            name.following.cancel()
        checked = name.checked = asyncio.Event()
        name.following = self._tasks.start(self._follow(name))
        # Not in the task, because a task that is cancelled before its first step runs no code.
        name.following.add_done_callback(lambda task: checked.set())

    async def _follow(self, name: _Name) -> None:
        while True:
            name.is_used = False
            await self._look_up(name)
            name.checked.set()
            delay_s = self._settings.discovery.delay_s(self._random)
            if not name.replicas:
                name.retry_at = self._clock() + delay_s
                if not self._is_busy():
                    return  # a call without any replica looks it up again at once
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._reconfigured.wait()
            if not name.is_used and not self._is_busy():
                return

    async def _look_up(self, name: _Name) -> None:
        resolve, within_s = self._settings.discovery.resolve, self._settings.timeouts.connect_s
        if name.look_up is None:
            name.look_up = self._tasks.start(_addresses(resolve or resolve_by_system, *_host_and_port(name.url)))
        look_up = name.look_up
        done, _ = await asyncio.wait({look_up}, timeout=within_s)
        if name.look_up is not look_up:  # the settings have changed
            await self._look_up(name)
            return
        if not done:
            if resolve is not None:
                look_up.cancel()
                name.look_up = None
            self._record_failure(name, TimeoutError(f"no answer within {round(within_s, 2):g} s"))
            return
        name.look_up = None
        found = LookupError("the look-up was cancelled") if look_up.cancelled() else look_up.result()
        if isinstance(found, Exception):
            self._record_failure(name, found)
        else:
            self._record(name, [replica_at(name.url, address) for address in found])

    def _record(self, name: _Name, found: Sequence[str]) -> None:
        before, after = dict.fromkeys(name.replicas), dict.fromkeys(found)
        added = tuple(replica for replica in after if replica not in before)
        removed = tuple(replica for replica in before if replica not in after)
        had_failed, name.failure = name.failure is not None, None
        name.replicas = (*(replica for replica in before if replica in after), *added)
        if added or removed or had_failed:
            self._emit(ReplicasChanged(endpoint=name.url, replicas=len(name.replicas), added=added, removed=removed))
        if added or removed:
            self._on_change()

    def _record_failure(self, name: _Name, error: Exception) -> None:
        had_failed, kind = name.failure is not None, type(error).__name__
        name.failure = str(error)[:200] or kind
        if not had_failed:
            self._emit(ReplicasChanged(endpoint=name.url, replicas=len(name.replicas), error=kind, reason=name.failure))


def has_names(urls: Iterable[str]) -> bool:
    return any(url.startswith(DISCOVERY) for url in urls)


async def resolve_by_system(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [_with_zone(*address) for *_, address in found]


def _with_zone(address: str, port: int, flow: int = 0, zone: int = 0) -> str:
    """Add the number of the network interface, without which a link-local address has no meaning."""
    return f"{address}%{zone}" if zone and "%" not in address else address


async def _addresses(resolve: Resolve, host: str, port: int) -> list[str] | Exception:
    """Return the addresses of a name, each once, or the error. A task that raises would be logged."""
    try:
        found = dict.fromkeys(str(ipaddress.ip_address(str(address))) for address in await resolve(host, port))
        return list(found) or LookupError("the name has no address")
    except Exception as error:
        return error


def _host_and_port(url: str) -> tuple[str, int]:
    http_url = URL(split_endpoint(url)[1])
    return http_url.raw_host or "", http_url.port or 0
