"""The JavaScript and TypeScript engine: one Deno process without permissions for each program, from a warm pool."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import attrs

from faasrt.errors import ConfigurationError
from faasrt.languages import Language
from faasrt.local.engines.base import EngineJob, EngineResult, NotStartedError
from faasrt.local.engines.deno_run import DenoRun
from faasrt.local.engines.process import ChildProcess, ignore_output
from faasrt.local.engines.report import read_runner
from faasrt.local.engines.warm_pool import PooledEngine
from faasrt.results import Outcome

# Besides its heap, V8 needs memory for compiled code, the TypeScript compiler and buffers.
_HEADROOM_MB = 64
_CPU_GRACE_S = 5
_START_TIMEOUT_S = 20.0
_READY = b"\0ready\n"
_T = TypeVar("_T")
_WATCH_INTERVAL_S = 0.25
_PERMISSIONS = (
    "--no-prompt",
    "--no-config",
    "--no-lock",
    "--no-remote",
    "--no-npm",
    "--cached-only",
    "--no-code-cache",
)


@attrs.frozen(eq=False)
class DenoProcess:
    """A process for one program.

    Attributes:
        child: The process.
        deno_dir: The folder for its files, which programs cannot reach.
    """

    child: ChildProcess
    deno_dir: Path


class DenoEngine(PooledEngine[DenoProcess]):
    """Runs JavaScript and TypeScript.

    The warm processes have the usual memory limit. A program with another limit waits about 20 ms for a new process.
    """

    name = "deno"
    languages = (Language.JAVASCRIPT, Language.TYPESCRIPT)
    package = "deno"
    programs_per_worker = 4  # most programs end before a core has time for another
    min_memory_mb = 16
    can_enable_network = True
    min_warm = 2
    reuses_processes = False
    retry_start_s = (0.1, 5.0)
    warm_timeout_s = _START_TIMEOUT_S

    def __init__(self, workers: int, folder: Path, memory_limit_mb: int) -> None:
        super().__init__(workers, folder, memory_limit_mb)
        self.runtime = f"Deno {version('deno')}"
        self._command = [*_die_with_parent(), _link_binary(folder), "run"]
        # Programs can read the file's name in stacks, and must not learn where faasrt is installed.
        self._runner = folder / "runner.js"
        self._runner.write_bytes(read_runner("js_errors.js", "deno_main.js"))
        self._base_data_bytes = self._base_rss_bytes = 0

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        is_usual = job.limits.memory_limit_mb == self._memory_limit_mb and not job.network_enabled
        process = await (self._get_warm() if is_usual else self._start(job))
        child = process.child
        try:
            if not is_usual:
                self._track(process)
            run = DenoRun(job, child)
            _set_limits(child, job, self._base_data_bytes)
            started = time.perf_counter()
            timer = asyncio.get_running_loop().call_later(job.limits.timeout_ms / 1000, run.end, Outcome.TIMEOUT)
            try:
                run.begin()
                await self._watch(run, process)
            finally:
                timer.cancel()
            duration_ms = round((time.perf_counter() - started) * 1000, 3)
            return attrs.evolve(run.result(), duration_ms=duration_ms, instance_id=f"deno-{child.pid}")
        finally:
            child.kill()
            # Breaks a reference cycle that would keep the output until the next collection.
            child.receive(ignore_output)

    async def _watch(self, run: DenoRun, process: DenoProcess) -> None:
        """Wait for the end of a program.

        End it when its process holds more memory or disk than allowed, some of which no limit of the system counts, and
        when it has closed stdout: Deno ignores writes to a closed descriptor, so the runner's last message would be
        lost.
        """
        lost_stdout = False
        limit_bytes = run.job.limits.memory_limit_mb * 2**20
        max_rss_bytes = self._base_rss_bytes + _HEADROOM_MB * 2**20 + limit_bytes
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_INTERVAL_S):
                    await run.ended.wait()
                    return
            rss_bytes, disk_bytes, has_stdout = await _in_thread(_measure, process) or (0, 0, True)
            # The disk counts as memory, because the temporary folder may be in memory.
            if rss_bytes > max_rss_bytes or disk_bytes > limit_bytes:
                run.end(Outcome.MEMORY_LIMIT)
            # A process that is ending has no descriptors either, but only for a moment.
            lost_before, lost_stdout = lost_stdout, not has_stdout
            if lost_before and lost_stdout and not run.ended.is_set():
                run.end()

    async def _start(self, job: EngineJob | None = None) -> DenoProcess:
        """Start a process, for a certain program or for any with the usual limit."""
        memory_limit_mb = job.limits.memory_limit_mb if job else self._memory_limit_mb
        flags = [*_PERMISSIONS, "--quiet", f"--v8-flags=--max-old-space-size={memory_limit_mb}"]
        if job and job.network_enabled:
            flags.append("--allow-net")
        try:
            deno_dir = await asyncio.to_thread(_create_deno_dir, self._folder)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise NotStartedError(f"cannot create a folder for Deno: {reason}") from None
        # The server's environment must not reach a program, nor change the behaviour of Deno.
        env = {"DENO_DIR": str(deno_dir), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
        command = [*self._command, *flags, str(self._runner)]
        child = None
        try:
            child = await self._spawner.start(command, env=env, folder=self._folder)
            await _until_ready(child)
            await self._measure_base(child)
        except BaseException:
            if child is not None:
                await child.end()
            await _in_thread(shutil.rmtree, deno_dir, True)
            raise
        return DenoProcess(child, deno_dir)

    async def _measure_base(self, child: ChildProcess) -> None:
        """Measure once how much memory a process holds before its program begins."""
        if not self._base_data_bytes:
            data_bytes, rss_bytes = await _in_thread(_memory_bytes, child.pid) or (0, 0)
            if not data_bytes:
                raise NotStartedError("cannot read the memory of a Deno process from /proc")
            self._base_data_bytes, self._base_rss_bytes = data_bytes, rss_bytes

    async def _clean_up(self, process: DenoProcess) -> None:
        await _in_thread(shutil.rmtree, process.deno_dir, True)


def _set_limits(child: ChildProcess, job: EngineJob, base_data_bytes: int) -> None:
    """Limit resources that V8's limit of the heap does not count: buffers, WebAssembly memory and CPU time."""
    data_bytes = base_data_bytes + (job.limits.memory_limit_mb + _HEADROOM_MB) * 2**20
    # A fallback: the deadline ends a program earlier, whatever the number of its threads.
    cpu_s = math.ceil(job.limits.timeout_ms / 1000) * (os.cpu_count() or 1) + _CPU_GRACE_S
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(child.pid, resource.RLIMIT_DATA, (data_bytes, data_bytes))
        resource.prlimit(child.pid, resource.RLIMIT_CPU, (cpu_s, cpu_s))


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T | None:
    """Call a function in a thread; return None if the system refuses a thread."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except RuntimeError:
        return None


async def _until_ready(child: ChildProcess) -> None:
    """Wait for the message that the runner is ready.

    Raises:
        NotStartedError: Deno ended, or did not start in time.
    """
    output = bytearray()
    changed = asyncio.Event()

    def receive(fd: int, data: bytes) -> None:
        output.extend(data)
        changed.set()

    child.receive(receive, changed.set)
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while _READY not in output:
                if child.ended.is_set():
                    reason = output[-500:].decode("utf-8", "replace").strip()
                    raise NotStartedError(f"Deno does not start (exit code {child.returncode}): {reason}")
                await changed.wait()
                changed.clear()
    except TimeoutError:
        raise NotStartedError(f"Deno did not start within {_START_TIMEOUT_S:g} s") from None


def _link_binary(folder: Path) -> str:
    """Link the Deno binary into the folder, so that programs do not see its path; return the path to use."""
    import deno

    try:
        binary: str = deno.find_deno_bin()
    except FileNotFoundError as error:
        raise ConfigurationError(f"the binary of Deno is missing ({error}): reinstall the package deno") from None
    link = folder / "deno"
    with contextlib.suppress(OSError):
        link.hardlink_to(binary)
        if _runs([str(link), "--version"]):  # fails on a file system that is mounted noexec
            return str(link)
    return binary


def _die_with_parent() -> list[str]:
    """Return a command prefix that kills a process when this one ends; [] where it is not available."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    command = [setpriv, "--pdeathsig", "KILL"]
    return command if _runs([*command, "true"]) else []


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603


def _create_deno_dir(folder: Path) -> Path:
    """Create the folder for the files of one Deno process, which programs cannot reach.

    Raises:
        OSError: The folder cannot be created.
    """
    deno_dir = Path(tempfile.mkdtemp(prefix="deno-", dir=folder))
    # Two databases cost time. Deno runs without them when folders have their names.
    for name in ("dep_analysis_cache_v2", "node_analysis_cache_v2"):
        (deno_dir / name).mkdir()
    # A file with the name of a folder prevents that Node workers store their `caches`.
    (deno_dir / "location_data").touch()
    return deno_dir


def _measure(process: DenoProcess) -> tuple[int, int, bool]:
    """Return the resident memory and the disk space that a program holds, in bytes, and whether it has stdout."""
    disk_bytes = 0
    with contextlib.suppress(OSError):
        # Its TypeScript modules, compiled by Deno.
        disk_bytes = sum(file.stat().st_size for file in process.deno_dir.glob("gen/*/*"))
    return _memory_bytes(process.child.pid)[1], disk_bytes, process.child.has_stdout()


def _memory_bytes(pid: int) -> tuple[int, int]:
    """Return the memory of a process in bytes, as RLIMIT_DATA counts it and as resident; 0 when it has ended."""
    found = {"VmData": 0, "VmRSS": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * 1024
    return found["VmData"], found["VmRSS"]
