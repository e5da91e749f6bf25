"""The levels of the jail, and the cgroups of programs: what works on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from faasrt.local.engines.base import EngineError
from faasrt.local.jail.cgroup import Cgroups, open_cgroups
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.jail import open_jail
from faasrt.local.process import Spawner

LEVELS = ("namespaces", "filters")


async def find_level(wanted: str, folder: Path) -> tuple[str, str]:
    """Find the highest level that works on this machine if `wanted` is "auto", or check that the wanted level works.
    Return the level, and the reason why it is not higher, or "". Raise EngineError if none works.
    """
    if sys.platform != "linux":
        raise EngineError("the jail needs Linux")
    reasons: list[str] = []
    spawner = Spawner()
    try:
        for level in LEVELS if wanted == "auto" else (wanted,):
            config = JailConfig(level=level, policy="deno", mounts=[("/usr", "/usr")])
            try:
                async with open_jail(spawner, sys.executable, folder, config):
                    return level, "; ".join(reasons)
            except EngineError as error:
                reasons.append(f"level {level}: {error}")
    finally:
        spawner.close()
        await spawner.wait_closed()
    raise EngineError("; ".join(reasons))


@contextlib.asynccontextmanager
async def program_cgroups() -> AsyncIterator[Cgroups | None]:
    """Yield what creates the cgroups of programs, or None where that is not possible. Afterwards remove them."""
    cgroups = await asyncio.to_thread(open_cgroups)
    try:
        yield cgroups
    finally:
        if cgroups is not None:
            await asyncio.to_thread(cgroups.close)
