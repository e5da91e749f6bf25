"""A time limit that does not count the time in which the event loop of the server was blocked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_CHECK_S, _LATE_S = 0.1, 0.1


class TimeLimit:
    """Calls a function when a time limit ends, unless the limit is cancelled first.

    The time in which the event loop is blocked does not count, because a program may wait for the server to read its
    output. Afterwards there is time to read data that arrived meanwhile. The time in which `counts` returns False does
    not count either. `counts` is called each tenth of a second. The launcher ends a program that does not wait (see
    `JailedProcess.limit_time`).
    """

    def __init__(
        self, limit_s: float, on_exceeded: Callable[[], object], counts: Callable[[], bool] = lambda: True
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_exceeded, self._counts = on_exceeded, counts
        self._ends = self._loop.time() + limit_s
        self._wait()

    def cancel(self) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        self._wakes = min(self._ends, self._loop.time() + _CHECK_S)
        self._timer = self._loop.call_at(self._wakes, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        late_s = now - self._wakes
        if not self._counts():
            self._ends += _CHECK_S + late_s
        elif late_s > _LATE_S:
            self._ends = max(self._ends + late_s, now + _CHECK_S)
        elif now >= self._ends:
            self._on_exceeded()
            return
        self._wait()
