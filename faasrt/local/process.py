"""Child processes. Each has its own session, so that it can be killed together with the processes that it started.

asyncio's subprocesses are not used. Before Python 3.12 each of them needs a thread, and hangs if its event loop is
closed while the process starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Self

from faasrt.local.errors import NotStartedError

STDOUT, STDERR = 1, 2
STREAMS = {STDOUT: "stdout", STDERR: "stderr"}
MESSAGES = 3
"""The descriptor to which a process with a channel writes its messages."""
_READ_BYTES = 65_536
_MAX_PIECES = 100  # written at once; the system allows 1,024
# 16 reads empty a full pipe of the largest size, 1 MiB.
_DRAIN_READS = 16
_CLOSE_TIMEOUT_S = 5.0


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Spawner:
    """Starts processes from a thread, because a start blocks for a millisecond or more. It is an async context manager.

    The thread lives until the end of the block. It is the parent of the processes for PDEATHSIG: a process that is to
    be killed when its parent ends is killed when the thread ends.

    Raises:
        RuntimeError: The system cannot start a thread.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="faasrt-spawner")
        # Start the thread now, with a task that does nothing. If it cannot start, no process has been started yet.
        self._threads.submit(int)

    async def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], folder: Path, pass_fds: Sequence[int] = ()
    ) -> ChildProcess:
        """Start a process. Ctrl-C in a terminal does not reach it, so that the server can end it properly.

        Args:
            argv: The command.
            env: The whole environment of the process.
            folder: Its working folder.
            pass_fds: Descriptors that it inherits.

        Raises:
            NotStartedError: The process cannot start. The system may be short of descriptors, memory or processes.

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
        return process, _open_end(process)
    except BaseException as error:
        with process:
            process.kill()
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


def _discard(future: Future[tuple[subprocess.Popen[bytes], int]]) -> None:
    if not future.cancelled() and future.exception() is None:
        process, end = future.result()
        os.close(end)
        with process:
            process.kill()


def ignore_output(fd: int, data: bytes) -> None:
    """Discard output."""


def _adopt(process: subprocess.Popen[bytes], end: int) -> ChildProcess:
    """Return a `ChildProcess` for a new process with three pipes, and wait for its exit in the event loop."""
    loop = asyncio.get_running_loop()

    def on_exit() -> None:
        loop.remove_reader(end)
        os.close(end)
        process.poll()
        child.mark_exited(process.returncode)

    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
    loop.add_reader(end, on_exit)
    try:
        outputs = {STDOUT: process.stdout, STDERR: process.stderr}
        child = ChildProcess(process.pid, process.stdin, outputs, lambda: os.killpg(process.pid, signal.SIGKILL))
    except BaseException:
        loop.remove_reader(end)
        raise
    return child


class ChildProcess:
    """A process whose output is passed to a function. Created by `Spawner.start` and `Jail.start`.

    Output that arrives before `receive` is called is discarded. No output arrives before the first `await` after the
    creation.

    Args:
        pid: The process id.
        stdin: The pipe to which `write` writes.
        outputs: The pipes of its output, by their descriptors in the process.
        kill: Kills the process and all processes that it started.

    Attributes:
        pid: The process id.
        returncode: The exit code, or -N after signal N; None while the process runs.
        killed: Whether `kill` was called.
        paused: Whether STDOUT and STDERR are not read at the moment.
        ended: Set when the process has ended and all of its output has been received.
    """

    def __init__(self, pid: int, stdin: IO[bytes], outputs: Mapping[int, IO[bytes]], kill: Callable[[], None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.killed = self.paused = False
        self.ended = asyncio.Event()
        self._kill = kill
        self._loop = asyncio.get_running_loop()
        self._on_output: Callable[[int, bytes], None] = ignore_output
        self._on_end: Callable[[], None] | None = None
        self._stdin: IO[bytes] | None = stdin
        self._unsent: deque[memoryview] = deque()
        self._close_when_sent = False
        self._outputs = dict(outputs)
        self._stdout_inode = os.fstat(self._outputs[STDOUT].fileno()).st_ino  # both ends of a pipe have the same inode
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
        """Pass all later output to a function, with its descriptor: STDOUT, STDERR or MESSAGES. `on_end` is called
        once, when `ended` is set.
        """
        self._on_output, self._on_end = function, on_end
        if self.ended.is_set() and on_end is not None:
            on_end()

    @property
    def alive(self) -> bool:
        return self.returncode is None and not self.killed and STDOUT in self._outputs

    def has_stdout(self) -> bool:
        """Return whether the process still has the stdout that it started with; True if this is unknown.

        This reads a file, so call it in a thread.
        """
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
        self._unsent.extend(memoryview(piece) for piece in pieces if piece)
        self._close_when_sent = eof
        self._send()

    def drain(self, fd: int) -> None:
        """Receive the output that the process has written to a descriptor so far."""
        for _ in range(_DRAIN_READS):
            if not self._read(fd):
                return

    def pause(self) -> None:
        """Stop reading STDOUT and STDERR, so that the process waits when their pipes are full."""
        if not self.paused and not self.killed:
            self.paused = True
            for fd in self._outputs.keys() - {MESSAGES}:
                self._loop.remove_reader(self._outputs[fd].fileno())

    def resume(self) -> None:
        """Read STDOUT and STDERR again after `pause`."""
        if self.paused:
            self.paused = False
            for fd in self._outputs.keys() - {MESSAGES}:
                self._loop.add_reader(self._outputs[fd].fileno(), self._read, fd)

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

    def mark_exited(self, returncode: int) -> None:
        self.returncode = returncode
        self._close_stdin()
        self._check_ended()

    async def end(self) -> None:
        """Kill the process and wait for its end."""
        self.kill()
        await self.ended.wait()

    def _read(self, fd: int) -> bool:
        """Receive some output. Return whether there may be more."""
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
            sent = os.writev(fd, [*itertools.islice(self._unsent, _MAX_PIECES)]) if self._unsent else 0
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
            self._loop.add_writer(fd, self._send)
        elif self._close_when_sent:
            self._close_stdin()
        else:
            self._loop.remove_writer(fd)

    def _close_stdin(self) -> None:
        self._unsent.clear()
        if self._stdin is not None:
            self._loop.remove_writer(self._stdin.fileno())
            self._stdin.close()
            self._stdin = None

    def _check_ended(self) -> None:
        if self.returncode is not None and not self._outputs:
            self.ended.set()
            if self._on_end is not None:
                self._on_end()
