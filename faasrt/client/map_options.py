"""The options and the results of `RuntimeManager.map`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, Self, TypeAlias

from faasrt._checks import must_be
from faasrt.errors import ConfigurationError, shown
from faasrt.results import Outcome
from faasrt.tasks import TaskResult

Condition: TypeAlias = Outcome | type[BaseException] | Callable[[TaskResult], bool]
StopOn: TypeAlias = Condition | Collection[Outcome | type[BaseException]] | None


count = must_be(
    "a whole number from 1 to 100000",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000,
)


def check_stop_on(stop_on: StopOn) -> Callable[[TaskResult], bool]:
    """Return a function that tests a result for the condition `stop_on`, or raise ConfigurationError if it is none."""
    if stop_on is None:
        return lambda item: False
    if callable(stop_on) and not isinstance(stop_on, type):
        if inspect.iscoroutinefunction(stop_on) or inspect.iscoroutinefunction(type(stop_on).__call__):
            raise ConfigurationError(f"stop_on must not be async (a coroutine is always true), got {shown(stop_on)}")
        return stop_on
    conditions = [stop_on] if isinstance(stop_on, (type, Outcome)) else stop_on
    if isinstance(conditions, (str, bytes, Mapping)) or not isinstance(conditions, Collection):
        raise ConfigurationError(
            f"stop_on must be an Outcome, an error class, a collection of these, or a function, got {shown(stop_on)}"
        )
    outcomes = {condition for condition in conditions if isinstance(condition, Outcome)}
    errors = tuple(
        condition for condition in conditions if isinstance(condition, type) and issubclass(condition, BaseException)
    )
    if len(outcomes) + len(errors) != len(conditions):
        raise ConfigurationError(f"stop_on must contain only Outcomes and error classes, got {shown(stop_on)}")
    return lambda item: item.result.outcome in outcomes if item.result else isinstance(item.error, errors)


class ResultStream(AsyncGenerator[TaskResult]):
    """The results of `RuntimeManager.map`: an asynchronous generator that is also an asynchronous context manager.

    Args:
        generator: Yields the results. The event loop closes it when the stream is garbage-collected.
        close: Stops the map if the generator was not started.
    """

    def __init__(self, generator: AsyncGenerator[TaskResult], close: Callable[[], Awaitable[None]]) -> None:
        self._generator = generator
        self._close = close

    def __anext__(self) -> Coroutine[Any, Any, TaskResult]:
        return self._generator.__anext__()

    async def asend(self, value: None) -> TaskResult:
        """Return the next result, like `anext`."""
        return await self._generator.asend(value)

    async def athrow(self, *error: Any) -> TaskResult:
        """Raise an error in the generator, which ends the results."""
        return await self._generator.athrow(*error)

    async def aclose(self) -> None:
        """Stop the source, cancel the executions in flight, and wait for both. Closing twice is harmless.

        Cancellation: raised after that.
        """
        await self._generator.aclose()
        await self._close()  # closing a generator that was not started does not run its clean-up

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
