"""Runs the command `faasrt`: in this process, or in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

from faasrt.cli import main
from support.served import CLEAN, FAASRT


def faasrt(*arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> tuple[int, str, str]:
    """Run a command in this process, with its own streams. Return the exit code, stdout and stderr.

    It must be called in the main thread, without a running event loop. Tests of terminals, signals, closed streams and
    the start of the process use `faasrt_process`, or start a process themselves.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="", write_through=True) for _ in range(2))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch.dict(os.environ, {**CLEAN, **env}, clear=True),
        mock.patch.object(sys, "argv", ["faasrt", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")),
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
        contextlib.chdir(cwd or Path()),
    ):
        try:
            main()
        except SystemExit as ending:
            code = ending.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert isinstance(code, int)
    for stream in (out, err):
        stream.seek(0)
    return code, out.read(), err.read()


def faasrt_process(*arguments: str, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> tuple[int, str, str]:
    """Run a command in a process of its own. Return the exit code, stdout and stderr."""
    command, env = [FAASRT, *arguments], {**CLEAN, **env}
    done = subprocess.run(command, input=stdin, cwd=cwd, env=env, capture_output=True, timeout=110)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
