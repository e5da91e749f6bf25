"""JavaScript and TypeScript in the embedded FaaS: real programs in real Deno processes."""

from __future__ import annotations

import asyncio
import json

import pytest

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig
from support.helpers import until_active
from support.tables import block

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def run(
    local: RuntimeManager, code: str, language: str = "js", timeout_ms: float = 10_000, **limits: object
) -> ExecutionResult:
    return await local.run_code(code, language, timeout_ms, sandbox=SandboxConfig(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("language", "code", "stdout"),
    [
        ("js", "console.log(6 * 7)", "42\n"),
        ("ts", "const x: number = 42; console.log(x)", "42\n"),
        ("ts", "enum E { A = 3 } interface I { e: E } const i: I = { e: E.A }; console.log(i)", "{ e: 3 }\n"),
        ("js", "console.log({ a: 1, b: [1, 2] }, 'text', null)", "{ a: 1, b: [ 1, 2 ] } text null\n"),
        ("js", "console.log('你好 🌍 é')", "你好 🌍 é\n"),
        ("js", "console.log(await Promise.resolve('awaited'))", "awaited\n"),
        ("js", "setTimeout(() => console.log('later'), 20); console.log('first')", "first\nlater\n"),
        ("js", "Promise.resolve().then(() => console.log('promised'))", "promised\n"),
        ("js", "export default 5; console.log('module')", "module\n"),
        ("js", "import { Buffer } from 'node:buffer'; console.log(Buffer.from('a').toString('hex'))", "61\n"),
        ("js", "console.log(typeof require, typeof localStorage, typeof Worker)", "undefined undefined undefined\n"),
        ("js", "Deno.exit(0)", ""),
        ("js", "Promise.reject(1).catch(() => console.log('caught'))", "caught\n"),
    ],
)
async def test_programs_run_to_their_end(local: RuntimeManager, language: str, code: str, stdout: str) -> None:
    """Types, modules, top-level await, timers and promises work, and objects are printed readably."""
    result = await run(local, code, language)
    assert (result.outcome, result.stdout, result.stderr, result.exit_code) == (Outcome.OK, stdout, "", 0)


@pytest.mark.parametrize(
    ("code", "outcome", "name", "message", "place"),
    [
        (
            block("""
                const a = 1;
                throw new TypeError('boom')
            """),
            Outcome.USER_ERROR,
            "TypeError",
            "boom",
            "main.js:2:7",
        ),
        ("throw 'just text'", Outcome.USER_ERROR, "Error", "just text", ""),
        ("throw { code: 7 }", Outcome.USER_ERROR, "Error", "{ code: 7 }", ""),
        ("throw null", Outcome.USER_ERROR, "Error", "null", ""),
        ("throw new Proxy({}, { getPrototypeOf() { throw 1 } })", Outcome.USER_ERROR, "Error", "", ""),
        ("throw new Proxy(new Error('x'), { get() { throw 1 } })", Outcome.USER_ERROR, "Error", "", ""),
        ("Object.freeze(Object.prototype); throw new Error('x')", Outcome.USER_ERROR, "Error", "x", "main.js:1:40"),
        (
            "Object.defineProperty(Object.prototype, 'toJSON', { set() { throw 1 } }); throw new Error('x')",
            Outcome.USER_ERROR,
            "Error",
            "x",
            "main.js:1",
        ),
        (
            "Uint8Array.prototype.subarray = null; throw new Error('x')",
            Outcome.USER_ERROR,
            "Error",
            "x",
            "main.js:1:45",
        ),
        ("throw undefined", Outcome.USER_ERROR, "Error", "undefined", ""),
        ("Promise.reject(new RangeError('r'))", Outcome.USER_ERROR, "RangeError", "r", "main.js:1:16"),
        ("setTimeout(() => { throw new Error('late') }, 5)", Outcome.USER_ERROR, "Error", "late", "main.js:1:26"),
        ("queueMicrotask(() => nope)", Outcome.USER_ERROR, "ReferenceError", "nope is not defined", "main.js:1:22"),
        ("await new Promise(() => {})", Outcome.USER_ERROR, "Error", "never settled", ""),
        ("function f() { f() } f()", Outcome.USER_ERROR, "RangeError", "call stack", "main.js:1"),
        ("eval('let a = ;')", Outcome.USER_ERROR, "SyntaxError", "Unexpected token", "main.js"),
        ("JSON.parse('{')", Outcome.USER_ERROR, "SyntaxError", "JSON", "main.js:1:6"),
        ("throw new SyntaxError('mine')", Outcome.USER_ERROR, "SyntaxError", "mine", "main.js:1:7"),
        ("let a = ;", Outcome.SYNTAX_ERROR, "SyntaxError", "Expression expected", "main.js:1:9"),
        ("const x: number = 1", Outcome.SYNTAX_ERROR, "SyntaxError", "Missing initializer", "main.js:1:7"),
        ("return 5", Outcome.SYNTAX_ERROR, "SyntaxError", "", "main.js:1"),
        ("Deno.readTextFileSync('/etc/passwd')", Outcome.USER_ERROR, "NotCapable", "read access", "main.js:1:6"),
        ("await fetch('http://127.0.0.1:8000')", Outcome.USER_ERROR, "NotCapable", "net access", "main.js:1"),
        ("Deno.env.get('HOME')", Outcome.USER_ERROR, "NotCapable", "env access", "main.js:1"),
        ("await new Deno.Command('/bin/ls').output()", Outcome.USER_ERROR, "NotCapable", "run access", "main.js:1"),
        ("await import('file:///etc/passwd')", Outcome.USER_ERROR, "TypeError", "read access", "main.js:1"),
        ("import 'https://example.com/x.js'", Outcome.USER_ERROR, "TypeError", "--no-remote", "main.js:1"),
    ],
)
async def test_errors_have_name_message_and_stack(
    local: RuntimeManager, code: str, outcome: Outcome, name: str, message: str, place: str
) -> None:
    """The stack contains only positions in the user's program."""
    result = await run(local, code)
    assert (result.outcome, result.exit_code) == (outcome, 1)
    assert result.error is not None
    assert result.error.name == name
    assert message in result.error.message
    assert place in result.error.traceback
    for hidden in ("blob:", "deno_main", "ext:core"):
        assert hidden not in result.stderr + result.error.traceback


WORKERS = """
const { Worker } = await import("node:worker_threads");
for (let n = 0; n < COUNT; n += 1) {
  const code = "require('node:worker_threads').parentPort.postMessage(42); setTimeout(() => {}, 200)";
  const worker = new Worker(code, { eval: true });
  worker.on("message", (data) => console.log(data));
}
"""


@pytest.mark.parametrize(
    ("count", "memory_limit_mb", "outcome"),
    [(1, 128, Outcome.USER_ERROR), (1, 600, Outcome.OK), (3, 600, Outcome.USER_ERROR)],
)
async def test_a_worker_thread_that_does_not_fit_is_an_error_of_the_program(
    count: int, memory_limit_mb: int, outcome: Outcome
) -> None:
    """The program has not used its memory: V8 reserves 512 MiB for a worker, which the memory limit counts."""
    sandbox = SandboxConfig(memory_limit_mb=memory_limit_mb)
    async with RuntimeManager.local(["js"], workers=1, sandbox=sandbox) as manager:
        result = await manager.run_code(WORKERS.replace("COUNT", str(count)), "js", 20_000)
    assert (result.outcome, result.stderr) == (outcome, ""), result
    if outcome is Outcome.OK:
        assert (result.stdout, result.exit_code) == ("42\n", 0)
    else:
        assert result.error is not None
        assert "a worker thread does not fit into the memory limit" in result.error.message


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("Deno.exit(3)", 3), ("Deno.exitCode = 4", 4), ("process.exit(5)", 5), ("Deno.exit(-1)", 255)],
)
async def test_a_nonzero_exit_code_is_a_user_error(local: RuntimeManager, code: str, exit_code: int) -> None:
    """The result has the exit code and the output."""
    result = await run(local, f"console.log('q'); {code}")
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.USER_ERROR, exit_code, "q\n")


@pytest.mark.parametrize(
    ("code", "ret_val"),
    [
        ("return_val(JSON.stringify({ score: 0.5 }))", '{"score":0.5}'),
        ("return_val('one'); return_val('two')", "two"),
        ("return_val(null)", ""),
        ("return_val(5)", "5"),
        ("return_val('kept'); throw new Error('x')", "kept"),
        ("return_val('kept'); while (true) {}", "kept"),
        ("return_val('\\0\\n\\ud83d\\ude00')", "\0\n😀"),
        (
            block("""
                function return_val(value) { console.log(String(value)) }
                console.log('log'); return_val(JSON.stringify({ score: 1 })); console.log('end')
            """),
            '{"score":1}',
        ),
    ],
)
async def test_return_values_are_exact(local: RuntimeManager, code: str, ret_val: str) -> None:
    """The result has the exact text of `return_val`. A program that defines coze-loop's `return_val` works, too."""
    result = await run(local, code, "js", 500 if "while" in code else 20_000)
    assert result.ret_val == ret_val
    assert "score" not in result.stdout


@pytest.mark.parametrize(
    "code",
    ["while (true) {}", "await new Promise((r) => setTimeout(r, 60_000))", "/(a+)+$/.test('a'.repeat(50) + 'b')"],
)
async def test_a_program_is_stopped_at_its_time_limit(local: RuntimeManager, code: str) -> None:
    """The output that it printed before arrives."""
    result = await run(local, f"console.log('before');\n{code}", "js", 500)
    assert (result.outcome, result.stdout, result.exit_code) == (Outcome.TIMEOUT, "before\n", None)
    assert result.duration_ms is not None
    assert result.duration_ms >= 500


@pytest.mark.parametrize(
    "code",
    [
        "const x = []; while (true) x.push(new Array(1000).fill(x.length))",
        "const x = []; while (true) x.push(new Uint8Array(10_000_000).fill(1))",
        "const m = new WebAssembly.Memory({ initial: 1, maximum: 65536 }); while (true) m.grow(256)",
    ],
)
async def test_memory_is_limited(local: RuntimeManager, code: str) -> None:
    """Heap, buffers and WebAssembly memory are limited. V8's messages about a full heap do not appear in stderr."""
    result = await run(local, code)
    if result.outcome is not Outcome.MEMORY_LIMIT:
        assert result.outcome is Outcome.USER_ERROR
        assert result.error is not None
        assert result.error.name == "RangeError"
    assert "GCs" not in result.stderr
    assert (await run(local, "console.log(1)")).stdout == "1\n"


async def test_output_is_limited(local: RuntimeManager) -> None:
    """A program is stopped at twice the limit. Output just over the limit is cut. `truncated` names the stream."""
    flood = await run(local, "while (true) console.log('x'.repeat(1_000_000))", max_output_bytes=100_000)
    assert (flood.outcome, flood.truncated) == (Outcome.OUTPUT_LIMIT, {"stdout"})
    assert len(flood.stdout) <= 100_000
    flood = await run(local, "while (true) console.error('x'.repeat(1_000_000))", max_output_bytes=100_000)
    assert (flood.outcome, flood.truncated) == (Outcome.OUTPUT_LIMIT, {"stderr"})
    cut = await run(local, "console.log('a'.repeat(100) + 'b'.repeat(99))", max_output_bytes=150)
    assert (cut.outcome, cut.truncated) == (Outcome.OK, {"stdout"})
    assert cut.stdout.startswith("aaa")
    assert cut.stdout.endswith("bbb\n")


async def test_programs_do_not_see_changes_of_other_programs(local: RuntimeManager) -> None:
    """Every program has its own process."""
    await asyncio.gather(*(run(local, "globalThis.spy = Object.prototype.spy = 1") for _ in range(4)))
    for result in await asyncio.gather(*(run(local, "console.log(typeof spy, {}.spy)") for _ in range(4))):
        assert result.stdout == "undefined undefined\n"


async def test_printing_v8s_message_does_not_cause_memory_limit(local: RuntimeManager) -> None:
    """A program that prints V8's message about a full heap gets OUTPUT_LIMIT. Memory outside the heap is limited."""
    code = "console.error('# Fatal JavaScript out of memory'); while (true) console.error('x'.repeat(1000))"
    assert (await run(local, code)).outcome is Outcome.OUTPUT_LIMIT
    bomb = "const a = []; for (;;) a.push(new Blob([new Uint8Array(1e7).fill(1)]))"
    result = await run(local, bomb)
    assert result.outcome in (Outcome.MEMORY_LIMIT, Outcome.USER_ERROR)


@pytest.mark.parametrize(
    "message",
    [
        "Deno could not start: unable to create worker threads.",
        "Deno has panicked. This is a bug in Deno.\n\nthread 'main' panicked at library/std/src/thread/mod.rs:1:1:\n"
        'failed to spawn thread: Os { code: 11, kind: WouldBlock, message: "Resource temporarily unavailable" }',
    ],
)
async def test_a_thread_that_does_not_fit_is_a_memory_limit(local: RuntimeManager, message: str) -> None:
    """Deno prints a message and exits with 1. Here the program prints it, because the load decides when Deno needs
    another thread. If the program exits by itself, the message is its own output.
    """
    code = f"console.error({json.dumps('own' + chr(10) + '=' * 60 + chr(10) + message)}); "
    result = await run(local, code + "await new Promise(() => {})")
    assert (result.outcome, result.stderr) == (Outcome.MEMORY_LIMIT, "own")
    result = await run(local, code + "Deno.exit(1)")
    assert (result.outcome, result.exit_code) == (Outcome.USER_ERROR, 1)
    assert message in result.stderr


async def test_a_long_error_message_is_shortened(local: RuntimeManager) -> None:
    """The outcome is USER_ERROR, not OUTPUT_LIMIT, and the message keeps its start and end."""
    result = await run(local, "throw new Error('a'.repeat(5e6) + 'b')")
    assert result.outcome is Outcome.USER_ERROR
    assert result.error is not None
    assert result.error.message.startswith("aaa")
    assert result.error.message.endswith("aab")


async def test_return_val_in_a_comment_changes_nothing(local: RuntimeManager) -> None:
    """Only in the output of a program that defines `return_val` is a value searched for."""
    result = await run(
        local,
        block("""
            // return_val = here
            console.log('{"score":1}')
        """),
    )
    assert (result.stdout, result.ret_val) == ('{"score":1}\n', "")


async def test_reports_cannot_be_forged(local: RuntimeManager) -> None:
    """A report without the nonce is plain output. Replaced builtins do not see the nonce."""
    result = await run(local, 'console.log(\'\\0faasrt:0:{"kind":"error"}\')')
    assert (result.outcome, result.stdout) == (Outcome.OK, '\0faasrt:0:{"kind":"error"}\n')
    spy = """
const seen = [];
for (const [object, name] of [[JSON, "stringify"], [Uint8Array.prototype, "subarray"],
     [TextEncoder.prototype, "encode"], [Deno.stdout, "writeSync"],
    [String.prototype, "replaceAll"], [Array.prototype, "filter"], [RegExp.prototype, "exec"], [Deno, "inspect"]]) {
  const real = object[name];
  object[name] = function (...args) { seen.push(...args); return real.apply(this, args); };
}
Object.prototype.toJSON = function () { seen.push(this); return this; };
return_val("x");
console.log(seen.some((item) => String(item).includes("\\0faasrt:")));
"""
    result = await run(local, spy)
    assert (result.outcome, result.stdout, result.ret_val) == (Outcome.OK, "false\n", "x")


@pytest.mark.parametrize(
    ("language", "code", "place"),
    [
        ("js", "console.log('(')", None),
        ("js", "while (true) {}", None),
        ("js", "throw 1", None),
        ("js", "Deno.exit(1); await 1", None),
        ("ts", "const x: number = 1", None),
        ("js", "import x from 'lodash'; import './y.js'; import 'https://example.com/z.js'", None),
        ("js", "const x: number = 1", (1, 7)),
        (
            "js",
            block("""
                let a = 1;
                let b = ;
            """),
            (2, 9),
        ),
        ("ts", "let a: = 1", (1, 8)),
        ("js", "", (1, 1)),
    ],
)
async def test_validation_parses_but_does_not_run(
    local: RuntimeManager, language: str, code: str, place: tuple[int, int] | None
) -> None:
    """Deno's parser decides whether code is valid. A diagnostic has line and column, counted from 1."""
    result = await local.validate_code(code, language)
    assert result.valid is (place is None), result
    if place is not None:
        assert (result.diagnostics[0].line, result.diagnostics[0].column) == place
        assert "\n" not in result.diagnostics[0].message


async def test_a_cancelled_call_ends_its_process(local: RuntimeManager) -> None:
    call = asyncio.create_task(run(local, "while (true) {}", timeout_ms=30_000))

    await until_active(local, "javascript", 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until_active(local, "javascript", 0)


async def test_a_program_too_complex_to_parse_is_invalid(local: RuntimeManager) -> None:
    """It crashes only its own parser. The next validation works."""
    result = await local.validate_code("(" * 1_000_000, "js")
    assert not result.valid
    assert result.diagnostics[0].message
    assert (await local.validate_code("1", "js")).valid
