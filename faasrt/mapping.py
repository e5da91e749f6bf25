"""Batches: the engine of `RuntimeManager.map`. Many tasks, read lazily, through some calls in flight.

The tasks come out of any iterable or asynchronous iterable: a million take no more memory than a thousand
(`benchmarks/map.py`). An infrastructure failure is its item's `error` and stops nothing; `stop_on=ServiceError` makes
it the last item. Tasks wait for room at the servers without limit. Leaving the loop or a cancellation stops the source
and what is in flight. `coalesce=N` runs up to N tasks in a row that differ in their `args` alone in one execution.

`faasrt batch` does it for files, and goes on after a crash (see `faasrt.cli`); `faasrt.ray.run_tasks` does it on
several machines.

Example:
    >>> async def read_tasks():
    ...     for n in range(3):
    ...         yield CodeTask("def check(n): return n % 2 == 0", "python", function="check", args=[n])
    >>> async for item in manager.map(read_tasks(), concurrency=64, ordered=True, coalesce=100, stop_on=ServiceError):
    ...     print(item.index, item.result.value)
    0 True
    1 False
    2 True
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from typing import Any, TypeAlias

import attrs

from faasrt.batch import CodeTask, TaskResult
from faasrt.errors import ConfigurationError, FaasrtError, InvalidRequestError, RuntimeClosedError
from faasrt.languages import Language
from faasrt.map_options import StopOn, check_count, check_ordered, check_stop_on
from faasrt.result_stream import ResultStream
from faasrt.runtime import Runtime

MAX_WINDOW = 64
"""How many tasks are read beyond those in flight, at most; never more than are in flight."""

GetRuntime: TypeAlias = Callable[[Language], Awaitable[Runtime]]


class _Source:
    """Reads tasks one by one, from whatever gives them.

    Attributes:
        error: What it raised; there is nothing more to read then.
    """

    def __init__(self, tasks: Iterable[CodeTask] | AsyncIterable[CodeTask]) -> None:
        self._iterator: Any
        self._is_async = isinstance(tasks, AsyncIterable)
        if isinstance(tasks, AsyncIterable):
            self._iterator = aiter(tasks)
        elif isinstance(tasks, Iterable):
            self._iterator = iter(tasks)
        else:
            raise InvalidRequestError(f"tasks must be an iterable of CodeTasks, got {type(tasks).__name__}")
        self._next: asyncio.Task[CodeTask] | None = None
        self._back: deque[tuple[int, CodeTask]] = deque()
        self._count = 0
        self._ended = False
        self.error: Exception | None = None

    async def read(self, *, wait: bool = True) -> tuple[int, CodeTask] | None:
        """Give the next task with its index; None at the end, or when none is there and `wait` is false."""
        if self._back:
            return self._back.popleft()
        if self._ended:
            return None
        try:
            task = await self._read(wait=wait)
        except Exception as error:
            self._ended, self.error = True, error
            return None
        if task is None:
            return None
        self._count += 1
        return self._count - 1, task

    def put_back(self, index: int, task: CodeTask) -> None:
        """Have a task read once more."""
        self._back.append((index, task))

    async def aclose(self) -> None:
        """Stop it: a generator is closed."""
        self._ended = True
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            if not self._next.cancelled():
                self._next.exception()  # nobody is left to be told of it
        if inspect.isasyncgen(self._iterator):
            await self._iterator.aclose()
        elif inspect.isgenerator(self._iterator):
            self._iterator.close()

    async def _read(self, *, wait: bool) -> CodeTask | None:
        if self._is_async:
            if self._next is None:
                self._next = asyncio.ensure_future(_anext(self._iterator))
                await asyncio.sleep(0)
            if not wait and not self._next.done():
                return None
            await asyncio.wait({self._next})
            finished, self._next = self._next, None
            found: Any = finished.result()
        else:
            found = next(self._iterator, _END)
        if found is _END:
            self._ended = True
            return None
        if not isinstance(found, CodeTask):
            raise InvalidRequestError(f"item {self._count} of the tasks is a {type(found).__name__}, not a CodeTask")
        return found


_END = object()


async def _anext(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, _END)


class Maps:
    """The maps of one manager that have begun and not ended, so that closing the manager ends them."""

    def __init__(self) -> None:
        self._running: set[_Map] = set()

    def start(
        self,
        get_runtime: GetRuntime,
        tasks: Iterable[CodeTask] | AsyncIterable[CodeTask],
        *,
        concurrency: int | None,
        ordered: bool,
        stop_on: StopOn,
        coalesce: int,
        most: int,
    ) -> ResultStream:
        """Run tasks, and give the results; `RuntimeManager.map` tells the rest.

        Args:
            get_runtime: Gives the runtime of a language.
            tasks: The tasks.
            concurrency: Executions in flight, at most; `most` when None.
            ordered: Whether results come in the order of the tasks.
            stop_on: Says which result is the last.
            coalesce: How many tasks in a row may become one execution.
            most: The calls in flight that the manager allows.
        """
        one = _Map(
            get_runtime,
            _Source(tasks),
            check_count("concurrency", concurrency, default=most),
            check_ordered(ordered),
            check_stop_on(stop_on),
            check_count("coalesce", coalesce, default=1),
            self._running,
        )
        return ResultStream(one.run())

    async def aclose(self) -> None:
        """Stop all of them; who still reads their results gets `RuntimeClosedError`.

        Cancellation: they go on stopping.
        """
        stopping = [one.stop() for one in self._running]
        for one in self._running:
            one.fail(RuntimeClosedError("this manager was closed while its results were read"))
        if stopping:
            await asyncio.wait(stopping)


@attrs.define(eq=False)
class _Map:
    _get_runtime: GetRuntime
    _source: _Source
    _concurrency: int
    _ordered: bool
    _stop_after: Callable[[TaskResult], bool]
    _coalesce: int
    _running: set[_Map]
    _reading: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    # Each task takes one when it is read, and gives it back when its result has been delivered: so a consumer that goes
    # away without closing the results stops all work when they are used up.
    _slots: asyncio.Semaphore = attrs.field(init=False)
    # None says that a worker has ended.
    _results: asyncio.Queue[TaskResult | BaseException | None] = attrs.field(factory=asyncio.Queue, init=False)
    _workers: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    # Workers whose end was not delivered yet.
    _working: int = attrs.field(default=0, init=False)
    _stopping: asyncio.Task[None] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        window = min(self._concurrency, MAX_WINDOW)
        self._slots = asyncio.Semaphore((self._concurrency + window) * self._coalesce)

    async def run(self) -> AsyncGenerator[TaskResult]:
        """Give the results. However this ends, the source is stopped, and nothing stays in flight."""
        self._running.add(self)
        try:
            self._start_worker()
            async for item in self._deliver():
                self._slots.release()
                yield item
                if self._stop_after(item):
                    return
            if self._source.error is not None:
                raise self._source.error
        finally:
            await _wait_through(self.stop())

    def stop(self) -> asyncio.Task[None]:
        """Begin to stop the workers and the source; the task ends when they have ended.

        A task of its own, because no cancellation of its caller may leave the source open.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        return self._stopping

    def fail(self, error: BaseException) -> None:
        """Have the consumer get an error after the results that are there."""
        self._results.put_nowait(error)

    async def _stop(self) -> None:
        try:
            while self._workers:
                for worker in self._workers:
                    worker.cancel()
                await asyncio.wait(self._workers)
            await self._source.aclose()
        finally:
            self._running.discard(self)

    def _start_worker(self) -> None:
        self._working += 1
        worker = asyncio.create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _deliver(self) -> AsyncIterator[TaskResult]:
        held: dict[int, TaskResult] = {}
        index = 0
        while self._working:
            item = await self._results.get()
            if item is None:
                self._working -= 1
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
                # As many workers as there are tasks to run at once: a small input needs few.
                if is_newest and len(self._workers) < self._concurrency:
                    self._start_worker()
                is_newest = False
                for item in await self._execute(batch):
                    self._results.put_nowait(item)
        except BaseException as error:
            # Also a cancellation that came out of the source: nobody else would tell of it.
            self._results.put_nowait(error)
            return
        self._results.put_nowait(None)

    async def _read(self) -> list[tuple[int, CodeTask]]:
        """Take the next task, and those behind it that can share its execution."""
        await self._slots.acquire()
        async with self._reading:
            first = await self._source.read()
            if first is None:
                self._slots.release()
                return []
            batch = [first]
            if _can_share(first[1]):
                while len(batch) < self._coalesce and not self._slots.locked():
                    found = await self._source.read(wait=False)
                    if found is None:
                        break
                    if not _can_share(found[1]) or _key(found[1]) != _key(first[1]):
                        self._source.put_back(*found)
                        break
                    await self._slots.acquire()
                    batch.append(found)
        return batch

    async def _execute(self, batch: list[tuple[int, CodeTask]]) -> list[TaskResult]:
        if len(batch) == 1:
            return [await self._execute_one(*batch[0])]
        task = batch[0][1]
        assert task.function is not None
        try:
            runtime = (await self._get_runtime(task.language)).patiently()
            cases = [task.args for _, task in batch]
            results = await runtime.run_cases(
                task.code, task.function, cases, language=task.language, timeout_ms=task.timeout_ms
            )
        except _FATAL as error:
            await self._check_open(task, error)
            return [TaskResult(index, task, error=error) for index, task in batch]
        except InvalidRequestError:
            # One of them is wrong, and the others are not to suffer for it.
            return [await self._execute_one(index, task) for index, task in batch]
        except FaasrtError as error:
            return [TaskResult(index, task, error=error) for index, task in batch]
        return [TaskResult(index, task, result) for (index, task), result in zip(batch, results, strict=True)]

    async def _execute_one(self, index: int, task: CodeTask) -> TaskResult:
        try:
            runtime = await self._get_runtime(task.language)
            result = await runtime.patiently().run_task(task)
        except _FATAL as error:
            await self._check_open(task, error)
            return TaskResult(index, task, error=error)
        except FaasrtError as error:
            return TaskResult(index, task, error=error)
        return TaskResult(index, task, result)

    async def _check_open(self, task: CodeTask, error: FaasrtError) -> None:
        """Raise what would befall every other task as well; a runtime alone may have been closed by `clear_cache`."""
        if not isinstance(error, RuntimeClosedError):
            raise error
        await self._get_runtime(task.language)


async def _wait_through(task: asyncio.Task[None]) -> None:
    """Wait for a clean-up to end, however often the caller is cancelled meanwhile; that is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    task.result()


# After these every task would fail alike, as a rule.
_FATAL = (RuntimeClosedError, ConfigurationError)


def _can_share(task: CodeTask) -> bool:
    return task.function is not None and not task.kwargs and not task.ext


def _key(task: CodeTask) -> tuple[Any, ...]:
    return task.code, task.language, task.function, task.timeout_ms
