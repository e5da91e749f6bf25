"""Rewards: called as TRL and verl call them, with tests in every form, and with servers that fail."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from anyio.from_thread import BlockingPortal

import faasrt.rewards
from faasrt import (
    AssertTest,
    CompareError,
    ConfigurationError,
    ConnectError,
    FaasrtError,
    FunctionTest,
    InvalidRequestError,
    RejectedError,
    RuntimeClosedError,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    TestCase,
    sync,
)
from faasrt.local import LocalFaaS
from faasrt.rewards import CodeReward
from faasrt.rewards.failures import SingleFailures
from faasrt.testing import FakeFaaS, Reply
from support.documents import text_of
from support.served import CLEAN, PATIENCE_S, until

RIGHT = "```python\ndef inc(n):\n    return n + 1\n```"
HALF = "```python\ndef inc(n):\n    return 2\n```"
TESTS = '[{"args": [1], "expected": 2}, {"args": [2], "expected": 3}]'
STDIN = [TestCase("1", "2"), TestCase("5", "6")]
PRINTS = "```python\nprint(int(input()) + 1)\n```"


@pytest.fixture(scope="module")
def manager() -> Iterator[sync.RuntimeManager]:
    """A manager with an embedded FaaS."""
    with sync.RuntimeManager.local(["python", "javascript"], workers=2) as manager:
        yield manager


@pytest.fixture(scope="module")
def url(manager: sync.RuntimeManager) -> str:
    """The URL of that FaaS."""
    assert manager.local_faas is not None
    return manager.local_faas.url


def call_as_trl(reward: Any, completions: list[Any], portal: BlockingPortal, **columns: list[Any]) -> list[float]:
    """Call a reward function as `GRPOTrainer._calculate_rewards` of TRL 1.16 does. None becomes NaN."""
    passed: dict[str, Any] = {"prompts": ["?"] * len(completions), "completions": completions, **columns}
    passed |= {"completion_ids": [[1, 2]] * len(completions), "trainer_state": object()}
    passed |= {"log_extra": lambda column, values: None, "log_metric": lambda name, value: None}
    is_async = inspect.iscoroutinefunction(reward)
    found = portal.call(lambda: reward(**passed)) if is_async else reward(**passed)
    assert len(found) == len(completions)
    return [math.nan if value is None else float(value) for value in found]


async def call_as_verl(compute_score: Any, solution: str, ground_truth: Any, **options: Any) -> float:
    """Call a reward function as `get_custom_reward_fn` and `NaiveRewardManager` of verl 0.9 do."""

    def sync_with_options(function: Any, extra: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**kwargs, **extra})

    async def async_with_options(function: Any, extra: Any, *args: Any, **kwargs: Any) -> Any:
        return await function(*args, **{**kwargs, **extra})

    wrapper = async_with_options if inspect.iscoroutinefunction(compute_score) else sync_with_options
    wrapped = functools.partial(wrapper, compute_score, options)
    extra_info: dict[str, Any] = {"num_turns": None, "rollout_reward_scores": {}, "index": 3}
    passed = {"data_source": "apps", "solution_str": solution, "ground_truth": ground_truth, "extra_info": extra_info}
    router = {"reward_router_address": "http://127.0.0.1:1", "reward_model_tokenizer": None}
    if inspect.iscoroutinefunction(wrapped):
        result = await wrapped(**passed, **router)
    else:
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(None, lambda: wrapped(**passed, **router))
    assert type(result) is float
    return result


@pytest.mark.parametrize("name", ["code_reward", "code_reward_async"])
def test_as_trl_calls_it(name: str, manager: sync.RuntimeManager, url: str, portal: BlockingPortal) -> None:
    """One float for each completion, of texts and of conversations; NaN for a row without tests."""
    completions = [RIGHT, HALF, "I do not know.", RIGHT, [{"role": "assistant", "content": RIGHT}]]
    columns = {"tests": [TESTS, TESTS, TESTS, None, json.loads(TESTS)], "function": ["inc"] * 5, "level": ["easy"] * 5}
    for reward in (CodeReward(url), CodeReward(manager)):
        found = call_as_trl(getattr(reward, name), completions, portal, **columns)
        assert found[:3] + found[4:] == [1.0, 0.5, 0.0, 1.0]
        assert math.isnan(found[3])
    strict = CodeReward(url, partial_credit=False, no_code=-0.5)
    reward_function = functools.partial(getattr(strict, name), function="inc")
    assert call_as_trl(reward_function, completions[:3], portal, tests=columns["tests"][:3]) == [1.0, 0.0, -0.5]


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
async def test_as_verl_calls_it(name: str, url: str) -> None:
    """A float for a completion. The tests have verl's own form, as text or as an object."""
    compute_score = getattr(CodeReward(url), name)
    tests: dict[str, Any] = {"inputs": ["1\n", "5\n"], "outputs": ["2\n", "7\n"]}
    assert await call_as_verl(compute_score, PRINTS, json.dumps(tests)) == 0.5
    assert await call_as_verl(compute_score, PRINTS, tests, unknown="option") == 0.5
    assert await call_as_verl(compute_score, "text", tests) == 0.0


async def test_names_of_the_frameworks() -> None:
    """TRL logs the name of the function, and looks whether it is asynchronous; so does verl."""
    for name in ("code_reward", "code_reward_async", "compute_score", "compute_score_async"):
        function = getattr(faasrt.rewards, name)
        assert function.__name__ == name
        assert inspect.iscoroutinefunction(function) == name.endswith("async")
        assert pickle.loads(pickle.dumps(function)).__name__ == name
    with pytest.raises(TypeError, match="tests"):
        faasrt.rewards.code_reward(completions=[""])


CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)
SOLUTION = "```\nclass Solution:\n    def add(self, numbers: List[int], more: Optional[int] = None):\n        {}\n```"
VERL_ASSERTS: dict[str, tuple[str, Any, float]] = {
    "imports of the program": (
        "def root(ns: List[int]): return math.isqrt(ns[0])",
        {"fn_name": "root", "assert_case": ["assert root([9]) == 3"]},
        1,
    ),
    "a method": (
        "class Solution:\n    def order(self, ns): return sorted(ns)",
        {"fn_name": "order", "assert_case": ["assert order([2, 1]) == [1, 2]"]},
        1,
    ),
    "a method of an object": (
        "class Solution:\n    def order(self, ns): return sorted(ns)",
        {"assert_case": ["assert Solution().order([2, 1]) == [1, 2]"]},
        1,
    ),
    "a wrong method of an object": (
        "class Solution:\n    def order(self, ns): return ns",
        {"fn_name": "order", "assert_case": ["assert Solution().order([2, 1]) == [1, 2]"]},
        0,
    ),
    "two functions": (
        "def a(n): return n\ndef b(n): return -n",
        {"assert_case": ["assert a(1) == 1", "assert b(1) == 1", "assert a(b(1)) == -1"]},
        pytest.approx(2 / 3),
    ),
    "a module in an assert": (
        "def third(n): return n / 3",
        {"assert_case": ["assert math.isclose(third(1), 1 / 3)", "assert isclose(third(1), 1 / 3)"]},
        1,
    ),
    "a function with the name of one of a module": (
        "pass",
        {"fn_name": "gcd", "assert_case": ["assert gcd(4, 6) == 2"]},
        0,
    ),
    "without its name": ("pass", {"assert_case": ["assert gcd(4, 6) == 2"]}, 0),
    "a function that is not defined beside another one": (
        "def b(n): return n",
        {"fn_name": "gcd", "assert_case": ["assert gcd(4, 6) == b(2)"]},
        0,
    ),
    "a method that calls a function of the same name": (
        "def order(ns): return sorted(ns)\nclass Solution:\n    def order(self, ns): return order(ns)",
        {"fn_name": "order", "assert_case": ["assert order([2, 1]) == [1, 2]"]},
        1,
    ),
    "a keyword argument of a method": (
        "class Solution:\n    def order(self, ns): return sorted(ns)",
        {"fn_name": "order", "assert_case": ["assert order(ns=[2, 1]) == [1, 2]"]},
        1,
    ),
    "a capital letter": ("def Sum(n): return n", {"assert_case": ["assert Sum(1) == 1"]}, 1),
    "all names of a module": (
        "def half(n): return n / 2",
        {"fn_name": "half", "assert_case": ["from cmath import *\nassert isclose(half(1), 0.5)"]},
        1,
    ),
    "its call is replaced by the program": (
        "def a(n): return 5\ndef b(n): return 5\nimport builtins\n"
        "globals = lambda: {'a': lambda n: n, 'b': lambda n: 5}\ngetattr = lambda *_: lambda n: 5",
        {"assert_case": ["assert a(1) == 1 and b(1) == 2"]},
        0,
    ),
}
FORMS: dict[str, tuple[str, Any, str | None, float]] = {
    "test cases": (PRINTS, STDIN, None, 1),
    "a generator": (PRINTS, (test for test in STDIN), None, 1),
    "objects": (PRINTS, [{"stdin": "1", "expected": "2"}, {"stdin": "1", "expected": "3", "argv": None}], None, 0.5),
    "text": (PRINTS, '[{"stdin": "1", "expected": "2"}]', None, 1),
    "bytes": (PRINTS, b'[{"stdin": "1", "expected": "2"}]', None, 1),
    "function tests": (RIGHT, [FunctionTest([1], 2), FunctionTest([1], 3)], "inc", 0.5),
    "objects of function tests": (
        RIGHT,
        [{"args": [1], "expected": 2}, {"expected": 0, "kwargs": {"n": 1}}],
        "inc",
        0.5,
    ),
    "test programs as objects": (
        RIGHT,
        '[{"program": "assert inc(1) == 2"}, {"program": "assert inc(1) == 3"}]',
        "inc",
        0.5,
    ),
    "one object": (RIGHT, {"function": "inc", "tests": json.loads(TESTS)}, None, 1),
    "one object, as text": (RIGHT, json.dumps({"function": "inc", "tests": json.loads(TESTS)}), "other", 1),
    "one object without a function": (PRINTS, {"tests": [{"stdin": "1", "expected": "2"}]}, None, 1),
    "apps: stdin": (PRINTS, {"inputs": ["1", ["5", ""]], "outputs": ["2\n", ["6"]]}, None, 1),
    "apps: results in lists": (RIGHT, {"fn_name": "inc", "inputs": [[1], [2]], "outputs": [[2], [3]]}, None, 1),
    "apps: results": (RIGHT, {"fn_name": "inc", "inputs": [[1], [2]], "outputs": [2, 3]}, None, 1),
    "apps: text in lists is the result": (
        "```\ndef add(text): return text + '0'\n```",
        {"fn_name": "add", "inputs": [["1"], ["20"]], "outputs": [["10"], ["200"]]},
        None,
        1,
    ),
    "apps: tuples": (RIGHT, {"fn_name": "inc", "inputs": ((1,), (2,)), "outputs": (2, 3)}, None, 1),
    "apps: arrays": (RIGHT, {"fn_name": "inc", "inputs": np.array([[1], [2]]), "outputs": np.array([2, 3])}, None, 1),
    "apps: arrays of text": (
        "```\nprint(input())\n```",
        {"inputs": np.array(["1", "2"], object), "outputs": np.array(["1", "2"], object)},
        None,
        1,
    ),
    "apps: arrays in tuples": (
        RIGHT,
        {"fn_name": "inc", "inputs": [(np.int64(1),)], "outputs": (np.int64(2),)},
        None,
        1,
    ),
    "arrays": (
        RIGHT,
        {"function": "inc", "tests": np.array([{"args": np.array([1]), "expected": np.int64(2)}], object)},
        None,
        1,
    ),
    "apps: text": (RIGHT, {"fn_name": "inc", "inputs": ["1", "2\n"], "outputs": ["2", "3"]}, None, 1),
    "apps: several arguments": (
        SOLUTION.format("return sum(numbers) + (more or 0)"),
        {"fn_name": "add", "inputs": ["[1, 2]\n3", "[4]"], "outputs": ["6", "4"]},
        None,
        1,
    ),
    "apps: text that is not JSON": (
        "```\ndef add(text): return text * 2\n```",
        {"fn_name": "add", "inputs": [["ab"]], "outputs": ["abab"]},
        None,
        1,
    ),
    "apps: a list is not a result in a list": (
        SOLUTION.format("return numbers"),
        {"fn_name": "add", "inputs": [[[1, 2]], [[3]]], "outputs": [[1, 2], [3]]},
        None,
        1,
    ),
    "apps: tuples are lists": (
        SOLUTION.format("return tuple(numbers)"),
        {"fn_name": "add", "inputs": [[[1, 2]]], "outputs": ["[1, 2]"]},
        None,
        1,
    ),
    "apps: a function of the modules does not count": (
        "```\npass\n```",
        {"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [[2]]},
        None,
        0,
    ),
    "apps: a method with the name of such a function": (
        "```\nclass Solution:\n    def gcd(self, a, b): return math.gcd(a, b)\n```",
        {"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [[2]]},
        None,
        1,
    ),
    **{
        f"apps: imports from __future__: {name}": (
            f"```\n{head}add = lambda ns: math.prod(ns)\n```",
            {"fn_name": "add", "inputs": [[[2, 3]]], "outputs": [[6]]},
            None,
            1,
        )
        for name, head in {
            "after a docstring": "'A docstring.'\nfrom __future__ import annotations\n",
            "in parentheses": "from __future__ import (  # as in :)\n    annotations,\n)\n",
            "two in a line": 'r"""It\'s "new"."""; from __future__ import division, \\\n annotations; y = 1\n',
            "two": "# \"\n\nfrom __future__ import division  # '''\nfrom __future__ import annotations\n",
            "in the docstring": '\'\\\'\'"""\nfrom __future__ import annotations\n"""\n',
            "in a string": "text = '''\nfrom __future__ import annotations\n'''\nassert text.count('\\n') == 2\n",
        }.items()
    },
    "apps: builtins precede names of the modules": (
        "```\ndef power(n): return pow(n, 5, 7)\n```",
        {"fn_name": "power", "inputs": [[2]], "outputs": [[4]]},
        None,
        1,
    ),
    **{
        f"verl: {name}": (f"```\n{program}\n```", tests, None, reward)
        for name, (program, tests, reward) in VERL_ASSERTS.items()
    },
    "apps: in the column of the function": (RIGHT, {"inputs": ["1"], "outputs": ["2"]}, "inc", 1),
    "a large number": (RIGHT, {"function": "inc", "tests": [{"args": [10**30], "expected": 10**30 + 1}]}, None, 1),
}


@pytest.mark.parametrize(("completion", "tests", "function", "reward"), FORMS.values(), ids=FORMS)
def test_forms_of_tests(completion: str, tests: Any, function: str | None, reward: float, url: str) -> None:
    """Objects, JSON, and the form of APPS, TACO and verl."""
    assert CodeReward(url).code_reward([completion], [tests], [function]) == [reward]


@pytest.mark.parametrize(
    ("tests", "function", "message"),
    [
        ("no json", None, "tests are text that is not JSON"),
        ("[" * 100_000, None, "tests are text that is not JSON"),
        ({"inputs": CIRCULAR, "outputs": ["1"]}, None, "nested too deeply, or contain themselves"),
        ("5", None, "tests must be a list, an object, or the JSON of one, got 5"),
        ('"text"', None, "tests must be a list, an object, or the JSON of one, got 'text'"),
        ({"test": []}, None, "an object with tests must have 'tests' and 'function', or .* got 'test'"),
        ([], None, "tests must not be empty"),
        ([5], None, "TestCase"),
        ([{"stdn": ""}], None, "a test has no field 'stdn'"),
        ([{"stdin": "1", "expected": "2"}], "inc", "has no field 'stdin'"),
        ([FunctionTest([1], 2)], None, "function"),
        ({"inputs": ["1"], "outputs": []}, None, "lists of the same length"),
        ({"inputs": ["1"]}, None, "lists of the same length"),
        ({"inputs": [1], "outputs": ["2"]}, None, "without 'fn_name', an input or output must be text, got 1"),
        ({"inputs": [1], "outputs": ["2"], "fn_name": "f"}, None, "an input must be a list of arguments, got 1"),
        ({"inputs": ["{"], "outputs": ["2"], "fn_name": "f"}, None, "each line of an input must be JSON"),
        ({"inputs": ["1"], "outputs": ["2"], "fn_name": "a-b"}, None, "function must be"),
        ({"inputs": ["1"], "assert_case": ["assert f()"]}, None, "'inputs' must be empty beside 'assert_case'"),
        ({"assert_case": "assert f()"}, None, "'assert_case' must be a list of asserts, got 'assert f"),
        ({"assert_case": ["assert f(Tree(1)) is None"]}, None, "must test functions or methods of Solution"),
        ({"assert_case": ["assert np.allclose(f(1), 1)"]}, None, "uses an attribute of a name that it does not define"),
        ({"assert_case": ["f()"]}, None, "program must have an assert statement"),
        ({"tests": STDIN, "prelude": 5}, None, "'prelude' must be text, got 5"),
    ],
)
def test_wrong_tests_are_refused(tests: Any, function: str | None, message: str, fake: FakeFaaS) -> None:
    """Before anything is sent, also for a completion without a program. The note of the error names the completion."""
    for completion in (RIGHT, "no program"):
        with pytest.raises(InvalidRequestError, match=message) as caught:
            CodeReward(fake.url).code_reward([RIGHT, completion], [STDIN, tests], [None, function])
        assert caught.value.__notes__ == ["of the completion with index 1"]
    assert fake.requests == []


def test_wrong_arguments_are_refused(fake: FakeFaaS) -> None:
    reward = CodeReward(fake.url)
    with pytest.raises(InvalidRequestError, match="the same length, got 1, 2 and 1"):
        reward.code_reward([RIGHT], [TESTS, TESTS])
    with pytest.raises(InvalidRequestError, match="the same length, got 1, 1 and 2"):
        reward.code_reward([RIGHT], [TESTS], ["a", "b"])
    with pytest.raises(InvalidRequestError, match="a completion must be a str or a list of messages, got 5"):
        reward.code_reward([5], [TESTS], "inc")  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="tests must not be empty"):
        reward.compute_score("", RIGHT, None)
    with pytest.raises(ConfigurationError, match="verl needs numbers"):
        CodeReward(fake.url, on_failure=None).compute_score("", RIGHT, STDIN)
    for options, message in [
        ({"manager": 5}, "manager must be a RuntimeManager, a URL or None, got 5"),
        ({"manager": "nonsense"}, "nonsense"),
        ({"manager": ""}, "got ''"),
        ({"no_code": None}, "no_code must be a number, got None"),
        ({"no_code": True}, "no_code must be a number"),
        ({"no_code": math.nan}, "no_code must be finite, got nan"),
        ({"on_failure": "ignore"}, "on_failure must be 'raise', a number, None or a function, got 'ignore'"),
        ({"partial_credit": 1}, "partial_credit must be True or False"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"language": "?"}, "language"),
        ({"compare": "nearly"}, "compare"),
    ]:
        with pytest.raises((ConfigurationError, ValueError), match=message):
            CodeReward(**options)  # type: ignore[arg-type]
    assert fake.requests == []


CONVERSATIONS: dict[str, tuple[Any, float]] = {
    "the last message counts": ([{"role": "assistant", "content": HALF}, {"role": "assistant", "content": RIGHT}], 1),
    "messages of others do not": ([{"role": "assistant", "content": HALF}, {"role": "tool", "content": RIGHT}], 0.5),
    "parts": ([{"role": "assistant", "content": [{"type": "text", "text": RIGHT}, {"type": "image"}]}], 1),
    "a message without text": ([{"role": "assistant", "content": None, "tool_calls": []}], 0),
    "no message": ([], 0),
    "an empty program": ("```python\n\n```", 0),
    "lone surrogates": ("```python\ninc = lambda n: n + len('\ud800')\n```", 1),
}


CHECKED: dict[str, tuple[str, Any, str | None, str]] = {
    # name -> a solution, its tests, its function, and the reason
    "passes": ("def inc(n): return n + 1", TESTS, "inc", ""),
    "no tests": ("def f(", None, None, ""),
    "a wrong test": (
        "def inc(n): return n + 1",
        [{"args": [1], "expected": 2}, {"args": [1], "expected": 3}, {"args": [2], "expected": 2}],
        "inc",
        "2 of 3 tests: test 1: WRONG_ANSWER: value: expected 3, got 2",
    ),
    "no JSON": (
        "def f(): return 1j",
        [{"args": [], "expected": 1}],
        "f",
        "1 of 1 tests: test 0: USER_ERROR: TypeError: the return value cannot be encoded as JSON: value is of type ",
    ),
    "a fence": ("```python\nprint(1)\n```", STDIN, None, "2 of 2 tests: test 0: SYNTAX_ERROR: SyntaxError: "),
    "tests of a wrong form": ("print(1)", {"input": "1"}, None, "an object with tests must have 'tests'"),
    "a test program that fails by itself": (
        "def f(): pass",
        [{"program": "import absent\nassert f()"}],
        "f",
        "the test program fails before it calls f: line 1: import absent: ModuleNotFoundError",
    ),
    "nothing": ("", STDIN, None, "code must not be empty"),
}


@pytest.mark.parametrize("name", ["check", "check_async"])
def test_solutions_are_checked_by_their_tests(name: str, url: str, portal: BlockingPortal) -> None:
    """The solutions that fail are returned with the reason, and so are those whose tests are wrong."""
    solutions, tests, functions, reasons = zip(*CHECKED.values(), strict=True)
    check = getattr(CodeReward(url, partial_credit=False, on_failure=None), name)
    arguments = (solutions, tests, functions)
    failed = portal.call(check, *arguments) if name == "check_async" else check(*arguments)
    wanted = {index: reason for index, reason in enumerate(reasons) if reason}
    assert [each.index for each in failed] == [*wanted]
    for each in failed:
        assert wanted[each.index] in each.reason
        assert (each.judgement is None) == (each.index > list(CHECKED).index("a fence"))


WHY: dict[str, tuple[str, Any]] = {
    # a difference or an error in the guide -> a right program, and its tests
    "expected [1, 2], got (1, 2)": ("def f(): return 1, 2", [FunctionTest([], [1, 2])]),
    "expected 0.3, got 0.30000000000000004": ("def f(): return 0.1 + 0.2", [FunctionTest([], 0.3)]),
    "expected '5', got 'n: 5'": ("print(input('n: '))", [TestCase("5", "5")]),
    "cannot be encoded as JSON: value is of type set": ("def f(): return {1}", [FunctionTest([], [1])]),
    "is not plain data": ("def f(): return f", [AssertTest("assert f() == f")]),
    "cannot be passed on": (
        "class A: pass\ndef f(): return A()",
        [AssertTest("class A:\n    def __eq__(self, other): return True\nassert f() == A()")],
    ),
    "the program defines no function": ("class Solution:\n    def f(self): return 1", [FunctionTest([], 1)]),
}


@pytest.mark.parametrize("text", WHY)
def test_the_guide_explains_failures_of_right_programs(text: str, manager: sync.RuntimeManager) -> None:
    program, tests = WHY[text]
    function = None if isinstance(tests[0], TestCase) else "f"
    first = manager.judge(program, tests, function=function, language="python").first_failure
    assert first is not None
    assert first.result is not None
    assert text in f"{first.difference} {first.result.error}"
    assert f"*{text}*" in text_of("faasrt/docs/rewards.md")


def test_a_failure_of_the_infrastructure_ends_a_check(fake: FakeFaaS) -> None:
    """Whatever `on_failure` is. The error names the solution."""
    fake.default = Reply(status=500)
    with pytest.raises(ServerError) as failed:
        CodeReward(fake.url, on_failure=None).check(["print(1)"], [STDIN])
    assert failed.value.__notes__ == ["of the solution with index 0"]
    with pytest.raises(InvalidRequestError, match="solutions, tests and functions must have the same length"):
        CodeReward(fake.url).check(["print(1)"], [])


@pytest.mark.parametrize(("completion", "reward"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_forms_of_completions(completion: Any, reward: float, url: str) -> None:
    assert CodeReward(url).code_reward([completion], [TESTS], "inc") == [reward]


CHEATS = [
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "raise SystemExit",
    "class Same:\n    __eq__ = lambda *_: True\n    __hash__ = None\ndef inc(n): return Same()",
    "def inc(n):\n    print(2, 3)\n    return n",
    "import json\njson.loads = json.dumps = lambda *_, **__: '2'\ndef inc(n): return n",
    "import builtins\nbuiltins.print = lambda *_: None\ndef inc(n): return str(n + 1)",
    "def inc(n):\n    while True: pass",
]


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_are_not_rewarded(cheat: str, url: str) -> None:
    """Programs that end early, lie about equality, or replace what might judge them."""
    assert CodeReward(url, timeout_ms=300).code_reward([f"```python\n{cheat}\n```"], [TESTS], "inc") == [0.0]


def test_expected_values_are_not_sent(fake: FakeFaaS) -> None:
    """No request contains the expected value of a test."""
    reward = CodeReward(fake.url)
    reward.code_reward([RIGHT], [[FunctionTest([1], "secret")]], "inc")
    reward.code_reward([PRINTS], [[TestCase("1", "secret")]])
    reward.compute_score("apps", RIGHT, {"fn_name": "inc", "inputs": ["1"], "outputs": ["secret"]})
    assert len(fake.requests) == 3
    assert "secret" not in json.dumps(fake.requests)


@pytest.mark.parametrize("name", ["code_reward", "code_reward_async"])
def test_failures_of_the_infrastructure(name: str, fake: FakeFaaS, portal: BlockingPortal) -> None:
    """Failures are raised, or get a value of the caller's choice; the other rewards stay. None is 0 by accident."""
    fake.handler = lambda body: Reply.crash() if "boom" in body["code"] else Reply.ok("2")
    completions = ["```\nprint(2)\n```", "```\nboom\n```", "```\nprint(3)\n```"]
    columns = {"tests": [[TestCase("", "2")], [TestCase("", "2")], [TestCase("", "3")]]}
    with pytest.raises(ServerError):
        call_as_trl(getattr(CodeReward(fake.url), name), completions, portal, **columns)
    for value in (None, -1.0, math.nan):
        reward = getattr(CodeReward(fake.url, on_failure=value), name)
        found = call_as_trl(reward, completions, portal, **columns)
        assert found[::2] == [1.0, 0.0]
        assert found[1] == -1.0 if value == -1.0 else math.isnan(found[1])


WRONG_TESTS: dict[str, Any] = {
    "no tests": [],
    "not JSON": "[",
    "a field of another form": [{"input": "secret", "output": "secret"}],
    "nested too deeply": CIRCULAR,
    "a value that is not a test": 5,
    "arguments that are not JSON": {"function": "f", "tests": [{"args": [{1, 2}], "expected": 1}]},
    "a helper that is not defined": {"function": "f", "tests": [{"program": "assert helper(f()) == 'secret'"}]},
    "a test program that fails by itself": {"function": "f", "tests": [{"program": "import no_module\nassert f()"}]},
}


@pytest.mark.parametrize("name", ["code_reward", "code_reward_async"])
def test_tests_that_cannot_judge(name: str, url: str, portal: BlockingPortal, caplog: pytest.LogCaptureFixture) -> None:
    """They are the failure of their own completion: its value is the caller's choice, and the others have rewards."""
    rows = [STDIN, *WRONG_TESTS.values()]
    completions = [PRINTS] + ["```\ndef f(): pass\n```"] * len(WRONG_TESTS)
    wrong = range(1, len(rows))
    for value in (None, -1.0):
        found = call_as_trl(getattr(CodeReward(url, on_failure=value), name), completions, portal, tests=rows)
        assert found[0] == 1.0
        assert all(found[index] == value if value else math.isnan(found[index]) for index in wrong)
        assert f"{len(wrong)} of {len(rows)} completions cannot be judged" in caplog.text
        assert "indices 1, 2, 3, 4, 5, 6, 7, 8: InvalidRequestError." in caplog.text
        assert "secret" not in caplog.text
        caplog.clear()
    reasons: dict[int, str] = {}

    def on_failure(index: int, error: FaasrtError) -> float:
        reasons[index] = str(error)
        return -index

    found = call_as_trl(getattr(CodeReward(url, on_failure=on_failure), name), completions, portal, tests=rows)
    assert found == [1.0, *(-index for index in wrong)]
    assert list(reasons) == list(wrong)
    assert reasons[3].startswith("a test has no field 'input'")
    assert "no_module" in reasons[8]
    # Each of them alone is raised by default, with its index.
    for index in wrong:
        with pytest.raises(InvalidRequestError) as caught:
            call_as_trl(getattr(CodeReward(url), name), completions[:2], portal, tests=[STDIN, rows[index]])
        assert str(caught.value) == reasons[index]
        assert caught.value.__notes__ == ["of the completion with index 1"]


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
async def test_tests_that_cannot_judge_in_verl(name: str, fake: FakeFaaS) -> None:
    """verl needs a number, which is the caller's choice."""
    for tests in (None, "[", [{"input": "1"}]):
        assert await call_as_verl(getattr(CodeReward(fake.url, on_failure=-1.0), name), PRINTS, tests) == -1.0
        assert await call_as_verl(getattr(CodeReward(fake.url, on_failure=lambda *_: 0.0), name), PRINTS, tests) == 0.0
        with pytest.raises(ConfigurationError, match="verl needs numbers"):
            await call_as_verl(getattr(CodeReward(fake.url, on_failure=lambda *_: None), name), PRINTS, tests)
        no_number: Any = CodeReward(fake.url, on_failure=lambda *_: "no")  # type: ignore[arg-type, return-value]
        with pytest.raises(ConfigurationError, match="must return a number or None, got 'no'"):
            await call_as_verl(getattr(no_number, name), PRINTS, tests)
        with pytest.raises(InvalidRequestError):
            await call_as_verl(getattr(CodeReward(fake.url), name), PRINTS, tests)
    assert fake.requests == []


def test_the_default_time_limit(fake: FakeFaaS) -> None:
    """It is 10 s, as in verl, unless the sandbox has less, or the caller chooses."""
    limits = SandboxConfig(timeout_limit_s=2)
    with sync.RuntimeManager.from_url(fake.url, sandbox=SandboxConfig(timeout_limit_s=5)) as manager:
        for reward in (
            CodeReward(fake.url),
            CodeReward(manager),
            CodeReward(fake.url, sandbox=limits),
            CodeReward(fake.url, timeout_ms=20_000),
        ):
            reward.code_reward([PRINTS], [STDIN[:1]])
    assert [request["timeout"] for request in fake.requests] == [10_000, 5_000, 2_000, 20_000]


def test_the_default_memory_limit(fake: FakeFaaS) -> None:
    """It is 1,024 MiB, as in verl, unless the manager or the caller chooses."""
    limits = SandboxConfig(memory_limit_mb=256)
    with sync.RuntimeManager.from_url(fake.url, sandbox=SandboxConfig(memory_limit_mb=64)) as manager:
        for reward in (CodeReward(fake.url), CodeReward(manager), CodeReward(fake.url, sandbox=limits)):
            reward.code_reward([PRINTS], [STDIN[:1]])
    assert [request["sandbox"]["memory_limit_mb"] for request in fake.requests] == [1_024, 64, 256]


async def test_a_busy_server_delays_a_batch(portal: BlockingPortal) -> None:
    """Programs wait for a server that runs others for longer than usual clients wait."""
    async with (
        LocalFaaS(["python"], workers=1, max_programs=1) as faas,
        RuntimeManager.from_url(faas.url) as other,
    ):
        await other.run_code("1", "python")
        busy = asyncio.create_task(other.run_code("import time; time.sleep(5)", "python"))
        while not faas.health()["languages"]["python"]["active"]:
            await asyncio.sleep(0.02)
        reward = CodeReward(faas.url, timeout_ms=1_000)
        assert await reward.code_reward_async([RIGHT] * 4, [TESTS] * 4, "inc") == [1.0] * 4
        assert (await busy).ok


def test_a_server_that_cannot_be_reached(unused_tcp_port: int) -> None:
    url, retry = f"http://127.0.0.1:{unused_tcp_port}", faasrt.RetrySettings(connect_retry_s=0)
    with sync.RuntimeManager.from_url(url, retry=retry) as manager, pytest.raises(ConnectError):
        CodeReward(manager).compute_score("apps", PRINTS, STDIN)


def test_mistakes_of_the_caller_are_raised(url: str) -> None:
    """Also with a value for failures, which would hide them."""
    reward = CodeReward(url, on_failure=None, timeout_ms=10**6)
    with pytest.raises(InvalidRequestError, match="timeout_ms must be at most"):
        reward.code_reward([PRINTS], [STDIN])
    with pytest.raises(CompareError):
        CodeReward(url, on_failure=None, compare=lambda *_: 1 / 0 > 0).code_reward([PRINTS], [STDIN])
    with pytest.raises(InvalidRequestError, match="the same length"):
        CodeReward(url, on_failure=None).code_reward([PRINTS], [STDIN, STDIN])
    with sync.RuntimeManager.from_url(url) as closed:
        pass
    with pytest.raises(RuntimeClosedError):
        CodeReward(closed, on_failure=None).code_reward([PRINTS], [STDIN])


@pytest.mark.parametrize("name", ["code_reward", "check"])
def test_a_wrong_name_for_all_completions_is_raised(name: str, fake: FakeFaaS) -> None:
    """Also with a value for failures, and if no row has tests. A wrong name in a column is a failure of its row."""
    reward: Any = CodeReward(fake.url, on_failure=-1.0)
    for tests in (TESTS, None):
        with pytest.raises(InvalidRequestError, match="function must be a str with the name of a function, got '1x'"):
            getattr(reward, name)([RIGHT] * 2, [tests] * 2, "1x")
    assert reward.code_reward([RIGHT], [TESTS], ["1x"]) == [-1.0]
    assert fake.requests == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_token_or_url_is_raised(status: int, fake: FakeFaaS) -> None:
    """Also with a value for failures. Other refusals concern one program."""
    reward = CodeReward(fake.url, on_failure=-1.0)
    fake.default = Reply(status=status, details="no")
    with pytest.raises(RejectedError, match=f"HTTP {status}"):
        reward.code_reward([RIGHT] * 2, [TESTS] * 2, "inc")
    with pytest.raises(RejectedError, match=f"HTTP {status}"):
        reward.compute_score("apps", PRINTS, STDIN)
    fake.default = Reply(status=413, details="too large")
    assert reward.code_reward([RIGHT] * 2, [TESTS] * 2, "inc") == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("language", "test", "message"),
    [
        ("js", {"program": "assert inc(1) == 2"}, "language must be 'python' for AssertTests, got 'javascript'"),
        ("cpp", {"args": [1], "expected": 2}, "Python, JavaScript or TypeScript for tests of a function, got 'cpp'"),
    ],
)
def test_tests_of_another_language_are_raised(language: Any, test: Any, message: str, fake: FakeFaaS) -> None:
    """Also with a value for failures, and before anything is sent."""
    reward = CodeReward(fake.url, language=language, on_failure=-1.0)
    ground_truth = {"function": "inc", "tests": [test]}
    with pytest.raises(ConfigurationError, match=message):
        reward.code_reward([RIGHT, "no program"], [STDIN, ground_truth])
    with pytest.raises(ConfigurationError, match=message):
        reward.compute_score("apps", RIGHT, ground_truth)
    with pytest.raises(ConfigurationError, match=message):
        reward.check([RIGHT], [ground_truth])
    assert fake.requests == []


async def test_failures_in_verl_are_logged_once_in_ten_seconds(
    fake: FakeFaaS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For each kind of error. The next line has the number of those in between."""
    now = 100.0
    monkeypatch.setattr(faasrt.rewards.scoring, "single_failures", SingleFailures(lambda: now))
    reward = CodeReward(fake.url, on_failure=-1.0)
    fake.default = Reply.crash()

    def logged() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "faasrt"]
        caplog.clear()
        return [line.partition(". ")[0] for line in lines if "cannot be judged" in line]

    for _ in range(3):
        assert await reward.compute_score_async("apps", PRINTS, STDIN) == -1.0
        assert await reward.compute_score_async("apps", PRINTS, []) == -1.0
    line = "1 completion(s) cannot be judged, so their rewards are those of on_failure"
    assert logged() == [f"{line}: ServerError", f"{line}: InvalidRequestError"]
    now += 10
    assert await reward.compute_score_async("apps", PRINTS, STDIN) == -1.0
    assert logged() == [f"{line.replace('1', '3')}: ServerError"]


async def test_an_asynchronous_manager(local: RuntimeManager) -> None:
    """Asynchronous methods use it in the event loop. Others cannot."""
    async with RuntimeManager.local(["python"], workers=1) as own:
        reward = CodeReward(own, sandbox=SandboxConfig(memory_limit_mb=256))
        assert await reward.code_reward_async([RIGHT, HALF], [TESTS] * 2, "inc") == [1.0, 0.5]
        assert await reward.compute_score_async("apps", PRINTS, STDIN) == 1.0
        assert await reward.judge_async("text", TESTS, "inc") is None
        judgement = await reward.judge_async(HALF, TESTS, "inc")
        assert [str(each.verdict) for each in judgement.results] == ["PASSED", "WRONG_ANSWER"]
        with pytest.raises(ConfigurationError, match="a manager of faasrt"):
            reward.code_reward([RIGHT], [TESTS], "inc")


async def test_other_languages(url: str) -> None:
    """The functions of JavaScript are tested too."""
    reward = CodeReward(url, language="js")
    completion = "```python\n1\n```\n```js\nconst inc = (n) => n + 1;\n```\n```\noutput\n```"
    assert await reward.code_reward_async([completion], [TESTS], "inc") == [1.0]


@pytest.mark.parametrize("kind", ["url", "sync", "async"])
async def test_a_cancelled_call_ends_its_programs(kind: str, fake: FakeFaaS) -> None:
    """With every kind of manager."""
    fake.default = Reply(hang=True)
    managers: dict[str, Any] = {
        "url": lambda: fake.url,
        "sync": lambda: sync.RuntimeManager.from_url(fake.url),
        "async": lambda: RuntimeManager.from_url(fake.url),
    }
    manager = managers[kind]()
    call = asyncio.create_task(CodeReward(manager).code_reward_async([PRINTS] * 3, [STDIN] * 3))
    await until(lambda: fake.in_flight == 6)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: fake.in_flight == 0)
    if kind == "async":
        await manager.aclose()
    elif kind == "sync":
        await asyncio.to_thread(manager.close)


async def test_a_closed_manager_is_no_cancellation(fake: FakeFaaS) -> None:
    """The caller of a call in flight gets an error."""
    fake.default = Reply(hang=True)
    manager = sync.RuntimeManager.from_url(fake.url, timeouts=faasrt.TimeoutSettings(close_s=0.01))
    call = asyncio.create_task(CodeReward(manager).code_reward_async([PRINTS], [STDIN]))
    await until(lambda: fake.in_flight == 2)
    await asyncio.to_thread(manager.close)
    with pytest.raises(RuntimeClosedError):
        await call


def test_the_token_is_that_of_the_environment(portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a URL."""
    monkeypatch.setenv("FAASRT_TOKEN", "secret")
    with portal.wrap_async_context_manager(LocalFaaS(["python"], workers=1, token="secret")) as faas:
        assert CodeReward(faas.url).code_reward([RIGHT], [TESTS], "inc") == [1.0]


def test_many_threads_and_loops_share_one_manager(fake: FakeFaaS) -> None:
    """All rewards with the same URL. The connections of the first call are used again."""
    fake.default = Reply.ok("2")
    tests = [[TestCase("", "2")]]

    def score(number: int) -> list[float | None]:
        reward = CodeReward(fake.url)
        if number % 2:
            return reward.code_reward([PRINTS], tests)
        return asyncio.run(reward.code_reward_async([PRINTS], tests))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(score, range(40))) == [[1.0]] * 40
    assert fake.accepted < 20


FORKED = """
import multiprocessing
from faasrt.rewards import code_reward, compute_score

def score(expected):
    return code_reward(["```\\nprint(1)\\n```"], [[{"expected": expected}]])

print(score("1"))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(score, ["1", "2"]))
    print(pool.apply(compute_score, ("apps", "```\\nprint(1)\\n```", {"inputs": [""], "outputs": ["1"]})))
    pool.close()
    pool.join()
"""


def test_forks(url: str) -> None:
    """Each process has a manager of its own, even if its parent has one. Functions can be pickled."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKED],
        env={**CLEAN, "COZE_LOOP_FAAS_URL": url},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (0, "[1.0]\n[[1.0], [0.0]]\n1.0\n"), done.stderr
