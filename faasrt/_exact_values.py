"""Arguments and values of functions under test: JSON, in which a tuple is `{"py/tuple": [...]}`.

A program can forge the text of its value, and make it large. So it is compared with an expected value as it is read,
without decoding it as a whole: in linear time, without further memory, and up to the first difference only.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import attrs

from faasrt import _strict_json
from faasrt.errors import safe_repr

TUPLE = "py/tuple"
_Path = tuple[Any, Any] | None
"""The path to a value: None, or the path to the value that contains it, and its index or key there."""
_MAX_STEPS_SHOWN = 20
# A longer text is shown as it is, and not decoded.
_MAX_DECODED = 10_000
_SPACE = re.compile(r"[ \t\n\r]*")
_TAG = re.compile(rf'\{{[ \t\n\r]*"{TUPLE}"[ \t\n\r]*:[ \t\n\r]*')


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


_DECODER = json.JSONDecoder(object_pairs_hook=_decode_object)


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
    comparison = _Comparison(text, tuples_are_lists, is_close)
    try:
        comparison.run(expected)
    except _DifferenceError as different:
        return str(different)
    except ValueError as error:
        return f"the return value is not JSON ({error})"
    return ""


class _DifferenceError(Exception):
    """The message describes the difference."""


@attrs.define
class _Comparison:
    text: str
    tuples_are_lists: bool
    is_close: Callable[[float, float], bool] | None
    at: int = 0

    def run(self, expected: object) -> None:
        self.at = self._skip_space(0)
        self._compare(expected, None)
        if self.at < len(self.text):
            raise ValueError(f"unexpected text at character {self.at}")

    def _compare(self, expected: Any, path: _Path) -> None:
        if isinstance(expected, (list, tuple)):
            self._compare_list(expected, path)
        elif isinstance(expected, dict):
            self._compare_dict(expected, path)
        else:
            start = self.at
            if self.text.startswith(("[", "{"), start) or not self._is_equal(self._read_scalar(), expected):
                self._differ(path, expected, start)

    def _compare_list(self, expected: Any, path: _Path) -> None:
        start = self.at
        tag = _TAG.match(self.text, start)
        if tag is not None:
            self.at = tag.end()
        is_alike = self.tuples_are_lists or isinstance(expected, tuple) is (tag is not None)
        if not is_alike or not self._take("["):
            self._differ(path, expected, start)
        count = 0
        if not self._take("]"):
            while True:
                if count == len(expected):
                    raise _DifferenceError(f"{_name(path)}: expected {_elements(count)}, got more")
                self._compare(expected[count], (path, count))
                count += 1
                if self._take("]"):
                    break
                self._need(",")
        if count < len(expected):
            raise _DifferenceError(f"{_name(path)}: expected {_elements(len(expected))}, got {count}")
        if tag is not None and not self._take("}"):
            self._differ(path, expected, start)

    def _compare_dict(self, expected: dict[str, Any], path: _Path) -> None:
        if not self._take("{"):
            self._differ(path, expected, self.at)
        missing = dict.fromkeys(expected)
        if not self._take("}"):
            while True:
                key = self._read_key()
                if key not in expected:
                    raise _DifferenceError(f"{_name(path)}: the key {safe_repr(key)} is unexpected")
                missing.pop(key, None)
                self._compare(expected[key], (path, key))
                if self._take("}"):
                    break
                self._need(",")
        if missing:
            raise _DifferenceError(f"{_name(path)}: the key {safe_repr(next(iter(missing)))} is missing")

    def _is_equal(self, value: Any, expected: Any) -> bool:
        if isinstance(expected, str):
            return isinstance(value, str) and value == expected
        if expected is None or isinstance(expected, bool) or isinstance(value, bool):
            return value is expected
        if not isinstance(value, (int, float)):
            return False
        return value == expected or (self.is_close is not None and self.is_close(value, expected))

    def _read_scalar(self) -> Any:
        value, end = _strict_json.read(self.text, self.at)
        self.at = self._skip_space(end)
        return value

    def _read_key(self) -> str:
        if not self.text.startswith('"', self.at):
            raise ValueError(f"a key is missing at character {self.at}")
        key: str = self._read_scalar()
        self._need(":")
        return key

    def _take(self, character: str) -> bool:
        """Skip a character and the space after it. Return whether it is at the position."""
        if not self.text.startswith(character, self.at):
            return False
        self.at = self._skip_space(self.at + 1)
        return True

    def _need(self, character: str) -> None:
        if not self._take(character):
            raise ValueError(f"{character!r} is missing at character {self.at}")

    def _skip_space(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return at if match is None else match.end()

    def _differ(self, path: _Path, expected: object, start: int) -> NoReturn:
        got = f"{self.text[start : start + 60]}..."
        if not self.text.startswith(("[", "{"), start):
            self.at = start
            got = safe_repr(self._read_scalar())
        elif len(self.text) - start <= _MAX_DECODED:
            with contextlib.suppress(ValueError, RecursionError):
                got = safe_repr(_DECODER.raw_decode(self.text, start)[0])
        raise _DifferenceError(f"{_name(path)}: expected {safe_repr(expected)}, got {got}")


def _elements(count: int) -> str:
    return f"{count} element{'' if count == 1 else 's'}"


def _name(path: _Path) -> str:
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(f"[{safe_repr(step)}]")
    if len(steps) > _MAX_STEPS_SHOWN:
        steps[1 : 1 - _MAX_STEPS_SHOWN] = ["[...]"]
    return "value" + "".join(reversed(steps))
