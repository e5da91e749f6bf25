"""A tool for agents of the OpenAI Agents SDK that runs code in a session.

    pip install 'faasrt[local]' openai-agents

    async with RuntimeManager.local(["python"]) as manager:
        print(await answer(manager, model, "What is 41 + 1?"))

The model sees the outcome, the output and the values that are displayed, and goes on after an error of its code.
"""

from __future__ import annotations

from typing import Any

from agents import Agent, Runner, function_tool

from faasrt import RuntimeManager


async def answer(manager: RuntimeManager, model: Any, question: str) -> str:
    """Answer a question with an agent that has a session of its own."""
    async with manager.session("python") as session:

        async def run_python(code: str) -> str:
            """Run Python code. Variables and files are kept between calls."""
            result = await session.run_code(code)
            return "\n".join([result.outcome, result.stdout, result.stderr, *(shown.text for shown in result.displays)])

        agent = Agent(name="Analyst", model=model, tools=[function_tool(run_python)])
        return str((await Runner.run(agent, question)).final_output)
