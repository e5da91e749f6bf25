"""A load with an exact number of calls in flight."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

Call = Callable[[], Awaitable[object]]


async def drive(call: Call, in_flight: int, turns: Iterable[object]) -> list[float]:
    """Make a call for each turn from so many tasks, each of which begins the next as soon as one has ended.

    Returns:
        The seconds that each took.
    """
    left, times = iter(turns), []

    async def work() -> None:
        for _ in left:
            started = time.perf_counter()
            await call()
            times.append(time.perf_counter() - started)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return times


def turns_within(seconds: float) -> Iterator[None]:
    """As many turns as begin within that time of the first one."""
    end = time.perf_counter() + seconds
    yield
    while time.perf_counter() < end:
        yield


async def measure(call: Call, in_flight: int, turns: Iterable[object]) -> dict[str, float]:
    """Drive a load, and give its rate, the CPU that this process took for a call, and the latency.

    Of the CPU, `GC us` went to Python's garbage collector, which looks at all that is in flight again and again.
    """
    gc.collect()
    with collecting() as spent:
        started, cpu_started = time.perf_counter(), time.process_time()
        times = await drive(call, in_flight, turns)
        elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    calls = len(times)
    return {"calls/s": calls / elapsed_s, "CPU us": 1e6 * cpu_s / calls, "GC us": 1e6 * sum(spent) / calls,
            **latency(times)}  # fmt: skip


@contextlib.contextmanager
def collecting() -> Iterator[list[float]]:
    """Record the CPU seconds of each run of the garbage collector."""
    spent: list[float] = []
    began = 0.0

    def note(phase: str, info: object) -> None:
        nonlocal began
        if phase == "start":
            began = time.process_time()
        else:
            spent.append(time.process_time() - began)

    gc.callbacks.append(note)
    try:
        yield spent
    finally:
        gc.callbacks.remove(note)


def latency(times: list[float]) -> dict[str, float]:
    """The median and the 99th percentile of some seconds, in milliseconds."""
    p99 = statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0]
    return {"p50 ms": 1000 * statistics.median(times), "p99 ms": 1000 * p99}
