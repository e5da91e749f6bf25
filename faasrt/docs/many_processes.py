r"""Several processes, such as the workers of uvicorn: one server for all, or `RuntimeManager.local()` in each.

A manager belongs to one event loop, so each process has a manager of its own. The question is what runs the programs.

**Use one server for all processes.** `RuntimeManager.local()` is for one process: a script, a test, a notebook, a
service with one worker. In each of N processes, it starts its own engines, and runs as many programs at once as the
machine has CPUs. So N times as many programs compete for the same CPUs, each process prepares its own interpreters, and
a process that has nothing to do cannot help another one whose queue is full.

## Memory and CPU time

Four workers of uvicorn with the application `faasrt.examples.fastapi_backend`, on a machine with two CPUs, and 16
requests at a time, for programs that import nothing, and for programs that import pandas. Memory is that of all
processes together (PSS); 205 MB of it are the four workers of the application themselves. CPU time is that of all
processes for each program, compared with one server. `python -m benchmarks.processes` measures this:

| | memory | with pandas | CPU time | with pandas |
|---|---|---|---|---|
| one server for all | 311 MB | 424 MB | 1 | 1 |
| `local()` in each | 392 MB | 665 MB | 0.97 | 1.06 |
| `local(workers=1)` in each | 380 MB | 674 MB | 1.04 | 1.06 |

So each further `local()` needs about 30 MB, and another 50 MB if programs import pandas. The CPU time is the same, so
on a machine of their own all three have about the same rate. Beside other processes, `local()` in each gets a larger
share of the CPUs, because eight of its programs run at once instead of two (1.36 times the rate of one server, on a
busy machine). The other processes then get less.

## A server and the workers of uvicorn

Start the server once for the machine, and name it in the environment of the application:

    faasrt serve --port 8000 --language python --language javascript
    COZE_LOOP_FAAS_URL=http://127.0.0.1:8000 uvicorn --workers 4 --factory faasrt.examples.fastapi_backend:create_app

The application creates its manager with `RuntimeManager.from_env`, in its lifespan, which runs in the event loop of
each worker. With `local_fallback=True`, as in this example, it uses an embedded FaaS if COZE_LOOP_FAAS_URL is not set.
This is handy on a laptop. In production, leave it out, so that a missing URL is an error.

* The workers may start before the server: calls wait up to `RetrySettings.connect_retry_s` (10 s) for a server that
  starts, within their deadlines. Let a supervisor such as systemd restart it.
* The number of workers of the application does not change what the machine can run: that is `faasrt serve --workers`.
* A worker that is killed takes its own calls with it, and their programs are stopped. Other workers are not affected.
* With `PrometheusSink`, each worker has its own metrics; `PROMETHEUS_MULTIPROC_DIR` adds them up.

A process that starts the others can run the server itself, as this program does. Save it as `pool.py`:

```python
import asyncio
import concurrent.futures
import multiprocessing

from faasrt import LimiterSettings, RuntimeManager
from faasrt.local import LocalFaaS

PROCESSES = 2
LIMITER = LimiterSettings(max_concurrency=2)  # the share of each process


async def square(url, number):
    async with RuntimeManager.from_url(url, limiter=LIMITER) as manager:
        return (await manager.run_code(f"print({number} ** 2)", "python")).stdout.strip()


def work(url, number):  # runs in another process
    return asyncio.run(square(url, number))


async def main():
    async with LocalFaaS(["python"], workers=PROCESSES * LIMITER.max_concurrency) as faas:
        await faas.wait_ready("python")
        with concurrent.futures.ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            calls = [asyncio.get_running_loop().run_in_executor(pool, work, faas.url, number) for number in range(4)]
            print(await asyncio.gather(*calls))


if __name__ == "__main__":
    asyncio.run(main())
```

```console
$ python pool.py
['0', '1', '4', '9']
```

## `faasrt serve --workers`

This is the number of programs of each language that run at once (four times as many in JavaScript and TypeScript), not
a number of server processes. The default is the number of CPUs.

* **Programs that compute**: the number of CPUs, or fewer if the application needs some of them. More workers make
  programs take turns, which makes each slower, and some reach their time limits.
* **Programs that wait or sleep**: more, as far as memory allows: `workers * memory_limit_mb`.
* **Several managers at one server**: each manager sends up to the capacity of the server, because it does not know of
  the others. The rest waits in the queue of the server for 1.5 s, and is then refused and retried, in the end with an
  `OverloadedError`. For programs that take longer than about half a second, give each process its share: capacity
  divided by the number of processes, as `LimiterSettings(max_concurrency=...)`. Four managers with six programs of
  two seconds each, at a server with four workers, had 24 retries and 2 `OverloadedError`s; with `max_concurrency=1`,
  none.
* **Large machines**: a server is one process, which uses about 1 ms of CPU for a small program. From about eight CPUs
  on, run several servers with a part of the workers each, and name all of them, separated by commas:
  `COZE_LOOP_FAAS_URL=http://127.0.0.1:8000,http://127.0.0.1:8001`.

## If each process must have its own

Divide the CPUs between the processes: `RuntimeManager.local(workers=1)`. Serve only the languages that you use, because
each has an engine: `local(["python"])`. Create the manager in the lifespan of the application, not when its module is
imported. `faasrt.ray` shares one embedded FaaS between the actors of a node, and `faasrt batch` is one process.
"""

__docformat__ = "markdown"
