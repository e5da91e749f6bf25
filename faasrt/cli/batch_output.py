"""The results of `faasrt batch`: JSON Lines, on the disk before they count, and none twice."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from faasrt import strict_json
from faasrt.batch import TASK_ERRORS, TaskResult
from faasrt.errors import ServiceError
from faasrt.results import Outcome

_OUTCOMES = frozenset(Outcome)
_MAX_WAITING = 1_000


def record_of(item: TaskResult, name: str | int, line: int) -> dict[str, Any]:
    """Give the fields of a result: a verdict, an infrastructure failure, or what is wrong with the task."""
    fields: dict[str, Any] = {"id": name, "line": line, "language": item.task.language.value}
    if item.result is not None:
        told = item.result.to_dict()
        total_s = told.pop("timings")["total"]
        del told["metadata"]
        fields |= {**told, "total_ms": round(total_s * 1000, 3)}
    elif isinstance(item.error, TASK_ERRORS):
        fields["invalid_task"] = f"line {line}: {item.error}"
    else:
        known = item.error if isinstance(item.error, ServiceError) else None
        fields["infra_error"] = {
            "type": type(item.error).__name__,
            "message": str(item.error),
            "sent": known.sent if known else "no",
            "attempts": known.attempts if known else 0,
        }
        fields["total_ms"] = round(known.elapsed_s * 1000, 3) if known else 0
    return fields


def invalid_record(name: str | int | None, line: int, problem: str) -> dict[str, Any]:
    """Give the fields of a line that holds no task."""
    return {"id": name, "line": line, "invalid_task": problem}


def kind_of(record: dict[str, Any]) -> str:
    """Name what a record says: an outcome, "infra_error" or "invalid_task"."""
    return next((kind for kind in ("infra_error", "invalid_task") if kind in record), record.get("outcome", ""))


class Results:
    """Where results go: a file, or stdout for "-".

    Args:
        target: The path, or "-".
        resume: Whether to go on with what is there; else the file must be missing or empty.
        on_kept: Called with a record when it is on the disk.

    Attributes:
        done: The ids that have a verdict already.

    Raises:
        click.UsageError: It holds results already, another run writes it, or it cannot be written.
    """

    def __init__(self, target: str, *, resume: bool, on_kept: Callable[[dict[str, Any]], None]) -> None:
        self.done: set[str] = set()
        self._on_kept = on_kept
        self._waiting: list[dict[str, Any]] = []
        self._more, self._fewer = asyncio.Event(), asyncio.Event()
        self._closing = False
        self._file: io.FileIO
        if target == "-":
            if resume:
                raise click.UsageError("--resume needs a file: give one with -o")
            if sys.stdout is None:
                raise click.UsageError("cannot write <stdout>: it is closed")
            self._file = io.FileIO(os.dup(sys.stdout.fileno()), "wb")
            return
        self._path = Path(target).resolve()
        try:
            self._file = self._locked()
            if self._path.stat().st_size:
                if not resume:
                    raise click.UsageError(f"{target} holds results already: --resume goes on with them")
                self._take_over()
        except OSError as error:
            raise click.UsageError(f"cannot write {target}: {error.strerror or error}") from None

    async def put(self, record: dict[str, Any]) -> None:
        """Hand a record over to be written; waits while many are waiting."""
        self._waiting.append({**record, "finished_at": round(time.time(), 3)})
        self._more.set()
        while len(self._waiting) > _MAX_WAITING:
            self._fewer.clear()
            await self._fewer.wait()

    async def write_all(self) -> None:
        """Write what is handed over until `finish` is called.

        Raises:
            OSError: It cannot be written, for want of room, say. What was written before stays.
        """
        try:
            while self._waiting or not self._closing:
                if not self._waiting:
                    self._more.clear()
                    await self._more.wait()
                    continue
                records, self._waiting = self._waiting, []
                self._fewer.set()
                await asyncio.to_thread(self._write, records)
                for record in records:
                    self._on_kept(record)
        finally:
            await asyncio.to_thread(self._file.close)

    def finish(self) -> None:
        """Say that nothing more comes."""
        self._closing = True
        self._more.set()

    def _write(self, records: list[dict[str, Any]]) -> None:
        rest = memoryview(b"".join(strict_json.dump_bytes(record) + b"\n" for record in records))
        while rest:
            rest = rest[self._file.write(rest) :]
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            os.fdatasync(self._file.fileno())

    def _locked(self) -> io.FileIO:
        while True:
            file = self._path.open("ab", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise click.UsageError(f"another run writes {self._path}") from None
            if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                self._sync_folder()
                return file
            file.close()  # the run that had it has put another one in its place

    def _sync_folder(self) -> None:
        """Have the file's name on the disk, too."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _take_over(self) -> None:
        """Keep the verdicts of an earlier run, one for each id; what else is there belongs to tasks that run again."""
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{self._path.name}-", delete=False) as kept:
            try:
                with self._path.open("rb") as earlier:
                    for number, line in enumerate(earlier, 1):
                        name = _graded_id(line, number)
                        if name is not None and name not in self.done:
                            self.done.add(name)
                            kept.write(line)
                kept.flush()
                os.fsync(kept.fileno())
                Path(kept.name).chmod(self._path.stat().st_mode & 0o777)
                Path(kept.name).rename(self._path)
                self._sync_folder()
            except BaseException:
                Path(kept.name).unlink(missing_ok=True)
                raise
        old, self._file = self._file, self._locked()
        old.close()


def _graded_id(line: bytes, number: int) -> str | None:
    """Give the id of a line with a verdict; None for a failure, and for a line that was torn.

    Raises:
        click.UsageError: It is no line of ours, which must not be lost.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        if "infra_error" in record or "invalid_task" in record:
            return None
        name, outcome = record.get("id"), record.get("outcome")
        if isinstance(name, (str, int)) and isinstance(outcome, str) and outcome in _OUTCOMES:
            return str(name)
    raise click.UsageError(f"line {number} of the file is no result: is it the right one?")
