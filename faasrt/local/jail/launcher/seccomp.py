"""The seccomp filter: the list of allowed system calls, with conditions on their arguments.

A call that is not in the list fails with EPERM. The comments say what each group of calls is needed for, and why a call
or an argument is refused. A filter is a program for the kernel's classic BPF machine.
"""

from __future__ import annotations

import bisect
import errno
import itertools
import struct

from .syscalls import ARCHITECTURE, CLONE_FILES, CLONE_NAMESPACES, CLONE_PARENT, CLONE_THREAD, CLONE_VM, NUMBERS

# Needed by all programs.
_COMMON = (
    # Open, read and write files. The mounts and Landlock decide which files.
    "read write readv writev pread64 pwrite64 open openat close lseek access faccessat faccessat2 stat fstat lstat "
    "newfstatat statx readlink readlinkat getdents64 getcwd dup dup2 dup3 ftruncate fsync fdatasync umask "
    # Wait for descriptors, and wake other threads through an eventfd.
    "poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 "
    # Manage the memory of the process. V8 protects its machine code with the `pkey` calls.
    "mmap munmap mprotect mremap madvise brk mincore membarrier pkey_alloc pkey_mprotect pkey_free "
    # Threads, locks and signals within the process.
    "futex futex_waitv futex_wait futex_wake futex_requeue set_robust_list get_robust_list rseq set_tid_address gettid "
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigsuspend rt_sigpending sigaltstack restart_syscall "
    "pause arch_prctl exit exit_group sched_yield sched_getaffinity sched_setaffinity sched_getparam "
    "sched_getscheduler getcpu "
    # Read facts about the process and the system. These calls change nothing.
    "getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid getpriority "
    "getrusage getrlimit sysinfo uname getrandom times "
    # Clocks and timers.
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time alarm getitimer setitimer timerfd_create "
    "timerfd_settime timerfd_gettime "
)
# Needed by Python programs as well.
_PYTHON = (
    # Pipes and pairs of sockets, for asyncio, subprocess and multiprocessing.
    "pipe pipe2 shutdown recvfrom recvmsg recvmmsg getsockname getpeername eventfd epoll_create signalfd signalfd4 "
    # Copy between descriptors, and list folders.
    "tee preadv pwritev msync getdents "
    # Functions of the modules signal, time, resource and os.
    "timer_create timer_settime timer_gettime timer_getoverrun timer_delete setrlimit mlock munlock mlock2 mlockall "
    "munlockall sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_getattr capget get_mempolicy "
    "map_shadow_stack "
)
# These are safe only at the level "namespaces", because namespaces limit what these calls can reach, or with the rules
# of `_rules_for_users`.
_PYTHON_PROCESSES = (
    # Start processes and send them signals, for subprocess and multiprocessing. The processes stay in the jail.
    "fork vfork execve execveat wait4 waitid setpgid kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo "
    "pidfd_open pidfd_send_signal "
    # Set the ids of a user and a group. A program has only one of each, which is its own.
    "setuid setgid setreuid setregid setresuid setresgid "
)
_PYTHON_FILES = (
    # Create and change files in the private /tmp. Without a mount namespace these calls would be unsafe, because
    # Landlock does not restrict the mode, times and locks of files, or the current folder.
    "creat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat chmod fchmod "
    "fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat truncate fallocate chdir fchdir "
    "mknod mknodat statfs fstatfs flock sync_file_range copy_file_range getxattr lgetxattr fgetxattr listxattr "
    "llistxattr flistxattr "
)
_PYTHON_BRANCHES = "chroot capset"  # Enter the root folder of a branch, and drop the capability for this.
_PYTHON_SOCKETS = "connect accept accept4 bind listen sendto sendmsg sendmmsg"  # AF_UNIX sockets with a name
# These change files of the same user anywhere, because Landlock does not restrict them.
_METADATA = "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat"
# Needed by Deno programs with a folder, in the private /tmp of the level "namespaces".
_DENO_FILES = (
    # Deno.mkdir, Deno.remove, Deno.rename and Deno.link. Only x86-64 has the calls without "at".
    "mkdir mkdirat rmdir unlink unlinkat rename renameat linkat "
    # Deno.chmod, and Deno.copyFile, which copies the mode; Deno.utime; FsFile.lock; Deno.chdir.
    "chmod fchmod fchmodat utimensat flock chdir "
)
# Needed by the workers of the engine `wasm`, in folders that Landlock allows.
_WASM_FILES = "mkdir mkdirat rmdir unlink unlinkat "
# Look up paths. Landlock does not hide whether a path exists, so Deno does not get these calls at the level "filters".
# It needs only one file, which is already open. Python needs these calls to find its modules.
_PATHS = "access faccessat faccessat2 stat lstat readlink readlinkat"
# These fail with ENOSYS, as on an older kernel, so that the C library falls back to older calls. A filter cannot check
# clone3 and openat2, because their arguments are in memory. Programs do not need the features of the other calls.
ABSENT_CALLS = (
    *("clone3", "openat2", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "memfd_secret"),
    *("statmount", "listmount", "landlock_create_ruleset"),
    # A socket keeps the whole page of each byte that `splice` moves to it, but the kernel only counts the byte.
    "splice",
)

_AUDIT = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
ARCHITECTURES = [*_AUDIT]
"""The architectures that have a filter."""
_KILL, _ALLOW, _ERRNO = 0x8000_0000, 0x7FFF_0000, 0x0005_0000
_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_AF_UNIX, _RLIMIT_CORE, _MAP_SHARED, _MAP_ANONYMOUS = 1, 4, 1, 0x20
_SOCK_STREAM, _SOCKET_TYPE = 1, 0xF
# Commands of fcntl that are refused: F_SETPIPE_SZ, which allocates kernel memory; F_SETLEASE; F_NOTIFY, which watches a
# folder; F_SETSIG and F_SETOWN (and F_SETOWN_EX), which send signals.
_FCNTL = [1031, 1024, 1026, 10, 8, 15]
# Options of prctl that are allowed: those that set the names of threads and memory, PDEATHSIG, timer slack and huge
# pages, and those that read the flags dumpable, seccomp, capabilities and no_new_privs.
_PRCTL = [15, 16, 0x5356_4D41, 1, 2, 29, 30, 41, 42, 3, 21, 23, 38, 39]
# A fork whose parent is that of the caller: CLONE_CHILD_SETTID and CLONE_CHILD_CLEARTID are flags of each fork. So a
# session forks a branch in a slot, whose template reaps it, as it reaps the orphans that programs can leave anyway.
_SIBLING = CLONE_PARENT | 0x120_0000
_X32_BIT = 0x4000_0000  # set in the call numbers of x32, a second interface of x86-64 with 32-bit pointers
_AT_EMPTY_PATH, _O_TRUNC = 0x1000, 0o1000
_LINK_BYTES = 256  # the buffer size that Rust's std::env::current_exe passes to readlink
EXECUTABLE_FD = 60
"""The descriptor of Deno's executable, the only one that a Deno process may execute. It is closed by the execution."""

ANY_PID = 0x7FFF_FFFF
"""Stands for the pid of a process in a filter that is built before the process starts."""

_Instruction = tuple[int, int, int, int]  # the code, the jumps if true and if false (in instructions), the operand


def build_filter(policy: str, pid: int, *, may_truncate: bool = True, in_slot: bool = False) -> bytes:
    instructions = [
        (_LOAD, 0, 0, 4),  # the architecture; each has its own call numbers, so a call of another one kills the process
        (_EQUAL, 1, 0, _AUDIT[ARCHITECTURE]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
    ]
    if ARCHITECTURE == "x86_64":
        instructions += [(_GREATER_EQUAL, 0, 1, _X32_BIT), _fail(errno.ENOSYS)]
    rules = rules_of(policy, pid, may_truncate=may_truncate, in_slot=in_slot)
    rule_of = {NUMBERS[name]: rule for name, rule in rules.items() if name in NUMBERS}
    unlisted = [_fail(errno.EPERM)]
    ranges = [(0, unlisted)]
    for number in range(max(rule_of) + 2):
        rule = rule_of.get(number, unlisted)
        if rule != ranges[-1][1]:
            ranges.append((number, rule))
    instructions += _search(ranges)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def set_pid(instructions: bytes, pid: int) -> bytes:
    """Put a pid into a filter that was built for ANY_PID."""
    return instructions.replace(struct.pack("I", ANY_PID), struct.pack("I", pid))


def _search(ranges: list[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    """Find the rule for the number of a call by a binary search. `ranges` has the first number of each range of calls
    with the same rule, in ascending order.

    It is fast, because the kernel runs each new filter for all numbers, to find the calls that are always allowed.
    """
    if len(ranges) == 1:
        return ranges[0][1]
    sizes = [*itertools.accumulate(len(rule) for _, rule in ranges)]
    middle = max(1, bisect.bisect(sizes, sizes[-1] // 2))  # a jump can skip at most 255 instructions
    lower, upper = _search(ranges[:middle]), _search(ranges[middle:])
    return [(_GREATER_EQUAL, len(lower), 0, ranges[middle][0]), *lower, *upper]


def rules_of(
    policy: str, pid: int, *, may_truncate: bool = True, in_slot: bool = False
) -> dict[str, list[_Instruction]]:
    """Return the instructions for each system call, by its name.

    Args:
        policy: "python", "deno" or "deno-files" at the level "namespaces". At other levels "deno-filters", and for
            Python "python-users" under root, "python-group" if Landlock restricts signals, or "python-alone". "wasm"
            for a worker of the engine `wasm`.
        pid: The process may send signals to itself.
        may_truncate: Whether O_TRUNC is allowed. Landlock checks it from version 3 on.
        in_slot: Whether the parent of the process is the template of a slot.
    """
    names = set(_COMMON.split())
    if policy == "python":
        names |= {*_PYTHON.split(), *_PYTHON_PROCESSES.split(), *_PYTHON_FILES.split(), *_PYTHON_SOCKETS.split()}
        names |= {*_PYTHON_BRANCHES.split()}
        rules = {**_python_rules(), **_rules_for_templates()}
        if in_slot:
            rules["clone"] = [_argument(0), (_EQUAL, 0, 1, _SIBLING), _allow(), *rules["clone"][1:]]
    elif policy in ("python-users", "python-group"):
        names |= {*_PYTHON.split(), *_PYTHON_PROCESSES.split(), *_PYTHON_FILES.split()}
        rules = {**_python_rules(), **_rules_for_users(pid, has_uid=policy == "python-users")}
    elif policy == "python-alone":
        names |= {*_PYTHON.split(), *_PYTHON_FILES.split()}
        rules = {**_python_rules(), **_rules_for_users(pid, has_uid=False), **_single_process_rules(pid)}
    elif policy == "wasm":
        names |= set(_WASM_FILES.split())
        rules = _wasm_rules(pid)
    else:
        rules = _deno_rules(pid)
    if policy == "deno-files":
        names |= set(_DENO_FILES.split())
    if policy == "deno-filters":
        names -= set(_PATHS.split())
        rules |= {**_rules_without_namespaces(), **_rules_without_paths()}
    if policy in ("python-users", "python-group", "python-alone") and not may_truncate:
        names -= {"truncate", "creat"}
        rules |= {"open": _open_rule_without_version(1), "openat": _open_rule_without_version(2)}
    elif policy != "wasm":
        rules |= {"open": _open_rule(1, may_truncate), "openat": _open_rule(2, may_truncate)}
    for name in sorted(names - set(rules)):
        rules[name] = [_allow()]
    for name in ABSENT_CALLS:
        rules[name] = [_fail(errno.ENOSYS)]
    return rules


def _python_rules() -> dict[str, list[_Instruction]]:
    return {
        **_shared_rules(),
        # No new namespaces (0x80 is CLONE_NEWTIME). No CLONE_PARENT, which would make the new process a child of the
        # launcher. The launcher would never reap it, and would then wait forever for the end of its pid namespace. No
        # thread with descriptors of its own, because /proc shows those of the process only.
        "clone": [
            _argument(0),
            (_ANY_BIT, 2, 0, CLONE_NAMESPACES | CLONE_PARENT | 0x80),
            (_AND, 0, 0, CLONE_THREAD | CLONE_FILES),
            (_EQUAL, 0, 1, CLONE_THREAD),
            _fail(errno.EPERM),
            _allow(),
        ],
        # Succeed without effect. The kernel divides CPU time between sessions (CONFIG_SCHED_AUTOGROUP), so a program
        # with 60 sessions would get 60 shares. Process groups have no such effect.
        "setsid": [_fail(0)],
        # Not for process 1, the init process of the pid namespace. If the server does not run as root, it has the same
        # uid as the program, and with a low priority it would not end promptly when it is killed. Therefore setpriority
        # only works for single processes (PRIO_PROCESS): PRIO_USER would include process 1.
        **dict.fromkeys(("sched_setscheduler", "sched_setparam", "sched_setaffinity"), _deny_if(0, [1])),
        "setpriority": [_argument(0), (_EQUAL, 0, 3, 0), _argument(1), (_EQUAL, 1, 0, 1), _allow(), _fail(errno.EPERM)],
        # Not RLIMIT_CORE. It is 1, the only value that also prevents core dumps that the host pipes to a program.
        "setrlimit": _deny_if(0, [_RLIMIT_CORE]),
        # Only AF_UNIX. Other families reach a network, or configure or observe the kernel.
        "socket": _allow_if(0, [_AF_UNIX], errno.EACCES),
        # No locks of open file descriptions (F_OFD_*), because /proc/locks does not show which program holds them.
        "fcntl": _deny_if(1, [*_FCNTL, 36, 37, 38]),
        # Not SO_SNDBUF, SO_RCVBUF and their FORCE variants: a larger buffer is kernel memory that no limit counts. Not
        # SO_ATTACH_FILTER, SO_ATTACH_BPF and their REUSEPORT variants: a filter is such memory, too.
        "setsockopt": _deny_if(2, [7, 8, 32, 33, 26, 50, 51, 52]),
        # Not SO_COOKIE, a number that shows how many sockets all programs have created.
        "getsockopt": _deny_if(2, [57]),
        # No other flag than CLOSE_RANGE_CLOEXEC (4): CLOSE_RANGE_UNSHARE gives a thread its own table of descriptors.
        "close_range": _allow_if(2, [0, 4], errno.EPERM),
        # No flags, because RWF_NOWAIT shows whether a file of the host is cached, that is, whether others have read it.
        "preadv2": _allow_if(5, [0], errno.EPERM),
        "pwritev2": _allow_if(5, [0], errno.EPERM),
        # As for files that do not support it, so that programs read and write instead. A socket would keep whole pages
        # of the file, of which the kernel only counts the bytes that were sent.
        "sendfile": [_fail(errno.EINVAL)],
        # Advice about files. POSIX_FADV_DONTNEED (4) succeeds without effect: it would drop files of the host from the
        # cache, which slows down other programs, and shows later whether they have read them.
        "fadvise64": [_argument(3), (_EQUAL, 0, 1, 4), _fail(0), _allow()],
        # No shared anonymous memory, neither from mmap nor from memfd_create: it can outlive its mapping, and is then
        # not counted for any process. Programs can share files in /tmp instead.
        "mmap": [
            _argument(3),
            (_ANY_BIT, 0, 2, _MAP_SHARED),
            (_ANY_BIT, 0, 1, _MAP_ANONYMOUS),
            _fail(errno.EPERM),
            _allow(),
        ],
        # Only the query. Other values would turn off protections such as the random layout of addresses.
        "personality": _allow_if(0, [0xFFFF_FFFF], errno.EPERM),
        # Only the caller's own limits, which a process can only lower. Read RLIMIT_CORE, but do not set it.
        "prlimit64": [
            _argument(0),
            (_EQUAL, 0, 7, 0),
            _argument(1),
            (_EQUAL, 0, 4, _RLIMIT_CORE),
            *_allow_without_new_limit(),
        ],
    }


def _rules_for_users(pid: int, *, has_uid: bool) -> dict[str, list[_Instruction]]:
    """Return rules for programs with a folder on the disk, and no namespaces. `has_uid` means that no other process has
    the uid of the program.
    """
    outside, alone = _rules_without_namespaces(), _single_process_rules(pid)
    rules = {
        # No addresses of sockets, which Landlock does not restrict.
        "socketpair": outside["socketpair"],
        "socket": alone["socket"],
        "sendto": alone["sendto"],
        "prctl": outside["prctl"],
        # It takes gigabytes of the disk before the watch sees it. The C library writes instead.
        "fallocate": [_fail(errno.EOPNOTSUPP)],
        # Only for the caller. Otherwise a program could slow down the launcher or others.
        **dict.fromkeys(("sched_setscheduler", "sched_setparam", "sched_setaffinity"), _allow_if(0, [0], errno.EPERM)),
        "setpriority": _own_priority_rule(),
    }
    if not has_uid:
        # Succeed without effect, because the files of the server have the same owner. The process group names the
        # processes of the program.
        return rules | {name: [_fail(0)] for name in (*_METADATA.split(), "setpgid")}
    # Not without a new id, which changes the ctime of any file.
    for name, index in (("chown", 1), ("lchown", 1), ("fchown", 1), ("fchownat", 2)):
        unchanged = [_argument(index), (_EQUAL, 0, 3, 0xFFFF_FFFF), _argument(index + 1), (_EQUAL, 0, 1, 0xFFFF_FFFF)]
        rules[name] = [*unchanged, _fail(errno.EPERM), _allow()]
    return rules


def _own_priority_rule() -> list[_Instruction]:
    return [_argument(0), (_EQUAL, 0, 3, 0), _argument(1), (_EQUAL, 0, 1, 0), _allow(), _fail(errno.EPERM)]


def _rules_for_templates() -> dict[str, list[_Instruction]]:
    return {
        # For the process that a template has forked. Programs have no rules to apply: they cannot create any.
        "landlock_restrict_self": _allow_if(1, [0], errno.EPERM),
        **_clock_rules(),
        "timer_create": _clock_rules()["clock_gettime"],
    }


def _clock_rules() -> dict[str, list[_Instruction]]:
    """Refuse the CPU time of process 1, the template, which shows how many programs it has started. The number of such
    a clock has the complement of the pid in its upper bits.
    """
    rule = [_argument(0), (_AND, 0, 0, 0xFFFF_FFF8), (_EQUAL, 0, 1, 0xFFFF_FFF0), _fail(errno.EINVAL), _allow()]
    return dict.fromkeys(("clock_gettime", "clock_getres", "clock_nanosleep"), rule)


def _deno_rules(pid: int) -> dict[str, list[_Instruction]]:
    return {
        **_shared_rules(),
        **_single_process_rules(pid),
        **_clock_rules(),
        "sched_setaffinity": _deny_if(0, [1]),  # not for the template, from which later programs would inherit it
        "recvfrom": [_allow()],
        "prlimit64": _read_limits_rule(),
        # The launcher executes Deno with this call after it has installed the filter.
        "execveat": _allow_if(0, [EXECUTABLE_FD], errno.EPERM),
    }


def _wasm_rules(pid: int) -> dict[str, list[_Instruction]]:
    """A worker of the engine `wasm` has all of its sockets and pipes already."""
    return {
        **_shared_rules(),
        **_single_process_rules(pid),
        **_rules_without_namespaces(),
        "socketpair": [_fail(errno.EPERM)],
        "sendto": [_fail(errno.EPERM)],
        "mmap": _python_rules()["mmap"],
        "prlimit64": _read_limits_rule(),
        # A thread lowers its own priority, so that younger programs go first.
        "setpriority": _own_priority_rule(),
        "open": _open_rule_without_version(1),
        "openat": _open_rule_without_version(2),
    }


def _single_process_rules(pid: int) -> dict[str, list[_Instruction]]:
    only_self = _allow_if(0, [pid], errno.EPERM)
    return {
        # Only threads, with one table of descriptors, because the limit of descriptors applies to each table. No new
        # namespaces (0x80 is CLONE_NEWTIME).
        "clone": [
            _argument(0),
            (_AND, 0, 0, CLONE_VM | CLONE_THREAD | CLONE_FILES),
            (_EQUAL, 0, 3, CLONE_VM | CLONE_THREAD | CLONE_FILES),
            _argument(0),
            (_ANY_BIT, 1, 0, CLONE_NAMESPACES | 0x80),
            _allow(),
            _fail(errno.EPERM),
        ],
        "socket": [_fail(errno.EACCES)],
        "kill": only_self,
        "tgkill": only_self,
        # Only without an address: Deno and asyncio use it to wake threads through pairs of sockets.
        "sendto": [_argument(4), (_EQUAL, 0, 3, 0), _upper_half(4), (_EQUAL, 0, 1, 0), _allow(), _fail(errno.EPERM)],
    }


def _rules_without_namespaces() -> dict[str, list[_Instruction]]:
    refused = [_fail(errno.EPERM)]
    return {
        # These could change the priorities and processors of other processes with the same uid.
        **dict.fromkeys(("sched_setscheduler", "sched_setparam", "sched_setaffinity", "setpriority"), refused),
        # Only SOCK_STREAM. A socket of another type can be connected again, to a socket of the host.
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
        # No locks (F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW), because processes of the host would notice them.
        "fcntl": _deny_if(1, [*_FCNTL, 6, 7, 37, 38]),
        # Not PDEATHSIG (1), because the process must be killed when the launcher ends.
        "prctl": _allow_if(0, [option for option in _PRCTL if option != 1], errno.EPERM),
    }


def _shared_rules() -> dict[str, list[_Instruction]]:
    return {
        "socketpair": _allow_if(0, [_AF_UNIX], errno.EACCES),
        "fcntl": _deny_if(1, _FCNTL),
        # FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ and TIOCGPGRP read the kind of a descriptor, and read
        # or set its flags.
        "ioctl": _allow_if(1, [0x541B, 0x5421, 0x5451, 0x5450, 0x5401, 0x5413, 0x540F], errno.ENOTTY),
        "prctl": _allow_if(0, _PRCTL, errno.EPERM),
    }


def _open_rule(flags: int, may_truncate: bool) -> list[_Instruction]:
    """Refuse the access mode 3, which needs no right of Landlock, and O_TRUNC if it is not allowed."""
    truncation = [] if may_truncate else [_argument(flags), (_ANY_BIT, 0, 1, _O_TRUNC), _fail(errno.EPERM)]
    return [_argument(flags), (_AND, 0, 0, 3), (_EQUAL, 0, 1, 3), _fail(errno.EPERM), *truncation, _allow()]


def _open_rule_without_version(flags: int) -> list[_Instruction]:
    """Refuse the access mode 3, and O_TRUNC for reading.

    Before its version 3, Landlock does not check O_TRUNC, but it checks the right to write of the other access modes.
    """
    return [
        _argument(flags),
        (_AND, 0, 0, 3 | _O_TRUNC),
        (_EQUAL, 0, 1, _O_TRUNC),
        _fail(errno.EPERM),
        (_AND, 0, 0, 3),
        (_EQUAL, 0, 1, 3),
        _fail(errno.EPERM),
        _allow(),
    ]


def _read_limits_rule() -> list[_Instruction]:
    return [
        _argument(0),
        (_EQUAL, 0, 5, 0),
        *_allow_without_new_limit(),
    ]


def _allow_without_new_limit() -> list[_Instruction]:
    """Allow prlimit64 if its pointer to a new limit is null. These are the last six instructions of a rule."""
    return [_argument(2), (_EQUAL, 0, 3, 0), _upper_half(2), (_EQUAL, 0, 1, 0), _allow(), _fail(errno.EPERM)]


def _rules_without_paths() -> dict[str, list[_Instruction]]:
    # newfstatat and statx are allowed for descriptors (AT_EMPTY_PATH), because the C library uses them to read the size
    # of a file. readlink is allowed only with the buffer size with which Node's `process` reads the link to the
    # executable. Functions that resolve a path use larger buffers.
    return {
        "readlink": _allow_if(2, [_LINK_BYTES], errno.EACCES),
        "readlinkat": _allow_if(3, [_LINK_BYTES], errno.EACCES),
        "newfstatat": [_argument(3), (_ANY_BIT, 0, 1, _AT_EMPTY_PATH), _allow(), _fail(errno.EACCES)],
        "statx": [_argument(2), (_ANY_BIT, 0, 1, _AT_EMPTY_PATH), _allow(), _fail(errno.EACCES)],
    }


def _argument(index: int) -> _Instruction:
    """Load an argument, or its lower half if it has 64 bits."""
    return (_LOAD, 0, 0, 16 + 8 * index)


def _upper_half(index: int) -> _Instruction:
    """It is 0 except for pointers and sizes."""
    return (_LOAD, 0, 0, 20 + 8 * index)


def _allow() -> _Instruction:
    return (_RETURN, 0, 0, _ALLOW)


def _fail(number: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _allow_if(index: int, values: list[int], error: int) -> list[_Instruction]:
    allowed = [instruction for value in values for instruction in ((_EQUAL, 0, 1, value), _allow())]
    return [_argument(index), *allowed, _fail(error)]


def _deny_if(index: int, values: list[int]) -> list[_Instruction]:
    denied = [instruction for value in values for instruction in ((_EQUAL, 0, 1, value), _fail(errno.EPERM))]
    return [_argument(index), *denied, _allow()]
