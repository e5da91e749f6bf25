"""An event loop in a thread, for `faasrt.sync`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from faasrt.errors import ConfigurationError, RuntimeClosedError

T = TypeVar("T")
# The seconds that calls have to return when the loop stops.
_RETURN_S = 1.0


class LoopThread:
    """An event loop in a daemon thread, for code without asyncio."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._lock = threading.Lock()
        self._has_ended = False
        # A daemon, because the interpreter waits for other threads before it closes the managers.
        self._thread = threading.Thread(target=self._run, name="faasrt.sync", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the loop runs. It does not in a fork of the process that started it."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def start(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        with self._lock:
            if self.is_alive and not self._has_ended:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise RuntimeClosedError("this manager is closed, or belongs to the parent process: make a new one")

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine. If the wait is interrupted, cancel it. Raise RuntimeClosedError if the loop
        stopped before, and ConfigurationError in the thread of the loop.
        """
        if self.is_current:
            coroutine.close()
            raise ConfigurationError("a call in the thread of this manager, as from `stop_on`, would wait for itself")
        future = self.start(coroutine)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeClosedError("this manager was closed while the call was in flight") from None
        except BaseException:
            future.cancel()
            raise

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *args)

    def stop(self) -> None:
        self.call_soon(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        runner = asyncio.Runner(loop_factory=lambda: self._loop)
        runner.run(self._stopping.wait())
        with self._lock:
            self._has_ended = True
        runner.run(self._finish())
        # Python 3.12.1 and older versions of 3.12 cannot start a thread at the end of the process, as this does.
        with contextlib.suppress(RuntimeError):
            runner.close()

    async def _finish(self) -> None:
        """Let the calls return that have begun, including calls that have begun after the manager was closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETURN_S):
                while calls := asyncio.all_tasks() - {asyncio.current_task()}:
                    await asyncio.wait(calls)
