"""Reads the tasks of `faasrt batch` from JSON Lines. An invalid line becomes a `Line` with a problem."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, cast

import attrs
import click
import zstandard

from faasrt import _strict_json
from faasrt.cli.input import iter_lines, open_input, parse_line
from faasrt.config import SandboxConfig
from faasrt.languages import Language, OtherLanguage
from faasrt.tasks import CodeTask, FieldForm, field_forms

_MAX_DUPLICATES_SHOWN = 10
_FORMS = field_forms() | {"task_id": FieldForm((str, int), "a string or a whole number")}
# Fields that do not change the result of a task, and fields that the hash contains in another form.
_NOT_HASHED = ("id", "priority", "idempotent", "timeout_ms", "sandbox", "compare", "stop_on_failure")


@attrs.frozen(kw_only=True)
class BatchOptions:
    """The options of `faasrt batch` that concern tasks, which may have fields of their own."""

    language: Language | OtherLanguage | None
    timeout_ms: float | None
    function: str | None
    stop_on_failure: bool
    sandbox: SandboxConfig
    any_language: bool
    limit: int | None
    concurrency: int | None
    retry_infra: int
    max_failures: int


@attrs.frozen
class Line:
    """A line of the file, which has a task or a problem. `number` counts from 1.

    Attributes:
        id: The id in the line, or one made of its number and text.
        task_id: The name of the problem that the program solves.
        hash: A hash of everything that changes the result of the task.
    """

    number: int
    id: str | int | None = None
    task: CodeTask | None = None
    problem: str = ""
    task_id: str | int | None = None
    hash: str = ""

    @property
    def key(self) -> str | None:
        return None if self.id is None else str(self.id)


class Survey(NamedTuple):
    """The number of lines that are not blank, the languages of their tasks, and their hashes by id."""

    total: int
    languages: tuple[Language | OtherLanguage, ...]
    hashes: Mapping[str, str]


def survey(source: str, options: BatchOptions, *, with_hashes: bool = False) -> Survey:
    """Read a whole file of tasks. Hashes take memory. Raise UsageError if ids occur more than once."""
    total = 0
    first_lines: dict[str, int] = {}
    hashes: dict[str, str] = {}
    languages: set[Language | OtherLanguage] = set()
    duplicates: list[str] = []
    for line in read_lines(source, options):
        total += 1
        if line.task is not None:
            languages.add(line.task.language)
        if line.key is not None:
            first = first_lines.setdefault(line.key, line.number)
            if with_hashes:
                hashes[line.key] = line.hash
            if first != line.number:
                duplicates.append(f"{line.key!r} (lines {first} and {line.number})")
    if duplicates:
        raise click.UsageError(f"ids occur more than once: {', '.join(duplicates[:_MAX_DUPLICATES_SHOWN])}")
    known = [language for language in Language if language in languages]
    return Survey(total, (*known, *sorted(languages.difference(known))), hashes)


def read_lines(source: str, options: BatchOptions) -> Iterator[Line]:
    try:
        with _open(source) as stream:
            numbered = enumerate((line for _, line in iter_lines(stream)), 1)
            not_blank = ((number, line) for number, line in numbered if line is None or line.strip())
            for number, data in itertools.islice(not_blank, options.limit):
                yield _parse(number, data, options)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise click.UsageError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from None


def _open(source: str) -> BinaryIO:
    if source.endswith(".gz"):
        return cast("BinaryIO", gzip.open(source))
    file = open_input(source)
    if source.endswith(".zst"):
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
    return file


def _parse(number: int, data: bytes | None, options: BatchOptions) -> Line:
    line_id: str | int | None = None
    task_id: str | int | None = None
    try:
        fields = parse_line(data)
        assert data is not None
        if not isinstance(fields, dict):
            raise ValueError("it is not a JSON object")
        if fields.get("id") is None:
            # The hash keeps --resume from skipping a line whose text has changed.
            fields["id"] = f"{number}-{hashlib.blake2b(data.strip(), digest_size=6).hexdigest()}"
        _FORMS["id"].check("id", fields["id"])
        line_id = fields["id"]
        if fields.get("task_id") is not None:
            _FORMS["task_id"].check("task_id", fields["task_id"])
            task_id = fields["task_id"]
        values = _values_of(fields, options)
        task = CodeTask.from_dict({name: values[name] for name in values if name != "task_id"}, options.sandbox)
        return Line(number, line_id, task, task_id=task_id, hash=_hash_of(task, values, options.sandbox))
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = str(error)
    return Line(number, line_id, problem=f"line {number}: {problem}", task_id=task_id)


def _values_of(fields: dict[str, Any], options: BatchOptions) -> dict[str, Any]:
    if unknown := fields.keys() - _FORMS.keys():
        raise ValueError(f"unknown field {min(unknown)[:50]!r}; a task has {', '.join(sorted(_FORMS))}")
    values = {name: value for name, value in fields.items() if value is not None}
    for name, value in values.items():
        _FORMS[name].check(name, value)
    defaults = ("language", "timeout_ms", "function", "stop_on_failure")
    values = {name: getattr(options, name) for name in defaults} | values
    if values["language"] is None:
        raise ValueError("it has no language, and --language is not given")
    if "code" not in values:
        raise ValueError("'code' is missing")
    max_timeout_ms = options.sandbox.timeout_limit_s * 1000
    if (values["timeout_ms"] or 0) > max_timeout_ms:
        raise ValueError(
            f"'timeout_ms' must be at most the limit of {max_timeout_ms:g} ms; a larger --timeout-ms raises the limit"
        )
    if not options.any_language:
        Language.parse(values["language"])
    return values


def _hash_of(task: CodeTask, values: dict[str, Any], sandbox: SandboxConfig) -> str:
    hashed = {name: value for name, value in values.items() if name not in _NOT_HASHED}
    hashed |= attrs.asdict(task.sandbox or sandbox) | {"language": task.language}
    if task.timeout_ms is not None:
        hashed["timeout_limit_s"] = task.timeout_ms / 1000
    if task.tests:
        hashed |= {"compare": task.compare, "stop_on_failure": task.stop_on_failure}
    # The order of the names within a value may matter to a program.
    return hashlib.blake2b(_strict_json.dump_bytes(sorted(hashed.items())), digest_size=8).hexdigest()
