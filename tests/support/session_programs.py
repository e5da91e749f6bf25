"""Programs of sessions, with the results that they have in all Python engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import attrs

from faasrt import Language, Outcome
from faasrt.inputs import ProgramInput
from faasrt.local.engines.engine import Engine, EngineJob, EngineResult
from faasrt.local.engines.live_output import LiveOutput
from faasrt.local.engines.session import EngineSession, EngineSessionOptions
from faasrt.protocol.execution_limits import ExecutionLimits

LIMITS = ExecutionLimits(timeout_ms=60_000, memory_limit_mb=128, max_output_bytes=100_000)


@contextlib.asynccontextmanager
async def closing(session: EngineSession) -> AsyncIterator[EngineSession]:
    try:
        yield session
    finally:
        await session.aclose()


@contextlib.asynccontextmanager
async def opened(engine: Engine, files: Mapping[str, bytes] | None = None) -> AsyncIterator[EngineSession]:
    options = EngineSessionOptions(language=Language.PYTHON, limits=LIMITS, files=files or {})
    async with closing(await engine.open_session(options)) as session:
        yield session


async def run(
    session: EngineSession, code: str, *, timeout_ms: float = 60_000, max_output_bytes: int = 100_000, stdin: str = ""
) -> EngineResult:
    """Run a program in a session of an engine."""
    limits = attrs.evolve(LIMITS, timeout_ms=timeout_ms, max_output_bytes=max_output_bytes)
    program_input = ProgramInput(stdin=stdin.encode())
    return await session.run(EngineJob(language=Language.PYTHON, code=code, limits=limits, input=program_input))


async def until_printed(session: EngineSession, code: str) -> asyncio.Task[EngineResult]:
    """Start a program that prints something, and wait until it has done so."""
    live = LiveOutput()
    job = EngineJob(language=Language.PYTHON, code=code, limits=LIMITS, live=live)
    running = asyncio.create_task(session.run(job))
    assert await live.take() is not None
    return running


def texts(result: EngineResult) -> list[str]:
    """Return the texts of the displays of a program."""
    return [display.text for display in result.displays]


@attrs.frozen
class Cell:
    """One run, and a part of its result.

    Attributes:
        code: The program.
        shows: The texts of its displays; None for any.
        stdout: Its output; None for any.
        outcome: Its outcome.
        error: The name of its exception, or "".
        stderr: Lines that stderr contains.
        stdin: Its input.
        timeout_ms: Its time limit.
    """

    code: str
    shows: Sequence[str] | None = attrs.field(default=(), kw_only=True)
    stdout: str | None = attrs.field(default="", kw_only=True)
    outcome: Outcome = attrs.field(default=Outcome.OK, kw_only=True)
    error: str = attrs.field(default="", kw_only=True)
    stderr: Sequence[str] = attrs.field(default=(), kw_only=True)
    stdin: str = attrs.field(default="", kw_only=True)
    timeout_ms: float = attrs.field(default=60_000, kw_only=True)

    async def check(self, session: EngineSession) -> None:
        """Run it, and check its result."""
        result = await run(session, self.code, timeout_ms=self.timeout_ms, stdin=self.stdin)
        found = (result.outcome, result.error.name if result.error else "")
        why = (self.code, result.stdout[:1000], result.stderr[-1000:])
        assert found == (self.outcome, self.error), why
        assert self.stdout in (None, result.stdout), why
        assert self.shows is None or texts(result) == [*self.shows], why
        assert [line for line in self.stderr if line not in result.stderr.splitlines()] == [], why


def fails(code: str, error: str, *stderr: str) -> Cell:
    return Cell(code, outcome=Outcome.USER_ERROR, error=error, stderr=stderr)


def interrupted(code: str) -> Cell:
    return Cell(code, outcome=Outcome.TIMEOUT, timeout_ms=300, stdout=None)


PROGRAMS: dict[str, list[Cell]] = {
    "variables": [Cell("x = 41"), Cell("x + 1", shows=["42"]), Cell("_", shows=["42"]), Cell("x + 1;")],
    "None shows nothing": [Cell("None"), Cell("print(1)", stdout="1\n"), Cell("")],
    "functions and imports": [
        Cell("import math\ndef area(r):\n    return math.floor(math.pi * r * r)"),
        Cell("print(area(2))\narea(1)", stdout="12\n", shows=["3"]),
    ],
    "future imports": [
        Cell("from __future__ import annotations"),
        Cell("def f(a: unknown): pass\nf.__annotations__", shows=["{'a': 'unknown'}"]),
    ],
    "the working folder": [
        Cell("import os\nos.mkdir('a'); os.chdir('a'); open('b', 'w').close()"),
        Cell("os.listdir()", shows=["['b']"]),
    ],
    "open files": [
        Cell("file = open('a', 'w+'); file.write('one ')", shows=["4"]),
        Cell("file.write('two'); file.seek(0); file.read()", shows=["'one two'"]),
    ],
    "tracebacks": [
        Cell("def f():\n    return 1 / 0"),
        fails(
            "\nf()", "ZeroDivisionError", '  File "<cell 2>", line 2, in <module>', '  File "<cell 1>", line 2, in f'
        ),
        fails("f()", "ZeroDivisionError", '  File "<cell 3>", line 1, in <module>', "    return 1 / 0"),
    ],
    "syntax errors": [
        Cell("\na b", outcome=Outcome.SYNTAX_ERROR, error="SyntaxError", stderr=['  File "<cell 1>", line 2']),
        Cell("\nreturn 5", outcome=Outcome.SYNTAX_ERROR, error="SyntaxError", stderr=["    return 5"]),
        Cell("1", shows=["1"]),
    ],
    "exits": [
        fails("import sys; sys.exit(3)", "SystemExit"),
        fails("sys.exit('why')", "SystemExit", "why"),
        Cell("sys.exit()"),
        Cell("sys.version_info > (3,)", shows=["True"]),
    ],
    "stdin": [
        Cell("input()", stdin="a\nb\n", shows=["'a'"]),
        Cell("input()", stdin="c\n", shows=["'c'"]),
        fails("input()", "EOFError"),
        Cell("import sys; [*sys.stdin]", stdin="d\ne", shows=["['d\\n', 'e']"]),
    ],
    "top-level await": [
        Cell("import asyncio\nqueue = asyncio.Queue()"),
        Cell("async def work():\n    await queue.put(await asyncio.sleep(0, 5))"),
        Cell("task = asyncio.create_task(work()); await asyncio.sleep(0)"),
        Cell("await queue.get()", shows=["5"]),
        Cell("asyncio.run(asyncio.sleep(0, 6))", shows=["6"]),
        fails("await asyncio.sleep(0)\n1 / 0", "ZeroDivisionError", '  File "<cell 6>", line 2, in <module>'),
    ],
    "display": [
        Cell("display(1, 'a')\n2", shows=["1", "'a'", "2"]),
        Cell("display()"),
        Cell("[display(n) for n in (1, 2)];", shows=["1", "2"]),
    ],
    "time limits": [
        Cell("x = 1"),
        interrupted("while True: pass"),
        interrupted("import time\ntime.sleep(60)"),
        interrupted("import asyncio\nawait asyncio.sleep(60)"),
        interrupted("import re\nre.match('(a+)+b', 'a' * 40)"),
        interrupted("class A:\n    def __repr__(self):\n        while True: pass\nA()"),
        Cell("x", shows=["1"]),
    ],
    "memory errors": [
        Cell("x = 1"),
        Cell("bytearray(10**9)", outcome=Outcome.MEMORY_LIMIT, stderr=["MemoryError"]),
        Cell("raise MemoryError", outcome=Outcome.MEMORY_LIMIT),
        Cell("x", shows=["1"]),
    ],
    "deep recursion": [
        fails("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        Cell("f.__name__", shows=["'f'"]),
    ],
    "output floods": [
        Cell("print('x' * 10**7)\nwhile True: print('x' * 1000)", outcome=Outcome.OUTPUT_LIMIT, stdout=None),
        Cell("import sys\nwhile True: sys.stderr.write('x' * 1000)", outcome=Outcome.OUTPUT_LIMIT),
        Cell("print(1)", stdout="1\n"),
    ],
}
"""Programs that an ordinary user may run, one after another in a session of their own."""

HOSTILE: dict[str, list[Cell]] = {
    "changed streams": [
        Cell("import sys\nprint(1)\nsys.stdout = sys.stderr = sys.stdin = None", stdout="1\n"),
        Cell("print(input())", stdin="2\n", stdout="2\n"),
        Cell("class Bad:\n    def flush(self): raise SystemExit\n    write = None\nsys.stdout = Bad()"),
        Cell("print(3)", stdout="3\n"),
        Cell("sys.stdout.close(); sys.stderr.close(); sys.stdin.close()"),
        Cell("print(input())", stdin="4\n", stdout="4\n"),
        Cell("sys.stdout.detach()", shows=None),
        Cell("print(5)", stdout="5\n"),
    ],
    "patched builtins": [
        Cell("import builtins\nx = 1\nsaved = dict(vars(builtins))"),
        Cell(
            "for name in 'repr len isinstance type str int getattr open compile exec eval list dict print'.split():\n"
            "    setattr(builtins, name, None)"
        ),
        Cell("x", shows=None),
        Cell("builtins.__dict__.update(saved)"),
        Cell("x + 1", shows=["2"]),
    ],
    "hooks": [
        Cell("import sys\ndef hook(*a): raise ValueError('mine')\nx = 1"),
        Cell("sys.excepthook = sys.displayhook = sys.unraisablehook = hook"),
        Cell("x", shows=["1"]),
        Cell("sys.settrace(lambda *a: None)"),
        Cell("x", shows=["1"]),
        Cell("sys.setprofile(lambda *a: None)"),
        Cell("x", shows=["1"]),
    ],
    "signal handlers": [
        Cell("import signal\nx = 1\nsignal.signal(signal.SIGINT, signal.SIG_IGN);"),
        interrupted("while True: pass"),
        Cell("x", shows=["1"]),
    ],
    "modules": [
        Cell(
            "import sys\nx = 1\n"
            "for name in ('json', 'traceback', 'linecache', '__main__', 'asyncio'): sys.modules.pop(name, None)"
        ),
        Cell("x", shows=["1"]),
        fails("1 / 0", "ZeroDivisionError"),
    ],
    "atexit and finalizers": [
        Cell("import atexit\natexit.register(print, 'bye');", shows=None),
        Cell("class A:\n    def __del__(self): print('gone')\na = A()"),
        Cell("del a", stdout="gone\n"),
    ],
    "return_val": [
        Cell("return_val = print"),
        Cell("return_val('x')", stdout="x\n"),
        Cell("del return_val\n1", shows=["1"]),
        Cell("2", shows=["2"]),
    ],
    "exceptions that fail": [
        fails("class E(Exception):\n    def __str__(self): raise E\nraise E", "E"),
        fails("class F(BaseException): pass\nraise F", "F"),
        Cell("class R:\n    def __repr__(self): raise ValueError\nR()", shows=None),
        Cell("1", shows=["1"]),
    ],
}
"""Programs that leave something behind which could break later programs of the same session."""
