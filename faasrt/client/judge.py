"""Runs the tests of a judgement: each in an execution of its own, or many in one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeAlias, cast

import attrs

from faasrt._run_options import check_flag
from faasrt.client.cache import in_thread_if_large
from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.inputs import NO_INPUT
from faasrt.judging import (
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
from faasrt.protocol.request import RunRequest
from faasrt.results import ExecutionResult
from faasrt.tasks import JudgeOptions, RunOptions

RunCases: TypeAlias = Callable[[RunRequest, GuestJob], AsyncGenerator[tuple[int, ExecutionResult]]]
_DEFAULT_CONCURRENCY = 64


def check_arguments(
    tests: object, function: object, compare: object, stop_on_failure: object, concurrency: object
) -> tuple[TestCase, ...] | tuple[FunctionTest, ...]:
    """Return the tests, after checking the arguments of `Runtime.judge`. Raise InvalidRequestError if one is wrong."""
    checked = check_tests(tests)
    check_function_given(checked, function)
    check_compare(compare, type(checked[0]))
    check_flag("stop_on_failure", stop_on_failure, optional=False)
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise InvalidRequestError(
            f"concurrency must be a whole number of at least 1, or None, got {safe_repr(concurrency)}"
        )
    return checked


def options_of(test: Test, options: JudgeOptions) -> RunOptions:
    """Return the options of the run of a test."""
    run_options = cast(RunOptions, dict(options))
    if isinstance(test, TestCase):
        run_options |= RunOptions(stdin=test.stdin, argv=test.argv, files=test.files)
    if test.timeout_ms is not None:
        run_options["timeout_ms"] = test.timeout_ms
    return run_options


def function_job(tests: Sequence[Test], function: str, language: Language | str) -> GuestJob:
    """Return the job that calls a function once for each test. Raise InvalidRequestError if it cannot be called so."""
    name = check_function(function, language)
    cases = []
    for index, test in enumerate(tests):
        assert isinstance(test, FunctionTest)
        check_keywords(test.kwargs, language)
        cases.append(encode_case(test.args, test.kwargs, language, f"test {index}"))
    return GuestJob(function=name, cases=cases, single=False, isolate=True, exact=True)


def program_job(requests: Sequence[RunRequest]) -> GuestJob:
    """Return the job that runs a program once for the input of each request. Python only."""
    cases = [json.dumps(request.input.to_wire()) for request in requests]
    return GuestJob(cases=cases, single=False, isolate=True)


async def judge(
    tests: Sequence[Test],
    requests: Sequence[RunRequest],
    run: Callable[[RunRequest], Awaitable[ExecutionResult]],
    run_cases: RunCases,
    job: GuestJob | None,
    *,
    compare: Compare | None,
    stop_on_failure: bool,
    concurrency: int | None,
) -> Judgement:
    """Run the tests of a program. `Runtime.judge` documents the other arguments.

    Args:
        requests: The program with the input and the limits of each test.
        run: Runs the program with the input of one test.
        run_cases: Runs the cases of a job in as few executions as possible.
        job: A case for each test; None if each test has an execution of its own.

    Raises:
        FaasrtError: An execution failed. The other ones are cancelled.

    Cancellation: cancels the executions in flight.
    """
    started = time.perf_counter()
    if job is None:
        results = await _run_separately(
            tests,
            requests,
            run,
            compare=compare,
            stop_on_failure=stop_on_failure,
            concurrency=_DEFAULT_CONCURRENCY if concurrency is None else concurrency,
        )
    else:
        results = await _run_together(tests, requests, run_cases, job, compare=compare, stop_on_failure=stop_on_failure)
    if stop_on_failure:
        results = _skip_after_failure(results)
    return Judgement(results=tuple(results), duration_s=time.perf_counter() - started)


async def _run_separately(
    tests: Sequence[Test],
    requests: Sequence[RunRequest],
    run: Callable[[RunRequest], Awaitable[ExecutionResult]],
    *,
    compare: Compare | None,
    stop_on_failure: bool,
    concurrency: int,
) -> list[TestResult]:
    """Return the verdict on each test, run in an execution of its own."""
    results = [TestResult(test=test, verdict=Verdict.SKIPPED) for test in tests]
    permits = asyncio.Semaphore(concurrency)
    running: list[asyncio.Task[None]] = []
    failures: list[Exception] = []

    async def run_test(index: int) -> None:
        # No error may leave the task. Otherwise a TaskGroup would lose a cancellation of the caller, and in Python 3.11
        # `cancelling()` of the caller would never return to 0.
        try:
            async with permits:
                results[index] = await _judge_result(tests[index], await run(requests[index]), compare)
        except Exception as error:
            failures.append(error)
            unwanted = [*running[:index], *running[index + 1 :]]
        else:
            has_failed = stop_on_failure and results[index].verdict is not Verdict.PASSED
            unwanted = running[index + 1 :] if has_failed else []
        for other in unwanted:
            other.cancel()

    async with asyncio.TaskGroup() as group:
        running += [group.create_task(run_test(index)) for index in range(len(tests))]
    if failures:
        raise failures.pop(0)  # without `pop`, the frame and the error would keep each other in memory
    return results


async def _run_together(
    tests: Sequence[Test],
    requests: Sequence[RunRequest],
    run_cases: RunCases,
    job: GuestJob,
    *,
    compare: Compare | None,
    stop_on_failure: bool,
) -> list[TestResult]:
    """Return the verdict on each test. The tests with the same time limit share executions."""
    results = [TestResult(test=test, verdict=Verdict.SKIPPED) for test in tests]
    end = len(tests)
    for limit_ms in dict.fromkeys(request.timeout_ms for request in requests):
        indices = [index for index in range(end) if requests[index].timeout_ms == limit_ms]
        if not indices:
            continue
        request = attrs.evolve(requests[indices[0]], input=NO_INPUT)
        cases = attrs.evolve(job, cases=[job.cases[index] for index in indices])
        async with contextlib.aclosing(run_cases(request, cases)) as ran:
            async for position, result in ran:
                index = indices[position]
                results[index] = await _judge_result(tests[index], result, compare)
                if stop_on_failure and results[index].verdict is not Verdict.PASSED:
                    end = index
                    break
    return results


async def _judge_result(test: Test, result: ExecutionResult, compare: Compare | None) -> TestResult:
    """Return the verdict on a test. Large outputs are compared in a thread, but not by functions of the caller."""
    used = (test.compare if isinstance(test, FunctionTest) else None) or compare
    judged = functools.partial(judge_result, test, result, compare)
    is_own = used is None or isinstance(used, (str, floats))
    size = len(result.ret_val if isinstance(test, FunctionTest) else result.stdout)
    return await in_thread_if_large(size if is_own else 0, judged)


def _skip_after_failure(results: list[TestResult]) -> list[TestResult]:
    """Return the results, of which those after the first failure are skipped even if their program has run."""
    passed = [result.verdict is Verdict.PASSED for result in results]
    kept = passed.index(False) + 1 if False in passed else len(results)
    skipped = [TestResult(test=result.test, verdict=Verdict.SKIPPED) for result in results[kept:]]
    return results[:kept] + skipped
