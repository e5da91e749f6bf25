"""Comparisons, the checks of tests, and judgements."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, strategies as st

from faasrt import (
    CompareError,
    ExecutionOutput,
    ExecutionResult,
    InvalidRequestError,
    Judgement,
    Outcome,
    SandboxConfig,
    TestCase,
    Verdict,
    floats,
)
from faasrt.client.judge import judge
from faasrt.judging import Compare, check_compare, check_tests, judge_result
from faasrt.protocol.request import RunRequest


def result(stdout: str = "", outcome: Outcome = Outcome.OK, **fields: Any) -> ExecutionResult:
    return ExecutionResult(outcome=outcome, output=ExecutionOutput(stdout), **fields)


COMPARED: list[tuple[Compare, str, str, str]] = [
    ("exact", "a\n", "a\n", ""),
    ("exact", "a", "a\n", "line 1: expected 'a\\n', got 'a'"),
    ("exact", "a\r\n", "a\n", "line 1: expected 'a\\n', got 'a\\r\\n'"),
    ("lines", "a  \r\nb\n\n\n", "a\nb", ""),
    ("lines", "", "\n\n", ""),
    ("lines", " a", "a", "line 1: expected 'a', got ' a'"),
    ("lines", "a\nb\nc", "a\nX\nc", "line 2: expected 'X', got 'b'"),
    ("lines", "a", "a\nb", "line 2: expected 'b', got the end"),
    ("lines", "a\nb", "a", "line 2: expected the end, got 'b'"),
    ("lines", "a\n\nb", "a\nb", "line 2: expected 'b', got ''"),
    ("tokens", " 1  2\n3", "1 2 3\n", ""),
    ("tokens", "1 2", "1 3", "word 2: expected '3', got '2'"),
    ("tokens", "1", "1.0", "word 1: expected '1.0', got '1'"),
    ("floats", "0.3333333 x", "0.33333333333 x", ""),
    ("floats", "1e-10", "0", ""),
    ("floats", "nan inf", "NaN Infinity", ""),
    ("floats", "inf", "1e308", "word 1: expected '1e308', got 'inf'"),
    ("floats", "0.3", "0.33", "word 1: expected '0.33', got '0.3'"),
    ("floats", "1_0", "10", "word 1: expected '10', got '1_0'"),
    ("floats", "+1.50e1 .5", "15 0.5", ""),
    ("floats", "a", "b", "word 1: expected 'b', got 'a'"),
    (floats(rel=0.1), "0.3", "0.32", ""),
    (floats(rel=0, abs=1), "3", "4", ""),
    (floats(rel=0, abs=0), "3", "3.0", ""),
    (
        "floats",
        "1" * 500,
        "1" * 499 + "2",
        f"word 1: expected '{'1' * 47}...{'1' * 47}2', got '{'1' * 47}...{'1' * 48}'",
    ),
    (lambda output, expected: output[0] == expected[0], "ab", "ac", ""),
    (lambda output, expected: False, "a", "a", "the comparison refuses the output, which equals the expected one"),
    (lambda output, expected: False, "a", "b", "line 1: expected 'b', got 'a'"),
]


@pytest.mark.parametrize(("compare", "output", "expected", "difference"), COMPARED)
def test_outputs_are_compared(compare: Compare, output: str, expected: str, difference: str) -> None:
    """The difference is the first one, in words."""
    judged = judge_result(TestCase(expected=expected), result(output), compare)
    assert judged.difference == difference
    assert judged.verdict is (Verdict.WRONG_ANSWER if difference else Verdict.PASSED)


@given(st.text("a1. \n\r\t", max_size=30), st.text("a1. \n\r\t", max_size=30))
def test_a_looser_comparison_accepts_what_a_stricter_one_accepts(output: str, expected: str) -> None:
    """Outputs that are equal by "exact" are equal by "lines", then by "tokens", then by "floats"."""
    accepted = [
        judge_result(TestCase(expected=expected), result(output), name).verdict is Verdict.PASSED
        for name in ("exact", "lines", "tokens", "floats")
    ]
    assert accepted == sorted(accepted)
    assert judge_result(TestCase(expected=output), result(output), "exact").verdict is Verdict.PASSED


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
def test_a_failed_program_has_its_outcome_as_verdict(outcome: Outcome) -> None:
    """A program that failed does not pass, even if its output is right."""
    assert judge_result(TestCase(), result(outcome=outcome), "lines").verdict == str(outcome)


def test_a_cut_output_is_not_compared() -> None:
    """Whether the output is right is unknown if some of it is missing."""
    judged = judge_result(TestCase(expected="a"), result("a", truncated=frozenset({"stdout"})), "lines")
    assert judged.verdict is Verdict.OUTPUT_LIMIT


class AsyncCompare:
    async def __call__(self, output: str, expected: str) -> bool:
        return True


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        (
            lambda output, expected: wrong_compare(output, expected),
            "it returned an awaitable",
        ),
        (lambda output, expected: int(output) == 1, "compare raised ValueError: invalid literal"),
    ],
)
def test_a_comparison_that_fails_is_an_error_of_the_caller(compare: Compare, message: str) -> None:
    """It is not a verdict, and in a map it fails only its task."""
    with pytest.raises(CompareError) as caught:
        judge_result(TestCase(expected="a"), result("b"), compare)
    assert message in str(caught.value)


async def wrong_compare(output: str, expected: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TestCase(1), "stdin must be a str or bytes, got int"),
        (lambda: TestCase("", b"a"), "expected must be a str, got bytes"),
        (lambda: TestCase(argv="a"), "argv must be a sequence"),
        (lambda: TestCase(files={"../a": ""}), 'has a part that is empty, "." or ".."'),
        (lambda: TestCase.from_dict([]), "a test must be an object, got []"),
        (lambda: TestCase.from_dict({"input": ""}), "a test has no field 'input', only stdin, expected"),
        (lambda: check_tests([]), "tests must not be empty"),
        (lambda: check_tests("ab"), "tests must be an iterable of TestCases, got 'ab'"),
        (lambda: check_tests([TestCase(), ("a", "b")]), "tests must contain TestCases, got tuple at index 1"),
        (lambda: check_compare("fuzzy"), "compare must be 'exact', 'lines', 'tokens', 'floats', floats(...) or"),
        (lambda: check_compare(wrong_compare), "compare must not be async"),
        (lambda: check_compare(floats), "compare must be"),
        (lambda: check_compare(AsyncCompare()), "compare must not be async"),
        (lambda: floats(rel=10**400), "rel must be a finite number of at least 0"),
        (lambda: TestCase(timeout_ms="x"), "timeout_ms must be a number of milliseconds, got 'x'"),
        (lambda: TestCase(timeout_ms=0), "timeout_ms must be finite and above 0, got 0"),
        (lambda: TestCase.from_dict({"timeout_ms": True}), "timeout_ms must be a number of milliseconds, got True"),
        (lambda: Judgement(results=()), "a judgement must have at least one result"),
        (lambda: TestCase(id=5), "id must be a str or None, got 5"),
        (lambda: floats(rel=-1), "rel must be a finite number of at least 0, got -1"),
        (lambda: floats(abs=float("nan")), "abs must be a finite number of at least 0, got nan"),
    ],
)
def test_wrong_tests_are_refused(make: Any, message: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert message in str(caught.value)


def test_a_test_has_the_fields_of_its_json() -> None:
    """Missing and null fields have their defaults."""
    fields = {"stdin": "a", "expected": "b", "argv": ["c"], "files": {"d": {"base64": "/w=="}}, "id": None}
    assert TestCase.from_dict(fields) == TestCase(b"a", "b", argv=("c",), files={"d": b"\xff"})


async def test_tests_after_a_failure_are_skipped_for_every_concurrency() -> None:
    """The judgement does not depend on which tests ran beside the one that failed first."""
    tests = [TestCase(str(number), "x" if number == 3 else "") for number in range(8)]
    requests = [RunRequest.checked("python", "code", SandboxConfig(), stdin=test.stdin) for test in tests]

    for concurrency in (1, 2, 8):
        started: list[bytes] = []
        release = asyncio.Event()

        async def run(request: RunRequest, started: Any = started, release: Any = release) -> ExecutionResult:
            started.append(request.input.stdin)
            if request.input.stdin > b"3":
                await release.wait()  # is never set, so these tests must be cancelled
            return result()

        options: dict[str, Any] = {"compare": "lines", "stop_on_failure": True, "concurrency": concurrency}
        judgement = await judge(tests, requests, run, None, **options)
        expected = [Verdict.PASSED] * 3 + [Verdict.WRONG_ANSWER] + [Verdict.SKIPPED] * 4
        assert [test.verdict for test in judgement.results] == expected
        assert len(started) <= 3 + concurrency


def test_the_score_is_the_share_of_passed_tests() -> None:
    """A judgement is truthy when all tests passed."""
    passed, wrong = (judge_result(TestCase(expected=text), result("a"), "lines") for text in "ab")
    judgement = Judgement(results=(passed, wrong, passed))
    assert (judgement.passed, judgement.passed_count, round(judgement.score, 3)) == (False, 2, 0.667)
    assert not judgement
    assert (judgement.first_failure, judgement.verdict) == (wrong, Verdict.WRONG_ANSWER)
    right = Judgement(results=(passed,))
    assert (right.passed, right.first_failure, right.verdict) == (True, None, Verdict.PASSED)
    assert [test["verdict"] for test in judgement.to_dict()["results"]] == ["PASSED", "WRONG_ANSWER", "PASSED"]
