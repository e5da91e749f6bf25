"""The time of a program as WebAssembly, without its wait for a CPU."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time

from faasrt.local.jail.launcher.scheduling import IS_WAIT_KNOWN, LOWEST, niceness_after


class ProgramClock:
    """The time of a program that counts for its time limit.

    It is the CPU time of its thread, and the time for which the program itself asks to wait: WebAssembly can only wait
    in calls of the host, which add it here. So neither a wait for a CPU counts, nor one of the host. If the kernel
    does not report that wait (see `Engine.max_wall_factor`), wall-clock time counts.

    Any thread may use it after `begin`.

    Args:
        wall_s: The limit of the time with that for which it waits for a CPU.
    """

    def __init__(self, limit_s: float, wall_s: float = math.inf) -> None:
        self.limit_s, self._wall_s = limit_s, wall_s
        self._began: float | None = None
        self._cpu_clock: int | None = None
        self._cpu_began = self._waits_s = 0.0
        self._niceness = self._lowered_by = 0

    def begin(self) -> None:
        """Start. Call this in the thread of the program."""
        self._began = time.perf_counter()
        if IS_WAIT_KNOWN and hasattr(time, "pthread_getcpuclockid"):
            self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
            self._cpu_began = time.clock_gettime(self._cpu_clock)
            self._niceness = os.getpriority(os.PRIO_PROCESS, 0)

    def lower_priority(self) -> None:
        """Let younger programs go first. Call this in the thread of the program, again and again."""
        if self._cpu_clock is None:
            return
        lower_by = niceness_after(time.thread_time() - self._cpu_began)
        if lower_by > self._lowered_by:
            self._lowered_by = lower_by
            with contextlib.suppress(OSError):
                # On Linux, this is the priority of the thread only.
                os.setpriority(os.PRIO_PROCESS, 0, min(self._niceness + lower_by, LOWEST))

    def add(self, seconds: float) -> None:
        """Add time that passed in another thread, or in which the program waited."""
        self._waits_s += seconds

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        self._waits_s += seconds  # not the time that has passed: the thread may have waited for a CPU afterwards

    @property
    def elapsed_s(self) -> float:
        return 0.0 if self._began is None else time.perf_counter() - self._began

    @property
    def counted_s(self) -> float:
        elapsed_s = self.elapsed_s
        if self._cpu_clock is None:
            return elapsed_s
        try:
            cpu_s = time.clock_gettime(self._cpu_clock) - self._cpu_began
        except OSError:  # the thread has just ended, and its clock with it
            return elapsed_s
        return min(elapsed_s, cpu_s + self._waits_s)

    @property
    def is_late(self) -> bool:
        """Whether the machine was too busy to run the program for as long as its time limit."""
        return self.elapsed_s >= self._wall_s
