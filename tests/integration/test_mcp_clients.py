"""`faasrt mcp` with the MCP clients of the frameworks, in their default settings, and models that call as scripted.

The adapters of LangChain and smolagents need version 1 of MCP's SDK, so `.ci/run frameworks` runs this file in two
environments. MCP_SERVER is the path of the command `faasrt` in that of the server.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from typing import Any

import pytest

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


@new_sdk
async def test_pydantic_ai() -> None:
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai import Agent
    from pydantic_ai.mcp import MCPToolset

    script = Script(CODE, ANSWER)
    transport = StdioTransport(COMMAND, ["mcp"], env=CLEAN)
    toolset = MCPToolset(transport, init_timeout=60)  # a busy machine takes longer than 5 s to start it
    agent = Agent(pydantic_ai_model(script), toolsets=[toolset])
    assert (await agent.run("What is x?")).output == ANSWER
    check(script.seen)
    assert script.seen[1]["outcome"] == "USER_ERROR"


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
