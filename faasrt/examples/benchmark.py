"""A benchmark of one or several servers: many concurrent calls, and the time of each phase.

    pip install 'faasrt[local]'
    python -m faasrt.examples.benchmark --runs 1000 --concurrency 64
    COZE_LOOP_PYTHON_FAAS_URL=http://one:8000,http://two:8000 python -m faasrt.examples.benchmark

The phases of a call, which add up to its total, are:

    queued      waiting for a permit in this process
    program     the program itself, as reported by the server
    server      the rest of the requests: the network, the server's queue and its sandbox
    client      the rest of the call: this library, and the delays between attempts

Endpoints come from the environment (COZE_LOOP_FAAS_URL and the like). If there are none, the embedded FaaS is used.
The exit code is 3 when the infrastructure failed a run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable

import attrs

from faasrt import CodeTask, ExecutionResult, RuntimeManager

PROGRAM = "print(sum(range(1_000)))"


@attrs.frozen
class Measured:
    """Results, errors by name, and the elapsed time."""

    results: list[ExecutionResult]
    errors: Counter[str]
    wall_s: float


async def measure(runs: int, concurrency: int) -> Measured:
    """Run the program a number of times."""
    tasks = (CodeTask(PROGRAM, "python") for _ in range(runs))
    async with RuntimeManager.from_env(local_fallback=True) as manager:
        await manager.run_code(PROGRAM, "python")  # the first call also connects
        started = time.perf_counter()
        items = [item async for item in manager.map(tasks, concurrency=concurrency)]
        wall_s = time.perf_counter() - started
    results = [item.result for item in items if item.error is None]
    errors = Counter(type(item.error).__name__ for item in items if item.error is not None)
    return Measured(results, errors, wall_s)


def phases(result: ExecutionResult) -> dict[str, float]:
    """Return the seconds of each phase of a call."""
    timings, requests = result.timings, sum(result.timings.attempts_s)
    # Some servers round their milliseconds up.
    program = min((result.duration_ms or 0) / 1_000, requests)
    return {
        "queued": timings.queued_s,
        "program": program,
        "server": requests - program,
        "client": timings.total_s - timings.queued_s - requests,
        "total": timings.total_s,
    }


def describe(measured: Measured) -> str:
    """Return the rate, and a table of milliseconds by phase and by endpoint."""
    ended = Counter(str(result.outcome) for result in measured.results) + measured.errors
    by_phase, by_endpoint = defaultdict(list), defaultdict(list)
    for result in measured.results:
        for phase, seconds in phases(result).items():
            by_phase[phase].append(seconds)
        by_endpoint[result.endpoint].append(result.timings.total_s)
    rate = f"{ended.total()} runs in {measured.wall_s:.1f} s, {ended.total() / measured.wall_s:.0f} per second: "
    lines = [rate + ", ".join(f"{name} {count}" for name, count in ended.most_common())]
    lines.append(f"{'ms':30}{'runs':>8}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}")
    lines += [row(name, seconds) for name, seconds in [*by_phase.items(), *sorted(by_endpoint.items())]]
    return "\n".join(lines)


def row(name: str, seconds: Iterable[float]) -> str:
    """Return a row of the table."""
    in_order = sorted(seconds)
    marks = [in_order[int(share * (len(in_order) - 1))] for share in (0.5, 0.9, 0.99, 1)]
    return f"{name:30}{len(in_order):8}" + "".join(f"{1_000 * mark:10.2f}" for mark in marks)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Measure the rate of calls, and the time of each phase.")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=64)
    arguments = parser.parse_args()
    measured = asyncio.run(measure(arguments.runs, arguments.concurrency))
    print(describe(measured))
    sys.exit(3 if measured.errors else 0)


if __name__ == "__main__":
    main()
