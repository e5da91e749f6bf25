"""The calls that are in flight, so that closing can wait for them, and end them when they take too long."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
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

    def one_call(self) -> _OneCall:
        """Hold what this gives around a call, or around several that are one to their caller.

        A call inside another one of the same task is a part of it, and goes on when closing begins.

        Raises:
            RuntimeClosedError: Closing has begun, or, at the end, closing ended the call.
        """
        task = asyncio.current_task()
        assert task is not None
        is_part = task in self._tasks
        if not is_part:
            self.refuse_when_closing()
        return _OneCall(self, task, is_part=is_part)

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


class _OneCall:
    """A call that is in flight inside `with`; a class, because a generator would take three times as long."""

    __slots__ = ("_calls", "_cancelling", "_is_part", "_task")

    def __init__(self, calls: CallsInFlight, task: asyncio.Task[Any], *, is_part: bool) -> None:
        self._calls, self._task, self._is_part, self._cancelling = calls, task, is_part, task.cancelling()

    def __enter__(self) -> None:
        self._calls._tasks.add(self._task)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        calls, task = self._calls, self._task
        if not self._is_part:
            calls._tasks.discard(task)
        if not calls.closing:
            return
        if not calls._tasks:
            calls._empty.set()
        if task in calls._ended_by_us:
            calls._ended_by_us.discard(task)
            # As in asyncio.timeout: only a cancellation that is ours, and ours alone, becomes an error.
            if kind is asyncio.CancelledError and task.uncancel() <= self._cancelling:
                raise RuntimeClosedError("this runtime was closed while the call was in flight") from None
