"""The tests of a completion, in the forms that `faasrt.rewards` lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.judging import AssertTest, FunctionTest, TestCase, parse_test
from faasrt.languages import Language, OtherLanguage
from faasrt.protocol.cases import check_function
from faasrt.rewards.verl_asserts import CALL, CALL_EPILOGUE, complete_asserts

# Text that may precede an import from `__future__` in a program, or such an import.
_HEAD = re.compile(
    r"""
    [ \t\f\r\n;]++ | \\\r?\n | \#[^\n]*+
    | [rRuU]?+ (?: \"{3} (?:[^"\\] | \\. | "(?!""))*+ \"{3} | \'{3} (?:[^'\\] | \\. | '(?!''))*+ \'{3}
        | " (?:[^"\\\n] | \\.)*+ " | ' (?:[^'\\\n] | \\.)*+ ' )
    | (?P<future> from [ \t\f]++ __future__ [ \t\f]++ import \b [ \t\f]*+
        (?: \( (?:[^)\#] | \#[^\n]*+)*+ \) | (?:[\w, \t\f] | \\\r?\n)++ ) (?:[ \t\f;] | \\\r?\n)*+ )
    """,
    re.DOTALL | re.VERBOSE,
)
_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "typing"),
)
# If the program does not define a function, a function of these modules with the same name must not replace it. So the
# names of these modules are removed.
_APPS_PRELUDE = f"""
{"".join(f"from {module} import *" + chr(10) for module in _MODULES)}
from builtins import *
import {", ".join(_MODULES)}
[globals().pop(name, None) for name in {{names!r}}]
"""
# A method precedes a function that the program imports. It does not precede a function that the program defines,
# because the method may call this function.
_APPS_EPILOGUE = """
if hasattr(globals().get("Solution"), {name!r}) and getattr(globals().get({name!r}), "__module__", "") != __name__:
    def {name}(*args, **kwargs):
        return getattr(Solution(), {name!r})(*args, **kwargs)
"""


@attrs.frozen
class Problem:
    """The tests of a completion, and the code before and after the program."""

    tests: Sequence[TestCase] | Sequence[FunctionTest] | Sequence[AssertTest]
    function: str | None
    prelude: str = ""
    epilogue: str = ""

    def insert_into(self, program: str) -> str:
        """Add the code before and after the program. Imports from `__future__` stay first."""
        start = position = 0
        while match := _HEAD.match(program, position):
            position = match.end()
            if match["future"]:
                start = position
        return program[:start] + self.prelude + program[start:] + self.epilogue


def parse_problem(tests: object, function: str | None, language: Language | OtherLanguage) -> Problem:
    """Return the tests in one of the forms that the docstring of `faasrt.rewards` lists."""
    if isinstance(tests, str | bytes):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"tests are text that is not JSON: {error}") from None
    else:
        try:
            tests = without_arrays(tests)
        except RecursionError:
            raise InvalidRequestError("tests are nested too deeply, or contain themselves") from None
    prelude = ""
    if isinstance(tests, Mapping):
        if tests.get("assert_case"):
            return _parse_asserts(tests, function)
        if "inputs" in tests or "outputs" in tests:
            return _parse_apps(tests, function, language)
        if "tests" not in tests or not tests.keys() <= {"function", "tests", "prelude"}:
            raise InvalidRequestError(
                "an object with tests must have 'tests' and 'function', or 'inputs', 'outputs' and 'fn_name', "
                f"got {', '.join(map(safe_repr, tests))[:200]}"
            )
        function, prelude = tests.get("function") or function, tests.get("prelude") or ""
        if not isinstance(prelude, str):
            raise InvalidRequestError(f"'prelude' must be text, got {safe_repr(prelude)}")
        tests = tests["tests"]
    if isinstance(tests, str) or not isinstance(tests, Iterable):
        raise InvalidRequestError(f"tests must be a list, an object, or the JSON of one, got {safe_repr(tests)}")
    if function is not None:
        check_function(function, language)
    checked: list[Any] = [parse_test(test, function) if isinstance(test, dict) else test for test in tests]
    return Problem(checked, function, f"{prelude}\n" if prelude else "")


def without_arrays(value: Any) -> Any:
    """Replace the arrays of NumPy, as in the rows of pandas and datasets, by lists, and lazy rows by dicts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: without_arrays(item) for name, item in value.items()}
    if not isinstance(value, list | tuple):
        return value
    items = [without_arrays(item) for item in value]
    return tuple(items) if isinstance(value, tuple) else items


def _parse_apps(tests: Mapping[str, Any], function: str | None, language: Language | OtherLanguage) -> Problem:
    inputs, outputs, name = tests.get("inputs"), tests.get("outputs"), tests.get("fn_name") or function
    if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple) or len(inputs) != len(outputs):
        raise InvalidRequestError("'inputs' and 'outputs' must be lists of the same length")
    if name is None:
        return Problem([TestCase(_parse_text(i), _parse_text(o)) for i, o in zip(inputs, outputs, strict=True)], None)
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        results = [output[0] for output in outputs]
    else:
        results = [_parse_result(output) for output in outputs]
    cases = [FunctionTest(_parse_arguments(i), expected=result) for i, result in zip(inputs, results, strict=True)]
    check_function(name, language)
    if language is not Language.PYTHON:
        return Problem(cases, name)
    return Problem(cases, name, _APPS_PRELUDE.format(names=[name]), _APPS_EPILOGUE.format(name=name))


def _parse_asserts(tests: Mapping[str, Any], function: str | None) -> Problem:
    """Return the asserts of verl's `assert_case`, which run in another process than the program."""
    asserts, inputs = tests["assert_case"], tests.get("inputs") or ()
    if not isinstance(asserts, list | tuple):
        raise InvalidRequestError(f"'assert_case' must be a list of asserts, got {safe_repr(asserts)}")
    if any(inputs):
        raise InvalidRequestError("'inputs' must be empty beside 'assert_case': a function has no stdin")
    programs, name, names = complete_asserts(asserts, tests.get("fn_name") or function, _MODULES)
    cases = [AssertTest(each) for each in programs]
    if name is None:
        return Problem(cases, None)
    check_function(name, Language.PYTHON)
    epilogue = CALL_EPILOGUE if name == CALL else _APPS_EPILOGUE.format(name=name)
    return Problem(cases, name, _APPS_PRELUDE.format(names=names), epilogue)


def _parse_text(text: object) -> str:
    if isinstance(text, list | tuple) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    if not isinstance(text, str):
        raise InvalidRequestError(f"without 'fn_name', an input or output must be text, got {safe_repr(text)}")
    return text


def _parse_arguments(arguments: object) -> list[Any]:
    if isinstance(arguments, list | tuple):
        return list(arguments)
    if not isinstance(arguments, str):
        raise InvalidRequestError(f"with 'fn_name', an input must be a list of arguments, got {safe_repr(arguments)}")
    try:
        return [json.loads(line) for line in arguments.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"with 'fn_name', each line of an input must be JSON: {error}") from None


def _parse_result(output: object) -> object:
    if not isinstance(output, str):
        return output
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        return output
