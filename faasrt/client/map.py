"""Runs any number of tasks with flat memory: workers that read tasks when they have room, and a queue of results."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
)
from typing import Any, Self, TypeAlias

import attrs

from faasrt._run_option_checks import check_count, check_flag
from faasrt._shielded_wait import wait_shielded
from faasrt.client.cache import ResultCache
from faasrt.client.runtime import Runtime, with_cache
from faasrt.errors import (
    ConfigurationError,
    FaasrtError,
    InvalidRequestError,
    RuntimeClosedError,
    ServiceError,
    safe_repr,
)
from faasrt.judging import Judgement
from faasrt.languages import Language, OtherLanguage
from faasrt.protocol.cases import encode_case
from faasrt.results import ExecutionResult, Outcome
from faasrt.tasks import CallOptions, CodeTask, CompletedTask, FailedTask, JudgeOptions, RunOptions, TaskResult

MAX_WINDOW = 64
"""The maximum number of tasks that are read ahead of the tasks in flight. It is also limited to the concurrency."""

Condition: TypeAlias = Outcome | type[BaseException] | Callable[[TaskResult], bool]
StopOn: TypeAlias = Condition | Collection[Outcome | type[BaseException]] | None
GetRuntime: TypeAlias = Callable[[Language | OtherLanguage], Awaitable[Runtime]]


def check_stop_on(stop_on: StopOn) -> Callable[[TaskResult], bool]:
    if stop_on is None:
        return lambda item: False
    if callable(stop_on) and not isinstance(stop_on, type):
        if inspect.iscoroutinefunction(stop_on) or inspect.iscoroutinefunction(type(stop_on).__call__):
            raise InvalidRequestError(
                f"stop_on must not be async (a coroutine is always true), got {safe_repr(stop_on)}"
            )
        return stop_on
    conditions = [stop_on] if isinstance(stop_on, (type, Outcome)) else stop_on
    if isinstance(conditions, (str, bytes, Mapping)) or not isinstance(conditions, Collection):
        raise InvalidRequestError(
            "stop_on must be an Outcome, an error class, a collection of these, or a function, "
            f"got {safe_repr(stop_on)}"
        )
    outcomes = {condition for condition in conditions if isinstance(condition, Outcome)}
    errors = tuple(
        condition for condition in conditions if isinstance(condition, type) and issubclass(condition, BaseException)
    )
    if len(outcomes) + len(errors) != len(conditions):
        raise InvalidRequestError(f"stop_on must contain only Outcomes and error classes, got {safe_repr(stop_on)}")
    return lambda item: isinstance(item.error, errors) if item.result is None else item.result.outcome in outcomes


class TaskResults(AsyncGenerator[TaskResult]):
    """The results of `RuntimeManager.map`: an asynchronous generator and context manager. `close` stops the map if the
    generator was not started.
    """

    def __init__(self, generator: AsyncGenerator[TaskResult], close: Callable[[], Awaitable[None]]) -> None:
        self._generator = generator
        self._close = close

    def __anext__(self) -> Coroutine[Any, Any, TaskResult]:
        return self._generator.__anext__()

    async def asend(self, value: None) -> TaskResult:
        return await self._generator.asend(value)

    async def athrow(self, *error: Any) -> TaskResult:
        return await self._generator.athrow(*error)

    async def aclose(self) -> None:
        """Stop the source, cancel the executions in flight, and wait for both.

        Cancellation: raised after that.
        """
        await self._generator.aclose()
        await self._close()  # closing a generator that was not started does not run its clean-up

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class _Source:
    """Reads tasks one by one. `error` is the exception that the iterable raised, which ends the tasks."""

    def __init__(self, tasks: Iterable[CodeTask] | AsyncIterable[CodeTask]) -> None:
        if not isinstance(tasks, (AsyncIterable, Iterable)):
            raise InvalidRequestError(f"tasks must be an iterable of CodeTasks, got {type(tasks).__name__}")
        self._is_async = isinstance(tasks, AsyncIterable)
        self._iterator: Any = aiter(tasks) if isinstance(tasks, AsyncIterable) else iter(tasks)
        self._next: asyncio.Task[CodeTask] | None = None
        self._unread: tuple[int, CodeTask] | None = None
        self._count = 0
        self._ended = False
        self.error: Exception | None = None

    async def read(self, *, wait: bool = True) -> tuple[int, CodeTask] | None:
        """Return the next task with its index; None at the end, or if `wait` is false and no task is available yet."""
        if self._unread is not None:
            unread, self._unread = self._unread, None
            return unread
        if self._ended:
            return None
        item: Any
        try:
            if self._is_async:
                if self._next is None:
                    self._next = asyncio.ensure_future(_anext(self._iterator))
                    await asyncio.sleep(0)
                if not wait and not self._next.done():
                    return None
                await asyncio.wait({self._next})
                finished, self._next = self._next, None
                item = finished.result()
            else:
                item = next(self._iterator, _END)
            if item is not _END and not isinstance(item, CodeTask):
                kind = type(item).__name__
                raise InvalidRequestError(f"tasks must yield CodeTasks, got {kind} at index {self._count}")
        except Exception as error:
            item, self.error = _END, error
        if item is _END:
            self._ended = True
            return None
        self._count += 1
        return self._count - 1, item

    def push_back(self, index: int, task: CodeTask) -> None:
        self._unread = index, task

    async def aclose(self) -> None:
        self._ended = True
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        if inspect.isasyncgen(self._iterator):
            await self._iterator.aclose()
        elif inspect.isgenerator(self._iterator):
            self._iterator.close()


_END = object()


async def _anext(iterator: AsyncIterator[Any]) -> Any:
    # Not `anext(iterator, _END)`: it crashes CPython 3.11 when `__anext__` raises instead of returning an awaitable.
    try:
        return await iterator.__anext__()
    except StopAsyncIteration:
        return _END


async def stop_maps(maps: set[Map]) -> None:
    """Stop maps, and raise `RuntimeClosedError` in consumers that are still reading results.

    Cancellation: the maps still stop, in the background.
    """
    stopping = [running_map.stop() for running_map in maps]
    for running_map in maps:
        running_map.fail(RuntimeClosedError("this manager was closed before all results were read"))
    if stopping:
        await asyncio.wait(stopping)


@attrs.define(eq=False)
class Map:
    """One run of `RuntimeManager.map`. It is in the set `running` from its start to its end."""

    _get_runtime: GetRuntime
    _running: set[Map]
    _source: _Source = attrs.field(alias="tasks", converter=_Source)
    _concurrency: int
    _ordered: bool
    _stop_on: Callable[[TaskResult], bool] = attrs.field(converter=check_stop_on)
    _max_failures: int | None
    _coalesce: int
    _cache: ResultCache | None = None
    _reading: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    # Each task acquires a slot when it is read, and releases it when its result is delivered. If the consumer stops
    # reading without closing the results, the slots run out and the work stops.
    _slots: asyncio.Semaphore = attrs.field(init=False)
    # The last item of each worker is None.
    _results: asyncio.Queue[TaskResult | BaseException | None] = attrs.field(factory=asyncio.Queue, init=False)
    _workers: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    # The number of workers whose None has not been read from `_results`.
    _active_workers: int = attrs.field(default=0, init=False)
    _stopping: asyncio.Task[None] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        check_count("concurrency", self._concurrency)
        check_count("coalesce", self._coalesce)
        if self._max_failures is not None:
            check_count("max_failures", self._max_failures)
        check_flag("ordered", self._ordered, optional=False)
        window = min(self._concurrency, MAX_WINDOW)
        self._slots = asyncio.Semaphore((self._concurrency + window) * self._coalesce)

    async def run(self) -> AsyncGenerator[TaskResult]:
        """Yield the results. However this ends, the source is then stopped and no call is in flight."""
        self._running.add(self)
        failures = 0
        try:
            self._start_worker()
            async for item in self._deliver():
                self._slots.release()
                yield item
                if self._stop_on(item):
                    return
                failures = failures + 1 if isinstance(item.error, ServiceError) else 0
                if failures == self._max_failures:
                    assert item.error is not None
                    item.error.add_note(
                        f"the map ends after {failures:,} infrastructure failures in a row (max_failures)"
                    )
                    raise item.error
            if self._source.error is not None:
                raise self._source.error
        finally:
            await wait_shielded(self.stop())

    async def aclose(self) -> None:
        """Stop the source, unless `run` has stopped it.

        Cancellation: raised after the source has stopped.
        """
        if self._stopping is None:
            await wait_shielded(self.stop())

    def fail(self, error: FaasrtError) -> None:
        """Raise an error in the consumer when it has read the results that are there."""
        self._results.put_nowait(error)

    def stop(self) -> asyncio.Task[None]:
        """Return the task that stops the workers and the source, even if the caller is cancelled."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        return self._stopping

    async def _stop(self) -> None:
        try:
            while self._workers:
                for worker in self._workers:
                    worker.cancel()
                await asyncio.wait(self._workers)
            await self._source.aclose()
        finally:
            self._running.discard(self)
            if self._cache is not None:
                await self._cache.aclose()

    def _start_worker(self) -> None:
        self._active_workers += 1
        worker = asyncio.create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _deliver(self) -> AsyncIterator[TaskResult]:
        held: dict[int, TaskResult] = {}
        index = 0
        while self._active_workers:
            item = await self._results.get()
            if item is None:
                self._active_workers -= 1
            elif isinstance(item, BaseException):
                raise item
            elif not self._ordered:
                yield item
            else:
                held[item.index] = item
                while index in held:
                    yield held.pop(index)
                    index += 1

    async def _work(self) -> None:
        try:
            is_newest = True
            while batch := await self._read():
                # Each worker starts the next one, so that a small input starts only a few.
                if is_newest and len(self._workers) < self._concurrency:
                    self._start_worker()
                is_newest = False
                for item in await self._execute(batch):
                    self._results.put_nowait(item)
        except BaseException as error:
            # Not only Exception: a CancelledError raised by the source must reach the consumer.
            self._results.put_nowait(error)
            return
        self._results.put_nowait(None)

    async def _read(self) -> list[tuple[int, CodeTask]]:
        """Return the next task and those after it that can share its execution; an empty list at the end."""
        await self._slots.acquire()
        async with self._reading:
            first = await self._source.read()
            if first is None:
                self._slots.release()
                return []
            batch, key = [first], _batch_key(first[1])
            while key is not None and len(batch) < self._coalesce and not self._slots.locked():
                following = await self._source.read(wait=False)
                if following is None:
                    break
                if _batch_key(following[1]) != key:
                    self._source.push_back(*following)
                    break
                await self._slots.acquire()
                batch.append(following)
        return batch

    async def _execute(self, batch: list[tuple[int, CodeTask]]) -> list[TaskResult]:
        task = batch[0][1]
        try:
            runtime = await self._get_runtime(task.language)
            if self._cache is not None:
                runtime = with_cache(runtime, self._cache)
            if task.function is None or len(batch) == 1:
                result, judgement = await run_task(runtime, task)
                return [CompletedTask(batch[0][0], task, result, judgement=judgement)]
            cases = [task.args for _, task in batch]
            results = await runtime.run_cases(task.code, task.function, cases, **task.options(CallOptions))
        except ConfigurationError:
            raise  # every other task would fail in the same way
        except FaasrtError as error:
            if isinstance(error, RuntimeClosedError):
                await self._get_runtime(task.language)  # raises if the manager is closed too
            is_refused = isinstance(error, InvalidRequestError) and len(batch) > 1
            if is_refused and not all(_has_valid_args(task) for _, task in batch):
                # The arguments are checked before anything is sent, so no task has run. Run each task separately, so
                # that only the invalid ones fail.
                return [result for numbered_task in batch for result in await self._execute([numbered_task])]
            return [FailedTask(index, task, error) for index, task in batch]
        return [CompletedTask(index, task, result) for (index, task), result in zip(batch, results, strict=True)]


async def run_task(runtime: Runtime, task: CodeTask) -> tuple[ExecutionResult, Judgement | None]:
    if task.tests:
        judgement = await runtime.judge(
            task.code,
            task.tests,
            function=task.function,
            compare=task.compare,
            stop_on_failure=task.stop_on_failure,
            **task.options(JudgeOptions),
        )
        result = (judgement.first_failure or judgement.results[-1]).result
        assert result is not None
        return result, judgement
    if task.function is None:
        return await runtime.run_code(task.code, **task.options(RunOptions)), None
    options = task.options(CallOptions)
    return await runtime.call_function(task.code, task.function, task.args, task.kwargs, **options), None


def _has_valid_args(task: CodeTask) -> bool:
    try:
        encode_case(task.args, {}, task.language)
    except InvalidRequestError:
        return False
    return True


def _batch_key(task: CodeTask) -> tuple[Any, ...] | None:
    """Return a key that is the same for tasks that can share an execution; None for others."""
    if task.function is None or task.tests or task.kwargs or task.ext:
        return None
    return task.code, task.language, task.function, task.options(CallOptions)
