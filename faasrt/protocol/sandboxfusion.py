"""SandboxFusion: `POST /run_code` of bytedance/SandboxFusion.

Source: its API server, at commit 469de08. Nothing reads the output of a program while it runs. The output stays in
buffers. The service returns 219,264 bytes of each stream, or a little less. A program that writes much more blocks
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

`memory_limit_mb` is not sent: the service would limit the address space, which breaks correct programs. Its API lists
the languages. A stream of exactly 219,264 bytes is reported as truncated.
"""

from __future__ import annotations

import base64
import glob
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs

from faasrt.errors import InvalidRequestError, ProtocolError, Sent, ServerError
from faasrt.inputs import ProgramInput
from faasrt.languages import Language
from faasrt.protocol.answer import Answer, ParsedAnswer, check_number, check_type, decode_object, status_error
from faasrt.protocol.displays import displays_to_wire
from faasrt.protocol.health import OWN_WALL_FACTORS, EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.processes import ProcessEnd, read_end, signal_name, signal_number, stdin_text
from faasrt.protocol.program import Program, encode_json
from faasrt.protocol.served import (
    MAX_MEMORY_FLAG,
    MAX_TIMEOUT_FLAG,
    RefusedError,
    ServedProtocol,
    ServedResult,
    ServedRun,
    ServerProfile,
    as_number,
    decode_base64,
    hint_at,
    logged_maximum,
    relative_path,
)
from faasrt.results import Display, ErrorInfo, Outcome

# Source: verl's reward client waits this long in addition to both timeouts. The client of the SDK waits longer.
_VERL_S = 10.0
_BUFFER_BYTES = 196_608
_STREAM_BYTES = 219_264
_DECODE_ERROR = "[DecodeError] 'utf-8' codec can't decode"
# fmt: off
_NAMES = (
    "python", "cpp", "nodejs", "go", "go_test", "java", "php", "csharp", "bash", "typescript", "sql", "rust", "cuda",
    "lua", "R", "perl", "D_ut", "ruby", "scala", "julia", "pytest", "junit", "kotlin_script", "jest", "verilog",
    "python_gpu", "lean", "swift", "racket",
)
# fmt: on
"""The languages of the API."""
_SERVICE_NAMES = {name.lower(): name for name in _NAMES} | {"javascript": "nodejs"}


class SandboxFusion(ServiceProtocol):
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
        max_wall_factors=OWN_WALL_FACTORS,
        answered=True,
        version="SandboxFusion",
    )

    def lists(self, language: Language | str) -> bool:
        return language in _SERVICE_NAMES

    def may_compile(self, language: Language | str) -> bool:
        return not self.profile.has_guest(language)

    def encode(self, program: Program, *, in_envelope: bool) -> bytes:
        fields: dict[str, Any] = {
            "language": _SERVICE_NAMES.get(program.language, program.language),
            "code": program.code,
            "run_timeout": program.timeout_ms / 1000,
        }
        if program.input.stdin:
            fields["stdin"] = stdin_text(program)
        if program.input.files:
            fields["files"] = {path: base64.b64encode(data).decode() for path, data in program.input.files.items()}
        return encode_json(fields)

    def decode(self, answer: Answer, program: Program, *, nonce: str | None, timeout_ms: float) -> ParsedAnswer:
        if answer.status != 200:
            raise status_error(answer, _message(answer))
        body = decode_object(answer.body)
        compiled, ran = (_result(body, name) for name in ("compile_result", "run_result"))
        failed = body.get("status") == "SandboxError" or any(part.get("status") == "Error" for part in (compiled, ran))
        if failed or not (compiled or ran):
            quote = str(body.get("message"))[:300] or "no reason given"
            sent: Sent = "yes" if compiled or ran else "maybe"
            raise ServerError("SandboxFusion failed", quote=quote, hint="see its logs", sent=sent)
        end = _end(ran or compiled, compiling=not ran, in_envelope=nonce is not None)
        metadata = {"service": self.name, "status": body.get("status")}
        if nonce is None and not (end.stderr if end.compiling else end.stdout):
            metadata["may_lack_output"] = True
        parsed = read_end(end, program, nonce, metadata)
        if nonce is not None and not parsed.report.final and end.exit_code is not None and end.outcome is None:
            _check_stdout(end, parsed)
        return parsed

    def read_health(self, answer: Answer) -> tuple[str, str, dict[str, Any]]:
        if answer.status != 200:
            raise status_error(answer, _message(answer))
        healthy = answer.body.strip() == b'"pong"'
        return ("healthy" if healthy else "unknown"), "", {}


def _message(answer: Answer) -> tuple[str, str] | None:
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
    """Correct an answer whose stdout was lost. The guest program always writes to it at its start."""
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
    # `faasrt serve` returns longer streams too, which are whole.
    cut = [
        name
        for name, size in sizes.items()
        if size == _STREAM_BYTES or (outcome is Outcome.OUTPUT_LIMIT and size >= _BUFFER_BYTES)
    ]
    return ProcessEnd(
        stdout=texts["stdout"],
        stderr=texts["stderr"],
        exit_code=code if code is None or code >= 0 else None,
        signal=signal_name(-code) if code is not None and code < 0 else "",
        outcome=outcome,
        error=error,
        compiling=compiling,
        truncated=[*lost, *cut],
        duration_ms=None if seconds is None else round(seconds * 1000, 3),
    )


PROTOCOL = SandboxFusion()


# ---- The server half.

_SERVED = {
    "python": Language.PYTHON,
    "cpp": Language.CPP,
    "nodejs": Language.JAVASCRIPT,
    "typescript": Language.TYPESCRIPT,
    "go": Language.GO,
    "rust": Language.RUST,
    "java": Language.JAVA,
    "bash": Language.BASH,
}
_FIELDS = (
    *("compile_timeout", "run_timeout", "memory_limit_MB", "code", "stdin", "language", "files", "fetch_files"),
    *("priority", "ext"),  # of coze-loop's protocol; they do not change the result
)
_NOTEBOOK_FIELDS = (
    *("cells", "cell_timeout", "total_timeout", "memory_limit_MB", "kernel", "files", "fetch_files"),
    *("priority", "ext"),
)
_KERNELS = ("python3",)
_DEFAULT_TIMEOUT_S = 10
_DEFAULT_TOTAL_TIMEOUT_S = 45
_TOTAL_TIMEOUT_FACTOR = 10
_FOLDER = "/tmp/"  # noqa: S108 - the working folder of programs, as they see it
_TOO_MANY_FILES = "the requested files are too many, or larger than the output limit of this server"
_IGNORED_FILE = "IGNORE_THIS_FILE"
_MAX_SHOWN = 200


@attrs.frozen(kw_only=True)
class Notebook:
    """The cells of a `POST /run_jupyter`.

    Attributes:
        total_timeout_ms: How long all cells together may run.
        max_wait_ms: How long all cells but the first may wait for other programs.
        fetched: The paths of the requested files, by their names in the request.
    """

    cells: list[str]
    cell_timeout_ms: float
    total_timeout_ms: float
    max_wait_ms: float
    memory_limit_mb: int
    input: ProgramInput
    fetched: Mapping[str, str]


@attrs.frozen(kw_only=True)
class CellResult:
    stdout: str
    stderr: str
    displays: Sequence[Display]
    error: ErrorInfo | None


@attrs.define(kw_only=True)
class NotebookResult:
    """The result of a notebook. `ended` is why it ended before its last cell."""

    cells: list[CellResult] = attrs.field(factory=list)
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    files_complete: bool = True
    timed_out: bool = False
    ended: str = ""
    truncated: bool = False
    duration_s: float = 0.0


def names_of(languages: Collection[Language]) -> list[str]:
    return [name for name, language in _SERVED.items() if language in languages]


def max_total_timeout_s(timeout_s: float) -> float:
    """Return the longest time that all cells of a notebook may run, for the limit of a server for one program. It is at
    least the default, which the SDK always sends.
    """
    return max(_TOTAL_TIMEOUT_FACTOR * timeout_s, _DEFAULT_TOTAL_TIMEOUT_S)


class SandboxFusionServer(ServedProtocol):
    """Answers the clients of SandboxFusion.

    Limits above the limits of the server, unknown fields, and files that cannot be there are refused with a 422. A
    language of the API that does not run here is a SandboxError, as it is there. An overloaded server answers 504, the
    only status that verl's client tries again.
    """

    service, prefix = "SandboxFusion", "/sandboxfusion"
    run_path = SandboxFusion.run_path
    settings: ClassVar[Mapping[str, str]] = {
        "verl": f"reward.sandbox_fusion.url={{url}}{prefix}{run_path}",
        "sandbox-fusion (Python)": f"SANDBOX_FUSION_ENDPOINT={{url}}{prefix}",
    }

    def read_run(self, fields: Mapping[str, Any], server: ServerProfile) -> ServedRun:
        _check_names(fields, _FIELDS, required=("code", "language"))
        code, stdin = _text(fields, "code"), "" if fields.get("stdin") is None else _text(fields, "stdin")
        language = self._read_language(fields["language"], server)
        largest_ms = server.languages[language].compile_timeout_ms
        compile_timeout_ms = _milliseconds(fields, "compile_timeout", largest_ms or math.inf)
        timeout_ms = _milliseconds(fields, "run_timeout", server.max_timeout_ms, flag=MAX_TIMEOUT_FLAG)
        files, fetched = _files(fields), _fetched(fields)
        try:
            program_input = ProgramInput.checked(
                language, stdin=stdin, files=files, collect=[glob.escape(path) for path in fetched.values()]
            )
        except InvalidRequestError as error:
            raise _invalid_value(error) from None
        return ServedRun(
            language=language,
            code=code,
            timeout_ms=timeout_ms,
            memory_limit_mb=_memory_limit(fields, server),
            compile_timeout_ms=compile_timeout_ms if largest_ms else None,
            input=program_input,
            fetched=fetched,
            patience_s=(compile_timeout_ms + timeout_ms) / 1000 + _VERL_S,
        )

    def _read_language(self, name: Any, server: ServerProfile) -> Language:
        if not isinstance(name, str) or name not in _NAMES:
            quoted = [f"'{known}'" for known in _NAMES]
            expected = f"{', '.join(quoted[:-1])} or {quoted[-1]}"
            raise _invalid("language", "literal_error", f"Input should be {expected}", name, {"expected": expected})
        language = _SERVED.get(name)
        if language is None or language not in server.languages:
            body = _answer("SandboxError", f"this server does not run {name}: {server.why_missing(language)}")
            raise RefusedError(200, body, logged=server.logged_language(language, name))
        return language

    def encode_result(self, result: ServedResult, run: ServedRun, server: ServerProfile) -> dict[str, Any]:
        end = result.end
        compiled = ran = None
        if end.compiling:
            compiled = _stage(end, result.compile_ms)
        else:
            ran = _stage(end, end.duration_ms)
            if result.compile_ms is not None:
                compiled = _stage(ProcessEnd(stdout="", stderr="", exit_code=0), result.compile_ms)
        files = {
            name: base64.b64encode(result.files[path]).decode()
            for name, path in run.fetched.items()
            if path in result.files
        }
        status = "Success" if not end.compiling and end.outcome is None and end.exit_code == 0 else "Failed"
        message = ""
        if "files" in end.truncated:
            status = "SandboxError"
            message = _TOO_MANY_FILES
        elif cut := [name for name in ("stdout", "stderr") if name in end.truncated]:
            message = f"{' and '.join(cut)} exceeded the output limit of this server"
        return _answer(status, message, compiled, ran, files)

    def encode_failure(self, status: int, message: str, *, not_started: bool) -> tuple[int, dict[str, Any]]:
        if not_started:
            return 504, {"detail": message}
        if status == 500:
            return 200, _answer("SandboxError", message)
        if status == 400:
            refusal = _invalid_value(message)
            return refusal.status, refusal.body
        return status, {"detail": message}

    def read_notebook(self, fields: Mapping[str, Any], server: ServerProfile) -> Notebook:
        """Read the body of a request. Raise RefusedError if this server cannot do exactly what it asks for.

        The service ignores `cell_timeout`. Here it is the time limit of each cell.
        """
        _check_names(fields, _NOTEBOOK_FIELDS, required=("cells",))
        cells = fields["cells"]
        if not isinstance(cells, list):
            raise _invalid("cells", "list_type", "Input should be a valid list")
        if fields.get("kernel", "python3") not in _KERNELS:
            message = "Input should be 'python3'"
            raise _invalid("kernel", "literal_error", message, fields["kernel"], {"expected": "'python3'"})
        files, fetched = _files(fields), _fetched(fields)
        try:
            checked = ProgramInput.checked(None, files=files, collect=[glob.escape(path) for path in fetched.values()])
        except InvalidRequestError as error:
            raise _invalid_value(error) from None
        flag, largest_ms = MAX_TIMEOUT_FLAG, 1000 * max_total_timeout_s(server.max_timeout_ms / 1000)
        cell_timeout_ms = _milliseconds(fields, "cell_timeout", server.max_timeout_ms, 0, flag)
        return Notebook(
            cells=[_text({"cells": cell}, "cells") for cell in cells],
            cell_timeout_ms=cell_timeout_ms or server.timeout_ms,
            total_timeout_ms=_milliseconds(fields, "total_timeout", largest_ms, _DEFAULT_TOTAL_TIMEOUT_S, flag),
            max_wait_ms=largest_ms,
            memory_limit_mb=_memory_limit(fields, server),
            input=checked,
            fetched=fetched,
        )

    def encode_notebook(self, result: NotebookResult, notebook: Notebook) -> dict[str, Any]:
        """Return the cells of a notebook, even if it did not come to its end. The service does not return those."""
        driver = {
            "status": "TimeLimitExceeded" if result.timed_out else "Finished",
            "execution_time": result.duration_s,
            "return_code": None if result.timed_out else int(bool(result.ended)),
            "stdout": "",
            "stderr": result.ended and f"the kernel has ended: {result.ended}\n",
        }
        files = {
            name: base64.b64encode(result.files[path]).decode()
            for name, path in notebook.fetched.items()
            if path in result.files
        }
        status = "Failed" if result.timed_out or result.ended else "Success"
        message = "the output exceeded the limit of this server" if result.truncated else ""
        if not result.files_complete:
            status, message = "SandboxError", _TOO_MANY_FILES
        return _notebook_answer(status, message, driver, [_cell(cell) for cell in result.cells], files)

    def notebook_failure(self, message: str) -> dict[str, Any]:
        return _notebook_answer("SandboxError", message, None, [], {})


def _notebook_answer(
    status: str,
    message: str,
    driver: Mapping[str, Any] | None,
    cells: list[dict[str, Any]],
    files: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "status": status,
        "message": message,
        "driver": driver,
        "cells": cells,
        "executor_pod_name": None,
        "files": files,
    }


def _cell(cell: CellResult) -> dict[str, Any]:
    error = cell.error
    traceback = error.traceback.splitlines() if error else []
    return {
        "stdout": cell.stdout,
        "stderr": cell.stderr,
        "display": [display["data"] for display in displays_to_wire(cell.displays)],
        "error": [{"ename": error.name, "evalue": error.message, "traceback": traceback}] if error else [],
    }


def _answer(
    status: str,
    message: str,
    compiled: Mapping[str, Any] | None = None,
    ran: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    return {
        "status": status,
        "message": message,
        "compile_result": compiled,
        "run_result": ran,
        "executor_pod_name": None,
        "files": files or {},
    }


def _stage(end: ProcessEnd, duration_ms: float | None) -> dict[str, Any]:
    # The service blocks a program that prints too much until its time limit.
    was_ended = end.outcome in (Outcome.TIMEOUT, Outcome.OUTPUT_LIMIT)
    return {
        "status": "TimeLimitExceeded" if was_ended else "Finished",
        "execution_time": (duration_ms or 0) / 1000,
        "return_code": None if was_ended else -signal_number(end.signal) if end.signal else end.exit_code,
        "stdout": end.stdout,
        "stderr": end.stderr,
    }


def _invalid(
    name: str, kind: str, message: str, value: Any = None, context: Mapping[str, Any] | None = None
) -> RefusedError:
    """Return a refusal in the format of pydantic, which the service uses. `name` is the name of the field, or ""."""
    shown = value[:_MAX_SHOWN] if isinstance(value, str) else None if as_number(value) is None else as_number(value)
    detail: dict[str, Any] = {"type": kind, "loc": ["body", *([name] if name else [])], "msg": message, "input": shown}
    if context is not None:
        detail["ctx"] = context
    return RefusedError(422, {"detail": [{**detail, "url": f"https://errors.pydantic.dev/2.6/v/{kind}"}]})


def _invalid_value(message: object) -> RefusedError:
    return _invalid("", "value_error", f"Value error, {message}")


def _check_names(fields: Mapping[str, Any], known: Collection[str], *, required: Collection[str]) -> None:
    for name in required:
        if name not in fields:
            raise _invalid(name, "missing", "Field required")
    for name in fields:
        if name not in known:
            message = "Extra inputs are not permitted, because this server would ignore them"
            raise _invalid(name[:_MAX_SHOWN], "extra_forbidden", message, fields[name])


def _memory_limit(fields: Mapping[str, Any], server: ServerProfile) -> int:
    """Return the memory limit in MiB. -1 means the default of the server."""
    memory_mb = _number(fields, "memory_limit_MB", -1, "int")
    if not memory_mb.is_integer():
        message = "Input should be a valid integer, got a number with a fractional part"
        raise _invalid("memory_limit_MB", "int_from_float", message, memory_mb)
    if memory_mb > server.max_memory_limit_mb:
        raise _above("memory_limit_MB", memory_mb, server.max_memory_limit_mb, MAX_MEMORY_FLAG)
    return int(memory_mb) if memory_mb > 0 else server.memory_limit_mb


def _above(name: str, value: float, limit: float, flag: str) -> RefusedError:
    message = f"Input should be less than or equal to {limit:g}, which is the limit of this server{hint_at(flag)}"
    refusal = _invalid(name, "less_than_equal", message, value, {"le": limit})
    refusal.reason, refusal.logged = f"{name}: {message}", logged_maximum(name, f"{limit:g}", flag)
    return refusal


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise _invalid(name, "string_type", "Input should be a valid string", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        message = "Input should be a valid string, unable to parse raw data as a unicode string"
        raise _invalid(name, "string_unicode", message) from None
    return value


def _number(fields: Mapping[str, Any], name: str, default: float, kind: Literal["float", "int"] = "float") -> float:
    value = fields.get(name, default)
    number = as_number(value)
    if number is None:
        problem = "parsing" if isinstance(value, str) else "type"
        word = {"float": "number", "int": "integer"}[kind]
        raise _invalid(name, f"{kind}_{problem}", f"Input should be a valid {word}", value)
    return number


def _milliseconds(
    fields: Mapping[str, Any], name: str, largest_ms: float, default_s: float = _DEFAULT_TIMEOUT_S, flag: str = ""
) -> float:
    """Convert a field in seconds. With less than 0, the service ends the program at once."""
    seconds = _number(fields, name, default_s)
    if name in fields and seconds * 1000 > largest_ms:
        raise _above(name, seconds, largest_ms / 1000, flag)
    return max(0.0, min(seconds * 1000, largest_ms))


def _files(fields: Mapping[str, Any]) -> dict[str, bytes]:
    value = fields.get("files", {})
    if not isinstance(value, dict):
        raise _invalid("files", "dict_type", "Input should be a valid dictionary", value)
    files = {}
    for name, content in value.items():
        if content is None or _IGNORED_FILE in name:  # as in the service
            continue
        if not isinstance(content, str):
            raise _invalid("files", "string_type", "Input should be a valid string", content)
        path = _path(name)
        if path in files:
            message = f"Value error, two names are those of the same file, of which one would be lost: {path[:100]}"
            raise _invalid("files", "value_error", message, name)
        try:
            files[path] = decode_base64(content)
        except ValueError:
            raise _invalid("files", "value_error", "Value error, a file is not base64", name) from None
    return files


def _fetched(fields: Mapping[str, Any]) -> dict[str, str]:
    value = fields.get("fetch_files", [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _invalid("fetch_files", "list_type", "Input should be a valid list of strings", None)
    paths = {name: _path(name) for name in value}
    return {name: path for name, path in paths.items() if path != "."}  # a folder is not a file


def _path(name: str) -> str:
    return relative_path(name.removeprefix(_FOLDER))


SERVER = SandboxFusionServer()
