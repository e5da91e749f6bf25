"""Native Python cannot escape its jail, exceed its limits or fake results of others; with namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
import pytest_asyncio

from faasrt import DeadlineExceededError, ExecutionResult, Outcome
from support.levels import NATIVE
from support.native_attacks import BOUNDED, DENIED, ENDS, FORGERIES, LEFTOVERS, MEMORY, PRELUDE, WRITE, attempt
from support.served import Caller, until
from support.tables import chosen
from support.threats import PLACES, SECRET, USERS, Host, host_of, only_with_attacks, sample

_PTRACE_SEIZE = 0x4206
_TEMPLATE_DESCRIPTORS = 8

pytestmark = [pytest.mark.asyncio(loop_scope="session"), NATIVE]


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=PLACES)
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    async with host_of(*request.param) as one:
        yield one


@pytest.mark.parametrize("name", sample(DENIED))
async def test_the_jail_denies_each_attack(host: Host, name: str) -> None:
    """Each attack in the table fails, and nothing is sent to the host."""
    result = await host.run(attempt(DENIED[name]))
    assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), result
    assert await host.sink.all_received() == []


async def test_an_ordinary_user_reports_files_that_cannot_be_read() -> None:
    """A program can take the rights to its files and folders from itself. Nothing is lost silently."""
    write = dedent("""
        import os
        os.mkdir('d')
        for path in ('a', 'd/b'): open(path, 'w').write('1')
    """)
    found = {
        "pass": ({"a": b"1", "d/b": b"1"}, set()),
        "os.chmod('/tmp', 0)": ({}, {"files"}),
        "os.chmod('/tmp', 0o400)": ({}, {"files"}),
        "os.chmod('/tmp', 0o300)": ({"a": b"1", "d/b": b"1"}, set()),
        "os.chmod('a', 0)": ({"d/b": b"1"}, {"files"}),
        "os.chmod('d', 0)": ({"a": b"1"}, {"files"}),
        "os.chmod('d', 0o400)": ({"a": b"1"}, {"files"}),
    }
    async with host_of(USERS[0] if os.getuid() else USERS[1], "namespaces") as one:
        for code, (files, truncated) in found.items():
            result = await one.manager.run_code(write + code, "python", 20_000, collect=["**"])
            assert (result.outcome, result.files, result.truncated) == (Outcome.OK, files, truncated), (code, result)


async def test_an_attack_succeeds_outside_of_the_jail(host: Host) -> None:
    """This shows that the test of the table can fail."""
    code = attempt("print(read('CANARY'))").replace("CANARY", host.words["CANARY"])
    process = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.split() == [f"b'{SECRET}'", "reached"]


@pytest.mark.parametrize("name", sample(MEMORY))
async def test_all_memory_counts_against_the_limit(host: Host, name: str) -> None:
    """Memory of child processes and files counts, and so does kernel memory for sockets."""
    if host.in_pod and "/proc" in MEMORY[name]:
        pytest.skip("there programs see nothing of /proc")
    result = await host.run_with_neighbour(f"{PRELUDE}\n{MEMORY[name]}")
    assert result.outcome is Outcome.MEMORY_LIMIT, result


async def test_many_memory_mappings_count_against_the_limit(host: Host) -> None:
    """The kernel uses memory to describe tens of thousands of mappings in dozens of processes."""
    code = dedent("""
        libc.mmap.restype = ctypes.c_void_p
        start = libc.mmap(None, ctypes.c_size_t(60_000 * 4096), 3, 0x22, -1, ctypes.c_long(0))
        for n in range(0, 60_000, 2): libc.mprotect(ctypes.c_void_p(start + n * 4096), ctypes.c_size_t(4096), 1)
        for _ in range(60):
            if not os.fork(): break
        signal.pause()
    """)
    result = await host.run_with_neighbour(f"{PRELUDE}\n{code}", 30_000, memory_limit_mb=64)
    assert result.outcome is Outcome.MEMORY_LIMIT, result


@pytest.mark.parametrize("name", sample(BOUNDED))
async def test_kernel_resources_are_limited(host: Host, name: str) -> None:
    """A program gets a limited number of processes, files and kernel objects. Other programs run meanwhile."""
    body, most = BOUNDED[name]
    result = await host.run_with_neighbour(f"{PRELUDE}\nn = 0\n{body}\nos.write(1, b'%d\\n' % n); os._exit(0)")
    assert result.outcome is Outcome.CRASHED, result  # it ends with os._exit
    assert 0 <= max(map(int, result.stdout.split())) <= most


@pytest.mark.parametrize("name", sample(LEFTOVERS))
async def test_a_program_leaves_nothing_for_other_programs(host: Host, name: str) -> None:
    """Neither programs at the same time nor later ones see what it leaves behind."""
    leave, look = LEFTOVERS[name]
    left = await host.run(f"{PRELUDE}\n{leave}\nprint('left', bool({look}))".replace("bool(unix()", "bool(True or (1)"))
    assert (left.outcome, left.stdout.split()[:1]) == (Outcome.OK, ["left"]), left
    others = [host.run(f"{PRELUDE}\nprint(bool({look}))") for _ in range(4)]
    for other in await asyncio.gather(*others, host.run(f"{PRELUDE}\n{leave}")):
        assert other.stdout in ("False\n", ""), other
        assert other.outcome is Outcome.OK, other


@pytest.mark.parametrize("name", sample(FORGERIES, 5))
async def test_forged_messages_affect_only_their_program(host: Host, name: str) -> None:
    """A program may choose its own outcome. Other results are right, and the server's memory does not grow."""
    code, outcome = FORGERIES[name]
    before = host.server.memory_info().rss
    result = await host.run_with_neighbour(f"{WRITE}\n{code}", max_output_bytes=50_000)
    assert result.outcome is outcome, result
    assert len(repr(result)) < 400_000
    assert host.server.memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("name", sample(ENDS))
async def test_no_process_of_a_program_outlives_it(host: Host, name: str) -> None:
    """However a program ends, or if it is stopped at its time limit, its process is gone."""
    code, outcome = ENDS[name]
    timeout_ms = 700 if outcome is Outcome.TIMEOUT else 20_000
    result = await host.run_with_neighbour(f"{PRELUDE}\n{code}", timeout_ms)
    assert result.outcome is outcome, result
    pid = int(str(result.metadata["instance_id"]).rpartition("-")[2])
    await until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("every", [4, only_with_attacks(1)])
async def test_attacks_leak_no_processes_and_no_descriptors(host: Host, every: int) -> None:
    """Server and launchers have the same number of descriptors after the second and the third round of some, or all,
    attacks.
    """
    programs = [f"{PRELUDE}\n{code}" for code, _ in ENDS.values()] + [attempt(body) for body in DENIED.values()]
    programs = [code for code in programs if code in chosen(programs, every)]
    counts = []
    for _ in range(3):
        for start in range(0, len(programs), 20):
            runs = (host.run(code, 300) for code in programs[start : start + 20])
            ends = await asyncio.gather(*runs, return_exceptions=True)
            # On a busy machine, a call may end at its deadline.
            assert all(isinstance(end, ExecutionResult | DeadlineExceededError) for end in ends), ends
        counts.append(await _settled(host))
    assert counts[1] == counts[2]


async def _settled(host: Host) -> int:
    """Wait until no program runs and the pool of warm processes is full. Return the number of descriptors of the
    server's processes.
    """
    url = (await host.manager.get_health_status()).endpoints[0].endpoint
    await Caller(url).until_pool("python", active=0, idle=2)
    counts = [0]

    def settled() -> bool:
        """Return whether the number has been the same five times. Ended processes may still be there."""
        counts.append(_descriptors(host))
        return counts[-1] > 0 and counts[-5:] == counts[-1:] * 5

    await until(settled)
    return counts[-1]


def _descriptors(host: Host) -> int:
    """Return the number of descriptors of the server and its launchers. Return 0 if a process ends, if there are more
    than 16, or if a template has more than its own descriptors, as while it starts a program.

    Those of slots do not count, whose number varies: two of the launcher, and the folder /proc. Network namespaces do
    not count either: they are kept, one for each program that ran at the same time. Only root can count the descriptors
    of processes in a jail.
    """
    count = 0
    try:
        processes = [host.server, *host.server.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(PermissionError):
                opened = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
                if _pids_inside(process)[2:] == [1]:
                    if len(opened) > _TEMPLATE_DESCRIPTORS:
                        return 0
                elif len(_pids_inside(process)) < 3:
                    slots = sum(_pids_inside(child)[2:] == [1] for child in process.children())
                    if opened.count("/proc") > slots:
                        return 0
                    count += sum(target != "/proc" and not target.startswith("net:") for target in opened) - 2 * slots
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return 0
    return count if len(processes) <= 16 else 0


async def test_the_first_process_of_a_namespace_ignores_signals(host: Host) -> None:
    """The signals of its own programs are dropped. Those from outside may end it, but not the launcher."""

    def find() -> list[psutil.Process]:
        """Return the first processes of the innermost namespaces."""
        children = host.server.children(recursive=True)
        return [process for process in children if _pids_inside(process)[2:] == [1]]

    await host.run("1")
    await until(find)
    for first in find():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            with contextlib.suppress(psutil.NoSuchProcess):
                first.send_signal(number)
    launchers = host.server.children()
    assert (await host.run("print('well')")).stdout == "well\n"
    assert host.server.children() == launchers


async def test_the_launcher_has_priority_over_programs(host: Host) -> None:
    """A root server raises the priority of the launcher. Otherwise programs get a lower one."""
    niceness = int((await host.run("import os; print(os.nice(0))")).stdout)
    assert niceness == min(process.nice() for process in host.server.children()) + 5


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to delay the end of a process")
async def test_programs_start_while_the_processes_of_another_program_end(host: Host) -> None:
    """A process that ends slowly, here because it is traced, does not block the launcher."""
    code = dedent("""
        import os, signal
        if child := os.fork(): print(child, flush=True)
        signal.pause()
    """)
    before = {process.pid for process in host.server.children(recursive=True)}
    async with host.manager.stream_code(code, "python", timeout_ms=20_000) as run:
        inside = int((await anext(aiter(run))).text)
        found = (process.pid for process in host.server.children(recursive=True) if _pids_inside(process)[-1] == inside)
        (child,) = {*found} - before
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.ptrace(_PTRACE_SEIZE, child, 0, 0) == 0, os.strerror(ctypes.get_errno())
    try:
        await until(lambda: psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
        for _ in range(5):
            assert (await host.run("print('well')")).stdout == "well\n"
    finally:
        assert os.waitpid(child, os.WNOHANG)[0] == child  # noqa: ASYNC222


def _pids_inside(process: psutil.Process) -> list[int]:
    """Return the pids of a process in this pid namespace and in the ones below; [0] if it has ended."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        return [int(pid) for line in status.splitlines() if line.startswith("NSpid:") for pid in line.split()[1:]]
    return [0]


async def test_a_program_sees_nothing_of_the_server(host: Host) -> None:
    """It sees its own environment variables and four descriptors. Its memory contains no secret of the server."""
    if host.in_pod:
        pytest.skip("there programs see nothing of /proc")
    code = dedent("""
        import gc, os, sys
        print(sorted({*map(int, os.listdir('/proc/self/fd'))} - {3}))
        print(sorted(os.environ), b'CANARY_KEY' in open('/proc/self/environ', 'rb').read())
        print([name for name in sys.modules if name.startswith('faasrt')])
        print(['FOLDER' in open(f'/proc/self/{name}').read() for name in ('cmdline', 'mountinfo', 'maps')])
        print(os.getuid(), os.getpid() > 1, os.getppid(), os.uname().nodename)
        maps = [line.split() for line in open('/proc/self/maps') if line.split()[1].startswith('r')]
        with open('/proc/self/mem', 'rb') as memory:
            key, found = bytes([67, 65, 78, 65, 82, 89, 95, 75, 69, 89, 61]), 0
            for fields in maps:
                start, end = (int(x, 16) for x in fields[0].split('-'))
                if '[v' in fields[-1]: continue
                memory.seek(start)
                found += memory.read(min(end - start, 2**26)).count(key)
        print(found <= 1)  # its own constant
    """)
    result = await host.run(code)
    env = ["HOME", "JE_ARROW_MALLOC_CONF", "LANG", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    env += ["PATH", "PYTHONHASHSEED", "TMPDIR"]
    expected = ["[0, 1, 2, 255]", f"{env} False", "[]", f"{[False] * 3}", "1000 True 1 sandbox", "True"]
    assert result.stdout.splitlines() == expected, result


async def test_the_network_of_the_machine_is_not_counted_for_programs(host: Host) -> None:
    """Programs cannot read the files that count packets and memory of the whole machine, but those of their sockets."""
    if host.server.uids().real or host.in_pod:
        pytest.skip("only a server that runs as root can hide these files; in a pod, programs see nothing of /proc")
    code = dedent("""
        import os
        os.chdir('/proc/self/net')
        for name in ('softnet_stat', 'sockstat', 'protocols', *(f'stat/{name}' for name in os.listdir('stat'))):
            for attack in (open, lambda name: os.chmod(name, 0o777)):
                try: print('reached', name, attack(name))
                except OSError: pass
        print(open('unix').readline().split()[0], open('snmp').readline().split()[0])
    """)
    assert (await host.run(code)).stdout == "Num Ip:\n"


async def test_processes_of_a_program_can_share_memory(host: Host) -> None:
    """The jail denies anonymous shared mappings. They are replaced by files in /tmp, which count as memory."""
    code = dedent("""
        import mmap, os
        m = mmap.mmap(-1, 8192)
        if not os.fork():
            m[:2] = b'hi'
            os._exit(0)
        os.wait()
        print(m[:2], len(m), type(m).__name__)
    """)
    assert (await host.run(code)).stdout == "b'hi' 8192 mmap\n"
