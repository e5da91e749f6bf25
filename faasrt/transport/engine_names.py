"""The names of engines and their versions, for the keys of stored results."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from faasrt.errors import ServiceError
from faasrt.languages import Language
from faasrt.protocol.health import name_engines
from faasrt.protocol.response import Answer, decode_object
from faasrt.transport.http import BodyTooLargeError

MAX_AGE_S = 10.0
"""The seconds after which an endpoint is asked for its engines again."""

_NO_HEALTH = (404, 405, 501)


class EngineDirectory:
    """Asks endpoints for their engines.

    Args:
        get_health: Requests the health report of an endpoint.
        within_s: The maximum number of seconds that a report may take.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self, get_health: Callable[[str], Awaitable[Answer]], within_s: float, clock: Callable[[], float]
    ) -> None:
        self._get_health = get_health
        self._within_s = within_s
        self._clock = clock
        # By base URL: the time of the report, and the engine of each language; None for engines that are unknown.
        self._known: dict[str, tuple[float, dict[Language, str | None]]] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def names(self, language: Language | str, urls: Sequence[str]) -> dict[str, str | None]:
        """Return the engine of a language at each endpoint by base URL; None for an engine that is unknown now."""
        if any(self._fresh(url) is None for url in urls):
            async with asyncio.TaskGroup() as group:
                for url in urls:
                    group.create_task(self._update(url))
        # Services that run other languages have one name for all.
        known = {url: self._known[url][1] for url in urls}
        return {
            url: names[language if isinstance(language, Language) else Language.PYTHON] for url, names in known.items()
        }

    def clear(self) -> None:
        """Remove everything, including the locks, which belong to an event loop."""
        self._known.clear()
        self._locks.clear()

    def _fresh(self, url: str) -> dict[Language, str | None] | None:
        asked, names = self._known.get(url, (0.0, None))
        return names if self._clock() - asked < MAX_AGE_S else None

    async def _update(self, url: str) -> None:
        async with self._locks[url]:
            if self._fresh(url) is None:
                names = await self._ask(url)
                self._known[url] = self._clock(), names

    async def _ask(self, url: str) -> dict[Language, str | None]:
        unknown: dict[Language, str | None] = dict.fromkeys(Language)
        answer = None
        with contextlib.suppress(TimeoutError, ServiceError, BodyTooLargeError):
            async with asyncio.timeout(self._within_s):
                answer = await self._get_health(url)
        if answer is None or (answer.status != 200 and answer.status not in _NO_HEALTH):
            return unknown
        health = {}
        if answer.status == 200:
            with contextlib.suppress(ServiceError):
                health = decode_object(answer.body)
        return name_engines(health, url)
