"""The results of services that report how a process ended, as SandboxFusion and Piston do: exit code, signal and stderr
become an outcome.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from faasrt.errors import InvalidRequestError, ProtocolError, ServerError
from faasrt.languages import Language
from faasrt.protocol.answer import SYNTAX_ERRORS, ParsedAnswer, python_error
from faasrt.protocol.frames import NO_REPORT, take_frames
from faasrt.protocol.program import Program
from faasrt.protocol.streams import cut_texts
from faasrt.results import ErrorInfo, ExecutionOutput, Outcome

_FIRST_NODE_FRAME = re.compile(r"^    at ", re.MULTILINE)
_ERROR_LINE = re.compile(r"(?P<name>[A-Za-z_$][\w.$]*)(?: \[[A-Z_]+\])?(?:: (?P<message>.*))?")
# bash prints these lines if a toolchain, or a library that it needs, is not installed.
_NOT_INSTALLED = re.compile(
    r"(?:\S+: line \d+: \S+: (?:command not found|No such file or directory)"
    r"|(?:sh: \d+: )?\S+: not found"
    r"|\S+: error while loading shared libraries: .*)\n?"
)


@attrs.frozen(kw_only=True)
class ProcessEnd:
    """How the process of a program ended, as a service reports it.

    Attributes:
        exit_code: None if the process was killed.
        outcome: The outcome, if the service names it: TIMEOUT, OUTPUT_LIMIT or MEMORY_LIMIT.
        error: The limit that the program exceeded, if it is one of the service.
        compiling: Whether the program did not compile. The process is the compiler.
        limits_memory: Whether the request limited the memory.
    """

    stdout: str
    stderr: str
    exit_code: int | None = None
    signal: str = ""
    outcome: Outcome | None = None
    error: ErrorInfo | None = None
    compiling: bool = False
    truncated: Collection[str] = ()
    duration_ms: float | None = None
    limits_memory: bool = False


def stdin_text(program: Program) -> str:
    try:
        return program.input.stdin.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"stdin must be UTF-8 for {program.language} programs on this service") from None


def read_end(end: ProcessEnd, program: Program, nonce: str | None, metadata: Mapping[str, Any]) -> ParsedAnswer:
    """Read how a process ended. Raise ProtocolError if the answer does not say so, and ServerError if the toolchain of
    the language is missing.
    """
    is_known = end.exit_code is not None or end.signal or end.outcome is not None
    if not is_known or (end.compiling and end.exit_code == 0):
        raise ProtocolError("the answer does not say how the program ended", sent="yes", status=200)
    limit = program.sandbox.max_output_bytes
    texts = {"stdout": end.stdout, "stderr": end.stderr}
    report, texts = take_frames(texts, nonce, limit) if nonce else (NO_REPORT, texts)
    if nonce is None and end.exit_code == 127 and program.language != "bash":
        _check_installed(end.stdout, end.stderr, program.language)
    texts, cut_names = cut_texts(texts, limit)
    end = attrs.evolve(end, stdout=texts["stdout"], stderr=texts["stderr"])
    service = metadata.get("service", "the service")
    if end.compiling and end.outcome is Outcome.TIMEOUT:
        metadata = {**metadata, "may_vary": True}
    outcome, error = _outcome(end, program.language, service, in_envelope=nonce is not None)
    return ParsedAnswer(
        outcome=outcome,
        output=ExecutionOutput(**texts),
        error=error,
        exit_code=end.exit_code,
        truncated=cut_names.union(end.truncated),
        duration_ms=end.duration_ms,
        metadata=metadata,
        report=report,
        # In an envelope, only the guest program knows how a program ended by itself.
        declared=nonce is None or (report.started and outcome is Outcome.CRASHED),
    )


def _outcome(end: ProcessEnd, language: str, service: str, *, in_envelope: bool) -> tuple[Outcome, ErrorInfo | None]:
    if end.compiling and end.outcome is Outcome.TIMEOUT:
        message = f"the compiler was ended: it took longer than the limit of {service}"
        return Outcome.SYNTAX_ERROR, ErrorInfo("CompileError", message, end.stderr)
    if end.outcome is not None:
        return end.outcome, end.error
    if end.compiling:
        return Outcome.SYNTAX_ERROR, ErrorInfo("CompileError", _first_error(end.stderr or end.stdout), end.stderr)
    if end.signal:
        return Outcome.CRASHED, ErrorInfo(end.signal, f"the program was killed by {end.signal}")
    if end.exit_code == 0 or in_envelope:
        return Outcome.OK, None
    error = _error_in(end.stderr, language)
    if error is None:
        return Outcome.USER_ERROR, None
    if error.name == "MemoryError" and end.limits_memory:
        return Outcome.MEMORY_LIMIT, None
    return (Outcome.SYNTAX_ERROR if _is_parse_error(error) else Outcome.USER_ERROR), error


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def signal_number(name: str) -> int:
    known = signal.Signals.__members__.get(name)
    return int(name.removeprefix("signal ")) if known is None else known.value


def _first_error(text: str) -> str:
    """Return the first line of a compiler's messages that mentions an error; else the first line."""
    lines = [line.strip() for line in text[:65_536].split("\n") if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")[:1_000]


def _error_in(stderr: str, language: str) -> ErrorInfo | None:
    if language == Language.PYTHON:
        return python_error(stderr)
    if language in (Language.JAVASCRIPT, Language.TYPESCRIPT) and (frame := _FIRST_NODE_FRAME.search(stderr)):
        head = stderr[: frame.start()].rstrip("\n")
        # Node.js quotes the source, and then prints an empty line before the error.
        begin = head.rfind("\n\n") + 2 if "\n\n" in head else 0
        match = _ERROR_LINE.match(head, begin)
        if match:
            message = "\n".join([match["message"] or "", *head[match.end() :].split("\n")[1:]])
            return ErrorInfo(match["name"], message, stderr[begin:])
    return None


def _is_parse_error(error: ErrorInfo) -> bool:
    """Return whether the program itself could not be parsed, in contrast to code that it evaluates."""
    if error.traceback.startswith("Traceback (most recent call last)"):
        return False
    if error.message.startswith("Transform failed with "):  # tsx, which runs TypeScript
        return True
    frames = [line for line in error.traceback.split("\n") if line.startswith("    at ")]
    return error.name in SYNTAX_ERRORS and all("node:" in frame for frame in frames)


def _check_installed(stdout: str, stderr: str, language: str) -> None:
    if not stdout and _NOT_INSTALLED.fullmatch(stderr):
        raise ServerError(
            f"the toolchain of {language} is not installed",
            quote=stderr.strip()[:300],
            details=stderr.strip()[:500],
            sent="yes",
            blames_endpoint=False,  # a program can print the same
        )
