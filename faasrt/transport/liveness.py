"""Whether a server that has not answered a call yet is still there.

The time limits of faasrt's own server do not count the time for which a program waits for a CPU, so an answer may come
later than after the limit and the grace time. A call waits for it as long as the server answers requests to its health
path. A server that hangs is still noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

import attrs

from faasrt.errors import ConfigurationError, ServiceError
from faasrt.protocol.answer import Answer
from faasrt.protocol.registry import protocol_of
from faasrt.transport.exchange import BodyTooLargeError


@attrs.define(eq=False)
class _Signs:
    """When an endpoint last answered, when it last did not, and who asks whether it still does."""

    answered_at: float = -math.inf
    silent_at: float = -math.inf
    asking: asyncio.Lock = attrs.field(factory=asyncio.Lock)


class Liveness:
    """Extends the time limits of calls while their endpoints answer other requests.

    Args:
        get_health: Sends a request to the health path of an endpoint.
        health_s: The seconds within which it must be answered.
    """

    def __init__(
        self, get_health: Callable[[str], Awaitable[Answer]], clock: Callable[[], float], health_s: float
    ) -> None:
        self._get_health = get_health
        self._clock = clock
        self.health_s = health_s
        self._signs: defaultdict[str, _Signs] = defaultdict(_Signs)

    def record_answer(self, endpoint: str) -> None:
        self._signs[endpoint].answered_at = self._clock()

    def forget(self, endpoint: str) -> None:
        self._signs.pop(endpoint, None)

    @contextlib.asynccontextmanager
    async def watching(
        self, endpoint: str, timeout: asyncio.Timeout, within_s: float, wait_s: float, *, is_granted: bool
    ) -> AsyncIterator[None]:
        """Ask the endpoint whether it is alive, from shortly before the end of `within_s` on, while the block runs.

        If the profile of the endpoint grants further time (`is_granted`), the time limit is `within_s + wait_s`, and an
        endpoint that does not answer loses the rest of it. Otherwise the limit is `within_s`, and an endpoint whose
        answer grants the further time gets it.
        """
        loop, lead_s = asyncio.get_running_loop(), min(self.health_s, within_s / 2)
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            watch = self._watch(endpoint, timeout, wait_s, lead_s, is_granted=is_granted)
            tasks.append(loop.create_task(watch))

        timer = loop.call_later(within_s - lead_s, start)
        try:
            yield
        finally:
            timer.cancel()
            for task in tasks:
                task.cancel()
                await asyncio.wait([task])

    async def _watch(
        self, endpoint: str, timeout: asyncio.Timeout, wait_s: float, lead_s: float, *, is_granted: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while wait_s > 0:
            step_s = min(wait_s, self.health_s)  # a busy server may need as long for its answer
            if timeout.when() is not None:
                answers = await self._answers(endpoint, step_s)
                if answers != is_granted:
                    if (ends_at := timeout.when()) is not None and not timeout.expired():
                        timeout.reschedule(ends_at + wait_s if answers else max(ends_at - wait_s, loop.time()))
                    is_granted = answers
                if not answers:
                    return
            wait_s -= step_s
            ends_at = timeout.when()  # None while output waits for the caller
            await asyncio.sleep(step_s if ends_at is None else ends_at - wait_s - lead_s - loop.time())

    async def _answers(self, endpoint: str, within_s: float) -> bool:
        """Return whether the endpoint has answered a request in the last `within_s` seconds, or answers one now. Only
        one call at a time asks the endpoint. Other calls wait for its result, and use it.
        """
        signs, asked_at = self._signs[endpoint], self._clock()
        async with signs.asking:
            if self._clock() < signs.answered_at + within_s:
                return True
            if signs.silent_at >= asked_at:
                return False
            is_alive = await self._is_alive(endpoint)
            if is_alive:
                signs.answered_at = self._clock()
            else:
                signs.silent_at = self._clock()
            return is_alive

    async def _is_alive(self, endpoint: str) -> bool:
        """Return whether the endpoint answers a request to its health path. Only faasrt's own server can say that its
        time limits do not count the wait for a CPU. A profile says it before; otherwise this answer does.
        """
        protocol = protocol_of(endpoint)
        try:
            async with asyncio.timeout(self.health_s):
                answer = await self._get_health(endpoint)
            protocol.read_health(answer)
        except (TimeoutError, ServiceError, BodyTooLargeError, ConfigurationError):
            return False
        return protocol.has_profile or answer.counts_running_time
