"""The calls that are in flight, so that closing can wait for them, and end them when they take too long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from faasrt.errors import RuntimeClosedError


class CallsInFlight:
    """Counts calls in, and refuses them once closing has begun."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended_by_us: set[asyncio.Task[Any]] = set()
        self._empty = asyncio.Event()
        self.closing = False

    def refuse_when_closing(self) -> None:
        """Refuse what comes too late.

        Raises:
            RuntimeClosedError: Closing has begun.
        """
        if self.closing:
            raise RuntimeClosedError("this runtime is closed: get another from the manager or factory")

    @contextlib.contextmanager
    def one_call(self) -> Iterator[None]:
        """Hold this around a call.

        Raises:
            RuntimeClosedError: Closing has begun, or closing ended the call.
        """
        self.refuse_when_closing()
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            # As in asyncio.timeout: only a cancellation that is ours, and ours alone, becomes an error.
            if task in self._ended_by_us and task.uncancel() <= cancelling:
                raise RuntimeClosedError("this runtime was closed while the call was in flight") from None
            raise
        finally:
            self._tasks.discard(task)
            self._ended_by_us.discard(task)
            if not self._tasks:
                self._empty.set()

    async def close(self, within_s: float | None) -> None:
        """Refuse further calls, and wait for those in flight.

        Args:
            within_s: Seconds after which they are ended; None waits for as long as they take.

        Cancellation: ends them at once.
        """
        self.closing = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._until_empty()
        finally:
            for task in self._tasks:
                self._ended_by_us.add(task)
                task.cancel()
            await self._until_empty()

    async def _until_empty(self) -> None:
        while self._tasks:
            self._empty.clear()
            await self._empty.wait()
