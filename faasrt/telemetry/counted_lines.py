"""Log lines that state a number of events instead of one event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Kind = TypeVar("Kind", bound=Hashable)

INTERVAL_S = 10.0
"""The time for which refusals of a kind are counted, before a line is logged."""


class CountedLines(Generic[Kind]):
    """Counts what may happen thousands of times in a second, so that it is logged once for each kind and ten seconds.

    Args:
        write: Logs a line. It gets the kind and the number.
        call_later: Calls a function after a number of seconds; None for `call_later` of the running event loop.
    """

    def __init__(
        self, write: Callable[[Kind, int], None], call_later: Callable[..., asyncio.TimerHandle] | None = None
    ) -> None:
        self._write, self._call_later = write, call_later
        self._counts: dict[Kind, int] = {}
        self._timers: dict[Kind, Any] = {}

    def count(self, kind: Kind) -> None:
        counted = self._counts.get(kind, 0)
        self._counts[kind] = counted + 1
        if not counted:
            call_later = self._call_later or asyncio.get_running_loop().call_later
            self._timers[kind] = call_later(INTERVAL_S, self._write_count, kind)

    def flush(self) -> None:
        """Log the pending counts now."""
        for kind in [*self._counts]:
            self._timers[kind].cancel()
            self._write_count(kind)

    def _write_count(self, kind: Kind) -> None:
        del self._timers[kind]
        self._write(kind, self._counts.pop(kind))
