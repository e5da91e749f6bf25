"""`faasrt batch`: runs the tasks of a file and keeps every result."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import sys
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, TextIO

import attrs
import click

from faasrt.cli.batch_input import BatchOptions, Line, read_lines, survey
from faasrt.cli.batch_output import Results, kind_of, make_record
from faasrt.cli.batch_progress import Progress
from faasrt.cli.connect import make_settings, open_manager, parse_language, url_option
from faasrt.cli.output import INFRASTRUCTURE, INTERRUPTED, OK, USAGE, write_message
from faasrt.config import Settings
from faasrt.languages import Language
from faasrt.tasks import CodeTask, TaskResult

_FIRST_RETRY_S, _MAX_RETRY_S = 0.5, 30.0
_TIMEOUT = click.FloatRange(0, min_open=True)


@attrs.define
class _Pending:
    """A task that has no final result yet, with the record of its last infrastructure error."""

    line: Line
    failures: int = 0
    record: dict[str, Any] | None = None


@attrs.define
class Batch:
    """One run of the command.

    A thread reads lines into a queue, from which `RuntimeManager.map` takes the tasks. The number of lines between
    the thread and the file of results is limited, so memory stays small while tasks wait for a retry.

    Attributes:
        tasks: The path of the tasks, or "-".
        options: The options for the tasks.
        results: The file of results.
        progress: Counts the results.
        stopping: Whether the run was interrupted.
    """

    tasks: str
    options: BatchOptions
    results: Results
    progress: Progress
    stopping: bool = False
    _running: bool = False
    _seen: set[str] = attrs.field(factory=set)
    _pending: dict[str, _Pending] = attrs.field(factory=dict)
    _slots: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(0))
    # Lines, tasks to run again, an error of the reader (EOFError at the end), and None for a finished task.
    _queue: asyncio.Queue[Line | CodeTask | Exception | None] = attrs.field(factory=asyncio.Queue)

    async def run(self, settings: Settings, languages: tuple[Language, ...]) -> None:
        """Run the tasks. The first SIGINT or SIGTERM lets tasks in flight finish, the second cancels them.

        Raises:
            OSError: The results cannot be written.
            click.UsageError: The tasks cannot be read.
            FaasrtError: The embedded FaaS cannot run.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt, task)
        self._slots.release(4 * (self.options.concurrency or settings.limiter.max_concurrency))
        try:
            async with open_manager(settings, languages, workers=None) as manager, asyncio.TaskGroup() as group:
                writing = group.create_task(self.results.write_all(self._on_written))
                showing = group.create_task(self.progress.show())
                # Reading a terminal or a pipe may block for ever; a daemon thread does not keep the process alive.
                threading.Thread(target=self._read, args=(loop,), daemon=True).start()
                self._running = True
                try:
                    async with manager.map(self._iter_tasks(), concurrency=self.options.concurrency) as items:
                        async for item in items:
                            self._take(item)
                finally:
                    for pending in self._pending.values():
                        if pending.record is not None:
                            self.results.put(pending.record)
                    self.results.finish()
                    await writing
                    showing.cancel()
        except asyncio.CancelledError:
            if not self.stopping:
                raise
        except BaseExceptionGroup as group_of_errors:
            first: BaseException = group_of_errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None

    def _interrupt(self, task: asyncio.Task[Any] | None) -> None:
        if task is not None and (self.stopping or not self._running):
            task.cancel()
        else:
            with contextlib.suppress(OSError):
                write_message("what is in flight ends first; interrupt again to stop at once")
        self.stopping = True
        self._queue.put_nowait(None)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            try:
                for line in read_lines(self.tasks, self.options):
                    self._slots.acquire()
                    loop.call_soon_threadsafe(self._queue.put_nowait, line)
                end: Exception = EOFError()
            except Exception as error:
                end = error
            loop.call_soon_threadsafe(self._queue.put_nowait, end)

    async def _iter_tasks(self) -> AsyncGenerator[CodeTask]:
        at_end = False
        while not self.stopping and (self._pending or not at_end):
            item = await self._queue.get()
            if isinstance(item, EOFError):
                at_end = True
            elif isinstance(item, Exception):
                raise item
            elif isinstance(item, CodeTask):
                yield item
            elif item is not None and (task := self._begin(item)) is not None:
                yield task

    def _begin(self, line: Line) -> CodeTask | None:
        key = line.key
        if key is not None:
            if key in self._seen or key in self._pending:
                raise click.UsageError(f"the id {key!r} of line {line.number} occurs in an earlier line")
            if self.progress.total is None:  # otherwise the survey has checked the ids
                self._seen.add(key)
        if key is None or line.task is None:
            self.results.put({"id": line.id, "line": line.number, "invalid_task": line.problem})
            return None
        if key in self.results.done:
            self.progress.skipped += 1
            self._slots.release()
            return None
        self._pending[key] = _Pending(line)
        self.progress.in_flight = len(self._pending)
        return line.task

    def _take(self, item: TaskResult) -> None:
        assert item.task.id is not None
        pending = self._pending[item.task.id]
        record = make_record(item, pending.line)
        if "infra_error" in record and pending.failures < self.options.retry_infra and not self.stopping:
            wait_s = min(_MAX_RETRY_S, _FIRST_RETRY_S * 2**pending.failures)
            pending.failures, pending.record = pending.failures + 1, record
            self.progress.retries += 1
            asyncio.get_running_loop().call_later(wait_s, self._queue.put_nowait, item.task)
            return
        del self._pending[item.task.id]
        self.progress.in_flight = len(self._pending)
        self.results.put(record)
        self._queue.put_nowait(None)

    def _on_written(self, record: dict[str, Any]) -> None:
        self.progress.kinds[kind_of(record)] += 1
        self._slots.release()


@click.command("batch")
@click.argument("tasks")
@click.option("--output", "-o", required=True, help="The file of results; - for stdout.")
@click.option("--concurrency", type=click.IntRange(1, 100_000), help="The most tasks in flight.")
@click.option("--resume", is_flag=True, help="Continue the file of results.")
@click.option("--language", "-l", callback=parse_language, help="The language of tasks that name none.")
@click.option("--timeout-ms", type=_TIMEOUT, help="The limit of tasks that name none; above 30000, of all tasks.")
@click.option("--function", help="The function to call in tasks that name none.")
@click.option("--retry-infra", type=click.IntRange(0, 100), default=0, help="Retries after infrastructure errors.")
@click.option("--limit", type=click.IntRange(0), help="The most tasks to read.")
@click.option("--quiet", is_flag=True, help="Show no progress and no summary.")
@click.option("--summary-json", type=click.File("w", lazy=False), help="A file for the final counts.")
@url_option
def batch_command(
    tasks: str, output: str, resume: bool, quiet: bool, summary_json: TextIO | None, url: str | None, **given: Any
) -> int:
    """Run the TASKS of a file and write one result per line.

    Tasks are JSON Lines (.gz and .zst too; - for stdin). A task has `code` and `language`, and may have `id`,
    `timeout_ms`, `function`, `args`, `kwargs` and `ext`. The exit code is 0 when every task has a verdict, 2 when a
    line is not a task, 3 after an infrastructure error. A retried task may have run before.
    """
    settings = make_settings(url, given["timeout_ms"] or 0)
    options = BatchOptions(max_timeout_ms=settings.sandbox.timeout_limit_s * 1000, **given)
    total, languages = None, tuple(Language)
    source, target = Path(tasks), Path(output)
    if "-" not in (tasks, output) and source.exists() and target.exists() and source.samefile(target):
        raise click.UsageError("the tasks and the results are the same file")
    if tasks != "-" and (source.is_file() or not source.exists()):  # a pipe can be read only once
        total, found = survey(tasks, options)
        languages = found or (Language.JAVASCRIPT,)
    progress = Progress(total, quiet=quiet)
    with contextlib.closing(Results(output, resume=resume)) as results:
        batch = Batch(tasks, options, results, progress)
        asyncio.run(batch.run(settings, languages))
    progress.show_summary()
    if summary_json is not None:
        summary_json.write(json.dumps(progress.summary(), indent=2) + "\n")
    failed = progress.kinds["infra_error"]
    if (batch.stopping or failed) and output != "-":
        again = [argument for argument in sys.argv[1:] if argument != "--resume"]
        write_message(f"to run the tasks without a verdict: {shlex.join(['faasrt', *again, '--resume'])}")
    if batch.stopping:
        return INTERRUPTED
    if failed:
        return INFRASTRUCTURE
    return USAGE if progress.kinds["invalid_task"] else OK
