"""Processes that wait for a program.

It follows the demand of its engine, and does not know what kind of process it keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from faasrt.local.errors import NotStartedError
from faasrt.local.process import available_cpus

if TYPE_CHECKING:
    from faasrt.local.engines.engine import Engine

PEAK_DECAY_S = 30.0
"""The seconds after which the recorded peak is halved."""
HEAD_START_S = 0.01
"""The seconds for which a process with a program is not replaced, because starting another one would take CPU time from
a short program."""
_POLL_S = 0.2
_RETRIES = 2  # programs wait for the next start until this many retries have failed, too


class Process(Protocol):
    ended: asyncio.Event

    @property
    def alive(self) -> bool:
        """Whether the process can still run a program, as far as the engine knows."""

    def kill(self) -> None:
        """Kill the process and all processes that it started."""

    def when_ended(self, function: Callable[[], None]) -> None:
        """Call a function when `ended` is set."""


_P = TypeVar("_P", bound=Process)


class WarmPool(Generic[_P]):
    """Keeps processes of an engine warm. They start ahead of demand, and end if they are idle for long.

    Args:
        engine: The pool follows its demand, and marks it as ready or failed.
        reuses_processes: Whether a process runs several programs. If so, the number of processes to keep includes the
            ones that are running programs.
        retry_start_s: The first and the longest pause after failed starts. The pause doubles every time.
    """

    def __init__(
        self,
        engine: Engine,
        start: Callable[[], Awaitable[_P]],
        *,
        min_warm: int = 2,
        reuses_processes: bool = False,
        retry_start_s: tuple[float, float] = (0.1, 5.0),
        timeout_s: float = 20.0,
        peak: int = 0,
        clean_up: Callable[[_P], Awaitable[None]] | None = None,
    ) -> None:
        self._engine, self._start, self._min_warm, self._reuses_processes = engine, start, min_warm, reuses_processes
        self._retry_start_s, self._timeout_s, self._clean_up = retry_start_s, timeout_s, clean_up
        self._group: asyncio.TaskGroup
        self._processes: set[_P] = set()
        self._lent: set[_P] = set()
        self._warm: asyncio.Queue[_P] = asyncio.Queue()
        self._recent: dict[_P, asyncio.TimerHandle] = {}  # processes with a head start
        # The largest number of programs that recently ran at once. It is the number of processes to keep, but at least
        # `min_warm` and at most `min_capacity`.
        self._set_peak(peak)
        self._starting = self._waiting = 0
        self._wake_ups = asyncio.Semaphore(0)

    async def fill(self, group: asyncio.TaskGroup) -> None:
        """Wait until the first process is ready, and then keep processes warm, in tasks of a group."""
        self._group = group
        await self._add_process()  # one alone, because it fills the caches for the others
        group.create_task(self._decay_peak())
        for _ in range(2 * available_cpus()):  # a start also waits for other processes
            group.create_task(self._refill())

    def kill(self) -> None:
        for process in [*self._processes]:
            process.kill()

    def kill_idle(self) -> None:
        """Let new processes replace the idle processes."""
        for _ in range(self.idle):
            self._warm.get_nowait().kill()

    async def until_ended(self) -> None:
        for process in list(self._processes):
            await self._remove_when_ended(process)

    @property
    def idle(self) -> int:
        return self._warm.qsize()

    @property
    def _process_count(self) -> int:
        """The number of processes to compare with the target."""
        return len(self._processes) - len(self._lent) if self._reuses_processes else self._warm.qsize()

    def _set_peak(self, peak: int) -> None:
        self._peak = peak
        engine = self._engine
        most = min(engine.capacity, engine.min_capacity) if self._reuses_processes else engine.min_capacity
        self._target = min(most, max(self._min_warm, peak))

    async def get(self) -> _P:
        if self._engine.active > self._peak:
            self._set_peak(self._engine.active)
        while True:
            process = await self._wait() if self._warm.empty() else self._warm.get_nowait()
            is_alive = process.alive
            if is_alive and not self._reuses_processes:
                loop = asyncio.get_running_loop()
                self._recent[process] = loop.call_later(HEAD_START_S, self._end_head_start, process)
            self._check_demand()
            if is_alive:
                return process

    async def _wait(self) -> _P:
        self._waiting += not self._reuses_processes
        try:
            self._check_demand()
            return await self._wait_for_process()
        finally:
            self._waiting -= not self._reuses_processes

    async def _wait_for_process(self) -> _P:
        loop = asyncio.get_running_loop()
        wait_until = loop.time() + self._timeout_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    return await self._warm.get()
            engine = self._engine
            if loop.time() > wait_until or not (engine.ready or engine.will_retry):
                problem = engine.problem or f"no sandbox became ready within {self._timeout_s:g} s"
                raise NotStartedError(problem)

    def note_demand(self) -> None:
        """Start processes if more programs run than before. For programs that share a process."""
        if self._engine.active > self._peak:
            self._set_peak(self._engine.active)
        self._check_demand()

    def lend(self, process: _P) -> None:
        """Do not count a process, which has been taken, until it is put back. Another one may start in its place."""
        self._lent.add(process)
        self._check_demand()

    def put_back(self, process: _P) -> None:
        self._lent.discard(process)
        self._warm.put_nowait(process)

    def track(self, process: _P) -> None:
        """Add a process, which may already run a program. It is removed when it ends."""
        self._processes.add(process)
        if self._clean_up is None:
            process.when_ended(functools.partial(self._remove, process))
        else:
            self._group.create_task(self._remove_when_ended(process))

    @property
    def _needs_process(self) -> bool:
        # Programs that wait do not mind that the start of another process takes CPU time.
        return (
            self._warm.qsize() + self._starting < self._waiting
            or self._process_count + len(self._recent) + self._starting < self._target
        )

    def _end_head_start(self, process: _P) -> None:
        if process in self._recent:
            self._recent.pop(process).cancel()
        self._check_demand()

    def _check_demand(self) -> None:
        if self._needs_process and self._wake_ups.locked():
            self._wake_ups.release()

    async def _refill(self) -> None:
        """Start processes ahead of demand. Several tasks run this; each starts one process at a time."""
        while True:
            await self._add_process()

    async def _add_process(self) -> None:
        delay_s, max_delay_s = self._retry_start_s
        for attempt in itertools.count():
            while not self._needs_process:
                await self._wake_ups.acquire()
            self._starting += 1
            self._check_demand()
            try:
                process = await self._start()
                self._warm.put_nowait(process)
                self.track(process)
                self._engine.mark_ready()
                return
            except NotStartedError as error:
                self._engine.log_failure(str(error))
                if not self._process_count:
                    self._engine.mark_failed(str(error), will_retry=attempt < _RETRIES)
                await asyncio.sleep(delay_s)
            finally:
                self._starting -= 1
            delay_s = min(2 * delay_s, max_delay_s)

    async def _remove_when_ended(self, process: _P) -> None:
        await process.ended.wait()
        self._remove(process)
        if self._clean_up is not None:
            await self._clean_up(process)

    def _remove(self, process: _P) -> None:
        for _ in range(self._warm.qsize()):
            other = self._warm.get_nowait()
            if other is not process:
                self._warm.put_nowait(other)
        self._processes.discard(process)
        self._lent.discard(process)
        self._end_head_start(process)

    async def _decay_peak(self) -> None:
        """Halve the recorded peak every `PEAK_DECAY_S`, and end idle processes beyond the new target."""
        while True:
            await asyncio.sleep(PEAK_DECAY_S)
            self._set_peak(max(self._engine.active, self._peak // 2))
            for _ in range(min(self.idle, self._process_count - self._target)):
                self._warm.get_nowait().kill()
