"""Batches that outgrow one machine: the tasks as rows of a Ray Dataset. Needs the extra `ray`.

`ray.data.read_json("tasks.jsonl", lines=True)` reads the file of tasks that `faasrt batch` takes, and
`run_tasks(...).write_parquet("results")` keeps what came of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import attrs
import pyarrow
from ray.data import Dataset

from faasrt import strict_json
from faasrt.batch import TASK_ERRORS, CodeTask, TaskResult
from faasrt.config import Settings
from faasrt.errors import InvalidRequestError
from faasrt.manager import RuntimeManager

_TEXT, _WHOLE = pyarrow.string(), pyarrow.int64()
COLUMNS = {
    "outcome": _TEXT,
    "value": _TEXT,
    "ret_val": _TEXT,
    "stdout": _TEXT,
    "stderr": _TEXT,
    "error_name": _TEXT,
    "error_message": _TEXT,
    "error_traceback": _TEXT,
    "exit_code": _WHOLE,
    "truncated": pyarrow.list_(_TEXT),
    "duration_ms": pyarrow.float64(),
    "attempts": _WHOLE,
    "endpoint": _TEXT,
    "infra_error": _TEXT,
    "invalid_task": _TEXT,
}
"""What is added to each row, and its type: a verdict (`value` as JSON text), or why there is none."""


def run_tasks(
    tasks: Dataset,
    *,
    settings: Settings | None = None,
    actors: int | tuple[int, int] = 2,
    concurrency: int = 64,
    batch_size: int = 256,
) -> Dataset:
    r"""Run a row's program for each row, and add what came of it: see `COLUMNS`.

    Rows have `code` and `language`, and may have `timeout_ms`, `function`, `args` and `kwargs` (as they are, or as JSON
    text); other columns stay as they are. A row that is wrong, or that the infrastructure failed, says so in its own
    columns. Ray runs a batch again when its actor dies: then tasks may run twice.

    Args:
        tasks: The dataset; it is read lazily, and so is what is returned.
        settings: For the manager of each actor; with no endpoints each actor has an embedded FaaS of its own.
        actors: How many, or the least and the most of them.
        concurrency: Tasks in flight in each actor, at most.
        batch_size: Rows that an actor takes at once.

    Raises:
        ConfigurationError: In the actors, when the settings are wrong; Ray passes it on.

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
    """The actor of `run_tasks`: owns a manager, which is made with the first batch.

    Args:
        settings: For the manager; the embedded FaaS when it names no endpoints.
        concurrency: Tasks in flight, at most, of all batches together.
    """

    def __init__(self, settings: Settings | None = None, concurrency: int = 64) -> None:
        base = Settings() if settings is None else settings
        limiter = attrs.evolve(base.limiter, max_concurrency=concurrency)
        self._settings = attrs.evolve(base, limiter=limiter)
        self._concurrency = concurrency
        self._manager: RuntimeManager | None = None

    async def __call__(self, batch: pyarrow.Table) -> AsyncGenerator[pyarrow.Table]:
        """Run a batch of rows."""
        if self._manager is None:
            local = not self._settings.endpoints
            make = RuntimeManager.local if local else RuntimeManager
            self._manager = make(settings=self._settings)
        rows = batch.to_pylist()
        columns: list[dict[str, Any]] = [{} for _ in rows]
        tasks, places = [], []
        for place, row in enumerate(rows):
            try:
                tasks.append(_task_of(row))
                places.append(place)
            except (ValueError, RecursionError, *TASK_ERRORS) as error:
                columns[place] = {"invalid_task": str(error)}
        async for item in self._manager.map(tasks, concurrency=self._concurrency):
            columns[places[item.index]] = _columns_of(item)
        table = batch.drop_columns([name for name in COLUMNS if name in batch.column_names])
        for name, kind in COLUMNS.items():
            table = table.append_column(name, pyarrow.array([column.get(name) for column in columns], type=kind))
        yield table


def _task_of(row: dict[str, Any]) -> CodeTask:
    if not isinstance(row.get("code"), str) or not isinstance(row.get("language"), str):
        raise InvalidRequestError("a row needs 'code' and 'language', both text")
    args, kwargs = (_decoded(row.get(name)) for name in ("args", "kwargs"))
    if not isinstance(args, list | None) or not isinstance(kwargs, dict | None):
        raise InvalidRequestError("'args' must be a list, and 'kwargs' an object, or the JSON text of one")
    fields = {"timeout_ms": row.get("timeout_ms"), "function": row.get("function")}
    return CodeTask(row["code"], row["language"], args=args or (), kwargs=kwargs or {}, **fields)


def _decoded(value: Any) -> Any:
    return strict_json.loads(value) if isinstance(value, str) and value else value or None


def _columns_of(item: TaskResult) -> dict[str, Any]:
    if isinstance(item.error, TASK_ERRORS):
        return {"invalid_task": str(item.error)}
    if item.result is None:
        return {"infra_error": f"{type(item.error).__name__}: {item.error}"}
    told = item.result.to_dict()
    error = told["error"] or {}
    told["value"] = None if told["value"] is None else json.dumps(told["value"])
    told |= {f"error_{name}": text for name, text in error.items()}
    # A program may print lone surrogates, which Arrow's text cannot hold.
    return {name: _printable(told[name]) for name in COLUMNS if name in told}


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
