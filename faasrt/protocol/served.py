"""The server half of a protocol: how `faasrt serve` answers the clients of another service. Both halves are in one
file. Neither does I/O or has state.
"""

from __future__ import annotations

import abc
import base64
import posixpath
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from faasrt._run_option_checks import is_number
from faasrt.inputs import MAX_PATH_BYTES, ProgramInput
from faasrt.languages import Language
from faasrt.protocol.processes import ProcessEnd

MAX_TIMEOUT_FLAG, MAX_MEMORY_FLAG = "--max-timeout-s", "--max-memory-mb"
"""The flags of `faasrt serve` for the largest limits. Refusals name them."""
_LARGEST = 10**15  # more than any limit; an int of JSON may be too large for a float


@attrs.frozen(kw_only=True)
class ServedLanguage:
    """A language that this server runs. `version` is "" while it is not ready, and the limits are 0 for a language that
    is not compiled.
    """

    version: str
    compile_timeout_ms: float = 0.0
    compile_memory_mb: int = 0


@attrs.frozen(kw_only=True)
class ServerProfile:
    """The languages of this server, its default limits, and the largest ones. `missing` has the reasons why other
    languages do not run.
    """

    languages: Mapping[Language, ServedLanguage]
    missing: Mapping[Language, str]
    timeout_ms: float
    memory_limit_mb: int
    max_timeout_ms: float
    max_memory_limit_mb: int

    def why_missing(self, language: Language | None) -> str:
        reason = "" if language is None else self.missing.get(language, "")
        return reason or f"it runs {', '.join(self.languages)}"

    def logged_language(self, language: Language | None, name: str) -> str:
        """Return why a request for a language was refused, for `RefusedError.logged`."""
        is_left_out = language is not None and language not in self.missing
        hint = "; --language of faasrt serve adds it" if is_left_out else ""
        return f"asked for {name}, which this server does not run: {self.why_missing(language)}{hint}"


@attrs.frozen(kw_only=True)
class ServedRun:
    """The program of a request, with limits that do not exceed the limits of the server.

    Attributes:
        timeout_ms: With 0, the program is not run.
        compile_timeout_ms: None for the server's limit. With 0, the program is not compiled.
        compile_memory_mb: None for the server's limit.
        input: It collects `fetched`.
        fetched: The paths of the requested files, by their names in the request.
        patience_s: How long clients of the service wait for the answer: the shortest known wait of any client.
    """

    language: Language
    code: str
    timeout_ms: float
    memory_limit_mb: int
    compile_timeout_ms: float | None = None
    compile_memory_mb: int | None = None
    input: ProgramInput
    fetched: Mapping[str, str] = attrs.field(factory=dict)
    patience_s: float


@attrs.frozen(kw_only=True)
class ServedResult:
    """The result of a program.

    Attributes:
        end: How the process of the program ended, or of the compiler if the program did not compile.
        compile_ms: None if there was no compilation.
        memory_bytes: The memory that the program used, if it exceeded its limit.
    """

    end: ProcessEnd
    compile_ms: float | None = None
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    memory_bytes: int | None = None


class RefusedError(Exception):
    """The request is refused in the form of the service. `reason` replaces the reason phrase, because some clients log
    nothing else. `logged` is for the log of the server, which counts refusals with the same text: a predicate of the
    request, and a remedy. It has no text of the request.
    """

    def __init__(self, status: int, body: dict[str, Any], reason: str | None = None, logged: str = "") -> None:
        super().__init__(status)
        self.status, self.body, self.reason, self.logged = status, body, reason, logged


def logged_maximum(name: str, limit: str, flag: str) -> str:
    """Return why a request was refused whose limit is above the largest one. `flag` raises it, or is ""."""
    return f"asked for more than the maximum: {name} is at most {limit}{hint_at(flag)}"


def hint_at(flag: str) -> str:
    return f"; {flag} of faasrt serve raises it" if flag else ""


class ServedProtocol(abc.ABC):
    """How one kind of service reads requests, and answers them. `run_path` follows `prefix`, the path of the service on
    this server. `settings` has the line that configures each of its clients for this server, whose address is `{url}`.
    """

    service: ClassVar[str]
    prefix: ClassVar[str]
    run_path: ClassVar[str]
    settings: ClassVar[Mapping[str, str]]

    @abc.abstractmethod
    def read_run(self, fields: Mapping[str, Any], server: ServerProfile) -> ServedRun:
        """Read the body of a request. Raise RefusedError if this server cannot do exactly what it asks for."""

    @abc.abstractmethod
    def encode_result(self, result: ServedResult, run: ServedRun, server: ServerProfile) -> dict[str, Any]:
        """Return the body of the answer with a result."""

    @abc.abstractmethod
    def encode_failure(self, status: int, message: str, *, not_started: bool) -> tuple[int, dict[str, Any]]:
        """`status` is the status in the native API. If the program was not started, the client may send it again."""


def decode_base64(text: str) -> bytes:
    return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)


def relative_path(path: str) -> str:
    """Remove "." and ".." and doubled slashes, as far as possible. Long paths are not changed."""
    return posixpath.normpath(path) if 0 < len(path) <= MAX_PATH_BYTES else path


def as_number(value: Any) -> float | None:
    """Return a number in JSON as a float, at most 10**15; None if the value is not a number."""
    return float(max(-_LARGEST, min(value, _LARGEST))) if is_number(value) else None
