"""The charts, as SVG: across in percent of the width and down in pixels, so that type keeps its size on any screen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from faasrt.cli.report.figures import Distribution, Throughput, nice, time_step
from faasrt.cli.report.markup import Markup, element
from faasrt.cli.report.units import elapsed, milliseconds, on_axis, short

_PLOT_PX, _AXIS_PX, _MARK_PX = 150, 24, 17


@attrs.frozen
class Bar:
    """A bar between two places on the axis; its parts stand one on another."""

    start: float
    end: float
    parts: tuple[tuple[int, str], ...]
    title: str


@attrs.frozen
class Tick:
    """A place on the axis, from 0 to 1, its words, and whether it can go where room is scarce."""

    place: float
    words: str
    minor: bool = False


def histogram(data: Distribution, label: str) -> Markup:
    """Draw a distribution, with its median, p95 and p99."""
    spread = math.log if data.logarithmic else float
    first, last = spread(data.edges[0] or 0.0), spread(data.edges[-1])

    def place(value: float) -> float:
        return min(1.0, max(0.0, (spread(max(value, data.edges[0])) - first) / (last - first)))

    bars = [
        Bar(place(low), place(high), ((count, "bar"),), f"{span}: {count:,}")
        for low, high, count, span in zip(data.edges, data.edges[1:], data.counts, bin_names(data), strict=False)
    ]
    marks = [
        Tick(place(value), f"{name} {milliseconds(value)}")
        for name, value in (("p50", data.p50), ("p95", data.p95), ("p99", data.p99))
    ]
    return _chart(bars, [Tick(place(at), words, minor) for at, words, minor in _ms_ticks(data)], marks, label)


def bin_names(data: Distribution) -> list[str]:
    """Name the bins of a distribution."""
    return [
        f"{milliseconds(low)} to {milliseconds(high)}" for low, high in zip(data.edges, data.edges[1:], strict=False)
    ]


def throughput(data: Throughput, label: str) -> Markup:
    """Draw the results by time."""
    bins = len(data.ok)
    bars = [
        Bar(
            number / bins,
            (number + 1) / bins,
            ((ok, "bar good"), (failed, "bar bad")),
            f"from {elapsed(number * data.bin_s)}: {ok:,} OK, {failed:,} not OK",
        )
        for number, (ok, failed) in enumerate(zip(data.ok, data.failed, strict=True))
    ]
    span = bins * data.bin_s
    step = time_step(span / 6)
    ticks = [
        Tick(number * step / span, elapsed(number * step), bool(number % 2))
        for number in range(math.floor(span / step + 1e-9) + 1)
    ]
    return _chart(bars, ticks, [], label)


def shares(parts: Iterable[tuple[str, int, str]], total: int, label: str) -> Markup:
    """Draw one bar, divided among the parts: a class, a count and words for each."""
    drawn, done = [], 0
    for class_, count, words in parts:
        left, width = 100 * done / total, 100 * count / total
        drawn.append(
            element("g", element("title", words), _rect(left, width, 0, 36, class_), class_="share"),
        )
        done += count
    return element("svg", drawn, class_="shares", width="100%", height=36, role="img", aria_label=label)


def _ms_ticks(data: Distribution) -> list[tuple[float, str, bool]]:
    low, high = data.edges[0], data.edges[-1]
    if not data.logarithmic:
        step = nice((high - low) / 6)
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        return [((first + n) * step, on_axis(round((first + n) * step, 6)), bool(n % 2)) for n in range(count)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = math.ceil(len(powers) / 6)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [
        (at, on_axis(at), factor > 1)
        for power in powers[::every]
        for factor in factors
        if low * (1 - 1e-9) <= (at := factor * 10.0**power) <= high * (1 + 1e-9)
    ]


def _chart(bars: Sequence[Bar], ticks: Sequence[Tick], marks: Sequence[Tick], label: str) -> Markup:
    most = max(1, *(sum(count for count, _ in bar.parts) for bar in bars))
    step = max(1.0, nice(most / 4))
    levels = [number * step for number in range(math.ceil(most / step - 1e-9) + 1)]
    top = _MARK_PX * len(marks) + 8
    bottom = top + _PLOT_PX
    px = _PLOT_PX / levels[-1]
    height = bottom + _AXIS_PX

    scale = [
        element("text", short(level), x=40, y=f"{bottom - level * px + 4:.1f}", class_="level") for level in levels
    ]
    lines = [_line("0", "100%", bottom - level * px, bottom - level * px, "grid") for level in levels[1:]]
    drawn = []
    for bar in bars:
        stacked: list[Markup] = []
        at = float(bottom)
        for count, class_ in bar.parts:
            if count:
                tall = max(1.5, count * px)
                at -= tall
                stacked.append(_rect(100 * bar.start, 100 * (bar.end - bar.start), at, tall, class_))
        if stacked:
            drawn.append(element("g", element("title", bar.title), stacked))
    axis = [_line("0", "100%", bottom, bottom, "axis")]
    for tick in ticks:
        class_ = "tick minor" if tick.minor else "tick"
        x = f"{100 * tick.place:.3f}%"
        axis.append(_line(x, x, bottom, bottom + 4, class_))
        axis.append(element("text", tick.words, x=x, y=bottom + 18, class_=f"{class_} {_side(tick.place, 0.04)}"))
    for number, mark in enumerate(marks):
        x, y = f"{100 * mark.place:.3f}%", _MARK_PX * (number + 1) - 4
        axis.append(_line(x, x, y - 10, bottom, f"mark mark{number}"))
        side = "before" if mark.place > 0.5 else "after"
        axis.append(element("text", mark.words, x=x, y=y, dx=-5 if side == "before" else 5, class_=f"mark {side}"))
    return element(
        "div",
        element("svg", scale, class_="scale", width=46, height=height, aria_hidden="true"),
        element("svg", lines, drawn, axis, class_="plot", width="100%", height=height, role="img", aria_label=label),
        class_="chart",
    )


def _side(place: float, margin: float) -> str:
    return "after" if place < margin else "before" if place > 1 - margin else "middle"


def _rect(left: float, width: float, top: float, height: float, class_: str) -> Markup:
    return element(
        "rect", x=f"{left:.3f}%", width=f"{width:.3f}%", y=f"{top:.1f}", height=f"{height:.1f}", class_=class_
    )


def _line(x1: str, x2: str, y1: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, x2=x2, y1=f"{y1:.1f}", y2=f"{y2:.1f}", class_=class_)
