"""A session: a process that runs one cell after another (see `runners/python_session.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs

from faasrt._shielded_wait import wait_shielded
from faasrt.local.engines.collected_files import collect_files, list_folder
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.jailed_run import JailedRun, measure_wait_ms, own_limits
from faasrt.local.engines.native.run import PROCESS_NAME, read_python_exit
from faasrt.local.engines.session import (
    EngineSession,
    EngineSessionOptions,
    ForkError,
    SessionEndedError,
    SessionFileError,
)
from faasrt.local.errors import CLOSED, TOO_BUSY, NotStartedError
from faasrt.local.jail.jail import JailedProcess, OwnedFd
from faasrt.local.process import MESSAGES, ChildProcess, Pipes, ignore_output
from faasrt.local.time_limit import TimeLimit
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.results import Outcome

# How long an interrupted run may take to end, without the time in which it waits for a CPU.
_INTERRUPT_S = 1.0
_FILES_TIMEOUT_S = 10.0  # to write files, and to fork
# How long a branch may take to report its fork, after its messages have ended.
_REPORT_S = 0.5
# The largest size of the files that are kept for a move to another process; a session with larger ones stays.
_MAX_KEPT_BYTES = 8 * 2**20


FindProcess = Callable[[str], Awaitable[JailedProcess | None]]
"""Returns a process that has imported the packages of a program, if one waits."""


class NativeSession(EngineSession):
    """A session. Before its first program, it moves to the process that `find_process` returns for this program."""

    def __init__(
        self,
        options: EngineSessionOptions,
        process: JailedProcess,
        memory_bytes: int,
        python: str,
        *,
        cells: int = 0,
        is_branch: bool = False,
        find_process: FindProcess | None = None,
    ) -> None:
        super().__init__(options)
        self._process, self._memory_bytes, self._python = process, memory_bytes, python
        self._find_process = find_process
        self._first_files: dict[str, bytes] = {}  # the contents of its folder, while it may move
        self._wants_interrupt = False
        self._cells, self._is_branch = cells, is_branch
        self._run: _Run | None = None
        self._channel: socket.socket | None = None
        self._folder: OwnedFd | None = None
        process.is_session = True
        process.receive(ignore_output, self._on_end)

    async def begin(self) -> None:
        header = json.dumps({"session": True, "files": [], "memoryBytes": self._memory_bytes}).encode()
        self._process.write(b"%08d" % len(header), header, eof=True)
        self._channel = self._process.take_channel()
        try:
            await self.write_files(self.options.files)
        except SessionEndedError as error:
            raise NotStartedError(str(error)) from None

    async def run(self, job: EngineJob) -> EngineResult:
        self._wants_interrupt = False
        find_process, files = self._stop_moving()
        if find_process is not None and (process := await find_process(job.code)) is not None:
            await self._move_to(process, files)
        self._cells += 1
        header = {"code": job.code, "cell": self._cells}
        return await self._do(attrs.evolve(job, displays=True), header, {}, is_interrupted=self._wants_interrupt)

    def interrupt(self) -> None:
        if self._run is None:
            self._wants_interrupt = True  # the session moves to another process before it runs the program
        else:
            self._run.interrupt()

    def _stop_moving(self) -> tuple[FindProcess | None, dict[str, bytes]]:
        before = self._find_process, self._first_files
        self._find_process, self._first_files = None, {}
        return before

    async def _move_to(self, process: JailedProcess, files: Mapping[str, bytes]) -> None:
        """Go on in another process, which has run nothing, either. Stay in this one if that is not possible."""
        options = attrs.evolve(self.options, files=files)
        other = NativeSession(options, process, self._memory_bytes, self._python)
        try:
            await other.begin()
            self.check_open()
        except BaseException as error:
            await other.aclose()
            if isinstance(error, (NotStartedError, SessionFileError)):
                return
            raise
        self._process.abandon()
        if self._channel is not None:
            self._channel.close()
        self._process, self._channel, self._folder = process, other._channel, None
        process.receive(ignore_output, self._on_end)

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        find_process, kept = self._stop_moving()  # if this fails, some of the files may have been written
        limits = attrs.evolve(self.options.limits, timeout_ms=1000 * _FILES_TIMEOUT_S)
        result = await self._do(EngineJob(language=self.options.language, code="", limits=limits), {}, files)
        if result.error is not None:
            raise SessionFileError(result.error.message)
        if result.outcome is not Outcome.OK:
            raise SessionFileError(f"the files could not be written within {_FILES_TIMEOUT_S:g} s")
        kept = {**kept, **files}
        if find_process is not None and sum(map(len, kept.values())) <= _MAX_KEPT_BYTES:
            self._find_process, self._first_files = find_process, kept

    async def read_files(self, patterns: Sequence[str], max_bytes: int) -> tuple[dict[str, bytes], bool]:
        return await asyncio.to_thread(collect_files, await self._open_folder(), patterns, max_bytes)

    async def list_files(self, max_bytes: int) -> tuple[dict[str, int], bool]:
        return await asyncio.to_thread(list_folder, await self._open_folder(), max_bytes)

    async def fork(self) -> EngineSession:
        """Return a branch: a process that the process of the session forks, in the same jail.

        The kernel does not let a jailed process change its jail. So the session and its branches share the limit of
        processes. Each branch has a root folder of its own, with copies of the files in /tmp and /dev/shm, and a memory
        limit of its own. A branch cannot reach the files of other branches, nor send signals to their processes (from
        Linux 6.12 on). The session can still reach its branches.

        Threads do not survive a fork, and child processes would stay with the session. So a fork is refused while the
        session has further threads or child processes. Random generators that the program has not made are renewed.
        Asyncio tasks of earlier cells do not go on in the branch.
        """
        self._stop_moving()
        self.check_open()
        try:
            process, folder = await self._process.jail.fork(self._process, self._fork)
            try:
                channel = process.take_channel()
            except NotStartedError:
                process.abandon()
                raise
        except NotStartedError as error:
            self.check_open()
            raise ForkError(str(error)) from None
        branch = NativeSession(
            self.options, process, self._memory_bytes, self._python, cells=self._cells, is_branch=True
        )
        branch._channel, branch._folder = channel, folder
        return branch

    async def _fork(self, channel: int) -> None:
        limits = attrs.evolve(self.options.limits, timeout_ms=1000 * _FILES_TIMEOUT_S)
        job = EngineJob(language=self.options.language, code="", limits=limits)
        result = await self._do(job, {"branch": True}, {}, [channel])
        if result.error is not None:
            raise ForkError(result.error.message)
        if result.outcome is Outcome.TIMEOUT:
            raise ForkError(f"the session could not be copied within {_FILES_TIMEOUT_S:g} s")
        if result.outcome is not Outcome.OK:
            raise ForkError("the process of the branch has ended")

    async def _open_folder(self) -> OwnedFd:
        self.check_open()
        try:
            self._folder = self._folder or await self._process.open_folder()
        except NotStartedError as error:
            raise SessionEndedError(self.reason or str(error)) from None
        return self._folder

    async def aclose(self) -> None:
        self._end(CLOSED)
        await self._process.ended.wait()

    def _end(self, reason: str) -> None:
        self.mark_ended(reason)
        self._process.kill()

    def _on_end(self) -> None:
        returncode = self._process.returncode or 0
        # A branch is not a child of the launcher.
        is_unknown = self._is_branch and returncode == 0
        self.mark_ended("its process ended, with an unknown status" if is_unknown else self._process.ending)
        if self._run is not None:
            self._run.mark_exited(returncode)
        self._folder = None  # it would keep the files in memory
        if self._channel is not None:
            self._channel.close()

    async def _do(
        self,
        job: EngineJob,
        header: Mapping[str, Any],
        files: Mapping[str, bytes],
        descriptors: Sequence[int] = (),
        *,
        is_interrupted: bool = False,
    ) -> EngineResult:
        self.check_open()
        limit = job.limits.max_output_bytes
        header = {**header, "maxMessageBytes": limit}
        read_exit = functools.partial(read_python_exit, limit=limit, python=self._python)
        run, started = self._start(job.limits, descriptors), time.perf_counter()
        jailed = JailedRun(job, run, PROCESS_NAME, header, files, self._memory_bytes, read_exit)
        self._process.on_interrupt = functools.partial(jailed.end, Outcome.TIMEOUT)
        time_limits = own_limits(job, run, self._process.on_interrupt, functools.partial(self._end, TOO_BUSY))
        try:
            jailed.begin()
            if is_interrupted:
                run.interrupt()
            await jailed.ended.wait()
        except asyncio.CancelledError:
            run.kill()
            await wait_shielded(asyncio.ensure_future(jailed.ended.wait()))
            raise
        finally:
            for time_limit in time_limits:
                time_limit.cancel()
            self._process.on_interrupt = lambda: None
            run.finish()
            self._run = None
            with contextlib.suppress(NotStartedError):
                self._process.limit_time(math.inf, memory_bytes=self._memory_bytes, pipes=())
        duration_ms = round((time.perf_counter() - started) * 1000, 3)
        try:
            result = jailed.result()
        except NotStartedError as error:
            raise SessionEndedError(self.reason or str(error)) from None
        result.duration_ms, result.instance_id = duration_ms, f"python-{self._process.pid}"
        result.waited_ms = measure_wait_ms(self._process, duration_ms)
        return result

    def _start(self, limits: ExecutionLimits, descriptors: Sequence[int]) -> _Run:
        assert self._channel is not None
        try:
            pipes = Pipes(4)
            try:
                run = self._run = _Run(self._process, pipes, self._end, is_fork=bool(descriptors))
                self._process.limit_time(
                    limits.timeout_ms / 1000,
                    wall_s=limits.wall_s,
                    memory_bytes=self._memory_bytes,
                    pipes=pipes.others[:3],
                )
                socket.send_fds(self._channel, [b"j"], [*pipes.others, *descriptors])
            finally:
                pipes.close_others()
        except (OSError, NotStartedError) as error:
            self._run = None
            self._end(f"its process cannot be reached: {error}")
            raise SessionEndedError(self.reason) from None
        return run


class _Run(ChildProcess):
    """One run in the process of a session, with its own pipes. For `JailedRun`, it is a process.

    `is_fork` means that the branch, and not the process itself, ends the run. A program that closes the descriptor for
    messages, as `os.execv` does, runs until its process ends or a limit is reached.
    """

    def __init__(
        self, process: JailedProcess, pipes: Pipes, end_session: Callable[[str], None], *, is_fork: bool
    ) -> None:
        super().__init__(process.pid, pipes, self._stop, process.jail.readers)
        self._process, self._end_session, self._is_fork = process, end_session, is_fork
        self._has_begun = self._wants_interrupt = self._is_over = False
        self._timer: TimeLimit | None = None
        self.out_of_memory = self.out_of_time = False

    def check_not_killed(self, name: str) -> None:
        self._process.check_not_killed(name)

    def interrupt(self) -> None:
        """Interrupt the program, once it has begun. Between runs, its process ignores the signal."""
        self._wants_interrupt = True
        if self._has_begun:
            self._process.interrupt()

    def kill_first(self) -> None:
        self.finish()

    def finish(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._on_output, self._on_end = ignore_output, None
        self._close_pipes()

    def mark_exited(self, returncode: int) -> None:
        self.out_of_memory, self.out_of_time = self._process.out_of_memory, self._process.out_of_time
        for fd in [*self._pipes.own]:
            self.drain(fd)  # not to the end, because another process may keep it open
        self._close_pipes()
        super().mark_exited(returncode)

    def _stop(self) -> None:
        self.interrupt()
        reason = "a run reached a limit, or was cancelled, and could not be interrupted"
        end = functools.partial(self._end_session, reason)
        self._timer = TimeLimit(_INTERRUPT_S, end, lambda: not self._process.waits_for_cpu())

    def _read(self, fd: int) -> bool:
        more = super()._read(fd)
        if fd == MESSAGES and not self._is_over and self.returncode is None:
            if self._is_fork and MESSAGES not in self._pipes.own and self._timer is None:
                self._timer = TimeLimit(_REPORT_S, lambda: self.mark_exited(0), self._could_report)
            elif more and not self._has_begun:
                self._has_begun = True
                if self._wants_interrupt:
                    self._process.interrupt()
        return more

    def _could_report(self) -> bool:
        """Return whether the end of the process would have been reported on an idle machine."""
        return not (self._process.has_exited() or self._process.waits_for_cpu())
