"""Judges a function of a program by test programs with asserts, in the style of HumanEval and MBPP.

A test program and the solution never run in the same process, so the solution can neither end the test program, nor
change it, nor see the expected values in it:

1. The test program runs alone. The calls of the function that it makes are noted; see `protocol/guest/asserts_test.py`.
2. The solution runs alone, and its function is called with these arguments. Its results are sent back as JSON that
   keeps the types of Python's own values.
3. The test program runs again, with these results. It passes if it reaches its end, no assert fails, and at least one
   is reached.

If the arguments of a call depend on the results of others, the second and third step are repeated. The tests of a
judgement share executions.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import attrs

from faasrt.client.judge import RunCases, skip_after_failure
from faasrt.errors import InvalidRequestError
from faasrt.judging import AssertTest, Judgement, Test, TestResult, Verdict
from faasrt.languages import Language
from faasrt.protocol.cases import check_function
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.request import RunRequest
from faasrt.results import ExecutionResult, Outcome

_MAX_ROUNDS = 20
_SHOWN = 120
_GUEST = files("faasrt.protocol.guest")


@functools.cache
def _source(name: str) -> str:
    return "\n".join(_GUEST.joinpath(f"asserts_{part}.py").read_text("utf-8") for part in ("values", name))


def _with_calls(code: str, function: str) -> str:
    """Return the judged program with `asserts_calls.py` in a namespace of its own, whatever names the program uses."""
    own = "_faasrt_calls"
    return (
        f"{code}\n\nimport builtins as {own}\n"
        f"{own}.exec({own}.compile({_source('calls')!r}, 'faasrt', 'exec'), {{'names': {own}.globals(), "
        f"'name': {function!r}, '__builtins__': {own}.dict({own}.vars({own}))}})\n"
    )


@attrs.define
class _Run:
    """The state of a test.

    Attributes:
        program: The test program, complete.
        rounds: For each round of calls, their keys, and the JSON of the results.
        result: The result of the last round; None before the first one.
        calls: The calls to make: their keys and arguments.
        verdict: The verdict; None until it is known.
    """

    test: AssertTest
    program: str
    function: str
    max_bytes: int
    rounds: list[tuple[list[str], str]] = attrs.field(factory=list)
    result: ExecutionResult | None = None
    calls: list[tuple[str, list[Any]]] = attrs.field(factory=list)
    verdict: TestResult | None = None

    @property
    def case(self) -> list[Any]:
        """The arguments of `run_test` in `asserts_test.py`."""
        return [[self.program, self.function, self.rounds], {}]

    def read_report(self, answer: ExecutionResult) -> None:
        """Read how the test program ended, and so get the verdict or the next calls."""
        is_whole = answer.outcome is Outcome.OK and "ret_val" not in answer.truncated
        report: Any = answer.value if is_whole else None
        if not self.rounds:
            self._check_alone(answer, report)
        if report is None:
            verdict = Verdict.OUTPUT_LIMIT if answer.outcome is Outcome.OK else Verdict(answer.outcome)
            return self._end(verdict, f"the test program ended with {verdict}")
        if report["refused"] is not None:
            return self._end(Verdict.WRONG_ANSWER, f"the test program cannot go on: {report['refused']}")
        if report["missing"]:
            if self.rounds and not report["repeated"]:
                raise InvalidRequestError(
                    "the test program calls the function with other arguments in each run, so its calls cannot be "
                    "made in another process; make its random numbers the same with a seed"
                )
            self.calls = report["missing"]
            if len(self.rounds) >= _MAX_ROUNDS:
                self._end(
                    Verdict.WRONG_ANSWER, f"calls depend on the results of earlier ones more than {_MAX_ROUNDS} times"
                )
            return None
        if (failure := report["failure"]) is not None:
            verdict = Verdict.USER_ERROR if failure["from_solution"] else Verdict.WRONG_ANSWER
            return self._end(verdict, self._describe(failure))
        if not report["reached"]:
            return self._end(Verdict.WRONG_ANSWER, "no assert of the test program was reached")
        return self._end(Verdict.PASSED, "")

    def read_results(self, result: ExecutionResult) -> None:
        """Read the results of the calls, after the solution has run."""
        self.result = result
        if result.outcome is not Outcome.OK:
            return self._end(Verdict(result.outcome), "")
        size = len(json.dumps(self.rounds)) + len(json.dumps(result.ret_val))
        if "ret_val" in result.truncated or size > self.max_bytes:
            return self._end(Verdict.OUTPUT_LIMIT, "the results are too large to be compared")
        self.rounds.append(([key for key, _ in self.calls], result.ret_val))
        return None

    def _check_alone(self, answer: ExecutionResult, report: Any) -> None:
        """Raise InvalidRequestError if the test program fails whatever the solution is."""
        if report is None:
            reason = answer.error.message[:200] if answer.error else "the arguments of its calls are too large"
            problem = f"ends with {answer.outcome} before it calls {self.function}: {reason}"
        elif report["refused"] is not None:
            problem = f"cannot be judged: {report['refused']}"
        elif report["missing"]:
            return
        elif report["failure"] is not None:
            problem = f"fails before it calls {self.function}: {self._describe(report['failure'])}"
        else:
            problem = f"does not call {self.function}"
        raise InvalidRequestError(f"the test program {problem}")

    def _describe(self, failure: Any) -> str:
        lines, number = self.program.split("\n"), failure["line"]
        place = f"line {number}: {lines[number - 1].strip()[:_SHOWN]}: " if number else ""
        reason = failure["name"] + (f": {failure['message']}" if failure["message"] else "")
        returned = "" if failure["returned"] is None else f"; the last call returned {failure['returned']}"
        return f"{place}{reason}{returned}"

    def _end(self, verdict: Verdict, difference: str) -> None:
        self.verdict = TestResult(test=self.test, verdict=verdict, difference=difference, result=self.result)


@attrs.frozen
class AssertJob:
    """How the AssertTests of a judgement are run.

    Attributes:
        tests: The tests.
        programs: Their complete test programs.
        function: The name of the function.
        max_bytes: The maximum size of a request.
    """

    tests: Sequence[AssertTest]
    programs: Sequence[str]
    function: str
    max_bytes: int

    @classmethod
    def checked(cls, tests: Sequence[Test], function: str, language: Language | str, max_bytes: int) -> AssertJob:
        """Return the job for tests, or raise InvalidRequestError if the function cannot be tested by them."""
        if language is not Language.PYTHON:
            raise InvalidRequestError(f"AssertTests are for Python, not for {language}: use FunctionTests")
        name = check_function(function, language)
        own = [test for test in tests if isinstance(test, AssertTest)]
        return cls(own, [test.complete_program(name) for test in own], name, max_bytes)

    async def judge(self, requests: Sequence[RunRequest], run_cases: RunCases, *, stop_on_failure: bool) -> Judgement:
        """Return the verdicts. The tests with the same time limit share executions.

        Args:
            requests: The judged program, with the limits of each test.
            run_cases: Runs the cases of a job in as few executions as possible.
            stop_on_failure: Whether the tests after the first one that does not pass are skipped.

        Raises:
            InvalidRequestError: A test program fails whatever the judged program is.
            FaasrtError: An execution failed.

        Cancellation: cancels the execution in flight.
        """
        started = time.perf_counter()
        runs = [
            _Run(test, program, self.function, min(self.max_bytes, request.sandbox.max_output_bytes))
            for test, program, request in zip(self.tests, self.programs, requests, strict=True)
        ]
        for limit_ms in dict.fromkeys(request.timeout_ms for request in requests):
            chosen = [index for index, request in enumerate(requests) if request.timeout_ms == limit_ms]
            await _judge([runs[index] for index in chosen], requests[chosen[0]], run_cases)
        results = [run.verdict for run in runs if run.verdict is not None]
        if stop_on_failure:
            results = skip_after_failure(results)
        return Judgement(results=tuple(results), duration_s=time.perf_counter() - started)


async def _judge(runs: Sequence[_Run], request: RunRequest, run_cases: RunCases) -> None:
    tests = attrs.evolve(request, code=_source("test"))
    solution = attrs.evolve(request, code=_with_calls(request.code, runs[0].function))
    while left := [run for run in runs if run.verdict is None]:
        for run, answer in zip(left, await _run(tests, "run_test", [run.case for run in left], run_cases), strict=True):
            run.read_report(answer)
        left = [run for run in left if run.verdict is None]
        calls = [[[case for _, case in run.calls], {}] for run in left]
        for run, result in zip(left, await _run(solution, "_faasrt_calls", calls, run_cases), strict=True):
            run.read_results(result)


async def _run(request: RunRequest, function: str, cases: list[Any], run_cases: RunCases) -> list[ExecutionResult]:
    if not cases:
        return []
    job = GuestJob(function=function, cases=[json.dumps(case) for case in cases], single=False, isolate=True)
    results: dict[int, ExecutionResult] = {}
    async for found in run_cases(request, job):
        results |= found
    return [results[index] for index in range(len(cases))]
