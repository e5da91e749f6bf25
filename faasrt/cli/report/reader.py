"""Reads a file of results in two passes: a few numbers of every result, then the texts of the few to show.

Memory stays small because no text is kept in the first pass.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from math import isnan, nan
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from faasrt.cli.input import iter_lines
from faasrt.cli.outcome_text import describe
from faasrt.cli.report.text import excerpt, one_line
from faasrt.cli.report.units import milliseconds
from faasrt.errors import FaasrtError
from faasrt.judging import Verdict
from faasrt.languages import Language
from faasrt.results import Outcome

OK, INFRASTRUCTURE, INVALID_TASK, OTHER = "OK", "INFRASTRUCTURE", "INVALID_TASK", "OTHER"
WRONG_ANSWER = str(Verdict.WRONG_ANSWER)
KINDS = (*(str(outcome) for outcome in Outcome), WRONG_ANSWER, INFRASTRUCTURE, INVALID_TASK, OTHER)
_MARKS = {"outcome", "infra_error", "invalid_task"}

MAX_LINE_BYTES = 64 * 1024 * 1024
# The numbers of a result, and the largest that counts; the last is the last second of the year 9999.
_MAX_NUMBERS = {"total_ms": 1e12, "duration_ms": 1e12, "finished_at": 253_402_300_799}
# After this number of foreign lines, and no result, the rest of the file is not read.
_FOREIGN_LINES = 100
# Further reasons are counted together, so that memory stays small.
MAX_REASONS = 2_000
MAX_TESTS = 1_000_000_000
_OTHER_REASONS = "other reasons"
_REASON_CHARS = 160
_DIGITS = re.compile(r"\d+")
_LINE = re.compile(r"^line \d+: ")
_ENDPOINT = re.compile(r" \[[^\[\]]*sent: \w+\]$")
_LANGUAGES = {str(language) for language in Language}
_TEXT_BYTES = {"traceback": 3_000}


class ResultsError(FaasrtError, ValueError):
    """The file has no results to show. The message is one line."""


class Row(NamedTuple):
    """The numbers of a result. A missing one is NaN.

    Attributes:
        kind: One of `KINDS`.
        offset: The offset of the result's line in the unpacked file.
        total_ms: The latency that the caller saw.
        duration_ms: The duration that the server reported.
        finished_s: The time of the result, in seconds since 1970.
        language: The language, or "" when it is missing or unknown.
        reason: The index of the reason of a failure in `Rows.reasons`.
        tests_passed, tests: The number of tests that passed, and of all tests; 0 for a task without tests.
    """

    kind: str
    offset: int
    total_ms: float
    duration_ms: float
    finished_s: float
    language: str
    reason: int
    tests_passed: int = 0
    tests: int = 0


class Reasons:
    """The different reasons of failures. Reasons that differ only in their numbers are one.

    Attributes:
        texts: A short text for each reason. The first one, "", is that of every result without a reason.
    """

    def __init__(self) -> None:
        self.texts = [""]
        self._numbers: dict[str, int] = {"": 0}
        self._varying: set[int] = set()

    def add(self, fields: dict[str, Any]) -> int:
        if _kind(fields) == OK:
            return 0
        text = one_line(_short_reason(fields), _REASON_CHARS)
        pattern = _DIGITS.sub("…", text)
        number = self._numbers.get(pattern)
        if number is None:
            if len(self.texts) >= MAX_REASONS:
                pattern = text = _OTHER_REASONS
                if pattern in self._numbers:
                    return self._numbers[pattern]
            number = self._numbers[pattern] = len(self.texts)
            self.texts.append(text)
        elif text != self.texts[number] and number not in self._varying:
            self._varying.add(number)
            self.texts[number] = pattern
        return number


class Rows:
    """The numbers of the latest result of every task.

    Args:
        path: The file of results.

    Attributes:
        latest: The results, by the hash of what identifies their task.
        reasons: The different reasons of failures.
        superseded: The number of results that a later one of the same task replaced.
        unreadable: The number of lines that are not results.
        first_unreadable: The number of the first such line, from 1.
        torn: Whether the file ends within a line, or within its compressed data.

    Raises:
        ResultsError: The file cannot be read, or holds no results.
    """

    def __init__(self, path: Path) -> None:
        self.latest: dict[int, Row] = {}
        self.reasons = Reasons()
        self.superseded = self.unreadable = self.first_unreadable = 0
        self.torn = False
        with _opened(path) as file:
            for number, offset, line in _lines(file):
                if (fields := _fields(line)) is not None:
                    # A result without an id belongs to its line; one without either is a task of its own.
                    known = (f"{name} {fields[name]}" for name in ("id", "line") if fields.get(name) is not None)
                    key = hash(next(known, f"offset {offset}"))
                    self.superseded += key in self.latest
                    total_ms, duration_ms, finished_s = (_number(fields, name) for name in _MAX_NUMBERS)
                    language, reason = _language(fields), self.reasons.add(fields)
                    times = total_ms, duration_ms, finished_s
                    self.latest[key] = Row(_kind(fields), offset, *times, language, reason, *_tests(fields))
                elif not line.strip():
                    continue
                elif not line.endswith(b"\n"):
                    self.torn = True
                else:
                    self.unreadable += 1
                    self.first_unreadable = self.first_unreadable or number
                    if self.unreadable >= _FOREIGN_LINES and not self.latest:
                        break
        if not self.latest:
            empty = not self.unreadable and not self.torn
            raise ResultsError(f"{path} is empty" if empty else f"{path} holds no results of `faasrt batch`")


class Task:
    """A result to show; its texts are clean and cut.

    Args:
        fields: The result.

    Attributes:
        id: The task's id; "line 44" when it has none.
        kind: One of `KINDS`.
        total_ms: The latency that the caller saw; NaN when missing.
        duration_ms: The duration that the server reported; NaN when missing.
        reason: The cause of the failure, on one line; may be empty.
        facts: Other known values, by name.
        texts: The streams that are not empty, by name.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.kind = _kind(fields)
        self.total_ms, self.duration_ms = _number(fields, "total_ms"), _number(fields, "duration_ms")
        name = f"line {_text(fields.get('line')) or '?'}" if fields.get("id") is None else _text(fields["id"])
        self.id = one_line(name, 120)

        about = _about(fields)
        outcome = fields.get("outcome") if self.kind == OTHER else None
        parts = [outcome, about.get("type"), about.get("name"), about.get("message")]
        reason = ": ".join(part for part in map(_text, parts) if part)
        self.reason = one_line(reason, 200)

        traceback = _text(about.get("traceback")).strip("\n")
        texts = {
            "message": reason if not traceback and len(reason) > 200 else "",
            "traceback": traceback,
            # Python's stderr repeats the traceback.
            "stderr": _text(fields.get("stderr")).replace(f"{traceback}\n", "" if traceback else "\n").strip("\n"),
            "stdout": _text(fields.get("stdout")).strip("\n"),
        }
        self.texts = {name: excerpt(text, _TEXT_BYTES.get(name, 800)) for name, text in texts.items() if text.strip()}

        cut = fields.get("truncated")
        facts = {
            "line": fields.get("line"),
            "language": fields.get("language"),
            "exit code": fields.get("exit_code"),
            "tests passed": "{} of {}".format(*_tests(fields)) if fields.get("tests") is not None else None,
            "attempts": about.get("attempts", fields.get("attempts")),
            "sent": about.get("sent"),
            "endpoint": fields.get("endpoint"),
            "cut at the output limit": ", ".join(map(_text, cut)) if isinstance(cut, list) else cut,
            "latency": None if isnan(self.total_ms) else milliseconds(self.total_ms),
            "duration": None if isnan(self.duration_ms) else milliseconds(self.duration_ms),
        }
        self.facts = {name: one_line(text, 100) for name, value in facts.items() if (text := _text(value))}


def read_tasks(path: Path, offsets: Iterable[int]) -> Iterator[Task]:
    """Read the results whose lines begin at `offsets`, which must ascend. Raise ResultsError if the file cannot be
    read.
    """
    with _opened(path) as file:
        for offset in offsets:
            file.seek(offset)
            fields = _fields(file.readline(MAX_LINE_BYTES))
            if fields is None:
                raise ResultsError(f"{path} has changed while it was read")
            yield Task(fields)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file, unpacked. Raise `ResultsError` for any failure of the file system."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            problem = "it is a directory" if path.is_dir() else "it must be a file, to be read twice"
            raise ResultsError(f"cannot read {path}: {problem}")
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


def _kind(fields: dict[str, Any]) -> str:
    if fields.get("infra_error") is not None:
        return INFRASTRUCTURE
    if fields.get("invalid_task") is not None:
        return INVALID_TASK
    return next((kind for kind in KINDS if kind == fields.get("outcome")), OTHER)


def _tests(fields: dict[str, Any]) -> tuple[int, int]:
    """Return the number of tests that passed, and of all tests."""
    tests = fields.get("tests")
    passed, total = (tests.get(name) if isinstance(tests, dict) else 0 for name in ("passed", "total"))
    if not isinstance(passed, int) or not isinstance(total, int) or not 0 <= passed <= total <= MAX_TESTS:
        return 0, 0
    return passed, total


def _about(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a result says about its failure."""
    marks = ("infra_error", "invalid_task", "error")
    about: Any = next((fields[mark] for mark in marks if fields.get(mark) is not None), None)
    return about if isinstance(about, dict) else {"message": about}


def _short_reason(fields: dict[str, Any]) -> str:
    """Return the reason of a failure without the parts that are different for each task."""
    about = _about(fields)
    name, message = _text(about.get("type") or about.get("name")), _text(about.get("message"))
    kind = _kind(fields)
    described = describe(kind, name, message)
    if described.startswith(f"{kind} "):
        return described.removeprefix(f"{kind} ")
    return _ENDPOINT.sub("", _LINE.sub("", ": ".join(part for part in (name, message) if part)))


def _language(fields: dict[str, Any]) -> str:
    language = fields.get("language")
    return language if isinstance(language, str) and language in _LANGUAGES else ""


def _number(fields: dict[str, Any], name: str) -> float:
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_NUMBERS[name]:
        return nan
    return float(value)


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)[:10_000]
