"""The template: the first process of a slot, which starts the process of one program after another. It forks, unless
the jail has an executable (see `executor`).

It is confined like a program, and talks to the launcher over a SOCK_SEQPACKET socket:

    -> "run", text, descriptors  start a program with these descriptors, from 0 upwards; the text is for its process
    -> anything else             run no other program
    <- "started", a pidfd        of the program's process
    <- "ended ", status, usage,  the program has ended: a wait status and a `struct rusage`, as the kernel writes them;
       tasks, " clean"           the number of tasks that it has created; and "clean" if it has left no trace
    <- another text              the template ends for this reason

It forks another program only if the last one has left no trace. Otherwise the launcher ends it, and the kernel ends all
processes of its pid namespace. If the program was a session with branches, its namespace ends after the last branch.
The template removes only the file that the runner has written. The following things outlive a process:

* Other processes. The program must not have started any: a new task takes the next number of the namespace.
* Files. The program must not have created, linked or renamed a file, not even for a moment: each file takes the next
  inode number, and the next position in its folder. The folders must not have changed either.
* Sockets that were sent to each other, with the descriptors, locks and names that they hold. They are listed in
  /proc/self/net/unix until the kernel collects them.
* Nothing else. The seccomp filter refuses message queues, semaphores, shared memory, keys, leases, watches of files and
  asynchronous I/O. Locks, timers, limits, priorities, masks and handlers belong to a process. Pipes are new each time.

A program in a jail with an executable leaves nothing: it is a single process, cannot write files, and cannot send
descriptors.

A program cannot change the template. The kernel drops signals from the namespace to its first process, if this process
has no handlers and blocks no signals. Landlock forbids tracing the template, and thus access to its files in /proc.
Programs have a lower priority.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` also makes the enums of numbers and handlers, which takes long
import array
import contextlib
import ctypes
import gc
import os
import signal
import socket
import struct
import traceback
from typing import TYPE_CHECKING, NoReturn

from . import landlock, syscalls

if TYPE_CHECKING:
    from .executor import FileExecutor

CONTROL_FD = 3
"""The socket to the launcher. The descriptors below are not used."""
# /proc/loadavg, which ends with the last number of a task in the reader's pid namespace; and the rules of
# `landlock.create_nested`.
_TASKS_FD, RULES_FD = 4, 5
_MAX_DESCRIPTORS = 8
_RUN, _MESSAGE_BYTES = b"run", 65_536
FAILED_STATUS = 125
"""The exit status of a process that could not be set up."""
STARTED, ENDED = b"started", b"ended "
_STATUS_BYTES, _USAGE_BYTES, _MAX_RSS_AT = 4, 144, 32  # the last one in `struct rusage`
_FOLDERS = ("/tmp", "/dev/shm")
_FOLDER_BYTES = 4096
_MAX_START_OF_PIDS, _MAX_UNUSED_PIDS, _MAX_UNUSED_INODES = 30_000, 64, 128
_MAX_TASKS = 2**22  # the kernel's maximum


class End:
    """The end of a program, read from a message that begins with ENDED. `tasks` counts its first one, too."""

    def __init__(self, message: bytes) -> None:
        self.status, max_rss_kb = struct.unpack_from(f"=i{_MAX_RSS_AT}xq", message, len(ENDED))
        self.max_rss_bytes = max_rss_kb * 1024
        tasks, _, rest = message[len(ENDED) + _STATUS_BYTES + _USAGE_BYTES :].partition(b" ")
        self.tasks, self.is_clean = int(tasks), rest == b"clean"


def exit_with_traceback() -> NoReturn:
    try:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(FAILED_STATUS)


def choose_start_of_pids() -> None:
    """Let the next task have a random number, if the kernel can do this. Otherwise the pids of programs would show how
    many there were before.
    """
    try:
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(300 + int.from_bytes(os.urandom(4), "big") % _MAX_START_OF_PIDS))
    except OSError:  # a container may only read it
        starter = syscalls.ChildStarter(1)
        for _ in range(os.urandom(1)[0] % _MAX_UNUSED_PIDS):
            os.waitpid(starter.start([("_exit", (0,))]), 0)


def count_tasks(pid: int) -> int:
    """Wait until a child has ended, and return the number of tasks in this pid namespace since its start.

    The child is still to be waited for. Until then it keeps its number. Otherwise an orphan could get this number, when
    the numbers have begun again, and it would seem that there was no other task.
    """
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) and ended.si_pid != pid:
        os.waitpid(ended.si_pid, 0)  # this was an orphan
    last = last_task()
    return last - pid + 1 if last >= pid else _MAX_TASKS


def last_task() -> int:
    """Return the number of the last task that was created in this pid namespace."""
    return int(os.pread(_TASKS_FD, 128, 0).rpartition(b" ")[2])


class TraceCheck:
    """Finds out whether a program has left traces in the file system or the network. The `file` of the runner is no
    trace.
    """

    def __init__(self, file: str, mounts: list[str]) -> None:
        self._file, self._folder = file, os.path.dirname(file)
        self._file_folder = "" if self._folder in _FOLDERS else self._folder
        if self._file_folder:
            self._folder = os.path.dirname(self._folder)
        self._probe = f"{self._folder}/.probe"
        self._other_folders = [path for path in _FOLDERS if path != self._folder]
        for path in mounts:  # programs can write to the folders that contain them
            while (path := os.path.dirname(path)) not in ("/tmp", "/"):
                self._other_folders.append(path)
        self._buffer = ctypes.create_string_buffer(_FOLDER_BYTES)
        self._folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        self._sockets_fd = os.open("/proc/self/net/unix", os.O_RDONLY)
        for _ in range(os.urandom(1)[0] % _MAX_UNUSED_INODES):
            self._create(self._probe)
            os.unlink(self._probe)
        self._entries = self._list_folder()
        self._change = self._change_since_last(self._list_folder())
        if self._file_folder:
            os.mkdir(self._file_folder)
        self._create(file)
        self._remove_file()
        self._change_with_file = self._change_since_last(self._list_folder())
        self._sockets = os.pread(self._sockets_fd, _FOLDER_BYTES, 0)
        self._properties = self._read_properties()

    def passes(self) -> bool:
        """Remove the file of the runner, and return whether the last program has left no other trace."""
        try:
            try:
                self._remove_file()
                change = self._change_with_file
            except FileNotFoundError:  # the process was ended before it got a program
                change = self._change
            return (
                self._change_since_last(self._list_folder()) == change
                and self._read_properties() == self._properties
                and os.pread(self._sockets_fd, _FOLDER_BYTES, 0) == self._sockets
            )
        except OSError:
            return False

    def _create(self, path: str) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0))

    def _remove_file(self) -> None:
        os.unlink(self._file)
        if self._file_folder:
            os.rmdir(self._file_folder)

    def _list_folder(self) -> list[tuple[bytes, int, int]]:
        self._create(self._probe)
        os.lseek(self._folder_fd, 0, os.SEEK_SET)
        size = syscalls.syscall("getdents64", self._folder_fd, self._buffer, _FOLDER_BYTES)
        os.unlink(self._probe)
        found, at, data = [], 0, self._buffer.raw
        while at < size:
            inode, position, length = struct.unpack_from("=QqH", data, at)
            found.append((data[at + 19 : at + length].rstrip(b"\0"), inode, position))
            at += length
        return found

    def _change_since_last(self, entries: list[tuple[bytes, int, int]]) -> list[tuple[bytes, int, int]]:
        last, self._entries = self._entries, entries
        if len(entries) != len(last):
            return []
        return [
            (name, inode - last_inode, position - last_position)
            for (name, inode, position), (_, last_inode, last_position) in zip(entries, last)
        ]

    def _read_properties(self) -> list[object]:
        """Return the properties of the folders that a program may change, but must not have changed."""
        own = os.stat(self._folder_fd)
        properties: list[object] = [own.st_mode, own.st_uid, own.st_gid, own.st_nlink, own.st_size, own.st_atime_ns]
        for path in self._other_folders:
            other = os.stat(path)
            properties += [other.st_mode, other.st_uid, other.st_gid, other.st_nlink, other.st_size]
            properties += [other.st_atime_ns, other.st_mtime_ns, other.st_ctime_ns]
        return properties


class Template:
    """Starts programs, in a process that is confined. It forks, or starts them with an executor: the programs of an
    executor cannot leave traces.
    """

    def __init__(self, starter: TraceCheck | FileExecutor, niceness: int) -> None:
        self._control, self._niceness = socket.socket(fileno=CONTROL_FD), niceness
        self._trace_check = starter if isinstance(starter, TraceCheck) else None
        self._executor = None if isinstance(starter, TraceCheck) else starter
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN):
                signal.signal(number, signal.SIG_DFL)
        self._status = ctypes.create_string_buffer(_STATUS_BYTES)
        self._usage = ctypes.create_string_buffer(_USAGE_BYTES)
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Start programs until a program has left a trace. Return only in the forked process of a program."""
        while True:
            text, descriptors = self._receive()
            try:
                pid = syscalls.fork() if self._executor is None else self._executor.start(text, descriptors)
            except OSError as error:
                self._control.send(f"a program cannot start: {error.strerror or error}".encode())
                os._exit(FAILED_STATUS)
            if pid == 0:
                self._enter_program(descriptors)
                return
            for fd in descriptors:
                os.close(fd)
            pidfd = os.pidfd_open(pid)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))
            self._control.sendmsg([STARTED], [rights])
            os.close(pidfd)
            tasks = 1 if self._trace_check is None else count_tasks(pid)
            while syscalls.wait(self._status, self._usage) != pid:
                pass  # this was an orphan
            clean = tasks == 1 and not self._is_retired() and (self._trace_check is None or self._trace_check.passes())
            self._control.sendmsg([ENDED, self._status, self._usage, b"%d clean" % tasks if clean else b"%d" % tasks])
            if not clean:
                # Wait for orphans until there are none. The launcher kills all of them, unless there are branches.
                with contextlib.suppress(OSError):
                    while True:
                        syscalls.wait(self._status, self._usage)
                os._exit(0)
            # The next program gets a copy of the memory of this process.
            ctypes.memset(self._status, 0, _STATUS_BYTES)
            ctypes.memset(self._usage, 0, _USAGE_BYTES)

    def _receive(self) -> tuple[bytes, list[int]]:
        rights = array.array("i")
        message, ancillary, _, _ = self._control.recvmsg(
            _MESSAGE_BYTES, socket.CMSG_SPACE(rights.itemsize * _MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
        )
        if not message.startswith(_RUN):
            os._exit(0)
        for _, _, data in ancillary:
            rights.frombytes(data)
        return message.removeprefix(_RUN), list(rights)

    def _is_retired(self) -> bool:
        """Return whether there is a message to run no other program, perhaps because the server reads the files."""
        try:
            self._control.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def _enter_program(self, descriptors: list[int]) -> None:
        try:
            # Also forbids the program to open the descriptors of the template.
            landlock.restrict(RULES_FD)
            for target, fd in enumerate(descriptors):
                os.dup2(fd, target, inheritable=target <= 2)
            syscalls.close_descriptors(len(descriptors))
            self._control.detach()
            os.setpgid(0, 0)
            os.setpriority(os.PRIO_PROCESS, 0, self._niceness)
            _signal.signal(signal.SIGINT, signal.default_int_handler)
        except BaseException:
            exit_with_traceback()
