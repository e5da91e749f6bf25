"""Sessions of native Python cannot escape their jail, or affect other sessions and the server; at both levels."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from textwrap import dedent

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome, SandboxConfig, Session, SessionLostError
from support.native_attacks import DENIED, DENIED_FOR_USERS, ENDS, FORGERIES, MEMORY, PRELUDE, WRITE, attempt
from support.served import PATIENCE_S, until
from support.threats import SECRET, USERS, Host, host_of, only_with_attacks

pytestmark = pytest.mark.asyncio(loop_scope="module")
LEVELS = ["namespaces", "filters"]
HOSTS = [(level, USERS[0]) for level in LEVELS] + [only_with_attacks(((level, USERS[1]),)) for level in LEVELS]
# Sessions have 192 MiB more, for the packages that they import.
SANDBOX = SandboxConfig(memory_limit_mb=32, timeout_limit_s=30, max_output_bytes=50_000)
EVERY = [20, only_with_attacks(1)]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=HOSTS, ids=str)
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    level, user = request.param
    async with host_of(user, level) as one:
        one.words["LEVEL"] = level
        yield one


@contextlib.asynccontextmanager
async def sessions(host: Host) -> AsyncIterator[tuple[Session, Session]]:
    """Open two sessions. The second one must work afterwards, and not have changed."""
    async with host.manager.session("python", sandbox=SANDBOX) as beside:
        await beside.run_code("x = 1")
        async with host.manager.session("python", sandbox=SANDBOX) as session:
            await session.run_code(PRELUDE)
            yield session, beside
        result = await beside.run_code("print('well'); x")
        assert (result.outcome, result.stdout, [one.text for one in result.displays]) == (Outcome.OK, "well\n", ["1"])


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("branch", [False, True])
async def test_the_jail_denies_each_attack(host: Host, every: int, branch: bool) -> None:
    """Each attack in the tables fails in a session, and in a branch, and nothing is sent to the host."""
    has_namespaces = host.words["LEVEL"] == "namespaces"
    if branch and not has_namespaces:
        pytest.skip("there are no branches at this level")
    # For an ordinary user, changes of modes, times and owners succeed without effect.
    ignored = ("chmod", "utime", "chown") if host.server.uids().real else ()
    others = {
        name: body
        for name, body in DENIED_FOR_USERS.items()
        if "OTHER" not in body and not any(word in body for word in ignored)
    }
    table = DENIED if has_namespaces else others
    for name, body in [*table.items()][::every]:
        if branch and name in ("a signal to all", "write to /dev/random"):
            continue  # these have no effect, but succeed: if there are other processes; and in all files of a branch
        if has_namespaces and name == "any capability":
            continue  # see `test_a_session_has_no_capability_but_to_change_its_root`
        async with sessions(host) as (session, _), contextlib.AsyncExitStack() as stack:
            one = await stack.enter_async_context(await session.fork()) if branch else session
            code = attempt(body)
            for word, value in host.words.items():
                code = code.replace(word, value)
            result = await one.run_code(code, timeout_ms=20_000)
            assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), (name, result)
            assert SECRET not in repr(result)
    assert await host.sink.all_received() == []


async def test_a_session_has_no_capability_but_to_change_its_root(host: Host) -> None:
    """Branches need it to enter their root. It holds in the user namespace of the session only."""
    code = """
x = ctypes.create_string_buffer(24)
call(125, struct.pack('Ii', 0x20080522, 0), x)
print(*struct.unpack('6I', x))
"""
    allowed = 1 << 18 if host.words["LEVEL"] == "namespaces" else 0  # CAP_SYS_CHROOT
    async with sessions(host) as (session, _):
        result = await session.run_code(code)
        effective, permitted, inherited, *others = map(int, result.stdout.split())
        assert (effective | permitted) & ~allowed == 0, result
        assert [inherited, *others] == [0, 0, 0, 0]


@pytest.mark.parametrize("every", EVERY)
async def test_forged_messages_affect_only_their_session(host: Host, every: int) -> None:
    """A program may choose the outcome of its own run, and end its session. The server's memory does not grow."""
    before = host.server.memory_info().rss
    for code, _ in [*FORGERIES.values()][::every]:
        for descriptor in ("254", "255"):
            async with sessions(host) as (session, _):
                result = await session.run_code(f"{WRITE}\n{code}".replace("255", descriptor), timeout_ms=1_000)
                assert len(repr(result)) < 400_000
                with contextlib.suppress(SessionLostError):
                    await session.run_code("1")
    assert host.server.memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("every", EVERY)
async def test_no_process_of_a_session_outlives_it(host: Host, every: int) -> None:
    """However its program ends, or if it does not."""
    for name, (code, outcome) in [*ENDS.items()][::every]:
        async with sessions(host) as (session, _):
            if name == "fork bomb" and host.words["LEVEL"] == "filters":
                outcome = Outcome.MEMORY_LIMIT  # 64 processes need more than 32 MiB there
            result = await session.run_code(code, timeout_ms=700 if outcome is Outcome.TIMEOUT else 20_000)
            assert result.outcome in (outcome, Outcome.OK, Outcome.USER_ERROR, Outcome.CRASHED), name
            pid = int(str(result.metadata["instance_id"]).rpartition("-")[2])
        await until(lambda pid=pid: not psutil.pid_exists(pid))  # type: ignore[misc]


@pytest.mark.parametrize("every", [6, only_with_attacks(1)])
async def test_all_memory_counts_against_the_limit_of_the_session(host: Host, every: int) -> None:
    """Also memory of child processes, files and sockets. The session ends, or its run fails with MemoryError."""
    names = [*MEMORY][::every] if host.words["LEVEL"] == "namespaces" else ["one process"]
    for name in names:
        async with sessions(host) as (session, _):
            assert (await session.run_code(MEMORY[name])).outcome is Outcome.MEMORY_LIMIT, name


async def test_a_session_cannot_reach_another_one(host: Host) -> None:
    """Neither its process, nor its files, nor its descriptors."""
    async with sessions(host) as (session, beside):
        pid = (await beside.run_code("import os; os.getpid()")).displays[0].text
        own = (await session.run_code("os.getpid()")).displays[0].text
        reached = f"os.kill({pid}, 0)" if own != pid else "1 / 0"
        assert (await session.run_code(reached)).outcome is Outcome.USER_ERROR
        assert (await session.run_code(f"open('/proc/{pid}/mem')")).outcome is Outcome.USER_ERROR or own == pid
        result = await session.run_code(
            "import glob; [os.readlink(fd) for fd in glob.glob('/proc/self/fd/*') if os.path.exists(fd)]"
        )
        assert "socket:" in result.displays[0].text or host.words["LEVEL"] == "filters"


@pytest.mark.parametrize("word", ["channel", "SIGSTOP"])
async def test_a_session_that_does_not_answer(host: Host, word: str) -> None:
    """A program that reads the jobs of its runner, or stops itself, ends its own session at the time limit."""
    code = {
        "channel": "import socket, threading, os\nchannel = socket.socket(fileno=os.dup(255))\n"
        "def steal():\n    while channel.recv(1): pass\nthreading.Thread(target=steal).start()",
        "SIGSTOP": "import threading, os\nthreading.Timer(0.5, os.kill, [os.getpid(), 19]).start()",
    }[word]
    async with sessions(host) as (session, _):
        assert (await session.run_code(code)).outcome is Outcome.OK
        with contextlib.suppress(SessionLostError):
            for _ in range(20):
                result = await session.run_code("import time; time.sleep(0.1)", timeout_ms=1_000)
                assert result.outcome in (Outcome.OK, Outcome.TIMEOUT)


BRANCHED = """
import mmap, multiprocessing
PID, FOLDER = os.getpid(), os.open("/tmp", os.O_PATH)
os.mkdir("d")
for path in ("file", "d/file", "/dev/shm/file"):
    with open(path, "w") as file: file.write("state")
os.symlink("/tmp/secret", "link")
listener = socket.socket(socket.AF_UNIX); listener.bind("socket"); listener.listen()
descriptor = os.open("file", os.O_RDWR)
memory, value = mmap.mmap(-1, 10), multiprocessing.Value("i", 1)
memory[:5] = b"state"
def state():
    seen = []
    for top in ("/tmp", "/dev/shm"):
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if not sys.prefix.startswith(f"{folder}/{name}")]
            for path in sorted([folder, *(f"{folder}/{name}" for name in files)]):
                status = os.lstat(path)
                seen.append((path, status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink, status.st_uid))
                if path.endswith("file"): seen.append(read(path))
    free = os.statvfs("/tmp")
    seen += [memory[:5], value.value, free.f_bfree, free.f_ffree]
    seen += [os.lseek(descriptor, 0, 1), os.pread(descriptor, 9, 0)]
    seen += [os.getcwd(), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0), os.sched_getscheduler(0)]
    return seen
"""
# Changes of a branch to the files of the others, with paths that were theirs before the fork.
CHANGES = {
    "contents": "open('/tmp/file', 'w').write('forged')",
    "contents in /dev/shm": "open('/dev/shm/file', 'w').write('forged')",
    "contents through a descriptor": "os.pwrite(descriptor, b'forged', 0)",
    "contents through a descriptor that is opened again": (
        "os.pwrite(os.open(f'/proc/self/fd/{descriptor}', os.O_RDWR), b'forged', 0)"
    ),
    "size": "os.truncate('/tmp/d/file', 0); os.ftruncate(descriptor, 0)",
    "position": "os.lseek(descriptor, 3, 0)",
    "shared memory": "memory[:5] = b'other'; value.value = 9",
    "mode of a file": "os.chmod('/tmp/file', 0)",
    "mode of a folder": "os.chmod('/tmp/d', 0)",
    "mode of /tmp": "os.chmod('/tmp', 0)",
    "mode of /dev/shm": "os.chmod('/dev/shm', 0)",
    "mode through a descriptor": "os.fchmod(descriptor, 0)",
    "mode through a folder": "os.chmod('file', 0, dir_fd=FOLDER)",
    "times": "os.utime('/tmp/file', (1, 1)); os.utime('/tmp/d', (1, 1))",
    "a new file through a folder": "os.open('new', os.O_CREAT | os.O_WRONLY, dir_fd=FOLDER)",
    "a new file in the folder": "os.fchdir(FOLDER); open('new', 'w')",
    "a file less": "os.unlink('/tmp/file'); os.unlink('/dev/shm/file'); os.unlink('/tmp/link')",
    "another name": "os.rename('/tmp/d', '/tmp/other')",
    "a link": "os.link('/tmp/file', '/tmp/new')",
    "all space": "file = open('/tmp/large', 'wb')\nfor _ in range(70): file.write(bytes(2**20))",
    "all inodes": "for number in range(5000): open(f'/tmp/{number}', 'w').close()",
    "a root folder that is larger": dedent("""
        os.mkdir('small')
        folder = os.open('/tmp', os.O_RDONLY)
        os.chroot('small')
        os.fchdir(folder)
        for _ in range(100): os.chdir('..')
        os.chroot('.')
        open('/tmp/file', 'w').write('forged')
    """),
    "the root folder of another process": dedent("""
        os.chroot(f'/proc/{PID}/root')
        open('/tmp/file', 'w').write('forged')
    """),
    "the folder of another process": "open(f'/proc/{PID}/cwd/file', 'w').write('forged')",
    "a descriptor of another process": "open(f'/proc/{PID}/fd/{descriptor}', 'w').write('forged')",
    "a descriptor of process 1": "open('/proc/1/root/tmp/file', 'w').write('forged')",
}


@pytest.mark.parametrize("every", [4, only_with_attacks(1)])
async def test_a_branch_changes_nothing_of_the_others(host: Host, every: int) -> None:
    """Its session and its siblings have the same files, memory and priority as before, whatever it does to its own."""
    if host.words["LEVEL"] != "namespaces":
        pytest.skip("there are no branches at this level")
    async with sessions(host) as (session, _):
        await session.run_code(BRANCHED)
        async with await session.fork() as sibling:
            before = [(await one.run_code("state()")).displays[0].text for one in (session, sibling)]
            for name, code in [*CHANGES.items()][::every]:
                async with await session.fork() as branch:
                    result = await branch.run_code(attempt(code), timeout_ms=20_000)
                    assert result.outcome is Outcome.OK, (name, result)
                after = [(await one.run_code("state()")).displays[0].text for one in (session, sibling)]
                assert after == before, name
            assert (await session.read_files(["d/*"])) == {"d/file": b"state"}


async def test_files_of_a_branch_end_with_it(host: Host) -> None:
    """Those of many branches, one after another, may take more than the space of one."""
    if host.words["LEVEL"] != "namespaces":
        pytest.skip("there are no branches at this level")
    async with sessions(host) as (session, _):
        free = "import os; free = os.statvfs('/tmp'); free.f_bfree, free.f_ffree"
        before = (await session.run_code(free)).displays[0].text
        for _ in range(6):
            async with await session.fork() as branch:
                result = await branch.run_code("open('large', 'wb').write(bytes(25 * 2**20))")
                assert result.outcome is Outcome.OK, result
                assert (await session.run_code(free)).displays[0].text == before


# Processes that go on after the one that has started them, and start others.
DAEMONS = {
    "one": "while True: time.sleep(60)",
    "a chain": "while True:\n        if os.fork(): os._exit(0)",
    "chains": "for _ in range(5): os.fork()\n    while True:\n        if os.fork(): os._exit(0)",
    "all that are possible": ("while True:\n        try: os.fork()\n        except OSError: time.sleep(0.01)"),
    "with another root folder": "os.mkdir('a'); os.chroot('a'); os.setpgid(0, 0)\n    while True: time.sleep(60)",
    "with a root folder that was removed": (
        "os.mkdir('a'); folder = os.open('.', os.O_PATH); os.chroot('a'); os.rmdir('a', dir_fd=folder)\n"
        "    while True: time.sleep(60)"
    ),
    "with a root folder that has another /tmp": (
        "os.makedirs('a/tmp'); os.symlink('/proc', 'a/proc'); os.chroot('a')\n    while True: time.sleep(60)"
    ),
    "below folders that move": (
        "top, ends = os.open('/tmp', os.O_RDONLY), []\n"
        "    for name in 'ab':\n"
        "        os.chdir('/tmp'); os.mkdir(name); os.chdir(name)\n"
        "        for _ in range(1900): os.mkdir('x'); os.chdir('x')\n"
        "        ends.append(os.open('.', os.O_RDONLY))\n"
        "    os.chroot('.')\n"
        "    while True:\n"
        "        for name, end in zip('ab', reversed(ends)):\n"
        "            os.rename(name, name, src_dir_fd=top, dst_dir_fd=end)\n"
        "            os.rename(name, name, src_dir_fd=end, dst_dir_fd=top)"
    ),
    "below many folders": (
        "for _ in range(3000): os.mkdir('a'); os.chdir('a')\n    os.chroot('.')\n    while True: time.sleep(60)"
    ),
}


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (name, end) if number % 2 == at else only_with_attacks((name, end))
        for number, name in enumerate(DAEMONS)
        for at, end in enumerate(["closed", "exit"])
    ],
)
async def test_all_processes_of_a_branch_end_with_it(host: Host, name: str, end: str) -> None:
    """Also daemons, and those that start others all the time. Others may start processes afterwards."""
    if host.words["LEVEL"] != "namespaces":
        pytest.skip("there are no branches at this level")
    async with sessions(host) as (session, _):
        await session.run_code("import os, signal, subprocess, time")
        async with await session.fork() as sibling:
            async with await session.fork() as branch:
                daemon = (
                    f"if not os.fork():\n    if os.fork(): os._exit(0)\n    {DAEMONS[name]}\nos.wait(); time.sleep(0.2)"
                )
                await branch.run_code(daemon)
                if end == "exit":
                    await branch.run_code("os._exit(0)")
            count = "len([name for name in os.listdir('/proc') if name.isdigit()])"
            async with asyncio.timeout(PATIENCE_S):
                # A session sees the processes of its branches: here, one.
                while (await session.run_code(count)).displays[0].text != "2":
                    await asyncio.sleep(0.01)
            for one in (session, sibling):
                result = await one.run_code("subprocess.run(['/bin/true'], check=True).returncode")
                assert [display.text for display in result.displays] == ["0"], result


@pytest.mark.parametrize("is_closed", [False, True])
async def test_a_process_in_the_root_folder_of_a_branch_that_has_ended_is_killed(host: Host, is_closed: bool) -> None:
    """A branch has got the folder through a socket. The process would count for no program, and outlive its branch."""
    if host.words["LEVEL"] != "namespaces":
        pytest.skip("there are no branches at this level")
    async with sessions(host) as (session, _):
        await session.run_code("import os, socket, time\nours, theirs = socket.socketpair()")
        async with await session.fork() as branch:
            async with await session.fork() as ended:
                await ended.run_code("socket.send_fds(ours, [b'1'], [os.open('/tmp', os.O_PATH)])")
                await branch.run_code("_, [folder], _, _ = socket.recv_fds(theirs, 1, 1)")
            daemon = "os.fchdir(folder); os.chroot('.')\n    while True: time.sleep(60)"
            await branch.run_code(f"if not os.fork():\n    if os.fork(): os._exit(0)\n    {daemon}\nos.wait()")
            count = "len([name for name in os.listdir('/proc') if name.isdigit()])"
            if is_closed:
                await branch.aclose()
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    result = await session.run_code(f"time.sleep(0.3); {count}")
                    if result.displays[0].text == ("1" if is_closed else "2"):
                        break


@pytest.mark.parametrize("name", ["children", "daemons", "files", "files in /dev/shm"])
async def test_a_branch_that_uses_too_much_memory_ends_alone(host: Host, name: str) -> None:
    """Its session and a sibling go on, although their first processes use more than any process of the branch."""
    if host.words["LEVEL"] != "namespaces":
        pytest.skip("there are no branches at this level")
    parts = {
        "children": "for _ in range(16):\n    if not os.fork(): part = b'x' * 2**24; time.sleep(30); os._exit(0)",
        "daemons": (
            "if not os.fork():\n"
            "    for _ in range(16):\n        if not os.fork(): part = b'x' * 2**24; time.sleep(30); os._exit(0)\n"
            "    os._exit(0)"
        ),
        "files": "open('/tmp/large', 'wb').write(bytes(60 * 2**20)); part = b'x' * 180 * 2**20",
        "files in /dev/shm": "open('/dev/shm/large', 'wb').write(bytes(60 * 2**20)); part = b'x' * 180 * 2**20",
    }
    async with sessions(host) as (session, _):
        await session.run_code("import os, time; data = b'x' * 40 * 2**20")
        async with await session.fork() as sibling, await session.fork() as branch:
            await sibling.run_code("own = b'y' * 20 * 2**20")
            result = await branch.run_code(f"{parts[name]}\ntime.sleep(20)")
            assert result.outcome is Outcome.MEMORY_LIMIT, result
            for one in (session, sibling):
                result = await one.run_code("len(data)")
                assert [display.text for display in result.displays] == [str(40 * 2**20)], result
