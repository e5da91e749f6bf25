"""Makes calls with an exact number of them in flight."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

Call = Callable[[], Awaitable[object]]


async def drive(call: Call, in_flight: int, turns: Iterable[object]) -> list[float]:
    """Make a call for each turn. `in_flight` tasks make them, one after another each.

    Returns:
        The duration of each call in seconds.
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
    """Yield turns until this time has passed since the first one."""
    end = time.perf_counter() + seconds
    yield
    while time.perf_counter() < end:
        yield


async def measure(call: Call, in_flight: int, turns: Iterable[object]) -> dict[str, float]:
    """Make calls, and return their rate, the CPU time of this process per call, and their latency.

    `GC us` is the part of the CPU time that Python's garbage collector took.
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
    """Yield a list to which the CPU seconds of each run of the garbage collector are added."""
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
    """Return the median and the 99th percentile of durations in seconds, in milliseconds."""
    p99 = statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0]
    return {"p50 ms": 1000 * statistics.median(times), "p99 ms": 1000 * p99}
