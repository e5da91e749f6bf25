"""The base class of the sessions of all engines, and their errors."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar

import attrs

from faasrt.languages import Language
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.protocol.execution_limits import ExecutionLimits


@attrs.frozen(kw_only=True)
class EngineSessionOptions:
    """A session to open. A run may have a lower limit of time or of output; the session determines the memory limit."""

    language: Language
    limits: ExecutionLimits
    files: Mapping[str, bytes] = attrs.field(factory=dict)


class EngineSession(abc.ABC):
    """An interpreter that keeps its state between runs, in a sandbox of its own.

    The caller calls no other method but `interrupt` and `aclose` before the last one has returned. When the session has
    ended, for `reason`, other methods raise SessionEndedError.
    """

    def __init__(self, options: EngineSessionOptions) -> None:
        self.options = options
        self.ended = asyncio.Event()
        self.reason = ""

    def mark_ended(self, reason: str) -> None:
        """The first reason counts."""
        self.reason = self.reason or reason
        self.ended.set()

    def check_open(self) -> None:
        if self.ended.is_set():
            raise SessionEndedError(self.reason)

    @abc.abstractmethod
    async def run(self, job: EngineJob) -> EngineResult:
        """Run a program in the session, and return its result.

        At its time limit, the program is interrupted. If it has not ended a second later, the session ends. The outcome
        is TIMEOUT in both cases. If the engine fails, the program may have begun, and the session has ended.

        Cancellation: interrupts the program, and waits. The session ends if the program does not end within a second.
        """

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Interrupt the program that runs, if any, as if by Ctrl-C."""

    async def fork(self) -> EngineSession:
        """Return a separate copy of the session. Raise ForkError if it cannot be forked now, or never."""
        raise ForkError(f"{self.options.language} sessions cannot be forked")

    @abc.abstractmethod
    async def write_files(self, files: Mapping[str, bytes]) -> None:
        """Create folders, and replace existing files. Raise SessionFileError if the folder is full, or a path is a
        folder.
        """

    @abc.abstractmethod
    async def read_files(self, patterns: Sequence[str], max_bytes: int) -> tuple[dict[str, bytes], bool]:
        """Return the files that match patterns (see `faasrt.inputs`), and whether these are all of them."""

    @abc.abstractmethod
    async def list_files(self, max_bytes: int) -> tuple[dict[str, int], bool]:
        """Return the sizes of all files by path, and whether the paths fit into a number of bytes."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """End the session and its program. Wait until its processes have ended."""


class SessionError(Exception):
    """A session cannot do what was asked, and nothing has run. `kind` is the `error` in the body of the answer."""

    status: ClassVar[int] = 409
    kind: ClassVar[str]


class SessionEndedError(SessionError):
    status = 404
    kind = "session lost"


class SessionExistsError(SessionError):
    """A session has had this id."""

    kind = "session exists"


class ForkError(SessionError):
    kind = "cannot fork"


class SessionFileError(SessionError):
    kind = "cannot write files"


class UnreadFilesError(SessionError):
    kind = "cannot read files"
