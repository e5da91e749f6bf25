"""A load with an exact number of calls in flight."""

from __future__ import annotations

import asyncio
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
    """Drive a load, and give its rate, the CPU that this process took for a call, and the latency."""
    gc.collect()
    started, cpu_started = time.perf_counter(), time.process_time()
    times = await drive(call, in_flight, turns)
    elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return {"calls/s": len(times) / elapsed_s, "CPU us": 1e6 * cpu_s / len(times), **latency(times)}


def latency(times: list[float]) -> dict[str, float]:
    """The median and the 99th percentile of some seconds, in milliseconds."""
    p99 = statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0]
    return {"p50 ms": 1000 * statistics.median(times), "p99 ms": 1000 * p99}
