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


class Chart:
    """A chart of counts.

    Args:
        classes: The CSS classes of the counts of a bar, from the bottom up.
        bars: The bars, from left to right.
        ticks: The places on the horizontal axis.
        marks: Places that a line through the plot marks.

    Attributes:
        levels: The labelled counts of the vertical axis.
        bottom: The place of the horizontal axis, below the marks' labels and the plot.
    """

    def __init__(
        self, classes: tuple[str, ...], bars: Sequence[Bar], ticks: Sequence[Tick], marks: Sequence[Tick] = ()
    ) -> None:
        self.classes, self.bars, self.ticks, self.marks = classes, bars, ticks, marks
        most = max(1, *(sum(bar.counts) for bar in bars))
        self.levels = multiples(0, most, max(1.0, nice(most / 4)), outward=True)
        self.bottom = MARK_PX * len(marks) + 8 + PLOT_PX

    def height(self, count: float) -> float:
        """Return the height of a count."""
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
    marks = [Tick(place(value), f"{name} {milliseconds(value)}") for name, value in percentiles]
    return Chart(("bar",), bars, ticks, marks)


def throughput(data: Throughput) -> Chart:
    """Return the chart of results by time."""
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
