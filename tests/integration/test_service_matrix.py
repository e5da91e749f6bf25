"""Programs have the same results on every service: coze-loop's servers, SandboxFusion, Piston and the embedded FaaS,
even if the embedded FaaS is used as if it were SandboxFusion or Piston.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Mapping

import pytest

from faasrt import (
    AssertTest,
    FunctionTest,
    LimiterSettings,
    Outcome,
    RuntimeManager,
    SandboxConfig,
    ServiceError,
    Settings,
    TestCase,
    TimeoutSettings,
)
from faasrt.local import LocalFaaS
from support.doubles import JsFaas, PythonFaas
from support.doubles.piston import Piston
from support.doubles.sandboxfusion import SandboxFusion
from support.service_programs import (
    EMBEDDED,
    JAVASCRIPT,
    PYTHON,
    TIMEOUT_MS,
    Program,
    human_eval,
    summary,
)
from support.tables import block, first_of

pytestmark = pytest.mark.tables

# The embedded FaaS as the services whose protocols it speaks, by their URLs.
POSING = {"native as sandboxfusion": "sandboxfusion+{}/sandboxfusion", "native as piston": "piston+{}/piston/api/v2"}
SERVICES = first_of(["piston", "sandboxfusion", "coze-loop", *POSING, "native", "wasm"])
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")


@contextlib.asynccontextmanager
async def service(name: str, grace_s: float = 15) -> AsyncIterator[RuntimeManager]:
    """Yield a manager whose endpoints are doubles of a service, or the engine `deno` and one for Python."""
    sandbox = SandboxConfig(max_output_bytes=20_100)
    if name in EMBEDDED:
        settings = Settings(sandbox=sandbox)
        engines = {"python": name}
        async with RuntimeManager.local(["python", "js"], engines=engines, workers=2, settings=settings) as manager:
            yield manager
        return
    async with contextlib.AsyncExitStack() as stack:
        if name == "coze-loop":
            python, js = await stack.enter_async_context(PythonFaas()), await stack.enter_async_context(JsFaas())
            endpoints = {"python": python.url, "js": js.url}
        elif name in POSING:
            limits = SandboxConfig(timeout_limit_s=60)
            faas = await stack.enter_async_context(LocalFaaS(["python", "js"], workers=2, sandbox=limits))
            await asyncio.gather(faas.wait_ready("python"), faas.wait_ready("js"))
            endpoints = dict.fromkeys(("python", "js"), POSING[name].format(faas.url))
        else:
            double = SandboxFusion() if name == "sandboxfusion" else Piston(run_timeout=60_000, output_max_size=65_536)
            url = (await stack.enter_async_context(double)).url
            endpoints = {"python": url, "js": url}
        settings = Settings(
            endpoints=endpoints,
            sandbox=sandbox,
            limiter=LimiterSettings(max_concurrency=3),
            timeouts=TimeoutSettings(grace_s=grace_s, startup_s=0.1),
        )
        yield await stack.enter_async_context(RuntimeManager(settings=settings))


async def run_all(manager: RuntimeManager, programs: Mapping[str, Program], language: str) -> dict[str, str]:
    async def run(program: Program) -> str:
        try:
            return summary(await manager.run_code(program.code, language, timeout_ms=TIMEOUT_MS, **program.options))
        except ServiceError as error:
            return type(error).__name__

    found = await asyncio.gather(*(run(program) for program in programs.values()))
    return dict(zip(programs, found, strict=True))


def expected(programs: Mapping[str, Program], name: str) -> dict[str, str]:
    """Return the expected summaries. The embedded FaaS that poses as a service has those of the service."""
    name = name.rpartition(" ")[2]
    return {title: program.deviations.get(name, program.expected) for title, program in programs.items()}


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take long to start an interpreter, which is a part of the time limit of a service."""
    monkeypatch.setattr("faasrt.protocol.execution.KILL_MARGIN_MS", 8_000)


@pytest.mark.parametrize("name", SERVICES)
async def test_python(name: str, wasm_sandbox: None) -> None:
    """Each Python program has its one result, except for the documented deviations."""
    async with service(name) as manager:
        found = await run_all(manager, PYTHON, "python")
    assert found == expected(PYTHON, "python-faas" if name == "coze-loop" else name)


@needs_node
@pytest.mark.parametrize("name", SERVICES[:-1])  # "native" has run them with the engine `deno`
async def test_javascript(name: str) -> None:
    """Each JavaScript program has its one result, except for the documented deviations."""
    async with service(name) as manager:
        found = await run_all(manager, JAVASCRIPT, "js")
    assert found == expected(JAVASCRIPT, {"coze-loop": "js-faas", "native": "deno"}.get(name, name))


@needs_node
@pytest.mark.parametrize("name", POSING)
async def test_endless_programs_on_a_busy_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are TIMEOUT, not errors, although they wait for a CPU for longer than the grace time of the client."""
    monkeypatch.setattr("faasrt.protocol.execution.KILL_MARGIN_MS", 1_000)
    programs = [(PYTHON["long call of C code"], "python"), (JAVASCRIPT["endless loop in a callback"], "js")] * 2
    async with service(name, grace_s=2) as manager, contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            loop = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
            stack.push_async_callback(loop.wait)
            stack.callback(loop.kill)
        calls = [manager.run_code(program.code, language, timeout_ms=TIMEOUT_MS) for program, language in programs]
        assert [result.outcome for result in await asyncio.gather(*calls)] == [Outcome.TIMEOUT] * 4


async def call_all(manager: RuntimeManager) -> dict[str, object]:
    """Return what the calls of functions, cases and tests have returned."""
    python = {"language": "python", "timeout_ms": TIMEOUT_MS}
    js = {"language": "js", "timeout_ms": TIMEOUT_MS}
    code = block("""
        def f(n):
            if n == 2: raise KeyError(n)
            if n == 3: raise SystemExit(4)
            return {'n': n}
    """)
    cases = await manager.run_cases(code, "f", [(n,) for n in range(5)], **python)
    js_code = "function f(n) { if (n === 2) throw new Error('two'); if (n === 3) for (;;); return [n]; }"
    js_cases = await manager.run_cases(js_code, "f", [(n,) for n in range(5)], language="js", timeout_ms=400)
    tests = [TestCase("1", "2"), TestCase("2", "4"), TestCase("3", "7"), TestCase("", "")]
    judgement = await manager.judge("print(int(input()) * 2)", tests, **python)
    values = [0, [1, 1], (2, 2), 3, None, 5]
    function_tests = [FunctionTest([n], value) for n, value in enumerate(values)]
    python_code = "def f(n): return [n, [n, n], (n, n), {n}, sys.exit(0) if n == 4 else 0, n][n]\nimport sys"
    js_tested = "const f = (n) => [n, [n, n], [n, n], new Set([n]), undefined, n][n];"
    judged = await manager.judge(python_code, function_tests, function="f", **python)
    programs = ["assert f(2) == (2, 2)", "assert f(3) == {4}", "assert f(4)", "assert f(f(5)) == 5 and f(3) == {3}"]
    assert_tests = [AssertTest(program) for program in programs]
    asserted = await manager.judge(python_code, assert_tests, function="f", **python)
    js_judged = await manager.judge(js_tested, function_tests, function="f", compare="alike", **js)
    return {
        "function": (await manager.call_function("def add(a, b): return a + b", "add", [1], {"b": 2}, **python)).value,
        "async function": (await manager.call_function("async def f(): return '你'", "f", **python)).value,
        "missing function": (await manager.call_function("x = 1", "f", **python)).outcome.value,
        "cases": [(result.outcome.value, result.ret_val) for result in cases],
        "js function": (await manager.call_function("const add = (a, b) => a + b;", "add", [1, 2], **js)).value,
        "js export": (await manager.call_function("export const f = async () => 5;", "f", **js)).value,
        "js cases": [(result.outcome.value, result.ret_val) for result in js_cases],
        "verdicts": [str(verdict.verdict) for verdict in judgement.results],
        "verdicts on functions": [str(verdict.verdict) for verdict in judged.results],
        "verdicts of asserts": [str(verdict.verdict) for verdict in asserted.results],
        "js verdicts on functions": [str(verdict.verdict) for verdict in js_judged.results],
    }


CALLS = {
    "function": 3,
    "async function": "你",
    "missing function": "USER_ERROR",
    "cases": [("OK", '{"n": 0}'), ("OK", '{"n": 1}'), ("USER_ERROR", ""), ("USER_ERROR", ""), ("OK", '{"n": 4}')],
    "js function": 3,
    "js export": 5,
    "js cases": [("OK", "[0]"), ("OK", "[1]"), ("USER_ERROR", ""), ("TIMEOUT", ""), ("OK", "[4]")],
    "verdicts": ["PASSED", "PASSED", "WRONG_ANSWER", "USER_ERROR"],
    "verdicts on functions": ["PASSED", "PASSED", "PASSED", "USER_ERROR", "USER_ERROR", "PASSED"],
    "verdicts of asserts": ["PASSED", "WRONG_ANSWER", "USER_ERROR", "PASSED"],
    "js verdicts on functions": ["PASSED", "PASSED", "PASSED", "USER_ERROR", "PASSED", "PASSED"],
}


@needs_node
@pytest.mark.parametrize("name", SERVICES)
async def test_calls(name: str, wasm_sandbox: None) -> None:
    """Calls of functions, cases and tests have the same results on every service."""
    async with service(name) as manager:
        assert await call_all(manager) == CALLS


@pytest.mark.timeout(600)  # it runs 328 programs, on a machine that may be busy
@pytest.mark.parametrize("name", SERVICES)
async def test_human_eval(name: str, wasm_sandbox: None) -> None:
    """On every service, all canonical solutions of HumanEval pass their tests, and all wrong ones fail."""
    async with service(name) as manager:
        for body, outcome in ((None, Outcome.OK), ("    return None\n", Outcome.USER_ERROR)):
            tasks = human_eval(body)
            results = await asyncio.gather(*(manager.run_code(task["code"], "python") for task in tasks))
            outcomes = {task["id"]: result.outcome for task, result in zip(tasks, results, strict=True)}
            assert outcomes == dict.fromkeys(outcomes, outcome)
            assert len(outcomes) == 164
