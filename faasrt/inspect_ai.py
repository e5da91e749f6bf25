"""A sandbox, a tool and a scorer for Inspect AI (extra `inspect`).

    from inspect_ai import Task
    from inspect_ai.solver import generate, use_tools

    from faasrt.inspect_ai import code_tests, run_code

    Task(dataset=..., solver=[use_tools(run_code("python")), generate()], scorer=code_tests())

`run_code` is a tool that runs a program of the model. It takes the place of Inspect's tools `python` and `bash` where
no Docker is at hand, and needs no `sandbox=` in the task. Each call runs a program from its start in a sandbox of its
own, as with Inspect's tools, but no files stay between the calls, and there is no network.

`code_tests` is a scorer. It runs the last fenced block of the completion with tests that the program cannot see; see
`faasrt.rewards`.

`sandbox="faasrt"` in a task starts the commands of Inspect's own tools, such as `bash` and `python`, in a session of a
FaaS: each sample has its own processes and files below /tmp, and no network. It needs the engine `native`, and no
Docker. A command has the bash, Python and other programs of the server's machine. The server sets the limits of
commands:

    faasrt serve --timeout-s 600 --memory-mb 4096

All three use the endpoints in the environment, or else the embedded FaaS; the tool and the scorer also take a URL. All
of a process with the same URL share one manager. A failure of the infrastructure is an error of the sample, as
Inspect's `fail_on_error` and `retry_on_error` expect it, and never a wrong answer.

**Limits.** Commands of a sample run one after the other, as one user. Of each stream of a command, the last 350,000
bytes are kept; its input may have about 6 MB. Inspect must use asyncio, its default, and not Trio.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Literal, Unpack, overload

from inspect_ai.scorer import CORRECT, INCORRECT, NOANSWER, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState
from inspect_ai.tool import Tool, ToolDef, ToolError, tool
from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUserUnsupportedError,
    sandboxenv,
)

from faasrt.client.manager import RuntimeManager
from faasrt.client.session import Session
from faasrt.config import SandboxConfig
from faasrt.judging import Judgement
from faasrt.languages import LanguageOption
from faasrt.protocol.streams import replace_surrogates
from faasrt.results import ExecutionResult, Outcome
from faasrt.rewards import CodeReward, last_code_block
from faasrt.rewards.shared_manager import SharedManager
from faasrt.tasks import CodeTask, JudgeOptions

__all__ = ["FaasrtSandbox", "code_tests", "run_code"]

_DESCRIPTION = """Run a {language} program in a sandbox without network, and return its output.

Each call runs a program from its start: variables and files of earlier calls are gone. Print what you want to see."""
# The output alone does not say why these programs were ended.
_ENDED = (Outcome.TIMEOUT, Outcome.MEMORY_LIMIT, Outcome.OUTPUT_LIMIT, Outcome.CRASHED)


@tool(parallel=True)  # type: ignore[untyped-decorator]
def run_code(language: LanguageOption = "python", url: str | None = None, **options: Unpack[JudgeOptions]) -> Tool:
    """Return a tool that runs a program of the model. The name of the tool is the language.

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
        program = replace_surrogates(code)
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
    error = "" if failure.result is None or failure.result.error is None else failure.result.error.message
    return f"{counts} {failure.verdict}: {failure.difference or error}"


_PIECE_BYTES = 350_000
# Does what a request in stdin says, and prints the answer. Both are JSON, in which bytes are in Base64.
_PROGRAM = f"""
def _answer():
    import base64, json, os, signal, subprocess, sys

    def encode(data):
        return base64.b64encode(data).decode()

    request = json.load(sys.stdin)
    try:
        if "command" in request:
            try:
                process = subprocess.Popen(
                    request["command"], cwd=request["cwd"], env={{**os.environ, **request["env"]}}, process_group=0,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            except FileNotFoundError as error:
                return {{"returncode": 127, "stdout": "", "stderr": encode(str(error).encode())}}
            try:
                out, err = process.communicate(base64.b64decode(request["input"]), request["timeout_s"])
            except subprocess.TimeoutExpired:
                return {{"error": "TimeoutError", "message": "the command took too long"}}
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            return {{
                "returncode": process.returncode if process.returncode >= 0 else 128 - process.returncode,
                "stdout": encode(out[-{_PIECE_BYTES}:]),
                "stderr": encode(err[-{_PIECE_BYTES}:]),
            }}
        path = request["path"]
        if "content" in request:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with open(path, "ab" if request["appends"] else "wb") as file:
                file.write(base64.b64decode(request["content"]))
            return {{}}
        with open(path, "rb") as file:
            file.seek(request["offset"])
            return {{"content": encode(file.read({_PIECE_BYTES})), "size": os.fstat(file.fileno()).st_size}}
    except OSError as error:
        return {{"error": type(error).__name__, "message": str(error)}}

print(__import__("json").dumps(_answer()))
"""
_ERRORS = {kind.__name__: kind for kind in (FileNotFoundError, IsADirectoryError, PermissionError, TimeoutError)}


@sandboxenv(name="faasrt")
class FaasrtSandbox(SandboxEnvironment):  # type: ignore[misc]
    """The sandbox of a sample: a session in which commands run. Inspect makes it, for `sandbox="faasrt"`."""

    def __init__(self, shared: SharedManager, session: Session) -> None:
        super().__init__()
        self._shared, self._session = shared, session

    @classmethod
    async def sample_init(cls, task_name: str, config: Any, metadata: dict[str, str]) -> dict[str, SandboxEnvironment]:
        shared = SharedManager(None)

        async def begin(manager: RuntimeManager) -> Session:
            # The server lowers these limits to its own.
            limits = SandboxConfig(memory_limit_mb=65_536, timeout_limit_s=86_400)
            return await manager.session("python", sandbox=limits, idle_timeout_s=3_600).__aenter__()

        return {"default": cls(shared, await shared.run_async(begin))}

    @classmethod
    async def sample_cleanup(
        cls, task_name: str, config: Any, environments: dict[str, SandboxEnvironment], interrupted: bool
    ) -> None:
        for environment in environments.values():
            sandbox = environment.as_type(cls)
            await sandbox._shared.run_async(lambda manager, session=sandbox._session: session.aclose())

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,  # noqa: A002
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        if user is not None:
            raise SandboxUserUnsupportedError(f"the sandbox has one user, so it cannot run a command as {user!r}")
        stdin = input.encode() if isinstance(input, str) else input or b""
        answer = await self._request(
            command=cmd, input=_encode(stdin), cwd=cwd or ".", env=env or {}, timeout_s=timeout
        )
        out, err = (base64.b64decode(answer[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        return ExecResult(answer["returncode"] == 0, answer["returncode"], out, err)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        content = contents.encode() if isinstance(contents, str) else contents
        for start in range(0, max(len(content), 1), _PIECE_BYTES):
            piece = content[start : start + _PIECE_BYTES]
            await self._request(path=file, content=_encode(piece), appends=start > 0)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        content = b""
        while True:
            answer = await self._request(path=file, offset=len(content))
            if answer["size"] > SandboxEnvironmentLimits.MAX_READ_FILE_SIZE:
                raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
            piece = base64.b64decode(answer["content"])
            content += piece
            if len(piece) < _PIECE_BYTES:
                return content.decode() if text else content

    async def _request(self, **request: Any) -> dict[str, Any]:
        stdin = json.dumps(request)
        result = await self._shared.run_async(lambda manager: self._session.run_code(_PROGRAM, stdin=stdin))
        if result.outcome is Outcome.TIMEOUT:
            raise TimeoutError("the command took longer than the time limit of the server")
        answer: dict[str, Any] = json.loads(result.raise_for_outcome().stdout)
        if "error" in answer:
            raise _ERRORS.get(answer["error"], OSError)(answer["message"])
        return answer


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()
