"""Programs whose process is killed on reference servers, and servers that cannot start their interpreter."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from faasrt import ExecutionResult, Outcome, RuntimeManager, ServerError
from faasrt.results import ExecutionOutput
from faasrt.testing import FakeFaaS, Reply
from support.doubles import JsFaas, PythonFaas
from support.helpers import manager_for
from support.tables import first_of

# Deployments of js-faas: two versions, each also behind a gateway that forwards only `/run_code`.
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "docker-compose": {},
    "helm": {"version": "helm"},
    "docker-compose, no health": {"has_health": False},
    "helm, no health": {"version": "helm", "has_health": False},
}
LOOPS = {
    "loop": "while (true) {}",
    "loop after output": "console.log('said'); while (true) {}",
    "microtasks": "const f = () => Promise.resolve().then(f); f();",
    "async loop": "await 1; while (true) {}",
    "own return_val": "function return_val(v) { console.log(v); }\nwhile (true) {}",
}
CRASHES = {
    "SIGKILL": "Deno.kill(Deno.pid, 'SIGKILL'); await new Promise((r) => setTimeout(r, 60_000));",
    "SIGTERM": "Deno.kill(Deno.pid, 'SIGTERM'); await new Promise((r) => setTimeout(r, 60_000));",
    "abort": "process.abort();",
    "own return_val": (
        "function return_val(v) { console.log(v); }\n"
        "Deno.kill(Deno.pid, 'SIGKILL'); await new Promise((r) => setTimeout(r, 60_000));"
    ),
}
DYING = """
import ctypes, os
def die_silently():
    os.close(2)
    os.kill(os.getpid(), 9)
"""
NOTHING = ExecutionOutput("", "", "")


def outcomes(results: list[ExecutionResult]) -> list[str]:
    return [str(result.outcome) for result in results]


@pytest.mark.parametrize("deployment", first_of(list(DEPLOYMENTS)))
async def test_js_faas_timeouts_and_crashes_of_programs(deployment: str) -> None:
    """A program that runs until its time limit is a TIMEOUT, and any other crash is CRASHED. Neither has output."""
    async with JsFaas(**DEPLOYMENTS[deployment]) as js, manager_for(js.url) as manager:
        # TypeScript runs as JavaScript does, so two loops in it are enough.
        names = [*((name, "javascript") for name in LOOPS), ("loop", "typescript"), ("own return_val", "typescript")]
        loops = (manager.run_code(LOOPS[name], language, timeout_ms=300) for name, language in names)
        for case, result in zip(names, await asyncio.gather(*loops), strict=True):
            assert (result.outcome, result.output) == (Outcome.TIMEOUT, NOTHING), case
        deaths = (manager.run_code(code, "javascript", timeout_ms=20_000) for code in CRASHES.values())
        for name, result in zip(CRASHES, await asyncio.gather(*deaths), strict=True):
            assert (result.outcome, result.output) == (Outcome.CRASHED, NOTHING), name
        assert (await manager.run_code("console.log('next')", "javascript")).stdout == "next\n"


@pytest.mark.parametrize("deployment", first_of(["docker-compose", "helm, no health"]))
async def test_js_faas_timeouts_and_crashes_of_functions(deployment: str) -> None:
    """A function that loops is a TIMEOUT. A function that kills the process is CRASHED."""
    async with JsFaas(**DEPLOYMENTS[deployment]) as js, manager_for(js.url) as manager:
        runtime = await manager.get_runtime("javascript")
        loop = await runtime.call_function("const f = () => { while (true) {} };", "f", timeout_ms=300)
        assert (loop.outcome, loop.output) == (Outcome.TIMEOUT, NOTHING)
        code = f"const f = async () => {{ {CRASHES['SIGKILL']} }};"
        death = await runtime.call_function(code, "f", timeout_ms=20_000)
        assert (death.outcome, death.output) == (Outcome.CRASHED, NOTHING)
        kill = "const f = (n) => { if (n === 1) Deno.kill(Deno.pid, 'SIGKILL'); for (; n === 1; ); return n; };"
        for idempotent, expected in ((True, ["OK", "CRASHED", "OK"]), (False, ["CRASHED"] * 3)):
            results = await runtime.run_cases(kill, "f", [(0,), (1,), (2,)], timeout_ms=30_000, idempotent=idempotent)
            assert outcomes(results) == expected
            assert {result.output.stdout for result in results} == {""}


@pytest.mark.parametrize("deployment", first_of(["helm, no health", "docker-compose"]))
async def test_js_faas_timeouts_and_crashes_without_the_envelope(deployment: str) -> None:
    """If stdout is the report of the server's wrapper, the process crashed. The output is read from the report."""
    async with (
        JsFaas(**DEPLOYMENTS[deployment]) as js,
        manager_for(js.url, envelope="never") as manager,
    ):
        for then, timeout_ms, outcome in (
            ("while (true) {}", 3_000, Outcome.TIMEOUT),
            ("Deno.kill(Deno.pid, 'SIGKILL')", 30_000, Outcome.CRASHED),
            ("Deno.exit(3)", 30_000, Outcome.CRASHED),
        ):
            code = f"console.log('said'); setTimeout(() => {{ {then} }});"
            result = await manager.run_code(code, "javascript", timeout_ms)
            assert (result.outcome, result.stdout, result.ret_val) == (outcome, "said\n", "")


async def test_output_that_looks_like_the_report_is_kept() -> None:
    """With the envelope, a printed line in the format of the report is ordinary output."""
    line = '{"stdout":"","stderr":"","ret_val":""}'
    async with JsFaas() as js, manager_for(js.url) as manager:
        result = await manager.run_code(f"console.log('{line}'); console.log('x');", "javascript")
        assert (result.outcome, result.stdout) == (Outcome.OK, f"{line}\nx\n")


async def failures_of(manager: RuntimeManager, language: str, code: str) -> list[ServerError]:
    """Return the errors of `run_code`, `call_function` and `run_cases`."""
    runtime = await manager.get_runtime(language)
    failures = []
    for call in (
        manager.run_code(code, language),
        runtime.call_function(code, "f"),
        runtime.run_cases(code, "f", [(), ()]),
    ):
        with pytest.raises(ServerError, match="did not start its interpreter") as caught:
            await call
        failures.append(caught.value)
    return failures


@pytest.mark.parametrize("has_health", [True, False])
@pytest.mark.parametrize("broken", ["no driver", "silent"])
async def test_python_faas_cannot_start_its_interpreter(broken: str, has_health: bool, tmp_path: Path) -> None:
    """The answer is a 200 with exit code 1. It is a ServerError, and is not retried."""
    python = PythonFaas(driver=tmp_path / "main.ts", has_health=has_health)
    if broken == "silent":
        python.interpreter = "false"
    async with python, manager_for(python.url) as manager:
        failures = await failures_of(manager, "python", "def f(): return 1")
        assert python.executions == 3
    for failure in failures:
        assert (failure.status, failure.sent, failure.attempts) == (200, "yes", 1)
        expected = "no reason given" if broken == "silent" else "No such file or directory"
        assert expected in failure.details


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
async def test_js_faas_cannot_start_its_interpreter(deployment: str) -> None:
    """If Deno exits at once, the program did not run, so this is a ServerError."""
    js = JsFaas(**DEPLOYMENTS[deployment])
    js.interpreter = "false"
    async with js, manager_for(js.url) as manager:
        await failures_of(manager, "javascript", "const f = () => 1;")


@pytest.mark.parametrize("has_health", first_of([True, False]))
async def test_python_faas_crashes_of_programs(has_health: bool) -> None:
    """The guest program announced its start, so the crash is the outcome of the program, and no ServerError."""
    async with PythonFaas(has_health=has_health) as python, manager_for(python.url) as manager:
        runtime = await manager.get_runtime("python")
        for death in ("os.kill(os.getpid(), 9)", "ctypes.string_at(0)", "die_silently()"):
            code = DYING + death
            assert (await manager.run_code(code, "python")).outcome is Outcome.CRASHED
        code = """
import os
def f(n):
    if n == 1:
        os.kill(os.getpid(), 9)
    return n
"""
        assert outcomes(await runtime.run_cases(code, "f", [(0,), (1,), (2,)])) == ["OK", "CRASHED", "OK"]
        assert (await runtime.call_function(code, "f", [1])).outcome is Outcome.CRASHED
        assert (await runtime.call_function(code, "f", [2])).value == 2


@pytest.mark.parametrize("has_health", [True, False])
async def test_a_slow_start_is_no_timeout(has_health: bool, tmp_path: Path) -> None:
    """The duration that the server reports includes the start of the interpreter, which can exceed the time limit."""
    async with PythonFaas(has_health=has_health, start_up_s=0.5) as python, manager_for(python.url) as manager:
        code = "import os\nos.close(2)\nos.kill(os.getpid(), 9)"
        assert (await manager.run_code(code, "python", timeout_ms=300)).outcome is Outcome.CRASHED
        python.interpreter = "false"
        with pytest.raises(ServerError, match="did not start its interpreter"):
            await manager.run_code("1", "python", timeout_ms=300)


@pytest.mark.parametrize(("language", "state"), [("javascript", "closed"), ("python", "open")])
async def test_missing_start_opens_the_breaker_only_for_python(language: str, state: str) -> None:
    """A JavaScript program can forge the answer of its server, so such answers must not stop the calls of others."""
    metadata = {"language": language, "status": "success", "exit_code": 1, "duration": 5}
    if language == "python":
        metadata["runtime"] = "pyodide-deno"
    body = {"output": {"stdout": "", "stderr": "", "ret_val": ""}, "metadata": metadata}
    async with FakeFaaS() as faas, manager_for(faas.url, envelope="always") as manager:
        faas.default = Reply(body=json.dumps(body).encode())
        for _ in range(6):
            with pytest.raises(ServerError, match="did not start its interpreter"):
                await manager.run_code("1", language)
        assert manager.get_metrics().states[0].breaker == state


async def test_recursion_limit_on_python_faas() -> None:
    """The limit is 1,000, the default of CPython, instead of the server's 400."""
    async with PythonFaas() as python, manager_for(python.url) as manager:
        code = """
import sys
def f(n): return n and f(n - 1)
print(sys.getrecursionlimit())
f(900)
f(1000)
"""
        result = await manager.run_code(code, "python")
        assert result.stdout == "1000\n"
        assert result.error is not None
        assert (result.outcome, result.error.name) == (Outcome.USER_ERROR, "RecursionError")
        assert "line 6, in <module>" in result.stderr
        runtime = await manager.get_runtime("python")
        code = "def f(n): return n and 1 + f(n - 1)"
        results = await runtime.run_cases(code, "f", [(900,), (1_000,), (950,)])
        assert outcomes(results) == ["OK", "USER_ERROR", "OK"]
        raised = """
import sys
sys.setrecursionlimit(5000)
def f(n): return n and f(n - 1)
print(f(4000))
"""
        assert (await manager.run_code(raised, "python")).stdout == "0\n"
        deep = """
import sys
sys.setrecursionlimit(5000)
def f(n):
    if n:
        f(n - 1)
    while True:
        pass
f(3000)
"""
        assert (await manager.run_code(deep, "python", timeout_ms=300)).outcome is Outcome.TIMEOUT
