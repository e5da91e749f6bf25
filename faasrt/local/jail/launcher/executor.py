"""Starts a program by executing a file, for slots whose program is an executable (Deno).

Everything is prepared before the fork, because a fork of Python would cost milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
from collections.abc import Mapping

from . import landlock, seccomp, syscalls
from .pidfds import pid_of
from .template import FAILED_STATUS, last_task

_MAX_LIMITS, _OTHER_CALLS = 16, 10


class FileExecutor:
    """Executes the same file in one process after another, each with limits and a filter.

    The results of the calls before the execution are not checked. Landlock is tried once; the filter is checked in each
    process; the other calls lower limits and rights that this process has, which cannot fail.

    Args:
        fd: The file to execute.
        env: The environment of the processes.
        rules_fd: Their rules of Landlock.
        limits: Their limits, by the names of `resource`. Each program may have others in addition.
        filter_code: Their filter of system calls, in which `seccomp.set_pid` replaces the number of the process.
        niceness: Their niceness.
    """

    def __init__(
        self,
        fd: int,
        env: Mapping[str, str],
        rules_fd: int,
        limits: Mapping[str, int],
        filter_code: bytes,
        niceness: int,
    ) -> None:
        self._fd, self._env = fd, syscalls.string_array(f"{name}={value}" for name, value in env.items())
        self._rules_fd, self._limits, self._filter, self._niceness = rules_fd, limits, filter_code, niceness
        self._starter = syscalls.ChildStarter(_MAX_LIMITS + _OTHER_CALLS)
        if not _can_restrict(rules_fd):
            raise OSError("the rules of Landlock cannot be applied")

    def start(self, text: bytes, descriptors: list[int]) -> int:
        """Start a process with these descriptors, from 0 upwards. Raise OSError if it has no filter.

        The filter contains the number of the process, so it must be known before.
        """
        argv, limits = json.loads(text)
        arguments = syscalls.string_array(argv)
        while True:
            expected = last_task() + 1
            program = syscalls.FilterProgram(seccomp.set_pid(self._filter, expected))
            bounds = {
                getattr(resource, name): (ctypes.c_ulong * 2)(value, value)
                for name, value in {**self._limits, **limits}.items()
            }
            calls: list[syscalls.Call] = [
                syscalls.system_call("landlock_restrict_self", self._rules_fd, 0),
                *(("dup2", (fd, target)) for target, fd in enumerate(descriptors)),
                syscalls.system_call("close_range", len(descriptors), self._fd - 1, 0),
                syscalls.system_call("close_range", self._fd + 1, 0xFFFF_FFFF, 0),
                ("setpgid", (0, 0)),
                ("setpriority", (os.PRIO_PROCESS, 0, self._niceness)),
                *(("setrlimit", (kind, ctypes.addressof(bound))) for kind, bound in bounds.items()),
                syscalls.seccomp_call(program),
                syscalls.execute_call(self._fd, arguments, self._env),
                ("_exit", (FAILED_STATUS,)),
            ]
            pid = self._starter.start(calls)
            has_filter = _has_filter(pid)
            if pid == expected and has_filter:
                return pid
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if not has_filter:
                raise OSError("its filter of system calls could not be installed")
            # Try again: the numbers of tasks have begun again, so the process has another one than expected.


def _can_restrict(rules_fd: int) -> bool:
    pid = syscalls.fork()
    if pid == 0:
        try:
            landlock.restrict(rules_fd)
            os._exit(0)
        finally:
            os._exit(FAILED_STATUS)
    return os.waitpid(pid, 0)[1] == 0


def _has_filter(pid: int) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        with open(f"/proc/{pid_of(pidfd)}/status", "rb") as file:
            return b"\nSeccomp:\t2\n" in file.read()
    finally:
        os.close(pidfd)
