"""A session as the sandbox of LangChain's deepagents: its tools for files, and its shell, work in the session.

    pip install 'faasrt[local]' 'deepagents>=0.7'

    with faasrt.sync.RuntimeManager.local(["python"]) as manager:
        print(answer(manager, model, "What is 41 + 1?"))

The agent sees the files and processes of the session: nothing of this machine is read or written. If the session is
lost, for example because a command exceeds the memory limit, the model learns it, and the next command opens another
one. deepagents is not yet at 1.0, so its interface may change.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from deepagents import create_deep_agent
from deepagents.backends.protocol import ExecuteResponse, FileDownloadResponse, FileUploadResponse
from deepagents.backends.sandbox import BaseSandbox

from faasrt.sync import AgentSession, RuntimeManager

BEGIN = """
import base64, json, pathlib, subprocess
given = json.loads(input())
"""
EXECUTE = """
done = subprocess.run(["sh", "-c", given["command"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
answer = {"output": done.stdout.decode(errors="replace"), "exit_code": done.returncode}
"""
UPLOAD = """
path = pathlib.Path(given["path"])
path.parent.mkdir(parents=True, exist_ok=True)
answer = path.write_bytes(base64.b64decode(given["content"]))
"""
DOWNLOAD = "answer = base64.b64encode(pathlib.Path(given['path']).read_bytes()).decode()"


class SessionSandbox(BaseSandbox):  # type: ignore[misc]
    """A session in which commands run."""

    def __init__(self, session: AgentSession) -> None:
        self._session, self._id = session, str(uuid.uuid4())

    @property
    def id(self) -> str:
        """The name of the sandbox. It is not the name of the session, because that is a secret."""
        return self._id

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """Run a shell command. A timeout is in seconds; the server's limit applies if it is lower."""
        return ExecuteResponse(**self._run(EXECUTE, None if timeout is None else timeout * 1_000, command=command))

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Write files."""
        return [self._transfer(FileUploadResponse, path, UPLOAD, content) for path, content in files]

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """Read files."""
        return [self._transfer(FileDownloadResponse, path, DOWNLOAD) for path in paths]

    def _transfer(self, response: Any, path: str, program: str, content: bytes = b"") -> Any:
        answer = self._run(program, path=path, content=base64.b64encode(content).decode())
        if isinstance(answer, dict):
            return response(path=path, error=answer["output"])
        return response(path=path) if program is UPLOAD else response(path=path, content=base64.b64decode(answer))

    def _run(self, program: str, timeout_ms: int | None = None, **given: str) -> Any:
        """Return the answer of a program, or its failure in the form of a failed command."""
        code = f"{BEGIN}{program}\nprint(json.dumps(answer))"
        observation = self._session.run_code(code, stdin=json.dumps(given), timeout_ms=timeout_ms)
        result = observation.result
        if result is not None and result.ok and not result.truncated:
            return json.loads(result.stdout)
        failure = observation.text
        if result is not None and self._session.is_open:  # otherwise the text says what is lost
            failure = f"{result.outcome}: {result.error.message if result.error else 'the output is too long'}"
        return {"output": failure, "exit_code": 1}


def answer(manager: RuntimeManager, model: Any, question: str) -> str:
    """Answer a question with an agent that has a session of its own."""
    with AgentSession(manager) as session:
        sandbox = SessionSandbox(session)
        folder = sandbox.execute("pwd").output.strip()
        agent = create_deep_agent(model=model, backend=sandbox, system_prompt=f"Your files are in {folder}.")
        state = agent.invoke({"messages": [{"role": "user", "content": question}]})
        return str(state["messages"][-1].content)
