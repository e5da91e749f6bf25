"""A run of a compiler or of a compiled program. It replaces its runner, so only its end and its output count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.jailed_run import JailedRun, Messages
from faasrt.local.engines.runner_messages import read_text
from faasrt.local.engines.toolchain.toolchain import Toolchain
from faasrt.local.jail.jail import JailedProcess
from faasrt.protocol.streams import cut_text
from faasrt.results import ErrorInfo, Outcome

PROCESS_NAME = "a process of a toolchain"
# Errors are searched for in this many characters at the end of stderr.
_SEARCHED_CHARS = 65_536
_MESSAGE_BYTES = 8_192


def command_run(
    job: EngineJob,
    process: JailedProcess,
    memory_bytes: int,
    command: Sequence[str],
    files: Mapping[str, bytes],
    folders: Sequence[str] = (),
) -> JailedRun:
    """Return the run of a command in a process. Of the job, its code is not used. Files are relative to the working
    folder, or executable ones with an absolute path.
    """
    return JailedRun(
        job, process, PROCESS_NAME, {"command": command, "folders": folders}, files, memory_bytes, _read_exit
    )


def _read_exit(messages: Messages, returncode: int) -> dict[str, Any]:
    if "error" in messages:
        error = ErrorInfo("OSError", read_text(messages["error"], "message"))
        return {"outcome": Outcome.CRASHED, "error": error}
    if returncode:
        error = ErrorInfo("ExitCode", f"the program exited with code {returncode}")
        return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": returncode}
    return {"outcome": Outcome.OK, "exit_code": 0}


def recognize_failure(result: EngineResult, toolchain: Toolchain) -> EngineResult:
    if result.outcome not in (Outcome.USER_ERROR, Outcome.CRASHED):
        return result
    text = result.stderr[-_SEARCHED_CHARS:]
    if toolchain.out_of_memory is not None and toolchain.out_of_memory.search(text):
        return attrs.evolve(result, outcome=Outcome.MEMORY_LIMIT, error=None, exit_code=None)
    failure = None if toolchain.failure is None else toolchain.failure.search(text)
    if failure is None:
        return result
    message, _ = cut_text(failure.groupdict().get("message") or "", _MESSAGE_BYTES)
    traceback, _ = cut_text(text[failure.start() :], 4 * _MESSAGE_BYTES)
    return attrs.evolve(result, error=ErrorInfo(failure["name"], message, traceback))
