"""Python: CPython as WebAssembly, each program in a fresh instance, in worker processes of our own.

The workers are plain `python -c` processes, not `multiprocessing`, which would import the caller's `__main__`: a script
without a guard would run twice.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from faasrt.languages import Language
from faasrt.local.cache import is_compiled, module_dir, sweep
from faasrt.local.engines.base import Engine, EngineError, Job, NotStartedError, Verdict, drop_gone
from faasrt.local.engines.bounds import HELLO, LENGTH
from faasrt.local.engines.process import STDOUT, Child, Spawner
from faasrt.results import Outcome, UserError

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from faasrt.local.engines.wasi_worker import main; main()"
# A worker ends its program by itself at the limit; one that has not answered by then is stuck, and is killed.
_STUCK_S = 2.0
_CANCEL_S = 1.0
_START_S = 60.0


class Worker:
    """A process that runs one program at a time. Made by `start`."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._buffer = bytearray()
        # None stands for the end of the process.
        self._frames: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._numbers = itertools.count(HELLO + 1)
        self._began = HELLO
        self.gone = False
        child.receive(self._receive)

    @classmethod
    async def start(cls, spawner: Spawner, argv: list[str], temporary: Path) -> tuple[Worker, str]:
        """Start a worker, and give it with the version of its Python once it can run programs.

        Raises:
            EngineError: It cannot start; the message says why.
        """
        worker = cls(await spawner.start(argv, env=_environment(temporary), folder=temporary))
        try:
            async with asyncio.timeout(_START_S):
                hello = await worker._next_frame(HELLO)
            if "failed" in hello:
                raise EngineError(f"the Python sandbox cannot start: {hello['failed']}")
        except TimeoutError:
            await worker.child.end()
            raise EngineError(f"the Python sandbox did not start within {_START_S:g} s") from None
        except BaseException:
            await worker.child.end()
            raise
        return worker, hello["ready"]

    async def execute(self, job: Job) -> Verdict:
        """Run one program; afterwards the worker is free again, or dead.

        Raises:
            NotStartedError: The worker died before the program began.
            EngineError: It died.

        Cancellation: ends the program within `_CANCEL_S`, or kills the worker.
        """
        number = next(self._numbers)
        self._send({**attrs.asdict(job), "job": number})
        try:
            async with asyncio.timeout(job.timeout_ms / 1000 + _STUCK_S):
                answer = await self._next_frame(number)
        except TimeoutError:
            await self.child.end()
            return Verdict(outcome=Outcome.TIMEOUT, duration_ms=job.timeout_ms, instance_id=self._name)
        except asyncio.CancelledError:
            self._send({"cancel": number})
            try:
                async with asyncio.timeout(_CANCEL_S):
                    await self._next_frame(number)
            except (TimeoutError, EngineError):
                self.child.kill()
            except asyncio.CancelledError:
                self.child.kill()  # cancelled once more: nobody may get a worker that still owes an answer
                raise
            raise
        if "failed" in answer:
            self.child.kill()
            failure = EngineError if self._began == number else NotStartedError
            raise failure(f"the Python sandbox failed: {answer['failed']}")
        return self._verdict(answer)

    @property
    def _name(self) -> str:
        return f"wasi-python-{self.child.pid}"

    def _verdict(self, answer: dict[str, Any]) -> Verdict:
        told = answer["error"]
        return Verdict(
            outcome=Outcome(answer["outcome"]),
            stdout=answer["stdout"],
            stderr=answer["stderr"],
            ret_val=answer["ret_val"],
            truncated=tuple(answer["truncated"]),
            error=UserError(told["name"], told["message"], told.get("traceback", "")) if told else None,
            exit_code=answer["exit_code"],
            duration_ms=answer["duration_ms"],
            line=told.get("line") if told else None,
            column=told.get("column") if told else None,
            instance_id=self._name,
        )

    async def _next_frame(self, number: int) -> dict[str, Any]:
        """Wait for the answer to a job; one to another job, whose caller has gone, is thrown away."""
        while True:
            frame = await self._frames.get()
            if frame is None:
                self._frames.put_nowait(None)
                await self.child.ended.wait()
                failure = EngineError if self._began == number else NotStartedError
                raise failure(f"a Python worker process died (exit code {self.child.returncode})")
            if frame["job"] == number:
                return frame

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self.child.write(LENGTH.pack(len(body)) + body)

    def _receive(self, fd: int, data: bytes) -> None:
        if fd != STDOUT:
            return
        if not data:
            self.gone = True
            self._frames.put_nowait(None)
            return
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            frame = json.loads(self._buffer[LENGTH.size : end])
            del self._buffer[:end]
            if "began" in frame:
                self._began = frame["job"]
            else:
                self._frames.put_nowait(frame)


class WasiPythonEngine(Engine):
    """Runs Python.

    Args:
        workers: Worker processes; each runs one program at a time.
        folder: An existing folder for temporary files.
    """

    name = "wasi-python"
    languages = (Language.PYTHON,)
    min_memory_mb = 48
    min_warm = 1
    _retry_start_s = (0.5, 30.0)

    def __init__(self, *, workers: int, folder: Path) -> None:
        super().__init__(workers)
        self._package = f"wasi-python {version('wasi-python')}"
        self.runtime = self._package
        self._folder = folder
        self._cache_dir = module_dir()
        # The workers are isolated from the environment and the working folder, but can import what we can.
        self._paths = [os.path.abspath(path) for path in sys.path if path]  # noqa: PTH100
        self._spawner: Spawner
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._alive = 0
        self._peak = workers  # all at first

    async def serve(self) -> None:
        """Compile the sandbox if this machine has not done so yet, and keep the workers alive."""
        self._spawner = Spawner()
        try:
            if not await asyncio.to_thread(is_compiled, self._cache_dir):
                self.activity = "compiling the Python sandbox, once for this machine"
                await self._compile()
                self.activity = "starting"
            first = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forget_demand())
                for number in range(self.capacity):
                    group.create_task(self._keep_worker(first, leads=number == 0))
        finally:
            self._spawner.close()
            await self._spawner.wait_closed()

    @property
    def idle(self) -> int:
        """Workers that wait for a program."""
        return self._idle.qsize()

    @property
    def _kept(self) -> int:
        return self._alive

    async def _execute_once(self, job: Job) -> Verdict:
        worker = await self._take()
        try:
            return await worker.execute(job)
        finally:
            if not worker.child.killed:
                self._idle.put_nowait(worker)

    def _shrink(self) -> None:
        for _ in range(min(self.idle, self._alive - self._target)):
            self._idle.get_nowait().child.kill()

    async def _take(self) -> Worker:
        while True:
            worker = await self._next_warm(self._idle, _START_S)
            if not worker.gone:
                return worker

    async def _keep_worker(self, first: asyncio.Event, *, leads: bool) -> None:
        """Keep one worker alive, where it is wanted. The first one starts alone: its page cache serves the others."""
        if not leads:
            await first.wait()
        while True:
            worker, python = await self._start_wanted(
                lambda: Worker.start(self._spawner, self._command("serve"), self._folder)
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
                drop_gone(self._idle, lambda worker: worker.gone)
                await worker.child.end()

    def _command(self, command: str) -> list[str]:
        return [sys.executable, "-I", "-c", _BOOT, command, str(self._cache_dir), *self._paths]

    async def _compile(self) -> None:
        child = await self._spawner.start(self._command("compile"), env=_environment(self._folder), folder=self._folder)
        said = bytearray()
        child.receive(lambda fd, data: said.extend(data))
        try:
            await child.ended.wait()
        finally:
            await child.end()
            await asyncio.to_thread(sweep, self._cache_dir)
        if child.returncode != 0:
            words = said[-2000:].decode("utf-8", "replace").strip().splitlines() or ["it gave no reason"]
            raise EngineError(
                f"the Python sandbox could not be compiled into {self._cache_dir} (exit code {child.returncode}): "
                f"{words[-1]}; it needs about 2.4 GB of memory and 300 MB of disk; FAASRT_CACHE_DIR names another place"
            )


def _environment(temporary: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"TMPDIR": str(temporary), "LANG": "C.UTF-8", **kept}
