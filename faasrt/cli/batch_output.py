"""Writes the results of `faasrt batch` as JSON Lines. A result is counted after it is synced to the disk."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from faasrt import _strict_json
from faasrt.cli.batch_input import Line
from faasrt.client.manager import RuntimeManager
from faasrt.client.map import run_task
from faasrt.errors import InvalidRequestError, ServiceError, UnsupportedLanguageError
from faasrt.judging import Judgement, Verdict
from faasrt.results import Outcome
from faasrt.tasks import CodeTask, is_invalid

UNSUPPORTED = UnsupportedLanguageError.__name__
"""The type of the infrastructure error of a task in a language that no server runs."""
_OUTCOMES = frozenset({*map(str, Outcome), str(Verdict.WRONG_ANSWER)})


async def run_line(manager: RuntimeManager, task: CodeTask, line: Line) -> dict[str, Any]:
    fields = {**task_fields(line), "language": str(task.language)}
    try:
        result, judgement = await run_task(await manager.get_runtime(task.language), task)
    except (InvalidRequestError, UnsupportedLanguageError) as error:
        if is_invalid(task, error):
            return {**fields, "invalid_task": f"line {line.number}: {error}"}
        return {**fields, "infra_error": {"type": UNSUPPORTED, "message": str(error), "sent": "no", "attempts": 0}}
    except ServiceError as error:
        failure = {"type": type(error).__name__, "message": str(error), "sent": error.sent, "attempts": error.attempts}
        return {**fields, "infra_error": failure, "total_ms": round(error.elapsed_s * 1000, 3)}
    execution = result.to_dict()
    del execution["metadata"], execution["timings"]
    tests = {} if judgement is None else _describe_tests(judgement)
    return {**fields, **execution, **tests, "total_ms": round(result.timings.total_s * 1000, 3), "hash": line.hash}


def task_fields(line: Line) -> dict[str, Any]:
    problem = {} if line.task_id is None else {"task_id": line.task_id}
    return {"id": line.id, **problem, "line": line.number}


def _describe_tests(judgement: Judgement) -> dict[str, Any]:
    """If a test did not pass, the outcome of the task is the verdict on it."""
    failure = judgement.first_failure
    tests: dict[str, Any] = {
        "passed": judgement.passed_count,
        "skipped": sum(test.verdict is Verdict.SKIPPED for test in judgement.results),
        "total": len(judgement.results),
        "verdicts": [str(test.verdict) for test in judgement.results],
    }
    if failure is None:
        return {"tests": tests}
    fields = {"tests": tests, "outcome": str(failure.verdict)}
    if failure.difference:
        message = f"test {judgement.results.index(failure) + 1}: {failure.difference}"
        fields["error"] = {"name": "", "message": message, "traceback": ""}
    return fields


def is_temporary(record: dict[str, Any]) -> bool:
    """Return whether the task may have an outcome if it runs again at once."""
    return "infra_error" in record and record["infra_error"]["type"] != UNSUPPORTED


def kind_of(record: dict[str, Any]) -> str:
    return next((kind for kind in ("infra_error", "invalid_task") if kind in record), record.get("outcome", ""))


class Results:
    """The file of results, or stdout for "-". Unless `resume` is true, the file must be missing or empty. No other run
    may write it.

    `done` has the ids with an outcome from an earlier run, and the hashes of their tasks, "" if unknown.
    """

    def __init__(self, target: str, *, resume: bool) -> None:
        self.done: dict[str, str] = {}
        self._superseded: set[str] = set()
        self._queue: list[dict[str, Any]] = []
        self._lock = asyncio.Lock()
        if target == "-":
            if resume:
                raise click.UsageError("--resume needs a file: give one with -o")
            if sys.stdout is None:
                raise click.UsageError("cannot write <stdout>: it is closed")
            self._file = io.FileIO(os.dup(sys.stdout.fileno()), "wb")
            return
        self._path = Path(target).resolve()
        try:
            self._file = self._open_locked()
            try:
                if self._path.stat().st_size:
                    if not resume:
                        raise click.UsageError(f"{target} already contains results: pass --resume to continue")
                    self._keep_outcomes()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise click.UsageError(f"cannot write {target}: {error.strerror or error}") from None

    def close(self) -> None:
        self._file.close()

    async def write(self, record: dict[str, Any]) -> None:
        """Return when a record is synced to the disk. Earlier records stay after an OSError.

        All records that wait for an earlier one are written and synced together.
        """
        if record["id"] is not None and (key := str(record["id"])) in self.done:
            self._superseded.add(key)
        self._queue.append({**record, "finished_at": round(time.time(), 3)})
        async with self._lock:
            records, self._queue = self._queue, []
            if records:
                await asyncio.to_thread(self._write, records)

    def remove_superseded(self) -> None:
        """Remove earlier results of tasks that have another one from this run."""
        if self._superseded:
            earlier = len(self.done)
            self._replace(lambda number, line: number > earlier or str(json.loads(line)["id"]) not in self._superseded)

    def _write(self, records: list[dict[str, Any]]) -> None:
        rest = memoryview(b"".join(_strict_json.dump_bytes(record) + b"\n" for record in records))
        while rest:
            rest = rest[self._file.write(rest) :]
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            getattr(os, "fdatasync", os.fsync)(self._file.fileno())  # macOS lacks it

    def _open_locked(self) -> io.FileIO:
        import fcntl  # which Windows lacks

        while True:
            file = self._path.open("ab", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise click.UsageError(f"another run writes {self._path}") from None
            if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
                os.fsync(folder)  # the name of the file is on the disk, too
                os.close(folder)
                return file
            file.close()  # the run that held the lock has replaced the file

    def _keep_outcomes(self) -> None:
        """Keep only the latest outcome of each id. Tasks with other records run again."""
        latest: dict[str, int] = {}
        with self._path.open("rb") as earlier:
            for number, line in enumerate(earlier, 1):
                if (known := _read_outcome(line, number)) is not None:
                    key, self.done[key] = known
                    latest[key] = number
        kept = set(latest.values())
        self._replace(lambda number, line: number in kept)

    def _replace(self, keeps: Callable[[int, bytes], bool]) -> None:
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{self._path.name}-", delete=False) as kept:
            try:
                with self._path.open("rb") as earlier:
                    kept.writelines(line for number, line in enumerate(earlier, 1) if keeps(number, line))
                kept.flush()
                os.fsync(kept.fileno())
                shutil.copymode(self._path, kept.name)
                Path(kept.name).rename(self._path)
            finally:
                Path(kept.name).unlink(missing_ok=True)  # it is gone unless something failed
        old, self._file = self._file, self._open_locked()
        old.close()


def _read_outcome(line: bytes, number: int) -> tuple[str, str] | None:
    """Return the id and the hash of an outcome. Raise UsageError if the line is not a result, so that another file is
    not overwritten.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    match record:
        case {"infra_error": _} | {"invalid_task": _}:
            return None
        case {"id": str() | int() as task_id, "outcome": str() as outcome} if outcome in _OUTCOMES:
            return str(task_id), str(record.get("hash", ""))
    raise click.UsageError(f"line {number} is not a result of `faasrt batch`: is this the right file?")
