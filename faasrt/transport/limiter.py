"""Permits: how many calls may be in flight, and how many may wait for that."""

from __future__ import annotations

import asyncio

from faasrt.config import LimiterSettings
from faasrt.errors import DeadlineExceededError, QueueFullError


class Limiter:
    """A semaphore with a bounded, fair queue.

    Args:
        settings: The bounds.
    """

    def __init__(self, settings: LimiterSettings) -> None:
        self._settings = settings
        self._semaphore = asyncio.Semaphore(settings.max_concurrency)
        self.in_flight = 0
        self.queued = 0

    async def acquire(self) -> None:
        """Take a permit; first come, first served.

        Raises:
            QueueFullError: `max_queue` callers wait already.
            DeadlineExceededError: No permit came free within `queue_timeout_s`; nothing was sent.

        Cancellation: leaves the queue, and takes no permit.
        """
        if self._semaphore.locked():
            await self._wait()
        else:
            await self._semaphore.acquire()
        self.in_flight += 1

    def release(self) -> None:
        """Give a permit back."""
        self.in_flight -= 1
        self._semaphore.release()

    async def _wait(self) -> None:
        settings = self._settings
        if self.queued >= settings.max_queue:
            raise QueueFullError(
                f"{self.queued} callers already wait for one of {settings.max_concurrency} permits: "
                "slow down, or raise max_queue or max_concurrency"
            )
        self.queued += 1
        try:
            async with asyncio.timeout(settings.queue_timeout_s):
                await self._semaphore.acquire()
        except TimeoutError:
            raise DeadlineExceededError(
                f"no permit came free within {settings.queue_timeout_s:g} s: raise max_concurrency or queue_timeout_s",
                sent="no",
            ) from None
        finally:
            self.queued -= 1
