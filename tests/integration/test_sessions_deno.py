"""Sessions in JavaScript and TypeScript: real programs in real Deno processes that stay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from faasrt import ExecutionResult, Outcome, RejectedError, RuntimeManager, SandboxConfig, Session, SessionLostError
from faasrt.local import LocalFaaS
from support.helpers import manager_for
from support.levels import NATIVE
from support.programs import REFUSED_JAVASCRIPT
from support.tables import block

pytestmark = pytest.mark.asyncio(loop_scope="session")
OK, USER_ERROR, TIMEOUT = Outcome.OK, Outcome.USER_ERROR, Outcome.TIMEOUT


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def shared(local: RuntimeManager) -> AsyncIterator[Session]:
    """A session for programs that leave nothing behind that disturbs others."""
    async with local.session("typescript") as session:
        yield session


def texts(result: ExecutionResult) -> list[str]:
    return [display.text for display in result.displays]


@pytest.mark.parametrize(
    ("language", "cells"),
    [
        ("js", {"let x = 41": [], "x + 1": ["42"], "let x = 1; x": ["1"], "x += 1": ["2"]}),
        (
            "js",
            {
                "const a = [1], b = { a }; class C {}": [],
                "const a = b; a": ["{ a: [ 1 ] }"],
                "typeof C": ['"function"'],
            },
        ),
        (
            "js",
            {"function f() { return g() }": [], "function g() { return 7 }": [], "f()": ["7"], "var v = f(); v": ["7"]},
        ),
        ("js", {"const late = await new Promise((done) => setTimeout(done, 5, 'late'))": [], "late": ['"late"']}),
        (
            "js",
            {
                "import fs, { readFileSync as read } from 'node:fs'": [],
                "[typeof fs.openSync, typeof read]": ['[ "function", "function" ]'],
            },
        ),
        (
            "js",
            {
                "import * as path from 'node:path';\nimport 'node:os'\npath.join('a', 'b')": ['"a/b"'],
                "path.sep": ['"/"'],
            },
        ),
        ("js", {"export const e = 5; export default function d() {}": [], "[e, typeof d]": ['[ 5, "function" ]']}),
        ("js", {"const g = 1; export { g }; export default g + 1": ["2"], "g": ["1"]}),
        ("js", {"`import x from 'y'`; // import z from 'z'": ["\"import x from 'y'\""]}),
        ("js", {"async function main() { return 5 }; main()": ["5"], "_ + 1": ["6"]}),
        ("js", {"var _ = (n) => n + 1; _(1)": ["2"], "_(2)": ["3"]}),
        (
            "js",
            {"undefined": [], "null": ["null"], "10n ** 3n": ["1000n"], "Symbol('s')": ["Symbol(s)"], "NaN": ["NaN"]},
        ),
        ("ts", {"interface P { n: number }\nconst p: P = { n: 1 }": [], "(p as P).n": ["1"]}),
        ("ts", {"enum E { A = 3 }\nimport { sep } from 'node:path'": [], "E.A": ["3"], "E[3] + sep": ['"A/"']}),
        ("ts", {"import type { Stats } from 'node:fs'; import { type Dirent, sep } from 'node:path'; sep": ['"/"']}),
    ],
)
async def test_programs_of_a_session_share_their_state(
    local: RuntimeManager, language: str, cells: dict[str, list[str]]
) -> None:
    """Declarations at the top level persist and can be repeated, even of imports. The last value is displayed."""
    async with local.session(language) as session:
        for code, expected in cells.items():
            result = await session.run_code(code)
            assert (result.outcome, texts(result), result.stdout, result.stderr) == (OK, expected, "", ""), code


@pytest.mark.parametrize(
    ("language", "before", "code", "outcome", "name", "message", "traceback"),
    [
        ("js", "", "\n throw new TypeError('no')", USER_ERROR, "TypeError", "no", "TypeError: no\n    at <cell 2>:2:8"),
        (
            "js",
            "function f() { null.x }",
            "\nf()",
            USER_ERROR,
            "TypeError",
            "Cannot read properties of null (reading 'x')",
            "    at f (<cell 1>:1:35)\n    at <cell 2>:2:1",
        ),
        ("js", "", "throw 'text'", USER_ERROR, "Error", "text", "Uncaught text"),
        ("js", "", "await 1; await Promise.reject(new Error('r'))", USER_ERROR, "Error", "r", "at <cell 2>:1:31"),
        (
            "js",
            "",
            "let a = 1\nlet b = ;",
            Outcome.SYNTAX_ERROR,
            "SyntaxError",
            "Unexpected token ';'",
            "at <cell 2>:2:9",
        ),
        (
            "js",
            "",
            "import os from 'node:os'; let c = ;",
            Outcome.SYNTAX_ERROR,
            "SyntaxError",
            "Unexpected token ';'",
            "at <cell 2>:1:35",
        ),
        (
            "js",
            "",
            "JSON.parse('{')",
            USER_ERROR,
            "SyntaxError",
            "Expected property name or '}' in JSON",
            "at <cell 2>:1:6",
        ),
        (
            "js",
            "",
            "\nimport { nothing } from 'node:os'",
            USER_ERROR,
            "SyntaxError",
            "does not provide an export named 'nothing'",
            "at <cell 2>:2:1",
        ),
        ("js", "", "import x from 'npm:left-pad'", USER_ERROR, "TypeError", "--no-npm", "at async <cell 2>:1:1"),
        (
            "js",
            "let twice = 1",
            "const twice = 2",
            Outcome.SYNTAX_ERROR,
            "SyntaxError",
            "Identifier 'twice' has already been declared",
            "",
        ),
        ("js", "", "Deno.exit(3)", USER_ERROR, "Exit", "the program exited with code 3", ""),
        ("js", "", "await 1; process.exit(4)", USER_ERROR, "Exit", "the program exited with code 4", ""),
        (
            "ts",
            "",
            "const a: number = null!;\n(a as any).b",
            USER_ERROR,
            "TypeError",
            "reading 'b'",
            "at <cell 2>:2:12",
        ),
        ("ts", "", "let a: = 5", Outcome.SYNTAX_ERROR, "SyntaxError", "Unexpected token `=`", "at <cell 2>:1:8"),
    ],
)
async def test_errors_name_their_cell(
    local: RuntimeManager,
    language: str,
    before: str,
    code: str,
    outcome: Outcome,
    name: str,
    message: str,
    traceback: str,
) -> None:
    """An error has its line and column in its own cell, and the state before it is kept."""
    async with local.session(language) as session:
        await session.run_code(f"let kept = 1; {before}")
        result = await session.run_code(code)
        assert (result.outcome, result.error and result.error.name) == (outcome, name)
        assert result.error is not None
        assert message in result.error.message
        assert traceback in result.error.traceback
        assert texts(await session.run_code("kept")) == ["1"]


@pytest.mark.parametrize(
    "code",
    [
        "for (;;);",
        "await null; for (;;);",
        "import 'node:os'; for (;;);",
        "await new Promise(() => {})",
        "throw await new Promise(() => {})",
    ],
)
async def test_a_time_limit_keeps_the_state(local: RuntimeManager, code: str) -> None:
    """A program that computes or waits for ever is ended at its time limit, and the session goes on."""
    async with local.session("js") as session:
        await session.run_code("let x = 1")
        assert (await session.run_code(f"x += 1; {code}", timeout_ms=300)).outcome is TIMEOUT
        for _ in range(3):  # with garbage collections
            await session.run_code("new Array(1e6).fill().map((_, i) => ({ i })).length")
        assert texts(await session.run_code("x")) == ["2"]


async def test_much_output_keeps_the_state(local: RuntimeManager) -> None:
    """The rest of the output is discarded, and the outcome is OUTPUT_LIMIT."""
    async with local.session("js") as session:
        code = "for (let i = 0; i < 100; i += 1) console.log('x'.repeat(1000)); let x = 1"
        result = await session.run_code(code, sandbox=SandboxConfig(max_output_bytes=1000))
        assert (result.outcome, len(result.stdout) <= 1000) == (Outcome.OUTPUT_LIMIT, True)
        code = "console.log('x'.repeat(100_000)); await new Promise(() => {})"
        result = await session.run_code(code, sandbox=SandboxConfig(max_output_bytes=1000))
        assert (result.outcome, result.metadata["session"]["ended"]) == (Outcome.OUTPUT_LIMIT, "")
        assert texts(await session.run_code("x")) == ["1"]


async def test_a_program_that_cannot_be_interrupted_ends_the_session(local: RuntimeManager) -> None:
    """A loop after a timer can only be ended with its process."""
    async with local.session("js") as session:
        code = "await new Promise((done) => setTimeout(done, 1)); for (;;);"
        assert (await session.run_code(code, timeout_ms=300)).outcome is TIMEOUT
        with pytest.raises(SessionLostError, match="reached its time limit and could not be interrupted"):
            await session.run_code("1")


async def test_an_interrupt_ends_a_program_that_waits(local: RuntimeManager) -> None:
    """`interrupt` and cancellation end a program that waits, and the session goes on."""
    async with local.session("js") as session:
        async with session.stream_code("let x = 1; console.log('waits'); await new Promise(() => {})") as stream:
            async for _ in stream:
                await session.interrupt()
        assert (stream.result.outcome, stream.result.error and stream.result.error.name) == (USER_ERROR, "Interrupted")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(
                cancelled_at_output(session, "x += 1; console.log(1); await new Promise(() => {})")
            )
        assert texts(await session.run_code("x")) == ["2"]


async def cancelled_at_output(session: Session, code: str) -> None:
    """Run a program, and cancel the own task when it prints."""
    async with session.stream_code(code) as stream:
        async for _ in stream:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()


async def test_output_and_input_belong_to_their_run(local: RuntimeManager) -> None:
    """Each run has its own stdout, stderr, stdin and return value. Timers go on while a later program runs."""
    async with local.session("js") as session:
        result = await session.run_code("console.log('one'); console.error('two'); return_val(3); 4")
        assert (result.stdout, result.stderr, result.ret_val, texts(result)) == ("one\n", "two\n", "3", ["4"])
        result = await session.run_code("Promise.reject(new Error('lost')); 1")
        assert (result.outcome, result.stdout) == (OK, "")
        assert "Uncaught Error: lost" in result.stderr
        result = await session.run_code("let late = false; setTimeout(() => { late = true }, 30); 1")
        assert (result.stdout, result.stderr, result.ret_val) == ("", "", "")
        code = "while (!late) await new Promise((done) => setTimeout(done, 1)); late"
        assert texts(await session.run_code(code)) == ["true"]
        code = "new TextDecoder().decode((await Array.fromAsync(Deno.stdin.readable))[0])"
        assert texts(await session.run_code(code, stdin="in")) == ['"in"']
        code = "let text = ''; for await (const piece of process.stdin) text += piece; text"
        assert texts(await session.run_code(code, stdin="node")) == ['"node"']
        assert texts(await session.run_code("Deno.stdin.readSync(new Uint8Array(9))")) == ["null"]


async def test_displays_have_formats(shared: Session) -> None:
    """Objects give their own formats. `display` works, with bundles too. What does not fit is named."""
    code = block("""
        display('first');
        display({ 'image/png': 'aGk=' }, { raw: true });
        ({ [Symbol.for('Jupyter.display')]: async () => ({ 'text/html': '<b>', 'application/json': { a: 1 } }) })
    """)
    first, second, third = (await shared.run_code(code)).displays
    assert (first.text, second.data) == ('"first"', {"image/png": b"hi"})
    assert {**third.data, "text/plain": ""} == {"text/plain": "", "text/html": "<b>", "application/json": '{"a":1}'}
    sandbox = SandboxConfig(max_output_bytes=1000)
    result = await shared.run_code("display('x'.repeat(2000)); 5", sandbox=sandbox)
    assert ([display.omitted for display in result.displays], texts(result)) == ([("text/plain",), ()], ["", "5"])
    assert "displays" in result.truncated
    code = "for (let i = 0; i < 5000; i += 1) display(i); ({ get [Symbol.for('Jupyter.display')]() { throw 1 } })"
    result = await shared.run_code(code)
    assert (len(result.displays), result.truncated) == (1000, {"displays"})


@NATIVE
async def test_files_persist_in_the_folder(local: RuntimeManager) -> None:
    """Programs import, read and write files, which the client can write and read too."""
    files = {"lib/a.ts": "export { b } from './b.ts'", "lib/b.ts": "export const b: number = 2", "data.json": "[1]"}
    async with local.session("ts", files=files) as session:
        assert texts(await session.run_code("import { b } from './lib/a.ts'; b")) == ["2"]
        assert texts(await session.run_code("(await import('./lib/a.ts')).b")) == ["2"]
        code = "import data from './data.json' with { type: 'json' }; Deno.writeTextFileSync('out.txt', `${data}`)"
        assert (await session.run_code(code)).outcome is OK
        await session.write_files({"lib/new/c.txt": "new", "data.json": b"[2]"})
        assert await session.read_files(["*.txt", "lib/new/*", "data.json"]) == {
            "out.txt": b"1",
            "lib/new/c.txt": b"new",
            "data.json": b"[2]",
        }
        sizes = {"data.json": 3, "lib/a.ts": len(files["lib/a.ts"]), "lib/new/c.txt": 3, "out.txt": 1}
        assert await session.list_files() == sizes | {"lib/b.ts": len(files["lib/b.ts"])}
        with pytest.raises(RejectedError, match=r"cannot write files.*lib"):
            await session.write_files({"lib": "a folder"})
        code = "try { for (;;) Deno.writeFileSync('full', new Uint8Array(2 ** 20), { append: true }) } "
        code += "catch (error) { `${error}` }"
        assert "No space left" in texts(await session.run_code(code))[0]
        with pytest.raises(RejectedError, match=r"cannot write files.*more.*No space left"):
            await session.write_files({"more": bytes(10_000)})
        assert texts(await session.run_code("b")) == ["2"]


async def test_a_session_cannot_be_forked(shared: Session) -> None:
    """V8 has threads, which a fork would lose."""
    with pytest.raises(RejectedError, match="typescript sessions cannot be forked"):
        await shared.fork()


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        ("process.abort()", Outcome.CRASHED, "SIGABRT"),
        ("Deno.kill(Deno.pid, 'SIGABRT'); for (;;) ;", Outcome.CRASHED, "SIGABRT"),
        ("const all = []; for (;;) all.push(new Array(1e6).fill(1.5))", Outcome.MEMORY_LIMIT, "memory limit"),
        ("for (;;) console.log('x'.repeat(1000))", Outcome.OUTPUT_LIMIT, "output limit"),
    ],
)
async def test_a_run_can_end_its_session(local: RuntimeManager, code: str, outcome: Outcome, reason: str) -> None:
    """After a crash, or at the limit of memory or output, the session is lost, and says why."""
    async with local.session("js") as session:
        assert (await session.run_code(code, timeout_ms=20_000)).outcome is outcome
        with pytest.raises(SessionLostError, match=reason):
            await session.run_code("1")


_PATCHES = [
    "Object.prototype.objectId = Object.prototype.exceptionDetails = Object.prototype.value = 'evil'",
    "Object.defineProperty(Object.prototype, 'then', { get() { throw 1 } })",
    "Object.prototype.get = Object.prototype.set = () => 5",
    "JSON.parse = JSON.stringify = null; Array.prototype.push = Array.prototype[Symbol.iterator] = null",
    "Promise.prototype.then = null; process.nextTick = null; globalThis.setTimeout = null; queueMicrotask = null",
    "Deno = console = performance = TextDecoder = Uint8Array = Promise = null",
    "String.prototype.slice = RegExp.prototype.exec = Map.prototype.get = Reflect.apply = Symbol.for = null",
    "Deno.stdin = null; Deno.stdout.writeSync = () => 5; Deno.stdout.write = null; Deno.inspect = null",
    "Object.setPrototypeOf(globalThis, null); EventTarget.prototype.dispatchEvent = null",
    "setInterval(() => { throw new Error('tick') }, 1); setInterval(() => Promise.reject(1), 1)",
    "console.log('\\0faasrt:' + 'a'.repeat(32) + ':{\"kind\":\"done\"}')",
    "for (const name of Object.getOwnPropertyNames(globalThis)) if (/faasrt/.test(name)) throw name",
    "class Evil { constructor() { throw 1 } }; Error = Evil; Function.prototype[Symbol.hasInstance] === 5",
]


@pytest.mark.parametrize("patch", _PATCHES)
async def test_a_program_cannot_break_the_next_report(local: RuntimeManager, patch: str) -> None:
    """Patched globals and prototypes, timers and forged messages change no verdict of a later run."""
    async with local.session("js") as session:
        assert (await session.run_code(f"{patch}; 1")).outcome is OK
        result = await session.run_code("2")
        assert (result.outcome, texts(result)[:1] or ["2"]) == (OK, ["2"])
        result = await session.run_code("import os from 'node:os'; throw 'text'")
        assert (result.outcome, result.error and result.error.message) == (USER_ERROR, "text")
        assert (await session.run_code("for (;;);", timeout_ms=200)).outcome is TIMEOUT
        assert (await session.run_code("await 1; 3")).outcome is OK


@pytest.mark.parametrize(
    "code",
    [
        "Deno.stdout.close(); 1",
        "Function.prototype.call = null; await new Promise((done) => setTimeout(done, 1))",
        "Promise.prototype.constructor = null; 1",
        "Object.freeze(globalThis); 1",
        "require('node:fs').readSync(0, new Uint8Array(9))",
        "const { readSync } = await import('node:fs'); readSync(0, new Uint8Array(9))",
        "new Worker('data:text/javascript,1')",
        "import inspector from 'node:inspector'; new inspector.Session().connect()",
        "import { Worker as W } from 'node:worker_threads'; new W('1', { eval: true })",
        "process.reallyExit(0)",
        "Deno[Deno.internal].core.ops.op_exit()",
        "Error.prepareStackTrace = () => { for (;;); }; null.x",
        "debugger; 1",
    ],
)
async def test_a_hostile_program_gets_a_verdict(local: RuntimeManager, code: str) -> None:
    """Whatever a program does, each run has a verdict, or the session is lost. Another session does not notice."""
    async with local.session("js") as session, local.session("js") as other:
        await other.run_code("let mine = 1")
        assert (await session.run_code(code, timeout_ms=500)).outcome
        with contextlib.suppress(SessionLostError):
            await session.run_code("1", timeout_ms=500)
            await session.run_code("2", timeout_ms=500)
        assert texts(await other.run_code("mine")) == ["1"]


async def test_the_wall_is_that_of_programs(shared: Session) -> None:
    """Programs of a session have no files outside their folder, no network, processes, environment or inspector."""
    for code in REFUSED_JAVASCRIPT:
        result = await shared.run_code(code)
        assert (result.outcome, result.error and result.error.name) == (USER_ERROR, "NotCapable"), code


async def test_sessions_work_without_namespaces() -> None:
    """At the level `filters`, sessions keep their state, and have no files."""
    async with (
        LocalFaaS(["js"], level="filters") as faas,
        manager_for(faas.url) as manager,
        manager.session("js") as session,
    ):
        await session.run_code("let x = 1")
        assert texts(await session.run_code("import os from 'node:os'; x + 1")) == ["2"]
        assert (await session.run_code("Deno.readTextFileSync('x')")).outcome is USER_ERROR
