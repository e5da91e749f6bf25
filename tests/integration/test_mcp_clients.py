"""`faasrt mcp` with the MCP clients of the frameworks, in their default settings, and models that call as scripted.

The adapters of LangChain and smolagents need version 1 of MCP's SDK, so `.ci/run frameworks` runs this file in two
environments. MCP_SERVER is the path of the command `faasrt` in that of the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from support.documents import indented_blocks
from support.scripted_models import (
    Script,
    langchain_model,
    openai_agents_model,
    pydantic_ai_model,
    smolagents_model,
)
from support.served import CLEAN, FAASRT

OLD = version("mcp").startswith("1.")
pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("default"),  # the packages have deprecation warnings of each other
]
old_sdk = pytest.mark.skipif(not OLD, reason="needs version 1 of MCP's SDK")
new_sdk = pytest.mark.skipif(OLD, reason="needs version 2 of MCP's SDK")

COMMAND = os.environ.get("MCP_SERVER", FAASRT)
FAILING = ["import nope", "x = 0\n1 / x", "print('out')\n[][x]", "def f(:", "y"]
ERRORS = ["ModuleNotFoundError", "ZeroDivisionError: division by zero", "IndexError", "SyntaxError", "NameError"]
CODE = [*FAILING, "print('x is', x)"]
ANSWER = "It is 0."


def check(seen: list[Any]) -> None:
    """The model has got each traceback, and then the output of a program that uses the variable of a failed one."""
    texts = [text if isinstance(text, str) else json.dumps(text) for text in seen]
    assert len(texts) == len(CODE)
    for text, error in zip(texts, ERRORS, strict=False):
        assert error in text
        assert "_ERROR: " in text
    assert "x is 0" in texts[-1]


def agent_of_the_guide(number: int, *arguments: Any) -> Any:
    """Return the agent that a program of the guide makes."""
    names: dict[str, Any] = {}
    exec(indented_blocks("faasrt/docs/agents.md", "Use the server from Python")[number], names)
    return names["make_agent"](*arguments)


@new_sdk
async def test_pydantic_ai(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the program of the guide. The sessions stay between the runs of an agent."""
    monkeypatch.setenv("PATH", f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}")
    script = Script(CODE, ANSWER)
    async with agent_of_the_guide(0, pydantic_ai_model(script)) as agent:
        assert (await agent.run("What is x?")).output == ANSWER
        check(script.seen)
        assert script.seen[1]["outcome"] == "USER_ERROR"
        script.code = ["x"]
        assert (await agent.run("What is x?")).output == ANSWER
        assert script.seen[0]["output"] == "0"


@new_sdk
@pytest.mark.parametrize("number", [1, 2])
async def test_pydantic_ai_over_http(number: int) -> None:
    """With the programs of the guide, all calls of an agent are in one session, and the model need not name it."""
    command = [COMMAND, "mcp", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, env=CLEAN, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        script = Script(["x = 41", "x += 1", "x"], ANSWER)
        async with agent_of_the_guide(number, pydantic_ai_model(script), url) as agent:
            assert (await agent.run("What is x?")).output == ANSWER
            assert script.seen[-1]["output"] == "42"
            script.code = ["x"]
            assert (await agent.run("What is x?")).output == ANSWER
            assert script.seen[0]["output"] == "42"
        server.terminate()


@new_sdk
async def test_the_program_of_the_guide_forgets_a_session_that_is_gone() -> None:
    from pydantic_ai import ModelRetry
    from pydantic_ai.models.test import TestModel

    [toolset] = [
        each
        for each in agent_of_the_guide(2, TestModel(), "http://localhost").toolsets
        if hasattr(each, "process_tool_call")
    ]
    seen = []
    answers = iter(['pass session="s" to further calls', "no session?", ModelRetry("There is no session 's'"), ""])

    async def call_tool(name: str, arguments: dict[str, Any]) -> str:
        seen.append(arguments)
        if isinstance(answer := next(answers), ModelRetry):
            raise answer
        return answer

    for _ in range(4):
        with contextlib.suppress(ModelRetry):
            await toolset.process_tool_call(None, call_tool, "run_python", {"code": ""})
    named = {"code": "", "session": "s"}
    assert seen == [{"code": ""}, named, named, {"code": ""}]


@new_sdk
async def test_openai_agents() -> None:
    from agents import Agent, Runner
    from agents.mcp import MCPServerStdio

    script = Script(CODE, ANSWER)
    parameters = {"command": COMMAND, "args": ["mcp"], "env": CLEAN}
    async with MCPServerStdio(parameters, client_session_timeout_seconds=60) as server:
        agent = Agent(name="Analyst", model=openai_agents_model(script), mcp_servers=[server])
        assert (await Runner.run(agent, "What is x?")).final_output == ANSWER
    check(script.seen)


@old_sdk
async def test_langchain() -> None:
    from langchain.agents import create_agent
    from langchain_mcp_adapters.client import MultiServerMCPClient
    from langchain_mcp_adapters.tools import load_mcp_tools

    script = Script(CODE, ANSWER)
    client = MultiServerMCPClient({"faasrt": {"transport": "stdio", "command": COMMAND, "args": ["mcp"], "env": CLEAN}})
    async with client.session("faasrt") as session:  # `client.get_tools` begins a new session for each call
        agent = create_agent(langchain_model(script), tools=await load_mcp_tools(session))
        state = await agent.ainvoke({"messages": [{"role": "user", "content": "What is x?"}]})
        assert state["messages"][-1].content == ANSWER
    check(script.seen)


@old_sdk
def test_smolagents() -> None:
    from mcp import StdioServerParameters
    from smolagents import MCPClient, ToolCallingAgent

    script = Script(CODE, ANSWER)
    parameters = StdioServerParameters(command=COMMAND, args=["mcp"], env=CLEAN)
    with MCPClient(parameters, adapter_kwargs={"connect_timeout": 60}, structured_output=False) as tools:
        assert ToolCallingAgent(tools=tools, model=smolagents_model(script)).run("What is x?") == ANSWER
    check(script.seen)
