from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shlex
import signal
import ssl
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from faasrt.cli.batch_input import BatchOptions, Line, Survey, read_lines, survey
from faasrt.cli.batch_output import Results, is_temporary, run_line, task_fields
from faasrt.cli.batch_progress import Progress
from faasrt.cli.connect import UNKNOWN_CAPACITY, find_capacity, make_settings, names_protocols, run_with_manager
from faasrt.cli.options import Number, cacert_option, language_option, memory_option, timeout_option, url_option
from faasrt.cli.output import INFRASTRUCTURE, INTERRUPTED, OK, USAGE, write_message
from faasrt.client.disk_cache import DEFAULT_MAX_BYTES, DiskCache
from faasrt.client.manager import RuntimeManager
from faasrt.languages import Language, OtherLanguage
from faasrt.tasks import CodeTask

_FIRST_RETRY_S, _MAX_RETRY_S = 0.5, 30.0
_MAX_CONCURRENCY = 100_000


class Batch:
    """One run of the command.

    The number of lines between the thread that reads them and the file of results is limited, so memory stays small
    while tasks wait for a retry.
    """

    def __init__(
        self,
        tasks: str,
        options: BatchOptions,
        results: Results,
        progress: Progress,
        languages: Sequence[Language | OtherLanguage],
    ) -> None:
        self.stopping, self.gave_up = asyncio.Event(), False
        self._failures = 0  # in a row
        self._languages = languages
        self._tasks, self._options, self._results, self._progress = tasks, options, results, progress
        self._permits, self._slots = asyncio.Semaphore(), threading.Semaphore()  # `run` sets their numbers
        # The lines, and None at the end and after an interrupt.
        self._queue: asyncio.Queue[Line | None] = asyncio.Queue()
        self._reading_error: Exception | None = None
        # Writes results. An interrupt cancels the tasks, but not their results.
        self._writing = asyncio.TaskGroup()

    async def run(self, manager: RuntimeManager) -> None:
        """Run the tasks. The first SIGINT or SIGTERM lets tasks in flight finish, the second cancels them."""
        loop = asyncio.get_running_loop()
        concurrency = self._options.concurrency or await find_capacity(manager, self._languages)
        self._permits = asyncio.Semaphore(concurrency)
        self._slots = threading.Semaphore(4 * concurrency)
        try:
            async with self._writing:
                showing = self._writing.create_task(self._progress.show())
                running = self._writing.create_task(self._run_lines(manager))
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, self._interrupt, running)
                # Reading a terminal or a pipe may block for ever; a daemon thread does not keep the process alive.
                threading.Thread(target=self._read, args=(loop,), daemon=True).start()
                await asyncio.wait({running})
                showing.cancel()
        except BaseExceptionGroup as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        if self._reading_error is not None:
            raise self._reading_error

    def _interrupt(self, running: asyncio.Task[None]) -> None:
        if self.stopping.is_set():
            running.cancel()
            return
        self._stop("stopping; tasks in flight finish first, and a second interrupt stops at once")

    def _stop(self, message: str) -> None:
        self.stopping.set()
        self._queue.put_nowait(None)
        self._progress.show_message(message)

    def _count_failure(self, record: dict[str, Any]) -> None:
        """Stop after `max_failures` tasks in a row without an outcome, which later ones would not get either."""
        if not is_temporary(record):
            self._failures = 0
            return
        self._failures += 1
        if self._failures == self._options.max_failures and not self.stopping.is_set():
            self.gave_up = True
            self._stop(
                f"stopping after {self._failures:,} infrastructure errors in a row (--max-failures); tasks in flight "
                "finish first, and an interrupt stops at once"
            )

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        seen: set[str] = set()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            try:
                for line in read_lines(self._tasks, self._options):
                    if line.key in seen:
                        raise click.UsageError(f"the id {line.key!r} of line {line.number} occurs in an earlier line")
                    if line.key is not None and self._progress.total is None:  # otherwise the survey has checked it
                        seen.add(line.key)
                    earlier = None if line.task is None or line.key is None else self._results.done.get(line.key)
                    if earlier in ("", line.hash):
                        self._progress.skipped += 1
                        continue
                    self._progress.changed += earlier is not None
                    self._slots.acquire()
                    loop.call_soon_threadsafe(self._queue.put_nowait, line)
            except Exception as error:
                self._reading_error = error
            loop.call_soon_threadsafe(self._queue.put_nowait, None)

    async def _run_lines(self, manager: RuntimeManager) -> None:
        async with asyncio.TaskGroup() as group:
            while (line := await self._queue.get()) is not None and not self.stopping.is_set():
                if line.task is not None:
                    group.create_task(self._run_line(line, line.task, manager))
                else:
                    self._keep({**task_fields(line), "invalid_task": line.problem})

    async def _run_line(self, line: Line, task: CodeTask, manager: RuntimeManager) -> None:
        record = None
        try:
            for failures in itertools.count():
                async with self._permits:
                    if self.stopping.is_set():
                        return
                    self._progress.retries += failures > 0
                    self._progress.in_flight += 1
                    record = await run_line(manager, task, line)
                    self._progress.in_flight -= 1
                if failures == self._options.retry_infra or not is_temporary(record):
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), min(_MAX_RETRY_S, _FIRST_RETRY_S * 2**failures))
        finally:
            if record is not None:
                self._count_failure(record)
                self._keep(record)

    def _keep(self, record: dict[str, Any]) -> None:
        async def write() -> None:
            await self._results.write(record)
            self._progress.count(record)
            self._slots.release()

        self._writing.create_task(write())


@click.command("batch", short_help="Run the tasks of a file.")
@click.argument("tasks")
@click.option("--output", "-o", required=True, metavar="FILE", help="The file of results, or - for stdout.")
@click.option(
    "--concurrency",
    type=Number(1, _MAX_CONCURRENCY),
    help="The largest number of tasks in flight. By default it is the number of programs that the servers of the tasks "
    f"run at once, and {UNKNOWN_CAPACITY} for each server that does not say.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue a file of results: run the tasks that have no outcome in it, and those that have changed since.",
)
@language_option(help="The language of tasks that do not name one.")
@timeout_option(help="The time limit of tasks that do not have one. Above 30000, it raises the limit of all tasks.")
@memory_option(help="The memory limit of every task, in MiB.")
@click.option("--function", metavar="NAME", help="The function to call in tasks that do not name one.")
@click.option(
    "--stop-on-failure",
    is_flag=True,
    help="Skip the tests of a task after the first one that does not pass, unless the task says otherwise.",
)
@click.option(
    "--retry-infra",
    type=Number(0, 100),
    default=0,
    show_default=True,
    help="The number of times to run a task again after infrastructure errors.",
)
@click.option(
    "--max-failures",
    type=Number(0, 10**9),
    default=10,
    show_default=True,
    help="Stop after this number of tasks in a row that end with an infrastructure error, because no server may be "
    "left. 0 never stops.",
)
@click.option("--limit", type=Number(0, 10**12), help="Read at most this number of tasks.")
@click.option(
    "--cache",
    "cache_folder",
    metavar="DIR",
    help="A folder for results. A task whose result is in it does not run. Only for programs whose results do not "
    "depend on time or randomness; see faasrt/docs/caching.md.",
)
@click.option(
    "--cache-mb",
    metavar="MiB",
    type=Number(1, 2**24),
    default=DEFAULT_MAX_BYTES // 2**20,
    show_default=True,
    help="The largest size of the results in --cache.",
)
@click.option("--quiet", is_flag=True, help="Show no progress and no summary.")
@click.option(
    "--summary-json",
    metavar="FILE",
    type=click.File("w", lazy=False),
    help="Write the final counts to FILE as JSON.",
)
@url_option
@cacert_option
def batch_command(
    tasks: str,
    output: str,
    resume: bool,
    quiet: bool,
    summary_json: TextIO | None,
    url: str | None,
    cacert: ssl.SSLContext | None,
    memory_mb: int,
    cache_folder: str | None,
    cache_mb: int,
    **task_options: Any,
) -> int:
    """Run the TASKS of a file and write one result per line.

    Tasks are JSON Lines (.gz and .zst too; - for stdin). A task has `code` and `language`, and may have the other
    attributes of faasrt.CodeTask, such as `id`, `timeout_ms`, `function`, `args`, `stdin` and `tests`. Tasks that are
    samples of one problem have the name of the problem in `task_id`; faasrt report then shows pass@k. The exit code is
    0 when every task has an outcome, whatever it is; 2 when a line is not a task; 3 after an error of the
    infrastructure; and 130 after an interrupt. A task that is retried may have run before.
    """
    if sys.platform == "win32":
        raise click.UsageError("faasrt batch needs Linux or macOS: use the Python API, RuntimeManager.map")
    settings = make_settings(
        url,
        task_options["timeout_ms"],
        memory_mb,
        cacert=cacert,
        max_concurrency=task_options["concurrency"] or _MAX_CONCURRENCY,
        waits=True,
    )
    options = BatchOptions(sandbox=settings.sandbox, any_language=names_protocols(settings), **task_options)
    surveyed: Survey | None = None
    languages: tuple[Language | OtherLanguage, ...] | None = None
    source, target = Path(tasks), Path(output)
    if "-" not in (tasks, output) and source.exists() and target.exists() and source.samefile(target):
        raise click.UsageError("the tasks and the results are the same file")
    if source.is_dir():
        raise click.UsageError(f"cannot read {tasks}: Is a directory")
    if tasks != "-" and (source.is_file() or not source.exists()):  # a pipe can be read only once
        surveyed = survey(tasks, options, with_hashes=resume)
        languages = surveyed.languages or (Language.JAVASCRIPT,)
    progress = Progress(surveyed and surveyed.total, quiet=quiet)
    cache = None if cache_folder is None else DiskCache(cache_folder, max_bytes=cache_mb * 2**20)
    with contextlib.closing(Results(output, resume=resume)) as results:
        if surveyed is not None:
            _show_differences(surveyed.hashes, results.done, progress, is_limited=options.limit is not None)
        batch = Batch(tasks, options, results, progress, languages or (Language.PYTHON, Language.JAVASCRIPT))
        run_with_manager(batch.run, settings, languages, workers=None, cache=cache)
        results.remove_superseded()
    progress.show_summary()
    if summary_json is not None:
        summary_json.write(json.dumps(progress.summary(), indent=2) + "\n")
    failed = progress.kinds["infra_error"]
    if (batch.stopping.is_set() or failed) and output != "-":
        again = [argument for argument in sys.argv[1:] if argument != "--resume"]
        write_message(f"to run the tasks without an outcome: {shlex.join(['faasrt', *again, '--resume'])}")
    if batch.stopping.is_set() and not batch.gave_up:
        return INTERRUPTED
    if failed:
        return INFRASTRUCTURE
    return USAGE if progress.kinds["invalid_task"] else OK


def _show_differences(
    hashes: Mapping[str, str], done: Mapping[str, str], progress: Progress, *, is_limited: bool
) -> None:
    changed = sum(bool(digest) and done.get(key, "") not in ("", digest) for key, digest in hashes.items())
    if changed:
        tasks, them = ("1 task", "it") if changed == 1 else (f"{changed:,} tasks", "them")
        progress.show_message(f"{tasks} changed since the last run; running {them} again")
    unknown = 0 if is_limited else len(done.keys() - hashes.keys())
    if unknown:
        results = "1 result" if unknown == 1 else f"{unknown:,} results"
        progress.show_message(f"keeping {results} of earlier runs whose ids are not in the file of tasks")
