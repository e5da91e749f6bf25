"""Sessions of the embedded FaaS compared with Jupyter's kernels, which have no sandbox, and with pickled state.

    python -m benchmarks.sessions [--opens 10] [--runs 100] [--idle 20] [--rounds 3]

In a session, each step sees the variables of earlier ones. A kernel of Jupyter (`ipykernel`) does the same, without
limits or a sandbox. With `pickled`, each step is a new program on the engine `native`, which reads its state from a
file, and writes it back. The private memory of an idle session is the growth of that of all processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import pickle
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psutil

from benchmarks.harness import Figures, contenders, parser, ratio, run_rounds, serve_requests, spreads
from benchmarks.report import Report
from faasrt import ExecutionResult, RuntimeManager, SandboxConfig, Session

ENGINES = {"native": "python", "wasm": "python", "deno": "javascript"}
NEEDED = ("jupyter_client", "ipykernel")
STEP = {"python": "n += 1; n", "javascript": "n += 1; n"}
PICKLED = """
import pickle
with open("state", "rb") as file:
    state = pickle.load(file)
state["n"] += 1
print(state["n"])
with open("state", "wb") as file:
    pickle.dump(state, file)
"""
SANDBOX = SandboxConfig(memory_limit_mb=512)
PAUSE_S = 0.1  # between measurements, in which processes get warm
Step = Callable[[str], Awaitable[object]]
"""Runs a step in an open session."""


async def timed(action: Awaitable[Any]) -> tuple[Any, float]:
    """Return a result, and the milliseconds until it arrived."""
    started = time.perf_counter()
    return await action, 1000 * (time.perf_counter() - started)


async def checked(run: Awaitable[ExecutionResult]) -> ExecutionResult:
    result = await run
    assert result.ok, result
    return result


def private_mib() -> float:
    """Return the private memory of this process and of all processes below it."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total / 2**20


@asynccontextmanager
async def faas_sessions(engine: str) -> AsyncIterator[Callable[[], Any]]:
    language = ENGINES[engine]
    async with RuntimeManager.local([language], engines={language: engine}) as manager:
        await checked(manager.run_code("1", language))
        yield lambda: manager.session(language, sandbox=SANDBOX)


@asynccontextmanager
async def kernel() -> AsyncIterator[Step]:
    """Start a kernel, and return a function that runs code in it."""
    from jupyter_client.manager import start_new_async_kernel

    manager, client = await start_new_async_kernel()
    try:

        async def step(code: str) -> None:
            reply = await client.execute_interactive(code, output_hook=lambda message: None)
            assert reply["content"]["status"] == "ok", reply

        yield step
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


async def sessions(contender: str, opens: int, runs: int, idle: int) -> Figures:
    """Return the medians of the time to open a session, to run a small step, and to fork a session with pandas; and the
    private memory of an idle session.
    """
    language = ENGINES.get(contender, "python")
    async with AsyncExitStack() as stack:
        if contender == "ipykernel":
            new: Callable[[], Any] = kernel
        else:
            new = await stack.enter_async_context(faas_sessions(contender))

        def step_of(session: Any) -> Step:
            if isinstance(session, Session):
                return lambda code: checked(session.run_code(code))
            return session  # type: ignore[no-any-return]

        async with new() as session:  # the first one may be slower
            await step_of(session)("1")
        opened = []
        for _ in range(opens):
            await asyncio.sleep(PAUSE_S)
            async with AsyncExitStack() as own:
                opened.append((await timed(own.enter_async_context(new())))[1])
        async with new() as session:
            step = step_of(session)
            await step("let n = 0" if language == "javascript" else "n = 0")
            for _ in range(10):
                await step(STEP[language])
            times = [(await timed(step(STEP[language])))[1] for _ in range(runs)]
            figures = {"open ms": statistics.median(opened), "run ms": statistics.median(times)}
            if contender in ("native", "wasm"):
                await step("import pandas")
                forked = []
                for _ in range(opens):
                    await asyncio.sleep(PAUSE_S)
                    branch, taken_ms = await timed(session.fork())
                    forked.append(taken_ms)
                    await branch.aclose()
                figures["fork with pandas ms"] = statistics.median(forked)
        await asyncio.sleep(PAUSE_S)
        before = private_mib()
        for _ in range(idle):
            await step_of(await stack.enter_async_context(new()))("1")
        figures["idle MiB"] = (private_mib() - before) / idle
    return figures


async def pickled(runs: int) -> Figures:
    """Return the time of a small step that reads its state, and writes it back."""
    async with RuntimeManager.local(["python"], engines={"python": "native"}) as manager:
        state, times = pickle.dumps({"n": 0}), []
        for _ in range(10 + runs):
            run = manager.run_code(PICKLED, "python", sandbox=SANDBOX, files={"state": state}, collect=["state"])
            result, taken_ms = await timed(checked(run))
            state = result.files["state"]
            times.append(taken_ms)
    return {"run ms": statistics.median(times[10:])}


def measure(contender: str, opens: int, runs: int, idle: int) -> Figures:
    if contender == "pickled":
        return asyncio.run(pickled(runs))
    return asyncio.run(sessions(contender, opens, runs, idle))


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--opens", type=int, default=10, help="sessions to open and to fork (default %(default)s)")
    options.add_argument("--runs", type=int, default=100, help="steps in a session (default %(default)s)")
    options.add_argument("--idle", type=int, default=20, help="sessions that are idle (default %(default)s)")
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("sessions", vars(args))
    names = [*ENGINES, "pickled"]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"without Jupyter's kernel: pip install {' '.join(missing)}", file=sys.stderr)
    else:
        names.append("ipykernel")
    with contenders("benchmarks.sessions", names) as started:
        rounds = run_rounds(started, args, opens=args.opens, runs=args.runs, idle=args.idle)
    for name in names:
        figures = spreads(rounds, name)
        of_pickled = {"run of pickled": ratio(rounds, name, "pickled", "run ms")}
        report.row("A session, steps in it, and idle sessions", engine=name, **figures, **of_pickled)
    for figure, limit in (("open ms", 6), ("run ms", 1.5), ("fork with pandas ms", 8), ("idle MiB", 10)):
        found = spreads(rounds, "native")[figure]
        report.goal(f"native: {figure} is at most {limit}", found, found.median <= limit)
    report.print(args.json)


if __name__ == "__main__":
    main()
