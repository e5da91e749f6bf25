r"""Rewards for reinforcement learning: the score of the program in a completion, by tests that the program cannot see.

`code_reward` is a reward function for TRL's `GRPOTrainer`, and `compute_score` one for verl. `CodeReward` makes such
functions with other options. `faasrt/docs/rewards.md` shows how to configure both frameworks, and what a model could
try.

**The program** is the last fenced block of the completion; see `last_code_block`. In a conversation, it is the last
block of the last message of the assistant. A completion without a program gets `no_code`, which is 0 by default.

**The tests** of a completion have one of these forms. Text is the JSON of one of the others, as in the columns of a
data set.

    tests                           an iterable of `TestCase`, or, with a function, of `FunctionTest` or `AssertTest`
    objects                         a list of `{"stdin": ..., "expected": ...}`, or, with a function, of
                                    `{"args": ..., "expected": ...}` or `{"program": ...}`; see the methods `from_dict`
    {"function": ..., "tests": ...} the same in one object; a "prelude" is code before the program, such as helpers in a
                                    prompt
    {"inputs": ..., "outputs": ...} the form of APPS, TACO and similar data sets: texts for stdin and stdout, or, with
                                    `"fn_name"`, the arguments and results of a function, or, with `"assert_case"`,
                                    asserts about it

`tests_of` makes such tests of a row of HumanEval, MBPP, APPS, LiveCodeBench and other sets.

**The form of APPS.** With "fn_name", each input is a list of arguments, or text with the JSON of one argument in each
line. Each output is a result: text is read as JSON if it is JSON. If every output is a list of one item, as in APPS,
that item is the result, even if it is text such as "12". Tuples, and NumPy's arrays as in the rows of pandas, count as
lists. As these data sets expect it, Python programs may use the usual modules of the standard library without importing
them, and the function may be a method of a class `Solution`.

**Failures** are not scores: those of the infrastructure, and tests that cannot judge any program, such as a malformed
row of a data set. They are raised, or give the value `on_failure` to their completions only. Programs run at most once,
unless you pass `idempotent=True`, so a lost connection is a failure too.

Example:
    >>> from faasrt.rewards import CodeReward
    >>> reward = CodeReward(manager, timeout_ms=5_000)
    >>> completions = ["```python\nprint(int(input()) + 1)\n```", "I do not know."]
    >>> tests = [[TestCase("1", "2"), TestCase("5", "7")], '[{"stdin": "1", "expected": "2"}]']
    >>> await reward.code_reward_async(completions, tests)
    [0.5, 0.0]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack

import attrs

from faasrt._attribute_docs import list_attributes
from faasrt._dataset_rows import Dataset, convert_row
from faasrt._run_option_checks import check_flag, check_timeout_ms
from faasrt._shared_manager import ManagerOption, SharedManager
from faasrt._verl_asserts import CALL, CALL_EPILOGUE, complete_asserts
from faasrt.client.manager import RuntimeManager
from faasrt.config import SandboxConfig, TimeoutSettings
from faasrt.errors import (
    ConfigurationError,
    FaasrtError,
    InvalidRequestError,
    QueueFullError,
    RejectedError,
    ServiceError,
    safe_repr,
)
from faasrt.judging import AssertTest, Compare, FunctionTest, Judgement, TestCase, Verdict, parse_test
from faasrt.languages import Language, LanguageOption, OtherLanguage, has_return_val, parse_language
from faasrt.protocol.cases import check_function
from faasrt.tasks import CodeTask, JudgeOptions, TaskResult
from faasrt.telemetry.counted_lines import INTERVAL_S
from faasrt.telemetry.logs import log_warning

__all__ = [
    "CodeReward",
    "FailedSolution",
    "code_reward",
    "code_reward_async",
    "compute_score",
    "compute_score_async",
    "last_code_block",
    "tests_of",
]

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""The text of a completion, or the messages of a conversation."""
Reward: TypeAlias = float | None
OnFailure: TypeAlias = Literal["raise"] | Reward | Callable[[int, FaasrtError], Reward]
"""The rewards of completions that cannot be judged; see `CodeReward`."""
_Failures: TypeAlias = dict[int, FaasrtError]

# Of the infrastructure, or of the tests of one completion. Others hold for all completions.
_FAILURES = (ServiceError, QueueFullError, InvalidRequestError)
_CONFIGURATION_STATUSES = (401, 403, 404)  # of a wrong token or URL, whatever the program is
_SHOWN_INDICES = 20
# The longest limit of usual graders, so a program that is right for them is right here: verl and TACO have 10 s,
# LiveCodeBench 6, APPS and EvalPlus 4, HumanEval 3. Programs in training often loop forever.
DEFAULT_TIMEOUT_MS = 10_000
# As in the configuration of verl. Other graders allow more: LiveCodeBench and EvalPlus 4 GiB.
_SANDBOX = SandboxConfig(memory_limit_mb=1_024)
# A busy server delays a batch of a training, which no person waits for. This is longer than the programs take that a
# server with a few CPUs has in its queue.
_TIMEOUTS = TimeoutSettings(grace_s=1_800)
_IDS = ("task_id", "question_id", "problem_id", "name", "id")
# Text that may precede an import from `__future__` in a program, or such an import.
_HEAD = re.compile(
    r"""
    [ \t\f\r\n;]++ | \\\r?\n | \#[^\n]*+
    | [rRuU]?+ (?: \"{3} (?:[^"\\] | \\. | "(?!""))*+ \"{3} | \'{3} (?:[^'\\] | \\. | '(?!''))*+ \'{3}
        | " (?:[^"\\\n] | \\.)*+ " | ' (?:[^'\\\n] | \\.)*+ ' )
    | (?P<future> from [ \t\f]++ __future__ [ \t\f]++ import \b [ \t\f]*+
        (?: \( (?:[^)\#] | \#[^\n]*+)*+ \) | (?:[\w, \t\f] | \\\r?\n)++ ) (?:[ \t\f;] | \\\r?\n)*+ )
    """,
    re.DOTALL | re.VERBOSE,
)
_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "typing"),
)
# Functions of these modules must not pass for those that the program does not define, so their names are removed.
_APPS_PRELUDE = f"""
{"".join(f"from {module} import *" + chr(10) for module in _MODULES)}
from builtins import *
import {", ".join(_MODULES)}
[globals().pop(name, None) for name in {{names!r}}]
"""
# A method precedes a function that the program imports, but not one that it defines, which the method may call.
_APPS_EPILOGUE = """
if hasattr(globals().get("Solution"), {name!r}) and getattr(globals().get({name!r}), "__module__", "") != __name__:
    def {name}(*args, **kwargs):
        return getattr(Solution(), {name!r})(*args, **kwargs)
"""


def last_code_block(text: str, language: LanguageOption = "python") -> str | None:
    r"""Return the program in a Markdown text; None if there is none.

    It is the content of the last fenced block with the name of the language, such as "python", "py" or "python3", or,
    if there is none, of the last block with any name or none. Blank blocks do not count. A block begins with a line of
    at least three backticks or tildes and ends with such a line. The last block may lack its end, as in a completion
    that was cut off. The indent of the first line is removed from all lines. Models also write fences after a tag, as
    in "</think>```python", or other text, as in "Here it is:```python", and a tag after them, as in "```</answer>".

    Args:
        text: The text. The work is linear in its length.
        language: The language of the program. Default: "python".

    Raises:
        UnsupportedLanguageError: The language cannot be the name of one.

    Example:
        >>> from faasrt.rewards import last_code_block
        >>> last_code_block("Try this:\n```python\nprint(1)\n```\nIt prints:\n```\n1\n```")
        'print(1)\n'
    """
    wanted = parse_language(language)
    programs: dict[bool, str] = {}  # by whether the block has the name of the language
    fence, block = None, [""]

    def end_block(is_named: bool) -> None:
        if (program := "".join(block)).strip():
            programs[is_named] = program

    for line in text.split("\n"):
        if fence is not None:
            if fence.is_ended_by(line):
                end_block(fence.is_named)
                fence, block = _find_fence(line.strip().lstrip(fence.marks[0]), wanted), []
                continue
            opening = _find_fence(line, wanted) if fence.is_glued else None
            if opening is None or opening.is_glued or not opening.is_named:
                inner = line.removeprefix(fence.indent) if line.startswith(fence.indent) else line.lstrip(" \t")
                block.append(f"{inner}\n")
                continue
            # The text only mentioned a fence. This is one.
        fence, block = _find_fence(line, wanted), []
    if fence is not None:
        for index, line in enumerate(block):
            if line.rstrip().endswith(fence.marks):
                block[index:] = [f"{line.rstrip().rstrip(fence.marks[0])}\n"]
                break
        end_block(fence.is_named)
    return programs.get(True, programs.get(False))


@attrs.frozen
class _Fence:
    """The line that begins a block. `is_glued`: text precedes its marks."""

    indent: str
    marks: str
    is_named: bool
    is_glued: bool = False

    def is_ended_by(self, line: str) -> bool:
        """Return whether a line ends the block. A line that is indented further belongs to the program."""
        content = line.strip()
        rest = content.lstrip(self.marks[0])
        return (
            content.startswith(self.marks)
            and (not rest or rest.startswith("</"))
            and len(line) - len(line.lstrip(" \t")) <= len(self.indent) + 3
        )


def _find_fence(line: str, language: Language | OtherLanguage) -> _Fence | None:
    """Return the fence in a line, if it begins a block. Text before it must be a tag, or the fence must name the
    language. Otherwise the marks begin inline code.
    """
    content = line.lstrip(" \t")
    if content.startswith(("```", "~~~")):
        label = content.lstrip(content[0])
        if content[0] == "`" and "`" in label:
            return None
        marks = content[: len(content) - len(label)]
        return _Fence(line[: len(line) - len(content)], marks, _is_name_of(label.strip(), language))
    before, marks, label = line.rpartition("```")
    text = before.rstrip("`")
    if not marks or "```" in text:
        return None
    is_named = _is_name_of(label.strip(), language)
    if not is_named and not text.rstrip().endswith(">"):
        return None
    return _Fence("", marks + before[len(text) :], is_named, is_glued=True)


def _is_name_of(label: str, language: Language | OtherLanguage) -> bool:
    """Return whether the label of a block names a language, perhaps with a version, as in "python3"."""
    name = label.split(maxsplit=1)[0].lower().rstrip("0123456789.") if label else ""
    return name in language.names if isinstance(language, Language) else name == language


def _read_text(completion: object) -> str:
    """Return the text of a completion, or of the last message of the assistant."""
    if isinstance(completion, Iterable) and not isinstance(completion, str | bytes | Mapping):
        messages = [message for message in completion if isinstance(message, Mapping)]
        answers = [message.get("content") for message in messages if message.get("role", "assistant") == "assistant"]
        completion = (answers[-1] if answers else None) or ""
        if isinstance(completion, Iterable) and not isinstance(completion, str):
            parts = (part for part in completion if isinstance(part, Mapping))
            completion = "".join(str(part.get("text", "")) for part in parts)
    if not isinstance(completion, str):
        raise InvalidRequestError(f"a completion must be a str or a list of messages, got {safe_repr(completion)}")
    return completion


@list_attributes
@attrs.frozen
class FailedSolution:
    """A reference solution that does not pass its tests; see `CodeReward.check`."""

    index: int
    """Its index, from 0."""
    reason: str
    """How many tests failed and why the first one did, or what is wrong with the tests."""
    judgement: Judgement | None = attrs.field(default=None, repr=False)
    """The verdicts; None if the tests are wrong."""


@attrs.frozen
class _Problem:
    """The tests of a completion, and the code before and after the program."""

    tests: Sequence[TestCase] | Sequence[FunctionTest] | Sequence[AssertTest]
    function: str | None
    prelude: str = ""
    epilogue: str = ""

    def insert_into(self, program: str) -> str:
        """Add the code before and after the program. Imports from `__future__` stay first."""
        start = position = 0
        while match := _HEAD.match(program, position):
            position = match.end()
            if match["future"]:
                start = position
        return program[:start] + self.prelude + program[start:] + self.epilogue


def _parse_problem(tests: object, function: str | None, language: Language | OtherLanguage) -> _Problem:
    """Return the tests in one of the forms that the docstring of the module lists."""
    if isinstance(tests, str | bytes):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"tests are text that is not JSON: {error}") from None
    else:
        try:
            tests = _without_arrays(tests)
        except RecursionError:
            raise InvalidRequestError("tests are nested too deeply, or contain themselves") from None
    prelude = ""
    if isinstance(tests, Mapping):
        if tests.get("assert_case"):
            return _parse_asserts(tests, function)
        if "inputs" in tests or "outputs" in tests:
            return _parse_apps(tests, function, language)
        if "tests" not in tests or not tests.keys() <= {"function", "tests", "prelude"}:
            raise InvalidRequestError(
                "an object with tests must have 'tests' and 'function', or 'inputs', 'outputs' and 'fn_name', "
                f"got {', '.join(map(safe_repr, tests))[:200]}"
            )
        function, prelude = tests.get("function") or function, tests.get("prelude") or ""
        if not isinstance(prelude, str):
            raise InvalidRequestError(f"'prelude' must be text, got {safe_repr(prelude)}")
        tests = tests["tests"]
    if isinstance(tests, str) or not isinstance(tests, Iterable):
        raise InvalidRequestError(f"tests must be a list, an object, or the JSON of one, got {safe_repr(tests)}")
    if function is not None:
        check_function(function, language)
    checked: list[Any] = [parse_test(test, function) if isinstance(test, dict) else test for test in tests]
    return _Problem(checked, function, f"{prelude}\n" if prelude else "")


def _without_arrays(value: Any) -> Any:
    """Replace the arrays of NumPy, as in the rows of pandas and datasets, by lists, and lazy rows by dicts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _without_arrays(item) for name, item in value.items()}
    if not isinstance(value, list | tuple):
        return value
    items = [_without_arrays(item) for item in value]
    return tuple(items) if isinstance(value, tuple) else items


def _parse_apps(tests: Mapping[str, Any], function: str | None, language: Language | OtherLanguage) -> _Problem:
    inputs, outputs, name = tests.get("inputs"), tests.get("outputs"), tests.get("fn_name") or function
    if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple) or len(inputs) != len(outputs):
        raise InvalidRequestError("'inputs' and 'outputs' must be lists of the same length")
    if name is None:
        return _Problem([TestCase(_parse_text(i), _parse_text(o)) for i, o in zip(inputs, outputs, strict=True)], None)
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        results = [output[0] for output in outputs]
    else:
        results = [_parse_result(output) for output in outputs]
    cases = [FunctionTest(_parse_arguments(i), expected=result) for i, result in zip(inputs, results, strict=True)]
    check_function(name, language)
    if language is not Language.PYTHON:
        return _Problem(cases, name)
    return _Problem(cases, name, _APPS_PRELUDE.format(names=[name]), _APPS_EPILOGUE.format(name=name))


def _parse_asserts(tests: Mapping[str, Any], function: str | None) -> _Problem:
    """Return the asserts of verl's `assert_case`, which run in another process than the program."""
    asserts, inputs = tests["assert_case"], tests.get("inputs") or ()
    if not isinstance(asserts, list | tuple):
        raise InvalidRequestError(f"'assert_case' must be a list of asserts, got {safe_repr(asserts)}")
    if any(inputs):
        raise InvalidRequestError("'inputs' must be empty beside 'assert_case': a function has no stdin")
    programs, name, names = complete_asserts(asserts, tests.get("fn_name") or function, _MODULES)
    cases = [AssertTest(each) for each in programs]
    if name is None:
        return _Problem(cases, None)
    check_function(name, Language.PYTHON)
    epilogue = CALL_EPILOGUE if name == CALL else _APPS_EPILOGUE.format(name=name)
    return _Problem(cases, name, _APPS_PRELUDE.format(names=names), epilogue)


def _parse_text(text: object) -> str:
    if isinstance(text, list | tuple) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    if not isinstance(text, str):
        raise InvalidRequestError(f"without 'fn_name', an input or output must be text, got {safe_repr(text)}")
    return text


def _parse_arguments(arguments: object) -> list[Any]:
    if isinstance(arguments, list | tuple):
        return list(arguments)
    if not isinstance(arguments, str):
        raise InvalidRequestError(f"with 'fn_name', an input must be a list of arguments, got {safe_repr(arguments)}")
    try:
        return [json.loads(line) for line in arguments.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"with 'fn_name', each line of an input must be JSON: {error}") from None


def _parse_result(output: object) -> object:
    if not isinstance(output, str):
        return output
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        return output


def tests_of(row: Mapping[str, Any], dataset: Dataset) -> str:
    """Return the tests in a row of a known data set: text for the column `tests`, or the `ground_truth` of verl.

    They name their function, so that rewards need no other column. `faasrt/docs/rewards.md` has an example of each set.

    Args:
        row: The row, as its set publishes it. JSON may be text or decoded, and arrays of NumPy count as lists.
        dataset: Its form:
            "humaneval": `prompt`, `entry_point`, `test`. Also HumanEval+. The imports and helpers of the prompt are
            known to the test and the completion.
            "mbpp": `test_list`, `code`, and `test_setup_code` or `test_imports`. Each assert is a test.
            "apps", "taco": `input_output`.
            "code_contests": `public_tests`, `private_tests`, `generated_tests`.
            "livecodebench": `public_test_cases`, `private_test_cases`, `metadata`. Packed tests are unpacked without
            executing the pickle in them.
            "kodcode": `test`, for pytest. Each function `test_*` is a test.
            "verl": `reward_model`, with `ground_truth`, perhaps with `assert_case`.

    Raises:
        InvalidRequestError: A field is missing or wrong, or the data set is unknown. The message names the field and
            the id of the row.

    Example:
        >>> from faasrt.rewards import tests_of
        >>> row = {"task_id": 1, "code": "def inc(n): return n + 1", "test_list": ["assert inc(1) == 2"]}
        >>> tests_of(row, "mbpp")
        '{"function": "inc", "tests": [{"program": "assert inc(1) == 2"}]}'
    """
    try:
        tests = _encode(convert_row(_without_arrays(row) if isinstance(row, Mapping) else row, dataset))
        problem = _parse_problem(tests, None, Language.PYTHON)
        CodeTask("pass", "python", tests=problem.tests, function=problem.function)
        for test in problem.tests:
            if isinstance(test, AssertTest):
                test._parsed.complete(problem.function or test._parsed.find_function())
    except (InvalidRequestError, RecursionError) as error:
        reason = "a field is nested too deeply, or contains itself" if isinstance(error, RecursionError) else str(error)
        ids = [row[name] for name in _IDS if name in row] if isinstance(row, Mapping) else []
        place = f"row {safe_repr(ids[0])} of {dataset}" if ids else f"a row of {dataset}"
        raise InvalidRequestError(f"{place}: {reason}") from None
    return tests


def _encode(tests: dict[str, Any]) -> str:
    try:
        return json.dumps(tests)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"the tests cannot be encoded as JSON: {error}") from None


class CodeReward:
    r"""Scores the programs in completions by tests. Threads and event loops may share it.

    Args:
        manager: A manager of `faasrt.sync`; a `RuntimeManager`, for the asynchronous methods; or the URL of a FaaS, or
            several separated by commas, with `FAASRT_TOKEN` as the token. Default: None, which means the endpoints in
            the environment, see `Settings.from_env`, or else the embedded FaaS. All `CodeReward`s of a process with the
            same URL share a manager, which is created at the first call and closed at the end of the process.
        language: The language of the programs. Default: "python".
        partial_credit: Whether the reward is the share of the tests that passed. Otherwise it is 1 if all passed,
            else 0. Default: True.
        no_code: The reward of a completion without a program. Default: 0.
        on_failure: The rewards of completions that cannot be judged, because the infrastructure failed or their tests
            are wrong: "raise", which raises the error; a number, or None, which TRL leaves out; or a function that
            takes the index of the completion and the error, and returns the reward. The other completions keep their
            rewards, and a warning of the logger `faasrt` names the indices. Errors of the configuration are always
            raised; see `code_reward`. Default: "raise".
        compare: The comparison of outputs and results; see `faasrt.judging`. Default: None, which means "lines" for
            outputs, and "alike" for results, because JSON has no tuples.
        **options: `timeout_ms` (for each test), `ext`, `sandbox`, `priority` and `idempotent`; see
            `Runtime.run_code`. Default of `timeout_ms`: 10 s, as in verl and the longest of other graders, or the limit
            of the sandbox if that is lower. Default of `sandbox`: that of your manager, or 1,024 MiB of memory, as in
            verl. Without a manager of yours, a program waits up to 30 minutes for a busy server.

    Raises:
        ConfigurationError: `manager`, `no_code` or `on_failure` is wrong.
        InvalidRequestError: Another argument is wrong.
        UnsupportedLanguageError: The language cannot be the name of one.

    A `CodeReward` without a manager of yours can be pickled.

    Example:
        >>> from faasrt import sync
        >>> from faasrt.rewards import CodeReward
        >>> with sync.RuntimeManager.local(["python"]) as own:
        ...     reward = CodeReward(own, partial_credit=False, on_failure=None)
        ...     reward.code_reward(["```py\ndef inc(n): return n + 1\n```"], ['[{"args": [1], "expected": 2}]'], "inc")
        [1.0]
    """

    def __init__(
        self,
        manager: ManagerOption = None,
        *,
        language: LanguageOption = "python",
        partial_credit: bool = True,
        no_code: float = 0.0,
        on_failure: OnFailure = "raise",
        compare: Compare | None = None,
        **options: Unpack[JudgeOptions],
    ) -> None:
        self._shared = SharedManager(manager, sandbox=_SANDBOX, timeouts=_TIMEOUTS)
        check_flag("partial_credit", partial_credit, optional=False)
        self._options = CodeTask("", language, compare=compare, stop_on_failure=not partial_credit, **options)
        if not _is_number(no_code):
            raise ConfigurationError(f"no_code must be a number, got {safe_repr(no_code)}")
        if not (on_failure in ("raise", None) or callable(on_failure) or _is_number(on_failure)):
            raise ConfigurationError(
                f"on_failure must be 'raise', a number, None or a function, got {safe_repr(on_failure)}"
            )
        if not math.isfinite(no_code):
            raise ConfigurationError(f"no_code must be finite, got {no_code}")
        self._partial_credit = partial_credit
        self._no_code = no_code
        self._on_failure = on_failure

    def code_reward(
        self,
        completions: Sequence[Completion],
        tests: Sequence[Any],
        function: Sequence[str | None] | str | None = None,
        **columns: Any,
    ) -> list[Reward]:
        """Return the reward of each completion, as a reward function of TRL does.

        Args:
            completions: The completions: texts or conversations.
            tests: The tests of each completion; see `faasrt.rewards`. A completion without tests (None) gets no reward
                (None), so that rewards for other rows of the data set can be used beside this one.
            function: The name of the function of each completion, or one name for all. Default: None, for programs
                that read stdin, or tests that name their function.
            **columns: The other arguments of TRL, such as further columns. They are ignored.

        Raises:
            InvalidRequestError: Arguments have different lengths, the one name for all is not that of a function, or
                `timeout_ms` is above the limit of the sandbox; nothing was run. Or `on_failure` is "raise", and the
                tests of a completion are wrong; a note of the error has its index.
            ConfigurationError: The manager is an asynchronous one, no endpoint is configured, the language cannot have
                such tests, or the function `on_failure` returned something else than a number or None.
            RejectedError: The server refused a request with HTTP 401, 403 or 404, because the token or the URL is
                wrong. The other programs are ended.
            CompareError: The function `compare` failed.
            FaasrtError: The infrastructure failed, if `on_failure` is "raise". The other programs are ended.

        A KeyboardInterrupt ends the programs.

        Example: See `CodeReward`.
        """
        prepared = self._prepare(completions, tests, function)
        return self._finish(*self._shared.run(lambda manager: self._score(manager, prepared)))

    async def code_reward_async(
        self,
        completions: Sequence[Completion],
        tests: Sequence[Any],
        function: Sequence[str | None] | str | None = None,
        **columns: Any,
    ) -> list[Reward]:
        """Return the reward of each completion. The asynchronous form of `code_reward`, for TRL too.

        Cancellation: ends the programs.

        Example: See `faasrt.rewards`.
        """
        prepared = await asyncio.to_thread(self._prepare, completions, tests, function)
        return self._finish(*await self._shared.run_async(lambda manager: self._score(manager, prepared)))

    def compute_score(
        self, data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **kwargs: Any
    ) -> float:
        r"""Return the reward of a completion, as a reward function of verl does.

        Args:
            data_source, extra_info: They are ignored.
            solution_str: The completion.
            ground_truth: The tests; see `faasrt.rewards`. Tests of a function must name it.
            **kwargs: The other arguments of verl. They are ignored.

        Raises:
            ConfigurationError: See `code_reward`; or `on_failure` is None, which verl cannot use.
            FaasrtError: See `code_reward`.

        Example:
            >>> from faasrt.rewards import CodeReward
            >>> tests = '{"inputs": ["[1, 2]"], "outputs": ["3"], "fn_name": "add"}'
            >>> await CodeReward(manager).compute_score_async("apps", "```\ndef add(ns): return sum(ns)\n```", tests)
            1.0
        """
        prepared = self._prepare_one(solution_str, ground_truth)
        return _single(self._finish(*self._shared.run(lambda manager: self._score(manager, prepared))))

    async def compute_score_async(
        self, data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **kwargs: Any
    ) -> float:
        """Return the reward of a completion. The asynchronous form of `compute_score`, for verl too.

        Cancellation: ends the program.

        Example: See `compute_score`.
        """
        prepared = await asyncio.to_thread(self._prepare_one, solution_str, ground_truth)
        return _single(self._finish(*await self._shared.run_async(lambda manager: self._score(manager, prepared))))

    def check(
        self,
        solutions: Sequence[str],
        tests: Sequence[Any],
        function: Sequence[str | None] | str | None = None,
    ) -> list[FailedSolution]:
        """Return the reference solutions that do not pass all of their tests, so that no program can be rewarded fully.

        Check a data set before training with it. `faasrt/docs/rewards.md` lists usual reasons.

        Args:
            solutions: The programs, not completions: `last_code_block` takes the program out of one.
            tests, function: See `code_reward`. Solutions without tests (None) are left out.

        Raises:
            InvalidRequestError: The arguments have different lengths, or the one name for all is not that of a
                function. Wrong tests are reasons.
            ConfigurationError, CompareError: See `code_reward`.
            FaasrtError: The infrastructure failed. `on_failure` does not apply.

        Example:
            >>> from faasrt import sync
            >>> from faasrt.rewards import CodeReward
            >>> solutions = ["def pair(n): return {n, n + 1}", "def pair(n): return [n, n + 1]"]
            >>> tests = [[{"args": [1], "expected": [1, 2]}]] * 2
            >>> with sync.RuntimeManager.local(["python"]) as own:
            ...     failed = CodeReward(own).check(solutions, tests, "pair")
            >>> failed[0].index, failed[0].reason.removeprefix("1 of 1 tests: test 0: ")[:60]
            (0, 'USER_ERROR: TypeError: the return value cannot be encoded as')
        """
        prepared = self._prepare_solutions(solutions, tests, function)
        return self._shared.run(lambda manager: self._find_failed(manager, prepared))

    async def check_async(
        self,
        solutions: Sequence[str],
        tests: Sequence[Any],
        function: Sequence[str | None] | str | None = None,
    ) -> list[FailedSolution]:
        """Return the reference solutions that do not pass all of their tests. The asynchronous form of `check`.

        Cancellation: ends the programs.

        Example: See `check`.
        """
        prepared = await asyncio.to_thread(self._prepare_solutions, solutions, tests, function)
        return await self._shared.run_async(lambda manager: self._find_failed(manager, prepared))

    async def judge_async(self, completion: Completion, tests: Any, function: str | None = None) -> Judgement | None:
        r"""Return the verdicts behind a reward; None if the completion has no program.

        Args:
            completion, tests, function: As the items of the arguments of `code_reward`.

        Raises:
            InvalidRequestError: The tests or another argument is wrong.
            FaasrtError: The infrastructure failed. `on_failure` does not apply.

        Cancellation: ends the program.

        Example:
            >>> from faasrt.rewards import CodeReward
            >>> tests = {"inputs": ["1 2"], "outputs": ["3"]}
            >>> judgement = await CodeReward(manager).judge_async("```\nprint(input())\n```", tests)
            >>> judgement.results[0].difference
            "line 1: expected '3', got '1 2'"
        """
        task = await asyncio.to_thread(self._task_of, completion, tests, function)
        if task is None:
            return None
        return await self._shared.run_async(
            lambda manager: manager.judge(
                task.code,
                task.tests,
                function=task.function,
                language=task.language,
                compare=task.compare,
                **attrs.evolve(task, timeout_ms=self._timeout_ms(manager)).options(JudgeOptions),
            )
        )

    def _prepare_one(self, completion: str, tests: Any) -> list[CodeTask | InvalidRequestError | Reward]:
        if self._on_failure is None:
            raise ConfigurationError("on_failure must not be None for compute_score: verl needs numbers")
        if tests is None:
            tests = ()  # are refused, while those of `code_reward` need no tests
        return self._prepare([completion], [tests], None)

    def _prepare(
        self, completions: Sequence[Completion], tests: Sequence[Any], function: Sequence[str | None] | str | None
    ) -> list[CodeTask | InvalidRequestError | Reward]:
        """Return the task of each completion, the error of its tests, or its reward."""
        prepared: list[CodeTask | InvalidRequestError | Reward] = []
        for index, (completion, own_tests, name) in enumerate(self._rows("completions", completions, tests, function)):
            try:
                task = None if own_tests is None else self._task_of(completion, own_tests, name)
            except InvalidRequestError as error:
                error.add_note(_place("completion", index))
                if self._on_failure == "raise":
                    raise
                prepared.append(error)
            else:
                prepared.append(self._no_code if task is None and own_tests is not None else task)
        return prepared

    def _prepare_solutions(
        self, solutions: Sequence[str], tests: Sequence[Any], function: Sequence[str | None] | str | None
    ) -> list[CodeTask | InvalidRequestError | None]:
        """Return the task of each solution, or the error of its tests; None without tests."""
        prepared: list[CodeTask | InvalidRequestError | None] = []
        for solution, own_tests, name in self._rows("solutions", solutions, tests, function):
            try:
                problem = None if own_tests is None else _parse_problem(own_tests, name, self._options.language)
                task = None if problem is None else self._task(problem, solution)
                prepared.append(task and attrs.evolve(task, stop_on_failure=False))
            except InvalidRequestError as error:
                prepared.append(error)
        return prepared

    def _rows(
        self, name: str, texts: Sequence[Any], tests: Sequence[Any], function: Sequence[str | None] | str | None
    ) -> Iterable[tuple[Any, Any, str | None]]:
        if isinstance(function, str):
            check_function(function, self._options.language)
        functions = [function] * len(texts) if function is None or isinstance(function, str) else function
        if not len(texts) == len(tests) == len(functions):
            raise InvalidRequestError(
                f"{name}, tests and functions must have the same length, "
                f"got {len(texts)}, {len(tests)} and {len(functions)}"
            )
        return zip(texts, tests, functions, strict=True)

    def _task_of(self, completion: object, tests: object, function: str | None) -> CodeTask | None:
        language = self._options.language
        problem = _parse_problem(tests, function, language)
        code = last_code_block(_read_text(completion), language) or ""
        task = self._task(problem, code)  # even without a program, because it checks the tests
        return task if code.strip() else None

    def _task(self, problem: _Problem, code: str) -> CodeTask:
        self._check_language(problem)
        # No program can be sent with lone surrogates, which are not characters.
        program = problem.insert_into(code.encode(errors="replace").decode())
        is_default = self._options.compare is None and any(isinstance(test, FunctionTest) for test in problem.tests)
        compare = "alike" if is_default else self._options.compare
        if any(isinstance(test, AssertTest) for test in problem.tests):
            compare = None  # asserts compare by themselves
        return attrs.evolve(
            self._options, code=program, tests=problem.tests, function=problem.function, compare=compare
        )

    def _check_language(self, problem: _Problem) -> None:
        """Raise ConfigurationError if no program of the language can be judged by such tests."""
        language = self._options.language
        if any(isinstance(test, AssertTest) for test in problem.tests) and language is not Language.PYTHON:
            raise ConfigurationError(f"language must be 'python' for AssertTests, got '{language}': use FunctionTests")
        if problem.function is not None and not has_return_val(language):
            raise ConfigurationError(
                "language must be Python, JavaScript or TypeScript for tests of a function, "
                f"got '{language}': use tests with stdin"
            )

    async def _score(
        self, manager: RuntimeManager, prepared: Sequence[CodeTask | InvalidRequestError | Reward]
    ) -> tuple[list[Reward], _Failures]:
        """Return the rewards, and the errors of the completions that could not be judged."""
        rewards = [None if isinstance(item, CodeTask | InvalidRequestError) else item for item in prepared]
        failures: _Failures = {
            index: item for index, item in enumerate(prepared) if isinstance(item, InvalidRequestError)
        }
        timeout_ms = self._timeout_ms(manager)
        async with contextlib.aclosing(_run("completion", manager, prepared, timeout_ms)) as results:
            async for index, item in results:
                if item.error is None:
                    assert item.judgement is not None
                    rewards[index] = item.judgement.score if self._partial_credit else float(item.judgement.passed)
                elif self._on_failure == "raise" or not _is_failure(item.error):
                    raise item.error
                else:
                    failures[index] = item.error
        return rewards, failures

    def _timeout_ms(self, manager: RuntimeManager) -> float:
        """Return the time limit of a test. Raise InvalidRequestError if it is wrong, because it holds for all rows."""
        sandbox = self._options.sandbox or manager.settings.sandbox
        if self._options.timeout_ms is None:
            return min(DEFAULT_TIMEOUT_MS, check_timeout_ms(None, sandbox))
        return check_timeout_ms(self._options.timeout_ms, sandbox)

    def _finish(self, rewards: list[Reward], failures: _Failures) -> list[Reward]:
        """Set the rewards of completions that could not be judged."""
        for index, error in sorted(failures.items()):
            value: Any = self._on_failure
            rewards[index] = value(index, error) if callable(value) else value
            if callable(value) and rewards[index] is not None and not _is_number(rewards[index]):
                got = safe_repr(rewards[index])
                raise ConfigurationError(f"the function on_failure must return a number or None, got {got}")
        # Not the messages of the errors, which may contain input and expected output.
        if len(rewards) == 1:
            for error in failures.values():
                _single_failures.log(type(error).__name__)
        elif failures:
            indices = ", ".join(map(str, sorted(failures)[:_SHOWN_INDICES]))
            log_warning(
                "%d of %d completions cannot be judged, so their rewards are those of on_failure: indices %s: %s. "
                "A function as on_failure gets the reasons, and CodeReward.check returns those of wrong tests",
                len(failures),
                len(rewards),
                indices + (", ..." if len(failures) > _SHOWN_INDICES else ""),
                ", ".join(sorted({type(error).__name__ for error in failures.values()})),
            )
        return rewards

    async def _find_failed(
        self, manager: RuntimeManager, prepared: Sequence[CodeTask | InvalidRequestError | None]
    ) -> list[FailedSolution]:
        reasons = {index: str(item) for index, item in enumerate(prepared) if isinstance(item, InvalidRequestError)}
        judgements: dict[int, Judgement] = {}
        timeout_ms = self._timeout_ms(manager)
        async with contextlib.aclosing(_run("solution", manager, prepared, timeout_ms)) as results:
            async for index, item in results:
                if isinstance(item.error, InvalidRequestError):
                    reasons[index] = str(item.error)
                elif item.error is not None:
                    raise item.error
                elif item.judgement is not None and not item.judgement.passed:
                    reasons[index], judgements[index] = _describe(item.judgement), item.judgement
        return [FailedSolution(index, reasons[index], judgements.get(index)) for index in sorted(reasons)]


class _SingleFailures:
    """Logs failures of calls with one completion, of which verl makes thousands: a line for each kind and ten seconds.

    The first failure of a kind is logged at once, and later ones as a number. There is no lock, because a fork could
    leave it locked: failures in several threads at the same time may be miscounted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged_at: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def log(self, kind: str) -> None:
        self._counts[kind] += 1
        now = self._clock()
        if now - self._logged_at.get(kind, -math.inf) < INTERVAL_S:
            return
        self._logged_at[kind] = now
        log_warning(
            "%d completion(s) cannot be judged, so their rewards are those of on_failure: %s. Further ones are logged "
            "together, at most every %d s. A function as on_failure gets the reasons, and CodeReward.check returns "
            "those of wrong tests",
            self._counts.pop(kind, 0),  # 0 if another thread has just logged it
            kind,
            INTERVAL_S,
        )


_single_failures = _SingleFailures()


def _is_failure(error: FaasrtError) -> bool:
    """Return whether an error may concern one completion only. Those of the configuration would hold for all."""
    is_refused = isinstance(error, RejectedError) and error.status in _CONFIGURATION_STATUSES
    return isinstance(error, _FAILURES) and not is_refused


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


async def _run(
    name: str, manager: RuntimeManager, prepared: Sequence[object], timeout_ms: float
) -> AsyncGenerator[tuple[int, TaskResult]]:
    tasks = {index: item for index, item in enumerate(prepared) if isinstance(item, CodeTask)}
    indices = list(tasks)
    async with manager.map(attrs.evolve(task, timeout_ms=timeout_ms) for task in tasks.values()) as results:
        async for item in results:
            index = indices[item.index]
            if item.error is not None:
                item.error.add_note(_place(name, index))
            yield index, item


def _place(name: str, index: int) -> str:
    return f"of the {name} with index {index}"


def _describe(judgement: Judgement) -> str:
    failed = [(index, each) for index, each in enumerate(judgement.results) if each.verdict is not Verdict.PASSED]
    index, first = failed[0]
    error = None if first.result is None else first.result.error
    why = first.difference or ("" if error is None else f"{error.name}: {error.message}")
    return f"{len(failed)} of {len(judgement.results)} tests: test {index}: {first.verdict}{why and ': '}{why}"


def _single(rewards: list[Reward]) -> float:
    [reward] = rewards
    if reward is None:
        raise ConfigurationError("the function on_failure must return a number for compute_score: verl needs numbers")
    return reward


_default = CodeReward()
code_reward = _default.code_reward
code_reward_async = _default.code_reward_async
compute_score = _default.compute_score
compute_score_async = _default.compute_score_async
