"""The code of smolagents' agents in a session: of a `CodeAgent`, in place of its executors for Docker, E2B and Modal,
or as a tool of a `ToolCallingAgent`.

    pip install 'faasrt[local]' 'smolagents>=1.26'

    with faasrt.sync.RuntimeManager.local(["python"]) as manager:
        print(answer(manager, model, "What is 41 + 1?"))

Variables and files are kept between the steps of the agent. If the session is lost, for example because the code
exceeds the memory limit, the model learns it, and the next step opens another one. Tools of the agent run in your
process, so the code of a `CodeAgent` cannot call them. `answer_with_tools` has a `ToolCallingAgent`, which can have
other tools.
"""

from __future__ import annotations

import json
from typing import Any

from smolagents import CodeAgent, ToolCallingAgent, tool
from smolagents.local_python_executor import CodeOutput, PythonExecutor

from faasrt.sync import AgentSession, RuntimeManager

FINAL_ANSWER = """
class FinalAnswer(BaseException):
    pass
def final_answer(answer):
    import json
    return_val(json.dumps(answer, default=str))
    raise FinalAnswer
"""


class SessionExecutor(PythonExecutor):  # type: ignore[misc]
    """Runs the code of an agent in a session."""

    def __init__(self, session: AgentSession) -> None:
        self._session = session

    def send_tools(self, tools: dict[str, Any]) -> None:
        """Refuse tools other than `final_answer`, which each session has."""
        if unknown := tools.keys() - {"final_answer"}:
            raise ValueError(f"code in the sandbox cannot call these tools: {sorted(unknown)}")

    def send_variables(self, variables: dict[str, Any]) -> None:
        """Set variables. Their values must be JSON."""
        self(f"import json\nglobals().update(json.loads({json.dumps(variables)!r}))")

    def __call__(self, code_action: str) -> CodeOutput:
        """Run code, and return its output. Raise its error, for the model."""
        if not self._session.is_open:
            self._session.run_code(FINAL_ANSWER)
        observation = self._session.run_code(code_action)
        result = observation.result
        if result is not None and result.error is not None and result.error.name == "FinalAnswer":
            return CodeOutput(output=result.value, logs=result.stdout, is_final_answer=True)
        if result is None or not result.ok:
            raise RuntimeError(observation.text)
        return CodeOutput(output=observation.text, logs="", is_final_answer=False)


def answer(manager: RuntimeManager, model: Any, question: str) -> Any:
    """Answer a question with an agent that has a session of its own."""
    with AgentSession(manager) as session:
        agent = CodeAgent(tools=[], model=model, executor=SessionExecutor(session), additional_authorized_imports=["*"])
        return agent.run(question)


def answer_with_tools(manager: RuntimeManager, model: Any, question: str) -> Any:
    """Answer a question with an agent that runs code by a tool."""
    with AgentSession(manager) as session:

        def run_python(code: str) -> str:
            """Run Python code. Variables and files are kept between calls.

            Args:
                code: The code.
            """
            return session.run_code(code).text

        return ToolCallingAgent(tools=[tool(run_python)], model=model).run(question)
