"""Shows the progress of `faasrt batch` on stderr: live on a terminal, otherwise in a line every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections import Counter
from datetime import timedelta
from typing import Any

from faasrt.cli.output import write, write_message

_LIVE_S, _LINE_S = 0.25, 5.0
_ERASE = "\r\x1b[K"
"""Clears the line of a terminal."""


class Progress:
    """Counts results and shows them on stderr.

    Args:
        total: The number of tasks; None when unknown.
        quiet: Whether to show nothing.

    Attributes:
        kinds: The number of written results of each kind.
        skipped: The number of tasks that had a verdict before.
        in_flight: The number of tasks that run now.
        retries: The number of retries after infrastructure errors.
    """

    def __init__(self, total: int | None, *, quiet: bool) -> None:
        self.total = total
        self.kinds: Counter[str] = Counter()
        self.skipped = self.in_flight = self.retries = 0
        self._quiet = quiet or sys.stderr is None
        self._started = time.monotonic()

    async def show(self) -> None:
        """Show the progress until cancelled."""
        if self._quiet:
            return
        is_terminal = sys.stderr.isatty()
        with contextlib.suppress(OSError, ValueError):  # stderr was closed; the batch goes on
            try:
                while True:
                    await asyncio.sleep(_LIVE_S if is_terminal else _LINE_S)
                    status = f"faasrt: {self._status()}"
                    width = shutil.get_terminal_size().columns - 1
                    write(f"{_ERASE}{status[:width]}" if is_terminal else f"{status}\n", err=True)
            finally:
                if is_terminal:
                    write(_ERASE, err=True)

    def summary(self) -> dict[str, Any]:
        """Return the final counts."""
        elapsed_s = max(time.monotonic() - self._started, 0.001)
        outcomes = dict(sorted(self.kinds.items()))
        return {
            "total": self.total,
            "done": self.kinds.total(),
            "skipped": self.skipped,
            "infra_errors": outcomes.pop("infra_error", 0),
            "invalid_tasks": outcomes.pop("invalid_task", 0),
            "outcomes": outcomes,
            "retries": self.retries,
            "elapsed_s": round(elapsed_s, 3),
            "per_second": round(self.kinds.total() / elapsed_s, 1),
        }

    def show_summary(self) -> None:
        """Show the final counts."""
        if self._quiet:
            return
        for kind, count in [*self.kinds.most_common(), ("done before", self.skipped)]:
            if count:
                write(f"{kind:<14}{count:>8}\n", err=True)
        summary = self.summary()
        write_message(f"{summary['done']} tasks in {summary['elapsed_s']:.1f} s, {summary['per_second']:.1f}/s")

    def _status(self) -> str:
        counts = self.summary()
        done = f"{counts['done'] + self.skipped}{'' if self.total is None else f'/{self.total}'} done"
        parts = [done, f"{counts['per_second']:.1f}/s", f"{self.in_flight} in flight"]
        if self.total is not None and counts["done"]:
            left_s = counts["elapsed_s"] * (self.total - self.skipped - counts["done"]) / counts["done"]
            parts.append(f"{timedelta(seconds=int(left_s))} left")
        if self.retries:
            parts.append(f"{self.retries} retries")
        return ", ".join([*parts, *(f"{kind} {count}" for kind, count in self.kinds.most_common())])
