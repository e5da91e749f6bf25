r"""The embedded FaaS. It needs Linux and the extra `local` (`pip install 'faasrt[local]'`).

`LocalFaaS` serves it inside your own program. `faasrt serve` serves it to other programs, such as a coze-loop backend.
`RuntimeManager.local()` returns a client with its own server.

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

Each program gets a fresh WebAssembly instance or a fresh Deno process, from a pool that grows with demand and shrinks
when idle. Seen from a client, a short program takes about 14 ms in Python, and 5 ms in JavaScript and TypeScript, two
fifths of a bare `deno run` (`benchmarks/local.py`). A program that cannot start now is refused before it runs, with 429
or 503, `Retry-After` and `x-faasrt-not-started: 1`. An engine that fails for lack of descriptors, memory or disk
recovers by itself, and `faasrt serve` logs the reason. A client that disconnects frees its sandbox. On SIGTERM, the
programs in flight may end first. No process and no file is left behind, not even after SIGKILL.

The first Python program on a machine waits until the sandbox is compiled (about 45 s on two cores, 2.4 GB of memory,
300 MB of disk); `faasrt warmup` does this ahead of time. The compiled sandbox is stored in FAASRT_CACHE_DIR, by default
`faasrt` in XDG_CACHE_HOME or ~/.cache.

**What programs can do.** Python is CPython 3.15 as WebAssembly, whichever Python runs faasrt. It has no threads,
processes or sockets, no files but those of the standard library, no packages but those in the sandbox (numpy, pandas,
scipy, scikit-learn and sympy among them), and an empty stdin. `asyncio` works. JavaScript runs in its own Deno process
without any permission: no files, network, environment, processes or workers, and no `npm:`, `jsr:` or `https:` imports.
TypeScript's types are removed, not checked. A JavaScript program that prevents its own end with `onerror` or
`onunhandledrejection` still ends as USER_ERROR; listeners added with `addEventListener` are honoured. The FaaS ends
executions, not cases: see `Runtime.run_cases`.

**What is refused**, with `{"error", "details"}` and before a program runs: bodies over 8 MiB, compressed, not declared
as `application/json` or not strict JSON (of more than 64 KiB, only strings may be large); fields of a wrong type, and
limits that it cannot enforce; a `Host` that is not its own, any `Origin`, and requests from other sites, so that no
web page can reach it; a missing or wrong token. It holds at most 1,000 connections (or half of the process's
descriptors) and 64 MiB of requests and answers. The head of a request, its body and the taking of its answer have 30 s
each. Its log holds no part of a program.

**What is defended.** Programs cannot reach files, sockets, processes or variables of the machine, nor traces of other
programs. Time, memory and output are bounded. The tests attack all of that (`tests/test_threats_*.py`,
`tests/test_local_*.py`).

**What is not defended:**

* holes in wasmtime, V8, Deno or the kernel: keep the packages up to date;
* side channels: timing, caches, and the load of the machine;
* the machine as a whole: limits are per program, so choose `--workers` for its capacity;
* plain HTTP: put TLS in front. An address other than loopback needs a token, and the server has no other notion of
  users;
* a program's own result: it can forge its outcome, output and value, but not those of another program. It can see
  process ids, the number of CPUs and the name of the server's temporary folder.

The memory limit is approximate: a JavaScript process may hold about 110 MiB more than its limit. A JavaScript program
that closes its stdout, which the server needs to notice its end, is CRASHED. So is a program that ends itself with a
signal; but a process that is killed from outside is a failure of the server. TypeScript modules are written to the
temporary folder while their program runs, and count against its memory limit.

**For code from real attackers** add a second layer: a virtual machine or container without secrets, not as root, with
a read-only root, its own /tmp, no capabilities, and limits on memory and processes. For example, with bubblewrap after
`faasrt warmup`:

    bwrap --ro-bind / / --tmpfs /tmp --proc /proc --dev /dev --unshare-all --share-net --uid 65534 --gid 65534 \
        --cap-drop ALL --new-session --die-with-parent faasrt serve

A seccomp filter that permits systemd's `@system-service` is enough for both engines. Both generate code, so memory must
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
    # The worker processes import this package too, without the web server.
    if name == "LocalFaaS":
        from faasrt.local.server import LocalFaaS

        return LocalFaaS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
