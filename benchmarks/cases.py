"""The rate of `run_cases` compared with `call_function`, on a server whose interpreter takes long to start.

    python -m benchmarks.cases [--start-up 1.5] [--cases 200] [--calls 16] [--rounds 3]

The server is the tests' double of python-faas, which runs eight programs at once and simulates the start-up. There are
fewer calls than cases because a call takes the same time with 16 of them as with 200.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from pathlib import Path

from benchmarks.harness import Figures, contenders, parser, ratio, run_rounds, serve_requests, spreads
from benchmarks.report import Report
from faasrt import RuntimeManager, Settings, TimeoutSettings
from faasrt.client.runtime import Runtime

CODE = "def grade(turn):\n    return {'score': len(turn)}"


async def by_calls(runtime: Runtime, count: int) -> list[object]:
    calls = (runtime.call_function(CODE, "grade", ["x" * number]) for number in range(count))
    return [result.value for result in await asyncio.gather(*calls)]


async def by_cases(runtime: Runtime, count: int) -> list[object]:
    results = await runtime.run_cases(CODE, "grade", [("x" * number,) for number in range(count)])
    return [result.value for result in results]


CONTENDERS = {"call_function": by_calls, "run_cases": by_cases}


def measure(contender: str, start_up_s: float, counts: dict[str, int]) -> Figures:
    """Return the cases per second."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.doubles import PythonFaas

    count = counts[contender]

    async def run() -> float:
        async with PythonFaas(start_up_s=start_up_s) as double:
            settings = Settings(endpoints={"python": double.url}, timeouts=TimeoutSettings(startup_s=600))
            async with RuntimeManager(settings=settings) as manager:
                runtime = await manager.get_runtime("python")
                await runtime.run_code("1")
                started = time.perf_counter()
                values = await CONTENDERS[contender](runtime, count)
                elapsed_s = time.perf_counter() - started
        assert values == [{"score": number} for number in range(count)]
        return count / elapsed_s

    return {"cases/s": asyncio.run(run())}


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--start-up", type=float, default=1.5, help="start-up time in seconds (default %(default)s)")
    options.add_argument("--cases", type=int, default=200)
    options.add_argument("--calls", type=int, default=16)
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("cases", vars(args))
    counts = {"call_function": args.calls, "run_cases": args.cases}
    with contenders("benchmarks.cases", CONTENDERS) as started:
        rounds = run_rounds(started, args, start_up_s=args.start_up, counts=counts)
    for name in CONTENDERS:
        times = {"of call_function": ratio(rounds, name, "call_function", "cases/s")}
        report.row(f"A start-up of {args.start_up:g} s", by=name, **spreads(rounds, name), **times)
    report.print(args.json)


if __name__ == "__main__":
    main()
