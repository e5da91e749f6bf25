"""The double of js-faas."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import deno

from .base import Faas, Json, Refusal, parse, timestamp

WRAPPER = (Path(__file__).parent / "js_wrapper.js").read_text()
DEFAULT_TIMEOUT_MS = 30_000


class JsFaas(Faas):
    """Runs each program in a new Deno, and reports every outcome as a success.

    Args:
        version: "docker-compose", or "helm", whose `/health` and metadata differ.
        has_health: Whether there is a `GET /health`. Some gateways offer none.
    """

    def __init__(
        self, *, slots: int = 8, start_up_s: float = 0.0, version: str = "docker-compose", has_health: bool = True
    ) -> None:
        super().__init__(deno.find_deno_bin(), slots=slots, start_up_s=start_up_s, has_health=has_health)
        self.version = version

    def check(self, body: bytes) -> tuple[Any, Any]:
        try:
            request = parse(body.decode(errors="replace"))
        except ValueError as error:
            raise self.failure(str(error)) from None
        fields = request if isinstance(request, dict) else {}
        if not fields.get("code"):
            raise Refusal(400, {"error": "Missing required parameter: code"})
        if str(fields.get("language")).lower() not in {"javascript", "js", "typescript", "ts"}:
            raise Refusal(400, {"error": "This service only supports JavaScript/TypeScript code execution"})
        return fields["code"], fields.get("timeout")

    async def run(self, code: Any, timeout: Any, folder: Path) -> tuple[Json, Json]:
        (folder / "temp.js").write_text(WRAPPER.replace("__SCRIPT__", json.dumps(code), 1))
        timeout_ms = timeout if isinstance(timeout, int | float) and timeout else DEFAULT_TIMEOUT_MS
        exit_code = await self.interpret(
            ["run", "-A", "--no-prompt", "--quiet", "--no-config", "temp.js"],
            folder,
            timeout_s=timeout_ms / 1_000,
            env={**os.environ, "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1", "DENO_DIR": str(self.folder / "deno")},
        )
        stdout, stderr = ((folder / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr"))
        report = last_object(stdout) if exit_code == 0 else None
        if report is None:
            output = {"stdout": stdout, "stderr": stderr, "ret_val": ""}
        else:
            output = {stream: report.get(stream) or "" for stream in ("stdout", "stderr", "ret_val")}
            output["stderr"] = output["stderr"] or stderr
        return output, {"language": "javascript", "status": "success" if self._is_compose else "completed"}

    @property
    def _is_compose(self) -> bool:
        return self.version == "docker-compose"

    def failure(self, message: str) -> Refusal:
        if self._is_compose:
            return Refusal(500, {"error": "Internal server error", "details": message})
        output = {"stdout": "", "stderr": message, "ret_val": ""}
        return Refusal(500, {"error": "Execution failed", "details": message, "output": output})

    def health(self) -> Json:
        if not self._is_compose:
            return {
                "status": "healthy",
                "timestamp": timestamp(),
                "uptime": self.uptime_s,
                "runtime": "deno",
                "version": "2.9.8",
                "execution_count": self.executions,
                "language": "javascript",
            }
        return {
            "status": "healthy",
            "timestamp": timestamp(),
            "language": "javascript",
            "version": "js-faas-v1.0.0",
            "execution_count": self.executions,
        }

    def metrics(self) -> Json:
        return {"language": "javascript", "execution_count": self.executions, "timestamp": timestamp()}


def last_object(text: str) -> Json | None:
    """Return the last line that is a JSON object. It is the wrapper's report, or a later line of the program."""
    for line in reversed(text.split("\n")):
        try:
            value = parse(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None
