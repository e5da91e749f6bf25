"""JSON as RFC 8259 has it: Python's own decoder also takes NaN and Infinity, and makes an infinity of 1e999."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def loads(text: str) -> Any:
    """Decode a text.

    Raises:
        ValueError: It is not JSON, or holds a number that no float can hold or an integer of too many digits.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:30]} is too large")
    return value
