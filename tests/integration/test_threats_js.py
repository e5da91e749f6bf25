"""JavaScript cannot reach the network, processes, environment variables or other programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from faasrt import Outcome, RejectedError
from support.threats import SESSIONS, SPILL, TARGETS, Target, attempt, environments, sample, target_at

pytestmark = pytest.mark.asyncio(loop_scope="session")

READ, WRITE, NET, RUN, ENV, SYS, FFI = (
    f"Requires {name} access" for name in ("read", "write", "net", "run", "env", "sys", "ffi")
)


@pytest_asyncio.fixture(
    scope="module", loop_scope="session", params=[*TARGETS, *SESSIONS], ids=lambda target: f"{target[0]}-{target[1]}"
)
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    async with target_at(request.param, "js", "ts") as target:
        yield target


async def test_a_node_worker_has_no_more_permissions(target: Target) -> None:
    """A worker of Node cannot read files, use the network, start processes, or store data that outlives it."""
    attacks = [
        f"await import(`file://{target.canaries[0]}`, {{ with: {{ type: 'text' }} }})",
        f"await import(`data:text/javascript,import x from 'file://{target.canaries[0]}' with {{ type: 'text' }}`)",
        "await fetch('http://127.0.0.1:TCP_PORT')",
        "await (await caches.open('x')).put('http://x/y', new Response('z'))",
        "await new Deno.Command('/bin/true').output()",
        "Deno.env.toObject()",
    ]
    lines = " ".join(f"await tell(async () => {{ return {attack} }});" for attack in attacks)
    worker = f"(async () => {{ {TELL} {lines} }})()"
    static = f"data:text/javascript,import x from 'file://{target.canaries[0]}' with {{ type: 'text' }}; console.log(x)"
    code = f"""
const {{ Worker }} = await import("node:worker_threads");
const ended = (worker) => new Promise((resolve) => worker.on("exit", resolve).on("error", resolve));
await ended(new Worker({worker!r}, {{ eval: true }}));
console.log(String(await ended(new Worker(new URL({static!r})))));
"""
    result = await target.run(code, "js")
    told = result.stdout.splitlines()
    assert [line.split()[0] for line in told[:6]] == ["denied"] * 6, result
    assert READ in told[6]
    assert await target.sink.all_received() == []


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
        """
        const s = new EventSource('http://127.0.0.1:TCP_PORT');
        return await new Promise((open, fail) => {
            s.onopen = open;
            s.onerror = () => {
                s.close();
                fail('no event source')
            }
        })
        """,
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
        """
        const r = new (await import('node:dns/promises')).Resolver();
        r.setServers(['127.0.0.1:UDP_PORT']);
        return await r.resolve4('canary.test')
        """,
        SYS,
    ),
    (
        """
        const { TCP, TCPConnectWrap } = process.binding('tcp_wrap');
        return new TCP(0).connect(new TCPConnectWrap(), '127.0.0.1', TCP_PORT)
        """,
        NET,
    ),
    (
        """
        const r = new (process.binding('tcp_wrap').TCP)(1).listen(5);
        if (r) throw new Error('code ' + r);
        return r
        """,
        "code -13",
    ),
    (
        """
        const s = new (await import('node:net')).Socket();
        s.on('error', () => {});
        s.connect(TCP_PORT, '127.0.0.1');
        const r = new s._handle.constructor(1).listen(5);
        if (r) throw new Error('code ' + r);
        return r
        """,
        "code -13",
    ),
    ("return new (process.binding('tcp_wrap').TCP)(1).bind('0.0.0.0', 0)", NET),
    ("return new (process.binding('udp_wrap').UDP)().bind('0.0.0.0', 0, 0)", NET),
    ("return new (process.binding('pipe_wrap').Pipe)(1).bind('/tmp/x')", READ),
    ("return await tried((await import('node:http')).createServer().listen(0))", NET),
    ("return await tried((await import('node:http2')).createServer().listen(0))", NET),
    ("return await in_worker(`require('node:dns').lookup('localhost', (e) => tell(e.message))`)", "EPERM"),
    (
        "return await in_worker(`Deno.resolveDns('canary.test', 'A', { nameServer: { ipAddr: '127.0.0.1',"
        " port: UDP_PORT } }).then(tell, (e) => tell(e.message))`)",
        NET,
    ),
    ("return await in_worker(`navigator.gpu.requestAdapter().then((a) => tell(String(a)))`)", "null"),
    (
        "return await in_worker(`tell(String(new (process.binding('tcp_wrap').TCP)(1).listen(5)))`)",
        "-13",
    ),
    (
        """
        const { Pipe, PipeConnectWrap } = process.binding('pipe_wrap');
        return new Pipe(0).connect(new PipeConnectWrap(), '/run/x')
        """,
        READ,
    ),
]
TRIED = """
    const tried = (e) => new Promise((done, fail) => {
        for (const n of ['connect', 'response', 'listening']) e.on(n, () => done(n));
        e.on('error', fail);
    });
    // Throw the message of a worker of Node as an error.
    const in_worker = async (code) => {
        const { Worker } = await import('node:worker_threads');
        const tell = 'const tell = (m) => require(`node:worker_threads`).parentPort.postMessage(m);';
        const w = new Worker(tell + code, { eval: true });
        const told = await new Promise((r) => w.on('message', r).on('error', (e) => r(e.message)));
        throw new Error(told)
    };
"""


@pytest.mark.parametrize(("body", "words"), sample(NETWORK))
async def test_the_network_cannot_be_reached(target: Target, body: str, words: str) -> None:
    """Connections, datagrams and name lookups fail. Proxy variables of the server have no effect."""
    result = await target.run(f"{TRIED} {attempt(body)}", "js")
    assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
    # A program with a folder has the permission to use the path of a socket there, but not the socket.
    assert (NET if target.has_folder and "/tmp/x" in body else words) in result.stdout
    assert await target.sink.all_received() == []


async def test_a_datagram_cannot_be_sent(target: Target) -> None:
    """Node's datagram sockets report the denial as an uncaught error."""
    code = """
        import d from 'node:dgram';
        d.createSocket('udp4').send('x', UDP_PORT, '127.0.0.1')
    """
    result = await target.run(code, "js")
    assert result.outcome is Outcome.USER_ERROR or target.in_sessions
    assert NET in result.stderr
    assert await target.sink.all_received() == []


async def test_a_request_for_network_access_is_refused(target: Target) -> None:
    """The program does not run."""
    with pytest.raises(RejectedError, match="no sandbox of this server has a network"):
        await target.run("await Deno.connect({ port: TCP_PORT })", "js", network_enabled=True)
    assert await target.sink.all_received() == []


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
        """
        const { DatabaseSync, backup } = await import('node:sqlite');
        return await backup(new DatabaseSync(':memory:'), '/var/tmp/x')
        """,
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
    (SPILL, "disk I/O error"),
]


@pytest.mark.parametrize(("body", "words"), sample(PROCESSES))
async def test_the_system_cannot_be_reached(target: Target, body: str, words: str) -> None:
    """Processes, libraries, signals to others, environment variables and facts about the machine are denied."""
    if body == SPILL and target.has_folder:
        words = "spilled"
    result = await target.run(attempt(body.replace("SERVER", str(target.server.pid))), "js")
    expected = "reached" if words == "spilled" else "denied"
    assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, expected), result
    assert words in result.stdout
    assert target.server.is_running()


async def test_permissions_cannot_be_requested(target: Target) -> None:
    """Requests and the server's environment variables give no permission, and processes do not get these variables."""
    code = """
for (const name of ["read", "write", "net", "run", "env", "sys", "ffi"]) {
  console.log(name, (await Deno.permissions.request({ name })).state);
}
console.log(typeof gc);
"""
    result = await target.run(code, "js")
    names = ("read", "write", "net", "run", "env", "sys", "ffi")
    assert result.stdout == "".join(f"{name} denied\n" for name in names) + "undefined\n"
    assert environments(target.server, "deno run") == {
        "DENO_DIR", "DENO_EMIT_CACHE_MODE", "DENO_NO_UPDATE_CHECK", "HOME", "NO_COLOR"
    }  # fmt: skip


STATES = [
    (
        """
        globalThis.spy = 1;
        Array.prototype.spy = 1
        """,
        "typeof spy + [].spy",
        "undefinedundefined",
    ),
    (
        """
        JSON.stringify = () => 'spy';
        console.log = () => {}
        """,
        "JSON.stringify(1)",
        "1",
    ),
    (
        "(await import('node:fs')).default.spy = Deno.spy = 1",
        "(await import('node:fs')).default.spy + '' + Deno.spy",
        "undefined" * 2,
    ),
    (
        """
        const m = (await import('node:module')).default;
        m._cache.spy = m.spy = 1
        """,
        "(await import('node:module')).default.spy",
        "undefined",
    ),
    (
        """
        const d = new (await import('node:sqlite')).DatabaseSync(':memory:');
        d.exec('create table spy(a)')
        """,
        "new (await import('node:sqlite')).DatabaseSync(':memory:').prepare('select 1 from sqlite_master').get()",
        "undefined",
    ),
    (
        "(await import('data:text/javascript,export const o = {}')).o.spy = 1",
        "(await import('data:text/javascript,export const o = {}')).o.spy",
        "undefined",
    ),
    (
        """
        const c = new BroadcastChannel('spy');
        for (let i = 0; i < 20; i++) {
            c.postMessage('spy');
            await new Promise((r) => setTimeout(r, 10))
        }
        c.close()
        """,
        """
        await new Promise((r) => {
            const c = new BroadcastChannel('spy');
            c.onmessage = r;
            setTimeout(() => {
                c.close();
                r('nothing')
            }, 150)
        })
        """,
        "nothing",
    ),
    (
        """
        Deno.exitCode = 0;
        performance.mark('spy')
        """,
        "performance.getEntriesByName('spy').length",
        "0",
    ),
    (
        "try { localStorage.spy = 1 } catch {}",
        "typeof localStorage + typeof sessionStorage + typeof caches",
        "undefined" * 3,
    ),
]


@pytest.mark.parametrize(("leave", "look", "found"), sample(STATES))
async def test_a_program_leaves_nothing_for_other_programs(target: Target, leave: str, look: str, found: str) -> None:
    """Neither a program at the same time nor the next one sees its changes."""
    look = f"console.log(`${{{look}}}`)"
    left, beside = await asyncio.gather(target.run(leave, "js"), target.run(look, "js"))
    after = await target.run(look, "js")
    assert left.outcome is Outcome.OK
    assert (beside.stdout, after.stdout) == (f"{found}\n", f"{found}\n")
