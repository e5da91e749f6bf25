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
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    seen: list[Any] = []

    def respond(messages: list[Any], info: Any) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        assert not [part for part in parts if part.part_kind == "retry-prompt"]
        seen[:] = [part.content for part in parts if part.part_kind == "tool-return"]
        if len(seen) == len(CODE):
            return ModelResponse(parts=[TextPart(ANSWER)])
        return ModelResponse(parts=[ToolCallPart("run_python", {"code": CODE[len(seen)]})])

    transport = StdioTransport(COMMAND, ["mcp"], env=CLEAN)
    toolset = MCPToolset(transport, init_timeout=60)  # a busy machine takes longer than 5 s to start it
    agent = Agent(FunctionModel(respond), toolsets=[toolset])
    assert (await agent.run("What is x?")).output == ANSWER
    check(seen)
    assert seen[1]["outcome"] == "USER_ERROR"


@new_sdk
async def test_openai_agents() -> None:
    from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
    from agents.mcp import MCPServerStdio
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

    seen: list[Any] = []

    class Scripted(Model):  # type: ignore[misc]
        async def get_response(self, *args: Any, **request: Any) -> Any:
            given = request["input"]
            items = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
            seen[:] = [item["output"] for item in items if item.get("type") == "function_call_output"]
            if len(seen) < len(CODE):
                output: Any = ResponseFunctionToolCall(
                    type="function_call",
                    call_id=f"call{len(seen)}",
                    name="run_python",
                    arguments=json.dumps({"code": CODE[len(seen)]}),
                )
            else:
                text = ResponseOutputText(type="output_text", text=ANSWER, annotations=[])
                output = ResponseOutputMessage(
                    id="m", type="message", role="assistant", status="completed", content=[text]
                )
            return ModelResponse(output=[output], usage=Usage(), response_id=None)

        def stream_response(self, *args: Any, **options: Any) -> Any:
            raise NotImplementedError

    set_tracing_disabled(True)  # traces go to a service
    parameters = {"command": COMMAND, "args": ["mcp"], "env": CLEAN}
    async with MCPServerStdio(parameters, client_session_timeout_seconds=60) as server:
        agent = Agent(name="Analyst", model=Scripted(), mcp_servers=[server])
        assert (await Runner.run(agent, "What is x?")).final_output == ANSWER
    check(seen)


@old_sdk
async def test_langchain() -> None:
    from langchain.agents import create_agent
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_mcp_adapters.client import MultiServerMCPClient
    from langchain_mcp_adapters.tools import load_mcp_tools

    seen: list[Any] = []

    class Scripted(BaseChatModel):  # type: ignore[misc]
        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self

        def _generate(self, messages: Any, *args: Any, **options: Any) -> ChatResult:
            results = [message for message in messages if message.type == "tool"]
            assert {message.status for message in results} <= {"success"}
            seen[:] = [message.content for message in results]
            calls: list[Any] = []
            if len(seen) < len(CODE):
                calls = [{"name": "run_python", "args": {"code": CODE[len(seen)]}, "id": f"call{len(seen)}"}]
            message = AIMessage("" if calls else ANSWER, tool_calls=calls)
            return ChatResult(generations=[ChatGeneration(message=message)])

    client = MultiServerMCPClient({"faasrt": {"transport": "stdio", "command": COMMAND, "args": ["mcp"], "env": CLEAN}})
    async with client.session("faasrt") as session:  # `client.get_tools` begins a new session for each call
        agent = create_agent(Scripted(), tools=await load_mcp_tools(session))
        state = await agent.ainvoke({"messages": [{"role": "user", "content": "What is x?"}]})
        assert state["messages"][-1].content == ANSWER
    check(seen)


@old_sdk
def test_smolagents() -> None:
    from mcp import StdioServerParameters
    from smolagents import MCPClient, ToolCallingAgent
    from smolagents.models import ChatMessage, ChatMessageToolCall, ChatMessageToolCallFunction, MessageRole, Model

    seen: list[Any] = []

    class Scripted(Model):  # type: ignore[misc]
        def generate(self, messages: Any, *args: Any, **options: Any) -> ChatMessage:
            texts = [
                part["text"] for message in messages if message.role == "tool-response" for part in message.content
            ]
            seen[:] = [text.partition("Observation:\n")[2] for text in texts]
            function = ChatMessageToolCallFunction({"answer": ANSWER}, "final_answer")
            if len(seen) < len(CODE):
                function = ChatMessageToolCallFunction({"code": CODE[len(seen)]}, "run_python")
            call = ChatMessageToolCall(function, f"call{len(seen)}", "function")
            return ChatMessage(MessageRole.ASSISTANT, "", [call])

    parameters = StdioServerParameters(command=COMMAND, args=["mcp"], env=CLEAN)
    with MCPClient(parameters, adapter_kwargs={"connect_timeout": 60}, structured_output=False) as tools:
        assert ToolCallingAgent(tools=tools, model=Scripted()).run("What is x?") == ANSWER
    check(seen)
