"""What each endpoint is: asked once, shared by all callers, and asked again after the endpoint has failed."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

from faasrt.protocol.profile import EndpointProfile

Ask = Callable[[str], Awaitable[EndpointProfile | None]]

UNKNOWN_S = 30.0
"""Seconds before an endpoint whose health report hangs is asked again."""

# A failed probe that took longer than this is not repeated by the next call, either.
_PROMPT_S = 0.5


class Profiles:
    """Remembers the profiles of endpoints.

    Args:
        ask: Asks an endpoint; None says that it could not be reached, which is not remembered if it came promptly.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._known: dict[str, EndpointProfile] = {}
        self._unknown_until: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asked: dict[str, int] = defaultdict(int)

    def known(self, endpoint: str) -> EndpointProfile | None:
        """Return the profile of an endpoint that has been asked, or None if it must be asked first.

        An endpoint that did not answer has the profile of an unknown server for `UNKNOWN_S`.
        """
        known = self._known.get(endpoint)
        if known is None and self._clock() < self._unknown_until.get(endpoint, 0.0):
            return EndpointProfile()
        return known

    async def get(self, endpoint: str, within_s: float) -> EndpointProfile:
        """Return the profile of an endpoint; that of an unknown server when it cannot be had in time.

        Callers that come while it is asked share the answer.

        Cancellation: another caller that waits asks in this one's place.
        """
        known = self.known(endpoint)
        if known is not None:
            return known
        asked_before, asking = self._asked[endpoint], False
        asked_at = 0.0
        try:
            async with asyncio.timeout(within_s), self._locks[endpoint]:
                known = self.known(endpoint)
                if known is not None or self._asked[endpoint] != asked_before:
                    # One in front asked; if in vain, then a queue of those who ask again would wait for ever.
                    return known or EndpointProfile()
                asking, asked_at = True, self._clock()
                answered = await self._ask(endpoint)
                hung = answered is None and self._clock() - asked_at > _PROMPT_S
        except TimeoutError:
            if not asking:
                return EndpointProfile()
            answered, hung = None, True
        self._asked[endpoint] += 1
        if answered is not None:
            self._known[endpoint] = answered
        elif hung:
            # The server may run code all the same: its health report must not cost every call this wait.
            self._unknown_until[endpoint] = self._clock() + UNKNOWN_S
        return answered or EndpointProfile()

    def forget(self, endpoint: str) -> None:
        """Forget the profile of an endpoint that has failed: another server may stand there when it is back.

        That it did not answer a probe is not forgotten, or each failing call would wait for the probe again.
        """
        self._known.pop(endpoint, None)

    def clear(self) -> None:
        """Forget all, and the event loop with it."""
        self._known.clear()
        self._unknown_until.clear()
        self._locks.clear()
