"""JSON as RFC 8259 has it: Python's own decoder also takes NaN and Infinity, and makes an infinity of 1e999."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn


def loads(text: str, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Decode a text.

    Args:
        text: The text.
        object_pairs_hook: Makes an object of its names and values; a dict when None, where the last of a name counts.

    Raises:
        ValueError: It is not JSON, or holds a number that no float can hold or an integer of too many digits.
        RecursionError: It is nested too deeply.
    """
    if object_pairs_hook is None:
        return _DECODER.decode(text)
    return json.loads(
        text, parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=object_pairs_hook
    )


def dump_bytes(value: Any) -> bytes:
    """Encode in UTF-8, where lone surrogates (which programs may print) become escapes."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:30]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_float)
