"""A running program, as the launcher sees it: its processes, time and memory, and why it was ended."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from typing import Any

from . import branches, process_memory, scheduling
from .pidfds import has_ended, pid_of
from .slot import Slot, open_proc
from .users import Owner, find_processes

WATCH_INTERVAL_S, _LAST_CHECK_S = 0.05, 0.02
SESSION_GRACE_S = 2.0
"""The time in which the server must have interrupted the program of a session, or ended the session."""
IDLE_INTERVAL_S = 5.0
"""The time between two checks of a session in which nothing should run."""


class RunningProgram:
    """A running program, as the launcher sees it.

    Attributes:
        place: See `namespaces`.
        jail_owner: The program that has started its jail: itself, or the session that a branch comes from.
        in_same_jail: The running programs in its jail, if it owns the jail: itself, and branches.
        child: The number of its first process, for system calls, if the launcher has started it, and is to wait for it.
        root: The root folder of a branch.
        device: The device of its /tmp, once its jail has had branches. It distinguishes the processes of this program
            from the other processes in the jail.
        init, init_pidfd: The first process of its pid namespace, if it has a jail of its own.
        init_memory: The memory that only `init` uses.
        owner: Its folder, and how to find its processes, without namespaces.
        is_session: Whether it has further runs.
        has_requests: Whether the requests of the server come over its stdin, so that it may always wait for the next.
        began: When its time limit began.
        deadline: When it ends, if it does not wait for a CPU or for the server until then.
        last_deadline: When it ends in any case.
        check_at: The time of its next check; infinity if it has no time limit.
        is_interrupted: Whether the server was told that the time of its run is over.
        niceness: By how much the priority of its jail is lower than the priority of a new jail, if it owns the jail.
        last_cpu_ticks: The CPU time of its processes at the last check, if they only waited for the server.
        has_grace: Whether it has another interval, because it waited for the server at the end of its time limit.
        oom_kills: The number of processes that the kernel had killed for lack of memory when the program began.
        reason: Why it was killed: "memory" or "time" for a limit; "machine" if the machine was too busy; "system" if
            the system lacked memory, or "unclear" if the program may have caused this; "template" if its template has
            ended.
    """

    def __init__(self, number: int, place: int, slot: Slot | None = None) -> None:
        self.number, self.place, self.slot = number, place, slot
        self.jail_owner, self.in_same_jail = self, {self}
        self.root: branches.Root | None = None
        self.device: int | None = None
        self.child = self._pid = self._init_pid = self.pidfd = self.init_pidfd = -1
        self.init: int | None = None
        self.owner: Owner | None = None
        self.init_memory: Any = None
        self.pipes: list[int] = []
        self.max_bytes: int | None = None
        self.is_watched = False
        self._proc = -1
        self.deadline = self.last_deadline = self.check_at = self.oom_kills = math.inf
        self.is_interrupted = False
        self.times, self.niceness = scheduling.CpuTimes(), 0
        self.began = self.watched_at = 0.0
        self.last_cpu_ticks: int | None = None
        self.is_idle = self.has_worked = self.is_session = self.has_requests = False
        self.has_grace = False
        self.reason = ""
        self.max_threads = 1

    @property
    def pid(self) -> int:
        """The pid of its first process, as /proc shows it; -1 if it has none any more."""
        if self._pid < 0:
            self._pid = pid_of(self.pidfd)
        return self._pid

    @property
    def init_pid(self) -> int | None:
        """The pid of the first process of its pid namespace, as /proc shows it; None if it has no such namespace."""
        pidfd = self.init_pidfd if self.slot is None else self.slot.pidfd
        if self._init_pid < 0 and pidfd >= 0:
            self._init_pid = pid_of(pidfd)
        return None if pidfd < 0 else self._init_pid

    def open_folder(self) -> int:
        """Open its /tmp, or its own folder. It may have changed the root folder of its first process."""
        if self.owner is not None:
            return os.open(self.owner.home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        top = branches.open_top(f"/proc/{self.pid if self.slot is None else self.init_pid}")
        try:
            return os.open("tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        finally:
            os.close(top)

    @property
    def pidfd_to_kill(self) -> int:
        """The process to kill to end the program with all of its processes."""
        if self.slot is not None and not self.slot.has_executable:
            return self.slot.pidfd
        return self.pidfd if self.init is None else self.init_pidfd

    def branch(self, number: int, pidfd: int, root: branches.Root) -> RunningProgram:
        branch = RunningProgram(number, self.place, self.slot)
        branch.init, branch.init_pidfd, branch.pidfd = self.init, self.init_pidfd, pidfd
        branch._pid, branch.jail_owner = pid_of(pidfd), self.jail_owner
        branch.max_bytes, branch.is_idle = self.max_bytes, True
        branch.root, branch.device = root, root.device
        self.jail_owner.in_same_jail.add(branch)
        return branch

    def can_branch(self, pidfd: int) -> bool:
        """Return whether a process is in its jail, has not ended, and is not the first one of another program there.

        A program that forges messages can name its own process, which then could not be killed.
        """
        pid = pid_of(pidfd)
        namespaces = {process_memory.pid_namespace(one) for one in (pid, self.init_pid) if one is not None}
        is_other = all(pid_of(each.pidfd) != pid for each in self.jail_owner.in_same_jail)
        return is_other and len(namespaces) == 1 and "" not in namespaces and not has_ended(pidfd)

    @property
    def is_alone(self) -> bool:
        return len(self.jail_owner.in_same_jail | {self}) == 1

    def kill(self, reason: str) -> None:
        self.reason, self.deadline, self.check_at = reason, math.inf, math.inf
        if not self.is_alone:
            # Its other processes end with it. See `branches.Remains`.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        elif not self.awaits_report():
            with contextlib.suppress(ProcessLookupError):  # the template has just waited for it
                signal.pidfd_send_signal(self.pidfd_to_kill, signal.SIGKILL)

    def awaits_report(self) -> bool:
        """Return whether its first process has ended, and its template has yet to report how, and to end the others."""
        if self.slot is None or self.jail_owner is not self or not has_ended(self.pidfd):
            return False
        self.slot.expect_report()
        return True

    def close_files(self) -> None:
        self.close_pipes()
        for fd in [self._proc, -1 if self.slot is None and self.jail_owner is self else self.pidfd]:
            if fd >= 0:
                os.close(fd)

    def close_pipes(self) -> None:
        while self.pipes:
            os.close(self.pipes.pop())

    def open_proc(self) -> None:
        """Open its own /proc, if it has one, which stays the same when its processes have ended."""
        if self.slot is not None:
            if self.slot.proc < 0:
                self.slot.proc = open_proc(self.init_pid)
        elif self._proc < 0:
            self._proc = open_proc(self.pid)

    @property
    def proc(self) -> int:
        """The /proc of its jail, or -1."""
        return self._proc if self.slot is None else self.slot.proc

    @property
    def processes(self) -> list[str]:
        if self.owner is not None:
            found = find_processes(with_groups=not self.owner.uid)
            return [f"/proc/{pid}" for pid in found.get(self.owner.uid or -self.owner.group, [])]
        if self.init_pid is None:
            return [f"/proc/{self.pid}"]
        with contextlib.suppress(OSError):
            folders = process_memory.folders_in_jail(self.proc, self.init_pid)
            if self.device is None:
                return folders
            return [folder for folder in folders if branches.device_of(folder, {self.device}) == self.device]
        return []

    def works(self) -> bool:
        """Return whether it has further threads or processes, or has used CPU time since the last check, while it was
        idle.
        """
        processes, before = self.processes, self.last_cpu_ticks
        self.last_cpu_ticks = sum(map(process_memory.cpu_ticks, processes))
        self.has_worked = before not in (None, self.last_cpu_ticks)
        return self.has_worked or sum(map(process_memory.count_threads, processes)) > 1

    def limit_time(self, began: float, limit_s: float, wall_s: float) -> None:
        """Start its time limit, which began at a time of the monotonic clock, or end it if it is infinite."""
        self.began = self.watched_at = began
        self.deadline, self.last_deadline = began + limit_s, began + wall_s
        self.is_interrupted = self.has_grace = False
        self.times.begin()
        self._plan_check(time.monotonic(), WATCH_INTERVAL_S)

    def check_time(self, now: float, interval_s: float) -> str:
        """Return "time" if its time is over, "interrupt" if the server can interrupt a session first, and "machine" if
        the machine was too busy to run it; else "".

        The time in which all of its processes wait for the server does not count, and neither does the one in which it
        waits for a CPU. A full pipe alone does not show that it waits for the server, because one process can keep it
        full while another one works.
        """
        ticks = self._waiting_ticks() if self._has_blocked_pipe() else None
        before, self.last_cpu_ticks = self.last_cpu_ticks, ticks
        elapsed_s, self.watched_at = now - self.watched_at, now
        self.deadline += self.times.update(self.processes, elapsed_s)
        reason = ""
        if ticks is not None and ticks == before:
            self.deadline = max(self.deadline + elapsed_s, now + WATCH_INTERVAL_S)
            self.last_deadline += elapsed_s
        elif now >= self.deadline:
            if ticks is not None and not self.has_grace:
                # It may have begun to wait since the last check. The next one shows whether it only waits.
                self.has_grace, self.deadline = True, now + WATCH_INTERVAL_S
            elif now >= self.deadline + self.times.pending_s:
                if self.is_session and not self.is_interrupted:
                    self.deadline, reason = now + SESSION_GRACE_S, "interrupt"
                else:
                    reason = "time"
            # Otherwise it may wait for a CPU. The kernel reports the length of a wait only when it is over.
        if not reason and now >= self.last_deadline:
            reason = "machine"
        self._plan_check(now, interval_s)
        return reason

    def _plan_check(self, now: float, interval_s: float) -> None:
        if self.deadline == math.inf:
            self.check_at = math.inf
            return
        self.check_at = now + interval_s
        if now < self.deadline < self.check_at:
            # The last check before the end of its time shows whether it waits for a CPU then.
            before = self.deadline - _LAST_CHECK_S
            self.check_at = before if before > now else self.deadline
        elif now >= self.deadline:
            self.check_at = now + _LAST_CHECK_S
        self.check_at = min(self.check_at, max(self.last_deadline, now + _LAST_CHECK_S))

    def adjust_priority(self, niceness: int, *, is_crowded: bool) -> None:
        """Lower the priority of the program as it uses CPU time. A jail whose sessions work between their runs gets the
        lowest priority.

        Args:
            niceness: The niceness of a new program.
            is_crowded: Whether more programs run than there are CPUs. Otherwise the program would only lose against
                processes of other users.
        """
        owner = self.jail_owner
        running = [each.times.used_s for each in owner.in_same_jail if not each.is_idle]
        wanted = scheduling.LOWEST if self.has_worked and not running else 0
        if running and is_crowded:
            wanted = scheduling.niceness_after(min(running))
        if wanted == owner.niceness:
            return
        if self.slot is not None:
            self.slot.is_spent = True  # the next program must not be slow
        if not self.is_session:  # the priority of a process cannot be restored
            scheduling.lower_priority(self.pid, niceness + wanted)
        if scheduling.set_jail_priority(self.pid, wanted):
            owner.niceness = wanted

    def _has_blocked_pipe(self) -> bool:
        poll, pipes = select.poll(), [*enumerate(self.pipes)][self.has_requests :]
        for target, fd in pipes:
            poll.register(fd, select.POLLOUT if target else select.POLLIN)
        return len(poll.poll(0)) < len(pipes)

    def _waiting_ticks(self) -> int | None:
        """Return the CPU time of its processes; None if one of them can run at the moment."""
        processes = self.processes
        return None if any(map(process_memory.can_run, processes)) else sum(map(process_memory.cpu_ticks, processes))
