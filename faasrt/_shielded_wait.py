"""Waiting for a task even if the caller is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any


async def wait_shielded(task: asyncio.Future[Any]) -> None:
    """Wait until a task has ended, and raise its error. If the caller is cancelled, raise the CancelledError instead,
    after the task has ended.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    task.result()
