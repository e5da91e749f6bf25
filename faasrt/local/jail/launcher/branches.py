"""The root folders of branches, and the processes of branches.

A branch is a process that a session has forked, in the same jail. Each branch has a tree of mounts with its own /tmp
and /dev/shm, and its root folder is the root of this tree. The tree is in no mount namespace and has no parent, so no
path leads out of the tree. No other process has a descriptor of the tree. All processes that a branch starts have their
root folder in its tree, even daemons, and even after the first process of the branch has ended. So the launcher finds
the program of a process by the tree in which the root folder of the process is.

A branch may change its root folder to another folder in its tree, so the launcher looks at the top of the tree. The
session has a tree, too: the tree of the mount namespace.

Branches can pass folders to each other, through sockets that were open at the fork, and enter these folders. A process
that is in the tree of a branch that has ended belongs to no program. It is killed when it is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from . import landlock, namespaces, process_memory, syscalls

_ROOT = namespaces.BRANCH_ROOT
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UP = "../" * 1000  # no path may have more than 4096 bytes
_MAX_STEPS = 10  # there are at most 4096 folders in /tmp
_PASSES, _STOP_AFTER_S = 5, 0.2
RETRY_S = 0.01
"""The time between two attempts to end the processes of a branch."""


class Root:
    """The tree of mounts of a branch, which ends with it."""

    def __init__(self, tree: int) -> None:
        self.tree = tree
        self.device = os.stat("tmp", dir_fd=tree).st_dev

    def open_tmp(self) -> int:
        return os.open("tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.tree)

    def close(self) -> None:
        os.close(self.tree)


class RootMaker:
    """Makes the root folders of branches, in a mount namespace for this purpose.

    Landlock looks for the rules of the folders above a file, so all files of branches have the rights to `folder`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._own_namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._folder = os.open(_ROOT, _PATH)
        # At the start, because the kernel refuses to mount a file that has been replaced since, as a package manager
        # replaces /etc/ld.so.cache. It copies such mounts, though.
        self._namespace = self._make_namespace()

    @property
    def rights(self) -> list[list[Any]]:
        return [[f"/proc/self/fd/{self._folder}", landlock.ALL]]

    def make(self, pid: int) -> tuple[Root, int]:
        """Return the root folder of a branch of a process, and the device of the /tmp of the session."""
        joined = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        own_proc = os.stat("/proc").st_dev
        try:
            with self._inside(joined):
                device = os.stat("/tmp").st_dev
                # Not one of other processes, too.
                proc = syscalls.open_tree("/proc") if os.stat("/proc").st_dev != own_proc else -1
        finally:
            os.close(joined)
        try:
            with self._inside(self._namespace):
                return Root(self._copy_tree(proc)), device
        finally:
            if proc >= 0:
                os.close(proc)

    def remove_files(self, namespace: int) -> None:
        """Remove the /tmp of a session that has ended, given its mount namespace."""
        with contextlib.suppress(OSError), self._inside(namespace):
            for path in ("/dev/shm", "/tmp", "/tmp"):
                with contextlib.suppress(OSError):
                    syscalls.unmount(path)

    def _copy_tree(self, proc: int) -> int:
        syscalls.mount(_ROOT, _ROOT, None, syscalls.MS_BIND | syscalls.MS_REC)  # over the other one
        try:
            namespaces.mount_tmp(self._config, _ROOT)
            if proc >= 0:
                syscalls.move_mount(proc, f"{_ROOT}/proc")
                # The rights to `folder` would allow to write to it.
                syscalls.make_read_only(f"{_ROOT}/proc")
            return syscalls.open_tree(_ROOT)
        finally:
            syscalls.unmount(_ROOT)

    def _make_namespace(self) -> int:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        with self._returning():
            syscalls.mount(_ROOT, _ROOT, None, syscalls.MS_BIND)
            for _, target in namespaces.mounts_of_branches(self._config):
                syscalls.mount(target, _ROOT + target, None, syscalls.MS_BIND | syscalls.MS_REC)
            return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def _inside(self, namespace: int) -> Iterator[None]:
        syscalls.join_namespace(namespace, syscalls.CLONE_NEWNS)
        with self._returning():
            yield

    @contextlib.contextmanager
    def _returning(self) -> Iterator[None]:
        try:
            yield
        finally:
            try:
                syscalls.join_namespace(self._own_namespace, syscalls.CLONE_NEWNS)
            except OSError as error:  # no handler may go on in another namespace, so this ends the launcher
                raise SystemError("cannot return to the mount namespace of the launcher") from error


def open_top(folder: str) -> int:
    """Open the top of the tree of mounts in which the root folder of a process is. `folder` is the folder of the
    process in some /proc.
    """
    fd = os.open(f"{folder}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_MAX_STEPS):
            own, parent = os.stat(fd), os.stat("..", dir_fd=fd)
            if (own.st_dev, own.st_ino) == (parent.st_dev, parent.st_ino):
                return fd
            above = os.open(_UP, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = above
        raise OSError(errno.ELOOP, f"{folder}/root has too many folders above it")
    except BaseException:
        os.close(fd)
        raise


def device_of(folder: str, known: Collection[int] = ()) -> int:
    """Return the device of the /tmp in the tree of a process; -1 if the process has ended. `known` are devices of other
    such folders.
    """
    own = -1
    try:
        own = os.stat(f"{folder}/root").st_dev
        if own in known:
            return own
        top = open_top(folder)
        try:
            return os.stat("tmp", dir_fd=top, follow_symlinks=False).st_dev
        except FileNotFoundError:
            return own  # the top is the root of an unmounted /tmp
        finally:
            os.close(top)
    except OSError as error:
        # A process can move the folders above its root folder meanwhile, but only folders in a /tmp.
        return own if error.errno == errno.ELOOP else -1


def stored_in(folder: str) -> os.statvfs_result:
    """Return how much the /tmp in the tree of a process stores."""
    top = open_top(folder)
    try:
        tmp = os.open("tmp", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            return os.statvfs(tmp)
        finally:
            os.close(tmp)
    finally:
        os.close(top)


class Remains:
    """The processes and files of a branch that has ended, or of a session whose branches go on.

    Args:
        proc: The /proc of its jail, or -1.
        living: Returns the devices of the /tmp of those programs in the jail that go on.
        init, init_pid: The first process of its jail: a pidfd, and its pid as /proc shows it.
        pid_namespace: The pid namespace of the launcher.
        remove_files: Called when its processes have ended.
    """

    def __init__(
        self,
        proc: int,
        living: Callable[[], set[int]],
        init: int,
        init_pid: int,
        pid_namespace: int,
        remove_files: Callable[[], None],
    ) -> None:
        self._proc, self._living, self._remove_files = os.dup(proc) if proc >= 0 else -1, living, remove_files
        self._init, self._init_pid, self._pid_namespace = os.dup(init), init_pid, pid_namespace
        self._stop_at = time.monotonic() + _STOP_AFTER_S

    def end(self) -> bool:
        """Kill the processes, and return whether none is left. A process that starts others all the time may outrun
        this. Then stop all processes of the jail for a moment.
        """
        if self._kill() and time.monotonic() > self._stop_at:
            stopped = {folder for folder in self._folders() if process_memory.is_stopped(folder)}
            with contextlib.suppress(OSError):  # too many processes, or a program has prevented it; try it again later
                _stop_all(self._init, self._pid_namespace)
            self._kill()
            for folder in self._folders():  # others may have started processes just before the stop
                if folder not in stopped:
                    send_signal(folder, signal.SIGCONT)
            self._stop_at = time.monotonic() + _STOP_AFTER_S
        if any(is_stray(folder, self._living()) for folder in self._folders()):
            return False
        self._remove_files()
        for fd in (self._proc, self._init):
            if fd >= 0:
                os.close(fd)
        return True

    def _kill(self) -> bool:
        """Return whether there were still processes that had not been killed."""
        return all(kill_strays(self._folders(), self._living()) for _ in range(_PASSES))

    def _folders(self) -> list[str]:
        with contextlib.suppress(OSError):
            return process_memory.folders_in_jail(self._proc, self._init_pid)
        return []  # all processes of the jail have ended


def is_stray(folder: str, living: set[int]) -> bool:
    """Return whether a process of a jail belongs to none of its programs, whose /tmp have the devices `living`."""
    return device_of(folder, living) not in {-1, *living}


def kill_strays(folders: list[str], living: set[int]) -> bool:
    """Kill the processes that belong to no program, and return whether there were any."""
    strays = [folder for folder in folders if is_stray(folder, living) and not process_memory.is_ending(folder)]
    for folder in strays:
        # Checked again, because by now another process may have the number of a process that has ended.
        send_signal(folder, signal.SIGKILL, lambda opened: is_stray(opened, living))
    return bool(strays)


def _stop_all(init: int, pid_namespace: int) -> None:
    """Stop all processes of a pid namespace at once, except its first one: none of them can start another meanwhile."""

    def stop() -> int:
        os.kill(-1, signal.SIGSTOP)
        return 0

    syscalls.run_in_pid_namespace(init, pid_namespace, stop)


def send_signal(folder: str, number: int, is_meant: Callable[[str], bool] = lambda _: True) -> None:
    """Send a signal to a process, if `is_meant` returns true for its folder, which is open then."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if is_meant(f"/proc/self/fd/{fd}"):
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)
