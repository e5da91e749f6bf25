"""JavaScript can neither access the file system nor learn which paths exist."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import deno
import pytest
import pytest_asyncio

from faasrt import Outcome
from support.served import until
from support.threats import TARGETS, Target, attempt, only_with_attacks, sample, target_at

pytestmark = pytest.mark.asyncio(loop_scope="session")

READ, WRITE, NET, RUN, ENV, SYS, FFI = (
    f"Requires {name} access" for name in ("read", "write", "net", "run", "env", "sys", "ffi")
)


@pytest_asyncio.fixture(
    scope="module", loop_scope="session", params=TARGETS, ids=lambda target: f"{target[0]}-{target[1]}"
)
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    async with target_at(request.param, "js", "ts") as target:
        yield target


FILES = [
    "return Deno.readTextFileSync('PATH')",
    "return await Deno.readTextFile(new URL('file://PATH'))",
    "return (await Deno.open('PATH')).readable",
    "return Deno.statSync('PATH')",
    "return Deno.realPathSync('PATH')",
    "return [...Deno.readDirSync('PATH/..')]",
    "return Deno.watchFs('PATH')",
    "return Deno.copyFileSync('PATH', '/dev/stdout')",
    "return await (await fetch('file://PATH')).text()",
    "return await import('file://PATH', { with: { type: 'json' } })",
    "return await import('file://PATH', { with: { type: 'text' } })",
    "return await import(['file', '//PATH'].join(':'), { with: { type: 'text' } })",
    "return await eval(`import('file://PATH', { with: { type: 'text' } })`)",
    "return await (new Function(`return import('file://PATH')`))()",
    "return await eval(`import.source('file://PATH')`)",
    "return await import(`data:text/javascript,import x from 'file://PATH' with { type: 'json' }; console.log(x)`)",
    "return await import(`data:text/javascript,export * from 'file://PATH'`)",
    "return await import(URL.createObjectURL(new Blob([`import x from 'file://PATH' with { type: 'json' };"
    " console.log(x)`], { type: 'text/javascript' })))",
    "return await import(URL.createObjectURL(new Blob([`/** @jsxImportSource file://PATH */ export const a = <a/>`],"
    " { type: 'text/tsx' })))",
    "return (await import('node:fs')).readFileSync('PATH', 'utf8')",
    "return await (await import('node:fs/promises')).readFile('PATH', 'utf8')",
    "return (await import('node:fs')).openSync('PATH')",
    "return (await import('node:module')).createRequire('file:///x.js')('PATH')",
    "return (await import('node:module')).default._load('PATH')",
    "return (await import('node:module')).default._extensions['.json']({}, 'PATH')",
    """
    const load = (url, context, next) => next('file://PATH', { ...context, importAttributes: { type: 'json' } });
    (await import('node:module')).registerHooks({ load });
    return await import('data:text/javascript,1')
    """,
    "return new (await import('node:sqlite')).DatabaseSync('PATH')",
    """
    const { runInThisContext, constants } = await import('node:vm');
    const importModuleDynamically = constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
    return await runInThisContext(`import('file://PATH')`, { importModuleDynamically })
    """,
    "return new (await import('node:worker_threads')).Worker('PATH')",
]
# Attacks that fail with another message, because of another permission or a missing feature.
OTHER_FILES = [
    # With a folder, this is the path of a file in it.
    ("return new (await import('node:sqlite')).DatabaseSync('file:PATH?mode=ro')", ""),
    (
        """
        process.loadEnvFile('PATH');
        return process.env
        """,
        ENV,
    ),
    (
        "return new (await import('node:wasi')).WASI({ version: 'preview1', preopens: { '/': 'PATH/..' } })",
        "failed to open preopen",
    ),
    (
        "return new (await import('node:sqlite')).DatabaseSync(':memory:').exec(`attach 'PATH' as x`)",
        "too many attached databases",
    ),
    ("return Deno.symlinkSync('PATH', 'PATH.link')", "--allow-write"),
    ("return Deno.writeTextFileSync('PATH.new', 'x')", WRITE),
    ("return (await import('node:v8')).writeHeapSnapshot('PATH.new')", WRITE),
    ("return await new Response(await caches.open('x')).text()", "caches is not defined"),
]


@pytest.mark.parametrize(("body", "words"), sample([*((body, READ) for body in FILES), *OTHER_FILES]))
async def test_no_file_can_be_read_or_written(target: Target, body: str, words: str) -> None:
    """Neither a file, nor a symbolic link to it, nor a file in the server's folder can be accessed."""
    programs = [attempt(body.replace("PATH", str(path))) for path in target.canaries]
    for result in await asyncio.gather(*(target.run(code, "js") for code in programs)):
        assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
        assert words in result.stdout


@pytest.mark.parametrize("language", ["js", only_with_attacks("ts")])
@pytest.mark.parametrize(
    "statement",
    [
        """
        import x from 'file://PATH' with { type: 'json' };
        console.log(x);
        """,
        """
        import x from 'file://PATH' with { type: 'text' };
        console.log(x);
        """,
        "import 'file://PATH';",
        """
        import defer * as x from 'file://PATH.js';
        console.log(x.default);
        """,
        """
        import source x from 'file://PATH.wasm';
        console.log(x);
        """,
        "export * from 'file://PATH';",
        'import x from \'data:text/javascript,export { default } from "file://PATH" with { type: "json" }\';',
    ],
)
async def test_no_file_can_be_imported(target: Target, statement: str, language: str) -> None:
    """A static import is refused, and the error does not quote the file."""
    for path in target.canaries:
        result = await target.run(statement.replace("PATH", str(path)), language)
        assert result.outcome is Outcome.USER_ERROR
        assert result.error is not None
        assert READ in result.error.message


PROBES = [
    "Deno.statSync(path)",
    "Deno.realPathSync(path)",
    "Deno.readTextFileSync(path)",
    "(await import('node:fs')).existsSync(path)",
    "(await import('node:fs')).accessSync(path)",
    "(await import('node:fs')).realpathSync(path)",
    "(await import('node:fs')).readlinkSync(path)",
    "(await import('node:fs')).opendirSync(path)",
    "(await import('node:module')).createRequire('file:///x.js').resolve(path)",
    "new (await import('node:sqlite')).DatabaseSync(path)",
    "new (await import('node:sqlite')).DatabaseSync('file:' + path + '?mode=ro')",
    "new (await import('node:worker_threads')).Worker(path)",
    "process.chdir(path)",
    "process.dlopen({ exports: {} }, path)",
    "await import('file://' + path)",
    "await fetch('file://' + path)",
    "Deno.dlopen(path, {})",
    "new Deno.Command(path).outputSync()",
]


@pytest.mark.parametrize("look", sample(PROBES))
async def test_existing_paths_cannot_be_detected(target: Target, look: str) -> None:
    """Existing and missing files, folders and links give the same answer."""
    exist = ["/etc/passwd", "/etc", "/proc/self/exe", *map(str, target.canaries[:2])]
    code = f"""
const seen = new Set();
for (const path of {[*exist, "/etc/nope", "/nope/nope", "/etc/passwd/nope", "/proc/0"]}) {{
  let answer;
  try {{ answer = String({look}) }} catch (e) {{ answer = `${{e.name}} ${{e.message.replaceAll(path, "PATH")}}` }}
  seen.add(answer);
}}
console.log([...seen].join("\\n"));
Deno.exit(0);
"""
    result = await target.run(code, "js")
    assert result.outcome is Outcome.OK, result
    assert len(result.stdout.splitlines()) == 1, result


async def test_stacks_and_properties_do_not_name_the_servers_folders(target: Target) -> None:
    code = """
const stacks = [new Error("x").stack];
return_val({ toString() { stacks.push(new Error("x").stack); return "" } });
for (const call of [() => Deno.readTextFileSync("x"), () => null.x, () => new URL("x"), () => Deno.inspect(
  { get x() { throw 1 } }, { getters: true }), () => structuredClone(() => {})]) {
  try { call() } catch (e) { stacks.push(e.stack, Deno.inspect(e)) }
}
await import("data:text/javascript,throw new Error('y')").catch((e) => stacks.push(e.stack));
await import("file:///x.js").catch((e) => stacks.push(e.stack));
console.log(stacks, Deno.mainModule, import.meta, Deno.args, process.argv, process.title, Deno.build, Deno.version);
try { console.log(Deno.cwd()) } catch (e) { console.log(e.message) }
"""
    result = await target.run(code, "js")
    assert result.outcome is Outcome.OK, result
    # Without namespaces, Deno's binary has the same path as on the host.
    shown = result.stdout if target.level == "namespaces" else result.stdout.replace(deno.find_deno_bin(), "")
    if target.has_folder:
        shown = shown.replace("/tmp/main.js", "")
    assert not [word for word in ("site-packages", "faasrt", "/tmp/", "/root", ".venv") if word in shown], result


def holds(path: Path, text: bytes) -> bool:
    """Return whether a file contains a text. The file may vanish meanwhile."""
    try:
        return path.is_file() and text in path.read_bytes()
    except FileNotFoundError:
        return False


async def test_a_program_leaves_no_files(target: Target) -> None:
    """Files that Deno writes for TypeScript, of a program or of its imports, are removed after the program."""
    own = target.canaries[2].parent
    types = "application/typescript"
    modules = [
        f"data:{types},export const trace_5d41402a: number = 1",
        f"' + URL.createObjectURL(new Blob(['export const trace_5d41402a: number = 1'], {{ type: '{types}' }})) + '",
    ]
    for language in ("js", "ts"):
        for module in modules:
            result = await target.run(f"console.log((await import('{module}')).trace_5d41402a)", language)
            assert result.stdout == "1\n"
    # Idle processes have their own files.
    await until(lambda: not any(holds(path, b"trace_5d41402a") for path in own.rglob("*")))
