"""A tool for agents of LangChain that runs code in a session.

    pip install 'faasrt[local]' langchain

    async with RuntimeManager.local(["python"]) as manager:
        print(await answer(manager, model, "What is 41 + 1?"))

The model sees the outcome, the output and the values that are displayed, and goes on after an error of its code.
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain.tools import tool

from faasrt import RuntimeManager


async def answer(manager: RuntimeManager, model: Any, question: str) -> str:
    """Answer a question with an agent that has a session of its own."""
    async with manager.session("python") as session:

        async def run_python(code: str) -> str:
            """Run Python code. Variables and files are kept between calls."""
            result = await session.run_code(code)
            return "\n".join([result.outcome, result.stdout, result.stderr, *(shown.text for shown in result.displays)])

        agent = create_agent(model, tools=[tool(run_python)])
        state = await agent.ainvoke({"messages": [{"role": "user", "content": question}]})
        return str(state["messages"][-1].content)
