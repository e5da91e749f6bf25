"""The numbers of a report: counts, percentiles, and the tasks to show."""

from __future__ import annotations

import heapq
import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path

from faasrt.cli.report.results_file import KINDS, OK, Row, Rows, read_tasks

MAX_SLOWEST = 20
MAX_FAILING = 200
MAX_REASONS_SHOWN = 30
# 0.1, 0.2, 0.5, 1, 2, 5, 10 ms and so on.
_EDGES_MS = [0.0, *(factor * 10.0**power for power in range(-1, 13) for factor in (1, 2, 5))]


class Summary:
    """Everything that the page shows about a file of results.

    Args:
        path: The file.

    Attributes:
        name: The name of the file.
        rows: The latest result of every task.
        total: The number of tasks with a result.
        counts: The number of results of each kind, in the order of `KINDS`, without zeros.
        failed: The number of tasks that are not OK, for any reason.
        tests_passed, tests: The number of tests that passed, and of all tests.
        latency: The percentiles of the times that callers waited; empty when no time is known.
        duration: The percentiles of the times that the servers reported; empty when no time is known.
        timed: The number of results with a latency.
        histogram: The number of results by latency.
        period: The times of the first and the last result, in seconds since 1970; None when no time is known.
        per_s: The mean number of results per second; NaN when it is unknown.
        languages: For each language: its name, "" for results that name none, the number of results, the number of
            those that are OK, and the percentiles of their latency.
        reasons: The most frequent reasons of failures, most frequent first: kind, text and number of tasks.
        reasons_total: The number of different reasons.
        slowest: The slowest tasks, slowest first.
        failing: The first failing tasks of the file.

    Raises:
        ResultsError: The file cannot be read, or holds no results.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.rows = Rows(path)
        latest = self.rows.latest.values()
        self.total = len(latest)
        counts = Counter(row.kind for row in latest)
        self.counts = {kind: counts[kind] for kind in KINDS if kind in counts}
        self.failed = self.total - counts[OK]
        self.tests_passed, self.tests = sum(row.tests_passed for row in latest), sum(row.tests for row in latest)
        self.latency = percentiles(row.total_ms for row in latest)
        self.duration = percentiles(row.duration_ms for row in latest)
        self.histogram = histogram(row.total_ms for row in latest)
        self.timed = sum(count for _, _, count in self.histogram)
        finished = [row.finished_s for row in latest if not math.isnan(row.finished_s)]
        self.period = (min(finished), max(finished)) if finished else None
        span_s = self.period[1] - self.period[0] if self.period else 0
        self.per_s = len(finished) / span_s if span_s else math.nan
        self.languages = _by_language(latest)
        reasons = Counter((row.kind, row.reason) for row in latest if row.kind != OK)
        self.reasons_total = len(reasons)
        self.reasons = [
            (kind, self.rows.reasons[key], count) for (kind, key), count in reasons.most_common(MAX_REASONS_SHOWN)
        ]
        slowest, failing = _slowest(latest), _failing(latest)
        offsets = sorted({row.offset for row in (*slowest, *failing)})
        tasks = dict(zip(offsets, read_tasks(path, offsets), strict=True))
        self.slowest = [tasks[row.offset] for row in slowest]
        self.failing = [tasks[row.offset] for row in failing]


def _by_language(rows: Iterable[Row]) -> list[tuple[str, int, int, dict[str, float]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.language, []).append(row)
    return [
        (language, len(group), sum(row.kind == OK for row in group), percentiles(row.total_ms for row in group))
        for language, group in sorted(groups.items(), key=lambda item: (not item[0], -len(item[1]), item[0]))
    ]


def _slowest(rows: Iterable[Row]) -> list[Row]:
    timed = (row for row in rows if not math.isnan(row.total_ms))
    return heapq.nlargest(MAX_SLOWEST, timed, key=attrgetter("total_ms"))


def _failing(rows: Iterable[Row]) -> list[Row]:
    """Return the first failing rows of the file, with a fair share for each kind, however rare."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind != OK and len(group := groups.setdefault(row.kind, [])) < MAX_FAILING:
            group.append(row)
    chosen: list[Row] = []
    for position, group in enumerate(sorted(groups.values(), key=len)):
        chosen += group[: (MAX_FAILING - len(chosen)) // (len(groups) - position)]
    return sorted(chosen)


def percentiles(times_ms: Iterable[float]) -> dict[str, float]:
    """Return percentiles, maximum and mean of times in milliseconds, NaN left out; {} when there are none."""
    ordered = sorted(ms for ms in times_ms if not math.isnan(ms))
    if not ordered:
        return {}
    # Before Python 3.13 `quantiles` needs two values.
    quantiles = statistics.quantiles(ordered if len(ordered) > 1 else ordered * 2, n=100, method="inclusive")
    values = {f"p{percent}": quantiles[percent - 1] for percent in (50, 95, 99)}
    return {**values, "max": ordered[-1], "mean": statistics.fmean(ordered)}


def histogram(times_ms: Iterable[float]) -> list[tuple[float, float, int]]:
    """Return the start, the end and the count of each bin of times in milliseconds, NaN left out. Bins that are empty
    occur only between others.
    """
    bins = Counter(bisect_right(_EDGES_MS, ms) for ms in times_ms if not math.isnan(ms))
    return [(_EDGES_MS[i - 1], _EDGES_MS[i], bins[i]) for i in range(min(bins, default=0), max(bins, default=-1) + 1)]
