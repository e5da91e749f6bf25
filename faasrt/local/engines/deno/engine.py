"""Runs each program in a warm Deno process.

A program that has files, or whose files are collected, runs in a second jail. There it has a folder of its own, and
permission to use it. This jail is opened for the first such program, and has no warm processes. Sessions run there too,
if the jail can have folders, each in a process of its own. A program whose displays are wanted has another runner. One
process with this runner, and one for a session, are kept ready after the first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import attrs

from faasrt.errors import ConfigurationError
from faasrt.languages import Language
from faasrt.local.engines.deno.relocated import relocated
from faasrt.local.engines.deno.run import FOLDER, DenoRun
from faasrt.local.engines.deno.session import DenoSession
from faasrt.local.engines.engine import NO_LEVEL, Engine, EngineJob, EngineOptions, EngineResult, Watch
from faasrt.local.engines.jailed_run import run_program, until_ready
from faasrt.local.engines.runner_sources import RunnerName, read_runner
from faasrt.local.engines.session import EngineSessionOptions, SessionEndedError
from faasrt.local.engines.warm_pool import HEAD_START_S, WarmPool
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.jail import Jail, JailedProcess, OwnedFd, open_jail
from faasrt.local.process import ChildProcess
from faasrt.results import Outcome

# Memory beyond the limit of V8's heap, for compiled code, the TypeScript compiler and buffers.
_HEADROOM_MB = 64
_INSPECTOR_MB = 32  # for the modules of Node that evaluate a program with V8's inspector
_START_TIMEOUT_S = 20.0
_READY = b"\0ready\n"
_T = TypeVar("_T")
_WATCH_INTERVAL_S = 0.25
# Stack traces contain these paths. Programs must not learn where faasrt is installed, so the real paths are not used.
_EXECUTABLE = "/sandbox/deno"
_RUNNER, _DISPLAY_RUNNER, _SESSION_RUNNER = (f"/sandbox/{name}runner.js" for name in ("", "display_", "session_"))
_RUNNER_NAMES: dict[str, RunnerName] = {
    _RUNNER: "deno",
    _DISPLAY_RUNNER: "deno_displays",
    _SESSION_RUNNER: "deno_session",
}
_RUNNER_FDS = {path: f"/proc/self/fd/{fd}" for fd, path in enumerate(_RUNNER_NAMES, 3)}
# The whole environment, so that the server's variables neither reach a program nor change how Deno works. DENO_DIR does
# not exist and cannot be created, so that nothing is stored.
_ENVIRONMENT = {
    "DENO_DIR": "/sandbox/none",
    "DENO_EMIT_CACHE_MODE": "disable",  # otherwise the first TypeScript module waits 150 ms for a folder to write to
    "HOME": "/sandbox",
    "DENO_NO_UPDATE_CHECK": "1",
    "NO_COLOR": "1",
}
_LIMITS = {
    "RLIMIT_NOFILE": 64,  # enough for an event loop, its pipes and a few pairs of sockets
    "RLIMIT_FSIZE": 0,  # there is no file to write to
    "RLIMIT_CORE": 1,  # prevents core dumps; 0 would allow core dumps that the host pipes to a program
    "RLIMIT_MEMLOCK": 0,
    "RLIMIT_MSGQUEUE": 0,
}
# For a program with a folder.
_FOLDER_BYTES = 64 * 2**20
_FOLDER_LIMITS = {
    **_LIMITS,
    "RLIMIT_NOFILE": 256,  # for many operations on files at once
    "RLIMIT_FSIZE": _FOLDER_BYTES,
}
# Two runners use V8's inspector inside their process, and give the permission up before a program begins. Deno resolves
# the imports of code that it evaluates relative to the parent of the working folder.
_OWN_IMPORTS = {f"file://{folder}/": f"file://{folder}/" for folder in (FOLDER, "/sandbox")}
_IMPORT_MAP = json.dumps({"scopes": {f"file://{FOLDER}": {"file:///": f"file://{FOLDER}/", **_OWN_IMPORTS}}})
_INSPECTOR_PERMISSION = "--allow-sys=inspector"
_FOLDER_IMPORTS = f"--import-map=data:application/json,{_IMPORT_MAP}"
FOLDER_PERMISSIONS = (f"--allow-read={FOLDER}", f"--allow-write={FOLDER}")
PERMISSIONS = ["--no-prompt", "--no-config", "--no-lock", "--no-remote", "--no-npm", "--cached-only", "--no-code-cache"]


class DenoEngine(Engine):
    """Warm processes have the memory limit of the server. A program with another limit waits 20 ms for a new one."""

    name = "deno"
    languages = (Language.JAVASCRIPT, Language.TYPESCRIPT)
    package = "deno"
    programs_per_worker = 4  # most programs are so short that four of them can share a core
    max_per_worker = 16
    overhead_mb = 110
    has_displays = True
    counts_wait = True

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._pool = WarmPool(self, self._start)
        if self.level in ("users", "filters"):
            self.input_fields = ("stdin", "argv")
        self.runtime = f"Deno {version('deno')}"
        self.session_features = (
            () if self.level == NO_LEVEL else ("run", "files") if self.level == "namespaces" else ("run",)
        )
        self._runners = {}
        for path in _RUNNER_NAMES:
            self._runners[path] = options.folder / Path(path).name
            # Replaced as a whole, because an engine that still runs may have mounted the file.
            new = self._runners[path].with_suffix(".new")
            new.write_text(_runner_source(path), "utf-8")
            new.replace(self._runners[path])
        self._path = _find_executable()
        self._config: JailConfig
        self._jail: Jail
        self._folder_jail: asyncio.Future[Jail] | None = None
        self._spares: dict[str, tuple[int, JailedProcess]] = {}  # by their runner, with their memory limit in MiB
        self._spare_starts: dict[str, asyncio.Task[None]] = {}
        self._base_data_bytes = self._base_rss_bytes = 0  # until they are measured

    async def _prepare(self, resources: contextlib.AsyncExitStack) -> Watch:
        if self.level == NO_LEVEL:
            raise EngineError(f"no level of the jail works on this machine: {self.options.level_reason}")
        libraries = await asyncio.to_thread(_find_libraries, self._path)
        path = await asyncio.to_thread(relocated, self._path) if self.level == "namespaces" else self._path
        mounts = [(path, _EXECUTABLE), *((path, path) for path in libraries)]
        mounts += [(str(file), path) for path, file in self._runners.items()]
        self._config = JailConfig(
            level=self.level,
            policy="deno",
            mounts=mounts,
            executable=_EXECUTABLE,
            env=_ENVIRONMENT,
            limits=_LIMITS,
            open_files=[] if self.level == "namespaces" else [*map(str, self._runners.values())],
        )
        opened = open_jail(self._spawner, sys.executable, self.options.folder, self._config, self.cgroups)
        self._jail = await resources.enter_async_context(opened)
        self._folder_jail = None
        child = await self._start_child(self._jail, self.options.memory_limit_mb)
        try:
            data_bytes, rss_bytes = await _in_thread(_memory_bytes, child.pid) or (0, 0)
        finally:
            await child.end()
        if not data_bytes:
            raise EngineError("cannot read the memory of a Deno process from /proc")
        self._base_data_bytes, self._base_rss_bytes = data_bytes, rss_bytes
        return self._jail.watch

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        has_folder = bool(job.input.files or job.input.collect)
        has_usual_limit = job.limits.memory_limit_mb == self.options.memory_limit_mb
        is_usual = has_usual_limit and not has_folder and not job.displays
        memory_mb, jail = job.limits.memory_limit_mb, await self._open_folder_jail() if has_folder else self._jail
        if is_usual:
            child = await self._pool.get()
        elif job.displays and not has_folder:
            child = await self._take_spare(_DISPLAY_RUNNER, jail, memory_mb)
        else:
            child = await self._start_tracked(_DISPLAY_RUNNER if job.displays else _RUNNER, jail, memory_mb)
        run = DenoRun(job, child, has_folder=has_folder)
        max_bytes = self._base_rss_bytes + _memory_mb(memory_mb, inspects=job.displays) * 2**20
        child.limit_cgroup(max_bytes)
        watch = functools.partial(self._watch, run, child, max_bytes)
        return await run_program(child, run, job, instance="deno", has_folder=has_folder, watch=watch)

    async def open_session(self, options: EngineSessionOptions) -> DenoSession:
        memory_mb = options.limits.memory_limit_mb
        jail = await self._open_folder_jail() if "files" in self.session_features else self._jail
        child = await self._take_spare(_SESSION_RUNNER, jail, memory_mb)
        try:
            folder = await child.open_folder() if "files" in self.session_features else None
            max_bytes = self._base_rss_bytes + _memory_mb(memory_mb, inspects=True) * 2**20
            child.limit_cgroup(max_bytes)
            watch = functools.partial(self._watch, child=child, max_rss_bytes=max_bytes, folder=folder)
            session = DenoSession(options, child, folder, watch)
            if options.files:
                await session.write_files(options.files)
        except BaseException as error:
            await child.end()
            if isinstance(error, SessionEndedError):
                raise NotStartedError(str(error)) from None
            raise
        return session

    async def _take_spare(self, runner: str, jail: Jail, memory_mb: int) -> JailedProcess:
        """Return a process for a program, and start the next one, which probably has the same memory limit."""
        spare_mb, child = self._spares.pop(runner, (0, None))
        if child is not None and spare_mb != memory_mb:
            child.kill()
        if child is None or not child.alive or spare_mb != memory_mb:
            child = await self._start_tracked(runner, jail, memory_mb)
        starting = self._spare_starts.get(runner)
        # A spare may have become ready while the process of this program started. It must not be replaced unused.
        if runner not in self._spares and (starting is None or starting.done()):
            self._spare_starts[runner] = self._create_task(self._start_spare(runner, jail, memory_mb))
        return child

    async def _start_spare(self, runner: str, jail: Jail, memory_mb: int) -> None:
        await asyncio.sleep(HEAD_START_S)
        with contextlib.suppress(NotStartedError):
            self._spares[runner] = memory_mb, await self._start_tracked(runner, jail, memory_mb)

    async def _start_tracked(self, runner: str, jail: Jail, memory_mb: int) -> JailedProcess:
        child = await self._start_child(jail, memory_mb, runner)
        self._pool.track(child)
        return child

    async def _watch(self, run: DenoRun, child: JailedProcess, max_rss_bytes: int, folder: OwnedFd | None) -> None:
        """Wait until a program has ended, and check its process four times a second.

        End the program if its process uses too much memory, because resource limits do not count all memory, or has
        closed stdout, because the runner's last message would be lost: Deno ignores failed writes.
        """
        lost_stdout = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_INTERVAL_S):
                    await run.ended.wait()
                    base_bytes = self._base_rss_bytes
                    run.used_much_memory = child.peak_bytes - base_bytes > (max_rss_bytes - base_bytes) / 3
                    return
            rss_bytes, has_stdout = await _in_thread(_measure, child, folder) or (0, True)
            if rss_bytes > max_rss_bytes:
                run.end(Outcome.MEMORY_LIMIT)
            # A process that is ending has no stdout either, but only for a moment. So end it only at the second check.
            lost_before, lost_stdout = lost_stdout, not has_stdout
            if lost_before and lost_stdout and not run.ended.is_set():
                run.end()

    async def _start(self) -> JailedProcess:
        return await self._start_child(self._jail, self.options.memory_limit_mb)

    async def _open_folder_jail(self) -> Jail:
        if self._folder_jail is None:
            opened: asyncio.Future[Jail] = asyncio.get_running_loop().create_future()
            task = self._create_task(self._run_folder_jail(opened))
            # Not at the end of the task itself: a task that is cancelled before it begins never runs.
            task.add_done_callback(lambda _: self._forget_folder_jail(opened))
            self._folder_jail = opened
        # Other programs may wait for the same jail.
        return await asyncio.shield(self._folder_jail)

    async def _run_folder_jail(self, opened: asyncio.Future[Jail]) -> None:
        """Keep a jail open until its launcher ends. `opened` gets it, or the reason why it cannot be opened."""
        config = attrs.evolve(self._config, policy="deno-files", tmp_bytes=_FOLDER_BYTES, limits=_FOLDER_LIMITS)
        try:
            async with open_jail(self._spawner, sys.executable, self.options.folder, config, self.cgroups) as jail:
                opened.set_result(jail)
                await jail.watch()
        except (EngineError, OSError) as error:  # the programs of the other jail go on
            self.log_failure(str(error))
            if not opened.done():
                opened.set_exception(NotStartedError(str(error)))

    def _forget_folder_jail(self, opened: asyncio.Future[Jail]) -> None:
        if self._folder_jail is opened:
            self._folder_jail = None
        if not opened.done():
            opened.set_exception(NotStartedError("the engine is closed"))
        opened.exception()  # each program that waits for the jail may have been cancelled

    async def _start_child(self, jail: Jail, memory_limit_mb: int, runner: str = _RUNNER) -> JailedProcess:
        inspects = runner != _RUNNER
        limits = {}
        if self._base_data_bytes:
            # RLIMIT_DATA also counts buffers and WebAssembly memory, which are not part of V8's heap.
            size_mb = _memory_mb(memory_limit_mb, inspects=inspects)
            limits["RLIMIT_DATA"] = self._base_data_bytes + size_mb * 2**20
        has_folder = jail is not self._jail
        permissions = [*PERMISSIONS, *(FOLDER_PERMISSIONS if has_folder else ())]
        if inspects:
            permissions += [_INSPECTOR_PERMISSION, *([_FOLDER_IMPORTS] if has_folder else [])]
        # At the level "filters", the process may have a uid that cannot read the folder of the runner. So it gets the
        # runner as an open file.
        if self.level != "namespaces":
            runner = _RUNNER_FDS[runner]
        flags = [*permissions, "--quiet", "--ext=js", f"--v8-flags=--max-old-space-size={memory_limit_mb}"]
        child = await jail.start(["deno", "run", *flags, runner], limits=limits)
        await until_ready(child, _READY, "Deno", _START_TIMEOUT_S)
        return child


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T | None:
    """Return None if the system cannot start a thread."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except RuntimeError:
        return None


def _memory_mb(limit_mb: int, *, inspects: bool) -> int:
    """Return the memory that a process may use in addition to the memory of a Deno process without a program."""
    return limit_mb + _HEADROOM_MB + (_INSPECTOR_MB if inspects else 0)


def _runner_source(path: str) -> str:
    """Return a module that contains the runner as a string, and evaluates it.

    Deno itself parses each module before V8 does, which would take 2 ms for the runner. It does not parse strings.
    """
    body = re.sub(r"(?m)^export ", "", read_runner(_RUNNER_NAMES[path]))
    function = f'"use strict"; (async () => {{ {body} }})();\n//# sourceURL=file://{path}'
    return f"(0, eval)({json.dumps(function)});"


def _find_executable() -> str:
    import deno

    try:
        path: str = deno.find_deno_bin()
    except FileNotFoundError as error:
        raise ConfigurationError(f"the binary of Deno is missing ({error}): reinstall the package deno") from None
    return path


def _find_libraries(executable: str) -> list[str]:
    """Return the paths of the loader and the libraries of an executable; all folders if `ldd` fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["ldd", executable], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603, S607
        return [word for line in listed.stdout.splitlines() for word in line.split() if word.startswith("/")]
    return [path for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if Path(path).is_dir()]


def _measure(child: ChildProcess, folder: OwnedFd | None) -> tuple[int, bool]:
    stored_bytes = 0
    if folder is not None:
        status = os.fstatvfs(folder.fd)
        stored_bytes = (status.f_blocks - status.f_bfree) * status.f_frsize
    return _memory_bytes(child.pid)[1] + stored_bytes, child.has_stdout()


def _memory_bytes(pid: int) -> tuple[int, int]:
    """Return the bytes of a process that RLIMIT_DATA counts, and its resident bytes."""
    sizes = {"VmData": 0, "VmRSS": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
    return sizes["VmData"], sizes["VmRSS"]
