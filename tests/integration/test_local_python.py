"""Python in the embedded FaaS, on both engines."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from faasrt import ExecutionResult, Language, Outcome, RuntimeManager, SandboxConfig
from faasrt.local.engines.engine import Engine, EngineJob, EngineOptions
from faasrt.local.engines.native.engine import NativeEngine
from faasrt.local.engines.wasm.engine import WasmEngine
from faasrt.protocol.envelope import PYTHON_BEGINNING
from faasrt.protocol.execution_limits import ExecutionLimits
from support.helpers import skip_without, until_active
from support.levels import NATIVE
from support.tables import block

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def run(manager: RuntimeManager, code: str, timeout_ms: float = 10_000, **limits: object) -> ExecutionResult:
    return await manager.run_code(code, "python", timeout_ms, sandbox=SandboxConfig(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("print(6 * 7)", "42\n"),
        (
            block("""
                print('a')
                print('b', end='')
            """),
            "a\nb",
        ),
        ("# don't swallow\nprint(\"it's\")\nprint('''x\n\ty''')", "it's\nx\n\ty\n"),
        ("print('你好 🌍 é')", "你好 🌍 é\n"),
        ("print({'a': 1})", "{'a': 1}\n"),
        ("print(__name__, '__file__' in globals())", "__main__ True\n"),
        ("import sys; print(sys.argv, sys.stdin.read() == '')", "['main.py'] True\n"),
        (
            block("""
                import inspect
                def f(): return 1
                print(inspect.getsource(f), end='')
            """),
            "def f(): return 1\n",
        ),
        (
            block("""
                import pickle
                class A: pass
                print(type(pickle.loads(pickle.dumps(A()))) is A)
            """),
            "True\n",
        ),
        (
            block("""
                class A:
                  def __del__(self): print('bye')
                a = A()
            """),
            "bye\n",
        ),
        ("import atexit; atexit.register(print, 'at exit')", "at exit\n"),
        ("import os; os.close(1); os.close(2)", ""),
        ("import sys; sys.stdout.close(); sys.stderr.close()", ""),
        ("print('\\ud800')", "\ud800\n"),
        ("raise SystemExit", ""),
        ("raise SystemExit(0)", ""),
    ],
)
async def test_programs_run_to_their_end(python: RuntimeManager, code: str, stdout: str) -> None:
    """Output arrives unchanged, and exit code 0 is OK."""
    result = await run(python, code)
    assert (result.outcome, result.stdout, result.stderr, result.exit_code) == (Outcome.OK, stdout, "", 0)
    pool = result.metadata["pool_stats"]
    assert pool["totalInstances"] == pool["idleInstances"] + pool["activeInstances"]
    assert result.duration_ms is not None


ENVIRONMENTS = {
    "native": "HOME JE_ARROW_MALLOC_CONF LANG OMP_NUM_THREADS OPENBLAS_NUM_THREADS PATH PYTHONHASHSEED TMPDIR",
    "wasm": "HOME PYTHONTZPATH TMPDIR",
}


async def test_the_guest_program_is_the_same_when_it_is_compiled_in_advance(python: RuntimeManager) -> None:
    """The engines compile the lines in advance with which programs begin that call functions. Names and line numbers
    are the same as in a program whose lines are different only by a comment.
    """
    end = "print(_faasrt['main'].__code__.co_filename, sorted(globals()))\n1 / 0"
    results = [await run(python, text + end) for text in (PYTHON_BEGINNING, f"{PYTHON_BEGINNING[:-1]}  #\n")]
    assert "_faasrt" in results[0].stdout
    assert results[0].stdout == results[1].stdout
    assert all('File "main.py", line 4' in result.stderr for result in results)


async def test_a_program_sees_only_the_environment_of_its_engine(python: RuntimeManager, engine: str) -> None:
    """It has none of the server's environment variables."""
    result = await run(python, "import os; print(*sorted(os.environ))")
    assert result.stdout == ENVIRONMENTS[engine] + "\n"


@pytest.mark.parametrize(
    ("package", "code", "output"),
    [
        ("numpy", "import numpy as np; print(np.arange(10).sum())", "45"),
        ("pandas", "import pandas as pd; print(pd.DataFrame({'a': [1, 2]}).a.mean())", "1.5"),
        ("scipy", "import scipy.linalg; print(round(scipy.linalg.det([[1, 2], [3, 4]]), 6))", "-2.0"),
        (
            "sympy",
            "import sympy; x = sympy.Symbol('x'); print(sympy.integrate(x**2), sympy.sqrt(8))",
            "x**3/3 2*sqrt(2)",
        ),
    ],
)
async def test_scientific_packages_work(
    python: RuntimeManager, engine: str, package: str, code: str, output: str
) -> None:
    """The package can be imported within the default memory limit and gives the right result."""
    if engine == "native":
        skip_without(package)
    result = await run(python, code, 30_000)
    assert (result.outcome, result.stdout) == (Outcome.OK, f"{output}\n")


async def test_asyncio_works(python: RuntimeManager) -> None:
    """sleep, gather, wait_for, TaskGroup, queues and top-level await work without sockets or threads."""
    code = """
import asyncio
async def main():
    async def one(i):
        await asyncio.sleep(0.01 * i)
        return i
    print(await asyncio.gather(one(2), one(1)))
    try:
        await asyncio.wait_for(asyncio.sleep(10), 0.01)
    except TimeoutError:
        print("timed out")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(one(3))
    queue = asyncio.Queue()
    asyncio.get_running_loop().call_later(0.01, queue.put_nowait, "later")
    print(task.result(), await queue.get())
asyncio.run(main())
asyncio.run(main())
"""
    result = await run(python, code)
    assert (result.outcome, result.stdout) == (Outcome.OK, "[2, 1]\ntimed out\n3 later\n" * 2)
    result = await run(
        python,
        block("""
            import asyncio
            x = await asyncio.sleep(0.01, 'awaited')
            print(x)
        """),
    )
    assert (result.outcome, result.stdout) == (Outcome.OK, "awaited\n")


@pytest.mark.parametrize(
    ("code", "outcome", "name", "line"),
    [
        (
            block("""
                def f():
                    return 1 / 0

                f()
            """),
            Outcome.USER_ERROR,
            "ZeroDivisionError",
            'File "main.py", line 2, in f',
        ),
        (
            block("""
                def f(): f()
                f()
            """),
            Outcome.USER_ERROR,
            "RecursionError",
            'File "main.py", line 1, in f',
        ),
        ("input()", Outcome.USER_ERROR, "EOFError", 'File "main.py", line 1'),
        ("raise KeyboardInterrupt", Outcome.USER_ERROR, "KeyboardInterrupt", 'File "main.py", line 1'),
        ("raise ExceptionGroup('g', [ValueError(1)])", Outcome.USER_ERROR, "ExceptionGroup", "ValueError: 1"),
        (
            block("""
                async def f():
                    raise OSError('no')
                await f()
            """),
            Outcome.USER_ERROR,
            "OSError",
            "line 2, in f",
        ),
        ("exec('1/0')", Outcome.USER_ERROR, "ZeroDivisionError", 'File "<string>", line 1'),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", Outcome.USER_ERROR, "", "main.py"),
        ("open('/etc/shadow')", Outcome.USER_ERROR, "FileNotFoundError", "main.py"),
        ("import subprocess; subprocess.run(['no-such'])", Outcome.USER_ERROR, "", "main.py"),
        ("def f(:", Outcome.SYNTAX_ERROR, "SyntaxError", "def f(:"),
        (
            block("""
                if 1:
                x
            """),
            Outcome.SYNTAX_ERROR,
            "IndentationError",
            "line 2",
        ),
        ("(" * 1_000, Outcome.SYNTAX_ERROR, "", ""),
        # A ValueError before CPython 3.11.4.
        ("x = '\0'", Outcome.SYNTAX_ERROR, "SyntaxError" if sys.version_info >= (3, 11, 4) else "", "null bytes"),
    ],
)
async def test_exceptions_have_name_and_traceback(
    python: RuntimeManager, code: str, outcome: Outcome, name: str, line: str
) -> None:
    """The traceback contains only lines of the user's program and of libraries."""
    result = await run(python, code)
    assert (result.outcome, result.exit_code) == (outcome, 1)
    assert result.error is not None
    assert name in ("", result.error.name)
    assert line in result.error.traceback
    assert result.stderr == result.error.traceback
    assert "faasrt" not in result.stderr
    assert "_host" not in result.stderr


async def test_code_too_deep_for_the_parser_is_a_syntax_error(python: RuntimeManager) -> None:
    result = await run(python, "(" * 100_000)
    assert (result.outcome, result.exit_code) == (Outcome.SYNTAX_ERROR, 1)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            block("""
                x = 1
                y = bytearray(10**9)
            """),
            'File "main.py", line 2, in <module>',
        ),
        (
            block("""
                def f():
                  x = []
                  while 1: x.append(bytes(10_000))
                f()
            """),
            "line 3, in f",
        ),
    ],
)
async def test_memory_errors_have_a_traceback(python: RuntimeManager, engine: str, code: str, line: str) -> None:
    """The traceback names the line, if the program leaves room for small objects. A native program that grows in small
    steps is stopped without a traceback.
    """
    result = await run(python, code)
    assert result.error is not None
    assert (result.outcome, result.error.name) == (Outcome.MEMORY_LIMIT, "MemoryLimit")
    if engine == "wasm" or "bytearray" in code:
        assert "MemoryError" in result.stderr
        assert line in result.stderr


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("raise SystemExit('bye')", 1, "bye\n"),
        ("raise SystemExit(-1)", 255, ""),
        ("exit(4)", 4, ""),
        ("exit(2**70)", 255, ""),
        (
            block("""
                class A:
                  def __str__(self): raise ValueError
                raise SystemExit(A())
            """),
            1,
            "\n",
        ),
        (
            block("""
                class E(SystemExit):
                  code = property(lambda self: 1 / 0)
                raise E
            """),
            1,
            "",
        ),
        (
            block("""
                import sys
                sys.stderr.close()
                sys.exit('bad')
            """),
            1,
            "",
        ),
    ],
)
async def test_a_nonzero_exit_code_is_a_user_error(
    python: RuntimeManager, code: str, exit_code: int, stderr: str
) -> None:
    """The error is SystemExit, and the result has the exit code."""
    result = await run(python, code)
    assert (result.outcome, result.exit_code, result.stderr) == (Outcome.USER_ERROR, exit_code, stderr)
    assert result.error is not None
    assert result.error.name == "SystemExit"


@pytest.mark.parametrize("code", ["import os; os._exit(3)", "import atexit, os; atexit.register(os._exit, 3)"])
async def test_a_hard_exit_is_a_crash(python: RuntimeManager, code: str) -> None:
    """`os._exit` gives CRASHED with its exit code and without an error."""
    result = await run(python, code)
    assert (result.outcome, result.exit_code, result.error) == (Outcome.CRASHED, 3, None)


async def test_a_long_error_message_is_shortened(python: RuntimeManager) -> None:
    """The message keeps its start and end."""
    result = await run(python, "raise ValueError('a' * 10**7 + 'b')")
    assert result.outcome is Outcome.USER_ERROR
    assert result.error is not None
    assert result.error.message.startswith("aaa")
    assert result.error.message.endswith("aab")
    assert len(result.error.message) <= 1_048_576


@pytest.mark.parametrize(
    ("code", "ret_val"),
    [
        ("return_val('{\"score\": 0.50}')", '{"score": 0.50}'),
        ("return_val('one'); return_val('two')", "two"),
        ("return_val(None)", ""),
        ("return_val('\\ud83d')", "\ud83d"),
        ("return_val({'a': 1})", "{'a': 1}"),
        (
            block("""
                return_val('kept')
                1/0
            """),
            "kept",
        ),
        (
            block("""
                def return_val(value):
                    print('__COZE_RETURN_VAL_START__')
                    print(value)
                    print('__COZE_RETURN_VAL_END__')
                print('log')
                return_val('{"score": 1}')
                print('end')
            """),
            '{"score": 1}',
        ),
    ],
)
async def test_return_values_are_exact(python: RuntimeManager, code: str, ret_val: str) -> None:
    """The result has the exact text of `return_val`. A program that defines coze-loop's `return_val` works, too."""
    result = await run(python, code)
    assert result.ret_val == ret_val
    assert "__COZE" not in result.stdout


@pytest.mark.parametrize("code", ["while True: pass", "9**9**9", "import re; re.match('(a|a)*$', 'a' * 100 + 'b')"])
async def test_a_program_is_stopped_at_its_time_limit(python: RuntimeManager, code: str) -> None:
    """No computation can delay it."""
    result = await run(python, code, 300)
    assert (result.outcome, result.exit_code) == (Outcome.TIMEOUT, None)
    assert result.duration_ms is not None
    assert result.duration_ms >= 300


async def test_what_a_program_did_before_its_time_limit_arrives(python: RuntimeManager) -> None:
    """The result has its output and its return value."""
    code = "import time; print('before'); return_val('kept'); time.sleep(10**6)"
    result = await run(python, code, 3_000)
    assert (result.outcome, result.stdout, result.ret_val) == (Outcome.TIMEOUT, "before\n", "kept")


@pytest.mark.parametrize(
    "code",
    [
        block("""
            x = []
            while True: x.append(len(x))
        """),
        block("""
            x = {}
            while True: x[len(x)] = object()
        """),
        block("""
            x = 'a'
            while True: x += x
        """),
        block("""
            import numpy
            x = []
            while True: x.append(numpy.ones(1_000_000))
        """),
    ],
)
async def test_memory_is_limited(python: RuntimeManager, engine: str, code: str) -> None:
    """A program above the limit has the same outcome on both engines, and the next program runs."""
    if engine == "native" and "numpy" in code:
        skip_without("numpy")
    result = await run(python, code, memory_limit_mb=64)
    assert result.outcome is Outcome.MEMORY_LIMIT, result
    assert (await run(python, "print(1)")).stdout == "1\n"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("raise MemoryError('mine')", Outcome.MEMORY_LIMIT),
        (
            block("""
                try: bytearray(10**9)
                except MemoryError: print('caught')
            """),
            Outcome.OK,
        ),
        (
            block("""
                class Own(MemoryError): pass
                raise Own
            """),
            Outcome.USER_ERROR,
        ),
        ("-" * 100_000 + "1", Outcome.SYNTAX_ERROR),
        ("compile('-' * 100_000 + '1', 'x', 'eval')", Outcome.MEMORY_LIMIT),
    ],
)
async def test_memory_errors_have_the_same_outcome_on_both_engines(
    python: RuntimeManager, code: str, outcome: Outcome
) -> None:
    """A MemoryError of the compiler is about the nesting of the program."""
    assert (await run(python, code)).outcome is outcome


async def test_output_is_limited(python: RuntimeManager) -> None:
    """A program is stopped at twice the limit. Output just over the limit is cut. `truncated` names the stream."""
    flood = await run(python, "for i in range(100): print('x' * 1_000_000)", max_output_bytes=100_000)
    assert (flood.outcome, flood.truncated) == (Outcome.OUTPUT_LIMIT, {"stdout"})
    assert len(flood.stdout) <= 100_000
    cut = await run(python, "import sys; sys.stderr.write('a' * 100 + 'b' * 100)", max_output_bytes=150)
    assert (cut.outcome, cut.truncated) == (Outcome.OK, {"stderr"})
    assert cut.stderr.startswith("aaa")
    assert cut.stderr.endswith("bbb")
    value = await run(python, "return_val('x' * 1000)", max_output_bytes=100)
    assert (value.outcome, value.truncated) == (Outcome.OK, {"ret_val"})


async def test_programs_do_not_see_changes_of_other_programs(python: RuntimeManager) -> None:
    """Changes to modules and builtins are not visible in other programs."""
    await asyncio.gather(*(run(python, "import builtins, json; builtins.spy = json.spy = 1") for _ in range(4)))
    code = "import builtins, json; print(hasattr(builtins, 'spy'), hasattr(json, 'spy'))"
    for result in await asyncio.gather(*(run(python, code) for _ in range(4))):
        assert result.stdout == "False False\n"


async def test_forged_reports_of_webassembly_affect_only_their_program(local_wasm: RuntimeManager) -> None:
    """A program that calls the host directly may change its own result. The next program runs."""
    code = """
import _host
for request in (b"guest", b"job", b"error{", b'error{"name":""}', b"error[1]", b"exit9999999", b"exitx", b""):
    _host.call(request)
_host.call(b"\\xff" * 1_000_000)
"""
    result = await run(local_wasm, code)
    assert result.outcome is Outcome.USER_ERROR
    assert result.error is not None
    assert result.error.name == "Exception"
    assert (await run(local_wasm, "print(1)")).stdout == "1\n"


@NATIVE
@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("send(kind='done'); os._exit(0)", Outcome.OK),
        ("send(kind='exit'); os._exit(7)", Outcome.USER_ERROR),
        ("send(kind='error', name='MyError', line=999999999); os._exit(1)", Outcome.USER_ERROR),
        ("send(kind='error', name=[], line=1e99); os._exit(1)", Outcome.CRASHED),
        ("os.write(255, b'\\xff' * 1_000_000)", Outcome.CRASHED),
        ("os.write(255, b'{' * 1_000_000 + b'\\n')", Outcome.OK),
        ("os.write(255, b'{\"kind\":[' + b'{},' * 300_000 + b'1]}\\n')", Outcome.OK),
        ("os.write(255, b'{\"kind\":[' + b'{},' * 1_000_000 + b'1]}\\n')", Outcome.OUTPUT_LIMIT),
        ("while True: os.write(255, b'x' * 65536)", Outcome.OUTPUT_LIMIT),
        ("os.close(255)", Outcome.CRASHED),
    ],
)
async def test_forged_messages_of_native_python_affect_only_their_program(
    local: RuntimeManager, code: str, outcome: Outcome
) -> None:
    """A program that writes to the server directly may change its own result, and not those of other programs."""
    send = "def send(**fields): os.write(255, json.dumps(fields, separators=(',', ':')).encode() + b'\\n')\n"
    attack = run(local, f"import json, os\n{send}{code}", max_output_bytes=100_000)
    result, *others = await asyncio.gather(attack, *(run(local, f"return_val({number})") for number in range(4)))
    assert result.outcome is outcome, result
    assert [other.ret_val for other in others] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("print('(')", None),
        ("while True: pass", None),
        ("import os; os._exit(3)", None),
        ("await f()", None),
        ("\ufeffx = 'don\\'t'", None),
        ("x = 1\0", (None, None)),
        ("return 5", (1, 1)),
        ("def f(:", (1, 7)),
        (
            block("""
                x = 1
                  y = 2
            """),
            (2, 2),
        ),
        ("print('é', (", (1, 12)),
        ("", (1, 1)),
        (" \n", (1, 1)),
    ],
)
async def test_validation_parses_but_does_not_run(
    python: RuntimeManager, code: str, place: tuple[int | None, int | None] | None
) -> None:
    """The compiler in the sandbox decides whether code is valid. A diagnostic has line and column, counted from 1."""
    result = await python.validate_code(code, "python", where="remote")
    assert result.valid is (place is None)
    if place is not None:
        assert (result.diagnostics[0].line, result.diagnostics[0].column) == place
    if code.strip():
        assert result.checked_by.startswith("CPython 3.")


@NATIVE
async def test_the_end_of_a_native_program_does_not_depend_on_its_number_of_modules(local: RuntimeManager) -> None:
    """Modules are released with a few garbage collections, not with one for each of the thousand modules of pandas."""
    code = """
import gc, os, sys, types
modules = [types.ModuleType(f"module{number}") for number in range(100)]
sys.modules.update({module.__name__: module for module in modules})
def count(phase, info, write=os.write, kept=modules):
    if phase == "start":
        write(1, b"collection\\n")
gc.callbacks.append(count)
"""
    result = await run(local, code)
    assert result.ok, result
    assert 1 <= result.stdout.count("collection") <= 10


async def test_a_cancelled_call_ends_its_program(python: RuntimeManager) -> None:
    """Two endless programs are cancelled. Then both workers are free for other programs."""
    calls = [asyncio.create_task(run(python, "while True: pass", 30_000)) for _ in range(2)]
    await until_active(python, "python", 2)
    for call in calls:
        call.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True))
    results = await asyncio.gather(*(run(python, "print(1)") for _ in range(2)))
    assert [result.stdout for result in results] == ["1\n", "1\n"]


@pytest.mark.parametrize(
    ("engine_type", "all_turns"), [pytest.param(NativeEngine, range(4), marks=NATIVE), (WasmEngine, [1])]
)
@pytest.mark.usefixtures("wasm_sandbox")
async def test_a_cancelled_call_leaves_no_answer_to_the_next(
    tmp_path: Path, engine_type: type[Engine], all_turns: Iterable[int]
) -> None:
    """A call is cancelled twice, the second time while its program is being stopped. The next gets its own output.

    See `unit/test_wasm_messages.py` for the other turns of `wasm`, which must then start another process.
    """
    engine = engine_type(EngineOptions(workers=1, folder=tmp_path, memory_limit_mb=128, level="namespaces"))
    running = asyncio.create_task(engine.run())
    await engine.wait_ready()

    def job(code: str) -> EngineJob:
        limits = ExecutionLimits(timeout_ms=60_000, memory_limit_mb=128, max_output_bytes=1_000)
        return EngineJob(language=Language.PYTHON, code=code, limits=limits)

    for turns in all_turns:
        call = asyncio.create_task(
            engine.execute(
                job(
                    block("""
                        print('secret')
                        while True: pass
                    """)
                )
            )
        )
        while engine.active == 0 or (engine.idle and engine.name == "wasm"):
            await asyncio.sleep(0.01)
        call.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await engine.execute(job("print('mine')"))).stdout == "mine\n"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
