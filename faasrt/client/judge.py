"""Runs the tests of a program, and collects the verdicts.

`faasrt.judging` has the tests, the comparisons and the verdicts themselves, without I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, cast

import attrs

from faasrt._run_option_checks import check_count, check_flag
from faasrt.client.cache import in_thread_if_large
from faasrt.inputs import NO_INPUT
from faasrt.judging import (
    AssertTest,
    Compare,
    FunctionTest,
    Judgement,
    Test,
    TestCase,
    TestResult,
    Verdict,
    check_compare,
    check_function_given,
    check_tests,
    floats,
    judge_result,
)
from faasrt.languages import Language
from faasrt.protocol.cases import check_function, check_keywords, encode_case
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.program import Program
from faasrt.protocol.streams import cut_texts
from faasrt.results import ErrorInfo, ExecutionOutput, ExecutionResult, Outcome
from faasrt.tasks import JudgeOptions, RunOptions

Run: TypeAlias = Callable[[Program], Awaitable[ExecutionResult]]
JudgeTest: TypeAlias = Callable[[Test, ExecutionResult], Awaitable[TestResult]]
RunCases: TypeAlias = Callable[[Program, GuestJob], AsyncGenerator[dict[int, ExecutionResult]]]
_DEFAULT_CONCURRENCY = 64
KEPT_BYTES = 16_384
"""The size of each text that is kept of the result of a `FunctionTest`."""


def check_arguments(
    tests: object, function: object, compare: object, stop_on_failure: object, concurrency: object
) -> tuple[TestCase, ...] | tuple[FunctionTest, ...] | tuple[AssertTest, ...]:
    checked = check_tests(tests)
    check_function_given(checked, function)
    check_compare(compare, type(checked[0]))
    check_flag("stop_on_failure", stop_on_failure, optional=False)
    if concurrency is not None:
        check_count("concurrency", concurrency)
    return checked


def options_of(test: Test, options: JudgeOptions) -> RunOptions:
    run_options = cast(RunOptions, dict(options))
    if isinstance(test, TestCase):
        run_options |= RunOptions(stdin=test.stdin, argv=test.argv, files=test.files)
    if test.timeout_ms is not None:
        run_options["timeout_ms"] = test.timeout_ms
    return run_options


def function_job(tests: Sequence[Test], function: str, language: Language | str) -> GuestJob:
    name = check_function(function, language)
    cases = []
    for index, test in enumerate(tests):
        assert isinstance(test, FunctionTest)
        check_keywords(test.kwargs, language)
        cases.append(encode_case(test.args, test.kwargs, language, f"test {index}", exact=True))
    return GuestJob(function=name, cases=cases, single=False, isolate=True, exact=True, imported=True)


def program_job(programs: Sequence[Program]) -> GuestJob:
    cases = [json.dumps(program.input.to_wire()) for program in programs]
    return GuestJob(cases=cases, single=False, isolate=True)


@attrs.frozen(eq=False)
class Judge:
    run: Run
    run_cases: RunCases
    stop_on_failure: bool
    concurrency: int | None

    async def run_tests(
        self, tests: Sequence[Test], programs: Sequence[Program], job: GuestJob | None, judge_test: JudgeTest
    ) -> Judgement:
        """Run the tests of a program, and return the verdicts. If an execution fails, cancel the others, and raise its
        error.

        Args:
            programs: The program with the input and the limits of each test.
            job: A case for each test; None if each test has an execution of its own.

        Cancellation: cancels the executions in flight.
        """
        started = time.perf_counter()
        groups: dict[float, list[int]] = {}
        for index, program in enumerate(programs):
            groups.setdefault(index if job is None else program.timeout_ms, []).append(index)
        execute = self._run_alone if job is None else functools.partial(self._run_together, job)
        permits = asyncio.Semaphore(_DEFAULT_CONCURRENCY if self.concurrency is None else self.concurrency)
        running = _RunningTests(tests, functools.partial(execute, programs), judge_test, self.stop_on_failure, permits)
        results = await running.run(groups.values())
        if self.stop_on_failure:
            results = skip_after_failure(results)
        return Judgement(results=tuple(results), duration_s=time.perf_counter() - started)

    async def _run_alone(
        self, programs: Sequence[Program], indices: Sequence[int]
    ) -> AsyncGenerator[dict[int, ExecutionResult]]:
        for index in indices:
            yield {index: await self.run(programs[index])}

    async def _run_together(
        self, job: GuestJob, programs: Sequence[Program], indices: Sequence[int]
    ) -> AsyncGenerator[dict[int, ExecutionResult]]:
        program = attrs.evolve(programs[indices[0]], input=NO_INPUT)
        part = attrs.evolve(job, cases=[job.cases[index] for index in indices])
        async with contextlib.aclosing(self.run_cases(program, part)) as executions:
            async for found in executions:
                yield {indices[position]: result for position, result in found.items()}


@attrs.define(eq=False)
class _RunningTests:
    _tests: Sequence[Test]
    _execute: Callable[[Sequence[int]], AsyncGenerator[dict[int, ExecutionResult]]]
    _judge_test: JudgeTest
    _stop_on_failure: bool
    _permits: asyncio.Semaphore
    _results: list[TestResult] = attrs.field(init=False)
    # The tests from this index on are not needed.
    _stop_at: int = attrs.field(init=False)
    # The first test without a result of each running task.
    _waiting: dict[asyncio.Task[None], int] = attrs.field(factory=dict, init=False)
    _failures: list[Exception] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._results = [TestResult(test=test, verdict=Verdict.SKIPPED) for test in self._tests]
        self._stop_at = len(self._tests)

    async def run(self, groups: Iterable[Sequence[int]]) -> list[TestResult]:
        async with asyncio.TaskGroup() as group:
            for indices in groups:
                self._start(group, indices)
        if self._failures:
            raise self._failures.pop(0)  # without `pop`, the frame and the error would keep each other in memory
        return self._results

    def _start(self, group: asyncio.TaskGroup, indices: Sequence[int]) -> None:
        task = group.create_task(self._run_group(group, indices))
        self._waiting[task] = indices[0]
        task.add_done_callback(self._waiting.pop)

    async def _run_group(self, group: asyncio.TaskGroup, indices: Sequence[int]) -> None:
        task = asyncio.current_task()
        assert task is not None
        # No error may leave the task. Otherwise a TaskGroup would lose a cancellation of the caller, and in Python 3.11
        # `cancelling()` of the caller would never return to 0.
        try:
            async with self._permits, contextlib.aclosing(self._execute(indices)) as executions:
                async for found in executions:
                    await self._judge(found)
                    # Usually they are the first ones.
                    is_first = all(map(found.__contains__, indices[: len(found)]))
                    left = indices[len(found) :] if is_first else [index for index in indices if index not in found]
                    indices = left[: bisect_left(left, self._stop_at)]
                    if not indices:
                        break
                    self._waiting[task] = indices[0]
                    if len(indices) > 1 and any(result.outcome is Outcome.TIMEOUT for result in found.values()):
                        # The others may hang too, so more and more of them run at the same time.
                        middle = len(indices) // 2
                        self._start(group, indices[:middle])
                        self._start(group, indices[middle:])
                        break
        except Exception as error:
            self._failures.append(error)
            self._cancel_after(-1)

    async def _judge(self, found: Mapping[int, ExecutionResult]) -> None:
        for index, result in found.items():
            judged = await self._judge_test(self._tests[index], result)
            self._results[index] = judged
            if self._stop_on_failure and judged.verdict is not Verdict.PASSED and index < self._stop_at:
                self._cancel_after(index)

    def _cancel_after(self, index: int) -> None:
        self._stop_at = index
        for task, first in self._waiting.items():
            if first > index and task is not asyncio.current_task():
                task.cancel()


async def compare_result(test: Test, result: ExecutionResult, *, compare: Compare | None) -> TestResult:
    """Return the verdict on a test. Large outputs are compared in a thread, but not by functions of the caller."""
    comparison = (test.compare if isinstance(test, FunctionTest) else None) or compare
    size = len(result.stdout) + len(test.expected) if isinstance(test, TestCase) else len(result.ret_val)
    if comparison is not None and not isinstance(comparison, (str, floats)):
        size = 0
    verdict = await in_thread_if_large(size, functools.partial(judge_result, test, result, compare))
    return attrs.evolve(verdict, result=_shortened(result)) if isinstance(test, FunctionTest) else verdict


def _shortened(result: ExecutionResult) -> ExecutionResult:
    """Shorten the texts, because a judgement of many tests must not take much memory."""
    texts, cut_names = cut_texts(attrs.asdict(result.output), KEPT_BYTES)
    error = result.error
    if error is not None:
        error = ErrorInfo(**cut_texts(attrs.asdict(error), KEPT_BYTES)[0])
    output = ExecutionOutput(**texts) if cut_names else result.output
    return attrs.evolve(result, output=output, error=error, truncated=result.truncated | cut_names)


def skip_after_failure(results: list[TestResult]) -> list[TestResult]:
    """Skip the results after the first failure, even if their program has run."""
    passed = [result.verdict is Verdict.PASSED for result in results]
    kept = passed.index(False) + 1 if False in passed else len(results)
    skipped = [TestResult(test=result.test, verdict=Verdict.SKIPPED) for result in results[kept:]]
    return results[:kept] + skipped
