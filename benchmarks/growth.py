"""How the cost of a call grows with the number of calls in flight: CPU time, and memory while a call waits.

    python -m benchmarks.growth [--in-flight 10 100 1000 10000] [--calls 10000] [--rounds 3] [--plot FILE.png]

The server holds its answers until all calls have arrived, so that they are in flight at the same time. Every
measurement has a process of its own. The columns:

    CPU us        CPU time of a call
    GC us         the part of it that Python's garbage collector takes, which examines all objects again and again
    waiting KB    the memory that a call in flight adds to the process, with its connection
    left KB       the memory that remains after everything is closed, divided by the number of calls that were in flight
"""

from __future__ import annotations

import asyncio
import functools
import gc
from pathlib import Path
from typing import Any

import psutil

from benchmarks import load
from benchmarks.clients import CLIENTS
from benchmarks.harness import Figures, FreshContender, parser, run_rounds, serve_requests, spreads
from benchmarks.report import Report
from benchmarks.stub import control, raise_file_limit, stub

WORDS = {"faasrt": "faasrt", "hand": "hand-written aiohttp loop"}
CAPACITY = 100_000
GOAL = 1.5
COLOURS = {"hand": "#9a9a9a", "faasrt": "#1f6fb2"}


def resident_kb() -> float:
    """Return the memory of this process after a garbage collection."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1000


async def run(contender: str, url: str, in_flight: int, calls: int) -> Figures:
    async with CLIENTS[contender](url, in_flight) as call:
        await control(url, "hold", 0)
        await call()
        base = resident_kb()
        await control(url, "hold", in_flight + 1)
        first = asyncio.ensure_future(load.drive(call, in_flight, range(in_flight)))
        while await control(url, "waiting") < in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waiting = resident_kb()
        await control(url, "hold", in_flight)
        await first
        # A multiple of `in_flight`, because the server holds the answers of an incomplete wave forever.
        waves = max(2, calls // in_flight)
        figures = await load.measure(call, in_flight, range(waves * in_flight))
    left = resident_kb()
    return {
        "CPU us": figures["CPU us"],
        "GC us": figures["GC us"],
        "CPU - GC us": figures["CPU us"] - figures["GC us"],
        "waiting KB": (waiting - base) / in_flight,
        "left KB": (left - base) / in_flight,
    }


def measure(contender: str, **options: Any) -> Figures:
    """Return the figures of a call with a number of calls in flight."""
    raise_file_limit()
    return asyncio.run(run(contender, **options))


def plot(points_of: dict[str, list[Figures]], in_flight: list[int], file: Path) -> None:
    """Draw the CPU time and the memory of a call against the number of calls in flight."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (cpu, memory) = pyplot.subplots(1, 2, figsize=(9, 3.4), dpi=100)
    for name, points in points_of.items():
        looks = {"color": COLOURS[name], "marker": "o", "linewidth": 2}
        cpu.plot(in_flight, [point["CPU us"] for point in points], label=WORDS[name], **looks)
        without = [point["CPU - GC us"] for point in points]
        cpu.plot(in_flight, without, label="without the garbage collector", linestyle=":", **looks)
        memory.plot(in_flight, [point["waiting KB"] for point in points], label=WORDS[name], **looks)
    for axis, label in ((cpu, "CPU per call (µs)"), (memory, "memory per call in flight (KB)")):
        axis.set(xscale="log", xlabel="calls in flight", ylabel=label)
        axis.set_xticks(in_flight, [f"{number:,}" for number in in_flight])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, pil_kwargs={"optimize": True})


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--in-flight", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    options.add_argument("--calls", type=int, default=10_000, help="per measurement; at least twice those in flight")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG")
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("growth", vars(args))
    measurables = {name: FreshContender("benchmarks.growth", name) for name in WORDS}
    points_of: dict[str, list[Figures]] = {name: [] for name in WORDS}
    with stub(CAPACITY) as url:
        for in_flight in args.in_flight:
            rounds = run_rounds(measurables, args, url=url, in_flight=in_flight, calls=args.calls)
            for name in WORDS:
                figures = spreads(rounds, name)
                report.row(WORDS[name], **{"in flight": in_flight}, **figures)
                points_of[name].append({figure: values.median for figure, values in figures.items()})
    # The first memory figure is left out: ten calls mostly use memory that the process already has.
    for figure, points in (("CPU - GC us", points_of["faasrt"]), ("waiting KB", points_of["faasrt"][1:])):
        values = [point[figure] for point in points]
        report.goal(f"{figure} of a call grows to at most {GOAL} times its minimum", max(values) / min(values),
                    max(values) <= GOAL * min(values))  # fmt: skip
    if args.plot:
        plot(points_of, args.in_flight, args.plot)
    report.print(args.json)


if __name__ == "__main__":
    main()
