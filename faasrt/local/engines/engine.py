"""The base class of the engines: their state, restarts, and what the server asks of them.

A job and its result are here too, because all engines share them.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path
from platform import machine
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from faasrt._version import RESULTS_VERSION
from faasrt.config import SandboxConfig
from faasrt.inputs import INPUT_FIELDS, NO_INPUT, ProgramInput
from faasrt.languages import Language
from faasrt.local.engines.live_output import KEPT_BYTES, LiveOutput
from faasrt.local.engines.warm_pool import WarmPool
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.jail.cgroup import Cgroups
from faasrt.local.jail.launcher import scheduling
from faasrt.local.process import Spawner
from faasrt.protocol.execution_limits import MAX_WALL_FACTOR, ExecutionLimits
from faasrt.results import Diagnostic, Display, ErrorInfo, Outcome
from faasrt.telemetry.logs import log_exception, log_warning

if TYPE_CHECKING:
    from faasrt.local.engines.session import EngineSession, EngineSessionOptions

# If a process fails before its program has begun, the program is tried again. These are the most attempts, and the
# longest time for them.
_MAX_ATTEMPTS, _RETRY_FOR_S = 4, 5.0
_RESTART_S, _MAX_RESTART_S = 5.0, 300.0
_MEMORY_SHARE = 0.8  # the part of the machine's memory that programs can have
_RESTARTS = 2  # that may fail after the engine was ready, before it counts as one that cannot start
_MIN_READY_S = 1.0  # an engine that fails sooner than this after it was ready counts as one that cannot start


@attrs.frozen(kw_only=True)
class EngineJob:
    """A program to run, from a request that the server has checked.

    Attributes:
        check: Whether to parse the program without running it.
        compile_limits: None for the compile limits of the engine, which are also the maximum.
        displays: Whether to return displays. Programs of sessions always do.
    """

    language: Language
    code: str
    limits: ExecutionLimits
    check: bool = False
    input: ProgramInput = NO_INPUT
    live: LiveOutput | None = attrs.field(default=None, eq=False)
    compile_limits: ExecutionLimits | None = None
    displays: bool = False

    @property
    def kept_bytes(self) -> int:
        limit = self.limits.max_output_bytes
        return limit if self.live is None else min(limit, KEPT_BYTES)


@attrs.define(kw_only=True, on_setattr=attrs.setters.NO_OP)
class EngineResult:
    """The result of a program. The engine, the queue and the server complete it, one after another.

    Attributes:
        truncated: The sorted names of the streams that were cut, and "files" or "displays" if some are missing.
        signal: The name of the signal that ended the process, if its outcome is CRASHED.
        line, column: The position of a syntax error, from 1.
        diagnostics: The errors that a compiler found; in other languages, there is only the error in `error`.
        compile_outcome: How the compilation ended if it failed: SYNTAX_ERROR, or the limit that it exceeded.
        waited_ms: The part of `duration_ms` in which the program waited for a CPU, which does not count for its limit.
    """

    outcome: Outcome = attrs.field(converter=Outcome)
    stdout: str = ""
    stderr: str = ""
    ret_val: str = ""
    truncated: tuple[str, ...] = attrs.field(converter=tuple[str, ...], default=())
    error: ErrorInfo | None = None
    exit_code: int | None = None
    signal: str = ""
    duration_ms: float = 0.0
    line: int | None = None
    column: int | None = None
    instance_id: str = ""
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    compile_ms: float | None = None
    compile_outcome: Outcome | None = None
    queued_ms: float = 0.0
    waited_ms: float = 0.0
    displays: tuple[Display, ...] = ()


NO_LEVEL = "none"


@attrs.frozen(kw_only=True)
class EngineOptions:
    """The options of an engine.

    Attributes:
        workers: The number of programs that the machine can run at once, if each uses one core.
        memory_limit_mb: The memory limit of the server, which most programs have.
        level: The level of the jail; "" if no level works on this machine, or no engine needs one.
        level_reason: Why the level is not the highest one, unless it was chosen explicitly.
        level_remedy: How to get a higher one, or "".
        max_programs: The largest number of programs of an engine at once; None for that which the memory allows.
        machine_memory_mb: The memory of the machine; None if it is not known.
        max_wall_factor: See `ExecutionLimits`.
        python_problem: Why native Python cannot run at this level; "" if it can, or nothing is known against it.
    """

    workers: int
    max_programs: int | None = None
    machine_memory_mb: int | None = None
    folder: Path
    memory_limit_mb: int
    level: str = ""
    level_reason: str = ""
    level_remedy: str = ""
    python_problem: str = ""
    python: str = sys.executable
    cgroups: Cgroups | None = None
    max_wall_factor: float = MAX_WALL_FACTOR

    def capacity(self, max_per_worker: int, overhead_mb: int) -> int:
        """Return how many programs an engine may run at once: the memory divided by the limit of each."""
        if self.max_programs is not None:
            return self.max_programs
        most = self.workers * max_per_worker
        if self.machine_memory_mb is not None:
            most = min(most, int(self.machine_memory_mb * _MEMORY_SHARE) // (self.memory_limit_mb + overhead_mb))
        return max(self.workers, most)


@functools.lru_cache
def _fingerprint(parts: tuple[str, ...], limits: SandboxConfig) -> str:
    return hashlib.sha256("\0".join([*parts, repr(limits)]).encode()).hexdigest()[:32]


Watch = Callable[[], Coroutine[Any, Any, None]]
"""The work of an engine in the background. It raises EngineError if no process can start any more."""


class Engine(abc.ABC):
    """Runs programs. One task calls `run` for the lifetime of the engine; other tasks call `execute`.

    A subclass sets `_pool`, from which it takes processes.

    Attributes:
        name: The name in `/health` and `/metrics`.
        package: The Python package that must be installed for it.
        programs_per_worker: The number of programs for each worker that can run even if the machine has little memory.
            It also bounds the warm processes for each worker.
        max_per_worker: The largest number of programs for each worker.
        overhead_mb: The memory of a process beyond the limit of its program.
        min_memory_mb: The smallest memory limit with which a sandbox can start.
        runtime: The interpreter and its version, complete when the engine is ready.
        environment: Changes when the packages of the interpreter change; "" if `runtime` names them.
        will_retry: Whether an engine that is not ready will soon be: it is starting, or failed after it had been ready.
        activity: The current step of the start, for people to read.
        level: The level of the jail around programs; "confined" if the kernel restricts the processes that run
            programs as WebAssembly; NO_LEVEL if neither works; "" if this is not known yet.
        starts_when_needed: Whether the engine starts when it is first used, and is ready before that.
        counts_wait: Whether its time limits leave out the time in which a program waits for a CPU, if it is known.
        session_features: What its sessions can do: "run" if it has sessions, "fork", "files".
    """

    name: ClassVar[str]
    languages: ClassVar[tuple[Language, ...]]
    package: ClassVar[str] = "faasrt"
    programs_per_worker: ClassVar[int] = 1
    max_per_worker: ClassVar[int] = 32
    overhead_mb: ClassVar[int] = 4
    min_memory_mb: ClassVar[int] = 16
    jailed: ClassVar[bool] = True
    compile_limits: ClassVar[ExecutionLimits | None] = None
    starts_when_needed: ClassVar[bool] = False
    session_features: Collection[str] = ()
    has_displays: ClassVar[bool] = False
    counts_wait: ClassVar[bool] = False
    platform: ClassVar[str] = f"{sys.platform}-{machine()}"

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.level = (options.level or NO_LEVEL) if self.jailed else ""
        self.level_reason = options.level_reason
        self.input_fields: Collection[str] = INPUT_FIELDS
        self.cgroups = options.cgroups if self.jailed else None
        self.min_capacity = options.workers * self.programs_per_worker
        self.capacity = options.capacity(self.max_per_worker, self.overhead_mb)
        self.runtime = ""
        self.environment = ""
        self.ready = False
        self.problem = ""
        self.will_retry = True
        self.activity = "starting"
        self.active = 0
        self._pool: WarmPool[Any]
        self._spawner: Spawner
        self._group: asyncio.TaskGroup
        self._changed = asyncio.Event()  # whether `ready` or `will_retry` has changed
        self._last_logged = ""
        self._ready_at: float | None = None

    def fingerprint(self, limits: SandboxConfig) -> str:
        """Return a text that differs between engines with different results; "" if the engine is not ready."""
        parts = (RESULTS_VERSION, self.name, self.runtime, self.environment, self.level, self.platform)
        return _fingerprint(parts, limits) if self.ready else ""

    def mark_ready(self) -> None:
        self.ready, self.will_retry, self.problem, self._last_logged = True, True, "", ""
        if self._ready_at is None:
            self._ready_at = asyncio.get_running_loop().time()
        self._changed.set()

    def mark_failed(self, problem: str, *, will_retry: bool = False) -> None:
        self.ready, self.will_retry, self.problem = False, will_retry, problem
        self._changed.set()

    @property
    def compile_limit_s(self) -> float:
        return 0.0 if self.compile_limits is None else self.compile_limits.timeout_ms / 1000

    @property
    def max_wall_factor(self) -> float | None:
        """See `ExecutionLimits`. None if time limits count the wait for a CPU."""
        return self.options.max_wall_factor if self.counts_wait and scheduling.IS_WAIT_KNOWN else None

    @property
    def background(self) -> str:
        """The work beside programs, for people to read."""
        return ""

    @property
    def slow_step(self) -> str:
        """The current work for which a user must wait, and which is done once on a machine."""
        return ""

    async def until_ready_or_failed(self) -> None:
        while not self.ready and self.will_retry:
            self._changed.clear()
            await self._changed.wait()

    async def wait_ready(self) -> None:
        await self.until_ready_or_failed()
        if not self.ready:
            raise EngineError(self.problem)

    def log_failure(self, problem: str) -> None:
        """Log a failure, unless it equals the last one since the engine was ready."""
        if problem != self._last_logged:
            self._last_logged = problem
            log_warning("the engine %s: %s", self.name, problem, name="faasrt.local")

    async def run(self) -> None:
        """Serve until cancelled. Failures are logged and do not affect other engines.

        After a failure the engine restarts: at once if it was ready for a second, however often that happens, and even
        if the next two starts fail. Otherwise it cannot start, perhaps because the machine is short of memory, and
        restarts after 5 s, doubling up to 300 s.
        """
        delay_s, retries_left = 0.0, 0
        try:
            while True:
                self._ready_at = None
                try:
                    await self.serve()
                except EngineError as error:
                    problem = str(error)
                    self.log_failure(problem)
                except Exception as error:
                    log_exception("the engine %s failed", self.name, name="faasrt.local")
                    problem = f"the engine failed: {type(error).__name__}: {error}"
                retries_left = _RESTARTS if self._was_ready() else retries_left - 1
                self.mark_failed(problem, will_retry=retries_left >= 0)
                delay_s = 0.0 if self.will_retry else min(max(2 * delay_s, _RESTART_S), _MAX_RESTART_S)
                await asyncio.sleep(delay_s)
        except asyncio.CancelledError:
            self.mark_failed("the engine is closed")
            raise

    def _was_ready(self) -> bool:
        return self._ready_at is not None and asyncio.get_running_loop().time() - self._ready_at >= _MIN_READY_S

    async def serve(self) -> None:
        """Start the engine, keep processes warm until cancelled, and then end them. It may be called again."""
        failure = None
        async with Spawner() as self._spawner, contextlib.AsyncExitStack() as resources:
            try:
                watch = await self._prepare(resources)
                async with asyncio.TaskGroup() as self._group:
                    self._group.create_task(watch())
                    await self._pool.fill(self._group)
            except* EngineError as group:
                failure = group.exceptions[0]
            finally:
                self._pool.kill()  # before the first await, because a second cancellation may interrupt an await
                await resources.aclose()
                await self._pool.until_ended()
        if failure is not None:
            raise failure

    def _create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start work that ends with the engine. Raise NotStartedError if the engine is already ending."""
        try:
            return self._group.create_task(work)
        except RuntimeError:  # the group takes no more tasks once one of them has failed
            work.close()
            raise NotStartedError("the engine is ending") from None

    @abc.abstractmethod
    async def _prepare(self, resources: contextlib.AsyncExitStack) -> Watch:
        """Prepare the engine before the first process starts, and return the work in the background, such as watching a
        jail.

        `resources` is closed after the processes have been killed, because a resource such as a jail may report their
        ends.
        """

    async def execute(self, job: EngineJob) -> EngineResult:
        """Run or check one program. The caller must run at most `capacity` programs at once.

        Raises:
            NotStartedError: The engine failed before the program began.
            EngineError: The engine failed; the program may have begun.

        Cancellation: ends the program. Its process is reused or killed.
        """
        self.active += 1
        loop = asyncio.get_running_loop()
        attempts, retry_until = 0, loop.time() + _RETRY_FOR_S
        try:
            while True:
                attempts += 1
                try:
                    return await self._execute_once(job)
                except NotStartedError:
                    # The process may have died while it waited for a program, before the engine noticed it.
                    if attempts == _MAX_ATTEMPTS or loop.time() > retry_until:
                        raise
        except EngineError as error:
            self.log_failure(str(error))
            raise
        finally:
            self.active -= 1

    @abc.abstractmethod
    async def _execute_once(self, job: EngineJob) -> EngineResult:
        """Run or check one program in a warm process. Raise the errors of `execute`."""

    async def open_session(self, options: EngineSessionOptions) -> EngineSession:
        """Start a session, which the caller must close. Raise NotStartedError if it cannot start.

        Cancellation: ends the session.
        """
        raise NotStartedError(f"{self.name} has no sessions")

    @property
    def idle(self) -> int:
        return self._pool.idle
