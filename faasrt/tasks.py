"""CodeTask and TaskResult: a program to run in a batch, and its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias, TypedDict, cast

import attrs

from faasrt.config import SandboxConfig
from faasrt.errors import FaasrtError, InvalidRequestError, UnsupportedLanguageError, shown
from faasrt.inputs import ProgramInput
from faasrt.judging import Compare, Judgement, TestCase, check_compare, check_tests
from faasrt.languages import Language, parse_language
from faasrt.results import ExecutionResult, short_repr

TASK_ERRORS = (InvalidRequestError, UnsupportedLanguageError)
"""The errors of a task that is wrong; any other error is about the infrastructure."""


class JudgeOptions(TypedDict, total=False):
    """The options that `judge` shares with `run_code`; see `Runtime.run_code`."""

    timeout_ms: float | None
    ext: Mapping[str, str] | None
    sandbox: SandboxConfig | None
    priority: str
    idempotent: bool | None


class CallOptions(JudgeOptions, total=False):
    """The options that `run_code`, `call_function` and `run_cases` share; see `Runtime.run_code`."""

    stdin: str | bytes
    files: Mapping[str, str | bytes] | None


class RunOptions(CallOptions, total=False):
    """All options of `run_code`; see there."""

    argv: Sequence[str]
    collect: Sequence[str]


def check_args(args: Iterable[Any]) -> tuple[Any, ...]:
    """Return positional arguments as a tuple. Raise InvalidRequestError if `args` is not iterable, or is a single value
    such as a str, whose items would become the arguments.
    """
    is_one_value = isinstance(args, (str, bytes, bytearray, memoryview, Mapping, Set))
    if is_one_value or not isinstance(args, Iterable):
        raise InvalidRequestError(f"args must be a sequence of arguments, such as [1, 2], got {shown(args)}")
    return tuple(args)


def check_kwargs(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return keyword arguments as a dict, or raise InvalidRequestError if they do not map names to arguments."""
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise InvalidRequestError(f"kwargs must map names to arguments, got {shown(kwargs)}")
    return dict(kwargs)


@attrs.frozen
class CodeTask:
    """One program to run.

    Attributes:
        code: The program.
        language: A name or a `Language`; kept as a `Language`, or as the lower-case name of another language. `map`
            fails a task in a language that no endpoint lists.
        id: Your own name for the task. Default: None.
        timeout_ms: The time limit of the program in milliseconds. Default: None, which means that of the sandbox.
        ext: Further fields for the server. Default: None, no fields.
        function: The name of a function of the program to call. Default: None, which runs the program only.
        args: The positional arguments of the function: JSON values. Default: no arguments.
        kwargs: The keyword arguments of the function: JSON values. Default: no arguments.
        sandbox: The limits of this task. Default: None, which means the limits in the settings.
        priority: A priority for the server's scheduler. Default: "normal".
        idempotent: Whether the program may run more than once. Default: None, which means `RetrySettings.idempotent`.
        tests: The tests of a program that is judged; see `RuntimeManager.judge`. The task then has neither a function
            nor an input of its own. Default: no tests.
        compare: The comparison of the tests; see `faasrt.judging`. Default: "lines".
        stdin, argv, files, collect: The input of the program, and the files to return; see `Runtime.run_code`. A task
            with a function has no `argv` and no `collect`. Default: none.

    Raises:
        UnsupportedLanguageError: The language cannot be the name of one.
        InvalidRequestError: `args` is not a sequence, `kwargs` is not a mapping of names to arguments, or the input of
            the program, `tests` or `compare` is wrong.

    Example:
        >>> task = CodeTask("def f(n): return n + 1", "py", id="a", function="f", args=[1])
        >>> async for item in manager.map([task]):
        ...     print(item.task.id, item.result.value)
        a 2
    """

    code: str = attrs.field(repr=short_repr)
    language: Language | str = attrs.field(converter=parse_language)
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
    stdin: str | bytes = attrs.field(default="", kw_only=True, repr=short_repr)
    argv: Sequence[str] = attrs.field(default=(), kw_only=True, repr=short_repr)
    files: Mapping[str, str | bytes] | None = attrs.field(default=None, kw_only=True, hash=False, repr=short_repr)
    collect: Sequence[str] = attrs.field(default=(), kw_only=True)
    tests: Sequence[TestCase] = attrs.field(default=(), kw_only=True, hash=False, repr=short_repr)
    compare: Compare = attrs.field(default="lines", kw_only=True, converter=check_compare)

    def __attrs_post_init__(self) -> None:
        if self.tests != ():
            object.__setattr__(self, "tests", check_tests(self.tests))
            if self.function is not None or self.stdin or self.argv or self.files or self.collect:
                raise InvalidRequestError("a task with tests must have no function and no input of its own")
        checked = ProgramInput.checked(
            self.language, stdin=self.stdin, argv=self.argv, files=self.files, collect=self.collect
        )
        for name in ("argv", "collect"):
            if self.function is not None and getattr(checked, name):
                raise InvalidRequestError(f"{name} must be empty for a task with a function")
            object.__setattr__(self, name, getattr(checked, name))

    def options(self) -> CallOptions:
        """Return the options of the call that runs this task."""
        return cast(CallOptions, {name: getattr(self, name) for name in CallOptions.__annotations__})

    def judge_options(self) -> JudgeOptions:
        """Return the options of the judgement that runs this task."""
        return cast(JudgeOptions, {name: getattr(self, name) for name in JudgeOptions.__annotations__})


@attrs.frozen
class CompletedTask:
    """A task whose program has ended, whatever its outcome.

    Attributes:
        index: The position of the task in the input, from 0.
        task: The task.
        result: The result of the program. If the task has tests, it is the result of the first test that did not
            pass, or of the last test.
        error: None.
        judgement: The verdicts on the tests; None if the task has none.

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
    judgement: Judgement | None = attrs.field(default=None, kw_only=True, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return index, id, result, error and judgement as values that `json.dumps` accepts."""
        judgement = None if self.judgement is None else self.judgement.to_dict()
        fields = {"index": self.index, "id": self.task.id, "result": self.result.to_dict(), "error": None}
        return {**fields, "judgement": judgement}


@attrs.frozen
class FailedTask:
    """A task that failed with an error of the infrastructure, or was wrong. Its program may or may not have run.

    Attributes:
        index: The position of the task in the input, from 0.
        task: The task.
        error: The error.
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


TaskResult: TypeAlias = CompletedTask | FailedTask
"""The result of a task: its `result` or its `error` is None, never both. Type checkers know this after
`if item.error is None`."""
