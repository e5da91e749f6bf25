"""How much the loop guard slows down a bare loop and a loop of calls: the time with it divided by the time without it.

    python -m benchmarks.guard [--pyodide] [--rounds 7]

The loop guard is the part of the Python envelope that ends endless loops. Each interpreter runs in a process of its
own, and measures with and without the guard in turn. `--pyodide` downloads Pyodide from npm.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import deno

from benchmarks.harness import parser
from benchmarks.report import Report, Spread
from faasrt import RuntimeManager

GUARD = files("faasrt.protocol.guest").joinpath("python_guard.py").read_text()
PROGRAM = """
import sys
{guard}
import time

def bare(n):
    while n: n -= 1

def step(n):
    return n - 1

def calls(n):
    while n: n = step(n)

def measure(watch):
    guard = Guard(lambda: None, lambda: None)
    guard.watch = watch(guard)
    if guard.watch is None:
        return None
    ratios = {{}}
    for action in (bare, calls):
        pairs = []
        for _ in range({rounds}):
            guard.disarm()
            started = time.perf_counter(); action({size}); without = time.perf_counter() - started
            guard.arm(600_000)
            started = time.perf_counter(); action({size}); pairs.append((time.perf_counter() - started) / without)
        guard.disarm()
        ratios[action.__name__] = pairs
    return ratios

import json
watches = [Guard.by_signal, Guard.by_interrupt_buffer] + ([Guard.by_events] if hasattr(sys, "monitoring") else [])
RESULT = json.dumps({{watch.__name__: measure(watch) for watch in watches}})
"""
PYODIDE = """
import { loadPyodide } from "npm:pyodide@314.0.7";
const pyodide = await loadPyodide();
await pyodide.runPythonAsync(Deno.readTextFileSync(Deno.args[0]));
console.log(pyodide.globals.get("RESULT"));
"""


def in_cpython(program: str) -> Any:
    done = subprocess.run([sys.executable, "-c", program + "\nprint(RESULT)"], capture_output=True, check=True)
    return json.loads(done.stdout)


async def in_wasi(program: str) -> Any:
    async with RuntimeManager.local(["python"], workers=1) as manager:
        result = await manager.run_code(program + "\nreturn_val(RESULT)", "python")
        return result.raise_for_outcome().value


def in_pyodide(program: str) -> Any:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "main.mjs").write_text(PYODIDE)
        (folder / "program.py").write_text(program)
        command = [deno.find_deno_bin(), "run", "-A", "--quiet", "--no-lock", "main.mjs", "program.py"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    options = parser(__doc__, rounds=7)
    options.add_argument("--size", type=int, default=1_000_000, help="iterations of each loop (default %(default)s)")
    options.add_argument("--pyodide", action="store_true")
    args = options.parse_args()
    program = PROGRAM.format(guard=GUARD, size=args.size, rounds=args.rounds)
    by_interpreter = {"CPython": in_cpython(program), "WASI": asyncio.run(in_wasi(program))}
    if args.pyodide:
        by_interpreter["Pyodide"] = in_pyodide(program)
    report = Report("guard", vars(args))
    for interpreter, watches in by_interpreter.items():
        for watch, pairs in watches.items():
            if pairs is not None:
                times = {"bare loop": Spread.of(pairs["bare"]), "calls": Spread.of(pairs["calls"])}
                report.row("Time with the guard / time without it", interpreter=interpreter, guard=watch, **times)
    report.print(args.json)


if __name__ == "__main__":
    main()
