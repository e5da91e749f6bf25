"""An engine with warm processes, which have started and wait for a program.

Processes start ahead of demand, and end if they are idle for long.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from typing import ClassVar, Generic, Protocol, TypeVar

from faasrt.local.engines.engine import Engine, EngineOptions
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.process import Spawner, available_cpus

PEAK_DECAY_S = 30.0
"""The seconds after which the recorded peak is halved."""
_POLL_S = 0.2


class Process(Protocol):
    """A process that can run programs."""

    ended: asyncio.Event

    @property
    def alive(self) -> bool:
        """Whether the process can still run a program, as far as the engine knows."""

    def kill(self) -> None:
        """Kill the process and all processes that it started."""


_P = TypeVar("_P", bound=Process)


class PooledEngine(Engine, Generic[_P]):
    """An engine with a pool of warm processes.

    Attributes:
        min_warm: The smallest number of processes to keep.
        reuses_processes: Whether a process runs several programs, one after another. If so, the number of processes to
            keep includes the ones that are running a program.
        retry_start_s: The first and the longest pause after failed starts, in seconds. The pause doubles every time.
        warm_timeout_s: How long a program waits for a warm process, in seconds.
    """

    min_warm: ClassVar[int] = 2
    reuses_processes: ClassVar[bool] = False
    retry_start_s: ClassVar[tuple[float, float]] = (0.1, 5.0)
    warm_timeout_s: ClassVar[float] = 20.0

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._spawner: Spawner
        self._group: asyncio.TaskGroup
        self._processes: set[_P] = set()
        self._warm: asyncio.Queue[_P] = asyncio.Queue()
        self._peak = 0  # the largest number of programs that recently ran at once
        self._starting = 0
        self._demand_changed = asyncio.Event()

    async def serve(self) -> None:
        """Keep processes warm until cancelled, and then end them."""
        async with Spawner() as self._spawner, contextlib.AsyncExitStack() as resources:
            await self._serve_with(resources)

    async def _serve_with(self, resources: contextlib.AsyncExitStack) -> None:
        failure = None
        try:
            await self._prepare(resources)
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._watch_resources())
                await self._add_process()  # one alone, because it fills the caches for the others
                self._group.create_task(self._decay_peak())
                for _ in range(available_cpus()):
                    self._group.create_task(self._refill())
        except* EngineError as group:
            failure = group.exceptions[0]
        finally:
            # Kill all processes before the first await, because a second cancellation may interrupt an await.
            for process in self._processes:
                process.kill()
            await resources.aclose()
            for process in list(self._processes):
                await self._remove_when_ended(process)
        if failure is not None:
            raise failure

    async def _prepare(self, resources: contextlib.AsyncExitStack) -> None:
        """Prepare the engine before the first process starts.

        The default does nothing. `resources` is closed after the processes have been killed, because their ends may be
        reported through a resource such as a jail. Raise EngineError if the engine cannot serve at the moment.
        """

    async def _watch_resources(self) -> None:
        """Watch the resources that `_prepare` has opened, and raise EngineError if one fails, so that no process can
        start any more. Or do other work in the background. The default returns at once.
        """

    @abc.abstractmethod
    async def _start(self) -> _P:
        """Start a process, and return it when it is ready for a program. Raise NotStartedError if it cannot start.
        Cancellation ends the process.
        """

    @property
    def idle(self) -> int:
        return self._warm.qsize()

    @property
    def _process_count(self) -> int:
        """The number of processes to compare with the target."""
        return len(self._processes) if self.reuses_processes else self.idle

    @property
    def _target(self) -> int:
        """The number of processes to keep: the recent peak, but at least `min_warm` and at most the capacity."""
        return min(self.capacity, max(self.min_warm, self._peak))

    async def _get_warm(self) -> _P:
        """Take a warm process, or wait for one. Raise NotStartedError if none became ready in time, or if the engine
        failed.
        """
        self._peak = max(self._peak, self.active)
        self._demand_changed.set()
        loop = asyncio.get_running_loop()
        wait_until = loop.time() + self.warm_timeout_s
        while True:
            try:
                async with asyncio.timeout(_POLL_S):
                    process = await self._warm.get()
            except TimeoutError:
                if not self.ready or loop.time() > wait_until:
                    problem = self.problem or f"no sandbox became ready within {self.warm_timeout_s:g} s"
                    raise NotStartedError(problem) from None
                continue
            self._demand_changed.set()
            if process.alive:
                return process

    async def _refill(self) -> None:
        """Start processes ahead of demand. One task for each CPU runs this; each starts one process at a time."""
        while True:
            await self._add_process()

    async def _add_process(self) -> None:
        """Wait until the engine has fewer processes than its target, and start one. Retry failed starts."""
        delay_s, max_delay_s = self.retry_start_s
        while True:
            while self._process_count + self._starting >= self._target:
                self._demand_changed.clear()
                await self._demand_changed.wait()
            self._starting += 1
            try:
                process = await self._start()
                self._track(process)
                self._warm.put_nowait(process)
                self.mark_ready()
                return
            except NotStartedError as error:
                self.log_failure(str(error))
                if not self._process_count:
                    self.mark_failed(str(error))
                await asyncio.sleep(delay_s)
            finally:
                self._starting -= 1
            delay_s = min(2 * delay_s, max_delay_s)

    def _track(self, process: _P) -> None:
        """Add a process to the engine. It is removed when it ends."""
        self._processes.add(process)
        self._group.create_task(self._remove_when_ended(process))

    async def _remove_when_ended(self, process: _P) -> None:
        """Wait until a process has ended, and remove it, so that another one can start."""
        await process.ended.wait()
        for _ in range(self._warm.qsize()):
            other = self._warm.get_nowait()
            if other is not process:
                self._warm.put_nowait(other)
        self._processes.discard(process)
        self._demand_changed.set()

    async def _decay_peak(self) -> None:
        """Halve the recorded peak every `PEAK_DECAY_S`, and end idle processes beyond the new target."""
        while True:
            await asyncio.sleep(PEAK_DECAY_S)
            self._peak = max(self.active, self._peak // 2)
            for _ in range(min(self.idle, self._process_count - self._target)):
                self._warm.get_nowait().kill()
