"""Judges a program by tests: compares what it prints, or what its function returns, with the expected output or value.

In `RuntimeManager.judge` and `Runtime.judge`, the tests of a judgement are all of one class: `TestCase`, `FunctionTest`
or `AssertTest`. Normally each `TestCase` runs in a separate execution. On a server that starts an interpreter for each
request, such as python-faas, Python tests share executions, as tests of functions do on every server. Each test then
has a fresh namespace, but imported modules, other than the program's own files, keep their state. Comparisons are made
in the client: no expected output or value is sent to a server. Only the asserts of an `AssertTest` are sent; they run
in a process without the judged program.

Comparisons of outputs:

    "exact"      the output equals the expected text
    "lines"      trailing whitespace of lines, and empty lines at the end, are ignored; the default
    "tokens"     the words are the same; any whitespace separates them
    "floats"     as "tokens", but numbers may differ slightly: `floats()` with its defaults
    floats(...)  the same with other tolerances
    a function   takes the output and the expected text, and returns whether the output is right

Comparisons of values that functions return:

    "equal"      the values are equal in Python, where 1 equals 1.0, and a tuple never equals a list; but unlike there,
                 True does not equal 1; the default
    "alike"      as "equal", but a tuple equals a list with the same elements
    "floats"     as "alike", but numbers may differ slightly, at any depth: `floats()` with its defaults
    floats(...)  the same with other tolerances
    a function   takes the returned value, which may be of any type of JSON or a tuple, and the expected one, and
                 returns whether the returned one is right
"""

from __future__ import annotations

import enum
import functools
import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from itertools import zip_longest
from typing import Any, ClassVar, Literal, TypeAlias, cast

import attrs

from faasrt import _exact_values, _strict_json
from faasrt._assert_programs import AssertProgram
from faasrt._attribute_docs import list_attributes
from faasrt._run_option_checks import check_args, check_kwargs, check_time_limit, is_number
from faasrt.errors import CompareError, InvalidRequestError, rounded_repr, safe_repr
from faasrt.inputs import ProgramInput
from faasrt.results import ExecutionResult, Outcome

__all__ = [
    "AssertTest",
    "FunctionTest",
    "Judgement",
    "TestCase",
    "TestResult",
    "Verdict",
    "floats",
]

Compare: TypeAlias = Literal["exact", "lines", "tokens", "floats", "equal", "alike"] | Callable[[Any, Any], bool]
"""A way to compare outputs or values; see the docstring of the module."""
_MAX_NUMBER_CHARACTERS = 400
# `Decimal` refuses exponents with more digits.
_NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,17})?|inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
# `Decimal` has any exponent that `_NUMBER` accepts. 30 digits of a difference are enough for a tolerance.
_EXACT = Context(prec=30, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_CUT = "the {} was cut, so it cannot be compared"
_REFUSED = "the comparison refuses the {0}, which equals the expected one"


class Verdict(enum.StrEnum):
    """The verdict on one test: PASSED, WRONG_ANSWER, SKIPPED, or the name of an `Outcome` other than OK.

    Example:
        >>> judgement = await manager.judge("print(2)", [TestCase(expected="1")], language="py")
        >>> judgement.results[0].verdict is Verdict.WRONG_ANSWER
        True
    """

    PASSED = "PASSED"
    """The program ended with OK, and its output is right."""
    WRONG_ANSWER = "WRONG_ANSWER"
    """The program ended with OK, and its output is wrong."""
    SKIPPED = "SKIPPED"
    """An earlier test did not pass, and `stop_on_failure` was set."""
    USER_ERROR = "USER_ERROR"
    SYNTAX_ERROR = "SYNTAX_ERROR"
    TIMEOUT = "TIMEOUT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    """It exceeded its output limit, or its output was cut, so that it cannot be compared."""
    CRASHED = "CRASHED"


@list_attributes
@attrs.frozen
class TestCase:
    """An input of a program, and the output that is expected for it.

    Raises:
        InvalidRequestError: An attribute is wrong. Only `judge` knows the program and its sandbox, and refuses a file
            with the name of the program, and a `timeout_ms` above the limit of the sandbox.

    Example:
        >>> TestCase("1 2", "3", id="small")
        TestCase(stdin='1 2', expected='3', argv=(), files=None, timeout_ms=None, id='small')
    """

    __test__: ClassVar[bool] = False  # pytest does not collect this class

    stdin: str | bytes = attrs.field(default="", repr=safe_repr)
    """The standard input. Default: ""."""
    expected: str = attrs.field(default="", repr=safe_repr)
    """The expected standard output. Default: ""."""
    argv: Sequence[str] = attrs.field(default=(), kw_only=True, repr=safe_repr)
    """The command-line arguments. Default: no arguments."""
    files: Mapping[str, str | bytes] | None = attrs.field(default=None, kw_only=True, hash=False, repr=safe_repr)
    """The contents of files in the working folder of the program; see `Runtime.run_code`. Default: None."""
    timeout_ms: float | None = attrs.field(default=None, kw_only=True)
    """The time limit of this test in milliseconds. Default: None, which means the time limit of the judgement."""
    id: str | None = attrs.field(default=None, kw_only=True)
    """Your own name for the test. Default: None."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.expected, str):
            raise InvalidRequestError(f"expected must be a str, got {type(self.expected).__name__}")
        _check_id(self.id)
        check_time_limit(self.timeout_ms)
        checked = ProgramInput.checked(None, stdin=self.stdin, argv=self.argv, files=self.files)
        object.__setattr__(self, "argv", checked.argv)

    @classmethod
    def from_dict(cls, fields: object) -> TestCase:
        r"""Return the test in decoded JSON: an object with the attributes. Bytes are text, or `{"base64": ...}`.

        Raises:
            InvalidRequestError: A field is unknown or wrong.

        Example:
            >>> TestCase.from_dict({"stdin": {"base64": "AAE="}, "expected": "1"}).stdin
            b'\x00\x01'
        """
        values = {name: value for name, value in _check_names(cls, fields).items() if value is not None}
        data = ProgramInput.from_wire(values, None)
        return cls(**values | {"stdin": data.stdin, "argv": data.argv, "files": data.files})


@list_attributes
@attrs.frozen
class FunctionTest:
    """Arguments of a function, and the value that it is expected to return.

    The server gets the arguments, never the expected value. The function returns JSON: None, bools, finite numbers
    (including NumPy's), strings, lists, and dicts with string keys. Python programs get and return tuples as tuples: in
    `result.value` of a test, a tuple is `{"py/tuple": [...]}`. Any other value, such as a set, NaN or a dict with
    another key, makes the test a USER_ERROR whose message says where in the value it is. In JavaScript, a tuple is an
    array, `undefined` is null, or omitted in objects, and objects are their own properties; a Map, Set, Date or typed
    array is a USER_ERROR. A program in JavaScript declares the function, or exports it (`module.exports` works, too).

    Raises:
        InvalidRequestError: An attribute is wrong. Only `judge` checks that arguments are JSON, and refuses a
            `timeout_ms` above the limit of the sandbox.

    Example:
        >>> tests = [FunctionTest([3, 4], 5), FunctionTest([1, 1], 1.4142, compare=floats(rel=0.001))]
        >>> judgement = await manager.judge("from math import hypot", tests, function="hypot", language="python")
        >>> judgement.passed, judgement.results[1].result.value
        (True, 1.4142135623730951)
    """

    __test__: ClassVar[bool] = False

    args: tuple[Any, ...] = attrs.field(converter=check_args, hash=False, repr=safe_repr)
    """The positional arguments: None, bools, finite numbers, strings, and lists, tuples and dicts of these."""
    expected: Any = attrs.field(hash=False, repr=safe_repr)
    """The expected value: None, a bool, a finite number, a str, or a list, tuple or dict of these."""
    kwargs: Mapping[str, Any] = attrs.field(
        factory=dict, converter=check_kwargs, kw_only=True, hash=False, repr=safe_repr
    )
    """The keyword arguments; Python only. Default: no arguments."""
    compare: Compare | None = attrs.field(default=None, kw_only=True)
    """The comparison of this test; see `faasrt.judging`. Default: None, which means the comparison of the judgement."""
    timeout_ms: float | None = attrs.field(default=None, kw_only=True)
    """The time limit of this test in milliseconds. Default: None, which means the time limit of the judgement."""
    id: str | None = attrs.field(default=None, kw_only=True)
    """Your own name for the test. Default: None."""

    def __attrs_post_init__(self) -> None:
        _check_json("expected", self.expected)
        check_compare(self.compare, FunctionTest)
        _check_id(self.id)
        check_time_limit(self.timeout_ms)

    @classmethod
    def from_dict(cls, fields: object) -> FunctionTest:
        """Return the test in decoded JSON: an object with the attributes, of which all but `expected` may be missing.

        A tuple in `args`, `kwargs` and `expected` is `{"py/tuple": [...]}`.

        Raises:
            InvalidRequestError: A field is unknown, missing or wrong.

        Example:
            >>> FunctionTest.from_dict({"args": [1, [2]], "expected": {"py/tuple": [1, None]}})
            FunctionTest(args=(1, [2]), expected=(1, None), kwargs={}, compare=None, timeout_ms=None, id=None)
        """
        values = _check_names(cls, fields)
        if "expected" not in values:
            raise InvalidRequestError(f"a test of a function must have the field expected, got {safe_repr(fields)}")
        values = {name: value for name, value in values.items() if value is not None or name == "expected"}
        for name in values.keys() & {"args", "kwargs", "expected"}:
            _check_json(name, values[name])
            values[name] = _exact_values.with_tuples(values[name])
        return cls(**{"args": ()} | values)


def _check_json(name: str, value: object) -> None:
    try:
        _strict_json.JsonCheck().add(value)
    except ValueError as problem:
        raise InvalidRequestError(f"{name} {problem}: it must be a JSON value") from None


@list_attributes
@attrs.frozen
class AssertTest:
    """A test program in Python with asserts about a function, in the style of HumanEval and MBPP.

    The test program and the judged one run in different processes. So the judged program can neither end or change the
    test program nor read the expected values in it. The test passes if the test program reaches its end and at least
    one assert, and no assert fails. See "Test programs with asserts" in `faasrt/docs/rewards.md`.

    Raises:
        InvalidRequestError: An attribute is wrong, or the test program is not Python, or has no `assert`. Only `judge`
            knows the function, and refuses a test program that does not use it, or uses a name that it does not define.

    Example:
        >>> tests = [AssertTest("assert double(2) == 4"), AssertTest("assert double('a') == 'b'")]
        >>> judgement = await manager.judge("def double(x): return 2 * x", tests, function="double", language="python")
        >>> judgement.score, judgement.results[1].difference
        (0.5, "line 1: assert double('a') == 'b': AssertionError; the last call returned 'aa'")
    """

    __test__: ClassVar[bool] = False

    program: str = attrs.field(repr=safe_repr)
    """The test program, at most 1,048,576 characters. It calls the function by its name, or defines `check(candidate)`,
    as in HumanEval. It must define every other name that it uses. If there is only one that it does not define, as in
    MBPP, `judge` needs no name of the function."""
    timeout_ms: float | None = attrs.field(default=None, kw_only=True)
    """The time limit in milliseconds of each execution: a run of the test program, or all calls of the function that
    this run made. Default: None, which means the time limit of the judgement."""
    id: str | None = attrs.field(default=None, kw_only=True)
    """Your own name for the test. Default: None."""
    _parsed: AssertProgram = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_parsed", AssertProgram.parse(self.program))
        _check_id(self.id)
        check_time_limit(self.timeout_ms)

    @classmethod
    def from_dict(cls, fields: object) -> AssertTest:
        """Return the test in decoded JSON: an object with the attributes.

        Raises:
            InvalidRequestError: A field is unknown or wrong.

        Example:
            >>> AssertTest.from_dict({"program": "assert f(1) == 2"})
            AssertTest(program='assert f(1) == 2', timeout_ms=None, id=None)
        """
        values = {name: value for name, value in _check_names(cls, fields).items() if value is not None}
        return cls(**{"program": None} | values)


Test: TypeAlias = TestCase | FunctionTest | AssertTest
"""A test of a program."""
Tests: TypeAlias = Iterable[TestCase] | Iterable[FunctionTest] | Iterable[AssertTest]
"""Tests of a judgement, which are of one class."""


def parse_test(fields: object, function: object) -> Test:
    """Return the test in decoded JSON: an `AssertTest` if it has a program, else a `TestCase` or, with a function, a
    `FunctionTest`.
    """
    if isinstance(fields, dict) and fields.get("program") is not None:
        return AssertTest.from_dict(fields)
    return TestCase.from_dict(fields) if function is None else FunctionTest.from_dict(fields)


def _check_names(kind: type[Test], fields: object) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise InvalidRequestError(f"a test must be an object, got {safe_repr(fields)}")
    names = [field.name for field in attrs.fields(kind) if field.init]
    if unknown := fields.keys() - set(names):
        described = {TestCase: "a test", FunctionTest: "a test of a function", AssertTest: "a test program"}[kind]
        raise InvalidRequestError(f"{described} has no field {min(map(str, unknown))[:50]!r}, only {', '.join(names)}")
    return fields


def _check_id(test_id: object) -> None:
    if test_id is not None and not isinstance(test_id, str):
        raise InvalidRequestError(f"id must be a str or None, got {safe_repr(test_id)}")


@list_attributes
@attrs.frozen(kw_only=True)
class TestResult:
    """The verdict on one test.

    Example:
        >>> judgement = await manager.judge("print(input())", [TestCase("a", "b")], language="py")
        >>> judgement.results[0].difference
        "line 1: expected 'b', got 'a'"
    """

    __test__: ClassVar[bool] = False

    test: Test
    """The test."""
    verdict: Verdict
    """The verdict."""
    difference: str = ""
    """The first difference between the output or value and the expected one, or the reason why they cannot be compared,
    in words; "" if there is none."""
    result: ExecutionResult | None = None
    """The result of the execution; None if the test was skipped. For a `FunctionTest`, its texts are cut to 16,384
    bytes after the comparison."""

    def to_dict(self) -> dict[str, Any]:
        """Return id, verdict, difference and result as values that `json.dumps` accepts."""
        result = None if self.result is None else self.result.to_dict()
        return {"id": self.test.id, "verdict": str(self.verdict), "difference": self.difference, "result": result}


@list_attributes
@attrs.frozen(kw_only=True)
class Judgement:
    """The verdicts on all tests.

    Raises:
        InvalidRequestError: There are no results.

    Example:
        >>> tests = [TestCase("1", "2"), TestCase("5", "6"), TestCase("x", "")]
        >>> judgement = await manager.judge("print(int(input()) + 1)", tests, language="python")
        >>> judgement.passed, round(judgement.score, 2), [str(test.verdict) for test in judgement.results]
        (False, 0.67, ['PASSED', 'PASSED', 'USER_ERROR'])
    """

    results: tuple[TestResult, ...]
    """The verdict on each test, in order; at least one."""
    duration_s: float = attrs.field(default=0.0, repr=rounded_repr)
    """Seconds from the call to the last verdict."""

    def __attrs_post_init__(self) -> None:
        if not self.results:
            raise InvalidRequestError("a judgement must have at least one result")

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.passed_count == len(self.results)

    @property
    def passed_count(self) -> int:
        """The number of tests that passed."""
        return sum(result.verdict is Verdict.PASSED for result in self.results)

    @property
    def first_failure(self) -> TestResult | None:
        """The result of the first test that did not pass; None if all passed."""
        return next((result for result in self.results if result.verdict is not Verdict.PASSED), None)

    @property
    def verdict(self) -> Verdict:
        """The verdict on the first test that did not pass; PASSED if all passed."""
        return Verdict.PASSED if self.first_failure is None else self.first_failure.verdict

    @property
    def score(self) -> float:
        """The share of tests that passed, from 0 to 1."""
        return self.passed_count / len(self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return passed, score, duration_s and results as values that `json.dumps` accepts."""
        return {
            "passed": self.passed,
            "score": self.score,
            "duration_s": round(self.duration_s, 6),
            "results": [result.to_dict() for result in self.results],
        }


@list_attributes
@attrs.frozen
class floats:  # noqa: N801 (used like a function)
    """A comparison of words, or of values, in which numbers may differ slightly, as in `math.isclose`.

    Called with two texts, it compares their words. Numbers that are too large for a float must be equal, and words of
    more than 400 characters the same. See "Which numbers are equal" in `faasrt/docs/judging.md`.

    Raises:
        InvalidRequestError: A tolerance is not a finite number of at least 0.

    Example:
        >>> floats(rel=0.01)("3.14", "3.1416"), floats()("3.14", "3.1416"), floats()("a 1e3", "a 1000.0000001")
        (True, False, True)
    """

    rel: float = 1e-6
    """The largest relative difference, at least 0. Default: 1e-6."""
    abs: float = 1e-9
    """The largest absolute difference, at least 0. Default: 1e-9."""

    def __attrs_post_init__(self) -> None:
        for name, value in (("rel", self.rel), ("abs", self.abs)):
            if not is_number(value) or not 0 <= value <= sys.float_info.max:
                raise InvalidRequestError(f"{name} must be a finite number of at least 0, got {safe_repr(value)}")

    def __call__(self, output: str, expected: str) -> bool:
        return not _difference(output.split(), expected.split(), "word", self._equal)

    def _equal(self, word: str | None, expected: str | None) -> bool:
        if word == expected:
            return True
        if word is None or expected is None or max(len(word), len(expected)) > _MAX_NUMBER_CHARACTERS:
            return False
        if _NUMBER.fullmatch(word) is None or _NUMBER.fullmatch(expected) is None:
            return False
        number, other = float(word), float(expected)
        if number == other:
            exact, expected_exact = Decimal(word), Decimal(expected)
            is_close = math.isfinite(number) and self._is_exactly_close(exact, expected_exact)
            return exact == expected_exact or is_close
        return self.is_close(number, other) or (math.isnan(number) and math.isnan(other))

    def is_close(self, number: float, expected: float) -> bool:
        """Return whether two numbers are within the tolerances. An int that is too large for a float never is."""
        try:
            if float(number) == float(expected):
                return number == expected or self._is_exactly_close(Decimal(number), Decimal(expected))
            return math.isclose(number, expected, rel_tol=self.rel, abs_tol=self.abs)
        except OverflowError:
            return False

    def _is_exactly_close(self, number: Decimal, expected: Decimal) -> bool:
        """Compare numbers that are read as the same float. They may differ in digits that it does not hold."""
        difference = _EXACT.subtract(number, expected).copy_abs()
        largest = max(number.copy_abs(), expected.copy_abs())
        return difference <= Decimal(self.abs) or difference <= _EXACT.multiply(Decimal(self.rel), largest)


def check_compare(compare: object, kind: type[Test] | None = None) -> Compare | None:
    if compare is None:
        return None
    if any(inspect.iscoroutinefunction(each) for each in (compare, vars(type(compare)).get("__call__"))):
        raise InvalidRequestError(f"compare must not be async (a coroutine is always true), got {safe_repr(compare)}")
    if kind is AssertTest:
        raise InvalidRequestError(f"compare must be None for AssertTests, got {compare!r}")
    is_function = callable(compare) and not isinstance(compare, type)
    kinds: Iterable[type[Test]] = _COMPARISONS if kind is None else [kind]
    names = dict.fromkeys(name for each in kinds for name in _COMPARISONS[each])
    if is_function or (isinstance(compare, str) and compare in names):
        return cast("Compare", compare)
    which = " for tests of a function" if kind is FunctionTest else ""
    raise InvalidRequestError(
        f"compare must be {', '.join(map(repr, names))}, floats(...) or a function{which}, got {safe_repr(compare)}"
    )


def check_tests(tests: object) -> tuple[TestCase, ...] | tuple[FunctionTest, ...] | tuple[AssertTest, ...]:
    any_kind = "TestCases, FunctionTests or AssertTests"
    if isinstance(tests, (str, bytes, Mapping)) or not isinstance(tests, Iterable):
        raise InvalidRequestError(f"tests must be an iterable of {any_kind}, got {safe_repr(tests)}")
    checked = tuple(tests)
    if not checked:
        raise InvalidRequestError("tests must not be empty")
    kind = next((kind for kind in (FunctionTest, AssertTest) if isinstance(checked[0], kind)), TestCase)
    for index, test in enumerate(checked):
        if not isinstance(test, kind):
            wanted = any_kind if index == 0 else f"{kind.__name__}s, as the first one is"
            raise InvalidRequestError(f"tests must contain only {wanted}, got {type(test).__name__} at index {index}")
    return checked


def check_function_given(tests: Sequence[Test], function: object) -> None:
    """A function must be named for tests of a function, and only for them. An `AssertTest` may leave the name out."""
    if isinstance(tests[0], TestCase):
        if function is not None:
            raise InvalidRequestError(
                "tests of a function must be FunctionTests or AssertTests, got TestCases, which test whole programs"
            )
    elif function is None and isinstance(tests[0], FunctionTest):
        raise InvalidRequestError("FunctionTests need the name of the function: pass function=")


def judge_result(test: Test, result: ExecutionResult, compare: Compare | None = None) -> TestResult:
    """Return the verdict on a test whose program has run. A comparison of the test takes precedence over `compare`."""
    if result.outcome is not Outcome.OK:
        return TestResult(test=test, verdict=Verdict(result.outcome), result=result)
    stream, name = ("ret_val", "return value") if isinstance(test, FunctionTest) else ("stdout", "output")
    if stream in result.truncated:
        return TestResult(test=test, verdict=Verdict.OUTPUT_LIMIT, difference=_CUT.format(name), result=result)
    if isinstance(test, FunctionTest):
        difference = _value_difference(result, test.expected, test.compare or compare or "equal")
    else:
        assert isinstance(test, TestCase)  # an AssertTest is judged by `faasrt.client.assert_tests`
        difference = _output_difference(result.stdout, test.expected, compare or "lines")
    verdict = Verdict.WRONG_ANSWER if difference else Verdict.PASSED
    return TestResult(test=test, verdict=verdict, difference=difference, result=result)


def _output_difference(output: str, expected: str, compare: Compare) -> str:
    if isinstance(compare, str):
        return "" if output == expected else _COMPARISONS[TestCase][compare](output, expected)
    if isinstance(compare, floats):
        return _difference(output.split(), expected.split(), "word", compare._equal)
    if _is_right(compare, output, expected):
        return ""
    return _exact_difference(output, expected) or _REFUSED.format("output")


def _value_difference(result: ExecutionResult, expected: object, compare: Compare) -> str:
    # A program can forge its result, so the text may be anything.
    if not result.ret_val:
        return "the function returned no value"
    if isinstance(compare, str):
        return _COMPARISONS[FunctionTest][compare](result.ret_val, expected)
    if isinstance(compare, floats):
        return _exact_values.difference(result.ret_val, expected, tuples_are_lists=True, is_close=compare.is_close)
    try:
        value = _exact_values.decode(result.ret_val)
    except (ValueError, RecursionError) as error:
        return f"the return value is not JSON ({error})"
    if _is_right(compare, value, expected):
        return ""
    return _exact_values.difference(result.ret_val, expected) or _REFUSED.format("value")


def _is_right(compare: Callable[[Any, Any], bool], output: object, expected: object) -> bool:
    try:
        is_right: Any = compare(output, expected)
    except Exception as error:
        raise CompareError(f"compare raised {type(error).__name__}: {str(error)[:200]}") from error
    if inspect.isawaitable(is_right):
        if inspect.iscoroutine(is_right):
            is_right.close()
        raise CompareError("compare must not be async: it returned an awaitable, which is always true")
    try:
        return bool(is_right)
    except Exception as error:
        raise CompareError(f"compare returned a {type(is_right).__name__}, which is neither true nor false") from error


def _exact_difference(output: str, expected: str) -> str:
    return _difference(output.splitlines(keepends=True), expected.splitlines(keepends=True), "line")


def _line_difference(output: str, expected: str) -> str:
    return _difference(_stripped_lines(output), _stripped_lines(expected), "line")


def _word_difference(output: str, expected: str) -> str:
    return _difference(output.split(), expected.split(), "word")


def _number_difference(output: str, expected: str) -> str:
    return _output_difference(output, expected, floats())


_COMPARISONS: dict[type[Test], dict[str, Callable[[Any, Any], str]]] = {
    TestCase: {
        "exact": _exact_difference,
        "lines": _line_difference,
        "tokens": _word_difference,
        "floats": _number_difference,
    },
    FunctionTest: {
        "equal": _exact_values.difference,
        "alike": functools.partial(_exact_values.difference, tuples_are_lists=True),
        "floats": functools.partial(_exact_values.difference, tuples_are_lists=True, is_close=floats().is_close),
    },
}


def _stripped_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _describe_part(part: str | None) -> str:
    return "the end" if part is None else safe_repr(part)


def _difference(
    parts: list[str],
    expected: list[str],
    kind: str,
    equal: Callable[[str | None, str | None], bool] = operator.eq,
) -> str:
    if parts == expected:
        return ""
    for number, (got, wanted) in enumerate(zip_longest(parts, expected), 1):
        if not equal(got, wanted):
            return f"{kind} {number}: expected {_describe_part(wanted)}, got {_describe_part(got)}"
    return ""
