"""Runs the tests of a judgement: each in an execution of its own, or many in one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from faasrt._run_options import check_flag
from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.inputs import ProgramInput
from faasrt.judging import (
    Compare,
    Judgement,
    TestCase,
    TestResult,
    Verdict,
    check_compare,
    check_tests,
    judge_result,
)
from faasrt.protocol.request import RunRequest
from faasrt.results import ExecutionResult
from faasrt.tasks import JudgeOptions, RunOptions

_DEFAULT_CONCURRENCY = 64


def check_arguments(
    tests: object, compare: object, stop_on_failure: object, concurrency: object
) -> tuple[TestCase, ...]:
    """Return the tests, after checking the arguments of `Runtime.judge`. Raise InvalidRequestError if one is wrong."""
    checked = check_tests(tests)
    check_compare(compare)
    check_flag("stop_on_failure", stop_on_failure, optional=False)
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise InvalidRequestError(
            f"concurrency must be a whole number of at least 1, or None, got {safe_repr(concurrency)}"
        )
    return checked


def options_of(test: TestCase, options: JudgeOptions) -> RunOptions:
    """Return the options of the run of a test."""
    run_options = RunOptions(**options, stdin=test.stdin, argv=test.argv, files=test.files, collect=())
    if test.timeout_ms is not None:
        run_options["timeout_ms"] = test.timeout_ms
    return run_options


async def judge(
    tests: Sequence[TestCase],
    requests: Sequence[RunRequest],
    run: Callable[[RunRequest], Awaitable[ExecutionResult]],
    run_inputs: Callable[[RunRequest, Sequence[ProgramInput]], Awaitable[list[ExecutionResult]]] | None,
    *,
    compare: Compare,
    stop_on_failure: bool,
    concurrency: int | None,
) -> Judgement:
    """Run the tests of a program. `Runtime.judge` documents the other arguments.

    Args:
        requests: The program with the input and the limits of each test.
        run: Runs the program with the input of one test.
        run_inputs: Runs it once for each input, in as few executions as possible; None if each test has an execution of
            its own.
    """
    started = time.perf_counter()
    if run_inputs is None:
        results = await _run_separately(
            tests,
            requests,
            run,
            compare=compare,
            stop_on_failure=stop_on_failure,
            concurrency=_DEFAULT_CONCURRENCY if concurrency is None else concurrency,
        )
    else:
        shared = await _run_together(requests, run_inputs)
        results = [judge_result(test, result, compare) for test, result in zip(tests, shared, strict=True)]
    if stop_on_failure:
        results = _skip_after_failure(results)
    return Judgement(results=tuple(results), duration_s=time.perf_counter() - started)


async def _run_separately(
    tests: Sequence[TestCase],
    requests: Sequence[RunRequest],
    run: Callable[[RunRequest], Awaitable[ExecutionResult]],
    *,
    compare: Compare,
    stop_on_failure: bool,
    concurrency: int,
) -> list[TestResult]:
    """Return the verdict on each test, run in an execution of its own.

    Raises:
        FaasrtError: An execution failed. The other ones are cancelled.

    Cancellation: cancels the executions in flight.
    """
    results = [TestResult(test=test, verdict=Verdict.SKIPPED) for test in tests]
    permits = asyncio.Semaphore(concurrency)
    running: list[asyncio.Task[None]] = []
    failures: list[Exception] = []

    async def run_test(index: int) -> None:
        # No error may leave the task. Otherwise a TaskGroup would lose a cancellation of the caller, and in Python 3.11
        # `cancelling()` of the caller would never return to 0.
        try:
            async with permits:
                results[index] = judge_result(tests[index], await run(requests[index]), compare)
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
    requests: Sequence[RunRequest],
    run_inputs: Callable[[RunRequest, Sequence[ProgramInput]], Awaitable[list[ExecutionResult]]],
) -> list[ExecutionResult]:
    """Return the result of each request. The requests with the same time limit share executions."""
    results: dict[int, ExecutionResult] = {}
    for limit_ms in dict.fromkeys(request.timeout_ms for request in requests):
        indices = [index for index, request in enumerate(requests) if request.timeout_ms == limit_ms]
        inputs = [requests[index].input for index in indices]
        results |= zip(indices, await run_inputs(requests[indices[0]], inputs), strict=True)
    return [results[index] for index in range(len(requests))]


def _skip_after_failure(results: list[TestResult]) -> list[TestResult]:
    """Return the results, of which those after the first failure are skipped even if their program has run."""
    passed = [result.verdict is Verdict.PASSED for result in results]
    kept = passed.index(False) + 1 if False in passed else len(results)
    skipped = [TestResult(test=result.test, verdict=Verdict.SKIPPED) for result in results[kept:]]
    return results[:kept] + skipped
