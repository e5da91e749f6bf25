"""The cost of `Runtime.run_code` compared with a loop over aiohttp, against a server that answers at once.

    python -m benchmarks.overhead [--in-flight 1 16 64 256] [--loops asyncio uvloop] [--seconds 0.5] [--rounds 9]

The contenders are the clients in `benchmarks.clients`. The columns `of hand` and `of tuned` are ratios of calls per
second. `CPU of hand` and `CPU of tuned` are ratios of the CPU time of a call, where less is better; look at these if
the machine has other work to do. Each goal is checked for both.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from benchmarks import load
from benchmarks.clients import CLIENTS
from benchmarks.harness import contenders, parser, ratio, run_rounds, serve_requests, spreads
from benchmarks.report import Report
from benchmarks.stub import stub

CAPACITY = 1_024
GOAL_AT = 64
# Contender, the contender that it is compared with, the smallest ratio of calls per second.
GOALS = [("faasrt", "hand", 1.0), ("faasrt", "tuned", 0.85), ("faasrt+telemetry", "hand", 0.9)]


def measure(contender: str, url: str, loop: str, in_flight: int, seconds: float) -> dict[str, float]:
    """Measure a client in a new event loop, after its connections have been opened."""

    async def run() -> dict[str, float]:
        async with CLIENTS[contender](url, in_flight) as call:
            await load.drive(call, in_flight, range(2 * in_flight))
            return await load.measure(call, in_flight, load.turns_within(seconds))

    factory: Any = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(run())


def main() -> None:
    options = parser(__doc__, rounds=9)
    options.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 64, 256])
    options.add_argument("--loops", nargs="+", choices=["asyncio", "uvloop"], default=["asyncio", "uvloop"])
    options.add_argument("--seconds", type=float, default=0.5, help="for a contender in a round")
    options.add_argument("--contenders", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("overhead", vars(args))
    with stub(CAPACITY) as url, contenders("benchmarks.overhead", args.contenders) as started:
        for loop in args.loops:
            for in_flight in args.in_flight:
                rounds = run_rounds(started, args, url=url, loop=loop, in_flight=in_flight, seconds=args.seconds)
                for name in started:
                    figures = spreads(rounds, name)
                    bases = [base for base in ("hand", "tuned") if base in started]
                    for base in bases:
                        figures[f"of {base}"] = ratio(rounds, name, base, "calls/s")
                    for base in bases:
                        figures[f"CPU of {base}"] = ratio(rounds, name, base, "CPU us")
                    report.row(f"{loop}, {in_flight} in flight", client=name, **figures)
                if in_flight == GOAL_AT:
                    for name, beside, least in GOALS:
                        if name in started and beside in started:
                            by_rate = ratio(rounds, name, beside, "calls/s")
                            by_cpu = ratio(rounds, beside, name, "CPU us")
                            goal = f"{loop}, {GOAL_AT} in flight: {name} at least {least} of {beside} by"
                            report.goal(f"{goal} calls/s", by_rate, by_rate.median >= least)
                            report.goal(f"{goal} CPU time", by_cpu, by_cpu.median >= least)
    report.print(args.json)


if __name__ == "__main__":
    main()
