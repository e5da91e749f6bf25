"""Time limits that do not count the time of a busy event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_LATE_S, _EXTRA_S = 0.1, 0.5


class TimeLimit:
    """Calls a function after a time limit, unless it is cancelled before.

    If the event loop was too busy to call it in time, it was too busy to read as well. Data may have arrived in time,
    and programs may wait until their output is read. So in this case the limit is once extended by half a second.

    Args:
        limit_s: The time limit in seconds.
        on_exceeded: The function.
    """

    def __init__(self, limit_s: float, on_exceeded: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_exceeded = on_exceeded
        self._ends = self._loop.time() + limit_s
        self._timer = self._loop.call_at(self._ends, self._check)

    def cancel(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        if self._loop.time() > self._ends + _LATE_S:
            self._timer = self._loop.call_later(_EXTRA_S, self._on_exceeded)
        else:
            self._on_exceeded()
