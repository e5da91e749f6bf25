"""Batches on a Ray cluster, with the tasks as rows of a Ray Dataset. Needs the extra `ray`.

`ray.data.read_json("tasks.jsonl", lines=True)` reads the tasks of `faasrt batch`, and
`run_tasks(...).write_parquet("results")` stores the results, one row per task. Each Ray actor has its own manager.

Without endpoints, each node runs one embedded FaaS, which needs the extra `local` there. It starts with the first task,
uses as many CPUs as the node has in Ray, serves all actors of the job on this node, and ends a few
seconds after the last of them, however the job ends. It reserves no CPUs, so other tasks on the node slow it down. If
it dies, it is started again. Tasks that were running at this time have a `ConnectionLostError` in the column
`infra_error`, unless they are idempotent. Tasks that were not sent yet run later.

**At most once?** A task runs at most once, unless it is idempotent, as long as its actor lives. If an actor or a node
dies, Ray repeats the batches whose results are lost, whatever `idempotent` says. So a task may run again, but each row
has one result. Ray starts the actors of a lost node elsewhere, and the job waits until there are CPUs for them.

`faasrt.ray.serve` serves the embedded FaaS on a cluster to other clients.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pyarrow
from ray.data import Dataset

from faasrt import _strict_json
from faasrt.client.factory import check_settings
from faasrt.client.manager import RuntimeManager
from faasrt.config import SandboxConfig, Settings
from faasrt.errors import ConnectError, ConnectionLostError, FaasrtError
from faasrt.inputs import bytes_to_wire
from faasrt.ray.node_faas import FaasConnection, SharedFaaS
from faasrt.tasks import CodeTask, FailedTask, TaskResult, field_forms, is_invalid

__all__ = ["COLUMNS", "run_tasks"]

_TEXT = pyarrow.string()
COLUMNS = {
    **dict.fromkeys(["outcome", "value", "ret_val", "stdout", "stderr"], _TEXT),
    **dict.fromkeys(["error_name", "error_message", "error_traceback"], _TEXT),
    "exit_code": pyarrow.int64(),
    "truncated": pyarrow.list_(_TEXT),
    **dict.fromkeys(["collected_files", "displayed"], _TEXT),
    "duration_ms": pyarrow.float64(),
    "attempts": pyarrow.int64(),
    **dict.fromkeys(["endpoint", "infra_error", "invalid_task"], _TEXT),
    **dict.fromkeys(["tests_passed", "tests_total"], pyarrow.int64()),
}
"""The columns that are added to each row, with their types: the result (`value`, `collected_files` and `displayed` as
JSON text), or an error.
"""
_FORMS = field_forms()
# Null is a value in these fields of tasks and tests.
_VALUES = ("args", "kwargs", "expected")
# How often tasks are repeated because the FaaS of the node has ended before they were sent.
_MAX_REPEATS = 2


def run_tasks(
    tasks: Dataset,
    *,
    settings: Settings | None = None,
    actors: int | tuple[int, int] = 2,
    concurrency: int = 64,
    batch_size: int = 256,
) -> Dataset:
    r"""Run the program of each row, and add the columns of `COLUMNS`.

    A row is a `CodeTask`: it has the columns `code` and `language`, and may have columns for the other fields.
    `sandbox` is an object with fields of `SandboxConfig`. The settings supply the fields that are missing, and a row
    can only lower the limits of the embedded FaaS. `tests` is a list of objects with the fields of `TestCase`. In rows
    with a `function`, they have the fields of `FunctionTest` or `AssertTest`.

    Lists and objects may also be JSON text. `args`, `kwargs` and tests of functions should be: in Arrow all rows have
    values of one type, and a field that only some objects have is null in the others. Null fields of objects are left
    out, but not those in JSON text, in arguments and in expected values. Bytes are text, binary, or `{"base64": ...}`.
    Columns that are null or missing have the default of `CodeTask`. All columns are kept, unless they have the name of
    an added one, so rows with errors can be passed to `run_tasks` again.

    The outcome of a task with tests is the verdict on the first test that did not pass, such as WRONG_ANSWER. The
    column `collected_files` has the files that match `collect`, in the form of the column `files`, and `displayed` what
    the program displays if `displays` is true. The columns `invalid_task` and `infra_error` have the messages of tasks
    without a result. Ray repeats a batch if its actor or its node dies, so a task may run twice.

    Args:
        tasks: The dataset, which is read lazily.
        settings: The settings for the manager of each actor. Without endpoints, the actors of a node share an embedded
            FaaS; see `faasrt.ray`.
        actors: The number of actors, or a tuple of the minimum and the maximum. Each takes one CPU of Ray. Default: 2.
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
    """The actor of `run_tasks`. Without endpoints in its settings, it uses the embedded FaaS of its node."""

    def __init__(self, settings: Settings | None = None, concurrency: int = 64) -> None:
        base = check_settings(settings)
        self._settings = attrs.evolve(base, limiter=attrs.evolve(base.limiter, max_concurrency=concurrency))
        self._concurrency = concurrency
        self._shared = None if base.endpoints else SharedFaaS(self._settings)
        self._manager: RuntimeManager | None = None

    async def __call__(self, batch: pyarrow.Table) -> AsyncIterator[pyarrow.Table]:
        rows = batch.to_pylist()
        columns: list[dict[str, Any]] = [{} for _ in rows]
        tasks: dict[int, CodeTask] = {}
        for position, row in enumerate(rows):
            try:
                tasks[position] = to_task(row, self._settings.sandbox)
            except (ValueError, RecursionError) as error:
                columns[position] = {"invalid_task": str(error)}
        run = self._run_with_endpoints if self._shared is None else self._run_on_node
        async for position, item in run(tasks):
            columns[position] = _to_columns(item)
        table = batch.drop_columns([name for name in COLUMNS if name in batch.column_names])
        for name, kind in COLUMNS.items():
            values = [_printable(column.get(name)) for column in columns]
            table = table.append_column(name, pyarrow.array(values, type=kind))
        yield table

    async def aclose(self) -> None:
        """Close the manager. Ray does not call this: it ends the process of an actor."""
        if self._manager is not None:
            await self._manager.aclose()

    async def _run_with_endpoints(self, tasks: dict[int, CodeTask]) -> AsyncIterator[tuple[int, TaskResult]]:
        if self._manager is None:
            self._manager = RuntimeManager(settings=self._settings)
        positions = list(tasks)
        async for item in self._manager.map(tasks.values(), concurrency=self._concurrency):
            yield positions[item.index], item

    async def _run_on_node(self, tasks: dict[int, CodeTask]) -> AsyncIterator[tuple[int, TaskResult]]:
        """Run tasks on the FaaS of this node. If it ends, start it again, and run the tasks that may run again."""
        assert self._shared is not None
        for repeats_left in range(_MAX_REPEATS, -1, -1):
            if not tasks:
                return
            failed: dict[int, CodeTask] = {}
            async with self._shared.connect() as connection:
                refused = await _find_refused(tasks, connection)
                for position, error in refused.items():
                    yield position, FailedTask(position, tasks[position], error)
                positions = [position for position in tasks if position not in refused]
                source = [tasks[position] for position in positions]
                async for item in connection.manager.map(source, concurrency=self._concurrency):
                    position = positions[item.index]
                    if repeats_left and self._may_repeat(item):
                        failed[position] = tasks[position]
                    else:
                        yield position, item
                if failed:
                    await connection.wait_lost()
            tasks = failed

    def _may_repeat(self, item: TaskResult) -> bool:
        if not isinstance(item.error, (ConnectError, ConnectionLostError)):
            return False
        task = item.task
        # The error of a task with tests is the error of one test. Other tests may have run.
        never_sent = item.error.sent == "no" and not task.tests
        return never_sent or (self._settings.retry.idempotent if task.idempotent is None else task.idempotent)


async def _find_refused(tasks: dict[int, CodeTask], connection: FaasConnection) -> dict[int, FaasrtError]:
    languages = {task.language for task in tasks.values()}
    async with asyncio.TaskGroup() as group:
        waits = {language: group.create_task(connection.wait_ready(language)) for language in languages}
    errors = {language: error for language, wait in waits.items() if (error := wait.result()) is not None}
    return {position: errors[task.language] for position, task in tasks.items() if task.language in errors}


def to_task(row: dict[str, Any], sandbox: SandboxConfig) -> CodeTask:
    values = {name: row[name] for name in _FORMS if row.get(name) is not None}
    for name, value in values.items():
        if isinstance(value, str) and _FORMS[name].holds_several:
            values[name] = _strict_json.loads(value) if value else None
        elif name == "tests" and isinstance(value, list):
            values[name] = [_test_to_json(test) for test in value]
        elif name not in _VALUES:
            values[name] = _to_json(value)
    # An empty list is the default of each list, and an empty map of Arrow is an empty list.
    return CodeTask.from_dict({name: value for name, value in values.items() if value != []}, sandbox)


def _to_json(value: Any) -> Any:
    """Return a value of Arrow as decoded JSON: objects without null fields, maps as objects, and bytes as text."""
    if isinstance(value, list) and value and all(isinstance(member, tuple) for member in value):
        value = dict(value)  # Arrow has tuples in maps only
    if isinstance(value, dict):
        return {name: _to_json(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_to_json(member) for member in value]
    return bytes_to_wire(value) if isinstance(value, bytes) else value


def _test_to_json(test: Any) -> Any:
    if not isinstance(test, dict):
        return test
    fields = {name: _to_json(value) for name, value in test.items() if name not in _VALUES}
    return fields | {name: test[name] for name in _VALUES if name in test}


def _to_columns(item: TaskResult) -> dict[str, Any]:
    if item.error is not None and is_invalid(item.task, item.error):
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
    if item.task.collect:
        fields["collected_files"] = json.dumps(fields["files"])
    if item.task.displays:
        fields["displayed"] = json.dumps(fields["displays"])
    return {name: fields[name] for name in COLUMNS if name in fields}


def _printable(value: Any) -> Any:
    """Escape lone surrogates, which Arrow's text cannot hold. Programs and servers may send them."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
