"""CodeTask and TaskResult: one of many programs, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import attrs

from faasrt.errors import FaasrtError, InvalidRequestError, UnsupportedLanguageError, shown
from faasrt.languages import Language
from faasrt.results import ExecutionResult

TASK_ERRORS = (InvalidRequestError, UnsupportedLanguageError)
"""With these a task itself is wrong; any other error is about the infrastructure."""


def _parse_language(name: str | Language) -> Language:
    return Language.parse(name)


def _make_args(args: Iterable[Any]) -> tuple[Any, ...]:
    # Their items would become the arguments, in the case of a set in any order.
    is_one_value = isinstance(args, (str, bytes, bytearray, memoryview, Mapping, Set))
    if is_one_value or not isinstance(args, Iterable):
        raise InvalidRequestError(f"args must be a sequence of arguments, such as [1, 2], got {shown(args)}")
    return tuple(args)


def _make_kwargs(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise InvalidRequestError(f"kwargs must map names to arguments, got {shown(kwargs)}")
    return dict(kwargs)


@attrs.frozen
class CodeTask:
    """One program to run.

    Attributes:
        code: The program.
        language: A name or a `Language`; kept as a `Language`.
        id: The caller's own name for the task.
        timeout_ms: Milliseconds that the program may run; the sandbox's limit when None.
        ext: Strings for the server's use.
        function: The function of the program to call; the program itself is the task when None.
        args: Its positional arguments, as JSON knows them.
        kwargs: Its keyword arguments, as JSON knows them.

    Raises:
        UnsupportedLanguageError: The language is unknown.
        InvalidRequestError: `args` is no sequence of arguments, or `kwargs` no mapping of names to arguments.

    Example:
        >>> task = CodeTask("def f(n): return n + 1", "py", id="a", function="f", args=[1])
        >>> async for item in manager.map([task]):
        ...     print(item.task.id, item.result.value)
        a 2
    """

    code: str
    language: Language = attrs.field(converter=_parse_language)
    id: str | None = attrs.field(default=None, kw_only=True)
    timeout_ms: float | None = attrs.field(default=None, kw_only=True)
    ext: Mapping[str, str] | None = attrs.field(default=None, kw_only=True, hash=False)
    function: str | None = attrs.field(default=None, kw_only=True)
    args: tuple[Any, ...] = attrs.field(default=(), converter=_make_args, kw_only=True, hash=False)
    kwargs: Mapping[str, Any] = attrs.field(factory=dict, converter=_make_kwargs, kw_only=True, hash=False)


@attrs.frozen
class TaskResult:
    """What became of a task: exactly one of `result` and `error` is there.

    Attributes:
        index: The task's place in the input, from 0.
        task: The task.
        result: The verdict on the program.
        error: Why there is none: the infrastructure failed, or the task was wrong.

    Example:
        >>> async for item in manager.map([CodeTask("1 / 0", "py"), CodeTask("", "py")], ordered=True):
        ...     print(item.index, item.result.outcome if item.result else type(item.error).__name__)
        0 USER_ERROR
        1 InvalidRequestError
    """

    index: int
    task: CodeTask
    result: ExecutionResult | None = None
    error: FaasrtError | None = None

    def __attrs_post_init__(self) -> None:
        if (self.result is None) is (self.error is None):
            raise ValueError("a TaskResult has either a result or an error")
