"""The results of `RuntimeManager.map`, as its caller gets them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from types import TracebackType
from typing import Any, Self

from faasrt.batch import TaskResult


class ResultStream(AsyncGenerator[TaskResult]):
    """The results of `RuntimeManager.map`: an asynchronous generator, which `async with` closes at its end.

    Args:
        generator: Gives the results. Dropping the stream drops it, and the event loop closes it then.
    """

    def __init__(self, generator: AsyncGenerator[TaskResult]) -> None:
        self._generator = generator

    def __anext__(self) -> Coroutine[Any, Any, TaskResult]:
        return self._generator.__anext__()

    async def asend(self, value: None) -> TaskResult:
        """Return the next result, as `anext` does."""
        return await self._generator.asend(value)

    async def athrow(self, *error: Any) -> TaskResult:
        """Raise an error where the results are given: it ends them."""
        return await self._generator.athrow(*error)

    async def aclose(self) -> None:
        """Stop the source, cancel the executions in flight, and wait for both. Closing twice is harmless.

        Cancellation: is raised once that is done.
        """
        await self._generator.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()
