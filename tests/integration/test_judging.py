"""Programs judged by tests: on the embedded FaaS, in maps, and on servers that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from benchmarks.problems import PROBLEMS, Problem
from faasrt import (
    CodeTask,
    CompareError,
    CompletedTask,
    FaasrtError,
    FailedTask,
    FunctionTest,
    InvalidRequestError,
    Outcome,
    OverloadedError,
    RuntimeClosedError,
    RuntimeManager,
    TestCase,
    TimeoutSettings,
    UnsupportedLanguageError,
    Verdict,
)
from faasrt.testing import FakeFaaS, Reply
from support.doubles import PythonFaas
from support.served import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="session")
DOUBLE = [TestCase("1", "2"), TestCase("5", "10"), TestCase("-1", "-2")]


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(problem, id=problem.name, marks=[] if number % 3 == 0 else [pytest.mark.tables])
        for number, problem in enumerate(PROBLEMS)
    ],
)
async def test_right_and_wrong_solutions_are_told_apart(problem: Problem, local: RuntimeManager) -> None:
    """A right solution passes every test, and a wrong one fails some."""
    tests = problem.tests()
    right, wrong = await asyncio.gather(
        local.judge(problem.right, tests, language="python"), local.judge(problem.wrong, tests, language="python")
    )
    assert right.passed, right.first_failure
    assert not wrong.passed
    assert wrong.verdict is Verdict.WRONG_ANSWER
    assert wrong.first_failure.difference


async def test_each_test_has_its_own_verdict(local: RuntimeManager) -> None:
    """Files, arguments, time limits and ids belong to one test."""
    code = (
        "import sys, time\nmode = sys.argv[1] if sys.argv[1:] else input()\n"
        "if mode == 'file': print(open('a/b.txt').read())\nelif mode == 'raise': raise ValueError(mode)\n"
        "elif mode == 'sleep': time.sleep(60)\nelif mode == 'exit': sys.exit(3)\nelse: print(mode)"
    )
    tests = [
        TestCase("echo", "echo", id="plain"),
        TestCase(argv=["argument"], expected="argument"),
        TestCase("file", "content", files={"a/b.txt": "content"}),
        TestCase("file", "content"),
        TestCase("raise"),
        TestCase("sleep", timeout_ms=300),
        TestCase("exit"),
    ]
    judgement = await local.judge(code, tests, language="python", timeout_ms=20_000)
    verdicts = [str(test.verdict) for test in judgement.results]
    assert verdicts == ["PASSED", "PASSED", "PASSED", "USER_ERROR", "USER_ERROR", "TIMEOUT", "USER_ERROR"]
    assert judgement.results[0].test.id == "plain"
    assert judgement.results[4].result is not None
    assert judgement.results[4].result.error is not None
    assert judgement.results[4].result.error.message == "raise"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("", DOUBLE), {}, InvalidRequestError, "code must not be empty"),
        (("pass", []), {}, InvalidRequestError, "tests must not be empty"),
        (("pass", DOUBLE), {"compare": "same"}, InvalidRequestError, "compare must be"),
        (
            ("pass", DOUBLE),
            {"concurrency": 0},
            InvalidRequestError,
            "concurrency must be a whole number from 1 to 100,000",
        ),
        (
            ("pass", DOUBLE),
            {"concurrency": True},
            InvalidRequestError,
            "concurrency must be a whole number from 1 to 100,000",
        ),
        (("pass", DOUBLE), {"stop_on_failure": 1}, InvalidRequestError, "stop_on_failure must be True or False"),
        (("pass", DOUBLE), {"timeout_ms": -1}, InvalidRequestError, "timeout_ms must be finite and above 0"),
        (("pass", [*DOUBLE, TestCase(timeout_ms=10**9)]), {}, InvalidRequestError, "timeout_ms must be at most"),
        (("pass", [*DOUBLE, TestCase(files={"main.py": ""})]), {}, InvalidRequestError, "the program itself"),
        (("pass", DOUBLE), {"language": "ruby"}, UnsupportedLanguageError, "ruby"),
    ],
)
async def test_wrong_arguments_are_refused_before_anything_is_sent(
    arguments: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Even if only the last test is wrong, no test runs."""
    async with FakeFaaS() as faas, RuntimeManager.from_url(faas.url) as manager:
        with pytest.raises(error) as caught:
            await manager.judge(*arguments, **{"language": "python", **options})
        assert message in str(caught.value)
        assert not faas.requests


async def test_an_infrastructure_failure_is_never_a_wrong_answer() -> None:
    """The error of one execution is the error of the judgement."""
    async with FakeFaaS() as faas, RuntimeManager.from_url(faas.url) as manager:
        faas.default = Reply.overloaded(retry_after=0)
        with pytest.raises(OverloadedError):
            await manager.judge("print(1)", DOUBLE, language="python")
        items = [item async for item in manager.map([CodeTask("print(1)", "python", tests=DOUBLE)])]
    assert isinstance(items[0], FailedTask)
    assert isinstance(items[0].error, OverloadedError)


async def test_a_task_with_tests_has_a_judgement(local: RuntimeManager) -> None:
    """The result of the item is that of the test that decided."""
    tasks = [
        CodeTask("print(int(input()) * 2)", "python", tests=DOUBLE),
        CodeTask("print(abs(int(input()) * 2))", "python", tests=DOUBLE),
        CodeTask("print(2.0)", "python", tests=[TestCase("", "2")], compare="floats"),
        CodeTask("print(-2)", "python", tests=DOUBLE, stop_on_failure=True),
    ]
    items = [item async for item in local.map(tasks, ordered=True)]
    found = []
    for item in items:
        assert isinstance(item, CompletedTask)
        assert item.judgement is not None
        found.append((item.result.outcome, item.result.stdout, item.judgement.score))
        assert item.to_dict()["judgement"]["score"] == item.judgement.score
    assert found[:3] == [(Outcome.OK, "-2\n", 1.0), (Outcome.OK, "2\n", 2 / 3), (Outcome.OK, "2.0\n", 1.0)]
    assert found[3] == (Outcome.OK, "-2\n", 0.0)
    assert items[3].judgement is not None
    assert [str(test.verdict) for test in items[3].judgement.results] == ["WRONG_ANSWER", "SKIPPED", "SKIPPED"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tests": []}, "tests must not be empty"),
        ({"tests": DOUBLE, "function": "f"}, "tests of a function must be FunctionTests"),
        ({"tests": [FunctionTest([1], 2)]}, "FunctionTests need the name of the function: pass function="),
        ({"tests": DOUBLE, "stdin": "a"}, "a task with tests must have no arguments, input or displays of its own"),
        (
            {"tests": [FunctionTest([1], 2)], "function": "f", "args": [1]},
            "a task with tests must have no arguments, input or displays of its own",
        ),
        ({"tests": [FunctionTest([1], 2)], "function": "f", "compare": "lines"}, "compare must be 'equal', 'alike'"),
        ({"compare": "x"}, "compare must be"),
        ({"function": "f", "argv": ["a"]}, "argv must be empty for a task with a function"),
        ({"function": "f", "collect": ["a"]}, "collect must be empty for a task with a function"),
        ({"function": "f", "displays": True}, "displays must be False for a task with a function"),
        ({"tests": DOUBLE, "displays": True}, "a task with tests must have no arguments, input or displays of its own"),
        ({"displays": 1}, "displays must be True or False, got 1"),
    ],
)
async def test_wrong_tasks_are_refused(options: dict[str, Any], message: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(InvalidRequestError, match=message):
        CodeTask("pass", "python", **options)


async def test_stopping_at_a_failure_ends_the_tests_in_flight(local: RuntimeManager) -> None:
    """Tests that still run when an earlier one fails are cancelled, so that the judgement need not wait for them."""
    code = "import time\nif input() == 'slow': time.sleep(25)\nprint('x')"
    tests = [TestCase("fast", "y"), TestCase("slow"), TestCase("slow")]
    judgement = await local.judge(code, tests, language="python", stop_on_failure=True)
    verdicts = [str(test.verdict) for test in judgement.results]
    assert verdicts == ["WRONG_ANSWER", "SKIPPED", "SKIPPED"]
    assert judgement.results[1].result is None


@pytest.mark.parametrize("end", ["fails", "fails and is cancelled", "is closed"])
async def test_the_caller_is_cancelled_after_a_judgement_only_if_it_was_cancelled_before(end: str) -> None:
    """A failing test, or closing the manager, does not count as a cancellation of the caller, nor hides one."""
    cancelled = end == "fails and is cancelled"
    async with FakeFaaS() as fake, RuntimeManager.from_url(fake.url, timeouts=TimeoutSettings(close_s=0.01)) as manager:
        failing = asyncio.Event()

        def compare(output: str, expected: str) -> bool:
            failing.set()
            raise ValueError(output)

        fake.script(Reply(hang=True), *[Reply(hang=True) if end == "is closed" else Reply()])

        async def judge() -> tuple[type[BaseException], int]:
            task = asyncio.current_task()
            assert task is not None
            try:
                await manager.judge("1", [TestCase(), TestCase()], language="py", compare=compare)
            except (FaasrtError, asyncio.CancelledError) as error:
                return type(error), task.cancelling()
            raise AssertionError("the judgement has a result")

        judging = asyncio.create_task(judge())
        if end == "is closed":
            await fake.wait_until(lambda: fake.in_flight == 2)
            await manager.aclose()
        else:
            await failing.wait()
        if cancelled:
            judging.cancel()
        expected = {"fails": CompareError, "is closed": RuntimeClosedError}.get(end, asyncio.CancelledError)
        assert await judging == (expected, cancelled)


async def test_tests_share_executions_on_a_server_that_starts_interpreters_slowly() -> None:
    """On python-faas, twelve tests need few executions. Each has its own input, output, verdict and namespace."""
    code = (
        "import sys\nseen = globals().get('seen', 0) + 1\ntext = sys.stdin.read()\n"
        "if text == 'exit': sys.exit(3)\nif text == 'raise': raise ValueError('x')\n"
        "print(seen, text, sys.argv[1:], open('a.txt').read() if text == 'file' else '')"
    )
    tests = [TestCase(str(number), f"1 {number} []") for number in range(8)]
    tests += [
        TestCase("exit"),
        TestCase("raise"),
        TestCase("file", "1 file ['x'] A", argv=["x"], files={"a.txt": "A"}),
        TestCase("other limit", "1 other limit []", timeout_ms=9_000),
    ]
    async with PythonFaas() as double, RuntimeManager.from_url({"python": double.url}) as manager:
        judgement = await manager.judge(code, tests, language="python", timeout_ms=10_000)
        assert double.executions == 2
    verdicts = [str(test.verdict) for test in judgement.results]
    assert verdicts == ["PASSED"] * 8 + ["USER_ERROR", "USER_ERROR", "PASSED", "PASSED"], judgement.results
    assert judgement.results[8].result is not None
    assert judgement.results[8].result.exit_code == 3


@pytest.mark.asyncio(loop_scope="function")
async def test_the_health_of_all_endpoints_is_requested_at_once(serve: Callable[..., Awaitable[str]]) -> None:
    """It says whether the tests should share executions. Endpoints that hang delay the first test only once."""
    waiting: set[str] = set()
    all_wait = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        if request.path == "/health":
            waiting.add(request.host)
            if len(waiting) == len(urls):
                all_wait.set()
            await all_wait.wait()
            waiting.discard(request.host)
        return web.json_response({"output": {"stdout": "1\n", "stderr": "", "ret_val": ""}})

    urls = [await serve(handler, "/{path:.*}") for _ in range(3)]
    async with RuntimeManager.from_url(urls, timeouts=TimeoutSettings(health_s=PATIENCE_S)) as manager:
        assert (await manager.judge("print(1)", [TestCase("", "1")], language="python")).passed
    assert all_wait.is_set()
