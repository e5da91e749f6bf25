"""Collects files that a program has left in its working folder."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import stat
from collections.abc import Iterator, Sequence

import attrs

from faasrt.inputs import MAX_PATH_PARTS, program_file
from faasrt.local.engines.base import EngineJob, EngineResult, NotStartedError
from faasrt.local.engines.selection import FoundFile, select_files
from faasrt.protocol.guest.python_files import PathMatcher

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK, because opening a named pipe would wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """An open folder. It is closed when nothing refers to it, because a thread may still read it after a cancellation.

    Attributes:
        fd: The descriptor.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


async def add_files(result: EngineResult, job: EngineJob, folder: Folder, max_bytes: int | None = None) -> EngineResult:
    """Return a result with the files that its program has left in a folder. Its processes must have ended.

    Args:
        max_bytes: The largest size of the output of a compiler; None means the output limit of the program.

    Raises:
        NotStartedError: The output of a compiler could not be read in time.
    """
    own_file, limit = program_file(job.language), job.limits.max_output_bytes if max_bytes is None else max_bytes
    # A thread, because the folder may contain thousands of files.
    collect = functools.partial(collect_files, without=[own_file], in_time=max_bytes is not None)
    try:
        found, complete = await asyncio.to_thread(collect, folder, job.input.collect, limit)
    except TimeoutError:
        raise NotStartedError("the output of the compiler could not be read in time") from None
    truncated = result.truncated if complete else tuple(sorted([*result.truncated, "files"]))
    return attrs.evolve(result, files=found, truncated=truncated)


def collect_files(
    folder: Folder, patterns: Sequence[str], max_bytes: int, *, without: Sequence[str] = (), in_time: bool = False
) -> tuple[dict[str, bytes], bool]:
    """Read the files in a folder that match patterns; see `select_files`. This blocks, so call it in a thread.

    Args:
        patterns: The patterns; see `ProgramInput.collect`.
        in_time: Whether to raise TimeoutError if reading takes too long.

    The program may be hostile. Symbolic links are not followed, and only regular files on the file system of the folder
    are read.
    """
    device = os.fstat(folder.fd).st_dev
    matcher = PathMatcher(patterns)
    found = _walk(folder.fd, "", device, MAX_PATH_PARTS, matcher, matcher.start)
    selected = select_files(found, matcher, max_bytes, without=without)
    if in_time and matcher.is_late:
        raise TimeoutError
    return selected


def _walk(
    folder: int, prefix: str, device: int, depth: int, matcher: PathMatcher, remaining: set[tuple[str, ...]]
) -> Iterator[FoundFile | None]:
    """Yield the regular files that match and the entries that cannot be examined, by path, and None for others."""
    for name in sorted(os.listdir(folder)):
        following = matcher.after(remaining, name)
        if not following:
            yield None
            continue
        try:
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        except OSError:  # the program has changed the mode of the folder, and the server is not root
            yield prefix + name, lambda max_bytes: None
            continue
        if stat.S_ISREG(mode):
            yield (prefix + name, functools.partial(_read, folder, name, device)) if () in following else None
        elif stat.S_ISDIR(mode) and any(following):
            yield None
            inner = _open_folder(folder, name) if depth > 1 else None
            if inner is None:
                yield prefix + name, lambda max_bytes: None
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
    """Return the content of a regular file. Return None if it cannot be read, or is larger than a size."""
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
