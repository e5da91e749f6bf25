"""The temporary folder of a server, which is removed even if the server is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from faasrt.local.errors import NotStartedError
from faasrt.local.process import Spawner

# A shell that waits until its stdin is closed, which happens when this process ends, and then removes the folder. It
# tries three times, because other processes may still write into the folder.
_REMOVE_SCRIPT = 'read -r _; for _ in 1 2 3; do rm -rf -- "$1"; [ -e "$1" ] || exit 0; sleep 1; done'

_REMOVE_TRIES, _REMOVE_PAUSE_S = 60, 0.05


@contextlib.asynccontextmanager
async def temporary_folder() -> AsyncIterator[Path]:
    """Yield a new folder, and remove it afterwards. If this process is killed, a shell that waits for this removes
    it.
    """
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="faasrt-"))
    watcher = None
    try:
        async with Spawner() as spawner:
            with contextlib.suppress(NotStartedError):  # without the shell, a SIGKILL leaves the folder behind
                command = ["/bin/sh", "-c", _REMOVE_SCRIPT, "sh", str(folder)]
                watcher = await spawner.start(command, env={"PATH": os.defpath}, folder=Path("/"))
        yield folder
    finally:
        await asyncio.to_thread(_remove, folder)
        if watcher is not None:
            await watcher.end()


def _remove(folder: Path) -> None:
    """Try several times, because a process that just started may still write into the folder."""
    for _ in range(_REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVE_PAUSE_S)
