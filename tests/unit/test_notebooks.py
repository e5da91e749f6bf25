"""The cells of a notebook in the queue of programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from faasrt import SandboxConfig
from faasrt.inputs import NO_INPUT
from faasrt.languages import Language
from faasrt.local.engines.engine import EngineJob, EngineOptions, EngineResult
from faasrt.local.engines.session import EngineSession, EngineSessionOptions
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.http.admission import AdmissionQueue, BusyError
from faasrt.local.http.notebooks import NotebookRun
from faasrt.local.http.sessions import Sessions
from faasrt.protocol.sandboxfusion import Notebook
from faasrt.results import Outcome
from support.helpers import Clock

SANDBOX = SandboxConfig(timeout_limit_s=10, memory_limit_mb=64)


class FakeSession(EngineSession):
    """Runs a program until the test puts its result into `results`."""

    def __init__(self, options: EngineSessionOptions, begun: list[EngineJob]) -> None:
        super().__init__(options)
        self.begun = begun
        self.results: asyncio.Queue[EngineResult] = asyncio.Queue()

    async def run(self, job: EngineJob) -> EngineResult:
        self.begun.append(job)
        return await self.results.get()

    def interrupt(self) -> None: ...

    async def write_files(self, files: Mapping[str, bytes]) -> None: ...

    async def read_files(self, patterns: Sequence[str], max_bytes: int) -> tuple[dict[str, bytes], bool]:
        return {}, True

    async def list_files(self, max_bytes: int) -> tuple[dict[str, int], bool]:
        return {}, True

    async def aclose(self) -> None:
        self.mark_ended("closed")


class FakeEngine:
    """Runs one program at a time. `begun` has the programs and cells that have begun, in order."""

    name, capacity, min_capacity, overhead_mb = "fake", 1, 1, 0
    ready, active, idle, problem, activity = True, 0, 0, "", ""
    options = EngineOptions(workers=1, folder=Path(), memory_limit_mb=64)

    def __init__(self) -> None:
        self.begun: list[EngineJob] = []
        self.session: FakeSession | None = None
        self.release = asyncio.Event()

    async def open_session(self, options: EngineSessionOptions) -> FakeSession:
        self.session = FakeSession(options, self.begun)
        return self.session

    async def execute(self, job: EngineJob) -> EngineResult:
        self.begun.append(job)
        await self.release.wait()
        return EngineResult(outcome=Outcome.OK)

    async def until_begun(self, *codes: str) -> FakeSession | None:
        await until(lambda: [job.code for job in self.begun] == [*codes])
        return self.session


class Server:
    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.engine = FakeEngine()
        self.queue = AdmissionQueue(self.engine)  # type: ignore[arg-type]
        self.sessions = Sessions(group)

    def run(self, *cells: str, total_timeout_ms: float = 45_000) -> tuple[NotebookRun, asyncio.Task[EngineResult]]:
        notebook = Notebook(
            cells=[*cells],
            cell_timeout_ms=10_000,
            total_timeout_ms=total_timeout_ms,
            max_wait_ms=100_000,
            memory_limit_mb=64,
            input=NO_INPUT,
            fetched={},
        )
        run = NotebookRun(notebook, self.sessions, self.queue, SANDBOX)
        return run, asyncio.create_task(run.execute(run.job, min_timeout_s=8))

    def start_program(self, run: NotebookRun) -> asyncio.Task[EngineResult]:
        job = EngineJob(language=Language.PYTHON, code="program", limits=run.job.limits)
        return asyncio.create_task(self.queue.execute(job, min_timeout_s=1_000))


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    async with asyncio.TaskGroup() as group:
        server = Server(group)
        yield server
        await server.sessions.aclose()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):  # nothing here waits for anything but other tasks
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("the condition does not become true")


OK = EngineResult(outcome=Outcome.OK)


async def test_programs_get_their_turn_between_cells(server: Server) -> None:
    """A program that arrives while a cell runs starts before the next cell, in the only sandbox."""
    run, notebook = server.run("a", "b", "c")
    session = await server.engine.until_begun("a")
    assert session is not None
    program = server.start_program(run)
    await until(lambda: server.queue.queued == 1)
    session.results.put_nowait(OK)
    await server.engine.until_begun("a", "program")
    server.engine.release.set()
    await program
    for _ in range(2):
        session.results.put_nowait(OK)
    await notebook
    assert [job.code for job in server.engine.begun] == ["a", "program", "b", "c"]
    assert len(run.result.cells) == 3
    assert len(server.sessions) == 0


async def test_waits_do_not_count_towards_the_time_of_a_notebook(server: Server, clock: Clock) -> None:
    """The limit of a cell is what the cells before have left of `total_timeout_ms`, however long it has waited."""
    clock.stop()
    run, notebook = server.run("a", "b", total_timeout_ms=12_000)
    session = await server.engine.until_begun("a")
    assert session is not None
    program = server.start_program(run)
    await until(lambda: server.queue.queued == 1)
    clock.advance(4)
    session.results.put_nowait(OK)
    await server.engine.until_begun("a", "program")
    await until(lambda: server.queue.queued == 1)
    clock.advance(90)
    server.engine.release.set()
    await program
    await server.engine.until_begun("a", "program", "b")
    assert [job.limits.timeout_ms for job in server.engine.begun[::2]] == [10_000, 8_000]
    session.results.put_nowait(OK)
    await notebook
    assert (run.result.timed_out, run.result.duration_s) == (False, 4)


async def test_a_later_cell_that_gets_no_slot_is_a_failure_of_the_server(server: Server, clock: Clock) -> None:
    """It is not a refusal, after which a client would send the notebook again, and its session ends."""
    clock.stop()
    run, notebook = server.run("a", "b")
    session = await server.engine.until_begun("a")
    assert session is not None
    program = server.start_program(run)
    await until(lambda: server.queue.queued == 1)
    session.results.put_nowait(OK)
    await server.engine.until_begun("a", "program")
    await until(lambda: server.queue.queued == 1)
    clock.advance(99)
    await asyncio.wait({notebook}, timeout=0)
    assert not notebook.done()
    clock.advance(1)
    with pytest.raises(EngineError, match=r"cell 2 of the notebook could not run: no sandbox .* 100 s") as failure:
        await notebook
    assert not isinstance(failure.value, NotStartedError)
    assert len(server.sessions) == 0
    server.engine.release.set()
    await program


async def test_a_notebook_whose_first_cell_gets_no_slot_is_refused(server: Server, clock: Clock) -> None:
    """It has opened no session."""
    clock.stop()
    run, first = server.run("a")
    session = await server.engine.until_begun("a")
    assert session is not None
    _, notebook = server.run("", "b")
    await until(lambda: server.queue.queued == 1)
    assert len(server.sessions) == 1
    clock.advance(8)
    with pytest.raises(BusyError, match="became free within 8 s"):
        await notebook
    session.results.put_nowait(OK)
    await first
    assert len(run.result.cells) == 1


async def test_a_notebook_without_a_session_is_refused(server: Server) -> None:
    """It counts as refused, not as a failure of the engine."""
    server.sessions.max_sessions = 0
    with pytest.raises(BusyError, match="the limit of open sessions is 0"):
        await server.run("a")[1]
    assert (server.queue.counts.refused, server.queue.counts.failed) == (1, 0)


async def test_cancellation_between_cells_ends_the_session(server: Server) -> None:
    run, notebook = server.run("a", "b")
    session = await server.engine.until_begun("a")
    assert session is not None
    program = server.start_program(run)
    await until(lambda: server.queue.queued == 1)
    session.results.put_nowait(OK)
    await server.engine.until_begun("a", "program")
    await until(lambda: server.queue.queued == 1)
    notebook.cancel()
    with pytest.raises(asyncio.CancelledError):
        await notebook
    assert session.ended.is_set()
    assert (len(server.sessions), server.queue.queued) == (0, 0)
    server.engine.release.set()
    await program
