"""What JavaScript must not reach: files, the network, processes, the environment, and other programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import deno
import pytest
import pytest_asyncio
from threats import PLACES, Place, attempt, environments, place_at

from faasrt import Outcome, RejectedError

pytestmark = pytest.mark.asyncio(loop_scope="session")

READ, WRITE, NET, RUN, ENV, SYS, FFI = (
    f"Requires {name} access" for name in ("read", "write", "net", "run", "env", "sys", "ffi")
)


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=PLACES, ids=lambda place: f"{place[0]}-{place[1]}")
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with place_at(request.param, "js", "ts") as place:
        yield place


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
    "const load = (url, context, next) => next('file://PATH', { ...context, importAttributes: { type: 'json' } });"
    " (await import('node:module')).registerHooks({ load }); return await import('data:text/javascript,1')",
    "return new (await import('node:sqlite')).DatabaseSync('PATH')",
    "return new (await import('node:sqlite')).DatabaseSync('file:PATH?mode=ro')",
    "const { runInThisContext, constants } = await import('node:vm');"
    " return await runInThisContext(`import('file://PATH')`,"
    " { importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER })",
    "return new (await import('node:worker_threads')).Worker('PATH')",
]
# Those that end with other words, as there is no such thing, or as something else is in the way.
OTHER_FILES = [
    ("process.loadEnvFile('PATH'); return process.env", ENV),
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


@pytest.mark.parametrize(("body", "words"), [*((body, READ) for body in FILES), *OTHER_FILES])
async def test_no_file_can_be_read_or_written(place: Place, body: str, words: str) -> None:
    """Not a file, not a symbolic link to it, not one in the folder of the server itself."""
    programs = [attempt(body.replace("PATH", str(path))) for path in place.canaries]
    for result in await asyncio.gather(*(place.run(code, "js") for code in programs)):
        assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
        assert words in result.stdout


@pytest.mark.parametrize("language", ["js", "ts"])
@pytest.mark.parametrize(
    "statement",
    [
        "import x from 'file://PATH' with { type: 'json' }; console.log(x);",
        "import x from 'file://PATH' with { type: 'text' }; console.log(x);",
        "import 'file://PATH';",
        "import defer * as x from 'file://PATH.js'; console.log(x.default);",
        "import source x from 'file://PATH.wasm'; console.log(x);",
        "export * from 'file://PATH';",
        'import x from \'data:text/javascript,export { default } from "file://PATH" with { type: "json" }\';',
    ],
)
async def test_no_file_can_be_imported(place: Place, statement: str, language: str) -> None:
    """A static import is refused, and what stands in the file is not quoted."""
    for path in place.canaries:
        result = await place.run(statement.replace("PATH", str(path)), language)
        assert result.outcome is Outcome.USER_ERROR
        assert result.error is not None
        assert READ in result.error.message


async def test_a_worker_can_do_no_more(place: Place) -> None:
    """Where memory is enough for a worker of Node's, it has no file, no network, and nothing that outlives it."""
    attacks = [
        f"await import(`file://{place.canaries[0]}`, {{ with: {{ type: 'text' }} }})",
        f"await import(`data:text/javascript,import x from 'file://{place.canaries[0]}' with {{ type: 'text' }}`)",
        "await fetch('http://127.0.0.1:TCP_PORT')",
        "await (await caches.open('x')).put('http://x/y', new Response('z'))",
        "await new Deno.Command('/bin/true').output()",
        "Deno.env.toObject()",
    ]
    lines = " ".join(f"await tell(async () => {{ return {attack} }});" for attack in attacks)
    worker = f"(async () => {{ {TELL} {lines} }})()"
    static = f"data:text/javascript,import x from 'file://{place.canaries[0]}' with {{ type: 'text' }}; console.log(x)"
    code = f"""
const {{ Worker }} = await import("node:worker_threads");
const ended = (worker) => new Promise((resolve) => worker.on("exit", resolve).on("error", resolve));
await ended(new Worker({worker!r}, {{ eval: true }}));
console.log(String(await ended(new Worker(new URL({static!r})))));
"""
    result = await place.run(code, "js")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["denied"] * 6, result
    assert READ in lines[6]
    assert await place.sink.all_seen() == []


TELL = (
    "const tell = async (f) => { try { console.log('reached', await f()) }"
    " catch (e) { console.log('denied', e.message.split('\\n')[0]) } };"
)

NETWORK = [
    ("return await Deno.connect({ port: TCP_PORT })", NET),
    ("return await Deno.connectTls({ port: TCP_PORT, hostname: '127.0.0.1' })", NET),
    ("return Deno.listen({ port: 0 })", NET),
    ("return Deno.serve({ port: 0 }, () => new Response(''))", NET),
    ("return Deno.createHttpClient({ proxy: { url: 'http://127.0.0.1:TCP_PORT' } })", NET),
    ("return await Deno.resolveDns('canary.test', 'A', { nameServer: { ipAddr: '127.0.0.1', port: UDP_PORT } })", NET),
    ("return await Deno.resolveDns('canary.test', 'TXT')", NET),
    ("return await fetch('http://127.0.0.1:TCP_PORT')", NET),
    ("return await fetch('https://canary.test')", NET),
    ("return new WebSocket('ws://127.0.0.1:TCP_PORT')", NET),
    (
        "const s = new EventSource('http://127.0.0.1:TCP_PORT');"
        " return await new Promise((open, fail) => { s.onopen = open; s.onerror = () => { s.close();"
        " fail('no event source') } })",
        "no event source",
    ),
    ("return new WebTransport('https://127.0.0.1:TCP_PORT')", "WebTransport is not defined"),
    ("return await Deno.connectQuic({ hostname: '127.0.0.1', port: UDP_PORT })", "not a function"),
    ("return Deno.listenDatagram({ transport: 'udp', port: 0 })", "not a function"),
    ("return await Deno.connect({ transport: 'unix', path: '/run/x' })", READ),
    ("return await import('http://127.0.0.1:TCP_PORT/x.js')", "--no-remote"),
    ("return await import('https://127.0.0.1:TCP_PORT/x.js')", "--no-remote"),
    ("return await import('npm:left-pad')", "npm"),
    ("return await import('jsr:@std/assert')", "JSR"),
    ("return await import('data:text/javascript,import \"http://127.0.0.1:TCP_PORT/x.js\"')", "--no-remote"),
    ("return await tried((await import('node:net')).connect(TCP_PORT, '127.0.0.1'))", NET),
    ("return await tried((await import('node:tls')).connect(TCP_PORT, '127.0.0.1'))", NET),
    ("return await tried((await import('node:http')).get('http://127.0.0.1:TCP_PORT'))", NET),
    ("return await tried((await import('node:https')).get('https://127.0.0.1:TCP_PORT'))", NET),
    ("return await tried((await import('node:http2')).connect('http://127.0.0.1:TCP_PORT'))", NET),
    ("return await tried((await import('node:net')).createServer().listen(0))", NET),
    ("return (await import('node:net')).createServer().listen('/tmp/x.socket')", READ),
    ("return await (await import('node:dns/promises')).lookup('canary.test')", "EPERM"),
    (
        "const r = new (await import('node:dns/promises')).Resolver(); r.setServers(['127.0.0.1:UDP_PORT']);"
        " return await r.resolve4('canary.test')",
        SYS,
    ),
    (
        "const { TCP, TCPConnectWrap } = process.binding('tcp_wrap');"
        " return new TCP(0).connect(new TCPConnectWrap(), '127.0.0.1', TCP_PORT)",
        NET,
    ),
    (
        "const r = new (process.binding('tcp_wrap').TCP)(1).listen(5); if (r) throw new Error('code ' + r); return r",
        "code -13",
    ),
    (
        "const s = new (await import('node:net')).Socket(); s.on('error', () => {}); s.connect(TCP_PORT, '127.0.0.1');"
        " const r = new s._handle.constructor(1).listen(5); if (r) throw new Error('code ' + r); return r",
        "code -13",
    ),
    ("return new (process.binding('tcp_wrap').TCP)(1).bind('0.0.0.0', 0)", NET),
    ("return new (process.binding('udp_wrap').UDP)().bind('0.0.0.0', 0, 0)", NET),
    ("return new (process.binding('pipe_wrap').Pipe)(1).bind('/tmp/x')", READ),
    ("return await tried((await import('node:http')).createServer().listen(0))", NET),
    ("return await tried((await import('node:http2')).createServer().listen(0))", NET),
    ("return await in_worker(`require('node:dns').lookup('localhost', (e) => tell(e.message))`)", "EPERM"),
    (
        "return await in_worker(`Deno.resolveDns('canary.test', 'A', { nameServer: { ipAddr: '127.0.0.1', port: UDP_PORT }"
        " }).then(tell, (e) => tell(e.message))`)",
        NET,
    ),
    ("return await in_worker(`navigator.gpu.requestAdapter().then((a) => tell(String(a)))`)", "null"),
    (
        "return await in_worker(`tell(String(new (process.binding('tcp_wrap').TCP)(1).listen(5)))`)",
        "-13",
    ),
    (
        "const { Pipe, PipeConnectWrap } = process.binding('pipe_wrap');"
        " return new Pipe(0).connect(new PipeConnectWrap(), '/run/x')",
        READ,
    ),
]
TRIED = (
    "const tried = (e) => new Promise((done, fail) => { for (const n of ['connect', 'response', 'listening'])"
    " e.on(n, () => done(n)); e.on('error', fail); });"
    # Throw what a worker of Node tells.
    " const in_worker = async (code) => { const { Worker } = await import('node:worker_threads');"
    " const w = new Worker('const tell = (m) => require(`node:worker_threads`).parentPort.postMessage(m);' + code,"
    " { eval: true }); throw new Error(await new Promise((r) => w.on('message', r).on('error', (e) => r(e.message)))) };"
)


@pytest.mark.parametrize(("body", "words"), NETWORK)
async def test_the_network_cannot_be_reached(place: Place, body: str, words: str) -> None:
    """No connection, no datagram, no question to a resolver; proxies of the server's environment change nothing."""
    result = await place.run(f"{TRIED} {attempt(body)}", "js")
    assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
    assert words in result.stdout
    assert await place.sink.all_seen() == []


async def test_a_datagram_cannot_be_sent(place: Place) -> None:
    """Node's sockets for datagrams report the refusal as an uncaught error."""
    code = "import d from 'node:dgram'; d.createSocket('udp4').send('x', UDP_PORT, '127.0.0.1')"
    result = await place.run(code, "js")
    assert result.outcome is Outcome.USER_ERROR
    assert NET in result.stderr
    assert await place.sink.all_seen() == []


async def test_the_network_is_never_granted(place: Place) -> None:
    """A request for it is refused, and its program does not run."""
    with pytest.raises(RejectedError, match="no sandbox of this server has a network"):
        await place.run("await Deno.connect({ port: TCP_PORT })", "js", network_enabled=True)
    assert await place.sink.all_seen() == []


PROCESSES = [
    ("return await new Deno.Command('/bin/true').output()", RUN),
    ("return new Deno.Command(Deno.execPath(), { args: ['eval', '1'] }).spawn()", RUN),
    ("return Deno.run({ cmd: ['/bin/true'] })", RUN),
    ("return Deno.dlopen('/lib/x86_64-linux-gnu/libc.so.6', {})", FFI),
    ("return process.dlopen({ exports: {} }, '/tmp/x.node')", FFI),
    ("return (await import('node:child_process')).execSync('id')", ENV),
    ("return (await import('node:child_process')).spawn('/bin/true', { env: {} })", ENV),
    ("return (await import('node:child_process')).fork('/tmp/x.js')", ENV),
    ("return (await import('node:cluster')).default.fork()", ENV),
    ("return Deno.kill(Deno.ppid, 'SIGKILL')", RUN),
    ("return process.kill(process.ppid, 'SIGKILL')", RUN),
    ("return process.kill(0, 0)", RUN),
    ("return process.kill(-1, 0)", RUN),
    ("return process.setuid(1)", SYS),
    ("return process.chdir('/')", READ),
    ("return Deno.umask(0)", SYS),
    ("return Deno.env.toObject()", ENV),
    ("return Deno.env.set('A', 'b')", ENV),
    ("return Deno.hostname()", SYS),
    ("return Deno.networkInterfaces()", SYS),
    ("return (await import('node:os')).userInfo()", SYS),
    ("return process.report.getReport()", SYS),
    ("return (await import('node:inspector')).open(0)", SYS),
    ("new (await import('node:inspector')).Session().connect()", SYS),
    ("return new Worker('data:text/javascript,1')", "Worker is not defined"),
    ("return Deno.osRelease()", SYS),
    ("return Deno.osUptime()", SYS),
    ("return Deno.loadavg()", SYS),
    ("return Deno.systemMemoryInfo()", SYS),
    ("return Deno.uid()", SYS),
    ("return (await import('node:os')).cpus()", SYS),
    ("return (await import('node:os')).networkInterfaces()", SYS),
    ("return (await import('node:os')).hostname()", SYS),
    ("return (await import('node:os')).setPriority(0, -20)", SYS),
    ("return await Deno.openKv(':memory:')", "not a function"),
    ("return Deno.cron('x', '* * * * *', () => {})", "not a function"),
    ("return await navigator.gpu.requestAdapter()", "undefined"),
    ("return Deno.kill(SERVER, 'SIGTERM')", RUN),
    ("return process.kill(SERVER, 'SIGTERM')", RUN),
    ("return process._kill(SERVER, 15)", ""),
    ("return new (await import('node:sqlite')).DatabaseSync(':memory:', { allowExtension: true })", FFI),
    (
        "const { DatabaseSync, backup } = await import('node:sqlite');"
        " return await backup(new DatabaseSync(':memory:'), '/var/tmp/x')",
        WRITE,
    ),
    (
        "return new (await import('node:sqlite')).DatabaseSync(':memory:').exec(`vacuum into '/var/tmp/x'`)",
        "too many attached databases",
    ),
    (
        "return new (await import('node:sqlite')).DatabaseSync(':memory:')"
        ".exec(`pragma temp_store_directory='/var/tmp'`)",
        "not a writable directory",
    ),
    (
        "const d = new (await import('node:sqlite')).DatabaseSync(':memory:');"
        " d.exec('pragma temp_store=1; pragma cache_size=10; create temp table t(a)');"
        " for (let i = 0; i < 30; i++) d.exec('insert into t values (randomblob(1000000))'); return 'spilled'",
        "disk I/O error",
    ),
]


@pytest.mark.parametrize(("body", "words"), PROCESSES)
async def test_the_system_cannot_be_reached(place: Place, body: str, words: str) -> None:
    """No process, no library, no signal to others, no environment, nothing about the machine."""
    result = await place.run(attempt(body.replace("SERVER", str(place.server.pid))), "js")
    assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
    assert words in result.stdout
    assert place.server.is_running()


LOOKS = [
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


@pytest.mark.parametrize("look", LOOKS)
async def test_no_path_can_be_probed(place: Place, look: str) -> None:
    """Files and folders that exist, those that do not, and links cannot be told apart."""
    exist = ["/etc/passwd", "/etc", "/proc/self/exe", *map(str, place.canaries[:2])]
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
    result = await place.run(code, "js")
    assert result.outcome is Outcome.OK, result
    assert len(result.stdout.splitlines()) == 1, result


async def test_stacks_and_paths_name_nothing_of_the_server(place: Place) -> None:
    """Neither an error nor a property names the folders of the server."""
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
    result = await place.run(code, "js")
    assert result.outcome is Outcome.OK, result
    # Without namespaces the executable of Deno is where it is on the host.
    shown = result.stdout if place.level == "namespaces" else result.stdout.replace(deno.find_deno_bin(), "")
    assert not [word for word in ("site-packages", "faasrt", "/tmp/", "/root", ".venv") if word in shown], result


async def test_nobody_can_grant_permissions(place: Place) -> None:
    """Neither a request nor the server's environment gives one, and nothing of that reaches a process."""
    code = """
for (const name of ["read", "write", "net", "run", "env", "sys", "ffi"]) {
  console.log(name, (await Deno.permissions.request({ name })).state);
}
console.log(typeof gc);
"""
    result = await place.run(code, "js")
    names = ("read", "write", "net", "run", "env", "sys", "ffi")
    assert result.stdout == "".join(f"{name} denied\n" for name in names) + "undefined\n"
    assert environments(place.server, "deno run") == {
        "DENO_DIR", "DENO_EMIT_CACHE_MODE", "DENO_NO_UPDATE_CHECK", "HOME", "NO_COLOR"
    }  # fmt: skip


STATES = [
    ("globalThis.spy = 1; Array.prototype.spy = 1", "typeof spy + [].spy", "undefinedundefined"),
    ("JSON.stringify = () => 'spy'; console.log = () => {}", "JSON.stringify(1)", "1"),
    (
        "(await import('node:fs')).default.spy = Deno.spy = 1",
        "(await import('node:fs')).default.spy + '' + Deno.spy",
        "undefined" * 2,
    ),
    (
        "const m = (await import('node:module')).default; m._cache.spy = m.spy = 1",
        "(await import('node:module')).default.spy",
        "undefined",
    ),
    (
        "const d = new (await import('node:sqlite')).DatabaseSync(':memory:'); d.exec('create table spy(a)')",
        "new (await import('node:sqlite')).DatabaseSync(':memory:').prepare('select 1 from sqlite_master').get()",
        "undefined",
    ),
    (
        "(await import('data:text/javascript,export const o = {}')).o.spy = 1",
        "(await import('data:text/javascript,export const o = {}')).o.spy",
        "undefined",
    ),
    (
        "const c = new BroadcastChannel('spy'); for (let i = 0; i < 20; i++) {"
        " c.postMessage('spy'); await new Promise((r) => setTimeout(r, 10)) } c.close()",
        "await new Promise((r) => { const c = new BroadcastChannel('spy'); c.onmessage = r; setTimeout(() => {"
        " c.close(); r('nothing') }, 150) })",
        "nothing",
    ),
    ("Deno.exitCode = 0; performance.mark('spy')", "performance.getEntriesByName('spy').length", "0"),
    (
        "try { localStorage.spy = 1 } catch {}",
        "typeof localStorage + typeof sessionStorage + typeof caches",
        "undefined" * 3,
    ),
]


@pytest.mark.parametrize(("leave", "look", "found"), STATES)
async def test_nothing_is_left_for_others(place: Place, leave: str, look: str, found: str) -> None:
    """Neither a program at the same time nor the next one sees what another has left."""
    look = f"console.log(`${{{look}}}`)"
    left, beside = await asyncio.gather(place.run(leave, "js"), place.run(look, "js"))
    after = await place.run(look, "js")
    assert left.outcome is Outcome.OK
    assert (beside.stdout, after.stdout) == (f"{found}\n", f"{found}\n")


def holds(path: Path, text: bytes) -> bool:
    """Whether a file holds a text; it may go away meanwhile."""
    try:
        return path.is_file() and text in path.read_bytes()
    except FileNotFoundError:
        return False


async def test_nothing_stays_on_disk(place: Place) -> None:
    """What Deno writes for TypeScript, of a program or of text that it imports, is removed after the program."""
    own = place.canaries[2].parent
    types = "application/typescript"
    modules = [
        f"data:{types},export const trace_5d41402a: number = 1",
        f"' + URL.createObjectURL(new Blob(['export const trace_5d41402a: number = 1'], {{ type: '{types}' }})) + '",
    ]
    for language in ("js", "ts"):
        for module in modules:
            result = await place.run(f"console.log((await import('{module}')).trace_5d41402a)", language)
            assert result.stdout == "1\n"
    # The processes that wait have files of their own.
    while any(holds(path, b"trace_5d41402a") for path in own.rglob("*")):
        await asyncio.sleep(0.01)
