"""Many tasks through `RuntimeManager.map`: rate, memory, and how many tasks are read ahead.

    python -m benchmarks.map [--tasks 10000 100000 1000000] [--concurrency 64]

The server runs in a process of its own, and answers every program at once with the same result. Each number of tasks is
measured in a process of its own, too.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator

import psutil

from benchmarks.harness import Figures, FreshContender, parser, serve_requests
from benchmarks.report import Report
from benchmarks.stub import stub
from faasrt import CodeTask, RuntimeManager, Settings


async def run(url: str, tasks: int, concurrency: int) -> Figures:
    read = taken = ahead = 0

    def source() -> Iterator[CodeTask]:
        nonlocal read
        for number in range(tasks):
            read += 1
            yield CodeTask(f"print({number})", "python", id=str(number))

    process, base, peak = psutil.Process(), 0, 0
    async with RuntimeManager(settings=Settings(endpoints={"python": url})) as manager:
        started, cpu_started = time.perf_counter(), time.process_time()
        async for item in manager.map(source(), concurrency=concurrency):
            assert item.result is not None, item.error
            taken += 1
            ahead = max(ahead, read - taken)
            if taken == min(1_000, tasks // 10):
                gc.collect()
                base = process.memory_info().rss
            if taken % 1_000 == 0:
                peak = max(peak, process.memory_info().rss)
        elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    assert taken == tasks
    return {
        "tasks/s": tasks / elapsed_s,
        "CPU us": 1e6 * cpu_s / tasks,
        "peak MiB": peak / 2**20,
        "grown MiB": max(0, peak - base) / 2**20,
        "source ahead": ahead,
    }


def measure(url: str, tasks: int, concurrency: int) -> Figures:
    """Run the tasks through `map`, and return the figures. `grown MiB` counts from the first thousand tasks on."""
    return asyncio.run(run(url, tasks, concurrency))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tasks", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--concurrency", type=int, default=64)
    args = options.parse_args()
    if args.contender:
        serve_requests(measure)
        return
    report = Report("map", vars(args))
    with stub(capacity=args.concurrency) as url:
        for tasks in args.tasks:
            mapping = FreshContender("benchmarks.map", "map")
            figures = mapping.ask(url=url, tasks=tasks, concurrency=args.concurrency)
            report.row(f"{args.concurrency} in flight", tasks=tasks, **figures)
    report.print(args.json)


if __name__ == "__main__":
    main()
