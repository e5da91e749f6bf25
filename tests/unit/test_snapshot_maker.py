"""Snapshots of packages are made one at a time, and those that programs need come first. The optimized sandbox comes
last.
"""

from __future__ import annotations

import asyncio
import errno
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from faasrt.local.engines.python_tiers import STANDARD_TIER, TIERS, packages_of, tiers_of
from faasrt.local.engines.wasm import snapshot_maker
from faasrt.local.engines.wasm.module_cache import OPTIMIZED
from faasrt.local.engines.wasm.snapshot_maker import SnapshotMaker
from faasrt.local.errors import NotStartedError
from support.helpers import Clock

pytestmark = pytest.mark.asyncio
ALL = [*TIERS, OPTIMIZED]


class Maker:
    """Makes empty files in place of snapshots, one each time that `go` is set."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, free_bytes: int = 2**40, memory_mb: float = math.inf
    ) -> None:
        monkeypatch.setattr(snapshot_maker, "snapshot_of", lambda folder, tier: folder / tier)
        usage = SimpleNamespace(free=free_bytes)
        monkeypatch.setattr(snapshot_maker, "shutil", SimpleNamespace(disk_usage=lambda folder: usage))
        monkeypatch.setattr(snapshot_maker, "available_mb", lambda: memory_mb)
        self.folder = folder
        self.made: list[str] = []
        self.reports: list[str] = []
        self.problem = ""
        self.faults: list[Exception] = []  # raised in place of the first snapshots
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.maker = SnapshotMaker(folder, self.make, self.reports.append)

    async def make(self, tier: str) -> str:
        self.made.append(tier)
        self.begun.set()
        await self.go.wait()
        if self.faults:
            raise self.faults.pop(0)
        return self.problem


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    (tmp_path / STANDARD_TIER).touch()
    return Maker(tmp_path, monkeypatch)


async def test_all_are_made_in_order(maker: Maker, clock: Clock) -> None:
    """After half a minute, the smallest comes first."""
    maker.go.set()
    running = asyncio.create_task(maker.maker.run())
    while len(asyncio.all_tasks()) < 3:  # until it waits for the time or for a program
        await asyncio.sleep(0)
    clock.advance(30)
    await running
    assert (maker.made, maker.maker.activity, maker.reports) == (ALL, "", [])


async def test_the_one_that_a_program_needs_is_made_at_once(maker: Maker) -> None:
    """The others wait. The activity names the progress."""
    running = asyncio.create_task(maker.maker.run())
    while not maker.begun.is_set():  # until it knows which are missing
        maker.maker.want("import pandas")
        await asyncio.sleep(0)
    assert maker.maker.activity == "making snapshots of packages, 0 of 5 are made"
    maker.go.set()
    await maker.maker.make_all()
    await running
    assert (maker.made[0], sorted(maker.made)) == ("pandas", sorted(ALL))


async def test_a_snapshot_that_cannot_be_made_is_reported_once(maker: Maker) -> None:
    """The others are still made."""
    maker.problem = "no luck"
    maker.go.set()
    running = asyncio.create_task(maker.maker.run())
    await maker.maker.make_all()
    await running
    assert (sorted(maker.made), len(maker.reports)) == (sorted(ALL), len(ALL))
    assert "programs with numpy start slowly, because no snapshot could be made: no luck" in maker.reports


@pytest.mark.parametrize("fault", [NotStartedError("no descriptors"), OSError(errno.EMFILE, "no descriptors")])
async def test_a_snapshot_whose_process_cannot_start_is_reported(maker: Maker, fault: Exception) -> None:
    """The others are still made, and the engine goes on."""
    maker.faults = [fault]
    maker.go.set()
    running = asyncio.create_task(maker.maker.run())
    await maker.maker.make_all()
    await running
    assert (sorted(maker.made), len(maker.reports)) == (sorted(ALL), 1)
    assert "no snapshot could be made: " in maker.reports[0]
    assert "no descriptors" in maker.reports[0]


async def test_a_disk_that_cannot_be_measured_gets_no_snapshots(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOENT, "gone")

    monkeypatch.setattr(snapshot_maker, "shutil", SimpleNamespace(disk_usage=fail))
    running = asyncio.create_task(maker.maker.run())
    await maker.maker.make_all()
    await running
    assert (maker.made, len(maker.reports)) == ([], len(ALL))
    assert all("gone" in report for report in maker.reports)


async def test_a_full_disk_gets_no_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says why."""
    (tmp_path / STANDARD_TIER).touch()
    full = Maker(tmp_path, monkeypatch, free_bytes=2**30 - 1)
    running = asyncio.create_task(full.maker.run())
    await full.maker.make_all()
    await running
    assert (full.made, len(full.reports)) == ([], len(ALL))
    assert all("less than 1 GiB left" in report for report in full.reports)


async def test_no_snapshots_are_made_where_they_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the snapshot of the standard library, no other one is tried. The sandbox is still optimized."""
    none = Maker(tmp_path, monkeypatch)
    none.go.set()
    running = asyncio.create_task(none.maker.run())
    await none.maker.make_all()
    await running
    assert none.made == [OPTIMIZED]


async def test_the_sandbox_is_not_optimized_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that exceeds its memory may be ended as a whole. The report says how much memory is missing."""
    small = Maker(tmp_path, monkeypatch, memory_mb=1024)
    running = asyncio.create_task(small.maker.run())
    await small.maker.make_all()
    await running
    assert small.made == []
    reason = "the sandbox was not optimized: less than 2.8 GB of memory is free"
    assert small.reports == [f"programs run more slowly than they could, because {reason}"]


@pytest.mark.parametrize(
    ("code", "tiers"),
    [
        ("print(1)", []),
        ("import numpy as np", ["numpy", "pandas", "scipy", "sklearn"]),
        ("import pandas, numpy", ["pandas", "sklearn", "numpy", "scipy"]),
        ("import scipy; from pandas import *", ["sklearn", "pandas", "scipy"]),
        ("import sympy", ["sympy"]),
        ("import numpyro", ["numpy", "pandas", "scipy", "sklearn"]),
    ],
)
async def test_the_tier_with_most_packages_of_a_program_comes_first(code: str, tiers: list[str]) -> None:
    """Of those that have as many, the smallest comes first."""
    assert tiers_of(code) == tiers
    assert packages_of(STANDARD_TIER) == set()
