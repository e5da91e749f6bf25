"""Collects the files that a program has left in its working folder.

The workers of the engine "wasm" import this module too, so it must load quickly: without asyncio.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from faasrt.errors import InvalidRequestError
from faasrt.inputs import MAX_FILES, MAX_PATH_PARTS, check_path
from faasrt.protocol.guest.python_files import PathMatcher

if TYPE_CHECKING:
    from faasrt.local.jail.jail import OwnedFd

MatchingFile = tuple[str, int | None, Callable[[int], bytes | None]]
"""The path and the size of a file, and a function that reads it. The size is None if this is a folder that cannot be
read. The function returns None if the file cannot be read, or is larger than its argument, a number of bytes."""
_SIZE_BYTES = 20  # the size of a file takes this many bytes in an answer
_MAX_ENTRIES = 10_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK, because opening a named pipe would wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def select_files(
    entries: Iterable[MatchingFile | None], matcher: PathMatcher, max_bytes: int, *, without: Sequence[str] = ()
) -> tuple[dict[str, bytes], bool]:
    """Read the files that match patterns, in their order, and return whether these are all of them.

    Args:
        entries: The files that match, and None for each other entry of a folder. At most 10,000 of them are examined.
        matcher: No file is read after it has become late, one second after its creation.
        max_bytes: The largest size of all contents and paths together.
    """
    selected: dict[str, bytes] = {}
    complete, left = True, max_bytes
    for number, entry in enumerate(entries):
        if number >= _MAX_ENTRIES or matcher.is_late:
            return selected, False
        if entry is None:
            continue
        path, _, read = entry
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


def list_sizes(
    entries: Iterable[MatchingFile | None], matcher: PathMatcher, max_bytes: int
) -> tuple[dict[str, int], bool]:
    """Return the sizes of files, and whether these are all. Folders that cannot be read, and files whose paths clients
    do not accept, are left out.
    """
    sizes: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if number >= _MAX_ENTRIES or matcher.is_late:
            return sizes, False
        if entry is None or entry[1] is None or not _is_valid(entry[0]):
            continue
        max_bytes -= len(entry[0].encode()) + _SIZE_BYTES
        if max_bytes < 0:
            return sizes, False
        sizes[entry[0]] = entry[1]
    return sizes, True


def _is_valid(path: str) -> bool:
    """Return whether the client accepts a path. Programs can create longer ones, and names that are not UTF-8."""
    try:
        check_path(path, "a path")
    except InvalidRequestError:
        return False
    return True


def collect_files(
    folder: OwnedFd, patterns: Sequence[str], max_bytes: int, *, without: Sequence[str] = (), in_time: bool = False
) -> tuple[dict[str, bytes], bool]:
    """Read the files in a folder that match patterns; see `select_files`. This blocks, so call it in a thread. If
    `in_time`, raise TimeoutError when reading takes too long.

    The program may be hostile. Symbolic links are not followed, and only regular files on the file system of the folder
    are read.
    """
    matcher = PathMatcher(patterns)
    selected = select_files(_walk_all(folder, matcher), matcher, max_bytes, without=without)
    if in_time and matcher.is_late:
        raise TimeoutError
    return selected


def list_folder(folder: OwnedFd, max_bytes: int) -> tuple[dict[str, int], bool]:
    matcher = PathMatcher(["**"])
    return list_sizes(_walk_all(folder, matcher), matcher, max_bytes)


def _walk_all(folder: OwnedFd, matcher: PathMatcher) -> Iterator[MatchingFile | None]:
    return _walk(folder.fd, "", os.fstat(folder.fd).st_dev, MAX_PATH_PARTS, matcher, matcher.start)


def _walk(
    folder: int, prefix: str, device: int, depth: int, matcher: PathMatcher, remaining: set[tuple[str, ...]]
) -> Iterator[MatchingFile | None]:
    """Yield the regular files that match and the entries that cannot be examined, by path, and None for others."""
    for name in sorted(os.listdir(folder)):
        following = matcher.after(remaining, name)
        if not following:
            yield None
            continue
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:  # the program has changed the mode of the folder, and the server is not root
            yield prefix + name, None, lambda max_bytes: None
            continue
        if stat.S_ISREG(status.st_mode):
            read = functools.partial(_read, folder, name, device)
            yield (prefix + name, status.st_size, read) if () in following else None
        elif stat.S_ISDIR(status.st_mode) and any(following):
            yield None
            inner = _open_folder(folder, name) if depth > 1 else None
            if inner is None:
                yield prefix + name, None, lambda max_bytes: None
                continue
            try:
                if os.fstat(inner).st_dev == device:
                    yield from _walk(inner, f"{prefix}{name}/", device, depth - 1, matcher, following)
            finally:
                os.close(inner)


def _open_folder(folder: int, name: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(name, _FOLDER, dir_fd=folder)
    return None


def _read(folder: int, name: str, device: int, max_bytes: int) -> bytes | None:
    try:
        fd = os.open(name, _FILE, dir_fd=folder)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_dev != device or status.st_size > max_bytes:
            return None
        with open(fd, "rb", closefd=False) as file:
            content = file.read(status.st_size + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    return content if len(content) <= max_bytes else None
