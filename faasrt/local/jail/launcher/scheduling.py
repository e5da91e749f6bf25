"""The CPU time of a program: how much it has used, how long it has waited for a CPU, and its priority."""

from __future__ import annotations

import contextlib
import math
import os

from . import process_memory

AGES = ((0.2, 3), (2.0, 6))
"""After these seconds of CPU time, the niceness of a program is raised by this, so that new programs go first."""
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_NS = 1_000_000_000
_START_S = 0.05  # a program may start one process for each CPU in this time
IS_WAIT_KNOWN = os.path.exists("/proc/self/schedstat")
"""Whether the kernel reports how long a thread has waited for a CPU."""


class CpuTimes:
    """The CPU time of a program, with all of its threads and processes.

    A program waits for a CPU while at least one of its threads is ready to run, and none of them runs. The kernel only
    reports the total running time and the total wait of each thread. So the wait in an interval is the sum of the
    waits, but at most the part of the interval in which certainly no thread ran: its length less the CPU time of the
    thread that ran longest, and less the CPU time of all threads divided by the number of CPUs. So threads that compete
    with each other only gain the time that other programs take from them. The kernel adds a wait when the wait has
    ended. So if a thread is ready to run at the end of an interval, the rest of the interval is kept for the next
    interval.

    A program could hide CPU time in processes that end before they are seen. So the waits of a thread count from the
    time when the thread is first seen. For the threads with which the program begins, all waits count. In intervals in
    which the program starts many processes, no wait counts.

    Attributes:
        used_s, waited_s: The CPU time since `begin`, and the time in which the program waited for a CPU.
        pending_s: The part of the last interval that may be a wait that has not ended; infinity if no thread has run in
            the interval, so that the wait is older; 0 if the kernel does not report the waits.
    """

    def __init__(self) -> None:
        self.used_s = self.waited_s = self.pending_s = 0.0
        self._rest_s = 0.0
        self._begins = True
        self._threads: dict[str, tuple[int, int]] = {}  # the times of running and of waiting, in ns
        self._children: dict[str, int] = {}  # by process, the ticks of children that have ended
        self._ended: dict[str, int] = {}  # by process, the time of running of threads that have ended, in ns

    def begin(self) -> None:
        self.used_s = self.waited_s = self.pending_s = self._rest_s = 0.0
        self._begins = True

    def update(self, processes: list[str], elapsed_s: float) -> float:
        """Add the times of an interval that ends now. Return how long the program waited for a CPU in it."""
        threads: dict[str, tuple[int, int]] = {}
        children: dict[str, int] = {}
        ended: dict[str, int] = {}
        known: list[str] = []
        longest = total = waits = 0
        for folder in processes:
            count, ticks, children[folder] = process_memory.threads_and_ticks(folder)
            total += max(0, children[folder] - self._children.get(folder, 0)) * _NS // _TICKS_PER_S
            living = 0
            for thread, path in _threads(folder, count):
                run, wait = threads[thread] = read_times(path)
                run_before, wait_before = self._threads.get(thread, (-1, 0))
                if run < run_before:  # it is another thread with the same number
                    run_before, wait_before = -1, 0
                if run_before >= 0 or self._begins:
                    known.append(path)
                    waits += max(0, wait - wait_before)
                living += run
                run -= max(0, run_before)
                longest = max(longest, run)
                total += run
            ended_before = self._ended.get(folder, 0)
            ended[folder] = max(ended_before, ticks * _NS // _TICKS_PER_S - living)
            total += ended[folder] - ended_before
        started = 0 if self._begins else len(children.keys() - self._children.keys())
        starts_many = started > CPUS * max(1.0, elapsed_s / _START_S)
        self._threads, self._children, self._ended, self._begins = threads, children, ended, False
        unused_s = 0.0 if starts_many else max(0.0, elapsed_s - max(longest, total / CPUS) / _NS)
        rest_s = self._rest_s + unused_s
        waited_s = min(waits / _NS, rest_s)
        is_ready = (rest_s > waited_s or not total) and any(map(process_memory.is_ready, known))
        self._rest_s = rest_s - waited_s if is_ready else 0.0
        self.pending_s = 0.0
        if is_ready and any(run for run, _ in threads.values()):
            self.pending_s = min(self._rest_s, unused_s) if total or starts_many else math.inf
        self.used_s += total / _NS
        self.waited_s += waited_s
        return waited_s


def _threads(folder: str, count: int) -> list[tuple[str, str]]:
    """Return a name and the folder for each thread of a process. If there is only one thread, its folder is the folder
    of the process.
    """
    if count > 1:
        with contextlib.suppress(OSError):
            return [(f"{folder}/{thread}", f"{folder}/task/{thread}") for thread in os.listdir(f"{folder}/task")]
    return [(f"{folder}/{folder.rpartition('/')[2]}", folder)]


def read_times(folder: str) -> tuple[int, int]:
    """Return how long a thread has run, and how long it has waited for a CPU, in nanoseconds."""
    with contextlib.suppress(OSError, ValueError), open(f"{folder}/schedstat", "rb", buffering=0) as file:
        run, wait, _ = file.read(100).split()
        return int(run), int(wait)
    return 0, 0


LOWEST = 19


def niceness_after(used_s: float) -> int:
    return max((niceness for age_s, niceness in AGES if used_s >= age_s), default=0)


def lower_priority(pid: int, niceness: int) -> None:
    """Lower the priority of the process group of a program, with all threads. Later processes inherit it."""
    with contextlib.suppress(OSError):
        if os.readlink("/proc/self") == str(os.getpid()):  # else /proc has other numbers than system calls
            os.setpriority(os.PRIO_PGRP, pid, min(niceness, LOWEST))


def set_jail_priority(pid: int, niceness: int) -> bool:
    """Set the priority of the jail of a process, if the kernel divides CPU time between jails. Return False if this is
    to be tried again, because the kernel allows it only ten times a second.
    """
    try:
        with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
            file.write(str(niceness))
    except BlockingIOError:
        return False
    except OSError:
        pass  # the kernel does not divide it so, or the process has ended
    return True
