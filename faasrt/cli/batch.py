"""`faasrt batch`: run the tasks of a file, and keep every result."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import attrs
import click

from faasrt.batch import CodeTask, TaskResult
from faasrt.cli.batch_input import Defaults, Line, Lines, in_daemon_thread, survey
from faasrt.cli.batch_output import Results, invalid_record, kind_of, record_of
from faasrt.cli.batch_progress import Progress
from faasrt.cli.connect import make_settings, open_manager, parse_language, url_option
from faasrt.cli.output import INFRASTRUCTURE, INTERRUPTED, OK, USAGE, note
from faasrt.config import Settings
from faasrt.languages import Language

_RETRY_S = (0.5, 30.0)


@attrs.frozen(kw_only=True)
class Options:
    """What the command line says."""

    tasks: str
    output: str
    defaults: Defaults
    concurrency: int | None
    resume: bool
    retry_infra: int
    limit: int | None
    quiet: bool


@attrs.define
class _Running:
    """A task that has no result yet: its name and line, and its last failure for want of infrastructure."""

    name: str | int
    line: int
    failures: int = 0
    failed: dict[str, Any] | None = None


class Batch:
    """One run of the command.

    Args:
        options: What the command line says.
        results: Where the results go.
        progress: Counts them.
    """

    def __init__(self, options: Options, results: Results, progress: Progress) -> None:
        self._options, self._results, self._progress = options, results, progress
        self._lines = Lines(options.tasks, options.defaults, options.limit)
        self._running: dict[str, _Running] = {}
        self._most = 0
        self.started = False
        self._again: deque[CodeTask] = deque()
        self._changed = asyncio.Event()
        self.stopping = False

    async def run(self, settings: Settings, languages: tuple[Language, ...]) -> None:
        """Run the tasks.

        Raises:
            OSError: The results cannot be written.
            FaasrtError: Nothing can be run.
        """
        async with open_manager(settings, languages, workers=None) as manager, asyncio.TaskGroup() as group:
            self.started = True
            self._most = 4 * (self._options.concurrency or settings.limiter.max_concurrency)
            writing = group.create_task(self._results.write_all())
            showing = group.create_task(self._progress.show())
            try:
                async with contextlib.aclosing(
                    manager.map(self._tasks(), concurrency=self._options.concurrency)
                ) as items:
                    async for item in items:
                        await self._take(item)
            finally:
                # However it ended: what has come is kept, also of those that wait for another try.
                for running in self._running.values():
                    if running.failed is not None:
                        await self._results.put(running.failed)
                self._results.finish()
                await writing
                showing.cancel()

    def stop(self) -> None:
        """Start nothing more; what is in flight may end."""
        self.stopping = True
        self._lines.stop()
        self._changed.set()

    async def _tasks(self) -> AsyncGenerator[CodeTask]:
        seen: set[str] = set()
        lines = aiter(self._lines)
        reading: asyncio.Future[Line | None] | None = None
        try:
            while not self.stopping:
                if self._again:
                    yield self._again.popleft()
                    continue
                if len(self._running) >= self._most:
                    await self._wait_for(None)  # those that wait for another try are kept in memory
                    continue
                reading = reading or asyncio.ensure_future(_anext(lines))
                await self._wait_for(reading)
                if not reading.done():
                    continue
                line, reading = reading.result(), None
                if line is None:
                    break
                if line.id is not None and (line.id in seen or line.id in self._running):
                    raise click.UsageError(f"the id {line.id!r} of line {line.number} stood in a line before")
                if line.id is not None and self._progress.total is None:
                    seen.add(line.id)  # a file was looked through before
                task = await self._begin(line)
                if task is not None:
                    yield task
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            await lines.aclose()
        # Those that fail now may have to run once more.
        while self._running and not self.stopping:
            if self._again:
                yield self._again.popleft()
                continue
            await self._wait_for(None)

    async def _wait_for(self, reading: asyncio.Future[Line | None] | None) -> None:
        """Wait for a line, or for something else to do."""
        self._changed.clear()  # before anything else can happen: what was looked at is what it was a moment ago
        await asyncio.sleep(0)
        if reading is not None and reading.done():
            return
        changed = asyncio.ensure_future(self._changed.wait())
        waited: list[asyncio.Future[Any]] = [changed] if reading is None else [changed, reading]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()

    async def _begin(self, line: Line) -> CodeTask | None:
        if line.task is None:
            await self._results.put(invalid_record(line.own_id, line.number, line.problem))
            return None
        assert line.id is not None and line.own_id is not None  # noqa: PT018
        if line.id in self._results.done:
            self._progress.skipped += 1
            return None
        self._running[line.id] = _Running(line.own_id, line.number)
        self._progress.in_flight += 1
        return line.task

    async def _take(self, item: TaskResult) -> None:
        assert item.task.id is not None
        running = self._running[item.task.id]
        record = record_of(item, running.name, running.line)
        if kind_of(record) == "infra_error" and running.failures < self._options.retry_infra and not self.stopping:
            first_s, longest_s = _RETRY_S
            wait_s = min(longest_s, first_s * 2**running.failures)
            running.failures, running.failed = running.failures + 1, record
            self._progress.retries += 1
            asyncio.get_running_loop().call_later(wait_s, self._try_again, item.task)
            return
        del self._running[item.task.id]
        self._progress.in_flight -= 1
        self._changed.set()
        await self._results.put(record)

    def _try_again(self, task: CodeTask) -> None:
        self._again.append(task)
        self._changed.set()


@click.command("batch")
@click.argument("tasks")
@click.option("--output", "-o", required=True, help="The file for the results; - for stdout.")
@click.option("--concurrency", type=click.IntRange(1, 100_000), help="Tasks in flight at most.")
@click.option("--resume", is_flag=True, help="Go on with the results that are there.")
@click.option("--language", "-l", callback=parse_language, help="For tasks that name none.")
@click.option("--timeout-ms", type=click.FloatRange(0, min_open=True), help="Milliseconds, for tasks that name none.")
@click.option("--function", help="The function to call, for tasks that name none.")
@click.option(
    "--retry-infra",
    type=click.IntRange(0, 100),
    default=0,
    show_default=True,
    metavar="N",
    help="Run a task up to N more times when the infrastructure fails; it may have run before.",
)
@click.option("--limit", type=click.IntRange(0), help="Take only so many tasks.")
@click.option("--quiet", is_flag=True, help="Show no progress and no summary.")
@click.option("--summary-json", metavar="FILE", help="Write the figures of the end to a file.")
@url_option
def batch_command(
    tasks: str,
    output: str,
    concurrency: int | None,
    resume: bool,
    language: Language | None,
    timeout_ms: float | None,
    function: str | None,
    retry_infra: int,
    limit: int | None,
    quiet: bool,
    summary_json: str | None,
    url: str | None,
) -> int:
    """Run the TASKS of a file, and keep one result a line.

    They are JSON Lines (.gz and .zst too; - for stdin). A task has `code` and `language`, and may have `id`,
    `timeout_ms`, `function`, `args`, `kwargs` and `ext`. The exit code is 0 when every task has a verdict, 2 when a
    line holds no task, 3 when the infrastructure failed one.
    """
    options = Options(
        tasks=tasks,
        output=output,
        defaults=Defaults(language, timeout_ms, function),
        concurrency=concurrency,
        resume=resume,
        retry_infra=retry_infra,
        limit=limit,
        quiet=quiet,
    )
    if summary_json is not None:
        Path(summary_json).open("a").close()  # that it can be written is better known now
    progress, stopped = asyncio.run(_work(options, make_settings(url, timeout_ms)))
    if not quiet:
        progress.show_summary()
    if summary_json is not None:
        Path(summary_json).write_text(json.dumps(progress.summary(), indent=2) + "\n")
    failed = progress.kinds["infra_error"]
    if (stopped or failed) and output != "-":
        again = [argument for argument in sys.argv[1:] if argument != "--resume"]
        note(f"to go on with what has no verdict: {shlex.join(['faasrt', *again, '--resume'])}")
    if stopped:
        return INTERRUPTED
    if failed:
        return INFRASTRUCTURE
    return USAGE if progress.kinds["invalid_task"] else OK


async def _work(options: Options, settings: Settings) -> tuple[Progress, bool]:
    """Run everything; give the figures, and whether it was stopped."""
    batch: Batch | None = None
    progress = Progress(None, quiet=options.quiet)
    stopped = False

    async def work() -> None:
        nonlocal batch
        languages: tuple[Language, ...] = tuple(Language)
        if options.output != "-" and _is_same(options.tasks, options.output):
            raise click.UsageError("the tasks and the results are the same file")
        if _is_file(options.tasks):
            found = await in_daemon_thread(lambda: survey(options.tasks, options.defaults, options.limit))
            if found.duplicates:
                raise click.UsageError(f"ids stand there more than once: {', '.join(found.duplicates)}")
            progress.total, languages = found.total, found.languages or (Language.JAVASCRIPT,)
        results = await asyncio.to_thread(Results, options.output, resume=options.resume, on_kept=progress.count)
        batch = Batch(options, results, progress)
        await batch.run(settings, languages)

    running = asyncio.create_task(work())

    def on_signal() -> None:
        nonlocal stopped
        if stopped or batch is None or not batch.started:
            running.cancel()
        else:
            with contextlib.suppress(OSError):
                note("what is in flight ends first; once more to stop at once")
            batch.stop()
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        await running
    except asyncio.CancelledError:
        if not stopped:
            raise
    except BaseExceptionGroup as group:
        raise _first_of(group) from None
    return progress, stopped


async def _anext(lines: AsyncGenerator[Line]) -> Line | None:
    return await anext(lines, None)


def _is_same(tasks: str, output: str) -> bool:
    with contextlib.suppress(OSError):
        return tasks != "-" and Path(tasks).samefile(output)
    return False


def _is_file(tasks: str) -> bool:
    """Whether it can be read more than once; a pipe cannot. What is not there is told by who opens it."""
    return tasks != "-" and (Path(tasks).is_file() or not Path(tasks).exists())


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
