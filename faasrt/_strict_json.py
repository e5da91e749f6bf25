"""Strict JSON according to RFC 8259. Python's own decoder accepts NaN and Infinity, and decodes 1e999 as infinity."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

from faasrt.errors import safe_repr

_WHITE_SPACE = " \t\n\r"
_TOO_LONG = 10**4_300  # neither `json` nor `str` accepts it, by default


def loads(text: str, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Decode a JSON text. Of a repeated name in an object, the last value is used. Raise ValueError if it is not JSON,
    or has a number too large for a float or an integer with too many digits, and RecursionError if it is nested too
    deeply.
    """
    # Not `decode`, which looks for white space with regular expressions. This takes longer than decoding a short text.
    text = text.strip(_WHITE_SPACE)
    value, end = _decoder(object_pairs_hook).raw_decode(text)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def read(text: str, at: int) -> tuple[Any, int]:
    """Decode the JSON value that begins at a position, and return the position of its end."""
    return _decoder(None).raw_decode(text, at)


def dump_bytes(value: Any) -> bytes:
    """Encode JSON in UTF-8. Lone surrogates, which programs may print, are escaped."""
    return _ENCODER.encode(value).encode("utf-8", "backslashreplace")


def json_problem(value: Any, largest_int: float = math.inf, parents: tuple[int, ...] = ()) -> str:
    """Return the reason why a value cannot be sent as JSON, or ""."""
    if value is None or isinstance(value, (bool, str)):
        return ""
    if isinstance(value, int):
        if abs(value) >= _TOO_LONG:
            return "is or holds an integer with more than 4,300 digits"
        return "is or holds an integer above 2**53, which JavaScript would round" if abs(value) > largest_int else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"is or holds {safe_repr(value)}"
    if not isinstance(value, (list, tuple, dict)):
        return f"is or holds a {type(value).__name__}"
    if id(value) in parents or len(parents) > 200:
        return "contains itself" if id(value) in parents else "is nested more than 200 levels deep"
    parents = (*parents, id(value))
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            return f"holds a dict with the key {safe_repr(wrong[0])}, which is not a str"
        value = value.values()
    return next((problem for member in value if (problem := json_problem(member, largest_int, parents))), "")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:30]} is too large")
    return value


# Made once, because making one takes longer than encoding or decoding a short text.
_ENCODER = json.JSONEncoder(ensure_ascii=False)


@functools.cache
def _decoder(object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=object_pairs_hook
    )
