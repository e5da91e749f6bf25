"""The cgroup that a session shares with its branches. The test is the launcher, and the cgroups are a double."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

import pytest

from faasrt.local.jail.cgroup import Cgroups, Group
from faasrt.local.jail.jail import Jail, JailedProcess
from support.levels import NATIVE
from support.served import until

pytestmark = NATIVE

_KILLED, _UNKNOWN = 9, 0


class _Group(Group):
    reason = ""

    def create(self) -> None:
        self.fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def limit_memory(self, max_bytes: int) -> None:
        pass

    def oom_reason(self) -> str:
        return self.reason


class _Cgroups(Cgroups):
    def __init__(self) -> None:
        self.discarded: list[Group] = []

    def new_group(self) -> Group:
        return _Group("/none")

    def submit(self, function: Callable[[], None]) -> Future[None]:
        function()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def discard(self, group: Group) -> None:
        self.discarded.append(group)


class _Launcher:
    """The other end of the socket of a jail. All processes of the jail are one that sleeps."""

    def __init__(self, server: socket.socket, sleeper: int) -> None:
        self._server, self._sleeper = server, sleeper

    async def read(self, kind: str) -> Any:
        """Return the value of the next message of this kind."""
        loop = asyncio.get_running_loop()
        while True:
            data = await loop.sock_recv(self._server, 65_536)
            if kind in (message := json.loads(data)):
                return message[kind]

    def send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        rights = array.array("i", descriptors or [])
        self._server.sendmsg([json.dumps(message).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        for fd in descriptors or []:
            os.close(fd)

    def send_started(self, number: int) -> None:
        self.send({"started": number, "ready": True}, [os.pidfd_open(self._sleeper) for _ in range(2)])

    def send_ended(self, number: int, status: int) -> None:
        self.send({"ended": number, "status": status, "reason": "", "peak": 0, "waited_s": 0.0})


class _Session:
    """A session, and the start of its branch, until the launcher has been asked to add it."""

    def __init__(self, jail: Jail, cgroups: _Cgroups, launcher: _Launcher) -> None:
        self.jail, self.cgroups, self.launcher = jail, cgroups, launcher
        self.process: JailedProcess

    async def begin(self) -> None:
        starting = asyncio.create_task(self.jail.start(channel=True))
        self.launcher.send_started(await self.launcher.read("start"))
        self.process = await starting

    async def fork(self) -> tuple[asyncio.Task[JailedProcess], int]:
        async def fork(channel: int) -> None:
            os.write(channel, b"b")

        async def start() -> JailedProcess:
            return (await self.jail.fork(self.process, fork))[0]

        forking = asyncio.create_task(start())
        number = await self.launcher.read("prepare")
        folders = [os.open("/", os.O_RDONLY | os.O_CLOEXEC) for _ in range(3)]
        self.launcher.send({"prepared": number, "reason": "", "count": len(folders)}, folders)
        assert await self.launcher.read("branch") == number
        return forking, number

    async def end(self, status: int = _KILLED) -> None:
        self.launcher.send_ended(1, status)
        await until(lambda: self.process.returncode is not None)


@contextlib.asynccontextmanager
async def _opened() -> AsyncIterator[_Session]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop, cgroups = asyncio.get_running_loop(), _Cgroups()
    with ours, theirs, subprocess.Popen(["/bin/sleep", "600"]) as sleeper:
        for end in (ours, theirs):
            end.setblocking(False)
        jail = Jail(ours, cgroups)
        loop.add_reader(ours, jail.receive)
        try:
            session = _Session(jail, cgroups, _Launcher(theirs, sleeper.pid))
            await session.begin()
            yield session
        finally:
            loop.remove_reader(ours)
            jail.mark_ended()
            sleeper.kill()


async def test_a_branch_that_ends_at_once_does_not_end_the_session() -> None:
    """The messages of its start and of its end are read together."""
    async with _opened() as session:
        forking, number = await session.fork()
        session.launcher.send_started(number)
        session.launcher.send_ended(number, _UNKNOWN)
        branch = await forking
        assert branch.returncode == 0
        assert not session.cgroups.discarded
        await session.end()
        assert session.cgroups.discarded == [session.process.group]


async def test_a_cancelled_fork_does_not_end_the_session() -> None:
    """The cancellation arrives when the branch has started, and before the fork goes on."""
    async with _opened() as session:
        forking, number = await session.fork()
        session.launcher.send_started(number)
        session.jail.receive()
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
        assert await session.launcher.read("kill") == number
        session.launcher.send_ended(number, _UNKNOWN)
        session.jail.receive()
        assert not session.cgroups.discarded
        await session.end()
        assert session.cgroups.discarded == [session.process.group]


@pytest.mark.parametrize("reason", ["memory", "system", ""])
async def test_the_cgroup_says_why_a_branch_has_ended(reason: str) -> None:
    """The launcher does not know it. If the kernel has ended no process in the cgroup, the branch ended by itself."""
    async with _opened() as session:
        forking, number = await session.fork()
        session.launcher.send_started(number)
        branch = await forking
        assert isinstance(branch.group, _Group)
        branch.group.reason = reason
        session.launcher.send_ended(number, _UNKNOWN)
        await until(lambda: branch.returncode is not None)
        assert branch.returncode == (-9 if reason else 0)
        assert (branch.out_of_memory, bool(branch.outside_reason)) == (reason == "memory", reason == "system")


async def test_a_branch_that_was_closed_did_not_lack_memory() -> None:
    async with _opened() as session:
        forking, number = await session.fork()
        session.launcher.send_started(number)
        branch = await forking
        assert isinstance(branch.group, _Group)
        branch.group.reason = "memory"
        branch.kill()
        session.launcher.send_ended(number, _UNKNOWN)
        await until(lambda: branch.returncode is not None)
        assert (branch.returncode, branch.out_of_memory) == (0, False)
