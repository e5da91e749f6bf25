"""A tool for agents of pydantic-ai that runs code in a session.

    pip install 'faasrt[local]' pydantic-ai

    async with RuntimeManager.local(["python"]) as manager:
        print(await answer(manager, model, "What is 41 + 1?"))

The model sees the output, the values that are displayed, and how its code has failed. It goes on after an error, and
after the loss of its session, for example because the code exceeds the memory limit: the next call opens another one.
"""

from __future__ import annotations

from typing import Any

from pydantic_ai import Agent

from faasrt import RuntimeManager
from faasrt.agents import AgentSession


async def answer(manager: RuntimeManager, model: Any, question: str) -> str:
    """Answer a question with an agent that has a session of its own."""
    async with AgentSession(manager) as session:

        async def run_python(code: str) -> str:
            """Run Python code. Variables and files are kept between calls."""
            return (await session.run_code(code)).text

        agent = Agent(model, tools=[run_python])
        return str((await agent.run(question)).output)
