"""A task of a batch, and the options of a run, with their names and forms in files, columns and on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import attrs

from faasrt._attribute_docs import list_attributes
from faasrt._run_option_checks import (
    check_args,
    check_ext,
    check_flag,
    check_kwargs,
    check_priority,
    check_sandbox,
    check_time_limit,
)
from faasrt.config import SandboxConfig
from faasrt.errors import FaasrtError, InvalidRequestError, UnsupportedLanguageError, safe_repr
from faasrt.inputs import INPUT_FIELDS, ProgramInput
from faasrt.judging import (
    AssertTest,
    Compare,
    FunctionTest,
    Judgement,
    TestCase,
    check_compare,
    check_function_given,
    check_tests,
    parse_test,
)
from faasrt.languages import Language, LanguageOption, OtherLanguage, parse_language
from faasrt.results import ExecutionResult

Priority: TypeAlias = Literal["low", "normal", "high", "urgent"]
"""The usual names, for type checkers. Any other text that is not empty is sent as well."""
_Options = TypeVar("_Options")


class SharedOptions(TypedDict, total=False):
    """The options of every run; see `Runtime.run_code`."""

    timeout_ms: float | None
    ext: Mapping[str, str] | None
    sandbox: SandboxConfig | None
    priority: Priority


class SessionRunOptions(SharedOptions, total=False):
    stdin: str | bytes


class JudgeOptions(SharedOptions, total=False):
    idempotent: bool | None


class CallOptions(JudgeOptions, total=False):
    stdin: str | bytes
    files: Mapping[str, str | bytes] | None


class RunOptions(CallOptions, total=False):
    argv: Sequence[str]
    collect: Sequence[str]
    displays: bool


def check_options(method: str, options: Mapping[str, object], kind: type[Any]) -> None:
    """Raise TypeError if one of the keyword arguments of a method is not in a TypedDict."""
    if unknown := options.keys() - kind.__annotations__.keys():
        known = ", ".join(kind.__annotations__)
        raise TypeError(f"{method}() got an unexpected keyword argument {min(unknown)!r}; its options are {known}")


@attrs.frozen
class FieldForm:
    """How a field of a task is written outside of Python: in the files of `faasrt batch`, the columns of `faasrt.ray`,
    and the command `faasrt run`.

    Attributes:
        types: The types of its decoded JSON. A bool is not a number here.
        option: The option of `faasrt run` and the name of its value, such as "--stdin FILE".
    """

    types: tuple[type, ...]
    described: str
    option: str = ""
    help: str = ""

    @property
    def holds_several(self) -> bool:
        return self.types in ((list,), (dict,))

    def check(self, name: str, value: object) -> None:
        if type(value) not in self.types:
            raise ValueError(f"{name!r} must be {self.described}")


def field_forms() -> dict[str, FieldForm]:
    return {field.name: field.metadata["form"] for field in attrs.fields(CodeTask)}


def _form(*types: type, described: str, option: str = "", help: str = "") -> dict[str, FieldForm]:  # noqa: A002
    return {"form": FieldForm(types, described, option, help)}


_TEXT, _LIST, _OBJECT, _FLAG = (
    _form(str, described="a string"),
    _form(list, described="a list"),
    _form(dict, described="an object"),
    _form(bool, described="true or false"),
)
_TIME_LIMIT_HELP = f"The time limit in milliseconds.  [default: {SandboxConfig().timeout_limit_s * 1000:g}]"


def _parse_language(language: LanguageOption) -> Language | OtherLanguage:
    return parse_language(language)


@list_attributes
@attrs.frozen
class CodeTask:
    """One program to run.

    Raises:
        UnsupportedLanguageError: The language cannot be the name of one.
        InvalidRequestError: Another attribute is wrong. Only a call checks `code` and `function`, and whether
            `timeout_ms` exceeds the limit of the sandbox.

    Example:
        >>> task = CodeTask("def f(n): return n + 1", "py", id="a", function="f", args=[1])
        >>> async for item in manager.map([task]):
        ...     print(item.task.id, item.result.value)
        a 2
    """

    code: str = attrs.field(repr=safe_repr, metadata=_TEXT)
    """The program."""
    language: Language | OtherLanguage = attrs.field(converter=_parse_language, metadata=_TEXT)
    """See `Runtime.run_code`; kept as a `Language`, or as the lower-case name of another language. `map` fails a task
    in a language that no endpoint lists."""
    id: str | None = attrs.field(
        default=None, kw_only=True, metadata=_form(str, int, described="a string or a whole number")
    )
    """Your own name for the task. Default: None."""
    timeout_ms: float | None = attrs.field(
        default=None,
        kw_only=True,
        metadata=_form(float, int, described="a number", option="--timeout-ms", help=_TIME_LIMIT_HELP),
    )
    """The time limit of the program in milliseconds. Default: None, which means the limit of the sandbox."""
    ext: Mapping[str, str] | None = attrs.field(
        default=None, kw_only=True, hash=False, metadata=_form(dict, described="an object of strings")
    )
    """Further fields for the server. Default: None, no fields."""
    function: str | None = attrs.field(default=None, kw_only=True, metadata=_TEXT)
    """The name of a function of the program to call, or to test. Default: None, which runs the program only."""
    args: tuple[Any, ...] = attrs.field(
        default=(), converter=check_args, kw_only=True, hash=False, repr=safe_repr, metadata=_LIST
    )
    """The positional arguments of the function: JSON values. Default: no arguments."""
    kwargs: Mapping[str, Any] = attrs.field(
        factory=dict, converter=check_kwargs, kw_only=True, hash=False, repr=safe_repr, metadata=_OBJECT
    )
    """The keyword arguments of the function: JSON values. Default: no arguments."""
    sandbox: SandboxConfig | None = attrs.field(default=None, kw_only=True, metadata=_OBJECT)
    """The limits of this task. Default: None, which means the limits in the settings."""
    priority: Priority = attrs.field(default="normal", kw_only=True, metadata=_TEXT)
    """A priority for the server's scheduler. Default: "normal"."""
    idempotent: bool | None = attrs.field(default=None, kw_only=True, metadata=_FLAG)
    """Whether the program may run more than once. Default: None, which means `RetrySettings.idempotent`."""
    stdin: str | bytes = attrs.field(
        default="",
        kw_only=True,
        repr=safe_repr,
        metadata=_form(
            str,
            dict,
            described="a string or an object with base64",
            option="--stdin FILE",
            help="The standard input. By default that of this command, if it is a pipe or a file.",
        ),
    )
    """The standard input of the program; see `Runtime.run_code`. Default: ""."""
    argv: Sequence[str] = attrs.field(
        default=(), kw_only=True, repr=safe_repr, metadata=_form(list, described="a list of strings")
    )
    """The command-line arguments; see `Runtime.run_code`. A task with a function has none. Default: no arguments."""
    files: Mapping[str, str | bytes] | None = attrs.field(
        default=None,
        kw_only=True,
        hash=False,
        repr=safe_repr,
        metadata=_form(
            dict, described="an object", option="--file NAME[=PATH]", help="A file for the program; repeatable."
        ),
    )
    """The contents of files in the working folder of the program; see `Runtime.run_code`. Default: None."""
    collect: Sequence[str] = attrs.field(
        default=(),
        kw_only=True,
        metadata=_form(
            list,
            described="a list of patterns",
            option="--collect GLOB",
            help="Files to return after the run; repeatable.",
        ),
    )
    """The files to return; see `Runtime.run_code`. A task with a function has none. Default: no files."""
    displays: bool = attrs.field(default=False, kw_only=True, metadata=_FLAG)
    """Whether to return what the program displays; see `Runtime.run_code`. A task with a function has none. Default:
    False."""
    tests: Sequence[TestCase] | Sequence[FunctionTest] | Sequence[AssertTest] = attrs.field(
        default=(), kw_only=True, hash=False, repr=safe_repr, metadata=_form(list, described="a list of objects")
    )
    """The tests of a program that is judged; see `RuntimeManager.judge`. They are `FunctionTest` or `AssertTest` if the
    task has a function. The task itself then has no input. Default: no tests."""
    compare: Compare | None = attrs.field(default=None, kw_only=True, metadata=_TEXT)
    """The comparison of the tests; see `faasrt.judging`. Default: None, which means "lines", or "equal" for the tests
    of a function."""
    stop_on_failure: bool = attrs.field(default=False, kw_only=True, metadata=_FLAG)
    """Whether to skip the tests after the first one that does not pass. Default: False."""

    def __attrs_post_init__(self) -> None:
        check_time_limit(self.timeout_ms)
        check_ext(self.ext)
        check_sandbox(self.sandbox)
        check_priority(self.priority)
        check_flag("idempotent", self.idempotent)
        check_flag("stop_on_failure", self.stop_on_failure, optional=False)
        check_flag("displays", self.displays, optional=False)
        if self.tests == ():
            check_compare(self.compare)
        else:
            tests = check_tests(self.tests)
            check_function_given(tests, self.function)
            check_compare(self.compare, type(tests[0]))
            object.__setattr__(self, "tests", tests)
            if self.args or self.kwargs or self.stdin or self.argv or self.files or self.collect or self.displays:
                raise InvalidRequestError("a task with tests must have no arguments, input or displays of its own")
        checked = ProgramInput.checked(
            self.language, stdin=self.stdin, argv=self.argv, files=self.files, collect=self.collect
        )
        for name in ("argv", "collect"):
            if self.function is not None and getattr(checked, name):
                raise InvalidRequestError(f"{name} must be empty for a task with a function")
            object.__setattr__(self, name, getattr(checked, name))
        if self.function is not None and self.displays:
            raise InvalidRequestError("displays must be False for a task with a function")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], sandbox: SandboxConfig | None = None) -> CodeTask:
        r"""Return the task in decoded JSON: an object with the attributes. Attributes that are null are left out.

        Bytes are text, or `{"base64": ...}`. The tests are objects; see `TestCase.from_dict`. If the task has a
        function, see `AssertTest.from_dict` for those with a `program`, and `FunctionTest.from_dict` for others.

        Args:
            fields: The object.
            sandbox: The limits that the object `sandbox` does not have. Default: None, which means `SandboxConfig()`.

        Raises:
            UnsupportedLanguageError: The language cannot be the name of one.
            InvalidRequestError: A field is wrong.
            ConfigurationError: A limit in `sandbox` is wrong.

        Example:
            >>> CodeTask.from_dict({"code": "f", "language": "py", "stdin": {"base64": "AAE="}}).stdin
            b'\x00\x01'
        """
        values = {name: value for name, value in fields.items() if value is not None}
        values = {"code": None, "language": None} | values
        program_input = ProgramInput.from_wire(values, parse_language(values["language"]))
        values |= {name: getattr(program_input, name) for name in INPUT_FIELDS}
        if "tests" in values:
            if not isinstance(values["tests"], list):
                raise InvalidRequestError(f"tests must be a list of objects, got {safe_repr(values['tests'])}")
            values["tests"] = [parse_test(test, values.get("function")) for test in values["tests"]]
        if "sandbox" in values:
            values["sandbox"] = _sandbox_from_dict(values["sandbox"], sandbox or SandboxConfig())
        if "id" in values:
            values["id"] = str(values["id"])
        return cls(**values)

    def options(self, kind: type[_Options]) -> _Options:
        """Return the options of a call: a `RunOptions`, `CallOptions` or `JudgeOptions`."""
        return kind(**{name: getattr(self, name) for name in kind.__annotations__})


def is_invalid(task: CodeTask, error: FaasrtError) -> bool:
    """Return whether an error is about the task. If it names a known language, the servers lack that language."""
    is_unknown = isinstance(error, UnsupportedLanguageError) and not isinstance(task.language, Language)
    return is_unknown or isinstance(error, InvalidRequestError)


def _sandbox_from_dict(fields: object, base: SandboxConfig) -> SandboxConfig:
    names = [field.name for field in attrs.fields(SandboxConfig)]
    if not isinstance(fields, dict) or not fields.keys() <= set(names):
        raise InvalidRequestError(
            f"sandbox must be an object with fields of {', '.join(names)}, got {safe_repr(fields)}"
        )
    return attrs.evolve(base, **fields)


@list_attributes
@attrs.frozen
class CompletedTask:
    """A task whose program has ended, with any outcome.

    Example:
        >>> async for item in manager.map([CodeTask("1 / 0", "py")]):
        ...     if item.error is None:
        ...         print(item.index, item.result.outcome)
        0 USER_ERROR
    """

    index: int
    """The position of the task in the input, from 0."""
    task: CodeTask
    """The task."""
    result: ExecutionResult
    """The result of the program. If the task has tests, it is the result of the first test that did not pass, or of the
    last test."""
    error: None = attrs.field(default=None, init=False, repr=False)
    """None."""
    judgement: Judgement | None = attrs.field(default=None, kw_only=True, repr=False)
    """The verdicts on the tests; None if the task has none."""

    @property
    def ok(self) -> bool:
        """Whether the outcome is OK; for a task with tests, whether all passed."""
        return self.result.ok if self.judgement is None else self.judgement.passed

    def to_dict(self) -> dict[str, Any]:
        """Return index, id, result, error and judgement as values that `json.dumps` accepts."""
        judgement = None if self.judgement is None else self.judgement.to_dict()
        fields = {"index": self.index, "id": self.task.id, "result": self.result.to_dict(), "error": None}
        return {**fields, "judgement": judgement}


@list_attributes
@attrs.frozen
class FailedTask:
    """A task that failed with an error of the infrastructure, or was wrong. Its program may or may not have run.

    Example:
        >>> async for item in manager.map([CodeTask("", "py")]):
        ...     print(item.index, item.error)
        0 code must not be empty
    """

    index: int
    """The position of the task in the input, from 0."""
    task: CodeTask
    """The task."""
    error: FaasrtError
    """The error."""
    result: None = attrs.field(default=None, init=False, repr=False)
    """None."""

    @property
    def ok(self) -> Literal[False]:
        """False."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return index, id, result, error and judgement as values that `json.dumps` accepts."""
        error = {"name": type(self.error).__name__, "message": str(self.error)}
        return {"index": self.index, "id": self.task.id, "result": None, "error": error, "judgement": None}


TaskResult: TypeAlias = CompletedTask | FailedTask
"""The result of a task: its `result` or its `error` is None, never both. Type checkers know this after
`if item.error is None`."""
