"""Many time limits with one timer: what `asyncio.timeout` does, for callers by the thousand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from types import TracebackType

_SWEPT_FROM = 100


class Deadlines:
    """Ends what takes too long inside `with deadlines.within(seconds)`.

    A timer of the event loop's for each call would cost a fifth of all that is done for one here. As nearly all calls
    end in time, their deadlines are only looked at when the earliest of them is reached.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Deadline]] = []
        self._numbers = itertools.count()
        self._open = 0
        self._timer: asyncio.Handle | None = None
        self._wakes_at = math.inf

    def within(self, seconds: float) -> _Deadline:
        """Limit a block of the running task to some seconds; it ends with a `TimeoutError` when they have passed."""
        return _Deadline(self, seconds)

    def _enter(self, deadline: _Deadline, when: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None or when < self._wakes_at:
            self._wake_at(when, loop)
        heapq.heappush(self._heap, (when, next(self._numbers), deadline))
        self._open += 1

    def _exit(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._heap.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif len(self._heap) > max(_SWEPT_FROM, 2 * self._open):
            self._heap = [entry for entry in self._heap if entry[2].task is not None]
            heapq.heapify(self._heap)

    def _wake_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # uvloop's handles do not know their time.
        self._timer, self._wakes_at = loop.call_at(when, self._wake, loop), when

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].task is None):
            heapq.heappop(self._heap)[2].expire()
        if self._heap:
            self._wake_at(self._heap[0][0], loop)


class _Deadline:
    __slots__ = ("_cancelling", "_deadlines", "_expired", "_seconds", "task")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines = deadlines
        self._seconds = seconds
        self._expired = False
        self.task: asyncio.Task[object] | None = None

    def expire(self) -> None:
        """Have the block end, unless it has."""
        if self.task is not None:
            self._expired = True
            self.task.cancel()

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = self.task = asyncio.current_task(loop)
        assert task is not None
        self._cancelling = task.cancelling()
        self._deadlines._enter(self, loop.time() + self._seconds, loop)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        task, self.task = self.task, None
        self._deadlines._exit()
        # As in asyncio.timeout: only a cancellation that is ours, and ours alone, becomes an error.
        ours = self._expired and task is not None and task.uncancel() <= self._cancelling
        if ours and kind is asyncio.CancelledError:
            raise TimeoutError from error
