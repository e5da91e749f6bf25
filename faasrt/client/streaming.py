"""The output of a program while it runs: a queue of one chunk between the transport and the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from faasrt.errors import StreamError
from faasrt.results import ExecutionResult, OutputChunk
from faasrt.transport.live_reader import LiveReader


class StreamedRun:
    r"""A program whose output arrives while it runs. `stream_code` returns it.

    It is an asynchronous context manager, which starts the program, and an asynchronous iterator of its output. Leaving
    the block ends a program that still runs, and returns its permit and its connection, without an error.

    Args:
        run: Runs the program, and passes its output to the reader.

    Example:
        >>> async with manager.stream_code("print('hi'); return_val('1')", "python") as run:
        ...     async for chunk in run:
        ...         print(chunk.stream, repr(chunk.text))
        stdout 'hi\n'
        >>> run.result.value, run.live
        (1, True)
    """

    def __init__(self, run: Callable[[LiveReader], Awaitable[ExecutionResult]]) -> None:
        self._run = run
        self._entered = False
        self._reader = LiveReader(self._deliver)
        self._task: asyncio.Task[None] | None = None
        self._chunk: OutputChunk | None = None
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()
        self._result: ExecutionResult | None = None
        self._error: Exception | None = None
        self._left = False

    @property
    def live(self) -> bool:
        """Whether the server sends the output while the program runs; False before the first output.

        The embedded FaaS does. Other servers return all output at the end: one chunk for each stream.
        """
        return self._reader.live

    @property
    def result(self) -> ExecutionResult:
        """The result, as with `run_code`, after the iteration has ended.

        Raises:
            StreamError: The iteration has not ended.
            FaasrtError: The error of the call, if it failed.
        """
        if self._error is not None:
            raise self._error
        if self._result is None or self._chunk is not None:
            reason = "the block was left before the end" if self._left else "the program has not ended"
            raise StreamError(f"there is no result, because {reason}: iterate to the end of the output first")
        return self._result

    async def __aenter__(self) -> Self:
        if self._entered:
            raise StreamError("a streamed run can be used only once: call stream_code again")
        self._entered = True
        # This task is outside of a task group, because errors of the block must not become exception groups.
        self._task = asyncio.create_task(self._execute(), name="faasrt-stream")
        self._task.add_done_callback(lambda task: self._arrived.set())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._task is not None
        self._left = True
        self._task.cancel()
        await asyncio.wait({self._task})

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputChunk:
        """Wait for output. Raise the errors of `Runtime.run_code`, and StreamError after the block was left before the
        end.

        Cancellation: no output is lost.
        """
        if self._task is None:
            raise StreamError("a streamed run must be entered first, with a `with` or `async with` statement")
        while self._chunk is None and not self._task.done():
            self._arrived.clear()
            await self._arrived.wait()
        chunk, self._chunk = self._chunk, None
        self._taken.set()
        if chunk is not None:
            return chunk
        _ = self.result  # raises an error if output may be missing
        raise StopAsyncIteration

    async def _execute(self) -> None:
        try:
            result = await self._run(self._reader)
            if not self._reader.live:
                elapsed_s = result.timings.total_s if result.duration_ms is None else result.duration_ms / 1000
                stdout = OutputChunk(stream="stdout", text=result.stdout, elapsed_s=elapsed_s)
                stderr = OutputChunk(stream="stderr", text=result.stderr, elapsed_s=elapsed_s)
                for chunk in (stdout, stderr):
                    if chunk.text:
                        await self._deliver(chunk)
            self._result = result
        except Exception as error:
            self._error = error

    async def _deliver(self, chunk: OutputChunk) -> None:
        self._chunk = chunk
        self._taken.clear()
        self._arrived.set()
        await self._taken.wait()
