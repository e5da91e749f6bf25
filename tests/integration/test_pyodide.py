"""The guest program in Pyodide, the interpreter of python-faas, where signals, exits and threads differ."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from faasrt import Outcome, RuntimeManager, Settings, TimeoutSettings
from support.doubles import PyodideFaas
from support.input_programs import PROGRAMS as INPUT_PROGRAMS, encode_inputs, run_whole_cases
from support.tables import block

pytestmark = [pytest.mark.pyodide, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300, func_only=True)]

SLEEPY = block("""
    import time
    print('on')
    time.sleep(100)
""")
CATCHING = block("""
    n = 0
    while True:
        try:
            while True: n += 1
        except BaseException: print('caught')
""")
PROGRAMS: dict[str, tuple[Outcome, str, str]] = {
    # code: (outcome, stdout, part of stderr)
    block("""
        print('a')
        print({'a': 1})  # don't
        print('b')
    """): (Outcome.OK, "a\n{'a': 1}\nb\n", ""),
    block("""
        import sys
        print('e', file=sys.stderr)
        def f():
            return 1 / 0
        f()
    """): (
        Outcome.USER_ERROR,
        "",
        'File "main.py", line 4, in f',
    ),
    block("""
        print('on')
        while True: pass
    """): (Outcome.TIMEOUT, "on\n", ""),
    SLEEPY: (Outcome.TIMEOUT, "on\n", ""),
    block("""
        import asyncio
        print('on')
        await asyncio.sleep(100)
    """): (Outcome.TIMEOUT, "on\n", ""),
    block("""
        import asyncio
        print('on')
        asyncio.run(asyncio.sleep(100))
    """): (Outcome.TIMEOUT, "on\n", ""),
    block("""
        import asyncio
        async def f():
            while True: await asyncio.sleep(0)
        print('on')
        await f()
    """): (
        Outcome.TIMEOUT,
        "on\n",
        "",
    ),
    # Most of the time is that of Pyodide's event loop itself, in which no exception can be raised.
    block("""
        import asyncio
        loop = asyncio.get_running_loop()
        print('on')
        while True:
            for _ in range(300): loop.call_soon(int).cancel()
            await asyncio.sleep(0)
    """): (Outcome.TIMEOUT, "on\n", ""),
    CATCHING: (Outcome.TIMEOUT, "caught\n" * 10, ""),
    block("""
        import sys
        print('x')
        sys.exit(3)
    """): (Outcome.USER_ERROR, "x\n", ""),
    block("""
        import os
        print('x')
        os._exit(3)
    """): (Outcome.CRASHED, "x\n", ""),
    block("""
        import sys
        sys.setrecursionlimit(10**6)
        def f(): f()
        f()
    """): (Outcome.CRASHED, "", "pyodide_fatal_error"),
    "def f(:": (Outcome.SYNTAX_ERROR, "", "SyntaxError: invalid syntax"),
    block("""
        import asyncio
        print(await asyncio.sleep(0.01, 'awaited'))
    """): (Outcome.OK, "awaited\n", ""),
    block("""
        import asyncio
        async def main():
            await asyncio.sleep(0.01)
            print(5)
        asyncio.run(main())
    """): (
        Outcome.OK,
        "5\n",
        "",
    ),
    block("""
        class A:
            def __del__(self):
                print('del')
                raise ValueError
        a = A()
    """): (
        Outcome.OK,
        "del\n",
        "ValueError",
    ),
    block("""
        import threading
        threading.Thread(target=print).start()
    """): (Outcome.USER_ERROR, "", "can't start new thread"),
    block(r"""
        import os, sys
        os.write(1, b'raw\n')
        sys.stdout.buffer.write(b'\xf0\x9f\x8c\x8d')
        print('\ud800')
    """): (
        Outcome.OK,
        "raw\n🌍\ud800\n",
        "",
    ),
    block("""
        import sys
        print('a')
        sys.stdout.close()
    """): (Outcome.OK, "a\n", ""),
    block("""
        import builtins
        print('a')
        del builtins.len, builtins.isinstance, builtins.print
    """): (Outcome.OK, "a\n", ""),
}
CASES = """
import os
def f(x):
    if x == "loop":
        while True: pass
    if x == "hard":
        os._exit(4)
    if x == "crash":
        import sys
        sys.setrecursionlimit(10**6)
        def g(): g()
        g()
    return x
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pyodide(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[PyodideFaas, RuntimeManager]]:
    """Yield a server that has fetched Pyodide, and a manager for it."""
    async with PyodideFaas(tmp_path_factory.mktemp("deno"), slots=2) as faas:
        # An interpreter starts in two seconds, but takes longer on a busy machine.
        settings = Settings(endpoints={"python": faas.url}, timeouts=TimeoutSettings(startup_s=250))
        async with RuntimeManager(settings=settings) as manager:
            assert (await manager.run_code("print('fetched')", "python")).stdout == "fetched\n"
            yield faas, manager


@pytest.mark.parametrize("code", PROGRAMS)
async def test_programs_in_pyodide_have_exact_results(pyodide: tuple[PyodideFaas, RuntimeManager], code: str) -> None:
    """Outcome and output are right, and endless loops are stopped."""
    outcome, stdout, stderr = PROGRAMS[code]
    result = await pyodide[1].run_code(code, "python", timeout_ms=1_000)
    assert (result.outcome, result.stdout) == (outcome, stdout), result
    assert stderr in result.stderr


@pytest.mark.parametrize("name", INPUT_PROGRAMS)
async def test_programs_in_pyodide_have_input(pyodide: tuple[PyodideFaas, RuntimeManager], name: str) -> None:
    """Output and collected files are the same as on other servers."""
    program = INPUT_PROGRAMS[name]
    result = await pyodide[1].run_code(program.code, "python", **program.options)
    assert result.outcome is program.outcome, result
    if program.outcome is not Outcome.OUTPUT_LIMIT:
        assert (result.stdout, "files" in result.truncated) == (program.stdout, program.truncated), result
    assert {path: data for path, data in result.files.items() if "__pycache__" not in path} == program.files


async def test_cases_in_pyodide_continue_after_a_crash(pyodide: tuple[PyodideFaas, RuntimeManager]) -> None:
    """Each case that stops its execution costs one more execution."""
    faas, manager = pyodide
    before = faas.executions
    runtime = await manager.get_runtime("python")
    turns = ["a", "loop", "b", "hard", "c", "crash", "d"]
    results = await runtime.run_cases(CASES, "f", [(turn,) for turn in turns], timeout_ms=5_000)
    assert [result.outcome for result in results] == ["OK", "TIMEOUT", "OK", "CRASHED", "OK", "CRASHED", "OK"]
    assert [result.value for result in results if result.ok] == ["a", "b", "c", "d"]
    assert faas.executions == before + 4


async def test_whole_programs_run_as_cases_in_pyodide(pyodide: tuple[PyodideFaas, RuntimeManager]) -> None:
    """One interpreter runs all cases. A case at its time limit ends the execution."""
    code = block("""
        import os, sys, part
        assert not os.path.exists('out')
        open('out', 'w').close()
        print(input(), part.name, sys.argv)
        if part.name == 2:
            while True: pass
        sys.exit(part.name)
    """)
    inputs = [{"stdin": f"in{n}", "argv": [str(n)], "files": {"part.py": f"name = {n}"}} for n in range(4)]
    response = await run_whole_cases(pyodide[0].url, code, encode_inputs(*inputs), timeout_ms=1_000)
    results = [response.result_of(index) for index in response.answer.report.records]
    assert [result.outcome for result in results] == ["OK", "USER_ERROR", "TIMEOUT"]
    assert [result.stdout for result in results] == [f"in{n} {n} ['main.py', '{n}']\n" for n in range(3)]
