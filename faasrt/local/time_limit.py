"""Time limits that are extended once if the event loop is late when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_LATE_S, _EXTRA_S = 0.1, 0.5


class TimeLimit:
    """Calls a function when a time limit ends, unless the limit is cancelled first.

    If the event loop is late then, it was too busy to read as well. Data may have arrived in time, and a program may
    have had to wait for the server to read its output. In this case the limit is extended once, by half a second.

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
        """Do not call the function any more."""
        self._timer.cancel()

    def _check(self) -> None:
        if self._loop.time() > self._ends + _LATE_S:
            self._timer = self._loop.call_later(_EXTRA_S, self._on_exceeded)
        else:
            self._on_exceeded()
