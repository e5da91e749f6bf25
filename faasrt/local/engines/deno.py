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
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import attrs

from faasrt.errors import ConfigurationError
from faasrt.languages import Language
from faasrt.local.engines.base import Engine, EngineError, EngineJob, EngineResult, NotStartedError, remove_matching
from faasrt.local.engines.deno_run import DenoRun
from faasrt.local.engines.process import ChildProcess, Spawner

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


class DenoEngine(Engine):
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
    _retry_start_s = (0.1, 5.0)

    def __init__(self, workers: int, folder: Path, memory_limit_mb: int) -> None:
        super().__init__(workers, folder, memory_limit_mb)
        self.runtime = f"Deno {version('deno')}"
        self._command = [*_die_with_parent(), _link_binary(folder), "run"]
        # Programs can read the file's name in stacks, and must not learn where faasrt is installed.
        self._runner = folder / "runner.js"
        self._runner.write_bytes(_runner())
        self._spawner: Spawner
        self._warm: asyncio.Queue[ChildProcess] = asyncio.Queue()
        self._used: asyncio.Queue[ChildProcess] = asyncio.Queue()
        self._deno_dirs: dict[ChildProcess, Path] = {}
        self._base_data_bytes = self._base_rss_bytes = 0

    async def serve(self) -> None:
        """Keep processes warm, and end the used ones."""
        self._spawner = Spawner()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(len(os.sched_getaffinity(0))):
                    group.create_task(self._refill())
                group.create_task(self._decay_peak())
                group.create_task(self._end_used())
        finally:
            self._spawner.close()
            leftover = []
            for queue in (self._warm, self._used):
                while not queue.empty():
                    leftover.append(queue.get_nowait())
            # All are killed before the first await, which a second cancellation may interrupt.
            for child in leftover:
                child.kill()
            for child in leftover:
                await child.ended.wait()
                await self._remove_deno_dir(child)
            await self._spawner.wait_closed()

    @property
    def idle(self) -> int:
        """The number of processes that wait for a program."""
        return self._warm.qsize()

    @property
    def _process_count(self) -> int:
        return self.idle

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        child = await self._get_process(job)
        try:
            return await self._run_in(child, job)
        finally:
            child.kill()
            child.receive(_ignore)  # breaks a reference cycle that would keep the output until the next collection
            self._used.put_nowait(child)

    async def _run_in(self, child: ChildProcess, job: EngineJob) -> EngineResult:
        run = DenoRun(job, child)
        _set_limits(child, job, self._base_data_bytes)
        started = time.perf_counter()
        timer = asyncio.get_running_loop().call_later(job.limits.timeout_ms / 1000, run.on_deadline)
        try:
            run.begin()
            await self._watch(run, child)
        finally:
            timer.cancel()
        return attrs.evolve(
            run.result(),
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
            instance_id=f"deno-{child.pid}",
        )

    async def _watch(self, run: DenoRun, child: ChildProcess) -> None:
        """Wait for the end of a program.

        End it when its process holds more memory or disk than allowed, some of which no limit of the system counts, and
        when it has closed stdout: Deno ignores writes to a closed descriptor, so the runner's last message would be
        lost.
        """
        lost_stdout = False
        limit_bytes = self._base_rss_bytes + (run.job.limits.memory_limit_mb + _HEADROOM_MB) * 2**20
        while not run.ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_INTERVAL_S):
                    await run.ended.wait()
                    return
            _, rss_bytes = await _in_thread(_memory_bytes, child.pid) or (0, 0)
            disk_bytes = await _in_thread(_disk_bytes, self._deno_dirs[child]) or 0
            # The disk counts as memory, because the temporary folder may be in memory.
            if rss_bytes > limit_bytes or disk_bytes > run.job.limits.memory_limit_mb * 2**20:
                run.on_memory_limit()
                await run.ended.wait()
            # A process that is ending has no descriptors either, but only for a moment.
            lost_before, lost_stdout = lost_stdout, await _in_thread(child.has_stdout) is False
            if lost_before and lost_stdout and not run.ended.is_set():
                run.on_lost_stdout()
                await run.ended.wait()

    async def _get_process(self, job: EngineJob) -> ChildProcess:
        if job.limits.memory_limit_mb != self._memory_limit_mb or job.network_enabled:
            try:
                return await self._start(job.limits.memory_limit_mb, network_enabled=job.network_enabled)
            except EngineError as error:
                raise NotStartedError(str(error)) from None
        while True:
            child = await self._get_warm(self._warm, _START_TIMEOUT_S)
            self._demand_changed.set()
            if child.returncode is None:
                return child
            self._used.put_nowait(child)

    async def _start(self, memory_limit_mb: int, *, network_enabled: bool = False) -> ChildProcess:
        flags = [*_PERMISSIONS, "--quiet", f"--v8-flags=--max-old-space-size={memory_limit_mb}"]
        if network_enabled:
            flags.append("--allow-net")
        try:
            deno_dir = await asyncio.to_thread(_create_deno_dir, self._folder)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EngineError(f"cannot create a folder for Deno: {reason}") from None
        # The server's environment must not reach a program, nor change the behaviour of Deno.
        env = {"DENO_DIR": str(deno_dir), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
        command = [*self._command, *flags, str(self._runner)]
        try:
            child = await self._spawner.start(command, env=env, folder=self._folder)
        except EngineError:
            await _in_thread(_remove, deno_dir)
            raise
        self._deno_dirs[child] = deno_dir
        try:
            await _until_ready(child)
            if not self._base_data_bytes:
                data_bytes, rss_bytes = await _in_thread(_memory_bytes, child.pid) or (0, 0)
                if not data_bytes:
                    raise EngineError("cannot read the memory of a Deno process from /proc")
                self._base_data_bytes, self._base_rss_bytes = data_bytes, rss_bytes
        except BaseException:
            child.kill()
            self._used.put_nowait(child)
            raise
        return child

    async def _refill(self) -> None:
        """Start processes ahead of demand. Several tasks run this, and each starts one process at a time."""
        while True:
            child = await self._start_when_needed(lambda: self._start(self._memory_limit_mb))
            self._warm.put_nowait(child)
            child.receive(_ignore, self._replace_ended)
            self.mark_ready()

    def _replace_ended(self) -> None:
        """Replace processes that ended while they waited."""
        remove_matching(self._warm, lambda child: child.returncode is not None)
        self._demand_changed.set()

    def _shrink(self) -> None:
        while self.idle > self._target:
            self._used.put_nowait(self._warm.get_nowait())

    async def _end_used(self) -> None:
        while True:
            child = await self._used.get()
            try:
                await child.end()
            except asyncio.CancelledError:
                self._used.put_nowait(child)  # `serve` ends it
                raise
            await self._remove_deno_dir(child)

    async def _remove_deno_dir(self, child: ChildProcess) -> None:
        deno_dir = self._deno_dirs.pop(child, None)
        if deno_dir is not None:
            await _in_thread(_remove, deno_dir)


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


def _ignore(fd: int, data: bytes) -> None:
    pass


async def _until_ready(child: ChildProcess) -> None:
    """Wait for the message that the runner is ready.

    Raises:
        EngineError: Deno ended, or did not start in time.
    """
    output = bytearray()
    ended = False
    changed = asyncio.Event()

    def receive(fd: int, data: bytes) -> None:
        nonlocal ended
        output.extend(data)
        ended = ended or not data
        changed.set()

    child.receive(receive)
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while _READY not in output:
                await changed.wait()
                changed.clear()
                if ended:
                    await child.ended.wait()
                    reason = output[-500:].decode("utf-8", "replace").strip()
                    raise EngineError(f"Deno does not start (exit code {child.returncode}): {reason}")
    except TimeoutError:
        raise EngineError(f"Deno did not start within {_START_TIMEOUT_S:g} s") from None


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


def _remove(deno_dir: Path) -> None:
    shutil.rmtree(deno_dir, ignore_errors=True)


def _disk_bytes(deno_dir: Path) -> int:
    """Return the disk space that a program holds: its TypeScript modules, compiled by Deno."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in deno_dir.glob("gen/*/*"))
    return 0


def _runner() -> bytes:
    errors = files("faasrt.protocol.guest").joinpath("js_errors.js")
    return errors.read_bytes() + files("faasrt.local.runners").joinpath("deno_main.js").read_bytes()


def _memory_bytes(pid: int) -> tuple[int, int]:
    """Return the memory of a process in bytes, as RLIMIT_DATA counts it and as resident; 0 when it has ended."""
    found = {"VmData": 0, "VmRSS": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * 1024
    return found["VmData"], found["VmRSS"]
