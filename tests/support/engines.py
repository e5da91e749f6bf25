"""Engines without a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

from faasrt.local.engines.engine import Engine, EngineOptions
from faasrt.local.engines.native.engine import NativeEngine
from faasrt.local.engines.wasm.engine import WasmEngine

_E = TypeVar("_E", bound=Engine)


@contextlib.asynccontextmanager
async def native_engine(folder: Path, *, level: str = "namespaces", workers: int = 2) -> AsyncIterator[NativeEngine]:
    """Run an engine in a folder."""
    async with _running(NativeEngine(_options(folder, workers, level))) as engine:
        yield engine


@contextlib.asynccontextmanager
async def wasm_engine(folder: Path, *, workers: int = 2) -> AsyncIterator[WasmEngine]:
    """Run an engine in a folder."""
    async with _running(WasmEngine(_options(folder, workers))) as engine:
        yield engine


def _options(folder: Path, workers: int, level: str = "") -> EngineOptions:
    return EngineOptions(workers=workers, folder=folder, memory_limit_mb=512, level=level)


@contextlib.asynccontextmanager
async def _running(engine: _E) -> AsyncIterator[_E]:
    running = asyncio.create_task(engine.run())
    try:
        await engine.wait_ready()
        yield engine
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
