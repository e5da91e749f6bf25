"""Judging programs by tests, on the embedded FaaS and with plain processes of `python -I`.

    python -m benchmarks.judging [--problems 20] [--rounds 3]

There are twenty problems with ten tests each, a right solution and a wrong one. The solutions are judged as programs,
by `TestCase`, and as functions, by `FunctionTest` and by `AssertTest`. The processes run two at a time; they have no
limits and no sandbox. There is one for each test, and for functions also one for each solution, which calls the
function for all tests.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.harness import Figures, contenders, parser, ratio, run_rounds, serve_requests, spreads
from benchmarks.problems import PROBLEMS, Problem, as_function
from benchmarks.report import Report
from faasrt import (
    AssertTest,
    CodeTask,
    ExecutionOutput,
    ExecutionResult,
    FunctionTest,
    Outcome,
    RuntimeManager,
    TestCase,
)
from faasrt.judging import Test, judge_result

Solutions: TypeAlias = list[tuple[str, Sequence[TestCase] | Sequence[FunctionTest] | Sequence[AssertTest]]]
_CALLS = """
import json, sys
for arguments in json.load(sys.stdin):
    print(json.dumps(solve(*arguments)))
"""


def programs(problems: list[Problem]) -> Solutions:
    return [(code, problem.tests()) for problem in problems for code in (problem.right, problem.wrong)]


def functions(problems: list[Problem]) -> Solutions:
    return [
        (as_function(code), problem.function_tests()) for problem in problems for code in (problem.right, problem.wrong)
    ]


def asserts(problems: list[Problem]) -> Solutions:
    solutions: Solutions = []
    for problem in problems:
        programs = [f"assert solve(*{test.args}) == {test.expected}" for test in problem.function_tests()]
        tests = [AssertTest(program) for program in programs]
        solutions += [(as_function(code), tests) for code in (problem.right, problem.wrong)]
    return solutions


async def by_faasrt(solutions: Solutions) -> tuple[float, list[float]]:
    async with RuntimeManager.local(["python"]) as manager:
        await manager.run_code("1", "python")
        tasks = [
            CodeTask(code, "python", tests=tests, function=None if isinstance(tests[0], TestCase) else "solve")
            for code, tests in solutions
        ]
        started = time.perf_counter()
        scores = []
        async for item in manager.map(tasks, concurrency=4, ordered=True):
            assert item.error is None, item.error
            assert item.judgement is not None
            scores.append(item.judgement.score)
        return time.perf_counter() - started, scores


async def by_processes(solutions: Solutions, *, shared: bool = False) -> tuple[float, list[float]]:
    """Judge the tests of a solution in one process, or else each test in a process of its own."""
    permits = asyncio.Semaphore(os.cpu_count() or 1)

    async def passed(path: Path, tests: Sequence[Test]) -> int:
        async with permits:
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", path, stdin=pipe, stdout=pipe, stderr=pipe
            )
            calls = [test.args for test in tests if isinstance(test, FunctionTest)]
            text = tests[0].stdin if isinstance(tests[0], TestCase) else json.dumps(calls)
            stdout, _ = await process.communicate(str(text).encode())
        outcome = Outcome.USER_ERROR if process.returncode else Outcome.OK
        if calls:
            outputs = [ExecutionOutput(ret_val=line) for line in stdout.decode().splitlines()]
        else:
            outputs = [ExecutionOutput(stdout.decode())]
        results = [ExecutionResult(outcome=outcome, output=output) for output in outputs]
        judged = [judge_result(test, result) for test, result in zip(tests, results, strict=False)]
        return sum(test.verdict == "PASSED" for test in judged)

    async def score(path: Path, tests: Sequence[Test]) -> float:
        groups = [tests] if shared else [[test] for test in tests]
        return sum(await asyncio.gather(*(passed(path, group) for group in groups))) / len(tests)

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        paths = []
        for number, (code, tests) in enumerate(solutions):
            path = Path(folder, f"{number}.py")
            path.write_text(code + (_CALLS if isinstance(tests[0], FunctionTest) else ""))  # noqa: ASYNC240 (nothing else runs)
            paths.append(path)
        scores = await asyncio.gather(*(score(path, tests) for path, (_, tests) in zip(paths, solutions, strict=True)))
        return time.perf_counter() - started, scores


CONTENDERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "programs-in-processes": (programs, by_processes),
    "programs-in-faasrt": (programs, by_faasrt),
    "functions-in-processes": (functions, by_processes),
    "functions-in-shared-processes": (functions, functools.partial(by_processes, shared=True)),
    "functions-in-faasrt": (functions, by_faasrt),
    "functions-by-asserts-in-faasrt": (asserts, by_faasrt),
}


def measure(contender: str, problems: int) -> Figures:
    """Return the tests per second, after checking that every solution is judged rightly."""
    make, judge_all = CONTENDERS[contender]
    solutions = make(PROBLEMS[:problems])
    elapsed_s, scores = asyncio.run(judge_all(solutions))
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
        kind = name.partition("-")[0]
        times = {"of a process per test": ratio(rounds, name, f"{kind}-in-processes", "tests/s")}
        if kind == "functions":
            times["of a process per solution"] = ratio(rounds, name, "functions-in-shared-processes", "tests/s")
        report.row(f"{args.problems} problems", by=name, **spreads(rounds, name), **times)
    report.print(args.json)


if __name__ == "__main__":
    main()
