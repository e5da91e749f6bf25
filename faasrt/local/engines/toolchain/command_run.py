"""Runs one command of a toolchain in a warm process, and turns its output into a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from faasrt.local.engines.base import EngineJob, EngineResult
from faasrt.local.engines.native_run import NativeRun
from faasrt.local.engines.report import read_text
from faasrt.local.engines.toolchain.toolchain import Toolchain
from faasrt.local.jail.jail import JailedProcess
from faasrt.protocol.streams import cut_text
from faasrt.results import ErrorInfo, Outcome

# The resource limits allow this much more than the memory limit, because programs reserve memory that they never use,
# such as most of the stacks of threads. The launcher checks how much memory is in use.
_UNTOUCHED_BYTES = 4 * 2**30
_STACK_BYTES = 64 * 2**20
# Errors are searched for in this many characters at the end of stderr.
_SEARCHED_CHARS = 65_536
_MESSAGE_BYTES = 8_192


class CommandRun(NativeRun):
    """One run of a command.

    Args:
        job: The program. Its code is not used, only its input, its limits and its live output.
        process: A warm process.
        command: The command with its arguments.
        files: The files to write first: relative to the working folder, or executable ones with an absolute path.
        folders: The folders to create.
        toolchain: The toolchain of a program, whose errors are recognized; None for a compiler.
    """

    process_name = "a process of a toolchain"

    def __init__(
        self,
        job: EngineJob,
        process: JailedProcess,
        command: Sequence[str],
        files: Mapping[str, bytes],
        folders: Sequence[str] = (),
        toolchain: Toolchain | None = None,
    ) -> None:
        super().__init__(job, process, "")
        self._command, self._files, self._folders, self._toolchain = command, files, folders, toolchain

    def result(self) -> EngineResult:
        result = super().result()
        if self._toolchain is None or result.outcome not in (Outcome.USER_ERROR, Outcome.CRASHED):
            return result
        text = result.stderr[-_SEARCHED_CHARS:]
        if self._toolchain.out_of_memory is not None and self._toolchain.out_of_memory.search(text):
            return attrs.evolve(result, outcome=Outcome.MEMORY_LIMIT, error=None, exit_code=None)
        found = self._toolchain.failure.search(text) if self._toolchain.failure is not None else None
        if found is None:
            return result
        message, traceback = cut_text(found.groupdict().get("message") or "", _MESSAGE_BYTES)[0], text[found.start() :]
        return attrs.evolve(result, error=ErrorInfo(found["name"], message, cut_text(traceback, 4 * _MESSAGE_BYTES)[0]))

    def _describe(self) -> tuple[dict[str, Any], Mapping[str, bytes]]:
        files, self._files = self._files, {}  # the program may be large, so it is kept only until it is sent
        return {"command": self._command, "folders": self._folders, "stackBytes": _STACK_BYTES}, files

    def begin(self, memory_bytes: int) -> None:
        super().begin(memory_bytes + _UNTOUCHED_BYTES)

    def _classify_exit(self, returncode: int) -> dict[str, Any]:
        if "error" in self._messages:
            error = ErrorInfo("OSError", read_text(self._messages["error"], "message"))
            return {"outcome": Outcome.CRASHED, "error": error}
        if returncode:
            error = ErrorInfo("ExitCode", f"the program exited with code {returncode}")
            return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": returncode}
        return {"outcome": Outcome.OK, "exit_code": 0}
