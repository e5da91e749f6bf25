"""Standard input, arguments and files of JavaScript and TypeScript programs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from faasrt import InvalidRequestError, Outcome, RuntimeManager
from support.doubles import doubles
from support.levels import NATIVE
from support.tables import block, first_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), NATIVE]

COUNT = """
let size = 0, sum = 0;
for await (const piece of Deno.stdin.readable) for (const byte of piece) { size += 1; sum = (sum * 31 + byte) % 65521 }
console.log(size, sum);
"""
LINES = """
import { createInterface } from "node:readline";
import process from "node:process";
for await (const line of createInterface({ input: process.stdin })) console.log(`<${line}>`);
"""
STEPS = """
const piece = new Uint8Array(4), decoder = new TextDecoder();
const steps = [Deno.stdin.readSync(piece), decoder.decode(piece), await Deno.stdin.read(piece), decoder.decode(piece)];
for await (const rest of Deno.stdin.readable) steps.push(decoder.decode(rest));
console.log(JSON.stringify([...steps, Deno.stdin.readSync(piece), await Deno.stdin.read(piece)]));
"""
BINARY = bytes(range(256)) * 3
LARGE = os.urandom(1) * 250_000 + "é".encode() * 125_000


def counted(data: bytes) -> dict[str, Any]:
    """Return the result of `COUNT` with this standard input."""
    total = 0
    for byte in data:
        total = (total * 31 + byte) % 65521
    return {"stdout": f"{len(data)} {total}\n"}


def table(*rows: tuple[str, str, dict[str, Any], dict[str, Any]]) -> pytest.MarkDecorator:
    """Return a parametrization with the name, the code, the input and the expected fields of results."""
    return pytest.mark.parametrize(("code", "options", "expected"), [pytest.param(*row[1:], id=row[0]) for row in rows])


# These also hold in the envelope.
STDIN_AND_ARGV = table(
    ("text", COUNT, {"stdin": "héllo\n"}, counted("héllo\n".encode())),
    ("empty", COUNT, {}, counted(b"")),
    ("binary", COUNT, {"stdin": BINARY}, counted(BINARY)),
    ("500 kB", COUNT, {"stdin": LARGE}, counted(LARGE)),
    ("never read", "console.log(1)", {"stdin": LARGE}, {"stdout": "1\n"}),
    ("step by step", STEPS, {"stdin": "one two three"}, {"stdout": '[4,"one ",4,"two ","three",null,null]\n'}),
    (
        "the text of a stream",
        "console.log(JSON.stringify(await new Response(Deno.stdin.readable).text()))",
        {"stdin": "a\u2028b"},
        {"stdout": '"a\u2028b"\n'},
    ),
    ("node:readline", LINES, {"stdin": "a\n\nbé"}, {"stdout": "<a>\n<>\n<bé>\n"}),
    ("node:readline without input", LINES, {}, {"stdout": ""}),
    (
        "events of process.stdin",
        "let n = 0; process.stdin.on('data', (c) => n += c.length).on('end', () => console.log(n))",
        {"stdin": BINARY},
        {"stdout": "768\n"},
    ),
    (
        "process.stdin with an encoding",
        "process.stdin.setEncoding('utf8'); let t = ''; for await (const c of process.stdin) t += c; console.log(t)",
        {"stdin": "é" * 10},
        {"stdout": "é" * 10 + "\n"},
    ),
    (
        "arguments",
        "console.log(JSON.stringify(Deno.args))",
        {"argv": ["-v", "", "é x"]},
        {"stdout": '["-v","","é x"]\n'},
    ),
    ("no arguments", "console.log(Deno.args.length, process.argv.length)", {}, {"stdout": "0 2\n"}),
    ("process.argv", "console.log(process.argv.slice(2).join())", {"argv": ["a", "b"]}, {"stdout": "a,b\n"}),
    (
        "process.argv of a late import",
        "const { default: p } = await import('node:' + 'pro' + 'cess'); console.log(p.argv.slice(2).join())",
        {"argv": ["a", "b"]},
        {"stdout": "a,b\n"},
    ),
    (
        "parseArgs",
        "import { parseArgs } from 'node:util';"
        "console.log(JSON.stringify(parseArgs({ options: { n: { type: 'string' } }, allowPositionals: true })))",
        {"argv": ["--n", "5", "x"]},
        {"stdout": '{"values":{"n":"5"},"positionals":["x"]}\n'},
    ),
)
# These need a real descriptor 0.
DESCRIPTORS = table(
    (
        "node:fs",
        "import fs from 'node:fs'; console.log(fs.readFileSync(0, 'utf8').split('\\n').length)",
        {"stdin": "a\nb\n"},
        {"stdout": "3\n"},
    ),
    (
        "node:fs, empty",
        "import { readFileSync } from 'node:fs'; console.log(readFileSync(0).length)",
        {},
        {"stdout": "0\n"},
    ),
    (
        "stdin of node:process",
        "import { stdin } from 'node:process'; for await (const c of stdin) console.log(c.length)",
        {"stdin": "abc"},
        {"stdout": "3\n"},
    ),
)
READ = "console.log(Deno.readTextFileSync('data/in.csv'), (await Deno.readFile('b.bin')).join())"
OUTCOMES = {"out.txt": b"kept"}
LEAVE = "Deno.writeTextFileSync('out.txt', 'kept');"
FILES = table(
    ("read", READ, {"files": {"data/in.csv": "1,2", "b.bin": b"\xff\x00"}}, {"stdout": "1,2 255,0\n"}),
    (
        "read with node:fs",
        "import fs from 'node:fs'; console.log(fs.readFileSync('é', 'utf8'), fs.readdirSync('.').sort().join())",
        {"files": {"é": "", "z": "z"}},
        {"stdout": " main.js,z,é\n"},
    ),
    (
        "unusual names",
        "import { a } from './a%20b/%3F.js'; console.log(a, Deno.readTextFileSync('x\\ny/ #?%'))",
        {"files": {"a b/?.js": "export const a = 1", "x\ny/ #?%": "2"}, "collect": ["x\ny/*"]},
        {"stdout": "1 2\n", "files": {"x\ny/ #?%": b"2"}},
    ),
    ("folder", "console.log(Deno.cwd(), process.cwd())", {"collect": ["*"]}, {"stdout": "/tmp /tmp\n"}),
    ("with stdin and argv", COUNT, {"stdin": "ab", "files": {"x": "y" * 70_000}}, counted(b"ab")),
    (
        "import",
        "import { a } from './lib/a.js'; import data from './x.json' with { type: 'json' };"
        "console.log(a, data.b, (await import('./lib/' + 'a.js')).a)",
        {
            "files": {
                "lib/a.js": "export * from './b.ts'",
                "lib/b.ts": "export const a: number = 1",
                "x.json": '{"b":2}',
            }
        },
        {"stdout": "1 2 1\n"},
    ),
    (
        "require",
        "import { createRequire } from 'node:module'; console.log(createRequire(import.meta.url)('./a.cjs').a)",
        {"files": {"a.cjs": "exports.a = 5"}},
        {"stdout": "5\n"},
    ),
    ("URL of the program", "console.log(import.meta.url)", {"files": {"x": ""}}, {"stdout": "file:///tmp/main.js\n"}),
    (
        "stack",
        block("""
            console.log(new Error('x').stack);
            import { f } from './a.js'; f()
        """),
        {"files": {"a.js": "export function f() { throw new TypeError('y') }"}},
        {
            "outcome": Outcome.USER_ERROR,
            "stdout": "Error: x\n    at main.js:1:13\n",
            "stderr": "TypeError: y\n    at f (file:///tmp/a.js:1:29)\n    at main.js:2:29\n",
        },
    ),
    (
        "stack of a timer in another file",
        "import './a.js'",
        {"files": {"a.js": "setTimeout(() => { throw new Error('y') })"}},
        {"outcome": Outcome.USER_ERROR, "stderr": "Error: y\n    at Timeout._onTimeout (file:///tmp/a.js:1:26)\n"},
    ),
    (
        "syntax error",
        "let x = ;",
        {"files": {"x": ""}},
        {
            "outcome": Outcome.SYNTAX_ERROR,
            "stderr": "SyntaxError: Expression expected\n  |\n1 | let x = ;\n  |         ~\n    at main.js:1:9\n",
        },
    ),
    (
        "syntax error in another file",
        "import './a.js'",
        {"files": {"a.js": "let x = ;"}},
        {"outcome": Outcome.USER_ERROR},
    ),
    (
        "exit listener in another file",
        "import './a.js'",
        {"files": {"a.js": "process.on('exit', () => console.log('bye'))"}},
        {"stdout": "bye\n"},
    ),
    (
        "write and collect",
        "Deno.writeTextFileSync('a.csv', '1'); Deno.mkdirSync('p/q', { recursive: true });"
        "await Deno.writeFile('p/q/b', new Uint8Array([255])); (await import('node:fs')).writeFileSync('p/c', 'c');"
        "Deno.writeTextFileSync('left', '')",
        {"collect": ["*.csv", "p/**"]},
        {"files": {"a.csv": b"1", "p/q/b": b"\xff", "p/c": b"c"}},
    ),
    ("given files are collected", "1", {"files": {"a": "b"}, "collect": ["*"]}, {"files": {"a": b"b"}}),
    ("collect nothing", "1", {"collect": ["*"]}, {"files": {}}),
    (
        "work in the folder",
        "Deno.writeTextFileSync('a', '123456'); Deno.copyFileSync('a', 'b'); Deno.renameSync('b', 'c');"
        "Deno.linkSync('a', 'd'); Deno.truncateSync('d', 2); Deno.chmodSync('c', 0o600); Deno.utimeSync('c', 1, 2);"
        "Deno.mkdirSync('e'); Deno.chdir('e'); Deno.writeTextFileSync('../f', Deno.cwd()); Deno.chdir('..');"
        "Deno.removeSync('e'); using file = Deno.openSync('a'); file.lockSync(); file.unlockSync();"
        "console.log(Deno.makeTempFileSync().startsWith('/tmp/'), Deno.statSync('c').mode & 0o777)",
        {"collect": ["?"]},
        {"stdout": "true 384\n", "files": {"a": b"12", "c": b"123456", "d": b"12", "f": b"/tmp/e"}},
    ),
    (
        "sqlite",
        "import { DatabaseSync } from 'node:sqlite'; new DatabaseSync('x.db').exec('create table t(a)');"
        "const d = new DatabaseSync('x.db'); d.exec('insert into t values (5)');"
        "console.log(d.prepare('select a from t').get().a)",
        {"collect": ["none"]},
        {"stdout": "5\n"},
    ),
    (
        "files after an exit",
        f"{LEAVE} Deno.exit(3)",
        {"collect": ["*.txt"]},
        {"outcome": Outcome.USER_ERROR, "exit_code": 3, "files": OUTCOMES},
    ),
    (
        "files after an error",
        f"{LEAVE} throw 1",
        {"collect": ["*.txt"]},
        {"outcome": Outcome.USER_ERROR, "files": OUTCOMES},
    ),
    (
        "files after a crash",
        f"{LEAVE} process.abort()",
        {"collect": ["*.txt"]},
        {"outcome": Outcome.CRASHED, "files": OUTCOMES},
    ),
    (
        "files after too much output",
        f"{LEAVE} for (;;) console.log('x'.repeat(100_000))",
        {"collect": ["*.txt"]},
        {"outcome": Outcome.OUTPUT_LIMIT, "files": OUTCOMES},
    ),
    (
        "files after too much memory",
        f"{LEAVE} const a = []; for (;;) a.push(new Array(1e5).fill(a.length))",
        {"collect": ["*.txt"]},
        {"outcome": Outcome.MEMORY_LIMIT, "files": OUTCOMES},
    ),
    (
        "files after the time limit",
        f"{LEAVE} for (;;) ;",
        {"collect": ["*.txt"], "timeout_ms": 1_000},
        {"outcome": Outcome.TIMEOUT, "files": OUTCOMES},
    ),
    (
        "return value",
        "return_val(Deno.readTextFileSync('a'))",
        {"files": {"a": "b"}},
        {"ret_val": "b"},
    ),
)


async def check(
    manager: RuntimeManager, code: str, options: dict[str, Any], expected: dict[str, Any], language: str
) -> None:
    result = await manager.run_code(code, language, **{"timeout_ms": 30_000, **options})
    expected = {"outcome": Outcome.OK, **expected}
    found = {name: getattr(result, name) for name in expected}
    assert found == expected, result


@STDIN_AND_ARGV
async def test_a_program_gets_its_standard_input_and_arguments(
    local: RuntimeManager, code: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    await check(local, code, options, expected, "js")


@DESCRIPTORS
async def test_standard_input_is_descriptor_0(
    local: RuntimeManager, code: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    await check(local, code, options, expected, "ts")


@STDIN_AND_ARGV
async def test_a_program_with_a_folder_gets_the_same(
    local: RuntimeManager, code: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    await check(local, code, {**options, "collect": ["none"]}, expected, "ts")


@FILES
async def test_a_program_has_a_folder(
    local: RuntimeManager, code: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    """It contains the given files and the program, and files in it are collected, whatever the outcome."""
    await check(local, code, options, expected, "js")


async def test_typescript_is_in_main_ts(local: RuntimeManager) -> None:
    code = "const name: string = import.meta.url; console.log(name, [...Deno.readDirSync('.')][0].name); null!.x"
    result = await local.run_code(code, "ts", collect=["*"])
    assert result.stdout == "file:///tmp/main.ts main.ts\n"
    assert "at main.ts:1:" in result.stderr
    assert result.files == {}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def js_faas() -> AsyncIterator[RuntimeManager]:
    async with doubles() as (manager, _, _):
        yield manager


@STDIN_AND_ARGV
@pytest.mark.parametrize("language", first_of(["js", "ts"]))
async def test_the_envelope_passes_standard_input_and_arguments(
    js_faas: RuntimeManager, code: str, options: dict[str, Any], expected: dict[str, Any], language: str
) -> None:
    """On js-faas, which has neither."""
    await check(js_faas, code, options, expected, language)


async def test_the_envelope_cannot_pass_files(js_faas: RuntimeManager) -> None:
    with pytest.raises(InvalidRequestError, match="cannot pass files to javascript programs"):
        await js_faas.run_code("1", "js", files={"a": "b"})


CASES = [
    """
const first = new Uint8Array(2);
Deno.stdin.readSync(first);
export async function f(x) {
  return [new TextDecoder().decode(first), await new Response(Deno.stdin.readable).text(), x];
}
""",
    """
import { text } from "node:stream/consumers";
const first = (await text(process.stdin)).slice(0, 2);
export const f = async (x) => [first, await text(process.stdin), x];
""",
]


@pytest.mark.parametrize("code", CASES)
@pytest.mark.parametrize("place", ["embedded", "js-faas"])
async def test_the_definitions_and_each_case_read_standard_input_from_its_start(
    local: RuntimeManager, js_faas: RuntimeManager, place: str, code: str
) -> None:
    runtime = await (local if place == "embedded" else js_faas).get_runtime("js")
    results = await runtime.run_cases(code, "f", [(1,), (2,)], stdin="input é")
    assert [result.value for result in results] == [["in", "input é", 1], ["in", "input é", 2]], results


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("language", ["js", "ts"])
async def test_cases_use_files(local: RuntimeManager, language: str, isolate: bool) -> None:
    """A program that defines a function can import the files, and its stacks do not contain those of the guest."""
    code = """
import { y } from "./helper.ts";
export function f(x) {
  if (x > 2) throw new Error("large");
  return [x, y, Deno.readTextFileSync("data")];
}
"""
    runtime = await local.get_runtime(language)
    files = {"helper.ts": "export const y: number = 4", "data": "d"}
    *good, bad = await runtime.run_cases(code, "f", [(1,), (2,), (3,)], files=files, isolate=isolate)
    assert [result.value for result in good] == [[1, 4, "d"], [2, 4, "d"]], good
    assert bad.error is not None
    assert bad.error.traceback == f"Error: large\n    at f (main.{language}:4:20)"


async def test_files_need_namespaces() -> None:
    """At the level `filters` a program gets standard input and arguments, but no folder."""
    async with RuntimeManager.local(["js"], level="filters") as manager:
        result = await manager.run_code(f"console.log(Deno.args[0]); {COUNT}", "js", stdin="ab", argv=["x"])
        assert result.stdout == "x\n" + counted(b"ab")["stdout"]
        for options in ({"files": {"a": "b"}}, {"collect": ["*"]}):
            with pytest.raises(InvalidRequestError, match="the level of its jail is filters"):
                await manager.run_code("1", "js", **options)
