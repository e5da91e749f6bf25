"""JavaScript cannot exceed its limits on memory, time and output, fake results of others, or harm the server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.jail.level import LEVELS
from support.helpers import manager_for, until_active
from support.served import until
from support.threats import MB, only_with_attacks, run_with_neighbour, sample

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(
    scope="module", loop_scope="session", params=["namespaces", *map(only_with_attacks, [*LEVELS][1:])]
)
async def local(request: pytest.FixtureRequest) -> AsyncIterator[RuntimeManager]:
    """A manager for a server in this process, at each level."""
    async with LocalFaaS(["js", "ts"], workers=2, level=request.param) as faas:
        await faas.wait_ready("js")
        async with manager_for(faas.url) as manager:
            yield manager


async def until_gone(result: ExecutionResult) -> None:
    """Wait until the process that ran the program has ended."""
    pid = int(str(result.metadata["instance_id"]).rpartition("-")[2])
    await until(lambda: pid not in {child.pid for child in psutil.Process().children(recursive=True)})


MEMORY = [
    """
    const a = [];
    for (;;) a.push({ n: a.length }, 'x' + a.length)
    """,
    """
    const a = [];
    for (;;) a.push(new ArrayBuffer(1e7))
    """,
    """
    const a = [];
    for (;;) {
        const b = new SharedArrayBuffer(1e7);
        new Uint8Array(b).fill(1);
        a.push(b)
    }
    """,
    """
    const b = new ArrayBuffer(1, { maxByteLength: 4e9 });
    for (let n = 1; ; n += 1e7) {
        b.resize(n);
        new Uint8Array(b).fill(1)
    }
    """,
    """
    const b = new SharedArrayBuffer(1, { maxByteLength: 4e9 });
    for (let n = 1; ; n += 1e7) {
        b.grow(n);
        new Uint8Array(b).fill(1)
    }
    """,
    """
    const m = new WebAssembly.Memory({ initial: 1, maximum: 65536 });
    for (;;) {
        m.grow(160);
        new Uint8Array(m.buffer).fill(1)
    }
    """,
    """
    const t = new WebAssembly.Table({ initial: 1, element: 'anyfunc' });
    for (;;) t.grow(100_000)
    """,
    """
    const a = [];
    for (;;) a.push('x'.repeat(1e7).split('').join('y'))
    """,
    """
    const a = [];
    for (;;) a.push((1n << 20_000_000n) | BigInt(a.length))
    """,
    """
    const a = [];
    for (;;) a.push(new Blob(['x'.repeat(1e7)]))
    """,
    """
    const a = [];
    for (;;) a.push(new TextEncoder().encode('x'.repeat(1e7)))
    """,
    # If an allocation fails, the stream keeps the error.
    """
    const pull = (c) => c.enqueue(new Uint8Array(1e7).fill(1));
    await new ReadableStream({ pull }, { highWaterMark: 1e9 }).getReader().closed
    """,
    """
    const a = [];
    for (;;) a.push(structuredClone(new Array(1e6).fill(1)))
    """,
    """
    const a = [];
    for (;;) a.push(new Promise(() => {}), setTimeout(() => {}, 1e6))
    """,
    "JSON.parse('['.repeat(5e7))",
    """
    const { deflateSync, inflateSync } = await import('node:zlib');
    const bomb = deflateSync(new Uint8Array(5e7));
    const a = [];
    for (;;) a.push(inflateSync(bomb))
    """,
    """
    const { DatabaseSync } = await import('node:sqlite');
    const d = new DatabaseSync(':memory:');
    d.exec('create table t(a)');
    for (;;) d.exec('insert into t values (randomblob(10000000))')
    """,
    """
    const { Worker } = await import('node:worker_threads');
    const grow = 'const a = []; for (;;) a.push(new Uint8Array(1e6).fill(1))';
    for (let i = 0; i < 20; i++) new Worker(grow, { eval: true })
    """,
    # Threads and descriptors.
    """
    const { Worker } = await import('node:worker_threads');
    const a = [];
    for (;;) a.push(new Worker('setInterval(() => {}, 1000)', { eval: true }))
    """,
    """
    const a = [], b = new Int32Array(new SharedArrayBuffer(4));
    for (;;) a.push(Atomics.waitAsync(b, 0, 0, 60_000).value, new ArrayBuffer(1e4))
    """,
    """
    (await import('node:v8')).setFlagsFromString('--max-old-space-size=100000');
    const a = [];
    for (;;) a.push({ n: a.length }, 'x' + a.length)
    """,
]


@pytest.mark.parametrize("code", sample(MEMORY))
async def test_memory_of_javascript_is_limited(local: RuntimeManager, code: str) -> None:
    """A program ends at the limit or with an error that it could catch. Another program runs meanwhile."""
    result, most = await run_with_neighbour(local, code, "js")
    assert result.outcome in (Outcome.MEMORY_LIMIT, Outcome.USER_ERROR), result
    if result.outcome is Outcome.USER_ERROR:
        assert result.error is not None
        assert re.search("memory|allocation|Unable to grow|Invalid|too", result.error.message), result
    # The limit, V8's overhead, and the other program with new processes.
    assert most < (64 + 64 + 256) * MB


TIME = [
    "for (;;) ;",
    "(function f() { Promise.resolve().then(f) })()",
    "(function f() { setTimeout(f) })()",
    "(function f() { process.nextTick(f) })()",
    "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)",
    """
    let a = 3n ** 3_000_000n;
    for (;;) a * a
    """,
    "'x'.repeat(40).match(/^(([a-z])+.)+[A-Z]([a-z])+$/)",
    """
    Deno.addSignalListener('SIGTERM', () => {});
    Deno.addSignalListener('SIGINT', () => {});
    for (;;) ;
    """,
    """
    process.on('SIGTERM', () => {});
    setInterval(() => {}, 1)
    """,
    """
    addEventListener('unload', () => {
        for (;;) ;
    })
    """,
    """
    addEventListener('beforeunload', (e) => {
        e.preventDefault();
        setTimeout(() => {})
    })
    """,
    """
    process.on('exit', () => {
        for (;;) ;
    });
    process.exit(0)
    """,
    """
    throw {
        get [Symbol.toStringTag]() {
            for (;;) ;
        }
    }
    """,
    """
    throw new (class extends Error {
        get name() {
            for (;;) ;
        }
    })()
    """,
    """
    return_val({
        toString() {
            for (;;) ;
        }
    })
    """,
    "(await import('node:crypto')).pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512')",
    "new (await import('node:sqlite')).DatabaseSync(':memory:').exec("
    "'with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c')",
    """
    process.kill(process.pid, 'SIGSTOP');
    for (;;) ;
    """,
]


@pytest.mark.parametrize("code", sample(TIME))
async def test_javascript_is_killed_at_its_time_limit(local: RuntimeManager, code: str) -> None:
    """Signal handlers and exit handlers cannot delay it, and its slot becomes free."""
    result = await local.run_code(code, "js", 300)
    assert result.outcome is Outcome.TIMEOUT, result
    await until_gone(result)
    await until_active(local, "javascript", 0)


OUTPUT = [
    ("for (;;) console.log('x'.repeat(1000))", "stdout"),
    ("for (;;) console.error('x'.repeat(1000))", "stderr"),
    ("for (;;) Deno.stdout.writeSync(new Uint8Array(1000).fill(120))", "stdout"),
    ("for (;;) await Deno.stderr.write(new Uint8Array(1000).fill(120))", "stderr"),
    (
        """
        const w = Deno.stdout.writable.getWriter();
        for (;;) await w.write(new Uint8Array(1000).fill(120))
        """,
        "stdout",
    ),
    (
        """
        const { writeSync } = await import('node:fs');
        for (;;) writeSync(1, 'x'.repeat(1000))
        """,
        "stdout",
    ),
    (
        """
        const { writeSync } = await import('node:fs');
        for (;;) writeSync(2, 'x'.repeat(1000))
        """,
        "stderr",
    ),
    (
        """
        const f = () => process.stdout.write('x'.repeat(1000), f);
        f();
        f()
        """,
        "stdout",
    ),
    ("for (;;) Deno[Deno.internal].core.print('x'.repeat(1000))", "stdout"),
    (
        """
        Deno.stdout.close();
        for (;;) console.error('x'.repeat(1000))
        """,
        "stderr",
    ),
    ("addEventListener('unload', () => { for (;;) console.log('x'.repeat(1000)) })", "stdout"),
    ("return_val('x'.repeat(2e6))", "ret_val"),
    ("for (;;) return_val('x'.repeat(20_000))", "ret_val"),
]


@pytest.mark.parametrize(("code", "stream"), sample(OUTPUT))
async def test_output_of_javascript_is_limited(local: RuntimeManager, code: str, stream: str) -> None:
    """By every way to write, a stream is cut at the limit, and the program is stopped at twice the limit."""
    result, most = await run_with_neighbour(local, code, "js", max_output_bytes=50_000)
    assert (result.outcome, result.truncated) == (Outcome.OUTPUT_LIMIT, {stream})
    assert len(getattr(result, stream)) <= 50_000
    assert most < 256 * MB


FIND_NONCE = """
const { getHeapSnapshot } = await import("node:v8");
let heap = "";
for await (const part of getHeapSnapshot()) heap += typeof part === "string" ? part : new TextDecoder().decode(part);
const nonces = [...new Set(heap.match(/[0-9a-f]{32}/g))];
const write = (text) => {
  let bytes = new TextEncoder().encode(text);
  while (bytes.length) bytes = bytes.subarray(Deno.stdout.writeSync(bytes));
};
const forge = (text) => nonces.forEach((nonce) => write(`\\0faasrt:${nonce}:${text}\\n`));
"""
FORGERIES = [
    (
        """
        forge(`{"kind":"done"}`);
        for (;;) ;
        """,
        Outcome.OK,
    ),
    (
        """
        forge(`{"kind":"exit"}`);
        Deno.exit(0)
        """,
        Outcome.OK,
    ),
    ('forge(`{"kind":"error","name":"MyError","message":"mine","traceback":5,"line":-1}`)', Outcome.OK),
    (
        """
        forge(`{"kind":"error","name":"MyError","message":"mine"}`);
        for (;;) ;
        """,
        Outcome.USER_ERROR,
    ),
    ('forge(`{"kind":"ret_val","text":7}`)', Outcome.OK),
    ('forge(`{"kind":"started","location":"x"}`)', Outcome.OK),
    (
        r"""
        forge(`{"kind":["done"]}`);
        forge("7");
        forge("{}");
        forge("[".repeat(1e5));
        forge("\xff\0")
        """,
        Outcome.OK,
    ),
    ('forge("[" + "[],".repeat(1e5) + "1]")', Outcome.OK),
    ('forge(`{"kind":"ret_val","text":"` + "x".repeat(9e6))', Outcome.OUTPUT_LIMIT),
    ('for (;;) forge(`{"kind":"ret_val","text":"${"x".repeat(1e5)}"}`)', Outcome.OUTPUT_LIMIT),
    (
        r"""
        write("\0faasrt:" + nonces.at(-1));
        Deno.exit(0)
        """,
        Outcome.OK,
    ),
]


@pytest.mark.parametrize(("code", "outcome"), sample(FORGERIES))
async def test_a_program_that_finds_the_nonce_can_forge_only_its_own_result(
    local: RuntimeManager, code: str, outcome: Outcome
) -> None:
    """The nonce can be found in the heap. The server's memory does not grow, and the next program runs."""
    before = psutil.Process().memory_info().rss
    result = await local.run_code(FIND_NONCE + "console.log(nonces.length > 1);" + code, "js", 30_000)
    assert (result.outcome, result.stdout[:5]) == (outcome, "true\n"), result
    assert psutil.Process().memory_info().rss - before < 64 * MB
    assert (await local.run_code("console.log(1)", "js")).stdout == "1\n"


SPIES = [
    """
    for (const o of [
        JSON, String.prototype, Array.prototype, RegExp.prototype, Uint8Array.prototype, Reflect, Deno,
        TextEncoder.prototype, Object, Deno.stdout, Deno.stderr, globalThis, Error, EventTarget.prototype
    ]) for (const n of Object.getOwnPropertyNames(o)) {
        const real = Object.getOwnPropertyDescriptor(o, n).value;
        if (typeof real === 'function' && !/^[A-Z]|apply/.test(n)) try {
            o[n] = function (...a) {
                note(this, ...a);
                return apply(real, this, a)
            }
        } catch {}
    }
    """,
    """
    Error.prepareStackTrace = (e, s) => {
        for (const f of s) note(f.getThis(), f.getFunction(), f.toString());
        return 'x'
    }
    """,
    "for (const n of ['toJSON', 'kind', 'text', 'nonce', 'code', 'mark']) Object.defineProperty(Object.prototype, n,"
    " { get() { note(this) }, set(v) { note(this, v) } })",
    "Array.prototype[Symbol.iterator] = function* () { note(this) }",
    "for (const f of [return_val, Deno.exit, close, addEventListener]) try { note(f, `${f}`, f.caller) }"
    " catch (e) { note(e) }",
    "note(Deno[Deno.internal], ...Object.values(Deno[Deno.internal].core.ops), await import(Deno.mainModule))",
]


@pytest.mark.parametrize("spy", sample(SPIES))
async def test_replaced_builtins_do_not_see_the_nonce(local: RuntimeManager, spy: str) -> None:
    """Replaced builtins, getters and stack traces see no report."""
    code = f"""
const {{ apply }} = Reflect, {{ inspect }} = Deno, {{ test }} = RegExp.prototype, {{ log }} = console, seen = [];
const note = (...items) => {{ for (let i = 0; i < items.length; i++) seen[seen.length] = items[i] }};
const shown = (item) => {{ try {{ return typeof item === "string" ? item : inspect(item) }} catch {{ return "" }} }};
{spy};
return_val({{ toString() {{ note(new Error().stack); return "mine" }} }});
const count = seen.length;
let found = false;
for (let i = 0; i < count && i < 500; i++) found ||= apply(test, /faasrt:[0-9a-f]{{32}}/, [shown(seen[i])]);
log(count > 0, found);
"""
    result = await local.run_code(code, "js")
    assert (result.outcome, result.ret_val, result.stdout) == (Outcome.OK, "mine", "true false\n"), result


async def test_hostile_programs_do_not_change_the_results_of_others(local: RuntimeManager) -> None:
    """Programs that flood, forge and crash run at the same time as 12 others, whose results stay right."""
    bad = [
        FIND_NONCE + 'forge(`{"kind":"ret_val","text":"forged"}`); forge(`{"kind":"done"}`)',
        "for (;;) return_val('forged')",
        "for (;;) console.log('forged')",
        """
        return_val('forged');
        process.abort()
        """,
    ]
    noise = [local.run_code(code, "js", 1_000, sandbox=SandboxConfig(max_output_bytes=10_000)) for code in bad]
    good = [local.run_code(f"return_val({number}); console.log({number})", "js", 30_000) for number in range(12)]
    results = await asyncio.gather(*good, *noise)
    assert [(r.ret_val, r.stdout) for r in results[:12]] == [(str(n), f"{n}\n") for n in range(12)]


CRASHES = [
    ("process.abort()", Outcome.CRASHED),
    (
        """
        process.kill(process.pid, 'SIGTERM');
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        """
        process.kill(process.pid, 'SIGKILL');
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        """
        import { kill } from 'node:process';
        kill(Deno.pid, 'SIGKILL');
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        """
        const p = globalThis['proc' + 'ess'];
        p.kill(p.pid, 'SIGKILL');
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        """
        const i = Deno[Deno.internal];
        try { delete i.__nodeBootstrapArgs } catch {}
        try { i.__nodeBootstrapArgs = {} } catch {}
        const p = globalThis['proc' + 'ess'];
        p.kill(Deno.pid, 'SIGKILL');
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        "for (const f of Object.values(Deno[Deno.internal].core.ops)) for (const a of [[], [1, 1, 1], [{}, {}, {}]])"
        " try { f(...a) } catch {}",
        Outcome.CRASHED,  # Deno panics
    ),
    ("globalThis['proc' + 'ess'].abort()", Outcome.CRASHED),
    (
        """
        (await import('no' + 'de:proc' + 'ess')).kill(Deno.pid, 'SIGKILL');
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        """
        import { pid } from 'node:process';
        process._kill(pid, 9);
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        """
        process.pid;
        const { op_node_process_kill: kill } = Deno[Deno.internal].core.ops;
        try { kill?.(Deno.pid, 9) } catch {}
        process.kill(Deno.pid, 'SIGKILL');
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        """
        Deno.stdout.close();
        const name = 'proc' + 'ess';
        try { globalThis[name].pid } catch {}
        const { kill } = await import(`node:${name}`);
        kill(Deno.pid, 'SIGKILL');
        for (;;) ;
        """,
        Outcome.CRASHED,
    ),
    (
        """
        Deno.stdout.close();
        Deno.stderr.close()
        """,
        Outcome.CRASHED,
    ),
    (
        """
        const { closeSync } = await import('node:fs');
        closeSync(1);
        closeSync(2);
        throw 1
        """,
        Outcome.CRASHED,
    ),
    ("await Deno.connect({ transport: 'vsock', cid: 1, port: 1 })", Outcome.CRASHED),
    ("function f() { f() } f()", Outcome.USER_ERROR),
    (
        """
        (await import('node:v8')).setFlagsFromString('--stack-size=900000');
        function f() { f() }
        f()
        """,
        None,
    ),
    (
        """
        const bytes = [
            0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10, 5, 1, 3, 0, 0, 11
        ];
        new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array(bytes))).exports.f()
        """,
        Outcome.USER_ERROR,
    ),
    ("process.exit(7)", Outcome.USER_ERROR),
    ("process.reallyExit(7)", Outcome.USER_ERROR),
    ("process.exit(0)", Outcome.OK),
]


@pytest.mark.parametrize(("code", "outcome"), sample(CRASHES))
async def test_a_crash_of_javascript_is_an_outcome(local: RuntimeManager, code: str, outcome: Outcome | None) -> None:
    """However a program ends its own process, the call returns a result and does not raise ServerError."""
    result = await local.run_code(f"console.log('before'); {code}", "js")
    assert outcome is None or result.outcome is outcome, result
    assert result.stdout == "before\n"
    await until_gone(result)


async def test_an_abort_without_a_message_is_a_lack_of_memory_only_after_much_use(local: RuntimeManager) -> None:
    """The parser of JSON aborts if it gets no memory. A program can send the same signal to itself."""
    parsed = await local.run_code("JSON.parse('['.repeat(3e6))", "js", 30_000)
    assert (parsed.outcome, parsed.stderr) == (Outcome.MEMORY_LIMIT, "")
    sent = await local.run_code("Deno.kill(Deno.pid, 'SIGABRT'); for (;;) ;", "js", 30_000)
    assert (sent.outcome, sent.stderr) == (Outcome.CRASHED, "")


async def test_a_program_that_crashes_the_parser_is_crashed(local: RuntimeManager) -> None:
    """The program overflows the stack of Deno's parser, so the outcome is not MEMORY_LIMIT."""
    result = await local.run_code("[" * 1_000_000, "js")
    assert (result.outcome, result.stdout) == (Outcome.CRASHED, ""), result


async def test_many_crashes_of_javascript_leak_nothing(local: RuntimeManager) -> None:
    """Programs still run, and the numbers of descriptors and processes do not grow."""
    crashes = [
        "process.abort()",
        """
        process.kill(process.pid, 'SIGKILL');
        for (;;) ;
        """,
        "Deno.stdout.close()",
    ]

    async def crash(times: int) -> None:
        for _ in range(times):
            results = await asyncio.gather(*(local.run_code(crashes[i % 3], "js") for i in range(4)))
            assert {result.outcome for result in results} == {Outcome.CRASHED}
        await until_active(local, "javascript", 0)

    await crash(1)
    before = psutil.Process().num_fds(), len(psutil.Process().children(recursive=True))
    await crash(7)
    assert (await local.run_code("console.log(1)", "js")).stdout == "1\n"
    # Processes for four programs at once, each with five descriptors and an init, may be kept.
    await until(lambda: psutil.Process().num_fds() <= before[0] + 20)
    await until(lambda: len(psutil.Process().children(recursive=True)) <= before[1] + 8)


NO_STDOUT = [
    (
        """
        import { createServer } from 'node:net';
        createServer().listen({ fd: 1 })
        """,
        "EACCES",
    ),
    (
        """
        import { createServer } from 'node:http';
        createServer().listen({ fd: 1 })
        """,
        "EACCES",
    ),
    (
        """
        import { createServer } from 'node:net';
        createServer().on('error', () => {}).listen({ fd: 1 })
        """,
        "",
    ),
    (
        """
        import { Socket } from 'node:net';
        new Socket({ fd: 1 }).destroy()
        """,
        "",
    ),
    (
        """
        import { Socket } from 'node:net';
        new Socket({ fd: 1 }).write('x')
        """,
        "EBADF",
    ),
    (
        """
        import { Socket } from 'node:net';
        new Socket({ fd: 1 }).destroy();
        setInterval(() => {}, 1)
        """,
        "",
    ),
    (
        """
        import { closeSync } from 'node:fs';
        closeSync(1)
        """,
        "",
    ),
    ("await Deno.stdout.writable.close()", ""),
]


@pytest.mark.parametrize(("code", "words"), sample(NO_STDOUT))
async def test_a_program_that_closes_stdout_is_crashed(local: RuntimeManager, code: str, words: str) -> None:
    """It cannot report its end any more, so it is stopped at once, before its time limit."""
    result = await local.run_code(code, "js", 30_000)
    assert (result.outcome, result.metadata["timed_out"]) == (Outcome.CRASHED, False), result
    assert words in result.stderr
    await until_gone(result)


@pytest.mark.parametrize(
    ("code", "outcome", "stdout"),
    [
        (
            """
            import { createServer } from 'node:net';
            createServer().listen({ fd: 0 })
            """,
            Outcome.USER_ERROR,
            "",
        ),
        (
            """
            import { createServer } from 'node:net';
            createServer().listen({ fd: 2 })
            """,
            Outcome.USER_ERROR,
            "",
        ),
        (
            """
            import { createServer } from 'node:net';
            createServer().listen({ fd: 3 })
            """,
            Outcome.USER_ERROR,
            "",
        ),
        (
            """
            import { Socket } from 'node:net';
            new Socket({ fd: 0 });
            console.log('x')
            """,
            Outcome.OK,
            "x\n",
        ),
        (
            """
            Deno.stdin.close();
            Deno.stderr.close();
            console.log('x')
            """,
            Outcome.OK,
            "x\n",
        ),
        (
            """
            import { closeSync } from 'node:fs';
            closeSync(0);
            closeSync(2);
            console.log('x')
            """,
            Outcome.OK,
            "x\n",
        ),
        ("process.stdout.end('x')", Outcome.OK, "x"),
    ],
)
async def test_a_program_may_close_other_descriptors(
    local: RuntimeManager, code: str, outcome: Outcome, stdout: str
) -> None:
    """Changes to descriptors other than stdout, or to Node's streams, do not cause CRASHED."""
    result = await local.run_code(code, "js", 30_000)
    assert (result.outcome, result.stdout) == (outcome, stdout), result
