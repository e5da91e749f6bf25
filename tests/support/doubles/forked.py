"""Processes of Python scripts, forked by one process that all tests share; see `forker.py`."""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

_FORKER = Path(__file__).parent / "forker.py"


class Forked:
    """A process that runs a script like `python -I -X utf8 SCRIPT`. The files `stdout` and `stderr` are its streams.

    Attributes:
        pid: The id of the process, which leads a process group.
        returncode: Its exit code, as in `asyncio.subprocess.Process`.
    """

    def __init__(self, script: Path, folder: Path, environment: dict[str, str]) -> None:
        self._run, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        fields = {"script": str(script), "folder": str(folder), "environment": environment}
        with theirs:
            socket.send_fds(_forker(), [json.dumps(fields).encode()], [theirs.fileno()])
        self.pid = int(self._run.recv(100))
        self.returncode: int | None = None
        self._run.setblocking(False)

    async def wait(self) -> int:
        """Wait until the process has ended."""
        if self.returncode is None:
            self.returncode = int(await asyncio.get_running_loop().sock_recv(self._run, 100))
            self._run.close()
        return self.returncode


@functools.cache
def _forker() -> socket.socket:
    """Start the process that forks. Return the socket for its messages. It ends when this socket is closed."""
    control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(_FORKER), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(process.wait)
    atexit.register(control.close)  # runs first
    return control
