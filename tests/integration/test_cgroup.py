"""Cgroups around programs. Most of these tests need a delegated cgroup, with the tests in a child of it.

systemd-run --pipe -p Delegate=yes -p DelegateSubgroup=tests -d .venv/bin/pytest tests/integration/test_cgroup.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import psutil
import pytest

from faasrt import Outcome
from support.helpers import manager_for
from support.levels import NATIVE
from support.served import Caller, until
from support.tables import block

pytestmark = NATIVE

_MEMORY_MB = 16
_SERVER = f"""
import asyncio, sys
from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
async def main():
    limits = SandboxConfig(memory_limit_mb={_MEMORY_MB})
    engines = {{"python": "native"}}
    async with LocalFaaS(["python", "js"], workers=1, sandbox=limits, level=sys.argv[1], engines=engines) as faas:
        for language in ("python", "js"):
            await faas.wait_ready(language)
        print(faas.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""
# Enter a cgroup, and execute the rest; in the second case as the root of a cgroup namespace, like a container.
_ENTER = 'echo 0 > "$0" && exec "$@"'
_UNSHARE = "unshare -Cm" if os.getuid() == 0 else "unshare --user --map-current-user --keep-caps -Cm"
_ENTER_AS_ROOT = f"""
echo 0 > "$0" && exec {_UNSHARE} /bin/sh -c 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"' sh "$@"
"""
# 80 MiB of full pipes and page tables, in few processes with little memory of their own.
_KERNEL_MEMORY = """
import gc, mmap, os
gc.disable()
def hold():
    for _ in range(110):
        _, end = os.pipe()
        os.set_blocking(end, False)
        try:
            while True: os.write(end, block)
        except BlockingIOError:
            pass
    size = 2**30
    tables = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
    for at in range(0, size, 2**21):
        tables[at]
    os.write(ready, b"1")
    os.read(never, 1)
block = bytes(4096)
done, ready = os.pipe()
never, keep = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        hold()
for _ in range(8):
    os.read(done, 1)
print("held")
"""


def _own_cgroup(pid: int | str = "self") -> Path:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return Path("/sys/fs/cgroup" + next((line[3:] for line in lines if line.startswith("0::")), "/"))


@pytest.fixture
def tree() -> Iterator[Path]:
    """A cgroup that is marked as delegated, with a child `leaf`."""
    parent = _own_cgroup().parent
    try:
        if os.getxattr(parent, "user.delegate") != b"1":
            raise PermissionError
        (parent / "cgroup.subtree_control").write_text("+memory +pids")
    except OSError:
        pytest.skip("the parent of the own cgroup (version 2, with memory and pids) is not delegated to this user")
    folder = parent / f"tests-{os.urandom(4).hex()}"
    folder.mkdir()
    try:
        (folder / "cgroup.subtree_control").write_text("+memory +pids")
        with contextlib.suppress(OSError):  # not delegated
            (parent / "cgroup.subtree_control").write_text("+cpu")
            (folder / "cgroup.subtree_control").write_text("+cpu")
        tree = folder / "tree"
        (tree / "leaf").mkdir(parents=True)
        os.setxattr(tree, "user.delegate", b"1")
        yield tree
    finally:
        (folder / "cgroup.kill").write_text("1")
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        folder.rmdir()


@attrs.frozen
class _Server(Caller):
    url: str
    process: subprocess.Popen[str]

    async def has_cgroups(self) -> set[bool]:
        return {state["cgroup"] for state in (await self.get("/health"))["languages"].values()}


@contextlib.asynccontextmanager
async def _server(cgroup: Path, level: str = "namespaces", enter: str = _ENTER) -> AsyncIterator[_Server]:
    command = ["/bin/sh", "-c", enter, str(cgroup / "cgroup.procs"), sys.executable, "-c", _SERVER, level]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd="/") as process:
        assert process.stdout is not None
        try:
            yield _Server((await asyncio.to_thread(process.stdout.readline)).strip(), process)
        finally:
            process.kill() if sys.exc_info()[0] else process.communicate()


def _groups(tree: Path) -> set[Path]:
    """Return the cgroups of programs that are in a tree."""
    return {path for path in tree.glob("faasrt-*/*") if path.is_dir()}


def _processes(tree: Path) -> list[psutil.Process]:
    found = []
    for group in _groups(tree):
        with contextlib.suppress(OSError, psutil.Error):
            found += [psutil.Process(int(pid)) for pid in (group / "cgroup.procs").read_text().split()]
    return found


def _empty(tree: Path) -> list[Path]:
    """Return the cgroups of programs in which no process is."""
    found = []
    for group in _groups(tree):
        with contextlib.suppress(OSError):  # it was just removed
            if "populated 0" in (group / "cgroup.events").read_text():
                found.append(group)
    return found


def _kills(tree: Path) -> int:
    """Return the number of processes that the kernel has ended for their memory."""
    events = (path.read_text().split() for path in tree.glob("faasrt-*/memory.events"))
    return sum(int(words[words.index("oom_kill") + 1]) for words in events)


async def _busy(tree: Path) -> psutil.Process:
    """Return one of the processes that wait for programs, once it computes for long."""
    before = [(process, _cpu_s(process)) for process in _processes(tree)]

    def busy() -> list[psutil.Process]:
        return [process for process, cpu_s in before if _cpu_s(process) > cpu_s + 2]

    await until(busy)
    return busy()[0]


def _cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return process.cpu_times().user
    return 0.0


async def _assert_each_program_has_a_cgroup(server: _Server, tree: Path, *, forks: bool = True) -> None:
    assert await server.has_cgroups() == {True}
    before = _groups(tree)
    assert before
    for group in before:
        with contextlib.suppress(FileNotFoundError):
            limits = [(group / name).read_text().strip() for name in ("memory.oom.group", "pids.max")]
            assert limits == ["1", "256"]
            if "cpu" in (tree / "cgroup.controllers").read_text().split():
                assert (group / "cpu.weight").read_text() == "100\n"
    async with manager_for(server.url) as manager:
        fork = block("""
            import os, time
            if os.fork() == 0: time.sleep(60)
            print(open('/proc/self/cgroup').read())
        """)
        for code, language in [(fork if forks else "print(1)", "python"), ("console.log(1)", "js")]:
            result = await manager.run_code(code, language, 20_000)
            assert result.outcome is Outcome.OK, result
            assert "faasrt-" not in result.stdout
        await until(lambda: len(before - _groups(tree)) > 1 and not _empty(tree))


@pytest.mark.parametrize("level", ["namespaces", "filters"])
async def test_each_program_has_a_cgroup(tree: Path, level: str) -> None:
    """It has limits, it holds all processes of the program, and it is removed after the program."""
    async with _server(tree / "leaf", level) as server:
        assert _own_cgroup(server.process.pid) == tree / "leaf"
        await _assert_each_program_has_a_cgroup(server, tree, forks=level == "namespaces")
    assert not list(tree.glob("faasrt-*"))


@pytest.mark.parametrize("delegated_by", ["systemd", "namespace"])
async def test_a_server_that_is_alone_moves_into_a_child(tree: Path, delegated_by: str) -> None:
    """It may do this in a cgroup that has a mark of systemd, or that is the root of its cgroup namespace."""
    if delegated_by == "namespace":
        os.removexattr(tree, "user.delegate")
    async with _server(tree, enter=_ENTER_AS_ROOT if delegated_by == "namespace" else _ENTER) as server:
        assert _own_cgroup(server.process.pid) == tree / "server"
        await _assert_each_program_has_a_cgroup(server, tree)
    assert not list(tree.glob("faasrt-*"))


async def test_a_server_stays_in_a_cgroup_that_is_not_delegated(tree: Path) -> None:
    """Without a mark, the server has no cgroups, does not move, and runs programs."""
    os.removexattr(tree, "user.delegate")
    async with _server(tree) as server, manager_for(server.url) as manager:
        assert await server.has_cgroups() == {False}
        assert _own_cgroup(server.process.pid) == tree
        assert (await manager.run_code("print(1)", "python", 20_000)).outcome is Outcome.OK
        assert [path.name for path in tree.iterdir() if path.is_dir()] == ["leaf"]


async def test_memory_of_the_kernel_counts(tree: Path) -> None:
    """A program whose pipes and page tables exceed its limit is a MEMORY_LIMIT; without cgroups it is not noticed."""
    async with _server(tree / "leaf") as server, manager_for(server.url) as manager:
        result = await manager.run_code(_KERNEL_MEMORY, "python", 30_000)
        assert result.outcome is Outcome.MEMORY_LIMIT, result
        assert _kills(tree) > 0
        result = await manager.run_code("print(1)", "python", 20_000)
        assert (result.outcome, result.stdout) == (Outcome.OK, "1\n")


@pytest.mark.parametrize("level", ["namespaces", "filters"])
async def test_javascript_that_its_cgroup_ends_is_a_memory_limit(tree: Path, level: str) -> None:
    """The limit is lowered here, because those of the process are usually reached first."""
    async with _server(tree / "leaf", level) as server, manager_for(server.url) as manager:
        await server.until_pool("javascript", idle=2)
        running = asyncio.create_task(manager.run_code("for (;;);", "js", 25_000))
        process = await _busy(tree)
        (_own_cgroup(process.pid) / "memory.max").write_text("1M")
        result = await running
        assert result.outcome is Outcome.MEMORY_LIMIT, result


@pytest.mark.parametrize("language", ["python", "js"])
async def test_a_sigkill_without_a_reason_is_a_crash(tree: Path, language: str) -> None:
    """It is not a MEMORY_LIMIT, because the program may have sent it."""
    loop = {"python": "while True: pass", "js": "for (;;);"}[language]
    async with _server(tree / "leaf") as server, manager_for(server.url) as manager:
        await server.until_pool("javascript", idle=2)
        running = asyncio.create_task(manager.run_code(loop, language, 25_000))
        process = await _busy(tree)
        process.kill()
        assert (await running).outcome is Outcome.CRASHED


async def test_a_server_that_was_killed_leaves_nothing_to_the_next_one(tree: Path) -> None:
    """The next server removes the cgroups of a server that was killed, but not those of one that runs."""
    async with _server(tree / "leaf") as first, _server(tree / "leaf") as second:
        both = set(tree.glob("faasrt-*"))
        assert len(both) == 2
        first.process.kill()
        await until(lambda: any("populated 0" in (path / "cgroup.events").read_text() for path in both))
        async with _server(tree / "leaf") as third:
            assert await third.has_cgroups() == {True}
            assert len(both & set(tree.glob("faasrt-*"))) == 1
        async with manager_for(second.url) as manager:
            assert (await manager.run_code("print(1)", "python", 20_000)).outcome is Outcome.OK
