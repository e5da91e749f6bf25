"""Child processes. Each has its own session, so that it can be killed together with the processes that it started.

asyncio's subprocesses are not used. Before Python 3.12 each of them needs a thread, and hangs if its event loop is
closed while the process starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, Self

from faasrt.local.errors import NotStartedError

STDIN, STDOUT, STDERR = 0, 1, 2
STREAMS = {STDOUT: "stdout", STDERR: "stderr"}
MESSAGES = 3
"""The descriptor to which a process with a channel writes its messages. It is a socket, over which the process of a
session gets jobs."""
_READ_BYTES = 65_536
_MAX_PIECES = 100  # written at once; the system allows 1,024
_MAX_EVENTS = 64  # of one poll; the next one returns the rest
# 16 reads empty a full pipe of the largest size, 1 MiB.
_DRAIN_READS = 16
_CLOSE_TIMEOUT_S = 5.0


def available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Spawner:
    """Starts processes from a thread, because a start blocks for a millisecond or more. It is an async context manager.

    The thread lives until the end of the block. It is the parent of the processes for PDEATHSIG: a process that is to
    be killed when its parent ends is killed when the thread ends.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="faasrt-spawner")
        # Start the thread now, with a task that does nothing. If it cannot start, no process has been started yet.
        self._threads.submit(int)

    async def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], folder: Path, pass_fds: Sequence[int] = ()
    ) -> ChildProcess:
        """Start a process, or raise NotStartedError. Ctrl-C in a terminal does not reach it, so that the server can end
        it properly.

        Cancellation: if the process still starts, it is killed.
        """
        future = self._threads.submit(_spawn, argv, env, folder, pass_fds)
        try:
            return _adopt(*await asyncio.wrap_future(future))
        except BaseException as error:
            future.add_done_callback(_discard)
            if isinstance(error, (OSError, MemoryError)):
                raise NotStartedError(f"cannot start {argv[0]}: {getattr(error, 'strerror', None) or error}") from None
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait until all processes whose start was cancelled have ended, and end the thread.

        Such a process may still write into its folder, or create it again. This waits at most 5 s, because a process
        that is stopped (SIGSTOP) while it starts blocks the thread.
        """
        idle = self._threads.submit(int)  # runs after each start and each kill of a cancelled start
        self._threads.shutdown(wait=False)
        await asyncio.wait({asyncio.wrap_future(idle)}, timeout=_CLOSE_TIMEOUT_S)


class Pipes:
    """The pipes between this process and a process that is about to start: one pipe for its input, and others for its
    output. The channel, MESSAGES, is a pair of sockets.

    They are closed when nothing refers to them, because the event loop may be closed while the process runs, and many
    programs end when their stdin is closed.

    Attributes:
        own: The open descriptors of this process, by the numbers that the descriptors at the other ends have in the
            other process. They do not block.
    """

    def __init__(self, count: int = 3) -> None:
        self.own: dict[int, int] = {}
        self.others: list[int] = []
        for number in range(count):
            if number == MESSAGES:
                self.own[number], other = (end.detach() for end in socket.socketpair())
            else:
                read, write = os.pipe()
                self.own[number], other = (read, write) if number else (write, read)
            self.others.append(other)
            os.set_blocking(self.own[number], False)

    def copy_channel(self) -> socket.socket:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(self.own[MESSAGES]))

    def close(self) -> None:
        self.close_others()
        while self.own:
            os.close(self.own.popitem()[1])

    def close_others(self) -> None:
        while self.others:
            os.close(self.others.pop())

    __del__ = close


def _spawn(
    argv: Sequence[str], env: Mapping[str, str], folder: Path, pass_fds: Sequence[int]
) -> tuple[subprocess.Popen[bytes], Pipes, int]:
    pipes, process = Pipes(), None
    try:
        stdin, stdout, stderr = pipes.others
        process = subprocess.Popen(  # noqa: S603
            argv,
            env=env,
            cwd=folder,
            start_new_session=True,
            restore_signals=False,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
        )
        pipes.close_others()
        return process, pipes, _open_end(process)
    except BaseException as error:
        pipes.close()
        if process is not None:
            process.kill()
            process.wait()
        if isinstance(error, RuntimeError):
            raise OSError(str(error)) from None  # the system cannot start a thread
        raise


def _open_end(process: subprocess.Popen[bytes]) -> int:
    """Return a descriptor that becomes readable when the process ends."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(process.pid)
    # On macOS, a thread waits for the process.
    reader, writer = os.pipe()

    def wait() -> None:
        process.wait()
        os.close(writer)

    try:
        threading.Thread(target=wait, daemon=True).start()
    except RuntimeError:
        os.close(reader)
        os.close(writer)
        raise
    return reader


def _discard(future: Future[tuple[subprocess.Popen[bytes], Pipes, int]]) -> None:
    if not future.cancelled() and future.exception() is None:
        process, pipes, end = future.result()
        os.close(end)
        pipes.close()
        process.kill()
        process.wait()


def ignore_output(fd: int, data: bytes) -> None:
    """Discard output."""


def _adopt(process: subprocess.Popen[bytes], pipes: Pipes, end: int) -> ChildProcess:
    loop = asyncio.get_running_loop()

    def on_exit() -> None:
        loop.remove_reader(end)
        os.close(end)
        process.poll()
        child.mark_exited(process.returncode)

    loop.add_reader(end, on_exit)
    try:
        child = ChildProcess(process.pid, pipes, lambda: os.killpg(process.pid, signal.SIGKILL))
    except BaseException:
        loop.remove_reader(end)
        raise
    return child


class Readers(Protocol):
    """The part of an event loop that calls functions when descriptors are readable."""

    def add_reader(self, fd: int, callback: Callable[[int], object], argument: int, /) -> object:
        """Call a function with an argument whenever a descriptor is readable."""

    def remove_reader(self, fd: int, /) -> object:
        """Undo `add_reader`."""


class EpollReaders:
    """An epoll instance for descriptors that are open only briefly. It registers one in a fifth of asyncio's time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[Callable[[int], object], int]] = {}
        self._on_idle: asyncio.Future[None] | None = None
        self._loop.add_reader(self._epoll.fileno(), self._call)

    def add_reader(self, fd: int, callback: Callable[[int], object], argument: int, /) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback, argument

    def remove_reader(self, fd: int, /) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            if self._on_idle is not None and not self._callbacks and not self._on_idle.done():
                self._on_idle.set_result(None)

    async def aclose(self) -> None:
        if self._callbacks:
            self._on_idle = self._loop.create_future()
            await self._on_idle
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _call(self) -> None:
        for fd, _ in self._epoll.poll(0, _MAX_EVENTS):
            if fd in self._callbacks:  # an earlier callback may have removed it
                callback, argument = self._callbacks[fd]
                callback(argument)


class ChildProcess:
    """A process whose output is passed to a function. Created by `Spawner.start` and `Jail.start`.

    Output that arrives before `receive` is called is kept until then. The pipes are closed when the process has ended.

    Attributes:
        returncode: The exit code, or -N after signal N; None while the process runs.
        paused: Whether STDOUT and STDERR are not read at the moment.
        ended: Set when the process has ended and all of its output has been received.
    """

    def __init__(self, pid: int, pipes: Pipes, kill: Callable[[], None], readers: Readers | None = None) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.killed = self.paused = False
        self.ended = asyncio.Event()
        self._kill = kill
        self._loop = asyncio.get_running_loop()
        self._readers: Readers = readers or self._loop
        self._early: list[tuple[int, bytes]] = []
        self._on_output: Callable[[int, bytes], None] = lambda fd, data: self._early.append((fd, data))
        self._on_end: Callable[[], None] | None = None
        self._when_ended: Callable[[], None] | None = None
        self._pipes = pipes
        self._unsent: deque[memoryview] = deque()
        self._close_when_sent = self._is_waiting = False
        self._stdout_inode = os.fstat(pipes.own[STDOUT]).st_ino  # both ends of a pipe have the same inode
        outputs = [fd for fd in pipes.own if fd != STDIN]
        try:
            for fd in outputs:
                self._readers.add_reader(pipes.own[fd], self._read, fd)
        except OSError:
            for fd in outputs:
                self._readers.remove_reader(pipes.own[fd])
            raise

    def receive(self, function: Callable[[int, bytes], None], on_end: Callable[[], None] | None = None) -> None:
        """Pass all later output to a function, with its descriptor. `on_end` is called once, when `ended` is set."""
        self._on_output, self._on_end = function, on_end
        early, self._early = self._early, []
        for fd, data in early:
            function(fd, data)
        if self.ended.is_set() and on_end is not None:
            on_end()

    def when_ended(self, function: Callable[[], None]) -> None:
        self._when_ended = function
        if self.ended.is_set():
            function()

    @property
    def alive(self) -> bool:
        return self.returncode is None and not self.killed and STDOUT in self._pipes.own

    def has_stdout(self) -> bool:
        """Return whether the process still has its first stdout, as far as is known. Call this in a thread."""
        try:
            return os.stat(f"/proc/{self.pid}/fd/{STDOUT}").st_ino == self._stdout_inode  # noqa: PTH116
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def write(self, *pieces: bytes, eof: bool = False) -> None:
        """Send bytes to stdin, and then close it if `eof` is true. Discard the bytes if the process has ended.

        The pieces are not copied, because a program may have files of many MiB.
        """
        self._unsent.extend(map(memoryview, filter(None, pieces)))
        self._close_when_sent = eof
        self._send()

    def drain(self, fd: int) -> None:
        for _ in range(_DRAIN_READS):
            if not self._read(fd):
                return

    def pause(self) -> None:
        if not self.paused and not self.killed:
            self.paused = True
            for fd in self._pipes.own.keys() & STREAMS.keys():
                self._readers.remove_reader(self._pipes.own[fd])

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            for fd in self._pipes.own.keys() & STREAMS.keys():
                self._readers.add_reader(self._pipes.own[fd], self._read, fd)

    def kill(self) -> None:
        """Kill the process and all processes that it started. This is safe after its end."""
        self.resume()  # its end is known only when its pipes have been read to their end
        if self.killed:
            return
        self.killed = True
        if self.returncode is None:
            # macOS does not permit a signal to a group whose processes have all ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self._kill()
        self._close_stdin()

    def abandon(self) -> None:
        self.kill()
        self._on_output, self._on_end = ignore_output, None
        # Reading the pipes to their end would only wake up the event loop.
        self._close_pipes()
        self._check_ended()

    def take_channel(self) -> socket.socket:
        """Return the channel, from which nothing is read any more, and close the pipes. Raise NotStartedError if the
        process has closed it, or this process has too many open files.
        """
        if MESSAGES not in self._pipes.own:
            raise NotStartedError("the process has ended")
        try:
            channel = self._pipes.copy_channel()
        except OSError as error:
            raise NotStartedError(f"cannot keep the channel of a process: {error.strerror}") from None
        self._close_pipes()
        return channel

    def mark_exited(self, returncode: int) -> None:
        self.returncode = returncode
        self._close_stdin()
        self._check_ended()

    async def end(self) -> None:
        self.kill()
        await self.ended.wait()

    def _read(self, fd: int) -> bool:
        pipe = self._pipes.own.get(fd)
        if pipe is None:
            return False
        try:
            data = os.read(pipe, _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._on_output(fd, data)
            return True
        self._close_output(fd)
        self._check_ended()
        return False

    def _close_pipes(self) -> None:
        self._close_stdin()
        for fd in [*self._pipes.own]:
            self._close_output(fd)

    def _close_output(self, fd: int) -> None:
        pipe = self._pipes.own.pop(fd)
        self._readers.remove_reader(pipe)
        os.close(pipe)

    def _send(self) -> None:
        stdin = self._pipes.own.get(STDIN)
        if stdin is None:
            return
        try:
            sent = os.writev(stdin, [*itertools.islice(self._unsent, _MAX_PIECES)]) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close_stdin()  # the process closed its stdin, or has ended
            return
        while sent:
            piece = self._unsent.popleft()
            if len(piece) > sent:
                self._unsent.appendleft(piece[sent:])
            sent -= min(sent, len(piece))
        if self._unsent:
            self._is_waiting = True
            self._loop.add_writer(stdin, self._send)
        elif self._close_when_sent:
            self._close_stdin()
        else:
            self._stop_waiting(stdin)

    def _close_stdin(self) -> None:
        self._unsent.clear()
        stdin = self._pipes.own.pop(STDIN, None)
        if stdin is not None:
            self._stop_waiting(stdin)
            os.close(stdin)

    def _stop_waiting(self, stdin: int) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._loop.remove_writer(stdin)

    def _check_ended(self) -> None:
        if self.returncode is not None and not self._pipes.own and not self.ended.is_set():
            self.ended.set()
            for function in (self._on_end, self._when_ended):
                if function is not None:
                    function()
