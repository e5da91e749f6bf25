"""Finds the first difference between JSON values, without recursion, so that no nesting is too deep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from faasrt.errors import safe_repr

_MAX_STEPS_SHOWN = 20
# A value, and the path to it: None, or the path to the value that contains it, and its index or key there.
_Path = tuple[Any, Any] | None
_Pair = tuple[_Path, Any, Any]


def value_difference(
    value: object, expected: object, *, tuples_are_lists: bool, is_close: Callable[[float, float], bool] | None
) -> str:
    """Return the first difference in words, or "" if the values are equal.

    Args:
        value: None, a bool, a number, a str, or a list, tuple or dict of these.
        expected: The same.
        tuples_are_lists: Whether a tuple equals a list with the same elements.
        is_close: Whether two numbers count as equal. None compares them exactly.
    """
    unchecked: list[Iterator[_Pair]] = [iter([(None, value, expected)])]
    while unchecked:
        pair = next(unchecked[-1], None)
        if pair is None:
            unchecked.pop()
            continue
        path, got, wanted = pair
        if isinstance(wanted, (list, tuple)):
            if not isinstance(got, (list, tuple)):
                return _describe(path, wanted, got)
            if isinstance(got, list) is not isinstance(wanted, list) and not tuples_are_lists:
                return _describe(path, wanted, got)
            if len(got) != len(wanted):
                return f"{_name(path)}: expected {_count(wanted)}, got {_count(got)}: {safe_repr(got)}"
            unchecked.append(_elements(path, got, wanted))
        elif isinstance(wanted, dict):
            if not isinstance(got, dict):
                return _describe(path, wanted, got)
            for keys, others, kind in ((wanted, got, "missing"), (got, wanted, "unexpected")):
                if (key := next((key for key in keys if key not in others), None)) is not None:
                    return f"{_name(path)}: the key {safe_repr(key)} is {kind}"
            unchecked.append(_members(path, got, wanted))
        elif not _is_equal(got, wanted, is_close):
            return _describe(path, wanted, got)
    return ""


def _elements(path: _Path, got: Any, wanted: Any) -> Iterator[_Pair]:
    for index, pair in enumerate(zip(got, wanted, strict=True)):
        yield (path, index), *pair


def _members(path: _Path, got: dict[str, Any], wanted: dict[str, Any]) -> Iterator[_Pair]:
    for key, member in wanted.items():
        yield (path, key), got[key], member


def _is_equal(got: Any, wanted: Any, is_close: Callable[[float, float], bool] | None) -> bool:
    if isinstance(wanted, str):
        return isinstance(got, str) and got == wanted
    if wanted is None or isinstance(wanted, bool) or isinstance(got, bool):
        return got is wanted
    if not isinstance(got, (int, float)):
        return False
    return got == wanted or (is_close is not None and is_close(got, wanted))


def _describe(path: _Path, wanted: object, got: object) -> str:
    return f"{_name(path)}: expected {safe_repr(wanted)}, got {safe_repr(got)}"


def _count(values: Any) -> str:
    return f"{len(values)} element{'' if len(values) == 1 else 's'}"


def _name(path: _Path) -> str:
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(f"[{safe_repr(step)}]")
    if len(steps) > _MAX_STEPS_SHOWN:
        steps[1 : 1 - _MAX_STEPS_SHOWN] = ["[...]"]
    return "value" + "".join(reversed(steps))
