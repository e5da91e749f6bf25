"""The folder of a JavaScript program is the only place that it can change, and is limited and private."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome
from support.levels import NATIVE
from support.served import with_word
from support.threats import FOLDERS, MB, Target, attempt, sample, target_at

pytestmark = [pytest.mark.asyncio(loop_scope="session"), NATIVE]

WAIT = "setInterval(() => {}, 1e6)"
"""A statement, after which a program waits until it is ended."""
EVERYTHING = "--allow-all --no-prompt --no-config --no-lock --cached-only --no-code-cache"


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=FOLDERS, ids=lambda target: f"{target[1]}")
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    async with target_at(request.param, "js", "ts") as target:
        yield target


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=FOLDERS, ids=lambda target: f"{target[1]}")
async def permitted(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    """A server whose programs have all permissions of Deno, so that only the kernel limits them."""
    async with target_at(request.param, "js", permissions=EVERYTHING) as target:
        yield target


OUTSIDE = [
    "return Deno.writeTextFileSync('../x', 'y')",
    "return Deno.writeTextFileSync('/x', 'y')",
    "return Deno.writeTextFileSync('/tmp/../sandbox/x', 'y')",
    "return Deno.writeTextFileSync('/proc/self/cwd/../sandbox/x', 'y')",
    "return Deno.mkdirSync('/sandbox/x')",
    "return Deno.renameSync('given', '/sandbox/x')",
    "return Deno.renameSync('/sandbox/runner.js', 'x')",
    "return Deno.removeSync('/sandbox/runner.js')",
    "return Deno.removeSync('/tmp', { recursive: true }) ?? Deno.statSync('/tmp/none')",
    "return Deno.linkSync('/sandbox/runner.js', 'x')",
    "return Deno.linkSync('/sandbox/deno', 'x')",
    "return Deno.linkSync('/proc/self/fd/0', 'x')",
    "return Deno.symlinkSync('/etc/passwd', 'x')",
    "return Deno.symlinkSync('/proc/self/fd/0', 'x')",
    "return Deno.symlinkSync('given', 'x')",
    "return (await import('node:fs')).symlinkSync('/proc', 'x', 'dir')",
    "return (await import('node:fs')).cpSync('/proc', '/tmp/x', { recursive: true })",
    """
    Deno.chdir('/tmp');
    Deno.chdir('..');
    return Deno.writeTextFileSync('x', 'y')
    """,
    "return Deno.chownSync('given', 0, 0)",
    "return Deno.listen({ transport: 'unix', path: '/tmp/x' })",
    """
    const w = (await import('node:fs')).watch('.');
    return await new Promise((_, fail) => w.on('error', fail))
    """,
]


@pytest.mark.parametrize("body", sample(OUTSIDE))
async def test_nothing_outside_of_the_folder_can_be_used(target: Target, permitted: Target, body: str) -> None:
    """Deno denies it. Where Deno permits it, the kernel denies it. Only regular files of the program are collected."""
    for one in (target, permitted):
        result = await one.run(attempt(body), "js")
        assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
        assert set(result.files) <= {"given"}


EXECUTIONS = [
    """
    Deno.writeTextFileSync('x', '#!/sandbox/deno');
    Deno.chmodSync('x', 0o777);
    return new Deno.Command('/tmp/x').outputSync()
    """,
    """
    Deno.copyFileSync('/sandbox/deno', 'x');
    return new Deno.Command('/tmp/x').outputSync()
    """,
    """
    Deno.copyFileSync(LIBRARY, 'x.so');
    return Deno.dlopen('/tmp/x.so', {})
    """,
    """
    Deno.copyFileSync(LIBRARY, 'x.node');
    return process.dlopen({ exports: {} }, '/tmp/x.node')
    """,
]
LIBRARY = "const LIBRARY = Deno.readTextFileSync('/proc/self/maps').match(/\\S+libm\\.so\\S*/)[0];"


@pytest.mark.parametrize("body", sample(EXECUTIONS))
async def test_a_file_in_the_folder_cannot_be_executed(target: Target, permitted: Target, body: str) -> None:
    """Neither as a program nor as a library, even if Deno permits it."""
    for one in (target, permitted):
        library = LIBRARY if one is permitted and "LIBRARY" in body else "const LIBRARY = 'given';"
        result = await one.run(attempt(f"{library} {body}"), "js", memory_limit_mb=512)
        assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
    denials = ("not permitted", "Permission denied", "failed to map segment", "No space left", "Failed to spawn")
    assert any(words in result.stdout for words in denials), result


async def test_a_loaded_library_can_be_loaded_from_elsewhere(permitted: Target) -> None:
    """The test of execution fails because of the folder, not because of the library."""
    result = await permitted.run(attempt(f"{LIBRARY} return Deno.dlopen(LIBRARY, {{}})"), "js")
    assert result.stdout.startswith("reached"), result


async def test_the_folder_is_private(target: Target) -> None:
    """Neither a program at the same time nor the next one sees a file."""
    look = "console.log([...Deno.readDirSync('.')].map((e) => e.name))"
    leave = f"""
        Deno.writeTextFileSync('left', 'x');
        Deno.makeTempFileSync();
        {look};
        {WAIT}
    """
    async with target.manager.stream_code(leave, "js", files={"given": "x"}, collect=["**"]) as run:
        assert "left" in (await anext(aiter(run))).text
        beside = await target.run(look, "js")
    after = await target.run(look, "js")
    assert beside.stdout == after.stdout == '[ "main.js", "given" ]\n'


FULL = [
    """
    const bytes = new Uint8Array(1e6);
    using f = Deno.openSync('x', { write: true, create: true });
    for (;;) f.writeSync(bytes)
    """,
    """
    const bytes = new Uint8Array(1e5);
    for (let i = 0; ; i++) Deno.writeFileSync(`x${i}`, bytes)
    """,
    "for (let i = 0; ; i++) Deno.writeFileSync(`x${i}`, new Uint8Array())",
    """
    for (let i = 0; ; i++) {
        Deno.mkdirSync('d');
        Deno.chdir('d')
    }
    """,
    "for (let i = 0; ; i++) Deno.linkSync('given', `x${i}`)",
    """
    Deno.truncateSync('given', 1e9);
    return Deno.statSync('given').size
    """,
    """
    using f = Deno.openSync('x', { write: true, create: true });
    f.seekSync(1e10, 0);
    return f.writeSync(new Uint8Array(1))
    """,
    """
    const open = [];
    for (let i = 0; ; i++) open.push(Deno.openSync(`x${i}`, { write: true, create: true }))
    """,
]


@pytest.mark.parametrize("body", sample(FULL))
async def test_the_size_of_the_folder_is_limited(target: Target, body: str) -> None:
    """Its bytes, files, depth and descriptors end with an error, and few files are collected."""
    result = await target.run(attempt(body), "js", timeout_ms=30_000)
    assert (result.outcome, result.stdout.split()[0]) == (Outcome.OK, "denied"), result
    assert any(f"os error {number})" in result.stdout for number in (24, 27, 28, 31, 36)), result
    assert sum(map(len, result.files.values())) <= MB
    assert len(result.files) <= 1_000


async def test_files_count_as_memory(target: Target) -> None:
    """A program may use the memory of its limit and the headroom for files or for buffers, but not for both."""
    files = """
        const bytes = new Uint8Array(1e6).fill(1);
        for (let i = 0; i < 60; i++) Deno.writeFileSync('x', bytes, { append: true });
    """
    buffers = "const kept = Array.from({ length: 60 }, () => new Uint8Array(1e6).fill(1));"
    stay = "await new Promise((r) => setTimeout(r, 500));"  # the launcher counts several times
    programs = (f"{files} {stay}", f"{buffers} {stay}", f"{files} {buffers} {WAIT}")
    results = [await target.run(code, "js", memory_limit_mb=32) for code in programs]
    assert [result.outcome for result in results] == [Outcome.OK, Outcome.OK, Outcome.MEMORY_LIMIT]


async def test_the_jail_is_opened_again_after_its_launcher_was_killed(target: Target) -> None:
    """The kill affects only programs with a folder."""
    assert (await target.run("1", "js")).outcome is Outcome.OK
    others, launcher = sorted(with_word(target.server.children(), "server.recv"), key=psutil.Process.create_time)
    launcher.kill()  # the jail with a folder is opened by the first program that needs it
    assert (await target.manager.run_code("1", "js")).outcome is Outcome.OK
    result = await target.run("Deno.writeTextFileSync('a', 'b')", "js")
    assert dict(result.files) == {"a": b"b", "given": b"x"}
    assert others.is_running()
