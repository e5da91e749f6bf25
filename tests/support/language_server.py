"""A client of pyright's language server, which shows what an editor shows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self


class LanguageServer:
    """A language server for the files of a folder.

    Args:
        command: The command that starts the server on stdin and stdout.
        folder: The folder.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._last_id = 0
        folders = [{"uri": folder.as_uri(), "name": folder.name}]
        self.request("initialize", processId=None, rootUri=folder.as_uri(), workspaceFolders=folders, capabilities={})
        self._send("initialized")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._process.kill()
        self._process.communicate()

    def hover(self, file: Path, line: int, column: int) -> str:
        """Return the text that an editor shows for a place in a file, both counted from 0."""
        document = {"uri": file.as_uri(), "languageId": "python", "version": 1, "text": file.read_text()}
        self._send("textDocument/didOpen", textDocument=document)
        place = {"line": line, "character": column}
        result = self.request("textDocument/hover", textDocument={"uri": file.as_uri()}, position=place)
        return str(result["contents"]["value"]) if result else ""

    def request(self, method: str, **params: Any) -> Any:
        """Send a request, and return its result."""
        self._last_id += 1
        self._send(method, self._last_id, **params)
        while True:
            message = self._receive()
            if message.get("id") == self._last_id and "method" not in message:
                assert "error" not in message, message
                return message["result"]
            if "id" in message:  # a request of the server, such as for the settings of the editor
                items = message.get("params", {}).get("items", [])
                self._write({"id": message["id"], "result": [None] * len(items)})

    def _send(self, method: str, request_id: int | None = None, **params: Any) -> None:
        self._write({"method": method, "params": params} | ({} if request_id is None else {"id": request_id}))

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        length = 0
        while (line := self._process.stdout.readline()).strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        assert length, "the language server has ended"
        return dict(json.loads(self._process.stdout.read(length)))
