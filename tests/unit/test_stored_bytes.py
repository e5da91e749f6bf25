"""The size of the files of a program is right, even if it moves them meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faasrt.local.jail.launcher import users

_BYTES = 2**20


def _move_after_listing(monkeypatch: pytest.MonkeyPatch, move: Callable[[], object], *, is_late: bool) -> None:
    """Call `move` after the second listing of a folder; if `is_late`, when all facts of its files have been read."""
    listings, list_folder = iter(range(100)), os.scandir

    @contextlib.contextmanager
    def scandir(fd: int) -> Iterator[Any]:
        entries, is_second = [*list_folder(fd)], next(listings) == 1
        if is_second and not is_late:
            move()
        yield entries
        if is_second and is_late:
            move()

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_becomes_a_link_leads_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files at the target of the link are not those of the program, which could learn their size."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    for folder in (home / "a" / "b", outside / "b"):
        folder.mkdir(parents=True)
    (outside / "b" / "file").write_bytes(bytes(2 * _BYTES))

    def move() -> None:
        (home / "a").rename(home / "c")
        (home / "a").symlink_to(outside)

    _move_after_listing(monkeypatch, move, is_late=True)
    assert users.stored_bytes(str(home), 0, _BYTES) < _BYTES


def test_a_file_that_is_moved_meanwhile_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "file"
    file.write_bytes(bytes(_BYTES // 2))
    _move_after_listing(monkeypatch, lambda: file.rename(tmp_path / "a" / "other"), is_late=False)
    assert users.stored_bytes(str(tmp_path), 0, _BYTES) >= _BYTES // 2
