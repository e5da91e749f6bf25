"""Reads the answers of a server: a verdict on the code, or an error about the server.

The first row that matches applies:

    200 with a top-level `error`                      ServerError
    200 with an `outcome` (the embedded FaaS)         that outcome
    200, timed_out, or no output at the time limit    TIMEOUT
    200, stdout begins with js-faas's own report      the process was killed: TIMEOUT at the time limit, else CRASHED
    200, exit code not 0                              SYNTAX_ERROR or USER_ERROR according to stderr; CRASHED without
                                                      an error message
    200, stderr ends in js-faas's own stack           USER_ERROR or SYNTAX_ERROR
    200 otherwise                                     OK
    408, or 500 whose text mentions a timeout         TIMEOUT, unless the 408 states that nothing was started
    429, 503                                          OverloadedError
    other 4xx                                         RejectedError
    other 5xx                                         ServerError
    anything else                                     ProtocolError

`faasrt.protocol.program` reads answers to enveloped requests. There the frame decides, and a reference server that
returns no frame did not start its interpreter (ServerError).

Source: the rows for 200 and 500 follow observed answers of python-faas and js-faas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from faasrt import strict_json
from faasrt.errors import OverloadedError, ProtocolError, RejectedError, ServerError
from faasrt.protocol.health import is_pyodide
from faasrt.protocol.streams import STREAM_NAMES, cut_text
from faasrt.results import Diagnostic, ExecutionOutput, ExecutionResult, Outcome, Timings, UserError, ValidationResult

_LARGEST_NUMBER = 1e15
_REPORT_START = '{"stdout":"'
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")
T = TypeVar("T")
_EXCEPTION_LINE = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?")


@attrs.define(kw_only=True)
class Answer:
    """An answer as it arrived.

    Attributes:
        status: The HTTP status.
        body: The whole body.
        retry_after_s: The seconds in `Retry-After`, or None.
        not_started: Whether the answer states that the code was not started.
    """

    status: int
    body: bytes
    retry_after_s: float | None = None
    not_started: bool = False


@attrs.define(kw_only=True)
class Verdict:
    """How an execution ended: an `ExecutionResult` without the fields about its call."""

    outcome: Outcome
    output: ExecutionOutput = attrs.field(factory=ExecutionOutput)
    error: UserError | None = None
    exit_code: int | None = None
    truncated: frozenset[str] = frozenset()
    duration_ms: float | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)

    def to_result(self, *, timings: Timings, attempts: int, endpoint: str) -> ExecutionResult:
        """Return the result of the call."""
        return ExecutionResult(
            outcome=self.outcome,
            output=self.output,
            error=self.error,
            exit_code=self.exit_code,
            truncated=self.truncated,
            duration_ms=self.duration_ms,
            timings=timings,
            attempts=attempts,
            endpoint=endpoint,
            metadata=self.metadata,
        )


@attrs.define(kw_only=True)
class Success:
    """The checked fields of a 200 answer.

    Attributes:
        texts: The three streams by name, not cut yet.
        truncated: The streams that the server cut.
        metadata: The server's metadata, unchanged.
        exit_code: The exit code, or None.
        duration_ms: Milliseconds that the execution took according to the server, or None.
        killed: Whether js-faas left its report in stdout, because the process did not end by itself.
        declared: The outcome and the error in the answer of the embedded FaaS; None for other servers.
    """

    texts: dict[str, str]
    truncated: frozenset[str]
    metadata: dict[str, Any]
    exit_code: int | None
    duration_ms: float | None
    killed: bool
    declared: tuple[Outcome, UserError | None] | None

    def used_up(self, timeout_ms: float) -> bool:
        """Return whether the execution took as long as its time limit."""
        # On python-faas the start of the interpreter, which counts, can take longer than that.
        is_cold_start = is_pyodide(self.metadata)
        return not is_cold_start and self.duration_ms is not None and self.duration_ms >= timeout_ms


def read_verdict(answer: Answer, *, timeout_ms: float, max_output_bytes: int) -> Verdict:
    """Return the verdict on an answer to `/run_code`.

    Args:
        answer: The answer.
        timeout_ms: The limit that was sent, in milliseconds.
        max_output_bytes: UTF-8 bytes to keep of each stream.

    Raises:
        ServiceError: The server failed, refused, or did not follow the protocol.
    """
    if answer.status == 200:
        return success_verdict(parse_success(answer), timeout_ms=timeout_ms, max_output_bytes=max_output_bytes)
    error, details = _server_message(answer)
    timed_out = answer.status == 408 and not answer.not_started
    if timed_out or (answer.status == 500 and re.search("timeout|timed out", f"{error} {details}", re.IGNORECASE)):
        stderr, was_cut = cut_text(details, max_output_bytes)
        truncated = frozenset({"stderr"} if was_cut else ())
        return Verdict(outcome=Outcome.TIMEOUT, output=ExecutionOutput(stderr=stderr), truncated=truncated)
    raise_for_status(answer)
    raise AssertionError("every status but 200 raises")


def raise_for_status(answer: Answer) -> None:
    """Raise the error of a status other than 200; return for 200.

    Raises:
        OverloadedError: 429 or 503.
        RejectedError: Another 4xx.
        ServerError: Another 5xx.
        ProtocolError: Another status: the protocol has neither redirects nor other successes.
    """
    status = answer.status
    if status == 200:
        return
    error, details = _server_message(answer)
    reason = ": ".join(part[:300] for part in (error, details) if part) or "no reason given"
    if status in (429, 503):
        overloaded = OverloadedError(
            f"the FaaS is overloaded (HTTP {status}): {reason}; lower the concurrency or add replicas",
            sent="yes",
            status=status,
        )
        overloaded.retry_after_s, overloaded.not_started = answer.retry_after_s, answer.not_started
        raise overloaded
    failure: RejectedError | ServerError
    if 400 <= status < 500:
        failure = RejectedError(f"the FaaS refused the request (HTTP {status}): {reason}", sent="yes", status=status)
    elif 500 <= status < 600:
        failure = ServerError(f"the FaaS failed (HTTP {status}): {reason}; see its logs", sent="yes", status=status)
    else:
        raise ProtocolError(
            f"the FaaS answered HTTP {status}, which is not part of its protocol; check the URL",
            sent="yes",
            status=status,
        )
    failure.error, failure.details = error, details
    raise failure


def parse_success(answer: Answer) -> Success:
    """Check a 200 answer; raise ServerError if it reports a failure, ProtocolError if it is malformed."""
    body = decode_object(answer.body)
    if body.get("error"):
        error, details = _text(body["error"]), _text(body.get("details"))
        failure = ServerError(f"the FaaS reports a failure: {error[:300]}; see its logs", sent="yes", status=200)
        failure.error, failure.details = error, details
        raise failure
    metadata = _check_type(body.get("metadata", {}), dict, "metadata")
    if "output" not in body:
        raise ProtocolError("the answer has no output", sent="yes", status=200)
    fields = _check_type(body["output"], dict, "output")
    texts = {name: _check_type(fields.get(name, ""), str, name) for name in STREAM_NAMES}
    # The embedded FaaS puts a notice into an empty stderr. It is not output of the program.
    if "notice" in body and _check_type(body["notice"], str, "notice") == texts["stderr"]:
        texts["stderr"] = ""
    named = _check_type(body.get("truncated", []), list, "truncated")
    if named and not all(name in STREAM_NAMES for name in named):
        raise ProtocolError("'truncated' in the answer names an unknown stream", sent="yes", status=200)
    exit_code, duration_ms = metadata.get("exit_code"), metadata.get("duration")
    if exit_code is not None:
        _check_range(_check_type(exit_code, int, "exit_code"), "exit_code")
    if duration_ms is not None:
        if type(duration_ms) is not int:
            _check_type(duration_ms, float, "duration")
        _check_range(duration_ms, "duration")
        duration_ms = float(duration_ms)
    declared = _declared_outcome(body) if "outcome" in body else None
    of_js_faas = declared is None and exit_code is None and metadata.get("language") in (None, "javascript")
    return Success(
        texts=texts,
        truncated=frozenset(named),
        metadata=metadata,
        exit_code=exit_code,
        duration_ms=duration_ms,
        killed=of_js_faas and _unpack_js_report(texts),
        declared=declared,
    )


def _unpack_js_report(texts: dict[str, str]) -> bool:
    """Replace the report of js-faas in stdout by the streams in it; return whether there is one.

    js-faas prints the report on the process's own stdout once the script has run, before anything that the script
    scheduled. When the process then exits with a code other than 0, or is killed, the server returns its whole stdout
    unchanged. When it ends with 0, the server removes the report.
    """
    line, _, rest = texts["stdout"].partition("\n")
    if texts["ret_val"] or not line.startswith(_REPORT_START):
        return False
    try:
        report = strict_json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(report, dict) or list(report) != list(STREAM_NAMES):
        return False
    if not all(isinstance(text, str) for text in report.values()):
        return False
    texts.update(stdout=report["stdout"] + rest, stderr=report["stderr"] + texts["stderr"], ret_val=report["ret_val"])
    return True


def success_verdict(success: Success, *, timeout_ms: float, max_output_bytes: int) -> Verdict:
    """Return the verdict on a 200 answer; see `read_verdict`."""
    texts, truncated = success.texts, success.truncated
    for name, text in texts.items():
        texts[name], was_cut = cut_text(text, max_output_bytes)
        if was_cut:
            truncated |= {name}
    output = ExecutionOutput(texts["stdout"], texts["stderr"], texts["ret_val"])
    outcome, user_error = success.declared or _inferred_outcome(output, success, timeout_ms)
    return Verdict(
        outcome=outcome,
        output=output,
        error=user_error,
        exit_code=success.exit_code,
        truncated=truncated,
        duration_ms=success.duration_ms,
        metadata=success.metadata,
    )


def _declared_outcome(body: dict[str, Any]) -> tuple[Outcome, UserError | None]:
    """Return the outcome and the error in the answer of the embedded FaaS."""
    try:
        outcome = Outcome(body["outcome"])
    except ValueError:
        raise ProtocolError("'outcome' in the answer is unknown", sent="yes", status=200) from None
    info = body.get("error_info")
    if info is None:
        return outcome, None
    _check_type(info, dict, "error_info")
    name, message, traceback = (_check_type(info.get(key, ""), str, key) for key in ("name", "message", "traceback"))
    return outcome, UserError(name, message, traceback)


def _inferred_outcome(output: ExecutionOutput, success: Success, timeout_ms: float) -> tuple[Outcome, UserError | None]:
    """Return the outcome and the error of an answer of a reference server, as described at the top of this file."""
    metadata, exit_code = success.metadata, success.exit_code
    silent = exit_code != 0 and not (output.stdout or output.stderr or output.ret_val)
    if metadata.get("timed_out") is True or ((silent or success.killed) and success.used_up(timeout_ms)):
        return Outcome.TIMEOUT, None
    if success.killed:
        return Outcome.CRASHED, None
    if exit_code:
        error = _python_error(output.stderr)
        if error is not None:
            return (Outcome.SYNTAX_ERROR if error.name in _SYNTAX_ERRORS else Outcome.USER_ERROR), error
        # python-faas drops most tracebacks. Its status still distinguishes an exception from a dead process.
        raised = output.stderr.strip() or metadata.get("status") == "error"
        return (Outcome.USER_ERROR if raised else Outcome.CRASHED), None
    if exit_code is None and (error := _js_error(output.stderr)) is not None:
        parse_error = error.name == "SyntaxError" and error.traceback.count("eval at <anonymous> (eval at") == 0
        return (Outcome.SYNTAX_ERROR if parse_error else Outcome.USER_ERROR), error
    return Outcome.OK, None


def _python_error(stderr: str) -> UserError | None:
    """Return the exception in a Python traceback, which is its last line without indentation."""
    if "Traceback (most recent call last)" not in stderr and "SyntaxError" not in stderr:
        return None
    begin = stderr.find("Traceback (most recent call last)")
    traceback = stderr[max(begin, 0) :]
    for line in reversed(traceback.splitlines()):
        match = _EXCEPTION_LINE.fullmatch(line)
        if match and not line.startswith(" ") and line[:1].isalpha():
            return UserError(match["name"].rpartition(".")[2], match["message"] or "", traceback)
    return None


def _js_error(stderr: str) -> UserError | None:
    """Return the exception in a stack that ends in frames of js-faas, which evaluates programs in a temp.js."""
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
            return UserError(match["name"], message, "\n".join(lines[index:]))
    return None


def _server_message(answer: Answer) -> tuple[str, str]:
    """Return `error` and `details` of a failure; or "" and the beginning of a body that is not a JSON object."""
    try:
        body = decode_object(answer.body)
    except ProtocolError:
        return "", answer.body[:500].decode("utf-8", "replace").strip()
    return _text(body.get("error")), _text(body.get("details"))


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)[:500]


def _check_type(value: Any, kind: type[T], name: str) -> T:
    """Return a value decoded from JSON; raise ProtocolError if it has another type. A bool is not an int here."""
    if type(value) is not kind:
        raise ProtocolError(f"{name} in the answer has the wrong type: {type(value).__name__}", sent="yes", status=200)
    return value


def _check_range(value: float, name: str) -> None:
    if not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
        raise ProtocolError(f"{name} in the answer is out of range", sent="yes", status=200)


def decode_validation(body: bytes) -> ValidationResult:
    """Return the result in an answer of `POST /validate_code`, which the reference servers do not have.

    Raises:
        ProtocolError: The answer is malformed.
    """
    fields = decode_object(body)
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
    """Decode a JSON object strictly.

    Raises:
        ProtocolError: The body is not UTF-8, not JSON (which excludes NaN, Infinity and numbers too large for a float),
            too deep, or not an object.
    """
    try:
        value = strict_json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the answer is not UTF-8 (byte {error.start})", sent="yes") from None
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the answer is not JSON: {str(error)[:200]}", sent="yes") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"the answer is JSON, but not an object: {type(value).__name__}", sent="yes")
    return value
