"""The memory watch: a process beside the launcher that adds up the memory of each program.

Some files in /proc can only be read while their process does not change its memory. A program can prolong this for
seconds: one of its threads changes a lot of memory, and its other threads take the CPU from this thread. So the
launcher does not read these files, because all programs would have to wait. The main thread of this process does not
read them either. It reads upper bounds. Only if a program exceeds its limit by these bounds, a thread counts the memory
exactly. If the count takes too long, the program ends.

The messages are JSON over a SOCK_SEQPACKET socket:

    -> {"watch": id, "pid", "init", "bytes", "tables",   add up the memory of a program from now on; it may use this
        "device", "living"}                              much, and each of its processes this much in page tables; if
                                                         "device" is not null, it has the processes whose /tmp is
                                                         there, and programs in its jail have those in "living"; the
                                                         pids are those that /proc shows
    -> {"forget": id}                                    the program has ended
    -> {"users": facts}                                  the programs have no namespaces. With "uid", "group" and "home"
                                                         in "watch", their processes and files are found. This process
                                                         ends them if the launcher is killed.
    <- {"exceeded": id}                                  the program must end because of its memory
    <- {"strays": id}                                    a process in its jail seems to belong to no program
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from . import branches, process_memory, scheduling, syscalls, users

_INTERVAL_S = 0.05
# If the memory of a process, or of all of a program, cannot be counted in this time, the program prevents it. Only the
# longer time counts if the program uses less than twice its limit in any case: if other processes keep a forking
# process from its core, its memory cannot be read either. As for time limits, the wait of the program for a CPU does
# not count, because the processes of a busy machine must not decide how a program ends. But memory that may be twice
# the limit is not left uncounted for long on any machine.
_MAX_READING_S, _MAX_COUNTING_S, _MAX_WALL_S = 1.0, 5.0, 10.0
_MESSAGE_BYTES, _STACK_BYTES = 4096, 2**18
# Kernel memory that no resource limit counts, so it is counted here: the buffers of sockets, except for the first few
# of each program; and the descriptions of mappings.
_SOCKET_BYTES, _FREE_SOCKETS = 212_992, 64
_MAPPING_BYTES = 512
# Descriptors and mappings are counted only if the kernel's memory for the whole machine has grown by this much.
_FREE_KERNEL_BYTES = 32 * 2**20
_LOCK_BYTES = 65_536  # more than a lock takes, because many locks on a shared file slow down other programs
_FREE_LOCKS = 9  # of each process
_MAX_THREADS = 64
# Deleted files are searched for if the disk has lost this much more than files show. They are also searched for after
# this time, because others may have freed as much as the program has used.
_FREE_DISK_BYTES, _SEARCH_S = 16 * 2**20, 1.0


class _Program:
    """A program that is watched.

    Attributes:
        table_bytes: The page tables of each process that do not count.
        kernel_bytes: The least memory of the kernel itself so far.
        searched_at: When deleted files were last searched for.
        is_hidden: Whether the last check could not read the memory of one of its processes.
        is_counting: Whether an exact count is not complete.
        read: The number of processes whose memory has been read exactly.
    """

    def __init__(self, message: dict[str, Any]) -> None:
        self.number, self.pid, self.init = message["watch"], message["pid"], message["init"]
        self.max_bytes, self.table_bytes = message["bytes"], message["tables"]
        self.device: int | None = None
        self.living: set[int] = set()
        self.uid, self.group, self.home = message.get("uid", 0), message.get("group", 0), message.get("home", "")
        self.free_bytes = users.free_bytes(self.home) if self.home else 0
        self.searched_at = time.monotonic()
        self.namespace = "" if self.init is None else process_memory.pid_namespace(self.init)
        self.is_hidden = False
        self.kernel_bytes = sys.maxsize
        self.is_counting, self.read = False, 0
        self._times = scheduling.CpuTimes()
        self._checked_at = self._counting_s = self._reading_s = self._reads_since = 0.0
        self._read_before = 0
        self.update(message)

    def update(self, message: dict[str, Any]) -> None:
        self.device, self.living = message["device"], set(message["living"])

    def begin_count(self, processes: list[str]) -> None:
        self.is_counting = True
        self._checked_at = self._reads_since = time.monotonic()
        self._counting_s = self._reading_s = 0.0
        self._times.update(processes, 0.0)

    def prevents_count(self, processes: list[str], *, is_large: bool) -> bool:
        """Return whether the exact count takes so long that the program must be the reason."""
        if not self.is_counting:
            return False
        now = time.monotonic()
        elapsed_s, self._checked_at = now - self._checked_at, now
        counted_s = elapsed_s - self._times.update(processes, elapsed_s)
        if self.read != self._read_before:
            self._read_before, self._reading_s, self._reads_since = self.read, 0.0, now
        self._reading_s += counted_s
        self._counting_s += counted_s
        takes_long = self._reading_s > _MAX_READING_S or now - self._reads_since > _MAX_WALL_S
        return (is_large and takes_long) or self._counting_s > _MAX_COUNTING_S


class _Watch:
    def __init__(self, launcher: socket.socket, config: dict[str, Any]) -> None:
        self._launcher, self._config = launcher, config
        self._programs: dict[int, _Program] = {}
        self._users: dict[str, Any] = {}
        self._locks: Counter[int] = Counter()  # by process
        self._read_locks: Counter[int] = Counter()  # so far
        self._wants_locks = threading.Event()
        threading.Thread(target=self._count_locks, daemon=True).start()

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._launcher, select.POLLIN)
        check_at = 0.0
        while True:
            left_ms = max(0, 1000 * (check_at - time.monotonic())) if self._programs else None
            if poll.poll(left_ms):
                try:
                    data = self._launcher.recv(_MESSAGE_BYTES)
                except ConnectionResetError:  # the launcher was killed before it had read all messages
                    data = b""
                if not data:
                    if self._users:
                        users.end_all(**self._users, groups=[program.group for program in self._programs.values()])
                    return
                message = json.loads(data)
                if "users" in message:
                    self._users = message["users"]
                elif "watch" in message:
                    if message["watch"] in self._programs:
                        self._programs[message["watch"]].update(message)
                    else:
                        self._programs[message["watch"]] = _Program(message)
                else:
                    self._programs.pop(message["forget"], None)
            began = time.monotonic()
            if self._programs and began >= check_at:
                self._check_all()
                # If there are many processes, check less often, so that there is CPU time for others.
                check_at = began + max(_INTERVAL_S, 4 * (time.monotonic() - began))

    def _count_locks(self) -> None:
        while True:
            self._wants_locks.wait()
            self._wants_locks.clear()
            read = self._read_locks = Counter()
            for pid in process_memory.lock_holders():
                read[pid] += 1
            self._locks = read

    def _report(self, program: _Program, kind: str = "exceeded") -> None:
        with contextlib.suppress(OSError):  # the launcher has ended
            self._launcher.send(json.dumps({kind: program.number}).encode())

    def _check_all(self) -> None:
        has_namespaces = any(program.init for program in self._programs.values())
        processes: Mapping[Any, list[int]] = {}
        if has_namespaces:
            processes = process_memory.processes_by_namespace()
        elif self._users and self._programs:
            processes = users.find_processes(with_groups=not self._users["first"])
        if processes:
            self._wants_locks.set()
        kernel_bytes = process_memory.kernel_bytes()
        living = {device for program in self._programs.values() for device in program.living}
        device_of = functools.cache(lambda pid: branches.device_of(f"/proc/{pid}", living))
        for program in [*self._programs.values()]:
            mark = (program.uid or -program.group) if program.home else program.namespace
            pids = [pid for pid in processes.get(mark, ()) if pid != program.init] or [program.pid]
            if program.device is not None:
                if any(device_of(pid) not in {-1, *program.living} for pid in pids):
                    self._report(program, "strays")
                pids = [pid for pid in pids if device_of(pid) == program.device] or [program.pid]
            self._check(program, pids, kernel_bytes)

    def _check(self, program: _Program, pids: list[int], kernel_bytes: int) -> None:
        # Without namespaces, the kernel counts the threads of all programs of an ordinary user together.
        if program.init is None and not program.uid:
            threads = sum(process_memory.count_threads(f"/proc/{pid}") for pid in pids)
            if threads > _MAX_THREADS:
                self._report(program)
                return
        readable = [process_memory.readable_folder(f"/proc/{pid}") for pid in pids]
        folders = [folder for folder in readable if folder is not None]
        sizes = {folder: process_memory.sizes(folder) for folder in folders}
        other_bytes = self._other_bytes(program, folders) if program.init is not None else 0
        if program.home:
            other_bytes = self._disk_bytes(program, folders)
            if other_bytes > self._config["disk_bytes"] or any(
                users.hides_files(folder, program.uid) for folder in folders
            ):
                self._report(program)
                return
            sockets = users.count_sockets(folders, program.uid, _FREE_SOCKETS)
            other_bytes += max(0, sockets - _FREE_SOCKETS) * _SOCKET_BYTES
        # If threads of a process end all the time, /proc may hide the memory of the process. This also happens for a
        # moment when a process ends normally, so a program is ended only if two checks in a row see it.
        lost = any("/task/" in folder and not resident for folder, (resident, _) in sizes.items())
        hidden = lost or len(folders) < len(pids) or other_bytes is None
        if hidden and program.is_hidden:
            self._report(program)
            return
        program.is_hidden = hidden
        left = program.max_bytes - (other_bytes or 0)
        locks = (max(self._locks[pid], self._read_locks[pid]) for pid in pids)
        left -= _LOCK_BYTES * sum(count for count in locks if count > _FREE_LOCKS)
        left -= sum(max(0, tables - program.table_bytes) for _, tables in sizes.values())
        program.kernel_bytes = min(program.kernel_bytes, kernel_bytes)
        has_grown = kernel_bytes - program.kernel_bytes > _FREE_KERNEL_BYTES
        max_bytes = sum(resident for resident, _ in sizes.values())
        processes = [f"/proc/{pid}" for pid in pids]
        if left < 0 or program.prevents_count(processes, is_large=max_bytes > 2 * left):
            self._report(program)
        elif not program.is_counting and (has_grown or max_bytes > left):
            program.begin_count(processes)
            threading.Thread(target=self._count, args=(program, folders, left, has_grown), daemon=True).start()

    def _other_bytes(self, program: _Program, folders: list[str]) -> int | None:
        for folder in folders:
            with contextlib.suppress(OSError):
                total = 0
                if self._config["private_network"]:
                    sockets = process_memory.count_sockets(folder)
                    if sockets > _FREE_SOCKETS and program.device is not None:  # the sockets of all branches
                        sockets = sum(map(process_memory.count_socket_descriptors, folders))
                    total += max(0, sockets - _FREE_SOCKETS) * _SOCKET_BYTES
                if self._config["tmp_bytes"]:
                    stored = branches.stored_in(folder)
                    total += (stored.f_blocks - stored.f_bfree) * stored.f_frsize
                return total
        return 0 if all(map(process_memory.is_ending, folders)) else None

    def _disk_bytes(self, program: _Program, folders: list[str]) -> int:
        size = users.stored_bytes(program.home, program.uid, self._config["disk_bytes"])
        free = users.free_bytes(program.home)
        program.free_bytes = max(program.free_bytes, free + size)  # others may have freed some
        now = time.monotonic()
        if program.free_bytes - free > size + _FREE_DISK_BYTES or now - program.searched_at > _SEARCH_S:
            program.searched_at = now
            size += users.hidden_bytes(folders, program.uid)
        return size

    def _count(self, program: _Program, folders: list[str], left: int, has_grown: bool) -> None:
        """Count the memory that the processes share once. Count the kernel's memory if it has grown."""
        counted: list[int] = []
        for folder in folders:
            program.read += 1
            # A process that `vfork` has started has all memory of its parent until it executes another program.
            thread = process_memory.task_number(folder)
            if any(process_memory.share_memory(thread, other) for other in counted):
                continue
            counted.append(thread)
            if has_grown and users.hides_files(folder, program.uid):
                self._report(program)
                break
            with users.file_access_of(program.uid):
                left -= process_memory.proportional_bytes(folder)
                if has_grown and left >= 0:
                    left -= process_memory.count_mappings(folder) * _MAPPING_BYTES
                    left -= process_memory.descriptor_bytes(folder, left)
            if left < 0:
                self._report(program)
                break
        program.is_counting = False


def start(config: dict[str, Any]) -> tuple[socket.socket, int]:
    """Return a socket, and the pid of the watch."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return ours, pid
    try:
        if config["disk_bytes"]:
            os.setsid()  # it outlives a launcher that is killed, see above
        else:
            syscalls.die_with_parent()
        kept = os.dup2(theirs.detach(), 3)
        syscalls.close_descriptors(4)
        threading.stack_size(_STACK_BYTES)
        _Watch(socket.socket(fileno=kept), config).serve()
    finally:
        os._exit(0)
