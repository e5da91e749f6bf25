"""Native Python cannot escape its jail at the level `users`: a uid and a folder for each program, without namespaces.

The server runs as root in an emulated container with Docker's default profile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
import pytest_asyncio

from faasrt import FaasrtError, Outcome
from support.native_attacks import (
    BOUNDED,
    DENIED_FOR_USERS,
    ENDS,
    FORGERIES,
    LEFTOVERS,
    LOST_SLOTS,
    MEMORY,
    PRELUDE,
    WRITE,
    attempt,
)
from support.served import processes_of, until
from support.threats import USERS, Host, beside_another, host_of, sample

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can run each program as a user of its own"),
]
_FIRST_UID = 1_879_100_000
_WARM = 3  # the most programs that wait on the two workers
# Ways to use the disk, and the outcome of each.
DISK = {
    "files": "for i in range(1000):\n    open(f'f{i}', 'wb').write(b'x' * 2**25)",
    "files of many processes": dedent("""
        for _ in range(20):
            if not os.fork(): break
        for i in range(1000): open(f'{os.getpid()}-{i}', 'wb').write(b'x' * 2**25)
    """),
    "deleted files": dedent("""
        x = []
        for i in range(200):
            x.append(open('f', 'wb'))
            os.unlink('f')
            x[-1].write(b'x' * 2**25)
        signal.pause()
    """),
    "deleted files of a process that cannot be read": dedent("""
        import shutil
        shutil.copy('/bin/sh', 'x')
        os.chmod('x', 0o111)
        for i in range(3):
            file = os.open('f', 65)
            os.unlink('f')
            os.set_inheritable(file, True)
            subprocess.Popen(['./x', '-c', 'echo; read a'], stdout=-1, stdin=-1, close_fds=False).stdout.readline()
            for _ in range(30): os.write(file, bytes(2**20))
            os.close(file)
        signal.pause()
    """),
    "deleted files of a process without its first thread": dedent("""
        import threading
        def run():
            for i in range(3):
                file = os.open('f', 65)
                os.unlink('f')
                for _ in range(30): os.write(file, bytes(2**20))
            signal.sigwait([10])
        threading.Thread(target=run).start()
        libc.syscall(60, 0)
    """),
    **{
        f"deleted files in memory, in {folder}": dedent(f"""
            os.makedirs('{folder}')
            for i in range(20):
                file = os.open('{folder}/sem.x', os.O_CREAT | os.O_RDWR)
                os.unlink('{folder}/sem.x')
                os.write(file, bytes(2**22))
                call(9, 0, 4096, 1, 1, file, 0)
                os.close(file)
            signal.pause()
        """)
        for folder in ("d", "dev/shm")
    },
    "empty files in /dev/shm": dedent("""
        for i in range(10_000): open(f'/dev/shm/faasrt-{os.getpid()}-{i}', 'w').close()
        signal.pause()
    """),
    "files in /dev/shm": dedent("""
        for i in range(100): open(f'/dev/shm/faasrt-{os.getpid()}-{i}', 'wb').write(b'x' * 2**22)
        signal.pause()
    """),
    "inodes": "for i in range(10**6): open(str(i), 'w').close()",
    "deep folders": dedent("""
        for i in range(3000):
            os.mkdir('d')
            os.chdir('d')
        signal.pause()
    """),
}
MORE_ENDS = {
    "a chain of processes": dedent("""
        def chain():
            while True:
                if os.fork(): os._exit(0)
        if not os.fork(): chain()
        time.sleep(0.2)
    """),
    "stopped children": dedent("""
        for _ in range(20):
            if not os.fork(): os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.2)
    """),
    "threads that fork": dedent("""
        import threading
        def run():
            while True:
                try: os.fork() or time.sleep(100)
                except OSError: pass
        for _ in range(8): threading.Thread(target=run, daemon=True).start()
        time.sleep(0.2)
        os._exit(0)
    """),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def host() -> AsyncIterator[Host]:
    async with host_of(USERS[0], "users") as one:
        yield one


@pytest.mark.parametrize("name", sample(DENIED_FOR_USERS))
async def test_the_jail_denies_each_attack(host: Host, name: str) -> None:
    """Each attack in the tables fails, and nothing is sent to the host."""
    async with beside_another(host) if "OTHER" in DENIED_FOR_USERS[name] else contextlib.nullcontext(host) as one:
        result = await one.run(attempt(DENIED_FOR_USERS[name]))
    assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), result
    assert result.metadata["level"] == "users"
    assert await host.sink.all_received() == []


async def test_processes_of_a_program_can_share_memory(host: Host) -> None:
    """The memory is a file in the folder of the program, where it counts."""
    code = """
        import mmap, os
        shared = mmap.mmap(-1, 10)
        if not os.fork():
            shared[:5] = b"child"
            os._exit(0)
        os.wait()
        print(shared[:5])
    """
    assert (await host.run(dedent(code))).stdout == "b'child'\n"


async def test_a_program_has_a_uid_and_a_folder_of_its_own(host: Host) -> None:
    """It may have threads, processes, semaphores and a database there."""
    code = """
        import multiprocessing, os, sqlite3, subprocess, tempfile, threading
        print(os.getuid(), os.getcwd() == os.environ["HOME"] == tempfile.gettempdir(), os.listdir())
        with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, 2]))
        print(sqlite3.connect("x.db").execute("select 1").fetchall(), subprocess.getoutput("cat main.py | wc -c") > "1")
    """
    results = await asyncio.gather(host.run(dedent(code)), host.run(dedent(code)))
    uids = {int(result.stdout.split()[0]) for result in results}
    assert os.getuid() not in uids
    assert min(uids) >= _FIRST_UID
    for result in results:
        assert result.stdout.split("\n")[0].endswith("True ['main.py']"), result
        assert result.stdout.split("\n")[1:] == ["[1, 2]", "[(1,)] True", ""], result


@pytest.mark.parametrize("name", sample(name for name, code in MEMORY.items() if "/proc" not in code))
async def test_all_memory_counts_against_the_limit(host: Host, name: str) -> None:
    """Memory of child processes counts, and so does kernel memory. There are no sockets with names."""
    result = await host.run_with_neighbour(f"{PRELUDE}\n{MEMORY[name].replace('/tmp/', '')}")
    refused = result.outcome is Outcome.USER_ERROR and "PermissionError" in result.stderr
    assert result.outcome is Outcome.MEMORY_LIMIT or (
        refused and ("unix(" in MEMORY[name] or "send_fds" in MEMORY[name])
    )


@pytest.mark.parametrize("name", sample(DISK, 3))
async def test_the_disk_is_limited(host: Host, name: str) -> None:
    """A program that uses more than the limit is ended, and nothing of its files is left. Other programs run."""
    result = await host.run_with_neighbour(f"{PRELUDE}\n{DISK[name]}", 15_000)
    assert result.outcome in (Outcome.MEMORY_LIMIT, Outcome.USER_ERROR), result
    await until(lambda: len(_homes(host)) <= _WARM)
    await until(lambda: not [*Path("/dev/shm").glob("faasrt-*-*")])


async def test_deleted_files_count_while_others_free_as_much(host: Host) -> None:
    """The free space of the machine does not show them."""
    code = dedent("""
        for i in range(20):
            x = os.open('f', os.O_CREAT | os.O_RDWR)
            os.unlink('f')
            os.write(x, bytes(2**22))
            os.write(1, b'.')
            time.sleep(0.1)
        signal.pause()
    """)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        others = [Path(folder, str(number)) for number in range(25)]
        for other in others:
            other.write_bytes(bytes(2**22))
        async with host.manager.stream_code(f"{PRELUDE}\n{code}", "python", timeout_ms=10_000) as run:
            async for chunk in run:
                for _ in chunk.text:
                    others.pop().unlink()
    assert run.result.outcome is Outcome.MEMORY_LIMIT, run.result


@pytest.mark.parametrize("name", sample(BOUNDED))
async def test_kernel_resources_are_limited(host: Host, name: str) -> None:
    """A program gets a limited number of processes and kernel objects. Other programs run meanwhile."""
    body, most = BOUNDED[name]
    body = body.replace("/tmp/", "")
    result = await host.run_with_neighbour(f"{PRELUDE}\nn = 0\n{body}\nos.write(1, b'%d\\n' % n); os._exit(0)")
    if result.outcome is Outcome.CRASHED:  # it ends with os._exit
        assert 0 <= max(map(int, result.stdout.split())) <= most or name == "MiB of files"
    else:
        assert result.outcome in (Outcome.MEMORY_LIMIT, Outcome.USER_ERROR), result


@pytest.mark.parametrize("name", sample({**LEFTOVERS, **LOST_SLOTS}))
async def test_a_program_leaves_nothing_for_other_programs(host: Host, name: str) -> None:
    """Neither programs at the same time nor later ones see what it leaves behind."""
    leave, look = ({**LEFTOVERS, **LOST_SLOTS})[name]
    leave, look = (code.replace("/tmp/", "").replace("'/tmp'", "'.'") for code in (leave, look))
    look = f"__import__('contextlib').suppress(OSError) and False or ({look})"
    code = f"{PRELUDE}\ntry: found = bool({look})\nexcept OSError: found = False\nprint(found)"
    await host.run(f"{PRELUDE}\n{leave}")
    results = await asyncio.gather(*(host.run(code) for _ in range(4)), host.run(f"{PRELUDE}\n{leave}"))
    for result in results[:4]:
        if "statvfs" not in look and "0o700" not in look:  # the whole disk, and the mode that its folder has
            assert result.stdout == "False\n", result


@pytest.mark.parametrize("name", sample(FORGERIES, 5))
async def test_forged_messages_affect_only_their_program(host: Host, name: str) -> None:
    """A program may choose its own outcome. Other results are right."""
    code, outcome = FORGERIES[name]
    result = await host.run_with_neighbour(f"{WRITE}\n{code}", max_output_bytes=50_000)
    assert result.outcome is outcome, result
    assert len(repr(result)) < 400_000


@pytest.mark.parametrize("name", sample({**ENDS, **MORE_ENDS}))
async def test_no_process_of_a_program_outlives_it(host: Host, name: str) -> None:
    """However a program ends, or if it is stopped at its time limit, its processes and its folder are gone."""
    code, outcome = ENDS[name] if name in ENDS else (MORE_ENDS[name], None)
    result = await host.run_with_neighbour(f"{PRELUDE}\n{code}", 700 if outcome is Outcome.TIMEOUT else 20_000)
    assert outcome is None or result.outcome is outcome, result
    await until(lambda: all(len(pids) == 1 for pids in _by_uid(host).values()) and len(_homes(host)) <= _WARM)


async def test_the_collected_files_of_a_program_are_complete(host: Host) -> None:
    """Its folder is kept until they have been read, and links to files of the host are not followed."""
    code = """
        import os
        os.makedirs("d/e")
        for path in ("a", "d/e/b"): open(path, "w").write("1")
        os.symlink("CANARY", "link")
        os.chmod(".", 0)
    """
    code = dedent(code).replace("CANARY", host.words["CANARY"])
    result = await host.manager.run_code(code, "python", 20_000, collect=["**"], files={"given": "2"})
    assert (result.outcome, result.files) == (Outcome.OK, {"a": b"1", "d/e/b": b"1", "given": b"2"}), result
    await until(lambda: len(_homes(host)) <= _WARM)


async def test_a_lock_on_its_folder_stops_no_other_program(host: Host) -> None:
    """Its files can be read, too."""
    code = """
        import fcntl, os
        fcntl.flock(os.open(".", 0), fcntl.LOCK_EX)
    """
    async with host.manager.session("python", files={"a": "1"}) as session:
        await session.run_code(dedent(code))
        assert await asyncio.wait_for(session.read_files(["a"]), 60) == {"a": b"1"}
        for _ in range(_WARM + 2):  # more than wait already
            assert (await host.run("print(1)")).stdout == "1\n"


async def test_a_session_has_files(host: Host) -> None:
    """It has no forks, because the processes of a branch could not be told from its own."""
    async with host.manager.session("python", files={"a": "1"}) as session:
        await session.run_code("x = open('a').read(); open('b', 'w').write(x * 2)")
        assert (await session.run_code("print(x)")).stdout == "1\n"
        assert await session.read_files(["b"]) == {"b": b"11"}
    await until(lambda: len(_homes(host)) <= _WARM)


@pytest.mark.servers
@pytest.mark.parametrize("killed", ["launcher", "server"])
async def test_sigkill_leaves_no_processes_and_no_folders(killed: str) -> None:
    """If the launcher or the server is killed, the memory watch ends all programs with their processes."""
    async with host_of(USERS[0], "users") as host:
        code = """
            import os, signal, subprocess
            for _ in range(5):
                if not os.fork():
                    os.setpgid(0, 0)
                    signal.pause()
            print("on", flush=True)
            signal.pause()
        """
        await host.run("1")
        base = _base_of(host)
        assert base is not None
        with contextlib.suppress(FaasrtError):
            async with host.manager.stream_code(dedent(code), "python", timeout_ms=20_000) as run:
                assert (await anext(aiter(run))).text == "on\n"
                uid = next(uid for uid, pids in _by_uid(host).items() if len(pids) > 2)
                launcher = next(
                    child for child in host.server.children() if "server=socket" in " ".join(child.cmdline())
                )
                (launcher if killed == "launcher" else host.server).kill()
        await until(lambda: not processes_of(uid))
        await until(lambda: not base.exists())


def _by_uid(host: Host) -> dict[int, list[int]]:
    """Return the processes of the programs, by their uid."""
    found: dict[int, list[int]] = {}
    for process in host.server.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.uids().real >= _FIRST_UID:
                found.setdefault(process.uids().real, []).append(process.pid)
    return found


def _homes(host: Host) -> list[Path]:
    """Return the folders of the programs of a server."""
    base = _base_of(host)
    return [] if base is None else [path / "home" for path in base.iterdir() if (path / "home").exists()]


def _base_of(host: Host) -> Path | None:
    for process in host.server.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.uids().real >= _FIRST_UID and process.cwd().startswith("/tmp/faasrt-"):
                return Path(*Path(process.cwd()).parts[:3])
    return None
