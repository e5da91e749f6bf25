r"""The embedded FaaS. It needs Linux and the extra `local` (`pip install 'faasrt[local]'`).

`LocalFaaS` serves it inside your own program. `faasrt serve` serves it to other programs, such as a coze-loop
backend. `RuntimeManager.local()` returns a client with its own server.

    POST /run_code         run a program
    POST /validate_code    parse a program
    GET  /health           the languages, and why one cannot run
    GET  /metrics          JSON, or the Prometheus text format when the `Accept` header asks for it
    GET  /openapi.json     the description of every field

A program that was ended at a limit has an `error_info` that names the limit, its value, and whether the client or the
server set it: {"name": "Timeout", "message": "timeout after 500 ms (limit of the client)"}. A program that failed and
printed nothing to stderr gets one line there that says why, such as "faasrt: timeout after 500 ms (limit of the
client)", because the backend of coze-loop takes an empty stderr for success. The answer repeats the line as `notice`,
and faasrt's own client removes it from the result.

**The engines.** Each program gets a process or a WebAssembly instance of its own, from a pool that grows with demand
and shrinks when idle.

    native   Python       CPython of an environment (`python=...`, by default that of this process), forked from a
                          process that has imported the packages. The default on Linux with namespaces.
    wasm     Python       CPython 3.15 as WebAssembly under wasmtime. The default elsewhere.
    deno     JavaScript   Deno without any permission, TypeScript too

`engines={"python": "wasm"}` and `faasrt serve --engine python=wasm` choose. The metadata of a result name the engine,
the level of its jail and the platform.

*native* runs a program as `python main.py` does, in a folder of its own, as uid 1000: with threads, processes,
`multiprocessing`, files below /tmp, sqlite, Unix sockets, signals, and every package of the environment, which the
program sees under its real path. `pip install 'faasrt[science]'` adds numpy, pandas, scipy, scikit-learn and sympy.
The programs in /usr are there. Differences: the path of the program in tracebacks is `main.py`, `return_val` is
defined, top-level `await` works, stdin is empty, the hash seed is fixed, numeric libraries use one thread, and there
is no network at all. A program that names a package for the first time imports it by itself; from then on a process
with the package is kept ready, until no program has used it for ten minutes.

*wasm* is a stronger wall, and another platform: 32 bits (`np.arange(10**5).sum()` overflows), no threads, processes,
sockets or files but those of the standard library, numpy, pandas, scipy, scikit-learn and sympy only, and less room
for recursion in C. `asyncio` works. The first program on a machine waits until the sandbox is compiled (about 45 s on
two cores, 2.4 GB of memory, 300 MB of disk); `faasrt warmup` does this ahead of time. The compiled sandbox is stored
in FAASRT_CACHE_DIR, by default `faasrt` in XDG_CACHE_HOME or ~/.cache.

*deno* gives programs no files, network, environment, processes or workers, and no `npm:`, `jsr:` or `https:` imports.
TypeScript's types are removed, not checked. A program that prevents its own end with `onerror` or
`onunhandledrejection` still ends as USER_ERROR; listeners added with `addEventListener` are honoured.

**The jail.** The kernel encloses every native and every Deno process, whatever runs in it.

    namespaces   own users, processes, network (with nothing in it), IPC and host name; a root of a few read-only
                 mounts; a private /tmp in memory for Python; a uid of its own for each program under root
    filters      without namespaces, as in a container with Docker's defaults: the filter, Landlock and limits only.
                 One process without files, locks or sockets; under root, a uid of its own

Both have a list of allowed system calls (seccomp), Landlock, limits of the process (rlimits), no capabilities and
`no_new_privs`. `level="auto"` takes the highest level that works; `level="namespaces"` refuses to start below it. At
the start, a process in each new jail tries to break out of it, and the engine is not used if it can. `faasrt health`
and `GET /health` show the level, why it is not higher, and whether there are cgroups.

Where the server may create cgroups (version 2, Linux 5.19), each program also has one of its own: the kernel ends it at
its memory limit, and counts memory of the kernel, such as full pipes. Delegate one by `Delegate=yes` in a systemd unit
that starts only the server, or start the server as the only process of a container with a writable /sys/fs/cgroup.

The native engine needs `namespaces`, unless you choose both `level="filters"` and `engines={"python": "native"}`. Such
a program has no folder of its own and starts no processes, but it can find out which paths and processes the machine
has, and it shares the user of the server if that is not root. Root's programs run as another user, who must be able to
read the interpreter. A JavaScript program at `filters` cannot look up paths.

**Speed.** Seen from a client, a short program takes about 5 ms in native Python, 14 ms in WebAssembly, and 6 ms in
JavaScript and TypeScript (`benchmarks/local.py`). A program that cannot start now is refused before it runs, with 429
or 503, `Retry-After` and `x-faasrt-not-started: 1`. An engine that fails for lack of descriptors, memory or disk
recovers by itself, and `faasrt serve` logs the reason. A client that disconnects frees its sandbox. On SIGTERM, the
programs in flight may end first. No process and no file is left behind, not even after SIGKILL. The FaaS ends
executions, not cases: see `Runtime.run_cases`.

**What is refused**, with `{"error", "details"}` and before a program runs: bodies over 8 MiB, compressed, not
declared as `application/json` or not strict JSON (of more than 64 KiB, only strings may be large); fields of a wrong
type, and limits that it cannot enforce; a `Host` that is not its own, any `Origin`, and requests from other sites, so
that no web page can reach it; a missing or wrong token. It holds at most 1,000 connections (or half of the process's
descriptors) and 64 MiB of requests and answers. The head of a request, its body and the taking of its answer have 30
s each. Its log holds no part of a program.

**What is defended.** Programs cannot reach files, sockets, processes or variables of the machine, nor traces of other
programs. Time, memory and output are bounded. The tests attack all of that (`tests/integration/test_threats_*.py`,
`tests/integration/test_local_*.py`).

**What is not defended:**

* holes in wasmtime, V8, Deno or the kernel: keep the packages up to date;
* side channels: timing, caches, and the load of the machine;
* the machine as a whole: limits are per program, so choose `--workers` for its capacity;
* plain HTTP: put TLS in front. An address other than loopback needs a token, and the server has no other notion of
  users;
* a program's own result: it can forge its outcome, output and value, but not those of another program;
* facts about the machine: the version of the kernel, the number of CPUs, memory, load and uptime, and to a native
  program the packages of its environment and their paths;
* programs that want to signal to each other while they run at the same time: through locks on files of the
  environment, or through the load. Many locks count as memory.

The memory limit is approximate. Without a cgroup, a native program may hold for a moment up to half a GiB more than
its limit, before it is ended. Its files in /tmp count, at most 64 MiB. A JavaScript process may hold about 110 MiB
more than its limit. A JavaScript program that closes its stdout, which the server needs to notice its end, is
CRASHED. So is a program that ends itself with a signal; but a process that is killed from outside is a failure of the
server. As a program can hide that it did this itself, the answer has `x-faasrt-program-suspect: 1`, and the client's
breaker does not count it.

**For code from real attackers** add a second layer: a virtual machine or container without secrets, not as root, with
limits on memory and processes, and user namespaces for the jail. Or run the server at the level `filters`, in a
container without capabilities, with Python on the engine `wasm`. Engines generate code, so memory must stay
executable.

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
