"""A benchmark of one server or several: many calls at once, and where the time of each one went.

    pip install 'faasrt[local]'
    python -m faasrt.examples.benchmark --runs 1000 --concurrency 64
    COZE_LOOP_PYTHON_FAAS_URL=http://one:8000,http://two:8000 python -m faasrt.examples.benchmark

The phases of a call, which add up to its total:

    queued      waiting here for a permit, as the servers are full
    program     the program itself, as the server tells
    way         the rest of the requests: the network, the server's own queue, its sandbox
    client      what is left: this library, and its waits between attempts

The servers are those of the environment (COZE_LOOP_FAAS_URL and the like), and the embedded FaaS where it names none.
The exit code is 3 when the infrastructure failed a run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable

import attrs

from faasrt import CodeTask, ExecutionResult, RuntimeManager

PROGRAM = "print(sum(range(1_000)))"


@attrs.frozen
class Measured:
    """The results of all runs, what failed, and how long it took altogether."""

    results: list[ExecutionResult]
    errors: Counter[str]
    wall_s: float


async def measure(runs: int, concurrency: int) -> Measured:
    """Run the program so many times, so many at once."""
    configured = any(name.startswith("COZE_LOOP_") and "_FAAS_" in name for name in os.environ)
    results: list[ExecutionResult] = []
    errors: Counter[str] = Counter()
    async with RuntimeManager.from_env() if configured else RuntimeManager.local(["python"]) as manager:
        await manager.run_code(PROGRAM, "python")  # what is done once is not measured
        started = time.perf_counter()
        async for item in manager.map((CodeTask(PROGRAM, "python") for _ in range(runs)), concurrency=concurrency):
            if item.result is not None:
                results.append(item.result)
            else:
                errors[type(item.error).__name__] += 1
        return Measured(results, errors, time.perf_counter() - started)


def phases(result: ExecutionResult) -> dict[str, float]:
    """Split the time of a call, in seconds."""
    timings, requests = result.timings, sum(result.timings.attempts)
    # The server's figure is in milliseconds, which some servers round up.
    program = min((result.duration_ms or 0) / 1_000, requests)
    return {
        "queued": timings.queued,
        "program": program,
        "way": requests - program,
        "client": timings.total - timings.queued - requests,
        "total": timings.total,
    }


def describe(measured: Measured) -> str:
    """Write the rate, and tables of milliseconds by phase and by endpoint."""
    ended = Counter(str(result.outcome) for result in measured.results) + measured.errors
    by_phase, by_endpoint = defaultdict(list), defaultdict(list)
    for result in measured.results:
        for phase, seconds in phases(result).items():
            by_phase[phase].append(seconds)
        by_endpoint[result.endpoint].append(result.timings.total)
    return "\n".join(
        [
            f"{ended.total()} runs in {measured.wall_s:.1f} s, {ended.total() / measured.wall_s:.0f} per second: "
            + ", ".join(f"{name} {count}" for name, count in ended.most_common()),
            f"{'ms':30}{'runs':>8}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
            *(row(name, seconds) for name, seconds in [*by_phase.items(), *sorted(by_endpoint.items())]),
        ]
    )


def row(name: str, seconds: Iterable[float]) -> str:
    """Write a line of a table."""
    in_order = sorted(seconds)
    marks = [in_order[int(share * (len(in_order) - 1))] for share in (0.5, 0.9, 0.99, 1)]
    return f"{name:30}{len(in_order):8}" + "".join(f"{1_000 * mark:10.2f}" for mark in marks)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="Measure how fast programs run, and where their time goes.")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=64)
    arguments = parser.parse_args()
    measured = asyncio.run(measure(arguments.runs, arguments.concurrency))
    print(describe(measured))
    sys.exit(3 if measured.errors else 0)


if __name__ == "__main__":
    main()
