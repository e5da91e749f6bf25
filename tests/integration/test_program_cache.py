"""The cache of compiled programs: bounded, private, and safe when processes share it or are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from faasrt.local.engines.toolchain.program_cache import ProgramCache
from support.levels import NATIVE

pytestmark = NATIVE

FILES = {".out/main": bytes(range(256)), ".out/empty": b"", ".out/ü": b"x"}


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def set_age(path: Path, seconds: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


def test_an_entry_is_returned_as_it_was_stored(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path / "programs", 10_000)
    assert cache.get("a") is None
    cache.put("a", FILES)
    cache.put("b", {})
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (FILES, {}, None)


def test_other_users_cannot_read_it(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path / "programs", 10_000)
    cache.put("a", FILES)
    assert (tmp_path / "programs").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "programs" / "a").stat().st_mode & 0o777 == 0o600


def test_the_oldest_entries_are_removed(tmp_path: Path) -> None:
    """Reading an entry makes it young. The cache never holds more than its limit."""
    cache = ProgramCache(tmp_path, 10_000)
    for name in "abcdefghi":
        cache.put(name, {"x": bytes(1_000)})
        set_age(tmp_path / name, 1_000 - ord(name))
    cache.get("a")
    cache.put("new", {"x": bytes(1_000)})
    assert sizes(tmp_path) <= 10_000
    assert cache.get("a") is not None
    assert cache.get("b") is None
    assert cache.get("new") is not None


def test_an_entry_larger_than_the_cache_is_not_stored(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path, 1_000)
    cache.put("small", {"x": bytes(10)})
    cache.put("large", {"x": bytes(1_000)})
    assert cache.get("large") is None
    assert cache.get("small") is not None


@pytest.mark.parametrize("kept", [0, 3, 4, 10, 60, -1])
def test_a_damaged_entry_is_not_used(tmp_path: Path, kept: int) -> None:
    """It may have been cut by a crash of the machine. A new entry replaces it."""
    cache = ProgramCache(tmp_path, 10_000)
    cache.put("a", FILES)
    path = tmp_path / "a"
    path.write_bytes(path.read_bytes()[:kept])
    assert cache.get("a") is None
    path.write_bytes(b"\xff" * 100)
    assert cache.get("a") is None
    cache.put("a", FILES)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cache.get("a") is None
    cache.put("a", FILES)
    assert cache.get("a") == FILES


def test_an_entry_that_others_could_have_written_is_not_used(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path, 10_000)
    cache.put("a", FILES)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert cache.get("b") is None
    (tmp_path / "a").chmod(0o666)
    assert cache.get("a") is None


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """But not those that another process may be writing now."""
    cache = ProgramCache(tmp_path, 10_000)
    old, young = tmp_path / ".new-old", tmp_path / ".new-young"
    for path in (old, young):
        path.write_bytes(b"x")
    set_age(old, 4_000)
    cache.put("a", FILES)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The caller can still use what was compiled."""
    (tmp_path / "file").write_text("")
    cache = ProgramCache(tmp_path / "file" / "programs", 10_000)
    assert cache.get("a") is None
    with pytest.raises(OSError, match="Not a directory"):
        cache.put("a", FILES)


def _use(folder: Path, seed: int) -> bool:
    """Store and read entries like several servers at once. Return whether each entry was whole or missing."""
    cache = ProgramCache(folder, 50_000)
    whole = True
    for number in range(100):
        content = (number + seed) % 20
        cache.put(str(content), {"x": bytes([content]) * 5_000})
        for other in range(20):
            found = cache.get(str(other))
            whole = whole and found in (None, {"x": bytes([other]) * 5_000})
    return whole


def test_several_processes_can_share_it(tmp_path: Path) -> None:
    """They replace and remove the same entries. No reader sees a part of an entry."""
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert all(pool.starmap(_use, [(tmp_path, seed) for seed in (0, 7, 13)]))
    assert sizes(tmp_path) <= 70_000  # each process counts before it writes


def test_a_process_may_be_killed_while_it_stores(tmp_path: Path) -> None:
    """Every entry with a final name is whole."""
    code = (
        "import sys; from pathlib import Path; from faasrt.local.engines.toolchain.program_cache import ProgramCache\n"
        "cache = ProgramCache(Path(sys.argv[1]), 10**8); print('ready', flush=True)\n"
        "for n in range(10**6): cache.put(str(n % 50), {'x': bytes([n % 50]) * 200_000})"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            while len([*tmp_path.iterdir()]) < 5:
                pass
            process.send_signal(signal.SIGKILL)
    cache = ProgramCache(tmp_path, 10**8)
    names = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".new-")]
    assert names
    for name in names:
        assert cache.get(name) == {"x": bytes([int(name)]) * 200_000}
