"""What an engine is: something that runs programs of some languages, each in a fresh, disposable sandbox."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import ClassVar, TypeVar

import attrs

from faasrt.languages import Language
from faasrt.results import Outcome, UserError

_TRIES = 4
_TRY_AGAIN_S = 5.0
_FORGET_S = 30.0
_LOOK_S = 0.2
_RESTART_S, _LONGEST_RESTART_S = 5.0, 300.0
_logger = logging.getLogger("faasrt.local")
_T = TypeVar("_T")


class EngineError(Exception):
    """The engine failed, not the program; the message says what to do about it."""


class NotStartedError(EngineError):
    """The engine failed before the program began, so another try cannot run it twice."""


@attrs.frozen(kw_only=True)
class Job:
    """One program and its limits, checked by the server.

    Attributes:
        language: One of the engine's languages.
        code: The program.
        check: Only parse it.
        timeout_ms: Milliseconds of wall-clock time.
        memory_limit_mb: MiB.
        max_output_bytes: UTF-8 bytes to keep of each stream; at twice as many the program is ended.
        network_enabled: Whether it may reach the network.
    """

    language: Language
    code: str
    check: bool = False
    timeout_ms: float
    memory_limit_mb: int
    max_output_bytes: int
    network_enabled: bool = False


@attrs.frozen(kw_only=True)
class Verdict:
    """How a program ended.

    Attributes:
        line: With SYNTAX_ERROR, the line from 1, where the compiler tells it.
        column: With SYNTAX_ERROR, the column from 1, where the compiler tells it.
        instance_id: Names the process that ran it.
    """

    outcome: Outcome
    stdout: str = ""
    stderr: str = ""
    ret_val: str = ""
    truncated: tuple[str, ...] = ()
    error: UserError | None = None
    exit_code: int | None = None
    duration_ms: float = 0.0
    line: int | None = None
    column: int | None = None
    instance_id: str = ""


class Engine(abc.ABC):
    """Runs programs. One task calls `live` for the life of the engine; any number of others call `execute`.

    Attributes:
        name: A word for it in `/health`.
        languages: What it runs.
        min_memory_mb: The least memory with which a sandbox starts.
        can_enable_network: Whether a sandbox can be given the network.
        capacity: How many programs run at once.
        runtime: What runs them, with its version; complete once it is ready.
        ready: Whether it can run programs now.
        problem: Why it cannot, or "".
        activity: What it does to get ready, for people to read.
        active: How many programs run.
        min_warm: The least number of processes that are kept for programs to come.
    """

    name: ClassVar[str]
    languages: ClassVar[tuple[Language, ...]]
    min_memory_mb: ClassVar[int]
    can_enable_network: ClassVar[bool] = False
    min_warm: ClassVar[int]
    _retry_start_s: ClassVar[tuple[float, float]]  # the first pause after a start that failed, and the longest

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.runtime = ""
        self.ready = False
        self.problem = ""
        self.activity = "starting"
        self.active = 0
        # The most programs at once lately, and what to do about it.
        self._peak = self._starting = 0
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._logged = ""

    def mark_ready(self) -> None:
        """Note that programs can run."""
        self.ready, self.problem, self._logged = True, "", ""
        self._settled.set()

    def mark_failed(self, problem: str) -> None:
        """Note why no program can run, for now or for good."""
        self.ready, self.problem = False, problem
        self._settled.set()

    async def wait_ready(self) -> None:
        """Wait until programs can run.

        Raises:
            EngineError: They cannot; the message says why.
        """
        await self._settled.wait()
        if not self.ready:
            raise EngineError(self.problem)

    def log(self, problem: str) -> None:
        """Log a failure, unless it is the one that was logged last and the engine has not recovered since."""
        if problem != self._logged:
            self._logged = problem
            _logger.warning("the engine %s: %s", self.name, problem)

    async def live(self) -> None:
        """Serve until cancelled. A failure of this engine is noted and logged, and does not reach the others.

        The engine starts again after a pause: the machine may have been short of descriptors, memory or disk.
        """
        delay_s = _RESTART_S
        try:
            while True:
                try:
                    await self.serve()
                except EngineError as error:
                    self.log(str(error))
                    self.mark_failed(str(error))
                except Exception as error:
                    _logger.exception("the engine %s failed", self.name)
                    self.mark_failed(f"the engine failed: {type(error).__name__}: {error}")
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _LONGEST_RESTART_S)
        except asyncio.CancelledError:
            self.mark_failed("the engine is closed")
            raise

    @abc.abstractmethod
    async def serve(self) -> None:
        """Keep the engine able to run programs until cancelled; leave nothing behind. May be called again after it.

        Raises:
            EngineError: It cannot, for now.
        """

    async def execute(self, job: Job) -> Verdict:
        """Run or check one program. The caller sees to it that no more than `capacity` run at once.

        Raises:
            NotStartedError: The engine failed, and the program did not begin.
            EngineError: The engine failed.

        Cancellation: ends the program and gives its process back or kills it.
        """
        self.active += 1
        self._peak = max(self._peak, self.active)
        self._wanted.set()
        give_up_at = time.monotonic() + _TRY_AGAIN_S
        try:
            # A process that waited may be gone, and not all of those that wait can be told so at once.
            for _ in range(_TRIES - 1):
                with contextlib.suppress(NotStartedError):
                    return await self._execute_once(job)
                if time.monotonic() > give_up_at:
                    break
            return await self._execute_once(job)
        except EngineError as error:
            self.log(str(error))
            raise
        finally:
            self.active -= 1

    @abc.abstractmethod
    async def _execute_once(self, job: Job) -> Verdict:
        """Run or check one program in a process that is warm.

        Raises:
            NotStartedError: The process ended before the program began.
            EngineError: The engine failed.
        """

    async def _next_warm(self, queue: asyncio.Queue[_T], within_s: float) -> _T:
        """Wait for a warm process.

        Raises:
            NotStartedError: There is none in time, or the engine has failed meanwhile.
        """
        give_up_at = time.monotonic() + within_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    return await queue.get()
            if not self.ready or time.monotonic() > give_up_at:
                raise NotStartedError(self.problem or f"no sandbox became ready within {within_s:g} s")

    @property
    @abc.abstractmethod
    def idle(self) -> int:
        """Processes that wait for a program."""

    @property
    def _target(self) -> int:
        """How many processes should be warm: as many as programs came at once lately."""
        return min(self.capacity, max(self.min_warm, self._peak))

    @property
    @abc.abstractmethod
    def _kept(self) -> int:
        """How many processes count towards the target."""

    async def _start_wanted(self, start: Callable[[], Awaitable[_T]]) -> _T:
        """Wait until one more process is wanted, and start it, however many tries that takes."""
        delay_s, longest_s = self._retry_start_s
        while True:
            while self._kept + self._starting >= self._target:
                self._wanted.clear()
                await self._wanted.wait()
            self._starting += 1
            try:
                return await start()
            except EngineError as error:
                self.log(str(error))
                if not self._kept:
                    self.mark_failed(str(error))
                await asyncio.sleep(delay_s)
            finally:
                self._starting -= 1
            delay_s = min(2 * delay_s, longest_s)

    async def _forget_demand(self) -> None:
        """Halve, time and again, what is remembered of past demand, and let go of the processes that were for it."""
        while True:
            await asyncio.sleep(_FORGET_S)
            self._peak = max(self.active, self._peak // 2)
            self._shrink()

    @abc.abstractmethod
    def _shrink(self) -> None:
        """End idle processes beyond the target."""


def drop_gone(queue: asyncio.Queue[_T], is_gone: Callable[[_T], bool]) -> None:
    """Leave in a queue, in its order, only what is not gone."""
    for _ in range(queue.qsize()):
        item = queue.get_nowait()
        if not is_gone(item):
            queue.put_nowait(item)
