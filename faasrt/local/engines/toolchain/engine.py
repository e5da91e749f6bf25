"""Compiles and runs programs with a toolchain that is installed.

Compilers run in the jail too, because hostile source code attacks them, with limits of their own. Compiled
programs are cached. An engine starts when the first program needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar
from weakref import WeakValueDictionary

import attrs

from faasrt.errors import ConfigurationError
from faasrt.inputs import MAX_FILES, ProgramInput, program_file
from faasrt.local.cache_folder import cache_dir
from faasrt.local.engines.engine import Engine, EngineJob, EngineOptions, EngineResult, Watch
from faasrt.local.engines.jailed_run import run_program, start_runner
from faasrt.local.engines.native_jail import TMP_BYTES, native_jail
from faasrt.local.engines.runner_sources import read_runner
from faasrt.local.engines.toolchain.program_cache import ProgramCache
from faasrt.local.engines.toolchain.run import PROCESS_NAME, command_run, recognize_failure
from faasrt.local.engines.toolchain.toolchain import JAIL_PATH, OUT, PROGRAM, Installation, Toolchain
from faasrt.local.engines.warm_pool import WarmPool
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.jail import Jail, JailedProcess, open_jail
from faasrt.local.jail.launcher import process_memory
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.streams import cut_text
from faasrt.results import Diagnostic, ErrorInfo, Outcome

COMPILE_LIMITS = ExecutionLimits(
    timeout_ms=30_000,
    memory_limit_mb=1024,
    max_output_bytes=262_144,
    set_by_server=(Outcome.TIMEOUT, Outcome.MEMORY_LIMIT, Outcome.OUTPUT_LIMIT),
)
_SAMPLE_LIMITS = ExecutionLimits(timeout_ms=20_000, memory_limit_mb=128, max_output_bytes=65_536)
_CACHE_BYTES = 512 * 2**20
_CACHE_FORMAT = 2  # part of the key of each cached program
# The names of the entries with the output of a compiler that failed, and with its outcome if that is not SYNTAX_ERROR.
_FAILURE, _OUTCOME = "failure", "outcome"
_MAX_DIAGNOSTICS = 100
_START_TIMEOUT_S = 20.0  # how long a program waits for the start of the engine
# The whole output of compilers whose own processes were killed, or could not start. A part of an output may be text
# of the program, even at the beginning (`#line`).
_INTERRUPTED = re.compile(
    r"(?:sh: [^\n]{0,20})?(?:Killed|Cannot fork)\n?|"
    r"(?:gcc|g\+\+|collect2): fatal error: (?:Killed signal terminated program \w{1,20}|"
    r"ld terminated with signal 9 \[Killed\]|[^\n]{0,200}: Resource temporarily unavailable)\n"
    r"compilation terminated\.\n?|"
    r"(?:error: (?:linking with `cc` failed: signal: 9\b|could not exec the linker `cc`)|"
    r"Error: Could not create the Java Virtual Machine|(?:OpenJDK [^\n]{0,300}\n)?#\s+There is insufficient memory for)"
    r"(?s:.*)"
)
# Failures that are not stored are remembered for this time, so that the same program does not take up the compiler.
_REMEMBERED_S, _MAX_REMEMBERED = 60.0, 100
_MESSAGE_BYTES, _TRACEBACK_BYTES = 4_096, 32_768
_Take = Callable[[], Awaitable[JailedProcess]]


class ToolchainEngine(Engine):
    toolchain: ClassVar[Toolchain]
    compile_limits = COMPILE_LIMITS
    starts_when_needed = True
    counts_wait = True

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._pool = WarmPool(self, self._start)
        self._cache: ProgramCache
        self._installation: Installation
        self._oom_counter: int | None = None
        self._jail: Jail
        self._needed = asyncio.Event()
        self._started_or_failed = asyncio.Event()
        # Only one of several programs with the same source compiles it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # By key and limits: the time of a failure that is not stored, and the failure.
        self._failures: dict[tuple[str, ExecutionLimits | None], tuple[float, Mapping[str, bytes]]] = {}

    def mark_ready(self) -> None:
        super().mark_ready()
        if self._needed.is_set():
            self._started_or_failed.set()

    def mark_failed(self, problem: str, *, will_retry: bool = False) -> None:
        super().mark_failed(problem, will_retry=will_retry)
        self._started_or_failed.set()

    async def wait_ready(self) -> None:
        self._needed.set()
        await self._started_or_failed.wait()
        await super().wait_ready()

    async def serve(self) -> None:
        if self.level != "namespaces":
            reason = self.options.level_reason or "another level was chosen"
            raise EngineError(f"it needs the level namespaces: {reason}")
        try:
            self._cache = ProgramCache(cache_dir() / "programs", _CACHE_BYTES)
        except ConfigurationError as error:
            raise EngineError(str(error)) from None
        self._installation = await asyncio.to_thread(self.toolchain.locate)
        self.runtime = self._installation.version
        self.environment = repr(self.toolchain.compile(self._installation, [""]))
        if not self._needed.is_set():
            self._started_or_failed.clear()  # an earlier start may have failed
            self.mark_ready()
            await self._needed.wait()
        await super().serve()

    async def _prepare(self, resources: contextlib.AsyncExitStack) -> Watch:
        toolchain, folder = self.toolchain, self.options.folder
        if toolchain.prepare is not None:
            self.ready, self.activity = False, f"preparing {self.runtime}, once for this machine"
            self._installation = await toolchain.prepare(self._installation, cache_dir(), self._spawner)
        self._oom_counter = process_memory.open_oom_counter()
        if self._oom_counter is not None:
            resources.callback(os.close, self._oom_counter)
        config = await asyncio.to_thread(self._jail_config)
        opened = open_jail(self._spawner, sys.executable, folder, config, self.cgroups)
        self._jail = await resources.enter_async_context(opened)
        sample = EngineJob(language=toolchain.language, code=toolchain.sample, limits=_SAMPLE_LIMITS)
        result = await self._compile_and_run(sample, self._start)
        if (result.outcome, result.stdout.strip()) != (Outcome.OK, "ok"):
            reason = result.stderr.strip() or (result.error.message if result.error else str(result.outcome))
            raise EngineError(
                f"{self.runtime} cannot run a short program in the jail; is the package {toolchain.package} complete? "
                f"{reason[:500]}"
            )
        return self._jail.watch

    def _jail_config(self) -> JailConfig:
        installation = self._installation
        return native_jail(
            self.level,
            read_runner("command"),
            f"{PROGRAM}/main",
            mounts=installation.mounts,
            env={"PATH": JAIL_PATH, **installation.env},
            needed=list(installation.mounts),
        )

    async def _start(self) -> JailedProcess:
        return await start_runner(self._jail, PROCESS_NAME)

    async def _execute_once(self, job: EngineJob) -> EngineResult:
        await self._wait_started()
        return await self._compile_and_run(job, self._pool.get)

    async def _wait_started(self) -> None:
        self._needed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._started_or_failed.wait()
        if not (self._started_or_failed.is_set() and self.ready):
            raise NotStartedError(self.problem or f"the engine did not start within {_START_TIMEOUT_S:g} s")

    async def _compile_and_run(self, job: EngineJob, take: _Take) -> EngineResult:
        toolchain, program_input = self.toolchain, job.input
        name = program_file(job.language) if toolchain.file is None else toolchain.file(job.code)
        source = {name: job.code.encode("utf-8", "surrogatepass")}
        began = time.perf_counter()
        compiled = await self._compile(job, source)
        compile_ms = round((time.perf_counter() - began) * 1000, 3)
        if _FAILURE in compiled:
            outcome = Outcome(compiled.get(_OUTCOME, b"SYNTAX_ERROR").decode())
            failure = self._read_failure(compiled[_FAILURE], name, job)
            return attrs.evolve(failure, compile_ms=compile_ms, compile_outcome=outcome)
        if job.check:
            return EngineResult(outcome=Outcome.OK, exit_code=0, compile_ms=compile_ms)
        files = {f"{PROGRAM}{path.removeprefix(OUT)}": content for path, content in compiled.items()}
        files |= {**program_input.files, **(source if toolchain.keeps_source else {})}
        command = [*toolchain.run(self._installation, name, job.limits.memory_limit_mb), *program_input.argv]
        process = await take()
        memory_bytes = (job.limits.memory_limit_mb + toolchain.headroom_mb) * 2**20
        run = command_run(job, process, memory_bytes, command, files)
        del compiled, files  # the run keeps them until they are sent
        result = await run_program(process, run, job, instance=self.name, memory_bytes=memory_bytes)
        return attrs.evolve(recognize_failure(result, toolchain), compile_ms=compile_ms)

    async def _compile(self, job: EngineJob, source: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Return the files that the compiler has written for a program, or its errors as `_FAILURE`."""
        toolchain = self.toolchain
        suffixes = (*toolchain.source_suffixes, *toolchain.other_suffixes)
        files = {path: content for path, content in sorted(job.input.files.items()) if path.endswith(suffixes)}
        # With "./" in front, no name of a file looks like an option.
        sources = [*source, *(f"./{path}" for path in files if path.endswith(toolchain.source_suffixes))]
        command = toolchain.compile(self._installation, sources)
        files |= source
        key = self._key(command, files)
        lock, loop = self._locks.setdefault(key, asyncio.Lock()), asyncio.get_running_loop()
        async with lock:
            stored = await asyncio.to_thread(self._cache.get, key)
            if stored is not None:
                return stored
            attempt = key, job.compile_limits
            failed_at, failure = self._failures.pop(attempt, (0.0, {}))
            if failure and loop.time() - failed_at < _REMEMBERED_S:
                self._failures[attempt] = failed_at, failure
                return failure
            compiled, is_final = await self._run_compiler(job, command, files)
            if not is_final:
                self._failures[attempt] = loop.time(), compiled
                while len(self._failures) > _MAX_REMEMBERED:
                    del self._failures[next(iter(self._failures))]
            else:
                try:
                    await asyncio.to_thread(self._cache.put, key, compiled)
                except OSError as error:
                    self.log_failure(f"a compiled program cannot be stored: {error.strerror or error}")
        return compiled

    def _key(self, command: Sequence[str], files: Mapping[str, bytes]) -> str:
        contents = [(path, hashlib.sha256(content).hexdigest()) for path, content in files.items()]
        parts = [_CACHE_FORMAT, self._installation.version, self.platform, command, contents]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    async def _run_compiler(
        self, job: EngineJob, command: Sequence[str], files: Mapping[str, bytes]
    ) -> tuple[dict[str, bytes], bool]:
        """Return the output of the compiler, and whether it would be the same another time."""
        limits = job.compile_limits or COMPILE_LIMITS
        compilation = EngineJob(
            language=job.language, code=job.code, limits=limits, input=ProgramInput(collect=(f"{OUT}/**",))
        )
        # Not a warm process, which can read files that never end. Sources could include them.
        process = await start_runner(self._jail, PROCESS_NAME, compiles=True)
        oom_kills = process_memory.count_oom_kills(self._oom_counter)
        memory_bytes = limits.memory_limit_mb * 2**20
        run = command_run(compilation, process, memory_bytes, command, files, [OUT])
        try:
            result = await run_program(
                process, run, compilation, instance=self.name, memory_bytes=memory_bytes, max_files_bytes=TMP_BYTES
            )
        except EngineError as error:
            raise NotStartedError(f"the compiler failed: {error}") from None
        if result.error is not None and result.error.name == "SIGKILL":  # a compiler does not kill itself
            raise NotStartedError("the compiler was killed")
        if result.outcome is Outcome.OK:
            if "files" not in result.truncated:
                return dict(result.files), True
            text = f"the compiler wrote more than {MAX_FILES} files, or one whose path is too long"
            return {_FAILURE: text.encode()}, True
        text = result.stderr + result.stdout
        # Only an error in a line is certainly one of the program. The lack of memory for a compiler is not.
        is_located = any(match.groupdict().get("line") for match in self.toolchain.diagnostic.finditer(text))
        lacked_memory = process_memory.count_oom_kills(self._oom_counter) > oom_kills
        interrupted = result.outcome is Outcome.USER_ERROR and (lacked_memory or _INTERRUPTED.fullmatch(text))
        if interrupted and not is_located:
            raise NotStartedError(f"a process of the compiler was killed or could not start: {text.strip()[-300:]}")
        if (limit := limits.error(result.outcome)) is not None:
            text = f"{text}\nthe compiler was stopped: {limit.message}"
            return {_FAILURE: text.encode(), _OUTCOME: result.outcome.value.encode()}, False
        if not text.strip():
            text = f"the compiler failed: {result.error.message if result.error else result.outcome}"
        return {_FAILURE: text.encode()}, result.outcome is Outcome.USER_ERROR and is_located

    def _read_failure(self, output: bytes, name: str, job: EngineJob) -> EngineResult:
        text = output.decode("utf-8", "replace").strip("\n") + "\n"
        diagnostics: list[Diagnostic] = []
        for match in self.toolchain.diagnostic.finditer(text):
            groups = match.groupdict()
            message = cut_text(groups["message"].strip(), _MESSAGE_BYTES)[0]
            if groups.get("file", name) not in (None, name):
                message = f"{groups['file']}: {message}"
            line, column = (int(groups[part]) if groups.get(part) else None for part in ("line", "column"))
            if groups.get("caret") is not None:
                column = len(groups["caret"]) + 1
            diagnostics.append(Diagnostic(message, line, column))
            if len(diagnostics) == _MAX_DIAGNOSTICS:
                break
        if not diagnostics:
            diagnostics.append(Diagnostic(cut_text(text.strip("\n").rpartition("\n")[2], _MESSAGE_BYTES)[0]))
        first = diagnostics[0]
        place = ":".join(str(part) for part in (name, first.line, first.column) if part is not None)
        stderr, was_cut = cut_text(text, job.limits.max_output_bytes)
        return EngineResult(
            outcome=Outcome.SYNTAX_ERROR,
            stderr=stderr,
            truncated=["stderr"] if was_cut else [],
            error=ErrorInfo("CompileError", f"{place}: {first.message}", cut_text(text, _TRACEBACK_BYTES)[0]),
            exit_code=1,
            line=first.line,
            column=first.column,
            diagnostics=tuple(diagnostics),
        )


def engine_for(toolchain: Toolchain) -> type[ToolchainEngine]:
    fields = {"toolchain": toolchain, "name": toolchain.name, "languages": (toolchain.language,)}
    fields["overhead_mb"] = ToolchainEngine.overhead_mb + toolchain.headroom_mb
    return type(f"{toolchain.language.name.title()}Engine", (ToolchainEngine,), fields)
