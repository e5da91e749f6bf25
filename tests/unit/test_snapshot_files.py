"""The files of snapshots are private, complete or absent, and sparse."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from faasrt.local.engines.wasm.snapshot_file import Places, Snapshot, new_snapshot, open_snapshot, write_snapshot


def make(path: Path) -> None:
    with new_snapshot(path) as fd:
        write_snapshot(fd, memoryview(b"\0" * 4096 + b"x" * 4096 + b"\0" * 57_344), Places(5))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"y" + path.read_bytes()[1:]),
        lambda path: path.write_bytes(b""),
        lambda path: path.chmod(0o644),
        lambda path: path.with_name("other").hardlink_to(path),
    ],
    ids=["short", "changed", "empty", "readable", "linked"],
)
def test_a_damaged_snapshot_is_removed(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """A file that is not complete, or not private, is never used."""
    path = tmp_path / "snapshot-x-1.image"
    make(path)
    assert isinstance(open_snapshot(path), Snapshot)
    damage(path)
    assert open_snapshot(path) is None
    assert not path.exists()


def test_a_new_snapshot_replaces_old_ones_of_its_tier(tmp_path: Path) -> None:
    """Empty pages take no space, and only the two newest files of each tier are kept."""
    for name in ("snapshot-x-1.image", "snapshot-y-1.image", "snapshot-x-2.image", "snapshot-x-3.image"):
        make(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "snapshot-x-2.image",
        "snapshot-x-3.image",
        "snapshot-y-1.image",
    ]
    assert (tmp_path / "snapshot-x-3.image").stat().st_blocks * 512 <= 16_384


def test_a_snapshot_that_fails_its_test_is_not_kept(tmp_path: Path) -> None:
    """The file exists under its name only after the test."""
    path = tmp_path / "snapshot-x-1.image"
    with pytest.raises(OSError), new_snapshot(path) as fd:  # noqa: PT011
        os.close(fd)
    assert list(tmp_path.iterdir()) == []
