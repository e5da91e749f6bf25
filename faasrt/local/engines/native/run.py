"""A run of a native Python program: what its messages and its exit code mean."""

from __future__ import annotations

import functools
import re
import shlex
from typing import Any

import attrs

from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.jailed_run import JailedRun, Messages
from faasrt.local.engines.runner_messages import read_python_error, read_text
from faasrt.local.jail.jail import JailedProcess
from faasrt.results import ErrorInfo, Outcome

PROCESS_NAME = "a Python process"
# Packages whose name on PyPI differs from the name of their module.
_PACKAGES = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def python_run(job: EngineJob, process: JailedProcess, memory_bytes: int, python: str) -> JailedRun:
    header = {"code": job.code, "check": job.check, "argv": job.input.argv, "displays": job.displays}
    header["maxMessageBytes"] = job.limits.max_output_bytes
    read_exit = functools.partial(read_python_exit, limit=job.limits.max_output_bytes, python=python)
    return JailedRun(job, process, PROCESS_NAME, header, job.input.files, memory_bytes, read_exit)


def read_python_exit(messages: Messages, returncode: int, *, limit: int, python: str) -> dict[str, Any]:
    if "error" in messages:
        fields = read_python_error(messages["error"], limit)
        if "error" not in fields:
            return fields
        fields["exit_code"] = returncode or _exit_code(messages) or fields["exit_code"]
        if "missing" in messages:
            fields["error"] = _with_hint(fields["error"], read_text(messages["missing"], "package"), python)
        return fields
    code = returncode or _exit_code(messages)
    if code and "exit" in messages:
        error = ErrorInfo("SystemExit", f"the program exited with code {code}")
        return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": code}
    return {"outcome": Outcome.OK if "done" in messages else Outcome.CRASHED, "exit_code": returncode}


def _exit_code(messages: Messages) -> int:
    code = messages.get("exit", {}).get("code")
    return code if isinstance(code, int) and code < 256 else 0


def _with_hint(error: ErrorInfo, module: str, python: str) -> ErrorInfo:
    if _MODULE.fullmatch(module) is None:  # the program has forged the message
        return error
    command = f"{shlex.quote(python)} -m pip install {_PACKAGES.get(module, module)}"
    return attrs.evolve(error, message=f"{error.message} (to install it for programs, run: {command})")
