"""The server's side of a jail: it starts the launcher, and asks it for processes. `launcher/` is the other side."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import functools
import itertools
import json
import math
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from faasrt._shielded_wait import wait_shielded
from faasrt.local.errors import OUT_OF_MEMORY, OUT_OF_TIME, TOO_BUSY, EngineError, NotStartedError, SuspectError
from faasrt.local.jail.cgroup import Cgroups, Group
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.launcher.pidfds import has_ended, pid_of
from faasrt.local.jail.launcher.process_memory import is_ready
from faasrt.local.jail.launcher.scheduling import read_times
from faasrt.local.process import MESSAGES, ChildProcess, EpollReaders, Pipes, Spawner, ignore_output
from faasrt.protocol.processes import signal_name

_START_TIMEOUT_S = 60.0
_MESSAGE_BYTES = 65_536
_MAX_DESCRIPTORS = 4  # of a message
# The shell raises the limit of the stack (to 1 GiB if possible) before it starts the interpreter, because the stack can
# never grow beyond the limit at that time. Programs can read the command line of the launcher, so it has no paths.
_COMMAND = (
    "/bin/sh",
    "-c",
    'ulimit -S -s 1048576 2>/dev/null || ulimit -S -s "$(ulimit -H -s)"; exec "$0" "$@"',
)
_BOOT = "import socket,sys; server=socket.socket(fileno=int(sys.argv[1])); exec(server.recv(65536))"
_FOLDER = str(Path(__file__).parent)
START_LAUNCHER = """
import sys
sys.path[:] = [path for path in sys.path if path]
sys.path.insert(0, {folder!r})
from launcher import launcher
del sys.path[0]
sys.excepthook = launcher.main(server)
# Only the process of a program gets here. The exception makes the interpreter call the hook, which runs the program
# with no other function on the stack.
raise SystemError
"""


class OwnedFd:
    """A descriptor that is closed when nothing refers to it: a thread may still read it after a cancellation."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class _BranchEndedError(NotStartedError):
    """The process of a branch has probably ended before the launcher knew it."""


class JailedProcess(ChildProcess):
    """A process in a jail, with the processes that it starts.

    Attributes:
        is_ready: Whether its jail was complete when it started. Otherwise it sends a message when it is.
        outside_reason: Why it was killed from outside; "" if there is no evidence for this, so that the program must be
            assumed to have sent the signal itself.
        is_suspect: Whether the program may have caused `outside_reason`.
        peak_bytes: The largest size in memory of its first process; 0 until it has ended, or if it is unknown.
        waited_s: How long it has waited for a CPU; 0 until it has ended.
        began: When the time limit of its last run began or ended.
        is_session: Whether it runs a session.
        on_interrupt: Called when the time of a run is over.
        is_shared: Whether it is a session with branches, or a branch.
    """

    def __init__(self, jail: Jail, number: int, pidfds: tuple[int, int], start: _Start, *, is_ready: bool) -> None:
        self.out_of_memory = self.out_of_time = False
        self.is_ready, self.peak_bytes, self.waited_s, self.began = is_ready, 0, 0.0, 0.0
        self._waited_before_s = 0.0
        self.on_interrupt: Callable[[], None] = lambda: None
        self.outside_reason, self.is_suspect, self.is_session, self.is_shared = "", False, False, False
        self.jail, self.number, self._pidfds, self.group = jail, number, pidfds, start.group
        self._to_kill, self._ran_ns = pidfds[1], -1
        super().__init__(pid_of(pidfds[0]), start.pipes, self._send_kill, jail.readers)

    @property
    def ending(self) -> str:
        """How it has ended, for the user of a session."""
        code = self.returncode or 0
        if self.out_of_memory:
            return OUT_OF_MEMORY
        if self.out_of_time:
            return OUT_OF_TIME
        if self.outside_reason:
            return f"its process was killed: {self.outside_reason}"
        return f"its process ended {f'by {signal_name(-code)}' if code < 0 else f'with the exit code {code}'}"

    def _send_kill(self) -> None:
        if self.is_shared:
            with contextlib.suppress(OSError):  # the launcher has ended, and all processes with it
                self.jail.send({"kill": self.number})
        else:
            _kill_running(self._pidfds[0], self._to_kill)

    def limit_time(
        self,
        limit_s: float,
        *,
        wall_s: float = math.inf,
        memory_bytes: int | None = None,
        pipes: Sequence[int] | None = None,
    ) -> None:
        """Start the time limit of the program. The launcher ends the program. Raise NotStartedError if the launcher
        does not read its messages.

        Args:
            limit_s: The time in which the program runs, or waits for something other than a CPU. Infinity ends the
                limit of a session, whose processes then only wait. The launcher interrupts a session first.
            wall_s: The limit of the time including the waits for a CPU.
            memory_bytes: The memory that its processes may use in addition to the memory of a process without a
                program. The launcher also ends the program at this limit.
        """
        try:
            if self.is_session and limit_s < math.inf:
                self._waited_before_s = self._read_wait()
            # Not the clock of the event loop, because the launcher compares it with its own.
            self.began = time.monotonic()
            message = {"limit": self.number, "bytes": memory_bytes, "began": self.began}
            message |= {"limit_s": limit_s, "wall_s": wall_s, "again": self.is_session}
            message |= {"cgroup": self.group is not None, "session": pipes is not None}
            self.jail.send(message, pipes or ())
        except OSError as error:
            raise NotStartedError(f"cannot limit a program: {error.strerror}") from None
        if memory_bytes is not None and self.group is not None:
            self.limit_cgroup(self.jail.base_bytes + memory_bytes * self.group.programs)

    def measure_wait(self) -> float:
        """Return how long it has waited for a CPU in its last run, in seconds. Before its end is reported, return the
        wait of its first thread.
        """
        if self.returncode is not None and self.waited_s:
            return self.waited_s
        return max(0.0, self._read_wait() - self._waited_before_s)

    def _read_wait(self) -> float:
        return read_times(f"/proc/{self.pid}")[1] / 1e9

    def has_exited(self) -> bool:
        """Return whether its first process has ended, even if the launcher has not reported this yet."""
        return self.returncode is not None or has_ended(self._pidfds[0])

    def waits_for_cpu(self) -> bool:
        """Return whether its first thread is ready to run, and has not run since the last call."""
        before, self._ran_ns = self._ran_ns, read_times(f"/proc/{self.pid}")[0]
        return self._ran_ns == before and is_ready(f"/proc/{self.pid}")

    def limit_cgroup(self, max_bytes: int) -> None:
        if self.group is not None:
            self.group.limit_memory(max_bytes)

    def check_not_killed(self, name: str) -> None:
        """Raise EngineError if it was killed from outside; SuspectError if the program may have caused this."""
        if self.returncode == -signal.SIGKILL and self.outside_reason:
            kind = SuspectError if self.is_suspect else EngineError
            raise kind(f"{name} was killed from outside: {self.outside_reason}")

    def interrupt(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfds[0], signal.SIGINT)

    async def open_folder(self) -> OwnedFd:
        """Return the working folder, even after the process has ended. Raise NotStartedError if it cannot be opened."""
        return await self.jail.open_folder(self.number)

    def kill(self) -> None:
        if self.returncode is None and not self.outside_reason:
            self.outside_reason = "the server has ended it"
        super().kill()

    def kill_first(self) -> None:
        """Kill the first process, whose program has ended. The launcher kills the others, or reuses the jail."""
        self._to_kill = self._pidfds[0]
        self.kill()

    def mark_exited(self, returncode: int, reason: str = "") -> None:
        for pidfd in self._pidfds:
            os.close(pidfd)
        if self.group is not None:
            # The status of a branch is unknown, and reported as 0.
            is_unclear = returncode == -signal.SIGKILL or (self.is_shared and returncode == 0)
            if is_unclear and not self.killed and (reason := reason or self.group.oom_reason()):
                returncode = -signal.SIGKILL
            self.jail.discard(self.group)
        self.out_of_memory, self.out_of_time = reason == "memory", reason == "time"
        if reason == "machine":
            self.outside_reason = TOO_BUSY
        elif reason in ("system", "unclear"):
            self.outside_reason, self.is_suspect = "the system has run out of memory", reason == "unclear"
        elif reason == "template":
            self.outside_reason = self.outside_reason or "the process that started it has ended"
        super().mark_exited(returncode)


@attrs.define
class _Start:
    """The start of a process: a branch of `session`, if that is not None."""

    pipes: Pipes
    group: Group | None
    session: JailedProcess | None = None
    reply: asyncio.Future[None] = attrs.field(factory=lambda: asyncio.get_running_loop().create_future())
    process: JailedProcess | None = None


class Jail:
    """A launcher, and the processes that it has started. Created by `open_jail`.

    `base_bytes` is the resident memory of the launcher, which each process has from its start.
    """

    def __init__(self, server: socket.socket, cgroups: Cgroups | None) -> None:
        self._server, self._cgroups = server, cgroups
        self.packages: frozenset[str] = frozenset()
        self.base_bytes = 0
        self._numbers = itertools.count(1)
        self._starts: dict[int, _Start] = {}
        self._processes: dict[int, JailedProcess] = {}
        self._cancelled: set[JailedProcess] = set()  # processes whose start was cancelled, until they have ended
        self._replies: dict[int, asyncio.Future[list[OwnedFd]]] = {}
        self._ended = asyncio.Event()
        self.readers = EpollReaders()

    async def start(
        self,
        argv: Sequence[str] = (),
        *,
        limits: Mapping[str, int] = {},
        channel: bool = False,
        compiles: bool = False,
        canary: Mapping[str, Any] | None = None,
    ) -> JailedProcess:
        """Start a process. Raise NotStartedError if it cannot start.

        Args:
            channel: Whether the messages have a descriptor of their own, MESSAGES.
            compiles: Whether it is a compiler, which cannot read endless files in /dev and /proc if the kernel has
                Landlock. Only at the level "namespaces".
            canary: The traps. With them, the process does not run a program, but the canary.

        Cancellation: ends the process.
        """
        number = next(self._numbers)
        start = group = None
        try:
            if self._cgroups is not None:
                group = self._cgroups.new_group()
                await asyncio.wrap_future(self._cgroups.submit(group.create))
            pipes = _open_pipes(channel=channel)
            start = self._starts[number] = _Start(pipes, group)
            message = {"start": number, "argv": [*argv], "limits": {**limits}}
            message |= {"compiles": compiles, "canary": canary, "cgroup": group is not None}
            try:
                self.send(message, pipes.others if group is None else [*pipes.others, group.fd])
            finally:
                pipes.close_others()
                if group is not None:
                    group.close()
            await start.reply
        except OSError as error:
            raise NotStartedError(f"cannot start a process in the jail: {error.strerror}") from None
        except asyncio.CancelledError:
            if start is not None and start.process is not None:
                self._cancelled.add(start.process)
                start.process.receive(ignore_output, functools.partial(self._cancelled.discard, start.process))
                start.process.kill()
            raise
        finally:
            self._starts.pop(number, None)
            if start is None or start.process is None:
                if start is not None:
                    start.pipes.close()
                if group is not None:
                    self.discard(group)
        assert start.process is not None
        return start.process

    @property
    def has_sessions(self) -> bool:
        return any(process.is_session for process in self._processes.values())

    async def open_folder(self, number: int) -> OwnedFd:
        (folder,) = await self._ask(number, {"folder": number})
        return folder

    async def fork(
        self, process: JailedProcess, fork: Callable[[int], Awaitable[None]]
    ) -> tuple[JailedProcess, OwnedFd]:
        """Start a branch of a session, in its jail: a process that its process forks. Return it, and its folder. Raise
        NotStartedError if it cannot start.

        Args:
            fork: Lets the process fork, given the descriptor of the channel of the branch. The branch sends one byte
                over it, and gets one with its rules of Landlock, its root folder, and the list of its shared memory if
                it has no /proc, or with nothing if these cannot be made.

        Cancellation: ends the branch.
        """
        number = next(self._numbers)
        pipes, channel = _open_branch_pipes()
        start = self._starts[number] = _Start(pipes, process.group, process)
        # While the process forks, which takes long if it has much memory.
        registering = asyncio.ensure_future(self._register_branch(number, process, channel, start))
        complete = False
        try:
            try:
                await fork(start.pipes.others[MESSAGES])
            except Exception:
                reason = registering.exception() if registering.done() and not registering.cancelled() else None
                if reason is None or isinstance(reason, _BranchEndedError):
                    raise  # the branch has said why it ended
                raise reason from None  # why the branch could not go on
            own_folder = await registering
            complete = True
        finally:
            registering.cancel()
            with contextlib.suppress(asyncio.CancelledError, NotStartedError, OSError):
                await wait_shielded(registering)  # it ends at once
            channel.close()
            start.pipes.close_others()
            del self._starts[number]
            if start.process is None:
                start.pipes.close()
                with contextlib.suppress(OSError):  # the launcher has ended
                    self.send({"kill": number})
            elif not complete:
                start.process.abandon()
        assert start.process is not None
        return start.process, own_folder

    async def _register_branch(
        self, number: int, process: JailedProcess, channel: socket.socket, start: _Start
    ) -> OwnedFd:
        try:
            rules, root, folder, *mappings = await self._ask(number, {"prepare": number, "of": process.number})
        except NotStartedError:
            channel.send(b"r")
            raise
        try:
            socket.send_fds(channel, [b"r"], [file.fd for file in (rules, root, *mappings)])
            await _until_readable(channel)
            pidfd = os.pidfd_open(_sender(channel))
            try:
                self.send({"branch": number, "of": process.number}, [pidfd])
            finally:
                os.close(pidfd)
            await start.reply
        except OSError as error:
            raise _BranchEndedError(f"cannot start a branch: {error.strerror}") from None
        except NotStartedError as error:
            raise _BranchEndedError(str(error)) from None
        return folder

    async def _ask(self, number: int, message: Mapping[str, Any]) -> list[OwnedFd]:
        if self._ended.is_set():
            raise NotStartedError("the launcher of the jail has ended")
        reply: asyncio.Future[list[OwnedFd]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        try:
            self.send(message)
            return await reply
        except OSError as error:
            raise NotStartedError(f"cannot ask the launcher of the jail: {error.strerror}") from None
        finally:
            del self._replies[number]

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._server.sendmsg([json.dumps(message).encode()], rights)

    def discard(self, group: Group) -> None:
        """Remove a cgroup soon, with the processes in it, unless other programs are in it."""
        assert self._cgroups is not None
        group.programs -= 1
        if not group.programs:
            self._cgroups.discard(group)

    def receive(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._server, _MESSAGE_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(self._server.fileno())
                self.mark_ended()
                return
            message = json.loads(data.decode())  # `loads` would first detect the encoding of bytes
            if "ended" in message:
                process = self._processes.pop(message["ended"], None)
                if process is not None:
                    process.peak_bytes, process.waited_s = message["peak"], message["waited_s"]
                    process.mark_exited(os.waitstatus_to_exitcode(message["status"]), message["reason"])
            elif "interrupt" in message:
                process = self._processes.get(message["interrupt"])
                if process is not None and process.began == message["began"]:  # not for an earlier run
                    process.on_interrupt()
            elif "folder" in message:
                self._reply(message["folder"], descriptors, 1, "the folder of a program cannot be opened")
            elif "prepared" in message:
                self._reply(
                    message["prepared"],
                    descriptors,
                    max(message["count"], 3),
                    f"a branch cannot be prepared: {message['reason'] or 'its session has ended'}",
                )
            elif "started" in message:
                self._mark_started(message["started"], descriptors, is_ready=message["ready"])
            else:
                start = self._starts.get(message["refused"])
                if start is not None and not start.reply.done():
                    reason = f"cannot start a process in the jail: {message['reason']}"
                    start.reply.set_exception(NotStartedError(reason))

    def _reply(self, number: int, descriptors: Sequence[int], count: int, problem: str) -> None:
        """Answer a question with `count` descriptors. Some are missing if this process has too many open files."""
        reply, files = self._replies.get(number), [*map(OwnedFd, descriptors)]
        if reply is None or reply.done():
            return
        if len(files) == count:
            reply.set_result(files)
        else:
            reply.set_exception(NotStartedError(problem))

    def _mark_started(self, number: int, pidfds: Sequence[int], *, is_ready: bool) -> None:
        """Do all that the end of the process undoes here, because the message of its end may be next."""
        start = self._starts.get(number)
        try:
            if len(pidfds) < 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if start is None or start.reply.done():
                raise ProcessLookupError  # `start` was cancelled
            start.process = JailedProcess(self, number, (pidfds[0], pidfds[1]), start, is_ready=is_ready)
        except Exception as error:
            with contextlib.suppress(OSError):  # it has ended
                _kill_running(*pidfds) if len(pidfds) == 2 else self.send({"kill": number})
            for fd in pidfds:
                os.close(fd)
            if start is not None and not start.reply.done():
                start.reply.set_exception(error)
        else:
            self._processes[number] = start.process
            if start.session is not None:
                start.process.is_shared = start.session.is_shared = True
                if start.group is not None:
                    start.group.programs += 1
            start.reply.set_result(None)

    async def watch(self) -> None:
        """Raise EngineError when the launcher has ended, which only happens if it is killed."""
        await self._ended.wait()
        raise EngineError("the launcher of the jail was killed from outside")

    async def end(self) -> None:
        """Kill the processes of a launcher that has ended. Wait for processes whose start was cancelled."""
        self.mark_ended()
        for process in list(self._cancelled):
            await process.ended.wait()

    def mark_ended(self) -> None:
        self._ended.set()
        for start in self._starts.values():
            if not start.reply.done():
                start.reply.set_exception(NotStartedError("the launcher of the jail has ended"))
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(NotStartedError("the launcher of the jail has ended"))
        while self._processes:
            _, process = self._processes.popitem()
            process.outside_reason = "the launcher of the jail has ended"
            process.kill()
            process.mark_exited(-signal.SIGKILL)


async def _until_readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(channel, lambda: None if readable.done() else readable.set_result(None))
    try:
        await readable
    finally:
        loop.remove_reader(channel)


def _sender(channel: socket.socket) -> int:
    """Return the pid of the process that has sent a byte over a channel. The kernel states it."""
    size = struct.calcsize("iII")
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(size))
    for _, kind, data in ancillary:
        if kind == socket.SCM_CREDENTIALS:
            pid: int = struct.unpack("iII", data)[0]
            return pid
    raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))


def _kill_running(first: int, to_kill: int) -> None:
    """Kill a process, and thus the program whose first process is `first`, unless the latter has ended.

    Then the launcher or the template ends the rest of the program. The template may already run the next one, which
    must not be killed. The arguments are pidfds.
    """
    if not has_ended(first):
        signal.pidfd_send_signal(to_kill, signal.SIGKILL)


def _open_pipes(*, channel: bool) -> Pipes:
    pipes = Pipes(4 if channel else 3)
    if channel:
        for fd in pipes.others[:3]:
            os.fchmod(fd, 0o666)  # so that a process with another uid can open /dev/stdin and the like
    return pipes


def _open_branch_pipes() -> tuple[Pipes, socket.socket]:
    """Return the pipes of a branch, and a copy of their channel that receives the pid of the sender."""
    try:
        pipes = Pipes(4)
        try:
            channel = pipes.copy_channel()
        except OSError:
            pipes.close()
            raise
    except OSError as error:
        raise NotStartedError(f"cannot start a branch: {error.strerror}") from None
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return pipes, channel


@contextlib.asynccontextmanager
async def open_jail(
    spawner: Spawner, python: str, folder: Path, config: JailConfig, cgroups: Cgroups | None = None
) -> AsyncIterator[Jail]:
    """Build a jail, check it with the canary, and yield it. Afterwards end all of its processes. Raise EngineError if
    it cannot be built, or the canary broke out. `folder` is for its mounts and traps.
    """
    root = folder / f"root-{os.urandom(4).hex()}"
    await asyncio.to_thread(root.mkdir, mode=0o755)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            command = [*_COMMAND, python, "-s", "-c", _BOOT, str(theirs.fileno())]
            env = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
            env |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
            launcher = await spawner.start(command, env=env, folder=Path("/"), pass_fds=[theirs.fileno()])
        errors = bytearray()
        launcher.receive(lambda fd, data: errors.extend(data[:_MESSAGE_BYTES]))
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        jail = Jail(ours, cgroups)
        try:
            description = await asyncio.to_thread(config.for_launcher, root)
            try:
                async with asyncio.timeout(_START_TIMEOUT_S):
                    await loop.sock_sendall(ours, START_LAUNCHER.format(folder=_FOLDER).encode())
                    await loop.sock_sendall(ours, json.dumps(description).encode())
                    answer = json.loads(await loop.sock_recv(ours, _MESSAGE_BYTES) or b"{}")
            except TimeoutError as error:
                raise EngineError(f"the jail was not built within {_START_TIMEOUT_S:g} s") from error
            except OSError as error:
                raise EngineError(f"the jail cannot be built: {error.strerror}") from None
            if "ready" not in answer:
                reason = answer.get("failed") or errors[-300:].decode("utf-8", "replace").strip() or "no reason given"
                raise EngineError(f"the jail cannot be built: {reason}")
            jail.packages, jail.base_bytes = frozenset(answer["packages"]), answer["base_bytes"]
            loop.add_reader(ours.fileno(), jail.receive)
            await _check(jail, folder, config)
            yield jail
        finally:
            loop.remove_reader(ours.fileno())
            # The kernel kills the processes in the jail when the launcher ends.
            await launcher.end()
            await jail.end()
            await jail.readers.aclose()
            with contextlib.suppress(OSError):
                await asyncio.to_thread(root.rmdir)


def bind_in(listener: socket.socket, folder: Path, name: str) -> None:
    """Bind a Unix socket. The address, unlike a path, may have no more than 107 bytes."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


async def _check(jail: Jail, folder: Path, config: JailConfig) -> None:
    with contextlib.ExitStack() as stack:
        traps: dict[str, Any] = {"folder": str(folder), "file": str(folder / "canary"), "pid": os.getpid()}
        traps["needed"] = [*config.needed]
        # With namespaces, a jail has a file of its own there.
        traps["system_file"] = "/etc/shadow" if config.level == "namespaces" else "/etc/passwd"
        await asyncio.to_thread(Path(traps["file"]).write_text, "canary")
        tcp, unix, abstract = (
            stack.enter_context(socket.socket(kind)) for kind in (socket.AF_INET, *[socket.AF_UNIX] * 2)
        )
        tcp.bind(("127.0.0.1", 0))
        traps["port"], traps["socket"] = tcp.getsockname()[1], f"canary-{os.urandom(4).hex()}"
        traps["abstract"] = f"faasrt-{os.urandom(8).hex()}"
        bind_in(unix, folder, traps["socket"])
        abstract.bind("\0" + traps["abstract"])
        for listener in (tcp, unix, abstract):
            listener.listen()
        output = bytearray()
        process = await jail.start(canary=traps)
        process.receive(lambda fd, data: output.extend(data))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await process.ended.wait()
        except TimeoutError as error:
            raise EngineError(f"the jail was not checked within {_START_TIMEOUT_S:g} s") from error
        finally:
            await process.end()
            await asyncio.to_thread(os.unlink, folder / traps["socket"])
    try:
        report = json.loads(output)
    except ValueError:
        reason = output[-500:].decode("utf-8", "replace").strip()
        raise EngineError(f"the check of the jail failed (exit code {process.returncode}): {reason}") from None
    if report["ways_out"]:
        raise EngineError(f"the jail is not safe, so it is not used: a process could {', '.join(report['ways_out'])}")
    if report["unreadable"]:
        raise EngineError(f"programs run as another user, who cannot read {', '.join(report['unreadable'])}")
