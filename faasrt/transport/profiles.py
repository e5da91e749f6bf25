"""What each endpoint is: asked once, shared by all callers, and asked again after the endpoint has failed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from faasrt.protocol.profile import EndpointProfile

Ask = Callable[[str], Awaitable[EndpointProfile | None]]


class Profiles:
    """Remembers the profiles of endpoints.

    Args:
        ask: Asks an endpoint; None says that it could not be reached, which is not remembered.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: dict[str, EndpointProfile] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asked: dict[str, int] = defaultdict(int)

    def known(self, endpoint: str) -> EndpointProfile | None:
        """Give the profile of an endpoint that has been asked; None of another."""
        return self._known.get(endpoint)

    async def get(self, endpoint: str, within_s: float) -> EndpointProfile:
        """Give the profile of an endpoint; that of an unknown server when it cannot be had in time.

        Cancellation: another caller that waits asks in this one's place.
        """
        known = self._known.get(endpoint)
        if known is not None:
            return known
        asked_before, asking = self._asked[endpoint], False
        try:
            async with asyncio.timeout(within_s), self._locks[endpoint]:
                known = self._known.get(endpoint)
                if known is not None or self._asked[endpoint] != asked_before:
                    # One in front asked; if in vain, then a queue of those who ask again would wait for ever.
                    return known or EndpointProfile()
                asking = True
                answered = await self._ask(endpoint)
        except TimeoutError:
            if not asking:
                return EndpointProfile()
            # A server whose health hangs may run code all the same: it is not to cost every call this wait.
            answered = EndpointProfile()
        self._asked[endpoint] += 1
        if answered is not None:
            self._known[endpoint] = answered
        return answered or EndpointProfile()

    def forget(self, endpoint: str) -> None:
        """Forget an endpoint that has failed: another server may stand there when it is back."""
        self._known.pop(endpoint, None)

    def clear(self) -> None:
        """Forget all, and the event loop with it."""
        self._known.clear()
        self._locks.clear()
