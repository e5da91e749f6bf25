"""The interface of engines. An engine runs programs, each in a fresh, disposable sandbox."""

from __future__ import annotations

import abc
import asyncio
import logging
import sys
import time
from pathlib import Path
from platform import machine
from typing import ClassVar

import attrs

from faasrt.languages import Language
from faasrt.local.jail.cgroup import Cgroups
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.results import Outcome, UserError

_ATTEMPTS = 4
_ATTEMPTS_S = 5.0
_RESTART_S, _MAX_RESTART_S = 5.0, 300.0
_LASTING_S = 1.0
_logger = logging.getLogger("faasrt.local")


class EngineError(Exception):
    """The engine failed, not the program. The message says what to do about it.

    Attributes:
        status: The HTTP status of the answer.
        kind: The kind of the failure, for the answer.
    """

    status = 500
    kind = "the engine failed"


class KilledError(EngineError):
    """The process of a program was killed. The program may have hidden that it did this itself."""


class NotStartedError(EngineError):
    """The engine failed before the program began, so a retry cannot run it twice."""

    status = 503


@attrs.frozen(kw_only=True)
class EngineJob:
    """A program to run, checked by the server.

    Attributes:
        language: One of the engine's languages.
        code: The program.
        limits: The limits of the execution.
        check: Whether to parse the program without running it.
    """

    language: Language
    code: str
    limits: ExecutionLimits
    check: bool = False


@attrs.frozen(kw_only=True)
class EngineResult:
    """How a program ended.

    Attributes:
        line: The line of a syntax error, from 1; None if unknown.
        column: The column of a syntax error, from 1; None if unknown.
        instance_id: Names the process that ran the program.
    """

    outcome: Outcome = attrs.field(converter=Outcome)
    stdout: str = ""
    stderr: str = ""
    ret_val: str = ""
    truncated: tuple[str, ...] = attrs.field(converter=tuple, default=())
    error: UserError | None = None
    exit_code: int | None = None
    duration_ms: float = 0.0
    line: int | None = None
    column: int | None = None
    instance_id: str = ""


@attrs.frozen(kw_only=True)
class EngineOptions:
    """The options of an engine.

    Attributes:
        workers: The number of programs for which the machine has capacity. A program is assumed to use one core.
        folder: An existing folder for temporary files.
        memory_limit_mb: The memory limit of most programs, in MiB.
        level: The level of the jail; "" when none works here.
        level_reason: Why the level is not higher; "" if it is the highest, or was chosen.
        python: The interpreter of Python programs.
        cgroups: Where programs get cgroups; None without them.
    """

    workers: int
    folder: Path
    memory_limit_mb: int
    level: str = ""
    level_reason: str = ""
    python: str = sys.executable
    cgroups: Cgroups | None = None


class Engine(abc.ABC):
    """Runs programs. One task calls `run` for the lifetime of the engine; other tasks call `execute`.

    Args:
        options: The options.

    Attributes:
        name: The name in `/health` and `/metrics`.
        languages: The languages of its programs.
        package: The package that the engine needs.
        programs_per_worker: The number of programs that run at once for each worker.
        min_memory_mb: The smallest memory limit, in MiB, with which a sandbox starts.
        jailed: Whether the programs run in a jail.
        platform: What programs see as their machine.
        capacity: How many programs run at once.
        runtime: The interpreter and its version; complete once the engine is ready.
        ready: Whether the engine can run programs now.
        problem: Why the engine is not ready, or "".
        activity: The current step of the start, for people to read.
        active: The number of running programs.
        level: The level of the jail around programs; "" without one.
        cgroups: Where programs get cgroups; None without them.
    """

    name: ClassVar[str]
    languages: ClassVar[tuple[Language, ...]]
    package: ClassVar[str]
    programs_per_worker: ClassVar[int] = 1
    min_memory_mb: ClassVar[int]
    jailed: ClassVar[bool] = True
    platform: ClassVar[str] = f"{sys.platform}-{machine()}"

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.level = options.level if self.jailed else ""
        self.cgroups = options.cgroups if self.jailed else None
        self.capacity = options.workers * self.programs_per_worker
        self.runtime = ""
        self.ready = False
        self.problem = ""
        self.activity = "starting"
        self.active = 0
        self._ready_or_failed = asyncio.Event()
        self._last_logged = ""
        self._was_ready = False

    def mark_ready(self) -> None:
        """Record that programs can run."""
        self.ready, self.problem, self._last_logged, self._was_ready = True, "", "", True
        self._ready_or_failed.set()

    def mark_failed(self, problem: str) -> None:
        """Record why no program can run."""
        self.ready, self.problem = False, problem
        self._ready_or_failed.set()

    async def wait_ready(self) -> None:
        """Wait until programs can run.

        Raises:
            EngineError: The engine failed; the message says why.
        """
        await self._ready_or_failed.wait()
        if not self.ready:
            raise EngineError(self.problem)

    def log_failure(self, problem: str) -> None:
        """Log a failure, unless it is the same as the last one since the engine was ready."""
        if problem != self._last_logged:
            self._last_logged = problem
            _logger.warning("the engine %s: %s", self.name, problem)

    async def run(self) -> None:
        """Serve until cancelled. A failure of this engine is logged, and does not affect other engines.

        An engine that was ready for some time restarts at once. Otherwise it restarts after a pause, because the
        machine may be short of descriptors, memory or disk.
        """
        delay_s = 0.0
        try:
            while True:
                began, self._was_ready = time.monotonic(), False
                try:
                    await self.serve()
                except EngineError as error:
                    self.log_failure(str(error))
                    self.mark_failed(str(error))
                except Exception as error:
                    _logger.exception("the engine %s failed", self.name)
                    self.mark_failed(f"the engine failed: {type(error).__name__}: {error}")
                if self._was_ready and time.monotonic() - began > max(_LASTING_S, delay_s):
                    delay_s = 0.0
                else:
                    delay_s = min(max(2 * delay_s, _RESTART_S), _MAX_RESTART_S)
                await asyncio.sleep(delay_s)
        except asyncio.CancelledError:
            self.mark_failed("the engine is closed")
            raise

    @abc.abstractmethod
    async def serve(self) -> None:
        """Keep the engine able to run programs until cancelled, then end all processes. May be called again afterwards.

        Raises:
            EngineError: The engine cannot serve at the moment.
        """

    async def execute(self, job: EngineJob) -> EngineResult:
        """Run or check one program. The caller ensures that at most `capacity` programs run at once.

        Raises:
            NotStartedError: The engine failed before the program began.
            EngineError: The engine failed; the program may have begun.

        Cancellation: ends the program, and reuses its process or kills it.
        """
        self.active += 1
        attempts, retry_until = 0, time.monotonic() + _ATTEMPTS_S
        try:
            while True:
                attempts += 1
                try:
                    return await self._execute_once(job)
                except NotStartedError:
                    # A waiting process may have died, and the engine may not know it yet.
                    if attempts == _ATTEMPTS or time.monotonic() > retry_until:
                        raise
        except EngineError as error:
            self.log_failure(str(error))
            raise
        finally:
            self.active -= 1

    @abc.abstractmethod
    async def _execute_once(self, job: EngineJob) -> EngineResult:
        """Run or check one program in a warm process.

        Raises:
            NotStartedError: The process ended before the program began.
            EngineError: The engine failed.
        """

    @property
    @abc.abstractmethod
    def idle(self) -> int:
        """The number of processes that wait for a program."""
