"""The choice between replicas, compared with others in a simulated fleet.

    python -m benchmarks.simulate [--replicas 1000] [--calls 1000000] [--clients 200] [--seed 1] [--plot FILE.svg]

Each contender makes the same calls in each scenario. The package's own permit pool, breakers, adaptive limits and rules
for retries run in simulated time; only servers and network are simulated. A replica runs four programs at once, queues
further ones for at most 1.5 s, and then refuses them. The load is 60 % of what the fleet can run, unless a scenario
says otherwise. The contenders differ in the choice between replicas only:

    random         a random one
    round robin    each in turn
    load           the less loaded of two random ones
    faasrt         the package
    oracle         the one on which the program ends first; it knows the queues and speeds of all replicas

The columns:

    p50 s, p99 s   how long answered calls took, with waits and retries
    failed         the number of calls without a result
    retries, /s    the number of retries, and of those in the worst tenth of a second, times ten
    refused        the number of attempts that a full or stopping replica refused
    wasted         the number of programs that began and whose results reached no client
    slow %         the part of the calls that ended on replicas that are ten times slower
    CPU us         the CPU time of a call in the simulation
    recovery s     how long after an event more than 3 % of the calls of a second failed, or took longer than 99 % of
                   the calls before the event
"""

from __future__ import annotations

import asyncio
import gc
import math
import multiprocessing
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import attrs

from benchmarks.balancers import BALANCERS
from benchmarks.harness import parser
from benchmarks.report import Report
from benchmarks.simulation import LIMIT_S, SLOTS, Client, Records, Replica, run_virtually

EVENT_S = 10.0
SLOWNESS = 10.0
SLOW_PART = 0.05
PERCENTILES = (50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)
COLOURS = {
    "random": "#c9c9c9", "round robin": "#9a9a9a", "load": "#e0a030", "faasrt": "#1f6fb2", "oracle": "#309050",
}  # fmt: skip


def even(chosen: random.Random) -> float:
    """Return the time that a program takes: about 1 s, and 3 s for one in a hundred."""
    return chosen.lognormvariate(-0.125, 0.5)


def mixed(chosen: random.Random) -> float:
    """Return the time that a program takes: half of them take less than 0.2 s, and one in a hundred 13 s."""
    return min(LIMIT_S, chosen.lognormvariate(-1.62, 1.8))


async def nothing(replicas: Sequence[Replica]) -> None:
    """No event."""


async def rack_dies(replicas: Sequence[Replica]) -> None:
    """Four of a hundred replicas no longer answer, and no longer accept connections."""
    await asyncio.sleep(EVENT_S)
    for replica in replicas[: math.ceil(len(replicas) / 25)]:
        replica.kill(dark=True)


async def processes_die(replicas: Sequence[Replica]) -> None:
    """Four of a hundred replicas are killed. Their machines refuse connections."""
    await asyncio.sleep(EVENT_S)
    for replica in replicas[: math.ceil(len(replicas) / 25)]:
        replica.kill(dark=False)


async def rolling_restart(replicas: Sequence[Replica]) -> None:
    """Every 7 s, a fifth of the replicas restarts: they finish their programs, are away for 2 s, and begin cold."""

    async def restart(replica: Replica) -> None:
        await replica.drain()
        await asyncio.sleep(2)
        replica.start(cold_s=1)

    async with asyncio.TaskGroup() as group:
        await asyncio.sleep(EVENT_S)
        for part in range(5):
            for replica in replicas[part::5]:
                group.create_task(restart(replica))
            await asyncio.sleep(7)


async def cold(replicas: Sequence[Replica]) -> None:
    """All replicas have just started: the first four programs of each take 3 s longer."""
    for replica in replicas:
        replica.start(cold_s=3)


@attrs.frozen
class Scenario:
    """What happens to a fleet.

    Attributes:
        part: Its part of all calls.
        load: The part of what the fleet can run that the calls ask for.
        many: Whether there are many clients, or one.
        program: Returns the time that a program takes on a normal replica.
        slow_part: The part of the replicas that is ten times slower.
        event: What happens to the replicas, from EVENT_S on.
        in_flight: How many calls each client has in flight, all from the first second; 0 if calls arrive at random.
    """

    part: float
    load: float = 0.6
    many: bool = False
    program: Callable[[random.Random], float] = even
    slow_part: float = 0.0
    event: Callable[[Sequence[Replica]], Awaitable[None]] = nothing
    in_flight: int = 0


SLOW = "5 % slow replicas, load 30 %"
SLOW_AND_MANY = "5 % slow replicas, load 30 %, many clients"
MIXED = "Short and long programs"
RACK = "A rack dies, many clients"
RESTART = "Rolling restart, many clients"
SCENARIOS = {
    SLOW: Scenario(0.2, load=0.3, slow_part=SLOW_PART),
    "5 % slow replicas": Scenario(0.15, slow_part=SLOW_PART),
    SLOW_AND_MANY: Scenario(0.15, load=0.3, many=True, slow_part=SLOW_PART),
    MIXED: Scenario(0.05, program=mixed),
    "Short and long programs, 5 % slow replicas, load 30 %": Scenario(
        0.1, load=0.3, program=mixed, slow_part=SLOW_PART
    ),
    RACK: Scenario(0.1, many=True, event=rack_dies),
    "Processes are killed, many clients": Scenario(0.05, many=True, event=processes_die),
    RESTART: Scenario(0.1, many=True, event=rolling_restart),
    "All clients start at once": Scenario(0.05, many=True, in_flight=16),
    "All replicas are cold": Scenario(0.05, event=cold),
}


@attrs.frozen
class Cell:
    """One contender in one scenario."""

    scenario: str
    contender: str
    replicas: int
    clients: int
    calls: int
    seed: int


@attrs.frozen
class Outcome:
    """The figures of a cell, for the table and for the plot.

    Attributes:
        figures: The columns of its row.
        calls_per_s: The mean number of calls per second.
        latencies_s: The latency at each of PERCENTILES.
        retries_per_s: The number of retries in each second.
    """

    figures: dict[str, Any]
    calls_per_s: float
    latencies_s: list[float]
    retries_per_s: list[int]


async def make_calls(cell: Cell, scenario: Scenario, clients: Sequence[Client], rate: float) -> None:
    """Make the calls of a cell, at random times or with a fixed number in flight, and wait for their ends."""
    chosen = random.Random(cell.seed)
    if scenario.in_flight:
        left = iter(range(cell.calls))

        async def repeat(client: Client) -> None:
            for _ in left:
                await client.call(scenario.program(chosen))

        async with asyncio.TaskGroup() as group:
            for client in clients:
                for _ in range(scenario.in_flight):
                    group.create_task(repeat(client))
        return
    async with asyncio.TaskGroup() as group:
        for _ in range(cell.calls):
            await asyncio.sleep(chosen.expovariate(rate))
            group.create_task(clients[int(chosen.random() * len(clients))].call(scenario.program(chosen)))


async def simulate(cell: Cell) -> Outcome:
    """Simulate a cell in the running loop, which must be virtual."""
    scenario, started = SCENARIOS[cell.scenario], time.process_time()
    slow = round(cell.replicas * scenario.slow_part)
    # The slow ones are not neighbours, and the rack has some of them, too.
    order = random.Random(cell.seed).sample(range(cell.replicas), cell.replicas)
    replicas = [Replica(index, SLOWNESS if order[index] < slow else 1.0) for index in range(cell.replicas)]
    balancer = BALANCERS[cell.contender](replicas)
    records = Records()
    with mock.patch("faasrt.transport.pool.choose", balancer.choose):
        clients = [
            Client(replicas, balancer.finished, records, cell.seed + number)
            for number in range(cell.clients if scenario.many else 1)
        ]
        sample = random.Random(0)
        mean_s = statistics.fmean(scenario.program(sample) for _ in range(20_000))
        rate = scenario.load * SLOTS * sum(1 / replica.slowness for replica in replicas) / mean_s
        event = asyncio.ensure_future(scenario.event(replicas))
        await make_calls(cell, scenario, clients, rate)
        event.cancel()
        await asyncio.gather(event, return_exceptions=True)
    return outcome(scenario, replicas, records, time.process_time() - started)


def outcome(scenario: Scenario, replicas: Sequence[Replica], records: Records, cpu_s: float) -> Outcome:
    """Return the figures of a simulation."""
    took = sorted(records.took_s)
    executions = sum(replica.executions for replica in replicas)
    calls = len(took) + len(records.failed)
    tenths = Counter(int(moment * 10) for moment in records.retries)
    seconds = Counter(int(moment) for moment in records.retries)
    figures = {
        "p50 s": quantile(took, 0.5),
        "p99 s": quantile(took, 0.99),
        "failed": len(records.failed),
        "retries": len(records.retries),
        "retries/s": 10 * max(tenths.values(), default=0),
        "refused": records.refused,
        "wasted": sum(replica.wasted for replica in replicas),
        "slow %": 100 * sum(replica.executions for replica in replicas if replica.slowness > 1) / max(1, executions),
        "recovery s": None if scenario.event in (nothing, cold) else recovery_s(records),
        "CPU us": cpu_s / calls * 1e6,
    }
    retries_per_s = [seconds[second] for second in range(math.ceil(records.last))]
    return Outcome(
        figures, calls / records.last, [quantile(took, percent / 100) for percent in PERCENTILES], retries_per_s
    )


def quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else math.inf


def recovery_s(records: Records) -> float:
    """Return the seconds from the event to the end of the last second whose calls did badly."""
    calls = list(zip(records.started, records.took_s, strict=True))
    before = sorted(took for moment, took in calls if EVENT_S / 2 < moment < EVENT_S)
    limit_s = quantile(before, 0.99)
    total = Counter(int(moment) for moment, _ in calls)
    bad = Counter(int(moment) for moment, took in calls if took > limit_s)
    for moment, _ in records.failed:
        total[int(moment)] += 1
        bad[int(moment)] += 1
    late = [second for second in total if second >= EVENT_S and bad[second] > 0.03 * total[second]]
    return max(late) + 1 - EVENT_S if late else 0.0


def run_cell(cell: Cell) -> Outcome:
    """Simulate a cell in this process."""
    gc.set_threshold(100_000, 20, 100)
    return run_virtually(simulate(cell))


def add_goals(outcomes: Mapping[tuple[str, str], Outcome], report: Report) -> None:
    """Add the goals to the report whose contenders and scenarios were run."""

    def figure(scenario: str, contender: str, name: str) -> float:
        return float(outcomes[scenario, contender].figures[name])

    for scenario in (SLOW, SLOW_AND_MANY):
        for other, most in (("round robin", 0.5), ("oracle", 2.0)):
            if (scenario, "faasrt") in outcomes and (scenario, other) in outcomes:
                ratio = figure(scenario, "faasrt", "p99 s") / figure(scenario, other, "p99 s")
                report.goal(f"{scenario}: p99 at most {most:g} times that of {other}", ratio, ratio <= most)
    if (MIXED, "faasrt") in outcomes and (MIXED, "load") in outcomes:
        ratio = figure(MIXED, "faasrt", "p99 s") / figure(MIXED, "load", "p99 s")
        report.goal(f"{MIXED}: p99 at most 1.05 times that of load", ratio, ratio <= 1.05)
    if (RACK, "faasrt") in outcomes:
        part = figure(RACK, "faasrt", "retries/s") / outcomes[RACK, "faasrt"].calls_per_s
        report.goal(f"{RACK}: retries are at most 0.1 of the calls in any tenth of a second", part, part <= 0.1)
    if (RESTART, "faasrt") in outcomes:
        failed = figure(RESTART, "faasrt", "failed")
        report.goal(f"{RESTART}: no call fails", failed, not failed)


def plot(outcomes: Mapping[tuple[str, str], Outcome], file: Path) -> None:
    """Draw the latencies with slow replicas, and the retries after a rack has died."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text, which makes the file small
    mpl.rcParams["svg.hashsalt"] = "faasrt"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6))
    for axis, scenario in zip(axes[:2], (SLOW, SLOW_AND_MANY), strict=True):
        for name, colour in COLOURS.items():
            if (scenario, name) in outcomes:
                places = [-math.log10(1 - percent / 100) for percent in PERCENTILES]
                axis.plot(places, outcomes[scenario, name].latencies_s, color=colour, label=name)
        labelled = (50, 90, 99, 99.9)
        axis.set_xticks(
            [-math.log10(1 - percent / 100) for percent in labelled], [f"{percent:g}" for percent in labelled]
        )
        axis.set(title=scenario.removeprefix("5 % "), xlabel="percentile", ylabel="latency (s)")
        axis.axvline(2, color="#cccccc", linewidth=0.8)
    for name in ("load", "faasrt"):
        if (RACK, name) in outcomes:
            axes[2].plot(outcomes[RACK, name].retries_per_s, color=COLOURS[name], label=name)
    axes[2].axvline(EVENT_S, color="#cccccc", linewidth=0.8)
    axes[2].set(title=RACK, xlabel="time (s); the rack dies at 10 s", ylabel="retries per second")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--replicas", type=int, default=1_000)
    options.add_argument("--clients", type=int, default=200, help="in scenarios with many clients")
    options.add_argument("--calls", type=int, default=1_000_000, help="of each contender, in all scenarios together")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", nargs="+", default=[""], help="run only scenarios whose names contain these texts")
    options.add_argument("--contenders", nargs="+", default=list(BALANCERS), choices=list(BALANCERS))
    options.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: the number of CPUs)")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw an SVG")
    args = options.parse_args()
    report = Report("simulate", vars(args))
    cells = [
        Cell(name, contender, args.replicas, args.clients, round(args.calls * scenario.part), args.seed)
        for name, scenario in SCENARIOS.items()
        for contender in args.contenders
        if any(text in name for text in args.only)
    ]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as processes:
        outcomes = dict(zip(cells, processes.map(run_cell, cells), strict=True))
    for cell, outcome in outcomes.items():
        report.row(cell.scenario, contender=cell.contender, **outcome.figures)
    by_name = {(cell.scenario, cell.contender): outcome for cell, outcome in outcomes.items()}
    add_goals(by_name, report)
    if args.plot:
        plot(by_name, args.plot)
    report.print(args.json)


if __name__ == "__main__":
    main()
