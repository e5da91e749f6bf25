r'''Short recipes: programs to save and run with `python`, and a test to run with pytest.

The output of a program is shown below it. The recipes use the embedded FaaS or a fake one, so they need no server. To
use your own servers, replace `RuntimeManager.local()` with `RuntimeManager.from_env()` and set `COZE_LOOP_FAAS_URL`.

## 1. Run a program within limits

A program that hits a limit is a result, not an exception. `result.error` names the limit.

```python
import asyncio

from faasrt import RuntimeManager, SandboxConfig

SANDBOX = SandboxConfig(memory_limit_mb=256, max_output_bytes=10_000)
PROGRAMS = ["print('hello')", "while True: pass", "data = bytearray(10**9)", "while True: print('x' * 1_000)"]


async def main():
    async with RuntimeManager.local(["python"], sandbox=SANDBOX) as manager:
        for code in PROGRAMS:
            result = await manager.run_code(code, "python", timeout_ms=1_000)
            print(result.outcome, "|", result.error.message if result.error else result.stdout.strip())


asyncio.run(main())
```

```text
OK | hello
TIMEOUT | timeout after 1000 ms (limit of the client)
MEMORY_LIMIT | more than 256 MiB of memory (limit of the client)
OUTPUT_LIMIT | more than 20000 bytes of output (twice the limit of the client)
```

## 2. Grade an answer with a function

Arguments and return value travel as JSON, so an answer needs no quoting and cannot become code.

```python
import asyncio

from faasrt import RuntimeManager

GRADER = """
def grade(answer, expected):
    score = float(answer.strip().lower() == expected.lower())
    return {"score": score, "reason": "match" if score else f"expected {expected!r}"}
"""


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        result = await manager.call_function(GRADER, "grade", [" Paris\n", "paris"], language="python")
        print(result.value)
        result = await manager.call_function(GRADER, "grade", [None, "paris"], language="python")
        print(result.outcome, result.error.name)


asyncio.run(main())
```

```text
{'score': 1.0, 'reason': 'match'}
USER_ERROR AttributeError
```

## 3. Call a function with many arguments in one execution

Each case has its own outcome. `result.duration_ms` is its time. A case that loops or crashes does not stop the others.

```python
import asyncio

from faasrt import RuntimeManager

SOLUTION = """
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
"""
CASES = {(0,): 0, (10,): 55, (20,): 6765, (200,): 280571172992510140037611932413038677189525}


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        results = await manager.run_cases(SOLUTION, "fib", list(CASES), language="python", timeout_ms=1_000)
    for (case, expected), result in zip(CASES.items(), results, strict=True):
        answer = "passed" if result.ok and result.value == expected else f"failed: {result.outcome}"
        print(f"fib({case[0]}) {answer}")


asyncio.run(main())
```

```text
fib(0) passed
fib(10) passed
fib(20) passed
fib(200) failed: TIMEOUT
```

## 4. Run a batch and keep what failed

`map` reads tasks lazily and runs them concurrently. A task whose server failed has an `error` and no `result`; it is
not a wrong answer, so run it again later. `faasrt batch` does the same for files of JSON Lines, and can resume.

```python
import asyncio
import collections
import io
import json

from faasrt import CodeTask, RuntimeManager

LINES = io.StringIO(
    """{"id": "a", "language": "python", "code": "print(6 * 7)"}
{"id": "b", "language": "js", "code": "throw new Error('no')"}
{"id": "c", "language": "ts", "code": "const n: number = 1; console.log(n)"}
"""
)


async def main():
    outcomes, failed = collections.Counter(), []
    tasks = (CodeTask(**json.loads(line)) for line in LINES)
    async with RuntimeManager.local() as manager, manager.map(tasks, concurrency=8) as results:
        async for item in results:
            if item.error is None:
                outcomes[item.result.outcome.value] += 1
            else:
                failed.append(item.task.id)
    print(sorted(outcomes.items()), failed)


asyncio.run(main())
```

```text
[('OK', 2), ('USER_ERROR', 1)] []
```

## 5. Serve graders with aiohttp

Save it as `service.py` and run it with `python service.py`. One manager serves all requests. The queue is bounded, so
that an overloaded service refuses instead of letting its clients wait. `handler_cancellation=True` cancels the handler
when its client disconnects, which ends the program.

```python
from aiohttp import web

import faasrt

MANAGER = web.AppKey("manager", faasrt.RuntimeManager)
SETTINGS = faasrt.Settings(limiter=faasrt.LimiterSettings(max_queue=100, queue_timeout_s=2))


async def open_manager(app):
    async with faasrt.RuntimeManager.local(settings=SETTINGS) as manager:
        app[MANAGER] = manager
        yield


async def run(request):
    try:
        program = await request.json()
        code, language = program["code"], program["language"]
    except (KeyError, TypeError, ValueError):
        raise web.HTTPUnprocessableEntity(text="the body must have code and language") from None
    try:
        result = await request.app[MANAGER].run_code(code, language, timeout_ms=5_000)
    except (faasrt.InvalidRequestError, faasrt.UnsupportedLanguageError) as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from None
    except (faasrt.QueueFullError, faasrt.ServiceError) as error:
        if isinstance(error, (faasrt.QueueFullError, faasrt.OverloadedError)) or error.sent == "no":
            raise web.HTTPServiceUnavailable(text="busy; try again later", headers={"Retry-After": "2"}) from None
        raise web.HTTPBadGateway(text="the code could not be run") from None
    return web.json_response(text=result.to_json())


app = web.Application()
app.cleanup_ctx.append(open_manager)
app.add_routes([web.post("/run", run)])

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080, handler_cancellation=True)
```

The README has the same with FastAPI.

## 6. Call it from synchronous code

`faasrt.sync` has the same API without asyncio, for scripts, notebooks and threads. The manager keeps an event loop in a
thread of its own, and any thread may use it. Ctrl-C cancels the call, and leaving the loop over `map` stops its work.

```python
from faasrt import CodeTask
from faasrt.sync import RuntimeManager

with RuntimeManager.local(["python"]) as manager:
    print(manager.run_code("print(6 * 7)", "python").stdout.strip())
    tasks = (CodeTask(f"print({number} ** 2)", "python") for number in range(1_000_000))
    for item in manager.map(tasks, ordered=True):
        print(item.result.stdout.strip())
        if item.index == 2:
            break
```

```text
42
0
1
4
```

## 7. Stop programs early

Cancellation is plain asyncio: cancel the task, or leave a block with a timeout. The embedded FaaS ends the program at
once, and its permit is free again. Here the first answer wins.

```python
import asyncio

from faasrt import RuntimeManager

SOLVERS = ["import time; time.sleep(20); print('slow')", "print('fast')"]


async def main():
    async with RuntimeManager.local(["python"], workers=2) as manager:
        calls = [asyncio.create_task(manager.run_code(code, "python")) for code in SOLVERS]
        done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        for call in pending:
            call.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        print(done.pop().result().stdout.strip(), [call.cancelled() for call in pending])


asyncio.run(main())
```

```text
fast [True]
```

## 8. Retry programs that may run twice

By default a program runs at most once, so a lost answer is an error. A pure function may run again: say so for the
call, or for all calls with `RetrySettings(idempotent=True)`. `FakeFaaS` stands in for a server that fails once.

```python
import asyncio

from faasrt import RuntimeManager, ServerError
from faasrt.testing import FakeFaaS, Reply


async def main():
    async with FakeFaaS() as fake, RuntimeManager.from_url(fake.url) as manager:
        fake.script(Reply.crash(), Reply.crash(), Reply.ok("42\n"))
        try:
            await manager.run_code("print(6 * 7)", "python")
        except ServerError as error:
            print("raised after", error.attempts, "attempt")
        result = await manager.run_code("print(6 * 7)", "python", idempotent=True)
        print(result.stdout.strip(), "after", result.attempts, "attempts")


asyncio.run(main())
```

```text
raised after 1 attempt
42 after 2 attempts
```

## 9. Export metrics to Prometheus

This needs `pip install 'faasrt[prometheus]'`. Share one sink between all managers of a process, and serve
`generate_latest()` as `/metrics`.

```python
import asyncio

from prometheus_client import generate_latest

from faasrt import RuntimeManager
from faasrt.telemetry.prometheus import PrometheusSink


async def main():
    async with RuntimeManager.local(["python"], telemetry=[PrometheusSink()]) as manager:
        await manager.run_code("print(1)", "python")
        await manager.run_code("1 / 0", "python")
    for line in generate_latest().decode().splitlines():
        if line.startswith("faasrt_calls_total"):
            print(line.partition('outcome="')[2])


asyncio.run(main())
```

```text
OK"} 1.0
USER_ERROR"} 1.0
```

## 10. Test your own code without a sandbox

This needs `pip install pytest pytest-asyncio`. pytest finds the fixture `faasrt_fake` by itself: a server on a real
socket whose answers you script. Save it as `test_grading.py`:

```python
import pytest

from faasrt import RuntimeManager
from faasrt.testing import Reply


async def is_correct(manager, code):
    result = await manager.run_code(code, "python")
    return result.ok and result.stdout.strip() == "42"


@pytest.mark.asyncio
@pytest.mark.parametrize(("reply", "expected"), [(Reply.ok("42\n"), True), (Reply(outcome="TIMEOUT"), False)])
async def test_is_correct(faasrt_fake, reply, expected):
    faasrt_fake.script(reply)
    async with RuntimeManager.from_url(faasrt_fake.url) as manager:
        assert await is_correct(manager, "print(6 * 7)") is expected
    assert faasrt_fake.requests[0]["code"] == "print(6 * 7)"
```

```console
$ pytest -q test_grading.py | grep -o '2 passed'
2 passed
```
'''

__docformat__ = "markdown"
