"""Every recorded answer of SandboxFusion and Piston has the outcome that a careful person would give it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from faasrt import Language, SandboxConfig
from faasrt.client.cache import is_stored
from faasrt.errors import ProtocolError, ServerError, ServiceError
from faasrt.languages import parse_language
from faasrt.protocol import piston, sandboxfusion
from faasrt.protocol.answer import Answer
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.program import Program

WIRE = Path(__file__).parents[1] / "support" / "wire"
# Rows of routes that the client does not use, and a summary of 40 answers.
NOT_REPLAYED = {"/submit", "/run_jupyter", "/nothing", "/api/v2/nothing", "/"}
SANDBOXFUSION = {
    "python ok": "OK",
    "python stdout and stderr": "OK",
    "python exception": "USER_ERROR, exit code 1, ValueError",
    "python exit 3": "USER_ERROR, exit code 3",
    "python exit 0 early": "OK",
    "python syntax error": "SYNTAX_ERROR, exit code 1, SyntaxError",
    "python timeout cpu": "TIMEOUT",
    "python timeout cpu unflushed": "TIMEOUT",
    "python timeout sleep": "TIMEOUT",
    "python os._exit 7": "USER_ERROR, exit code 7",
    "python SIGKILL itself": "CRASHED, SIGKILL",
    "python SIGSEGV": "CRASHED, SIGSEGV",
    # The client sends no limit of the memory to SandboxFusion, so it takes no MemoryError for one.
    "python memory limit": "USER_ERROR, exit code 1, MemoryError",
    "python memory limit too small to start": "ServerError, sent yes",
    "python unicode": "OK",
    "python invalid utf-8 output": "OK, stdout cut",
    "python NUL and cr": "OK",
    "python stdin": "OK",
    "python no stdin": "OK",
    "python input at eof": "USER_ERROR, exit code 1, EOFError",
    "python files in and out": "OK",
    "python fetch file after failure": "USER_ERROR, exit code 1, ZeroDivisionError",
    "python 60 KB output": "OK",
    "python 150 KB output": "OK",
    "python 400 KB output": "OK, stdout cut",
    "python 2 MB output": "OUTPUT_LIMIT, OutputLimit, stdout cut",
    "python 2 MB stderr": "OUTPUT_LIMIT, OutputLimit, stderr cut",
    "python child outlives parent": "OK",
    "python network": "OK",
    "python reads host file": "OK",
    "nodejs ok": "OK",
    "nodejs throw": "USER_ERROR, exit code 1, TypeError",
    "nodejs exit 3": "USER_ERROR, exit code 3",
    "nodejs syntax error": "SYNTAX_ERROR, exit code 1, SyntaxError",
    "nodejs timeout": "TIMEOUT",
    "nodejs unhandled rejection": "USER_ERROR, exit code 1, Error",
    "nodejs stdin": "OK",
    "typescript ok": "OK",
    "typescript type error runs": "OK",
    "typescript syntax error": "SYNTAX_ERROR, exit code 1, Error",
    "typescript throw": "USER_ERROR, exit code 1, RangeError",
    "cpp ok": "OK",
    "cpp compile error": "SYNTAX_ERROR, exit code 1, CompileError",
    "cpp exit 3": "USER_ERROR, exit code 3",
    "cpp segfault": "CRASHED, SIGSEGV",
    "cpp abort": "CRASHED, SIGABRT",
    "cpp compile timeout": "SYNTAX_ERROR, CompileError",
    "cpp run timeout": "TIMEOUT",
    "bash ok": "USER_ERROR, exit code 4",
    "csharp, whose toolchain is missing": "ServerError, sent yes",
    "unknown language": "RejectedError, sent yes",
    "js is no language": "RejectedError, sent yes",
    "lone surrogate in code": "ServerError, sent yes",
    "timeout as text": "RejectedError, sent yes",
    "run_timeout 0": "TIMEOUT",
    "unknown fields are ignored": "OK",
    "files not base64": "OK",
    "file path escapes": "OK",
    "bad json": "RejectedError, sent yes",
    "no code": "RejectedError, sent yes",
    "sandbox error: memory limit beyond what the kernel takes": "ServerError, sent yes",
    "sandbox error: file name with NUL": "ServerError, sent maybe",
    "sandbox error: fetch of a directory path is skipped": "OK",
    "request of 20 MB": "OK",
    "negative run_timeout": "TIMEOUT",
    "return_code of python that prints to a closed stdout": "USER_ERROR, exit code 1, OSError",
    "pytest": "USER_ERROR, exit code 1",
    "sql": "ServerError, sent maybe",
}
PISTON = {
    "python ok": "OK",
    "python stdout and stderr": "OK",
    "python exception": "USER_ERROR, exit code 1, ValueError",
    "python exit 3": "USER_ERROR, exit code 3",
    "python syntax error": "SYNTAX_ERROR, exit code 1, SyntaxError",
    "python cpu timeout": "TIMEOUT",
    "python wall timeout, sleeping": "TIMEOUT",
    "python default timeout": "TIMEOUT",
    "python timeout above the limit": "RejectedError, sent yes",
    "python negative timeout": "RejectedError, sent yes",
    "python timeout as text": "RejectedError, sent yes",
    "python timeout 0": "OK",
    "python os._exit 7": "USER_ERROR, exit code 7",
    "python SIGKILL itself": "CRASHED, SIGKILL",
    "python SIGSEGV": "CRASHED, SIGSEGV",
    "python memory limit (here by address space)": "MEMORY_LIMIT, exit code 1",
    "python memory limit too small to start": "CRASHED, SIGSEGV",
    "python fork bomb stopped by --processes": "USER_ERROR, exit code 1, BlockingIOError",
    "python threads beyond --processes": "USER_ERROR, exit code 1, RuntimeError",
    "python unicode": "OK",
    # The service replaced characters by U+FFFD, and does not say so.
    "python unicode split over chunks": "OK",
    "python invalid utf-8": "OK",
    "python NUL and cr": "OK",
    "python stdin": "OK",
    "python no stdin": "OK",
    "python args": "OK",
    "python 1000 bytes of output": "OK",
    "python 1025 bytes of output": "OUTPUT_LIMIT, OutputLimit, stdout cut",
    "python 2 MB output": "OUTPUT_LIMIT, OutputLimit, stdout cut",
    "python 2 KB stderr then exit 0": "OUTPUT_LIMIT, OutputLimit, stderr cut",
    "python two writes, the second too much": "OUTPUT_LIMIT, OutputLimit, stdout cut",
    "python two files": "OK",
    "python network": "OK",
    "node ok": "OK",
    "node throw": "USER_ERROR, exit code 1, TypeError",
    "node exit 3": "USER_ERROR, exit code 3",
    "node syntax error": "SYNTAX_ERROR, exit code 1, SyntaxError",
    "node timeout": "TIMEOUT",
    "c++ ok": "OK",
    "c++ compile error": "SYNTAX_ERROR, exit code 1, CompileError",
    "c++ exit 3": "USER_ERROR, exit code 3",
    "c++ segfault": "CRASHED, SIGSEGV",
    "c++ abort": "CRASHED, SIGABRT",
    "c++ compile timeout": "SYNTAX_ERROR, CompileError",
    "unknown language": "RejectedError, sent yes",
    "unknown version": "RejectedError, sent yes",
    "no version": "RejectedError, sent yes",
    "no files": "RejectedError, sent yes",
    "empty files": "RejectedError, sent yes",
    "file path escapes": "ServerError, sent yes",
    "bad json": "RejectedError, sent yes",
    "request over 100 kB": "RejectedError, sent yes",
}
LANGUAGES = {"nodejs": Language.JAVASCRIPT, "js": Language.JAVASCRIPT}


def rows(name: str) -> dict[str, dict[str, Any]]:
    lines = (WIRE / f"{name}.jsonl").read_text().splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def whole(value: Any) -> Any:
    """Return a recorded value with its long texts, of which the recording has only the length, head and tail."""
    if isinstance(value, dict) and value.keys() == {"length", "head", "tail"}:
        middle = value["head"][-1] * (value["length"] - len(value["head"]) - len(value["tail"]))
        return value["head"] + middle + value["tail"]
    if isinstance(value, dict):
        return {key: whole(member) for key, member in value.items()}
    return value


def read(protocol: ServiceProtocol, row: dict[str, Any]) -> str:
    """Return the outcome of a recorded answer with its details, or the error and whether the code may have run."""
    request = row["request"] if isinstance(row["request"], dict) else {}
    language = str(request.get("language", "python")).lower()
    run = Program(
        language=LANGUAGES.get(language) or parse_language(language),
        code="1",
        timeout_ms=5_000,
        sandbox=SandboxConfig(),
        priority="normal",
        ext={},
    )
    body = row["response"] if row["response"] == "" else json.dumps(whole(row["response"]))
    try:
        answer = Answer(status=row["status"], body=body.encode())
        parsed = protocol.decode(answer, run, nonce=None, timeout_ms=5_000)
    except ServiceError as error:
        return f"{type(error).__name__}, sent {error.sent}"
    result = parsed.result()
    parts = [result.outcome.value]
    if result.exit_code:
        parts.append(f"exit code {result.exit_code}")
    if result.error is not None:
        parts.append(result.error.name)
    parts += [f"{name} cut" for name in sorted(result.truncated)]
    return ", ".join(parts)


@pytest.mark.parametrize(
    ("service", "protocol", "expected"),
    [("sandboxfusion", sandboxfusion.PROTOCOL, SANDBOXFUSION), ("piston", piston.PROTOCOL, PISTON)],
    ids=["sandboxfusion", "piston"],
)
def test_outcomes(service: str, protocol: ServiceProtocol, expected: dict[str, str]) -> None:
    """The outcomes of all programs are those of the tables, and every recorded row is in a table."""
    found, others = {}, set()
    for name, row in rows(service).items():
        if row["path"].endswith(protocol.run_path) and "summary" not in name:
            found[name] = read(protocol, row)
        elif not row["path"].endswith(protocol.health_path):
            others.add(row["path"])
    assert found == expected
    assert others <= NOT_REPLAYED | {protocol.run_path}


@pytest.mark.parametrize("service", ["sandboxfusion", "piston"])
def test_health(service: str) -> None:
    """The recorded answers about the health of a service mean that it is healthy."""
    protocol = {"sandboxfusion": sandboxfusion.PROTOCOL, "piston": piston.PROTOCOL}[service]
    row = next(row for row in rows(service).values() if row["path"].endswith(protocol.health_path))
    answer = Answer(status=row["status"], body=json.dumps(row["response"]).encode())
    assert protocol.read_health(answer)[0] == "healthy"


def refusal(row: str) -> str:
    with pytest.raises(ServiceError) as caught:
        piston.PROTOCOL.decode(answer_of(row), RUN, nonce=None, timeout_ms=5_000).result()
    return str(caught.value)


def answer_of(row: str) -> Answer:
    found = rows("piston")[row]
    return Answer(status=found["status"], body=json.dumps(found["response"]).encode())


RUN = Program(language="c", code="1", timeout_ms=5_000, sandbox=SandboxConfig(), priority="normal", ext={})


def test_messages_of_piston() -> None:
    """Errors name the setting or the cause that its user can change."""
    assert "raise PISTON_RUN_TIMEOUT of the server, or lower timeout_ms" in refusal("python timeout above the limit")
    assert "install its package in Piston" in refusal("unknown language")
    assert "100 kB" in refusal("request over 100 kB")
    assert "the URL of Piston ends in /api/v2" in refusal("not found")


def test_full_stream_names_the_setting() -> None:
    """A program that exceeds Piston's limit of the output learns which setting it is."""
    result = piston.PROTOCOL.decode(answer_of("python 2 MB output"), RUN, nonce=None, timeout_ms=5_000).result()
    assert "PISTON_OUTPUT_MAX_SIZE" in result.error.message


def test_error_messages_of_programs() -> None:
    """The error of a Node.js program has its name and message."""
    row = rows("sandboxfusion")["nodejs throw"]
    body = json.dumps(row["response"]).encode()
    run = attrs.evolve(RUN, language=Language.JAVASCRIPT)
    error = sandboxfusion.PROTOCOL.decode(Answer(status=200, body=body), run, nonce=None, timeout_ms=5_000).error
    assert (error.name, error.message) == ("TypeError", "boom")
    assert error.traceback.startswith("TypeError: boom\n    at Object.<anonymous>")


@pytest.mark.parametrize(
    ("protocol", "response", "outcome"),
    [
        (piston.PROTOCOL, {"run": {}}, "ProtocolError, sent yes"),
        (piston.PROTOCOL, {"run": {"stdout": "x", "code": None, "signal": None}}, "ProtocolError, sent yes"),
        (piston.PROTOCOL, {"compile": {"code": 0}}, "ProtocolError, sent yes"),
        (piston.PROTOCOL, {"run": {"code": None, "signal": "SIG40"}}, "CRASHED, SIG40"),
        (
            piston.PROTOCOL,
            {"run": {"code": None, "status": "SG", "message": "Caught fatal signal 40"}},
            "CRASHED, signal 40",
        ),
        (sandboxfusion.PROTOCOL, {"run_result": {"stdout": "x"}}, "ProtocolError, sent yes"),
        (
            sandboxfusion.PROTOCOL,
            {"compile_result": {"status": "Finished", "return_code": 0}, "run_result": None},
            "ProtocolError, sent yes",
        ),
    ],
)
def test_answers_without_an_end(protocol: ServiceProtocol, response: dict[str, Any], outcome: str) -> None:
    """An answer that does not say how the program ended is an error, and an unknown signal is a crash."""
    assert read(protocol, {"request": {"language": "c"}, "status": 200, "response": response}) == outcome


@pytest.mark.parametrize(
    ("protocol", "stage", "name", "value"),
    [
        *((piston.PROTOCOL, "run", name, [1]) for name in ("stdout", "stderr")),
        *((piston.PROTOCOL, "run", name, "1") for name in ("code", "memory", "wall_time")),
        *((piston.PROTOCOL, name, "", 5) for name in ("run", "compile")),
        *((sandboxfusion.PROTOCOL, "run_result", name, [1]) for name in ("stdout", "stderr")),
        *((sandboxfusion.PROTOCOL, "run_result", name, "1") for name in ("return_code", "execution_time")),
        *((sandboxfusion.PROTOCOL, name, "", 5) for name in ("run_result", "compile_result")),
    ],
)
def test_an_error_names_the_field_of_the_wrong_type(
    protocol: ServiceProtocol, stage: str, name: str, value: object
) -> None:
    """It names a stage of the answer that is not an object, too."""
    body = {stage: {"code": 0, "return_code": 0, name: value} if name else value}
    with pytest.raises(ProtocolError, match=f"^{name or stage} in the answer has the wrong type"):
        protocol.decode(Answer(status=200, body=json.dumps(body).encode()), RUN, nonce=None, timeout_ms=5_000)


def test_failed_sandbox_of_piston() -> None:
    """A sandbox that could not start is a failure of the service, although the answer is a 200."""
    run = {"status": "XX", "message": "Cannot mount proc", "stderr": "Cannot mount proc", "code": None}
    answer = Answer(status=200, body=json.dumps({"run": run}).encode())
    with pytest.raises(ServerError, match="Cannot mount proc") as caught:
        piston.PROTOCOL.decode(answer, RUN, nonce=None, timeout_ms=5_000).result()
    assert caught.value.sent == "maybe"


@pytest.mark.parametrize(
    ("language", "outcome"), [("bash", "USER_ERROR, exit code 127"), ("csharp", "ServerError, sent yes")]
)
def test_missing_toolchain(language: str, outcome: str) -> None:
    """A missing toolchain is a failure of the service, but Bash programs can have the same exit code and message."""
    row = rows("sandboxfusion")["csharp, whose toolchain is missing"]
    assert read(sandboxfusion.PROTOCOL, row | {"request": {"language": language}}) == outcome


@pytest.mark.parametrize(
    ("memory", "outcome"), [(None, "CRASHED, SIGKILL"), (134_217_000, "MEMORY_LIMIT"), (1_000_000, "CRASHED, SIGKILL")]
)
def test_killed_at_the_memory_limit(memory: int | None, outcome: str) -> None:
    """Piston does not report that a program was killed at its memory limit, but how much memory it had."""
    row = rows("piston")["python SIGKILL itself"]
    run = row["response"]["run"] | {"memory": memory}
    assert read(piston.PROTOCOL, row | {"response": row["response"] | {"run": run}}) == outcome


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("run: line 6:     3 Segmentation fault      (core dumped) ./a.out\n", "CRASHED, SIGFPE"),
        ("run: line 6:     3 Floating point exception./a.out\n", "CRASHED, SIGFPE"),
        ("run: line 6:     3 Floating point exception./a.out\nmore\n", "USER_ERROR, exit code 136"),
        ("run: line 6:     3 is an error of the program\n", "USER_ERROR, exit code 136"),
    ],
)
def test_line_of_bash_about_a_signal(line: str, outcome: str) -> None:
    """A code above 128 is a signal only if the last line of stderr is that of bash."""
    run = {"code": 136, "signal": None, "stdout": "", "stderr": f"output\n{line}"}
    assert read(piston.PROTOCOL, {"request": {"language": "c"}, "status": 200, "response": {"run": run}}) == outcome


def test_messages_of_a_compiler_are_cut() -> None:
    """The traceback of an error is not longer than the output limit."""
    row = rows("sandboxfusion")["cpp compile error"]
    compiled = row["response"]["compile_result"] | {"stderr": "x: error: y\n" * 10_000}
    body = json.dumps(row["response"] | {"compile_result": compiled}).encode()
    run = attrs.evolve(RUN, sandbox=SandboxConfig(max_output_bytes=1_024))
    result = sandboxfusion.PROTOCOL.decode(Answer(status=200, body=body), run, nonce=None, timeout_ms=5_000).result()
    assert (result.error.message, result.error.traceback) == ("x: error: y", result.stderr)
    assert len(result.stderr) <= 1_024


@pytest.mark.parametrize(
    ("service", "protocol", "row"),
    [
        ("SandboxFusion", sandboxfusion.PROTOCOL, "cpp compile timeout"),
        ("Piston", piston.PROTOCOL, "c++ compile timeout"),
    ],
)
def test_limit_of_the_compiler(service: str, protocol: ServiceProtocol, row: str) -> None:
    """The error names the service, because its limit is not that of the caller. Another time it may take less."""
    body = json.dumps(rows(service.lower())[row]["response"]).encode()
    result = protocol.decode(Answer(status=200, body=body), RUN, nonce=None, timeout_ms=5_000).result()
    assert result.error.message == f"the compiler was ended: it took longer than the limit of {service}"
    assert not is_stored(result)
