"""Programs in C cannot escape their jail or exceed its limits, and source code cannot attack the compiler."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome
from support.levels import NATIVE
from support.native_attacks import DENIED as IN_PYTHON
from support.served import until
from support.threats import SECRET, USERS, Host, host_of, only_with_attacks, sample

pytestmark = [
    NATIVE,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed (package gcc)"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[USERS[0], only_with_attacks(USERS[1])])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    async with host_of(request.param, "namespaces", "c") as one:
        yield one


PRELUDE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
static long tcp(int port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(0x7f000001)}};
  int one = socket(AF_INET, SOCK_STREAM, 0);
  return one < 0 ? one : connect(one, (struct sockaddr *)&to, sizeof to);
}
static long udp(int port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(0x7f000001)}};
  int one = socket(AF_INET, SOCK_DGRAM, 0);
  return one < 0 ? one : sendto(one, "x", 1, 0, (struct sockaddr *)&to, sizeof to);
}
static long local(const char *name, size_t size) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  memcpy(to.sun_path, name, size);
  int one = socket(AF_UNIX, SOCK_STREAM, 0);
  return one < 0 ? one : connect(one, (struct sockaddr *)&to, sizeof to.sun_family + size);
}
static long child(long (*attack)(void)) {
  int status, pid = fork();
  if (pid < 0) return pid;
  if (!pid) _exit(attack() < 0);
  waitpid(pid, &status, 0);
  return status ? -1 : 0;
}
static void *volatile kept;  // otherwise the compiler would leave out memory that is not used
static void fill(void *start, size_t size) { kept = memset(start, 1, size); }
static long ran(const char *command) { return system(command) == 0 ? 0 : -1; }
"""


def attempt(body: str) -> str:
    """Return a program that prints "reached" if an expression is at least 0, and "denied" if it is below."""
    return (
        f"{PRELUDE}\nstatic long attack(void) {{ return (long)({body}); }}\n"
        'int main(void) { long result = attack(); if (result < 0) printf("denied %s\\n", strerror(errno));\n'
        'else printf("reached %ld\\n", result); return 0; }'
    )


def _in_c(body: str) -> str | None:
    """Return an attack in Python that makes one system call as an expression in C; None for any other attack."""
    match = re.fullmatch(r"call\((.*)\)", body)
    if match is None:
        return None
    arguments = []
    for argument in match[1].split(", "):
        if re.fullmatch(r"[-x0-9A-Fa-fo |<]+", argument):
            arguments.append(f"{eval(argument)}L")
        elif size := re.fullmatch(r"bytes\((\d+)\)", argument):
            arguments.append(f"(char[{size[1]}]){{0}}")
        elif text := re.fullmatch(r"b'([\w/.]*)'", argument):
            arguments.append(f'"{text[1]}"')
        else:
            return None
    return f"syscall({', '.join(arguments)})"


DENIED = {
    **{name: body for name, in_python in IN_PYTHON.items() if (body := _in_c(in_python)) is not None},
    # Files of the host, of the server, and of the system.
    "read a file": 'open("CANARY", O_RDONLY)',
    "read a file by way of the root": 'open("/proc/self/root/../../CANARY", O_RDONLY)',
    "read a file in a child": """
        child(({
            long f(void) {
                return open("CANARY", O_RDONLY);
            }
            f;
        }))
    """,
    "read a file by a shell": 'ran("cat CANARY 2>/dev/null")',
    "read a file by a link": '(symlink("CANARY", "/tmp/l"), open("/tmp/l", O_RDONLY))',
    "link to a file": 'link("CANARY", "/tmp/l")',
    "stat a file": 'stat("CANARY", &(struct stat){0})',
    "the server's folder": 'open("FOLDER", O_RDONLY)',
    "the cache of programs": 'open("CACHE", O_RDONLY)',
    "the cache of programs, as a path": 'open("CACHE", O_PATH)',
    "/etc/shadow": 'open("/etc/shadow", O_RDONLY)',
    "/root": 'open("/root", O_RDONLY)',
    "/home": 'open("/home", O_RDONLY)',
    "/sys": 'open("/sys", O_RDONLY)',
    "write to /": 'open("/new", O_CREAT | O_WRONLY, 0666)',
    "write to /usr": 'open("/usr/lib/new", O_CREAT | O_WRONLY, 0666)',
    "write to the compiler": 'open("/usr/bin/gcc", O_WRONLY)',
    "memory of process 1": 'open("/proc/1/mem", O_RDONLY)',
    "/proc of the server": 'open("/proc/SERVER_PID/environ", O_RDONLY)',
    "/dev/mem": 'open("/dev/mem", O_RDONLY)',
    "a device": 'mknod("/tmp/d", S_IFCHR | 0666, 0x101)',
    # Sockets.
    "loopback": "tcp(TCP_PORT)",
    "a datagram": "udp(UDP_PORT)",
    "a socket file of the host": 'local("HOST_SOCKET", sizeof "HOST_SOCKET")',
    "an abstract socket of the host": 'local("\\0ABSTRACT", sizeof "\\0ABSTRACT" - 1)',
    "a raw socket": "socket(AF_INET, SOCK_RAW, 1)",
    "a packet socket": "socket(AF_PACKET, SOCK_RAW, 0)",
    "a netlink socket": "socket(AF_NETLINK, SOCK_RAW, 0)",
    # Other processes.
    "end the server": "kill(SERVER_PID, SIGKILL)",
    "end all processes": "kill(-1, SIGKILL)",
    "trace process 1": "ptrace(PTRACE_SEIZE, 1, 0, 0)",
    "trace a child": """
        ({
            int pid = fork();
            if (!pid) for (;;) pause();
            ptrace(PTRACE_SEIZE, pid, 0, 0);
        })
    """,
    "memory of process 1 by a call": """
        process_vm_readv(1, &(struct iovec){(char[8]){0}, 8}, 1, &(struct iovec){&errno, 8}, 1, 0)
    """,
    "limits of the server": "prlimit(SERVER_PID, RLIMIT_NOFILE, &(struct rlimit){1, 1}, 0)",
    # Rights.
    "root": "setuid(0)",
    "a group": "setgid(0)",
    "a set-uid program": 'ran("su -c id </dev/null >/dev/null 2>&1")',
    "a user namespace": "unshare(CLONE_NEWUSER)",
    "a network namespace": "unshare(CLONE_NEWNET)",
    "a child in a namespace": "syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)",
    "mount": 'mount("x", "/tmp", "tmpfs", 0, 0)',
    "chroot": 'chroot("/tmp")',
    "more memory": "setrlimit(RLIMIT_DATA, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY})",
    "more processes": "setrlimit(RLIMIT_NPROC, &(struct rlimit){1000, 1000})",
    "core dumps": "setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0})",
    "no filter": "prctl(PR_SET_SECCOMP, 0, 0, 0, 0)",
    "traced by others": "prctl(PR_SET_PTRACER, -1, 0, 0, 0)",
    "shared memory without a file": "mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)",
    "the runner's channel": 'write(3, "{}\\n", 3)',
    "another descriptor": """
        ({
            int found = -1;
            for (int fd = 3; fd < 1024; fd++) if (fcntl(fd, F_GETFD) >= 0) found = fd;
            found;
        })
    """,
}

# Ways to use memory. Each program is ended at the limit of 256 MiB.
MEMORY = {
    "one process": "for (;;) fill(malloc(1 << 20), 1 << 20);",
    "many processes": """
        for (int i = 0; i < 8 && fork(); i++);
        fill(malloc(100 << 20), 100 << 20);
        for (;;) pause();
    """,
    "a process without its first thread": """
        void *run(void *x) {
            for (;;) fill(malloc(1 << 20), 1 << 20);
        }
        pthread_t t;
        pthread_create(&t, 0, run, 0);
        pthread_exit(0);
    """,
    "children of a process without its first thread": """
        void *run(void *x) {
            for (int i = 0; i < 8 && fork(); i++);
            fill(malloc(100 << 20), 100 << 20);
            for (;;) pause();
        }
        pthread_t t;
        pthread_create(&t, 0, run, 0);
        pthread_exit(0);
    """,
    # A thread may have to wait for the end of others, because their number is limited.
    "a chain of threads": """
        void *run(void *x) {
            pthread_t t;
            fill(malloc(1 << 20), 1 << 20);
            while (pthread_create(&t, 0, run, 0)) sched_yield();
            pthread_detach(t);
            return 0;
        }
        pthread_t t;
        pthread_create(&t, 0, run, 0);
        pthread_exit(0);
    """,
    "the stack of a thread": """
        pthread_attr_t a;
        pthread_t t;
        pthread_attr_init(&a);
        pthread_attr_setstacksize(&a, 600 << 20);
        void *run(void *x) {
            fill(alloca(590 << 20), 590 << 20);
            for (;;) pause();
        }
        pthread_create(&t, &a, run, 0);
        for (;;) pause();
    """,
    "page tables": """
        for (;;) {
            volatile char *m = mmap(0, 1L << 38, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (m == MAP_FAILED) for (;;) pause();
            for (long i = 0; i < 1L << 38; i += 1 << 21) m[i];
        }
    """,
    "page tables of many processes": """
        for (int i = 0; i < 3 && fork(); i++);
        for (long i = 0; i < 30000; i++) {
            void *at = (void *)(0x10000000000L + (i << 30));
            volatile char *m = mmap(
                at, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0
            );
            if (m != MAP_FAILED) m[0];
        }
        for (;;) pause();
    """,
    "mappings of many processes": """
        for (int i = 0; i < 59 && fork(); i++);
        for (long i = 0; i < 65000; i++) {
            void *at = (void *)(0x10000000000L + i * 8192);
            mmap(at, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        }
        for (;;) pause();
    """,
    "mapped files": """
        for (int i = 0; i < 6; i++) {
            int f = open("/tmp/x", O_CREAT | O_RDWR, 0666);
            ftruncate(f, 60 << 20);
            char *m = mmap(0, 60 << 20, 3, MAP_PRIVATE, f, 0);
            fill(m, 60 << 20);
        }
        for (;;) pause();
    """,
}

# Programs that take as many of a resource as they can, count them in `n`, and the highest number.
BOUNDED = {
    "processes": (
        """
        for (;;) {
            int pid = fork();
            if (pid < 0) break;
            if (!pid) for (;;) pause();
            n++;
        }
        """,
        64,
    ),
    "threads": (
        """
        void *run(void *x) {
            for (;;) pause();
        }
        pthread_t t;
        while (!pthread_create(&t, 0, run, 0)) n++;
        """,
        64,
    ),
    "sessions, each with a share of the CPU time": (
        """
        n = 1;
        for (int i = 0; i < 20; i++) {
            int p[2];
            char c;
            pipe(p);
            int pid = fork();
            if (!pid) {
                setsid();
                write(p[1], &c, 1);
                for (;;) pause();
            }
            read(p[0], &c, 1);
            n += getsid(pid) == pid;
        }
        """,
        1,
    ),
    "descriptors": ("while (dup(1) >= 0) n++;", 256),
    "MiB of files": (
        """
        signal(SIGXFSZ, SIG_IGN);
        int f = open("/tmp/x", O_CREAT | O_WRONLY, 0666);
        static char b[1 << 20];
        while (write(f, b, sizeof b) == sizeof b) n++;
        """,
        64,
    ),
}

# A program that prevents the count of its memory. It has less than the limit, but seems to have more, because it shares
# 60 MiB with its children. One of its threads has locked its address space most of the time, to change the rights to a
# part of it, and starves because of the children.
LOCKED_MEMORY = """
static void *run(void *start) {
  sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
  for (;;) { mprotect(start, 1L << 30, PROT_NONE); mprotect(start, 1L << 30, PROT_READ); }
}
int main(void) {
  fill(malloc(60 << 20), 60 << 20);
  volatile char *start = mmap(0, 1L << 30, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (long i = 0; i < 1L << 30; i += 4096) start[i];
  for (int i = 0; i < 12; i++) if (!fork()) for (;;);
  pthread_t thread;
  pthread_create(&thread, 0, run, (void *)start);
  for (;;) pause();
}
"""

# While its child has the same memory, a program seems to have twice as much.
SHARED_MEMORY = """
int main(void) {
  fill(malloc(150 << 20), 150 << 20);
  if (!vfork()) { usleep(400000); _exit(0); }
  return 0;
}
"""

# Programs that end in unusual ways, and their outcomes.
ENDS = {
    "a fork bomb": ("for (;;) fork();", Outcome.TIMEOUT),
    "a child that stays": (
        """
        if (!fork()) for (;;) pause();
        puts("end");
        return 0;
        """,
        Outcome.OK,
    ),
    "a session of its own": (
        """
        if (!fork()) {
            setsid();
            if (!fork()) for (;;) pause();
        }
        """,
        Outcome.OK,
    ),
    "stopped": ("raise(SIGSTOP);", Outcome.TIMEOUT),
    "ignored signals": (
        """
        for (int i = 1; i < 65; i++) signal(i, SIG_IGN);
        for (;;);
        """,
        Outcome.TIMEOUT,
    ),
    "a 32-bit system call": ('__asm__ volatile("int $0x80" : : "a"(20));', Outcome.CRASHED),
    "an unknown instruction": ('__asm__ volatile("ud2");', Outcome.CRASHED),
    "a closed stdout": (
        """
        close(1);
        close(2);
        for (;;);
        """,
        Outcome.TIMEOUT,
    ),
    "a deep recursion": (
        """
        long deep(volatile long x) {
            volatile char pad[4096];
            pad[0] = x;
            return deep(x + 1) + pad[0];
        }
        return deep(0);
        """,
        Outcome.CRASHED,
    ),
}

# Source code that attacks the compiler. None of it compiles.
ON_THE_COMPILER = {
    "a file of the host": """
        #include "CANARY"
        int main(void) {}
    """,
    "a file of the host in a section": r"""
        __asm__(".incbin \"CANARY\"");
        int main(void) {}
    """,
    "the server's folder": """
        #include "FOLDER/x.h"
        int main(void) {}
    """,
    "the cache": r"""
        __asm__(".incbin \"CACHE\"");
        int main(void) {}
    """,
    "the environment of the server": """
        #include "/proc/SERVER_PID/environ"
        int main(void) {}
    """,
    "an endless file": """
        #include "/dev/urandom"
        int main(void) {}
    """,
    "itself": """
        #include __FILE__
        int main(void) {}
    """,
    "a huge array": """
        char x[1L << 40] = {1};
        int main(void) {}
    """,
    "a large file": """
        char x[1L << 30] = {1};
        int main(void) {}
    """,
    "many macros": "".join(
        ["#define A0 x x x x x x x x x x\n", *(f"#define A{n + 1} {f'A{n} ' * 10}\n" for n in range(9))]
    )
    + "int main(void) { A9 }",
    "deep nesting": f"int main(void) {{ return {'(' * 200_000}0; }}",
}


def program(body: str) -> str:
    return f"{PRELUDE}\nint main(void) {{ long n = 0;\n{body}\n}}"


@pytest.mark.parametrize("name", sample(DENIED))
async def test_the_jail_denies_each_attack(host: Host, name: str) -> None:
    """Each attack in the table fails, and nothing is sent to the host."""
    result = await host.run(attempt(DENIED[name]))
    assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), result
    assert await host.sink.all_received() == []


async def test_the_attacked_cache_exists(host: Host) -> None:
    """The server has compiled programs into the folder that some attacks try to reach."""
    assert (await host.run(program('printf("x");'))).stdout == "x"
    assert list(Path(host.words["CACHE"]).rglob("*"))


async def test_an_attack_succeeds_outside_of_the_jail(host: Host, tmp_path: Path) -> None:
    """This shows that the test of the table can fail."""
    (tmp_path / "main.c").write_text(attempt(DENIED["read a file"]).replace("CANARY", host.words["CANARY"]))
    command = ["gcc", "-w", "-o", str(tmp_path / "main"), str(tmp_path / "main.c")]
    await asyncio.to_thread(subprocess.run, command, check=True)
    process = await asyncio.to_thread(subprocess.run, [str(tmp_path / "main")], capture_output=True, text=True)
    assert process.stdout.startswith("reached")


@pytest.mark.parametrize("name", sample(MEMORY))
async def test_all_memory_counts_against_the_limit(host: Host, name: str) -> None:
    result = await host.run_with_neighbour(program(MEMORY[name]))
    assert result.outcome is Outcome.MEMORY_LIMIT, result


async def test_a_program_cannot_prevent_the_count_of_its_memory(host: Host) -> None:
    """The launcher does not wait for it, so other programs start, run and end."""
    hostile = asyncio.create_task(host.run(f"{PRELUDE}{LOCKED_MEMORY}", 2_000))
    for _ in range(5):
        assert (await host.run(program('puts("well");'))).stdout == "well\n"
    # At its time limit only if the thread has not got any CPU time.
    assert (await hostile).outcome in (Outcome.MEMORY_LIMIT, Outcome.TIMEOUT)


async def test_memory_that_processes_share_counts_once(host: Host) -> None:
    result = await host.run(f"{PRELUDE}{SHARED_MEMORY}")
    assert result.outcome is Outcome.OK, result


@pytest.mark.parametrize("name", sample(BOUNDED, 2))
async def test_kernel_resources_are_limited(host: Host, name: str) -> None:
    """A program gets a limited number of processes, threads, descriptors and files. Other programs run meanwhile."""
    body, most = BOUNDED[name]
    result = await host.run_with_neighbour(program(f'{body}\nprintf("%ld\\n", n); fflush(stdout); _exit(0);'))
    assert result.outcome is Outcome.OK, result
    assert 0 < int(result.stdout) <= most


@pytest.mark.parametrize("name", sample(ENDS, 2))
async def test_no_process_of_a_program_outlives_it(host: Host, name: str) -> None:
    """However a program ends, or if it is ended at its time limit, its process is gone."""
    code, outcome = ENDS[name]
    result = await host.run_with_neighbour(program(code), 700 if outcome is Outcome.TIMEOUT else 20_000)
    assert result.outcome is outcome, result
    pid = int(str(result.metadata["instance_id"]).rpartition("-")[2])
    await until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("name", sample(ON_THE_COMPILER, 4))
async def test_source_code_cannot_attack_the_compiler(host: Host, name: str) -> None:
    """It is a SYNTAX_ERROR, whose output contains no secret, and other programs run meanwhile."""
    result = await host.run_with_neighbour(ON_THE_COMPILER[name])
    assert result.outcome is Outcome.SYNTAX_ERROR, result
    assert SECRET not in repr(result)


async def test_attacks_leave_no_processes(host: Host) -> None:
    """After many programs at once, the server has only its launcher and the processes that wait for a program."""
    await asyncio.gather(*(host.run(program(code), 300) for code, _ in ENDS.values()))
    await until(lambda: len(host.server.children(recursive=True)) <= 12)
