from __future__ import annotations

import heapq
import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from faasrt.cli.report.results_file import (
    INFRASTRUCTURE,
    INVALID_TASK,
    KINDS,
    OK,
    Image,
    Row,
    Rows,
    Task,
    describe_tests,
    read_tasks,
)

MAX_SLOWEST = 20
MAX_FAILING = 200
MAX_REASONS_SHOWN = 30
MAX_PROBLEMS_SHOWN = 40
MAX_WITH_IMAGES = 20
MAX_IMAGE_CHARACTERS = 4 * 2**20
_PASS_AT = (1, 10, 100)
# 0.1, 0.2, 0.5, 1, 2, 5, 10 ms and so on.
_EDGES_MS = [0.0, *(factor * 10.0**power for power in range(-1, 13) for factor in (1, 2, 5))]


class Problem(NamedTuple):
    """The samples of one problem. `left_out` counts samples without a verdict: infrastructure errors, invalid tasks."""

    name: str
    samples: int
    passed: int
    left_out: int


class Summary:
    """Everything that the page shows about a file of results.

    Attributes:
        counts: The number of results of each kind, in the order of `KINDS`, without zeros.
        pass_at_k: For each k of 1, 10 and 100: pass@k, and the number of problems with at least k samples. pass@k is
            the mean over these problems. A k for which there is no such problem is missing.
        per_s: The mean number of results per second; NaN when it is unknown.
        languages: For each language: its name, "" for results that name none, the number of results, the number of OK
            results, and the percentiles of their latency.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.rows = Rows(path)
        latest = self.rows.latest.values()
        self.total = len(latest)
        counts = Counter(row.kind for row in latest)
        self.counts = {kind: counts[kind] for kind in KINDS if kind in counts}
        self.failed = self.total - counts[OK]
        self.tests_passed = sum(row.tests_passed for row in latest)
        self.tests_skipped = sum(row.tests_skipped for row in latest)
        self.tests = sum(row.tests for row in latest)
        self.problems = _by_problem(latest, self.rows.problems)
        self.pass_at_k = _mean_pass_at_k(self.problems)
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
        with_images = [row for row in latest if row.has_images]
        self.with_images = len(with_images)
        first = sorted(with_images)[:MAX_WITH_IMAGES]
        offsets = sorted({row.offset for row in (*slowest, *failing, *first)})
        tasks = dict(zip(offsets, read_tasks(path, offsets), strict=True))
        self.slowest = [tasks[row.offset] for row in slowest]
        self.failing = [tasks[row.offset] for row in failing]
        self.images = _fitting([tasks[row.offset] for row in first])

    @property
    def tests_text(self) -> str:
        return describe_tests(self.tests_passed, self.tests_skipped, self.tests)

    @property
    def left_out(self) -> int:
        return sum(problem.left_out for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return values that `json.dumps` accepts. Shares are from 0 to 1, times in milliseconds."""
        return {
            "results": self.total,
            "outcomes": self.counts,
            "tests": {"passed": self.tests_passed, "skipped": self.tests_skipped, "total": self.tests},
            "pass_at_k": {
                str(k): {"value": value, "problems": problems} for k, (value, problems) in self.pass_at_k.items()
            },
            "problems": [
                {"task_id": name, "samples": samples, "passed": passed, "left_out": left_out}
                for name, samples, passed, left_out in self.problems
            ],
            "languages": {
                language or "": {"results": total, "ok": ok, "total_ms": latency}
                for language, total, ok, latency in self.languages
            },
            "reasons": [{"outcome": kind, "reason": reason, "results": count} for kind, reason, count in self.reasons],
            "total_ms": self.latency,
            "duration_ms": self.duration,
            "per_second": None if math.isnan(self.per_s) else self.per_s,
        }


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of the probability that at least one of `k` samples passes.

    Source: Chen et al., Evaluating Large Language Models Trained on Code, 2021, equation 1.
    """
    choices = math.comb(samples, k)
    return (choices - math.comb(samples - passed, k)) / choices


def _by_problem(rows: Iterable[Row], names: dict[int, str]) -> list[Problem]:
    counts = {key: [0, 0, 0] for key in names}
    for row in rows:
        if row.problem:
            counted = counts[row.problem]
            counted[2 if row.kind in (INFRASTRUCTURE, INVALID_TASK) else 0] += 1
            counted[1] += row.kind == OK
    problems = [Problem(names[key], *counted) for key, counted in counts.items() if any(counted)]
    return sorted(problems, key=lambda problem: problem.passed / (problem.samples or math.inf))


def _mean_pass_at_k(problems: Iterable[Problem]) -> dict[int, tuple[float, int]]:
    values = {k: [pass_at_k(each.samples, each.passed, k) for each in problems if each.samples >= k] for k in _PASS_AT}
    return {k: (statistics.fmean(known), len(known)) for k, known in values.items() if known}


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


def _fitting(tasks: Iterable[Task]) -> list[tuple[Task, list[Image]]]:
    left, shown = MAX_IMAGE_CHARACTERS, []
    for task in tasks:
        images = []
        for image in task.images:
            if len(image.url) <= left:
                left -= len(image.url)
                images.append(image)
        shown.append((task, images))
    return shown


def percentiles(times_ms: Iterable[float]) -> dict[str, float]:
    ordered = sorted(ms for ms in times_ms if not math.isnan(ms))
    if not ordered:
        return {}
    # Before Python 3.13 `quantiles` needs two values.
    quantiles = statistics.quantiles(ordered if len(ordered) > 1 else ordered * 2, n=100, method="inclusive")
    values = {f"p{percent}": quantiles[percent - 1] for percent in (50, 95, 99)}
    return {**values, "max": ordered[-1], "mean": statistics.fmean(ordered)}


def histogram(times_ms: Iterable[float]) -> list[tuple[float, float, int]]:
    """Return the start, the end and the count of each bin, NaN left out. Empty bins occur only between others."""
    bins = Counter(bisect_right(_EDGES_MS, ms) for ms in times_ms if not math.isnan(ms))
    return [(_EDGES_MS[i - 1], _EDGES_MS[i], bins[i]) for i in range(min(bins, default=0), max(bins, default=-1) + 1)]
