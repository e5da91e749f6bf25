"""The processes of a jail with an executable start whatever descriptors the launcher has open."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import attrs
import psutil
import pytest

from faasrt.local.engines.native_jail import native_jail
from faasrt.local.errors import NotStartedError
from faasrt.local.jail import jail as jail_module
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.jail import bind_in, open_jail
from faasrt.local.jail.launcher import canary
from faasrt.local.jail.launcher.seccomp import EXECUTABLE_FD
from faasrt.local.jail.launcher.syscalls import ChildStarter
from faasrt.local.jail.level import find_level
from faasrt.local.process import Spawner
from support.levels import LANDLOCK, NATIVE
from support.served import until, with_word

pytestmark = NATIVE

SLEEP = "/bin/sleep"
_COUNT = """
import os
from faasrt.local.jail.launcher.template import count_tasks
os.dup2(os.open("/proc/loadavg", os.O_RDONLY), 4)
orphan, program = (os.fork() or os._exit(0) for _ in range(2))
print(count_tasks(program) >= 1, os.waitpid(program, os.WNOHANG)[0] == program)
"""
_EXECUTE = """
import json, os
from faasrt.local.jail.launcher import executor, landlock, seccomp, syscalls
os.dup2(os.open("/proc/loadavg", os.O_RDONLY), 4)
os.dup2(os.open("/bin/sleep", os.O_PATH), seccomp.EXECUTABLE_FD)
syscalls.forbid_new_privileges()
wrong, last_task = [1, 2], executor.last_task
executor.last_task = lambda: wrong.pop() if wrong else last_task()
code = seccomp.build_filter("deno", seccomp.ANY_PID)
starter = executor.FileExecutor(seccomp.EXECUTABLE_FD, {}, landlock.create_nested(), {"RLIMIT_CORE": 1}, code, 5)
pid = starter.start(json.dumps([["sleep", "0"], {"RLIMIT_FSIZE": 0}]).encode(), [0, 1, 2])
print(os.waitpid(pid, 0)[1], wrong)
"""


def config_of(level: str) -> JailConfig:
    libraries = [word for word in subprocess.check_output(["ldd", SLEEP], text=True).split() if word.startswith("/")]
    mounts = [(SLEEP, SLEEP), *((path, path) for path in libraries)]
    return JailConfig(level=level, policy="deno", mounts=mounts, executable=SLEEP)


@pytest.mark.parametrize("level", ["namespaces", pytest.param("filters", marks=LANDLOCK)])
async def test_processes_start_with_any_number_of_open_descriptors(tmp_path: Path, level: str) -> None:
    """The launcher has descriptors for each process, and one more for each with a time limit. So the next free number
    takes all values up to that of the executable, and higher ones.
    """
    tmp_path.chmod(0o755)
    async with Spawner() as spawner, open_jail(spawner, sys.executable, tmp_path, config_of(level)) as jail:
        for limited in range(6):
            processes = []
            for number in range(EXECUTABLE_FD // 4):
                processes.append(await jail.start(["sleep", "600"]))
                if number < limited:
                    processes[-1].limit_time(600)
            for process in processes:
                assert process.alive
                await process.end()
                assert (process.returncode, process.outside_reason) == (-9, "the server has ended it")


async def test_the_folder_of_a_jail_can_have_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is longer than the address of a Unix socket. The canary can still connect to the socket in the folder."""
    folder = tmp_path / ("long" * 50)
    folder.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    async with Spawner() as spawner, open_jail(spawner, sys.executable, folder, config_of("namespaces")) as jail:
        process = await jail.start(["sleep", "0"])
        await process.ended.wait()
        assert process.returncode == 0
    monkeypatch.chdir("/")  # so that the folder of this process is restored
    with socket.socket(socket.AF_UNIX) as listener:
        bind_in(listener, folder, "socket")
        listener.listen()
        canary.connect_to_file(str(folder), "socket")


@LANDLOCK
async def test_the_socket_of_a_launcher_can_have_any_number(tmp_path: Path) -> None:
    """Its number is that of the server. Here it is the number at which the launcher keeps the executable."""
    tmp_path.chmod(0o755)
    with contextlib.ExitStack() as stack:
        last = -1
        while last < EXECUTABLE_FD - 2:
            last = os.open("/dev/null", os.O_RDONLY)
            stack.callback(os.close, last)
        async with Spawner() as spawner, open_jail(spawner, sys.executable, tmp_path, config_of("filters")) as jail:
            process = await jail.start(["sleep", "0"])
            await process.ended.wait()
    assert process.returncode == 0


@LANDLOCK
async def test_one_process_starts_several_programs(tmp_path: Path) -> None:
    """With namespaces, it is the first one of a slot. If it is killed, its program ends, and is not to blame."""
    tmp_path.chmod(0o755)
    async with Spawner() as spawner, open_jail(spawner, sys.executable, tmp_path, config_of("namespaces")) as jail:
        templates = set()
        for _ in range(3):
            process = await jail.start(["sleep", "600"])
            template = psutil.Process(process.pid).parent()
            assert template is not None
            templates.add(template)
            await process.end()
        assert len(templates) == 1
        process = await jail.start(["sleep", "600"])
        template.kill()
        await process.ended.wait()
        assert (process.returncode, process.outside_reason) == (-9, "the process that started it has ended")
        process = await jail.start(["sleep", "0"])
        await process.ended.wait()
        assert process.returncode == 0


@LANDLOCK
async def test_an_executed_process_has_its_limits_and_its_filter(tmp_path: Path) -> None:
    """They are there when it is reported as started. Its process group, and its priority, are its own."""
    tmp_path.chmod(0o755)
    config = attrs.evolve(config_of("namespaces"), limits={"RLIMIT_CORE": 1, "RLIMIT_NOFILE": 64}, env={"A": "b"})
    async with Spawner() as spawner, open_jail(spawner, sys.executable, tmp_path, config) as jail:
        process = await jail.start(["sleep", "600"], limits={"RLIMIT_DATA": 2**28})
        started = psutil.Process(process.pid)
        template = started.parent()
        assert template is not None
        status = Path(f"/proc/{process.pid}/status").read_text("ascii")
        assert "\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n" in status
        await until(started.cmdline)  # until then, the kernel is still loading the executable
        assert (started.cmdline(), started.environ()) == (["sleep", "600"], {"A": "b"})
        limits = {"RLIMIT_CORE": 1, "RLIMIT_NOFILE": 64, "RLIMIT_DATA": 2**28}
        assert all(started.rlimit(getattr(psutil, name)) == (value, value) for name, value in limits.items())
        assert started.nice() >= min(template.nice() + 5, 19)
        assert os.getpgid(process.pid) == process.pid
        await process.end()


@LANDLOCK
def test_a_process_whose_number_was_not_expected_is_not_used() -> None:
    """Its filter allows signals to the process with the expected number only. This happens when the numbers of tasks
    begin again.
    """
    ended = subprocess.run([sys.executable, "-c", _EXECUTE], capture_output=True, text=True, check=True)
    assert ended.stdout == "0 []\n"


def test_a_child_that_makes_too_many_calls_is_not_started() -> None:
    """Otherwise the first ones would be left out, which confine it."""
    calls = [("getpid", ()), ("getpid", ()), ("_exit", (0,))]
    assert os.waitpid(ChildStarter(3).start(calls), 0)[1] == 0
    with pytest.raises(ValueError, match="too many calls"):
        ChildStarter(2).start(calls)


async def test_the_kill_of_a_program_that_has_ended_does_not_end_the_next_one(tmp_path: Path) -> None:
    """The server may not have read yet that it has ended. The first process of the slot already starts another one."""
    tmp_path.chmod(0o755)
    runner = "import os\ndef main(*_): os._exit(len(os.read(0, 1)))"
    config = native_jail("namespaces", runner, "/tmp/main.py", mounts={}, env={})
    async with Spawner() as spawner, open_jail(spawner, sys.executable, tmp_path, config) as jail:
        process = await jail.start(channel=True)
        template = psutil.Process(process.pid).parent()
        process.write(eof=True)
        while psutil.pid_exists(process.pid):
            time.sleep(0.01)  # noqa: ASYNC251  # the event loop must not read that it has ended
        process.kill()
        await process.ended.wait()
        assert process.returncode == 0
        process = await jail.start(channel=True)
        assert psutil.Process(process.pid).parent() == template
        await process.end()


def patch_launcher(monkeypatch: pytest.MonkeyPatch, statements: str) -> None:
    """Let launchers execute statements before they start."""
    start = "from launcher import launcher\n"
    monkeypatch.setattr(jail_module, "START_LAUNCHER", jail_module.START_LAUNCHER.replace(start, start + statements))


@LANDLOCK
async def test_a_slot_is_replaced_after_some_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is 100, and 3 in this test."""
    patch_launcher(monkeypatch, "from launcher import slot\nassert slot.MAX_RUNS == 100\nslot.MAX_RUNS = 3\n")
    tmp_path.chmod(0o755)
    runner = "import os\ndef main(*_): os._exit(len(os.read(0, 1)))"
    config = native_jail("namespaces", runner, "/tmp/main.py", mounts={}, env={})
    templates = []
    async with Spawner() as spawner, open_jail(spawner, sys.executable, tmp_path, config) as jail:
        for _ in range(7):
            process = await jail.start(channel=True)
            templates.append(psutil.Process(process.pid).parent())
            process.write(eof=True)
            await process.ended.wait()
    assert [len([*same]) for _, same in itertools.groupby(templates)] == [3, 3, 1]


@LANDLOCK
async def test_a_launcher_without_free_descriptors_does_not_lose_uids_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails to start more processes than it has uids, and then starts one."""
    patch_launcher(
        monkeypatch, "from launcher import restrictions\nrestrictions.MAX_PROGRAMS = launcher.namespaces.PLACES = 20\n"
    )
    tmp_path.chmod(0o755)
    async with Spawner() as spawner, open_jail(spawner, sys.executable, tmp_path, config_of("namespaces")) as jail:
        first = await jail.start(["sleep", "600"])
        launcher = psutil.Process(first.pid).parents()[1]
        counts = [launcher.num_fds()]
        while len(counts) < 20 or len({*counts[-20:]}) > 1:  # until it has closed the descriptors of the canary
            await asyncio.sleep(0.01)
            counts.append(launcher.num_fds())
        limits = launcher.rlimit(psutil.RLIMIT_NOFILE)
        # Three pipes and one more. Two open descriptors have high numbers: the executable, and the server.
        launcher.rlimit(psutil.RLIMIT_NOFILE, (launcher.num_fds() - 2 + 4, limits[1]))
        for _ in range(50):
            with pytest.raises(NotStartedError, match="Too many open files"):
                await jail.start(["sleep", "600"])
        launcher.rlimit(psutil.RLIMIT_NOFILE, limits)
        assert (await jail.start(["sleep", "600"])).alive


async def test_a_process_that_the_server_cannot_read_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, the system has no place for its pipes in another epoll instance."""
    tmp_path.chmod(0o755)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with Spawner() as spawner, open_jail(spawner, sys.executable, tmp_path, config_of("namespaces")) as jail:
        first = await jail.start(["sleep", "600"])
        launcher = psutil.Process(first.pid).parents()[1]
        monkeypatch.setattr(jail.readers, "add_reader", fail)
        with pytest.raises(NotStartedError, match="No space left on device"):
            await jail.start(["sleep", "600"])
        await until(lambda: len(with_word(launcher.children(recursive=True), "sleep")) == 1)


async def test_a_lack_of_descriptors_does_not_lower_the_level(tmp_path: Path) -> None:
    """It may end at the next moment, and the level stays as long as the server runs."""
    os.close(free := os.dup(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, hard))
    try:
        with pytest.raises((NotStartedError, OSError), match="Too many open files"):
            await find_level("auto", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_program_keeps_its_number_until_its_tasks_are_counted() -> None:
    """Nothing else can get this number, and then look like the program when the numbers of tasks have begun again."""
    assert subprocess.check_output([sys.executable, "-c", _COUNT], text=True) == "True True\n"
