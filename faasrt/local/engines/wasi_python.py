"""The Python engine: CPython as WebAssembly in worker processes, each program in a fresh instance.

The workers are `python -c` processes. `multiprocessing` would import the caller's `__main__`, and so run a script
without a guard twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from faasrt.languages import Language
from faasrt.local.cache import is_compiled, module_dir, remove_leftovers
from faasrt.local.engines.base import Engine, EngineError, EngineJob, EngineResult, NotStartedError, remove_matching
from faasrt.local.engines.process import STDOUT, ChildProcess, Spawner
from faasrt.results import Outcome, UserError

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from faasrt.local.engines.wasi_worker import main; main()"
# A worker ends its program at the time limit. A worker that has not answered by then is stuck, and is killed.
_ANSWER_GRACE_S = 2.0
_CANCEL_TIMEOUT_S = 1.0
_START_TIMEOUT_S = 60.0


class WasiWorker:
    """A process that runs one program at a time. Created by `start`."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child
        self.dead = False
        self._buffer = bytearray()
        # None marks the end of the process.
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._began = True
        child.receive(self._receive)

    @classmethod
    async def start(cls, spawner: Spawner, argv: list[str], temporary: Path) -> tuple[WasiWorker, str]:
        """Start a worker, and return it with the version of its Python once it can run programs.

        Raises:
            EngineError: The worker cannot start; the message says why.
        """
        worker = cls(await spawner.start(argv, env=_environment(temporary), folder=temporary))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                ready = await worker._next_message()
            if "failed" in ready:
                raise EngineError(f"the Python sandbox cannot start: {ready['failed']}")
        except BaseException as error:
            await worker.child.end()
            if isinstance(error, TimeoutError):
                raise EngineError(f"the Python sandbox did not start within {_START_TIMEOUT_S:g} s") from None
            raise
        return worker, ready["ready"]

    async def execute(self, job: EngineJob) -> EngineResult:
        """Run one program. Afterwards the worker is free again, or dead.

        Raises:
            NotStartedError: The worker died before the program began.
            EngineError: The worker died.

        Cancellation: ends the program within `_CANCEL_TIMEOUT_S`, or kills the worker.
        """
        name, limits = f"wasi-python-{self.child.pid}", job.limits
        self._began = False
        self._send({"code": job.code, "check": job.check, **attrs.asdict(limits)})
        try:
            async with asyncio.timeout(limits.timeout_ms / 1000 + _ANSWER_GRACE_S):
                answer = await self._next_message()
        except TimeoutError:
            await self.child.end()
            return EngineResult(outcome=Outcome.TIMEOUT, duration_ms=limits.timeout_ms, instance_id=name)
        except asyncio.CancelledError:
            self._send({"cancel": True})
            try:
                async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                    await self._next_message()
            except (TimeoutError, EngineError, asyncio.CancelledError):
                self.child.kill()  # a worker with a pending answer must not be reused
            raise
        if "failed" in answer:
            self.child.kill()
            raise self._failure(f"the Python sandbox failed: {answer['failed']}")
        fields = answer["result"]
        if fields.get("error"):
            fields["error"] = UserError(**fields["error"])
        return EngineResult(**fields, instance_id=name)

    def _failure(self, message: str) -> EngineError:
        return EngineError(message) if self._began else NotStartedError(message)

    async def _next_message(self) -> dict[str, Any]:
        message = await self._messages.get()
        if message is None:
            self._messages.put_nowait(None)
            await self.child.ended.wait()
            raise self._failure(f"a Python worker process died (exit code {self.child.returncode})")
        return message

    def _send(self, message: dict[str, Any]) -> None:
        self.child.write(json.dumps(message).encode() + b"\n")

    def _receive(self, fd: int, data: bytes) -> None:
        if fd != STDOUT:
            return
        if not data:
            self.dead = True
            self._messages.put_nowait(None)
        self._buffer += data
        # Only new bytes are searched, so that the work is linear in the length of an answer.
        if b"\n" not in data:
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "began" in message:
                self._began = True
            else:
                self._messages.put_nowait(message)


class WasiPythonEngine(Engine):
    """Runs Python. Each worker process runs one program at a time."""

    name = "wasi-python"
    languages = (Language.PYTHON,)
    package = "wasi_python"
    min_memory_mb = 48
    min_warm = 1
    _retry_start_s = (0.5, 30.0)

    def __init__(self, workers: int, folder: Path, memory_limit_mb: int) -> None:
        super().__init__(workers, folder, memory_limit_mb)
        self._package = f"wasi-python {version('wasi-python')}"
        self.runtime = self._package
        self._cache_dir = module_dir()
        # The workers ignore the environment and the working folder, so they need the path of this process.
        self._paths = [os.path.abspath(path) for path in sys.path if path]  # noqa: PTH100
        self._spawner: Spawner
        self._idle: asyncio.Queue[WasiWorker] = asyncio.Queue()
        self._alive = 0
        self._peak = workers  # all workers at first

    async def serve(self) -> None:
        """Compile the sandbox if the cache does not hold it, and keep the workers alive."""
        self._spawner = Spawner()
        try:
            if not await asyncio.to_thread(is_compiled, self._cache_dir):
                self.activity = "compiling the Python sandbox, once for this machine"
                await self._compile()
                self.activity = "starting"
            first = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._decay_peak())
                for number in range(self.capacity):
                    group.create_task(self._keep_worker(first, is_first=number == 0))
        finally:
            self._spawner.close()
            await self._spawner.wait_closed()

    @property
    def idle(self) -> int:
        """The number of workers that wait for a program."""
        return self._idle.qsize()

    @property
    def _process_count(self) -> int:
        return self._alive

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        worker = await self._get_worker()
        try:
            return await worker.execute(job)
        finally:
            if not worker.child.killed:
                self._idle.put_nowait(worker)

    def _shrink(self) -> None:
        for _ in range(min(self.idle, self._alive - self._target)):
            self._idle.get_nowait().child.kill()

    async def _get_worker(self) -> WasiWorker:
        while True:
            worker = await self._get_warm(self._idle, _START_TIMEOUT_S)
            if not worker.dead:
                return worker

    async def _keep_worker(self, first: asyncio.Event, *, is_first: bool) -> None:
        """Keep one worker alive while it is needed. The first one starts alone, to warm the page cache."""
        if not is_first:
            await first.wait()
        while True:
            worker, python = await self._start_when_needed(
                lambda: WasiWorker.start(self._spawner, self._command("serve"), self._folder)
            )
            try:
                self._alive += 1
                self.runtime = f"CPython {python} ({self._package})"
                self._idle.put_nowait(worker)
                self.mark_ready()
                first.set()
                await worker.child.ended.wait()
            finally:
                self._alive -= 1
                remove_matching(self._idle, lambda worker: worker.dead)
                await worker.child.end()

    def _command(self, command: str) -> list[str]:
        return [sys.executable, "-I", "-c", _BOOT, command, str(self._cache_dir), *self._paths]

    async def _compile(self) -> None:
        child = await self._spawner.start(self._command("compile"), env=_environment(self._folder), folder=self._folder)
        output = bytearray()
        child.receive(lambda fd, data: output.extend(data))
        try:
            await child.ended.wait()
        finally:
            await child.end()
            await asyncio.to_thread(remove_leftovers, self._cache_dir)
        if child.returncode != 0:
            lines = output[-2000:].decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            raise EngineError(
                f"the Python sandbox could not be compiled into {self._cache_dir} (exit code {child.returncode}): "
                f"{lines[-1]}; it needs about 2.4 GB of memory and 300 MB of disk; FAASRT_CACHE_DIR names another place"
            )


def _environment(temporary: Path) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"TMPDIR": str(temporary), "LANG": "C.UTF-8", **inherited}
