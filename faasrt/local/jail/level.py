from __future__ import annotations

import sys
from pathlib import Path

from faasrt.local.errors import EngineError
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.jail import open_jail
from faasrt.local.process import Spawner

LEVELS = ("namespaces", "filters")


async def find_level(wanted: str, folder: Path) -> tuple[str, str]:
    """Return the wanted level, or the highest one for "auto", and the reason why it is not higher, or "". Raise
    EngineError if none works.
    """
    if sys.platform != "linux":
        raise EngineError("the jail needs Linux")
    reasons: list[str] = []
    async with Spawner() as spawner:
        for level in LEVELS if wanted == "auto" else (wanted,):
            config = JailConfig(level=level, policy="deno", mounts=[("/usr", "/usr")])
            try:
                async with open_jail(spawner, sys.executable, folder, config):
                    return level, "; ".join(reasons)
            except EngineError as error:
                reasons.append(f"level {level}: {error}")
    raise EngineError("; ".join(reasons))
