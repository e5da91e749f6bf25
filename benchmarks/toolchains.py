"""Programs in C, C++, Go, Rust, Java and Bash on the embedded FaaS: the compilation, and the run of a compiled program.

    python -m benchmarks.toolchains [--runs 50] [--rounds 3]

Languages whose toolchain is not installed are left out. A program prints one line. Each round compiles new programs.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import statistics
import time

from benchmarks.harness import Figures, contenders, parser, run_rounds, serve_requests, spreads
from benchmarks.report import Report
from faasrt import ExecutionResult, Language, RuntimeManager
from faasrt.local.engines.toolchain.languages import TOOLCHAINS

COMMENTS = {"bash": "#"}
_numbers = itertools.count()
INSTALLED = [str(language) for language, toolchain in TOOLCHAINS.items() if not toolchain.missing]


async def _measure(language: Language, runs: int) -> Figures:
    sample = next(toolchain.sample for name, toolchain in TOOLCHAINS.items() if name == language)
    # A program that was never compiled before.
    code = f"{sample}\n{COMMENTS.get(language, '//')} {os.urandom(8).hex()} {next(_numbers)}\n"
    async with RuntimeManager.local([language]) as manager:

        async def run() -> tuple[ExecutionResult, float]:
            started = time.perf_counter()
            result = await manager.run_code(code, language)
            assert result.stdout.strip() == "ok", result
            return result, 1000 * (time.perf_counter() - started)

        await manager.get_runtime(language)
        await manager.run_code(sample, language)
        first, _ = await run()
        again = [(await run())[1] for _ in range(runs)]
        started = time.perf_counter()
        await asyncio.gather(*(run() for _ in range(4 * runs)))
        per_s = 4 * runs / (time.perf_counter() - started)
    return {"compile ms": float(first.metadata["compile_ms"]), "run ms": statistics.median(again), "programs/s": per_s}


def measure(language: str, runs: int) -> Figures:
    return asyncio.run(_measure(Language.parse(language), runs))


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--runs", type=int, default=50, help="runs of a compiled program (default %(default)s)")
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("toolchains", vars(args))
    with contenders("benchmarks.toolchains", INSTALLED) as started:
        rounds = run_rounds(started, args, runs=args.runs)
    for language in INSTALLED:
        report.row("A short program", by=language, **spreads(rounds, language))
    report.print(args.json)


if __name__ == "__main__":
    main()
