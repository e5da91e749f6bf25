"""The filter on system calls: a list of those that are allowed, with conditions on their arguments.

A call that is not listed fails with EPERM. Each group of calls says what needs it.
"""

from __future__ import annotations

import errno
import struct

from .syscalls import ARCHITECTURE, CLONE_NAMESPACES, CLONE_PARENT, CLONE_THREAD, CLONE_VM, NUMBERS

# Calls that every program makes.
_COMMON = (
    # Open, read and write files; the mounts and Landlock decide which.
    "read write readv writev pread64 pwrite64 open openat close lseek access faccessat faccessat2 stat fstat lstat "
    "newfstatat statx readlink readlinkat getdents64 getcwd dup dup2 dup3 ftruncate fsync fdatasync umask "
    # Wait for descriptors, and wake other threads through them.
    "poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 "
    # Memory of the process itself. `pkey` calls are V8's protection of its code.
    "mmap munmap mprotect mremap madvise brk mincore membarrier pkey_alloc pkey_mprotect pkey_free "
    # Threads, locks and signals within the process.
    "futex futex_waitv futex_wait futex_wake futex_requeue set_robust_list get_robust_list rseq set_tid_address gettid "
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigsuspend rt_sigpending sigaltstack restart_syscall "
    "pause arch_prctl exit exit_group sched_yield sched_getaffinity sched_setaffinity sched_getparam "
    "sched_getscheduler getcpu "
    # Who and where the process is. These only read.
    "getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid getpriority "
    "getrusage getrlimit sysinfo uname getrandom times "
    # Clocks and timers.
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time alarm getitimer setitimer timerfd_create "
    "timerfd_settime timerfd_gettime "
)
# What CPython programs need beyond that.
_PYTHON = (
    # Pipes and pairs of sockets: asyncio, subprocess and multiprocessing.
    "pipe pipe2 shutdown recvfrom recvmsg recvmmsg getsockname getpeername eventfd epoll_create signalfd signalfd4 "
    # Copies between descriptors, and folders.
    "sendfile splice tee preadv pwritev msync getdents close_range "
    # The functions of the modules signal, time, resource, os and sched.
    "timer_create timer_settime timer_gettime timer_getoverrun timer_delete setrlimit mlock munlock mlock2 mlockall "
    "munlockall sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_getattr capget get_mempolicy "
    "map_shadow_stack "
)
# What only a namespace confines.
_PYTHON_IN_NAMESPACES = (
    # Processes of their own: subprocess and multiprocessing. They stay in the same jail.
    "fork vfork execve execveat wait4 waitid setpgid setsid kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo "
    "pidfd_open pidfd_send_signal "
    # Files in their private /tmp. Landlock covers neither the rights, times and locks of files nor the current folder.
    "creat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat chmod fchmod "
    "fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat truncate fallocate chdir fchdir "
    "mknod mknodat statfs fstatfs flock sync_file_range copy_file_range getxattr lgetxattr fgetxattr listxattr "
    "llistxattr flistxattr "
    # Sockets of the family AF_UNIX that have a name.
    "connect accept accept4 bind listen sendto sendmsg sendmmsg "
)
# Landlock does not hide whether a path exists. Python looks up the paths of its modules; Deno has one file.
_PATHS = "access faccessat faccessat2 stat lstat readlink readlinkat"
# After ENOSYS, the C library falls back to older calls, whose arguments a filter can read.
_ABSENT = (
    "clone3 openat2 io_uring_setup io_uring_enter io_uring_register userfaultfd memfd_secret statmount listmount "
    "landlock_create_ruleset"
)

_AUDIT = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_KILL, _ALLOW, _ERRNO = 0x8000_0000, 0x7FFF_0000, 0x0005_0000
_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_AF_UNIX, _RLIMIT_CORE, _MAP_SHARED, _MAP_ANONYMOUS = 1, 4, 1, 0x20
_SOCK_STREAM, _SOCKET_TYPE = 1, 0xF
# Not: resize a pipe (kernel memory), take leases, watch folders, send signals on input.
_FCNTL = [1031, 1024, 1026, 10, 8, 15]
# Names of threads and memory, PDEATHSIG, timer slack, huge pages; and reading of dumpable, seccomp, capabilities and
# no_new_privs.
_PRCTL = [15, 16, 0x5356_4D41, 1, 2, 29, 30, 41, 42, 3, 21, 23, 38, 39]
_X32_BIT = 0x4000_0000  # marks the calls of a second, 32-bit interface of x86-64
_AT_EMPTY_PATH = 0x1000
_LINK_BYTES = 256  # of Rust's function current_exe
EXECUTABLE_FD = 60
"""The descriptor of the only program that a process without subprocesses may execute; it closes when it does."""

_Instruction = tuple[int, int, int, int]  # the code, the jumps if true and if false, the operand


def build_filter(policy: str, pid: int) -> bytes:
    """Return the instructions of a filter.

    Args:
        policy: "python" or "deno", with "-filters" appended for processes without namespaces.
        pid: The process itself, which may send signals to itself.
    """
    names = set(_COMMON.split())
    if policy == "python":
        names |= {*_PYTHON.split(), *_PYTHON_IN_NAMESPACES.split()}
        rules = _python_rules()
    elif policy == "python-filters":
        names |= set(_PYTHON.split())
        rules = {**_python_rules(), **_single_process_rules(pid), **_rules_without_namespaces()}
    else:
        rules = _deno_rules(pid)
    if policy == "deno-filters":
        names -= set(_PATHS.split())
        rules |= {**_rules_without_namespaces(), **_rules_without_paths()}
    instructions = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT[ARCHITECTURE]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    if ARCHITECTURE == "x86_64":
        instructions += [(_GREATER_EQUAL, 0, 1, _X32_BIT), _fail(errno.ENOSYS)]
    for name in sorted(names - set(rules)):
        rules[name] = [_allow()]
    for name in _ABSENT.split():
        rules[name] = [_fail(errno.ENOSYS)]
    for name, body in rules.items():
        if name in NUMBERS:
            instructions += [(_EQUAL, 0, len(body), NUMBERS[name]), *body]
    instructions.append(_fail(errno.EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def _python_rules() -> dict[str, list[_Instruction]]:
    # No other family than AF_UNIX: internet sockets, and those that configure or observe the kernel.
    return {
        **_shared_rules(),
        # Nor a child of the launcher: it would wait for the end of a namespace that waits for it to collect the child.
        "clone": [_argument(0), (_ANY_BIT, 0, 1, CLONE_NAMESPACES | CLONE_PARENT | 0x80), _fail(errno.EPERM), _allow()],
        # Without root, the first process of the namespace has the uid of the program. It must end when it is killed, so
        # its priority must stay. All processes of a uid (PRIO_USER) include it.
        **dict.fromkeys(("sched_setscheduler", "sched_setparam", "sched_setaffinity"), _never(0, [1])),
        "setpriority": [_argument(0), (_EQUAL, 0, 3, 0), _argument(1), (_EQUAL, 1, 0, 1), _allow(), _fail(errno.EPERM)],
        # The limit of core dumps is 1, which alone stops those that the host pipes to a program.
        "setrlimit": _never(0, [_RLIMIT_CORE]),
        "socket": _only(0, [_AF_UNIX], errno.EACCES),
        # No locks of open files (F_OFD_*): nothing tells which program holds them.
        "fcntl": _never(1, [*_FCNTL, 36, 37, 38]),
        # A larger buffer is kernel memory that no limit counts: SO_SNDBUF, SO_RCVBUF and their FORCE variants.
        # The others attach a filter, which is memory too: SO_ATTACH_FILTER, SO_ATTACH_BPF and those of port groups.
        "setsockopt": _never(2, [7, 8, 32, 33, 26, 50, 51, 52]),
        # SO_COOKIE counts the sockets of all programs.
        "getsockopt": _never(2, [57]),
        # No flags: RWF_NOWAIT tells whether other programs have read a file of the host.
        "preadv2": _only(5, [0], errno.EPERM),
        "pwritev2": _only(5, [0], errno.EPERM),
        # Memory that outlasts its mapping, and that no figure of a process shows. Files in /tmp can be shared instead.
        "mmap": [
            _argument(3),
            (_ANY_BIT, 0, 2, _MAP_SHARED),
            (_ANY_BIT, 0, 1, _MAP_ANONYMOUS),
            _fail(errno.EPERM),
            _allow(),
        ],
        # Only the query. Other values change how addresses are laid out.
        "personality": _only(0, [0xFFFF_FFFF], errno.EPERM),
        # One's own limits, which can only be lowered.
        "prlimit64": [
            _argument(0),
            (_EQUAL, 0, 7, 0),
            _argument(1),
            (_EQUAL, 0, 4, _RLIMIT_CORE),
            _argument(2),
            (_EQUAL, 0, 3, 0),
            _upper(2),
            (_EQUAL, 0, 1, 0),
            _allow(),
            _fail(errno.EPERM),
        ],
    }


def _deno_rules(pid: int) -> dict[str, list[_Instruction]]:
    return {
        **_shared_rules(),
        **_single_process_rules(pid),
        "recvfrom": [_allow()],
        # It reads its limits: no process but itself, and no new value.
        "prlimit64": [
            _argument(0),
            (_EQUAL, 0, 5, 0),
            _argument(2),
            (_EQUAL, 0, 3, 0),
            _upper(2),
            (_EQUAL, 0, 1, 0),
            _allow(),
            _fail(errno.EPERM),
        ],
        # The launcher starts Deno itself with this, after the filter.
        "execveat": _only(0, [EXECUTABLE_FD], errno.EPERM),
    }


def _single_process_rules(pid: int) -> dict[str, list[_Instruction]]:
    only_self = _only(0, [pid], errno.EPERM)
    return {
        # Threads, and nothing else: all of CLONE_VM and CLONE_THREAD must be set.
        "clone": [
            _argument(0),
            (_AND, 0, 0, CLONE_VM | CLONE_THREAD),
            (_EQUAL, 0, 3, CLONE_VM | CLONE_THREAD),
            _argument(0),
            (_ANY_BIT, 1, 0, CLONE_NAMESPACES | 0x80),
            _allow(),
            _fail(errno.EPERM),
        ],
        "socket": [_fail(errno.EACCES)],
        "kill": only_self,
        "tgkill": only_self,
        # Deno and asyncio wake threads through pairs of sockets, without an address.
        "sendto": [_argument(4), (_EQUAL, 0, 3, 0), _upper(4), (_EQUAL, 0, 1, 0), _allow(), _fail(errno.EPERM)],
    }


def _rules_without_namespaces() -> dict[str, list[_Instruction]]:
    refused = [_fail(errno.EPERM)]
    return {
        # Priorities and processors of other processes with the same uid.
        **dict.fromkeys(("sched_setscheduler", "sched_setparam", "sched_setaffinity", "setpriority"), refused),
        # A socket of another type than SOCK_STREAM can be connected anew, to a socket of the host.
        "socketpair": [
            _argument(0),
            (_EQUAL, 1, 0, _AF_UNIX),
            _fail(errno.EACCES),
            _argument(1),
            (_AND, 0, 0, _SOCKET_TYPE),
            (_EQUAL, 0, 1, _SOCK_STREAM),
            _allow(),
            _fail(errno.EACCES),
        ],
        # No lock either, which processes of the host would notice: F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW.
        "fcntl": _never(1, [*_FCNTL, 6, 7, 37, 38]),
        # Nor PDEATHSIG: the end of the launcher must end the process.
        "prctl": _only(0, [option for option in _PRCTL if option != 1], errno.EPERM),
    }


def _shared_rules() -> dict[str, list[_Instruction]]:
    return {
        "socketpair": _only(0, [_AF_UNIX], errno.EACCES),
        "fcntl": _never(1, _FCNTL),
        # FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ, TIOCGPGRP: the kind and the flags of a descriptor.
        "ioctl": _only(1, [0x541B, 0x5421, 0x5451, 0x5450, 0x5401, 0x5413, 0x540F], errno.ENOTTY),
        "prctl": _only(0, _PRCTL, errno.EPERM),
    }


def _rules_without_paths() -> dict[str, list[_Instruction]]:
    # Of descriptors they are allowed; the C library asks for the size of a file in this way. Node's `process` reads the
    # link to the executable, with a buffer of this size. The resolution of a path reads links with larger ones.
    return {
        "readlink": _only(2, [_LINK_BYTES], errno.EACCES),
        "readlinkat": _only(3, [_LINK_BYTES], errno.EACCES),
        "newfstatat": [_argument(3), (_ANY_BIT, 0, 1, _AT_EMPTY_PATH), _allow(), _fail(errno.EACCES)],
        "statx": [_argument(2), (_ANY_BIT, 0, 1, _AT_EMPTY_PATH), _allow(), _fail(errno.EACCES)],
    }


def _argument(index: int) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index)


def _upper(index: int) -> _Instruction:
    """Load the upper half of an argument, which only pointers and sizes have."""
    return (_LOAD, 0, 0, 20 + 8 * index)


def _allow() -> _Instruction:
    return (_RETURN, 0, 0, _ALLOW)


def _fail(number: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _only(index: int, values: list[int], error: int) -> list[_Instruction]:
    allowed = [instruction for value in values for instruction in ((_EQUAL, 0, 1, value), _allow())]
    return [_argument(index), *allowed, _fail(error)]


def _never(index: int, values: list[int]) -> list[_Instruction]:
    denied = [instruction for value in values for instruction in ((_EQUAL, 0, 1, value), _fail(errno.EPERM))]
    return [_argument(index), *denied, _allow()]
