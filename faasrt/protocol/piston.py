"""Piston: `POST /execute` of engineer-man/piston. Its URL ends in /api/v2.

Source: its API server, at commit 0a844d0. Requests can only lower the limits of the server, and its defaults are low:
set PISTON_RUN_TIMEOUT and PISTON_RUN_CPU_TIME (3,000 ms) to the longest time limit plus 1,000 ms, and
PISTON_OUTPUT_MAX_SIZE (1,024 bytes) to at least 65,536. A stream above its limit loses a part, and ends the program.

    run.status XX                                     ServerError: the sandbox failed, sent "maybe"
    TO                                                TIMEOUT
    OL, EL                                            OUTPUT_LIMIT; in an envelope, ServerError: the streams hold
                                                          frames, and output of child processes of JavaScript
    compile failed, or TO                             SYNTAX_ERROR
    SG, or 128 + n with bash's line about a signal    CRASHED; MEMORY_LIMIT if killed at 95 % of the memory
    code 127, and only "command not found"            ServerError: the toolchain is not installed; in Bash, it is the
                                                          program's own exit code
    another code                                      SYNTAX_ERROR, MEMORY_LIMIT (a MemoryError) or USER_ERROR
    400, 404, 415                                     RejectedError, which names the setting of a limit
    500 (its body is empty)                           ServerError

The service adds a newline to a standard input that does not end in one; the envelope does not. Requests have 100 kB.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from faasrt._strict_json import loads
from faasrt.errors import ProtocolError, ServerError
from faasrt.languages import Language
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.processes import ProcessEnd, read_end, signal_name, stdin_text
from faasrt.protocol.request import RunRequest, encode_json
from faasrt.protocol.response import Answer, ParsedAnswer, check_number, check_type, decode_object, status_error
from faasrt.results import ErrorInfo, Outcome

_LIMIT = re.compile(r"\b(?P<name>\w++) cannot exceed the configured limit of (?P<limit>-?\d+)")
# bash pads the description of a signal, except the longest one.
_KILLED = re.compile(r": line \d+: +\d+ (?:Floating point exception|[A-Z][A-Za-z]*(?: [A-Za-z]+)* {2})")
_OUTPUT_SETTING = "set PISTON_OUTPUT_MAX_SIZE of the server to 65536 or more"
_NEAR_LIMIT = 0.95


class Piston(ServiceProtocol):
    """`piston+http://host:port/api/v2`."""

    name = "Piston"
    run_path = "/execute"
    health_path = "/runtimes"
    profile = EndpointProfile(
        reference=True,
        kills_at_limit=True,
        on_cpython_and_node=True,
        max_frame_bytes=60_000,
        max_cases_bytes=40_000,
        input_fields={"javascript": frozenset({"stdin", "argv", "files"})},
        plain_input=frozenset({"stdin", "argv", "files"}),
        answered=True,
        version="Piston",
    )

    def lists(self, language: Language | str) -> bool:
        return True  # each server has other packages, and refuses the languages that it does not have

    def may_compile(self, language: Language | str) -> bool:
        return not self.profile.has_guest(language)

    def encode(self, run: RunRequest, *, in_envelope: bool) -> bytes:
        files = [{"content": run.code}]
        for path, data in run.input.files.items():
            files.append({"name": path, "content": base64.b64encode(data).decode(), "encoding": "base64"})
        fields: dict[str, Any] = {
            "language": str(run.language),
            "version": "*",
            "files": files,
            "run_timeout": run.timeout_ms,
            "run_cpu_time": run.timeout_ms,
            "run_memory_limit": run.sandbox.memory_limit_mb * 2**20,
        }
        if run.input.stdin:
            fields["stdin"] = stdin_text(run)
        if run.input.argv:
            fields["args"] = list(run.input.argv)
        return encode_json(fields)

    def decode(self, answer: Answer, run: RunRequest, *, nonce: str | None, timeout_ms: float) -> ParsedAnswer:
        if answer.status != 200:
            raise status_error(answer, _refusal(answer))
        body = decode_object(answer.body)
        stages = {name: check_type(body[name], name, dict) for name in ("compile", "run") if body.get(name) is not None}
        if not stages:
            raise ProtocolError("the answer has no result", sent="yes", status=200)
        compiled = stages.get("compile")
        failed = compiled is not None and (compiled.get("code") != 0 or compiled.get("status") is not None)
        compiling = failed or "run" not in stages
        stage = stages["compile" if compiling else "run"]
        status, message = (str(stage.get(name) or "") for name in ("status", "message"))
        if status == "XX":
            raise ServerError(f"the sandbox of Piston failed: {message[:300]}; see its logs", sent="maybe")
        end = _end(stage, status, message, run, compiling=compiling)
        metadata = {"service": self.name, **{name: body.get(name) for name in ("language", "version")}}
        metadata |= {name: stage.get(name) for name in ("status", "message", "cpu_time", "memory")}
        parsed = read_end(end, run, nonce, metadata)
        if nonce and parsed.report.started and status in ("OL", "EL"):
            reason = f"the result is larger than the output limit of Piston: {message}; {_OUTPUT_SETTING}"
            error = ServerError(reason, sent="yes", status=200)
            error.blames_endpoint = False
            raise error
        return parsed

    def read_health(self, answer: Answer) -> tuple[str, str, dict[str, Any]]:
        if answer.status != 200:
            raise status_error(answer, _refusal(answer))
        try:
            runtimes = loads(answer.body.decode())
        except (ValueError, RecursionError):
            runtimes = None
        if not isinstance(runtimes, list):
            raise ProtocolError("the answer is not a list of runtimes", sent="yes", status=200)
        return ("healthy" if runtimes else "without any runtime"), "", {"runtimes": runtimes}


def _refusal(answer: Answer) -> tuple[str, str] | None:
    """Return the reason in the answer of a failure, with the setting to change; None if it has none."""
    if answer.status == 404:
        return "not found; the URL of Piston ends in /api/v2", ""
    try:
        body = decode_object(answer.body)
    except ProtocolError:
        return None
    message = str(body.get("message") or body.get("stack") or "")[:500].partition("\n")[0]
    if match := _LIMIT.search(message):
        setting, option = f"PISTON_{match['name'].upper()}", "timeout_ms"
        if "memory" in match["name"]:
            option = "memory_limit_mb"
        return f"{message}; raise {setting} of the server, or lower {option} (an envelope adds 1000 ms)", ""
    if "PayloadTooLargeError" in message:
        return f"{message}; Piston accepts 100 kB, so send a smaller program or input", ""
    if message.endswith("runtime is unknown"):
        return f"{message}; install its package in Piston", ""
    return message, ""


def _end(stage: dict[str, Any], status: str, message: str, run: RunRequest, *, compiling: bool) -> ProcessEnd:
    stdout, stderr = (check_type(stage.get(name) or "", name, str) for name in ("stdout", "stderr"))
    code: int | None = check_number(stage.get("code"), "code", int)
    memory = check_number(stage.get("memory"), "memory", int, float) or 0
    killed_by = str(stage.get("signal") or "") if code is None else ""
    if code is None and status == "SG" and not killed_by:
        killed_by = message.removeprefix("Caught fatal ") or "a signal"
    if code is not None and code > 128 and _KILLED.search(stderr.removesuffix("\n").rpartition("\n")[2]):
        killed_by, code = signal_name(code - 128), None
    outcome = error = None
    if status == "TO":
        outcome = Outcome.TIMEOUT
    elif status in ("OL", "EL"):
        outcome, error = Outcome.OUTPUT_LIMIT, ErrorInfo("OutputLimit", f"{message}; {_OUTPUT_SETTING}")
    elif killed_by == "SIGKILL" and not compiling and memory >= _NEAR_LIMIT * run.sandbox.memory_limit_mb * 2**20:
        outcome = Outcome.MEMORY_LIMIT
    return ProcessEnd(
        stdout=stdout,
        stderr=stderr,
        exit_code=code,
        signal=killed_by,
        outcome=outcome,
        error=error,
        compiling=compiling,
        truncated={"OL": ["stdout"], "EL": ["stderr"]}.get(status, []),
        duration_ms=check_number(stage.get("wall_time"), "wall_time", int, float),
        limits_memory=True,
    )


PROTOCOL = Piston()
