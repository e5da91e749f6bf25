"""The double of SandboxFusion. It behaves like the recordings in `support/wire/sandboxfusion.jsonl`."""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from .services import Service, find_node

# The buffers hold this number of bytes of a stream, and the server returns a part of it.
BUFFER_BYTES, STREAM_BYTES = 458_752, 219_264
LANGUAGES = {
    "python": (".py", [sys.executable]),
    "nodejs": (".js", [find_node()]),
    "bash": (".sh", ["/bin/bash"]),
    "csharp": (".cs", []),
}


class SandboxFusion(Service):
    """Runs programs of Python, Node.js and Bash, as `isolation: none` does. The toolchain of C# is missing.

    Attributes:
        failing: Whether each run fails with a SandboxError.
        lost: The streams that each run loses.
        broken: Whether no interpreter starts.
    """

    scheme = "sandboxfusion"
    failing = False
    lost: tuple[str, ...] = ()
    broken = False

    def routes(self, app: web.Application) -> None:
        app.router.add_post("/run_code", self.run_code)
        app.router.add_get("/v1/ping", self.ping)

    async def ping(self, _: web.Request) -> web.Response:
        return web.json_response("pong")

    async def run_code(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
            code, language = body["code"], body["language"]
            timeout_s = float(body.get("run_timeout", 10))
        except (ValueError, KeyError, TypeError) as error:
            detail = [{"type": "json_invalid", "loc": ["body"], "msg": str(error)}]
            return web.json_response({"detail": detail}, status=422)
        if language not in LANGUAGES:
            detail = [{"type": "literal_error", "loc": ["body", "language"], "msg": "Input should be 'python' or ..."}]
            return web.json_response({"detail": detail}, status=422)
        if self.failing:
            return self.answer("SandboxError", None, "exception on running code: [Errno 11] no more processes")
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            for path, content in body.get("files", {}).items():
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(content or ""))
            suffix, command = LANGUAGES[language]
            if self.broken:
                command = ["/bin/bash", "-c", "exec no-such-interpreter"]
            program = Path(folder, f"tmp1{suffix}")
            program.write_text(code)
            if not command:
                command = ["/bin/bash", "-c", "dotnet run"]
            result = await self.run([*command, str(program)], folder, body.get("stdin", ""), timeout_s)
        result |= dict.fromkeys(self.lost, "")
        succeeded = result["status"] == "Finished" and result["return_code"] == 0
        return self.answer("Success" if succeeded else "Failed", result)

    @staticmethod
    def answer(status: str, result: dict[str, Any] | None, message: str = "") -> web.Response:
        fields = {"status": status, "message": message, "compile_result": None, "run_result": result}
        return web.json_response({**fields, "executor_pod_name": None, "files": {}})

    async def run(self, command: list[str], folder: str, stdin: str, timeout_s: float) -> dict[str, Any]:
        started = time.monotonic()
        process = await self.start(command, folder)
        outputs = [asyncio.create_task(self.read(stream)) for stream in (process.stdout, process.stderr)]
        feeding = asyncio.create_task(self.feed(process, stdin.encode()))
        status, code = "Finished", None
        try:
            async with asyncio.timeout(timeout_s):
                code = await process.wait()
        except TimeoutError:
            status = "TimeLimitExceeded"
        finally:
            self.kill(process)
        feeding.cancel()
        texts = [self.decode(await output) for output in outputs]
        # asyncio waits for the end of the pipes, which may have more data than the server keeps.
        await asyncio.gather(process.stdout.read(), process.stderr.read(), process.wait())
        return {
            "status": status,
            "execution_time": time.monotonic() - started,
            "return_code": code,
            "stdout": texts[0],
            "stderr": texts[1],
        }

    @staticmethod
    async def read(stream: asyncio.StreamReader) -> bytes:
        """Read as much as the buffers of the server hold. A program that writes more blocks."""
        data = b""
        while len(data) < BUFFER_BYTES and (piece := await stream.read(BUFFER_BYTES - len(data))):
            data += piece
        return data[:STREAM_BYTES]

    @staticmethod
    def decode(data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            return f"[DecodeError] {error}"
