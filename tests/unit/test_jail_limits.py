"""Numbers that the jail reads from /proc: memory and ids. The texts are in the format of Linux 6.12."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from faasrt.local.jail import memory, namespaces

_ROLLUP = """\
55d6c1a00000-7ffc3b9fe000 ---p 00000000 00:00 0                          [rollup]
Rss:                9336 kB
Pss:                3072 kB
Pss_Dirty:          2048 kB
Pss_Anon:           1900 kB
Swap:               8192 kB
SwapPss:            4096 kB
Locked:                0 kB
"""


def test_swapped_memory_counts(tmp_path: Path) -> None:
    """Memory counts as before when the kernel moves it to swap. Memory in swap that is shared counts in part, too."""
    (tmp_path / "smaps_rollup").write_text(_ROLLUP)
    assert memory.proportional_bytes(str(tmp_path)) == (3072 + 4096) * 1024


def _stat(folder: Path, state: str, *, threads: int = 1, flags: int = 0, signals: int = 0) -> None:
    folder.mkdir(parents=True)
    fields = [state, *"0" * 49]
    fields[6], fields[17], fields[28] = str(flags), str(threads), str(signals)
    (folder / "stat").write_text(f"42 (a) b) {' '.join(fields)}\n")


@pytest.mark.parametrize(
    ("other", "lost"),
    [
        ({"state": "R"}, True),
        ({"state": "S"}, True),
        ({"state": "R", "signals": 1 << 8}, False),
        ({"state": "R", "flags": 0x40_0004}, False),
    ],
)
def test_memory_is_hidden_only_while_another_thread_goes_on(tmp_path: Path, other: dict[str, Any], lost: bool) -> None:
    """If the first thread has ended, the others may go on. If they end, too, the process is ending as a whole."""
    process = tmp_path / "42"
    _stat(process, "Z", threads=2)
    _stat(process / "task/42", "Z", flags=0x40_0004)
    _stat(process / "task/43", **other)
    assert memory.readable_folder(str(process)) == (None if lost else str(process))
    (process / "task/43/statm").write_text("2 1 0 0 0 0 0\n")
    assert memory.readable_folder(str(process)) == str(process / "task/43" if lost else process)


@pytest.mark.parametrize(("state", "threads"), [("R", 2), ("Z", 1)])
def test_a_process_with_its_first_thread_has_not_lost_it(tmp_path: Path, state: str, threads: int) -> None:
    _stat(tmp_path / "42", state, threads=threads)
    for name in ("42", "a process that has ended"):
        assert memory.readable_folder(str(tmp_path / name)) == str(tmp_path / name)


def _maps(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(namespaces, "open", lambda *_, **__: io.StringIO(text), raising=False)


@pytest.mark.parametrize("count", [10, 11, 19, 20, 100, 5_000, 65_536, 1_000_000])
def test_a_jail_takes_its_ids_from_the_upper_half_of_a_small_range(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """All ids belong to the container, none is that of its root, and at least four programs have ids of their own."""
    _maps(monkeypatch, f"         0     100000 {count:>10}\n")
    for _ in range(200):
        first, used = namespaces.host_ids()
        assert used >= 5
        assert count // 2 <= first
        assert first + used <= count


def test_a_jail_refuses_a_range_with_too_few_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    _maps(monkeypatch, "         0     100000          9\n")
    with pytest.raises(OSError, match="too few user ids in this container: the jail needs at least 10"):
        namespaces.host_ids()


def test_jails_take_blocks_of_ids_that_do_not_overlap_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jails have distinct ids, or with a small probability the same ids."""
    _maps(monkeypatch, "         0     100000      65536\n")
    blocks = {namespaces.host_ids() for _ in range(500)}
    assert len(blocks) > 50
    starts = sorted(first for first, _ in blocks)
    used = {count for _, count in blocks}.pop()
    assert all(later - earlier >= used for earlier, later in itertools.pairwise(starts))


def test_locks_count_for_the_holders_with_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine locks of each process are free. If it has more, all of them count. Processes of other jails do not count."""
    holders = {10: 9, 11: 10, 12: 30, 13: 50}
    lines = [
        f"{n}: POSIX  ADVISORY  WRITE {pid} fe:00:{4000 + n} {n} {n}\n"
        for pid, locks in holders.items()
        for n in range(locks)
    ]
    jails = {"10": "pid:[1]", "11": "pid:[1]", "12": "pid:[1]", "13": "pid:[2]"}
    monkeypatch.setattr(memory, "open", lambda *_, **__: io.StringIO("".join(lines)), raising=False)
    monkeypatch.setattr(os, "readlink", lambda path: jails[path.split("/")[2]])
    assert memory.count_locks(10) == 10 + 30
    assert memory.count_locks(13) == 50
