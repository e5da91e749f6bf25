"""The end of a server while it compiles Go's standard library. The command `go` is a double that never ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from support.levels import NATIVE
from support.served import Server, served, strays, until, with_word

# The first process is a compiler. Both have the folder of the compilation as working folder.
_GO = "#!/bin/sh\n/bin/sleep 600 &\nexec /bin/sleep 600\n"
pytestmark = [pytest.mark.servers, NATIVE]


@contextlib.asynccontextmanager
async def _compiling(folder: Path) -> AsyncIterator[Server]:
    """Yield a server that compiles the library, or waits for another server that does."""
    go = folder / "root/bin/go"
    go.parent.mkdir(parents=True, exist_ok=True)
    go.write_text(_GO)
    go.chmod(0o755)
    (folder / "root/VERSION").write_text("go1.0\n")
    env = {"PATH": f"{go.parent}:{os.environ['PATH']}", "FAASRT_CACHE_DIR": str(folder / "cache")}
    async with served(folder, "-l", "go", wait_for=("serving go",), **env) as server:
        request = asyncio.create_task(server.run("go", "package main"))
        await server.until_pool("go", detail="preparing go 1.0, once for this machine")
        await until(lambda: len(_sleeping(folder)) == 2)
        request.cancel()
        yield server


def _sleeping(folder: Path) -> list[psutil.Process]:
    return with_word(strays(folder / "cache"), "sleep")


def _unfinished(folder: Path) -> list[Path]:
    return [*folder.glob("cache/go-1.0/.new-*")]


async def test_sigterm_ends_the_compilation(tmp_path: Path) -> None:
    """The server exits, and leaves no process, and no file in the cache."""
    async with _compiling(tmp_path) as server:
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert "Traceback" not in server.output
        assert not strays(tmp_path / "cache")
        assert not _unfinished(tmp_path)


async def test_sigkill_ends_the_compilation(tmp_path: Path) -> None:
    """No process is left. The next compilation removes the files."""
    async with _compiling(tmp_path) as server:
        server.process.kill()
        assert await server.ended() == -signal.SIGKILL
        await until(lambda: not strays(tmp_path / "cache"))
    (stale,) = _unfinished(tmp_path)
    async with _compiling(tmp_path):
        (new,) = _unfinished(tmp_path)
        assert new != stale


async def test_a_server_that_waits_for_the_compilation_of_another_one_can_be_stopped(tmp_path: Path) -> None:
    """The other one goes on."""
    async with _compiling(tmp_path), _compiling(tmp_path) as second:
        second.process.send_signal(signal.SIGTERM)
        assert await second.ended() == 0
        assert len(_sleeping(tmp_path)) == 2
