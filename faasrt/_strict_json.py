"""Strict JSON according to RFC 8259. Python's own decoder accepts NaN and Infinity, and decodes 1e999 as infinity."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from faasrt.errors import safe_repr


def loads(text: str, *, unique_names: bool = False) -> Any:
    """Decode a JSON text.

    Args:
        text: The text.
        unique_names: Whether to refuse an object with two fields of the same name. Default: False, which uses the last
            value.

    Raises:
        ValueError: The text is not JSON, or contains a number too large for a float, or an integer with too many
            digits, or a name twice.
        RecursionError: The text is nested too deeply.
    """
    return (_UNIQUE_DECODER if unique_names else _DECODER).decode(text)


def read(text: str, at: int) -> tuple[Any, int]:
    """Decode the JSON value that begins at a position of a text. Return it, and the position of its end.

    Raises:
        ValueError: See `loads`.
        RecursionError: See `loads`.
    """
    return _DECODER.raw_decode(text, at)


def dump_bytes(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8. Lone surrogates, which programs may print, are escaped."""
    return _ENCODER.encode(value).encode("utf-8", "backslashreplace")


def json_problem(value: Any, largest_int: float = math.inf, parents: tuple[int, ...] = ()) -> str:
    """Return the reason why a value cannot be sent as JSON, or ""."""
    if value is None or isinstance(value, (bool, str)):
        return ""
    if isinstance(value, int):
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


def _dict_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an object has two fields of the same name")
    return fields


# Made once, because making one takes longer than decoding a short text.
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_float)
_UNIQUE_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=_dict_without_duplicates
)
