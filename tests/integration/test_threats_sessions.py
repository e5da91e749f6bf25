"""Sessions of native Python cannot escape their jail, or affect other sessions and the server; at both levels."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome, SandboxConfig, Session, SessionLostError
from support.native_attacks import DENIED, DENIED_WITHOUT_NAMESPACES, ENDS, FORGERIES, MEMORY, PRELUDE, WRITE, attempt
from support.served import until
from support.threats import SECRET, USERS, Host, host_of, only_with_attacks

pytestmark = pytest.mark.asyncio(loop_scope="module")
LEVELS = ["namespaces", "filters"]
HOSTS = [(level, USERS[0]) for level in LEVELS] + [only_with_attacks(((level, USERS[1]),)) for level in LEVELS]
# Sessions have 192 MiB more, for the packages that they import.
SANDBOX = SandboxConfig(memory_limit_mb=32, timeout_limit_s=30, max_output_bytes=50_000)
EVERY = [10, only_with_attacks(1)]


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
    table = DENIED if has_namespaces else DENIED_WITHOUT_NAMESPACES
    for name, body in [*table.items()][::every]:
        if branch and name == "a signal to all":
            continue  # it has no effect, but succeeds if there are other processes
        async with sessions(host) as (session, _), contextlib.AsyncExitStack() as stack:
            one = await stack.enter_async_context(await session.fork()) if branch else session
            code = attempt(body)
            for word, value in host.words.items():
                code = code.replace(word, value)
            result = await one.run_code(code, timeout_ms=20_000)
            assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), (name, result)
            assert SECRET not in repr(result)
    assert await host.sink.all_received() == []


@pytest.mark.parametrize("every", EVERY)
async def test_forged_messages_affect_only_their_session(host: Host, every: int) -> None:
    """A program may choose the outcome of its own run, and end its session. The server's memory does not grow."""
    before = host.server.memory_info().rss
    for code, _ in [*FORGERIES.values()][::every]:
        for descriptor in ("254", "255"):
            async with sessions(host) as (session, _):
                result = await session.run_code(f"{WRITE}\n{code}".replace("255", descriptor), timeout_ms=3_000)
                assert len(repr(result)) < 400_000
                with contextlib.suppress(SessionLostError):
                    await session.run_code("1")
    assert host.server.memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("every", EVERY)
async def test_no_process_of_a_session_outlives_it(host: Host, every: int) -> None:
    """However its program ends, or if it does not."""
    for name, (code, outcome) in [*ENDS.items()][::every]:
        async with sessions(host) as (session, _):
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
