"""A mixed load at once: programs that print, that sleep and that never end, in a random order.

    python -m benchmarks.mixed [--rounds 3] [--prints 170] [--sleeps 20] [--loops 10] [--limit 5] [--engine native]

"faasrt" is `RuntimeManager.local()`. "one per worker" is the same with `max_programs` set to the number of CPUs, so
that long programs keep short ones waiting. "bare" starts a process `python -I` for each program, all at once, and kills
it at the limit. Verdicts are wrong if a program that ends by itself is not OK, or an endless one is not TIMEOUT.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import psutil

from benchmarks.harness import Figures, contenders, parser, ratio, run_rounds, serve_requests, spread, spreads
from benchmarks.report import Report
from faasrt import FaasrtError, RuntimeManager
from faasrt.config import EngineName
from faasrt.languages import LanguageOption
from faasrt.local.process import available_cpus

PROGRAMS = {
    "print": "print(sum(range(1000)))",
    "sleep": "import time; time.sleep(2); print(499500)",
    "loop": "while True: pass",
}
CONTENDERS = ("faasrt", "one per worker", "bare")
SEED = 1
_SAMPLE_S = 1.0
Run = Callable[[str, float], Awaitable[str]]
"""Runs code with a time limit in seconds, and returns its outcome."""


async def run_bare(code: str, limit_s: float) -> str:
    """Run code in a process of its own."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", code, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(limit_s):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return "TIMEOUT"
    return "OK" if output == b"499500\n" else "WRONG"


async def run_at(manager: RuntimeManager, code: str, limit_s: float) -> str:
    """Run code on a manager."""
    try:
        return str((await manager.run_code(code, "python", timeout_ms=limit_s * 1000)).outcome)
    except FaasrtError as error:
        return type(error).__name__


def used() -> tuple[float, float]:
    """Return the CPU seconds of this process and of all its children so far, and their private memory in MiB."""
    own = psutil.Process()
    cpu_s, memory_mb = sum(own.cpu_times()[:4]), 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error, OSError):
            memory_mb += process.memory_full_info().uss / 2**20
            if process is not own:
                cpu_s += sum(process.cpu_times()[:4])
    return cpu_s, memory_mb


async def run_all(run: Run, counts: dict[str, int], limit_s: float) -> Figures:
    """Run all programs at once, and return the figures."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    random.Random(SEED).shuffle(kinds)
    done: dict[str, list[float]] = {kind: [] for kind in counts}
    wrong, largest_mb = 0, 0.0
    cpu_before_s, memory_before_mb = await asyncio.to_thread(used)
    began = time.perf_counter()

    async def one(kind: str) -> None:
        nonlocal wrong
        outcome = await run(PROGRAMS[kind], limit_s)
        done[kind].append(time.perf_counter() - began)
        wrong += outcome != ("TIMEOUT" if kind == "loop" else "OK")

    async def sample() -> None:
        nonlocal largest_mb
        while True:
            await asyncio.sleep(_SAMPLE_S)
            largest_mb = max(largest_mb, (await asyncio.to_thread(used))[1])

    sampling = asyncio.create_task(sample())
    await asyncio.gather(*map(one, kinds))
    total_s = time.perf_counter() - began
    sampling.cancel()
    cpu_s, _ = await asyncio.to_thread(used)
    figures = {"wrong": float(wrong), "total s": total_s, "CPU s": cpu_s - cpu_before_s}
    figures |= {"idle MiB": memory_before_mb, "most MiB": largest_mb}
    for kind, times in done.items():
        if times:
            figures[f"{kind} p50 s"] = statistics.median(times)
            figures[f"{kind} p90 s"] = sorted(times)[int(0.9 * len(times))]
    if counts["loop"]:
        ends = [end for kind, times in done.items() if kind != "loop" for end in times]
        figures["all that end / first timeout"] = max(ends) / min(done["loop"])
    return figures


async def _measure(contender: str, counts: dict[str, int], limit_s: float, engine: EngineName | None) -> Figures:
    if contender == "bare":
        return await run_all(run_bare, counts, limit_s)
    max_programs = None if contender == "faasrt" else available_cpus()
    engines: dict[LanguageOption, EngineName] = {} if engine is None else {"python": engine}
    async with RuntimeManager.local(["python"], max_programs=max_programs, engines=engines) as manager:
        await manager.run_code("print(1)", "python")
        return await run_all(functools.partial(run_at, manager), counts, limit_s)


def measure(contender: str, *, counts: dict[str, int], limit_s: float, engine: EngineName | None) -> Figures:
    """Run the mixed load once."""
    return asyncio.run(_measure(contender, counts, limit_s, engine))


def main() -> None:
    """Compare the contenders, and print the report."""
    options = parser(__doc__, rounds=3)
    for kind, count in (("prints", 170), ("sleeps", 20), ("loops", 10)):
        options.add_argument(f"--{kind}", type=int, default=count, help="default %(default)s")
    options.add_argument("--limit", type=float, default=5.0, help="time limit in seconds (default %(default)s)")
    options.add_argument("--engine", choices=("native", "wasm"), help="that of faasrt (default: its own choice)")
    options.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("mixed", vars(args))
    counts = {"print": args.prints, "sleep": args.sleeps, "loop": args.loops}
    with contenders("benchmarks.mixed", args.contenders) as started:
        rounds = run_rounds(started, args, counts=counts, limit_s=args.limit, engine=args.engine)
    for name in started:
        report.row(f"{sum(counts.values())} programs at once", contender=name, **spreads(rounds, name))
    for base in set(started) - {"faasrt"}:
        figures = [name for name in rounds["faasrt"][0] if name.endswith(" s")]
        report.row(
            "faasrt divided by", contender=base, **{name: ratio(rounds, "faasrt", base, name) for name in figures}
        )
    for figure, goal in (
        ("print p90 s", 0.8),
        ("sleep p90 s", 2.6),
        ("all that end / first timeout", 1.0),
        ("wrong", 0),
    ):
        measured = spread(rounds, "faasrt", figure)
        report.goal(f"faasrt: {figure} at most {goal:g}", measured, measured.median <= goal)
    report.print(args.json)


if __name__ == "__main__":
    main()
