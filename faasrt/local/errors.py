"""The errors of the embedded FaaS. An error of an engine or a jail means that the server failed, not the program."""

from __future__ import annotations

from faasrt.errors import ConfigurationError

# Why a session has ended, for people to read. All engines use these texts, and so do their worker processes.
CLOSED = "the session was closed"
OUT_OF_MEMORY = "it exceeded its memory limit"
OUT_OF_TIME = "a run reached its time limit and could not be interrupted"
TOO_BUSY = "the machine was too busy to run it for as long as its time limit"


class EngineError(Exception):
    """The engine failed, not the program. `kind` is the `error` in the body of the answer."""

    status = 500
    kind = "the engine failed"


class TooBusyError(EngineError):
    """A program reached the limit of its wall-clock time, because it waited for a CPU."""

    def __init__(self) -> None:
        super().__init__(TOO_BUSY)


class SuspectError(EngineError):
    """The process of a program was killed while the system lacked memory, and the program may have caused this."""


class NotStartedError(EngineError):
    """The engine failed before the program began, so a retry cannot run it twice."""

    status = 503


class AddressError(ConfigurationError):
    """The server cannot listen on its address."""
