"""EngineSession: an interpreter that keeps its state between runs, in a sandbox of its own."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import attrs

from faasrt.languages import Language
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.protocol.execution_limits import ExecutionLimits


@attrs.frozen(kw_only=True)
class SessionOptions:
    """A session to open, from a request that the server has checked.

    Attributes:
        language: One of the engine's languages.
        limits: The limits of the session. A run may have a lower limit of time or of output. The memory limit is that
            of the whole session.
        files: The files in its working folder at the start, by path.
    """

    language: Language
    limits: ExecutionLimits
    files: Mapping[str, bytes] = attrs.field(factory=dict)


class EngineSession(abc.ABC):
    """A session. The caller does one thing at a time: it calls no other method but `interrupt` and `aclose` before the
    last one has returned.

    Args:
        options: The options.

    Attributes:
        ended: Set when the session has ended, for any reason.
        reason: Why it has ended, for people to read; "" before.
    """

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self.ended = asyncio.Event()
        self.reason = ""

    def mark_ended(self, reason: str) -> None:
        """Record the end of the session. The first reason counts."""
        self.reason = self.reason or reason
        self.ended.set()

    def check_open(self) -> None:
        """Raise SessionEndedError if the session has ended."""
        if self.ended.is_set():
            raise SessionEndedError(self.reason)

    @abc.abstractmethod
    async def run(self, job: EngineJob) -> EngineResult:
        """Run a program in the session, and return its result.

        At its time limit, the program is interrupted. If it has not ended a second later, the session ends. The outcome
        is TIMEOUT in both cases.

        Raises:
            SessionEndedError: The session had ended before the program began.
            EngineError: The engine failed; the program may have begun. The session has ended.

        Cancellation: interrupts the program. The session ends if the program does not end within a second; `run` waits
            for this.
        """

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Interrupt the program that runs, as if by Ctrl-C. Do nothing if none runs."""

    async def fork(self) -> EngineSession:
        """Return a new session with the same variables and files. From then on, the two are separate.

        Raises:
            ForkError: The session cannot be forked now, or never.
            SessionEndedError: The session has ended.
        """
        raise ForkError(f"{self.options.language} sessions cannot be forked")

    @abc.abstractmethod
    async def write_files(self, files: Mapping[str, bytes]) -> None:
        """Write files into the working folder; folders are created, and existing files replaced.

        Raises:
            SessionFileError: A file cannot be written, because the folder is full, or a path is that of a folder.
            SessionEndedError: The session has ended.
        """

    @abc.abstractmethod
    async def read_files(self, patterns: Sequence[str], max_bytes: int) -> tuple[dict[str, bytes], bool]:
        """Return the files that match patterns (see `faasrt.inputs`) by path, and whether these are all of them.

        Raises:
            SessionEndedError: The session has ended.
        """

    @abc.abstractmethod
    async def list_files(self, max_bytes: int) -> tuple[dict[str, int], bool]:
        """Return the sizes of all files by path, and whether the paths fit into a number of bytes.

        Raises:
            SessionEndedError: The session has ended.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """End the session, and the program that runs. Wait until its processes have ended."""


async def wait_shielded(event: asyncio.Event) -> None:
    """Wait for an event, also if this is cancelled again."""
    waiting = asyncio.ensure_future(event.wait())
    while not waiting.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(waiting)


class SessionError(Exception):
    """A session cannot do what was asked. Nothing has run.

    Attributes:
        status: The HTTP status of the answer.
        kind: The `error` in the body of the answer.
    """

    status: ClassVar[int] = 409
    kind: ClassVar[str]


class SessionEndedError(SessionError):
    """The session has ended; the message says why."""

    status = 404
    kind = "session lost"


class ForkError(SessionError):
    """The session cannot be forked; the message says why."""

    kind = "cannot fork"


class SessionFileError(SessionError):
    """A file cannot be written; the message says why."""

    kind = "cannot write files"


class UnreadFilesError(SessionError):
    """Files cannot be read, or there are too many; the message says so."""

    kind = "cannot read files"
