"""Reads a file of results in two passes: a few numbers of every result, then the texts of the few to show.

Memory stays small because no text is kept in the first pass.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import stat
import zlib
from array import array
from collections.abc import Iterable, Iterator
from math import isnan, nan
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from faasrt.cli.report.text import excerpt, one_line
from faasrt.cli.report.units import milliseconds
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
_TEXT_BYTES = {"traceback": 3_000, "stderr": 800, "stdout": 800}


class ResultsError(Exception):
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
            if row == len(rows):
                for column in (rows.kinds, rows.total_ms, rows.duration_ms, rows.finished_s, rows.offsets):
                    column.append(0)
            else:
                rows.superseded += 1
            rows.kinds[row] = _NUMBER_OF_KIND[_kind(fields)]
            rows.total_ms[row] = _number(fields, "total_ms", MAX_MS)
            rows.duration_ms[row] = _number(fields, "duration_ms", MAX_MS)
            rows.finished_s[row] = _number(fields, "finished_at", MAX_EPOCH_S)
            rows.offsets[row] = offset
        rows.torn |= isinstance(file, io.BufferedReader) and getattr(file.raw, "damaged", False)
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


class _Unpacked(io.RawIOBase):
    """A gzip file that ends where its data is damaged, so that everything before can be read."""

    def __init__(self, packed: BinaryIO) -> None:
        self._file = gzip.GzipFile(fileobj=packed)
        self.damaged = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read1(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.damaged = True
            return 0
        buffer[: len(data)] = data
        return len(data)


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
            if magic.startswith(b"\x1f\x8b"):
                yield io.BufferedReader(_Unpacked(file))
            else:
                yield file
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a name with a NUL in it
        raise ResultsError(f"cannot read {str(path)!r}: {error}") from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and bytes of each line; `?` in place of a line that is too long for a result."""
    number = offset = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        whole = len(line)
        cut = whole == MAX_LINE_BYTES and not line.endswith(b"\n")
        while cut and (rest := file.readline(MAX_LINE_BYTES)):
            whole += len(rest)
            cut, line = not rest.endswith(b"\n"), b"?\n"
        yield number, offset, line
        offset += whole


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
    return outcome if isinstance(outcome, str) and outcome in _NUMBER_OF_KIND else OTHER


def _number(fields: dict[str, Any], name: str, limit: float) -> float:
    value = fields.get(name)
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= limit else nan
    )


def _task(fields: dict[str, Any]) -> Task:
    kind = _kind(fields)
    about: Any = fields.get("infra_error") if kind == INFRASTRUCTURE else fields.get("error")
    about = about if isinstance(about, dict) else {"message": _text(about)}
    name = _text(about.get("type" if kind == INFRASTRUCTURE else "name"))
    reason = ": ".join(part for part in (name, _text(about.get("message"))) if part)
    if kind == INVALID_TASK:
        reason = _text(fields["invalid_task"])
    elif kind == OTHER:
        reason = ": ".join(part for part in (_text(fields.get("outcome")), reason) if part)
    traceback = _text(about.get("traceback")).strip("\n")
    texts = {
        "traceback": traceback,
        # Python's stderr repeats the traceback.
        "stderr": _text(fields.get("stderr")).replace(f"{traceback}\n", "" if traceback else "\n").strip("\n"),
        "stdout": _text(fields.get("stdout")).strip("\n"),
    }
    if not traceback and len(reason) > 200:
        texts = {"message": reason, **texts}
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
        facts={name: one_line(_text(value), 100) for name, value in facts.items() if _text(value)},
        texts={
            name: excerpt(text, _TEXT_BYTES.get(name, 800))
            for name, text in texts.items()
            if text and not text.isspace()
        },
    )


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)[:10_000]
