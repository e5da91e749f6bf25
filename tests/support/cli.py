"""Runs the command `faasrt`: in this process, or in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from unittest import mock

from faasrt.cli import main
from support.served import CLEAN, FAASRT


def faasrt(
    *arguments: str | Path,
    stdin: bytes = b"",
    cwd: Path | None = None,
    base_env: Mapping[str, str] = MappingProxyType(CLEAN),
    **env: str,
) -> tuple[int, str, str]:
    """Run a command in this process, with its own streams and environment. Return the exit code, stdout and stderr.

    It must be called in the main thread, without a running event loop. Tests of terminals, signals, closed streams and
    the start of the process use `faasrt_process`, or start a process themselves.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") if stdin else Path(os.devnull).open(encoding="utf-8") as source,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as err,
        mock.patch.dict(os.environ, {**base_env, **env}, clear=True),
        mock.patch.object(sys, "argv", ["faasrt", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", source),
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
        contextlib.chdir(cwd or Path()),
    ):
        if stdin:
            source.buffer.write(stdin)
            source.seek(0)
        try:
            main()
        except SystemExit as ending:
            code = ending.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        assert isinstance(code, int)
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def faasrt_process(*arguments: str, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> tuple[int, str, str]:
    """Run a command in a process of its own. Return the exit code, stdout and stderr."""
    command, env = [FAASRT, *arguments], {**CLEAN, **env}
    done = subprocess.run(command, input=stdin, cwd=cwd, env=env, capture_output=True, timeout=110)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
