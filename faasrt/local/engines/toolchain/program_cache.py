"""The output of compilers, on the disk, for several servers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from faasrt.local.cache_folder import is_private

_LENGTH = struct.Struct("!I")
_DIGEST_BYTES = 32
_TEMPORARY = ".new-"
_ABANDONED_S = 3600.0
# An eviction removes more than necessary, so that not every new program causes one.
_KEPT_SHARE = 0.9


class ProgramCache:
    """Stores the output of compilers on disk, for several servers. When it is full, the entries that were not used for
    the longest time are removed.

    An entry is a file that gets its name only when it is complete, so a process may be killed at any time. Only the
    owner can read it or write to it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def get(self, key: str) -> dict[str, bytes] | None:
        """Return None if there is no entry, or if it is damaged or cannot be read."""
        path = self._folder / key
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                if not is_private(os.fstat(fd)):
                    return None  # another user could have written it
                files = _read(file)
            os.utime(path)
        except OSError:
            return None
        return files

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        pieces = _encode(files)
        size = sum(map(len, pieces))
        if size > self._max_bytes:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._evict(size)
        fd, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=self._folder)  # readable by its owner only
        try:
            with os.fdopen(fd, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(fd)  # otherwise a crash of the machine might leave an empty file with the final name
            Path(name).replace(self._folder / key)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise

    def _evict(self, needed_bytes: int) -> None:
        """Remove the oldest entries if there is no room, and files that killed processes have left."""
        entries = []
        total, now = needed_bytes, time.time()
        for entry in os.scandir(self._folder):
            with contextlib.suppress(OSError):  # another process has just removed it
                status = entry.stat(follow_symlinks=False)
                if entry.name.startswith(_TEMPORARY):
                    if now - status.st_mtime > _ABANDONED_S:
                        Path(entry.path).unlink()
                    continue
                total += status.st_size
                entries.append((status.st_mtime_ns, status.st_size, entry.path))
        if total <= self._max_bytes:
            return
        for _, size, path in sorted(entries):
            if total <= _KEPT_SHARE * self._max_bytes:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
            total -= size


def _encode(files: Mapping[str, bytes]) -> list[bytes]:
    """Return the pieces of an entry. The contents are not copied, because they may have many MiB."""
    head = json.dumps([(name, len(content)) for name, content in files.items()]).encode()
    pieces = [_LENGTH.pack(len(head)), head, *files.values()]
    return [_digest(pieces), *pieces]


def _read(file: BinaryIO) -> dict[str, bytes] | None:
    size = os.fstat(file.fileno()).st_size
    digest, length = file.read(_DIGEST_BYTES), file.read(_LENGTH.size)
    try:
        head = file.read(min(size, *_LENGTH.unpack(length)))
        sizes = [(str(name), int(size)) for name, size in json.loads(head)]
    except (struct.error, ValueError, TypeError):
        return None
    if size != _DIGEST_BYTES + len(length) + len(head) + sum(size for _, size in sizes):
        return None
    files = {name: file.read(size) for name, size in sizes if size >= 0}
    return files if _digest([length, head, *files.values()]) == digest else None


def _digest(pieces: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
