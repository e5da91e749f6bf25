"""The results of `map` for code without asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import itertools
import queue
from collections.abc import AsyncIterator, Generator, Iterable
from typing import Any, Self

from faasrt.client.loop_thread import LoopThread
from faasrt.client.map_options import ResultStream
from faasrt.errors import RuntimeClosedError
from faasrt.tasks import CodeTask, TaskResult

_Reply = asyncio.Future[tuple[list[CodeTask], BaseException | None]]


class TaskReader:
    """Reads tasks in the thread that waits for results, when the event loop asks for them.

    Attributes:
        messages: The requests of the loop, and the next result when it is available.
        chunk: The number of tasks to read at a time.
    """

    def __init__(self, tasks: Iterable[CodeTask], thread: LoopThread) -> None:
        self._iterator = iter(tasks)
        self._thread = thread
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.chunk = 1

    async def read(self) -> AsyncIterator[CodeTask]:
        """Yield the tasks, in the event loop."""
        error: BaseException | None = None
        while error is None:
            reply: _Reply = asyncio.get_running_loop().create_future()
            self.messages.put(reply)
            tasks, error = await reply
            for task in tasks:
                yield task
        if not isinstance(error, StopIteration):
            raise error

    def serve(self, reply: _Reply) -> None:
        """Read some tasks, in the thread that waits for results."""
        tasks: list[CodeTask] = []
        error: BaseException | None = None
        try:
            tasks.extend(itertools.islice(self._iterator, self.chunk))
            if len(tasks) < self.chunk:
                error = StopIteration()
        except Exception as raised:
            error = raised
        self._thread.call_soon(_answer, reply, (tasks, error))

    def close(self) -> None:
        if inspect.isgenerator(self._iterator):
            self._iterator.close()


def _answer(reply: _Reply, value: tuple[list[CodeTask], BaseException | None]) -> None:
    if not reply.done():  # the map may have ended
        reply.set_result(value)


class _Steps:
    """The results of a map in the event loop.

    Args:
        results: The results.
    """

    def __init__(self, results: ResultStream) -> None:
        self._results = results
        self._reading: asyncio.Task[Any] | None = None

    async def next(self) -> TaskResult | None:
        """Return the next result; None at the end."""
        self._reading = asyncio.current_task()
        return await anext(self._results, None)

    async def aclose(self) -> None:
        """Stop the map, also while `next` waits, as after a KeyboardInterrupt."""
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.wait({self._reading})
        await self._results.aclose()


class TaskResults(Generator[TaskResult]):
    """The results of `RuntimeManager.map`: a generator that is also a context manager."""

    def __init__(self, reader: TaskReader, results: ResultStream, thread: LoopThread) -> None:
        self._generator = _read_results(reader, results, thread)
        next(self._generator)  # from now on, closing it stops the work

    def __next__(self) -> TaskResult:
        return self.send(None)

    def send(self, value: None) -> TaskResult:
        """Return the next result, like `next`."""
        result = self._generator.send(value)
        assert result is not None
        return result

    def throw(self, *error: Any) -> TaskResult:
        """Raise an error in the generator, which ends the results."""
        result = self._generator.throw(*error)
        assert result is not None
        return result

    def close(self) -> None:
        """Stop reading, cancel the executions in flight, and wait for both. Closing twice is harmless."""
        self._generator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _read_results(
    reader: TaskReader, results: ResultStream, thread: LoopThread
) -> Generator[TaskResult | None, None, None]:
    """Yield None once, and then the results."""
    steps = _Steps(results)
    try:
        yield None
        while True:
            future = thread.start(steps.next())
            future.add_done_callback(reader.messages.put)
            while (message := reader.messages.get()) is not future:
                reader.serve(message)
            try:
                result = future.result()
            except concurrent.futures.CancelledError:
                raise RuntimeClosedError("this manager was closed before all results were read") from None
            if result is None:
                return
            yield result
    finally:
        with contextlib.suppress(RuntimeClosedError):
            closing = thread.start(steps.aclose())
            if not thread.is_current:  # where the garbage collector may run
                closing.result()
        reader.close()
