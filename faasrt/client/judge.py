"""Runs the tests of a judgement: each in an execution of its own, or many in one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from faasrt.errors import InvalidRequestError, shown
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
from faasrt.languages import Language
from faasrt.protocol.request import RunRequest, check_flag
from faasrt.results import ExecutionResult

_DEFAULT_CONCURRENCY = 64


async def run_tests(
    tests: Sequence[TestCase],
    run: Callable[[TestCase], Awaitable[ExecutionResult]],
    *,
    compare: Compare,
    stop_on_failure: bool,
    concurrency: int,
) -> tuple[TestResult, ...]:
    """Return the verdict on each test.

    Args:
        tests: The tests.
        run: Runs the program with the input of a test.
        compare: The comparison of outputs.
        stop_on_failure: Whether the tests after the first one that does not pass are skipped.
        concurrency: The largest number of tests in flight.

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
                results[index] = judge_result(tests[index], await run(tests[index]), compare)
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
    return tuple(results if not stop_on_failure else _skip_after_failure(results))


def _skip_after_failure(results: list[TestResult]) -> list[TestResult]:
    """Return the results, of which those after the first failure are skipped even if their program has run."""
    passed = [result.verdict is Verdict.PASSED for result in results]
    kept = passed.index(False) + 1 if False in passed else len(results)
    skipped = [TestResult(test=result.test, verdict=Verdict.SKIPPED) for result in results[kept:]]
    return results[:kept] + skipped


async def _run_shared(
    requests: Sequence[RunRequest], run: Callable[[list[ProgramInput], float], Awaitable[list[ExecutionResult]]]
) -> list[ExecutionResult]:
    """Return the result of each request. The requests with the same time limit share executions."""
    results: dict[int, ExecutionResult] = {}
    for limit_ms in dict.fromkeys(request.timeout_ms for request in requests):
        indices = [index for index, request in enumerate(requests) if request.timeout_ms == limit_ms]
        inputs = [requests[index].input for index in indices]
        results |= zip(indices, await run(inputs, limit_ms), strict=True)
    return [results[index] for index in range(len(requests))]


async def judge(
    run_code: Callable[..., Awaitable[ExecutionResult]],
    run_inputs: Callable[..., Awaitable[list[ExecutionResult]]] | None,
    check: Callable[..., tuple[RunRequest, bool]],
    code: str,
    tests: object,
    *,
    language: Language | str,
    compare: Compare,
    stop_on_failure: bool,
    concurrency: int | None,
    timeout_ms: float | None = None,
    **options: Any,
) -> Judgement:
    """Run the tests of a program. `Runtime.judge` documents the other arguments.

    Args:
        run_code: `Runtime.run_code`.
        run_inputs: Runs a program once for each input, in as few executions as possible; None if each test has an
            execution of its own.
        check: Checks the arguments of `run_code`, so that nothing is sent if a test is wrong.
    """
    checked = check_tests(tests)
    check_compare(compare)
    check_flag("stop_on_failure", stop_on_failure, optional=False)
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise InvalidRequestError(
            f"concurrency must be a whole number of at least 1, or None, got {shown(concurrency)}"
        )

    def options_of(test: TestCase) -> dict[str, Any]:
        limit_ms = timeout_ms if test.timeout_ms is None else test.timeout_ms
        return {**options, "timeout_ms": limit_ms, "stdin": test.stdin, "argv": test.argv, "files": test.files}

    requests = [check(code, language, **options_of(test))[0] for test in checked]
    started = time.perf_counter()
    if run_inputs is not None:
        shared = await _run_shared(
            requests, lambda given, limit_ms: run_inputs(code, language, given, timeout_ms=limit_ms, **options)
        )
        judged = [judge_result(test, result, compare) for test, result in zip(checked, shared, strict=True)]
        verdicts = _skip_after_failure(judged) if stop_on_failure else judged
        return Judgement(results=tuple(verdicts), duration_s=time.perf_counter() - started)
    results = await run_tests(
        checked,
        lambda test: run_code(code, language, **options_of(test)),
        compare=compare,
        stop_on_failure=stop_on_failure,
        concurrency=_DEFAULT_CONCURRENCY if concurrency is None else concurrency,
    )
    return Judgement(results=results, duration_s=time.perf_counter() - started)
