"""The double of python-faas."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from .base import Faas, Json, Refusal, parse, timestamp
from .forked import Forked

DRIVER = Path(__file__).parent / "python_driver.py"

# Nine lines: in a recorded traceback, line 3 of the program is line 12.
PREAMBLE = '''\
# The server puts this before each program.



def return_val(value):
    """Print the value of the program."""
    print(value)


'''

START, END = "__COZE_RETURN_VAL_START__", "__COZE_RETURN_VAL_END__"
RETURN_VAL = re.compile(f"{START}(.*?){END}", re.DOTALL)
BRACES = re.compile(r"\{[^{}]*\}")
NO_TEXT = "Pyodide执行错误: returnValue.substring is not a function"


class PythonFaas(Faas):
    """Runs each program in a new interpreter, without a timeout, and damages the program and its output.

    Args:
        driver: The script that runs a program. If it does not exist, the server cannot start its interpreter.
        has_health: Whether there is a `GET /health`. Some gateways offer none.
    """

    def __init__(
        self, *, slots: int = 8, start_up_s: float = 0.0, driver: Path = DRIVER, has_health: bool = True
    ) -> None:
        super().__init__(sys.executable, slots=slots, start_up_s=start_up_s, has_health=has_health)
        self.driver = driver

    def check(self, body: bytes) -> tuple[Any, Any]:
        try:
            request = parse(body.decode(errors="replace"))
        except ValueError as error:
            raise Refusal(400, {"error": "Invalid JSON format", "details": str(error)}) from None
        fields = request if isinstance(request, dict) else {}
        if not fields.get("code"):
            raise Refusal(400, {"error": "Missing required parameter: code"})
        if not isinstance(fields["code"], str):
            raise Refusal(400, {"error": "Parameter 'code' must be a string"})
        if fields.get("language") not in ("python", "py"):
            raise Refusal(400, {"error": "This service only supports Python code execution"})
        return fields["code"], fields.get("timeout")

    async def run(self, code: Any, timeout: Any, folder: Path) -> tuple[Json, Json]:
        """Run a program, and ignore its timeout: the real server never stops a program."""
        (folder / "program.py").write_bytes((PREAMBLE + mangle(code)).encode("utf-8", "surrogatepass"))
        await self.interpret(self.arguments(), folder, timeout_s=None, env=self.environment(folder))
        try:
            report = parse((folder / "report").read_text())
        except (FileNotFoundError, ValueError):  # the process died
            return answer(stderr=(folder / "stderr").read_text(errors="replace"), exit_code=1)
        value = report.get("value")
        if isinstance(value, list):
            return answer(stderr=NO_TEXT, exit_code=1)
        stdout, ret_val = split_output((folder / "stdout").read_bytes().decode(errors="replace"))
        return answer(stdout, ret_val if value is None else value, exit_code=int(report["failed"]))

    async def start(
        self, arguments: list[str], folder: Path, env: dict[str, str]
    ) -> asyncio.subprocess.Process | Forked:
        if (self.interpreter, self.driver) == (sys.executable, DRIVER):
            return Forked(DRIVER, folder, env)
        return await super().start(arguments, folder, env)

    def arguments(self) -> list[str]:
        """Return the command that runs the program in its folder."""
        return ["-I", "-X", "utf8", str(self.driver)]

    def environment(self, folder: Path) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(folder)}

    def failure(self, message: str) -> Refusal:
        if "timeout" in message:
            return Refusal(408, {"error": "Execution timeout", "details": message})
        return Refusal(500, {"error": "Execution failed", "details": message})

    def health(self) -> Json:
        return {
            "status": "healthy",
            "timestamp": timestamp(),
            "runtime": "pyodide-webassembly-pooled",
            "version": "pyodide-faas-v2.0.0-pooled",
            "execution_count": self.executions,
            "python_version": "Pyodide WebAssembly Python (Pooled)",
            "security": {
                "sandbox": "pyodide-webassembly",
                "isolation": "deno-permissions",
                "permissions": "restricted",
            },
            "pool_status": self._pool(),
        }

    def metrics(self) -> Json:
        return {
            "execution_count": self.executions,
            "uptime_seconds": self.uptime_s,
            "runtime": "pyodide-webassembly-pooled",
            "python_version": "Pyodide WebAssembly Python (Pooled)",
            "status": "healthy",
            "pool_metrics": self._pool(),
        }

    def _pool(self) -> Json:
        """Return the recorded report of an idle server. There is no recording of a busy one."""
        return {
            "totalProcesses": 1,
            "availableProcesses": 1,
            "busyProcesses": 0,
            "pendingRequests": 0,
            "config": {
                "minSize": 2,
                "maxSize": self.slot_count,
                "idleTimeout": 300_000,
                "maxExecutionTime": 30_000,
                "preloadTimeout": 60_000,
            },
        }


def answer(stdout: str = "", ret_val: str = "", *, stderr: str = "", exit_code: int) -> tuple[Json, Json]:
    return {"stdout": stdout, "stderr": stderr, "ret_val": ret_val}, {
        "language": "python",
        "runtime": "pyodide-webassembly",
        "status": "error" if exit_code else "success",
        "exit_code": exit_code,
        "timed_out": False,
    }


def mangle(code: str) -> str:
    """Escape newlines and tabs between each pair of quotes, even if it does not delimit a string."""
    for quote in ('"', "'"):
        spans = re.compile(f"{quote}[^{quote}]*{quote}")
        code = spans.sub(lambda span: span[0].replace("\n", "\\n").replace("\t", "\\t"), code)
    return code


def split_output(printed: str) -> tuple[str, str]:
    """Remove the return value from stdout, and return the rest and the value."""
    stdout = printed.replace("\n", "")
    returned = RETURN_VAL.search(stdout)
    stdout = RETURN_VAL.sub("", stdout)
    braces = BRACES.search(stdout)
    stdout = BRACES.sub("", stdout)
    if returned:
        return stdout, reformat(returned[1].strip())
    return stdout, braces[0] if braces else ""


def reformat(text: str) -> str:
    """Return `JSON.stringify(JSON.parse(text))`, or the text itself if it is not JSON."""
    try:
        return stringify(parse(text))
    except ValueError:
        return text


def stringify(value: Any) -> str:
    if isinstance(value, dict):
        # JavaScript puts keys that are array indices first, in numerical order.
        indices = sorted(
            (key for key in value if re.fullmatch("0|[1-9][0-9]{0,9}", key) and int(key) < 2**32 - 1), key=int
        )
        keys = [*indices, *(key for key in value if key not in set(indices))]
        return "{" + ",".join(f"{stringify(key)}:{stringify(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(stringify, value)) + "]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda lone: f"\\u{ord(lone[0]):04x}", text)


def number(value: float) -> str:
    """Format a number like JavaScript: as a double, with an exponent from 1e21 on and below 1e-6."""
    try:
        value = float(value)
    except OverflowError:
        return "null"
    if math.isinf(value):
        return "null"
    if value == int(value) and abs(value) < 1e21:
        return repr_integer(value)
    mantissa, _, exponent = repr(value).partition("e")
    if exponent and -7 < int(exponent) < 0:
        return f"{value:.{len(mantissa.replace('.', '').lstrip('-')) - 1 - int(exponent)}f}"
    return f"{mantissa}e{int(exponent):+d}" if exponent else mantissa


def repr_integer(value: float) -> str:
    """Format a whole number with the fewest significant digits, then zeros: 2**60 is 1152921504606847000."""
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return str(int(value))
    whole, _, fraction = mantissa.partition(".")
    return whole + fraction.ljust(int(exponent), "0")
