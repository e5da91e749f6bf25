"""JavaScript and TypeScript: one Deno process without permissions for each program, out of a warm pool."""

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

from faasrt.languages import Language
from faasrt.local.engines.base import Engine, EngineError, Job, NotStartedError, Verdict, drop_gone
from faasrt.local.engines.deno_run import DenoRun
from faasrt.local.engines.process import Child, Spawner

# V8 needs more than its heap for a program: compiled code, the TypeScript compiler, buffers in flight.
_HEADROOM_MB = 64
_CPU_GRACE_S = 5
_START_S = 20.0
_READY = b"\0ready\n"
_T = TypeVar("_T")
_WATCH_S = 0.25
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

    Args:
        capacity: Programs at once.
        folder: An existing folder for temporary files.
        memory_limit_mb: The limit for which processes are kept warm; another one costs a start of about 20 ms.
    """

    name = "deno"
    languages = (Language.JAVASCRIPT, Language.TYPESCRIPT)
    min_memory_mb = 16
    can_enable_network = True
    min_warm = 2
    _retry_start_s = (0.1, 5.0)

    def __init__(self, *, capacity: int, folder: Path, memory_limit_mb: int) -> None:
        super().__init__(capacity)
        self.runtime = f"Deno {version('deno')}"
        self._folder = folder
        self._memory_limit_mb = memory_limit_mb
        self._command = [*_die_with_parent(), _link_binary(folder), "run"]
        # Here, because programs can read the file's name in stacks: it must not tell where anything is installed.
        self._runner = folder / "runner.js"
        self._runner.write_bytes(_runner())
        self._spawner: Spawner
        self._warm: asyncio.Queue[Child] = asyncio.Queue()
        self._used: asyncio.Queue[Child] = asyncio.Queue()
        self._deno_dirs: dict[Child, Path] = {}
        self._base_data_bytes = self._base_rss_bytes = 0

    async def serve(self) -> None:
        """Keep as many processes warm as programs came at once lately, and clear away the used ones."""
        self._spawner = Spawner()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(len(os.sched_getaffinity(0))):
                    group.create_task(self._refill())
                group.create_task(self._forget_demand())
                group.create_task(self._clear_away())
        finally:
            self._spawner.close()
            leftover = []
            for queue in (self._warm, self._used):
                while not queue.empty():
                    leftover.append(queue.get_nowait())
            # All at once and before the first await, which a second cancellation may end.
            for child in leftover:
                child.kill()
            for child in leftover:
                await child.ended.wait()
                await self._remove_deno_dir(child)
            await self._spawner.wait_closed()

    @property
    def idle(self) -> int:
        """Processes that wait for a program."""
        return self._warm.qsize()

    @property
    def _kept(self) -> int:
        return self.idle

    async def _execute_once(self, job: Job) -> Verdict:
        child = await self._take(job)
        try:
            return await self._converse(child, job)
        finally:
            child.kill()
            child.receive(_ignore)  # else child and run hold each other, and the output, until the collector comes by
            self._used.put_nowait(child)

    async def _converse(self, child: Child, job: Job) -> Verdict:
        run = DenoRun(job, child)
        self._limit(child, job)
        started = time.perf_counter()
        timer = asyncio.get_running_loop().call_later(job.timeout_ms / 1000, run.on_deadline)
        try:
            run.begin()
            await self._watch(run, child)
        finally:
            timer.cancel()
        return attrs.evolve(
            run.verdict(),
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
            instance_id=f"deno-{child.pid}",
        )

    async def _watch(self, run: DenoRun, child: Child) -> None:
        """Wait for a program's end.

        It comes when its process holds memory or disk that no limit of the system counts, and when its stdout is gone:
        Deno takes a write to a closed descriptor for a success, so the runner would tell of the end in vain and wait.
        """
        lost_stdout = False
        limit_bytes = self._base_rss_bytes + (run.job.memory_limit_mb + _HEADROOM_MB) * 2**20
        while not run.ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_S):
                    await run.ended.wait()
                    return
            _, rss_bytes = await _in_thread(_memory_bytes, child.pid) or (0, 0)
            disk_bytes = await _in_thread(_disk_bytes, self._deno_dirs[child]) or 0
            # What a program holds on the disk counts as memory, which it may be, too.
            if rss_bytes > limit_bytes or disk_bytes > run.job.memory_limit_mb * 2**20:
                run.on_memory_limit()
                await run.ended.wait()
            # A process that ends by itself has no descriptors either, but only for a moment.
            lost_before, lost_stdout = lost_stdout, await _in_thread(child.has_stdout) is False
            if lost_before and lost_stdout and not run.ended.is_set():
                run.on_lost_stdout()
                await run.ended.wait()

    def _limit(self, child: Child, job: Job) -> None:
        """Bound what the limit of the heap does not: buffers, WebAssembly memory, workers, and the CPU."""
        data_bytes = self._base_data_bytes + (job.memory_limit_mb + _HEADROOM_MB) * 2**20
        # A backstop: the deadline ends a program first, however many threads it spins.
        cpu_s = math.ceil(job.timeout_ms / 1000) * (os.cpu_count() or 1) + _CPU_GRACE_S
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(child.pid, resource.RLIMIT_DATA, (data_bytes, data_bytes))
            resource.prlimit(child.pid, resource.RLIMIT_CPU, (cpu_s, cpu_s))

    async def _take(self, job: Job) -> Child:
        if job.memory_limit_mb != self._memory_limit_mb or job.network_enabled:
            try:
                return await self._start(job.memory_limit_mb, network_enabled=job.network_enabled)
            except EngineError as error:
                raise NotStartedError(str(error)) from None
        while True:
            child = await self._next_warm(self._warm, _START_S)
            self._wanted.set()
            if child.returncode is None:
                return child
            self._used.put_nowait(child)

    async def _start(self, memory_limit_mb: int, *, network_enabled: bool = False) -> Child:
        flags = [*_PERMISSIONS, "--quiet", f"--v8-flags=--max-old-space-size={memory_limit_mb}"]
        if network_enabled:
            flags.append("--allow-net")
        try:
            deno_dir = await asyncio.to_thread(_make_deno_dir, self._folder)
        except (OSError, RuntimeError) as error:
            raise EngineError(f"cannot make a folder for Deno: {getattr(error, 'strerror', None) or error}") from None
        # Nothing of the server's environment may reach a program, or change how Deno treats it.
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
                    raise EngineError("cannot see how much memory a Deno process has: /proc cannot be read")
                self._base_data_bytes, self._base_rss_bytes = data_bytes, rss_bytes
        except BaseException:
            child.kill()
            self._used.put_nowait(child)
            raise
        return child

    async def _refill(self) -> None:
        """Start processes ahead of demand; several of these do, one at a time each."""
        while True:
            child = await self._start_wanted(lambda: self._start(self._memory_limit_mb))
            self._warm.put_nowait(child)
            child.receive(_ignore, self._replace_gone)
            self.mark_ready()

    def _replace_gone(self) -> None:
        """Start others for processes that were ended, by whomever, while they waited."""
        drop_gone(self._warm, lambda child: child.returncode is not None)
        self._wanted.set()

    def _shrink(self) -> None:
        while self.idle > self._target:
            self._used.put_nowait(self._warm.get_nowait())

    async def _clear_away(self) -> None:
        while True:
            child = await self._used.get()
            try:
                await child.end()
            except asyncio.CancelledError:
                self._used.put_nowait(child)  # `serve` waits for it
                raise
            await self._remove_deno_dir(child)

    async def _remove_deno_dir(self, child: Child) -> None:
        deno_dir = self._deno_dirs.pop(child, None)
        if deno_dir is not None:
            await _in_thread(_remove, deno_dir)


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T | None:
    """Call a function in a thread; None where the system refuses one."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except RuntimeError:
        return None


def _ignore(fd: int, data: bytes) -> None:
    pass


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


def _link_binary(folder: Path) -> str:
    """Give the binary a name that tells programs nothing; where that cannot be, it keeps its own."""
    import deno

    binary: str = deno.find_deno_bin()
    link = folder / "deno"
    with contextlib.suppress(OSError):
        link.hardlink_to(binary)
        if _runs([str(link), "--version"]):  # else the folder's file system lets nothing be executed
            return str(link)
    return binary


def _die_with_parent() -> list[str]:
    """Give the command that has the system end a process when this one is gone, however that came; [] without it."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    command = [setpriv, "--pdeathsig", "KILL"]
    return command if _runs([*command, "true"]) else []


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603


def _make_deno_dir(folder: Path) -> Path:
    """Make the folder in which one process of Deno keeps its files, which no program can reach.

    Raises:
        OSError: There is no place for it.
    """
    deno_dir = Path(tempfile.mkdtemp(prefix="deno-", dir=folder))
    # Folders in the place of two databases, which cost time; Deno then does without.
    for name in ("dep_analysis_cache_v2", "node_analysis_cache_v2"):
        (deno_dir / name).mkdir()
    # A file in the place of a folder: what a worker of Node's puts into `caches` is not wanted.
    (deno_dir / "location_data").touch()
    return deno_dir


def _remove(deno_dir: Path) -> None:
    shutil.rmtree(deno_dir, ignore_errors=True)


def _disk_bytes(deno_dir: Path) -> int:
    """How much of the disk a program holds: its TypeScript modules, as Deno's compiler has left them."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in deno_dir.glob("gen/*/*"))
    return 0


def _runner() -> bytes:
    errors = files("faasrt.protocol.guest").joinpath("js_errors.js")
    return errors.read_bytes() + files("faasrt.local.guest").joinpath("deno_main.js").read_bytes()


def _memory_bytes(pid: int) -> tuple[int, int]:
    """How much a process has reserved, as RLIMIT_DATA counts it, and how much it holds; 0 when it is gone."""
    found = {"VmData": 0, "VmRSS": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * 1024
    return found["VmData"], found["VmRSS"]
