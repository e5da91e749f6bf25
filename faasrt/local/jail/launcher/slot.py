"""A slot, as the launcher sees it. `template` is the process in it."""

from __future__ import annotations

import array
import contextlib
import math
import os
import select
import signal
import socket
import time

from . import process_memory
from .pidfds import pid_of

MAX_RUNS = 100
# The time in which a template must start a program, or report the end of a program. A template that takes longer was
# stopped from outside, unless it waits for a CPU. The first start takes longer, because the template completes the
# jail.
_FIRST_START_S, _ANSWER_S = 60.0, 2.0
# The interval between two checks of a late template, and the time after which it ends in any case.
_LOOK_S, _MAX_LATE_S = 0.2, 120.0
_IDLE_S = 10.0


class Slot:
    """A jail in which one program runs after another. Its first process is a template (`template.py`). `pid` is the
    number of the template for system calls. /proc may show another number.

    With an executable, each program is a single process. After `ends_at`, the slot ends if it `is_over`: the template
    has not answered, or no program has used the slot. If the slot is spent, no other program may run in it.
    """

    def __init__(self, place: int, pid: int, control: socket.socket, *, has_executable: bool) -> None:
        self.place, self.pid, self.control, self.has_executable = place, pid, control, has_executable
        self.pidfd = os.pidfd_open(pid)
        self.proc = -1
        self.ends_at = self._last_end = math.inf
        self.is_spent = False
        self._runs = 0

    def start(self, descriptors: list[int], text: bytes = b"") -> None:
        self._runs += 1
        self.is_spent = self.is_spent or self._runs == MAX_RUNS
        self._expect_answer(_FIRST_START_S if self._runs == 1 else _ANSWER_S)
        self.control.sendmsg([b"run", text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])

    def expect_report(self) -> None:
        if self.ends_at == math.inf:
            self._expect_answer(_ANSWER_S)

    def _expect_answer(self, within_s: float) -> None:
        self.ends_at = time.monotonic() + within_s
        self._last_end = self.ends_at + _MAX_LATE_S

    def end_when_idle(self) -> None:
        self.ends_at = self._last_end = time.monotonic() + _IDLE_S

    def is_over(self, now: float) -> bool:
        """Return whether to end the slot. A template that is late on a busy machine is checked again.

        Such a template waits for a CPU, or in the kernel: for its memory, or until a new process has executed its file.
        A template that was stopped, or that sleeps and has not answered, waits for neither.
        """
        if now < self.ends_at:
            return False
        if now < self._last_end:
            folder = f"/proc/{pid_of(self.pidfd)}"
            works = process_memory.is_ready(folder) or process_memory.is_blocked(folder)
            # Asked after its state, because it may just have answered.
            if works or self._has_message():
                self.ends_at = now + _LOOK_S
        return now >= self.ends_at

    def _has_message(self) -> bool:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        return bool(poll.poll(0))

    def retire(self) -> None:
        """Run no other program, and keep the files of the running one."""
        self.is_spent = True
        with contextlib.suppress(OSError):  # the template has ended
            self.control.send(b"end")

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        for fd in (self.pidfd, self.proc):
            if fd >= 0:
                os.close(fd)


def open_proc(pid: int | None) -> int:
    """Open the /proc of a jail. Return -1 if this process has the same /proc, or if the jail has ended."""
    with contextlib.suppress(OSError):
        fd = os.open(f"/proc/{pid}/root/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.fstat(fd).st_dev != os.stat("/proc").st_dev:
            return fd
        os.close(fd)
    return -1
