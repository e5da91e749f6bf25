"""The tools of `faasrt/docs/agents.md` in the frameworks, word for word, with models that call them as scripted."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from faasrt import RuntimeManager, sync
from support.documents import text_of

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("default"),  # the packages have deprecation warnings of each other
]

PAGE = text_of("faasrt/docs/agents.md")
CODE = ["x = 41", "print('x is', x)\nx + 1", "import nope"]
ANSWER = "It is 42."


class Script:
    """The turns of a model in a conversation: it runs each program, and then it answers.

    Attributes:
        seen: The results of the tool that the model got in its last conversation.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []

    def next_code(self, seen: list[str]) -> str | None:
        """Return the next program after these results, None if the model answers now."""
        self.seen = seen
        return CODE[len(seen)] if len(seen) < len(CODE) else None

    def check(self) -> None:
        assert self.seen[0].split() == ["OK"]
        assert self.seen[1].split("\n") == ["OK", "x is 41", "", "", "42"]
        assert self.seen[2].startswith("USER_ERROR\n")
        assert "ModuleNotFoundError: No module named 'nope'" in self.seen[2]


def load(title: str, folder: Path, **names: Any) -> Any:
    """Return the function `answer` of a section. `describe` is that of the first program of the page."""
    helper = PAGE.partition("```python\n")[2].partition("async def main")[0]
    [section] = re.findall(rf"^### {title}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    code = inspect.cleandoc("\n" + "\n".join(line for line in section.splitlines() if line[:4] in ("    ", "")))
    lines = [line for line in code.splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(lines) <= 13, "longer than about ten lines"
    file = folder / "tool.py"  # smolagents reads the source of functions
    file.write_text(f"import faasrt.sync\n{helper}\n{code}\n")
    return runpy.run_path(str(file), names)["answer"]


async def ask(answer: Any, script: Script) -> None:
    """Ask two questions at once: each has a session of its own."""
    async with RuntimeManager.local(["python"], workers=2) as manager:
        assert await asyncio.gather(answer(manager, "What is 41 + 1?"), answer(manager, "And?")) == [ANSWER] * 2
        script.check()


async def test_openai_agents(tmp_path: Path) -> None:
    from agents import Model, ModelResponse, Usage, set_tracing_disabled
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

    script = Script()

    class Scripted(Model):  # type: ignore[misc]
        async def get_response(self, *args: Any, **request: Any) -> Any:
            given = request["input"]
            items = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
            seen = [item["output"] for item in items if item.get("type") == "function_call_output"]
            code = script.next_code(seen)
            output: Any = ResponseFunctionToolCall(
                type="function_call",
                call_id=f"call{len(seen)}",
                name="run_python",
                arguments=json.dumps({"code": code}),
            )
            if code is None:
                text = ResponseOutputText(type="output_text", text=ANSWER, annotations=[])
                output = ResponseOutputMessage(
                    id="m", type="message", role="assistant", status="completed", content=[text]
                )
            return ModelResponse(output=[output], usage=Usage(), response_id=None)

        def stream_response(self, *args: Any, **options: Any) -> Any:
            raise NotImplementedError

    set_tracing_disabled(True)  # traces go to a service
    await ask(load("OpenAI Agents SDK", tmp_path, model=Scripted()), script)


async def test_pydantic_ai(tmp_path: Path) -> None:
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    script = Script()

    def respond(messages: list[Any], info: Any) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        code = script.next_code([str(part.content) for part in parts if part.part_kind == "tool-return"])
        part = TextPart(ANSWER) if code is None else ToolCallPart("run_python", {"code": code})
        return ModelResponse(parts=[part])

    await ask(load("pydantic-ai", tmp_path, model=FunctionModel(respond)), script)


async def test_langchain(tmp_path: Path) -> None:
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    script = Script()

    class Scripted(BaseChatModel):  # type: ignore[misc]
        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self

        def _generate(self, messages: Any, *args: Any, **options: Any) -> ChatResult:
            seen = [message.content for message in messages if message.type == "tool"]
            code = script.next_code(seen)
            calls = [{"name": "run_python", "args": {"code": code}, "id": f"call{len(seen)}"}]
            message = AIMessage(ANSWER) if code is None else AIMessage("", tool_calls=calls)
            return ChatResult(generations=[ChatGeneration(message=message)])

    await ask(load("LangChain", tmp_path, model=Scripted()), script)


def test_smolagents(tmp_path: Path) -> None:
    from smolagents.models import ChatMessage, ChatMessageToolCall, ChatMessageToolCallFunction, MessageRole, Model

    script = Script()

    class Scripted(Model):  # type: ignore[misc]
        def generate(self, messages: Any, *args: Any, **options: Any) -> ChatMessage:
            texts = [
                part["text"] for message in messages if message.role == "tool-response" for part in message.content
            ]
            seen = [text.partition("Observation:\n")[2] for text in texts]
            code = script.next_code(seen)
            function = ChatMessageToolCallFunction({"code": code}, "run_python")
            if code is None:
                function = ChatMessageToolCallFunction({"answer": ANSWER}, "final_answer")
            call = ChatMessageToolCall(function, f"call{len(seen)}", "function")
            return ChatMessage(MessageRole.ASSISTANT, "", [call])

    answer = load("smolagents", tmp_path, model=Scripted())
    with sync.RuntimeManager.local(["python"], workers=1) as manager:
        for question in ("What is 41 + 1?", "And?"):
            assert answer(manager, question) == ANSWER
            script.check()
    assert "torch" not in sys.modules


def test_code_agent_of_smolagents() -> None:
    """The code of the agent runs in the session: the model sees output, values and tracebacks, and its final answer is
    returned. A tool of the host is refused, because code in the sandbox cannot call it.
    """
    from smolagents.models import ChatMessage, MessageRole, Model

    from faasrt.examples import agent_smolagents

    steps = [*CODE, f"final_answer({{'answer': {ANSWER!r}, 'x': x}})"]
    seen: list[str] = []

    class Scripted(Model):  # type: ignore[misc]
        def generate(self, messages: Any, *args: Any, **options: Any) -> ChatMessage:
            texts = [
                part["text"] for message in messages if message.role == "tool-response" for part in message.content
            ]
            seen[:] = texts
            return ChatMessage(MessageRole.ASSISTANT, f"Thought: go on\n<code>\n{steps[len(texts)]}\n</code>")

    with sync.RuntimeManager.local(["python"], workers=1) as manager:
        for _ in range(2):  # each has a session of its own
            assert agent_smolagents.answer(manager, Scripted(), "?") == {"answer": ANSWER, "x": 41}
        assert "x is 41" in seen[1]
        assert "42" in seen[1]
        assert "ModuleNotFoundError: No module named 'nope'" in seen[2]
        with manager.session("python") as session:
            executor = agent_smolagents.SessionExecutor(session)
            executor.send_variables({"given": ["a", None]})
            assert executor("given").output == "['a', None]"
            with pytest.raises(ValueError, match="search"):
                executor.send_tools({"final_answer": None, "search": None})


def test_deepagents() -> None:
    """Shell and tools for files work in the session: the model sees exit codes, and files of the session only."""
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    from faasrt.examples import agent_deepagents

    seen: list[str] = []

    class Scripted(BaseChatModel):  # type: ignore[misc]
        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self

        def _generate(self, messages: Any, *args: Any, **options: Any) -> ChatResult:
            seen[:] = [str(message.content) for message in messages if message.type == "tool"]
            [folder] = re.findall(r"Your files are in (\S+)\.", str([message.content for message in messages]))
            calls: list[tuple[str, dict[str, Any]]] = [
                ("write_file", {"file_path": f"{folder}/a.py", "content": "print(6 * 7)"}),
                ("edit_file", {"file_path": f"{folder}/a.py", "old_string": "7", "new_string": "8"}),
                ("execute", {"command": "python a.py; cat nothing; exit 3"}),
                ("read_file", {"file_path": f"{folder}/a.py"}),
                ("ls", {"path": folder}),
            ]
            message = AIMessage(ANSWER)
            if len(seen) < len(calls):
                name, given = calls[len(seen)]
                message = AIMessage("", tool_calls=[{"name": name, "args": given, "id": f"call{len(seen)}"}])
            return ChatResult(generations=[ChatGeneration(message=message)])

    with sync.RuntimeManager.local(["python"], workers=1) as manager:
        assert agent_deepagents.answer(manager, Scripted(), "?") == ANSWER
        assert "48\n" in seen[2], seen
        assert "No such file" in seen[2]
        assert "3" in seen[2].splitlines()[-1]
        assert "print(6 * 8)" in seen[3]
        assert "a.py" in seen[4]
        with manager.session("python") as session:
            sandbox = agent_deepagents.SessionSandbox(session)
            folder = sandbox.execute("pwd").output.strip()
            content = bytes(range(256))
            [up, wrong] = sandbox.upload_files([(f"{folder}/b/c.bin", content), ("/proc/nothing", b"")])
            assert up.error is None
            assert wrong.error
            [down, missing] = sandbox.download_files([f"{folder}/b/c.bin", f"{folder}/missing"])
            assert down.content == content
            assert "FileNotFound" in missing.error or "No such file" in missing.error
            ended = sandbox.execute("sleep 60", timeout=1)
            assert ended.exit_code == 1
            assert ended.output.startswith("TIMEOUT: ")
