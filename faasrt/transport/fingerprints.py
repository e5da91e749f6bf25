"""The fingerprints of servers, which are part of the keys of stored results.

They may be ten seconds old, and profiles may be older, so they are kept apart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from faasrt._endpoint_urls import configured_url
from faasrt.errors import ServiceError
from faasrt.languages import Language
from faasrt.protocol.health import read_fingerprints
from faasrt.protocol.response import Answer, decode_object
from faasrt.transport.http import BodyTooLargeError
from faasrt.transport.lifecycle import run_for_each

MAX_AGE_S = 10.0
"""The seconds after which the health of an endpoint is requested again."""

_NO_HEALTH = (404, 405, 501)


class FingerprintDirectory:
    """Requests the fingerprints of endpoints, and keeps them for ten seconds."""

    def __init__(
        self, get_health: Callable[[str], Awaitable[Answer]], within_s: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self._get_health = get_health
        self._within_s = within_s
        self._clock = clock
        # By base URL: the time of the report, and the fingerprint for each language; None if it is unknown.
        self._known: dict[str, tuple[float, dict[Language, str | None]]] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def get(self, language: Language | str, urls: Sequence[str]) -> dict[str, str | None]:
        by_url = {url: self._fresh(url) for url in urls}
        if None in by_url.values():
            locks = {url: self._locks[url] for url in urls}
            updates = await run_for_each(lambda url: self._update(url, locks[url]), urls)
            by_url = dict(zip(urls, updates, strict=True))
        # A service that runs other languages has one fingerprint for all.
        key = language if isinstance(language, Language) else Language.PYTHON
        return {url: None if by_language is None else by_language[key] for url, by_language in by_url.items()}

    def __contains__(self, url: str) -> bool:
        return url in self._known or url in self._locks

    def forget(self, url: str) -> None:
        self._known.pop(url, None)
        self._locks.pop(url, None)

    def clear(self) -> None:
        """Remove everything, including the locks, which belong to an event loop."""
        self._known.clear()
        self._locks.clear()

    def _fresh(self, url: str) -> dict[Language, str | None] | None:
        asked, by_language = self._known.get(url, (0.0, None))
        return by_language if self._clock() - asked < MAX_AGE_S else None

    async def _update(self, url: str, lock: asyncio.Lock) -> dict[Language, str | None] | None:
        async with lock:
            by_language = self._fresh(url)
            if by_language is None and self._locks.get(url) is lock:
                by_language = await self._ask(url)
                if self._locks.get(url) is lock:  # otherwise the endpoint was forgotten
                    self._known[url] = self._clock(), by_language
            return by_language

    async def _ask(self, url: str) -> dict[Language, str | None]:
        unknown: dict[Language, str | None] = dict.fromkeys(Language)
        answer = None
        with contextlib.suppress(TimeoutError, ServiceError, BodyTooLargeError):
            async with asyncio.timeout(self._within_s()):
                answer = await self._get_health(url)
        if answer is None or (answer.status != 200 and answer.status not in _NO_HEALTH):
            return unknown
        health = {}
        if answer.status == 200:
            with contextlib.suppress(ServiceError):
                health = decode_object(answer.body)
        return read_fingerprints(health, configured_url(url))
