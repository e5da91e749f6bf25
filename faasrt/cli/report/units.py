"""Numbers as text, rounded and with their units."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_UNITS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))


def milliseconds(value: float) -> str:
    """Return a time, such as `0.420 ms`, `12.3 ms`, `1.25 s` or `2 min 5 s`; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if value < 999.5:
        return f"{_digits(value)} ms"
    return f"{_digits(value / 1000)} s" if value < 99_950 else elapsed(value / 1000)


def on_axis(value_ms: float) -> str:
    """Return a round time without trailing zeros, such as `5 ms` or `2 s`."""
    return f"{value_ms:g} ms" if value_ms < 1_000 else elapsed(value_ms / 1_000)


def elapsed(seconds: float) -> str:
    """Return a span of time in one or two units, such as `0.5 s`, `2 min 5 s`, `3 h 10 min` or `2 d`."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    size, unit, small, small_unit = next(units for units in _UNITS if whole >= units[0])
    rest = whole % size // small
    return f"{whole // size:,} {unit}" + (f" {rest} {small_unit}" if rest else "")


def percent(part: int, whole: int) -> str:
    """Return a share; only an exact one is `0 %` or `100 %`."""
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.0f} %" if part in (0, whole) else f"{share:.1f} %"


def rate(per_s: float) -> str:
    """Return a rate per second, or per minute or hour when it is low; a dash for NaN."""
    if math.isnan(per_s):
        return "–"
    factor, unit = (1, "s") if per_s >= 1 else (60, "min") if per_s >= 1 / 60 else (3_600, "h")
    return f"{_digits(per_s * factor)} / {unit}"


def short(count: float) -> str:
    """Return a count for an axis, such as `500`, `20k` or `1.5M`."""
    if count >= 1e6:
        return f"{count / 1e6:g}M"
    return f"{count / 1e3:g}k" if count >= 1e4 else f"{count:,g}"


def moment(seconds: float) -> str:
    """Return the date and time of seconds since 1970, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
