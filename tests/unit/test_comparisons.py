"""Comparisons, the checks of tests, and judgements."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from faasrt import (
    CompareError,
    ExecutionOutput,
    ExecutionResult,
    FunctionTest,
    InvalidRequestError,
    Judgement,
    Outcome,
    SandboxConfig,
    TestCase,
    TestResult,
    Verdict,
    floats,
)
from faasrt._strict_json import loads
from faasrt.client.judge import Judge, compare_result
from faasrt.judging import Compare, check_compare, check_tests, judge_result
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.program import Program
from support.helpers import Clock, fast_forward


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


def returned(text: str, **fields: Any) -> ExecutionResult:
    return ExecutionResult(outcome=Outcome.OK, output=ExecutionOutput(ret_val=text), **fields)


VALUES: list[tuple[Compare | None, str, Any, str]] = [
    (None, "1", 1, ""),
    (None, "1.0", 1, ""),
    (None, "1", True, "value: expected True, got 1"),
    (None, "true", 1, "value: expected 1, got True"),
    (None, "false", 0.0, "value: expected 0.0, got False"),
    (None, "null", None, ""),
    (None, "null", 0, "value: expected 0, got None"),
    (None, '"1"', 1, "value: expected 1, got '1'"),
    (None, "-0.0", 0, ""),
    (None, "9007199254740993", 9007199254740992.0, "value: expected 9007199254740992.0, got 9007199254740993"),
    (None, "[1, [2]]", [1, [2]], ""),
    (None, "[1, [2]]", (1, [2]), "value: expected (1, [2]), got [1, [2]]"),
    (None, '{"py/tuple": [1, [2]]}', (1, [2]), ""),
    (None, '{"py/tuple": [1, [2]]}', [1, [2]], "value: expected [1, [2]], got (1, [2])"),
    (None, '{"py/tuple": 1}', {"py/tuple": 1}, ""),
    (None, "[1, 2]", [1, 2, 3], "value: expected 3 elements, got 2"),
    (None, "[1, 2, 3]", [1, 2], "value: expected 2 elements, got more"),
    (None, "[1, 2, 3]", [2], "value[0]: expected 2, got 1"),
    (None, "[1, 2", [1, 2], "the return value is not JSON (Expecting ',' delimiter: line 1 column 6 (char 5))"),
    (None, "[1, 2] x", [1, 2], "the return value is not JSON (Extra data: line 1 column 7 (char 6))"),
    (None, "[1, 02]", [1, 0], "the return value is not JSON (Expecting ',' delimiter: line 1 column 6 (char 5))"),
    (None, "[1,?]", [2, 2], "the return value is not JSON (Expecting value: line 1 column 4 (char 3))"),
    (None, '{"a" 1}', {"a": 1}, "the return value is not JSON (Expecting ':' delimiter: line 1 column 6 (char 5))"),
    (None, '"a', "a", "the return value is not JSON (Unterminated string starting at: line 1 column 1 (char 0))"),
    (None, "1e999", 1, "the return value is not JSON (the number 1e999 is too large)"),
    (None, '{"py/tuple": [1], "a": 2}', (1,), "value: expected (1,), got {'a': 2, 'py/tuple': [1]}"),
    (None, '{"py/tuple": [1], "py/tuple": [1]}', (1,), "value: expected (1,), got {'py/tuple': [1]}"),
    (None, '{"py/tuple": [1]}', {"py/tuple": [1]}, ""),
    ("alike", "[1]", {"py/tuple": [1]}, "value: expected {'py/tuple': [1]}, got [1]"),
    (None, '{"a": 1, "a": 2}', {"a": 2}, "value['a']: expected 2, got 1"),
    (None, '{"a": 1, "a": 1.0}', {"a": 1}, ""),
    (None, ' [ 1 ,\n{ "a" : 2 } ] ', [1, {"a": 2}], ""),
    (None, "[" * 100_000, [1], f"value: expected [1], got {'[' * 60}..."),
    (None, f"[1, {'[' * 100_000}", [2], f"value: expected [2], got [1, {'[' * 56}..."),
    (None, "[" * 200 + "1.0" + "]" * 200, loads("[" * 200 + "1" + "]" * 200), ""),
    (
        None,
        "[" * 30 + "2" + "]" * 30,
        loads("[" * 30 + "1" + "]" * 30),
        f"value{'[0]' * 19}[...][0]: expected 1, got 2",
    ),
    (None, "[1, [2, 3]]", [1, [2, 4]], "value[1][1]: expected 4, got 3"),
    (None, '{"a": [{"b": 1}]}', {"a": [{"b": 2}]}, "value['a'][0]['b']: expected 2, got 1"),
    (None, '{"a": 1}', {"a": 1, "b": 2}, "value: the key 'b' is missing"),
    (None, '{"a": 1, "b": 2}', {"a": 1}, "value: the key 'b' is unexpected"),
    (None, "{}", [], "value: expected [], got {}"),
    (None, "[]", {}, "value: expected {}, got []"),
    (None, '{"b": 1, "a": 2}', {"a": 2, "b": 1}, ""),
    (None, "0.1", 0.1000000001, "value: expected 0.1000000001, got 0.1"),
    (None, '"\\ud800"', "\ud800", ""),
    ("alike", '{"py/tuple": [1, [2]]}', [1, (2,)], ""),
    ("alike", "[0.1]", [0.1000000001], "value[0]: expected 0.1000000001, got 0.1"),
    ("floats", '{"a": [{"py/tuple": [0.1, 3]}]}', {"a": [[0.1000000001, 3.0]]}, ""),
    ("floats", "[true]", [1], "value[0]: expected 1, got True"),
    ("floats", "1.01", 1, "value: expected 1, got 1.01"),
    ("floats", "1" * 400, 1.5, f"value: expected 1.5, got {'1' * 18}...{'1' * 19}"),
    (floats(rel=0.1), "[1.01]", [1], ""),
    (floats(rel=0.1), '{"py/tuple": [1.01]}', [1], ""),
    (lambda value, expected: sorted(value) == expected, "[2, 1]", [1, 2], ""),
    (lambda value, expected: value == ({"a": (1,)},), '{"py/tuple": [{"a": {"py/tuple": [1]}}]}', 0, ""),
    (
        lambda value, expected: False,
        "[2, 1]",
        [2, 1],
        "the comparison refuses the value, which equals the expected one",
    ),
    (None, "", None, "the function returned no value"),
    (None, "nope", None, "the return value is not JSON (Expecting value: line 1 column 1 (char 0))"),
    (None, "NaN", None, "the return value is not JSON (NaN is not valid JSON)"),
    (None, "[" * 900 + "1" + "]" * 900, [[1]], "value[0][0]: expected 1, got [[[...]]]"),
]


@pytest.mark.parametrize(("compare", "text", "expected", "difference"), VALUES)
def test_values_are_compared(compare: Compare | None, text: str, expected: Any, difference: str) -> None:
    """The difference is the first one, with the path to it."""
    judged = judge_result(FunctionTest([], expected), returned(text), compare)
    assert judged.difference == difference
    assert judged.verdict is (Verdict.WRONG_ANSWER if difference else Verdict.PASSED)


HUGE = str(math.factorial(171))  # the smallest factorial that is too large for a float
EVERY, WORDS, NUMBERS, NONE = "exact lines tokens floats", "tokens floats", "floats", ""
# An output, the expected one, and the comparisons that accept it.
NUMBERS_AS_TEXT: list[tuple[str, str, str]] = [
    ("inf", HUGE, NONE),
    ("-inf", f"-{HUGE}", NONE),
    ("1e999", HUGE, NONE),
    ("9" * 350, HUGE, NONE),
    (HUGE[:-1] + "1", HUGE, NONE),
    (HUGE, HUGE, EVERY),
    (f"+{HUGE}.0", HUGE, NUMBERS),
    ("1e400", "1" + "0" * 398, NONE),
    ("10E+399", "1e400", NUMBERS),
    ("1e999", "inf", NONE),
    ("1e99999999999999999", "1e99999999999999998", NONE),
    ("1e" + "9" * 18, "1e1" + "0" * 18, NONE),
    ("1" * 1_000_000, "1" * 999_999 + "2", NONE),
    ("1e" + "9" * 1_000_000, "inf", NONE),
    ("1.7976931348623157e308", "1.797693e308", NUMBERS),
    ("1.7976931348623157e308", "1e309", NONE),
    ("inf", "Infinity", NUMBERS),
    ("inf", "-inf", NONE),
    ("inf", "1.7976931348623157e308", NONE),
    ("nan", "NaN", NUMBERS),
    ("nan", "0", NONE),
    ("nan", HUGE, NONE),
    ("nan(1)", "nan", NONE),
    ("-0", "0", NUMBERS),
    ("-0.0", "0e5", NUMBERS),
    ("1e-400", "0", NUMBERS),
    ("1e-400", "1e-9", NUMBERS),
    ("+5", "5", NUMBERS),
    ("++5", "5", NONE),
    ("05", "5", NUMBERS),
    ("5.", "5.0", NUMBERS),
    (".5", "0.5", NUMBERS),
    ("5,0", "5.0", NONE),
    ("1,000", "1000", NONE),
    ("0x10", "16", NONE),
    ("0x1p4", "16", NONE),
    ("0b10", "2", NONE),
    ("1_0", "10", NONE),
    ("１０", "10", NONE),
    ("١٠", "10", NONE),
    ("1²", "12", NONE),
    ("ınf", "inf", NONE),
    ("1e5", "100000", NUMBERS),
    ("1E5", "1e5", NUMBERS),
    ("1d5", "1e5", NONE),
    ("1j", "1", NONE),
    ("5%", "5", NONE),
    ("True", "1", NONE),
    ("1/2", "0.5", NONE),
    ("", "0", NONE),
    ("5 ", "5", "lines tokens floats"),
    ("5\n\n", "5", "lines tokens floats"),
    (" 5", "5", WORDS),
    ("1\xa02\u30003", "1 2 3", WORDS),
    ("1 2", "12", NONE),
    ("- 5", "-5", NONE),
    ("5\0", "5", NONE),
    ("5\u200b", "5", NONE),
    ("\ufeff5", "5", NONE),
]


@pytest.mark.parametrize(("output", "expected", "accepting"), NUMBERS_AS_TEXT, ids=range(len(NUMBERS_AS_TEXT)))
def test_which_outputs_count_as_the_same_number(output: str, expected: str, accepting: str) -> None:
    """Only "floats" reads numbers, and only decimal ones. Those that are too large for a float must be equal. It makes
    no difference which of the two texts is the expected one.
    """
    for one, other in ((output, expected), (expected, output)):
        judged = {
            name: judge_result(TestCase(expected=other), result(one), name).verdict is Verdict.PASSED
            for name in ("exact", "lines", "tokens", "floats")
        }
        assert " ".join(name for name, accepts in judged.items() if accepts) == accepting
    assert floats()(output, expected) is ("floats" in accepting)


@pytest.mark.parametrize(
    ("output", "expected", "is_equal"),
    [
        ("9007199254740993", "9007199254740992", False),
        ("9007199254740993.0", "9007199254740993", True),
        ("0.1000000000000000000001", "0.1", True),
        ("-12345678901234567891", "-12345678901234567890", False),
        ("3e-324", "7e-324", True),
    ],
)
def test_numbers_may_differ_in_digits_that_a_float_does_not_hold(output: str, expected: str, is_equal: bool) -> None:
    """They are equal only within the tolerance, although the floats are equal."""
    assert floats(rel=0, abs=1e-9)(output, expected) is is_equal
    assert floats()(output, expected)
    if output.lstrip("-").isdigit():  # JSON holds integers with all digits
        test = FunctionTest([], int(expected), compare=floats(rel=0, abs=1e-9))
        returned = ExecutionResult(outcome=Outcome.OK, output=ExecutionOutput(ret_val=output))
        passed = judge_result(test, returned).verdict is Verdict.PASSED
        assert passed is is_equal


def test_the_tolerance_is_inclusive() -> None:
    """As in `math.isclose`, also for numbers that are read as the same float."""
    assert floats(rel=0, abs=1)("9007199254740993", "9007199254740992")
    assert floats(rel=2**-53, abs=0)("9007199254740993", "9007199254740992")


def test_small_numbers_are_compared_by_their_relative_difference() -> None:
    """Both are read as the smallest float."""
    assert not floats(rel=0.1, abs=0)("3e-324", "7e-324")


@pytest.mark.parametrize(("output", "expected"), [("1e-400", "0"), ("0", "-1e-400"), ("1e-400", "2e-400")])
def test_without_an_absolute_tolerance_a_number_that_is_too_small_for_a_float_is_not_zero(
    output: str, expected: str
) -> None:
    """Both would be read as 0, which differs from them by more than any relative tolerance below 1."""
    relative = floats(rel=1e-6, abs=0)
    assert not relative(output, expected)
    assert relative("10e-401", "1e-400")
    assert relative("-0.0", "0")


# The JSON of a returned value, the expected value, and the comparisons that accept it.
NUMBERS_AS_JSON: list[tuple[str, Any, str]] = [
    (HUGE, math.factorial(171), "equal alike floats"),
    (HUGE[:-1] + "1", math.factorial(171), NONE),
    (HUGE, 1e308, NONE),
    ("1e308", 10**308, NUMBERS),
    ("Infinity", 1e308, NONE),
    ("1e999", math.factorial(171), NONE),
    ("1" * 1_000_000, 1, NONE),
    ("NaN", 0, NONE),
    ("-0.0", 0, "equal alike floats"),
    ("1e-400", 0, "equal alike floats"),
    ("9007199254740993", 9007199254740992, NUMBERS),
    ("+5", 5, NONE),
    ("05", 5, NONE),
    ("5.", 5, NONE),
    ("0x10", 16, NONE),
    ("1_0", 10, NONE),
    ("１０", 10, NONE),
    ('"5"', 5, NONE),
    ("true", 1, NONE),
    (" 5\n", 5, "equal alike floats"),
    ("\xa05", 5, NONE),
]


@pytest.mark.parametrize(("text", "expected", "accepting"), NUMBERS_AS_JSON, ids=range(len(NUMBERS_AS_JSON)))
def test_which_values_count_as_the_same_number(text: str, expected: Any, accepting: str) -> None:
    """Values are JSON, in which numbers have one form. Only "floats" has tolerances, and not for integers that are too
    large for a float.
    """
    names = ("equal", "alike", "floats")
    judged = {name: judge_result(FunctionTest([], expected), returned(text), name).verdict for name in names}
    assert " ".join(name for name, verdict in judged.items() if verdict is Verdict.PASSED) == accepting


def test_the_comparison_of_a_test_precedes_that_of_the_judgement() -> None:
    """A test without one has that of the judgement."""
    tests = [FunctionTest([], [1]), FunctionTest([], [1], compare="equal")]
    verdicts = [judge_result(test, returned('{"py/tuple": [1]}'), "alike").verdict for test in tests]
    assert verdicts == [Verdict.PASSED, Verdict.WRONG_ANSWER]


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(NESTED, NESTED)
def test_values_equal_as_their_json_does(value: Any, expected: Any) -> None:
    """Without tuples, the values are equal if Python says so and they have bools at the same places."""

    def marked(part: Any) -> Any:
        if isinstance(part, bool):
            return str(part)
        if isinstance(part, list):
            return [marked(member) for member in part]
        if isinstance(part, dict):
            return {key: marked(member) for key, member in part.items()}
        return ("", part) if isinstance(part, str) else part

    judged = judge_result(FunctionTest([], expected), returned(json.dumps(value)))
    assert (judged.verdict is Verdict.PASSED) == (marked(value) == marked(expected))
    assert judge_result(FunctionTest([], value), returned(json.dumps(value))).verdict is Verdict.PASSED


@given(NESTED, st.integers(0, 40), st.text('[]{}",:1- tn', max_size=2))
def test_a_forged_text_equals_a_value_only_if_it_is_its_json(value: Any, at: int, inserted: str) -> None:
    """A text that was changed anywhere is refused, unless it is still the JSON of an equal value."""
    text = json.dumps(value)
    forged = text[:at] + inserted + text[at + 1 :]
    if judge_result(FunctionTest([], value), returned(forged)).verdict is Verdict.PASSED:
        assert loads(forged) == value


def test_a_cut_value_is_not_compared() -> None:
    """Whether the value is right is unknown if some of it is missing."""
    judged = judge_result(FunctionTest([], 1), returned("1", truncated=frozenset({"ret_val"})))
    assert (judged.verdict, judged.difference) == (
        Verdict.OUTPUT_LIMIT,
        "the return value was cut, so it cannot be compared",
    )


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
        (lambda: check_tests("ab"), "tests must be an iterable of TestCases, FunctionTests or AssertTests, got 'ab'"),
        (
            lambda: check_tests([("a", "b")]),
            "tests must contain only TestCases, FunctionTests or AssertTests, got tuple at index 0",
        ),
        (
            lambda: check_tests([FunctionTest([], 1), TestCase()]),
            "tests must contain only FunctionTests, as the first one is, got TestCase at index 1",
        ),
        (lambda: FunctionTest("ab", 1), "args must be a sequence of arguments, such as [1, 2], got 'ab'"),
        (lambda: FunctionTest([], {1: 2}), "expected holds a dict with the key 1, which is not a str: it must be a"),
        (lambda: FunctionTest([], [10**4300]), "expected is or holds an integer with more than 4,300 digits"),
        (lambda: FunctionTest([], {"a": ["x" * 2**20] * 9}), "expected exceeds the limit of 8,388,608 bytes: it must"),
        (lambda: FunctionTest.from_dict({5: 1, "expected": 1}), "a test of a function has no field '5', only args"),
        (lambda: FunctionTest([], [math.nan]), "expected is or holds nan: it must be a JSON value"),
        (lambda: FunctionTest([], {2}), "expected is or holds a set: it must be a JSON value"),
        (lambda: FunctionTest([], 1, kwargs={1: 2}), "kwargs must map names to arguments, got {1: 2}"),
        (lambda: FunctionTest([], 1, compare="tokens"), "compare must be 'equal', 'alike', 'floats', floats(...) or"),
        (lambda: FunctionTest([], 1, compare=wrong_compare), "compare must not be async"),
        (lambda: FunctionTest([], 1, timeout_ms=0), "timeout_ms must be finite and above 0, got 0"),
        (lambda: FunctionTest([], 1, id=5), "id must be a str or None, got 5"),
        (lambda: FunctionTest.from_dict([1]), "a test must be an object, got [1]"),
        (lambda: FunctionTest.from_dict({"args": [1]}), "a test of a function must have the field expected"),
        (
            lambda: FunctionTest.from_dict({"expected": loads("[" * 300 + "]" * 300)}),
            "nested more than 200 levels deep",
        ),
        (lambda: FunctionTest.from_dict({"expected": 1, "args": loads("[" * 300 + "]" * 300)}), "args is nested more"),
        (lambda: FunctionTest.from_dict({"stdin": ""}), "a test of a function has no field 'stdin', only args, expec"),
        (lambda: check_compare("fuzzy", TestCase), "compare must be 'exact', 'lines', 'tokens', 'floats', floats(.."),
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
    """Missing and null fields have their defaults, but a function may be expected to return null."""
    every = {"args": [None], "kwargs": {"a": None}, "expected": None, "compare": "alike", "timeout_ms": 5, "id": "a"}
    read = FunctionTest.from_dict(every)
    assert read == FunctionTest([None], None, kwargs={"a": None}, compare="alike", timeout_ms=5, id="a")
    assert FunctionTest.from_dict({"expected": 1, "args": None, "id": None}) == FunctionTest((), 1)
    tuples = {"a": [{"py/tuple": [{"py/tuple": []}]}], "py/tuple": [1]}
    assert FunctionTest.from_dict({"expected": tuples}).expected == {"a": [((),)], "py/tuple": [1]}
    assert FunctionTest.from_dict({"args": [tuples["a"]], "expected": 1}) == FunctionTest([[((),)]], 1)
    fields = {"stdin": "a", "expected": "b", "argv": ["c"], "files": {"d": {"base64": "/w=="}}, "id": None}
    assert TestCase.from_dict(fields) == TestCase(b"a", "b", argv=["c"], files={"d": b"\xff"})


def test_white_space_around_json_is_no_part_of_it() -> None:
    """Any other character around a text, such as a no-break space, is refused."""
    assert loads(" \t\r\n[1, 2]\r\n ") == [1, 2]
    for text in ("", " ", "[1]x", "[1] [2]", "\xa0[1]", "[1]\x0b", "\ufeff[1]"):
        with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
            loads(text)


compare_by_lines = functools.partial(compare_result, compare="lines")


@pytest.mark.parametrize(("output", "expected"), [("a" * 2**20, ""), ("", "a" * 2**20)], ids=["output", "expected"])
async def test_large_texts_are_compared_in_a_thread(
    output: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a large output nor a large expected one keeps the event loop from other calls."""
    threads: list[int] = []

    def judge_in_thread(*args: Any) -> TestResult:
        threads.append(threading.get_ident())
        return judge_result(*args)

    monkeypatch.setattr("faasrt.client.judge.judge_result", judge_in_thread)
    judged = await compare_by_lines(TestCase(expected=expected), result(output))
    assert judged.verdict is Verdict.WRONG_ANSWER
    assert threads != [threading.get_ident()]


async def no_cases(program: Program, job: GuestJob) -> AsyncGenerator[dict[int, ExecutionResult]]:
    raise AssertionError("no test shares an execution")
    yield


async def test_tests_after_a_failure_are_skipped_for_every_concurrency() -> None:
    """The judgement does not depend on which tests ran beside the one that failed first."""
    tests = [TestCase(str(number), "x" if number == 3 else "") for number in range(8)]
    programs = [Program.checked("python", "code", SandboxConfig(), stdin=test.stdin) for test in tests]

    for concurrency in (1, 2, 8):
        started: list[bytes] = []
        release = asyncio.Event()

        async def run(program: Program, started: Any = started, release: Any = release) -> ExecutionResult:
            started.append(program.input.stdin)
            if program.input.stdin > b"3":
                await release.wait()  # is never set, so these tests must be cancelled
            return result()

        judge = Judge(run, no_cases, stop_on_failure=True, concurrency=concurrency)
        judgement = await judge.run_tests(tests, programs, None, compare_by_lines)
        expected = [Verdict.PASSED] * 3 + [Verdict.WRONG_ANSWER] + [Verdict.SKIPPED] * 4
        assert [test.verdict for test in judgement.results] == expected
        assert len(started) <= 3 + concurrency


async def test_tests_that_hang_wait_at_the_same_time(clock: Clock) -> None:
    """Fifteen tests that share executions and reach their time limit wait four times as long as one of them, and each
    runs once.
    """
    tests = [FunctionTest([number], 0) for number in range(15)]
    programs = [Program.checked("python", "code", SandboxConfig()) for _ in tests]
    ran: list[str] = []

    async def run_cases(program: Program, job: GuestJob) -> AsyncGenerator[dict[int, ExecutionResult]]:
        for position, case in enumerate(job.cases):
            await asyncio.sleep(30)
            ran.append(case)
            yield {position: result(outcome=Outcome.TIMEOUT)}

    async def run(program: Program) -> ExecutionResult:
        raise AssertionError("all tests share executions")

    job = GuestJob(function="f", cases=[str(number) for number in range(15)], single=False)
    judge = Judge(run, run_cases, stop_on_failure=False, concurrency=None)
    began = asyncio.get_running_loop().time()
    judgement = await fast_forward(clock, judge.run_tests(tests, programs, job, compare_by_lines))
    assert 4 * 30 <= asyncio.get_running_loop().time() - began < 5 * 30
    assert [test.verdict for test in judgement.results] == [Verdict.TIMEOUT] * 15
    assert sorted(ran, key=int) == job.cases


def test_the_score_is_the_share_of_passed_tests() -> None:
    """A judgement is truthy when all tests passed."""
    passed, wrong = (judge_result(TestCase(expected=text), result("a"), "lines") for text in "ab")
    judgement = Judgement(results=(passed, wrong, passed))
    assert (judgement.passed, judgement.passed_count, round(judgement.score, 3)) == (False, 2, 0.667)
    assert not judgement.passed
    assert (judgement.first_failure, judgement.verdict) == (wrong, Verdict.WRONG_ANSWER)
    right = Judgement(results=(passed,))
    assert (right.passed, right.first_failure, right.verdict) == (True, None, Verdict.PASSED)
    assert [test["verdict"] for test in judgement.to_dict()["results"]] == ["PASSED", "WRONG_ANSWER", "PASSED"]
