"""Piston: `POST /execute` of engineer-man/piston. Its URL ends in /api/v2.

Source: its API server, at commit 0a844d0. Requests can only lower the limits of the server, whose defaults are low;
see `faasrt/docs/services.md`. A stream above its limit loses a part, and ends the program.

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
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from signal import strsignal
from typing import Any, ClassVar

import attrs

from faasrt._strict_json import loads
from faasrt.errors import InvalidRequestError, ProtocolError, ServerError
from faasrt.inputs import ProgramInput, check_path, encode_text, program_file
from faasrt.languages import Language
from faasrt.protocol.answer import Answer, ParsedAnswer, check_number, check_type, decode_object, status_error
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
from faasrt.results import ErrorInfo, Outcome

# Source: piston_client.py of open-r1 waits this long for an answer.
_OPEN_R1_S = 30.0
_LIMIT = re.compile(r"\b(?P<name>\w++) cannot exceed the configured limit of (?P<limit>-?\d+)")
# bash pads the description of a signal, except the longest one.
_KILLED = re.compile(r": line \d+: +\d+ (?:Floating point exception|[A-Z][A-Za-z]*(?: [A-Za-z]+)* {2})")
_OUTPUT_SETTING = "set PISTON_OUTPUT_MAX_SIZE of the server to 65536 or more"
_NEAR_LIMIT = 0.95


class Piston(ServiceProtocol):
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
        max_wall_factors=OWN_WALL_FACTORS,
        answered=True,
        version="Piston",
    )

    def lists(self, language: Language | str) -> bool:
        return True  # each server has other packages, and refuses the languages that it does not have

    def may_compile(self, language: Language | str) -> bool:
        return not self.profile.has_guest(language)

    def encode(self, program: Program, *, in_envelope: bool) -> bytes:
        files = [{"content": program.code}]
        for path, data in program.input.files.items():
            files.append({"name": path, "content": base64.b64encode(data).decode(), "encoding": "base64"})
        fields: dict[str, Any] = {
            "language": str(program.language),
            "version": "*",
            "files": files,
            "run_timeout": program.timeout_ms,
            "run_cpu_time": program.timeout_ms,
            "run_memory_limit": program.sandbox.memory_limit_mb * 2**20,
        }
        if program.input.stdin:
            fields["stdin"] = stdin_text(program)
        if program.input.argv:
            fields["args"] = list(program.input.argv)
        return encode_json(fields)

    def decode(self, answer: Answer, program: Program, *, nonce: str | None, timeout_ms: float) -> ParsedAnswer:
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
            raise ServerError("the sandbox of Piston failed", quote=message[:300], hint="see its logs", sent="maybe")
        end = _end(stage, status, message, program, compiling=compiling)
        metadata = {"service": self.name, **{name: body.get(name) for name in ("language", "version")}}
        metadata |= {name: stage.get(name) for name in ("status", "message", "cpu_time", "memory")}
        parsed = read_end(end, program, nonce, metadata)
        if nonce and parsed.report.started and status in ("OL", "EL"):
            raise ServerError(
                "the result is larger than the output limit of Piston",
                quote=message[:300],
                hint=_OUTPUT_SETTING,
                sent="yes",
                status=200,
                blames_endpoint=False,
            )
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


def _end(stage: dict[str, Any], status: str, message: str, program: Program, *, compiling: bool) -> ProcessEnd:
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
    elif killed_by == "SIGKILL" and not compiling and memory >= _NEAR_LIMIT * program.sandbox.memory_limit_mb * 2**20:
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


# ---- The server half.


@attrs.frozen
class _Package:
    language: str
    aliases: tuple[str, ...] = ()
    runtime: str = ""


_PACKAGES = {
    Language.PYTHON: _Package("python", ("py", "py3", "python3")),
    Language.JAVASCRIPT: _Package("javascript", ("node-javascript", "node-js", "js", "deno-js"), "deno"),
    Language.TYPESCRIPT: _Package("typescript", ("ts", "node-ts", "tsc", "deno", "deno-ts"), "deno"),
    Language.C: _Package("c", ("gcc",), "gcc"),
    Language.CPP: _Package("c++", ("cpp", "g++"), "gcc"),
    Language.GO: _Package("go", ("golang",)),
    Language.RUST: _Package("rust", ("rs",)),
    Language.JAVA: _Package("java"),
    Language.BASH: _Package("bash", ("sh",)),
}
_FIELDS = (
    *("language", "version", "files", "stdin", "args", "compile_timeout", "run_timeout", "compile_cpu_time"),
    *("run_cpu_time", "compile_memory_limit", "run_memory_limit"),
)
_FILE_FIELDS = ("name", "content", "encoding")
_UNKNOWN = "unknown to this server, which would ignore it"
_TOO_LONG = {"stdout": "OL", "stderr": "EL"}
_ENCODINGS = ("utf8", "base64", "hex")
_VERSION_RANGE = re.compile(
    r"(?P<operator>\^|~|>=|<=|>|<|=|) ?v?(?P<major>[0-9]{1,9}|[xX*])"
    r"(?:\.(?P<minor>[0-9]{1,9}|[xX*]))?(?:\.(?P<patch>[0-9]{1,9}|[xX*]))?(?: |$)"
)
_MAX_RANGE = 100


def names_of(languages: Iterable[Language]) -> list[str]:
    packages = [_PACKAGES[language] for language in languages]
    return [name for package in packages for name in (package.language, *package.aliases)]


class PistonServer(ServedProtocol):
    """Answers the clients of Piston.

    Limits above the limits of the server, limits of the CPU time below the time limit, unknown fields, and two files of
    the same name are refused with a 400. Memory limits are rounded down to MiB. `output` is stdout, followed by stderr.
    The CPU time is not measured.
    """

    service, prefix = "Piston", "/piston/api/v2"
    run_path = Piston.run_path
    settings: ClassVar[Mapping[str, str]] = {"open-r1": f"PISTON_ENDPOINTS={{url}}{prefix}"}

    def runtimes(self, server: ServerProfile) -> list[dict[str, Any]]:
        listed = []
        for language, served in server.languages.items():
            if not served.version:
                continue
            package = _PACKAGES[language]
            runtime = {"language": package.language, "version": served.version, "aliases": list(package.aliases)}
            listed.append(runtime | ({"runtime": package.runtime} if package.runtime else {}))
        return listed

    def packages(self, server: ServerProfile) -> list[dict[str, Any]]:
        return [
            {"language": runtime["language"], "language_version": runtime["version"], "installed": True}
            for runtime in self.runtimes(server)
        ]

    def read_run(self, fields: Mapping[str, Any], server: ServerProfile) -> ServedRun:
        for name in ("language", "version"):
            if not isinstance(fields.get(name), str) or not fields[name]:
                raise _refused(f"{name} is required as a string")
        files = _read_files(fields.get("files"))
        language = _find_language(fields["language"], fields["version"], server)
        main = next((file for file in files if file["encoding"] == "utf8"), None)
        if main is None:
            raise _refused("files must include at least one utf8 encoded file")
        for name in fields:
            if name not in _FIELDS:
                raise _refused(f"{name[:100]} is {_UNKNOWN}")
        stdin = fields.get("stdin")
        if stdin is None:
            stdin = ""
        if not isinstance(stdin, str):
            raise _refused("If specified, stdin must be a string")
        served, others = server.languages[language], [file for file in files if file is not main]
        run_ms, memory = _read_limits(
            fields,
            "run",
            (server.timeout_ms, server.max_timeout_ms, MAX_TIMEOUT_FLAG),
            (server.memory_limit_mb, server.max_memory_limit_mb, MAX_MEMORY_FLAG),
        )
        compile_ms = compile_memory = None
        if served.compile_timeout_ms:
            limits = _read_limits(
                fields,
                "compile",
                (served.compile_timeout_ms, served.compile_timeout_ms, ""),
                (served.compile_memory_mb, served.compile_memory_mb, ""),
            )
            compile_ms, compile_memory = limits
        else:
            for name in ("compile_timeout", "compile_cpu_time", "compile_memory_limit"):
                _limit(fields, name, math.inf, math.inf, "")
        try:
            check_path(main["name"], "the name of a file")
            encode_text(main["content"], "the program")
            if others and "/" in main["name"]:
                raise _refused(f"the program must not be in a folder beside other files, got {main['name'][:100]}")
            if others and not served.compile_timeout_ms and main["name"] != program_file(language):
                others.append(main)  # the other files may import it
            program_input = ProgramInput.checked(
                language,
                stdin=stdin if stdin.endswith("\n") else f"{stdin}\n",  # as the service does
                argv=() if fields.get("args") is None else fields["args"],
                files={file["name"]: _content(file) for file in others},
            )
        except InvalidRequestError as error:
            raise _refused(str(error)) from None
        return ServedRun(
            language=language,
            code=main["content"],
            timeout_ms=run_ms,
            memory_limit_mb=memory,
            compile_timeout_ms=compile_ms,
            compile_memory_mb=compile_memory,
            input=program_input,
            patience_s=_OPEN_R1_S,
        )

    def encode_result(self, result: ServedResult, run: ServedRun, server: ServerProfile) -> dict[str, Any]:
        package, end = _PACKAGES[run.language], result.end
        body = {"language": package.language, "version": server.languages[run.language].version}
        if end.compiling:
            stage = _stage(end, result.compile_ms, None)
            return {"compile": stage, "run": stage, **body}  # as the service does if nothing ran
        ran = _stage(end, end.duration_ms, result.memory_bytes)
        if result.compile_ms is None:
            return {"run": ran, **body}
        compiler = ProcessEnd(stdout="", stderr="", exit_code=0)
        return {"compile": _stage(compiler, result.compile_ms, None), "run": ran, **body}

    def encode_failure(self, status: int, message: str, *, not_started: bool) -> tuple[int, dict[str, Any]]:
        return status, {"message": message}


def _refused(message: str, logged: str = "") -> RefusedError:
    return RefusedError(400, {"message": message}, logged=logged)


def _read_files(files: Any) -> list[dict[str, str]]:
    if not isinstance(files, list):
        raise _refused("files is required as an array")
    read: dict[str, dict[str, str]] = {}
    for index, file in enumerate(files):
        if not isinstance(file, dict) or not isinstance(file.get("content"), str):
            raise _refused(f"files[{index}].content is required as a string")
        encoding, name = file.get("encoding"), file.get("name")
        encoding = "utf8" if encoding in (None, "") else encoding
        name = f"file{index}.code" if name in (None, "") else name
        if encoding not in _ENCODINGS:
            raise _refused(f"files[{index}].encoding must be one of {', '.join(_ENCODINGS)}")
        if not isinstance(name, str):
            raise _refused(f"files[{index}].name must be a string")
        for field in file:
            if field not in _FILE_FIELDS:
                raise _refused(f"files[{index}].{field[:100]} is {_UNKNOWN}")
        path = relative_path(name)
        if path in read:
            raise _refused(f"files[{index}].name is that of an earlier file, which would be lost: {path[:100]}")
        read[path] = {"name": path, "content": file["content"], "encoding": encoding}
    return [*read.values()]


def _content(file: Mapping[str, str]) -> str | bytes:
    try:
        match file["encoding"]:
            case "base64":
                return decode_base64(file["content"])
            case "hex":
                return bytes.fromhex(file["content"])
    except ValueError:
        raise _refused(f"the file {file['name'][:100]} is not {file['encoding']}") from None
    return file["content"]


def _read_limits(
    fields: Mapping[str, Any], stage: str, time: tuple[float, float, str], memory: tuple[int, int, str]
) -> tuple[float, int]:
    """Read the limits of a stage. `time` and `memory` have the default, the largest one, and the flag for it."""
    default_mb, largest_mb, memory_flag = memory
    size = _limit(fields, f"{stage}_memory_limit", default_mb * 2**20, largest_mb * 2**20, memory_flag)
    timeout_ms = _limit(fields, f"{stage}_timeout", *time)
    cpu_name = f"{stage}_cpu_time"
    if _limit(fields, cpu_name, time[1], time[1], time[2]) < timeout_ms:
        message = f"{cpu_name} cannot be less than {stage}_timeout ({timeout_ms:g}): this server limits only wall time"
        raise _refused(message)
    return timeout_ms, max(1, int(size / 2**20))


def _limit(fields: Mapping[str, Any], name: str, default: float, largest: float, flag: str) -> float:
    value = fields.get(name)
    number = 0.0 if value is None else as_number(value)
    if number is None:
        raise _refused(f"If specified, {name} must be a number")
    # As in the service, where -1 is the default of memory limits. Many clients send it, as the README of Piston does.
    if number == 0 or (number == -1 and name.endswith("memory_limit")):
        return default
    if number > largest:
        message = f"{name} cannot exceed the configured limit of {largest:.15g}{hint_at(flag)}"
        raise _refused(message, logged_maximum(name, f"{largest:.15g}", flag))
    if number < 0:
        raise _refused(f"{name} must be non-negative")
    return number


def _find_language(name: str, versions: str, server: ServerProfile) -> Language:
    logged = f"asked for languages that this server does not know; GET {SERVER.prefix}/runtimes lists its own"
    for language, package in _PACKAGES.items():
        if name in (package.language, *package.aliases):
            served = server.languages.get(language)
            if served is None:
                logged = server.logged_language(language, language)
            elif not served.version or satisfies(served.version, versions):
                return language
            else:
                logged = f"asked for another version of {language} than {served.version}: '*' stands for any"
    raise _refused(f"{name[:100]}-{versions[:100]} runtime is unknown", logged)


def satisfies(version: str, versions: str) -> bool:
    """Return whether a version is in a range of npm, such as "*", "3.x", "^3.9" or ">=3.9 <3.12"."""
    if len(versions) > _MAX_RANGE:
        return False
    numbers = [int(part) for part in version.split(".")]
    return any(_satisfies_all(numbers, " ".join(part.split())) for part in versions.split("||"))


def _satisfies_all(version: list[int], comparators: str) -> bool:
    at = 0
    while at < len(comparators):
        match = _VERSION_RANGE.match(comparators, at)
        if match is None or not _compares(version, match):
            return False
        at = match.end()
    return True


def _compares(version: list[int], match: re.Match[str]) -> bool:
    parts = [match[name] for name in ("major", "minor", "patch")]
    given = [int(part) for part in itertools.takewhile(lambda part: part and part.isdigit(), parts)]
    # The versions that begin with the given numbers lie between `low` and `high`.
    low, head = given + [0] * (3 - len(given)), version[: len(given)]
    match match["operator"]:
        case ">=":
            return version >= low
        case "<":
            return version < low
        case ">":
            return head > given
        case "<=":
            return head <= given
        case "~":
            fixed = min(2, len(given))
            return version >= low and version[:fixed] == low[:fixed]
        case "^":
            fixed = next((index for index, part in enumerate(given) if part), len(given) - 1) + 1
            return version >= low and version[:fixed] == low[:fixed]
    return head == given


def _stage(end: ProcessEnd, duration_ms: float | None, memory_bytes: int | None) -> dict[str, Any]:
    code, signal, status, message, stderr = end.exit_code, None, None, None, end.stderr
    if "stdout" in end.truncated or "stderr" in end.truncated:
        name = "stdout" if "stdout" in end.truncated else "stderr"
        code, signal, status, message = None, "SIGKILL", _TOO_LONG[name], f"{name} length exceeded"
    elif end.outcome is Outcome.OUTPUT_LIMIT:
        code, signal, status, message = None, "SIGKILL", "OL", "stdout length exceeded"
    elif end.outcome is Outcome.TIMEOUT:
        code, signal, status, message = None, "SIGKILL", "TO", "Time limit exceeded (wall clock)"
    elif end.signal:
        # The run script of the service is a bash, which says on stderr what has killed the program.
        number = signal_number(end.signal)
        code = 128 + number
        stderr += f"run: line 1: {3:5} {strsignal(number) or end.signal:<24}main\n"
    if status is None and code:
        status, message = "RE", f"Exited with error status {code}"
    return {
        "signal": signal,
        "stdout": end.stdout,
        "stderr": stderr,
        "code": code,
        "output": end.stdout + stderr,
        "memory": memory_bytes,
        "message": message,
        "status": status,
        "cpu_time": None,
        "wall_time": duration_ms,
    }


SERVER = PistonServer()
