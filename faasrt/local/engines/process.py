"""A child process in a session of its own, so that it can be ended with everything it may have started.

asyncio's own subprocesses are not used: before Python 3.12 each costs a thread, and one whose loop ends while it is
being started waits for ever.
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

from faasrt.local.engines.base import EngineError

STDOUT, STDERR = 1, 2
_READ_BYTES = 65_536
# As much as a pipe holds, however often it was filled.
_DRAIN_READS = 16
_CLOSE_S = 5.0


class Spawner:
    """Starts processes, from a thread of its own: a start blocks for a millisecond or more.

    Raises:
        RuntimeError: The system refuses the thread.

    The thread lives until `close`, because the system counts it as the parent of what it starts: a process that is to
    die with its parent dies with that thread.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="faasrt-spawner")
        self._idle: Future[int] | None = None
        # The thread starts with the first task. If that cannot be, it must be no task that starts a process.
        self._threads.submit(int)

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str], folder: Path) -> Child:
        """Start a process that sees no more of the environment than `env`, in a folder that tells it nothing.

        Ctrl-C in a terminal does not reach it: its owner ends it in good order.

        Raises:
            EngineError: The system refuses: it is short of descriptors, memory or processes, for instance.

        Cancellation: a process that starts all the same is killed.
        """
        future = self._threads.submit(_spawn, argv, env, folder)
        try:
            return Child(*await asyncio.wrap_future(future))
        except (OSError, MemoryError) as error:
            future.add_done_callback(_discard)
            raise EngineError(f"cannot start {argv[0]}: {getattr(error, 'strerror', None) or error}") from None
        except BaseException:
            future.add_done_callback(_discard)
            raise

    def close(self) -> None:
        """Let the thread end once it has started what was asked for. This does not wait."""
        if self._idle is None:
            self._idle = self._threads.submit(int)  # runs after every start, and after the kill of each cancelled one
        self._threads.shutdown(wait=False)

    async def wait_closed(self) -> None:
        """Wait, after `close`, until each process whose start was cancelled has ended.

        Such a process may still write into its folder, or even make it anew. The wait is bounded, because a process
        that is stopped at the wrong moment holds the thread.
        """
        assert self._idle is not None
        await asyncio.wait({asyncio.wrap_future(self._idle)}, timeout=_CLOSE_S)


def _spawn(argv: Sequence[str], env: Mapping[str, str], folder: Path) -> tuple[subprocess.Popen[bytes], int]:
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
    )
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        _end(process)
        raise


def _discard(future: Future[tuple[subprocess.Popen[bytes], int]]) -> None:
    if future.cancelled() or future.exception() is not None:
        return
    process, pidfd = future.result()
    os.close(pidfd)
    _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.kill()


class Child:
    """A process whose output goes, as it comes, to a function. Made by `Spawner.start`.

    Args:
        process: Just started, with three pipes.
        pidfd: Its descriptor, which tells when it ends.

    Attributes:
        pid: The process id.
        killed: Whether `kill` was called.
        ended: Set when the process is gone and its output has been received to the end.
    """

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
        self.pid = process.pid
        self.killed = False
        self.ended = asyncio.Event()
        self._process, self._pidfd = process, pidfd
        self._loop = asyncio.get_running_loop()
        self._receive: Callable[[int, bytes], None] = self._hold
        self._at_end: Callable[[], None] | None = None
        self._held: list[tuple[int, bytes]] = []
        self._stdin: IO[bytes] | None = process.stdin
        self._unsent = bytearray()
        self._close_when_sent = False
        self._stdout_inode = os.fstat(process.stdout.fileno()).st_ino  # which both ends of a pipe share
        self._outputs = {STDOUT: process.stdout, STDERR: process.stderr}
        os.set_blocking(process.stdin.fileno(), False)
        try:
            for fd, pipe in self._outputs.items():
                os.set_blocking(pipe.fileno(), False)
                self._loop.add_reader(pipe.fileno(), self._read, fd)
            self._loop.add_reader(pidfd, self._on_exit)
        except OSError:
            for pipe in self._outputs.values():
                self._loop.remove_reader(pipe.fileno())
            raise

    def receive(self, function: Callable[[int, bytes], None], at_end: Callable[[], None] | None = None) -> None:
        """Send the output, from what has come already, to a function.

        Args:
            function: Called with the descriptor (1 or 2) and the bytes; with none at the end of that stream.
            at_end: Called once, when `ended` is set.
        """
        self._receive, self._at_end = function, at_end
        held, self._held = self._held, []
        for fd, data in held:
            function(fd, data)
        if self.ended.is_set() and at_end is not None:
            at_end()

    @property
    def returncode(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""
        return self._process.returncode

    def has_stdout(self) -> bool:
        """Return whether its stdout is still the pipe that it was started with; True where that cannot be seen.

        This blocks: not for an event loop's thread.
        """
        try:
            return os.stat(f"/proc/{self.pid}/fd/{STDOUT}").st_ino == self._stdout_inode  # noqa: PTH116
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def write(self, data: bytes, *, eof: bool = False) -> None:
        """Send bytes to its stdin, and with `eof` close that after them; a process that is gone gets nothing."""
        self._unsent += data
        self._close_when_sent = eof
        self._send()

    def drain(self, fd: int) -> None:
        """Receive at once what it has written to an output by now."""
        for _ in range(_DRAIN_READS):
            if not self._read(fd):
                return

    def kill(self) -> None:
        """End it and its group at once; harmless when it has ended."""
        if self.killed:
            return
        self.killed = True
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._close_stdin()

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        await self.ended.wait()

    def _hold(self, fd: int, data: bytes) -> None:
        self._held.append((fd, data))

    def _read(self, fd: int) -> bool:
        """Receive some output; give whether there may be more now."""
        pipe = self._outputs.get(fd)
        if pipe is None:
            return False
        try:
            data = os.read(pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(pipe.fileno())
            pipe.close()
            del self._outputs[fd]
            self._receive(fd, b"")
            self._note_end()
            return False
        self._receive(fd, data)
        return True

    def _send(self) -> None:
        if self._stdin is None:
            return
        fd = self._stdin.fileno()
        try:
            sent = os.write(fd, self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close_stdin()  # it has closed its stdin, or has ended
            return
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(fd, self._send)
        else:
            self._loop.remove_writer(fd)
            if self._close_when_sent:
                self._close_stdin()

    def _close_stdin(self) -> None:
        self._unsent.clear()
        if self._stdin is not None:
            self._loop.remove_writer(self._stdin.fileno())
            self._stdin.close()
            self._stdin = None

    def _on_exit(self) -> None:
        self._process.poll()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._close_stdin()
        self._note_end()

    def _note_end(self) -> None:
        if self.returncode is not None and not self._outputs:
            self.ended.set()
            if self._at_end is not None:
                self._at_end()
