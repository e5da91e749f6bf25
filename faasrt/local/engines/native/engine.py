"""Runs programs in processes forked from a process that has already imported packages.

A tier is a launcher that has imported certain packages, and the warm processes that are forked from it. One tier has
imported the standard library only. The others start when a program first uses their package.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from faasrt.languages import Language
from faasrt.local.engines.engine import Engine, EngineJob, EngineOptions, EngineResult, Watch
from faasrt.local.engines.jailed_run import run_program, start_runner
from faasrt.local.engines.native.run import PROCESS_NAME, python_run
from faasrt.local.engines.native.session import NativeSession
from faasrt.local.engines.native_jail import native_jail
from faasrt.local.engines.python_tiers import STANDARD_LIBRARY, TIERS, exercise_of, tiers_of
from faasrt.local.engines.runner_sources import read_runner
from faasrt.local.engines.session import EngineSession, EngineSessionOptions
from faasrt.local.engines.warm_pool import WarmPool
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.jail import Jail, JailedProcess, open_jail
from faasrt.local.jail.launcher.landlock import abi_version

_START_TIMEOUT_S = 60.0
# The memory of the packages of the largest tier, in MiB. While its tier starts, a program imports the packages itself.
# They must not count then, because they do not count once the tier has started.
_IMPORTS_MB = 192
# A tier that no program has used for this time ends, to free its memory.
_IDLE_S = 600.0
_MAX_ATTEMPTS = 4
# The names of installed packages contain their versions.
_DESCRIBE = (
    "import json,os,platform,sys; print(json.dumps([platform.python_version(), sys.executable, sys.prefix, "
    "sys.base_prefix, sys.version_info >= (3, 9) and sys.implementation.name == 'cpython', "
    "sorted(name for path in sys.path if os.path.isdir(path) for name in os.listdir(path) "
    "if name.endswith(('.dist-info', '.egg-info')))]))"
)


@attrs.frozen
class Interpreter:
    """The interpreter of programs. `packages` is a fingerprint of what is installed for it."""

    version: str
    executable: str
    prefix: str
    base_prefix: str
    packages: str

    def jail_config(self, level: str, imports: Sequence[str]) -> JailConfig:
        """Return the jail of a tier. This reads files, so call it in a thread."""
        mounts = {}
        for prefix in {self.prefix, self.base_prefix}:
            # Not the whole prefix, because users may keep other files there.
            for name in ("bin", "include", "lib", "lib64", "pyvenv.cfg"):
                path = Path(prefix, name)
                if not path.is_relative_to("/usr") and path.exists():
                    mounts[str(path)] = str(path)
        env = {
            "PATH": f"{self.prefix}/bin:/usr/bin:/bin",
            "PYTHONHASHSEED": "0",
            # Numeric libraries start a thread for each core. With several programs at once these would be too many, and
            # threads do not survive a fork.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # pyarrow's allocator starts a thread that frees memory.
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        }
        library = Path(self.base_prefix, "lib", f"python{'.'.join(self.version.split('.')[:2])}")
        return native_jail(
            level,
            read_runner("native"),
            "/tmp/main.py",  # noqa: S108
            mounts=mounts,
            env=env,
            imports=imports,
            exercise=exercise_of(imports),
            packages=list(TIERS),
            needed=[str(library)],
        )


class PythonTier(Engine):
    """Runs programs in processes forked from one launcher, which has imported some modules."""

    name = "native"
    languages = (Language.PYTHON,)
    has_displays = True
    counts_wait = True

    def __init__(self, options: EngineOptions, imports: Sequence[str], interpreter: Interpreter | None = None) -> None:
        super().__init__(options)
        self._pool = WarmPool(self, self._start)
        self._imports, self._interpreter = imports, interpreter
        self._jail: Jail
        self.packages: frozenset[str] = frozenset()
        # Without namespaces, the server could not distinguish the processes of a branch from the processes of its
        # session. Without Landlock, a branch could change the files of its session.
        can_fork = self.level == "namespaces" and abi_version() > 0
        self.session_features = ("run", "fork", "files") if can_fork else ("run", "files")
        self.used_at = 0.0

    async def _prepare(self, resources: contextlib.AsyncExitStack) -> Watch:
        assert self._interpreter is not None
        config = await asyncio.to_thread(self._interpreter.jail_config, self.level, self._imports)
        python = self._interpreter.executable
        opened = open_jail(self._spawner, python, self.options.folder, config, self.cgroups)
        self._jail = await resources.enter_async_context(opened)
        self.packages = self._jail.packages
        return self._jail.watch

    async def _start(self) -> JailedProcess:
        return await start_runner(self._jail, PROCESS_NAME)

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        # Called by `NativeEngine`, whose `execute` tries it again, and logs failures.
        self.active += 1
        try:
            return await self._run(job)
        finally:
            self.active -= 1

    async def take(self) -> JailedProcess:
        self.used_at = asyncio.get_running_loop().time()
        process: JailedProcess = await self._pool.get()
        return process

    @property
    def in_use(self) -> bool:
        return self.active > 0 or (self.ready and self._jail.has_sessions)

    async def _run(self, job: EngineJob, headroom_mb: int = 0) -> EngineResult:
        process = await self.take()
        assert self._interpreter is not None
        memory_bytes = (job.limits.memory_limit_mb + headroom_mb) * 2**20
        run = python_run(job, process, memory_bytes, self._interpreter.executable)
        return await run_program(process, run, job, instance="python", memory_bytes=memory_bytes)


class NativeEngine(PythonTier):
    """The tier of the standard library, which starts other tiers when a program first needs them."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options, STANDARD_LIBRARY)
        if options.python == sys.executable:
            self.runtime = f"CPython {platform.python_version()}"  # clients may know it before the engine is ready
        self._tiers: dict[str, PythonTier] = {}

    async def _prepare(self, resources: contextlib.AsyncExitStack) -> Watch:
        if self.level == "filters" and self.options.level_reason:
            raise EngineError(
                "the engine native needs the level namespaces or users, unless you choose the level filters as well: "
                f"{self.options.level_reason}"
            )
        self._interpreter = await _describe(self.options.python)
        self.runtime = f"CPython {self._interpreter.version}"
        self.environment = self._interpreter.packages
        self._tiers.clear()
        return await super()._prepare(resources)

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        tier = self._choose_tier(job.code)
        if tier is None:
            return await self._run(job)
        return await (tier._execute_once(job) if tier.ready else self._run(job, _IMPORTS_MB))

    async def open_session(self, options: EngineSessionOptions) -> EngineSession:
        assert self._interpreter is not None
        # A session may import packages itself, because its programs are not known when it starts.
        memory_bytes = (options.limits.memory_limit_mb + (_IMPORTS_MB if self.packages else 0)) * 2**20
        for attempt in range(_MAX_ATTEMPTS):
            process = await self._pool.get()
            session = NativeSession(
                options, process, memory_bytes, self._interpreter.executable, find_process=self._find_process
            )
            try:
                await session.begin()
            except BaseException as error:
                await session.aclose()
                if not isinstance(error, NotStartedError) or attempt == _MAX_ATTEMPTS - 1:
                    raise
            else:
                return session
        raise AssertionError("the last attempt raises an exception")

    async def _find_process(self, code: str) -> JailedProcess | None:
        """Return a process for a session whose first program has this code, if one is warm in another tier."""
        with contextlib.suppress(NotStartedError):
            tier = self._choose_tier(code)
            return await tier.take() if tier is not None and tier.ready and tier.idle else None
        return None

    def _choose_tier(self, code: str) -> PythonTier | None:
        """Return the tier that runs a program, which may not be ready yet; None if this one does. Raise NotStartedError
        if a tier must start while the engine ends.
        """
        name = next((name for name in tiers_of(code) if name in self.packages), None)
        if name is None:
            return None
        tier = self._tiers.get(name)
        if tier is None:
            tier = PythonTier(self.options, TIERS[name], self._interpreter)
            self._create_task(self._run_tier(name, tier))
            self._tiers[name] = tier
        return tier

    async def _run_tier(self, name: str, tier: PythonTier) -> None:
        """Run a tier until no program has used it for ten minutes."""
        loop = asyncio.get_running_loop()
        tier.used_at = loop.time()
        try:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(tier.run())
                while (left_s := tier.used_at + _IDLE_S - loop.time()) > 0 or tier.in_use:  # noqa: ASYNC110
                    await asyncio.sleep(max(left_s, 1.0))
                tier.ready = False  # programs that arrive while it ends run in the tier of the standard library
                running.cancel()
        finally:
            del self._tiers[name]


async def _describe(python: str) -> Interpreter:
    try:
        process = await asyncio.to_thread(
            subprocess.run,
            [python, "-I", "-c", _DESCRIBE],
            capture_output=True,
            text=True,
            timeout=_START_TIMEOUT_S,
            check=True,
        )
        version, executable, prefix, base_prefix, supported, packages = json.loads(process.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise EngineError(f"the interpreter {python} does not run: {error}") from None
    if not supported:
        raise EngineError(f"the interpreter {python} must be CPython 3.9 or newer; its version is {version}")
    return Interpreter(version, executable, prefix, base_prefix, " ".join(packages))
