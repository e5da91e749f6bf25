"""From an answer alone to a verdict: an `ExecutionResult` about the code, or an error about the server.

The table (the first row that fits wins):

    200 with a top-level `error`                      ServerError
    200 with an `outcome` (our own FaaS)              that outcome
    200, timed_out, or no output at the time limit    TIMEOUT
    200, stdout begins with js-faas's own report      the process was killed: TIMEOUT at the time limit, else CRASHED
    200, exit code not 0                              USER_ERROR; SYNTAX_ERROR when stderr says so; CRASHED when
                                                      nothing says why
    200, stderr ends in js-faas's own stack           USER_ERROR or SYNTAX_ERROR
    200 otherwise                                     OK
    408, or 500 whose words speak of a timeout        TIMEOUT; not a 408 which says that nothing was started
    429, 503                                          OverloadedError
    other 4xx                                         RejectedError
    other 5xx                                         ServerError
    anything else                                     ProtocolError

`faasrt.protocol.executions` reads answers to enveloped requests, where a frame says more, and a reference server that
returns no announcement of the guest program did not start its interpreter (ServerError).

Source: the rows for 200 and 500 follow what python-faas and js-faas were seen to answer.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import attrs

from faasrt import strict_json
from faasrt.errors import OverloadedError, ProtocolError, RejectedError, ServerError
from faasrt.protocol.messages import decode_object
from faasrt.protocol.streams import cut_text
from faasrt.results import ExecutionOutput, ExecutionResult, Outcome, UserError

_LARGEST_NUMBER = 1e15
_OUTCOMES = {str(outcome): outcome for outcome in Outcome}
_STREAMS = ("stdout", "stderr", "ret_val")
_REPORT_START = '{"stdout":"'
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")
T = TypeVar("T")
_EXCEPTION_LINE = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?")


@attrs.define(kw_only=True)
class Answer:
    """What a server answered, unread.

    Attributes:
        status: The HTTP status.
        body: The whole body.
        retry_after_s: What `Retry-After` asks for, in seconds, or None.
        not_started: Whether the server says that it did not start the code.
    """

    status: int
    body: bytes
    retry_after_s: float | None = None
    not_started: bool = False


@attrs.define(kw_only=True)
class Success:
    """A 200 answer, checked.

    Attributes:
        texts: The three streams by name, as long as they came.
        truncated: The streams that the server cut.
        metadata: The server's metadata, untouched.
        exit_code: The exit code, where it was told.
        duration_ms: The server's figure, where it was told.
        killed: Whether js-faas says, by the report in its stdout, that the process did not end by itself.
        declared: The verdict of a server that gives one, which our own does.
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
        return self.duration_ms is not None and self.duration_ms >= timeout_ms


def judge(answer: Answer, *, timeout_ms: float, max_output_bytes: int) -> ExecutionResult:
    """Give the verdict on an answer to `/run_code`.

    Args:
        answer: The answer.
        timeout_ms: The limit that was sent, in milliseconds.
        max_output_bytes: UTF-8 bytes to keep of each stream.

    Returns:
        A result that says nothing yet of timings, attempts and endpoint.

    Raises:
        ServiceError: The server failed, refused, or does not speak the protocol.
    """
    if answer.status == 200:
        return judge_success(parse_success(answer), timeout_ms=timeout_ms, max_output_bytes=max_output_bytes)
    error, details = _server_words(answer)
    ran_out = answer.status == 408 and not answer.not_started
    if ran_out or (answer.status == 500 and _speaks_of_timeout(f"{error} {details}")):
        stderr, was_cut = cut_text(details, max_output_bytes)
        truncated = frozenset({"stderr"} if was_cut else ())
        return ExecutionResult(outcome=Outcome.TIMEOUT, output=ExecutionOutput(stderr=stderr), truncated=truncated)
    raise_for_status(answer)
    raise AssertionError("every status but 200 raises")


def raise_for_status(answer: Answer) -> None:
    """Raise the error that a status other than 200 stands for; return for 200.

    Raises:
        OverloadedError: 429 or 503.
        RejectedError: Another 4xx.
        ServerError: Another 5xx.
        ProtocolError: Anything else: the protocol knows no redirects and no other success.
    """
    status = answer.status
    if status == 200:
        return
    error, details = _server_words(answer)
    words = ": ".join(part[:300] for part in (error, details) if part) or "it gave no reason"
    if status in (429, 503):
        overloaded = OverloadedError(
            f"the FaaS is overloaded (HTTP {status}): {words}; lower the concurrency or add replicas",
            sent="yes",
            status=status,
        )
        overloaded.retry_after_s, overloaded.not_started = answer.retry_after_s, answer.not_started
        raise overloaded
    failure: RejectedError | ServerError
    if 400 <= status < 500:
        failure = RejectedError(f"the FaaS refused the request (HTTP {status}): {words}", sent="yes", status=status)
    elif 500 <= status < 600:
        failure = ServerError(f"the FaaS failed (HTTP {status}): {words}; see its logs", sent="yes", status=status)
    else:
        raise ProtocolError(
            f"the FaaS answered HTTP {status}, which its protocol does not know; check the URL",
            sent="yes",
            status=status,
        )
    failure.error, failure.details = error, details
    raise failure


def parse_success(answer: Answer) -> Success:
    """Check a 200 answer.

    Raises:
        ServerError: It reports a failure.
        ProtocolError: It is not the protocol.
    """
    body = decode_object(answer.body)
    if body.get("error"):
        error, details = _text(body["error"]), _text(body.get("details"))
        failure = ServerError(f"the FaaS reports a failure: {error[:300]}; see its logs", sent="yes", status=200)
        failure.error, failure.details = error, details
        raise failure
    metadata = _checked(body.get("metadata", {}), dict, "metadata")
    if "output" not in body:
        raise ProtocolError("the answer has no output", sent="yes", status=200)
    fields = _checked(body["output"], dict, "output")
    texts = {}
    for name in _STREAMS:
        texts[name] = _checked(fields.get(name, ""), str, name)
    # Our own FaaS says on an empty stderr how a program ended: that is not the program's.
    if "notice" in body and _checked(body["notice"], str, "notice") == texts["stderr"]:
        texts["stderr"] = ""
    named = _checked(body.get("truncated", []), list, "truncated")
    if named and not all(name in _STREAMS for name in named):
        raise ProtocolError("'truncated' in the answer names an unknown stream", sent="yes", status=200)
    exit_code, duration_ms = metadata.get("exit_code"), metadata.get("duration")
    if exit_code is not None:
        _check_range(_checked(exit_code, int, "exit_code"), "exit_code")
    if duration_ms is not None:
        if type(duration_ms) is not int:
            _checked(duration_ms, float, "duration")
        _check_range(duration_ms, "duration")
        duration_ms = float(duration_ms)
    declared = _declared(body) if "outcome" in body else None
    of_js_faas = declared is None and exit_code is None and metadata.get("language") in (None, "javascript")
    return Success(
        texts=texts,
        truncated=frozenset(named),
        metadata=metadata,
        exit_code=exit_code,
        duration_ms=duration_ms,
        killed=of_js_faas and _take_report(texts),
        declared=declared,
    )


def _take_report(texts: dict[str, str]) -> bool:
    """Replace the report of js-faas in stdout by the streams in it; return whether there is one.

    js-faas prints the report on the process's own stdout once the script has run, before anything that the script
    scheduled. When the process then exits with another code than 0, or is killed, the server returns its whole stdout
    as it is. A process that ended well never shows such a line: the server takes the last one for its answer.
    """
    line, _, rest = texts["stdout"].partition("\n")
    if texts["ret_val"] or not line.startswith(_REPORT_START):
        return False
    try:
        report = strict_json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(report, dict) or list(report) != list(_STREAMS):
        return False
    if not all(isinstance(text, str) for text in report.values()):
        return False
    texts.update(stdout=report["stdout"] + rest, stderr=report["stderr"] + texts["stderr"], ret_val=report["ret_val"])
    return True


def judge_success(success: Success, *, timeout_ms: float, max_output_bytes: int) -> ExecutionResult:
    """Give the verdict on a 200 answer; see `judge`."""
    texts, truncated = success.texts, success.truncated
    for name, text in texts.items():
        if 4 * len(text) > max_output_bytes:  # or it is short enough in any case
            texts[name], was_cut = cut_text(text, max_output_bytes)
            if was_cut:
                truncated |= {name}
    output = ExecutionOutput(texts["stdout"], texts["stderr"], texts["ret_val"])
    outcome, user_error = success.declared or _inferred(output, success, timeout_ms)
    return ExecutionResult(
        outcome=outcome,
        output=output,
        error=user_error,
        exit_code=success.exit_code,
        truncated=truncated,
        duration_ms=success.duration_ms,
        metadata=success.metadata,
    )


def _declared(body: dict[str, Any]) -> tuple[Outcome, UserError | None]:
    """The verdict of a server that says it by itself."""
    declared = body["outcome"]
    outcome = _OUTCOMES.get(declared) if isinstance(declared, str) else None
    if outcome is None:
        raise ProtocolError("'outcome' in the answer is unknown", sent="yes", status=200)
    info = body.get("error_info")
    if info is None:
        return outcome, None
    _checked(info, dict, "error_info")
    return outcome, UserError(*(_checked(info.get(name, ""), str, name) for name in ("name", "message", "traceback")))


def _inferred(output: ExecutionOutput, success: Success, timeout_ms: float) -> tuple[Outcome, UserError | None]:
    """The verdict that a careful person gives to an answer of the reference servers."""
    metadata, exit_code = success.metadata, success.exit_code
    silent = not (output.stdout or output.stderr or output.ret_val)
    if metadata.get("timed_out") is True or ((silent or success.killed) and success.used_up(timeout_ms)):
        return Outcome.TIMEOUT, None
    if success.killed:
        return Outcome.CRASHED, None
    if exit_code:
        error = _python_error(output.stderr)
        if error is not None:
            return (Outcome.SYNTAX_ERROR if error.name in _SYNTAX_ERRORS else Outcome.USER_ERROR), error
        # python-faas drops most tracebacks; its status then still tells an exception from a dead process.
        said_so = output.stderr.strip() or metadata.get("status") == "error"
        return (Outcome.USER_ERROR if said_so else Outcome.CRASHED), None
    if exit_code is None and (error := _js_faas_error(output.stderr)) is not None:
        parse_error = error.name == "SyntaxError" and error.traceback.count("eval at <anonymous> (eval at") == 0
        return (Outcome.SYNTAX_ERROR if parse_error else Outcome.USER_ERROR), error
    return Outcome.OK, None


def _python_error(stderr: str) -> UserError | None:
    """Read the exception off a Python traceback: its last line that is not indented."""
    if "Traceback (most recent call last)" not in stderr and "SyntaxError" not in stderr:
        return None
    begin = stderr.find("Traceback (most recent call last)")
    traceback = stderr[max(begin, 0) :]
    for line in reversed(traceback.splitlines()):
        match = _EXCEPTION_LINE.fullmatch(line)
        if match and not line.startswith(" ") and line[:1].isalpha():
            return UserError(match["name"].rpartition(".")[2], match["message"] or "", traceback)
    return None


def _js_faas_error(stderr: str) -> UserError | None:
    """Read the exception off a stack that ends in js-faas's own frames: it evaluates programs in a temp.js."""
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


def _speaks_of_timeout(words: str) -> bool:
    lowered = words.lower()
    return "timeout" in lowered or "timed out" in lowered


def _server_words(answer: Answer) -> tuple[str, str]:
    """The `error` and `details` of a failure; the beginning of the body where it is no JSON object."""
    try:
        body = decode_object(answer.body)
    except ProtocolError:
        return "", answer.body[:500].decode("utf-8", "replace").strip()
    return _text(body.get("error")), _text(body.get("details"))


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)[:500]


def _checked(value: Any, kind: type[T], name: str) -> T:
    """Give a value back, which JSON made of just this type: no subclass is to be expected, and a bool is no int."""
    if type(value) is not kind:
        raise ProtocolError(f"{name} in the answer has the wrong type: {type(value).__name__}", sent="yes", status=200)
    return value


def _check_range(value: float, name: str) -> None:
    if not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
        raise ProtocolError(f"{name} in the answer is out of range", sent="yes", status=200)
