"""Numbers that the jail reads from /proc: memory and locks. The texts are in the format of Linux 6.12."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from faasrt.local.jail import cgroup
from faasrt.local.jail.launcher import process_memory

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
    assert process_memory.proportional_bytes(str(tmp_path)) == (3072 + 4096) * 1024


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
    assert process_memory.readable_folder(str(process)) == (None if lost else str(process))
    (process / "task/43/status").write_text("VmRSS:\t    4 kB\nVmPTE:\t    8 kB\n")
    assert process_memory.readable_folder(str(process)) == str(process / "task/43" if lost else process)


@pytest.mark.parametrize(("state", "threads"), [("R", 2), ("Z", 1)])
def test_a_process_with_its_first_thread_has_not_lost_it(tmp_path: Path, state: str, threads: int) -> None:
    _stat(tmp_path / "42", state, threads=threads)
    for name in ("42", "a process that has ended"):
        assert process_memory.readable_folder(str(tmp_path / name)) == str(tmp_path / name)


def test_locks_are_counted_for_their_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that wait for a lock count, too. Only so many lines are read, because many more would take seconds."""
    lines = [f"{n}: POSIX  ADVISORY  READ {10 + n % 2} fe:00:4000 {n} {n}\n" for n in range(3)]
    lines += ["3: -> POSIX  ADVISORY  WRITE 12 fe:00:4000 0 EOF\n"] * 20_000
    monkeypatch.setattr(process_memory, "open", lambda *_, **__: io.StringIO("".join(lines)), raising=False)
    holders = list(process_memory.lock_holders())
    assert holders[:4] == [10, 11, 10, 12]
    assert len(holders) == 16_384


def test_cgroups_do_without_the_cpu_controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Memory and processes must be limited. CPU time is divided only where the kernel allows it."""
    written = []

    def write(fd: int, data: bytes) -> int:
        written.append(data)
        if data in refused:
            raise PermissionError
        return os.write(fd, data)

    (tmp_path / "cgroup.subtree_control").touch()
    monkeypatch.setattr(cgroup, "os", SimpleNamespace(**{**vars(os), "write": write}))
    refused = {b"+cpu"}
    cgroup.enable_controllers(str(tmp_path))
    assert written == [b"+memory +pids", b"+cpu"]
    refused = {b"+memory +pids"}
    with pytest.raises(PermissionError):
        cgroup.enable_controllers(str(tmp_path))
