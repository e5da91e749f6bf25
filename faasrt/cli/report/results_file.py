"""Reads a file of results in two passes: a few numbers of every result, then the texts of the few to show.

Memory stays small because no text is kept in the first pass.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from math import nan
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from faasrt.cli.input import iter_lines
from faasrt.cli.outcome_text import describe_error
from faasrt.cli.report.text import excerpt, one_line
from faasrt.errors import FaasrtError
from faasrt.judging import Verdict
from faasrt.languages import Language
from faasrt.results import Outcome

OK, INFRASTRUCTURE, INVALID_TASK, OTHER = "OK", "INFRASTRUCTURE", "INVALID_TASK", "OTHER"
KINDS = (*(str(outcome) for outcome in Outcome), str(Verdict.WRONG_ANSWER), INFRASTRUCTURE, INVALID_TASK, OTHER)

MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_MS = 1e12
MAX_FINISHED_S = 253_402_300_799
"""The last second of the year 9999."""
MAX_TESTS = 1_000_000_000
# After this number of foreign lines, and no result, the rest of the file is not read.
_FOREIGN_LINES = 100
# Further reasons are counted together, so that memory stays small.
MAX_REASONS = 2_000
_OTHER_REASONS = "other reasons"
_DIGITS = re.compile(r"\d+")
_LINE = re.compile(r"^line \d+: ")
_ENDPOINT = re.compile(r" \[[^\[\]]*sent: \w+\]$")
_FACTS = ("task_id", "line", "language", "exit_code", "tests", "attempts", "sent", "endpoint", "truncated")
IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
"""The types of images on the page. SVG is none of them, because it may hold scripts and links."""
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_LANGUAGES = {str(language) for language in Language}


class ResultsError(FaasrtError, ValueError):
    """The message is one line."""


class Row(NamedTuple):
    """The numbers of a result. A missing time is NaN.

    Attributes:
        offset: The offset of the result's line in the unpacked file.
        reason: A key in `Rows.reasons`.
        total_ms: The latency that the caller saw.
        duration_ms: The duration that the server reported.
        finished_s: Seconds since 1970.
        problem: A key in `Rows.problems`; 0 if the task is not a sample of a problem.
    """

    offset: int
    kind: str
    reason: str
    language: str
    total_ms: float
    duration_ms: float
    finished_s: float
    problem: int
    tests_passed: int
    tests_skipped: int
    tests: int
    has_images: bool


class Image(NamedTuple):
    url: str
    text: str


class Rows:
    """The numbers of the latest result of every task. Raise ResultsError if the file holds none.

    Attributes:
        latest: The results, by the hash of what identifies their task.
        reasons: A short text for each different reason of failures. Reasons that differ only in their numbers are one:
            their key has "…" in place of numbers.
        torn: Whether the file ends within a line, or within its compressed data.
    """

    def __init__(self, path: Path) -> None:
        self.latest: dict[int, Row] = {}
        self.reasons = {"": ""}
        self.problems: dict[int, str] = {}
        self.superseded = self.unreadable = self.first_unreadable = 0
        self.torn = False
        with _opened(path) as file:
            for number, offset, line in _lines(file):
                if (fields := _parse(line)) is not None:
                    self._add(fields, offset)
                elif line.strip() and not line.endswith(b"\n"):
                    self.torn = True
                elif line.strip():
                    self.unreadable += 1
                    self.first_unreadable = self.first_unreadable or number
                    if self.unreadable >= _FOREIGN_LINES and not self.latest:
                        break
        if not self.latest:
            empty = not self.unreadable and not self.torn
            raise ResultsError(f"{path} is empty" if empty else f"{path} holds no results of `faasrt batch`")

    def _add(self, fields: dict[str, Any], offset: int) -> None:
        # A result without an id belongs to its line; one without either is a task of its own.
        names = (f"{name} {fields[name]}" for name in ("id", "line") if fields.get(name) is not None)
        key = hash(next(names, f"offset {offset}"))
        self.superseded += key in self.latest
        language = fields.get("language")
        self.latest[key] = Row(
            offset,
            _kind(fields),
            self._add_reason(fields),
            language if isinstance(language, str) and language in _LANGUAGES else "",
            *_times(fields),
            _number(fields.get("finished_at"), MAX_FINISHED_S),
            self._add_problem(fields),
            *_tests(fields),
            bool(_images(fields)),
        )

    def _add_problem(self, fields: dict[str, Any]) -> int:
        if (name := _text(fields.get("task_id"))) == "":
            return 0
        key = hash(name) or 1
        self.problems.setdefault(key, one_line(name, 120))
        return key

    def _add_reason(self, fields: dict[str, Any]) -> str:
        if _kind(fields) == OK:
            return ""
        text = one_line(_reason(fields), 160)
        key = sys.intern(_DIGITS.sub("…", text))  # one string for all rows
        if key not in self.reasons and len(self.reasons) >= MAX_REASONS:
            key = text = _OTHER_REASONS
        if self.reasons.setdefault(key, text) != text:
            self.reasons[key] = key  # the numbers differ, so none of them is shown
        return key


class Task:
    """A result to show; its texts are clean and cut. Its id is "line 44" when it has none."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.kind = _kind(fields)
        self.id = one_line(_text(fields.get("id")) or f"line {_text(fields.get('line')) or '?'}", 120)
        failure, reason = _failure(fields), _reason(fields)
        self.reason = one_line(reason, 200)
        traceback = _text(failure.get("traceback")).strip("\n")
        texts = {
            "message": reason if not traceback and len(reason) > 200 else "",
            "traceback": traceback,
            # Python's stderr repeats the traceback.
            "stderr": _text(fields.get("stderr")).replace(f"{traceback}\n", "" if traceback else "\n").strip("\n"),
            "stdout": _text(fields.get("stdout")).strip("\n"),
            "return value": _text(fields.get("ret_val")),
        }
        self.texts = {
            name: excerpt(text, 3_000 if name == "traceback" else 800) for name, text in texts.items() if text.strip()
        }

        self.total_ms, self.duration_ms = _times(fields)
        facts = fields | failure | {"tests": describe_tests(*_tests(fields))}
        self.facts = {name: one_line(text, 100) for name in _FACTS if (text := _text(facts.get(name)))}
        self.images = _images(fields)


def read_tasks(path: Path, offsets: Iterable[int]) -> Iterator[Task]:
    """Read the results whose lines begin at `offsets`, which must ascend."""
    with _opened(path) as file:
        for offset in offsets:
            file.seek(offset)
            fields = _parse(file.readline(MAX_LINE_BYTES))
            if fields is None:
                raise ResultsError(f"{path} has changed while it was read")
            yield Task(fields)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            problem = "it is a directory" if path.is_dir() else "it must be a file, to be read twice"
            raise ResultsError(f"cannot read {path}: {problem}")
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield cast("BinaryIO", gzip.GzipFile(fileobj=file)) if is_gzip else file
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


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return None
    is_result = isinstance(fields, dict) and not fields.keys().isdisjoint({"outcome", "infra_error", "invalid_task"})
    return fields if is_result else None


def _kind(fields: dict[str, Any]) -> str:
    if fields.get("infra_error") is not None:
        return INFRASTRUCTURE
    if fields.get("invalid_task") is not None:
        return INVALID_TASK
    return next((kind for kind in KINDS if kind == fields.get("outcome")), OTHER)


def _times(fields: dict[str, Any]) -> tuple[float, float]:
    return _number(fields.get("total_ms"), MAX_MS), _number(fields.get("duration_ms"), MAX_MS)


def _tests(fields: dict[str, Any]) -> tuple[int, int, int]:
    match fields.get("tests"):
        case {"passed": int(passed), "total": int(total), **others} if 0 <= passed <= total <= MAX_TESTS:
            skipped = others.get("skipped", 0)
            return passed, skipped if isinstance(skipped, int) and 0 <= skipped <= total - passed else 0, total
    return 0, 0, 0


def _images(fields: dict[str, Any]) -> list[Image]:
    displays = fields.get("displays")
    images = []
    for display in displays if isinstance(displays, list) else ():
        data = display.get("data") if isinstance(display, dict) else None
        if not isinstance(data, dict):
            continue
        for mime_type in IMAGE_TYPES:
            content = data.get(mime_type)
            if isinstance(content, str) and _BASE64.fullmatch(content):
                text = one_line(_text(data.get("text/plain")), 100)
                images.append(Image(f"data:{mime_type};base64,{content}", text))
                break  # the others show the same
    return images


def describe_tests(passed: int, skipped: int, total: int) -> str:
    """Return the numbers of tests, such as `1 of 5, 2 skipped`; "" if there are none."""
    if not total:
        return ""
    return f"{passed:,} of {total:,}{f', {skipped:,} skipped' if skipped else ''}"


def _failure(fields: dict[str, Any]) -> dict[str, Any]:
    names = ("infra_error", "invalid_task", "error")
    failure: Any = next((fields[name] for name in names if fields.get(name) is not None), None)
    return failure if isinstance(failure, dict) else {"message": failure}


def _reason(fields: dict[str, Any]) -> str:
    failure, kind = _failure(fields), _kind(fields)
    name, message = _text(failure.get("type") or failure.get("name")), _text(failure.get("message"))
    parts = (_text(fields.get("outcome")) if kind == OTHER else "", describe_error(kind, name, message))
    return _ENDPOINT.sub("", _LINE.sub("", ": ".join(filter(None, parts))))


def _number(value: Any, largest: float) -> float:
    return float(value) if type(value) in (int, float) and 0 <= value <= largest else nan


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else value if isinstance(value, str) else str(value)[:10_000]
