"""Reads the memory of processes from /proc. Most functions return 0 for a process that has ended.

The argument `folder` is the folder of a process in some /proc, such as "/proc/42".
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator

from . import syscalls

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_COUNTER_BYTES = 65_536
# More than each takes: a descriptor with its file, because it takes long to count many; a watch of an epoll, because a
# program can send 256 epolls to itself, which are not seen until it receives them; and an open file of
# /proc/PID/fdinfo, which keeps the text that it shows of an epoll.
_DESCRIPTOR_BYTES, _WATCH_BYTES, _FDINFO_BYTES = 8192, 65_536, 4 * 2**20
_MAX_LOCKS = 16_384  # of all programs; more than one may have
_KCMP_VM, _MADV_COLLAPSE = 1, 25
_PF_EXITING = 4  # a flag of threads that have begun to end
_NO_STAT = ["0"] * 50


def open_oom_counter() -> int | None:
    """Open the number of processes that the kernel has killed for lack of memory: in this cgroup, or on the machine."""
    paths = []
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for _, controllers, path in (line.rstrip("\n").split(":", 2) for line in file):
            if "memory" in controllers.split(","):  # version 1
                paths.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
            elif not controllers:
                paths.append(f"/sys/fs/cgroup{path}/memory.events")
    for path in [*paths, "/proc/vmstat"]:
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return None


def count_oom_kills(counter: int | None) -> int:
    if counter is not None:
        with contextlib.suppress(OSError):
            _, _, after = os.pread(counter, _COUNTER_BYTES, 0).partition(b"\noom_kill ")
            return int(after.split(maxsplit=1)[0]) if after else 0
    return 0


def use_huge_pages() -> None:
    """Move the heap of this process to huge pages, if the kernel can: a fork copies and frees their tables faster."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        mappings = [line.split() for line in file]
    for addresses, rights, _, _, _, *path in mappings:
        if rights == "rw-p" and path in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            with contextlib.suppress(OSError):  # the mapping is too small, or the kernel is older than 6.1
                syscalls.syscall("madvise", start, end - start, _MADV_COLLAPSE)


def prefer_for_oom_kill() -> None:
    """Make the kernel kill this process, or a process that it starts, before other processes if the machine lacks
    memory.

    Otherwise it would kill the server or the launcher because of a program with many small processes.
    """
    with contextlib.suppress(OSError):
        # Not a file of Python, which is slow: each program does this.
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)


def readable_folder(folder: str) -> str | None:
    """Return the folder that shows the memory of a process. If its first thread has ended, this is the folder of
    another thread.
    """
    fields = _read_stat(folder)
    if fields[0] != "Z" or int(fields[17]) == 1:
        return folder
    with contextlib.suppress(OSError):
        threads = [f"{folder}/task/{thread}" for thread in os.listdir(f"{folder}/task")]
        if not all(map(is_ending, threads)):
            return next((thread for thread in threads if sizes(thread)[0]), None)
    return folder


def is_ending(folder: str) -> bool:
    """Return whether a thread has ended, or SIGKILL is pending. A process has this state until its last thread has
    ended, which takes long on a busy machine.
    """
    fields = _read_stat(folder)
    return bool(int(fields[6]) & _PF_EXITING or int(fields[28]) & 1 << (signal.SIGKILL - 1)) or fields is _NO_STAT


def count_threads(folder: str) -> int:
    return int(_read_stat(folder)[17])


def threads_and_ticks(folder: str) -> tuple[int, int, int]:
    """Return the number of threads of a process, and the CPU time in clock ticks: of all of its threads, and of the
    children that it has waited for.
    """
    fields = _read_stat(folder)
    return int(fields[17]), int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])


def can_run(folder: str) -> bool:
    fields = _read_stat(folder)
    folders = [folder]
    if int(fields[17]) > 1:
        with contextlib.suppress(OSError):
            folders = [f"{folder}/task/{thread}" for thread in os.listdir(f"{folder}/task")]
    return any(map(is_ready, folders))


def is_ready(thread: str) -> bool:
    """Return whether a thread runs, or waits for a CPU. `thread` is the folder of the thread or of its process."""
    return _read_stat(thread)[0] == "R"


def is_blocked(thread: str) -> bool:
    """Return whether a thread waits in the kernel, and only SIGKILL could end this, as while a page is loaded."""
    return _read_stat(thread)[0] == "D"


def is_stopped(folder: str) -> bool:
    return _read_stat(folder)[0] == "T"


def cpu_ticks(folder: str) -> int:
    """Return the CPU time of a process and of the children that it has waited for, in clock ticks."""
    return sum(map(int, _read_stat(folder)[11:15]))


def _read_stat(folder: str) -> list[str]:
    with contextlib.suppress(OSError), open(f"{folder}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split() or _NO_STAT
    return _NO_STAT


def sizes(folder: str) -> tuple[int, int]:
    status = {}
    with contextlib.suppress(OSError), open(f"{folder}/status", encoding="utf-8", errors="replace") as file:
        status = {line[:6]: int(line.split()[1]) * 1024 for line in file if line.startswith(("VmRSS:", "VmPTE:"))}
    return status.get("VmRSS:", 0), status.get("VmPTE:", 0)


def count_mappings(folder: str) -> int:
    try:
        with open(f"{folder}/maps", "rb") as file:
            return file.read().count(b"\n")
    except OSError:
        return 0


def open_shared_mappings(folder: str) -> int:
    """Return a pipe with the lines of `maps` about memory that a process shares. Raise OSError if it is too small."""
    with open(f"{folder}/maps", "rb") as file:
        lines = b"".join(line for line in file if b"s " in line[20:60])
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        if lines and os.write(writer, lines) < len(lines):
            raise OSError("the program has too many files in memory that it shares")
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return reader


def proportional_bytes(folder: str) -> int:
    """Return the memory of a process. A page that n processes share counts as 1/n."""
    try:
        with open(f"{folder}/smaps_rollup", encoding="ascii") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(("Pss:", "SwapPss:")))
    except OSError:
        return sizes(folder)[0]


def kernel_bytes() -> int:
    return _machine_bytes("SUnreclaim:", "VmallocUsed:")


def used_bytes() -> tuple[int, int]:
    """Return how much memory of the machine is in use, counted in two ways.

    The first number is the memory that is not available. When a process ends, the kernel may keep up to 1 GiB of its
    memory for each CPU. This still counts as not available, so the number does not grow while other processes use that
    memory. The second number is the sum of the most common uses. It lacks the buffers of pipes and sockets.
    """
    by_use = _machine_bytes("AnonPages:", "Shmem:", "SUnreclaim:", "PageTables:", "VmallocUsed:")
    return _machine_bytes("MemTotal:") - _machine_bytes("MemAvailable:"), by_use


def _machine_bytes(*names: str) -> int:
    """Return the sum of these lines of /proc/meminfo. A system that imitates Linux may lack some."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(names))


def descriptor_bytes(folder: str, max_bytes: int) -> int:
    """Return an upper bound of the kernel memory for the descriptors of a process. Stop above `max_bytes`."""
    total = 0
    with contextlib.suppress(OSError):
        for number in os.listdir(f"{folder}/fd"):
            if total > max_bytes:
                break
            total += _DESCRIPTOR_BYTES
            with contextlib.suppress(OSError):  # it has just been closed
                target = os.readlink(f"{folder}/fd/{number}")
                if target == "anon_inode:[eventpoll]":
                    with open(f"{folder}/fdinfo/{number}", "rb") as file:
                        total += _WATCH_BYTES * sum(line.startswith(b"tfd:") for line in file)
                elif "/fdinfo/" in target:
                    total += _FDINFO_BYTES
    return total


def lock_holders() -> Iterator[int]:
    """Yield the process of each file lock of the machine. This takes long if there are many."""
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as file:
        for line in itertools.islice(file, _MAX_LOCKS):
            yield int(line.split()[-4])


def count_sockets(folder: str) -> int:
    with open(f"{folder}/net/sockstat", encoding="ascii") as file:
        return int(file.readline().split()[2])


def task_number(folder: str) -> int:
    """Return the number of a process or thread for system calls of this process; 0 if it has ended. If this process is
    in a pid namespace without a /proc of its own, /proc shows another one.
    """
    depth = len(_numbers("/proc/self"))
    numbers = _numbers(folder)
    return int(numbers[depth - 1]) if len(numbers) >= depth else 0


def _numbers(folder: str) -> list[str]:
    """Return the numbers of a task in each pid namespace, beginning with the namespace of this /proc."""
    with contextlib.suppress(OSError), open(f"{folder}/status", encoding="utf-8", errors="replace") as file:
        return next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
    return []


def count_socket_descriptors(folder: str) -> int:
    count = 0
    with contextlib.suppress(OSError):
        for number in os.listdir(f"{folder}/fd"):
            with contextlib.suppress(OSError):  # it has just been closed
                count += os.readlink(f"{folder}/fd/{number}").startswith("socket:")
    return count


def pid_namespace(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def processes_by_namespace() -> dict[str, list[int]]:
    processes: dict[str, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (namespace := pid_namespace(int(name))):
            processes.setdefault(namespace, []).append(int(name))
    return processes


def folders_in_jail(proc: int, init_pid: int) -> list[str]:
    """Return the folders of all processes in a pid namespace, except its first one. `proc` is its /proc, or -1 if it
    has none of its own.
    """
    if proc >= 0:
        seen = f"/proc/self/fd/{proc}"
        return [f"{seen}/{name}" for name in os.listdir(seen) if name.isdigit() and name != "1"]
    pids = processes_by_namespace().get(pid_namespace(init_pid), ())
    return [f"/proc/{pid}" for pid in pids if pid != init_pid]


def share_memory(thread: int, other: int) -> bool:
    """Return False if the kernel cannot tell."""
    try:
        return syscalls.syscall("kcmp", thread, other, _KCMP_VM, 0, 0) == 0
    except OSError:
        return False
