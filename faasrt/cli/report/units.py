from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta


def milliseconds(value: float) -> str:
    """Return a time, such as `0.420 ms`, `12.3 ms`, `1.25 s` or `0:02:05`; a dash for NaN."""
    if value >= 59_995:
        return elapsed(value / 1000)
    return figure(value, " ms") if value < 999.5 or math.isnan(value) else figure(value / 1000, " s")


def elapsed(seconds: float) -> str:
    """Return a span of time, such as `0.5 s`, `0:02:05` or `2 days, 3:10:00`."""
    return f"{seconds:.3g} s" if seconds < 59.95 else str(timedelta(seconds=round(seconds)))


def figure(value: float, unit: str) -> str:
    """Return a number with three digits at least, and its unit; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}{unit}" if value >= 99.95 else f"{value:#.3g}{unit}"


def percent(part: float, whole: int) -> str:
    """Return a share; only an exact one is `0 %` or `100 %`."""
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.0f} %" if part in (0, whole) else f"{share:.1f} %"


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
