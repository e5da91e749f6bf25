"""The options of `RuntimeManager.map`, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from faasrt.batch import TaskResult
from faasrt.errors import ConfigurationError, shown
from faasrt.results import Outcome

Condition: TypeAlias = Outcome | type[BaseException] | Callable[[TaskResult], bool]
StopOn: TypeAlias = Condition | Collection[Outcome | type[BaseException]] | None


def check_count(name: str, value: object, *, default: int) -> int:
    """Give a number of at least 1, or the default for None.

    Raises:
        ConfigurationError: It is none.
    """
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
        raise ConfigurationError(f"{name} must be a whole number from 1 to 100000, got {shown(value)}")
    return value


def check_ordered(ordered: object) -> bool:
    """Give `ordered` back.

    Raises:
        ConfigurationError: It is no bool.
    """
    if not isinstance(ordered, bool):
        raise ConfigurationError(f"ordered must be True or False, got {shown(ordered)}")
    return ordered


def check_stop_on(stop_on: StopOn) -> Callable[[TaskResult], bool]:
    """Make a test of a condition: an outcome, a class of errors, several of these, or a function.

    Raises:
        ConfigurationError: It is none of them.
    """
    if stop_on is None:
        return lambda item: False
    if callable(stop_on) and not isinstance(stop_on, type):
        if inspect.iscoroutinefunction(stop_on) or inspect.iscoroutinefunction(type(stop_on).__call__):
            raise ConfigurationError(f"stop_on must not be async, as a coroutine is true: {shown(stop_on)}")
        return stop_on
    conditions = [stop_on] if isinstance(stop_on, (type, Outcome)) else stop_on
    if isinstance(conditions, (str, bytes, Mapping)) or not isinstance(conditions, Collection):
        raise ConfigurationError(
            f"stop_on must be an Outcome, an error's class, several, or a function, got {shown(stop_on)}"
        )
    outcomes = {condition for condition in conditions if isinstance(condition, Outcome)}
    errors = tuple(
        condition for condition in conditions if isinstance(condition, type) and issubclass(condition, BaseException)
    )
    if len(outcomes) + len(errors) != len(conditions):
        raise ConfigurationError(f"stop_on may hold only Outcomes and classes of errors, got {shown(stop_on)}")
    return lambda item: item.result.outcome in outcomes if item.result else isinstance(item.error, errors)
