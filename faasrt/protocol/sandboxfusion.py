"""SandboxFusion: `POST /run_code` of bytedance/SandboxFusion.

Source: its API server, at commit 469de08. Nothing reads the output of a program while it runs: it stays in buffers,
of which the service returns 219,264 bytes for each stream, or a little less. A program that writes much more blocks
until its time limit. Bytes that are not UTF-8 replace the whole stream by a message. Therefore the frames of the
envelope are short and ASCII.

    SandboxError in a 200                                 ServerError, sent "maybe", or "yes" if a result is there
    compile_result failed, or TimeLimitExceeded           SYNTAX_ERROR
    run_result TimeLimitExceeded                          TIMEOUT; OUTPUT_LIMIT if a stream is full
    a negative return_code                                CRASHED
    return_code 127, and only "command not found" or      ServerError: the toolchain is not installed; in Bash, it is
        "error while loading shared libraries"                the program's own exit code
    another return_code                                   SYNTAX_ERROR or USER_ERROR, according to stderr
    in an envelope, an empty stdout                       ServerError: the service lost it
    in an envelope, [DecodeError] in place of stdout      USER_ERROR, because the frame is lost
    400, 404, 422                                         RejectedError
    500                                                   ServerError

`memory_limit_mb` is not sent: the service would limit the address space, which breaks correct programs. The languages
are those of its API. A stream of exactly 219,264 bytes is reported as truncated.
"""

from __future__ import annotations

import base64
from typing import Any

import attrs

from faasrt.errors import ProtocolError, ServerError
from faasrt.languages import Language
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.processes import ProcessEnd, read_end, signal_name, stdin_text
from faasrt.protocol.request import RunRequest, encode_json
from faasrt.protocol.response import Answer, ParsedAnswer, check_number, check_type, decode_object, status_error
from faasrt.results import ErrorInfo, Outcome

_BUFFER_BYTES = 196_608
_STREAM_BYTES = 219_264
_DECODE_ERROR = "[DecodeError] 'utf-8' codec can't decode"
_NAMES = (
    "python cpp nodejs go go_test java php csharp bash typescript sql rust cuda lua R perl D_ut ruby scala julia "
    "pytest junit kotlin_script jest verilog python_gpu lean swift racket"
)
_SERVICE_NAMES = {name.lower(): name for name in _NAMES.split()} | {"javascript": "nodejs"}


class SandboxFusion(ServiceProtocol):
    """`sandboxfusion+http://host:port`."""

    name = "SandboxFusion"
    run_path = "/run_code"
    health_path = "/v1/ping"
    profile = EndpointProfile(
        reference=True,
        kills_at_limit=True,
        on_cpython_and_node=True,
        max_frame_bytes=150_000,
        input_fields={"javascript": frozenset({"stdin", "files"})},
        plain_input=frozenset({"stdin", "files"}),
        answered=True,
        version="SandboxFusion",
    )

    def lists(self, language: Language | str) -> bool:
        return language in _SERVICE_NAMES

    def may_compile(self, language: Language | str) -> bool:
        return not self.profile.has_guest(language)

    def encode(self, run: RunRequest, *, in_envelope: bool) -> bytes:
        fields: dict[str, Any] = {
            "language": _SERVICE_NAMES.get(run.language, run.language),
            "code": run.code,
            "run_timeout": run.timeout_ms / 1000,
        }
        if run.input.stdin:
            fields["stdin"] = stdin_text(run)
        if run.input.files:
            fields["files"] = {path: base64.b64encode(data).decode() for path, data in run.input.files.items()}
        return encode_json(fields)

    def decode(self, answer: Answer, run: RunRequest, *, nonce: str | None, timeout_ms: float) -> ParsedAnswer:
        if answer.status != 200:
            raise status_error(answer, _message(answer))
        body = decode_object(answer.body)
        compiled, ran = (_result(body, name) for name in ("compile_result", "run_result"))
        failed = body.get("status") == "SandboxError" or any(part.get("status") == "Error" for part in (compiled, ran))
        if failed or not (compiled or ran):
            message = f"SandboxFusion failed: {str(body.get('message'))[:300] or 'no reason given'}; see its logs"
            raise ServerError(message, sent="yes" if compiled or ran else "maybe")
        end = _end(ran or compiled, compiling=not ran, in_envelope=nonce is not None)
        metadata = {"service": self.name, "status": body.get("status")}
        if nonce is None and not (end.stderr if end.compiling else end.stdout):
            metadata["may_lack_output"] = True
        parsed = read_end(end, run, nonce, metadata)
        if nonce is not None and not parsed.report.final and end.exit_code is not None and end.outcome is None:
            _check_stdout(end, parsed)
        return parsed

    def read_health(self, answer: Answer) -> tuple[str, str, dict[str, Any]]:
        if answer.status != 200:
            raise status_error(answer, _message(answer))
        healthy = answer.body.strip() == b'"pong"'
        return ("healthy" if healthy else "unknown"), "", {}


def _message(answer: Answer) -> tuple[str, str] | None:
    """Return the reason in the answer of a failure; None if it has none."""
    try:
        detail = decode_object(answer.body).get("detail")
    except ProtocolError:
        return None
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        place = detail[0].get("loc")
        where = ".".join(map(str, place)) if isinstance(place, list) else "the request"
        return f"{where}: {detail[0].get('msg')}"[:500], ""
    return (str(detail)[:500], "") if detail else None


def _result(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    return {} if value is None else check_type(value, name, dict)


def _check_stdout(end: ProcessEnd, parsed: ParsedAnswer) -> None:
    """Correct an answer in an envelope whose stdout was lost. The guest program always writes to it at its start."""
    is_replaced = end.stdout.startswith(_DECODE_ERROR)
    if end.stdout and not is_replaced:
        return
    if parsed.report.records:
        # Each record is on stderr too. A process that exits with 0 has reached its end.
        parsed.report = attrs.evolve(parsed.report, final=end.exit_code == 0)
    elif is_replaced:
        message = "the result is lost: a child process wrote bytes that are not UTF-8, so SandboxFusion replaced stdout"
        parsed.outcome, parsed.error = Outcome.USER_ERROR, ErrorInfo("UnicodeDecodeError", message)
        parsed.declared = True
    elif parsed.report.started or end.exit_code == 0:
        raise ServerError("SandboxFusion lost the output of the program, as it does under load", sent="yes")


def _end(result: dict[str, Any], *, compiling: bool, in_envelope: bool) -> ProcessEnd:
    code = check_number(result.get("return_code"), "return_code", int)
    seconds = check_number(result.get("execution_time"), "execution_time", int, float)
    texts = {name: check_type(result.get(name) or "", name, str) for name in ("stdout", "stderr")}
    # The limits count bytes.
    sizes = {name: len(text.encode("utf-8", "surrogatepass")) for name, text in texts.items()}
    is_full = any(size >= _BUFFER_BYTES for size in sizes.values())
    outcome = error = None
    if is_full and (in_envelope or result.get("status") == "TimeLimitExceeded"):
        outcome = Outcome.OUTPUT_LIMIT
        error = ErrorInfo("OutputLimit", f"more than {_BUFFER_BYTES} bytes of output (limit of SandboxFusion)")
    elif result.get("status") == "TimeLimitExceeded":
        outcome = Outcome.TIMEOUT
    lost = [name for name, text in texts.items() if text.startswith(_DECODE_ERROR)]
    full = _BUFFER_BYTES if outcome is Outcome.OUTPUT_LIMIT else _STREAM_BYTES
    return ProcessEnd(
        stdout=texts["stdout"],
        stderr=texts["stderr"],
        exit_code=code if code is None or code >= 0 else None,
        signal=signal_name(-code) if code is not None and code < 0 else "",
        outcome=outcome,
        error=error,
        compiling=compiling,
        truncated=[*lost, *(name for name, size in sizes.items() if size >= full)],
        duration_ms=None if seconds is None else seconds * 1000,
    )


PROTOCOL = SandboxFusion()
