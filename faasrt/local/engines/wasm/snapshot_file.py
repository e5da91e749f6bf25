"""Snapshots: the memory of the WebAssembly sandbox after it has imported some packages.

A file has the memory, some addresses in it, and the SHA-256 of both. It is sparse, and is never changed: it is
written under another name, and renamed. The mappings of it are private, so no program can change it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from faasrt.local.cache_folder import is_private
from faasrt.local.engines.wasm.module_cache import UNFINISHED

_PREFIX, _SUFFIX = "snapshot-", ".image"
_PLACES, _DIGEST_BYTES = struct.Struct("<4Q"), 32
_TRAILER_BYTES = _PLACES.size + _DIGEST_BYTES
_PIECE_BYTES = 4096
_READ_BYTES = 2**20
_MAP_FIXED = 0x10  # on Linux and macOS


@attrs.frozen
class Places:
    """Addresses in the memory of a snapshot.

    Attributes:
        name: Of the name of the working folder.
        sigint: Of the word which says that SIGINT has arrived.
        signals: Of the word which says that some signal has arrived.
        breaker: Of the word which lets the interpreter handle signals before its next step.
    """

    name: int
    sigint: int = 0
    signals: int = 0
    breaker: int = 0


class Snapshot:
    def __init__(self, fd: int, size: int, places: Places) -> None:
        self.fd, self.size, self.places = fd, size, places
        self._mmap = ctypes.CDLL(None, use_errno=True).mmap
        self._mmap.restype = ctypes.c_void_p
        self._mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]

    def map_at(self, address: int) -> None:
        """Replace the memory by a private copy of the snapshot. A page is copied when it is changed."""
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        if self._mmap(address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags, self.fd, 0) != address:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot map a snapshot: {os.strerror(number)}")


def snapshot_path(folder: Path, tier: str, key: str) -> Path:
    """`key` changes when the contents of the snapshot would change."""
    return folder / f"{_PREFIX}{tier}-{key}{_SUFFIX}"


def remove_snapshot(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def open_snapshot(path: Path, discard: Callable[[], None] | None = None) -> Snapshot | None:
    """A file that is incomplete, or that another user could have written, is discarded."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        size = status.st_size - _TRAILER_BYTES
        if is_private(status) and size > 0:
            places = Places(*_PLACES.unpack(os.pread(fd, _PLACES.size, size)))
            snapshot = Snapshot(fd, size, places)
            if os.pread(fd, _DIGEST_BYTES, size + _PLACES.size) == digest_of(snapshot):
                return snapshot
    except OSError:
        pass
    os.close(fd)
    if discard is None:
        remove_snapshot(path)
    else:
        discard()
    return None


@contextlib.contextmanager
def new_snapshot(path: Path) -> Iterator[int]:
    """Yield the descriptor of a new file. At the end, give it the name of a snapshot, and remove older snapshots of the
    same tier, except for the newest one: another version of faasrt may use it. After an exception, remove the file.
    """
    fd, temporary = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)  # readable and writable for its owner only
    try:
        with os.fdopen(fd, "w+b", buffering=0):
            yield fd
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    tier = path.name.removeprefix(_PREFIX).partition("-")[0]
    with contextlib.suppress(OSError):  # other processes may remove some, too
        others = {other for other in path.parent.glob(f"{_PREFIX}{tier}-*{_SUFFIX}") if other != path}
        for other in sorted(others, key=lambda other: other.stat().st_mtime)[:-1]:
            other.unlink()


def write_snapshot(fd: int, memory: memoryview, places: Places) -> Snapshot:
    os.ftruncate(fd, len(memory))
    empty = bytes(_PIECE_BYTES)
    for start in range(0, len(memory), _PIECE_BYTES):
        piece = memory[start : start + _PIECE_BYTES]
        if piece != empty:
            os.pwrite(fd, piece, start)
    snapshot = Snapshot(fd, len(memory), places)
    os.pwrite(fd, _packed(places) + digest_of(snapshot), len(memory))
    return snapshot


def digest_of(snapshot: Snapshot) -> bytes:
    digest = hashlib.sha256(_packed(snapshot.places))
    for start in range(0, snapshot.size, _READ_BYTES):
        digest.update(os.pread(snapshot.fd, min(_READ_BYTES, snapshot.size - start), start))
    return digest.digest()


def _packed(places: Places) -> bytes:
    return _PLACES.pack(*attrs.astuple(places))
