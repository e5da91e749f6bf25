"""The tasks of `faasrt batch`: JSON Lines, read in a thread; each line is a task, or words on what is wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import sys
import threading
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import attrs
import click
import zstandard

from faasrt import strict_json
from faasrt.batch import CodeTask
from faasrt.errors import UnsupportedLanguageError
from faasrt.languages import Language

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is an invalid task; it is not kept."""
_CHUNK_BYTES = 65_536
_PIECE = 256
_SHOWN_DUPLICATES = 10
T = TypeVar("T")
_FIELDS = frozenset({"id", "code", "language", "timeout_ms", "function", "args", "kwargs", "ext"})


@attrs.frozen
class Defaults:
    """What a task gets that does not say it itself."""

    language: Language | None = None
    timeout_ms: float | None = None
    function: str | None = None


@attrs.frozen
class Line:
    """A line of the file: a task, or what is wrong with it.

    Attributes:
        number: Its number, from 1.
        id: The task's name: its own, or one made of its number and its text; None where it has no readable one.
        own_id: The name as it stands there, a string or a number; else `id`.
        task: The task, or None.
        problem: What is wrong, or "".
    """

    number: int
    id: str | None
    task: CodeTask | None = None
    problem: str = ""
    own_id: str | int | None = None


@attrs.frozen
class Survey:
    """What a file of tasks holds, seen before anything of it is run.

    Attributes:
        total: How many lines there are that hold something.
        languages: Those of its tasks.
        duplicates: Ids that stand there more than once, with their line numbers; the first few.
    """

    total: int
    languages: tuple[Language, ...]
    duplicates: tuple[str, ...]


def survey(source: str, defaults: Defaults, limit: int | None) -> Survey:
    """Look through a file. This blocks.

    Raises:
        click.UsageError: It cannot be read.
    """
    total = 0
    seen: dict[str, int] = {}
    languages: set[Language] = set()
    duplicates: list[str] = []
    for piece in _pieces(source, limit):
        for number, data in piece:
            total += 1
            line = _parse(number, data, defaults)
            if line.task is not None:
                languages.add(line.task.language)
            if line.id is not None and line.id in seen and len(duplicates) < _SHOWN_DUPLICATES:
                duplicates.append(f"{line.id!r} (lines {seen[line.id]} and {number})")
            if line.id is not None:
                seen.setdefault(line.id, number)
    return Survey(total, tuple(language for language in Language if language in languages), tuple(duplicates))


class Lines:
    """Reads the tasks of a file, or of stdin for "-", one after another.

    Args:
        source: The path, or "-".
        defaults: What tasks get that do not say it themselves.
        limit: How many lines to read at most.
    """

    def __init__(self, source: str, defaults: Defaults, limit: int | None) -> None:
        self._defaults = defaults
        self._pieces = _pieces(source, limit)
        self._reading: asyncio.Future[list[tuple[int, bytes | None]] | None] | None = None
        self._stopped = False

    async def __aiter__(self) -> AsyncGenerator[Line]:
        while not self._stopped and (piece := await self._read()):
            for number, data in piece:
                yield _parse(number, data, self._defaults)

    def stop(self) -> None:
        """Read no further."""
        self._stopped = True
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    async def _read(self) -> list[tuple[int, bytes | None]] | None:
        self._reading = in_daemon_thread(lambda: next(self._pieces, None))
        return await self._reading


def in_daemon_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Do what may block for ever, as reading a terminal does, in a thread that keeps nobody from leaving."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(cast("T", result))
        else:
            ended.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as failure:
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop has gone
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True).start()
    return ended


def _pieces(source: str, limit: int | None) -> Iterator[list[tuple[int, bytes | None]]]:
    """Give the lines that hold something, some at a time, with their numbers; None for one that is too long."""
    try:
        with _open(source) as stream:
            chunks = iter(lambda: stream.read(_CHUNK_BYTES), b"")
            lines = ((number, line) for number, line in enumerate(_split(chunks), 1) if line is None or line.strip())
            limited = itertools.islice(lines, limit)
            # What has come is given at once: a pipe may be slow.
            most = 1 if source == "-" else _PIECE
            while piece := list(itertools.islice(limited, most)):
                yield piece
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise click.UsageError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from None


def _open(source: str) -> IO[bytes]:
    if source == "-":
        if sys.stdin is None:
            raise click.UsageError("cannot read <stdin>: it is closed")
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    if source.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(source))
    file = Path(source).open("rb")  # noqa: SIM115
    if source.endswith(".zst"):
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
    return file


def _split(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Make lines of chunks; None stands for one that is too long, and is thrown away as it comes."""
    rest = bytearray()
    skipping = False
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for part in whole:
            rest += part
            too_long = skipping or len(rest) > MAX_LINE_BYTES
            yield None if too_long else bytes(rest)
            rest.clear()
            skipping = False
        rest += last
        if len(rest) > MAX_LINE_BYTES:
            rest.clear()
            skipping = True
    if rest or skipping:
        yield None if skipping else bytes(rest)


def _parse(number: int, data: bytes | None, defaults: Defaults) -> Line:
    if data is None:
        return Line(number, None, problem=f"line {number}: it is longer than {MAX_LINE_BYTES} bytes")
    name: str | None = None
    own: str | int | None = None
    try:
        fields = strict_json.loads(data.decode("utf-8-sig" if number == 1 else "utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it is no JSON object")
        own = _read_id(fields, number, data)
        name = str(own)
        return Line(number, name, _read_task(fields, name, defaults), own_id=own)
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 (byte {error.start})"
    except json.JSONDecodeError as error:
        problem = f"it is not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        problem = "it is nested too deeply"
    except (ValueError, UnsupportedLanguageError) as error:
        problem = str(error)
    return Line(number, name, problem=f"line {number}: {problem}", own_id=own)


def _read_id(fields: dict[str, Any], number: int, data: bytes) -> str | int:
    name = fields.get("id")
    if name is None:
        # With its text in it, so that --resume takes no other task for it when the file has changed.
        return f"{number}-{hashlib.blake2b(data.strip(), digest_size=6).hexdigest()}"
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise ValueError("'id' must be a string or a whole number")
    return name


def _read_task(fields: dict[str, Any], name: str, defaults: Defaults) -> CodeTask:
    if unknown := fields.keys() - _FIELDS:
        raise ValueError(f"unknown field {min(unknown)[:50]!r}; a task has {', '.join(sorted(_FIELDS))}")
    language = _field(fields, "language", (str,), "a string") or defaults.language
    if language is None:
        raise ValueError("it names no language, and neither does --language")
    code = _field(fields, "code", (str,), "a string")
    if code is None:
        raise ValueError("'code' is missing")
    timeout_ms = _field(fields, "timeout_ms", (int, float), "a number")
    ext = _field(fields, "ext", (dict,), "an object")
    if not code.strip():
        raise ValueError("'code' must not be empty")
    if timeout_ms is not None and timeout_ms <= 0:
        raise ValueError("'timeout_ms' must be above 0")
    if not all(isinstance(value, str) for value in (ext or {}).values()):
        raise ValueError("the values of 'ext' must be strings")
    return CodeTask(
        code,
        language,
        id=name,
        timeout_ms=defaults.timeout_ms if timeout_ms is None else timeout_ms,
        ext=ext,
        function=_field(fields, "function", (str,), "a string") or defaults.function,
        args=_field(fields, "args", (list,), "a list") or (),
        kwargs=_field(fields, "kwargs", (dict,), "an object") or {},
    )


def _field(fields: dict[str, Any], name: str, kinds: tuple[type, ...], words: str) -> Any:
    value = fields.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
        raise ValueError(f"{name!r} must be {words}")
    return value
