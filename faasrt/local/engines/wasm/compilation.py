"""Estimates how long the compilation of the WebAssembly sandbox takes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

# The memory of the compiler grows in proportion to the code that it has compiled, from _FIRST_MB to _LAST_MB, with any
# number of cores (measured with wasmtime 49 on one core and on two). Compiling takes _LAST_SHARE of the time; the rest
# is for writing the module.
_FIRST_MB, _LAST_MB = 270, 1_700
_LAST_SHARE = 0.92
# Below this share, there is no estimate, because it would be too inaccurate.
_LEAST_SHARE = 0.1
_ANONYMOUS_KB = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)


class CompilationEstimate:
    """Estimates the progress of a compilation from the memory of its process, which `read_mb` returns in MiB."""

    def __init__(
        self, pid: int, read_mb: Callable[[int], float] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pid, self._read_mb, self._clock = pid, read_mb or _anonymous_mb, clock
        self._started: float | None = None
        self._share = 0.0

    def describe(self) -> str:
        """Return the progress and the remaining time, such as "42 %, about 25 s left"; "" while there is no estimate.

        The process may first wait for another process that compiles. This time does not count.
        """
        now, filled = self._clock(), self._read_mb(self._pid)
        if filled < _FIRST_MB and self._started is None:
            return ""
        if self._started is None:
            self._started = now
        compiled = min(1.0, max(0.0, (filled - _FIRST_MB) / (_LAST_MB - _FIRST_MB)))
        self._share = max(self._share, _LAST_SHARE * compiled)
        if self._share < _LEAST_SHARE:
            return ""
        if self._share >= _LAST_SHARE:
            return f"{100 * self._share:.0f} %, almost done"
        left_s = (now - self._started) * (1 - self._share) / self._share
        return f"{100 * self._share:.0f} %, about {max(1, round(left_s))} s left"


def _anonymous_mb(pid: int) -> float:
    """Return the resident anonymous memory of a process, in MiB; 0 if it is unknown."""
    try:
        found = _ANONYMOUS_KB.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
