"""Decides when snapshots and the optimized module are made. Processes of their own make them, with a low priority."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from faasrt.local.engines.python_tiers import STANDARD_TIER, TIERS, tiers_of
from faasrt.local.engines.wasm.module_cache import COMPILATION_MB, OPTIMIZED, available_mb, is_compiled
from faasrt.local.engines.wasm.snapshot_build import snapshot_of
from faasrt.local.errors import EngineError

# Servers that end sooner, such as the servers of `faasrt run`, make only the snapshots that their programs need.
_DELAY_S = 30.0
_FREE_BYTES = 2**30  # that a disk must have before a snapshot is made; the largest one takes 0.1 GiB


class SnapshotMaker:
    """Makes the missing snapshots of packages one at a time, the smallest first: some time after the start of the
    engine, or when a program first uses the packages. Finally, it compiles the sandbox with optimization.

    `make` returns why this failed, or "", for `report`.
    """

    def __init__(self, cache_dir: Path, make: Callable[[str], Awaitable[str]], report: Callable[[str], None]) -> None:
        self._cache_dir, self._make, self._report = cache_dir, make, report
        self._missing: list[str] = []
        self._wanted: list[str] = []
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()
        self.activity = ""

    async def run(self) -> None:
        self._finished.clear()
        self._missing = await asyncio.to_thread(self._find_missing)
        delay_s = _DELAY_S
        while self._missing:
            if not self._wanted:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), delay_s)
            self._changed.clear()
            if not self._wanted:
                delay_s = 0.0
            tier = self._wanted.pop(0) if self._wanted else self._missing[0]
            if tier in self._missing:
                if tier == OPTIMIZED:
                    self.activity = "compiling the Python sandbox with optimization"
                    result = "programs run more slowly than they could, because the sandbox was not optimized"
                else:
                    done = len(TIERS) - len({*TIERS} & {*self._missing})
                    self.activity = f"making snapshots of packages, {done} of {len(TIERS)} are made"
                    result = f"programs with {tier} start slowly, because no snapshot could be made"
                if problem := await self._make_with_space(tier):
                    self._report(f"{result}: {problem}")
                self._missing.remove(tier)
        self.activity = ""
        self._finished.set()

    def want(self, code: str) -> None:
        if self._missing and (tiers := tiers_of(code)) and tiers[0] in self._missing:
            self._wanted.append(tiers[0])
            self._changed.set()

    async def make_all(self) -> None:
        """Make all snapshots and the optimized sandbox now, and wait until this is done. The engine must be ready."""
        self._wanted += [*TIERS, OPTIMIZED]
        self._changed.set()
        await self._finished.wait()

    def _find_missing(self) -> list[str]:
        missing = []
        if snapshot_of(self._cache_dir, STANDARD_TIER).exists():  # else snapshots do not work here
            missing = [tier for tier in TIERS if not snapshot_of(self._cache_dir, tier).exists()]
        return missing if is_compiled(self._cache_dir) else [*missing, OPTIMIZED]

    async def _make_with_space(self, tier: str) -> str:
        try:
            usage = await asyncio.to_thread(shutil.disk_usage, self._cache_dir)
            if usage.free < _FREE_BYTES:
                return f"{self._cache_dir} has less than 1 GiB left"
            if tier == OPTIMIZED and await asyncio.to_thread(available_mb) < COMPILATION_MB:
                return "less than 2.8 GB of memory is free"
            return await self._make(tier)
        except (EngineError, OSError) as error:  # programs run without this snapshot
            return str(error)
