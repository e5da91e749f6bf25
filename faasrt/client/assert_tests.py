"""Judges a function of a program by test programs with asserts, in the style of HumanEval and MBPP.

A test program and the judged program never run in the same process, for the reasons in `faasrt.judging.AssertTest`:

1. The test program runs alone. Its calls of the function are recorded; see `protocol/guest/asserts_test.py`.
2. The judged program runs alone, and its function is called with these arguments. Its results are sent back as JSON
   that keeps the types of Python's own values.
3. The test program runs again, with these results. It passes if it reaches its end, no assert fails, and at least one
   assert is reached.

If the arguments of a call depend on the results of other calls, the last two steps are repeated.
"""

from __future__ import annotations

import functools
import json
import re
import textwrap
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, TypeAlias

import attrs

from faasrt.client.judge import Judge, skip_after_failure
from faasrt.errors import InvalidRequestError
from faasrt.judging import AssertTest, Judgement, Test, TestResult, Verdict
from faasrt.languages import Language
from faasrt.protocol.cases import check_function
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.program import Program
from faasrt.results import ExecutionResult, Outcome

_MAX_ROUNDS = 20
_MAX_LINE_SHOWN = 120
_MAX_STORED, _MAX_STORED_CHARACTERS = 1_000, 20_000  # the test programs whose first calls are stored
_CALLS = "_faasrt_calls"
Calls: TypeAlias = list[tuple[str, list[Any]]]
_GUEST = files("faasrt.protocol.guest")


@functools.cache
def _source(name: str) -> str:
    return "\n".join(_GUEST.joinpath(f"asserts_{part}.py").read_text("utf-8") for part in ("values", name))


def _with_calls(code: str, function: str) -> str:
    """Add the function of `asserts_calls.py` to the judged program. It has builtins and names of its own."""
    return (
        f"{code}\n\ndef {_CALLS}(names, name):\n{textwrap.indent(_source('calls'), ' ')}\n return call_all\n"
        f"import builtins as _faasrt\n"
        f"{_CALLS} = _faasrt.type({_CALLS})({_CALLS}.__code__, "
        f"{{'__builtins__': _faasrt.dict(_faasrt.vars(_faasrt))}})(_faasrt.globals(), {function!r})\n"
    )


@attrs.define
class _TestState:
    """The state of a test.

    Attributes:
        test_program: The test program, complete.
        judged: The judged program, with the limits of the test.
        rounds: For each round of calls, their keys, and the JSON of the results.
        calls: The calls to make: their keys and arguments.
    """

    test: AssertTest
    test_program: str
    function: str
    judged: Program
    max_bytes: int
    rounds: list[tuple[list[str], str]] = attrs.field(factory=list)
    result: ExecutionResult | None = None
    calls: Calls = attrs.field(factory=list)
    verdict: TestResult | None = None

    @property
    def call_arguments(self) -> list[Any]:
        """The arguments of `call_all` in `asserts_calls.py`."""
        return [[case for _, case in self.calls], {}]

    @property
    def test_arguments(self) -> list[Any]:
        """The arguments of `run_test` in `asserts_test.py`."""
        return [[self.test_program, self.function, self.rounds], {}]

    def read_report(self, answer: ExecutionResult) -> None:
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
        # The return value is for faasrt, not for the caller.
        self.result = attrs.evolve(result, output=attrs.evolve(result.output, ret_val=""))
        if result.outcome is not Outcome.OK:
            return self._end(Verdict(result.outcome), "")
        size = len(json.dumps(self.rounds)) + len(json.dumps(result.ret_val))
        if "ret_val" in result.truncated or size > self.max_bytes:
            return self._end(Verdict.OUTPUT_LIMIT, "the results are too large to be compared")
        self.rounds.append(([key for key, _ in self.calls], result.ret_val))
        self.calls = []
        return None

    def _check_alone(self, answer: ExecutionResult, report: Any) -> None:
        """Raise InvalidRequestError if the test program fails whatever the judged program is."""
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
        # Not `splitlines`: these are the only line ends of Python.
        lines, number = re.split(r"\r\n|\r|\n", self.test_program), failure["line"]
        place = f"line {number}: {lines[number - 1].strip()[:_MAX_LINE_SHOWN]}: " if number else ""
        reason = failure["name"] + (f": {failure['message']}" if failure["message"] else "")
        returned = "" if failure["returned"] is None else f"; the last call returned {failure['returned']}"
        return f"{place}{reason}{returned}"

    def _end(self, verdict: Verdict, difference: str) -> None:
        self.verdict = TestResult(test=self.test, verdict=verdict, difference=difference, result=self.result)


class FirstCalls:
    """The calls that test programs make first, which do not depend on the judged program. The oldest are dropped."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], Calls] = {}

    def find(self, program: str, function: str) -> Calls:
        return self._calls.get((program, function), [])

    def store(self, program: str, function: str, calls: Calls) -> None:
        if len(program) + sum(len(key) for key, _ in calls) <= _MAX_STORED_CHARACTERS:
            self._calls[program, function] = calls
        if len(self._calls) > _MAX_STORED:
            del self._calls[next(iter(self._calls))]


async def judge_by_asserts(
    judge: Judge,
    tests: Sequence[Test],
    function: str | None,
    programs: Sequence[Program],
    first_calls: FirstCalls,
    max_bytes: int,
) -> Judgement:
    """Return the verdicts of AssertTests; see `Judge.run_tests`. Raise InvalidRequestError if a test cannot test the
    function, or fails whatever the judged program is. Without `function`, the test programs show its name.
    """
    started = time.perf_counter()
    run_all = attrs.evolve(judge, stop_on_failure=False)
    states = _states(tests, function, programs, max_bytes)
    for each in states:
        each.calls = first_calls.find(each.test_program, each.function)

    async def call(
        called: Sequence[_TestState], code: str, function: str, cases: Sequence[Any]
    ) -> list[ExecutionResult]:
        # Each test has the judged program in a new namespace.
        is_judged = function == _CALLS
        encoded = list(map(json.dumps, cases))
        job = GuestJob(function=function, cases=encoded, single=False, isolate=is_judged, imported=is_judged)
        own_programs = [attrs.evolve(each.judged, code=code) for each in called]
        tests = [each.test for each in called]
        ended = await run_all.run_tests(tests, own_programs, job, _keep_result)
        return [each.result for each in ended.results if each.result is not None]

    code = _with_calls(programs[0].code, states[0].function)
    while left := [each for each in states if each.verdict is None]:
        if tested := [each for each in left if not each.calls]:
            reports = await call(tested, _source("test"), "run_test", [each.test_arguments for each in tested])
            for each, report in zip(tested, reports, strict=True):
                each.read_report(report)
                if not each.rounds:
                    first_calls.store(each.test_program, each.function, each.calls)
        if called := [each for each in left if each.verdict is None]:
            results = await call(called, code, _CALLS, [each.call_arguments for each in called])
            for each, result in zip(called, results, strict=True):
                each.read_results(result)
    verdicts = [each.verdict for each in states if each.verdict is not None]
    if judge.stop_on_failure:
        verdicts = skip_after_failure(verdicts)
    return Judgement(results=tuple(verdicts), duration_s=time.perf_counter() - started)


def _states(
    tests: Sequence[Test], function: str | None, programs: Sequence[Program], max_bytes: int
) -> list[_TestState]:
    language = programs[0].language
    if language is not Language.PYTHON:
        raise InvalidRequestError(f"AssertTests are for Python, not for {language}: use FunctionTests")
    states = []
    for test, program in zip(tests, programs, strict=True):
        assert isinstance(test, AssertTest)
        function = check_function(test._parsed.find_function() if function is None else function, language)
        max_result_bytes = min(max_bytes, program.sandbox.max_output_bytes)
        states.append(_TestState(test, test._parsed.complete(function), function, program, max_result_bytes))
    return states


async def _keep_result(test: Test, result: ExecutionResult) -> TestResult:
    return TestResult(test=test, verdict=Verdict.PASSED, result=result)
