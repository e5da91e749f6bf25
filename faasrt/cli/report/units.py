"""How figures are written: rounded, with their units."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def milliseconds(value: float) -> str:
    """Give a time in its handiest unit, such as `0.420 ms`, `12.3 ms`, `1.25 s`, `2 min 5 s`; a dash when missing."""
    if math.isnan(value):
        return "–"
    if value < 999.5:
        return f"{_digits(value)} ms"
    return f"{_digits(value / 1000)} s" if value < 99_950 else elapsed(value / 1000)


def on_axis(value_ms: float) -> str:
    """Give a round time, without zeros that say nothing, such as `5 ms` or `2 s`."""
    return f"{value_ms:g} ms" if value_ms < 1_000 else elapsed(value_ms / 1_000)


def elapsed(seconds: float) -> str:
    """Give a span in one or two units, such as `0.5 s`, `2 min 5 s`, `3 h 10 min`, `2 d`."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    units = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    whole = round(seconds)
    place = next(place for place, (size, _) in enumerate(units) if whole >= size)
    (size, unit), (small, small_unit) = units[place], units[min(place + 1, 3)]
    rest = whole % size // small if small < size else 0
    return f"{whole // size:,} {unit}" + (f" {rest} {small_unit}" if rest else "")


def percent(part: int, whole: int) -> str:
    """Give a share that says 0 % and 100 % only when it is just that."""
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.0f} %" if part in (0, whole) else f"{share:.1f} %"


def rate(per_s: float) -> str:
    """Give how many come in a second, or in a minute or an hour when they are few."""
    if math.isnan(per_s):
        return "–"
    factor, unit = (1, "s") if per_s >= 1 else (60, "min") if per_s >= 1 / 60 else (3_600, "h")
    return f"{_digits(per_s * factor)} / {unit}"


def short(count: float) -> str:
    """Give a count for an axis, such as `500`, `20k` or `1.5M`."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{count:,g}"


def moment(seconds: float) -> str:
    """Give a time of day with its date, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
