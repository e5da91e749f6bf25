"""The envelope: results from servers that damage output are the same as those of a local interpreter."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import deno
import pytest
from aiohttp import web

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig, ServerError
from faasrt.languages import Language
from faasrt.local import LocalFaaS
from faasrt.protocol.envelope import WHOLE_PROGRAM, wrap
from faasrt.protocol.frames import take_frames
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program
from faasrt.protocol.return_val import take_return_val
from support.doubles import doubles
from support.doubles.forked import Forked
from support.helpers import Serve, manager_at, manager_for
from support.package import WIRE
from support.programs import PROGRAMS
from support.tables import block, first_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
PLACES = ["doubles", "embedded", "embedded, enveloped"]
RUN_PYTHON = Path(__file__).parents[1] / "support/doubles/run_python.py"
RUN_JAVASCRIPT = """
globalThis.return_val = (value) => Deno.writeTextFileSync("ret_val", value == null ? "" : String(value));
await import(`./${Deno.args[0]}`);
"""


@attrs.frozen
class Ending:
    """The output, return value and exit code of a program."""

    stdout: str
    stderr: str
    ret_val: str
    exit_code: int


async def run_here(code: str, language: str) -> Ending:
    """Run a program in CPython or Deno, without a server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {"PATH": os.environ["PATH"], "NO_COLOR": "1", "DENO_DIR": str(folder / "deno"), "HOME": name}
        if language == "python":
            (folder / "main.py").write_bytes(code.encode("utf-8", "surrogatepass"))
            exit_code = await Forked(RUN_PYTHON, folder, env).wait()
        else:
            file = "main.ts" if language == "typescript" else "main.js"
            (folder / file).write_bytes(code.encode())
            (folder / "driver.js").write_text(RUN_JAVASCRIPT)
            argv = [deno.find_deno_bin(), "run", "-A", "--quiet", "--no-check", "--no-prompt", "driver.js", file]
            with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
                process = await asyncio.create_subprocess_exec(
                    *argv, cwd=folder, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=stdout, stderr=stderr
                )
            exit_code = await process.wait()
        texts = {
            file: (folder / file).read_bytes().decode("utf-8", "surrogatepass")
            for file in ("stdout", "stderr", "ret_val")
            if (folder / file).exists()
        }
        return Ending(
            stdout=texts["stdout"],
            stderr=re.sub(rf"(file://)?{re.escape(name)}/", "", texts["stderr"]),
            ret_val=texts.get("ret_val", ""),
            exit_code=exit_code,
        )


def recorded_programs() -> dict[str, tuple[str, str]]:
    """Return the code and the language of each program in the recorded files, by the name of its case."""
    programs = {}
    for name, languages in (("python-faas", {}), ("js-faas", {"js": "javascript", "ts": "typescript"})):
        for record in map(json.loads, (WIRE / f"{name}.jsonl").read_text().splitlines()):
            request = record.get("request")
            if isinstance(request, dict) and request.get("code"):
                language = languages.get(request["language"].lower(), "python")
                programs[f"{name}: {record['case']}"] = (request["code"], language)
    return programs


RECORDED = recorded_programs()


async def run_on_doubles(code: str, language: str, **options: Any) -> ExecutionResult:
    async with doubles() as (manager, _, _):
        return await manager.run_code(code, language, **options)


def places_in(stack: str) -> list[str]:
    """Return the lines of the user's program in a traceback or stack trace."""
    return re.findall(r"main\.[jt]s:\d+:\d+|main\.py\", line \d+, in .*", stack)


def check(result: ExecutionResult, ending: Ending, code: str, language: str, *, same_python: bool) -> None:
    """Compare a result with the output of the interpreter itself."""
    stdout, ret_val = ending.stdout, ending.ret_val
    if re.search("(def|function) return_val", code):
        stdout, ret_val, _ = take_return_val(stdout, Language.parse(language))
    assert (result.stdout, result.ret_val, result.exit_code) == (stdout, ret_val, ending.exit_code)
    assert result.ok is (ending.exit_code == 0)
    if "Exception in thread" in ending.stderr and same_python:
        # threading.excepthook reads source lines from the file, which does not exist here.
        assert places_in(result.stderr) == places_in(ending.stderr)
    elif result.ok or result.error is None or (language == "python" and same_python):
        assert result.stderr == ending.stderr
    elif language == "python":
        # Other versions of Python print other underlines.
        assert places_in(result.stderr) == places_in(ending.stderr)
        assert result.stderr.splitlines()[-1:] == ending.stderr.splitlines()[-1:]
    elif result.error.name != "Exit":
        assert result.error.message in ending.stderr
        assert sorted(places_in(result.stderr)) == sorted(places_in(ending.stderr))


@pytest.mark.parametrize("place", first_of(PLACES))
@pytest.mark.parametrize("case", RECORDED)
async def test_recorded_programs(place: str, case: str, local: RuntimeManager) -> None:
    """Each recorded program gives the same result as its interpreter."""
    assert len(RECORDED) == 47
    code, language = RECORDED[case]
    async with manager_at(place, local) as manager:
        if "infinite loop" in case:
            result = await manager.run_code(code, language, timeout_ms=200)
            assert (result.outcome, result.stdout) == (Outcome.TIMEOUT, "")
            return
        result = await manager.run_code(code, language)
        if "environment" in case and place != "doubles":
            assert result.error is not None
            assert result.error.name == "NotCapable"
            return
        ending = await run_here(code, language)
        check(result, ending, code, language, same_python=place == "doubles")


@pytest.mark.parametrize(
    ("language", "code"),
    [
        pytest.param(language, code, marks=() if language == "python" else pytest.mark.tables)
        for language, codes in PROGRAMS.items()
        for code in codes
    ],
)
async def test_programs_of_many_kinds(language: str, code: str) -> None:
    """Streams, exceptions, exits, threads, timers and modules give the same result as the interpreter."""
    result = await run_on_doubles(code, language)
    ending = await run_here(code, language)
    check(result, ending, code, language, same_python=True)


LARGE = ["\0", "é\r\n", "x", "\n", '"\\', "{'a': 1}"]


@pytest.mark.parametrize("language", ["python", "javascript"])
@pytest.mark.parametrize("place", first_of(["doubles", "embedded, enveloped"]))
@pytest.mark.parametrize("piece", first_of(LARGE))
async def test_streams_of_one_megabyte_are_exact(language: str, place: str, piece: str, local: RuntimeManager) -> None:
    """A stream within the limit is not truncated, even if its JSON escapes would be six times as long."""
    text = piece * (1_000_000 // len(piece.encode()))
    if language == "python":
        code = f"t = {piece!r} * {len(text) // len(piece)}\nprint(t, end='')\nreturn_val(t)"
    else:
        code = f"const t = {json.dumps(piece)}.repeat({len(text) // len(piece)}); console.log(t); return_val(t);"
    async with manager_at(place, local) as manager:
        result = await manager.run_code(code, language)
    assert result.outcome is Outcome.OK
    assert not result.truncated
    assert result.stdout == text + ("" if language == "python" else "\n")
    assert result.ret_val == text


@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_streams_are_truncated_by_the_envelope(language: str) -> None:
    """Start and end stay, with a marker between them. A program with more than twice the limit is stopped."""
    async with doubles(sandbox=SandboxConfig(max_output_bytes=10_000)) as (manager, _, _):
        programs = {
            "python": [
                "print('a' * 6000 + 'b' * 6000)",
                block("""
                    while True:
                        print('c' * 100)
                """),
            ],
            "javascript": [
                "console.log('a'.repeat(6000) + 'b'.repeat(6000))",
                "while (true) console.log('c'.repeat(100));",
            ],
        }[language]
        cut = await manager.run_code(programs[0], language)
        assert (cut.outcome, cut.truncated) == (Outcome.OK, {"stdout"})
        assert cut.stdout.startswith("aaaa")
        assert cut.stdout.endswith("bbb\n")
        assert "bytes cut" in cut.stdout
        assert len(cut.stdout) <= 10_000
        flood = await manager.run_code(programs[1], language)
        assert (flood.outcome, flood.truncated) == (Outcome.OUTPUT_LIMIT, {"stdout"})


async def test_three_full_streams_are_truncated() -> None:
    """If the frame cannot hold three full streams, some are truncated, and reported as truncated."""
    for language, code in {
        "python": block(r"""
            import sys
            t = '\0' * 900_000
            print(t)
            print(t, file=sys.stderr)
            return_val(t)
        """),
        "javascript": "const t = '\\0'.repeat(900_000); console.log(t); console.error(t); return_val(t);",
    }.items():
        result = await run_on_doubles(code, language)
        assert result.outcome is Outcome.OK
        assert result.truncated
        for name in ("stdout", "stderr", "ret_val"):
            text = getattr(result, name)
            assert len(text) > 100_000
            assert ("bytes cut" in text) is (name in result.truncated)


# Hostile programs, each with its expected outcome. None accepts any outcome.
PYTHON_TRICKS: list[tuple[str, str, Outcome | None]] = [
    (
        "prints a forged frame",
        block("""
            print('faasrt1:' + 'e30=')
            print('{}')
        """),
        Outcome.OK,
    ),
    (
        "prints the markers of return_val",
        block("""
            print('__COZE_RETURN_VAL_START__')
            print('x')
            print('__COZE_RETURN_VAL_END__')
        """),
        Outcome.OK,
    ),
    (
        "writes the markers of return_val with os.write",
        block(r"""
            import os
            os.write(1, b'__COZE_RETURN_VAL_START__\nx\n__COZE_RETURN_VAL_END__\n')
        """),
        Outcome.OK,
    ),
    (
        "replaces print",
        block("""
            import builtins
            builtins.print = lambda *a: None
            print('x')
        """),
        Outcome.OK,
    ),
    (
        "closes its streams",
        block("""
            import sys
            sys.stdout.close()
            sys.stderr.close()
        """),
        Outcome.OK,
    ),
    (
        "closes the buffer of stdout",
        block("""
            import sys
            sys.stdout.buffer.close()
            sys.stdout = sys.stderr = None
        """),
        Outcome.OK,
    ),
    (
        "deletes builtins",
        block("""
            import builtins
            d = delattr
            for n in list(vars(builtins)):
                if n[0] != '_': d(builtins, n)
        """),
        Outcome.OK,
    ),
    (
        "deletes modules",
        block("""
            import sys
            sys.modules.clear()
        """),
        Outcome.OK,
    ),
    (
        "overwrites functions of modules",
        block("""
            import json, os, base64
            json.dumps = os.write = os._exit = base64.b64encode = None
        """),
        Outcome.OK,
    ),
    (
        "calls os._exit",
        block("""
            import os
            print('x', flush=True)
            os._exit(0)
        """),
        Outcome.CRASHED,
    ),
    (
        "kills itself",
        block("""
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        """),
        Outcome.CRASHED,
    ),
    (
        "reads a null pointer",
        block("""
            import ctypes
            ctypes.string_at(0)
        """),
        Outcome.CRASHED,
    ),
    (
        "raises in __del__",
        block("""
            class A:
                def __del__(self):
                    raise ValueError
            a = A()
        """),
        Outcome.OK,
    ),
    (
        "raises in an exit handler",
        block("""
            import atexit
            atexit.register(lambda: 1 / 0)
        """),
        Outcome.OK,
    ),
    (
        "starts threads",
        block("""
            import threading
            for _ in range(9):
                threading.Thread(target=print).start()
        """),
        Outcome.OK,
    ),
    (
        "starts an endless thread",
        block("""
            import threading
            def f():
                while True: pass
            threading.Thread(target=f).start()
        """),
        Outcome.TIMEOUT,
    ),
    (
        "leaves a daemon thread",
        block("""
            import threading, time
            threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
        """),
        Outcome.OK,
    ),
    ("loops", "while True: pass", Outcome.TIMEOUT),
    (
        "sleeps",
        block("""
            import time
            time.sleep(100)
        """),
        Outcome.TIMEOUT,
    ),
    (
        "catches all exceptions in an endless loop",
        block("""
            n = 0
            while True:
                try:
                    while True: n += 1
                except BaseException: pass
        """),
        Outcome.TIMEOUT,
    ),
    (
        "catches the exception of its time limit",
        block("""
            n = 0
            try:
                while True: n += 1
            except BaseException: pass
        """),
        Outcome.TIMEOUT,
    ),
    (
        "loops in an exit handler",
        block("""
            import atexit
            def f():
                while True: pass
            atexit.register(f)
        """),
        Outcome.TIMEOUT,
    ),
    (
        "lowers the recursion limit",
        block("""
            import sys
            sys.setrecursionlimit(60)
            def f(): f()
            f()
        """),
        Outcome.USER_ERROR,
    ),
    (
        "sets a trace function that fails",
        block("""
            import sys
            sys.settrace(lambda *a: 1 / 0)
            print(1)
        """),
        None,
    ),
    (
        "raises an exception that cannot be printed",
        block("""
            class E(BaseException):
                __str__ = __repr__ = None
            raise E
        """),
        Outcome.USER_ERROR,
    ),
    ("is not Python", "def f(:", Outcome.SYNTAX_ERROR),
    ("contains a null byte", "print(1)\0", Outcome.SYNTAX_ERROR),
    ("raises KeyboardInterrupt", "raise KeyboardInterrupt", Outcome.USER_ERROR),
]
JS_TRICKS: list[tuple[str, str, Outcome | None]] = [
    ("prints a forged line", 'console.log(\'{"stdout":"f","stderr":"","ret_val":"faasrt1:e30="}\');', Outcome.OK),
    (
        "deletes globals",
        "for (const n of Object.getOwnPropertyNames(globalThis)) { try { delete globalThis[n]; } catch {} }",
        Outcome.OK,
    ),
    (
        "overwrites JSON",
        "JSON.stringify = JSON.parse = () => { throw 1; }; Array.prototype.join = String = null;",
        Outcome.OK,
    ),
    ("overwrites Promise.then", "Promise.prototype.then = () => { throw 1; }; Promise.race = null;", Outcome.OK),
    ("overwrites the iterator of arrays", "Array.prototype[Symbol.iterator] = () => { throw 1; };", Outcome.OK),
    (
        "defines toJSON on Object.prototype",
        "Object.prototype.toJSON = String.prototype.toJSON = () => 'x'; console.log('y');",
        Outcome.OK,
    ),
    (
        "defines a getter on Object.prototype",
        "Object.defineProperty(Object.prototype, 'error', { get() { return 5; } });",
        Outcome.OK,
    ),
    ("exits", "console.log('x'); Deno.exit(0);", Outcome.OK),
    ("calls process.exit", "process.exit(9);", Outcome.USER_ERROR),
    ("kills itself", "Deno.kill(Deno.pid, 'SIGKILL'); await new Promise((r) => setTimeout(r, 1000));", Outcome.CRASHED),
    ("aborts", "process.abort();", Outcome.CRASHED),
    (
        "throws a proxy",
        "throw new Proxy({}, { get() { throw 1; }, getPrototypeOf() { throw 2; } });",
        Outcome.USER_ERROR,
    ),
    ("throws null", "throw null;", Outcome.USER_ERROR),
    ("loops", "while (true) {}", Outcome.TIMEOUT),
    ("starts an endless interval", "setInterval(() => {}, 10);", Outcome.TIMEOUT),
    ("overflows the stack", "function f() { f(); } f();", Outcome.USER_ERROR),
    ("is not JavaScript", "let a = ;", Outcome.SYNTAX_ERROR),
]


@pytest.mark.parametrize(
    ("language", "code", "outcome"),
    [
        pytest.param(language, code, outcome, id=f"{language}: {name}")
        for language, tricks in (("python", PYTHON_TRICKS), ("javascript", JS_TRICKS))
        for name, code, outcome in tricks
    ],
)
async def test_outcomes_of_tricky_programs(language: str, code: str, outcome: Outcome | None) -> None:
    """A program that tampers with the interpreter or the envelope gets the right outcome, and the next program runs."""
    async with doubles() as (manager, python, js):
        limit = {"timeout_ms": 200} if outcome is Outcome.TIMEOUT else {}
        result = await manager.run_code(code, language, **limit)
        assert outcome in (None, result.outcome), result
        assert (await manager.run_code("1", language)).ok
        assert python.running == js.running == 0


async def test_output_survives_a_hard_exit() -> None:
    """The result has the output before `os._exit`, and the exit code."""
    result = await run_on_doubles(
        block("""
            import os
            print('said')
            os._exit(4)
        """),
        "python",
    )
    assert (result.outcome, result.stdout, result.exit_code) == (Outcome.CRASHED, "said\n", 4)


async def test_endless_loops_do_not_occupy_slots_forever() -> None:
    """The envelope stops eight loops at their time limit, so a ninth program runs. The server never stops programs."""
    async with doubles() as (manager, python, _):
        code = block("""
            import time
            while True: time.sleep(0.01)
        """)
        results = await asyncio.gather(*(manager.run_code(code, "python", timeout_ms=200) for _ in range(8)))
        assert {result.outcome for result in results} == {Outcome.TIMEOUT}
        assert (await manager.run_code("print(9)", "python")).stdout == "9\n"
        assert (python.executions, python.running) == (9, 0)


async def test_never_sends_plain_requests() -> None:
    """With envelope="never", the result is the answer of the server, without newlines."""
    async with doubles(envelope="never") as (manager, _, _):
        assert (
            await manager.run_code(
                block("""
                    print('a')
                    print('b')
                """),
                "python",
            )
        ).stdout == "ab"


async def test_guest_stops_loops_with_sys_monitoring(local: RuntimeManager) -> None:
    """Without signals and without the interrupt buffer of Pyodide, sys.monitoring stops endless loops."""
    for loop in (
        "while True: pass",
        block("""
            def f(): pass
            for _ in iter(int, 1): f()
        """),
        block("""
            n = 0
            for n in iter(int, 1): n += 1
        """),
    ):
        run = Program.checked(Language.PYTHON, f"print('on')\n{loop}", SandboxConfig(), timeout_ms=200)
        wrapped = wrap(run, WHOLE_PROGRAM, EndpointProfile(), "abc", max_output_bytes=1_000)
        result = await local.run_code(wrapped, "python", timeout_ms=10_000)
        record = take_frames({"stdout": result.stdout}, "abc", 1_000)[0].records[0]
        assert (record.outcome, record.texts["stdout"]) == (Outcome.TIMEOUT, "on\n")


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize(
    ("language", "code", "small"),
    [
        ("python", "print('x' * 10**6)", "print(1)"),
        ("javascript", "for (;;) console.log('x'.repeat(10**5))", "console.log(1)"),
    ],
)
async def test_large_output_of_an_embedded_faas_whose_health_is_hidden(
    serve: Serve, language: str, code: str, small: str
) -> None:
    """Its server cuts the output, and with it the frame that says how the program ended. This is no verdict."""
    async with LocalFaaS([language]) as faas, aiohttp.ClientSession() as session:

        async def gateway(request: web.Request) -> web.Response:
            if request.path == "/health":
                return web.Response(status=404)
            body = await request.read()
            async with session.post(faas.url + request.path, data=body, headers=request.headers) as answer:
                return web.json_response(await answer.json(), status=answer.status)

        async with manager_for(await serve(gateway, "/{path:.*}")) as manager:
            assert (await manager.run_code(small, language)).stdout == "1\n"
            with pytest.raises(ServerError, match=r"cut the result .*let the client reach GET /health") as failure:
                await manager.run_code(code, language)
    assert (failure.value.sent, failure.value.attempts) == ("yes", 1)
