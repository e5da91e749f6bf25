"""How many programs run at once: the capacity of an engine, and the memory of the machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from faasrt.local.engines.engine import EngineOptions
from faasrt.local.http.program_permits import MemoryBudget, ProgramPermits
from faasrt.local.machine_memory import MachineMemory


class Memory:
    """A machine of which a part of the memory is available."""

    def __init__(self, available_mb: int | None) -> None:
        self.total_mb = available_mb
        self.available = available_mb or 0

    def available_mb(self) -> int:
        return self.available


class FakeEngine:
    capacity, min_capacity, overhead_mb = 8, 1, 10


def make(available_mb: int | None, count: int = 1) -> tuple[Any, list[ProgramPermits]]:
    budget = MemoryBudget(Memory(available_mb))  # type: ignore[arg-type]
    return budget, [ProgramPermits(FakeEngine(), budget) for _ in range(count)]  # type: ignore[arg-type]


async def waiting(permits: ProgramPermits, memory_mb: int) -> asyncio.Task[None]:
    task = asyncio.create_task(permits.wait(memory_mb))
    await asyncio.sleep(0)
    return task


async def test_programs_start_while_their_limits_fit_into_the_memory() -> None:
    """The limits of all that run count, with the memory of their processes, and those of other engines."""
    _, (permits, others) = make(250, 2)
    assert permits.take(100)
    assert others.take(30)
    assert permits.take(90)
    assert not permits.take(100)
    others.give_back(30)
    assert not permits.take(100)
    permits.give_back(100)
    assert permits.take(100)


async def test_each_engine_runs_some_programs_in_any_case() -> None:
    """A server whose programs have higher limits than the machine has memory still runs as many as it has workers."""
    _, (permits, others) = make(50, 2)
    assert permits.take(1000)
    assert not permits.take(1)
    assert others.take(1000)


async def test_no_more_programs_than_the_capacity_run() -> None:
    _, (permits,) = make(None)
    assert [permits.take(1000) for _ in range(9)] == [True] * 8 + [False]


async def test_programs_that_wait_start_in_order_when_memory_is_given_back() -> None:
    """A small program does not overtake a large one, which would otherwise never start."""
    _, (permits, others) = make(250, 2)
    assert permits.take(0)
    assert others.take(0)
    assert others.take(180)
    large, small = await waiting(permits, 190), await waiting(permits, 30)
    assert not permits.take(0)
    others.give_back(180)
    await asyncio.wait({large})
    assert not small.done()
    permits.give_back(190)
    await asyncio.wait({small})
    assert permits.taken == 2


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_cancelled_wait_keeps_no_permit(is_late: bool) -> None:
    """Even if the permit became free at that moment. The next program gets it."""
    _, (permits,) = make(None)
    assert all(permits.take(0) for _ in range(8))
    first, second = await waiting(permits, 0), await waiting(permits, 0)
    if is_late:
        permits.give_back(0)
    first.cancel()
    if not is_late:
        permits.give_back(0)
    await asyncio.wait({first, second})
    assert (first.cancelled(), second.cancelled(), permits.taken) == (True, False, 8)


@pytest.mark.parametrize(
    ("machine_mb", "limit_mb", "capacity"),
    [(24_000, 128, 64), (24_000, 1024, 18), (2_000, 128, 12), (1_000, 128, 6), (1_000, 1024, 2), (None, 1024, 64)],
)
def test_the_capacity_follows_from_the_memory_of_the_machine(
    machine_mb: int | None, limit_mb: int, capacity: int
) -> None:
    """At most 32 programs run for each worker, and at least one."""
    options = EngineOptions(workers=2, folder=Path(), memory_limit_mb=limit_mb, machine_memory_mb=machine_mb)
    assert options.capacity(32, 4) == capacity


def test_max_programs_is_the_capacity() -> None:
    options = EngineOptions(workers=2, folder=Path(), memory_limit_mb=1024, machine_memory_mb=100, max_programs=7)
    assert options.capacity(32, 4) == 7


MEMINFO = "MemTotal: 8192000 kB\nMemFree: 1 kB\nMemAvailable: 4096000 kB\n"
V2 = {
    "proc/self/cgroup": "0::/a/b\n",
    "cgroup/a/memory.max": "2097152000\n",
    "cgroup/a/memory.current": "1048576000\n",
    "cgroup/a/memory.stat": "anon 5\ninactive_file 104857600\n",
    "cgroup/a/b/memory.max": "max\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu:/x\n4:memory:/c\n",
    "cgroup/memory/c/memory.limit_in_bytes": "2097152000\n",
    "cgroup/memory/c/memory.usage_in_bytes": "1048576000\n",
    "cgroup/memory/c/memory.stat": "total_inactive_file 104857600\n",
}


@pytest.mark.parametrize(("files", "total_mb", "available_mb"), [({}, 8000, 4000), (V2, 2000, 1100), (V1, 2000, 1100)])
def test_the_memory_is_that_of_the_smallest_cgroup(
    tmp_path: Path, files: dict[str, str], total_mb: int, available_mb: int
) -> None:
    """In both versions of cgroups, even if a group above has the limit. The kernel can drop files from memory."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    memory = MachineMemory(tmp_path / "proc", tmp_path / "cgroup")
    assert (memory.total_mb, memory.available_mb()) == (total_mb, available_mb)


def test_a_system_without_proc_has_unknown_memory(tmp_path: Path) -> None:
    """On macOS, the memory bounds nothing."""
    memory = MachineMemory(tmp_path / "proc", tmp_path / "cgroup")
    assert memory.total_mb is None
    assert MemoryBudget(memory).fits(10**9)
