"""Engines without a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from faasrt.local.engines.engine import EngineOptions
from faasrt.local.engines.native.engine import NativeEngine


@contextlib.asynccontextmanager
async def native_engine(folder: Path, *, level: str = "namespaces", workers: int = 2) -> AsyncIterator[NativeEngine]:
    """Run an engine in a folder."""
    options = EngineOptions(workers=workers, folder=folder, memory_limit_mb=512, level=level)
    engine = NativeEngine(options)
    running = asyncio.create_task(engine.run())
    try:
        await engine.wait_ready()
        yield engine
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
