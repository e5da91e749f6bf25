"""Programs without namespaces that have a folder, and may start processes. Landlock and seccomp restrict each.

All processes of a program have something in common, by which they are found and killed. If the server runs as root, it
is a uid: no other process has it, and files of this uid belong to this program only. Otherwise all programs have the
uid of the server, so it is a process group, which the filter of system calls does not let them leave.

The kernel kills all of these processes in one step: a fork comes before it, or fails. So none is missed.

Each program has a folder `home` in a folder that belongs to root and that others cannot enter, so that the program
cannot open it to others. The folder is removed when no process of the program is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import landlock, syscalls

_MAX_INODES, _MAX_SIMPLE_FILES = 4096, 20
_MAX_LOOKS = 10  # at the files of a program, if some are moved meanwhile
_MAX_REMOVALS = 1000  # of shared files in one step, because all programs wait for the launcher
_PARENTS = ("/tmp", "/var/tmp", "/dev/shm")
_SHARED = "/dev/shm"
_MAIN_FILE = "main.py"  # of a program
# The capabilities that the level needs: chown, dac_override, kill, setgid and setuid. Docker gives them to root.
_CAPABILITIES = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
_MAPPED_BYTES = 4 * 2**20
_libc = ctypes.CDLL(None, use_errno=True)


class Owner:
    """The mark that the processes of a program have in common: a uid, or a process group if `uid` is 0. The server may
    read its folder after its end if it `was_opened`.
    """

    def __init__(self, home: str, uid: int) -> None:
        self.home, self.uid, self.group, self.was_opened = home, uid, 0, False
        self.remover: subprocess.Popen[bytes] | None = None

    def has_processes(self) -> bool:
        """Zombies count, too."""
        if not self.uid and not self.group:
            return False
        try:
            os.getpriority(os.PRIO_USER if self.uid else os.PRIO_PGRP, self.uid or self.group)
        except ProcessLookupError:
            return False
        return True

    def is_read(self) -> bool:
        """Return whether the server still has the folder open; see `lock_folder`."""
        if not self.was_opened:
            return False
        try:
            fd = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def remove_files(self) -> bool:
        """Remove all files of the program. Return False if that takes longer. None of its processes must exist."""
        if self.remover is not None:
            return self.remover.poll() is not None
        if self.uid and _remove_shared(self.uid, _MAX_REMOVALS) == _MAX_REMOVALS:
            return False
        try:
            try:
                _remove_folder(self.home, [_MAIN_FILE])  # most programs leave nothing else, and listing takes long
            except OSError:
                _remove_folder(self.home, os.listdir(self.home)[:_MAX_SIMPLE_FILES])
        except FileNotFoundError:
            pass
        except OSError:  # there are folders, or many files
            self.remover = subprocess.Popen(["/bin/rm", "-rf", "--", self.home], env={}, cwd="/")  # noqa: S603
            return False
        return True


class Users:
    """The programs of a launcher, by their place: folders, Landlock rules, and those whose processes are ending."""

    def __init__(self, first_uid: int, count: int, rights: list[list[Any]]) -> None:
        self._first_uid, self._rights = first_uid, rights
        # A uid that no program has. With it, this process can signal a program, but cannot be signalled.
        self.killer_uid = first_uid + count - 1 if first_uid else 0
        self._places: dict[int, tuple[str, int | None]] = {}  # a folder, and rules of Landlock
        self._dying: dict[Owner, Callable[[], None]] = {}
        self._has_orphans = False  # lately
        self.base = _make_base(is_shared=bool(first_uid))
        syscalls.adopt_orphans()

    def describe(self) -> dict[str, Any]:
        """Return what `end_all` needs."""
        return {"first": self._first_uid, "killer": self.killer_uid, "base": self.base}

    def open(self, place: int) -> Owner:
        """Create the folder of a program, and set the variables that name it, for the process that is forked next.
        Raise OSError if this fails.
        """
        uid = self._first_uid and self._first_uid + place
        if place not in self._places:
            parent = f"{self.base}/{os.urandom(8).hex()}"
            os.mkdir(parent, 0o710 if uid else 0o700)
            if uid:
                os.chown(parent, 0, uid)
            rights = [*self._rights, [parent, landlock.ALL], [_SHARED, landlock.SHARED_FILES]]
            self._places[place] = parent, landlock.create_ruleset(rights) if uid else None
        home = f"{self._places[place][0]}/home"
        os.mkdir(home, 0o700)
        if uid:
            os.chown(home, uid, uid)
        # Not in the fork, which would copy all of the memory that this uses.
        os.environ.update(HOME=home, TMPDIR=home, LOGNAME="sandbox")
        if "tempfile" in sys.modules:
            sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]
        return Owner(home, uid)

    def enter(self, owner: Owner, place: int) -> int | None:
        """Become the first process of a program. Return its rules of Landlock, which are still to be applied."""
        os.setsid()
        if owner.uid:
            os.setgroups([])
            os.setresgid(owner.uid, owner.uid, owner.uid)
            os.setresuid(owner.uid, owner.uid, owner.uid)
            syscalls.set_dumpable(True)  # so that the watch can read its memory
        syscalls.clear_capabilities()
        os.chdir(owner.home)
        # Rules for the outer folder can be used again. It protects nothing if it belongs to the user of the programs.
        return self._places[place][1] if owner.uid else landlock.create_ruleset([*self._rights, [".", landlock.ALL]])

    def kill(self, owner: Owner) -> None:
        if owner.uid:
            _kill_uid(owner.uid, self.killer_uid)
        elif owner.group:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # only zombies are left
                os.killpg(owner.group, signal.SIGKILL)

    def close(self, owner: Owner, known: Iterable[int], on_end: Callable[[], None]) -> None:
        """End a program whose first process has ended, and call `on_end` when nothing of it is left."""
        if owner.has_processes():
            self.kill(owner)
        self._dying[owner] = on_end
        self.finish(known)

    def finish(self, known: Iterable[int]) -> None:
        """Remove what programs have left whose processes have ended. `known` are children that others wait for."""
        if any(owner.has_processes() for owner in self._dying):
            self.reap(known)
        for owner, on_end in [*self._dying.items()]:
            if not owner.has_processes() and not owner.is_read() and owner.remove_files():
                del self._dying[owner]
                if os.path.lexists(owner.home):  # they could not be removed, so the place gets another folder
                    self._forget_folder(owner.home)
                on_end()

    def reap(self, known: Iterable[int]) -> None:
        """Wait for processes that programs have left and that have ended: they count for the limit of a program."""
        removers = (owner.remover.pid for owner in self._dying if owner.remover is not None)
        self._has_orphans = reap_orphans({*known, *removers})

    def _forget_folder(self, home: str) -> None:
        for place, (parent, ruleset) in [*self._places.items()]:
            if parent == os.path.dirname(home):
                del self._places[place]
                if ruleset is not None:
                    os.close(ruleset)

    @property
    def is_busy(self) -> bool:
        """Whether to call `reap` and `finish` again soon."""
        return bool(self._dying) or self._has_orphans

    def forget_others(self) -> None:
        """Forget other programs, in the process of a program."""
        self._places.clear()
        self._dying.clear()

    def aclose(self, owners: Iterable[Owner]) -> None:
        for owner in [*owners, *self._dying]:
            self.kill(owner)
        shutil.rmtree(self.base, ignore_errors=True)


def check_requirements() -> None:
    """Raise OSError if this process cannot give each program a uid."""
    if os.getuid():
        raise OSError("only root can run each program as a user of its own")
    missing = [name for name, number in _CAPABILITIES.items() if not syscalls.has_capability(number)]
    if missing:
        raise OSError(f"root needs {', '.join(missing)} to run each program as a user of its own")


def lock_folder(fd: int) -> None:
    """Keep a folder until all copies of a descriptor are closed, including those of other processes.

    If the program holds a lock of its own, the folder is not kept after its end, because the launcher must not wait.
    """
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def reap_orphans(known: set[int]) -> bool:
    """Wait for processes that programs have left, and that have ended. Then their children are those of this one.
    Return whether there were any.
    """
    was_any = False
    while True:
        pids = _children() - known
        if not any([os.waitpid(pid, os.WNOHANG) != (0, 0) for pid in pids]):  # noqa: C419  (wait for all of them)
            return was_any
        was_any = True


def find_processes(*, with_groups: bool) -> dict[int, list[int]]:
    """Return the pids of this /proc, by the uid of their process, or the negative number of their process group."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if with_groups:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        mark = -int(file.read().rpartition(b")")[2].split()[2])
                else:
                    with open(f"/proc/{name}/status", "rb") as file:
                        mark = int(file.read(2048).partition(b"\nUid:")[2].split(None, 1)[0])
                found.setdefault(mark, []).append(int(name))
    return found


@contextlib.contextmanager
def file_access_of(uid: int) -> Iterator[None]:
    """Let this thread read the files in /proc of the processes of a uid. Root otherwise needs CAP_SYS_PTRACE."""
    if not uid:
        yield
        return
    _libc.setfsgid(uid)
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)


def hides_files(folder: str, uid: int) -> bool:
    """Return whether a process hides its descriptors and mappings: it has executed a file that it may not read. Then
    the kernel shows them only with CAP_SYS_PTRACE.
    """
    # In this order: a process of which this is true already can be read, unless it has executed such a file. Again
    # afterwards, because meanwhile the pid may have become that of another process.
    if not _is_confined(folder, uid):
        return False
    try:
        with file_access_of(uid):
            os.close(os.open(f"{folder}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:
        return _is_confined(folder, uid)
    except OSError:
        pass
    return False


def _is_confined(folder: str, uid: int) -> bool:
    try:
        with open(f"{folder}/status", "rb") as file:
            status = file.read()
    except OSError:
        return False
    # A process that has ended has no memory. It cannot be read either, and has no files.
    return all(line in status for line in (b"\nNoNewPrivs:\t1\n", b"\nVmSize:", b"\nUid:\t%d\t" % uid if uid else b""))


def stored_bytes(home: str, uid: int, max_bytes: int) -> int:
    """Return the size of the files of a program, or more than `max_bytes` if there are too many."""
    size = 0
    for _ in range(_MAX_LOOKS):
        seen, is_complete = _look(home, uid, max_bytes)
        size = max(size, seen)
        if is_complete or size > max_bytes:
            break
    return size


def _look(home: str, uid: int, max_bytes: int) -> tuple[int, bool]:
    """Return the size of the files that are found, and whether none was moved or removed meanwhile."""
    total, count, waiting, is_complete = 0, 0, [home], True
    while waiting:
        path = waiting.pop()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            is_complete = False
            continue
        except OSError:  # its path is too long, or has too many symbolic links
            return max_bytes + 1, True
        try:
            folder = os.readlink(f"/proc/self/fd/{fd}")
            if path not in (home, folder):  # a part of it has become a symbolic link, to anywhere
                is_complete = False
                continue
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        is_complete = False
                        continue
                    total, count = total + found.st_blocks * 512, count + 1
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(f"{folder}/{entry.name}")
                    if total > max_bytes or count > _MAX_INODES:
                        return max_bytes + 1, True
        except OSError:
            return max_bytes + 1, True
        finally:
            os.close(fd)
    for _, size in _shared_files(uid):
        total, count = total + size, count + 1
        if total > max_bytes or count > _MAX_INODES:
            return max_bytes + 1, True
    return total, is_complete


def hidden_bytes(folders: list[str], uid: int) -> int:
    """Return the size of deleted files that processes hold by descriptors, or by mappings: these count 4 MiB each,
    because root cannot see their size without CAP_SYS_ADMIN. Semaphores do not count.
    """
    sizes: dict[tuple[int, int], int] = {}
    with file_access_of(uid):
        for folder in folders:
            with contextlib.suppress(OSError):
                for number in os.listdir(f"{folder}/fd"):
                    with contextlib.suppress(OSError):
                        found = os.stat(f"{folder}/fd/{number}")
                        if stat.S_ISREG(found.st_mode) and not found.st_nlink:
                            sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
            with contextlib.suppress(OSError, ValueError), open(f"{folder}/maps", errors="replace") as file:
                for line in file:
                    if line.endswith("(deleted)\n"):
                        fields = line.split(None, 5)
                        if not fields[5].startswith(f"{_SHARED}/sem."):
                            major, minor = (int(part, 16) for part in fields[3].split(":"))
                            sizes.setdefault((os.makedev(major, minor), int(fields[4])), _MAPPED_BYTES)
    return sum(sizes.values())


def count_sockets(folders: list[str], uid: int, free: int) -> int:
    """Return the number of open sockets of processes, or 0 if they do not have more than `free` descriptors."""
    with file_access_of(uid):
        descriptors = []
        for folder in folders:
            with contextlib.suppress(OSError):
                descriptors += [f"{folder}/fd/{number}" for number in os.listdir(f"{folder}/fd")]
        return sum(map(_is_socket, descriptors)) if len(descriptors) > free else 0


def _is_socket(path: str) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(path).startswith("socket:")
    return False


def free_bytes(home: str) -> int:
    total = 0
    for path in (os.path.dirname(os.path.dirname(home)), _SHARED):
        with contextlib.suppress(OSError):
            found = os.statvfs(path)
            total += found.f_bfree * found.f_frsize
    return total


def end_all(first: int, killer: int, base: str, groups: Iterable[int]) -> None:
    """End the programs of a launcher that was killed."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for uid in find_processes(with_groups=False) if first else ():
        if first <= uid < killer:
            _kill_uid(uid, killer)
            _remove_shared(uid)
    shutil.rmtree(base, ignore_errors=True)


def _make_base(*, is_shared: bool) -> str:
    for parent in _PARENTS:
        path = f"{parent}/faasrt-{os.urandom(8).hex()}"
        with contextlib.suppress(OSError):
            if is_shared and not os.stat(parent).st_mode & 1:
                continue
            os.mkdir(path, 0o700)
            os.chmod(path, 0o711 if is_shared else 0o700)  # whatever the umask is
            return path
    raise OSError(f"no folder for programs: none of {', '.join(_PARENTS)} can be written to")


def _kill_uid(uid: int, killer_uid: int) -> None:
    """With these ids, this process may send signals to all processes of `uid`, and to no others."""
    dies_with_parent = syscalls.dies_with_parent()
    os.setresuid(killer_uid, uid, 0)
    try:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, signal.SIGKILL)
    finally:
        os.setresuid(0, 0, 0)
        if dies_with_parent:  # the change of the uid has cancelled it
            syscalls.die_with_parent()


def _remove_folder(path: str, files: Iterable[str]) -> None:
    for name in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}/{name}")
    os.rmdir(path)


def _children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return {*map(int, file.read().split())}


def _shared_files(uid: int) -> Iterator[tuple[str, int]]:
    """Yield the path and the size of each file of a uid in /dev/shm."""
    if uid:
        with contextlib.suppress(OSError), os.scandir(_SHARED) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_uid == uid:
                        yield entry.path, found.st_blocks * 512


def _remove_shared(uid: int, most: int | None = None) -> int:
    """Remove the files of a uid in /dev/shm, or at most so many. Return how many were removed."""
    removed = 0
    for path, _ in itertools.islice(_shared_files(uid), most):
        with contextlib.suppress(OSError):
            os.unlink(path)
            removed += 1
    return removed
