"""What native Python must not reach, take or fake, by whatever system call; as root and as an ordinary user."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome
from support.native_attacks import BOUNDED, DENIED, ENDS, FORGERIES, LEFTOVERS, MEMORY, PRELUDE, attempt
from support.native_host import USERS, Host, host_of
from support.served import until
from support.threats import SECRET, rarely, sample

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[USERS[0], rarely(USERS[1])])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    async with host_of(request.param, "namespaces") as one:
        yield one


@pytest.mark.parametrize("name", DENIED)
async def test_the_jail_holds(host: Host, name: str) -> None:
    """No way out of the table is open: a system call fails, and nothing reaches the host."""
    result = await host.run(attempt(DENIED[name]))
    assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), result
    assert await host.sink.all_seen() == []


async def test_a_secret_is_read_where_nothing_holds_it(host: Host) -> None:
    """The table could fail: outside of a jail, its way to read a file reaches the canary."""
    code = attempt("print(read('CANARY'))").replace("CANARY", host.words["CANARY"])
    process = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.split() == [f"b'{SECRET}'", "reached"]


@pytest.mark.parametrize("name", sample(MEMORY))
async def test_memory_ends_at_the_limit(host: Host, name: str) -> None:
    """All memory of a program counts: of its processes, of its files, and what the kernel holds for its sockets."""
    result = await host.run_beside(f"{PRELUDE}\n{MEMORY[name]}")
    assert result.outcome is Outcome.MEMORY_LIMIT, result


async def test_pieces_of_memory_end_at_the_limit(host: Host) -> None:
    """The kernel's description of memory in tens of thousands of pieces, in dozens of processes, counts."""
    code = (
        "libc.mmap.restype = ctypes.c_void_p\n"
        "start = libc.mmap(None, ctypes.c_size_t(60_000 * 4096), 3, 0x22, -1, ctypes.c_long(0))\n"
        "for n in range(0, 60_000, 2): libc.mprotect(ctypes.c_void_p(start + n * 4096), ctypes.c_size_t(4096), 1)\n"
        "for _ in range(60):\n    if not os.fork(): break\nsignal.pause()"
    )
    result = await host.run_beside(f"{PRELUDE}\n{code}", 30_000)
    assert result.outcome is Outcome.MEMORY_LIMIT, result


@pytest.mark.parametrize("name", sample(BOUNDED))
async def test_a_number_is_bounded(host: Host, name: str) -> None:
    """Processes, files and objects of the kernel are few, and a neighbour does not miss them."""
    body, most = BOUNDED[name]
    result = await host.run_beside(f"{PRELUDE}\nn = 0\n{body}\nos.write(1, b'%d\\n' % n); os._exit(0)")
    assert result.outcome is Outcome.CRASHED, result  # it ends by a hard exit
    assert 0 <= max(map(int, result.stdout.split())) <= most


@pytest.mark.parametrize("name", sample(LEFTOVERS))
async def test_nothing_is_left_for_others(host: Host, name: str) -> None:
    """Neither a program at the same time nor the next ones see what another one leaves."""
    leave, look = LEFTOVERS[name]
    left = await host.run(f"{PRELUDE}\n{leave}\nprint('left', bool({look}))".replace("bool(unix()", "bool(True or (1)"))
    assert (left.outcome, left.stdout.split()[:1]) == (Outcome.OK, ["left"]), left
    others = [host.run(f"{PRELUDE}\nprint(bool({look}))") for _ in range(4)]
    for other in await asyncio.gather(*others, host.run(f"{PRELUDE}\n{leave}")):
        assert other.stdout in ("False\n", ""), other
        assert other.outcome is Outcome.OK, other


@pytest.mark.parametrize("name", sample(FORGERIES))
async def test_messages_change_only_the_own_result(host: Host, name: str) -> None:
    """A program may choose its own outcome within what programs can be. The server holds no more memory for it."""
    code, outcome = FORGERIES[name]
    before = host.server.memory_info().rss
    write = "def w(data):\n    while data: data = data[os.write(255, data):]"
    result = await host.run_beside(f"import os\n{write}\n{code}", max_output_bytes=50_000)
    assert result.outcome is outcome, result
    assert len(repr(result)) < 400_000
    assert host.server.memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("name", sample(ENDS))
async def test_every_end_is_the_end(host: Host, name: str) -> None:
    """However a program ends, or is ended at its deadline, nothing of it runs on."""
    code, outcome = ENDS[name]
    result = await host.run_beside(f"{PRELUDE}\n{code}", 700)
    assert result.outcome is outcome, result
    pid = int(str(result.metadata["instance_id"]).rpartition("-")[2])
    await until(lambda: not psutil.pid_exists(pid))


async def test_the_launcher_survives(host: Host) -> None:
    """After all attacks at once, server and launchers have the same numbers of processes and descriptors as before."""
    programs = [f"{PRELUDE}\n{code}" for code, _ in ENDS.values()] + [attempt(body) for body in DENIED.values()]
    batches = [programs[start : start + 20] for start in range(0, len(programs), 20)]
    before = 0
    for batch in (batches[0], *batches):
        await asyncio.gather(*(host.run(code, 300) for code in batch))
        before = before or await _settled(host)
    # Networks are kept, one for each program at once.
    await until(lambda: 0 < _descriptors(host) <= before + 20)


async def _settled(host: Host) -> int:
    """Return the number of descriptors of the server's processes, once they wait and are as few as at the start."""
    while (await host.manager.get_health_status()).endpoints[0].details["languages"]["python"]["active"]:
        await asyncio.sleep(0.01)
    await until(lambda: _descriptors(host))
    return _descriptors(host)


def _descriptors(host: Host) -> int:
    """Return the number of descriptors of the server's processes; 0 while one ends, or there are more than 12.

    Of processes in a jail only root sees them.
    """
    count = 0
    try:
        processes = [host.server, *host.server.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.AccessDenied):
                count += process.num_fds()
    except psutil.NoSuchProcess:
        return 0
    return count if len(processes) <= 12 else 0


async def test_the_first_process_of_a_namespace_takes_no_signal(host: Host) -> None:
    """It runs in the memory of the launcher, so a handler of the launcher must not run there."""

    def find() -> list[psutil.Process]:
        """Return the first processes of the innermost namespaces."""
        found = []
        for process in host.server.children(recursive=True):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
                if numbers[-1] == "1" and len(numbers) >= 3 and numbers[-2] != "1":
                    found.append(process)
        return found

    await host.run("1")
    await until(find)
    for first in find():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            with contextlib.suppress(psutil.NoSuchProcess):
                first.send_signal(number)
    launchers = host.server.children()
    assert (await host.run("print('well')")).stdout == "well\n"
    assert host.server.children() == launchers


async def test_what_a_program_learns(host: Host) -> None:
    """It sees an environment of its own, four descriptors, and none of the server's objects or variables."""
    code = (
        "import gc, os, sys\n"
        "print(sorted({*map(int, os.listdir('/proc/self/fd'))} - {3}))\n"
        "print(sorted(os.environ), b'CANARY_KEY' in open('/proc/self/environ', 'rb').read())\n"
        "print([name for name in sys.modules if name.startswith('faasrt')])\n"
        "print(['FOLDER' in open(f'/proc/self/{name}').read() for name in ('cmdline', 'mountinfo', 'maps')])\n"
        "print(os.getuid(), os.getpid(), os.getppid(), os.uname().nodename)\n"
        "maps = [line.split() for line in open('/proc/self/maps') if line.split()[1].startswith('r')]\n"
        "with open('/proc/self/mem', 'rb') as memory:\n"
        "    key, found = bytes([67, 65, 78, 65, 82, 89, 95, 75, 69, 89, 61]), 0\n"
        "    for fields in maps:\n"
        "        start, end = (int(x, 16) for x in fields[0].split('-'))\n"
        "        if '[v' in fields[-1]: continue\n"
        "        memory.seek(start); found += memory.read(min(end - start, 2**26)).count(key)\n"
        "print(found <= 1)\n"  # its own constant
    )
    result = await host.run(code)
    env = ["HOME", "LANG", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "PYTHONHASHSEED", "TMPDIR"]
    expected = ["[0, 1, 2, 255]", f"{env} False", "[]", f"{[False] * 3}", "1000 2 0 sandbox", "True"]
    assert result.stdout.splitlines() == expected, result


async def test_shared_memory_works_between_own_processes(host: Host) -> None:
    """Anonymous shared mappings, which the jail refuses, are files in /tmp, so that they count."""
    code = (
        "import mmap, os\nm = mmap.mmap(-1, 8192)\nif not os.fork():\n    m[:2] = b'hi'; os._exit(0)\n"
        "os.wait(); print(m[:2], len(m), type(m).__name__)"
    )
    assert (await host.run(code)).stdout == "b'hi' 8192 mmap\n"
