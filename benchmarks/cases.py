"""What `run_cases` saves where a start-up is dear: cases a second in one execution, against a call for each.

    python -m benchmarks.cases [--start-up 1.5] [--cases 200] [--calls 16]

The server is the tests' double of python-faas, with its eight slots and a simulated start-up. The calls are a sample:
200 of them would take as long for each as 16 do.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from faasrt import RuntimeManager, Settings, TimeoutSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from doubles import PythonFaas

CODE = "def grade(turn):\n    return {'score': len(turn)}"


async def measure(start_up_s: float, cases: int, calls: int) -> tuple[float, float]:
    """Cases a second, by calls and by `run_cases`."""
    async with PythonFaas(start_up_s=start_up_s) as double:
        settings = Settings(endpoints={"python": double.url}, timeouts=TimeoutSettings(startup_s=600))
        async with RuntimeManager(settings=settings) as manager:
            runtime = await manager.get_runtime("python")
            await runtime.run_code("1")
            started = time.perf_counter()
            await asyncio.gather(*(runtime.call_function(CODE, "grade", "x" * number) for number in range(calls)))
            by_calls = calls / (time.perf_counter() - started)
            started = time.perf_counter()
            results = await runtime.run_cases(CODE, "grade", [("x" * number,) for number in range(cases)])
            by_cases = cases / (time.perf_counter() - started)
            assert [result.value["score"] for result in results] == list(range(cases))
    return by_calls, by_cases


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--start-up", type=float, default=1.5, help="seconds")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--calls", type=int, default=16)
    options = parser.parse_args()
    by_calls, by_cases = asyncio.run(measure(options.start_up, options.cases, options.calls))
    print(f"call_function {by_calls:.1f} cases/s, run_cases {by_cases:.1f} cases/s, ratio {by_cases / by_calls:.1f}")


if __name__ == "__main__":
    main()
