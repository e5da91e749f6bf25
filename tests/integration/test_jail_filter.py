"""The seccomp filter: the numbers of system calls, its decisions on both architectures, and its effect in the jail."""

from __future__ import annotations

import errno
import json
import re
import struct
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import pytest
import pytest_asyncio

from faasrt import Outcome, RuntimeManager
from faasrt.local import LocalFaaS
from faasrt.local.jail.launcher import seccomp
from faasrt.local.jail.launcher.syscalls import ARCHITECTURE
from support.helpers import manager_for
from support.native_attacks import PRELUDE

TABLE: dict[str, dict[str, int]] = json.loads(files("faasrt.local.jail.launcher").joinpath("syscalls.json").read_text())
WITHOUT_NAMESPACES = ("python-users", "python-group", "python-alone")
POLICIES = ("python", *WITHOUT_NAMESPACES, "deno", "deno-files", "deno-filters", "wasm")
AUDIT = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
ALLOW, KILL, SUCCESS = "allow", "kill", "success"
PID = 2
# `uretprobe` and `uprobe`. Newer kernels do not filter them, and kill a process that has no such probe.
BREAKPOINTS = {335, 336}
HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}


@pytest.mark.parametrize("architecture", AUDIT)
def test_system_call_numbers_match_the_kernel_headers(architecture: str) -> None:
    """`syscalls.json` agrees with the kernel's headers, and has no number twice."""
    header = next((path for path in HEADERS[architecture] if path.exists()), None)
    if header is None:
        pytest.skip("the headers of the kernel are not installed")
    text = header.read_text()
    numbers = {name: int(value) for name, value in re.findall(r"#define (__NR\w+)\s+(\d+)\b", text)}
    aliases = dict(re.findall(r"#define (__NR_\w+)\s+(__NR\w+)", text))
    table = TABLE[architecture]
    known = {name: numbers.get(aliases.get(f"__NR_{name}", f"__NR_{name}")) for name in table}
    assert {name for name, number in known.items() if number not in (None, table[name])} == set()
    assert sum(number is not None for number in known.values()) > 0.9 * len(table)
    assert len(set(table.values())) == len(table)


def test_the_filter_lists_only_known_system_calls() -> None:
    """Each listed name is a system call on at least one architecture."""
    names = {name for policy in POLICIES for name in seccomp.rules_of(policy, PID)}
    assert names - set(TABLE["x86_64"]) - set(TABLE["aarch64"]) - {"_llseek"} == set()


# The calls that programs may make, by policy. A name with "?" is allowed with some arguments only. These lists are not
# taken from the filter, so that each further call must be added to them, too.
BY_ALL = """
    alarm arch_prctl brk clone? close dup dup2 dup3 epoll_create1 epoll_ctl
    epoll_pwait epoll_pwait2 epoll_wait eventfd2 exit exit_group fcntl? fdatasync fstat fsync ftruncate futex
    futex_requeue futex_wait futex_waitv futex_wake get_robust_list getcpu getcwd getdents64 getegid geteuid getgid
    getgroups getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage
    getsid gettid gettimeofday getuid ioctl? lseek madvise membarrier mincore mprotect mremap munmap nanosleep open?
    openat? pause pkey_alloc pkey_free pkey_mprotect poll ppoll prctl? pread64 prlimit64? pselect6 pwrite64 read readv
    restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait
    sched_getaffinity sched_getparam sched_getscheduler sched_yield select set_robust_list set_tid_address setitimer
    sigaltstack sysinfo time timerfd_create timerfd_gettime timerfd_settime times umask uname write writev
"""
CLOCKS = "clock_getres clock_gettime clock_nanosleep"
ON_PATHS = "access faccessat faccessat2 lstat newfstatat readlink readlinkat stat statx"
BY_PYTHON = f"""{BY_ALL} {ON_PATHS}
    capget close_range? epoll_create eventfd fadvise64? get_mempolicy getdents getpeername getsockname getsockopt?
    map_shadow_stack mlock mlock2 mlockall mmap? msync munlock munlockall personality? pipe pipe2 preadv preadv2?
    pwritev pwritev2? recvfrom recvmmsg recvmsg sched_get_priority_max sched_get_priority_min sched_getattr
    sched_rr_get_interval setrlimit? setsockopt? shutdown signalfd signalfd4 socketpair? tee timer_delete
    timer_getoverrun timer_gettime timer_settime
"""
BY_DENO = f"""{BY_ALL}
    clock_getres? clock_gettime? clock_nanosleep? execveat? kill? mmap recvfrom sendto? socketpair? tgkill?
"""
IN_FOLDER = """
    chdir copy_file_range creat fchdir fgetxattr flistxattr flock fstatfs getxattr lgetxattr link linkat listxattr
    llistxattr mkdir mkdirat mknod mknodat rename renameat renameat2 rmdir sched_setaffinity? sched_setparam?
    sched_setscheduler? sendto? setpriority? statfs symlink symlinkat sync_file_range timer_create truncate unlink
    unlinkat
"""
WITH_PROCESSES = """
    execve execveat fork kill pidfd_open pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo setgid setregid setresgid
    setresuid setreuid setuid tgkill tkill vfork wait4 waitid
"""
ALLOWED = {
    "python": f"""{BY_PYTHON}
        accept accept4 bind capset chdir chmod chown chroot clock_getres? clock_gettime? clock_nanosleep? connect
        copy_file_range creat execve execveat fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fgetxattr
        flistxattr flock fork fstatfs futimesat getxattr kill landlock_restrict_self? lchown lgetxattr link linkat
        listen listxattr llistxattr mkdir mkdirat mknod mknodat pidfd_open pidfd_send_signal rename renameat renameat2
        rmdir rt_sigqueueinfo rt_tgsigqueueinfo sched_setaffinity? sched_setparam? sched_setscheduler? sendmmsg sendmsg
        sendto setgid setpgid setpriority? setregid setresgid setresuid setreuid setuid socket? statfs symlink symlinkat
        sync_file_range tgkill timer_create? tkill truncate unlink unlinkat utime utimensat utimes vfork wait4 waitid
    """,
    "python-users": f"""{BY_PYTHON} {CLOCKS} {IN_FOLDER} {WITH_PROCESSES}
        chmod chown? fchmod fchmodat fchmodat2 fchown? fchownat? futimesat lchown? setpgid utime utimensat utimes
    """,
    "python-group": f"{BY_PYTHON} {CLOCKS} {IN_FOLDER} {WITH_PROCESSES}",
    "python-alone": f"{BY_PYTHON} {CLOCKS} {IN_FOLDER} kill? tgkill?",
    "deno": f"{BY_DENO} {ON_PATHS} sched_setaffinity?",
    "deno-files": f"""{BY_DENO} {ON_PATHS}
        chdir chmod fchmod fchmodat flock linkat mkdir mkdirat rename renameat rmdir sched_setaffinity? unlink unlinkat
        utimensat
    """,
    "deno-filters": f"{BY_DENO} newfstatat? readlink? readlinkat? statx?",
    "wasm": f"{BY_ALL} {CLOCKS} {ON_PATHS} kill? mkdir mkdirat mmap? rmdir setpriority? tgkill? unlink unlinkat",
}


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_allows_only_the_calls_that_its_programs_need(policy: str) -> None:
    allow = (0x06, 0, 0, 0x7FFF_0000)
    rules = {name: rule for name, rule in seccomp.rules_of(policy, PID).items() if allow in rule}
    allowed = [name if rule == [allow] else f"{name}?" for name, rule in rules.items()]
    assert sorted(allowed) == sorted(ALLOWED[policy].split())


class Filter:
    """Interprets the instructions of a filter as the kernel does."""

    def __init__(self, policy: str, architecture: str, *, may_truncate: bool = True, in_slot: bool = False) -> None:
        code = seccomp.build_filter(policy, PID, may_truncate=may_truncate, in_slot=in_slot)
        self.architecture = architecture
        self.numbers = TABLE[architecture]
        self.instructions = list(struct.iter_unpack("HBBI", code))

    def decide(self, call: str | int, *arguments: int, audit: int | None = None) -> str:
        """Return the decision about a call: "allow", "kill", "success" without effect, or the name of an error."""
        number = self.numbers[call] if isinstance(call, str) else call
        values = [*arguments, *[0] * (6 - len(arguments))]
        data = struct.pack("=IIQ6Q", number & 0xFFFF_FFFF, audit or AUDIT[self.architecture], 0, *values)
        position = accumulator = 0
        while True:
            code, jump_true, jump_false, operand = self.instructions[position]
            position += 1
            if code == 0x20:
                assert operand % 4 == 0
                accumulator = struct.unpack_from("=I", data, operand)[0]
            elif code == 0x54:
                accumulator &= operand
            elif code == 0x06:
                action = operand & 0xFFFF_0000
                error = {0: SUCCESS, **errno.errorcode}[operand & 0xFFFF]
                return {0x8000_0000: KILL, 0x7FFF_0000: ALLOW}.get(action, error)
            else:
                holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}[code]
                position += jump_true if holds else jump_false


@pytest.fixture(params=AUDIT)
def architecture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(seccomp, "ARCHITECTURE", request.param)
    monkeypatch.setattr(seccomp, "NUMBERS", TABLE[request.param])
    return str(request.param)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_filter_is_well_formed(architecture: str, policy: str) -> None:
    """As the kernel requires, each jump leads forward to an instruction, and the last instruction returns."""
    instructions = Filter(policy, architecture).instructions
    assert len(instructions) < 4096
    assert instructions[-1][0] == 0x06
    for position, (code, jump_true, jump_false, _) in enumerate(instructions):
        assert code in (0x20, 0x15, 0x35, 0x45, 0x06, 0x54)
        assert code == 0x06 or position + 1 + max(jump_true, jump_false) < len(instructions)


@pytest.mark.parametrize("policy", POLICIES)
def test_unlisted_calls_are_denied(architecture: str, policy: str) -> None:
    """Unlisted calls get EPERM, and calls listed as absent ENOSYS. Calls of another architecture kill the process."""
    one = Filter(policy, architecture)
    absent = set(seccomp.ABSENT_CALLS)
    listed = set(seccomp.rules_of(policy, PID)) - absent
    decisions = {name: one.decide(name) for name in one.numbers}
    assert {name for name, decision in decisions.items() if decision == "ENOSYS"} == absent & set(one.numbers)
    assert {name for name, decision in decisions.items() if decision == ALLOW} <= listed
    assert {decisions[name] for name in set(one.numbers) - listed - absent} == {"EPERM"}
    assert {one.decide(number) for number in range(467, 1024)} == {"EPERM"}
    assert {one.decide(name, audit=audit) for name in one.numbers for audit in (0x4000_0003, 0x4000_0028)} == {KILL}
    foreign = next(audit for name, audit in AUDIT.items() if name != architecture)
    assert one.decide("read", audit=foreign) == KILL
    wide = {one.decide(number) for number in (0x4000_0000, 0x4000_0001, 0x7FFF_FFFF, 0xFFFF_FFFF)}
    assert wide == ({"ENOSYS"} if architecture == "x86_64" else {"EPERM"})


CLOCK_CALLS = ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create")
CONDITIONS = [
    ("clone", (17,), ALLOW),
    ("clone", (0x3D0F00,), ALLOW),  # a thread
    ("clone", (0x4111,), ALLOW),  # CLONE_VFORK | CLONE_VM, of posix_spawn
    *[("clone", (1 << bit | 17,), "EPERM") for bit in (7, 15, 17, 25, 26, 27, 28, 29, 30)],
    ("clone", (1 << 32 | 0x1000_0011,), "EPERM"),
    ("setsid", (), SUCCESS),
    ("landlock_restrict_self", (5, 0), ALLOW),
    ("landlock_restrict_self", (-1 & 2**64 - 1, 8), "EPERM"),
    *[(call, (clock & 2**64 - 1,), ALLOW) for call in CLOCK_CALLS for clock in (0, 11, -17, -8, -18, -7)],
    *[(call, (clock & 2**64 - 1,), "EINVAL") for call in CLOCK_CALLS for clock in range(-16, -8)],
    ("setpgid", (7, 7), ALLOW),
    ("fadvise64", (3, 0, 0, 3), ALLOW),
    ("fadvise64", (3, 0, 0, 4), SUCCESS),
    ("socket", (1, 1), ALLOW),
    *[("socket", (family, 1), "EACCES") for family in (0, 2, 10, 16, 17, 38, 40, 1 << 32 | 2)],
    ("socketpair", (1, 1), ALLOW),
    ("socketpair", (2, 1), "EACCES"),
    ("mmap", (0, 4096, 3, 0x22), ALLOW),
    ("mmap", (0, 4096, 3, 0x01), ALLOW),
    ("mmap", (0, 4096, 3, 0x21), "EPERM"),
    ("mmap", (0, 4096, 3, 0x23), "EPERM"),
    ("prlimit64", (0, 7), ALLOW),
    ("prlimit64", (0, 7, 1 << 40), ALLOW),
    ("prlimit64", (0, 4), ALLOW),
    ("prlimit64", (0, 4, 1 << 40), "EPERM"),
    ("prlimit64", (0, 4, 8), "EPERM"),
    ("prlimit64", (1, 7), "EPERM"),
    ("setrlimit", (7,), ALLOW),
    ("setrlimit", (4,), "EPERM"),
    ("setpriority", (0, 0, 5), ALLOW),
    ("setpriority", (0, 7, 5), ALLOW),
    ("setpriority", (0, 1, 5), "EPERM"),
    ("setpriority", (1, 0, 5), "EPERM"),
    ("setpriority", (2, 0, 5), "EPERM"),
    ("sched_setaffinity", (0,), ALLOW),
    ("sched_setaffinity", (1,), "EPERM"),
    ("sched_setscheduler", (1,), "EPERM"),
    ("sched_setparam", (1,), "EPERM"),
    ("personality", (0xFFFF_FFFF,), ALLOW),
    ("personality", (0x4_0000,), "EPERM"),
    ("setsockopt", (3, 1, 2), ALLOW),
    *[("setsockopt", (3, 1, option), "EPERM") for option in (7, 8, 32, 33)],
    ("fcntl", (3, 3), ALLOW),
    *[("fcntl", (3, command), "EPERM") for command in (1031, 1024, 1026, 8, 10, 15)],
    ("ioctl", (0, 0x5401), ALLOW),
    *[("ioctl", (0, command), "ENOTTY") for command in (0x5412, 0x540E, 0x8901, 0x8902, 0x541C, 0x4B4D)],
    ("prctl", (15,), ALLOW),
    *[("prctl", (option,), "EPERM") for option in (4, 8, 22, 24, 28, 35, 36, 47, 0x5961_6D61)],
]


@pytest.mark.parametrize(("call", "arguments", "decision"), CONDITIONS)
def test_conditional_calls_depend_on_their_arguments(
    architecture: str, call: str, arguments: tuple[int, ...], decision: str
) -> None:
    """A call with conditions is allowed only with harmless arguments."""
    assert Filter("python", architecture).decide(call, *arguments) == decision


def test_a_process_in_a_slot_may_start_a_sibling(architecture: str) -> None:
    """Only there, because its template reaps it, and only with the flags of a fork."""
    slot, sibling = Filter("python", architecture, in_slot=True), 0x120_8000
    assert [slot.decide("clone", flags) for flags in (17, sibling)] == [ALLOW] * 2
    assert {slot.decide("clone", flags) for flags in (0x8000, 0x8011, sibling | 17, sibling | 0x100)} == {"EPERM"}
    assert {slot.decide("clone", 1 << bit | sibling) for bit in (7, 17, 25, 26, 27, 28, 29, 30)} == {"EPERM"}
    assert Filter("python", architecture).decide("clone", sibling) == "EPERM"
    for policy in ("python-users", "deno", "wasm"):
        assert Filter(policy, architecture, in_slot=True).decide("clone", sibling) == "EPERM"


def test_single_process_policies_allow_only_threads(architecture: str) -> None:
    """They deny new processes, other executables, sockets, and signals to other processes."""
    for policy in ("deno", "deno-files", "deno-filters", "python-alone", "wasm"):
        one = Filter(policy, architecture)
        assert one.decide("clone", 0x3D0F00) == ALLOW
        assert {one.decide("clone", flags) for flags in (17, 0x4111, 0x1_0000, 0x1000_0000 | 0x3D0F00)} == {"EPERM"}
        assert {one.decide("execveat", fd) for fd in (0, 899, 901)} == {"EPERM"}
        assert [one.decide("kill", pid) for pid in (PID, 1, 0, 2**32 - 1)] == [ALLOW, *["EPERM"] * 3]
        assert {one.decide("socket", family) for family in (1, 2, 16)} == {"EACCES"}
        own = ALLOW if policy == "python-alone" else "EPERM"
        assert [one.decide("prlimit64", *a) for a in ((0, 7), (0, 7, 8), (1, 7))] == [ALLOW, own, "EPERM"]
        unnamed = "EPERM" if policy == "wasm" else ALLOW
        assert [one.decide("sendto", 3, 8, 8, 0, a) for a in (0, 8, 1 << 40)] == [unnamed, "EPERM", "EPERM"]


@pytest.mark.parametrize("policy", POLICIES)
def test_opening_a_file_needs_an_access_mode(architecture: str, policy: str) -> None:
    """Access mode 3 is denied, because Landlock does not check it.

    Before its version 3, Landlock does not check truncation, so O_TRUNC is denied there.
    """
    one = Filter(policy, architecture)
    assert [one.decide("openat", 0, 0, flags) for flags in (0, 1, 2, 0o1001, 3, 0o1003)] == [
        *[ALLOW] * 4,
        *["EPERM"] * 2,
    ]
    if "open" in one.numbers:
        assert [one.decide("open", 0, flags) for flags in (2, 3)] == [ALLOW, "EPERM"]
    one = Filter(policy, architecture, may_truncate=False)
    assert [one.decide("openat", 0, 0, flags) for flags in (1, 0o1000)] == [ALLOW, "EPERM"]
    # Where programs have files on the disk, those that may be written may be truncated.
    has_files = policy in ("wasm", *WITHOUT_NAMESPACES)
    assert one.decide("openat", 0, 0, 0o1001) == (ALLOW if has_files else "EPERM")
    assert not has_files or one.decide("truncate") == "EPERM"


def test_a_thread_gets_no_descriptor_table_of_its_own(architecture: str) -> None:
    """The limit on descriptors applies to each table, so further tables would exceed it."""
    for policy in ("python", *WITHOUT_NAMESPACES):
        one = Filter(policy, architecture)
        assert [one.decide("close_range", 3, 9, flags) for flags in (0, 4, 2, 6)] == [ALLOW, ALLOW, "EPERM", "EPERM"]
    for policy in ("deno", "deno-files", "deno-filters", "python-alone"):
        assert Filter(policy, architecture).decide("clone", 0x3D0F00 & ~0x400) == "EPERM"


def test_without_namespaces_contact_with_other_processes_is_denied(architecture: str) -> None:
    """Datagram sockets and priorities of others are denied. So is PR_SET_PDEATHSIG: programs end with their launcher.
    Deno has no locks either.
    """
    for policy in ("deno-filters", *WITHOUT_NAMESPACES):
        one = Filter(policy, architecture)
        locks = {one.decide("fcntl", 3, command) for command in (6, 7)}
        assert locks == ({"EPERM"} if policy == "deno-filters" else {ALLOW})
        assert {one.decide("fcntl", 3, command) for command in (37, 38)} == {"EPERM"}
        assert [one.decide("socketpair", 1, kind) for kind in (1, 0x80801)] == [ALLOW] * 2
        assert {one.decide("socketpair", *a) for a in ((1, 2), (1, 5), (2, 1), (16, 3))} == {"EACCES"}
        assert {one.decide("prctl", 1), one.decide("setpriority", 0, 9, 5)} == {"EPERM"}
        names = ("sched_setaffinity", "sched_setscheduler", "sched_setparam")
        assert {one.decide(name, 9) for name in names} == {"EPERM"}


def test_the_metadata_of_files_of_the_same_user_cannot_be_changed(architecture: str) -> None:
    """Without a uid of its own, a program does not change them, and stays in its process group. With one, it cannot
    change the ctime of files of others by an owner that stays the same.
    """
    names = ("fchmod", "fchmodat", "fchown", "fchownat", "utimensat", "setpgid")
    for policy in ("python-group", "python-alone"):
        assert {Filter(policy, architecture).decide(name, 3, 4, 5) for name in names} == {SUCCESS}
    one, same = Filter("python-users", architecture), 0xFFFF_FFFF
    assert [one.decide("fchown", 3, *ids) for ids in ((same, same), (same, 5), (5, same))] == ["EPERM", ALLOW, ALLOW]
    assert one.decide("fchownat", 3, 0, same, same) == "EPERM"
    assert {Filter(policy, architecture).decide("fallocate") for policy in WITHOUT_NAMESPACES} == {"ENOTSUP"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def native() -> AsyncIterator[RuntimeManager]:
    async with LocalFaaS(["python"], workers=1, engines={"python": "native"}) as faas:
        await faas.wait_ready("python")
        async with manager_for(faas.url) as manager:
            yield manager


@pytest.mark.skipif(ARCHITECTURE != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.asyncio(loop_scope="session")
async def test_unlisted_calls_fail_in_the_jail(native: RuntimeManager) -> None:
    """In a native program, all numbers up to 520 that the filter does not list fail, and many x32 numbers, too."""
    one = Filter("python", "x86_64")
    listed = seccomp.rules_of("python", PID).keys() - set(seccomp.ABSENT_CALLS)
    allowed = {one.numbers[name] for name in listed if name in one.numbers}
    numbers = sorted({*range(521)} - allowed - BREAKPOINTS) + [
        2**30 + number for number in (*range(60), *range(500, 550))
    ]
    code = (
        f"{PRELUDE}\nfor number in {numbers}:\n    try: print(number, 'OK', call(number, 0, 0, 0, 0, 0, 0))\n"
        "    except OSError as error: print(number, errno.errorcode[error.errno])"
    )
    result = await native.run_code(code, "python")
    assert result.outcome is Outcome.OK, result
    absent = {one.numbers[name] for name in seccomp.ABSENT_CALLS}
    expected = [f"{n} {'ENOSYS' if n in absent or n >= 2**30 else 'EPERM'}" for n in numbers]
    assert result.stdout.splitlines() == expected
    assert len(numbers) > 300
    for number in BREAKPOINTS:
        result = await native.run_code(f"{PRELUDE}\ncall({number})", "python")
        assert result.outcome in (Outcome.CRASHED, Outcome.USER_ERROR), result
