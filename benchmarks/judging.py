"""Judging programs by tests, on the embedded FaaS and with plain processes of `python -I`.

    python -m benchmarks.judging [--problems 20] [--rounds 3]

There are twenty problems with ten tests each, a right solution and a wrong one. The processes run two at a time; they
have no limits and no sandbox.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Figures, contenders, parser, ratio, run_rounds, serve_requests, spreads
from benchmarks.problems import PROBLEMS
from benchmarks.report import Report
from faasrt import CodeTask, ExecutionOutput, ExecutionResult, Outcome, RuntimeManager, TestCase
from faasrt.judging import judge_result

Solutions = list[tuple[str, list[TestCase]]]


async def by_faasrt(solutions: Solutions) -> tuple[float, list[float]]:
    async with RuntimeManager.local(["python"]) as manager:
        await manager.run_code("1", "python")
        tasks = [CodeTask(code, "python", tests=tests) for code, tests in solutions]
        started = time.perf_counter()
        scores = []
        async for item in manager.map(tasks, concurrency=4, ordered=True):
            assert item.error is None, item.error
            assert item.judgement is not None
            scores.append(item.judgement.score)
        return time.perf_counter() - started, scores


async def by_processes(solutions: Solutions) -> tuple[float, list[float]]:
    permits = asyncio.Semaphore(os.cpu_count() or 1)

    async def passes(path: Path, test: TestCase) -> bool:
        async with permits:
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", path, stdin=pipe, stdout=pipe, stderr=pipe
            )
            stdout, _ = await process.communicate(str(test.stdin).encode())
        outcome = Outcome.USER_ERROR if process.returncode else Outcome.OK
        result = ExecutionResult(outcome=outcome, output=ExecutionOutput(stdout.decode()))
        return judge_result(test, result, "lines").verdict == "PASSED"

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        scores = []
        for number, (code, tests) in enumerate(solutions):
            path = Path(folder, f"{number}.py")
            path.write_text(code)  # noqa: ASYNC240 (nothing else runs at this time)
            passed = await asyncio.gather(*(passes(path, test) for test in tests))
            scores.append(sum(passed) / len(tests))
        return time.perf_counter() - started, scores


CONTENDERS = {"processes": by_processes, "faasrt": by_faasrt}


def measure(contender: str, problems: int) -> Figures:
    """Return the tests per second, after checking that every solution is judged rightly."""
    solutions = [(code, problem.tests()) for problem in PROBLEMS[:problems] for code in (problem.right, problem.wrong)]
    elapsed_s, scores = asyncio.run(CONTENDERS[contender](solutions))
    assert all(score == 1 for score in scores[::2])
    assert all(score < 1 for score in scores[1::2])
    return {"tests/s": sum(len(tests) for _, tests in solutions) / elapsed_s}


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--problems", type=int, default=len(PROBLEMS))
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("judging", vars(args))
    with contenders("benchmarks.judging", CONTENDERS) as started:
        rounds = run_rounds(started, args, problems=args.problems)
    for name in CONTENDERS:
        times = {"of processes": ratio(rounds, name, "processes", "tests/s")}
        report.row(f"{args.problems} problems", by=name, **spreads(rounds, name), **times)
    report.print(args.json)


if __name__ == "__main__":
    main()
