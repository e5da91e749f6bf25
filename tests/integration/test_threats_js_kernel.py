"""The jail holds even if Deno grants a JavaScript program all permissions."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome
from faasrt.local.jail.launcher import seccomp
from faasrt.local.jail.launcher.syscalls import NUMBERS
from support.served import until, with_word
from support.threats import CONTAINERS, SPILL, TARGETS, Target, attempt, sample, target_at

pytestmark = pytest.mark.asyncio(loop_scope="session")

EVERYTHING = "--allow-all --no-prompt --no-config --no-lock --cached-only --no-code-cache"
# Denials by the kernel, in the words of Deno, Node and SQLite.
DENIALS = re.compile(
    "os error (1|2|13|21|30)|EPERM|EACCES|ENOENT|code -13|fetch failed|unable to open|disk I/O error|Failed to start"
    "|not a writable directory|Command failed|not permitted|Failed to spawn|cannot open shared object"
    "|EAI_AGAIN|queryA|Module not found|not found in cache"
)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="session",
    params=[*TARGETS, *CONTAINERS],
    ids=lambda target: f"{target[0]}-{target[1]}",
)
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    async with target_at(request.param, "js", permissions=EVERYTHING) as target:
        yield target


FILES = [
    "return Deno.readTextFileSync('/etc/passwd')",
    "return Deno.readTextFileSync('CANARY')",
    "return Deno.readTextFileSync('/proc/self/root/etc/passwd')",
    "return Deno.readTextFileSync('/proc/PID/environ')",
    "return Deno.readTextFileSync('/proc/1/environ')",
    "return Deno.openSync('/proc/1/mem')",
    "return [...Deno.readDirSync('/proc/1/fd')]",
    "return Deno.openSync('/proc/self/fd/3/../../../../etc/passwd')",
    "return [...Deno.readDirSync('FOLDER')]",
    "return [...Deno.readDirSync('/proc/PID')]",
    "return [...Deno.readDirSync('/proc/self/fd/0')]",
    "return Deno.statSync('CANARY')",
    "return Deno.realPathSync('CANARY')",
    "return Deno.writeTextFileSync('/tmp/x', 'y')",
    "return Deno.writeTextFileSync('/var/tmp/x', 'y')",
    "return Deno.writeTextFileSync('/dev/shm/x', 'y')",
    "return Deno.writeTextFileSync('FOLDER/new', 'y')",
    "return Deno.writeTextFileSync('CANARY', 'y')",
    "return Deno.writeTextFileSync('/proc/self/oom_score_adj', '0')",
    "return Deno.writeTextFileSync('/proc/self/comm', 'x')",
    "return Deno.openSync(Deno.execPath(), { write: true })",
    "return Deno.truncateSync('CANARY', 0)",
    "return Deno.removeSync('CANARY')",
    "return Deno.renameSync('CANARY', 'FOLDER/new')",
    "return Deno.linkSync('CANARY', '/tmp/x')",
    "return Deno.symlinkSync('CANARY', '/tmp/x')",
    "return Deno.mkdirSync('/tmp/x')",
    "return Deno.chmodSync('CANARY', 0o777)",
    "return Deno.chownSync('CANARY', 0, 0)",
    "return Deno.utimeSync('CANARY', 1, 1)",
    "return Deno.chdir('/')",
    "return Deno.makeTempFileSync()",
    "return Deno.makeTempDirSync({ dir: '/var/tmp' })",
    "return Deno.openSync('/dev/tty')",
    "return Deno.openSync('/dev/kmsg')",
    "return Deno.watchFs('/')",
    "return await (await fetch('file:///etc/passwd')).text()",
    "return await import('file://CANARY', { with: { type: 'json' } })",
    "return (await import('node:fs')).readFileSync('CANARY', 'utf8')",
    "return (await import('node:fs')).mkdtempSync('/var/tmp/x')",
    "return (await import('node:fs')).statfsSync('/')",
    "return (await import('node:v8')).writeHeapSnapshot('/var/tmp/x')",
    "return new (await import('node:sqlite')).DatabaseSync('CANARY')",
    "return new (await import('node:sqlite')).DatabaseSync('/var/tmp/x').exec('create table t(a)')",
    "return new (await import('node:sqlite')).DatabaseSync(':memory:').exec(`vacuum into '/var/tmp/x'`)",
    SPILL,
    "return new (await import('node:sqlite')).DatabaseSync(':memory:').exec(`pragma temp_store_directory='/var/tmp'`)",
]
NETWORK = [
    """
    const r = new (process.binding('tcp_wrap').TCP)(1).listen(5);
    if (r) throw new Error('code ' + r);
    return r
    """,
    """
    const s = new (await import('node:net')).Socket();
    s.on('error', () => {});
    s.connect(TCP_PORT, '127.0.0.1');
    const r = new s._handle.constructor(1).listen(5);
    if (r) throw new Error('code ' + r);
    return r
    """,
    """
    const t = new (process.binding('tcp_wrap').TCP)(1), b = t.bind('0.0.0.0', 0) || t.listen(5);
    if (b) throw new Error('code ' + b);
    return b
    """,
    """
    const t = new (process.binding('udp_wrap').UDP)(), b = t.bind('0.0.0.0', 0, 0);
    if (b) throw new Error('code ' + b);
    return b
    """,
    "return await Deno.connect({ port: TCP_PORT })",
    "return await Deno.connectTls({ port: TCP_PORT, hostname: '127.0.0.1' })",
    "return Deno.listen({ port: 0 })",
    "return Deno.serve({ port: 0 }, () => new Response(''))",
    "return Deno.listen({ transport: 'unix', path: '/tmp/x' })",
    "return await Deno.connect({ transport: 'unix', path: '/run/x' })",
    "return await fetch('http://127.0.0.1:TCP_PORT')",
    "return await fetch('https://canary.test')",
    "return Deno.networkInterfaces()",
    "return await tried((await import('node:net')).createServer().listen(0))",
    "return await tried((await import('node:net')).connect(TCP_PORT, '127.0.0.1'))",
    "return await tried((await import('node:http')).createServer().listen(0))",
    "return await tried((await import('node:http')).get('http://127.0.0.1:TCP_PORT'))",
    "return await tried((await import('node:dgram')).createSocket('udp4').bind(0))",
    """
    const s = (await import('node:dgram')).createSocket('udp4');
    s.send('x', UDP_PORT, '127.0.0.1');
    return await tried(s)
    """,
    "return await (await import('node:dns/promises')).lookup('canary.test')",
    """
    const r = new (await import('node:dns/promises')).Resolver();
    r.setServers(['127.0.0.1:UDP_PORT']);
    return await r.resolve4('canary.test')
    """,
    "return (await import('node:inspector')).open(0)",
    "return await import('http://127.0.0.1:TCP_PORT/x.js')",
]
PROCESSES = [
    "return new Deno.Command('/bin/true').outputSync()",
    "return new Deno.Command(Deno.execPath(), { args: ['eval', '1'] }).outputSync()",
    "return new Deno.Command('/proc/self/exe', { args: ['eval', '1'] }).outputSync()",
    "return (await import('node:child_process')).execSync('id')",
    """
    const r = (await import('node:child_process')).spawnSync(Deno.execPath(), ['-V']);
    if (r.status === undefined) throw new Error('not permitted');
    return r.status
    """,
    "return Deno.kill(1, 'SIGURG')",
    "return Deno.kill(PID, 'SIGURG')",
    "return process.kill(PID, 0)",
    "return process.kill(0, 0)",
    "return process.kill(-1, 0)",
    "return process.setuid(0)",
    "return process.setgid(0)",
    "return (await import('node:os')).setPriority(PID, 19)",
    "return (await import('node:os')).setPriority(0, -20)",
    "return Deno.dlopen('CANARY', {})",
]
# A program with a folder can do this.
USES_OF_FOLDER = {
    SPILL,
    "return Deno.writeTextFileSync('/tmp/x', 'y')",
    "return Deno.mkdirSync('/tmp/x')",
    "return Deno.makeTempFileSync()",
    "return Deno.chdir('/')",
}
TRIED = """
    const tried = (e) => new Promise((done, fail) => {
        for (const n of ['connect', 'response', 'listening']) e.on(n, () => done(n));
        e.on('error', fail);
    });
"""


@pytest.mark.parametrize("body", sample([*FILES, *NETWORK, *PROCESSES]))
async def test_the_kernel_denies_files_network_and_processes(target: Target, body: str) -> None:
    """Files, sockets, processes and signals are denied, although Deno permits them."""
    denied = not (target.has_folder and body in USES_OF_FOLDER)
    canary, before = target.canaries[0], target.canaries[0].stat()
    values = {"CANARY": str(canary), "FOLDER": str(canary.parent), "PID": str(target.server.pid)}
    for name, value in values.items():
        body = re.sub(rf"\b{name}\b", value, body)
    result = await target.run(f"{TRIED} {attempt(body)}", "js")
    assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied" if denied else "reached"), result
    assert not denied or DENIALS.search(result.stdout), result
    assert await target.sink.all_received() == []
    after = canary.stat()
    assert (after.st_mtime_ns, after.st_mode, after.st_nlink) == (before.st_mtime_ns, before.st_mode, before.st_nlink)
    assert not (canary.parent / "new").exists()


SYSCALL = """
const libc = Deno.dlopen("libc.so.6", {
  syscall: { parameters: Array(7).fill("i64"), result: "i64" },
  __errno_location: { parameters: [], result: "pointer" },
});
const errno = new Deno.UnsafePointerView(libc.symbols.__errno_location());
const call = (number, ...values) => {
  const result = libc.symbols.syscall(BigInt(number), ...Array.from({ length: 6 }, (_, i) => BigInt(values[i] ?? 0)));
  return result < 0n ? -errno.getInt32() : Number(result);
};
"""
EPERM, EACCES, EINVAL, ENOSYS, ENOTTY = -1, -13, -22, -38, -25


async def test_unlisted_system_calls_are_denied(target: Target) -> None:
    """Native code tries all system calls that the filter does not list, and some of the x32 interface."""
    policy = "deno-files" if target.has_folder else "deno" if target.level == "namespaces" else "deno-filters"
    allowed = seccomp.rules_of(policy, target.server.pid).keys() - set(seccomp.ABSENT_CALLS)
    # uretprobe and uprobe of x86-64 pass every filter, and kill a process that has no probe.
    numbers = sorted(set(range(600)) - {NUMBERS[name] for name in allowed if name in NUMBERS} - {335, 336})
    code = f"{SYSCALL} console.log(JSON.stringify({numbers}.map((n) => [n, call(n, -1, -1, -1, -1, -1, -1)])))"
    result = await target.run(code, "js")
    assert result.outcome is Outcome.OK, result
    answers = dict(json.loads(result.stdout))
    assert len(answers) == len(numbers) > 400
    assert {number: answer for number, answer in answers.items() if answer not in (EPERM, ENOSYS)} == {}
    code = f"{SYSCALL} console.log(JSON.stringify([39, 57, 59, 41].map((n) => call(n + 0x40000000))))"
    if "fork" in NUMBERS:  # on x86-64
        assert json.loads((await target.run(code, "js")).stdout) == [ENOSYS] * 4


# Calls that are allowed with other arguments: the name, the arguments, the possible results.
ARGUMENTS: list[tuple[str, list[Any], set[int]]] = [
    ("socket", [1, 1, 0], {EACCES}),
    ("socket", [2, 1, 0], {EACCES}),
    ("socket", [16, 3, 0], {EACCES}),
    ("socket", [40, 1, 0], {EACCES}),
    ("socketpair", [2, 1, 0, 0], {EACCES}),
    ("clone", [17, 0, 0, 0, 0], {EPERM}),  # SIGCHLD: a process
    ("clone", [0x100 | 17, 0, 0, 0, 0], {EPERM}),
    ("clone", [0x10100 | 0x800 | 0x10000000, 0, 0, 0, 0], {EPERM}),  # a thread in a user namespace
    ("clone", [0x10100 | 0x800 | 0x20000, 0, 0, 0, 0], {EPERM}),
    ("clone", [0x10100 | 0x800 | 0x80, 0, 0, 0, 0], {EPERM}),
    ("kill", [1, 0], {EPERM}),
    ("kill", [-1, 0], {EPERM}),
    ("kill", [0, 0], {EPERM}),
    ("kill", ["PID", 0], {EPERM}),
    ("sched_setaffinity", [1, 0, 0], {EPERM}),
    ("clock_gettime", [-14, 0], {EINVAL}),  # the CPU time of process 1
    ("tgkill", ["PID", "PID", 0], {EPERM}),
    ("prlimit64", ["PID", 7, 0, 0], {EPERM}),
    ("prlimit64", [0, 7, 1, 0], {EPERM}),
    ("prlimit64", [0, 4, 1, 0], {EPERM}),  # the limit of core dumps
    ("execveat", [3, 0, 0, 0, 0x1000], {EPERM}),
    ("execveat", [seccomp.EXECUTABLE_FD, 0, 0, 0, 0x1000], {-9, -14}),  # the descriptor is closed
    ("ioctl", [0, 0x5412, 0], {ENOTTY}),  # TIOCSTI
    ("ioctl", [1, 0x541C, 0], {ENOTTY}),  # TIOCLINUX
    ("fcntl", [0, 1031, 1 << 20], {EPERM}),  # the size of a pipe
    ("fcntl", [0, 8, "PID"], {EPERM}),  # signals to others
    ("fcntl", [0, 1026, 0x8000_0001], {EPERM}),
    ("prctl", [4, 1, 0, 0, 0], {EPERM}),
    ("prctl", [22, 0, 0, 0, 0], {EPERM}),
    ("prctl", [35, 1, 0, 0, 0], {EPERM}),
    ("sendto", [0, 0, 0, 0, 1, 16], {EPERM}),
]


async def test_dangerous_arguments_of_system_calls_are_denied(target: Target) -> None:
    """Some calls are allowed, but not with these arguments."""
    pid = target.server.pid
    calls = [(NUMBERS[name], [pid if value == "PID" else value for value in values]) for name, values, _ in ARGUMENTS]
    code = f"{SYSCALL} console.log(JSON.stringify({json.dumps(calls)}.map(([n, values]) => call(n, ...values))))"
    result = await target.run(code, "js")
    answers = json.loads(result.stdout)
    assert len(answers) == len(ARGUMENTS)
    wrong = [(*call[:2], answer) for call, answer in zip(ARGUMENTS, answers, strict=True) if answer not in call[2]]
    assert wrong == []


async def test_descriptors_and_their_memory_are_limited(target: Target) -> None:
    """A program has at most 64 descriptors, or 256 if it has a folder, and none from the server.

    Data in pairs of sockets uses little memory.
    """
    code = f"""{SYSCALL}
const pair = new Int32Array(2), address = Deno.UnsafePointer.value(Deno.UnsafePointer.of(pair));
const data = new Uint8Array(1 << 16), from = Deno.UnsafePointer.value(Deno.UnsafePointer.of(data));
const open = [];
for (let fd = 0; fd < 1024; fd++) if (call({NUMBERS["fcntl"]}, fd, 1) >= 0) open.push(fd);
let bytes = 0, last;
for (;;) {{
  last = call({NUMBERS["socketpair"]}, 1, 1 | 0o4000, 0, address);
  if (last < 0) break;
  for (let n; (n = call({NUMBERS["write"]}, pair[0], from, data.length)) > 0; ) bytes += n;
}}
console.log(JSON.stringify([open.length, open.at(-1), bytes, last]));
"""
    result = await target.run(code, "js")
    assert result.outcome is Outcome.OK, result
    count, largest, size, last = json.loads(result.stdout)
    most = 256 if target.has_folder else 64
    assert (count < 40, largest < most, last) == (True, True, -24)
    assert size < 32 * 2**20


async def test_a_program_sees_nothing_of_the_machine(target: Target) -> None:
    """With namespaces it sees its own process, user and host name. Without, it sees an unprivileged user."""
    code = """
const list = (path) => { try { return [...Deno.readDirSync(path)].map((e) => e.name) } catch { return [] } };
const env = Object.keys(Deno.env.toObject());
console.log(JSON.stringify({ root: list("/"), proc: list("/proc"), uid: Deno.uid(), gid: Deno.gid(), env,
  host: Deno.hostname(), path: Deno.execPath(), main: Deno.mainModule }));
"""
    seen = json.loads((await target.run(code, "js")).stdout)
    assert set(seen["env"]) == {"DENO_DIR", "DENO_EMIT_CACHE_MODE", "DENO_NO_UPDATE_CHECK", "HOME", "NO_COLOR"}
    assert str(target.canaries[0].parent) not in json.dumps(seen)
    if target.in_pod:
        assert (seen["root"], seen["proc"], seen["uid"], seen["host"]) == ([], [], 1000, "sandbox")
    elif target.level == "namespaces":
        assert set(seen["root"]) <= {"tmp", "proc", "lib", "lib64", "usr", "sandbox"}
        (own,) = set(seen["proc"]) - {"self", "thread-self"}
        assert int(own) > 1
        assert (seen["uid"], seen["gid"], seen["host"]) == (1000, 1000, "sandbox")
        assert (seen["path"], seen["main"]) == ("/sandbox/deno", "file:///sandbox/runner.js")
    else:
        assert (seen["root"], seen["proc"]) == ([], [])
        own = target.server.uids().real
        assert seen["uid"] == seen["gid"]
        assert seen["uid"] == own if own else seen["uid"] >= 1_879_100_000


FACTS = """
const lines = Deno.readTextFileSync("/proc/self/status").split("\\n");
const names = /^(Umask|Sig[^Q]|Shd|Cap|Cpus_allowed|NoNewPrivs|Seccomp|Uid|Gid)/;
const list = (path) => [...Deno.readDirSync(path)].map((entry) => entry.name).sort();
console.log(JSON.stringify([Deno.pid, lines.filter((line) => names.test(line)),
  Deno.readTextFileSync("/proc/self/limits"), list("/proc/self/fd"), list("/proc").length]));
"""


async def test_a_program_leaves_nothing_to_the_next_one(target: Target) -> None:
    """With namespaces, several programs run in one slot, one after another: their pids show it. The second one of two
    programs has the same signals, limits, descriptors and so on as the first one, which has changed its own.
    """
    if target.level != "namespaces":
        pytest.skip("each program has a jail of its own")
    if target.in_pod:
        pytest.skip("there programs see nothing of /proc, which has the facts")
    change = f"""{SYSCALL}
const bytes = new Int32Array([1, -1, -1, 600]), at = Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes));
call({NUMBERS["umask"]}, 0);
call({NUMBERS["sched_setaffinity"]}, 0, 4, at);
call({NUMBERS["rt_sigprocmask"]}, 2, at, 0, 8);
call({NUMBERS["setitimer"]}, 0, at, 0);
for (let n = 0; n < 9; n++) call({NUMBERS["socketpair"]}, 1, 1, 0, at);
"""
    pids, facts = [], []
    for number in range(8):
        result = await target.run(FACTS + (change if number % 2 else ""), "js")
        assert result.outcome is Outcome.OK, result
        pid, *others = json.loads(result.stdout)
        pids.append(pid)
        facts.append(others)
    assert all(others == facts[0] for others in facts)
    pids.sort()
    if not target.has_folder:
        assert any(0 < after - before < 60 for before, after in itertools.pairwise(pids)), pids


async def test_the_process_of_a_program_has_no_privileges(target: Target) -> None:
    """Seen from the host, it has a seccomp filter, no_new_privs, no capabilities, and is not root. It leaves no core
    dumps, neither as files nor for a program of the host.

    With namespaces it also has its own PID namespace.
    """
    ours = target.server
    found: list[psutil.Process] = []

    def waiting() -> bool:
        """Return whether a process waits for a program. The pool may be being refilled."""
        found[:] = with_word(ours.children(recursive=True), "deno run")
        return found != []

    await until(waiting)
    lines = Path(f"/proc/{found[0].pid}/status").read_text().splitlines()
    status = {line.split(":")[0]: line.split()[1:] for line in lines}
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    limits = Path(f"/proc/{found[0].pid}/limits").read_text()
    assert re.search(r"^Max core file size +1 +1 ", limits, re.MULTILINE)
    own = ours.uids().real
    # Only root can clear the bounding set, which no_new_privs makes useless.
    bounds = ["CapBnd"] if target.level == "namespaces" or own == 0 else []
    assert {status[name][0] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", *bounds)} == {"0" * 16}
    if own == 0:
        assert "0" not in status["Uid"] + status["Gid"]
    if target.level == "namespaces":
        assert len(status["NSpid"]) == 3
