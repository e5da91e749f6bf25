"""The numbers of a report: counts, distributions, throughput, and the tasks to show."""

from __future__ import annotations

import heapq
import math
import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import attrs

from faasrt.cli.report.reader import INFRASTRUCTURE, INVALID_TASK, KINDS, OK, Row, Rows, read_tasks

MAX_SLOWEST = 100
MAX_FAILING = 200
MAX_REASONS_SHOWN = 30
_MAX_TIME_BINS = 60
# Widths of a time bin, in seconds. Longer ones are whole days.
_TIME_STEPS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800),
    *(3_600, 7_200, 10_800, 21_600, 43_200, 86_400),
)


class Distribution:
    """The distribution of a time, in milliseconds.

    Args:
        ordered: The values, at least one.

    Attributes:
        count: The number of values.
        values: The 50th, 95th and 99th percentile, the maximum and the mean, by name.
        edges: The bins' edges, one more than there are bins. The first bin also holds the values below it.
        counts: The number of values in each bin.
        logarithmic: Whether the edges are even steps of the logarithm.
    """

    def __init__(self, ordered: list[float]) -> None:
        self.count = len(ordered)
        # Before Python 3.13 `quantiles` needs two values.
        percentiles = statistics.quantiles(ordered if self.count > 1 else ordered * 2, n=100, method="inclusive")
        self.values = {f"p{percent}": percentiles[percent - 1] for percent in (50, 95, 99)}
        self.values |= {"max": ordered[-1], "mean": statistics.fmean(ordered)}
        bins = max(8, min(40, math.ceil(2 * self.count ** (1 / 3))))
        self.edges, self.logarithmic = _edges(ordered[0], ordered[-1], bins)
        places = [0, *(bisect_left(ordered, edge) for edge in self.edges[1:-1]), self.count]
        self.counts = [high - low for low, high in pairwise(places)]


class Throughput:
    """The number of results by the time at which they finished.

    Args:
        rows: Results that have a time, at least one.

    Attributes:
        count: The number of results.
        start_s: The time of the first result, in seconds since 1970.
        end_s: The time of the last one.
        per_s: The mean rate; NaN when all results have the same time.
        bin_s: The width of a bin, in seconds.
        ok: The number of results in each bin that are OK.
        failed: The number of results in each bin that are not.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.count = len(rows)
        self.start_s = min(row.finished_s for row in rows)
        self.end_s = max(row.finished_s for row in rows)
        span = self.end_s - self.start_s
        self.per_s = self.count / span if span > 0 else math.nan
        self.bin_s = time_step(span / _MAX_TIME_BINS)
        self.ok = [0] * (math.floor(span / self.bin_s) + 1)
        self.failed = list(self.ok)
        for row in rows:
            counts = self.ok if row.kind == OK else self.failed
            counts[math.floor((row.finished_s - self.start_s) / self.bin_s)] += 1


@attrs.frozen
class Reason:
    """A reason of failures: the kind and the text, the number of tasks, and their languages."""

    kind: str
    text: str
    count: int
    languages: tuple[str, ...]


@attrs.frozen
class LanguageSummary:
    """The results of a language; "" for results that name none."""

    language: str
    total: int
    ok: int
    failed: int
    not_judged: int
    latency: Distribution | None


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
        latency: The distribution of the times that callers waited; None when no time is known.
        duration: The distribution of the times that the servers reported; None when no time is known.
        throughput: The results by time; None when no time is known.
        languages: The results of each language.
        reasons: The most frequent reasons of failures, most frequent first.
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
        self.latency = distribution(row.total_ms for row in latest)
        self.duration = distribution(row.duration_ms for row in latest)
        self.languages = _by_language(latest)
        reasons = _by_reason(self.rows)
        self.reasons, self.reasons_total = reasons[:MAX_REASONS_SHOWN], len(reasons)
        timed = [row for row in latest if not math.isnan(row.finished_s)]
        self.throughput = Throughput(timed) if timed else None
        slowest, failing = _slowest(latest), _failing(latest)
        offsets = sorted({row.offset for row in (*slowest, *failing)})
        tasks = dict(zip(offsets, read_tasks(path, offsets), strict=True))
        self.slowest = [tasks[row.offset] for row in slowest]
        self.failing = [tasks[row.offset] for row in failing]


def _by_language(rows: Iterable[Row]) -> list[LanguageSummary]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.language, []).append(row)
    summaries = []
    for language, some in sorted(found.items(), key=lambda item: (not item[0], -len(item[1]), item[0])):
        counts = Counter(row.kind for row in some)
        not_judged = counts[INFRASTRUCTURE] + counts[INVALID_TASK]
        failed = len(some) - counts[OK] - not_judged
        latency = distribution(row.total_ms for row in some)
        summaries.append(LanguageSummary(language, len(some), counts[OK], failed, not_judged, latency))
    return summaries


def _by_reason(rows: Rows) -> list[Reason]:
    counts: Counter[tuple[str, int]] = Counter()
    languages: dict[tuple[str, int], set[str]] = {}
    for row in rows.latest.values():
        if row.kind != OK:
            counts[row.kind, row.reason] += 1
            languages.setdefault((row.kind, row.reason), set()).add(row.language)
    return [
        Reason(kind, rows.reasons.texts[number], count, tuple(sorted(filter(None, languages[kind, number]))))
        for (kind, number), count in counts.most_common()
    ]


def _slowest(rows: Iterable[Row]) -> list[Row]:
    known = (row for row in rows if not math.isnan(row.total_ms))
    return heapq.nlargest(MAX_SLOWEST, known, key=attrgetter("total_ms"))


def _failing(rows: Iterable[Row]) -> list[Row]:
    """Return the first failing rows of the file, with a fair share for each kind, however rare."""
    found: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for row in rows:
        if row.kind != OK and len(found[row.kind]) < MAX_FAILING:
            found[row.kind].append(row)
    chosen: list[Row] = []
    rest = sorted(filter(None, found.values()), key=len)
    for position, some in enumerate(rest):
        chosen += some[: (MAX_FAILING - len(chosen)) // (len(rest) - position)]
    return sorted(chosen, key=attrgetter("offset"))


def distribution(times_ms: Iterable[float]) -> Distribution | None:
    """Return the distribution of times in milliseconds, NaN left out; None when there are none."""
    ordered = sorted(time for time in times_ms if not math.isnan(time))
    return Distribution(ordered) if ordered else None


def _edges(low: float, high: float, bins: int) -> tuple[list[float], bool]:
    """Return edges for about `bins` bins, and whether they are logarithmic, as they are for a wide range."""
    floor = max(low, high / 1e6, 0.01)
    if high > 20 * floor:
        low, high = math.log10(floor), math.log10(high)
        # From 1 to 20 bins for each power of ten.
        step = min(1.0, nice(max(0.05, (high - low) / (1.5 * bins))))
        return [10**place for place in multiples(low, high, step, outward=True)], True
    span = max(high - low, high / 10, 0.1)
    middle = (low + high) / 2
    low, high = max(0.0, min(low, middle - span / 2)), max(high, middle + span / 2)
    return multiples(low, high, nice(span / bins), outward=True), False


def multiples(low: float, high: float, step: float, *, outward: bool = False) -> list[float]:
    """Return the multiples of a step from `low` to `high`, or, outward, those that enclose the two."""
    slack = 1e-9 if outward else -1e-9
    first, last = (math.floor, math.ceil) if outward else (math.ceil, math.floor)
    return [place * step for place in range(first(low / step + slack), last(high / step - slack) + 1)]


def nice(least: float) -> float:
    """Return the smallest of ..., 1, 2, 5, 10, 20, 50, ... that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least * (1 - 1e-9)), 10 * power)


def time_step(least: float) -> float:
    """Return the smallest round span of time that is at least `least` seconds."""
    return next((step for step in _TIME_STEPS if step >= least), 86_400 * nice(max(1.0, least / 86_400)))
