"""A tool and a scorer for Inspect AI (extra `inspect`).

    from inspect_ai import Task
    from inspect_ai.solver import generate, use_tools

    from faasrt.inspect_ai import code_tests, run_code

    Task(dataset=..., solver=[use_tools(run_code("python")), generate()], scorer=code_tests())

`run_code` is a tool that runs a program of the model. It takes the place of Inspect's tools `python` and `bash` where
no Docker is at hand, and needs no `sandbox=` in the task. Each call runs a program from its start in a sandbox of its
own, as with Inspect's tools, but no files stay between the calls, and there is no network.

`code_tests` is a scorer. It runs the last fenced block of the completion with tests that the program cannot see; see
`faasrt.rewards`.

Both take a URL, or use the endpoints in the environment, or else the embedded FaaS. All tools and scorers of a process
with the same URL share one manager. A failure of the infrastructure is an error of the sample, as Inspect's
`fail_on_error` and `retry_on_error` expect it, and never a wrong answer.

**Limits.** There is no sandbox provider (`sandbox="faasrt"`): its commands would need files that stay between them. So
Inspect's own tools, and evaluations that call `sandbox()`, still need Docker or another provider. Inspect must use
asyncio, its default, and not Trio.
"""

from __future__ import annotations

from typing import Any, Unpack

from inspect_ai.scorer import CORRECT, INCORRECT, NOANSWER, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState
from inspect_ai.tool import Tool, ToolDef, ToolError, tool

from faasrt._shared_manager import SharedManager
from faasrt.judging import Judgement
from faasrt.languages import LanguageOption
from faasrt.results import ExecutionResult, Outcome
from faasrt.rewards import CodeReward, last_code_block
from faasrt.tasks import CodeTask, JudgeOptions

__all__ = ["code_tests", "run_code"]

_DESCRIPTION = """Run a {language} program in a sandbox without network, and return its output.

Each call runs a program from its start: variables and files of earlier calls are gone. Print what you want to see."""
# The output alone does not say why these programs were ended.
_ENDED = (Outcome.TIMEOUT, Outcome.MEMORY_LIMIT, Outcome.OUTPUT_LIMIT, Outcome.CRASHED)


@tool(parallel=True)  # type: ignore[untyped-decorator]
def run_code(language: LanguageOption = "python", url: str | None = None, **options: Unpack[JudgeOptions]) -> Tool:
    """Return a tool that runs a program of the model. Its name is that of the language.

    The model gets what the program writes to stderr and stdout. If the program was ended at a limit or crashed, it gets
    a tool error that says so.

    Args:
        language: The language of the programs. Default: "python".
        url: The URL of a FaaS; see `CodeReward`. Default: None, which means the environment, or else the embedded FaaS.
        **options: `timeout_ms`, `ext`, `sandbox`, `priority` and `idempotent`; see `Runtime.run_code`.

    Raises:
        ConfigurationError: The URL is wrong.
        InvalidRequestError: An option is wrong.
        UnsupportedLanguageError: The language cannot be the name of one.
    """
    shared = SharedManager(url)
    task = CodeTask("", language, **options)

    async def execute(code: str) -> str:
        program = code.encode(errors="replace").decode()  # no program can be sent with lone surrogates
        if not program.strip():
            raise ToolError("The program is empty.")
        result = await shared.run_async(
            lambda manager: manager.run_code(program, task.language, **task.options(JudgeOptions))
        )
        return _output_of(result)

    return ToolDef(
        execute,
        name=str(task.language),
        description=_DESCRIPTION.format(language=task.language),
        parameters={"code": "The program."},
        parallel=True,
    ).as_tool()


def _output_of(result: ExecutionResult) -> str:
    output = "\n".join(text for text in (result.stderr, result.stdout) if text)
    if result.outcome in _ENDED:
        reason = str(result.error.message if result.error else result.outcome)
        raise ToolError(f"{result.outcome}: {reason}\n{output}".rstrip())
    return output


@scorer(metrics=[accuracy(), stderr()])  # type: ignore[untyped-decorator]
def code_tests(
    url: str | None = None,
    *,
    language: LanguageOption = "python",
    partial_credit: bool = False,
    **options: Unpack[JudgeOptions],
) -> Scorer:
    """Return a scorer that tests the program in the completion.

    The tests of a sample are `metadata["tests"]`, or else its target, in one of the forms that `faasrt.rewards` lists.
    The function is `metadata["function"]`, unless the tests name it.

    Args:
        url: The URL of a FaaS; see `CodeReward`. Default: None, which means the environment, or else the embedded FaaS.
        language: The language of the programs. Default: "python".
        partial_credit: Whether the score is the share of the tests that passed. Otherwise it is correct if all passed,
            else incorrect. Default: False.
        **options: `timeout_ms` (for each test), `ext`, `sandbox`, `priority` and `idempotent`; see
            `Runtime.run_code`.

    Raises:
        ConfigurationError: The URL is wrong.
        InvalidRequestError: An option is wrong.
        UnsupportedLanguageError: The language cannot be the name of one.
    """
    reward = CodeReward(url, language=language, partial_credit=partial_credit, **options)

    async def score(state: TaskState, target: Target) -> Score:
        tests, function = state.metadata.get("tests", target.text), state.metadata.get("function")
        judgement = await reward.judge_async(state.output.completion, tests, function)
        if judgement is None:
            return Score(value=NOANSWER, explanation="The completion has no program.")
        value: Any = judgement.score if partial_credit else CORRECT if judgement.passed else INCORRECT
        answer = last_code_block(state.output.completion, language)
        return Score(value=value, answer=answer, explanation=_explanation(judgement))

    return score


def _explanation(judgement: Judgement) -> str:
    counts = f"{judgement.passed_count} of {len(judgement.results)} tests passed."
    failure = judgement.first_failure
    if failure is None:
        return counts
    error = failure.result.error.message if failure.result and failure.result.error else ""
    return f"{counts} {failure.verdict}: {failure.difference or error}"
