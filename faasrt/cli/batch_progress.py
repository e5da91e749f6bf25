"""What `faasrt batch` shows: how far it is, live on a terminal, in a line now and then elsewhere; and the end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from faasrt.cli.batch_output import kind_of
from faasrt.cli.output import note

_LIVE_S, _LINE_S = 0.25, 5.0
_NOT_GRADABLE = ("infra_error", "invalid_task")


class Progress:
    """Counts results and shows them on stderr.

    Args:
        total: How many tasks there are, or None.
        quiet: Show nothing but the end.

    Attributes:
        kinds: How many results of each kind are on the disk.
        skipped: Tasks that had a verdict before.
        in_flight: Tasks that run.
        retries: Tasks that were run again after an infrastructure failure.
    """

    def __init__(self, total: int | None, *, quiet: bool) -> None:
        self.total = total
        self.kinds: Counter[str] = Counter()
        self.skipped = self.in_flight = self.retries = 0
        self._quiet = quiet
        self._started = time.monotonic()

    def count(self, record: dict[str, Any]) -> None:
        """Note a result that is on the disk."""
        self.kinds[kind_of(record)] += 1

    async def show(self) -> None:
        """Show how far it is until cancelled."""
        if self._quiet or sys.stderr is None:
            return
        with contextlib.suppress(OSError, ValueError):  # nobody looks any more, and that is no reason to end
            await self._show()

    async def _show(self) -> None:
        if not sys.stderr.isatty():
            while True:
                await asyncio.sleep(_LINE_S)
                note(self._words())
        with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
            while True:
                live.update(Text(f"faasrt: {self._words()}"), refresh=True)
                await asyncio.sleep(_LIVE_S)

    def summary(self) -> dict[str, Any]:
        """Give the figures of the end."""
        elapsed_s = time.monotonic() - self._started
        done = sum(self.kinds.values())
        return {
            "total": self.total,
            "done": done,
            "skipped": self.skipped,
            "outcomes": {kind: count for kind, count in sorted(self.kinds.items()) if kind not in _NOT_GRADABLE},
            "infra_errors": self.kinds["infra_error"],
            "invalid_tasks": self.kinds["invalid_task"],
            "retries": self.retries,
            "elapsed_s": round(elapsed_s, 3),
            "per_second": round(done / elapsed_s, 1) if elapsed_s else 0.0,
        }

    def show_summary(self) -> None:
        """Show the table of the end."""
        if self._quiet or sys.stderr is None:
            return
        table = Table(show_header=True, box=None, pad_edge=False)
        table.add_column("result")
        table.add_column("tasks", justify="right")
        for kind, count in self.kinds.most_common():
            table.add_row(kind, str(count))
        if self.skipped:
            table.add_row("done before", str(self.skipped))
        Console(stderr=True).print(table)
        figures = self.summary()
        note(f"{figures['done']} tasks in {figures['elapsed_s']:.1f} s, {figures['per_second']:.1f}/s")

    def _words(self) -> str:
        done = sum(self.kinds.values())
        rate = done / max(time.monotonic() - self._started, 0.001)
        of = f"/{self.total}" if self.total is not None else ""
        parts = [f"{done + self.skipped}{of} done", f"{rate:.1f}/s", f"{self.in_flight} in flight"]
        if self.total is not None and rate > 0 and done:
            left_s = (self.total - self.skipped - done) / rate
            parts.append(f"{int(left_s) // 3600}:{int(left_s) // 60 % 60:02}:{int(left_s) % 60:02} left")
        if self.retries:
            parts.append(f"{self.retries} retries")
        return ", ".join([*parts, *(f"{kind} {count}" for kind, count in self.kinds.most_common())])
