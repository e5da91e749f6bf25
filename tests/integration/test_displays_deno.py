"""Displays of single programs in JavaScript and TypeScript, which the engine `deno` evaluates as those of sessions."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig
from faasrt.local import LocalFaaS
from support.helpers import manager_for
from support.levels import NATIVE
from support.programs import EXACT_JAVASCRIPT, PROGRAMS, REFUSED_JAVASCRIPT
from support.tables import block

pytestmark = pytest.mark.asyncio(loop_scope="session")
OK, USER_ERROR = Outcome.OK, Outcome.USER_ERROR


async def show(local: RuntimeManager, code: str, language: str = "js", **options: Any) -> ExecutionResult:
    return await local.run_code(code, language, displays=True, **options)


def texts(result: ExecutionResult) -> list[str]:
    return [display.text for display in result.displays]


TEXTS = {
    ("js", "let x = 41; x + 1"): ["42"],
    ("js", "const x = 1"): [],
    ("js", "1; undefined"): [],
    ("js", "null"): ["null"],
    ("js", "// nothing"): [],
    ("js", "'use strict'"): ['"use strict"'],
    ("js", "#!/usr/bin/env deno\nimport os from 'node:os'; typeof os.EOL"): ['"string"'],
    ("js", "display(1); display('b'); 2"): ["1", '"b"', "2"],
    ("js", "export const e = 5; export default e + 1"): ["6"],
    ("js", "import os from 'node:os'; import { sep as s } from 'node:path'; [typeof os.cpus, s]"): [
        '[ "function", "/" ]'
    ],
    ("js", "const late = await new Promise((done) => setTimeout(done, 5, 'late')); late"): ['"late"'],
    ("js", "async function main() { return 5 }; main()"): ["5"],
    ("js", "new Promise(() => {})"): [],
    ("js", "typeof this"): ['"object"'],
    ("js", "(function () { return this })() === undefined"): ["true"],
    ("ts", "interface P { n: number }\nconst p: P = { n: 1 }; p"): ["{ n: 1 }"],
    ("ts", "enum E { A = 3 }\nimport { sep } from 'node:path'; E[3] + sep"): ['"A/"'],
}


async def test_the_value_of_the_last_statement_is_displayed(local: RuntimeManager) -> None:
    """It is awaited if it is a promise, and does not go to stdout. Imports, exports and `await` work. The program is in
    strict mode, as a module is.
    """
    results = await asyncio.gather(*(show(local, code, language) for language, code in TEXTS))
    for (case, expected), result in zip(TEXTS.items(), results, strict=True):
        found = (result.outcome, texts(result), result.stdout, result.stderr, result.exit_code)
        assert found == (OK, expected, "", "", 0), case


async def test_displays_have_formats_and_limits(local: RuntimeManager) -> None:
    """Objects give their own formats, and `display` takes bundles. What does not fit is named."""
    code = block("""
        display({ 'image/png': 'aGk=' }, { raw: true });
        ({ [Symbol.for('Jupyter.display')]: async () => ({ 'text/html': '<b>', 'application/json': { a: 1 } }) })
    """)
    first, second = (await show(local, code)).displays
    assert (first.data, first.png) == ({"image/png": b"hi"}, b"hi")
    assert {**second.data, "text/plain": ""} == {"text/plain": "", "text/html": "<b>", "application/json": '{"a":1}'}
    result = await show(local, "display('x'.repeat(2000)); 5", sandbox=SandboxConfig(max_output_bytes=1000))
    assert ([display.omitted for display in result.displays], texts(result)) == ([("text/plain",), ()], ["", "5"])
    assert "displays" in result.truncated
    code = "for (let i = 0; i < 5000; i += 1) display(i); ({ get [Symbol.for('Jupyter.display')]() { throw 1 } })"
    result = await show(local, code)
    assert (len(result.displays), result.truncated) == (1000, {"displays"})


async def test_a_program_ends_when_it_has_nothing_left_to_do(local: RuntimeManager) -> None:
    """Timers and listeners go on after its last statement, and can display values. `exit` has its code."""
    for code, expected in {
        "setTimeout(() => { console.log('late'); display(2) }, 500); display(1); null": (
            OK,
            0,
            "late\n",
            ["1", "null", "2"],
        ),
        "addEventListener('load', () => console.log('load')); addEventListener('unload', () => console.log('bye'))": (
            *(OK, 0, "load\nbye\n"),
            [],
        ),
        "process.on('exit', (code) => console.log(code)); process.exitCode = 3; 1": (USER_ERROR, 3, "3\n", ["1"]),
        "addEventListener('unload', () => console.log('bye')); display(1); Deno.exit(4)": (
            *(USER_ERROR, 4, "bye\n"),
            ["1"],
        ),
        "process.on('exit', (code) => console.log(code)); await 1; process.exit()": (OK, 0, "0\n", []),
        "setTimeout(() => { throw new Error('late') }, 500); 1": (USER_ERROR, 1, "", ["1"]),
        "display(1); for (;;);": (Outcome.TIMEOUT, None, "", ["1"]),
    }.items():
        result = await show(local, code, timeout_ms=500 if "for" in code else None)
        assert (result.outcome, result.exit_code, result.stdout, texts(result)) == expected, code


# Here, the result depends on displays: the last value is awaited; the program has broken the inspector, which gets
# the value; microtasks run before those of `process.nextTick`.
OTHERS = ("process.on('unhandledRejection'", "Object.prototype.error = 5", "setTimeout(() => console.log('3'), 2000)")
ERRORS = [
    "const a = 1;\n throw new TypeError('boom')",
    "function f() { null.x }\n\nf()",
    "throw 'text'",
    "await 1; await Promise.reject(new Error('r'))",
    "Promise.reject(new Error('lost')); await new Promise((done) => setTimeout(done, 50)); 1",
    "let a = 1;\nlet b = ;",
    "import os from 'node:os'; let c = ;",
    "import { nothing } from 'node:os'",
    "import './missing.js'",
    "undeclared = 1",
    "JSON.parse('{')",
    "throw new SyntaxError('mine')",
    "eval('let a = ;')",
    "eval('null.x')",
    "let n = 1;\nglobalThis.f = Function('n', 'if (!n) throw new Error(1); f(n - 1)'); f(500)",
    "function _() {}; setTimeout(() => console.log(typeof _), 5); 1",
    "globalThis._ = 'mine'; setTimeout(() => console.log(_), 5); 1",
]


@pytest.mark.parametrize(
    "programs",
    [
        ERRORS,
        pytest.param(
            [code for code in PROGRAMS["javascript"] if not code.startswith(OTHERS)], marks=pytest.mark.tables
        ),
        pytest.param([code for code in EXACT_JAVASCRIPT if not code.startswith(OTHERS)], marks=pytest.mark.tables),
    ],
    ids=["errors", "programs", "exact"],
)
async def test_displays_change_nothing_else(local: RuntimeManager, programs: list[str]) -> None:
    """Outcome, output, exit code and error, with its positions, are those of a program without displays."""
    for code in programs:
        plain, shown = await asyncio.gather(local.run_code(code, "js"), show(local, code))
        for name in ("outcome", "stdout", "stderr", "ret_val", "exit_code", "error"):
            assert getattr(shown, name) == getattr(plain, name), (name, code)


@pytest.mark.parametrize("in_session", [False, True])
async def test_a_syntax_error_that_a_program_throws_does_not_make_it_run_again(
    local: RuntimeManager, in_session: bool
) -> None:
    """V8 throws these while the program waits, or under more calls than a stack trace shows."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(local.session("js")) if in_session else None
        for code in (
            "console.log('once'); await new Response('{').json()",
            "console.log('once'); (0, eval)('function f(n) { if (!n) throw new SyntaxError(); f(n - 1) }; f(500)')",
        ):
            result = await (show(local, code) if session is None else session.run_code(code))
            assert (result.outcome, result.stdout) == (USER_ERROR, "once\n"), code
            assert result.error is not None
            assert result.error.name == "SyntaxError", code


async def test_no_position_is_before_the_program(local: RuntimeManager) -> None:
    """V8 gives the call of a static initializer the position of the first statement, which faasrt puts before it."""
    result = await show(local, "class A { static { throw new RangeError('r') } }")
    assert result.error is not None
    assert result.error.traceback.endswith("at main.js:1:1")


@NATIVE
async def test_a_program_that_only_a_module_can_be_runs_as_one(local: RuntimeManager) -> None:
    """It can display values, but the one of its last statement is unknown."""
    for code in (
        "console.log(import.meta.main); display(1); 2",
        "export * from 'node:os'; console.log(false); display(1); 2",
    ):
        result = await show(local, code)
        assert (result.outcome, result.stdout, texts(result)) == (OK, "false\n", ["1"]), code
    # Otherwise it would run twice.
    files = {"lib.js": "import './main.js'; console.log('lib')"}
    result = await show(local, "import './lib.js'; console.log('main'); display(1); 2", files=files)
    assert (result.outcome, result.stdout, texts(result)) == (OK, "lib\nmain\n", ["1"])


@NATIVE
async def test_programs_with_displays_have_input_and_files(local: RuntimeManager) -> None:
    files = {"lib.ts": "export const q: string = 'Q'"}
    code = block("""
        import { q } from './lib.ts';
        import { readFileSync } from 'node:fs';
        const own = Deno.readTextFileSync('main.ts').slice(0, 6);
        Deno.writeTextFileSync('out.txt', 'written');
        [q, own, Deno.args, readFileSync(0, 'utf8')] as unknown[]
    """)
    result = await show(local, code, "ts", stdin="in", argv=["a"], files=files, collect=["*"])
    assert texts(result) == ['[ "Q", "import", [ "a" ], "in" ]']
    assert result.files == {"lib.ts": files["lib.ts"].encode(), "out.txt": b"written"}


@NATIVE
async def test_the_wall_is_that_of_other_programs(local: RuntimeManager) -> None:
    """A program has no files, network, processes, environment or inspector."""
    for code in REFUSED_JAVASCRIPT:
        for options in ({}, {"collect": ["*"]}):
            result = await show(local, code, **options)
            assert (result.outcome, result.error and result.error.name) == (USER_ERROR, "NotCapable"), code


FORGED = r"""
let mark = '';
for (const name of Object.getOwnPropertyNames(globalThis)) if (/faasrt/.test(name)) mark = name;
console.log(mark);
console.log('\0faasrt:' + 'a'.repeat(32) + ':{"kind":"display","number":1,"type":"text/plain","content":"forged"}');
JSON.stringify = JSON.parse = Array.prototype[Symbol.iterator] = Promise.prototype.then = null;
Object.prototype.over = Object.prototype.objectId = Object.prototype.value = 'evil';
Deno.inspect = display = null;
'mine'
"""


async def test_a_program_cannot_forge_the_displays_of_its_runner(local: RuntimeManager) -> None:
    """Patched globals and prototypes, and messages with another mark, change nothing."""
    result = await show(local, FORGED)
    assert (result.outcome, texts(result)) == (OK, ['"mine"'])
    assert result.stdout.startswith("\n\0faasrt:aaa")


async def test_displays_work_without_namespaces() -> None:
    async with LocalFaaS(["js"], level="filters") as faas, manager_for(faas.url) as manager:
        result = await show(manager, "import os from 'node:os'; [Deno.args, typeof os.cpus]", argv=["a"])
        assert texts(result) == ['[ [ "a" ], "function" ]']
