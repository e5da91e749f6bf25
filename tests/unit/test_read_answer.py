"""`read_answer` turns answers of servers into results or errors. Some answers were recorded from the real servers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from faasrt import (
    ErrorInfo,
    ExecutionResult,
    FaasrtError,
    Language,
    Outcome,
    OverloadedError,
    ProtocolError,
    RejectedError,
    SandboxConfig,
    ServerError,
)
from faasrt.protocol.answer import Answer, max_answer_bytes, raise_for_status, read_answer
from faasrt.protocol.execution import Execution
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program
from support.package import WIRE

TRACEBACK = 'Traceback (most recent call last):\n  File "main.py", line 1, in <module>\nValueError: bad\n'

# The correct outcomes of the recorded answers, decided by hand. All other cases are OK.
PYTHON_CASES = {
    "trailing expression": Outcome.USER_ERROR,
    "uncaught exception": Outcome.USER_ERROR,
    "syntax error": Outcome.USER_ERROR,  # the server drops the message, so it cannot be recognized as a syntax error
    "exit code 3": Outcome.USER_ERROR,
    "apostrophes in comments": Outcome.USER_ERROR,
    "stdin read": Outcome.USER_ERROR,
    "timeout is a string": Outcome.USER_ERROR,
    "negative timeout": Outcome.USER_ERROR,
    "empty code": RejectedError,
    "no code": RejectedError,
    "wrong language": RejectedError,
    "not json": RejectedError,
    "code is a number": RejectedError,
    "GET /nope": RejectedError,
}
JS_CASES = {
    "uncaught error": Outcome.USER_ERROR,
    "throw a string": Outcome.OK,  # the answer is the same as for console.error("just text")
    "syntax error": Outcome.SYNTAX_ERROR,
    "top-level return": Outcome.SYNTAX_ERROR,
    "top-level await": Outcome.SYNTAX_ERROR,
    "typescript types": Outcome.SYNTAX_ERROR,
    "import statement": Outcome.SYNTAX_ERROR,
    "infinite loop, timeout 1000": Outcome.TIMEOUT,
    "empty code": RejectedError,
    "no code": RejectedError,
    "wrong language": RejectedError,
    "not json": ServerError,
    "GET /nope": RejectedError,
}
NOT_EXECUTIONS = {"GET /health", "GET /metrics"}


def recorded() -> list[Any]:
    cases = []
    for name, expectations in (("python", PYTHON_CASES), ("js", JS_CASES)):
        for line in (WIRE / f"{name}-faas.jsonl").read_text().splitlines():
            record = json.loads(line)
            expected = (
                ProtocolError if record["case"] in NOT_EXECUTIONS else expectations.get(record["case"], Outcome.OK)
            )
            cases.append(pytest.param(record, expected, id=f"{name}: {record['case']}"))
    return cases


@pytest.mark.parametrize(("record", "expected"), recorded())
def test_recorded_answers(record: dict[str, Any], expected: Any) -> None:
    """Each recorded answer gives the outcome or the error that was decided by hand."""
    response = record["response"]
    body = response.encode() if isinstance(response, str) else json.dumps(response).encode()
    timeout = record.get("request", {}).get("timeout")
    timeout_ms = timeout if isinstance(timeout, int) and timeout > 0 else 10_000
    answer = Answer(status=record["status"], body=body)
    if isinstance(expected, Outcome):
        result = read_answer(answer, None, timeout_ms=timeout_ms, max_output_bytes=2**20).result()
        assert result.outcome is expected
        assert result.stdout == response["output"]["stdout"]
        assert result.ret_val == response["output"]["ret_val"]
        assert dict(result.metadata) == response["metadata"]
    else:
        with pytest.raises(expected):
            read_answer(answer, None, timeout_ms=timeout_ms, max_output_bytes=2**20)


def test_errors_are_read_from_recorded_answers() -> None:
    """The name and message of the error are read from the stack trace in stderr."""
    by_case = {json.loads(line)["case"]: json.loads(line) for line in (WIRE / "js-faas.jsonl").read_text().splitlines()}
    result = result_of(by_case["uncaught error"]["response"])
    assert result.error is not None
    assert (result.error.name, result.error.message) == ("Error", "boom")
    by_case = {
        json.loads(line)["case"]: json.loads(line) for line in (WIRE / "python-faas.jsonl").read_text().splitlines()
    }
    result = result_of(by_case["exit code 3"]["response"])
    assert result.error is not None
    assert (result.error.name, result.error.message) == ("SystemExit", "3")


def result_of(
    body: Any, status: int = 200, *, timeout_ms: int = 1_000, max_output_bytes: int = 2**20
) -> ExecutionResult:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answer(status=status, body=data)
    return read_answer(answer, None, timeout_ms=timeout_ms, max_output_bytes=max_output_bytes).result()


def output(stdout: str = "", stderr: str = "", ret_val: str = "") -> dict[str, str]:
    return {"stdout": stdout, "stderr": stderr, "ret_val": ret_val}


@pytest.mark.parametrize(
    ("body", "status", "outcome"),
    [
        ({"output": output("x")}, 200, Outcome.OK),
        ({"output": output("x"), "metadata": {"exit_code": 0}}, 200, Outcome.OK),
        ({"output": output("x"), "metadata": {"timed_out": True}}, 200, Outcome.TIMEOUT),
        ({"output": output(), "metadata": {"duration": 1000}}, 200, Outcome.TIMEOUT),
        ({"output": output("x"), "metadata": {"duration": 1000}}, 200, Outcome.OK),
        ({"output": output(), "metadata": {"duration": 1000, "exit_code": 0}}, 200, Outcome.OK),
        ({"output": output(), "metadata": {"duration": 1000, "exit_code": 1}}, 200, Outcome.TIMEOUT),
        ({"output": output(), "metadata": {"duration": 1000, "runtime": "pyodide-deno"}}, 200, Outcome.OK),
        ({"output": output(), "metadata": {"duration": 999}}, 200, Outcome.OK),
        ({"output": output(stderr=TRACEBACK), "metadata": {"exit_code": 1}}, 200, Outcome.USER_ERROR),
        ({"output": output(stderr="boom"), "metadata": {"exit_code": 2}}, 200, Outcome.USER_ERROR),
        ({"output": output(), "metadata": {"exit_code": 1, "status": "error"}}, 200, Outcome.USER_ERROR),
        ({"output": output(), "metadata": {"exit_code": 139}}, 200, Outcome.CRASHED),
        (
            {"output": output(stderr='  File "main.py", line 1\nSyntaxError: bad\n'), "metadata": {"exit_code": 1}},
            200,
            Outcome.SYNTAX_ERROR,
        ),
        *(({"output": output(), "outcome": outcome.value}, 200, outcome) for outcome in Outcome),
    ],
)
def test_answers_that_state_an_outcome_give_that_outcome(body: Any, status: int, outcome: Outcome) -> None:
    """Answers that say how the program ended give the right outcome."""
    assert result_of(body, status).outcome is outcome


LOSSY, REFERENCE, LOSSLESS = EndpointProfile(), EndpointProfile(reference=True), EndpointProfile(lossless=True)
TIMED_OUT = {"error": "Execution failed", "details": "Timed Out after 5 s"}
HTML = b"<html>Request Time-out: timed out</html>"


@pytest.mark.parametrize(
    ("profile", "language", "elapsed_ms", "status", "body", "expected"),
    [
        (LOSSY, "python", 1_000, 408, {"error": "Execution timeout"}, Outcome.TIMEOUT),
        (LOSSY, "python", 1_000, 500, TIMED_OUT, Outcome.TIMEOUT),
        (EndpointProfile(reference=True, cold_start=True), "python", 1_000, 408, TIMED_OUT, Outcome.TIMEOUT),
        (REFERENCE, "js", 1_500, 408, TIMED_OUT, Outcome.TIMEOUT),  # the limit that was sent has a margin of 500 ms
        (REFERENCE, "js", 1_499, 408, TIMED_OUT, ServerError),
        (LOSSY, "python", 999, 408, TIMED_OUT, ServerError),
        (LOSSY, "python", 999, 500, TIMED_OUT, ServerError),
        (LOSSY, "python", 60_000, 408, HTML, ServerError),
        (LOSSY, "python", 60_000, 408, {}, ServerError),
        (LOSSY, "python", 60_000, 500, HTML, ServerError),
        (LOSSY, "python", 60_000, 500, {"error": "timeout", "details": "out of disk"}, ServerError),
        (LOSSY, "python", 60_000, 504, TIMED_OUT, ServerError),
        (LOSSY, "python", 60_000, 400, TIMED_OUT, RejectedError),
        (LOSSLESS, "python", 60_000, 408, TIMED_OUT, ServerError),
        (LOSSLESS, "python", 60_000, 500, TIMED_OUT, ServerError),
    ],
)
def test_a_failure_is_a_timeout_only_from_a_lossy_server_after_the_time_limit(
    profile: EndpointProfile, language: str, elapsed_ms: float, status: int, body: Any, expected: Any
) -> None:
    """A 408, or a 500 that mentions a timeout, is an error if it comes early, or from a proxy or a lossless server."""
    run = Program.checked(Language.parse(language), "1", SandboxConfig(), timeout_ms=1_000)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answer(status=status, body=data, elapsed_ms=elapsed_ms)
    request = Execution(program=run, mode="auto").request(profile, 1_000, "http://faas:8000")
    if isinstance(expected, Outcome):
        result = request.read(answer).result()
        assert result.outcome is expected
        assert result.error is not None
        assert result.error.name == "Timeout"
    else:
        with pytest.raises(expected) as caught:
            request.read(answer)
        assert (caught.value.status, caught.value.sent) == (status, "yes")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"error": "pool exhausted"}, 200, ServerError),
        ({"error": "x"}, 400, RejectedError),
        ({"error": "x"}, 401, RejectedError),
        ({"error": "x"}, 404, RejectedError),
        ({"error": "Execution timeout", "details": "x"}, 408, ServerError),
        ({"error": "Execution failed", "details": "Timed Out after 5 s"}, 500, ServerError),
        ({"error": "x"}, 429, OverloadedError),
        ({"error": "x"}, 503, OverloadedError),
        ({"error": "Execution failed", "details": "out of disk"}, 500, ServerError),
        (b"<html>Bad Gateway</html>", 502, ServerError),
        ({"error": "timeout"}, 504, ServerError),
        (b"", 302, ProtocolError),
        (b"", 204, ProtocolError),
        ({"output": output()}, 201, ProtocolError),
        (b"", 200, ProtocolError),
        (b"null", 200, ProtocolError),
        (b"[]", 200, ProtocolError),
        (b'"text"', 200, ProtocolError),
        (b"\xff\xfe", 200, ProtocolError),
        (b"\xef\xbb\xbf{}", 200, ProtocolError),
        ({}, 200, ProtocolError),
        ({"output": None}, 200, ProtocolError),
        ({"output": []}, 200, ProtocolError),
        ({"output": "x"}, 200, ProtocolError),
        ({"output": {"stdout": 5}}, 200, ProtocolError),
        ({"output": {"stdout": None}}, 200, ProtocolError),
        ({"output": output(), "metadata": []}, 200, ProtocolError),
        ({"output": output(), "metadata": {"exit_code": "1"}}, 200, ProtocolError),
        ({"output": output(), "metadata": {"exit_code": True}}, 200, ProtocolError),
        ({"output": output(), "outcome": "FINE"}, 200, ProtocolError),
        ({"output": output(), "outcome": ["OK"]}, 200, ProtocolError),
        ({"output": output(), "outcome": "OK", "error_info": 3}, 200, ProtocolError),
        ({"output": output(), "outcome": "OK", "truncated": ["stdin"]}, 200, ProtocolError),
        ({"output": output(), "outcome": "OK", "truncated": [[]]}, 200, ProtocolError),
        ({"output": output(), "outcome": "TIMEOUT", "notice": None}, 200, ProtocolError),
        ({"output": output(), "outcome": "TIMEOUT", "notice": ["x"]}, 200, ProtocolError),
        (b'{"output": {"stdout": NaN}}', 200, ProtocolError),
        (b'{"output": {}, "metadata": {"duration": 1e999}}', 200, ProtocolError),
        (b'{"output": {}, "metadata": {"duration": ' + b"9" * 10_000 + b"}}", 200, ProtocolError),
        (b"[" * 200_000, 200, ProtocolError),
        (b'{"a":' * 200_000, 200, ProtocolError),
        (b'{"output": {"stdout": "x"', 200, ProtocolError),
    ],
)
def test_failures_of_the_server_are_errors(body: Any, status: int, kind: type[FaasrtError]) -> None:
    """Answers without an outcome, and invalid answers, raise the right error."""
    with pytest.raises(kind) as info:
        result_of(body, status)
    assert type(info.value) is kind


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"output": []}, "output"),
        *(({"output": {name: 5}}, name) for name in ("stdout", "stderr", "ret_val")),
        ({"output": {}, "metadata": []}, "metadata"),
        *(({"output": {}, "metadata": {name: "1"}}, name) for name in ("exit_code", "duration", "waited_ms")),
        *(({"output": {}, "outcome": "OK", name: 5}, name) for name in ("notice", "truncated", "error_info", "files")),
        ({"output": {}, "outcome": "OK", "displays": [], "session": 5}, "session"),
        *(
            ({"output": {}, "outcome": "OK", "error_info": {name: 5}}, name)
            for name in ("name", "message", "traceback")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_the_field_of_the_wrong_type(body: Any, name: str) -> None:
    """Each field of an answer has one type, or is missing."""
    with pytest.raises(ProtocolError, match=rf"\b{name} in the answer has the wrong type"):
        result_of(body)


@pytest.mark.parametrize(("name", "value"), [("exit_code", 10**15 + 1), ("duration", -1.1e15)])
def test_an_error_names_the_number_that_is_out_of_range(name: str, value: float) -> None:
    """Numbers of a server are at most 10**15, so that a program's exit code or time is a sensible one."""
    with pytest.raises(ProtocolError, match=f"{name} in the answer is out of range"):
        result_of({"output": {}, "metadata": {name: value}})
    result_of({"output": {}, "metadata": {name: 10**15}})  # the largest one


def test_the_largest_answer_that_is_read() -> None:
    """It has room for all streams at their limit, and for files and displays, whose size JSON can double."""
    sizes = [max_answer_bytes(1_000, collects=collects, displays=shown) for collects in (0, 1) for shown in (0, 1)]
    assert sizes == [262_144 + size for size in (4_000, 6_000, 6_000, 8_000)]


def test_errors_contain_the_message_of_the_server() -> None:
    """Errors contain the fields `error` and `details`, the start of an HTML page, and Retry-After."""
    with pytest.raises(ServerError) as info:
        result_of({"error": "Execution failed", "details": "no disk"}, 500)
    assert (info.value.error, info.value.details, info.value.status) == ("Execution failed", "no disk", 500)
    with pytest.raises(ServerError, match="Bad Gateway") as info:
        result_of(b"<html>Bad Gateway</html>" + b"x" * 10_000, 502)
    assert len(info.value.details) == 500
    with pytest.raises(OverloadedError) as overloaded:
        raise_for_status(Answer(status=429, body=b"{}", retry_after_s=7.0))
    assert overloaded.value.retry_after_s == 7.0


def test_streams_are_truncated() -> None:
    """The start and the end stay, with a marker between them. The limit counts UTF-8 bytes."""
    result = result_of({"output": output(stdout="a" * 500 + "é" * 500, ret_val="ok")}, max_output_bytes=200)
    assert result.truncated == {"stdout"}
    assert len(result.stdout.encode()) <= 200
    assert result.stdout.startswith("aaa")
    assert result.stdout.endswith("ééé")
    assert "bytes cut" in result.stdout


def test_the_last_duplicate_key_counts() -> None:
    """If a key occurs twice in a JSON object, the last value is used, as in Python."""
    assert result_of(b'{"output": {"stdout": "a", "stdout": "b"}}').stdout == "b"


@pytest.mark.parametrize(
    ("stderr", "notice", "kept"),
    [
        ("faasrt: crashed\n", "faasrt: crashed\n", ""),
        ("faasrt: crashed\n", "faasrt: crashed", "faasrt: crashed\n"),
        ("mine", "faasrt: crashed\n", "mine"),
        ("", "", ""),
    ],
)
def test_the_notice_of_the_server_is_removed_from_stderr(stderr: str, notice: str, kept: str) -> None:
    """The embedded FaaS writes a notice to an empty stderr. It is removed; output of the program is not."""
    body = {"output": {"stdout": "", "stderr": stderr, "ret_val": ""}, "outcome": "CRASHED", "notice": notice}
    answer = Answer(status=200, body=json.dumps(body).encode())
    result = read_answer(answer, None, timeout_ms=1_000, max_output_bytes=20).result()
    assert (result.stderr, result.truncated) == (kept, frozenset())


def test_lone_surrogates_are_kept() -> None:
    """Lone surrogates are valid escapes in JSON, and stay in the output."""
    assert result_of(b'{"output": {"stdout": "\\ud800"}}').stdout == "\ud800"


def test_error_info_of_the_embedded_faas_is_kept() -> None:
    """The embedded FaaS reports the exception, so it need not be read from stderr."""
    info = {"name": "ValueError", "message": "bad", "traceback": TRACEBACK}
    result = result_of(
        {"output": output(), "outcome": "USER_ERROR", "error_info": info, "metadata": {"exit_code": None}}
    )
    assert result.error == ErrorInfo("ValueError", "bad", TRACEBACK)
    assert result.exit_code is None
