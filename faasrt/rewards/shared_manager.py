"""One manager for the threads and event loops of a framework that calls faasrt, as trainers and Inspect AI do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import faasrt.sync
from faasrt.client.manager import RuntimeManager
from faasrt.config import SandboxConfig, TimeoutSettings
from faasrt.errors import ConfigurationError, RuntimeClosedError, safe_repr

T = TypeVar("T")
ManagerOption: TypeAlias = RuntimeManager | faasrt.sync.RuntimeManager | str | None
Call: TypeAlias = Callable[[RuntimeManager], Coroutine[Any, Any, T]]

_SANDBOX, _TIMEOUTS = SandboxConfig(), TimeoutSettings()
# The managers of this process and, after a fork, of its parents, by process, URL and settings.
_managers: dict[tuple[int, str | None, SandboxConfig, TimeoutSettings], faasrt.sync.RuntimeManager] = {}


class SharedManager:
    """Runs calls with a manager that the threads and event loops of a framework share. A manager that is made here has
    the limits of `sandbox` and the `timeouts`.
    """

    def __init__(
        self,
        manager: ManagerOption,
        *,
        sandbox: SandboxConfig = _SANDBOX,
        timeouts: TimeoutSettings = _TIMEOUTS,
    ) -> None:
        if manager == "" or not isinstance(manager, RuntimeManager | faasrt.sync.RuntimeManager | str | None):
            raise ConfigurationError(f"manager must be a RuntimeManager, a URL or None, got {safe_repr(manager)}")
        if isinstance(manager, str):
            _create(manager, sandbox, timeouts)  # raises now, and not in the middle of a training, if the URL is wrong
        self._own = None if isinstance(manager, str) else manager
        self._url = manager if isinstance(manager, str) else None
        self._sandbox, self._timeouts = sandbox, timeouts

    def run(self, call: Call[T]) -> T:
        """Return the result of a call. Raise ConfigurationError if the manager is an asynchronous one."""
        if isinstance(self._own, RuntimeManager):
            raise ConfigurationError(
                "a synchronous function needs a manager of faasrt.sync or a URL, got an asynchronous manager"
            )
        manager = self._threaded()
        return manager._loop_thread().call(call(manager._original))

    async def run_async(self, call: Call[T]) -> T:
        """Return the result of a call.

        Cancellation: cancels the call. Unless the manager is an asynchronous one, the call ends soon after that, in the
        thread of the manager.
        """
        if isinstance(self._own, RuntimeManager):
            return await call(self._own)
        loop = asyncio.get_running_loop()  # raises before the call starts if this is not asyncio
        manager = self._threaded()
        future = manager._loop_thread().start(call(manager._original))
        try:
            return await asyncio.wrap_future(future, loop=loop)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeClosedError("this manager was closed while the call was in flight") from None

    def _threaded(self) -> faasrt.sync.RuntimeManager:
        if isinstance(self._own, faasrt.sync.RuntimeManager):
            return self._own
        key = os.getpid(), self._url, self._sandbox, self._timeouts
        if key not in _managers:
            # Another thread may do the same. `setdefault` is atomic, and a manager without calls need not be closed.
            _managers.setdefault(key, _create(*key[1:]))
        return _managers[key]


def _create(url: str | None, sandbox: SandboxConfig, timeouts: TimeoutSettings) -> faasrt.sync.RuntimeManager:
    if url is None:
        return faasrt.sync.RuntimeManager.from_env(local_fallback=True, sandbox=sandbox, timeouts=timeouts)
    token = os.environ.get("FAASRT_TOKEN") or None
    return faasrt.sync.RuntimeManager.from_url(url, token=token, sandbox=sandbox, timeouts=timeouts)
