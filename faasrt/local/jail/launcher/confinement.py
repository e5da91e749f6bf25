"""Confines the calling process itself, without a launcher: for the workers of the engine `wasm`.

It needs neither root nor namespaces. The kernel applies the rules of Landlock only to the calling thread and to its
later threads, so the process confines its files before it starts any threads, and its system calls when it is ready.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from . import landlock, process_memory, seccomp, syscalls

if sys.platform == "linux":
    import resource

# Root keeps these, because the folders may be in one of another user. Landlock still restricts the files.
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_LIMITS = {
    "RLIMIT_FSIZE": 64 * 2**20,  # more than any input of a program
    "RLIMIT_CORE": 1,  # prevents core dumps; 0 would allow core dumps that the host pipes to a program
}


def drop_capabilities() -> None:
    _require_linux()
    syscalls.drop_capabilities(kept=1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)


def confine_files(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Deny this process TCP, other processes, and all files outside of some folders. The process must have only one
    thread.

    If the machine lacks memory, the kernel kills this process before the server.
    """
    drop_capabilities()
    process_memory.prefer_for_oom_kill()
    syscalls.forbid_new_privileges()
    if len(os.listdir("/proc/self/task")) > 1:
        raise OSError("the process has threads already")
    rights = [[path, landlock.LOOK] for path in readable] + [[path, landlock.FILES] for path in writable]
    ruleset = landlock.create_ruleset(rights)
    if ruleset is None:
        raise OSError("the kernel has no Landlock")
    try:
        landlock.restrict(ruleset)
    finally:
        os.close(ruleset)
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        return
    raise OSError("Landlock has no effect")


def confine_calls() -> None:
    _require_linux()
    for name, value in _LIMITS.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (limit, limit))
    syscalls.forbid_new_privileges()
    syscalls.install_filter(seccomp.build_filter("wasm", os.getpid()), all_threads=True)
    try:
        socket.socket(socket.AF_UNIX).close()
    except PermissionError:
        return
    raise OSError("the filter of system calls has no effect")


def _require_linux() -> None:
    if sys.platform != "linux" or not syscalls.NUMBERS:
        raise OSError(f"this needs Linux on {' or '.join(seccomp.ARCHITECTURES)}")
