r"""The embedded FaaS: needs Linux and the extra `local` (`pip install 'faasrt[local]'`).

`LocalFaaS` serves it inside a program of yours, `faasrt serve` on its own, to others, a coze-loop backend for instance;
`RuntimeManager.local()` is a client with a server of its own.

    POST /run_code         runs a program
    POST /validate_code    parses one
    GET  /health           which languages can run, and why not
    GET  /metrics          JSON, or the Prometheus text format when the `Accept` header asks for it
    GET  /openapi.json     describes it all, field by field

A program that ends at a limit, with an exit code or in a crash, and prints nothing to stderr, gets one line there that
says so, such as "faasrt: ended after 500 ms (timeout)": the backend of coze-loop takes an empty stderr for success. The
answer then carries the same text as `notice`, by which faasrt's own client takes it out of the result again.

Each program gets a fresh WebAssembly instance or a fresh Deno process, out of a pool that follows demand and shrinks
when idle. A short program takes about 14 ms in Python and 5 ms in JavaScript and TypeScript, as clients see it, two
fifths of what a bare `deno run` takes (`benchmarks/local.py`). What it cannot start now it refuses before running,
with 429 or 503, `Retry-After` and `x-faasrt-not-started: 1`. An engine that fails for want of descriptors, memory or
disk recovers by itself, and `faasrt serve` logs why it failed. A caller that goes away frees its sandbox; SIGTERM lets
programs in flight end first; nothing is left behind, not even after SIGKILL.

The first Python program on a machine waits for the sandbox to be compiled (about 45 s on two cores, 2.4 GB of memory,
300 MB of disk); `faasrt warmup` does that ahead. It is kept in FAASRT_CACHE_DIR, by default
`faasrt` in XDG_CACHE_HOME or ~/.cache.

**What programs can do.** Python runs as WebAssembly, CPython 3.15, whatever Python runs faasrt: no threads, no
processes, no sockets, no files but the standard library's, no packages but those in the sandbox (numpy, pandas, scipy,
scikit-learn and sympy among them), an empty stdin. `asyncio` works. JavaScript runs in a Deno process of its own
without any permission: no files, network, environment, processes or workers; no `npm:`, `jsr:` or `https:` imports.
TypeScript's types are removed, not checked. A JavaScript program that puts off its own end with `onerror` or
`onunhandledrejection` ends as USER_ERROR all the same; listeners added with `addEventListener` are honoured. The FaaS
ends executions, not cases: see `Runtime.run_cases`.

**What is refused**, with `{"error", "details"}` and before anything runs: bodies over 8 MiB, compressed, not declared
as `application/json` or not strict JSON (of more than 64 KiB, only strings may be large); fields of a wrong type, and
limits that it cannot enforce; a `Host` that is not its own, any `Origin`, and requests from other sites, so that no
web page can reach it; a missing or wrong token. It holds at most 1,000 connections (or half of the process's
descriptors) and 64 MiB of requests and answers. The head of a request, its body and the taking of its answer have 30 s
each. Its log holds nothing of a program.

**What is defended.** Programs find no file, socket, process or variable of the machine, and no trace of other programs;
time, memory and output are bounded; the tests attack all of that (`tests/test_threats_*.py`, `tests/test_local_*.py`).

**What is not defended:**

* holes in wasmtime, V8, Deno or the kernel: keep the packages up to date;
* side channels: timing, caches, and what the load of the machine tells;
* the machine as a whole: limits are per program, so choose `--workers` for what it can bear;
* plain HTTP: put TLS in front. Another address than loopback needs a token, and that is all there is of users;
* with `--network`, whatever the machine can reach, loopback and the server itself included;
* a program's own verdict: it can falsify that, and its own output and value, but not another's. It can see process ids,
  the number of CPUs and the name of the server's temporary folder.

Memory is a bound, not an exact limit: a JavaScript process may hold about 110 MiB more than its limit. A JavaScript
program that closes its stdout, on which its end is told, is CRASHED. So is one that ends itself with a signal; but a
process that is killed from outside is a failure of the server. TypeScript modules are written to the temporary folder
while their program runs, and count against its limit on memory.

**For programs of real attackers** add a second layer: a virtual machine or container without secrets, not as root,
with a read-only root, an own /tmp, no capabilities, and limits on memory and processes. With bubblewrap, say, after
`faasrt warmup`:

    bwrap --ro-bind / / --tmpfs /tmp --proc /proc --dev /dev --unshare-all --share-net --uid 65534 --gid 65534 \
        --cap-drop ALL --new-session --die-with-parent faasrt serve

A seccomp filter that permits systemd's `@system-service` is enough for both engines; both generate code, so memory must
stay executable.

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
    # The worker processes import this package too, and need no web server.
    if name == "LocalFaaS":
        from faasrt.local.server import LocalFaaS

        return LocalFaaS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
