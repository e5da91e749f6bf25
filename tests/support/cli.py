"""Runs the command `faasrt`: in this process, or in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TextIO
from unittest import mock

from faasrt.cli import main
from support.served import CLEAN, FAASRT


class Running:
    """A command that runs in this process, for the code that runs beside it."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err

    @property
    def stdout(self) -> str:
        """The stdout of the command so far."""
        return _content(self._out)

    @property
    def stderr(self) -> str:
        """The stderr of the command so far, unless it is a terminal."""
        return _content(self._err)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this process, whose handlers are those of the command."""
        os.kill(os.getpid(), number)


def _content(stream: TextIO) -> str:
    fd = stream.fileno()
    return os.pread(fd, os.fstat(fd).st_size, 0).decode()  # without moving the position of the writer


def faasrt(
    *arguments: str | Path,
    stdin: bytes | TextIO | None = b"",
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    meanwhile: Callable[[Running], Awaitable[None]] | None = None,
    cwd: Path | None = None,
    base_env: Mapping[str, str] = MappingProxyType(CLEAN),
    **env: str,
) -> tuple[int, str, str]:
    """Run a command in this process, with its own streams and environment. Return the exit code, stdout and stderr.

    It must be called in the main thread, without a running event loop. Stdin is None if it is closed. `stdout` and
    `stderr` replace the streams that are returned. `meanwhile` runs in another thread, and the command is interrupted
    if it fails. Tests of closed streams, full disks and the start of the process use `faasrt_process`, or start a
    process themselves.
    """
    with (
        _kept_handlers(),
        _opened(stdin) as source,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as err,
        mock.patch.dict(os.environ, {**base_env, **env}, clear=True),
        mock.patch.object(sys, "argv", ["faasrt", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", source),
        mock.patch.object(sys, "stdout", stdout or out),
        mock.patch.object(sys, "stderr", stderr or err),
        mock.patch.object(logging.root, "handlers", []),
        contextlib.chdir(cwd or Path()),
        _beside(meanwhile, Running(out, err)),
    ):
        try:
            main()
        except SystemExit as ending:
            code = ending.code
        assert isinstance(code, int)
        out.flush()
        err.flush()
        return code, _content(out), _content(err)


@contextlib.contextmanager
def _kept_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _opened(stdin: bytes | TextIO | None) -> Iterator[TextIO | None]:
    if not isinstance(stdin, bytes):
        yield stdin
    elif not stdin:
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            yield nothing
    else:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as source:
            source.buffer.write(stdin)
            source.seek(0)
            yield source


@contextlib.contextmanager
def _beside(meanwhile: Callable[[Running], Awaitable[None]] | None, running: Running) -> Iterator[None]:
    if meanwhile is None:
        yield
        return
    ended = threading.Event()

    async def work() -> None:
        await meanwhile(running)

    def interrupt(done: Future[None]) -> None:
        if done.exception() is not None and not ended.is_set():
            running.send_signal(signal.SIGINT)

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(lambda: asyncio.run(work()))
        future.add_done_callback(interrupt)
        try:
            yield
        finally:
            ended.set()
            future.result()


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[TextIO, bytearray]]:
    """Yield a terminal with a number of columns, and what it shows. That is complete when the terminal is closed."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = bytearray()

    def read() -> None:
        while data := read_terminal(primary):
            shown.extend(data)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        with os.fdopen(secondary, "w", encoding="utf-8") as stream:
            yield stream, shown
    finally:
        reading.join()
        os.close(primary)


def read_terminal(primary: int) -> bytes:
    """Return bytes written to a terminal or a pipe, or b"" if its other end is closed."""
    try:
        return os.read(primary, 65_536)
    except OSError:
        return b""


def faasrt_process(*arguments: str, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> tuple[int, str, str]:
    """Run a command in a process of its own. Return the exit code, stdout and stderr."""
    command, env = [FAASRT, *arguments], {**CLEAN, **env}
    done = subprocess.run(command, input=stdin, cwd=cwd, env=env, capture_output=True, timeout=110)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
