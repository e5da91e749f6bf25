"""One server for the worker processes of a web application, compared with an embedded FaaS in each of them.

    python -m benchmarks.processes [--workers 4] [--seconds 10] [--rounds 3]

The application is that of `faasrt.examples.fastapi_backend`, on uvicorn with several workers. It grades answers with a
program that imports nothing, or pandas. "one server" is `faasrt serve`, which all workers use. Memory and CPU time are
those of all processes: uvicorn's, the server's and those of the sandboxes; "MB" is the sum of the proportional set
sizes (PSS), at most, under load. Run it as root, because a sandbox may belong to another user.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from fastapi import FastAPI

from benchmarks.harness import Figures, FreshContender, parser, ratio, run_rounds, serve_requests, spreads
from benchmarks.report import Report
from benchmarks.server import faas
from faasrt import RuntimeManager
from faasrt.cli.report.summary import percentiles
from faasrt.examples import fastapi_backend

_IN_FLIGHT = 16
_SAMPLE_S = 0.25
_GRADER = 'def grade(answer, expected):\n    return {"score": float(answer == expected)}\n'
PROGRAMS = {"print": _GRADER, "pandas": f"import pandas\n{_GRADER}"}
# The arguments of `RuntimeManager.local` in each process; None for one server.
CONTENDERS: dict[str, dict[str, int] | None] = {
    "one server": None,
    "local() in each": {},
    "local(workers=1) in each": {"workers": 1},
}


def create_app() -> FastAPI:
    """Create the application in a worker of uvicorn."""
    options = CONTENDERS[os.environ["BENCHMARK_CONTENDER"]]
    if options is None:
        return fastapi_backend.create_app()
    return fastapi_backend.create_app(functools.partial(RuntimeManager.local, ["python"], **options))


@contextlib.contextmanager
def serving(contender: str, workers: int) -> Iterator[tuple[str, list[int]]]:
    """Run the application. Yield its URL, and the process ids of uvicorn and of the server."""
    with contextlib.ExitStack() as stack:
        environment = {**os.environ, "BENCHMARK_CONTENDER": contender}
        roots = []
        if CONTENDERS[contender] is None:
            server = stack.enter_context(faas("--language", "python"))
            environment["COZE_LOOP_FAAS_URL"] = server.url
            roots.append(server.process.pid)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.processes:create_app"]
        options = ["--workers", str(workers), "--port", str(port), "--log-level", "warning"]
        process = subprocess.Popen([*command, *options], env=environment)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        yield f"http://127.0.0.1:{port}", [*roots, process.pid]


def family(roots: list[int]) -> list[psutil.Process]:
    """Return processes and all their descendants."""
    return [process for root in map(psutil.Process, roots) for process in (root, *root.children(recursive=True))]


def cpu_s(roots: list[int]) -> float:
    """Return the CPU time of processes and all their descendants, including those that have ended."""
    total = 0.0
    for process in family(roots):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_mb(roots: list[int]) -> float:
    """Return the PSS of processes and all their descendants."""
    total_kb = 0
    for process in family(roots):
        with contextlib.suppress(OSError):  # the process has ended
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            total_kb += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total_kb / 1024


async def load(url: str, code: str, seconds: float) -> tuple[list[float], int]:
    """Send requests for some seconds, several at once. Return the duration of each in milliseconds, and how many
    failed.
    """
    body = {"grader": code, "answer": "42", "expected": "42", "timeout_ms": 30_000}
    durations: list[float] = []
    failed = 0
    # Each request has a connection of its own, so that all workers get some.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(url, connector=connector) as session:

        async def send(until: float) -> None:
            nonlocal failed
            while time.perf_counter() < until:
                started = time.perf_counter()
                async with session.post("/grade", json=body) as answer:
                    if answer.status != 200:  # overload
                        failed += 1
                        continue
                    graded = await answer.json()
                    assert graded["grade"]["score"] == 1, graded
                durations.append((time.perf_counter() - started) * 1000)

        end = time.perf_counter() + seconds
        await asyncio.gather(*(send(end) for _ in range(_IN_FLIGHT)))
    return durations, failed


async def wait_started(url: str) -> None:
    async with aiohttp.ClientSession(url) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get("/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


def measure(contender: str, program: str, workers: int, seconds: float) -> Figures:
    """Return the rate, the latencies, and the memory before and during the load."""
    code = PROGRAMS[program]
    with serving(contender, workers) as (url, roots):
        asyncio.run(wait_started(url))
        asyncio.run(load(url, code, seconds / 2))  # every worker has started its engines, and imported pandas
        time.sleep(1)
        idle_mb, peak_mb, stopping = memory_mb(roots), 0.0, threading.Event()

        def watch() -> None:
            nonlocal peak_mb
            while not stopping.wait(_SAMPLE_S):
                peak_mb = max(peak_mb, memory_mb(roots))

        before_s = cpu_s(roots)
        watching = threading.Thread(target=watch)
        watching.start()
        durations, failed = asyncio.run(load(url, code, seconds))
        used_s = cpu_s(roots) - before_s
        stopping.set()
        watching.join()
    times = percentiles(durations)
    return {
        "CPU ms": used_s * 1000 / len(durations),
        "programs/s": len(durations) / seconds,
        "p50 ms": times["p50"],
        "p99 ms": times["p99"],
        "failed": failed,
        "idle MB": idle_mb,
        "MB": peak_mb,
    }


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--workers", type=int, default=4, help="number of worker processes (default %(default)s)")
    options.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="programs to run")
    options.add_argument("--seconds", type=float, default=10, help="seconds of load (default %(default)s)")
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("processes", vars(args))
    started = {name: FreshContender("benchmarks.processes", name) for name in CONTENDERS}
    for program in args.programs:
        rounds = run_rounds(started, args, program=program, workers=args.workers, seconds=args.seconds)
        for name in CONTENDERS:
            of_server: dict[str, Any] = {
                f"{figure} of server": ratio(rounds, name, "one server", figure)
                for figure in ("CPU ms", "programs/s", "idle MB", "MB")
            }
            report.row(f"{args.workers} processes, {program}", by=name, **spreads(rounds, name), **of_server)
    report.print(args.json)


if __name__ == "__main__":
    main()
