"""The request of `POST /run_code`: checks its arguments, and encodes it.

Source: coze-loop's evaluation runtime defines the fields, except `sandbox` and the fields of `faasrt.inputs`. The
servers of coze-loop ignore these.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import attrs

from faasrt._run_option_checks import (
    TEXTS,
    check_ext,
    check_flag,
    check_priority,
    check_sandbox,
    check_timeout_ms,
)
from faasrt.config import SandboxConfig
from faasrt.errors import InvalidRequestError
from faasrt.inputs import NO_INPUT, ProgramInput, encode_text
from faasrt.languages import Language

CALL_ID_HEADER = "x-request-id"
"""A request header with the id of the call, which access logs and proxies know."""
PATIENCE_HEADER = "x-faasrt-patience-s"
"""A request header with the seconds for which the client waits for the answer. The server queues the program no longer
than that."""
NOT_STARTED_HEADER = "x-faasrt-not-started"
COUNTS_RUNNING_TIME_HEADER = "x-faasrt-counts-running-time"
"""A response header of `faasrt serve` on the health paths of other services, with the value 1: its time limits do not
count the wait for a CPU."""
PROGRAM_SUSPECT_HEADER = "x-faasrt-program-suspect"
"""A response header with the value 1 when a program was killed, and may have caused this itself. The client reads it as
CRASHED."""
# Metadata of the fields of a request that do not change the result of a program.
KEEPS_RESULT = {"keeps_result": True}
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


@attrs.define
class Program:
    """A program, and the options of its run after they were checked.

    The executor, the key of a stored result and the protocols of services read it.
    """

    language: Language | str
    code: str
    timeout_ms: int
    sandbox: SandboxConfig
    priority: str = attrs.field(metadata=KEEPS_RESULT)
    ext: dict[str, str]
    input: ProgramInput = NO_INPUT
    idempotent: bool = attrs.field(default=False, metadata=KEEPS_RESULT)
    displays: bool = False

    @classmethod
    def checked(
        cls,
        language: Language | str,
        code: object,
        default_sandbox: SandboxConfig,
        default_idempotent: bool = False,
        *,
        timeout_ms: object = None,
        ext: object = None,
        sandbox: object = None,
        priority: object = "normal",
        idempotent: object = None,
        stdin: object = "",
        argv: object = (),
        files: object = None,
        collect: object = (),
        displays: object = False,
    ) -> Program:
        """Check the caller's arguments. The defaults replace None. Raise InvalidRequestError if one is wrong."""
        limits = check_sandbox(sandbox) or default_sandbox
        if idempotent is not None:
            check_flag("idempotent", idempotent)
        if displays is not False:
            check_flag("displays", displays, optional=False)
        return cls(
            language,
            check_code(code),
            check_timeout_ms(timeout_ms, limits),
            limits,
            check_priority(priority),
            check_ext(ext),
            ProgramInput.checked(language, stdin=stdin, argv=argv, files=files, collect=collect),
            default_idempotent if idempotent is None else bool(idempotent),
            displays is True,
        )

    def encode(self) -> bytes:
        """Return the JSON of `to_wire`. Most programs differ only in their code, so the rest is encoded once."""
        if self.input is not NO_INPUT or self.displays or self.ext:
            return encode_json(self.to_wire())
        options = _encode_options(self.language, self.timeout_ms, self.sandbox, self.priority)
        return b'{"code":' + encode_text(_encode(self.code), TEXTS) + options

    def to_wire(self) -> dict[str, Any]:
        sandbox = self.sandbox
        body = {
            "language": self.language,
            "code": self.code,
            "timeout": self.timeout_ms,
            "priority": self.priority,
            "ext": self.ext,
            "sandbox": {
                "memory_limit_mb": sandbox.memory_limit_mb,
                "timeout_ms": self.timeout_ms,
                "max_output_bytes": sandbox.max_output_bytes,
                "network_enabled": sandbox.network_enabled,
            },
        }
        if self.input is not NO_INPUT:
            body |= self.input.to_wire()
        if self.displays:
            body["displays"] = True
        return body


@functools.lru_cache(maxsize=256)
def _encode_options(language: Language | str, timeout_ms: int, sandbox: SandboxConfig, priority: str) -> bytes:
    """Return the JSON of a program without its code, from the comma after the code."""
    body = Program(language, "", timeout_ms, sandbox, priority, {}).to_wire()
    del body["code"]
    return b"," + encode_json(body)[1:]


def encode_json(body: Mapping[str, Any]) -> bytes:
    return encode_text(_encode(body), TEXTS)


def check_code(code: object) -> str:
    if not isinstance(code, str):
        raise InvalidRequestError(f"code must be a str, got {type(code).__name__}")
    if not code or code.isspace():
        raise InvalidRequestError("code must not be empty")
    if not code.isascii():
        encode_text(code, TEXTS)
    return code
