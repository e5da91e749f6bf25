"""Descriptors of processes. Unlike a pid, a descriptor never comes to mean another process."""

from __future__ import annotations

import os
import select


def has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def pid_of(pidfd: int) -> int:
    """Return the pid of a process as /proc shows it. System calls use another number if this process is in a pid
    namespace without a /proc of its own. Return -1 if the process has ended and its parent has waited for it.
    """
    return int(read_pid(pidfd, b"Pid:"))


def read_pid(pidfd: int, field: bytes) -> str:
    """Return the pid of a process: "Pid:" as /proc shows it, or "NSpid:" as the process itself does."""
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_NONBLOCK)
    try:
        lines = os.read(fd, 4096).splitlines()
    finally:
        os.close(fd)
    return next(line.split()[-1] for line in lines if line.startswith(field)).decode()
