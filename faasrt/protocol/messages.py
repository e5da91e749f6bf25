"""The request and the answer of `POST /run_code`, checked and turned into bytes and back.

Source: the shapes are those of coze-loop's evaluation runtime; `sandbox`, `outcome`, `error_info` and `truncated` are
ours, and other servers ignore or omit them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import attrs

from faasrt import strict_json
from faasrt.config import SandboxConfig
from faasrt.errors import InvalidRequestError, ProtocolError, shown
from faasrt.languages import Language

NOT_STARTED_HEADER = "x-faasrt-not-started"
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@attrs.define(kw_only=True)
class RunRequest:
    """One execution, as a caller asks for it."""

    language: Language
    code: str
    timeout_ms: int
    sandbox: SandboxConfig
    priority: str
    ext: Mapping[str, str]

    @classmethod
    def checked(
        cls, language: Language, code: object, timeout_ms: object, sandbox: object, ext: object, priority: object
    ) -> RunRequest:
        """Make a request of what a caller gave; see the functions below.

        Raises:
            InvalidRequestError: An argument is wrong.
        """
        if not isinstance(sandbox, SandboxConfig):
            raise InvalidRequestError(f"sandbox must be a SandboxConfig, got {type(sandbox).__name__}")
        return cls(
            language=language,
            code=check_code(code),
            timeout_ms=check_timeout_ms(timeout_ms, sandbox),
            sandbox=sandbox,
            priority=check_priority(priority),
            ext=check_ext(ext),
        )

    def encode(self) -> bytes:
        """Give the JSON body in UTF-8."""
        sandbox, quote = self.sandbox, json.encoder.encode_basestring
        # Put together by hand, at a quarter of what json.dumps takes: nearly all of it is the same in every call. And
        # what is plain ASCII, as guest programs are, is quoted four times as fast by the function for that.
        code = json.encoder.encode_basestring_ascii(self.code) if self.code.isascii() else quote(self.code)
        text = (
            f'{{"language":{quote(self.language)},"code":{code},"timeout":{self.timeout_ms},'
            f'"priority":{quote(self.priority)},"ext":{_dumps(dict(self.ext)) if self.ext else "{}"},'
            f'"sandbox":{{"memory_limit_mb":{int(sandbox.memory_limit_mb)},"timeout_ms":{self.timeout_ms},'
            f'"max_output_bytes":{int(sandbox.max_output_bytes)},'
            f'"network_enabled":{"true" if sandbox.network_enabled else "false"}}}}}'
        )
        return _refuse_surrogates(text)


def encode_json(body: Mapping[str, Any]) -> bytes:
    """Give a request's JSON in UTF-8; a lone surrogate in it is an `InvalidRequestError`."""
    return _refuse_surrogates(_dumps(body))


def _refuse_surrogates(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"the code or ext holds a lone surrogate ({error.object[error.start]!r}), which cannot be sent as UTF-8"
        ) from None


def check_code(code: object) -> str:
    """Give the code back.

    Raises:
        InvalidRequestError: It is no string, nothing but white space, or holds a lone surrogate.
    """
    if not isinstance(code, str):
        raise InvalidRequestError(f"code must be a str, got {type(code).__name__}")
    if not code or code.isspace():
        raise InvalidRequestError("code must not be empty")
    if not code.isascii():
        _refuse_surrogates(code)
    return code


def check_timeout_ms(timeout_ms: object, sandbox: SandboxConfig) -> int:
    """Give the limit of an execution in whole milliseconds, clamped to the sandbox's.

    Raises:
        InvalidRequestError: It is no number, a bool, not finite, or not above 0.
    """
    ceiling = max(1, math.ceil(sandbox.timeout_limit_s * 1000))
    if timeout_ms is None:
        return ceiling
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, (int, float)):
        raise InvalidRequestError(f"timeout_ms must be a number of milliseconds, got {shown(timeout_ms)}")
    if not 0 < timeout_ms < math.inf:
        raise InvalidRequestError(f"timeout_ms must be finite and above 0, got {shown(timeout_ms)}")
    return ceiling if timeout_ms >= ceiling else math.ceil(timeout_ms)


def check_ext(ext: object) -> Mapping[str, str]:
    """Give `ext` back, {} for None.

    Raises:
        InvalidRequestError: It is no mapping of str to str, or holds a lone surrogate.
    """
    if ext is None:
        return {}
    if not isinstance(ext, Mapping):
        raise InvalidRequestError(f"ext must map str to str, got {type(ext).__name__}")
    for key, value in ext.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidRequestError(f"ext must map str to str, got {shown(key)}: {type(value).__name__}")
        _refuse_surrogates(key + value)
    return ext


def check_flag(name: str, value: object, *, optional: bool = True) -> None:
    """Check an argument that is a bool, or None where that is allowed.

    Raises:
        InvalidRequestError: It is neither.
    """
    if not isinstance(value, bool) and not (optional and value is None):
        raise InvalidRequestError(
            f"{name} must be True{', False or None' if optional else ' or False'}, got {shown(value)}"
        )


def check_priority(priority: object) -> str:
    """Give the priority back.

    Raises:
        InvalidRequestError: It is no string, or empty.
    """
    if not isinstance(priority, str) or not priority:
        raise InvalidRequestError(f"priority must be a non-empty str such as 'normal', got {shown(priority)}")
    return priority


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object strictly.

    Raises:
        ProtocolError: The body is not UTF-8, not JSON (NaN, Infinity and numbers too large for a float are none), too
            deep, or not an object.
    """
    try:
        value = strict_json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the answer is not UTF-8 (byte {error.start})", sent="yes") from None
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the answer is not JSON ({str(error)[:200]})", sent="yes") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"the answer is JSON but no object: {type(value).__name__}", sent="yes")
    return value
