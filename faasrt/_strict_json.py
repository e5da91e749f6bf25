"""Strict JSON according to RFC 8259. Python's own decoder accepts NaN and Infinity, and decodes 1e999 as infinity."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

import attrs

from faasrt.errors import safe_repr

_WHITE_SPACE = " \t\n\r"
MAX_BYTES = 8 * 2**20
"""The largest size of values that are sent as JSON. The embedded FaaS accepts no larger request."""
MAX_LEVELS = 200
"""The largest number of levels of nested lists and objects."""
_LARGE_BYTES = 1_000
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


def dump_bytes(value: Any) -> bytes:
    """Encode JSON in UTF-8. Lone surrogates, which programs may print, are escaped."""
    return _ENCODER.encode(value).encode("utf-8", "backslashreplace")


def is_deep(value: Any) -> bool:
    """Return whether a decoded value is nested more than `MAX_LEVELS` levels deep."""
    # Level by level, because recursion could fail.
    parents = [value] if isinstance(value, (list, dict)) else []
    for _ in range(MAX_LEVELS):
        if not parents:
            break
        members = (each.values() if isinstance(each, dict) else each for each in parents)
        parents = [member for member in itertools.chain.from_iterable(members) if isinstance(member, (list, dict))]
    return bool(parents)


@attrs.define
class JsonCheck:
    """Checks values that are to be sent as JSON, and that they have `MAX_BYTES` together.

    `largest_int` is the largest integer that the receiver represents exactly.
    """

    largest_int: float = math.inf
    _size: int = attrs.field(default=0, init=False)  # the bytes of JSON at least
    _parents: set[int] = attrs.field(factory=set, init=False)
    # The sizes of large lists and dicts, by identity and level, because a small value may hold one of them many times.
    _sizes: dict[tuple[int, int], int] = attrs.field(factory=dict, init=False)

    def add(self, value: Any) -> None:
        """Raise ValueError with the reason if a value cannot be sent."""
        if isinstance(value, str):
            self._size += len(value) + 2
        elif value is None or isinstance(value, bool):
            self._size += 4
        elif isinstance(value, int):
            if abs(value) >= _TOO_LONG:
                raise ValueError("is or holds an integer with more than 4,300 digits")
            if abs(value) > self.largest_int:
                raise ValueError("is or holds an integer above 2**53, which JavaScript would round")
            self._size += 1 + value.bit_length() // 4
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"is or holds {safe_repr(value)}")
            self._size += 3
        elif isinstance(value, (list, tuple, dict)):
            self._add_members(value)
        else:
            raise ValueError(f"is or holds a {type(value).__name__}")
        if self._size > MAX_BYTES:
            raise ValueError(f"exceeds the limit of {MAX_BYTES:,} bytes")

    def _add_members(self, value: Any) -> None:
        before, place = self._size, (id(value), len(self._parents))
        if place in self._sizes:
            self._size += self._sizes[place]
            return
        if id(value) in self._parents:
            raise ValueError("contains itself")
        if len(self._parents) > MAX_LEVELS:
            raise ValueError(f"is nested more than {MAX_LEVELS} levels deep")
        self._parents.add(id(value))
        self._size += 2 * len(value) or 2
        members = value
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str):
                    raise ValueError(f"holds a dict with the key {safe_repr(name)}, which is not a str")
                self._size += len(name) + 3
            members = value.values()
        for member in members:
            self.add(member)
        self._parents.remove(id(value))
        if self._size - before > _LARGE_BYTES:
            self._sizes[place] = self._size - before


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
