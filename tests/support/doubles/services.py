"""The base class of the doubles of services with protocols of their own."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Self

from aiohttp import web


def find_node() -> str:
    """Return the command of Node.js; "node" if it is not installed."""
    return shutil.which("node") or "node"


class Service(abc.ABC):
    """A server on 127.0.0.1 that runs each program in its own processes, and kills them when it closes.

    Attributes:
        url: The URL of the endpoint, with the protocol.
        folder: The folder of the programs' files while the double is open.
        executions: The number of programs that were started.
    """

    scheme: ClassVar[str]
    path: ClassVar[str] = ""

    def __init__(self) -> None:
        self.url = ""
        self.folder = Path()
        self.executions = 0
        self._processes: set[asyncio.subprocess.Process] = set()
        self._resources = contextlib.AsyncExitStack()

    @abc.abstractmethod
    def routes(self, app: web.Application) -> None:
        """Add the routes of the server."""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="faas-double-", ignore_cleanup_errors=True)
            self.folder = Path(stack.enter_context(folder))
            app = web.Application(client_max_size=2**30)
            self.routes(app)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            stack.push_async_callback(self._kill_all)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"{self.scheme}+http://127.0.0.1:{runner.addresses[0][1]}{self.path}"
            self._resources = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    async def start(self, command: list[str], folder: str, **env: str) -> Any:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
        self.executions += 1
        self._processes.add(process)
        return process

    def kill(self, process: asyncio.subprocess.Process) -> None:
        """Kill a process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._processes.discard(process)

    @staticmethod
    async def feed(process: Any, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(data)
            await process.stdin.drain()
            process.stdin.close()

    async def _kill_all(self) -> None:
        for process in list(self._processes):
            self.kill(process)
