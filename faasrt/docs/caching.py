"""Results that are reused: an opt-in store, by the hash of everything that determines them.

`RuntimeManager(cache=...)`, its class methods and `map` take the path of a folder, a `DiskCache`, or any object with
the methods of `Cache`; `faasrt batch` has `--cache DIR`. A call whose result is stored then returns it: no request to
run a program is sent, nothing runs, and `result.cached` is True.

```python
import asyncio

from faasrt import RuntimeManager


async def main():
    async with RuntimeManager.local(cache="results-cache") as manager:
        first = await manager.run_code("print(6 * 7)", "python")
        again = await manager.run_code("print(6 * 7)", "python")
        print(first.cached, again.cached, again.stdout.strip(), again.attempts)


asyncio.run(main())
```

```text
False True 42 0
```

## The key

The key is a SHA-256 of the program, its language and input (`stdin`, `argv`, `files`, `collect`), `displays`, the
function and its arguments, the limits (`timeout_ms`, memory, output), `ext`, `Settings.envelope`, the version of
faasrt, and the fingerprint of the server. So an `ext` that differs in each call, such as a trace id, prevents hits.
`priority` and `idempotent` do not count.

## The fingerprint of a server

The fingerprint identifies what runs the programs of a server. It comes from `/health`, which is requested at most every
10 s. For the embedded FaaS it covers the engine, its version, the limits, the interpreter and the installed packages;
for another server its `version`, `runtime` and `limits`. A server that states no version or has no `/health` has its
base URL as fingerprint, so empty the cache when such a server changes. With several replicas, a result is stored with
the fingerprint of the one that ran it, and is reused as long as one of them has this fingerprint. If the fingerprint is
unknown, nothing is looked up or stored.

## Stored results

Results with the outcomes OK, USER_ERROR and SYNTAX_ERROR are stored. The other outcomes, and errors that report a lack
of memory or a limit of the compiler, can depend on the load of the server: for OUTPUT_LIMIT, how much output is kept
depends on the moment at which the program is stopped. Results whose output was only cut are stored. Results without all
the files that `collect` asked for are not stored, nor are those whose output SandboxFusion may have lost
(`faasrt.docs.services`). Programs that may use the network, and those of sessions, are neither looked up nor stored.

## What you must make sure of

Make sure that results do not depend on time or randomness: a stored result of `print(time.time())` is returned again.
The cases of `run_cases` have one key each, which differs from that of `call_function`, and counts whether they are
isolated; tests of functions have keys of their own. Use no cache, or `isolate=True`, if a case depends on the cases
before it; isolated cases still share files and imported modules.

## Concurrent calls

Concurrent calls of the same program may all run it; the last result stays. A hit takes no permit, emits no events, and
does not count in `get_metrics()`.

## A store that fails

A store that fails, does not answer within 2 s, or returns a damaged value makes a call run its program as usual. This
time does not count in `timeout_ms`. After 2 s of failures, a call does not use the store again. The first failure of a
manager is logged.
"""

__docformat__ = "markdown"
