"""The base class of the doubles: the HTTP server, the slots, and the processes of the interpreters."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Self

from aiohttp import web

from .forked import Forked

# Both real servers send this id in every answer.
WORKLOAD_INFO = {"id": "e6008730-9475-4b7d-9fc6-19511e1b2785", "status": "Used"}

Json = dict[str, Any]


class Refusal(Exception):  # noqa: N818
    """An error response to a request whose program was not run."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


class Faas(abc.ABC):
    """A server on 127.0.0.1 that runs each program in its own process, and kills all processes when it closes.

    Attributes:
        url: The base URL, without a trailing slash.
        executions: The number of interpreters that were started.
        running: The number of interpreters that are running.
        slots: A semaphore, held by each execution from its simulated start-up to its end. Others wait.
        start_up_s: The seconds of the simulated start-up, before the interpreter is started.
        interpreter: The command that runs the programs. If it does not exist, executions fail.
        folder: The folder of the programs' files while the double is open.
        has_health: Whether there is a `GET /health`.
    """

    def __init__(self, interpreter: str, *, slots: int = 8, start_up_s: float = 0.0, has_health: bool = True) -> None:
        self.interpreter = interpreter
        self.has_health = has_health
        self.slot_count = slots
        self.slots = asyncio.Semaphore(slots)
        self.start_up_s = start_up_s
        self.executions = 0
        self.running = 0
        self.url = ""
        self.folder = Path()
        self._started = time.monotonic()
        self._tasks: set[asyncio.Task[web.Response]] = set()
        self._resources = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="faas-double-", ignore_cleanup_errors=True)
            self.folder = Path(stack.enter_context(folder))
            app = web.Application(client_max_size=2**30)
            app.router.add_post("/run_code", self._run_code)
            if self.has_health:
                app.router.add_get("/health", self._get(self.health))
            app.router.add_get("/metrics", self._get(self.metrics))
            app.router.add_route("*", "/{path:.*}", self._not_found)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            # Twice, because open connections can still start programs until the runner is cleaned up.
            stack.push_async_callback(self._end_executions)
            stack.push_async_callback(runner.cleanup)
            stack.push_async_callback(self._end_executions)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._resources = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    @abc.abstractmethod
    def check(self, body: bytes) -> tuple[Any, Any]:
        """Return the code and the timeout of a request, unchanged. Raise Refusal if the server rejects the request."""

    @abc.abstractmethod
    async def run(self, code: Any, timeout: Any, folder: Path) -> tuple[Json, Json]:
        """Run a program, and return `output` and `metadata`. The caller adds the duration."""

    @abc.abstractmethod
    def failure(self, message: str) -> Refusal:
        """Return the response for a program that could not be run."""

    @abc.abstractmethod
    def health(self) -> Json:
        """Return the answer to `GET /health`."""

    @abc.abstractmethod
    def metrics(self) -> Json:
        """Return the answer to `GET /metrics`."""

    @property
    def uptime_s(self) -> int:
        return int(time.monotonic() - self._started)

    async def interpret(
        self, arguments: list[str], folder: Path, *, timeout_s: float | None, env: dict[str, str]
    ) -> int | None:
        """Run the interpreter with `stdout` and `stderr` in files of the folder. Return its exit code, None on timeout.

        It uses files instead of pipes, because a process that outlives its parent would keep a pipe open.
        """
        if timeout_s is not None and timeout_s <= 0:  # the real one is killed before it prints anything
            for name in ("stdout", "stderr"):
                (folder / name).touch()
            return None
        process = await self.start(arguments, folder, env)
        self.executions += 1
        self.running += 1
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            self.running -= 1
        return process.returncode

    async def start(
        self, arguments: list[str], folder: Path, env: dict[str, str]
    ) -> asyncio.subprocess.Process | Forked:
        """Start the interpreter as the leader of a process group."""
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            return await asyncio.create_subprocess_exec(
                self.interpreter,
                *arguments,
                cwd=folder,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    async def _run_code(self, request: web.Request) -> web.Response:
        try:
            code, timeout = self.check(await request.read())
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        # A separate task, because the real servers do not stop a program when its client disconnects.
        task = asyncio.create_task(self._execute(code, timeout))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _execute(self, code: Any, timeout: Any) -> web.Response:
        async with self.slots:
            started = time.monotonic()
            try:
                await asyncio.sleep(self.start_up_s)
                with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
                    output, metadata = await self.run(code, timeout, Path(folder))
            except Exception as error:
                refusal = self.failure(str(error))
                return web.json_response(refusal.body, status=refusal.status)
            duration = int((time.monotonic() - started) * 1_000)
            metadata = {**metadata, "duration": duration}
            return web.json_response({"output": output, "workload_info": WORKLOAD_INFO, "metadata": metadata})

    async def _end_executions(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _get(answer: Any) -> Any:
        async def handler(_: web.Request) -> web.Response:
            return web.json_response(answer())

        return handler

    @staticmethod
    async def _not_found(_: web.Request) -> web.Response:
        return web.Response(status=404, text="Not Found")


def parse(text: str) -> Any:
    """Decode JSON like `JSON.parse`. The message of a ValueError is that of V8."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"Unexpected token '{constant[0]}', \"{text}\" is not valid JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Expecting property name"):
            place = f"position {error.pos} (line {error.lineno} column {error.colno})"
            message = f"Expected property name or '}}' in JSON at {place}"
        elif error.pos >= len(text):
            message = "Unexpected end of JSON input"
        else:
            message = f"Unexpected token '{text[error.pos]}', \"{text}\" is not valid JSON"
        raise ValueError(message) from None
    except RecursionError:
        raise ValueError("too deep") from None


def timestamp() -> str:
    """Return the current time in the format of `Date.prototype.toISOString`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
