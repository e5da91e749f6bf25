"""System calls that the standard library does not offer, through ctypes. A failed call raises OSError."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

ARCHITECTURE = platform.machine()
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "syscalls.json"), encoding="ascii") as _file:
    NUMBERS: dict[str, int] = json.load(_file).get(ARCHITECTURE, {})

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
CLONE_THREAD, CLONE_PARENT, CLONE_FILES, CLONE_VM = 0x1_0000, 0x8000, 0x400, 0x100
_CLONE_VFORK = 0x4000  # the parent waits until the child executes a file or ends
CLONE_NAMESPACES = 0x7E02_0000  # all of the namespaces above

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 32, 4096, 16384, 1 << 18
MS_RDONLY, MS_NODIRATIME = 1, 2048

_AT_FDCWD, _AT_RECURSIVE, _AT_EMPTY_PATH = -100, 0x8000, 0x1000
_MNT_DETACH = 2
_OPEN_TREE_CLONE, _CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0o2000000, 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 2, 4, 24, 38
_PR_SET_CHILD_SUBREAPER = 36
_CAPABILITY_HEADER = struct.pack("Ii", 0x2008_0522, 0)  # the version with two words for each set, and this process
_NO_CAPABILITIES = bytes(24)
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_STACK_BYTES = 16_384
_M_ARENA_MAX = -8
_ATTRIBUTES_BYTES = 128  # larger than pthread_attr_t on any platform

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_python_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the GIL during a call
_fork = getattr(_python_libc, "_Fork", _python_libc.fork)  # older libraries do not have the first one
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def syscall(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    number = NUMBERS.get(name)
    if number is None:
        raise OSError(38, f"{name}: no such system call on {ARCHITECTURE}")
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *values)
    return _checked(result, name)


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0, name: str = "prctl") -> None:
    _checked(_libc.prctl(option, value, 0, 0, 0), name)


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends. A change of the uid cancels this."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def dies_with_parent() -> bool:
    number = ctypes.c_int()
    _checked(_libc.prctl(_PR_GET_PDEATHSIG, ctypes.addressof(number), 0, 0, 0), "prctl")
    return bool(number.value)


def adopt_orphans() -> None:
    """Make this process the parent of the orphans among its descendants."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(dumpable: bool) -> None:
    """Let other processes of the same uid read this one's /proc files, or not. A change of the uid clears this."""
    prctl(_PR_SET_DUMPABLE, int(dumpable))


def forbid_new_privileges() -> None:
    """Ignore set-uid bits and file capabilities of programs that are executed from here."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities(*, kept: int = 0) -> None:
    """Drop the capabilities of this process and of programs that it executes, except its own in the mask `kept`."""
    limit_capabilities()
    own = ctypes.create_string_buffer(24)
    syscall("capget", _CAPABILITY_HEADER, own)
    kept &= struct.unpack_from("II", own)[1]  # the permitted ones
    syscall("capset", _CAPABILITY_HEADER, struct.pack("III", kept, kept, 0) + bytes(12))


def clear_capabilities() -> None:
    """Drop the capabilities of this process. A program that it executes gets the capabilities of its file, unless
    `forbid_new_privileges` was called.
    """
    syscall("capset", _CAPABILITY_HEADER, _NO_CAPABILITIES)


def has_capability(number: int) -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective & 1 << number)


def limit_capabilities() -> None:
    """Let executed programs get none. Call this before the uid changes, because it needs CAP_SETPCAP."""
    # Without CAP_SETPCAP the first call fails, but then this process cannot gain any capability either.
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1


def unshare(flags: int) -> None:
    """Move this process into new namespaces. A new pid namespace applies to its future children only."""
    syscall("unshare", flags)


def join_namespace(fd: int, kind: int) -> None:
    syscall("setns", fd, kind)


def run_in_pid_namespace(namespace: int, own: int, function: Callable[[], int]) -> int:
    """Run a function in a process in another pid namespace, and return its exit code, which the function returns.
    `own` is the pid namespace of this process. Raise OSError if a program has ended or stopped the process.
    """
    join_namespace(namespace, CLONE_NEWPID)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            join_namespace(own, CLONE_NEWPID)
    if pid == 0:
        try:
            os._exit(function())
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not os.WIFEXITED(status):
        raise InterruptedError("a program has interrupted a process of the launcher")
    return os.WEXITSTATUS(status)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    syscall("mount", encoded[0], encoded[1], encoded[2], flags, encoded[3])


def make_read_only(path: str, *, devices: bool = False) -> None:
    """Make a mount and those below it read-only, without set-uid bits and, by default, device files."""
    attributes = _ATTR_RDONLY | _ATTR_NOSUID | (0 if devices else _ATTR_NODEV)
    value = struct.pack("QQQQ", attributes, 0, 0, 0)
    syscall("mount_setattr", _AT_FDCWD, os.fsencode(path), _AT_RECURSIVE, value, len(value))


def open_tree(path: str) -> int:
    """Return a copy of a mount and of those below it. It is in no mount namespace, and has no parent. It ends when its
    descriptor is closed, and no process uses it.
    """
    return syscall("open_tree", _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | _CLOEXEC | _AT_RECURSIVE)


def move_mount(tree: int, path: str) -> None:
    """Mount a copy that `open_tree` has made."""
    syscall("move_mount", tree, b"", _AT_FDCWD, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH)


def unmount(path: str) -> None:
    """Remove the last mount at a path, and those below it, when nothing uses them any more."""
    syscall("umount2", os.fsencode(path), _MNT_DETACH)


def change_root(path: str) -> None:
    """Make a mount the root folder of this mount namespace, and detach the old one."""
    os.chdir(path)
    syscall("pivot_root", b".", b".")
    syscall("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def close_descriptors(first: int, *, kept: int | None = None) -> None:
    if kept is not None:
        syscall("close_range", first, kept - 1, 0)
        first = kept + 1
    syscall("close_range", first, 0xFFFF_FFFF, 0)


def fork() -> int:
    """Fork this process, which must have one thread only, without the hooks of `os.fork` and of C libraries.

    These renew locks, threads and random numbers, and the new process would copy all of the memory that they change.
    """
    return _checked(_fork(), "fork")


def wait(status: ctypes.Array[ctypes.c_char], usage: ctypes.Array[ctypes.c_char]) -> int:
    """Write the wait status and `struct rusage` of any child to two buffers, and return its pid."""
    return _checked(_libc.wait4(-1, status, 0, usage), "wait4")


class _Context(ctypes.Structure):
    """The beginning of ucontext_t, which is the same on all architectures, and memory for the rest."""

    _fields_ = [
        ("flags", ctypes.c_ulong),
        ("next", ctypes.c_void_p),
        ("stack", ctypes.c_void_p),
        ("stack_flags", ctypes.c_int),
        ("stack_bytes", ctypes.c_size_t),
        ("rest", ctypes.c_char * 8192),
    ]


_Stack = ctypes.c_uint64 * (_STACK_BYTES // 8)
_EMPTY = ctypes.create_string_buffer(1)


class _Init(ctypes.Structure):
    _fields_ = [
        ("ignore", _Context),
        ("wait", _Context),
        ("ignore_stack", _Stack),
        ("wait_stack", _Stack),
        ("first_stack", _Stack),
    ]


def start_init() -> tuple[int, ctypes.Structure]:
    """Start the first process (init) of a new pid namespace. It ignores SIGCHLD, so that the kernel reaps orphans, and
    waits. Return its pid and its memory, which the caller must keep until it has ended.

    It shares all memory of this process, because a fork would copy the page tables of an interpreter with its packages,
    which takes longer than the rest of a start.
    """
    memory = _Init()
    flags = CLONE_NEWPID | CLONE_VM | CLONE_FILES | signal.SIGCHLD
    top = ctypes.addressof(memory.first_stack) + _STACK_BYTES & ~15
    # The process runs functions of the C library only. It never ends by itself, because all signals that can be blocked
    # are blocked. Otherwise a signal handler of this process could run in it and change the memory of this process.
    # (This process cannot ignore SIGCHLD in its place, because it needs the exit codes of its own children.)
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        _make_context(memory.wait, memory.wait_stack, None, _libc.pause)
        _make_context(memory.ignore, memory.ignore_stack, memory.wait, _libc.signal, signal.SIGCHLD, signal.SIG_IGN)
        run = ctypes.cast(_libc.setcontext, ctypes.c_void_p)
        pid = _libc.clone(run, ctypes.c_void_p(top), ctypes.c_int(flags), ctypes.byref(memory.ignore))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _checked(pid, "clone"), memory


def _make_context(
    context: _Context, stack: ctypes.Array[ctypes.c_uint64], following: _Context | None, function: Any, *arguments: int
) -> None:
    _checked(_libc.getcontext(ctypes.byref(context)), "getcontext")
    context.next = None if following is None else ctypes.addressof(following)
    context.stack, context.stack_bytes = ctypes.addressof(stack), _STACK_BYTES
    values = map(ctypes.c_long, arguments)
    _libc.makecontext(ctypes.byref(context), ctypes.cast(function, ctypes.c_void_p), len(arguments), *values)


class _Step(ctypes.Structure):
    _fields_ = [("context", _Context), ("stack", _Stack)]


Call = tuple[str, Sequence[int]]
"""The name of a function of the C library, and its arguments."""


class ChildStarter:
    """Starts child processes that only call functions of the C library, and so can share the memory of this process
    until they execute a file.

    This takes a third of the time of a fork, which copies the page tables of the interpreter, and each page that it
    changes.
    """

    def __init__(self, max_calls: int) -> None:
        self._steps, self._first_stack = (_Step * max_calls)(), _Stack()

    def start(self, calls: Sequence[Call]) -> int:
        """Return the pid of a child when it has executed a file or has ended. The results of the calls are not checked.
        The last one must end the process. Raise ValueError if there are more than `max_calls`.
        """
        if len(calls) > len(self._steps):
            raise ValueError("too many calls")  # none may be left out, such as one that confines the process
        following = None
        for step, (name, arguments) in zip(reversed(self._steps[: len(calls)]), reversed(calls)):
            _make_context(step.context, step.stack, following, getattr(_libc, name), *arguments)
            following = step.context
        assert following is not None
        top = ctypes.addressof(self._first_stack) + _STACK_BYTES & ~15
        run, flags = ctypes.cast(_libc.setcontext, ctypes.c_void_p), CLONE_VM | _CLONE_VFORK | signal.SIGCHLD
        pid = _libc.clone(run, ctypes.c_void_p(top), ctypes.c_int(flags), ctypes.byref(following))
        return _checked(pid, "clone")


def system_call(name: str, *arguments: int) -> Call:
    return "syscall", (NUMBERS[name], *arguments)


def seccomp_call(program: FilterProgram) -> Call:
    return system_call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, ctypes.addressof(program))


def execute_call(fd: int, arguments: ctypes.Array[Any], variables: ctypes.Array[Any]) -> Call:
    path = ctypes.addressof(_EMPTY)
    return system_call("execveat", fd, path, *map(ctypes.addressof, (arguments, variables)), _AT_EMPTY_PATH)


def string_array(texts: Iterable[str]) -> ctypes.Array[Any]:
    encoded = [os.fsencode(text) for text in texts]
    return (ctypes.c_char_p * (len(encoded) + 1))(*encoded, None)


def execute(fd: int, argv: list[str], env: dict[str, str]) -> NoReturn:
    arguments, variables = string_array(argv), string_array(f"{k}={v}" for k, v in env.items())
    syscall("execveat", fd, b"", arguments, variables, _AT_EMPTY_PATH)
    raise AssertionError("execveat has returned")


def limit_threads(stack_bytes: int) -> None:
    """Limit the address space that a thread reserves: its stack, by default as large as the main one, and its heap."""
    if hasattr(_libc, "mallopt"):  # glibc reserves a heap of 64 MiB for each of the first threads
        _libc.mallopt(_M_ARENA_MAX, 2)
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    _libc.pthread_attr_init(attributes)
    _libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(stack_bytes))
    _libc.pthread_setattr_default_np(attributes)


class FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    def __init__(self, instructions: bytes) -> None:
        super().__init__(len(instructions) // 8, instructions)


def install_filter(instructions: bytes, *, all_threads: bool = False) -> None:
    """Install a seccomp filter for this thread, or for all threads of this process. The processes that it starts
    inherit the filter. The filter cannot be removed.
    """
    program = FilterProgram(instructions)
    flags = _SECCOMP_FILTER_FLAG_TSYNC if all_threads else 0
    if syscall("seccomp", _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program)):  # type: ignore[arg-type]
        raise OSError("seccomp: a thread has another filter")
