"""Shows the progress of `faasrt batch` on stderr: live on a terminal, otherwise in a line every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from faasrt.cli.batch_output import kind_of
from faasrt.cli.options import name_options
from faasrt.cli.outcome_text import is_limit
from faasrt.cli.output import color_of, colored, is_terminal, write, write_message
from faasrt.cli.report.text import one_line

if TYPE_CHECKING:
    # Imported when it draws, because this would take a fifth of the start of every command.
    from rich.console import Console

_LIVE_S, _LINE_S = 0.25, 5.0
# The time that is left is estimated from the rate of this period. Tasks that --resume skips soon count no more.
_ESTIMATE_S = 120.0
_MAX_NAMES, _NAMES_SHOWN, _INVALID_SHOWN = 1_000, 3, 10
# Parts of the reason of an invalid task that differ between tasks with the same mistake.
_DETAILS = re.compile(r"^line \d+: |, got .*|\d+")
_KIND_CELLS = 14


class Progress:
    """Counts results and shows them on stderr, unless it is `quiet`.

    Attributes:
        skipped: The number of tasks that had an outcome before.
        changed: The number of tasks that run again because they have changed since they had an outcome.
        tests: The number of tests that passed, that were skipped, and of all tests.
    """

    def __init__(self, total: int | None, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.kinds: Counter[str] = Counter()
        self.skipped = self.changed = self.in_flight = self.retries = self.cached = 0
        self.tests = dict.fromkeys(("passed", "skipped", "total"), 0)
        self._names: dict[str, Counter[str]] = {}
        # The first reason of each type of infrastructure error, and of each kind of invalid task.
        self._reasons: dict[tuple[str, str], str] = {}
        self._quiet = quiet or sys.stderr is None
        self._console: Console | None = None  # while it shows a live line
        self._clock, self._started = clock, clock()

    def count(self, record: dict[str, Any]) -> None:
        """Count a written result. The first infrastructure error of each type is shown at once."""
        kind = kind_of(record)
        self.kinds[kind] += 1
        self.cached += record.get("cached", False)
        for name in self.tests if "tests" in record else ():
            self.tests[name] += record["tests"][name]
        name, reason = _reason(kind, record)
        names = self._names.setdefault(kind, Counter())
        if name in names or len(names) < _MAX_NAMES:
            names[name] += 1
        if reason and name in names and (kind, name) not in self._reasons:
            self._reasons[kind, name] = reason
            if kind == "infra_error" and not self._quiet:
                self.show_message(f"first {name}: {reason}")

    def show_message(self, text: str) -> None:
        """Show a line above the line of progress. `quiet` does not hide it."""
        with contextlib.suppress(OSError, ValueError):  # stderr was closed
            if self._console is None:
                write_message(text)
            else:
                self._console.print(f"faasrt: {text}", markup=False, soft_wrap=True)

    async def show(self) -> None:
        if self._quiet:
            return
        with contextlib.suppress(OSError, ValueError):  # stderr was closed; the batch goes on
            if is_terminal(sys.stderr):
                await self._show_live()
            while True:
                await asyncio.sleep(_LINE_S)
                total = "" if self.total is None else f"/{self.total:,}"
                write_message(f"{self.done:,}{total} done, {self._state()}")

    async def _show_live(self) -> None:
        from rich import console, progress, table

        self._console = console.Console(stderr=True, highlight=False)
        line = progress.Progress(
            "faasrt:",
            progress.MofNCompleteColumn(table_column=table.Column(no_wrap=True)),
            progress.TimeRemainingColumn(table_column=table.Column(no_wrap=True)),
            progress.TextColumn("{task.description}", table_column=table.Column(no_wrap=True, ratio=1)),
            console=self._console,
            get_time=self._clock,
            speed_estimate_period=_ESTIMATE_S,
            auto_refresh=False,
            expand=True,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with line:
                task = line.add_task(self._state(), total=self.total)
                while True:
                    line.update(task, completed=self.done, description=self._state(), refresh=True)
                    await asyncio.sleep(_LIVE_S)
        finally:
            self._console = None

    @property
    def done(self) -> int:
        return self.kinds.total() + self.skipped

    def _per_second(self) -> float:
        return self.kinds.total() / max(self._clock() - self._started, 0.001)

    def _state(self) -> str:
        counts = {"in flight": self.in_flight, "retries": self.retries, **dict(self.kinds.most_common())}
        infra_errors = counts.pop("infra_error", 0)
        states = [f"{count:,} {name}" for name, count in {"infra errors": infra_errors, **counts}.items() if count]
        return ", ".join([f"{self._per_second():.1f}/s", *states])

    def summary(self) -> dict[str, Any]:
        outcomes = dict(sorted(self.kinds.items()))
        return {
            "total": self.total,
            "done": self.kinds.total(),
            "skipped": self.skipped,
            "changed": self.changed,
            "infra_errors": outcomes.pop("infra_error", 0),
            "infra_error_types": dict(self._names.get("infra_error", {})),
            "invalid_tasks": outcomes.pop("invalid_task", 0),
            "outcomes": outcomes,
            "tests": self.tests,
            "retries": self.retries,
            "cached": self.cached,
            "elapsed_s": round(self._clock() - self._started, 3),
            "per_second": round(self._per_second(), 1),
        }

    def show_summary(self) -> None:
        if self._quiet:
            return
        counts = [*self.kinds.most_common(), ("done before", self.skipped), ("changed", self.changed)]
        for kind, count in [*counts, ("cached", self.cached), ("tests", self.tests["total"])]:
            if count:
                names = "" if kind in ("infra_error", "invalid_task") else self._most_common(kind)
                if kind == "tests":
                    names = ", ".join(f"{self.tests[name]:,} {name}" for name in ("passed", "skipped"))
                label = colored(f"{kind:<{_KIND_CELLS}}", color_of(kind))
                write(f"{label}{count:>8}{f'   {names}' if names else ''}\n", err=True)
        if self.kinds["infra_error"]:
            # The reason belongs to the most frequent type; the other types have lines of their own.
            first, *others = [name for name, _ in self._names["infra_error"].most_common()]
            types = self._most_common("infra_error")
            write_message(colored(f"infra errors: {types}: {self._reasons['infra_error', first]}", "red"))
            for name in others[: _NAMES_SHOWN - 1]:
                write_message(colored(f"infra errors: {name}: {self._reasons['infra_error', name]}", "red"))
        rest = self.kinds["invalid_task"]
        for name, count in self._names.get("invalid_task", Counter()).most_common(_INVALID_SHOWN):
            rest -= count
            reason = self._reasons["invalid_task", name]
            write_message(colored(f"invalid tasks: {count:,}, the first: {reason}", "red"))
        if rest:
            write_message(colored(f"invalid tasks: {rest:,} for other reasons, which are in the results", "red"))
        summary = self.summary()
        tasks = "1 task" if summary["done"] == 1 else f"{summary['done']:,} tasks"
        write_message(f"{tasks} in {summary['elapsed_s']:.1f} s, {summary['per_second']:.1f}/s")

    def _most_common(self, kind: str) -> str:
        names = self._names.get(kind, Counter())
        shown = [f"{count:,} {name}" for name, count in names.most_common(_NAMES_SHOWN) if name]
        rest = self.kinds[kind] - sum(count for _, count in names.most_common(_NAMES_SHOWN))
        return ", ".join([*shown, f"{rest:,} other"] if shown and rest else shown)


def _reason(kind: str, record: dict[str, Any]) -> tuple[str, str]:
    if kind == "infra_error":
        return record[kind]["type"], one_line(name_options(record[kind]["message"]), 300)
    if kind == "invalid_task":
        reason = one_line(record[kind], 300)
        return _DETAILS.sub("", reason), reason
    error = record.get("error")
    if error is None:
        return "", ""
    name, message = error["name"], error["message"]
    return one_line(message if is_limit(kind, name) else name, 60), ""
