"""The tasks of the engines of a server, which are started, replaced and stopped while it runs."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Iterable

from faasrt.errors import RuntimeClosedError, ServerError
from faasrt.local.engines.engine import Engine
from faasrt.telemetry.logs import log_exception


class EngineTasks:
    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: dict[Engine, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._is_cancelled = False

    def start(self, engines: Iterable[Engine]) -> None:
        for engine in engines:
            task = self._tasks[engine] = self._group.create_task(_log_failure(engine.run))
            # A task that is cancelled before its first step does not do this.
            task.add_done_callback(functools.partial(_mark_closed, engine))

    async def start_ready(self, engines: Iterable[Engine], excused: Collection[str]) -> None:
        """Start engines, and wait until they can run programs. Raise ServerError if an engine fails whose name is not
        excused. The others then run on. Raise RuntimeClosedError after `cancel`.
        """
        started = [] if self._is_cancelled else [*engines]
        self.start(started)
        for engine in started:
            await engine.until_ready_or_failed()
            if self._is_cancelled:
                break
            if not engine.ready and engine.name not in excused:
                raise ServerError(f"{engine.name} cannot run: {engine.problem}", sent="no")
        if self._is_cancelled:
            raise RuntimeClosedError("the embedded FaaS was closed meanwhile")

    async def stop(self, engines: Iterable[Engine]) -> None:
        """End the processes of engines that run no programs."""
        tasks = {self._tasks.pop(engine) for engine in engines if engine in self._tasks}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def stop_after(self, wait: Callable[[], Awaitable[None]], engines: Iterable[Engine]) -> None:
        async def stop() -> None:
            await wait()
            await self.stop(engines)

        task = self._group.create_task(_log_failure(stop))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def cancel(self) -> None:
        self._is_cancelled = True
        for task in [*self._tasks.values(), *self._stopping]:
            task.cancel()


async def _log_failure(work: Callable[[], Awaitable[None]]) -> None:
    """Do some work whose failure must not end the server."""
    try:
        await work()
    except Exception:
        log_exception("an engine failed", name="faasrt.local")


def _mark_closed(engine: Engine, _: asyncio.Task[None]) -> None:
    engine.mark_failed("the engine is closed")
