"""What runtimes and managers need to begin and end well: calls in flight, background tasks, and the event loop to which
an object belongs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from faasrt.errors import ConfigurationError, RuntimeClosedError

S = TypeVar("S")
T = TypeVar("T")


async def run_for_each(function: Callable[[S], Awaitable[T]], items: Iterable[S]) -> list[T]:
    """Call a function for all items at the same time, and return the results in order. Once all have ended, raise the
    first error. A TaskGroup would raise an ExceptionGroup, which callers do not expect.

    Cancellation: cancels them all.
    """
    failures: list[Exception] = []

    async def run(item: S) -> list[T]:
        try:
            return [await function(item)]
        except Exception as error:
            failures.append(error)
            return []

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(item)) for item in items]
    if failures:
        raise failures.pop(0)  # without `pop`, the frame and the error would keep each other in memory
    return [result for task in tasks for result in task.result()]


class BackgroundTasks:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> Sequence[asyncio.Task[Any]]:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks


class LoopAffinity:
    """Binds an object to the event loop in which it is first used. `owner` names it in error messages."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        """Raise ConfigurationError if the object is bound to another loop than the running one."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError(
                f"this {self._owner} belongs to another event loop: close it there, and make a new one in each "
                "asyncio.run"
            )

    def release(self) -> None:
        self._loop = None


class CallsInFlight:
    """Counts calls, and refuses them once closing has begun. All copies of a runtime share one."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cancelled: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self.closing = self.released = False

    def check_open(self) -> None:
        """Raise RuntimeClosedError if closing has begun, unless the current task, or a task that has started it, is a
        call in flight.
        """
        if self.closing:
            call = _current_call.get()
            if call is None or not call.is_in_flight(self):
                raise RuntimeClosedError("this runtime is closed: get another from the manager or factory")

    def track(self) -> TrackedCall:
        """Count the current task as a call in flight, until the block of the returned context manager ends. A nested
        block in the same task is not counted again. Raise the error of `check_open`.
        """
        task = asyncio.current_task()
        assert task is not None
        is_nested = task in self._tasks
        if not is_nested:
            self.check_open()
            self._tasks.add(task)
        return TrackedCall(self, task, is_nested)

    def end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._cancelled.discard(task)
        if not self._tasks:
            self._idle.set()

    def is_cancelled(self, task: asyncio.Task[Any]) -> bool:
        return task in self._cancelled

    def take_cancelled(self, task: asyncio.Task[Any]) -> bool:
        if task not in self._cancelled:
            return False
        self._cancelled.discard(task)
        return True

    async def close(self, within_s: float | None) -> None:
        """Refuse further calls, and wait for the calls in flight. Calls that have not ended after `within_s` are
        cancelled; None waits for all of them.

        Cancellation: cancels the calls in flight at once.
        """
        self.closing = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._wait_idle()
        finally:
            for task in self._tasks:
                self._cancelled.add(task)
                task.cancel()
            await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._tasks:
            self._idle.clear()
            await self._idle.wait()


class TrackedCall:
    __slots__ = ("_calls", "_cancelling", "_is_nested", "_outer", "_task")

    def __init__(self, calls: CallsInFlight, task: asyncio.Task[Any], is_nested: bool) -> None:
        self._calls = calls
        self._task: asyncio.Task[Any] | None = task
        self._is_nested = is_nested
        self._cancelling = task.cancelling()
        self._outer: TrackedCall | None = None
        if not is_nested:
            self._outer = _current_call.get()
            _current_call.set(self)

    def is_in_flight(self, calls: CallsInFlight) -> bool:
        return self._calls is calls and self._task is not None and not calls.is_cancelled(self._task)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        """Raise RuntimeClosedError in place of a cancellation by `CallsInFlight.close`."""
        task = self._task
        assert task is not None
        was_cancelled = error is not None and self._calls.take_cancelled(task)
        if not self._is_nested:
            self._calls.end(task)
            _current_call.set(self._outer)
            # The contexts of tasks and connections that outlive the call keep this object, but not what it refers to.
            self._task = self._outer = None
        # As in asyncio.timeout, only a cancellation by `close` is converted into an error.
        if was_cancelled and task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise RuntimeClosedError("this runtime was closed while the call was in flight") from None


# The call that the current task belongs to. Tasks that the current task starts inherit the value.
_current_call: ContextVar[TrackedCall | None] = ContextVar("faasrt_current_call", default=None)
