"""The examples for frameworks of agents, in the frameworks, with models that call tools as scripted."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import pytest

from faasrt import RuntimeManager, sync
from support.scripted_models import (
    Script,
    langchain_model,
    langchain_model_of,
    openai_agents_model,
    pydantic_ai_model,
    smolagents_model,
)

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("default"),  # the packages have deprecation warnings of each other
]

CODE = [
    "x = 41",
    "print('x is', x)\nx + 1",
    "import nope",
    "import os; os._exit(3)",
    "x",
    "",
    "print('a' * 100_000, 'end')",
    "x = bytearray(10**9)",
]
ANSWER = "It is 42."


def check(script: Script) -> None:
    """The model has seen output and values, why code has failed, and that a session was lost. Long output is cut."""
    nothing, shown, missing, lost, unknown, empty, long, too_large = script.seen
    assert nothing == "(no output)"
    assert shown.split("\n") == ["x is 41", "42"]
    assert "ModuleNotFoundError: No module named 'nope' (to install it for programs, run: " in missing
    assert lost.startswith("CRASHED")
    assert lost.endswith("Its variables and files are lost. The next call begins anew.")
    assert unknown.endswith("USER_ERROR: NameError")
    assert empty == "code must not be empty"
    assert 30_000 < len(long) <= 40_000
    assert long.rstrip().endswith("end")
    assert "MEMORY_LIMIT" in too_large
    assert "128 MiB" in too_large


async def ask(answer: Any, model: Any, script: Script) -> None:
    """Ask two questions at once: each has a session of its own."""
    async with RuntimeManager.local(["python"], workers=2) as manager:
        questions = ("What is 41 + 1?", "And?")
        assert await asyncio.gather(*(answer(manager, model, each) for each in questions)) == [ANSWER] * 2
        check(script)


async def test_openai_agents() -> None:
    from faasrt.examples import agent_openai_agents

    script = Script(CODE, ANSWER)
    await ask(agent_openai_agents.answer, openai_agents_model(script), script)


async def test_pydantic_ai() -> None:
    from faasrt.examples import agent_pydantic_ai

    script = Script(CODE, ANSWER)
    await ask(agent_pydantic_ai.answer, pydantic_ai_model(script), script)


async def test_langchain() -> None:
    from faasrt.examples import agent_langchain

    script = Script(CODE, ANSWER)
    await ask(agent_langchain.answer, langchain_model(script), script)


def test_tool_of_smolagents() -> None:
    from faasrt.examples import agent_smolagents

    script = Script(CODE, ANSWER)
    with sync.RuntimeManager.local(["python"], workers=1) as manager:
        for question in ("What is 41 + 1?", "And?"):
            assert agent_smolagents.answer_with_tools(manager, smolagents_model(script), question) == ANSWER
            check(script)
    assert "torch" not in sys.modules


def test_code_agent_of_smolagents() -> None:
    """The code of the agent runs in the session: the model sees output, values, tracebacks and the loss of its session,
    and its final answer is returned. A tool of the host is refused, because code in the sandbox cannot call it.
    """
    from smolagents.models import ChatMessage, MessageRole, Model

    from faasrt.examples import agent_smolagents

    answer = f"final_answer({{'answer': {ANSWER!r}, 'x': x}})"
    steps = ["x = 40", "print('x is', x)\nx + 2", "import nope", "import os; os._exit(3)", "x", "x = 41", answer]
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
        assert "x is 40" in seen[1]
        assert "42" in seen[1]
        assert "ModuleNotFoundError: No module named 'nope'" in seen[2]
        assert "Its variables and files are lost. The next call begins anew." in seen[3]
        assert "NameError" in seen[4]
        with sync.AgentSession(manager) as session:
            executor = agent_smolagents.SessionExecutor(session)
            executor.send_variables({"given": ["a", None]})
            assert executor("given").output == "['a', None]"
            with pytest.raises(ValueError, match="search"):
                executor.send_tools({"final_answer": None, "search": None})


def test_deepagents() -> None:
    """Shell and tools for files work in the session: the model sees exit codes, and files of the session only."""
    from faasrt.examples import agent_deepagents

    seen: list[str] = []

    def next_call(messages: list[Any]) -> tuple[str, dict[str, Any]] | None:
        seen[:] = [str(message.content) for message in messages if message.type == "tool"]
        [folder] = re.findall(r"Your files are in (\S+)\.", str([message.content for message in messages]))
        calls: list[tuple[str, dict[str, Any]]] = [
            ("write_file", {"file_path": f"{folder}/a.py", "content": "print(6 * 7)"}),
            ("edit_file", {"file_path": f"{folder}/a.py", "old_string": "7", "new_string": "8"}),
            ("execute", {"command": "python a.py; cat nothing; exit 3"}),
            ("read_file", {"file_path": f"{folder}/a.py"}),
            ("ls", {"path": folder}),
        ]
        return calls[len(seen)] if len(seen) < len(calls) else None

    with sync.RuntimeManager.local(["python"], workers=1) as manager:
        assert agent_deepagents.answer(manager, langchain_model_of(next_call, ANSWER), "?") == ANSWER
        assert "48\n" in seen[2], seen
        assert "No such file" in seen[2]
        assert "3" in seen[2].splitlines()[-1]
        assert "print(6 * 8)" in seen[3]
        assert "a.py" in seen[4]
        with sync.AgentSession(manager) as session:
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
            assert ended.output.startswith("TIMEOUT: timeout after 1000 ms")
            lost = sandbox.execute("kill -9 $PPID")
            assert lost.exit_code == 1
            assert lost.output.endswith("Its variables and files are lost. The next call begins anew.")
            assert sandbox.execute("echo again").output == "again\n"
