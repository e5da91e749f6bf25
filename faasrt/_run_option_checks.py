"""Checks of the options of a run. The annotations are types, for the reason in `faasrt._setting_checks`."""

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any, TypeGuard

from faasrt.config import SandboxConfig
from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.inputs import encode_text

TEXTS = "code, ext and priority"
_MAX_COUNT = 100_000


def check_sandbox(sandbox: object) -> SandboxConfig | None:
    if sandbox is not None and not isinstance(sandbox, SandboxConfig):
        raise InvalidRequestError(f"sandbox must be a SandboxConfig, got {type(sandbox).__name__}")
    return sandbox


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is an int or a float. Unlike for `isinstance`, a bool is not a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_time_limit(timeout_ms: object) -> float | None:
    if timeout_ms is None:
        return None
    if not is_number(timeout_ms):
        raise InvalidRequestError(f"timeout_ms must be a number of milliseconds, got {safe_repr(timeout_ms)}")
    if not 0 < timeout_ms < math.inf:
        raise InvalidRequestError(f"timeout_ms must be finite and above 0, got {safe_repr(timeout_ms)}")
    return timeout_ms


def check_timeout_ms(timeout_ms: object, sandbox: SandboxConfig) -> int:
    """Return the time limit in whole milliseconds. It must not exceed the time limit of the sandbox."""
    checked = check_time_limit(timeout_ms)
    limit_ms = max(1, math.ceil(sandbox.timeout_limit_s * 1000))
    if checked is None:
        return limit_ms
    if checked > limit_ms:
        raise InvalidRequestError(
            f"timeout_ms must be at most the sandbox's limit of {limit_ms} ms, got {safe_repr(checked)}: increase "
            "SandboxConfig.timeout_limit_s"
        )
    return math.ceil(checked)


def check_ext(ext: object) -> dict[str, str]:
    if ext is None:
        return {}
    if not isinstance(ext, Mapping):
        raise InvalidRequestError(f"ext must map str to str, got {type(ext).__name__}")
    for key, value in ext.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidRequestError(f"ext must map str to str, got {safe_repr(key)}: {type(value).__name__}")
        encode_text(key + value, TEXTS)
    return dict(ext)


def check_args(args: Iterable[Any]) -> tuple[Any, ...]:
    """Raise InvalidRequestError for a single value such as a str, whose items would become the arguments."""
    is_one_value = isinstance(args, (str, bytes, bytearray, memoryview, Mapping, Set))
    if is_one_value or not isinstance(args, Iterable):
        raise InvalidRequestError(f"args must be a sequence of arguments, such as [1, 2], got {safe_repr(args)}")
    return tuple(args)


def check_kwargs(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise InvalidRequestError(f"kwargs must map names to arguments, got {safe_repr(kwargs)}")
    return dict(kwargs)


def check_flag(name: str, value: object, *, optional: bool = True) -> None:
    if not isinstance(value, bool) and not (optional and value is None):
        allowed = "True, False or None" if optional else "True or False"
        raise InvalidRequestError(f"{name} must be {allowed}, got {safe_repr(value)}")


def check_count(name: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= _MAX_COUNT:
        raise InvalidRequestError(f"{name} must be a whole number from 1 to {_MAX_COUNT:,}, got {safe_repr(value)}")


def check_priority(priority: object) -> str:
    if not isinstance(priority, str) or not priority:
        raise InvalidRequestError(f"priority must be a non-empty str such as 'normal', got {safe_repr(priority)}")
    if not priority.isascii():
        encode_text(priority, TEXTS)
    return priority
