"""The base of the doubles: the HTTP side, the slots, and the processes of the interpreters."""

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

# Both servers sent this one id in every answer.
WORKLOAD_INFO = {"id": "e6008730-9475-4b7d-9fc6-19511e1b2785", "status": "Used"}

Json = dict[str, Any]


class Refusal(Exception):  # noqa: N818
    """A request that is answered without running anything."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


class Faas(abc.ABC):
    """A server on 127.0.0.1 that runs each program in a process of its own, and ends them all on leaving.

    Attributes:
        url: where it listens, without a slash at the end.
        executions: how many programs' interpreters were started.
        running: how many of them run now.
        slots: held by each execution from its (simulated) start-up to its end; the next ones wait without limit.
        start_up_s: how long the start-up of each execution takes, before the interpreter is started.
        interpreter: the command that runs the programs; one that does not exist makes executions fail.
        folder: where the programs' files are while the double is open.
        has_health: whether there is a `GET /health`.
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
            # Twice, as connections that are still open can bring programs until the runner is gone.
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
        """The code and the timeout of a request, as they were sent; Refusal for what the server does not take."""

    @abc.abstractmethod
    async def run(self, code: Any, timeout: Any, folder: Path) -> tuple[Json, Json]:
        """Run a program; give `output` and `metadata` (to which the duration is added)."""

    @abc.abstractmethod
    def failure(self, message: str) -> Refusal:
        """The answer to a program that could not be run."""

    @abc.abstractmethod
    def health(self) -> Json:
        """The answer to `GET /health`."""

    @abc.abstractmethod
    def metrics(self) -> Json:
        """The answer to `GET /metrics`."""

    @property
    def uptime_s(self) -> int:
        return int(time.monotonic() - self._started)

    async def interpret(
        self, arguments: list[str], folder: Path, *, timeout_s: float | None, env: dict[str, str]
    ) -> int | None:
        """Run the interpreter, with `stdout` and `stderr` in files of the folder; return its exit code if it ended.

        Files, not pipes: a process that outlives its parent would keep a pipe open.
        """
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                self.interpreter,
                *arguments,
                cwd=folder,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
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

    async def _run_code(self, request: web.Request) -> web.Response:
        try:
            code, timeout = self.check(await request.read())
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        # A task of its own, as the real servers go on running the program of a client that went away.
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
    """`JSON.parse`: ValueError, in V8's words, for what is no JSON."""

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
    """Now, as `Date.prototype.toISOString` has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
