"""The folder for temporary files, which goes away however this process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from faasrt.local.engines.base import EngineError
from faasrt.local.engines.process import Spawner

# Its stdin ends when this process does. Others may still write into the folder at that moment.
_REMOVE_LATER = 'read -r _; for _ in 1 2 3; do rm -rf -- "$1"; [ -e "$1" ] || exit 0; sleep 1; done'

_REMOVE_TRIES, _REMOVE_PAUSE_S = 60, 0.05


@contextlib.asynccontextmanager
async def temporary_folder() -> AsyncIterator[Path]:
    """Give a fresh folder, and remove it afterwards: a process that waits does so after a SIGKILL, too.

    Raises:
        OSError: There is no place for it.
    """
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="faasrt-"))
    spawner = Spawner()
    watcher = None
    try:
        with contextlib.suppress(EngineError):  # without a shell, only SIGKILL leaves it behind
            command = ["/bin/sh", "-c", _REMOVE_LATER, "sh", str(folder)]
            watcher = await spawner.start(command, env={"PATH": os.defpath}, folder=Path("/"))
        yield folder
    finally:
        await asyncio.to_thread(_remove, folder)
        if watcher is not None:
            await watcher.end()
        spawner.close()


def _remove(folder: Path) -> None:
    """Remove the folder, into which a process that was about to start may still write for a moment."""
    for _ in range(_REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVE_PAUSE_S)
