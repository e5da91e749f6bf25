"""Shows the progress of `faasrt batch` on stderr: live on a terminal, otherwise in a line every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from faasrt.cli.batch_output import kind_of
from faasrt.cli.outcome_text import describe
from faasrt.cli.output import color_of, colored, erase_line, is_terminal, line_width, write, write_message
from faasrt.cli.report.text import one_line

if TYPE_CHECKING:
    # Imported when it draws, because this would take a fifth of the start of every command.
    from rich.text import Text

_LIVE_S, _LINE_S = 0.25, 5.0
_BAR_CELLS = 20
_MAX_NAMES, _NAMES_SHOWN = 1_000, 3
_KIND_CELLS = 14


class _Part(NamedTuple):
    """A part of the line. On a narrow terminal, parts with a higher `rank` are left out first."""

    rank: int
    text: str
    style: str = ""


class Progress:
    """Counts results and shows them on stderr.

    Args:
        total: The number of tasks; None when unknown.
        quiet: Whether to show nothing.
        clock: Returns the time, for the rate and the time that is left.

    Attributes:
        kinds: The number of written results of each kind.
        skipped: The number of tasks that had an outcome before.
        in_flight: The number of tasks that run now.
        retries: The number of retries after infrastructure errors.
        cached: The number of results that were stored before.
    """

    def __init__(self, total: int | None, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.kinds: Counter[str] = Counter()
        self.skipped = self.in_flight = self.retries = self.cached = 0
        self._names: dict[str, Counter[str]] = {}
        # The first reason of each type of infrastructure error, and of "" for invalid tasks.
        self._reasons: dict[str, str] = {}
        self._quiet = quiet or sys.stderr is None
        self._live = not self._quiet and is_terminal(sys.stderr)
        self._clock, self._started = clock, clock()

    def count(self, record: dict[str, Any]) -> None:
        """Count a written result. The first infrastructure error of each type is shown at once."""
        kind = kind_of(record)
        self.kinds[kind] += 1
        self.cached += record.get("cached", False)
        name, reason = _reason(kind, record)
        names = self._names.setdefault(kind, Counter())
        if name in names or len(names) < _MAX_NAMES:
            names[name] += 1
        if kind in ("infra_error", "invalid_task") and name not in self._reasons:
            self._reasons[name] = reason
            if kind == "infra_error" and not self._quiet:
                self.show_message(f"first {name}: {reason}")

    def show_message(self, text: str) -> None:
        """Show a line of its own, above the line of progress. `quiet` does not hide it."""
        with contextlib.suppress(OSError, ValueError):  # stderr was closed
            if self._live:
                erase_line()
            write_message(text)

    async def show(self) -> None:
        """Show the progress until cancelled."""
        if self._quiet:
            return
        with contextlib.suppress(OSError, ValueError):  # stderr was closed; the batch goes on
            try:
                while True:
                    await asyncio.sleep(_LIVE_S if self._live else _LINE_S)
                    if self._live:
                        self._draw()
                    else:
                        write_message(", ".join(part.text for part in self._parts()))
            finally:
                if self._live:
                    erase_line()

    def _draw(self) -> None:
        from rich.console import Console

        width = line_width()
        console = Console(file=sys.stderr, force_terminal=True, width=width, highlight=False)
        erase_line()
        console.print(self._line(width), end="", no_wrap=True, overflow="ellipsis", crop=True)

    def _line(self, width: int) -> Text:
        from rich.text import Text

        parts, room = self._parts(), width - len("faasrt:")
        kept = set()
        for part in sorted(parts, key=lambda part: part.rank):
            room -= len(part.text) + 2
            if room < 0:
                break
            kept.add(part)
        line = Text("faasrt: ").append_text(
            Text(", ").join(Text(part.text, part.style) for part in parts if part in kept or part.rank == 0)
        )
        if self.total and room >= _BAR_CELLS:
            done = round(_BAR_CELLS * (self.kinds.total() + self.skipped) / self.total)
            line.append(" ").append("━" * done, "green").append("━" * (_BAR_CELLS - done), "bright_black")
        return line

    def summary(self) -> dict[str, Any]:
        elapsed_s = max(self._clock() - self._started, 0.001)
        outcomes = dict(sorted(self.kinds.items()))
        return {
            "total": self.total,
            "done": self.kinds.total(),
            "skipped": self.skipped,
            "infra_errors": outcomes.pop("infra_error", 0),
            "infra_error_types": dict(self._names.get("infra_error", {})),
            "invalid_tasks": outcomes.pop("invalid_task", 0),
            "outcomes": outcomes,
            "retries": self.retries,
            "cached": self.cached,
            "elapsed_s": round(elapsed_s, 3),
            "per_second": round(self.kinds.total() / elapsed_s, 1),
        }

    def show_summary(self) -> None:
        if self._quiet:
            return
        for kind, count in [*self.kinds.most_common(), ("done before", self.skipped), ("cached", self.cached)]:
            if count:
                names = "" if kind in ("infra_error", "invalid_task") else self._most_common(kind)
                label = colored(f"{kind:<{_KIND_CELLS}}", color_of(kind))
                write(f"{label}{count:>8}{f'   {names}' if names else ''}\n", err=True)
        if self.kinds["infra_error"]:
            # The reason belongs to the most frequent type; the other types have lines of their own.
            first, *others = [name for name, _ in self._names["infra_error"].most_common()]
            types = self._most_common("infra_error")
            write_message(colored(f"infra errors: {types}: {self._reasons[first]}", "red"))
            for name in others[: _NAMES_SHOWN - 1]:
                write_message(colored(f"infra errors: {name}: {self._reasons[name]}", "red"))
        if self.kinds["invalid_task"]:
            write_message(
                colored(f"invalid tasks: {self.kinds['invalid_task']:,}, the first: {self._reasons['']}", "red")
            )
        summary = self.summary()
        tasks = "1 task" if summary["done"] == 1 else f"{summary['done']:,} tasks"
        write_message(f"{tasks} in {summary['elapsed_s']:.1f} s, {summary['per_second']:.1f}/s")

    def _most_common(self, kind: str) -> str:
        """Return the most frequent names of a kind with their counts, such as "3 ConnectError, 1 ServerError"."""
        names = self._names.get(kind, Counter())
        shown = [f"{count:,} {name}" for name, count in names.most_common(_NAMES_SHOWN) if name]
        rest = self.kinds[kind] - sum(count for _, count in names.most_common(_NAMES_SHOWN))
        return ", ".join([*shown, f"{rest:,} other"] if shown and rest else shown)

    def _parts(self) -> list[_Part]:
        done = self.kinds.total() + self.skipped
        elapsed_s = max(self._clock() - self._started, 0.001)
        total = "" if self.total is None else f"/{self.total:,}"
        parts = [_Part(0, f"{done:,}{total} done")]
        if self.total:
            parts.append(_Part(2, f"{done * 100 // self.total} %"))
        if self.total is not None and self.kinds.total():
            left_s = elapsed_s * (self.total - done) / self.kinds.total()
            parts.append(_Part(3, f"{timedelta(seconds=int(left_s))} left"))
        parts.append(_Part(4, f"{self.kinds.total() / elapsed_s:.1f}/s"))
        parts.append(_Part(5, f"{self.in_flight:,} in flight"))
        if self.retries:
            parts.append(_Part(6, f"{self.retries:,} retries"))
        for position, (kind, count) in enumerate(self.kinds.most_common()):
            rank = 1 if kind == "infra_error" else 10 + position
            name = "infra errors" if kind == "infra_error" else kind
            text = f"{count:,} {name}" if kind == "infra_error" else f"{name} {count:,}"
            parts.append(_Part(rank, text, color_of(kind)))
        return parts


def _reason(kind: str, record: dict[str, Any]) -> tuple[str, str]:
    """Return the name and the reason of a failure, each on one line; a name is "" when there is none."""
    if kind == "infra_error":
        return record[kind]["type"], one_line(record[kind]["message"], 300)
    if kind == "invalid_task":
        return "", one_line(record[kind], 300)
    error = record.get("error")
    if error is None:
        return "", ""
    described = describe(kind, error["name"], error["message"])
    name = error["name"] if described.startswith(f"{kind}: {error['name']}") else described.removeprefix(kind)
    return one_line(name.lstrip(": "), 60), ""
