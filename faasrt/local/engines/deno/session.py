"""A session: a Deno process that evaluates one cell after another (see `runners/deno_session.js`)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs

from faasrt._shielded_wait import wait_shielded
from faasrt.local.engines.collected_files import collect_files, list_folder
from faasrt.local.engines.deno.run import WAKE, DenoRun, StdoutParser, request
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.jailed_run import MESSAGE_BYTES, measure_wait_ms, own_limits
from faasrt.local.engines.runner_messages import read_text
from faasrt.local.engines.session import (
    EngineSession,
    EngineSessionOptions,
    SessionEndedError,
    SessionFileError,
)
from faasrt.local.errors import CLOSED, OUT_OF_MEMORY, OUT_OF_TIME, EngineError, NotStartedError
from faasrt.local.jail.jail import JailedProcess, OwnedFd
from faasrt.local.process import STDERR, STDOUT, ignore_output
from faasrt.local.time_limit import TimeLimit
from faasrt.results import Outcome

# From an interrupt to the end of the process, without the time in which it waits for a CPU.
_GRACE_S = 1.0
_FILES_TIMEOUT_S = 30.0
_REASONS = {
    Outcome.TIMEOUT: OUT_OF_TIME,
    Outcome.MEMORY_LIMIT: OUT_OF_MEMORY,
    Outcome.OUTPUT_LIMIT: "a run exceeded the output limit",
}


class DenoSession(EngineSession):
    """A Deno process, with the runner `deno_session.js`. `watch` ends a run whose process uses too much memory."""

    def __init__(
        self,
        options: EngineSessionOptions,
        child: JailedProcess,
        folder: OwnedFd | None,
        watch: Callable[[DenoRun], Awaitable[None]],
    ) -> None:
        super().__init__(options)
        self._child, self._folder, self._watch = child, folder, watch
        child.is_session = True
        self._run: DenoRun | None = None
        self._runs = 0
        self._kill_later: TimeLimit | None = None
        self._rest()

    async def run(self, job: EngineJob) -> EngineResult:
        self.check_open()
        self._runs += 1
        job, has_folder = attrs.evolve(job, displays=True), self._folder is not None
        self._run = run = DenoRun(job, self._child, has_folder=has_folder, number=self._runs)
        run.on_limit = self._interrupt
        self._child.drain(STDOUT)  # of earlier programs
        self._child.drain(STDERR)
        limit_s, started = job.limits.timeout_ms / 1000, time.perf_counter()
        time_limits: list[TimeLimit] = []
        try:
            self._child.on_interrupt = functools.partial(self._interrupt, Outcome.TIMEOUT)
            self._child.limit_time(limit_s, wall_s=job.limits.wall_s)
            time_limits = own_limits(job, self._child, self._child.on_interrupt, self._child.kill)
            run.begin()
            try:
                await self._watch(run)
            except asyncio.CancelledError:
                self._interrupt()
                await wait_shielded(asyncio.ensure_future(run.ended.wait()))
                raise
            duration_ms = round((time.perf_counter() - started) * 1000, 3)
            result = run.result()
            result.duration_ms, result.instance_id = duration_ms, f"deno-{self._child.pid}"
            result.waited_ms = measure_wait_ms(self._child, duration_ms)
            if not self._child.alive:
                self.mark_ended(_REASONS.get(result.outcome) or self._why_ended())
            return result
        except NotStartedError as error:
            self.mark_ended(self._why_ended())
            raise SessionEndedError(self.reason) from error
        except EngineError as error:
            self.mark_ended(str(error))
            raise
        finally:
            for time_limit in time_limits:
                time_limit.cancel()
            self._child.on_interrupt = lambda: None
            if self._kill_later is not None:
                self._kill_later.cancel()
                self._kill_later = None
            self._run = None
            if self._child.alive and not run.ended.is_set():
                self._child.kill()  # the run could not begin
            self._child.write(WAKE)
            with contextlib.suppress(NotStartedError):  # the launcher has ended, and its processes end too
                self._child.limit_time(math.inf)
            self._rest()

    def interrupt(self) -> None:
        self._interrupt()

    def _interrupt(self, limit: Outcome | None = None) -> None:
        run = self._run
        if run is None or run.ended.is_set():
            return
        run.interrupt(limit)
        if self._kill_later is None:
            self._kill_later = TimeLimit(
                _GRACE_S, functools.partial(run.end, limit), lambda: not self._child.waits_for_cpu()
            )

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        self.check_open()
        if self._folder is None:
            raise SessionFileError("sessions have no files in this jail")
        nonce, changed = secrets.token_hex(16), asyncio.Event()
        answer = StdoutParser(f"\0faasrt:{nonce}:".encode(), MESSAGE_BYTES, MESSAGE_BYTES, 0, in_session=True)

        def receive(fd: int, data: bytes) -> None:
            if fd == STDOUT:
                answer.feed(data)
            if answer.complete:
                changed.set()

        self._child.receive(receive, changed.set)
        try:
            sizes = [(path, len(content)) for path, content in files.items()]
            request(self._child, {"files": sizes, "nonce": nonce}, *files.values())
            async with asyncio.timeout(_FILES_TIMEOUT_S):
                await changed.wait()
        except TimeoutError:
            self._child.kill()
            self.mark_ended(f"files could not be written within {_FILES_TIMEOUT_S:g} s")
        finally:
            self._rest()
        self.check_open()
        if "failed" in answer.messages:
            raise SessionFileError(read_text(answer.messages["failed"], "text"))

    async def read_files(self, patterns: Sequence[str], max_bytes: int) -> tuple[dict[str, bytes], bool]:
        self.check_open()
        if self._folder is None:
            return {}, True
        return await asyncio.to_thread(collect_files, self._folder, patterns, max_bytes)

    async def list_files(self, max_bytes: int) -> tuple[dict[str, int], bool]:
        self.check_open()
        if self._folder is None:
            return {}, True
        return await asyncio.to_thread(list_folder, self._folder, max_bytes)

    async def aclose(self) -> None:
        self.mark_ended(CLOSED)
        await self._child.end()

    def _rest(self) -> None:
        """Discard the output of the process until its next request, and notice its end."""
        self._child.receive(ignore_output, lambda: self.mark_ended(self._why_ended()))

    def _why_ended(self) -> str:
        child = self._child
        is_killed = (child.killed or child.returncode is None) and not child.out_of_memory
        return "a run could not be interrupted" if is_killed else child.ending
