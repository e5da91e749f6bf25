"""CodeTask and TaskResult: one of many programs, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, TypeAlias, TypedDict, cast

import attrs

from faasrt._record_type import RecordType
from faasrt.config import SandboxConfig
from faasrt.errors import FaasrtError, InvalidRequestError, UnsupportedLanguageError, shown
from faasrt.languages import Language
from faasrt.results import ExecutionResult, short_repr

TASK_ERRORS = (InvalidRequestError, UnsupportedLanguageError)
"""Errors of a task itself; any other error is about the infrastructure."""


class CallOptions(TypedDict, total=False):
    """The options that `run_code`, `call_function` and `run_cases` share; see `Runtime.run_code`."""

    timeout_ms: float | None
    ext: Mapping[str, str] | None
    sandbox: SandboxConfig | None
    priority: str
    idempotent: bool | None


def check_args(args: Iterable[Any]) -> tuple[Any, ...]:
    """Return positional arguments as a tuple.

    Raises:
        InvalidRequestError: It is a single value, whose items would become the arguments, or not iterable.
    """
    is_one_value = isinstance(args, (str, bytes, bytearray, memoryview, Mapping, Set))
    if is_one_value or not isinstance(args, Iterable):
        raise InvalidRequestError(f"args must be a sequence of arguments, such as [1, 2], got {shown(args)}")
    return tuple(args)


def check_kwargs(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return keyword arguments as a dict.

    Raises:
        InvalidRequestError: It is not a mapping of names to arguments.
    """
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise InvalidRequestError(f"kwargs must map names to arguments, got {shown(kwargs)}")
    return dict(kwargs)


def _parse_language(name: str | Language) -> Language:
    return Language.parse(name)


@attrs.frozen
class CodeTask(metaclass=RecordType):
    """One program to run.

    Attributes:
        code: The program.
        language: A name or a `Language`; kept as a `Language`.
        id: The caller's own name for the task.
        timeout_ms: Milliseconds that the program may run; the sandbox's limit when None.
        ext: Strings for the server.
        function: The function of the program to call; None runs the whole program.
        args: Its positional arguments: JSON values.
        kwargs: Its keyword arguments: JSON values.
        sandbox: Limits for this task; those of the settings when None.
        priority: A priority for the server's scheduler.
        idempotent: Whether the program may run more than once; the setting when None.

    Raises:
        UnsupportedLanguageError: The language is unknown.
        InvalidRequestError: `args` is not a sequence of arguments, or `kwargs` not a mapping of names to arguments.

    Example:
        >>> task = CodeTask("def f(n): return n + 1", "py", id="a", function="f", args=[1])
        >>> async for item in manager.map([task]):
        ...     print(item.task.id, item.result.value)
        a 2
    """

    code: str = attrs.field(repr=short_repr)
    language: Language = attrs.field(converter=_parse_language)
    id: str | None = attrs.field(default=None, kw_only=True)
    timeout_ms: float | None = attrs.field(default=None, kw_only=True)
    ext: Mapping[str, str] | None = attrs.field(default=None, kw_only=True, hash=False)
    function: str | None = attrs.field(default=None, kw_only=True)
    args: tuple[Any, ...] = attrs.field(default=(), converter=check_args, kw_only=True, hash=False, repr=short_repr)
    kwargs: Mapping[str, Any] = attrs.field(
        factory=dict, converter=check_kwargs, kw_only=True, hash=False, repr=short_repr
    )
    sandbox: SandboxConfig | None = attrs.field(default=None, kw_only=True)
    priority: str = attrs.field(default="normal", kw_only=True)
    idempotent: bool | None = attrs.field(default=None, kw_only=True)

    def options(self) -> CallOptions:
        """Return the options of the call."""
        return cast(CallOptions, {name: getattr(self, name) for name in CallOptions.__annotations__})


@attrs.frozen
class TaskSuccess(metaclass=RecordType):
    """A task with a verdict, whatever the verdict is.

    Attributes:
        index: The position of the task in the input, from 0.
        task: The task.
        result: The verdict on the program.
        error: None.

    Example:
        >>> async for item in manager.map([CodeTask("1 / 0", "py")]):
        ...     if item.error is None:
        ...         print(item.index, item.result.outcome)
        0 USER_ERROR
    """

    index: int
    task: CodeTask
    result: ExecutionResult
    error: None = attrs.field(default=None, init=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return index, id, result and error as values that `json.dumps` accepts."""
        return {"index": self.index, "id": self.task.id, "result": self.result.to_dict(), "error": None}


@attrs.frozen
class TaskFailure(metaclass=RecordType):
    """A task without a verdict.

    Attributes:
        index: The position of the task in the input, from 0.
        task: The task.
        error: The error: the infrastructure failed, or the task was wrong.
        result: None.

    Example:
        >>> async for item in manager.map([CodeTask("", "py")]):
        ...     print(item.index, item.error)
        0 code must not be empty
    """

    index: int
    task: CodeTask
    error: FaasrtError
    result: None = attrs.field(default=None, init=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return index, id, result and error as values that `json.dumps` accepts."""
        error = {"name": type(self.error).__name__, "message": str(self.error)}
        return {"index": self.index, "id": self.task.id, "result": None, "error": error}


TaskResult: TypeAlias = TaskSuccess | TaskFailure
"""How a task ended: `if item.error is None` tells a type checker that `item.result` is there."""
