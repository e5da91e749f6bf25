"""Child processes in their own sessions, so that each can be ended with all processes that it started.

asyncio's subprocesses are not used, because before Python 3.12 each of them costs a thread, and waits forever when its
event loop ends during the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from faasrt.local.engines.base import NotStartedError

STDOUT, STDERR = 1, 2
_READ_BYTES = 65_536
# 16 reads empty a full pipe of 1 MiB, the largest size.
_DRAIN_READS = 16
_CLOSE_TIMEOUT_S = 5.0


class Spawner:
    """Starts processes from a thread, because a start blocks for a millisecond or more.

    Raises:
        RuntimeError: The system refuses the thread.

    The thread lives until `close`. To the system it is the parent of the processes, and a process that is to die with
    its parent dies with that thread.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="faasrt-spawner")
        self._idle: Future[int]
        # The first task starts the thread. If the system refuses it, no process must have been started.
        self._threads.submit(int)

    async def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], folder: Path, pass_fds: Sequence[int] = ()
    ) -> ChildProcess:
        """Start a process.

        Ctrl-C in a terminal does not reach the process, so that its owner can end it in order.

        Args:
            argv: The command.
            env: The whole environment of the process.
            folder: Its working folder.
            pass_fds: Descriptors that it inherits.

        Raises:
            NotStartedError: The system refuses; it may be short of descriptors, memory or processes.

        Cancellation: a process that still starts is killed.
        """
        future = self._threads.submit(_spawn, argv, env, folder, pass_fds)
        try:
            return _adopt(*await asyncio.wrap_future(future))
        except BaseException as error:
            future.add_done_callback(_discard)
            if isinstance(error, (OSError, MemoryError)):
                raise NotStartedError(f"cannot start {argv[0]}: {getattr(error, 'strerror', None) or error}") from None
            raise

    def close(self) -> None:
        """Let the thread end after the pending starts. This does not wait."""
        self._idle = self._threads.submit(int)  # runs after each start and each kill of a cancelled start
        self._threads.shutdown(wait=False)

    async def wait_closed(self) -> None:
        """Wait, after `close`, until each process whose start was cancelled has ended.

        Such a process may still write into its folder, or create it again. The wait is bounded, because a process that
        is stopped at the wrong moment blocks the thread.
        """
        await asyncio.wait({asyncio.wrap_future(self._idle)}, timeout=_CLOSE_TIMEOUT_S)


def _spawn(
    argv: Sequence[str], env: Mapping[str, str], folder: Path, pass_fds: Sequence[int]
) -> tuple[subprocess.Popen[bytes], int]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(  # noqa: S603
        argv,
        env=env,
        cwd=folder,
        start_new_session=True,
        restore_signals=False,
        bufsize=0,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        pass_fds=pass_fds,
    )
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        with process:
            process.kill()
        raise


def _discard(future: Future[tuple[subprocess.Popen[bytes], int]]) -> None:
    if not future.cancelled() and future.exception() is None:
        process, pidfd = future.result()
        os.close(pidfd)
        with process:
            process.kill()


def ignore_output(fd: int, data: bytes) -> None:
    """Discard output."""


def _adopt(process: subprocess.Popen[bytes], pidfd: int) -> ChildProcess:
    """Return the child of a new process with three pipes, and follow the process until its end."""
    loop = asyncio.get_running_loop()

    def on_exit() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process.poll()
        child.mark_exited(process.returncode)

    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
    loop.add_reader(pidfd, on_exit)
    try:
        outputs = {STDOUT: process.stdout, STDERR: process.stderr}
        child = ChildProcess(process.pid, process.stdin, outputs, lambda: os.killpg(process.pid, signal.SIGKILL))
    except BaseException:
        loop.remove_reader(pidfd)
        raise
    return child


class ChildProcess:
    """A process whose output is passed to a function. Created by `Spawner.start` and `Jail.start`.

    The output is ignored until `receive` is called. None arrives before the first `await` after the creation.

    Args:
        pid: The process id.
        stdin: The pipe to which `write` writes.
        outputs: The pipes of its output, by their descriptors in the process.
        kill: Kills the process and all that it started.

    Attributes:
        pid: The process id.
        returncode: The exit code, -N for signal N; None while the process runs.
        killed: Whether `kill` was called.
        ended: Set when the process has ended and all of its output was received.
    """

    def __init__(self, pid: int, stdin: IO[bytes], outputs: Mapping[int, IO[bytes]], kill: Callable[[], None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.killed = False
        self.ended = asyncio.Event()
        self._kill = kill
        self._loop = asyncio.get_running_loop()
        self._on_output: Callable[[int, bytes], None] = ignore_output
        self._on_end: Callable[[], None] | None = None
        self._stdin: IO[bytes] | None = stdin
        self._write_buffer = bytearray()
        self._close_when_sent = False
        self._outputs = dict(outputs)
        self._stdout_inode = os.fstat(self._outputs[STDOUT].fileno()).st_ino  # both ends of a pipe share it
        os.set_blocking(stdin.fileno(), False)
        try:
            for fd, pipe in self._outputs.items():
                os.set_blocking(pipe.fileno(), False)
                self._loop.add_reader(pipe.fileno(), self._read, fd)
        except OSError:
            for pipe in self._outputs.values():
                self._loop.remove_reader(pipe.fileno())
            raise

    def receive(self, function: Callable[[int, bytes], None], on_end: Callable[[], None] | None = None) -> None:
        """Pass the output from now on to a function.

        Args:
            function: Called with the descriptor (1 or 2) and the bytes.
            on_end: Called once, when `ended` is set.
        """
        self._on_output, self._on_end = function, on_end
        if self.ended.is_set() and on_end is not None:
            on_end()

    @property
    def alive(self) -> bool:
        """Whether the process can still run a program, as far as this process knows."""
        return self.returncode is None and not self.killed and STDOUT in self._outputs

    def has_stdout(self) -> bool:
        """Return whether stdout is still the pipe of the start; True if that is unknown.

        This blocks: not for an event loop's thread.
        """
        try:
            return os.stat(f"/proc/{self.pid}/fd/{STDOUT}").st_ino == self._stdout_inode  # noqa: PTH116
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def write(self, data: bytes, *, eof: bool = False) -> None:
        """Send bytes to stdin, and close it afterwards if `eof` is true. A process that has ended gets no bytes."""
        self._write_buffer += data
        self._close_when_sent = eof
        self._send()

    def drain(self, fd: int) -> None:
        """Receive the output that the process has written so far."""
        for _ in range(_DRAIN_READS):
            if not self._read(fd):
                return

    def kill(self) -> None:
        """Kill the process and its group. Harmless when it has ended."""
        if self.killed:
            return
        self.killed = True
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._kill()
        self._close_stdin()

    def mark_exited(self, returncode: int) -> None:
        """Record that the process has ended."""
        self.returncode = returncode
        self._close_stdin()
        self._check_ended()

    async def end(self) -> None:
        """Kill the process and wait for its end."""
        self.kill()
        await self.ended.wait()

    def _read(self, fd: int) -> bool:
        """Receive some output; return whether there may be more."""
        pipe = self._outputs.get(fd)
        if pipe is None:
            return False
        try:
            data = os.read(pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._on_output(fd, data)
            return True
        self._loop.remove_reader(pipe.fileno())
        pipe.close()
        del self._outputs[fd]
        self._check_ended()
        return False

    def _send(self) -> None:
        if self._stdin is None:
            return
        fd = self._stdin.fileno()
        try:
            del self._write_buffer[: os.write(fd, self._write_buffer)]
        except BlockingIOError:
            pass
        except OSError:
            self._close_stdin()  # the process closed its stdin, or has ended
            return
        if self._write_buffer:
            self._loop.add_writer(fd, self._send)
        elif self._close_when_sent:
            self._close_stdin()
        else:
            self._loop.remove_writer(fd)

    def _close_stdin(self) -> None:
        self._write_buffer.clear()
        if self._stdin is not None:
            self._loop.remove_writer(self._stdin.fileno())
            self._stdin.close()
            self._stdin = None

    def _check_ended(self) -> None:
        if self.returncode is not None and not self._outputs:
            self.ended.set()
            if self._on_end is not None:
                self._on_end()
