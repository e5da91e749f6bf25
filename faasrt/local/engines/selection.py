"""Selects the files of a program that are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from faasrt.errors import InvalidRequestError
from faasrt.inputs import MAX_FILES, check_path
from faasrt.protocol.guest.python_files import PathMatcher

FoundFile = tuple[str, Callable[[int], bytes | None]]
"""The path of a file, and a function that reads it. The function returns None if the file cannot be read, or is larger
than its argument, a number of bytes."""
_MAX_ENTRIES = 10_000


def select_files(
    found: Iterable[FoundFile | None], matcher: PathMatcher, max_bytes: int, *, without: Sequence[str] = ()
) -> tuple[dict[str, bytes], bool]:
    """Read the files that match patterns, in the given order, until they exceed a limit.

    Args:
        found: The files that match, and None for each other entry of a folder. At most 10,000 of them are examined.
        matcher: The matcher that `found` uses. No file is read after it has become late, one second after its creation.
        max_bytes: The largest size of all contents and paths together.
        without: Paths to leave out.

    Returns:
        The contents by path, and whether these are all of the files that match.
    """
    selected: dict[str, bytes] = {}
    complete, left = True, max_bytes
    for number, entry in enumerate(found):
        if number >= _MAX_ENTRIES or matcher.is_late:
            return selected, False
        if entry is None:
            continue
        path, read = entry
        if path in without:
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
