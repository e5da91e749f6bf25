"""The guest program in the interpreter that python-faas has: Pyodide, where signals, exits and threads are others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from faasrt import ExecutionResult, LimiterSettings, Outcome, RuntimeManager, Settings, TimeoutSettings
from support.doubles import PyodideFaas

SLEEPY = "import time\nprint('on')\ntime.sleep(100)"
CATCHING = "n = 0\nwhile True:\n    try:\n        while True: n += 1\n    except BaseException: print('caught')"
PROGRAMS: dict[str, tuple[Outcome, str, str]] = {
    # code: outcome, stdout, what stands in stderr
    "print('a')\nprint({'a': 1})  # don't\nprint('b')": (Outcome.OK, "a\n{'a': 1}\nb\n", ""),
    "import sys\nprint('e', file=sys.stderr)\ndef f():\n    return 1 / 0\nf()": (
        Outcome.USER_ERROR,
        "",
        'File "main.py", line 4, in f',
    ),
    "print('on')\nwhile True: pass": (Outcome.TIMEOUT, "on\n", ""),
    SLEEPY: (Outcome.TIMEOUT, "on\n", ""),
    CATCHING: (Outcome.TIMEOUT, "caught\n" * 10, ""),
    "import sys\nprint('x')\nsys.exit(3)": (Outcome.USER_ERROR, "x\n", ""),
    "import os\nprint('x')\nos._exit(3)": (Outcome.CRASHED, "x\n", ""),
    "import sys\nsys.setrecursionlimit(10**6)\ndef f(): f()\nf()": (Outcome.CRASHED, "", "pyodide_fatal_error"),
    "def f(:": (Outcome.SYNTAX_ERROR, "", "SyntaxError: invalid syntax"),
    "import asyncio\nprint(await asyncio.sleep(0.01, 'awaited'))": (Outcome.OK, "awaited\n", ""),
    "import asyncio\nasync def main():\n    await asyncio.sleep(0.01)\n    print(5)\nasyncio.run(main())": (
        Outcome.OK,
        "5\n",
        "",
    ),
    "class A:\n    def __del__(self):\n        print('del')\n        raise ValueError\na = A()": (
        Outcome.OK,
        "del\n",
        "ValueError",
    ),
    "import threading\nthreading.Thread(target=print).start()": (Outcome.USER_ERROR, "", "can't start new thread"),
    "import os, sys\nos.write(1, b'raw\\n')\nsys.stdout.buffer.write(b'\\xf0\\x9f\\x8c\\x8d')\nprint('\\ud800')": (
        Outcome.OK,
        "raw\n🌍\ud800\n",
        "",
    ),
    "import sys\nprint('a')\nsys.stdout.close()": (Outcome.OK, "a\n", ""),
    "import builtins\nprint('a')\ndel builtins.len, builtins.isinstance, builtins.print": (Outcome.OK, "a\n", ""),
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


@pytest.mark.timeout(300)
async def test_programs_in_pyodide(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Exact results, honest verdicts, an end to loops, and cases that go on after a crash."""
    deno_dir: Path = tmp_path_factory.mktemp("deno")
    async with PyodideFaas(deno_dir, slots=2) as pyodide:
        # Two cores start an interpreter in two seconds each; busy ones take longer.
        settings = Settings(
            endpoints={"python": pyodide.url},
            timeouts=TimeoutSettings(startup_s=250),
            limiter=LimiterSettings(queue_timeout_s=250),
        )
        async with RuntimeManager(settings=settings) as manager:
            assert (await manager.run_code("print('fetched')", "python")).stdout == "fetched\n"
            runtime = await manager.get_runtime("python")
            turns = ["a", "loop", "b", "hard", "c", "crash", "d"]
            cases = asyncio.create_task(runtime.run_cases(CASES, "f", [(turn,) for turn in turns], timeout_ms=1_000))
            results: list[ExecutionResult] = await asyncio.gather(
                *(manager.run_code(code, "python", timeout_ms=1_000) for code in PROGRAMS)
            )
            for result, (code, (outcome, stdout, stderr)) in zip(results, PROGRAMS.items(), strict=True):
                assert (result.outcome, result.stdout) == (outcome, stdout), (code, result)
                assert stderr in result.stderr
            verdicts = ["OK", "TIMEOUT", "OK", "CRASHED", "OK", "CRASHED", "OK"]
            assert [result.outcome for result in await cases] == verdicts
            assert [result.value for result in cases.result() if result.ok] == ["a", "b", "c", "d"]
            assert pyodide.executions == len(PROGRAMS) + 1 + 4
