"""Runs the cells of a notebook in a session, for `/run_jupyter` of SandboxFusion."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math

import attrs

from faasrt.config import SandboxConfig
from faasrt.languages import Language
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.session import EngineSessionOptions, SessionEndedError
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.http.admission import AdmissionQueue
from faasrt.local.http.sessions import OpenSession, Sessions
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.sandboxfusion import CellResult, Notebook, NotebookResult
from faasrt.protocol.streams import cut_text
from faasrt.results import ErrorInfo, Outcome

_OUTPUT_FACTOR = 4
_EMPTY_CELL = CellResult(stdout="", stderr="", displays=(), error=None)
# The exceptions that a limit raises in a program.
_ERROR_OF_LIMIT = {"Timeout": "KeyboardInterrupt", "MemoryLimit": "MemoryError"}
_TRACEBACK = "Traceback (most recent call last):\n"


class NotebookRun:
    """Runs the cells of a notebook in a new session. A cell that fails does not end it. The output of all cells
    together has at most four times `max_output_bytes`.

    Each cell waits for a permit of the queue, like a program. Between cells the notebook holds only its session, so
    that other programs get their turn. The waits do not count towards `total_timeout_ms`.
    """

    def __init__(self, notebook: Notebook, sessions: Sessions, queue: AdmissionQueue, sandbox: SandboxConfig) -> None:
        self._notebook, self._sessions, self._queue, self._sandbox = notebook, sessions, queue, sandbox
        self._left = _OUTPUT_FACTOR * sandbox.max_output_bytes
        self._session: OpenSession | None = None
        self._waited_s = self._ran_s = 0.0
        own_ms, own_mb = sandbox.timeout_limit_s * 1000, sandbox.memory_limit_mb
        limits = ExecutionLimits(
            timeout_ms=notebook.cell_timeout_ms,
            memory_limit_mb=notebook.memory_limit_mb,
            max_output_bytes=sandbox.max_output_bytes,
            set_by_server=(
                *([Outcome.TIMEOUT] if notebook.cell_timeout_ms == own_ms else ()),
                *([Outcome.MEMORY_LIMIT] if notebook.memory_limit_mb == own_mb else ()),
            ),
        )
        code = "\n".join(notebook.cells)
        self.job = EngineJob(language=Language.PYTHON, code=code, limits=limits, input=notebook.input, displays=True)
        self.result = NotebookResult()

    async def execute(self, job: EngineJob, *, min_timeout_s: float) -> EngineResult:
        """Run all cells. The first one may wait `min_timeout_s` for a permit, or longer if the queue allows it, and all
        others together `max_wait_ms`.

        Raises:
            BusyError: The first cell got no permit or no session, so nothing has run.
            EngineError: The engine failed, or a later cell got no permit in time.

        Cancellation: ends the session.
        """
        result = self.result
        try:
            async with contextlib.AsyncExitStack() as resources:
                await self._run_cells(resources, min_timeout_s)
                session = self._session
                if session is not None and job.input.collect and not session.ending:
                    found = await session.engine_session.read_files(job.input.collect, job.limits.max_output_bytes)
                    result.files, result.files_complete = found
        except SessionEndedError as error:
            result.ended = str(error)
        result.duration_s = self._ran_s
        outcome = Outcome.TIMEOUT if result.timed_out else Outcome.CRASHED if result.ended else Outcome.OK
        return EngineResult(outcome=outcome, duration_ms=self._ran_s * 1000)

    async def _run_cells(self, resources: contextlib.AsyncExitStack, min_timeout_s: float) -> None:
        limits = self.job.limits
        run = functools.partial(self._run_cell, resources)
        for number, code in enumerate(self._notebook.cells, 1):
            left_ms = self._notebook.total_timeout_ms - self._ran_s * 1000
            if left_ms <= 0:
                self.result.timed_out = True
                return
            if not code.strip():
                self.result.cells.append(_EMPTY_CELL)
                continue
            ends_it = left_ms < limits.timeout_ms
            if ends_it:
                limits = attrs.evolve(limits, timeout_ms=math.ceil(left_ms), set_by_server=())
            job = attrs.evolve(self.job, code=code, limits=limits)
            timeout_s = min_timeout_s if self._session is None else self._notebook.max_wait_ms / 1000
            try:
                cell = await self._queue.execute(job, run=run, min_timeout_s=timeout_s, waited_s=self._waited_s)
            except NotStartedError as error:
                if self._session is None:
                    raise
                # Not as an overload, after which a client would send the cells again that have run.
                raise EngineError(f"cell {number} of the notebook could not run: {error}") from error
            self._waited_s = cell.queued_ms / 1000
            self.result.cells.append(self._cell(cell, limits))
            if cell.outcome is Outcome.TIMEOUT and ends_it:
                self.result.timed_out = True
                return
            if self._session is not None and self._session.ending:
                self.result.ended = self._session.ending
                return

    async def _run_cell(self, resources: contextlib.AsyncExitStack, job: EngineJob) -> EngineResult:
        """Run a cell, the first one in a new session. It has a permit of the queue. A session that is opened before
        there is one for the first cell would take memory while it waits.
        """
        loop = asyncio.get_running_loop()
        if self._session is None:
            options = EngineSessionOptions(language=job.language, limits=self.job.limits, files=job.input.files)
            sandbox = attrs.evolve(self._sandbox, memory_limit_mb=job.limits.memory_limit_mb)
            session = await self._sessions.open(self._queue, options, sandbox, None)
            resources.push_async_callback(self._sessions.close, session.id)
            await resources.enter_async_context(session.turn())
            self._session = session
        began = loop.time()
        try:
            return await self._session.run(job)
        finally:
            self._ran_s += loop.time() - began

    def _cell(self, cell: EngineResult, limits: ExecutionLimits) -> CellResult:
        error, stderr = cell.error, cell.stderr
        if (limit := limits.error(cell.outcome)) is not None and error is None:
            error = ErrorInfo(_ERROR_OF_LIMIT.get(limit.name, limit.name), limit.message, _last_traceback(stderr))
        if error is not None and error.traceback:  # a notebook does not print it
            stderr = stderr.removesuffix(f"{error.traceback.rstrip()}\n")
        texts = [self._fit(cell.stdout), self._fit(stderr)]
        displays = []
        for display in cell.displays:
            size = sum(map(len, display.data.values()))
            if size <= self._left:
                displays.append(display)
                self._left -= size
            else:
                self.result.truncated = True
        self.result.truncated |= bool(cell.truncated)
        return CellResult(stdout=texts[0], stderr=texts[1], displays=displays, error=error)

    def _fit(self, text: str) -> str:
        if len(text) <= self._left:
            self._left -= len(text)
            return text
        self.result.truncated = True
        return cut_text(text, self._left)[0] if self._left else ""


def _last_traceback(stderr: str) -> str:
    """Return the traceback of an exception that a limit has raised, at the end of stderr; "" if there is none."""
    _, start, traceback = stderr.rpartition(_TRACEBACK)
    last_line = traceback.rstrip().rpartition("\n")[2]
    return start + traceback if last_line.startswith(tuple(_ERROR_OF_LIMIT.values())) else ""
