"""`call_function` and `run_cases` on the doubles of the reference servers and on the embedded FaaS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from faasrt import ExecutionResult, InvalidRequestError, Outcome, RuntimeManager, SandboxConfig
from support.doubles import doubles
from support.helpers import manager_at
from support.programs import returning
from support.tables import block, first_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
PLACES = ["doubles", "embedded"]

PYTHON = """
import os, sys, time
print("defining")
count = 0

def grade(turn, weight=1):
    global count
    count += 1
    print("turn", turn)
    print("warn", file=sys.stderr)
    if turn == "raise":
        raise ValueError("bad turn")
    if turn == "loop":
        while True:
            time.sleep(0.01)
    if turn == "sleep":
        time.sleep(60)
    if turn == "exit":
        sys.exit(3)
    if turn == "leave":
        sys.exit()
    if turn == "hard":
        os._exit(4)
    return {"turn": turn, "score": len(turn) * weight, "count": count}

async def later(x):
    return [x, "é\\ud800"]

GradeLater = later
not_callable = 5
"""
JAVASCRIPT = """
console.log("defining");
let count = 0;
function grade(turn, weight = 1) {
  count += 1;
  console.log("turn", turn);
  console.error("warn");
  if (turn === "raise") throw new RangeError("bad turn");
  if (turn === "loop") while (true) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
  if (turn === "sleep") return new Promise(() => {});
  if (turn === "exit") Deno.exit(3);
  if (turn === "leave") Deno.exit();
  if (turn === "hard") Deno.exit(4);
  return { turn, score: turn.length * weight, count };
}
const later = async (x) => [x, "é\\ud800"];
export const exported = (x) => x;
export default (x) => x + 1;
class Holder { }
const not_callable = 5;
"""
TYPESCRIPT = JAVASCRIPT.replace("(turn, weight = 1)", "(turn: string, weight: number = 1): object")
CODE = {"python": PYTHON, "javascript": JAVASCRIPT, "typescript": TYPESCRIPT}


SAMPLE = {("doubles", "python"), ("doubles", "typescript"), ("embedded", "javascript")}
EVERYWHERE = [
    pytest.param(place, language, marks=() if (place, language) in SAMPLE else pytest.mark.tables)
    for place in PLACES
    for language in CODE
]


@pytest.mark.parametrize(("place", "language"), EVERYWHERE)
async def test_call_function(place: str, language: str, local: RuntimeManager) -> None:
    """Values, output, exceptions, missing functions, exits, timeouts and syntax errors."""
    async with manager_at(place, local) as manager:
        runtime = await manager.get_runtime(language)
        code = CODE[language]
        graded = await runtime.call_function(code, "grade", ["abc", 2])
        assert (graded.outcome, graded.value) == (Outcome.OK, {"turn": "abc", "score": 6, "count": 1})
        assert (graded.stdout, graded.stderr, graded.exit_code) == ("defining\nturn abc\n", "warn\n", 0)
        assert json.loads(graded.ret_val) == graded.value
        assert (await runtime.call_function(code, "later", [{"k": [None, True, 1.5]}])).value == [
            {"k": [None, True, 1.5]},
            "é\ud800",
        ]
        raised = await runtime.call_function(code, "grade", ["raise"])
        assert raised.error is not None
        assert (raised.outcome, raised.error.message) == (Outcome.USER_ERROR, "bad turn")
        assert raised.error.traceback in raised.stderr
        assert "main." in raised.error.traceback
        assert "guest" not in raised.error.traceback
        missing = await runtime.call_function(code, "grdae", ["x"])
        assert missing.outcome is Outcome.USER_ERROR
        assert missing.error is not None
        assert "no function grdae" in missing.error.message
        assert "grade, later" in missing.error.message
        wrong = await runtime.call_function(code, "not_callable")
        assert wrong.error is not None
        assert "is not a function" in wrong.error.message
        for turn, exit_code in (("exit", 3), ("leave", 0)):
            left = await runtime.call_function(code, "grade", [turn])
            assert (left.outcome, left.exit_code) == (Outcome.USER_ERROR, exit_code)
            assert left.error is not None
            assert "before grade returned" in left.error.message
        looped = await runtime.call_function(code, "grade", ["loop"], timeout_ms=3_000)
        assert looped.outcome is Outcome.TIMEOUT
        if language == "python" or place == "embedded":
            assert looped.stdout == "defining\nturn loop\n"
        broken = await runtime.call_function(code + "\n((", "grade", ["x"])
        assert broken.outcome is Outcome.SYNTAX_ERROR
        assert raised.value is None


@pytest.mark.parametrize("place", PLACES)
async def test_python_functions_and_arguments(place: str, local: RuntimeManager) -> None:
    """Keyword arguments and defaults work, and classes, imported functions and lambdas can be called."""
    async with manager_at(place, local) as manager:
        python = await manager.get_runtime("python")
        assert (await python.call_function(PYTHON, "grade", ["ab"], {"weight": 5})).value["score"] == 10
        assert (
            await python.call_function(
                block("""
                    class P:
                        def __init__(self, x): self.x = x
                """),
                "P",
                [3],
            )
        ).value == {"x": 3}
        assert (await python.call_function("from math import hypot", "hypot", [3, 4])).value == 5
        assert (await python.call_function("f = lambda *a, **k: [a, k]", "f", [1], {"b": 2})).value == [[1], {"b": 2}]
        assert (await python.call_function("def f(): pass", "f")).value is None
        assert (
            await python.call_function(
                block("""
                    return_val('x')
                    def f(): return_val('y'); return 1
                """),
                "f",
            )
        ).value == 1


async def test_javascript_functions() -> None:
    """Exports, the default export, constants and imports can be called. Globals of the language cannot."""
    async with doubles() as (manager, _, _):
        js = await manager.get_runtime("js")
        assert (await js.call_function(JAVASCRIPT, "exported", [5])).value == 5
        assert (await js.call_function(JAVASCRIPT, "default", [5])).value == 6
        assert (await js.call_function("const $f_1 = () => undefined", "$f_1")).value is None
        assert (await js.call_function("var é = (x) => x; // a comment", "é", [1])).value == 1
        not_ours = await js.call_function("const x = 1;", "parseInt", ["5"])
        assert not_ours.outcome is Outcome.USER_ERROR
        assert (await js.call_function("import { inspect } from 'node:util';", "inspect", [5])).value == "5"


VALUES = {
    "python": [
        ("(1, 2)", [1, 2]),
        ("{3, 1, 2}", [1, 2, 3]),
        ("frozenset([1])", [1]),
        ("{1: 'a', None: 2, True: 3} if False else {1: 'a', None: 2}", {"1": "a", "null": 2}),
        ("float(2**53)", 2.0**53),
        ("10**30", 10**30),
        ("__import__('datetime').datetime(2020, 1, 2, 3)", "2020-01-02T03:00:00"),
        ("__import__('datetime').date(2020, 1, 2)", "2020-01-02"),
        ("__import__('datetime').timedelta(seconds=1.5)", 1.5),
        ("__import__('decimal').Decimal('1.10')", "1.10"),
        ("__import__('uuid').UUID(int=1)", "00000000-0000-0000-0000-000000000001"),
        ("__import__('pathlib').PurePosixPath('/a')", "/a"),
        ("__import__('enum').Enum('E', 'A B').B", 2),
        ("__import__('array').array('i', [1])", [1]),
        ("__import__('collections').namedtuple('N', 'a b')(1, 2)", [1, 2]),
        ("__import__('collections').OrderedDict(a=1)", {"a": 1}),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}),
        ("__import__('types').SimpleNamespace(a=(1,))", {"a": [1]}),
        ("__import__('types').MappingProxyType({'a': 1})", {"a": 1}),
        ("__import__('dataclasses').make_dataclass('D', ['x', 'y'])(1, {2})", {"x": 1, "y": [2]}),
        ("'\\ud800'", "\ud800"),
    ],
    "javascript": [
        ("[1, undefined, { a: undefined, b: null }]", [1, None, {"b": None}]),
        ("new Map([['a', new Set([1])]])", {"a": [1]}),
        ("new Uint8Array([1, 2])", [1, 2]),
        ("new Date(0)", "1970-01-01T00:00:00.000Z"),
        ("new (class { x = 1; y() {} get z() { return 2; } })()", {"x": 1}),
        ("Object.create(null)", {}),
        ("[new Number(1), new String('s'), -0]", [1, "s", 0]),
        ("1e21", 1e21),
        ("'\\ud800'", "\ud800"),
    ],
}
REFUSED = {
    "python": [
        ("float('nan')", "value is nan"),
        ("{'a': [1, float('inf')]}", "value['a'][1] is inf"),
        ("b'x'", "value is of type bytes"),
        ("[print]", "value[0] is of type builtin_function_or_method"),
        ("(lambda: 1)", "value is of type function"),
        ("(x for x in [1])", "value is of type generator"),
        ("1j", "value is of type complex"),
        ("ValueError('x')", "value is of type ValueError"),
        ("{(1, 2): 3}", "a key of value is of type tuple"),
        ("{1: 'a', '1': 'b'}", "two keys that are '1'"),
        ("(lambda l: l.append(l) or l)([])", "value[0] contains itself"),
        ("__import__('functools').reduce(lambda a, _: [a], range(500), 1)", "nested more than"),
        ("__import__('types').SimpleNamespace(a=object())", "value.a is of type object"),
        ("__import__('os')", "value is of type module"),
    ],
    "javascript": [
        ("NaN", "value is NaN"),
        ("{ a: [1, -Infinity] }", 'value["a"][1] is -Infinity'),
        ("[10n]", "value[0] is of type bigint"),
        ("{ f: () => 1 }", 'value["f"] is of type function'),
        ("Symbol('x')", "value is of type symbol"),
        ("new Error('x')", "value is of type Error"),
        ("/x/", "value is of type RegExp"),
        ("(() => { const a = []; a.push(a); return a; })()", "value[0] contains itself"),
        ("new Map([[{}, 1]])", "a key of value is of type object"),
        ("new Map([[1, 1], ['1', 2]])", "two keys"),
    ],
}


@pytest.mark.parametrize("language", VALUES)
@pytest.mark.parametrize("place", first_of(PLACES))
async def test_values_are_encoded(place: str, language: str, local: RuntimeManager) -> None:
    """Each kind of value has a form in JSON. The error for any other value says where it is."""
    code = returning([expression for expression, _ in VALUES[language] + REFUSED[language]], language)
    async with manager_at(place, local) as manager:
        runtime = await manager.get_runtime(language)
        results = iter(
            await runtime.run_cases(code, "f", [(n,) for n in range(len(VALUES[language] + REFUSED[language]))])
        )
    for expression, expected in VALUES[language]:
        result = next(results)
        assert result.outcome is Outcome.OK, (expression, result)
        assert result.value == expected, expression
    for expression, words in REFUSED[language]:
        result = next(results)
        assert result.outcome is Outcome.USER_ERROR, (expression, result)
        assert result.error is not None
        assert words in result.error.message, result.error


async def test_numpy_and_pandas_values(local: RuntimeManager) -> None:
    """Scalars become numbers or strings, arrays become lists, and data frames become lists of rows."""
    code = """
import numpy as np, pandas as pd
def f():
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    return {
        "scalars": [np.int64(1), np.float32(0.5), np.bool_(True), np.str_("s")],
        "array": np.arange(4).reshape(2, 2),
        "key": {np.int64(3): 1},
        "column": frame["a"].to_numpy(),
        "frame": frame,
        "time": np.datetime64("2020-01-02"),
    }
def g():
    return np.array([1.0, np.nan])
"""
    runtime = await local.get_runtime("python")
    assert (await runtime.call_function(code, "f")).value == {
        "scalars": [1, 0.5, True, "s"],
        "array": [[0, 1], [2, 3]],
        "key": {"3": 1},
        "column": [1, 2],
        "frame": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
        "time": "2020-01-02",
    }
    refused = await runtime.call_function(code, "g")
    assert refused.error is not None
    assert "value[1] is nan" in refused.error.message


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
# As a tree, it has 2**150 values.
SHARED: Any = 1
for _ in range(150):
    SHARED = [SHARED, SHARED]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((float("nan"),), {}, "argument 0 of the call is or holds nan"),
        ((1, {"a": [object()]}), {}, "argument 1 of the call is or holds a object"),
        (({1: 2},), {}, "a dict with the key 1"),
        (({None: 2},), {}, "a dict with the key None"),
        (({1, 2},), {}, "holds a set"),
        ((CYCLE,), {}, "contains itself"),
        ((1, SHARED), {}, "argument 1 of the call exceeds the limit of 8,388,608 bytes"),
        (["x" * 2**20] * 9, {}, "argument 7 of the call exceeds the limit"),
        (([10**4000] * 9000,), {}, "argument 0 of the call exceeds the limit"),
        ((b"x",), {}, "holds a bytes"),
        ((10**5000,), {}, "an integer with more than 4,300 digits"),
        ((), {"x": 1j}, "x of the call is or holds a complex"),
    ],
)
async def test_arguments_must_be_json(arguments: Sequence[Any], options: dict[str, Any], words: str) -> None:
    """Values that JSON would change are refused before a request is sent, and the message says where they are."""
    async with doubles() as (manager, python, _):
        runtime = await manager.get_runtime("python")
        with pytest.raises(InvalidRequestError, match=words):
            await runtime.call_function("def f(*a, **k): pass", "f", arguments, {**options})
        assert python.executions == 0


async def test_function_names_cases_and_flags_are_checked() -> None:
    async with doubles() as (manager, python, js):
        runtime = await manager.get_runtime("python")
        for name in ("", "a.b", "1a", "f()", None, 5, "$x", "a b"):
            with pytest.raises(InvalidRequestError, match="function must be"):
                await runtime.call_function("1", name)  # type: ignore[arg-type]
        for cases in ("abc", 5, {"a": 1}, [1], ["ab"], [{"a": 1}], [(1,), {2}]):
            with pytest.raises(InvalidRequestError, match="case"):
                await runtime.run_cases("1", "f", cases)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="isolate"):
            await runtime.run_cases("1", "f", [(1,)], isolate=1)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="idempotent"):
            await runtime.run_cases("1", "f", [(1,)], idempotent="no")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="keyword"):
            await (await manager.get_runtime("js")).call_function("1", "f", [], {"x": 1})
        with pytest.raises(InvalidRequestError, match="empty"):
            await runtime.call_function(" ", "f")
        assert await runtime.run_cases("1", "f", []) == []
        assert python.executions == js.executions == 0


@pytest.mark.parametrize(("place", "language"), EVERYWHERE)
async def test_cases_have_their_own_results(place: str, language: str, local: RuntimeManager) -> None:
    """Each case has its own output, error and value. Without `isolate`, it sees variables of earlier cases."""
    async with manager_at(place, local) as manager:
        runtime = await manager.get_runtime(language)
        turns = ["a", "raise", "bb"]
        results = await runtime.run_cases(CODE[language], "grade", [(turn,) for turn in turns])
        assert [result.outcome for result in results] == ["OK", "USER_ERROR", "OK"]
        assert [result.stdout for result in results] == [f"defining\nturn {turn}\n" for turn in turns]
        assert results[1].stderr.startswith("warn\n")
        assert results[1].error is not None
        assert results[0].stderr == "warn\n"
        assert [results[0].value["count"], results[2].value["count"]] == [1, 3]
        assert all(result.duration_ms is not None and result.duration_ms >= 0 for result in results)
        assert len({result.timings for result in results}) == 1
        fresh = await runtime.run_cases(CODE[language], "grade", [("a",), ["b"]], isolate=True)
        assert [result.value["count"] for result in fresh] == [1, 1]
        assert [result.stdout for result in fresh] == ["defining\nturn a\n", "defining\nturn b\n"]


STOPPING = ["loop", "exit", "hard", "leave", "sleep"]
OUTCOMES = {
    "loop": Outcome.TIMEOUT,
    "sleep": Outcome.TIMEOUT,
    "exit": Outcome.USER_ERROR,
    "leave": Outcome.USER_ERROR,
}


@pytest.mark.parametrize("language", ["python", "javascript"])
@pytest.mark.parametrize("place", PLACES)
async def test_each_case_that_stops_its_execution_costs_one_more_execution(
    place: str, language: str, local: RuntimeManager
) -> None:
    """k such cases need k + 1 executions. Every other case runs once, and has its value."""
    turns = [turn for stopping in STOPPING for turn in ("x", stopping)] + ["last"]
    if place == "doubles":
        async with doubles() as (manager, python, js):
            runtime = await manager.get_runtime(language)
            results = await runtime.run_cases(CODE[language], "grade", [(turn,) for turn in turns], timeout_ms=1_500)
            assert (python if language == "python" else js).executions == len(STOPPING) + 1
    else:
        runtime = await local.get_runtime(language)
        before = runtime.get_metrics().total.calls
        results = await runtime.run_cases(CODE[language], "grade", [(turn,) for turn in turns], timeout_ms=1_500)
        assert runtime.get_metrics().total.calls - before == len(STOPPING) + 1
    for turn, result in zip(turns, results, strict=True):
        if turn in ("x", "last"):
            assert result.value == {"turn": turn, "score": len(turn), "count": 1}, (turn, result)
        elif turn == "hard" and language == "python":
            assert (result.outcome, result.exit_code) == (Outcome.CRASHED, 4)
        else:
            assert result.outcome is OUTCOMES.get(turn, Outcome.USER_ERROR), (turn, result)


async def test_a_crash_is_attributed_to_its_case() -> None:
    """The progress on stderr shows which case crashed, so no case runs twice."""
    code = """
import ctypes, pathlib
def f(x):
    with open(LOG, "a") as log:
        log.write(f"{x} ")
    if x in (2, 5):
        ctypes.string_at(0)
    return x
"""
    async with doubles() as (manager, python, _):
        log = python.folder / "log"
        runtime = await manager.get_runtime("python")
        results = await runtime.run_cases(f"LOG = {str(log)!r}{code}", "f", [(number,) for number in range(7)])
        assert [result.outcome for result in results] == ["OK", "OK", "CRASHED", "OK", "OK", "CRASHED", "OK"]
        assert [result.value for result in results if result.ok] == [0, 1, 3, 4, 6]
        assert python.executions == 3
        assert log.read_text() == "0 1 2 3 4 5 6 "


async def test_a_crash_after_a_slow_start_is_no_timeout() -> None:
    """If the interpreter starts slowly, the program may crash later than its time limit after the request."""
    async with doubles() as (manager, python, _):
        python.start_up_s = 0.3
        result = await manager.run_code(
            block("""
                import ctypes
                ctypes.string_at(0)
            """),
            "python",
            timeout_ms=200,
        )
        assert result.outcome is Outcome.CRASHED


async def test_a_crash_without_progress_is_attributed_to_all_cases() -> None:
    """js-faas returns no output of a crashed process, so all its cases are CRASHED. Idempotent cases run again."""
    code = "const f = (x) => { if (x === 2) Deno.kill(Deno.pid, 'SIGKILL'); return x; };"
    async with doubles() as (manager, _, js):
        runtime = await manager.get_runtime("js")
        results = await runtime.run_cases(code, "f", [(number,) for number in range(4)])
        assert {result.outcome for result in results} == {Outcome.CRASHED}
        assert results[0].error is not None
        assert "cases 0 to 3" in results[0].error.message
        assert js.executions == 1
        results = await runtime.run_cases(code, "f", [(number,) for number in range(4)], idempotent=True)
        assert [result.outcome for result in results] == ["OK", "OK", "CRASHED", "OK"]


@pytest.mark.parametrize(
    ("definitions", "outcome"),
    [
        ("1 / 0", Outcome.USER_ERROR),
        ("import sys; sys.exit(3)", Outcome.USER_ERROR),
        ("import sys; sys.exit(0)", Outcome.USER_ERROR),
        ("import os; os._exit(3)", Outcome.CRASHED),
        ("import ctypes; ctypes.string_at(0)", Outcome.CRASHED),
        ("while True: pass", Outcome.TIMEOUT),
        ("while True: print('x' * 1000)", Outcome.OUTPUT_LIMIT),
        ("def f(:", Outcome.SYNTAX_ERROR),
    ],
)
async def test_definitions_that_fail(definitions: str, outcome: Outcome) -> None:
    """If the definitions fail, every case gets their outcome after one execution."""
    async with doubles(sandbox=SandboxConfig(max_output_bytes=10_000)) as (manager, python, _):
        runtime = await manager.get_runtime("python")
        limit = {"timeout_ms": 200} if outcome is Outcome.TIMEOUT else {}
        code = f"print('a')\n{definitions}\ndef f(x): pass"
        results = await runtime.run_cases(code, "f", [(number,) for number in range(3)], **limit)
        assert {result.outcome for result in results} == {outcome}
        assert len(results) == 3
        assert python.executions == 1


async def test_cases_with_large_output_are_split() -> None:
    """Output of other cases never truncates the output of a case. The remaining cases run in a new execution."""
    limit = 50_000
    async with doubles(sandbox=SandboxConfig(max_output_bytes=limit)) as (manager, python, js):
        for language, code in {
            "python": f"def f(n):\n    print('x' * {limit - 1})\n    return n",
            "js": f"const f = (n) => {{ console.log('x'.repeat({limit - 1})); return n; }};",
        }.items():
            runtime = await manager.get_runtime(language)
            results = await runtime.run_cases(code, "f", [(number,) for number in range(12)])
            assert [result.value for result in results] == list(range(12))
            assert {len(result.stdout) for result in results} == {limit}
            assert not any(result.truncated for result in results)
        assert 1 < python.executions < 12
        assert 1 < js.executions < 12


async def test_cases_with_large_arguments_are_split() -> None:
    """A request contains at most 1 MiB of arguments, or only one case."""
    async with doubles() as (manager, python, _):
        runtime = await manager.get_runtime("python")
        cases = [("x" * 400_000,)] * 5 + [("y" * 1_500_000,)]
        results = await runtime.run_cases("def f(x): return len(x)", "f", cases)
        assert [result.value for result in results] == [400_000] * 5 + [1_500_000]
        assert python.executions == 4


async def test_two_hundred_cases_take_one_execution() -> None:
    """The cases share one start of the interpreter. `benchmarks/cases.py` measures the difference."""
    async with doubles() as (manager, python, _):
        runtime = await manager.get_runtime("python")
        results = await runtime.run_cases(PYTHON, "grade", [("t" * (number % 7),) for number in range(200)])
        assert [result.value["score"] for result in results] == [number % 7 for number in range(200)]
        assert python.executions == 1


async def test_a_case_that_returns_after_its_limit_is_a_timeout() -> None:
    """The next case still runs in the same execution."""
    code = block("""
        import signal, time
        def f(s):
            signal.alarm(0)
            time.sleep(s)
            return s
    """)
    async with doubles() as (manager, python, _):
        results = await (await manager.get_runtime("python")).run_cases(code, "f", [(1.1,), (0,)], timeout_ms=1_000)
        assert [result.outcome for result in results] == ["TIMEOUT", "OK"]
        assert python.executions == 1


async def test_many_cases_on_the_embedded_faas(local: RuntimeManager) -> None:
    """A thousand cases need at most ten executions, and their results are in order."""
    for language in ("python", "js"):
        runtime = await local.get_runtime(language)
        code = "def f(n): return n * n" if language == "python" else "const f = (n) => n * n;"
        before = runtime.get_metrics().total.calls
        results: list[ExecutionResult] = await runtime.run_cases(code, "f", [(number,) for number in range(1_000)])
        assert [result.value for result in results] == [number * number for number in range(1_000)]
        assert runtime.get_metrics().total.calls - before <= 10
