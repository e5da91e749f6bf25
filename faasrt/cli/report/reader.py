"""Reads a file of results in two passes: a few numbers of every result, then the texts of the few to show.

Memory stays small because no text is kept in the first pass.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import stat
import zlib
from array import array
from collections.abc import Iterable, Iterator
from math import isnan, nan
from pathlib import Path
from typing import Any, BinaryIO, cast

import attrs

from faasrt.cli.lines import iter_lines
from faasrt.cli.report.text import excerpt, one_line
from faasrt.cli.report.units import milliseconds
from faasrt.errors import FaasrtError
from faasrt.results import Outcome

OK, INFRASTRUCTURE, INVALID_TASK, OTHER = "OK", "INFRASTRUCTURE", "INVALID_TASK", "OTHER"
KINDS = (*(str(outcome) for outcome in Outcome), INFRASTRUCTURE, INVALID_TASK, OTHER)
_NUMBER_OF_KIND = {kind: number for number, kind in enumerate(KINDS)}
_MARKS = {"outcome", "infra_error", "invalid_task"}

MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_MS = 1e12
MAX_EPOCH_S = 253_402_300_799  # the last second of the year 9999
# After this number of foreign lines, and no result, the rest of the file is not read.
_FOREIGN_LINES = 100
_TEXT_BYTES = {"traceback": 3_000}


class ResultsError(FaasrtError, ValueError):
    """The file has no results to show. The message is one line."""


@attrs.define
class Rows:
    """The latest result of every task, one row each, in columns. A missing number is NaN.

    Attributes:
        kinds: Positions in `KINDS`.
        total_ms: The latency that the caller saw.
        duration_ms: The duration that the server reported.
        finished_s: The time of the result, in seconds since 1970.
        offsets: The offset of the result's line in the unpacked file.
        superseded: The number of results that a later one of the same task replaced.
        unreadable: The number of lines that are not results.
        first_unreadable: The number of the first such line, from 1.
        torn: Whether the file ends within a line, or within its compressed data.
    """

    kinds: array[int] = attrs.field(factory=lambda: array("B"))
    total_ms: array[float] = attrs.field(factory=lambda: array("d"))
    duration_ms: array[float] = attrs.field(factory=lambda: array("d"))
    finished_s: array[float] = attrs.field(factory=lambda: array("d"))
    offsets: array[int] = attrs.field(factory=lambda: array("Q"))
    superseded: int = 0
    unreadable: int = 0
    first_unreadable: int = 0
    torn: bool = False

    def __len__(self) -> int:
        return len(self.kinds)


@attrs.frozen(kw_only=True)
class Task:
    """A result to show; its texts are clean and cut.

    Attributes:
        id: The task's id; "line 44" when it has none.
        kind: One of `KINDS`.
        reason: The cause of the failure, on one line; may be empty.
        facts: Other known values, by name.
        texts: The streams that are not empty, by name.
    """

    id: str
    kind: str
    total_ms: float
    duration_ms: float
    reason: str
    facts: dict[str, str]
    texts: dict[str, str]


def read(path: Path) -> Rows:
    """Read the numbers of every result.

    Raises:
        ResultsError: The file cannot be read, or holds no results.
    """
    rows = Rows()
    row_of_key: dict[int, int] = {}
    with _opened(path) as file:
        for number, offset, line in _lines(file):
            fields = _fields(line)
            if fields is None:
                if not line.strip():
                    continue
                rows.torn = not line.endswith(b"\n")
                if not rows.torn:
                    rows.unreadable += 1
                    rows.first_unreadable = rows.first_unreadable or number
                    if rows.unreadable >= _FOREIGN_LINES and not rows:
                        break
                continue
            key = _key(fields)
            row = len(rows) if key is None else row_of_key.setdefault(key, len(rows))
            rows.superseded += row < len(rows)
            values: list[tuple[array[Any], float]] = [
                (rows.kinds, _NUMBER_OF_KIND[_kind(fields)]),
                (rows.total_ms, _number(fields, "total_ms", MAX_MS)),
                (rows.duration_ms, _number(fields, "duration_ms", MAX_MS)),
                (rows.finished_s, _number(fields, "finished_at", MAX_EPOCH_S)),
                (rows.offsets, offset),
            ]
            for column, value in values:
                column[row : row + 1] = array(column.typecode, [value])
    if not rows:
        empty = not rows.unreadable and not rows.torn
        raise ResultsError(f"{path} is empty" if empty else f"{path} holds no results of `faasrt batch`")
    return rows


def read_tasks(path: Path, offsets: Iterable[int]) -> Iterator[Task]:
    """Read the results whose lines begin at `offsets`, which must ascend.

    Raises:
        ResultsError: The file cannot be read.
    """
    with _opened(path) as file:
        for offset in offsets:
            file.seek(offset)
            fields = _fields(file.readline(MAX_LINE_BYTES))
            if fields is None:
                raise ResultsError(f"{path} has changed while it was read")
            yield _task(fields)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file, unpacked. Raise `ResultsError` for any failure of the file system."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ResultsError(f"cannot read {path}: it is a directory")
        if not stat.S_ISREG(mode):
            raise ResultsError(f"cannot read {path}: it must be a file, to be read twice")
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            yield cast("BinaryIO", gzip.GzipFile(fileobj=file)) if magic.startswith(b"\x1f\x8b") else file
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror or error}") from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and bytes of each line; `?` in place of a line that is too long, and of damaged data."""
    number = offset = 0
    try:
        for number, (length, line) in enumerate(iter_lines(file, MAX_LINE_BYTES), 1):
            yield number, offset, b"?\n" if line is None else line
            offset += length
    except (EOFError, zlib.error, gzip.BadGzipFile):
        yield number + 1, offset, b"?"


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and not _MARKS.isdisjoint(fields) else None


def _key(fields: dict[str, Any]) -> int | None:
    """Return a key shared by all results of one task: the hash of its id or, without an id, of its line."""
    if (name := fields.get("id")) is not None:
        return hash(str(name))
    return None if (line := fields.get("line")) is None else hash((str(line), "line"))


def _kind(fields: dict[str, Any]) -> str:
    if fields.get("infra_error") is not None:
        return INFRASTRUCTURE
    if fields.get("invalid_task") is not None:
        return INVALID_TASK
    outcome = fields.get("outcome")
    return outcome if isinstance(outcome, str) and outcome in KINDS else OTHER


def _number(fields: dict[str, Any], name: str, limit: float) -> float:
    value = fields.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= limit else nan  # type: ignore[operator,arg-type]


def _task(fields: dict[str, Any]) -> Task:
    kind = _kind(fields)
    about: Any = fields.get("infra_error") if kind == INFRASTRUCTURE else fields.get("error")
    about = about if isinstance(about, dict) else {"message": about}
    parts = [about.get("type" if kind == INFRASTRUCTURE else "name"), about.get("message")]
    if kind in (INVALID_TASK, OTHER):
        parts = [fields["invalid_task"]] if kind == INVALID_TASK else [fields.get("outcome"), *parts]
    reason = ": ".join(part for part in map(_text, parts) if part)
    traceback = _text(about.get("traceback")).strip("\n")
    texts = {
        "message": reason if not traceback and len(reason) > 200 else "",
        "traceback": traceback,
        # Python's stderr repeats the traceback.
        "stderr": _text(fields.get("stderr")).replace(f"{traceback}\n", "" if traceback else "\n").strip("\n"),
        "stdout": _text(fields.get("stdout")).strip("\n"),
    }
    cut = fields.get("truncated")
    total_ms, duration_ms = _number(fields, "total_ms", MAX_MS), _number(fields, "duration_ms", MAX_MS)
    facts = {
        "line": fields.get("line"),
        "language": fields.get("language"),
        "exit code": fields.get("exit_code"),
        "attempts": about.get("attempts") if kind == INFRASTRUCTURE else fields.get("attempts"),
        "sent": about.get("sent"),
        "endpoint": fields.get("endpoint"),
        "cut at the output limit": ", ".join(map(_text, cut)) if isinstance(cut, list) else cut,
        "latency": None if isnan(total_ms) else milliseconds(total_ms),
        "duration": None if isnan(duration_ms) else milliseconds(duration_ms),
    }
    task_id = fields.get("id")
    return Task(
        id=one_line(f"line {_text(fields.get('line')) or '?'}" if task_id is None else _text(task_id), 120),
        kind=kind,
        total_ms=total_ms,
        duration_ms=duration_ms,
        reason=one_line(reason, 200),
        facts={name: one_line(text, 100) for name, value in facts.items() if (text := _text(value))},
        texts={name: excerpt(text, _TEXT_BYTES.get(name, 800)) for name, text in texts.items() if text.strip()},
    )


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)[:10_000]
