"""Models of frameworks for agents that call the tool `run_python` as scripted. Each function needs its framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any


class Script:
    """The turns of a model in a conversation: it runs each program, and then it answers.

    Attributes:
        code: The programs. They can be set before another conversation.
        seen: The results of the tool that the model got in its last conversation.
    """

    def __init__(self, code: Sequence[str], answer: str) -> None:
        self.answer = answer
        self.seen: list[Any] = []
        self.code = code

    def next_code(self, seen: list[Any]) -> str | None:
        """Return the next program after these results, None if the model answers now."""
        self.seen = seen
        return self.code[len(seen)] if len(seen) < len(self.code) else None


def openai_agents_model(script: Script) -> Any:
    from agents import Model, ModelResponse, Usage, set_tracing_disabled
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

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
                text = ResponseOutputText(type="output_text", text=script.answer, annotations=[])
                output = ResponseOutputMessage(
                    id="m", type="message", role="assistant", status="completed", content=[text]
                )
            return ModelResponse(output=[output], usage=Usage(), response_id=None)

        def stream_response(self, *args: Any, **options: Any) -> Any:
            raise NotImplementedError

    set_tracing_disabled(True)  # traces go to a service
    return Scripted()


def pydantic_ai_model(script: Script) -> Any:
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    def respond(messages: list[Any], info: Any) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        assert not [part for part in parts if part.part_kind == "retry-prompt"]
        code = script.next_code([part.content for part in parts if part.part_kind == "tool-return"])
        part = TextPart(script.answer) if code is None else ToolCallPart("run_python", {"code": code})
        return ModelResponse(parts=[part])

    return FunctionModel(respond)


def langchain_model(script: Script) -> Any:
    def next_call(messages: list[Any]) -> tuple[str, dict[str, Any]] | None:
        results = [message for message in messages if message.type == "tool"]
        assert {message.status for message in results} <= {"success"}
        code = script.next_code([message.content for message in results])
        return None if code is None else ("run_python", {"code": code})

    return langchain_model_of(next_call, script.answer)


def langchain_model_of(next_call: Callable[[list[Any]], tuple[str, dict[str, Any]] | None], answer: str) -> Any:
    """Return a model that calls any tools. `next_call` returns the next name and arguments after these messages, None
    if the model answers now.
    """
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    class Scripted(BaseChatModel):  # type: ignore[misc]
        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self

        def _generate(self, messages: Any, *args: Any, **options: Any) -> ChatResult:
            message = AIMessage(answer)
            if (call := next_call(messages)) is not None:
                name, arguments = call
                message = AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call{len(messages)}"}])
            return ChatResult(generations=[ChatGeneration(message=message)])

    return Scripted()


def smolagents_model(script: Script) -> Any:
    from smolagents.models import ChatMessage, ChatMessageToolCall, ChatMessageToolCallFunction, MessageRole, Model

    class Scripted(Model):  # type: ignore[misc]
        def generate(self, messages: Any, *args: Any, **options: Any) -> ChatMessage:
            texts = [
                part["text"] for message in messages if message.role == "tool-response" for part in message.content
            ]
            seen = [text.partition("Observation:\n")[2] for text in texts]
            code = script.next_code(seen)
            function = ChatMessageToolCallFunction({"code": code}, "run_python")
            if code is None:
                function = ChatMessageToolCallFunction({"answer": script.answer}, "final_answer")
            call = ChatMessageToolCall(function, f"call{len(seen)}", "function")
            return ChatMessage(MessageRole.ASSISTANT, "", [call])

    return Scripted()
