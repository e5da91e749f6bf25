"""JavaScript and TypeScript: one Deno process without permissions for each program, out of a warm pool."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import resource
import shutil
import subprocess
import time
from collections import deque
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import attrs

from faasrt.languages import Language
from faasrt.local.engines.base import Engine, EngineError, Job, NotStartedError, Verdict
from faasrt.local.engines.deno_run import DenoRun
from faasrt.local.engines.process import Child

# V8 needs more than its heap for a program: compiled code, the TypeScript compiler, buffers in flight.
_HEADROOM_MB = 64
_CPU_GRACE_S = 5
_START_S = 20.0
_READY = b"\0ready\n"
_WARM = 4
_RETRY_SPAWN_S = (0.1, 5.0)
_PERMISSIONS = (
    "--no-prompt",
    "--no-config",
    "--no-lock",
    "--no-remote",
    "--no-npm",
    "--cached-only",
    "--no-code-cache",
)


@attrs.define
class _Sandbox:
    """A process that waits for its program, and the folder that Deno keeps its files in."""

    child: Child
    folder: Path


class DenoEngine(Engine):
    """Runs JavaScript and TypeScript.

    Args:
        capacity: Programs at once.
        folder: An existing folder for temporary files.
        memory_limit_mb: The limit for which processes are kept warm; another one costs a start of about 20 ms.
    """

    name = "deno"
    languages = (Language.JAVASCRIPT, Language.TYPESCRIPT)
    min_memory_mb = 16
    can_enable_network = True

    def __init__(self, *, capacity: int, folder: Path, memory_limit_mb: int) -> None:
        super().__init__(capacity)
        self.runtime = f"Deno {version('deno')}"
        self._folder = folder
        self._memory_limit_mb = memory_limit_mb
        self._command = [*_die_with_parent(), _find_binary(), "run"]
        self._runner = str(files("faasrt.local.guest").joinpath("deno_main.js"))
        self._numbers = itertools.count(1)
        self._idle: deque[_Sandbox] = deque()
        self._used: asyncio.Queue[_Sandbox] = asyncio.Queue()
        self._wanted = asyncio.Event()
        self._base_data_bytes = 0

    async def serve(self) -> None:
        """Keep a few processes warm, and clear away the used ones."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._refill())
                group.create_task(self._clear_away())
        finally:
            leftover = [*self._idle]
            self._idle.clear()
            while not self._used.empty():
                leftover.append(self._used.get_nowait())
            # All at once and before the first await, which a second cancellation may end.
            for sandbox in leftover:
                sandbox.child.kill()
            for sandbox in leftover:
                await sandbox.child.ended.wait()

    @property
    def idle(self) -> int:
        """Processes that wait for a program."""
        return len(self._idle)

    async def execute(self, job: Job) -> Verdict:
        """Run or check one program in a process of its own."""
        self.active += 1
        try:
            # A process that waited may be gone, and not all of those that wait can be told so at once.
            for _ in range(_WARM):
                with contextlib.suppress(NotStartedError):
                    return await self._execute_once(job)
            return await self._execute_once(job)
        finally:
            self.active -= 1

    async def _execute_once(self, job: Job) -> Verdict:
        sandbox = await self._take(job)
        try:
            return await self._converse(sandbox.child, job)
        finally:
            sandbox.child.kill()
            self._used.put_nowait(sandbox)

    async def _converse(self, child: Child, job: Job) -> Verdict:
        run = DenoRun(job, child)
        self._limit(child, job)
        started = time.perf_counter()
        timer = asyncio.get_running_loop().call_later(job.timeout_ms / 1000, run.on_deadline)
        try:
            run.begin()
            await child.ended.wait()
        finally:
            timer.cancel()
        return attrs.evolve(
            run.verdict(),
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
            instance_id=f"deno-{child.pid}",
        )

    def _limit(self, child: Child, job: Job) -> None:
        """Bound what the limit of the heap does not: buffers, WebAssembly memory, workers, and the CPU."""
        data_bytes = self._base_data_bytes + (job.memory_limit_mb + _HEADROOM_MB) * 2**20
        # A backstop: the deadline ends a program first, however many threads it spins.
        cpu_s = math.ceil(job.timeout_ms / 1000) * (os.cpu_count() or 1) + _CPU_GRACE_S
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(child.pid, resource.RLIMIT_DATA, (data_bytes, data_bytes))
            resource.prlimit(child.pid, resource.RLIMIT_CPU, (cpu_s, cpu_s))

    async def _take(self, job: Job) -> _Sandbox:
        if job.memory_limit_mb != self._memory_limit_mb or job.network_enabled:
            return await self._start(job.memory_limit_mb, network_enabled=job.network_enabled)
        while self._idle:
            sandbox = self._idle.popleft()
            self._wanted.set()
            if sandbox.child.returncode is None:
                return sandbox
            self._used.put_nowait(sandbox)
        return await self._start(job.memory_limit_mb)

    async def _start(self, memory_limit_mb: int, *, network_enabled: bool = False) -> _Sandbox:
        folder = self._folder / f"deno-{next(self._numbers)}"
        flags = [*_PERMISSIONS, "--quiet", f"--v8-flags=--max-old-space-size={memory_limit_mb}"]
        if network_enabled:
            flags.append("--allow-net")
        # Nothing of the server's environment may reach a program, or change how Deno treats it.
        env = {"DENO_DIR": str(folder), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
        child = await Child.start([*self._command, *flags, self._runner], env=env, folder=self._folder)
        try:
            await _until_ready(child)
            if not self._base_data_bytes:
                self._base_data_bytes = await asyncio.to_thread(_data_bytes, child.pid)
        except BaseException:
            self._used.put_nowait(_Sandbox(child, folder))
            raise
        return _Sandbox(child, folder)

    async def _refill(self) -> None:
        delay_s, longest_s = _RETRY_SPAWN_S
        while True:
            self._wanted.clear()
            while len(self._idle) < min(_WARM, self.capacity):
                try:
                    sandbox = await self._start(self._memory_limit_mb)
                except EngineError as error:
                    if not self._idle:
                        self.mark_failed(str(error))
                    await asyncio.sleep(delay_s)
                    delay_s = min(delay_s * 2, longest_s)
                    continue
                self._idle.append(sandbox)
                delay_s = _RETRY_SPAWN_S[0]
                self.mark_ready()
            await self._wanted.wait()

    async def _clear_away(self) -> None:
        while True:
            sandbox = await self._used.get()
            await sandbox.child.end()
            await asyncio.to_thread(shutil.rmtree, sandbox.folder, ignore_errors=True)


async def _until_ready(child: Child) -> None:
    """Wait for the line with which the runner says that it waits for its program.

    Raises:
        EngineError: It does not come.
    """
    said = bytearray()
    ended = False
    changed = asyncio.Event()

    def receive(fd: int, data: bytes) -> None:
        nonlocal ended
        said.extend(data)
        ended = ended or not data
        changed.set()

    child.receive(receive)
    try:
        async with asyncio.timeout(_START_S):
            while _READY not in said:
                await changed.wait()
                changed.clear()
                if ended:
                    await child.ended.wait()
                    words = said[-500:].decode("utf-8", "replace").strip()
                    raise EngineError(f"Deno does not start (exit code {child.returncode}): {words}")
    except TimeoutError:
        raise EngineError(f"Deno did not start within {_START_S:g} s") from None


def _find_binary() -> str:
    import deno

    binary: str = deno.find_deno_bin()
    return binary


def _die_with_parent() -> list[str]:
    """Give the command that has the system end a process when this one is gone, however that came; [] without it."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    command = [setpriv, "--pdeathsig", "KILL"]
    tried = subprocess.run([*command, "true"], check=False, capture_output=True)  # noqa: S603
    return command if tried.returncode == 0 else []


def _data_bytes(pid: int) -> int:
    """How much a fresh process has reserved: RLIMIT_DATA counts from there."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
