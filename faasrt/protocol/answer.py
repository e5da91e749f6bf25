"""Reads the answers of a server: the result of the code, or an error about the server.

The first row that matches applies:

    200 with a top-level `error`                      ServerError
    200 with an `outcome` (the embedded FaaS)         that outcome
    200, timed_out, or no output at the time limit    TIMEOUT
    200, stdout begins with js-faas's own report      the process was killed: TIMEOUT at the time limit, else CRASHED
    200, exit code not 0                              SYNTAX_ERROR or USER_ERROR according to stderr; CRASHED without
                                                      an error message
    200, stderr ends in js-faas's own stack           USER_ERROR or SYNTAX_ERROR
    200 otherwise                                     OK
    408, or 500 whose `details` mention a timeout     TIMEOUT, if the server is not lossless, the program had its whole
                                                      time limit, and the body has an `error`, unlike a proxy's page
    500 that names the program as a suspect           CRASHED; see `PROGRAM_SUSPECT_HEADER`
    429, 503; 504 that states that nothing started    OverloadedError
    408 that does not state that nothing was started  ServerError
    other 4xx                                         RejectedError
    other 5xx                                         ServerError
    anything else                                     ProtocolError

`faasrt.protocol.execution` reads answers to enveloped requests. There the frame decides, and a reference server that
returns no frame did not start its interpreter (ServerError).

Source: the rows for 200 and 500 follow observed answers of python-faas and js-faas.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import attrs

from faasrt import _strict_json
from faasrt.errors import InvalidRequestError, OverloadedError, ProtocolError, RejectedError, ServerError, ServiceError
from faasrt.inputs import check_path, files_from_wire
from faasrt.protocol.displays import displays_from_wire
from faasrt.protocol.frames import NO_REPORT, GuestReport, take_frames
from faasrt.protocol.health import is_pyodide
from faasrt.protocol.streams import STREAM_NAMES, cut_texts
from faasrt.results import (
    Diagnostic,
    Display,
    ErrorInfo,
    ExecutionOutput,
    ExecutionResult,
    Outcome,
    Timings,
    ValidationResult,
)

_LARGEST_NUMBER = 1e15
_TRUNCATED_NAMES = (*STREAM_NAMES, "files", "displays")
_ANSWER_OVERHEAD_BYTES = 262_144
_REPORT_START = '{"stdout":"'
_NO_OUTPUT = ExecutionOutput()
NO_TIMINGS = Timings()
_OUTCOMES = {str(outcome): outcome for outcome in Outcome}
SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")
T = TypeVar("T")
_EXCEPTION_LINE = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?")


@attrs.define
class Answer:
    """An answer, before it is parsed.

    Attributes:
        program_suspect: Whether the answer states that the program may have caused the failure of the server.
        counts_running_time: Whether the answer states that time limits do not count the wait for a CPU.
        elapsed_ms: The time from the first byte of the request to the end of the answer, unless the status is 200.
        may_be_timeout: Whether a failure can mean a timeout of the program: the server is not lossless, and at least
            the time limit that was sent has passed.
    """

    status: int
    body: bytes
    retry_after_s: float | None = None
    not_started: bool = False
    program_suspect: bool = False
    counts_running_time: bool = False
    elapsed_ms: float = 0.0
    may_be_timeout: bool = False


@attrs.define
class ParsedAnswer:
    """The content of an answer. The first fields are fields of `ExecutionResult`, with the values that the server
    states.

    Attributes:
        report: The content of the guest program's frames.
        declared: Whether the answer states the outcome, as answers of the embedded FaaS do.
        killed: Whether js-faas left its own report in stdout, because the process was killed.
        time_used_up: Whether the execution took at least as long as its time limit.
    """

    outcome: Outcome
    output: ExecutionOutput = _NO_OUTPUT
    error: ErrorInfo | None = None
    exit_code: int | None = None
    truncated: frozenset[str] = frozenset()
    duration_ms: float | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    displays: tuple[Display, ...] = ()
    report: GuestReport = NO_REPORT
    declared: bool = False
    killed: bool = False
    time_used_up: bool = False

    def result(self, timings: Timings = NO_TIMINGS, attempts: int = 1, endpoint: str = "") -> ExecutionResult:
        waited_ms = check_number(self.metadata.get("waited_ms"), "waited_ms", int, float)
        if waited_ms is not None:
            timings = Timings(timings.queued_s, timings.total_s, timings.attempts_s, waited_ms / 1000)
        return ExecutionResult(
            self.outcome,
            self.output,
            self.error,
            self.exit_code,
            self.truncated,
            self.duration_ms,
            timings,
            attempts,
            endpoint,
            self.metadata,
            self.files,
            False,  # it does not come from the cache
            self.displays,
        )


def max_answer_bytes(max_output_bytes: int, *, collects: bool, displays: bool = False) -> int:
    """Return the size of the largest answer that is read. The limit applies to each stream, to all collected files
    together, and to all displays together.
    """
    # JSON escapes, or base64, can double the size of files and displays.
    return (4 + 2 * collects + 2 * displays) * max_output_bytes + _ANSWER_OVERHEAD_BYTES


def read_answer(answer: Answer, nonce: str | None, *, timeout_ms: float, max_output_bytes: int) -> ParsedAnswer:
    """Read an answer to `/run_code`. `nonce` is the nonce of its frames; None without an envelope. Raise ServiceError
    if the server failed, refused, or did not follow the protocol.
    """
    if answer.status != 200:
        return _read_failure(answer, max_output_bytes)
    body = decode_object(answer.body)
    if body.get("error"):
        error, details = _message_in(body)
        raise ServerError(
            "the FaaS reports a failure",
            quote=error[:300],
            hint="see its logs",
            error=error,
            details=details,
            sent="yes",
            status=200,
        )
    metadata = check_type(body.get("metadata", {}), "metadata", dict)
    if "output" not in body:
        raise ProtocolError("the answer has no output", sent="yes", status=200)
    fields = check_type(body["output"], "output", dict)
    texts = {}
    for name in STREAM_NAMES:
        text = texts[name] = fields.get(name, "")
        if type(text) is not str:
            raise _wrong_type(text, name)
    # The embedded FaaS writes a notice to an empty stderr. It is not output of the program.
    if "notice" in body and check_type(body["notice"], "notice", str) == texts["stderr"]:
        texts["stderr"] = ""
    truncated: Collection[str] = ()
    if "truncated" in body:
        truncated = check_type(body["truncated"], "truncated", list)
    if truncated and not all(name in _TRUNCATED_NAMES for name in truncated):
        raise ProtocolError("'truncated' in the answer must contain only names of streams", sent="yes", status=200)
    exit_code = check_number(metadata.get("exit_code"), "exit_code", int)
    duration_ms = check_number(metadata.get("duration"), "duration", int, float)
    if duration_ms is not None:
        duration_ms = float(duration_ms)
    declared = _declared_outcome(body) if "outcome" in body else None
    from_js_faas = declared is None and exit_code is None and metadata.get("language") in (None, "javascript")
    killed = from_js_faas and _unpack_js_report(texts)
    report, texts = take_frames(texts, nonce, max_output_bytes) if nonce else (NO_REPORT, texts)
    if len(answer.body) > max_output_bytes:  # a text in JSON is not shorter than in UTF-8
        texts, cut_names = cut_texts(texts, max_output_bytes)
        truncated = cut_names.union(truncated)
    # On python-faas the duration includes the start of the interpreter, which can exceed the time limit by itself.
    time_used_up = duration_ms is not None and duration_ms >= timeout_ms and not is_pyodide(metadata)
    output = ExecutionOutput(texts["stdout"], texts["stderr"], texts["ret_val"])
    outcome, user_error = declared or _inferred_outcome(output, metadata, killed, time_used_up)
    parsed = ParsedAnswer(outcome, output, user_error, exit_code, frozenset(truncated), duration_ms, metadata)
    if "files" in body:
        parsed.files = read_files(body["files"])
    if "displays" in body:
        parsed.displays = _read_displays(body["displays"])
        if "session" in body:
            parsed.metadata = {**metadata, "session": check_type(body["session"], "session", dict)}
    parsed.report, parsed.declared = report, declared is not None
    parsed.killed, parsed.time_used_up = killed, time_used_up
    return parsed


def _read_failure(answer: Answer, max_output_bytes: int) -> ParsedAnswer:
    error, details = server_message(answer)
    if answer.program_suspect and answer.status == 500:
        # An error would let a program escape its verdict, and would be retried if the program is idempotent.
        return ParsedAnswer(outcome=Outcome.CRASHED, error=ErrorInfo("SIGKILL", details[:500]), declared=True)
    # The page of a proxy has no `error`.
    if answer.may_be_timeout and error and _mentions_timeout(answer, details):
        texts, truncated = cut_texts({"stderr": details}, max_output_bytes)
        return ParsedAnswer(outcome=Outcome.TIMEOUT, output=ExecutionOutput(**texts), truncated=truncated)
    raise status_error(answer)


def _mentions_timeout(answer: Answer, details: str) -> bool:
    if answer.status == 408:
        return not answer.not_started
    return answer.status == 500 and re.search("timeout|timed out", details, re.IGNORECASE) is not None


def raise_for_status(answer: Answer) -> None:
    """Accept 200, and 201 for a new session. The protocol has neither redirects nor other successes."""
    if answer.status not in (200, 201):
        raise status_error(answer)


def status_error(answer: Answer, texts: tuple[str, str] | None = None) -> ServiceError:
    """`texts` are the error and the details in the answer, if it is not coze-loop's."""
    status = answer.status
    error, details = texts or server_message(answer)
    quote = ": ".join(part[:300] for part in (error, details) if part) or "no reason given"
    if status in (429, 503) or (status == 504 and answer.not_started):
        return OverloadedError(
            f"the FaaS is overloaded (HTTP {status})",
            quote=quote,
            hint="lower the concurrency or add replicas",
            retry_after_s=answer.retry_after_s,
            not_started=answer.not_started,
            sent="yes",
            status=status,
        )
    if not 400 <= status < 600:
        reason = f"the FaaS answered HTTP {status}, which is not part of its protocol"
        return ProtocolError(reason, hint="check the URL", sent="yes", status=status)
    failure: RejectedError | ServerError
    if status == 408 and not answer.not_started:
        reason = "the FaaS, or a proxy before it, stopped waiting (HTTP 408)"
        failure = ServerError(reason, quote=quote, hint="see their logs", sent="yes", status=status)
    elif status < 500:
        failure = RejectedError(f"the FaaS refused the request (HTTP {status})", quote=quote, sent="yes", status=status)
    else:
        reason = f"the FaaS failed (HTTP {status})"
        failure = ServerError(reason, quote=quote, hint="see its logs", sent="yes", status=status)
    failure.error, failure.details = error, details
    return failure


def read_files(value: Any) -> dict[str, bytes]:
    """Return the collected files. Their paths are checked, because callers may write them to a folder."""
    try:
        files = files_from_wire(check_type(value, "files", dict))
        return {check_path(path, "a path"): data for path, data in files.items()}
    except InvalidRequestError as error:
        raise ProtocolError("'files' in the answer is wrong", quote=str(error), sent="yes", status=200) from None


def read_sizes(value: Any) -> dict[str, int]:
    sizes = check_type(value, "sizes", dict)
    try:
        return {check_path(path, "a path"): check_type(size, "sizes", int) for path, size in sizes.items()}
    except InvalidRequestError as error:
        raise ProtocolError("'sizes' in the answer is wrong", quote=str(error), sent="yes", status=200) from None


def _read_displays(value: Any) -> tuple[Display, ...]:
    try:
        return displays_from_wire(value)
    except ValueError as error:
        raise ProtocolError("'displays' in the answer is wrong", quote=str(error), sent="yes", status=200) from None


def _unpack_js_report(texts: dict[str, str]) -> bool:
    """Replace the report of js-faas in stdout by the streams in it. Return whether there is one.

    js-faas prints the report to stdout when the script has run, before the callbacks that the script scheduled. If the
    process then exits with 0, the server removes the report. If it exits with another code or is killed, the server
    returns stdout unchanged.
    """
    line, _, rest = texts["stdout"].partition("\n")
    if texts["ret_val"] or not line.startswith(_REPORT_START):
        return False
    try:
        report = _strict_json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(report, dict) or list(report) != list(STREAM_NAMES):
        return False
    if not all(isinstance(text, str) for text in report.values()):
        return False
    texts.update(stdout=report["stdout"] + rest, stderr=report["stderr"] + texts["stderr"], ret_val=report["ret_val"])
    return True


def _declared_outcome(body: dict[str, Any]) -> tuple[Outcome, ErrorInfo | None]:
    name = body["outcome"]
    outcome = _OUTCOMES.get(name) if isinstance(name, str) else None
    if outcome is None:
        raise ProtocolError("'outcome' in the answer is not a known outcome", sent="yes", status=200)
    info = body.get("error_info")
    if info is None:
        return outcome, None
    check_type(info, "error_info", dict)
    name, message, traceback = (check_type(info.get(key, ""), key, str) for key in ("name", "message", "traceback"))
    return outcome, ErrorInfo(name, message, traceback)


def _inferred_outcome(
    output: ExecutionOutput, metadata: Mapping[str, Any], killed: bool, time_used_up: bool
) -> tuple[Outcome, ErrorInfo | None]:
    exit_code = metadata.get("exit_code")
    silent = exit_code != 0 and not (output.stdout or output.stderr or output.ret_val)
    if metadata.get("timed_out") is True or ((silent or killed) and time_used_up):
        return Outcome.TIMEOUT, None
    if killed:
        return Outcome.CRASHED, None
    if exit_code:
        error = python_error(output.stderr)
        if error is not None:
            return (Outcome.SYNTAX_ERROR if error.name in SYNTAX_ERRORS else Outcome.USER_ERROR), error
        # python-faas drops most tracebacks, but its status distinguishes an exception from a dead process.
        raised = output.stderr.strip() or metadata.get("status") == "error"
        return (Outcome.USER_ERROR if raised else Outcome.CRASHED), None
    if exit_code is None and (error := _js_error(output.stderr)) is not None:
        parse_error = error.name == "SyntaxError" and error.traceback.count("eval at <anonymous> (eval at") == 0
        return (Outcome.SYNTAX_ERROR if parse_error else Outcome.USER_ERROR), error
    return Outcome.OK, None


def python_error(stderr: str) -> ErrorInfo | None:
    """Return the exception in a Python traceback: its last line without indentation."""
    if "Traceback (most recent call last)" not in stderr and "SyntaxError" not in stderr:
        return None
    begin = stderr.find("Traceback (most recent call last)")
    traceback = stderr[max(begin, 0) :]
    for line in reversed(traceback.splitlines()):
        match = _EXCEPTION_LINE.fullmatch(line)
        if match and not line.startswith(" ") and line[:1].isalpha():
            return ErrorInfo(match["name"].rpartition(".")[2], match["message"] or "", traceback)
    return None


def _js_error(stderr: str) -> ErrorInfo | None:
    """Return the exception in a stack that ends in frames of js-faas, which evaluates programs in a file temp.js."""
    lines = stderr.rstrip("\n").split("\n")
    first_frame = len(lines)
    while first_frame and lines[first_frame - 1].startswith("    at "):
        first_frame -= 1
    frames = lines[first_frame:]
    if not frames or "temp.js" not in frames[-1] or not any("eval at <anonymous>" in frame for frame in frames):
        return None
    for index in range(first_frame - 1, -1, -1):
        match = _EXCEPTION_LINE.fullmatch(lines[index])
        if match:
            message = "\n".join([match["message"] or "", *lines[index + 1 : first_frame]])
            return ErrorInfo(match["name"], message, "\n".join(lines[index:]))
    return None


def server_message(answer: Answer) -> tuple[str, str]:
    """Return `error` and `details` of a failure; "" and the beginning of a body that is not a JSON object."""
    try:
        body = decode_object(answer.body)
    except ProtocolError:
        return "", answer.body[:500].decode("utf-8", "replace").strip()
    return _message_in(body)


def _message_in(body: dict[str, Any]) -> tuple[str, str]:
    found = (body.get(key) for key in ("error", "details"))
    error, details = ("" if text is None else text if isinstance(text, str) else repr(text)[:500] for text in found)
    return error, details


def check_type(value: Any, name: str, kind: type[T]) -> T:
    """Raise ProtocolError if the value does not have this type. A bool is not an int here."""
    if type(value) is not kind:
        raise _wrong_type(value, name)
    return value


def _wrong_type(value: Any, name: str) -> ProtocolError:
    return ProtocolError(f"{name} in the answer has the wrong type: {type(value).__name__}", sent="yes", status=200)


def check_number(value: Any, name: str, *kinds: type) -> Any:
    if value is None:
        return None
    if type(value) not in kinds:
        raise _wrong_type(value, name)
    if abs(value) > _LARGEST_NUMBER:
        raise ProtocolError(f"{name} in the answer is out of range", sent="yes", status=200)
    return value


def read_validation(answer: Answer) -> ValidationResult:
    raise_for_status(answer)
    fields = decode_object(answer.body)
    valid, listed, checked_by = fields.get("valid"), fields.get("diagnostics"), fields.get("checked_by")
    if not isinstance(valid, bool) or not isinstance(listed, list) or not isinstance(checked_by, str):
        raise ProtocolError("the answer to a validation has wrong or missing fields", sent="yes", status=200)
    return ValidationResult(valid, tuple(_diagnostic(item) for item in listed), checked_by)


def _diagnostic(item: Any) -> Diagnostic:
    if isinstance(item, dict):
        message, line, column = item.get("message"), item.get("line"), item.get("column")
        if isinstance(message, str) and _is_position(line) and _is_position(column):
            return Diagnostic(message, line, column)
    raise ProtocolError("a diagnostic in the answer has wrong or missing fields", sent="yes", status=200)


def _is_position(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object. Raise ProtocolError if the body is not UTF-8, not JSON (which excludes NaN, Infinity and
    numbers too large for a float), too deep, or not an object.
    """
    try:
        value = _strict_json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the answer is not UTF-8 (byte {error.start})", sent="yes") from None
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the answer is not JSON", quote=str(error)[:200], sent="yes") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"the answer is JSON, but not an object: {type(value).__name__}", sent="yes")
    return value
