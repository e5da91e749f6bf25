"""The stack of programs, which is large enough for deep recursion in C code."""

from __future__ import annotations

import ctypes
import resource

THREAD_BYTES = 8 * 2**20
"""The size of the stacks of threads."""
_BYTES = 512 * 2**20
_RESERVE_BYTES = 2**20


def enlarge() -> None:
    """Enlarge the stack of this process and its forks, for deep recursion in C code. Lower the limit for programs that
    they execute, which also use it as the size of the stacks of their threads.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    size = _BYTES if soft == resource.RLIM_INFINITY else min(_BYTES, soft - _RESERVE_BYTES)
    if size > THREAD_BYTES:
        with open("/proc/self/maps", encoding="ascii") as file:
            stack = next(line for line in file if line.endswith("[stack]\n"))
        # Writing to an address makes the kernel extend the stack down to it. The stack never shrinks again.
        ctypes.memset(int(stack.split()[0].split("-")[1], 16) - size, 0, 1)
    limit = _BYTES if hard == resource.RLIM_INFINITY else min(_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (min(THREAD_BYTES, limit), limit))
