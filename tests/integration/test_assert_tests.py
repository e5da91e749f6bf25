"""Functions judged by test programs with asserts, which run in a process without the judged program."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from faasrt import AssertTest, CodeTask, CompletedTask, FailedTask, InvalidRequestError, RuntimeManager, Settings
from faasrt._assert_programs import AssertProgram
from faasrt.telemetry.events import CallFinished
from faasrt.testing import FakeFaaS
from support.assert_programs import PROBLEMS, Problem
from support.doubles import PythonFaas
from support.helpers import url_of
from support.tables import block

pytestmark = pytest.mark.asyncio(loop_scope="session")
DOUBLE = "def f(n): return n * 2"
REASON = "sk-reason-5c1d"


@pytest.mark.parametrize(
    ("place", "every"),
    [("native", 5), *(pytest.param(place, 1, marks=pytest.mark.tables) for place in ("native", "wasm"))],
)
async def test_right_and_wrong_solutions_are_told_apart(
    place: str, every: int, local: RuntimeManager, local_wasm: RuntimeManager
) -> None:
    """A right solution passes the test program, in the style of HumanEval or MBPP, and a wrong one fails an assert."""
    manager, problems = {"native": local, "wasm": local_wasm}[place], PROBLEMS[::every]

    def task(problem: Problem, code: str) -> CodeTask:
        return CodeTask(code, "python", function=problem.function, tests=[AssertTest(problem.program)])

    tasks = [task(problem, code) for problem in problems for code in (problem.right, problem.wrong)]
    found = {item.index: item async for item in manager.map(tasks)}
    verdicts = [
        (str(found[index].judgement.verdict), str(found[index + 1].judgement.verdict))
        for index in range(0, len(tasks), 2)
    ]
    assert dict(zip((problem.function for problem in problems), verdicts, strict=True)) == {
        problem.function: ("PASSED", "WRONG_ANSWER") for problem in problems
    }
    judged = [result for item in found.values() for result in item.judgement.results]
    assert all(bool(result.difference) is (str(result.verdict) == "WRONG_ANSWER") for result in judged)


POINT = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Point:\n    x: int\n    y: object = 0\n"
NODE = "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
VERDICTS: dict[str, tuple[str, str, str, str]] = {
    # name -> the program, the test program, the verdict, and a part of the difference
    "an assert that fails": (
        DOUBLE,
        "assert f(1) == 2\nassert f(2) == 5, 'five'",
        "WRONG_ANSWER",
        "line 2: assert f(2) == 5, 'five': AssertionError: five; the last call returned 4",
    ),
    "line ends of all kinds": (
        DOUBLE,
        "x = 1\ry = 2\r\n\x0c\nassert f(1) == 2\x0c\rassert f(2) == 5",
        "WRONG_ANSWER",
        "line 5: assert f(2) == 5: AssertionError; the last call returned 4",
    ),
    "an exception of the function": (
        "def f(n): return 1 / n",
        "assert f(1) == 1\nassert f(0) == 0",
        "USER_ERROR",
        "line 2: assert f(0) == 0: ZeroDivisionError: division by zero",
    ),
    "an exception that is expected": (
        "def f(n): raise KeyError(n)",
        "try:\n    f(1)\nexcept LookupError as error:\n    assert error.args",
        "PASSED",
        "",
    ),
    "an exception of its own": (
        "class Own(ValueError): pass\ndef f(n): raise Own('x')",
        "try:\n    f(1)\nexcept Exception as error:\n    assert type(error).__name__ == 'Own'",
        "PASSED",
        "",
    ),
    "an exception that ends loops": (
        "def f(n):\n    if n: raise StopIteration\n    return 0",
        "assert f(0) == 0\nfor got, right in zip(map(f, [0, 1]), [0, 2]):\n    assert got == right",
        "USER_ERROR",
        "StopIteration; the last call returned 0",
    ),
    "an exception that ends the items of an assert": (
        "def f(n): raise StopIteration",
        "assert all(map(lambda n: f(n) == n, [1, 2]))",
        "USER_ERROR",
        "StopIteration",
    ),
    "a result that cannot be used": (
        "def f(n): return None",
        "assert f(1) + 1 == 2",
        "WRONG_ANSWER",
        "line 1: assert f(1) + 1 == 2: TypeError: unsupported operand",
    ),
    "a result that is not data": (
        "def f(n): return lambda: n",
        "assert f(1)() == 1",
        "USER_ERROR",
        "TypeError: a value of type function is not plain data",
    ),
    "dates": (
        "from datetime import *\ndef f(n): return [datetime(2024, 1, n, 5), date(2024, 1, n), time(n), timedelta(n)]",
        "from datetime import *\nassert f(2) == [datetime(2024, 1, 2, 5), date(2024, 1, 2), time(2), timedelta(2)]",
        "PASSED",
        "",
    ),
    "dates as arguments": (
        "def f(a, b): return (a - b).days, a.tzinfo",
        "from datetime import *\nu = timezone.utc\n"
        "assert f(datetime(2024, 3, 1, tzinfo=u), datetime(2024, 2, 1, tzinfo=u)) == (29, None) or f(date(2024, 3, 1), "
        "date(2024, 2, 1))",
        "USER_ERROR",
        "a value of type timezone is not plain data",
    ),
    "a dataclass of both programs": (
        f"{POINT}def f(point): return Point(point.x + 1, [point])",
        f"{POINT}p = Point(1)\nassert f(p) == Point(2, [Point(1)]) and f(p) != Point(3, [p]) and f(p).y[0].x == 1",
        "PASSED",
        "",
    ),
    "a dataclass of the program": (
        f"{POINT}def f(x): return Point(x)",
        "assert f(1).x == 1 and f(1) != f(2)\nassert f(1) == (1, 0)",
        "WRONG_ANSWER",
        "the last call returned Record({'x': 1, 'y': 0})",
    ),
    "nodes of a list": (
        f"{NODE}def f(node):\n    last = None\n    while node: node.next, last, node = last, node, node.next\n"
        "    return last",
        f"{NODE}node = f(Node(1, Node(2)))\nassert (node.value, node.next.value, node.next.next) == (2, 1, None)",
        "PASSED",
        "",
    ),
    "a node that is changed in place": (
        f"{NODE}def f(node): node.next = node.next.next",
        f"{NODE}node = Node(1, Node(2, Node(3)))\nf(node)\nassert node.next.value == 3 and node.next.next is None",
        "PASSED",
        "",
    ),
    "a class of the test program that could equal anything": (
        "class Close:\n    def __init__(self): self.value, self.tolerance = 0, 1e9\ndef f(n): return Close()",
        "class Close:\n    def __init__(self, value, tolerance=0.1): self.value, self.tolerance = value, tolerance\n"
        "    def __eq__(self, other): return abs(self.value - other.value) <= self.tolerance\n"
        "assert f(3) == Close(3)",
        "WRONG_ANSWER",
        "ValueError: an object of the class Close cannot be passed on",
    ),
    "arguments that are changed in place": (
        "def f(items, seen, *, more):\n    items.sort(); seen.add(items[0]); more['a'] = [items[-1]]",
        "a, b, c = [2, 1], {5}, {}\nassert f(a, b, more=c) is None\nassert (a, b, c) == ([1, 2], {5, 1}, {'a': [2]})",
        "PASSED",
        "",
    ),
    "an argument that is changed twice": (
        "def f(items): items.append(len(items))",
        "a = []\nfor _ in range(3): f(a)\nassert a == [0, 1, 2]",
        "PASSED",
        "",
    ),
    "an argument that keeps something that is not data": (
        "def f(items): items.append(f)", "a = []\nassert f(a) is None\nassert a == []", "PASSED", ""
    ),
    "no function": ("g = 1", "assert f(1) == 1", "USER_ERROR", "the program defines no function f"),
    "a syntax error": ("def f(", "assert f(1) == 1", "SYNTAX_ERROR", ""),
    "an exit": ("import os\ndef f(n): os._exit(0)", "assert f(1) == 1", "CRASHED", ""),
    "a loop": ("def f(n):\n    while True: pass", "assert f(1) == 1", "TIMEOUT", ""),
    "a test program that loops": (DOUBLE, "if f(1) == 2:\n    while True: pass\nassert 0", "TIMEOUT", "TIMEOUT"),
    "a large result": ("def f(n): return 'x' * 2_000_000", "assert f(1)", "OUTPUT_LIMIT", "too large"),
    "no assert is reached": (
        DOUBLE,
        "if f(1) == 3:\n    assert True",
        "WRONG_ANSWER",
        "no assert of the test program was reached",
    ),
    "the test program exits": (
        DOUBLE,
        "import sys\nassert f(1) == 2\nif f(2): sys.exit(0)\nassert f(3) == 6",
        "WRONG_ANSWER",
        "line 3: if f(2): sys.exit(0): SystemExit: 0",
    ),
    "arguments that depend on results": (DOUBLE, "assert f(f(f(1))) == 8", "PASSED", ""),
    "30 ifs that raise AssertionError": (
        DOUBLE,
        "for n in range(30):\n    if f(n) != 2 * n: raise AssertionError(n)\nassert f(30) == 60",
        "PASSED",
        "",
    ),
    "an if that raises AssertionError": (
        DOUBLE,
        "if f(2) == 4:\n    raise AssertionError\nassert f(1) == 2",
        "WRONG_ANSWER",
        "line 2: raise AssertionError: AssertionError; the last call returned 4",
    ),
    "30 calls of a function that compares": (
        DOUBLE,
        "def assertion(x, y):\n    equal = x == y\n    assert equal\nfor n in range(30): assertion(f(n), 2 * n)",
        "PASSED",
        "",
    ),
    "a call of a method that compares": (
        DOUBLE,
        "import unittest\ncase = unittest.TestCase()\nfor n in range(30): case.assertEqual(f(n), 58)\nassert 1",
        "WRONG_ANSWER",
        "line 3: for n in range(30): case.assertEqual(f(n), 58): AssertionError: 0 != 58; the last call returned 0",
    ),
    "30 comparisons whose results are needed": (
        DOUBLE,
        "equal = [f(n) == 2 * n for n in range(30)]\nassert all(equal)",
        "WRONG_ANSWER",
        "more than 20 times",
    ),
    "endless calls": (DOUBLE, "n = 1\nwhile True:\n    n = f(n)\nassert 0", "WRONG_ANSWER", "more than 20 times"),
    "the same call gives other results": (
        "count = 0\ndef f():\n    global count\n    count += 1\n    return count",
        "assert f() == 1\nassert f() == 2",
        "PASSED",
        "",
    ),
    "an argument that is changed in place": (
        "def f(items): items.append(1); return items",
        "items = []\nassert f(items) == [1]\nassert items == []",
        "PASSED",
        "",
    ),
    "a coroutine function": ("async def f(n): return n", "assert f(3) == 3", "PASSED", ""),
    "names of the program that faasrt needs too": (
        "exec = compile = globals = list = map = None\nbuiltins = 1\ndef f(n): return {n}",
        "assert f(3) == {3}",
        "PASSED",
        "",
    ),
    "numbers of NumPy": (
        "import numpy as np\ndef f(n): return np.arange(n), np.float64(n), np.int64(n)",
        "assert f(2) == ([0, 1], 2.0, 2)",
        "PASSED",
        "",
    ),
    "random numbers": (
        "def f(items): return sorted(items)",
        "import random, numpy as np\nfor items in [random.random()], np.random.rand(3):\n"
        "    assert f(items) == sorted(items)",
        "PASSED",
        "",
    ),
    "keyword arguments": ("def f(a, *, b=1): return a - b", "assert f(3, b=2) == 1 and f(b=4, a=4) == 0", "PASSED", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
async def test_verdicts(name: str, local: RuntimeManager) -> None:
    code, program, verdict, difference = VERDICTS[name]
    limit_ms = 300 if verdict == "TIMEOUT" else 10_000
    judgement = await local.judge(code, [AssertTest(program, timeout_ms=limit_ms)], function="f", language="python")
    assert str(judgement.verdict) == verdict, judgement.results[0]
    assert difference in judgement.results[0].difference
    result = judgement.results[0].result
    assert result is not None
    assert result.ret_val == ""


@pytest.mark.parametrize("name", ["a dataclass of both programs", "nodes of a list"])
async def test_objects_of_classes_with_annotations_in_newer_versions_of_python(
    name: str, local_wasm: RuntimeManager
) -> None:
    """From Python 3.14 on, which runs on WebAssembly, a class with annotations has a function for them."""
    await test_verdicts(name, local_wasm)


BROKEN = {
    "import absent\nassert f(1) == 2": "fails before it calls f: line 1: import absent: ModuleNotFoundError",
    "x = 1 / 0\nassert f(1) == 2": "fails before it calls f: line 1: x = 1 / 0: ZeroDivisionError",
    "assert True or f": "does not call f",
    "import sys\nsys.exit(0)\nassert f(1) == 2": "fails before it calls f: line 2: sys.exit(0): SystemExit: 0",
    "assert f(print) == 2": "cannot be judged: it passes an argument that cannot be sent: a value of type builtin",
    "import os\nassert f(os.urandom(4)) == 2": "with other arguments in each run",
    "for n in range(3000):\n    assert f(n) == 2 * n": "it makes more than 2,000 calls",
    "while True: pass\nassert f(1) == 2": "ends with TIMEOUT before it calls f",
}


@pytest.mark.parametrize("program", BROKEN)
async def test_a_test_program_that_always_fails_is_an_error_of_the_caller(program: str, local: RuntimeManager) -> None:
    """It is not the fault of the judged program, so it has no verdict."""
    limit_ms = 300 if "while" in program else 20_000
    with pytest.raises(InvalidRequestError, match=re.escape(BROKEN[program])):
        await local.judge(DOUBLE, [AssertTest(program)], function="f", language="python", timeout_ms=limit_ms)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no str": (lambda: AssertTest(1), "program must be a str, got int"),  # type: ignore[arg-type]
    "no Python": (lambda: AssertTest("assert f(1 ==\n"), "program must be Python: '(' was never closed in line 1"),
    "NUL": (lambda: AssertTest("assert f\0"), "program must be Python"),
    "deep": (lambda: AssertTest(f"assert {'(' * 10_000}"), "program must be Python"),
    "long": (lambda: AssertTest("#" * 1_048_577), "program must have at most 1,048,576 characters, got 1,048,577"),
    "no assert": (lambda: AssertTest("f(1)"), "program must have an assert statement"),
    "id": (lambda: AssertTest("assert f", id=1), "id must be a str or None"),  # type: ignore[arg-type]
    "time limit": (lambda: AssertTest("assert f", timeout_ms=0), "timeout_ms"),
    "field": (lambda: AssertTest.from_dict({"program": "assert f", "args": []}), "a test program has no field 'args'"),
    "nothing": (lambda: AssertTest.from_dict({}), "program must be a str, got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_a_wrong_test_cannot_be_made(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("assert g(1) == 2", {}, "does not use f, the function that is tested"),
        ("def f(): pass\nassert f()", {}, "defines f, the function that is tested"),
        ("assert f(Pair(1, n)) == 2", {}, "the test program uses Pair, n, and does not define it"),
        ("assert f(1)", {"function": "g"}, "does not use g, the function that is tested"),
        ("assert f(1)", {"function": "f("}, "function must be a str with the name of a function"),
        ("assert f(1)", {"compare": "equal"}, "compare must be None for AssertTests"),
        ("assert f(1)", {"language": "js"}, "AssertTests are for Python, not for javascript: use FunctionTests"),
    ],
)
async def test_wrong_arguments_are_refused_before_anything_is_sent(
    program: str, options: dict[str, Any], message: str
) -> None:
    async with FakeFaaS() as faas, RuntimeManager.from_url(faas.url) as manager:
        with pytest.raises(InvalidRequestError, match=re.escape(message)):
            await manager.judge(
                "x", [AssertTest("assert f"), AssertTest(program)], **{"function": "f", "language": "python", **options}
            )
        assert not faas.requests


async def test_the_only_name_without_a_definition_is_the_function(local: RuntimeManager) -> None:
    """As in MBPP, which names no entry point. In JSON, the program makes a test a test program."""
    task = CodeTask.from_dict({"code": DOUBLE, "language": "py", "tests": [{"program": "x = 2\nassert f(x) == x + x"}]})
    assert (await local.judge(task.code, task.tests, language="python")).passed
    items = [item async for item in local.map([task])]
    assert isinstance(items[0], CompletedTask)
    assert items[0].judgement is not None
    assert items[0].judgement.passed


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("assert f(g(1)) == 2", "uses f, g without a definition: pass function="),
        ("def check(candidate): assert candidate(1) == 2", "uses no other name without a definition: pass function="),
        ("from math import *\nassert f(1) == 2", "uses f without a definition: pass function="),
    ],
)
async def test_a_function_that_cannot_be_found_must_be_named(program: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        AssertProgram.parse(program).find_function()


async def test_names_that_a_test_program_defines_in_any_way() -> None:
    """Only names that nothing defines are refused."""
    program = block("""
        from math import pi as number
        import os.path
        class Kind: field = number
        async def other(a, *b, c=1, **d): return [e for e in b if (g := e)], a, c, d
        try: pass
        except* ValueError as error: print(error)
        match Kind:
            case [first, *rest]: print(first, rest)
            case {"x": value, **more}: print(value, more, __name__)
            case Kind() as whole: print(whole)
        with open(os.devnull) as file: del file
        assert f(Kind, other, lambda h: h)
    """)
    assert AssertProgram.parse(program).complete("f") == program
    assert AssertProgram.parse("from math import *\nassert f(pi) == tau").complete("f")


async def test_tests_share_executions_and_nothing_else(local: RuntimeManager) -> None:
    """Any number of tests takes three executions, or two if the test programs have run before. Each test has a fresh
    namespace of the program.
    """
    executions: list[CallFinished] = []

    def count(event: object) -> None:
        if isinstance(event, CallFinished):
            executions.append(event)

    url = url_of(local)
    tests = [AssertTest(f"assert f() == 1 and {number} >= 0", id=str(number)) for number in range(20)]
    async with RuntimeManager(settings=Settings(endpoints={"python": url}), telemetry=[count]) as manager:
        code = "calls = []\ndef f():\n    calls.append(1)\n    return len(calls)"
        judgement = await manager.judge(code, tests, function="f", language="python")
        assert len(executions) == 3
        assert not (await manager.judge(DOUBLE, tests[:5], function="f", language="python")).passed
    assert judgement.passed, judgement.first_failure
    assert [result.test.id for result in judgement.results] == [str(number) for number in range(20)]
    assert len(executions) == 5


async def test_the_program_and_the_expected_values_are_never_sent_together() -> None:
    """No request has both."""
    bodies: list[bytes] = []

    class Recording(PythonFaas):
        def check(self, body: bytes) -> tuple[Any, Any]:
            bodies.append(body)
            return super().check(body)

    async with Recording() as faas, RuntimeManager.from_url(faas.url) as manager:
        code = f"# {REASON}\ndef f(n): return n * 2"
        judgement = await manager.judge(
            code, [AssertTest("assert f(1) == 'sk-expected'")], function="f", language="python"
        )
        assert not judgement.passed
        sent = [re.findall(r"[A-Za-z0-9+/=]{100,}", json.loads(body)["code"]) for body in bodies]
        texts = [b"".join(base64.b64decode(part) for part in parts) for parts in sent]
        assert sorted((REASON.encode() in text, b"sk-expected" in text) for text in texts) == [
            (False, True),
            (False, True),
            (True, False),
        ]


async def test_tasks_with_test_programs(local: RuntimeManager) -> None:
    """A task in decoded JSON may have them. A test program that fails by itself is the error of its task."""
    fields = {"code": DOUBLE, "language": "py", "function": "f"}
    programs = ["assert f(2) == 4", "import not_installed\nassert f(1) == 2", "def check(g):\n    assert g(1) == 3"]
    tasks = [CodeTask.from_dict({**fields, "tests": [{"program": program}]}) for program in programs]
    found = [item async for item in local.map(tasks, ordered=True)]
    assert isinstance(found[0], CompletedTask)
    assert isinstance(found[1], FailedTask)
    assert isinstance(found[2], CompletedTask)
    assert [item.judgement.passed for item in (found[0], found[2]) if item.judgement is not None] == [True, False]
    with pytest.raises(InvalidRequestError, match="tests must contain only AssertTests, as the first one is"):
        CodeTask.from_dict({**fields, "tests": [{"program": "assert f(1)"}, {"args": [1], "expected": 2}]})


async def test_tests_after_a_failure_are_skipped(local: RuntimeManager) -> None:
    tests = [AssertTest(f"assert f({number}) == 2") for number in range(3)]
    judgement = await local.judge(DOUBLE, tests, function="f", language="python", stop_on_failure=True)
    assert [str(result.verdict) for result in judgement.results] == ["WRONG_ANSWER", "SKIPPED", "SKIPPED"]
