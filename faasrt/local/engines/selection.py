"""Selects the files of a program that are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from faasrt.errors import InvalidRequestError
from faasrt.inputs import MAX_FILES, check_path
from faasrt.protocol.guest.python_files import matches_any

FoundFile = tuple[str, Callable[[int], bytes | None]]
"""The path of a file, and a function that reads it. The function returns None if the file cannot be read, or is larger
than its argument, a number of bytes."""
_MAX_ENTRIES = 10_000


def select_files(
    found: Iterable[FoundFile | None], patterns: Sequence[str], max_bytes: int, *, without: Sequence[str] = ()
) -> tuple[dict[str, bytes], bool]:
    """Read the files whose paths match patterns, in the given order, until they exceed a limit.

    Args:
        found: The files, and None for each folder. At most 10,000 of them are examined.
        patterns: The patterns; see `ProgramInput.collect`.
        max_bytes: The largest size of all contents and paths together.
        without: Paths to leave out.

    Returns:
        The contents by path, and whether these are all of the files that match.
    """
    selected: dict[str, bytes] = {}
    complete, left = True, max_bytes
    for number, entry in enumerate(found):
        if number >= _MAX_ENTRIES:
            return selected, False
        if entry is None:
            continue
        path, read = entry
        if path in without or not matches_any(path, patterns):
            continue
        content = None
        if len(selected) < MAX_FILES and _is_valid(path):
            left_after_path = left - len(path.encode())
            content = read(left_after_path)
        if content is None:
            complete = False
        else:
            selected[path] = content
            left = left_after_path - len(content)
    return selected, complete


def _is_valid(path: str) -> bool:
    """Return whether the client accepts a path. Programs can create longer ones, and names that are not UTF-8."""
    try:
        check_path(path, "a path")
    except InvalidRequestError:
        return False
    return True
