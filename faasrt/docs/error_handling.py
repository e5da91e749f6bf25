r"""Which failures are results, which are exceptions, and what to do with each.

**A failure of the user's code is data. A failure of the infrastructure is an exception.** So `result.outcome` is always
a statement about the code. A `ServiceError` says nothing about the code. `ReturnValueError` and `ExecutionError` are
raised only when you read `result.value` or call `raise_for_outcome()`.

## Results

| `result.outcome` | the program ... | `result.error` |
|---|---|---|
| `OK` | ran to its end, with exit code 0 | None |
| `USER_ERROR` | raised an exception, or exited with another code | the exception, or `SystemExit` or `Exit` |
| `SYNTAX_ERROR` | does not parse; nothing ran | the syntax error |
| `TIMEOUT`, `MEMORY_LIMIT` | was stopped at that limit | the limit, its value, and who set it |
| `OUTPUT_LIMIT` | wrote more than twice its output limit | the limit, its value, and who set it |
| `CRASHED` | ended without reporting an error, for example by a signal | None, the signal, or `Trap` |

An unhandled rejection of a promise counts as an exception. A non-zero exit, such as `exit(3)`, has the name
`SystemExit` in Python and `Exit` in JavaScript. `os._exit` is CRASHED, and so is a trap of WebAssembly, whose name is
`Trap`. `result.error.name` names the limit as `Timeout`, `MemoryLimit` or `OutputLimit`.

`result.raise_for_outcome()` turns every outcome but `OK` into an `ExecutionError`, for callers that prefer exceptions.

```python
import asyncio

import faasrt


async def main():
    async with faasrt.RuntimeManager.local(["python"]) as manager:
        result = await manager.run_code("total = 0\nprint(1 / total)", "python")
        print(result.outcome, result.exit_code, result.error.name, result.error.message)
        print(result.error.traceback.splitlines()[1].strip())
        try:
            result.raise_for_outcome()
        except faasrt.ExecutionError as error:
            print(error)


asyncio.run(main())
```

```text
USER_ERROR 1 ZeroDivisionError division by zero
File "main.py", line 2, in <module>
the code ended as USER_ERROR: ZeroDivisionError: division by zero
```

A program can print a forged traceback and return any value. Treat `stdout`, `error` and `value` as untrusted input:
check `value` before you use it, and escape text before you show it.

## Exceptions

All are subclasses of `faasrt.FaasrtError`; `faasrt.errors` shows the tree. Six groups are enough for most programs:

| catch | it means | do |
|---|---|---|
| `InvalidRequestError`, `UnsupportedLanguageError` | the caller's input is wrong; nothing was sent | answer with 422 |
| `QueueFullError`, `OverloadedError` | no capacity now | answer with 503, or try later |
| `ConnectError`, and others with `sent == "no"` | nothing was sent or ran | log it, check the URL, answer with 503 |
| `SessionLostError` | the state of the session is gone; the code did not run | open another session |
| `ServiceError` (every other subclass) | a server or the network failed | log it, answer with 502, run it again later |
| `ConfigurationError`, `RuntimeClosedError`, `StreamError`, `CompareError` | the application is wrong | fix it |

```python
import asyncio

import faasrt


async def grade(manager, code):
    try:
        result = await manager.run_code(code, "python", timeout_ms=2_000)
    except (faasrt.InvalidRequestError, faasrt.UnsupportedLanguageError) as error:
        return f"bad request: {error}"
    except (faasrt.QueueFullError, faasrt.OverloadedError):
        return "try again later"
    except faasrt.ServiceError as error:
        return f"no result ({type(error).__name__}, sent: {error.sent})"
    return f"outcome: {result.outcome}"


async def main():
    async with faasrt.RuntimeManager.local(["python"]) as manager:
        for code in ("print(1)", "1 / 0", ""):
            print(await grade(manager, code))
    async with faasrt.RuntimeManager.from_url("http://127.0.0.1:9") as manager:  # nothing listens on this port
        print(await grade(manager, "print(1)"))


asyncio.run(main())
```

```text
outcome: OK
outcome: USER_ERROR
bad request: code must not be empty
no result (ConnectError, sent: no)
```

A proxy in front of a FaaS should wait for longer than any program may run. When it stops waiting, the call fails with
`ServerError` (408, 502, 504). It is not the outcome TIMEOUT, because the program may have been about to end. Servers
that return no outcomes (unlike the embedded FaaS) may report a timeout of the program with a 408, or with a 500 whose
`details` mention a timeout. This is the outcome TIMEOUT only if the time limit has passed since the program was sent.

## Has the code run?

A `ServiceError` has `endpoint`, `attempts`, `elapsed_s`, `status`, and `sent`:

* `"no"`: the request did not reach a server. The code did not run.
* `"maybe"`: at least a part of the request was sent, but no complete answer arrived. The code may have run, and may
  still be running.
* `"yes"`: the server answered. The code may have run, unless the answer refused it: any 429, or a 503 with
  `Retry-After` or `x-faasrt-not-started: 1`. (With `idempotent=True`, an earlier attempt may have run it.)

Code runs at most once by default. A request is retried if its code cannot have run, on another endpoint first. Other
failures are raised, because a second run may, for example, send a second mail. Pass `idempotent=True` for code that may
run again.

While its servers are down, a call is retried for `RetrySettings.connect_retry_s`, within its deadline. So a
`ConnectError` means that they were down for that long.

## Validation first

`validate_code` finds syntax errors without running anything: Python is parsed locally, other languages are checked by
the FaaS. It is not a safety check. A program that parses may still do anything that the sandbox allows.

## In batches

`map` raises no error of a task: each item has either a `result` or an `error`. `stop_on` ends the batch early, for
example `stop_on=faasrt.ConnectError` when a dead server would fail every task. A server that restarts costs only the
programs that it was running when it was killed. If it stops on SIGTERM, as `faasrt serve` does, it costs none, unless
the deadline of a call passes meanwhile: calls with a short `timeout_ms` need a `grace_s` as long as the restart.

## Cancellation

`asyncio.CancelledError` passes through every call, and gives its permit and its connection back. The embedded FaaS ends
the program. Other servers may run it to its end, so the call counts against their limit until then.
"""

__docformat__ = "markdown"
