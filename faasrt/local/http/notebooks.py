from __future__ import annotations

import asyncio
import math

import attrs

from faasrt.config import SandboxConfig
from faasrt.languages import Language
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.session import EngineSessionOptions, SessionEndedError
from faasrt.local.http.admission import AdmissionQueue
from faasrt.local.http.sessions import OpenSession, Sessions
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.sandboxfusion import CellResult, Notebook, NotebookResult
from faasrt.protocol.streams import cut_text
from faasrt.results import ErrorInfo, Outcome

_OUTPUT_FACTOR = 4
# The exceptions that a limit raises in a program.
_ERROR_OF_LIMIT = {"Timeout": "KeyboardInterrupt", "MemoryLimit": "MemoryError"}
_TRACEBACK = "Traceback (most recent call last):\n"


class NotebookRun:
    """Runs the cells of a notebook in a new session. A cell that fails does not end it. The output of all cells
    together has at most four times `max_output_bytes`.
    """

    def __init__(self, notebook: Notebook, sessions: Sessions, queue: AdmissionQueue, sandbox: SandboxConfig) -> None:
        self._notebook, self._sessions, self._queue, self._sandbox = notebook, sessions, queue, sandbox
        self._left = _OUTPUT_FACTOR * sandbox.max_output_bytes
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

    async def run(self, job: EngineJob) -> EngineResult:
        """Run all cells. The caller has a slot of the queue. Cancellation ends the session."""
        loop, result = asyncio.get_running_loop(), self.result
        options = EngineSessionOptions(language=job.language, limits=job.limits, files=job.input.files)
        sandbox = attrs.evolve(self._sandbox, memory_limit_mb=job.limits.memory_limit_mb)
        session = await self._sessions.open(self._queue, options, sandbox, None)
        try:
            async with session.turn():
                began = loop.time()
                await self._run_cells(session, began + self._notebook.total_timeout_ms / 1000)
                result.duration_s = loop.time() - began
                if job.input.collect and not session.ending:
                    found = await session.engine_session.read_files(job.input.collect, job.limits.max_output_bytes)
                    result.files, result.files_complete = found
        except SessionEndedError as error:
            result.ended = str(error)
        finally:
            await self._sessions.close(session.id)
        outcome = Outcome.TIMEOUT if result.timed_out else Outcome.CRASHED if result.ended else Outcome.OK
        return EngineResult(outcome=outcome, duration_ms=result.duration_s * 1000)

    async def _run_cells(self, session: OpenSession, deadline: float) -> None:
        loop, limits = asyncio.get_running_loop(), self.job.limits
        for code in self._notebook.cells:
            left_ms = (deadline - loop.time()) * 1000
            if left_ms <= 0:
                self.result.timed_out = True
                return
            ends_it = left_ms < limits.timeout_ms
            if ends_it:
                limits = attrs.evolve(limits, timeout_ms=math.ceil(left_ms), set_by_server=())
            job = attrs.evolve(self.job, code=code, limits=limits)
            cell = await session.run(job) if code.strip() else EngineResult(outcome=Outcome.OK)
            self.result.cells.append(self._cell(cell, limits))
            if cell.outcome is Outcome.TIMEOUT and ends_it:
                self.result.timed_out = True
                return
            if session.ending:
                self.result.ended = session.ending
                return

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
