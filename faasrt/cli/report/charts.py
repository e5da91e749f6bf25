"""The geometry of the charts; `charts.html` draws them as SVG.

Horizontal places are shares of the width, from 0 to 1. Vertical places are pixels, so that text keeps its size on any
screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import attrs

from faasrt.cli.report.summary import Distribution, Throughput, multiples, nice, time_step
from faasrt.cli.report.units import elapsed, milliseconds, on_axis

PLOT_PX, AXIS_PX, MARK_PX = 150, 24, 17
# The width of a mark's label on a narrow screen.
_LABEL_SHARE = 0.12


@attrs.frozen
class Bar:
    """A bar of stacked counts, from `start` to `end`; also a row of the chart's table."""

    start: float
    end: float
    name: str
    title: str
    counts: tuple[int, ...]


@attrs.frozen
class Tick:
    """A labelled place on the axis. A minor one is left out on narrow screens."""

    place: float
    label: str
    minor: bool = False


@attrs.frozen
class Mark:
    """A labelled line. The label is in a row of its own, on one side of the line: "before" or "after" it."""

    place: float
    label: str
    side: str


def arrange(marks: Sequence[tuple[float, str]]) -> list[Mark]:
    """Return marks with their rows and sides, from the top row down. No label crosses the line of another mark.

    A line goes from its row down to the axis. So of two labels on the right of their lines, the left one must be in the
    higher row, and of two on the left, the right one.
    """
    if marks[-1][0] <= 1 - _LABEL_SHARE:
        sides = ["after"] * len(marks)
    elif marks[0][0] >= _LABEL_SHARE:
        sides = ["before"] * len(marks)
    else:
        sides = ["before" if place > 0.5 else "after" for place, _ in marks]
    arranged = [Mark(place, label, side) for (place, label), side in zip(marks, sides, strict=True)]
    return [mark for mark in arranged if mark.side == "after"] + [
        mark for mark in reversed(arranged) if mark.side == "before"
    ]


class Chart:
    """A chart of counts.

    Args:
        classes: The CSS classes of the counts of a bar, from the bottom up.
        bars: The bars, from left to right.
        ticks: The places on the horizontal axis.
        marks: Lines through the plot, from the highest label down.

    Attributes:
        levels: The labelled counts of the vertical axis.
        bottom: The place of the horizontal axis, below the marks' labels and the plot.
    """

    def __init__(
        self, classes: tuple[str, ...], bars: Sequence[Bar], ticks: Sequence[Tick], marks: Sequence[Mark] = ()
    ) -> None:
        self.classes, self.bars, self.ticks, self.marks = classes, bars, ticks, marks
        most = max(1, *(sum(bar.counts) for bar in bars))
        self.levels = multiples(0, most, max(1.0, nice(most / 4)), outward=True)
        self.bottom = MARK_PX * len(marks) + 8 + PLOT_PX

    def height(self, count: float) -> float:
        return count * PLOT_PX / self.levels[-1]

    def stack(self, bar: Bar) -> Iterator[tuple[str, float, float]]:
        """Yield class, top and height of each rectangle of a bar. Every count above 0 stays visible."""
        top = float(self.bottom)
        for class_, count in zip(self.classes, bar.counts, strict=True):
            if count:
                height = max(1.5, self.height(count))
                top -= height
                yield class_, top, height


def histogram(data: Distribution) -> Chart:
    """Return the chart of a distribution, with marks at its median, p95 and p99."""
    scale: Callable[[float], float] = math.log if data.logarithmic else float
    low, high = data.edges[0], data.edges[-1]

    def place(value: float) -> float:
        return (scale(min(max(value, low), high)) - scale(low)) / (scale(high) - scale(low))

    bars = []
    for (start, end), count in zip(pairwise(data.edges), data.counts, strict=True):
        name = f"{milliseconds(start)} to {milliseconds(end)}"
        bars.append(Bar(place(start), place(end), name, f"{name}: {count:,}", (count,)))
    ticks = [Tick(place(value), on_axis(value), minor) for value, minor in _ticks(data)]
    percentiles = [(name, value) for name, value in data.values.items() if name.startswith("p")]
    # The values are beside the chart; with them, the labels would not fit on narrow screens.
    return Chart(("bar",), bars, ticks, arrange([(place(value), name) for name, value in percentiles]))


def throughput(data: Throughput) -> Chart:
    bins = len(data.ok)
    bars = []
    for number, (ok, failed) in enumerate(zip(data.ok, data.failed, strict=True)):
        name = elapsed(number * data.bin_s)
        title = f"from {name}: {ok:,} OK, {failed:,} not OK"
        bars.append(Bar(number / bins, (number + 1) / bins, name, title, (ok, failed)))
    span = bins * data.bin_s
    places = multiples(0, span, time_step(span / 6))
    ticks = [Tick(place / span, elapsed(place), bool(number % 2)) for number, place in enumerate(places)]
    return Chart(("bar good", "bar bad"), bars, ticks)


def _ticks(data: Distribution) -> list[tuple[float, bool]]:
    """Return round values on the axis, and whether each is minor."""
    low, high = data.edges[0], data.edges[-1]
    if not data.logarithmic:
        places = multiples(low, high, nice((high - low) / 6))
        return [(round(value, 6), bool(number % 2)) for number, value in enumerate(places)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    values = [
        (factor * 10.0**power, factor > 1) for power in powers[:: math.ceil(len(powers) / 6)] for factor in factors
    ]
    return [(value, minor) for value, minor in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
