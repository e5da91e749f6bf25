"""Requests for the executions of a program: what the guest program gets, the limits, and what a server cannot do."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import attrs
import pytest

from faasrt import Language, SandboxConfig
from faasrt.errors import ConnectError, InvalidRequestError, ServerError, UnsupportedLanguageError
from faasrt.protocol import piston, sandboxfusion
from faasrt.protocol.answer import Answer
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.execution import Execution, WireRequest
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.program import Program
from faasrt.protocol.sessions import SessionOpening, SessionRun
from faasrt.results import Outcome

URL = "http://faas:8000"
CASES = GuestJob(function="f", cases=["[[], {}]"] * 3, single=False)
LOSSY = EndpointProfile(answered=True)
LOSSLESS = EndpointProfile(answered=True, lossless=True, input_fields={"python": frozenset({"files", "collect"})})
ENFORCING = attrs.evolve(LOSSLESS, enforces_timeouts=True, timeout_limit_ms=30_000)


def program(language: str = "python", **options: Any) -> Program:
    return Program.checked(Language.parse(language), "1", SandboxConfig(timeout_limit_s=30), **options)


def request(run: Program, profile: EndpointProfile, mode: str = "auto", **options: Any) -> WireRequest:
    return Execution(program=run, mode=mode, **options).request(profile, run.timeout_ms, URL)


def job_of(sent: WireRequest) -> dict[str, Any]:
    """Return the job of the guest program in a request."""
    code = json.loads(sent.body)["code"]
    jobs = [base64.b64decode(text) for text in re.findall(r'"([A-Za-z0-9+/=]{100,})"', code)]
    job: dict[str, Any] = next(json.loads(text) for text in jobs if text.startswith(b'{"function"'))
    return job


@pytest.mark.parametrize(
    ("profile", "case_ms", "job", "definition_ms", "timeout_ms", "begin_within_ms"),
    [
        # The guest program stops each case, and the last one may begin at the end of the limit of the sandbox.
        (LOSSY, 1_000, {}, None, 32_000, 30_000),
        (EndpointProfile(kills_at_limit=True), 1_000, {}, None, 3_000, 1_000),
        # The server stops the execution: the definitions, the window and the last case.
        (ENFORCING, 1_000, {}, None, 2_500, 500),
        (ENFORCING, 1_000, {}, 100, 1_700, 500),
        (ENFORCING, 1_000, {}, 5_000, 2_500, 500),
        (ENFORCING, 1_000, {"isolate": True}, None, 1_500, 500),
        (ENFORCING, 100, {}, 0, 400, 250),
        # The window is what the limit of the server leaves, and at least a tenth of this limit.
        (ENFORCING, 25_000, {"isolate": True}, None, 30_000, 5_000),
        (ENFORCING, 29_000, {"isolate": True}, None, 30_000, 3_000),
        (ENFORCING, 20_000, {"isolate": True}, None, 30_000, 10_000),
        (EndpointProfile(lossless=True, enforces_timeouts=True), 10_000, {"isolate": True}, None, 10_000, 1_000),
    ],
)
def test_time_limits_of_an_execution_of_cases(
    profile: EndpointProfile, case_ms: int, job: Any, definition_ms: float, timeout_ms: int, begin_within_ms: float
) -> None:
    """Each case has its own limit. The limit of the execution leaves room for all that may begin in it."""
    run = program(timeout_ms=case_ms)
    batch = GuestJob(function="f", cases=CASES.cases, single=False, **job)
    sent = request(run, profile, "always", job=batch, definition_ms=definition_ms)
    assert (sent.timeout_ms, job_of(sent)["begin_within_ms"]) == (timeout_ms, begin_within_ms)
    assert sent.program.timeout_ms == case_ms


NODE = EndpointProfile(reference=True, kills_at_limit=True, on_cpython_and_node=True)


@pytest.mark.parametrize(
    ("language", "profile", "margin_ms"),
    [
        ("python", LOSSY, 0),
        ("js", LOSSY, 500),
        ("typescript", LOSSY, 500),
        ("js", LOSSLESS, 0),
        ("python", NODE, 1_000),
        ("js", NODE, 1_000),
    ],
)
def test_margin_of_the_time_limit_that_is_sent(language: str, profile: EndpointProfile, margin_ms: int) -> None:
    """A guest program that stops the program needs time to return the output. Python's returns it in any case."""
    sent = request(program(language, timeout_ms=2_000), profile, "always")
    assert (sent.margin_ms, json.loads(sent.body)["timeout"]) == (margin_ms, 2_000 + margin_ms)


@pytest.mark.parametrize(
    ("mode", "profile", "is_enveloped", "expects_frame"),
    [
        ("auto", LOSSY, True, False),
        ("auto", EndpointProfile(reference=True), True, True),
        ("auto", LOSSLESS, False, False),
        ("always", LOSSLESS, True, True),
        ("never", LOSSY, False, False),
        ("never", EndpointProfile(reference=True), False, False),
    ],
)
def test_which_programs_are_enveloped(
    mode: str, profile: EndpointProfile, is_enveloped: bool, expects_frame: bool
) -> None:
    """By default, those for servers that damage results. An unknown server may lose the frame."""
    sent = request(program(), profile, mode)
    assert (sent.nonce is not None, sent.expects_frame) == (is_enveloped, expects_frame)
    assert ("faasrt" in json.loads(sent.body)["code"]) is is_enveloped


@pytest.mark.parametrize(
    ("profile", "job", "options", "expected"),
    [
        (LOSSY, {}, {}, {"capture": True, "case_ms": 2_000, "limit_ms": None, "has_folder": False}),
        (LOSSY, {"function": "f"}, {}, {"capture": True, "limit_ms": 2_000, "lossless": False}),
        (LOSSY, {"function": "f", "single": False}, {}, {"capture": True, "limit_ms": 2_000}),
        (LOSSLESS, {"function": "f"}, {}, {"capture": False, "limit_ms": 2_000, "lossless": True}),
        (LOSSLESS, {"function": "f", "single": False}, {}, {"capture": True, "limit_ms": 2_000}),
        (LOSSLESS, {}, {}, {"capture": True, "limit_ms": None, "has_folder": False}),
        (ENFORCING, {}, {"files": {"a": "b"}}, {"case_ms": None, "has_folder": True, "replace_fds": False}),
        (LOSSLESS, {}, {"collect": ["*"]}, {"has_folder": True}),
        (LOSSY, {}, {"files": {"a": "b"}, "collect": ["*"]}, {"has_folder": False}),
        (NODE, {}, {}, {"replace_fds": True}),
    ],
)
def test_the_job_of_the_guest_program(profile: EndpointProfile, job: Any, options: Any, expected: Any) -> None:
    """It captures the output and stops the program, unless the server does."""
    run = program(timeout_ms=2_000, **options)
    found = job_of(request(run, profile, "always", job=GuestJob(cases=CASES.cases[:1], **job)))
    assert {name: found[name] for name in expected} == expected


def error_of(call: Any) -> str:
    with pytest.raises((ConnectError, InvalidRequestError, UnsupportedLanguageError)) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


LISTING = EndpointProfile(answered=True, lossless=True, languages=frozenset({"python"}), missing={"go": "no go here"})
SHOWS = f"`faasrt languages --url {URL}` shows what it runs"


@pytest.mark.parametrize("version", ["", "faas/1"])
@pytest.mark.parametrize(
    ("language", "options", "profile", "message"),
    [
        ("go", {}, LISTING, f"does not run go programs: no go here; {SHOWS}"),
        ("cpp", {}, LISTING, f"does not run cpp programs: it does not list the language; {SHOWS}"),
        ("js", {}, LISTING, f"does not run javascript programs: it does not list the language; {SHOWS}"),
        (
            "python",
            {"displays": True},
            LOSSLESS,
            "cannot return displays of python programs: the embedded FaaS returns those of Python, JavaScript and "
            "TypeScript programs, if it runs them",
        ),
        (
            "js",
            {"files": {"a": "b"}, "collect": ["*"]},
            LOSSY,
            "cannot pass collect and files to javascript programs: use another FaaS, such as the embedded one",
        ),
        (
            "python",
            {"stdin": "a", "argv": ["b"]},
            LOSSLESS,
            "cannot pass argv and stdin to python programs: use another FaaS, such as the embedded one",
        ),
    ],
)
def test_errors_name_the_server_and_what_it_lacks(
    language: str, options: Any, profile: EndpointProfile, message: str, version: str
) -> None:
    """They name its version, if its health report has one."""
    profile = attrs.evolve(profile, version=version)
    error = error_of(lambda: request(program(language, **options), profile))
    assert error.partition(": ")[2] == f"{URL}{' (faas/1)' if version else ''} {message}"


def test_functions_of_compiled_programs_are_not_called() -> None:
    """A call of one is refused, and the error names the server and the language."""
    error = error_of(lambda: request(program("cpp"), LOSSLESS, job=GuestJob(function="f", cases=["[[], {}]"])))
    assert error == f"InvalidRequestError: {URL} can run cpp programs, but not call their functions"


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (program("cpp"), "names the languages of the server"),
        (program(displays=True), "says whether the server returns"),
    ],
)
def test_a_server_that_did_not_report_may_be_down(run: Program, words: str) -> None:
    """The error is that of the health report, if this has failed permanently. It may be raised again."""
    error = error_of(lambda: request(run, EndpointProfile()))
    assert error.startswith("ConnectError: no answer to GET /health that ")
    assert words in error
    failure = ConnectError("untrusted certificate", sent="no")
    with pytest.raises(ConnectError, match="untrusted certificate") as caught:
        request(run, EndpointProfile(failure=failure))
    assert caught.value is not failure


@pytest.mark.parametrize("version", ["", "faas/1"])
@pytest.mark.parametrize(
    ("features", "files", "missing"),
    [({}, {}, "sessions for"), ({"run"}, {"a": "b"}, "files in sessions of"), ({"fork"}, {}, "files in sessions of")],
)
def test_a_server_without_a_kind_of_session(features: Any, files: Any, missing: str, version: str) -> None:
    """The error names the server, what it lacks, and the page of the guide about sessions."""
    profile = attrs.evolve(LOSSLESS, version=version, sessions={"python": frozenset(features)})
    opening = SessionOpening(program=program(files=files), idle_timeout_s=1)
    error = error_of(lambda: opening.request(profile, 1_000, URL))
    server = f"{URL}{' (faas/1)' if version else ''}"
    assert error.startswith(f"InvalidRequestError: {server} has no {missing} python; faasrt/docs/sessions.md names")


def test_an_answer_that_is_too_large_is_an_output_limit() -> None:
    """Also that of a run in a session. The streams are lost."""
    run = program()
    in_session = SessionRun(program=program(displays=True), session_id="x" * 32).request(LOSSLESS, 1_000, URL)
    for sent in (request(run, LOSSLESS), in_session):
        result = sent.read(None).result()
        assert result.outcome is Outcome.OUTPUT_LIMIT
        assert result.truncated == {"stdout", "stderr", "ret_val"}
        assert "max_output_bytes" in result.error.message


def answer_of(stderr: str = "", **metadata: Any) -> Answer:
    body = {"output": {"stdout": "", "stderr": stderr, "ret_val": ""}, "metadata": metadata}
    return Answer(200, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("profile", "metadata", "message", "blames_endpoint"),
    [
        (EndpointProfile(reference=True), {}, "interpreter: out of disk", False),
        (EndpointProfile(reference=True), {"exit_code": 3}, "interpreter (exit code 3): out of disk", False),
        (NODE, {"exit_code": 3}, "interpreter (exit code 3): out of disk", True),
        (NODE, {"exit_code": 0}, "interpreter (exit code 0): out of disk", False),
        (LOSSY, {"runtime": "pyodide-deno"}, "interpreter: out of disk", True),
        (LOSSY, {"language": "javascript", "status": "success"}, "interpreter: out of disk", False),
        (LOSSY, {"language": "javascript", "status": "completed"}, "interpreter: out of disk", False),
    ],
)
def test_an_answer_without_frames_of_a_reference_server_is_an_error(
    profile: EndpointProfile, metadata: Any, message: str, blames_endpoint: bool
) -> None:
    """Its interpreter did not start. Only where a program cannot cause this, the endpoint is to blame."""
    sent = request(program(), profile)
    with pytest.raises(ServerError, match=re.escape(f"did not start its {message}; see its logs")) as caught:
        sent.read(answer_of(" out of disk\n", **metadata))
    assert (caught.value.blames_endpoint, caught.value.details) == (blames_endpoint, "out of disk")
    with pytest.raises(ServerError, match="no reason given"):
        sent.read(answer_of(**metadata))


def test_the_start_of_an_interpreter_is_no_timeout() -> None:
    """It may take longer than the time limit of the program, if the server starts one for each program."""
    for cold_start, outcome in ((False, Outcome.TIMEOUT), (True, Outcome.CRASHED)):
        profile = EndpointProfile(cold_start=cold_start)
        sent = request(program(timeout_ms=1_000), profile, "never")
        assert sent.read(answer_of(duration=1_000, exit_code=1)).result().outcome is outcome


def test_a_service_runs_languages_without_a_health_report() -> None:
    """Its protocol says which ones. Its profile has no list."""
    run = program("cpp")
    sent = Execution(program=run, mode="always").request(piston.PROTOCOL.profile, 1_000, URL, piston.PROTOCOL)
    assert sent.nonce is None


@pytest.mark.parametrize(
    ("protocol", "language", "by_service"),
    [
        (piston.PROTOCOL, "js", {"stdin", "args", "files"}),
        (piston.PROTOCOL, "python", set()),
        (piston.PROTOCOL, "go", {"stdin", "args", "files"}),
        (sandboxfusion.PROTOCOL, "js", {"stdin", "files"}),
        (sandboxfusion.PROTOCOL, "python", set()),
        (sandboxfusion.PROTOCOL, "go", {"stdin", "files"}),
    ],
)
def test_the_input_that_a_service_passes_on(protocol: ServiceProtocol, language: str, by_service: set[str]) -> None:
    """Python's guest program passes it on itself, so that it can collect files. Node.js gets what the service can."""
    options = {"stdin": "a", "files": {"b": "c"}} | (
        {"argv": ["d"]} if "args" in by_service or language != "go" else {}
    )
    run = program(language, **options)
    body = json.loads(Execution(program=run, mode="always").request(protocol.profile, 1_000, URL, protocol).body)
    files = body["files"][1:] if protocol is piston.PROTOCOL else body.get("files")
    assert {name for name in ("stdin", "args") if name in body} | ({"files"} if files else set()) == by_service


@pytest.mark.parametrize(
    ("kept", "words"), [(1_023, "twice the limit of the server"), (1_024, "twice max_output_bytes")]
)
def test_an_output_limit_names_who_has_set_it(kept: int, words: str) -> None:
    """The server, if it keeps less than the caller has asked for."""
    run = Program.checked(Language.PYTHON, "1", SandboxConfig(max_output_bytes=1_024))
    answer = Answer(200, json.dumps({"output": {}, "outcome": "OUTPUT_LIMIT"}).encode())
    sent = request(run, attrs.evolve(LOSSLESS, max_output_bytes=kept))
    assert sent.read(answer).result().error.message == f"more than {2 * kept} bytes of output ({words})"


@pytest.mark.parametrize(("duration_ms", "outcome"), [(1_000, Outcome.TIMEOUT), (999, Outcome.CRASHED)])
def test_a_program_that_announced_its_start_and_nothing_else_was_killed(duration_ms: int, outcome: Outcome) -> None:
    """At its time limit, if it had used it up."""
    sent = request(program(timeout_ms=1_000), EndpointProfile(reference=True))
    start = base64.b64encode(f'{{"nonce":"{sent.nonce}","final":false,"records":[]}}'.encode()).decode()
    result = sent.read(answer_of(f"faasrt1:{start}\n", duration=duration_ms, exit_code=0)).result()
    assert (result.outcome, result.stderr) == (outcome, "")
