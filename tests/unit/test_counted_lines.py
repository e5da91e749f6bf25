"""Refusals are counted, and logged once for each kind and interval."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from faasrt.telemetry.counted_lines import INTERVAL_S, CountedLines


class Timers:
    """Timers that a test lets go off."""

    def __init__(self) -> None:
        self.waiting: list[Timer] = []

    def call_later(self, delay_s: float, function: Callable[..., None], kind: str) -> asyncio.TimerHandle:
        assert delay_s == INTERVAL_S
        self.waiting.append(Timer(lambda: function(kind)))
        return self.waiting[-1]  # type: ignore[return-value]


class Timer:
    def __init__(self, go_off: Callable[[], None]) -> None:
        self.go_off, self.cancelled = go_off, False

    def cancel(self) -> None:
        self.cancelled = True


def test_one_line_has_the_number_of_an_interval() -> None:
    """A kind that happens again after its line gets another one. Each kind has an interval of its own."""
    timers, lines = Timers(), list[tuple[str, int]]()
    counted = CountedLines[str](lambda kind, number: lines.append((kind, number)), timers.call_later)
    for _ in range(9_817):
        counted.count("full")
    counted.count("late")
    assert (lines, len(timers.waiting)) == ([], 2)
    timers.waiting[0].go_off()
    counted.count("full")
    assert (lines, len(timers.waiting)) == ([("full", 9_817)], 3)


def test_pending_counts_are_logged_by_a_flush() -> None:
    """Their timers do not go off any more. Without a count there is no line."""
    timers, lines = Timers(), list[tuple[str, int]]()
    counted = CountedLines[str](lambda kind, number: lines.append((kind, number)), timers.call_later)
    counted.count("full")
    counted.count("full")
    counted.count("late")
    counted.flush()
    counted.flush()
    assert lines == [("full", 2), ("late", 1)]
    assert all(timer.cancelled for timer in timers.waiting)
