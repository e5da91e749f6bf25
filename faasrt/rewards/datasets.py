"""The tests in rows of known data sets, in the forms that `faasrt.rewards` accepts."""

from __future__ import annotations

import ast
import base64
import binascii
import builtins
import itertools
import json
import pickletools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.judging import AssertTest
from faasrt.languages import Language
from faasrt.rewards.problems import parse_problem, without_arrays
from faasrt.tasks import CodeTask

Dataset: TypeAlias = Literal["humaneval", "mbpp", "apps", "taco", "code_contests", "livecodebench", "kodcode", "verl"]

_IDS = ("task_id", "question_id", "problem_id", "name", "id")
_MAX_UNPACKED_BYTES = 512 * 1024 * 1024
# The pickle of a text has at most 6. Each byte may be one, and their tuples take 60 times the memory.
_MAX_OPCODES = 8
_TEXT_OPCODES = {"PROTO", "FRAME", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "MEMOIZE", "BINPUT", "STOP"}
# The comparison of `evalplus.eval`. That in the rows of HumanEval+ lacks the types and lengths, so [] equals any float.
_EVALPLUS_ASSERTION = """
def assertion(out, exp, atol):
    if out == exp:
        return
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    assert atol != 0 and type(out) is type(exp)
    assert not isinstance(exp, (list, tuple)) or len(out) == len(exp)
    assert np.allclose(out, exp, rtol=1e-07, atol=atol)
"""


def tests_of(row: Mapping[str, Any], dataset: Dataset) -> str:
    """Return the tests in a row of a known data set: text for the column `tests`, or the `ground_truth` of verl.

    They name their function, so that rewards need no other column. `faasrt/docs/rewards.md` has an example of each set.

    Args:
        row: The row, as its set publishes it. JSON may be text or decoded, and arrays of NumPy count as lists.
        dataset: Its form:
            "humaneval": `prompt`, `entry_point`, `test`. Also HumanEval+. The imports and helpers of the prompt are
            known to the test and the completion.
            "mbpp": `test_list`, `code`, and `test_setup_code` or `test_imports`. Each assert is a test.
            "apps", "taco": `input_output`.
            "code_contests": `public_tests`, `private_tests`, `generated_tests`.
            "livecodebench": `public_test_cases`, `private_test_cases`, `metadata`. Packed tests are unpacked without
            executing the pickle in them.
            "kodcode": `test`, for pytest. Each function `test_*` is a test.
            "verl": `reward_model`, with `ground_truth`, perhaps with `assert_case`.

    Raises:
        InvalidRequestError: A field is missing or wrong, or the data set is unknown. The message names the field and
            the id of the row.

    Example:
        >>> from faasrt.rewards import tests_of
        >>> row = {"task_id": 1, "code": "def inc(n): return n + 1", "test_list": ["assert inc(1) == 2"]}
        >>> tests_of(row, "mbpp")
        '{"function": "inc", "tests": [{"program": "assert inc(1) == 2"}]}'
    """
    try:
        tests = _encode(_convert(without_arrays(row) if isinstance(row, Mapping) else row, dataset))
        problem = parse_problem(tests, None, Language.PYTHON)
        CodeTask("pass", "python", tests=problem.tests, function=problem.function)
        for test in problem.tests:
            if isinstance(test, AssertTest):
                test._parsed.complete(problem.function or test._parsed.find_function())
    except (InvalidRequestError, RecursionError) as error:
        reason = "a field is nested too deeply, or contains itself" if isinstance(error, RecursionError) else str(error)
        ids = [row[name] for name in _IDS if name in row] if isinstance(row, Mapping) else []
        place = f"row {safe_repr(ids[0])} of {dataset}" if ids else f"a row of {dataset}"
        raise InvalidRequestError(f"{place}: {reason}") from None
    return tests


def _encode(tests: dict[str, Any]) -> str:
    try:
        return json.dumps(tests)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"the tests cannot be encoded as JSON: {error}") from None


def _convert(row: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Return the tests of a row. Raise InvalidRequestError if a field is missing or wrong."""
    if dataset not in _CONVERTERS:
        raise InvalidRequestError(f"dataset must be one of {', '.join(_CONVERTERS)}, got {safe_repr(dataset)}")
    if not isinstance(row, Mapping):
        raise InvalidRequestError(f"row must be a mapping of fields, got {type(row).__name__}")
    return _CONVERTERS[dataset](row)


def _humaneval(row: Mapping[str, Any]) -> dict[str, Any]:
    """HumanEval, and HumanEval+ in the form of its data set on the hub. Graders put the prompt before the completion
    and the test, so both get its imports and helpers.
    """
    function = _text(row, "entry_point")
    helpers = _without_function(_text(row, "prompt"), function)
    test = _text(row, "test")
    if "def assertion(out, exp, atol):" in test:
        test += _EVALPLUS_ASSERTION
    return {"function": function, "prelude": helpers, "tests": [{"program": f"{helpers}\n{test}"}]}


def _mbpp(row: Mapping[str, Any]) -> dict[str, Any]:
    """MBPP, full (`test_setup_code`) and sanitized (`test_imports`)."""
    imports = _texts(row, "test_imports") if row.get("test_imports") is not None else []
    setup = "\n".join([*imports, _optional_text(row, "test_setup_code")]).strip()
    programs = [f"{setup}\n{test}" if setup else test for test in _texts(row, "test_list")]
    code = _optional_text(row, "code")
    defined = {node.name for node in _parse("code", code).body if isinstance(node, ast.FunctionDef)}
    used = [_undefined_names(_parse("test_list", program)) for program in programs]
    common = set.intersection(*used)
    functions = common & defined or common - set(dir(builtins))
    if len(functions) != 1:
        found = ", ".join(sorted(functions)) or "none"
        raise InvalidRequestError(f"the field test_list must use one function that code defines, found {found}")
    [function] = functions
    if set.union(*used) - {function} - set(dir(builtins)):
        # The tests create objects of classes of the solution.
        programs = [f"{_without_function(code, function)}\n{program}" for program in programs]
    return {"function": function, "tests": [{"program": program} for program in programs]}


def _apps(row: Mapping[str, Any]) -> dict[str, Any]:
    tests = _decoded(row, "input_output")
    if not isinstance(tests, Mapping):
        raise InvalidRequestError(f"the field input_output must be an object, got {safe_repr(tests)}")
    names = ("inputs", "outputs", "fn_name")
    return {name: tests[name] for name in names if tests.get(name) is not None}


def _code_contests(row: Mapping[str, Any]) -> dict[str, Any]:
    if row.get("input_file") or row.get("output_file"):
        raise InvalidRequestError("the fields input_file and output_file must be empty: programs use stdin and stdout")
    inputs: list[str] = []
    outputs: list[str] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        tests = row.get(name) or []
        if isinstance(tests, list):
            tests = {key: [_text(test, key, name) for test in tests] for key in ("input", "output")}
        inputs += _texts(tests, "input", name)
        outputs += _texts(tests, "output", name)
    return {"inputs": inputs, "outputs": outputs}


def _livecodebench(row: Mapping[str, Any]) -> dict[str, Any]:
    tests: list[Any] = []
    for name in ("public_test_cases", "private_test_cases"):
        cases = _decoded(row, name, _unpack)
        if not isinstance(cases, list):
            raise InvalidRequestError(f"the field {name} must be a list, got {safe_repr(cases)}")
        tests += [(name, case) for case in cases]
    found: dict[str, Any] = {f"{key}s": [_text(case, key, name) for name, case in tests] for key in ("input", "output")}
    kinds = {_text(case, "testtype", name) for name, case in tests}
    if kinds == {"functional"}:
        found["fn_name"] = _text(_decoded(row, "metadata"), "func_name", "metadata")
    elif kinds != {"stdin"}:
        raise InvalidRequestError(f"testtype must be 'stdin' or 'functional' for all tests, got {safe_repr(kinds)}")
    return found


def _kodcode(row: Mapping[str, Any]) -> dict[str, Any]:
    """A module for pytest, with functions `test_*`. Each is a test."""
    module = _parse("test", _text(row, "test"))
    imported = [node for node in module.body if isinstance(node, ast.ImportFrom) and node.module == "solution"]
    functions = {alias.name for node in imported for alias in node.names}
    if len(functions) != 1 or "*" in functions:
        found = ", ".join(sorted(functions)) or "none"
        raise InvalidRequestError(f"the field test must import one function from solution, found {found}")
    module.body = [node for node in module.body if node not in imported]
    names = [node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    shared = ast.unparse(module)
    return {"function": functions.pop(), "tests": [{"program": f"{shared}\n\n{name}()"} for name in names]}


def _verl(row: Mapping[str, Any]) -> dict[str, Any]:
    tests = _decoded(row.get("reward_model"), "ground_truth", place="reward_model")
    if not isinstance(tests, dict):
        raise InvalidRequestError(f"the field ground_truth must be an object, got {safe_repr(tests)}")
    return tests


_CONVERTERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "apps": _apps,
    "taco": _apps,
    "code_contests": _code_contests,
    "livecodebench": _livecodebench,
    "kodcode": _kodcode,
    "verl": _verl,
}
assert tuple(_CONVERTERS) == get_args(Dataset)


def _field(fields: object, name: str, place: str) -> Any:
    if not isinstance(fields, Mapping) or fields.get(name) is None:
        raise InvalidRequestError(f"the field {_path(name, place)} is missing")
    return fields[name]


def _path(name: str, place: str) -> str:
    return f"{name} of {place}" if place else name


def _text(fields: object, name: str, place: str = "") -> str:
    value = _field(fields, name, place)
    if not isinstance(value, str):
        raise InvalidRequestError(f"the field {_path(name, place)} must be text, got {safe_repr(value)}")
    return value


def _optional_text(row: Mapping[str, Any], name: str) -> str:
    return "" if row.get(name) is None else _text(row, name)


def _texts(fields: object, name: str, place: str = "") -> list[str]:
    value = _field(fields, name, place) if fields else []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidRequestError(f"the field {_path(name, place)} must be a list of texts, got {safe_repr(value)}")
    if not value and not place:
        raise InvalidRequestError(f"the field {name} must not be empty")
    return value


def _decoded(fields: object, name: str, unpack: Callable[[str, str], str] | None = None, place: str = "") -> Any:
    """Return a field that is JSON as text, perhaps packed, or already decoded."""
    value = _field(fields, name, place)
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise InvalidRequestError(f"the field {_path(name, place)} is empty")
    if unpack is not None and not value.lstrip().startswith(("[", "{")):
        value = unpack(name, value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the field {_path(name, place)} is not JSON: {error}") from None


def _unpack(name: str, value: str) -> str:
    """Return the text in a pickle, compressed by zlib, in base64. The pickle is read, but never executed."""
    try:
        decompressor = zlib.decompressobj()
        pickled = decompressor.decompress(base64.b64decode(value, validate=True), _MAX_UNPACKED_BYTES)
        if not decompressor.eof:
            raise InvalidRequestError(f"the field {name} is cut, or has more than {_MAX_UNPACKED_BYTES:,} bytes")
        first = itertools.islice(pickletools.genops(pickled), _MAX_OPCODES)
        opcodes = [(opcode.name, argument) for opcode, argument, _ in first]
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InvalidRequestError(f"the field {name} is neither JSON nor packed by LiveCodeBench: {error}") from None
    texts = [argument for opcode, argument in opcodes if "UNICODE" in opcode]
    if len(texts) != 1 or opcodes[-1][0] != "STOP" or not {opcode for opcode, _ in opcodes} <= _TEXT_OPCODES:
        raise InvalidRequestError(f"the field {name} must be the pickle of one text: others are not read")
    [text] = texts
    assert isinstance(text, str)
    return text


def _parse(name: str, code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidRequestError(f"the field {name} is not Python: {error}") from None


def _without_function(code: str, function: str) -> str:
    """Return the imports, helpers and classes of a program, without the function. "" if it is not a program."""
    try:
        module = _parse("", code)
    except InvalidRequestError:
        return ""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    module.body = [node for node in module.body if isinstance(node, kinds) and getattr(node, "name", None) != function]
    return ast.unparse(module)


def _undefined_names(module: ast.Module) -> set[str]:
    """Return the names that a test reads and does not define, including the names of builtins."""
    names = [node for node in ast.walk(module) if isinstance(node, ast.Name)]
    defined = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    defined |= {
        node.name
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    defined |= {
        alias.asname or alias.name.partition(".")[0] for alias in ast.walk(module) if isinstance(alias, ast.alias)
    }
    defined |= {argument.arg for argument in ast.walk(module) if isinstance(argument, ast.arg)}
    return {node.id for node in names if isinstance(node.ctx, ast.Load)} - defined
