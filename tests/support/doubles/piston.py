"""The double of Piston. It behaves like the recordings in `support/wire/piston.jsonl`."""

from __future__ import annotations

import asyncio
import base64
import codecs
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from .services import Service, find_node

# The run script of each package, and its aliases.
PACKAGES = {
    "python": (f'{sys.executable} "$@"', ["py", "py3", "python3"]),
    "javascript": (f'{find_node()} "$@"', ["js", "node-js"]),
    "bash": ('bash "$@"', ["sh"]),
    "haskell": ('runghc-of-no-such-package "$@"', ["hs"]),
}


class Piston(Service):
    """Runs programs of Python, Node.js and Bash. The toolchain of Haskell is missing.

    Args:
        run_timeout: PISTON_RUN_TIMEOUT and PISTON_RUN_CPU_TIME in milliseconds. Default: that of Piston.
        output_max_size: PISTON_OUTPUT_MAX_SIZE in bytes. Default: that of Piston.

    Attributes:
        failing: "XX" to fail each run as isolate does; "500" to answer an empty 500.
    """

    scheme = "piston"
    path = "/api/v2"
    failing = ""

    def __init__(self, *, run_timeout: int = 3_000, output_max_size: int = 1_024) -> None:
        super().__init__()
        self.run_timeout = run_timeout
        self.output_max_size = output_max_size

    def routes(self, app: web.Application) -> None:
        app.router.add_post("/api/v2/execute", self.execute)
        app.router.add_get("/api/v2/runtimes", self.runtimes)
        app.router.add_route("*", "/{path:.*}", self.not_found)

    async def not_found(self, _: web.Request) -> web.Response:
        return web.json_response({"message": "Not Found"}, status=404)

    async def runtimes(self, _: web.Request) -> web.Response:
        listed = [{"language": name, "version": "1.0.0", "aliases": also} for name, (_, also) in PACKAGES.items()]
        return web.json_response(listed)

    async def execute(self, request: web.Request) -> web.Response:
        if (request.content_length or 0) > 102_400:
            stack = "PayloadTooLargeError: request entity too large\n    at readStream (...)"
            return web.json_response({"stack": stack}, status=400)
        body = await request.json()
        name = next((name for name, (_, also) in PACKAGES.items() if body["language"] in (name, *also)), None)
        if name is None:
            return web.json_response(
                {"message": f"{body['language']}-{body['version']} runtime is unknown"}, status=400
            )
        for limit in ("run_timeout", "run_cpu_time"):
            if body.get(limit, 0) > self.run_timeout:
                message = f"{limit} cannot exceed the configured limit of {self.run_timeout}"
                return web.json_response({"message": message}, status=400)
        if self.failing == "500":
            return web.Response(status=500)
        if self.failing == "XX":
            run = self.stage(status="XX", message="Cannot mount proc: Operation not permitted")
            return web.json_response({"run": run, "language": name, "version": "1.0.0"})
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            names = [file.get("name", f"file{number}.code") for number, file in enumerate(body["files"])]
            for file_name, file in zip(names, body["files"], strict=True):
                target = Path(folder, file_name)
                target.parent.mkdir(parents=True, exist_ok=True)
                content = file["content"]
                target.write_bytes(base64.b64decode(content) if file.get("encoding") == "base64" else content.encode())
            script = Path(folder, ".run")
            script.write_text(f"#!/bin/bash\n\n{PACKAGES[name][0]}\n")
            stdin = body.get("stdin", "")
            stdin += "" if stdin.endswith("\n") else "\n"
            command = ["/bin/bash", str(script), names[0], *body.get("args", [])]
            run = await self.run(command, folder, stdin, body.get("run_timeout") or self.run_timeout)
        return web.json_response({"run": run, "language": name, "version": "1.0.0"})

    async def run(self, command: list[str], folder: str, stdin: str, timeout_ms: int) -> dict[str, Any]:
        started = time.monotonic()
        process = await self.start(command, folder)
        exceeded: list[str] = []

        async def read(stream: asyncio.StreamReader, status: str) -> str:
            # Each piece is decoded by itself; one that goes over the limit is dropped.
            text, size = "", 0
            while piece := await stream.read(65_536):
                size += len(piece)
                if size > self.output_max_size:
                    exceeded.append(status)
                    self.kill(process)
                    break
                text += codecs.decode(piece, "utf-8", "replace")
            return text

        outputs = [asyncio.create_task(read(process.stdout, "OL")), asyncio.create_task(read(process.stderr, "EL"))]
        feeding = asyncio.create_task(self.feed(process, stdin.encode()))
        timed_out = False
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                code = await process.wait()
                await asyncio.wait(outputs)
        except TimeoutError:
            timed_out = True
        finally:
            self.kill(process)
            code = await process.wait()
        feeding.cancel()
        stdout, stderr = [await output for output in outputs]
        fields: dict[str, Any] = {"stdout": stdout, "stderr": stderr, "code": code}
        if timed_out:
            fields |= {"code": None, "signal": "SIGKILL", "status": "TO"}
            fields["message"] = "Time limit exceeded (wall clock)"
        elif exceeded:
            fields |= {"code": None, "signal": "SIGKILL", "status": exceeded[0]}
            fields["message"] = f"{'stdout' if exceeded[0] == 'OL' else 'stderr'} length exceeded"
            fields["stderr"] += "Sandbox keeper received fatal signal 6\n"
        elif code < 0:
            name = signal.Signals(-code).name
            fields |= {"code": None, "signal": name, "status": "SG", "message": f"Caught fatal signal {-code}"}
        elif code:
            fields |= {"status": "RE", "message": f"Exited with error status {code}"}
        return self.stage(**fields, wall_time=int((time.monotonic() - started) * 1000))

    @staticmethod
    def stage(**fields: Any) -> dict[str, Any]:
        known = {"signal": None, "stdout": "", "stderr": "", "code": None, "message": None, "status": None}
        return {**known, "memory": None, "cpu_time": 10, "wall_time": 0, **fields}
