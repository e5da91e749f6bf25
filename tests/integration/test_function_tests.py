"""Functions judged by tests: exact values, verdicts of tests that end their execution, and the bytes that are sent."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from typing import Any

import pytest

from faasrt import (
    AssertTest,
    CodeTask,
    CompareError,
    CompletedTask,
    FunctionTest,
    InvalidRequestError,
    OverloadedError,
    ReturnValueError,
    RuntimeClosedError,
    RuntimeManager,
    SandboxConfig,
    TestCase,
    TimeoutSettings,
    Verdict,
    floats,
)
from faasrt.client.judge import KEPT_BYTES
from faasrt.testing import FakeFaaS, Reply
from support.doubles import doubles
from support.helpers import manager_at
from support.programs import returning
from support.tables import block, first_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
PLACES = ["embedded", "doubles"]
DOUBLE = {
    "python": "def double(n):\n    return n * 2",
    "javascript": "const double = (n) => n * 2;",
    "typescript": "export function double(n: number): number { return n * 2; }",
}

# A value of each program, and a value that it equals; None stands for a USER_ERROR with the words.
VALUES: dict[str, list[tuple[str, Any]]] = {
    "python": [
        ("[1, [], {'a': None, 'b': (True, 1.5)}]", [1, [], {"a": None, "b": (True, 1.5)}]),
        ("10**30", 10**30),
        ("'\\ud800é'", "\ud800é"),
        ("__import__('enum').IntEnum('E', 'A B').B", 2),
        ("__import__('collections').namedtuple('N', 'a b')(1, 2)", (1, 2)),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}),
        ("type('L', (list,), {'__eq__': lambda *a: True})([1])", [1]),
        ("type('I', (int,), {'__eq__': lambda *a: True, '__repr__': lambda s: '5'})(3)", 3),
        ("type('S', (), {'tolist': lambda self: 5})()", 5),
    ],
    "javascript": [
        ("[1, undefined, { a: undefined, b: null }]", [1, None, {"b": None}]),
        ("undefined", None),
        ("new (class { x = 1; y() {} get z() { return 2; } })()", {"x": 1}),
        ("Object.create(null)", {}),
        ("[-0, 1e21, 0.5]", [0, 1e21, 0.5]),
        ("'\\ud800é'", "\ud800é"),
    ],
}
REFUSED: dict[str, list[tuple[str, str]]] = {
    "python": [
        ("{3, 1}", "value is of type set"),
        ("[frozenset()]", "value[0] is of type frozenset"),
        ("float('nan')", "value is nan"),
        ("{'a': [1, float('inf')]}", "value['a'][1] is inf"),
        ("10**5000", "value has too many digits"),
        ("{1: 2}", "a key of value is of type int"),
        ("[{None: 2}]", "a key of value[0] is of type NoneType"),
        ("b'x'", "value is of type bytes"),
        ("range(3)", "value is of type range"),
        ("(x for x in [1])", "value is of type generator"),
        ("__import__('decimal').Decimal('1')", "value is of type Decimal"),
        ("__import__('enum').Enum('E', 'A B').B", "value is of type E"),
        ("__import__('datetime').date(2020, 1, 2)", "value is of type date"),
        ("__import__('types').SimpleNamespace(a=1)", "value is of type SimpleNamespace"),
        ("__import__('dataclasses').make_dataclass('D', ['x'])(1)", "value is of type D"),
        ("__import__('array').array('i', [1])", "value is of type array"),
        ("type('E', (), {'__eq__': lambda *a: True})()", "value is of type E"),
        ("type('C', (), {'__class__': dict})()", "'C' object"),
        ("type('T', (), {'tolist': lambda self: [1]})()", "value is of type T"),
        ("type('T', (), {'tolist': lambda self: 1 / 0})()", "division by zero"),
        ("(lambda l: l.append(l) or l)([])", "value[0] contains itself"),
        ("__import__('functools').reduce(lambda a, _: (a,), range(500), 1)", "nested more than"),
    ],
    "javascript": [
        ("new Set([1])", "value is of type Set"),
        ("new Map([['a', 1]])", "value is of type Map"),
        ("[new Uint8Array([1])]", "value[0] is of type Uint8Array"),
        ("new Date(0)", "value is of type Date"),
        ("new Number(1)", "value is of type Number"),
        ("NaN", "value is NaN"),
        ("[10n]", "value[0] is of type bigint"),
        ("{ f: () => 1 }", 'value["f"] is of type function'),
        ("({ toJSON: () => 1 })", 'value["toJSON"] is of type function'),
        ("(() => { const a = []; a.push(a); return a; })()", "value[0] contains itself"),
    ],
}


@pytest.mark.parametrize("language", VALUES)
@pytest.mark.parametrize("place", PLACES)
async def test_only_json_passes(place: str, language: str, local: RuntimeManager) -> None:
    """A returned value that is not JSON is a USER_ERROR that says where it is, whatever its own methods claim."""
    values, refused = VALUES[language], REFUSED[language]
    code = returning([expression for expression, _ in values + refused], language)
    expected = [value for _, value in values] + [None] * len(refused)
    tests = [FunctionTest([number], value) for number, value in enumerate(expected)]
    async with manager_at(place, local) as manager:
        judgement = await manager.judge(code, tests, function="f", language=language)
    found = list(zip(values + refused, judgement.results, strict=True))
    for (expression, _), judged in found[: len(values)]:
        assert (expression, judged.verdict, judged.difference) == (expression, Verdict.PASSED, "")
    for (expression, words), judged in found[len(values) :]:
        assert (expression, judged.verdict) == (expression, Verdict.USER_ERROR)
        assert judged.result is not None
        assert judged.result.error is not None
        assert words in judged.result.error.message, (expression, judged.result.error)


async def test_numbers_of_numpy_count_as_numbers(local: RuntimeManager) -> None:
    """They equal what they equal in Python. An array equals nothing."""
    code = block("""
        import numpy as np
        values = [np.int64(3), np.float32(0.5), [np.bool_(True)], np.str_("s"), np.float64("nan"), np.array([1]),
                  {np.int64(1): 1}, np.datetime64("2020-01-02")]
        def f(n): return values[n]
    """)
    tests = [
        FunctionTest([n], value) for n, value in enumerate([3, 0.5, [True], "s", None, [1], {"1": 1}, "2020-01-02"])
    ]
    judgement = await local.judge(code, tests, function="f", language="python")
    assert [str(test.verdict) for test in judgement.results] == ["PASSED"] * 4 + ["USER_ERROR"] * 4


@pytest.mark.parametrize("language", DOUBLE)
@pytest.mark.parametrize("place", first_of(PLACES))
async def test_functions_are_judged_in_each_language(place: str, language: str, local: RuntimeManager) -> None:
    """Tests share one execution. Each has its verdict, its comparison and its returned value."""
    tests = [
        FunctionTest([2], 4, id="right"),
        FunctionTest([2], 4.0),
        FunctionTest([2], 5),
        FunctionTest([0.1], 0.2000001, compare=floats(abs=0.01)),
        FunctionTest([3], 0, compare=lambda value, expected: value % 2 == expected),
    ]
    async with manager_at(place, local) as manager:
        before = manager.get_metrics().total.calls
        judgement = await manager.judge(DOUBLE[language], tests, function="double", language=language)
        assert manager.get_metrics().total.calls - before == 1
    assert [str(test.verdict) for test in judgement.results] == ["PASSED", "PASSED", "WRONG_ANSWER", "PASSED", "PASSED"]
    assert judgement.results[2].difference == "value: expected 5, got 4"
    assert judgement.to_dict()["results"][0]["id"] == "right"
    assert [test.result.value for test in judgement.results if test.result is not None] == [4, 4, 4, 0.2, 6]


COMMON_JS = {
    "module.exports": "const double = (n) => n * 2;\nmodule.exports = { double };",
    "a property of module.exports": "module.exports.double = function (n) { return n * 2; };",
    "exports": "exports.double = (n) => n * 2;\nif (require.main === module) throw new Error(process.argv[2]);",
    "the function itself": "module.exports = double;\nfunction double(n) { return n * 2; }",
    "names of its own": "const module = 2, exports = 1;\nexport const double = (n) => n * module * exports;",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", COMMON_JS)
async def test_functions_of_modules_in_the_style_of_node(name: str, place: str, local: RuntimeManager) -> None:
    """Each test has exports of its own."""
    async with manager_at(place, local) as manager:
        tests = [FunctionTest([2], 4), FunctionTest([3], 6)]
        judgement = await manager.judge(COMMON_JS[name], tests, function="double", language="javascript")
    assert judgement.passed, judgement.first_failure


async def test_modules_of_node_can_be_required(local: RuntimeManager) -> None:
    code = (
        "const {basename} = require('path'), {format} = require('node:util');\nexports.f = (p) => format(basename(p))"
    )
    tests = [FunctionTest(["a/b/c"], "c")]
    assert (await local.judge(code, tests, function="f", language="javascript")).passed
    judgement = await local.judge("exports.f = () => require('left-pad')()", tests, function="f", language="javascript")
    result = judgement.results[0].result
    assert result is not None
    assert "Cannot find module 'left-pad'" in str(result.error)


@pytest.mark.parametrize("place", PLACES)
async def test_python_functions_get_tuples(place: str, local: RuntimeManager) -> None:
    """Arguments have their types, at any depth. In JavaScript, a tuple is an array."""
    arguments = [(1, [2, (3,)]), {"a": ((), [])}, {"py/tuple": 1, "b": 2}, [None]]
    tests = [FunctionTest(arguments, (arguments, {"k": (1,)}), kwargs={"k": (1,)})]
    async with manager_at(place, local) as manager:
        code = "def f(*args, **kwargs): return list(args), kwargs"
        assert (await manager.judge(code, tests, function="f", language="python")).passed
        js = [FunctionTest([(1, [2])], [[1, [2]]])]
        assert (await manager.judge("const f = (...args) => args;", js, function="f", language="js")).passed


async def test_each_test_has_a_fresh_namespace(local: RuntimeManager) -> None:
    """A verdict does not depend on the tests before it."""
    python = "seen = []\ndef f(n):\n    seen.append(n)\n    return seen"
    js = "const seen = [];\nfunction f(n) { seen.push(n); return seen; }"
    tests = [FunctionTest([n], [n]) for n in range(3)]
    for language, code in (("python", python), ("js", js)):
        assert (await local.judge(code, tests, function="f", language=language)).passed


@pytest.mark.parametrize("place", PLACES)
async def test_the_main_block_of_a_program_does_not_run(place: str, local: RuntimeManager) -> None:
    """As if the function was imported. The program keeps its name, the line numbers, and the branch `else`."""
    guards = ('__name__ == "__main__"', "'__main__' == __name__", '__name__ != "__main__"')
    blocks = ("exit(0)", "exit(0)", "pass")
    async with manager_at(place, local) as manager:
        for guard, block_of_guard in zip(guards, blocks, strict=True):
            code = f"if {guard}:\n    {block_of_guard}\nelse:\n    n = 1\ndef f(): return n, __name__\n1 is 1"
            for test in (FunctionTest([], (1, "__main__")), AssertTest("assert f() == (1, '__main__')")):
                judgement = await manager.judge(code, [test], function="f", language="python")
                assert judgement.passed, judgement.first_failure
                result = judgement.results[0].result
                assert result is not None
                assert "main.py:6: SyntaxWarning" in result.stderr


@pytest.mark.parametrize("place", PLACES)
async def test_each_test_has_the_warnings_of_the_compiler(place: str, local: RuntimeManager) -> None:
    """The program is compiled once, but not if each test must have its warnings."""
    tests = [FunctionTest([n], n) for n in range(3)]
    async with manager_at(place, local) as manager:
        judgement = await manager.judge("f = lambda n: n if n is not '' else 0", tests, function="f", language="python")
    assert judgement.passed
    assert all("SyntaxWarning" in test.result.stderr for test in judgement.results if test.result is not None)


STOPPING = block("""
    import os, sys, time
    def f(how):
        if how == "exit": sys.exit(0)
        if how == "leave": os._exit(0)
        if how == "crash": os.abort()
        if how == "hang": time.sleep(60)
        if how == "raise": raise SystemError("x")
        return how
""")


@pytest.mark.parametrize("place", PLACES)
async def test_a_test_that_ends_its_execution_costs_only_itself(place: str, local: RuntimeManager) -> None:
    """The tests after it have their verdicts, from one more execution each time."""
    turns = ["a", "exit", "b", "leave", "raise", "crash", "c", "hang", "d"]
    tests = [FunctionTest([turn], turn) for turn in turns]
    async with manager_at(place, local) as manager:
        before = manager.get_metrics().total.calls
        judgement = await manager.judge(STOPPING, tests, function="f", language="python", timeout_ms=2_000)
        assert manager.get_metrics().total.calls - before == 5
    verdicts = dict(zip(turns, [str(test.verdict) for test in judgement.results], strict=True))
    assert verdicts == {
        **dict.fromkeys("abcd", "PASSED"),
        "exit": "USER_ERROR",
        "leave": "CRASHED",
        "raise": "USER_ERROR",
        "crash": "CRASHED",
        "hang": "TIMEOUT",
    }


async def test_no_execution_begins_after_a_failure_if_tests_are_skipped(local: RuntimeManager) -> None:
    """Tests before the failure run, also those with another time limit."""
    turns = ["a", "b", "exit", "c", "d", "exit"]
    tests = [FunctionTest([turn], turn, timeout_ms=9_000 if turn in "bd" else None) for turn in turns]
    before = local.get_metrics().total.calls
    options: dict[str, Any] = {"function": "f", "language": "python", "timeout_ms": 10_000}
    judgement = await local.judge(STOPPING, tests, stop_on_failure=True, **options)
    assert local.get_metrics().total.calls - before == 2
    verdicts = [str(test.verdict) for test in judgement.results]
    assert verdicts == ["PASSED", "PASSED", "USER_ERROR", "SKIPPED", "SKIPPED", "SKIPPED"]
    assert all(test.result is None for test in judgement.results[3:])


@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_expected_values_are_not_sent(language: str) -> None:
    """Nothing of a test but its arguments is in the bytes of a request, plain or in base64."""
    tests = [
        FunctionTest(["argument"], ["expected-1", {"expected-2": (1,)}], id="expected-3"),
        FunctionTest([], "expected-4", compare=lambda value, expected: "expected-5" in value),
    ]
    async with FakeFaaS() as faas, RuntimeManager.from_url(faas.url) as manager:
        await manager.judge("code of the program", tests, function="the_function", language=language)
        sent = [json.dumps(request) for request in faas.requests]
    encoded = re.findall(r"(?:[A-Za-z0-9+/=]{4}){5,}", "\n".join(sent))
    everything = "\n".join([*sent, *(base64.b64decode(text).decode("utf-8", "replace") for text in encoded)])
    assert all(word in everything for word in ("argument", "code of the program", "the_function"))
    assert "expected" not in everything.replace("unexpected", "")


@pytest.mark.parametrize(
    ("tests", "options", "message"),
    [
        ([FunctionTest([1], 2)], {}, "FunctionTests need the name of the function: pass function="),
        ([TestCase()], {"function": "f"}, "tests of a function must be FunctionTests or AssertTests, got"),
        ([FunctionTest([1], 2), TestCase()], {"function": "f"}, "tests must contain only FunctionTests, as the first"),
        ([FunctionTest([1], 2)], {"function": "a b"}, "function must be a str with the name of a function, got 'a b'"),
        ([FunctionTest([1], 2)], {"function": "f", "compare": "lines"}, "compare must be 'equal', 'alike', 'floats'"),
        ([TestCase()], {"compare": "equal"}, "compare must be 'exact', 'lines', 'tokens', 'floats'"),
        ([FunctionTest([1], 2), FunctionTest([{1}], 2)], {"function": "f"}, "argument 0 of test 1 is or holds a set"),
        ([FunctionTest([], 2, kwargs={"a": 1j})], {"function": "f"}, "a of test 0 is or holds a complex"),
        ([FunctionTest([], 2, kwargs={"a": 1})], {"function": "f", "language": "js"}, "kwargs must be empty for java"),
        ([FunctionTest([2**60], 2)], {"function": "f", "language": "js"}, "above 2**53, which JavaScript would round"),
        ([FunctionTest([], 2, timeout_ms=10**9)], {"function": "f"}, "timeout_ms must be at most"),
        ([FunctionTest([], 2)], {"function": "f", "language": "bash"}, "judge with a function"),
    ],
)
async def test_wrong_arguments_are_refused_before_anything_is_sent(
    tests: Any, options: dict[str, Any], message: str
) -> None:
    """The error says what is wrong."""
    async with FakeFaaS() as faas, RuntimeManager.from_url(faas.url) as manager:
        with pytest.raises(InvalidRequestError, match=re.escape(message)):
            await manager.judge("1", tests, **{"language": "python", **options})
        assert not faas.requests


async def test_an_infrastructure_failure_is_never_a_verdict() -> None:
    """The error of one execution is the error of the judgement."""
    async with FakeFaaS() as faas, RuntimeManager.from_url(faas.url) as manager:
        faas.default = Reply.overloaded(retry_after=0)
        with pytest.raises(OverloadedError):
            await manager.judge("1", [FunctionTest([], 1)], function="f", language="python")


@pytest.mark.parametrize("is_closed", [False, True], ids=["cancelled", "closed"])
async def test_a_judgement_can_be_cancelled(is_closed: bool) -> None:
    """The connections of its executions are then closed, and no other execution starts."""
    timeouts = TimeoutSettings(close_s=0.01)
    tests = [FunctionTest([], 1), FunctionTest([], 1, timeout_ms=20_000)]
    async with FakeFaaS() as faas, RuntimeManager.from_url(faas.url, timeouts=timeouts) as manager:
        faas.default = Reply(hang=True)
        judging = asyncio.create_task(manager.judge("1", tests, function="f", language="python"))
        await faas.wait_until(lambda: faas.in_flight == 2)
        if is_closed:
            await manager.aclose()
        else:
            judging.cancel()
        with pytest.raises(RuntimeClosedError if is_closed else asyncio.CancelledError):
            await judging
        await faas.wait_until(lambda: faas.in_flight == 0)
        assert len(faas.requests) == 2


async def test_a_comparison_that_fails_is_an_error_of_the_caller(local: RuntimeManager) -> None:
    """The error has the exception, and the judgement ends."""
    tests = [FunctionTest([1], 2), FunctionTest([2], 4, compare=lambda value, expected: value.missing)]
    with pytest.raises(CompareError, match="compare raised AttributeError: 'int' object has no attribute 'missing'"):
        await local.judge(DOUBLE["python"], tests, function="double", language="python")


async def test_tasks_with_tests_of_functions(local: RuntimeManager) -> None:
    """They are judged in maps, also between tasks that share executions, and can be read from JSON."""
    tests = [{"args": [2], "expected": 4}, {"args": [3], "expected": 7}]
    fields = {"code": DOUBLE["python"], "language": "py", "function": "double"}
    tasks = [
        CodeTask.from_dict({**fields, "tests": tests}),
        CodeTask.from_dict({**fields, "args": [5]}),
        CodeTask.from_dict({**fields, "tests": [{"args": [[1]], "expected": [1, 1.0]}], "compare": "alike"}),
    ]
    items = [item async for item in local.map(tasks, ordered=True, coalesce=10)]
    found = []
    for item in items:
        assert isinstance(item, CompletedTask), item
        found.append((item.result.value, None if item.judgement is None else item.judgement.score))
    assert found == [(6, 0.5), (10, None), ([1, 1], 1.0)]


async def test_large_values_are_compared_outside_of_the_event_loop(local: RuntimeManager) -> None:
    """Comparing them does not delay other calls. A function of the caller is called in the event loop."""
    compared: set[bool] = set()

    def note() -> None:
        compared.add(threading.current_thread() is threading.main_thread())

    class Noted(float):
        __hash__ = float.__hash__

        def __eq__(self, other: object) -> bool:
            note()
            return float(self) == other

    values = [float(number) for number in range(60_000)]
    code = "def f(n): return [float(number) for number in range(n)]"
    options: dict[str, Any] = {"function": "f", "language": "python"}
    (judged,) = (await local.judge(code, [FunctionTest([60_000], [*values[:-1], Noted(1)])], **options)).results
    assert judged.difference == "value[59999]: expected 1.0, got 59999.0"
    assert compared == {False}

    def compare(value: Any, expected: Any) -> bool:
        note()
        return value == expected

    (judged,) = (await local.judge(code, [FunctionTest([60_000], values, compare=compare)], **options)).results
    assert (judged.verdict, compared) == (Verdict.PASSED, {False, True})


async def test_the_texts_that_are_kept_of_a_test_are_short(local: RuntimeManager) -> None:
    """Each is cut after the comparison, so that a judgement of many tests takes little memory."""
    code = block("""
        def f(n):
            print("o" * n)
            if n == 100_000:
                raise ValueError("e" * n)
            return "r" * n
    """)
    tests = [FunctionTest([n], "r" * n) for n in (10, 100_001, 100_000)]
    judgement = await local.judge(code, tests, function="f", language="python")
    assert [str(test.verdict) for test in judgement.results] == ["PASSED", "PASSED", "USER_ERROR"]
    short, returned, raised = (test.result for test in judgement.results)
    assert short is not None
    assert returned is not None
    assert raised is not None
    assert raised.error is not None
    assert (short.value, short.truncated) == ("r" * 10, frozenset())
    assert returned.truncated == {"stdout", "ret_val"}
    texts = [returned.stdout, returned.ret_val, raised.stdout, raised.stderr, raised.error.message]
    assert all(1_000 < len(text) <= KEPT_BYTES for text in texts)
    with pytest.raises(ReturnValueError, match="was cut, at max_output_bytes or after a test"):
        _ = returned.value


async def test_a_value_that_was_cut_is_not_compared(local: RuntimeManager) -> None:
    """It exceeds the output limit, and never passes."""
    sandbox = SandboxConfig(max_output_bytes=1_000)
    test = FunctionTest([], "a" * 1_500)
    judgement = await local.judge("f = lambda: 'a' * 1500", [test], function="f", language="py", sandbox=sandbox)
    assert judgement.verdict is Verdict.OUTPUT_LIMIT


async def test_stored_results_are_judged(local: RuntimeManager, tmp_path: Any) -> None:
    """Only new cases run, and a stored result of `run_cases` is never judged, because its value may not be exact."""
    assert local.local_faas is not None
    url = local.local_faas.url
    async with RuntimeManager.from_url(url, cache=tmp_path) as manager:
        options: dict[str, Any] = {"language": "python"}
        code = "def f(n): return {n}"
        assert (await manager.run_cases(code, "f", [(1,)], isolate=True, **options))[0].value == [1]
        judged = await manager.judge(code, [FunctionTest([1], [1])], function="f", **options)
        assert judged.verdict is Verdict.USER_ERROR
        tests = [FunctionTest([n], n * 2) for n in range(4)]
        await manager.judge(DOUBLE["python"], tests[1:3], function="double", **options)
        judged = await manager.judge(DOUBLE["python"], tests, function="double", **options)
        assert judged.passed
        assert [test.result.cached for test in judged.results if test.result is not None] == [False, True, True, False]


async def test_tests_share_executions_on_python_faas() -> None:
    """Twenty tests need one execution, and keyword arguments arrive."""
    tests = [FunctionTest([n], n + 5, kwargs={"by": 5}) for n in range(20)]
    async with doubles() as (manager, python, _):
        judgement = await manager.judge("def f(n, by=1): return n + by", tests, function="f", language="python")
        assert (judgement.passed, python.executions) == (True, 1)
