"""Cgroups (version 2) that bound the memory and the processes of programs, where the server may create them, and divide
CPU time: each program gets the same share, and all programs together the same as the server with its launchers.

The server creates a cgroup for each program, and the process of the program enters it before anything else:

    D                     delegated to the server
    ├── any name          the server and its launchers; cgroup v2 forbids processes in D itself
    └── faasrt-1f3a...    of one server, locked while it lives
        ├── 1             of one program
        └── 2

D is delegated if it has the extended attribute of systemd 251 or newer (`Delegate=`), or if it is the root of the
server's cgroup namespace, as in a container. The server must be in a child of D. If it is alone in D, it moves itself
into one; it never leaves a cgroup that is not delegated.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

_ROOT = "/sys/fs/cgroup"
_PREFIX = "faasrt-"
_CONTROLLERS, _OPTIONAL_CONTROLLER = "+memory +pids", "+cpu"
_MAX_PROCESSES = 256  # and threads; more than any program may have by its other limits
# Since Linux 5.19. Since 5.16, a descriptor of `cgroup.procs` keeps the rights of the process that opened it, which the
# process of a program needs, because it has none itself. The root of the machine does not have this file.
_NEEDED_FILE = "memory.peak"
_REMOVE_TIMEOUT_S, _REMOVE_PAUSE_S = 2.0, 0.01


class Group:
    """The cgroup of a program, created by `Cgroups.submit(group.create)`, and ended by `Cgroups.discard`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.fd = -1
        """A process that writes "0" to this descriptor enters the cgroup."""
        self.programs = 1
        """The number of programs in it: one, or a session with branches."""

    def create(self) -> None:
        """Create the cgroup, without a limit of its memory. This blocks, so call it in a thread."""
        os.mkdir(self.folder)
        _write(f"{self.folder}/memory.oom.group", "1")
        with contextlib.suppress(FileNotFoundError):  # a kernel without swap
            _write(f"{self.folder}/memory.swap.max", "0")
        _write(f"{self.folder}/pids.max", str(_MAX_PROCESSES))
        self.fd = os.open(f"{self.folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def limit_memory(self, max_bytes: int) -> None:
        with contextlib.suppress(OSError):  # the program has ended, and its cgroup is removed
            _write(f"{self.folder}/memory.max", str(max_bytes))

    def oom_reason(self) -> str:
        """Return "memory" if the kernel has ended the program for this limit, "system" for lack of memory elsewhere."""
        with contextlib.suppress(OSError):
            events = dict(line.split() for line in _read(f"{self.folder}/memory.events").splitlines())
            if events["oom_kill"] != "0":
                return "memory" if events["oom"] != "0" else "system"
        return ""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Cgroups:
    """The cgroups of one server's programs. A thread does all that may block, in order."""

    def __init__(self, parent: str) -> None:
        enable_controllers(parent)
        self._folder = f"{parent}/{_PREFIX}{os.urandom(6).hex()}"
        with _locked(parent):  # no other server takes the new cgroup for an abandoned one
            _remove_abandoned(parent)
            os.mkdir(self._folder)
            self._lock = _lock(self._folder)
        self._created = 0
        self._busy: list[Group] = []
        try:
            enable_controllers(self._folder)
            self._check()
        except BaseException:
            self._remove()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="faasrt-cgroups")

    def new_group(self) -> Group:
        self._created += 1
        return Group(f"{self._folder}/{self._created}")

    def submit(self, function: Callable[[], None]) -> Future[None]:
        return self._thread.submit(function)

    def discard(self, group: Group) -> None:
        """Kill the processes of a cgroup, and remove it, in the thread. One that is not empty yet is removed later."""
        self._busy.append(group)
        self._thread.submit(self._remove_discarded)

    def close(self) -> None:
        """Remove all cgroups. This blocks, so call it in a thread."""
        self._thread.shutdown()
        self._remove()

    def _remove_discarded(self) -> None:
        for group in list(self._busy):
            group.close()
            if _remove(group.folder, timeout_s=0):
                self._busy.remove(group)

    def _remove(self) -> None:
        _remove(self._folder, timeout_s=_REMOVE_TIMEOUT_S)
        os.close(self._lock)

    def _check(self) -> None:
        group = self.new_group()
        try:
            group.create()
            command = ["/bin/sh", "-c", "echo 0 >&$0", str(group.fd)]
            subprocess.run(command, pass_fds=[group.fd], stderr=subprocess.DEVNULL, check=True)  # noqa: S603
        finally:
            group.close()
        _remove(group.folder, timeout_s=_REMOVE_TIMEOUT_S)


@contextlib.asynccontextmanager
async def program_cgroups() -> AsyncIterator[Cgroups | None]:
    """Yield None where cgroups cannot be used. This may move the calling process into a child of its cgroup."""
    cgroups = await asyncio.to_thread(_open)
    try:
        yield cgroups
    finally:
        if cgroups is not None:
            await asyncio.to_thread(cgroups.close)


def _open() -> Cgroups | None:
    try:
        parent = _find_delegated()
        return None if parent is None else Cgroups(parent)
    except (OSError, subprocess.SubprocessError):
        return None


def _find_delegated() -> str | None:
    path = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/..")
    own = f"{_ROOT}{path}".rstrip("/")
    processes = _read(f"{own}/cgroup.procs").split()
    if str(os.getpid()) not in processes:
        return None  # it is a path in another namespace
    if _is_delegated(own):
        if len(processes) > 1:
            return None
        os.makedirs(f"{own}/server", exist_ok=True)
        _write(f"{own}/server/cgroup.procs", "0")
        return own
    parent = os.path.dirname(own)
    return parent if own != _ROOT and _is_delegated(parent) else None


def enable_controllers(folder: str) -> None:
    _write(f"{folder}/cgroup.subtree_control", _CONTROLLERS)
    # The controller may not be delegated, and the kernel refuses it if there are processes with real-time priority.
    with contextlib.suppress(OSError):
        _write(f"{folder}/cgroup.subtree_control", _OPTIONAL_CONTROLLER)


def _is_delegated(folder: str) -> bool:
    if not os.path.exists(f"{folder}/{_NEEDED_FILE}") or not os.access(f"{folder}/cgroup.subtree_control", os.W_OK):
        return False
    if folder == _ROOT:
        return True
    with contextlib.suppress(OSError):
        return os.getxattr(folder, "user.delegate") == b"1"
    return False


def _remove_abandoned(parent: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(_PREFIX):
            with contextlib.suppress(OSError), _locked(f"{parent}/{name}", fcntl.LOCK_NB):
                _remove(f"{parent}/{name}", timeout_s=_REMOVE_TIMEOUT_S)


def _remove(folder: str, *, timeout_s: float) -> bool:
    give_up_at = time.monotonic() + timeout_s
    while True:
        try:
            _write(f"{folder}/cgroup.kill", "1")
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    os.rmdir(entry.path)
            os.rmdir(folder)
        except FileNotFoundError:
            return True
        except OSError:  # a process has not ended yet
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(_REMOVE_PAUSE_S)
        else:
            return True


def _lock(folder: str, flags: int = 0) -> int:
    """Return a descriptor of a folder that keeps it locked while it is open."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _locked(folder: str, flags: int = 0) -> Iterator[None]:
    fd = _lock(folder, flags)
    try:
        yield
    finally:
        os.close(fd)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
