"""Rewards: `CodeReward`, which scores the programs in completions."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack

import attrs

from faasrt._attribute_docs import list_attributes
from faasrt._run_option_checks import check_flag, check_timeout_ms, is_number
from faasrt.client.manager import RuntimeManager
from faasrt.config import SandboxConfig, TimeoutSettings
from faasrt.errors import ConfigurationError, FaasrtError, InvalidRequestError, safe_repr
from faasrt.judging import AssertTest, Compare, FunctionTest, Judgement, Verdict
from faasrt.languages import Language, LanguageOption, has_return_val
from faasrt.protocol.cases import check_function
from faasrt.protocol.streams import replace_surrogates
from faasrt.rewards.completions import last_code_block, read_text
from faasrt.rewards.failures import is_failure, single_failures
from faasrt.rewards.problems import Problem, parse_problem
from faasrt.rewards.shared_manager import ManagerOption, SharedManager
from faasrt.tasks import CodeTask, JudgeOptions, TaskResult
from faasrt.telemetry.logs import log_warning

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""The text of a completion, or the messages of a conversation."""
Reward: TypeAlias = float | None
OnFailure: TypeAlias = Literal["raise"] | Reward | Callable[[int, FaasrtError], Reward]
"""The rewards of completions that cannot be judged; see `CodeReward`."""
_Failures: TypeAlias = dict[int, FaasrtError]

_SHOWN_INDICES = 20
# The longest limit of usual graders, so a program that is right for them is right here: verl and TACO have 10 s,
# LiveCodeBench 6, APPS and EvalPlus 4, HumanEval 3. Programs in training often loop forever.
DEFAULT_TIMEOUT_MS = 10_000
# As in the configuration of verl. Other graders allow more: LiveCodeBench and EvalPlus 4 GiB.
_SANDBOX = SandboxConfig(memory_limit_mb=1_024)
# A busy server delays a batch of a training, which no person waits for. This is longer than the programs take that a
# server with a few CPUs has in its queue.
_TIMEOUTS = TimeoutSettings(grace_s=1_800)


@list_attributes
@attrs.frozen
class FailedSolution:
    """A reference solution that does not pass its tests; see `CodeReward.check`.

    Example:
        >>> from faasrt.rewards import CodeReward
        >>> failed = await CodeReward(manager).check_async(["print(1)"], [[TestCase("", "2")]])
        >>> failed[0].index, failed[0].reason
        (0, "1 of 1 tests: test 0: WRONG_ANSWER: line 1: expected '2', got '1'")
    """

    index: int
    """Its index, from 0."""
    reason: str
    """How many tests failed and why the first one did, or what is wrong with the tests."""
    judgement: Judgement | None = attrs.field(default=None, repr=False)
    """The verdicts; None if the tests are wrong."""


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
            of the sandbox if that is lower. Default of `sandbox`: the limits of your manager, or 1,024 MiB of memory,
            as in verl. Without a manager of yours, a program waits up to 30 minutes for a busy server.

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
        if not is_number(no_code):
            raise ConfigurationError(f"no_code must be a number, got {safe_repr(no_code)}")
        if not (on_failure in ("raise", None) or callable(on_failure) or is_number(on_failure)):
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
            InvalidRequestError: Arguments have different lengths, the one name for all completions names no function,
                or `timeout_ms` is above the limit of the sandbox; nothing was run. Or `on_failure` is "raise", and the
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
            InvalidRequestError: The arguments have different lengths, or the one name for all completions names no
                function. Wrong tests are returned as reasons.
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
            tests = ()  # an empty list of tests is an error; None would mean no reward
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
                problem = None if own_tests is None else parse_problem(own_tests, name, self._options.language)
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
        problem = parse_problem(tests, function, language)
        code = last_code_block(read_text(completion), language) or ""
        task = self._task(problem, code)  # even without a program, because it checks the tests
        return task if code.strip() else None

    def _task(self, problem: Problem, code: str) -> CodeTask:
        self._check_language(problem)
        program = problem.insert_into(replace_surrogates(code))
        is_default = self._options.compare is None and any(isinstance(test, FunctionTest) for test in problem.tests)
        compare = "alike" if is_default else self._options.compare
        if any(isinstance(test, AssertTest) for test in problem.tests):
            compare = None  # asserts compare by themselves
        return attrs.evolve(
            self._options, code=program, tests=problem.tests, function=problem.function, compare=compare
        )

    def _check_language(self, problem: Problem) -> None:
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
                elif self._on_failure == "raise" or not is_failure(item.error):
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
            if callable(value) and rewards[index] is not None and not is_number(rewards[index]):
                got = safe_repr(rewards[index])
                raise ConfigurationError(f"the function on_failure must return a number or None, got {got}")
        # Not the messages of the errors, which may contain input and expected output.
        if len(rewards) == 1:
            for error in failures.values():
                single_failures.log(type(error).__name__)
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
