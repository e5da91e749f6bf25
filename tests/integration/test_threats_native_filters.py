"""Native Python cannot escape its jail at the level `filters`: a seccomp filter, Landlock and resource limits.

As root, each program has a uid, as at the level `users`. Otherwise all of them have the uid of the server.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome
from support.native_attacks import (
    BOUNDED,
    DENIED_FOR_USERS,
    ENDS,
    FORGERIES,
    LEFTOVERS,
    MEMORY,
    PRELUDE,
    WRITE,
    attempt,
)
from support.served import until
from support.threats import USERS, Host, beside_another, host_of, only_with_attacks, sample

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Calls that succeed without effect for an ordinary user.
# Landlock does not hide whether a path exists, and the name of the folder of a program is random.
IGNORED = ("chmod", "utime", "chown", "setpgid", "os.stat('OTHER", "os.chdir('OTHER")


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[USERS[0], only_with_attacks(USERS[1])])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    async with host_of(request.param, "filters") as one:
        yield one


@pytest.mark.parametrize("name", sample(DENIED_FOR_USERS))
async def test_the_jail_denies_each_attack(host: Host, name: str) -> None:
    """Each attack in the tables fails, and nothing is sent to the host."""
    body = DENIED_FOR_USERS[name]
    if host.server.uids().real and any(word in body for word in IGNORED):
        pytest.skip("this succeeds without effect")
    async with beside_another(host) if "OTHER" in body else contextlib.nullcontext(host) as one:
        result = await one.run(attempt(body))
    assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), result
    assert result.metadata["level"] == "filters"
    assert await host.sink.all_received() == []


async def test_modes_times_and_owners_cannot_be_changed() -> None:
    """The files of the server have the same owner, and Landlock does not restrict these calls. They have no effect."""
    code = """
        open("x", "w").close()
        for path in ("CANARY", "x"):
            os.chmod(path, 0o7)
            os.utime(path, (5, 5))
        print(oct(os.stat("x").st_mode & 0o777), os.stat("x").st_mtime == 5)
    """
    async with host_of(USERS[0] if os.getuid() else USERS[1], "filters") as host:
        canary = Path(host.words["CANARY"])
        before = canary.stat()
        result = await host.run(f"{PRELUDE}\n{dedent(code)}")
        assert result.stdout.startswith("0o6"), result
        assert canary.stat() == before


@pytest.mark.parametrize("name", ["one process", "many processes", "files", "pairs of sockets"])
async def test_memory_of_the_processes_is_limited(host: Host, name: str) -> None:
    """The memory of all processes of a program counts, and so do its files."""
    result = await host.run_with_neighbour(f"{PRELUDE}\n{MEMORY[name].replace('/tmp/', '')}")
    assert result.outcome is Outcome.MEMORY_LIMIT, result


@pytest.mark.parametrize(
    ("name", "most"),
    [("descriptors", 256), ("timers", 1024), ("MiB in pipes", 64), ("watches of epoll", 256)],
)
async def test_kernel_resources_are_limited(host: Host, name: str, most: int) -> None:
    """A program gets a limited number of kernel objects. Other programs run meanwhile."""
    result = await host.run_with_neighbour(
        f"{PRELUDE}\nn = 0\n{BOUNDED[name][0]}\nos.write(1, b'%d\\n' % n); os._exit(0)"
    )
    assert result.outcome is Outcome.CRASHED, result  # it ends with os._exit
    assert 0 < int(result.stdout) <= most


async def test_threads_are_limited(host: Host) -> None:
    """Under root the kernel refuses more than 64 threads. For another user the launcher counts them, and ends the
    program.
    """
    code, most = BOUNDED["threads"]
    ordinary = host.server.uids().real != 0
    end = "signal.pause()" if ordinary else "os._exit(0)"
    result = await host.run_with_neighbour(f"{PRELUDE}\nn = 0\n{code}\nos.write(1, b'%d\\n' % n)\n{end}")
    if ordinary:
        assert result.outcome is Outcome.MEMORY_LIMIT, result
    else:
        assert result.outcome is Outcome.CRASHED, result  # it ends with os._exit
        assert 0 < int(result.stdout) <= most


async def test_more_than_64_threads_end_the_program_of_an_ordinary_user() -> None:
    """The kernel counts the threads of all programs of this user together, so the launcher counts those of each."""
    code = dedent("""
        import signal, threading, time
        for _ in range(COUNT): threading.Thread(target=threading.Event().wait, daemon=True).start()
        END
    """)
    allowed = code.replace("COUNT", "60").replace("END", "time.sleep(0.2)")  # the launcher counts several times
    refused = code.replace("COUNT", "80").replace("END", "signal.pause()")
    async with host_of(USERS[0] if os.getuid() else USERS[1], "filters") as host:
        result = await host.run(allowed, memory_limit_mb=512)
        assert result.outcome is Outcome.OK, result
        result = await host.run_with_neighbour(refused, memory_limit_mb=512)
        assert result.outcome is Outcome.MEMORY_LIMIT, result


@pytest.mark.parametrize(
    "name",
    ["the environment", "a module", "a builtin", "the recursion limit", "a handler", "random numbers", "a mask"],
)
async def test_a_program_leaves_nothing_for_other_programs(host: Host, name: str) -> None:
    """Later programs do not see what it leaves behind."""
    leave, look = LEFTOVERS[name]
    assert (await host.run(f"{PRELUDE}\n{leave}")).outcome is Outcome.OK
    for _ in range(4):
        assert (await host.run(f"{PRELUDE}\nprint(bool({look}))")).stdout == "False\n"


@pytest.mark.parametrize("name", sample(FORGERIES))
async def test_forged_messages_affect_only_their_program(host: Host, name: str) -> None:
    """A program may choose its own outcome. Other results are right."""
    code, outcome = FORGERIES[name]
    result = await host.run_with_neighbour(f"{WRITE}\n{code}", max_output_bytes=50_000)
    assert result.outcome is outcome, result
    assert len(repr(result)) < 400_000


@pytest.mark.parametrize("name", sample(ENDS))
async def test_no_process_of_a_program_outlives_it(host: Host, name: str) -> None:
    """However a program ends, or if it is stopped at its time limit, its process is gone."""
    code, outcome = ENDS[name]
    timeout_ms = 700 if outcome is Outcome.TIMEOUT else 20_000
    if name == "fork bomb" and host.server.uids().real:
        # The kernel does not limit the processes of one program of an ordinary user, so more than 64 end it.
        outcome, timeout_ms = Outcome.MEMORY_LIMIT, 20_000
    result = await host.run_with_neighbour(f"{PRELUDE}\n{code}", timeout_ms)
    if not (host.server.uids().real and "setpgid" in code):
        assert result.outcome is outcome, result
    pid = int(str(result.metadata["instance_id"]).rpartition("-")[2])
    await until(lambda: not psutil.pid_exists(pid))
    await until(lambda: len(host.server.children(recursive=True)) < 9)


async def test_a_program_can_import_and_has_tracebacks(host: Host) -> None:
    """It runs in a folder of its own, which has its file."""
    code = """
        import os, sqlite3, wave, xml.dom.minidom
        print(os.listdir(), __file__ == os.path.abspath("main.py"), os.getuid() > 0)
        1 / 0
    """
    result = await host.run(dedent(code).strip())
    assert result.stdout == "['main.py'] True True\n"
    assert result.stderr.splitlines()[:3] == [
        "Traceback (most recent call last):",
        '  File "main.py", line 3, in <module>',
        "    1 / 0",
    ]


@pytest.mark.servers
async def test_sigkill_of_the_server_ends_launcher_and_programs() -> None:
    async with host_of(USERS[0], "filters") as host:
        await host.run("1")
        processes = host.server.children(recursive=True)
        assert processes
        host.server.kill()
        await until(lambda: not any(process.is_running() for process in processes))
