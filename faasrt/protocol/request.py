"""The request of `POST /run_code`: checks its arguments, and encodes it.

Source: coze-loop's evaluation runtime defines the fields, except `sandbox` and those of `faasrt.inputs`, which its
servers ignore.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import attrs

from faasrt.config import SandboxConfig
from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.inputs import NO_INPUT, ProgramInput, encode_text
from faasrt.languages import Language

NOT_STARTED_HEADER = "x-faasrt-not-started"
PROGRAM_SUSPECT_HEADER = "x-faasrt-program-suspect"
"""A response header with the value 1 when a program was killed, and may have caused this itself. The client reads it as
CRASHED."""
_TEXTS = "code, ext and priority"
# Metadata of the fields of a request that do not change the result of a program.
KEEPS_RESULT = {"keeps_result": True}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@attrs.define(kw_only=True)
class RunRequest:
    """A program, and the options of its run after they were checked.

    The executor, the key of a stored result and the protocols of services read it.
    """

    language: Language | str
    code: str
    timeout_ms: int
    sandbox: SandboxConfig
    priority: str = attrs.field(metadata=KEEPS_RESULT)
    ext: Mapping[str, str]
    input: ProgramInput = NO_INPUT
    idempotent: bool = attrs.field(default=False, metadata=KEEPS_RESULT)

    @classmethod
    def checked(
        cls,
        language: Language | str,
        code: object,
        default_sandbox: SandboxConfig,
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
    ) -> RunRequest:
        """Return a request with the caller's arguments, after checking them.

        Args:
            default_sandbox: The limits if `sandbox` is None.
            idempotent: None means False.

        Raises:
            InvalidRequestError: An argument is wrong.
        """
        limits = default_sandbox if sandbox is None else sandbox
        if not isinstance(limits, SandboxConfig):
            raise InvalidRequestError(f"sandbox must be a SandboxConfig, got {type(limits).__name__}")
        check_flag("idempotent", idempotent)
        return cls(
            language=language,
            code=check_code(code),
            timeout_ms=check_timeout_ms(timeout_ms, limits),
            sandbox=limits,
            priority=check_priority(priority),
            ext=check_ext(ext),
            input=ProgramInput.checked(language, stdin=stdin, argv=argv, files=files, collect=collect),
            idempotent=bool(idempotent),
        )

    def encode(self) -> bytes:
        sandbox = self.sandbox
        body = {
            "language": str(self.language),
            "code": self.code,
            "timeout": self.timeout_ms,
            "priority": self.priority,
            "ext": dict(self.ext),
            "sandbox": {
                "memory_limit_mb": int(sandbox.memory_limit_mb),
                "timeout_ms": self.timeout_ms,
                "max_output_bytes": int(sandbox.max_output_bytes),
                "network_enabled": sandbox.network_enabled,
            },
            **self.input.to_wire(),
        }
        return encode_json(body)


def encode_json(body: Mapping[str, Any]) -> bytes:
    """Return a JSON body in UTF-8. Raise InvalidRequestError if it contains a lone surrogate."""
    return encode_text(_encode(body), _TEXTS)


def check_code(code: object) -> str:
    """Return the code. Raise InvalidRequestError if it is no str, only whitespace, or has a lone surrogate."""
    if not isinstance(code, str):
        raise InvalidRequestError(f"code must be a str, got {type(code).__name__}")
    if not code or code.isspace():
        raise InvalidRequestError("code must not be empty")
    if not code.isascii():
        encode_text(code, _TEXTS)
    return code


def check_timeout_ms(timeout_ms: object, sandbox: SandboxConfig) -> int:
    """Return the time limit in whole milliseconds; that of the sandbox for None. Raise InvalidRequestError if it is not
    a number above 0, or exceeds the limit of the sandbox.
    """
    limit_ms = max(1, math.ceil(sandbox.timeout_limit_s * 1000))
    if timeout_ms is None:
        return limit_ms
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, (int, float)):
        raise InvalidRequestError(f"timeout_ms must be a number of milliseconds, got {safe_repr(timeout_ms)}")
    if not 0 < timeout_ms < math.inf:
        raise InvalidRequestError(f"timeout_ms must be finite and above 0, got {safe_repr(timeout_ms)}")
    if timeout_ms > limit_ms:
        raise InvalidRequestError(
            f"timeout_ms must be at most the sandbox's limit of {limit_ms} ms, got {safe_repr(timeout_ms)}: increase "
            "SandboxConfig.timeout_limit_s"
        )
    return math.ceil(timeout_ms)


def check_ext(ext: object) -> Mapping[str, str]:
    """Return `ext`, or {} for None. Raise InvalidRequestError if it is not a mapping of str to str without lone
    surrogates.
    """
    if ext is None:
        return {}
    if not isinstance(ext, Mapping):
        raise InvalidRequestError(f"ext must map str to str, got {type(ext).__name__}")
    for key, value in ext.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidRequestError(f"ext must map str to str, got {safe_repr(key)}: {type(value).__name__}")
        encode_text(key + value, _TEXTS)
    return ext


def check_flag(name: str, value: object, *, optional: bool = True) -> None:
    """Raise InvalidRequestError if an argument is not a bool, or None where that is allowed."""
    if not isinstance(value, bool) and not (optional and value is None):
        allowed = "True, False or None" if optional else "True or False"
        raise InvalidRequestError(f"{name} must be {allowed}, got {safe_repr(value)}")


def check_priority(priority: object) -> str:
    """Return the priority, or raise InvalidRequestError if it is not a str, is empty, or contains a lone surrogate."""
    if not isinstance(priority, str) or not priority:
        raise InvalidRequestError(f"priority must be a non-empty str such as 'normal', got {safe_repr(priority)}")
    if not priority.isascii():
        encode_text(priority, _TEXTS)
    return priority
