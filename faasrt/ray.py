"""Batches on a Ray cluster, with the tasks as rows of a Ray Dataset. Needs the extra `ray`.

`ray.data.read_json("tasks.jsonl", lines=True)` reads the tasks of `faasrt batch`, and
`run_tasks(...).write_parquet("results")` stores the results, one row per task. Each Ray actor has its own manager.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import attrs
import pyarrow
from ray.data import Dataset

from faasrt import strict_json
from faasrt.config import Settings
from faasrt.factory import check_settings
from faasrt.inputs import ProgramInput
from faasrt.judging import TestCase
from faasrt.languages import parse_language
from faasrt.manager import RuntimeManager
from faasrt.tasks import TASK_ERRORS, CodeTask, TaskResult

__all__ = ["COLUMNS", "run_tasks"]

_TEXT = pyarrow.string()
COLUMNS = {
    **dict.fromkeys(["outcome", "value", "ret_val", "stdout", "stderr"], _TEXT),
    **dict.fromkeys(["error_name", "error_message", "error_traceback"], _TEXT),
    "exit_code": pyarrow.int64(),
    "truncated": pyarrow.list_(_TEXT),
    "duration_ms": pyarrow.float64(),
    "attempts": pyarrow.int64(),
    **dict.fromkeys(["endpoint", "infra_error", "invalid_task"], _TEXT),
    **dict.fromkeys(["tests_passed", "tests_total"], pyarrow.int64()),
}
"""The columns that are added to each row, with their types: the result (`value` as JSON text), or an error."""


def run_tasks(
    tasks: Dataset,
    *,
    settings: Settings | None = None,
    actors: int | tuple[int, int] = 2,
    concurrency: int = 64,
    batch_size: int = 256,
) -> Dataset:
    r"""Run the program of each row, and add the columns of `COLUMNS`.

    Rows have `code` and `language`, and may have `timeout_ms`, `function`, `stdin`, `compare`, and `args`, `kwargs`,
    `argv`, `files` and `tests` (as values, or as JSON text). Bytes are text, or `{"base64": ...}`. The outcome of a
    task with tests is the verdict on the first test that did not pass, such as WRONG_ANSWER. Other columns are kept.
    The columns `invalid_task` and `infra_error` have the messages of tasks without a result. Ray repeats a batch if its
    actor dies, so a task may run twice.

    Args:
        tasks: The dataset, which is read lazily.
        settings: The settings for the manager of each actor. Without endpoints, each actor has its own embedded FaaS.
        actors: The number of actors, or a tuple of the minimum and the maximum. Default: 2.
        concurrency: The maximum number of tasks in flight per actor. Default: 64.
        batch_size: The number of rows per batch. Default: 256.

    Returns:
        A lazy dataset.

    Raises:
        ConfigurationError: The settings are wrong; raised in the actors, and passed on by Ray.

    Example:
        >>> import ray, faasrt.ray
        >>> tasks = ray.data.from_items([{"code": "print(6 * 7)", "language": "python"}])
        >>> results = faasrt.ray.run_tasks(tasks, settings=Settings.from_env(), actors=1)
        >>> [(row["outcome"], row["stdout"]) for row in results.take_all()]
        [('OK', '42\n')]
    """
    return tasks.map_batches(
        TaskRunner,
        fn_constructor_kwargs={"settings": settings, "concurrency": concurrency},
        concurrency=actors,
        batch_size=batch_size,
        batch_format="pyarrow",
    )


class TaskRunner:
    """The actor of `run_tasks`. It creates its manager with the first batch.

    Args:
        settings: The settings for the manager. Without endpoints, it uses the embedded FaaS.
        concurrency: The maximum number of tasks in flight, over all batches.
    """

    def __init__(self, settings: Settings | None = None, concurrency: int = 64) -> None:
        base = check_settings(settings)
        self._settings = attrs.evolve(base, limiter=attrs.evolve(base.limiter, max_concurrency=concurrency))
        self._concurrency = concurrency
        self._manager: RuntimeManager | None = None

    async def __call__(self, batch: pyarrow.Table) -> AsyncGenerator[pyarrow.Table]:
        if self._manager is None:
            make = RuntimeManager if self._settings.endpoints else RuntimeManager.local
            self._manager = make(settings=self._settings)
        rows = batch.to_pylist()
        columns: list[dict[str, Any]] = [{} for _ in rows]
        tasks, positions = [], []
        for position, row in enumerate(rows):
            try:
                tasks.append(_to_task(row))
                positions.append(position)
            except (ValueError, RecursionError) as error:
                columns[position] = {"invalid_task": str(error)}
        async for item in self._manager.map(tasks, concurrency=self._concurrency):
            columns[positions[item.index]] = _to_columns(item)
        table = batch.drop_columns([name for name in COLUMNS if name in batch.column_names])
        for name, kind in COLUMNS.items():
            table = table.append_column(name, pyarrow.array([column.get(name) for column in columns], type=kind))
        yield table


def _to_task(row: dict[str, Any]) -> CodeTask:
    args, kwargs = _decode(row.get("args")) or (), _decode(row.get("kwargs")) or {}
    options: dict[str, Any] = {name: row.get(name) for name in ("code", "language", "timeout_ms", "function")}
    # Arrow gives every object the fields of all objects; the missing ones are None.
    given = _without_none({"stdin": row.get("stdin")} | {name: _decode(row.get(name)) for name in ("argv", "files")})
    checked = ProgramInput.from_wire(given, parse_language(options["language"]))
    options |= {name: getattr(checked, name) for name in ("stdin", "argv", "files")}
    if tests := _without_none(_decode(row.get("tests"))):
        options["tests"] = [TestCase.from_dict(test) for test in tests]
    if row.get("compare"):
        options["compare"] = row["compare"]
    return CodeTask(**options, args=args, kwargs=kwargs)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(member) for name, member in value.items() if member is not None}
    return [_without_none(member) for member in value] if isinstance(value, list) else value


def _decode(value: Any) -> Any:
    return strict_json.loads(value) if isinstance(value, str) and value else value


def _to_columns(item: TaskResult) -> dict[str, Any]:
    if isinstance(item.error, TASK_ERRORS):
        return {"invalid_task": str(item.error)}
    if item.error is not None:
        return {"infra_error": f"{type(item.error).__name__}: {item.error}"}
    fields = item.result.to_dict()
    if item.judgement is not None:
        fields |= {"tests_passed": item.judgement.passed_count, "tests_total": len(item.judgement.results)}
        if not item.judgement.passed:
            fields["outcome"] = str(item.judgement.verdict)
    fields |= {f"error_{name}": text for name, text in (fields["error"] or {}).items()}
    fields["value"] = None if fields["value"] is None else json.dumps(fields["value"])
    # A program may print lone surrogates, which Arrow's text cannot hold.
    return {name: _printable(fields[name]) for name in COLUMNS if name in fields}


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
