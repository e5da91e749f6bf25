"""Arguments and values of functions under test: JSON, in which a tuple is `{"py/tuple": [...]}`.

A program can forge the text of its value, so the text need not be JSON. It is decoded and then compared with the
expected value, both in time linear in its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from faasrt import _strict_json
from faasrt.errors import safe_repr

TUPLE = "py/tuple"
_MAX_STEPS_SHOWN = 20


def decode(text: str) -> Any:
    """Decode a text. Raise ValueError if it is not JSON, and RecursionError if it is nested too deeply."""
    return _strict_json.loads(text, object_pairs_hook=_decode_object)


def without_tuples(value: Any) -> Any:
    """Return the value with each tuple in its form in JSON. It must not be nested too deeply."""
    if isinstance(value, dict):
        return {key: without_tuples(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        members = [without_tuples(member) for member in value]
        return {TUPLE: members} if isinstance(value, tuple) else members
    return value


def with_tuples(value: Any) -> Any:
    """Restore the tuples in decoded JSON, which must not be nested too deeply."""
    if isinstance(value, list):
        return [with_tuples(member) for member in value]
    if isinstance(value, dict):
        return _decode_object([(key, with_tuples(member)) for key, member in value.items()])
    return value


def _decode_object(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1 and pairs[0][0] == TUPLE and isinstance(pairs[0][1], list):
        return tuple(pairs[0][1])
    return dict(pairs)


class _Repeated(dict[str, Any]):
    """An object with repeated keys. `items` has all of them, because each of its members must be right."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:
        return self._pairs


def _decode_all_members(pairs: list[tuple[str, Any]]) -> Any:
    value = _decode_object(pairs)
    return _Repeated(pairs) if isinstance(value, dict) and len(value) < len(pairs) else value


def difference(
    text: str,
    expected: object,
    *,
    tuples_are_lists: bool = False,
    is_close: Callable[[float, float], bool] | None = None,
) -> str:
    """Return the first difference between the value in a text, which need not be JSON, and the expected one in words,
    or "".

    Args:
        expected: JSON with tuples, nested at most 200 levels deep.
        is_close: Whether two numbers count as equal. Default: None, which compares them exactly.
    """
    try:
        value = _strict_json.loads(text, object_pairs_hook=_decode_all_members)
    except ValueError as error:
        return f"the return value is not JSON ({error})"
    except RecursionError:  # nested deeper than the expected value
        return f"value: expected {safe_repr(expected)}, got {text[:60]}..."
    return _Comparison(tuples_are_lists, is_close).find(value, expected, ())


@attrs.frozen
class _Comparison:
    tuples_are_lists: bool
    is_close: Callable[[float, float], bool] | None

    def find(self, value: Any, expected: Any, path: tuple[Any, ...]) -> str:
        """Return the first difference in words, or "". The path is the indices and keys that lead to the value."""
        if isinstance(expected, dict) and isinstance(value, tuple):
            value = {TUPLE: list(value)}  # the same JSON
        if isinstance(expected, dict) and isinstance(value, dict):
            return self._find_in_dict(value, expected, path)
        if isinstance(expected, (list, tuple)) and isinstance(value, (list, tuple)):
            if self.tuples_are_lists or isinstance(value, tuple) is isinstance(expected, tuple):
                return self._find_in_list(value, expected, path)
        elif self._is_equal(value, expected):
            return ""
        return f"{_name(path)}: expected {safe_repr(expected)}, got {safe_repr(value)}"

    def _find_in_list(self, value: Sequence[Any], expected: Sequence[Any], path: tuple[Any, ...]) -> str:
        for index, (member, expected_member) in enumerate(zip(value, expected, strict=False)):
            if found := self.find(member, expected_member, (*path, index)):
                return found
        if len(value) == len(expected):
            return ""
        elements = f"{len(expected)} element{'' if len(expected) == 1 else 's'}"
        return f"{_name(path)}: expected {elements}, got {len(value) if len(value) < len(expected) else 'more'}"

    def _find_in_dict(self, value: dict[str, Any], expected: dict[str, Any], path: tuple[Any, ...]) -> str:
        for key, member in value.items():
            if key not in expected:
                return f"{_name(path)}: the key {safe_repr(key)} is unexpected"
            if found := self.find(member, expected[key], (*path, key)):
                return found
        for key in expected:
            if key not in value:
                return f"{_name(path)}: the key {safe_repr(key)} is missing"
        return ""

    def _is_equal(self, value: Any, expected: Any) -> bool:
        if isinstance(expected, str):
            return isinstance(value, str) and value == expected
        if expected is None or isinstance(expected, bool) or isinstance(value, bool):
            return value is expected
        if not isinstance(value, (int, float)) or not isinstance(expected, (int, float)):
            return False
        return value == expected or (self.is_close is not None and self.is_close(value, expected))


def _name(path: tuple[Any, ...]) -> str:
    steps = [f"[{safe_repr(step)}]" for step in path]
    if len(steps) > _MAX_STEPS_SHOWN:
        steps[_MAX_STEPS_SHOWN - 1 : -1] = ["[...]"]
    return "value" + "".join(steps)
