"""The estimate for the compilation of the Python sandbox."""

from __future__ import annotations

import os

import pytest

from faasrt.local.engines.compilation import CompilationEstimate


class Compiler:
    """A compiler whose memory grows at a steady rate after a wait, on a clock of its own."""

    def __init__(self, mb_per_s: float, wait_s: float = 0) -> None:
        self.now, self._mb_per_s, self._wait_s = 0.0, mb_per_s, wait_s
        self.estimate = CompilationEstimate(0, lambda pid: self.memory_mb, lambda: self.now)

    @property
    def memory_mb(self) -> float:
        return 270 + self._mb_per_s * (self.now - self._wait_s) if self.now >= self._wait_s else 20.0

    def after(self, seconds: float) -> str:
        self.now += seconds
        return self.estimate.describe()


@pytest.mark.parametrize("pace", [1, 5])
def test_the_estimate_follows_the_pace(pace: int) -> None:
    """A machine that compiles five times as slowly gets an estimate that is five times as long."""
    compiler = Compiler(35.75 / pace)  # 1,430 MiB in 40 s
    assert compiler.after(0) == compiler.after(pace) == ""
    assert compiler.after(9 * pace) == f"23 %, about {round(10 * pace * 0.77 / 0.23)} s left"
    assert compiler.after(20 * pace) == f"69 %, about {round(30 * pace * 0.31 / 0.69)} s left"
    assert compiler.after(10 * pace) == "92 %, almost done"
    assert compiler.after(10 * pace) == "92 %, almost done"


def test_the_estimate_changes_when_the_machine_slows_down() -> None:
    """It uses all that was measured so far, so it grows when the compiler stalls."""
    compiler = Compiler(35.75)
    compiler.after(0)
    assert compiler.after(10) == "23 %, about 33 s left"
    compiler._mb_per_s /= 2
    assert compiler.after(10) == "23 %, about 67 s left"


def test_the_time_of_waiting_for_another_process_does_not_count() -> None:
    """The process of a second command waits for the first one; there is no estimate until it compiles itself."""
    compiler = Compiler(35.75, wait_s=100)
    assert compiler.after(50) == compiler.after(50) == ""
    assert compiler.after(10) == "23 %, about 33 s left"


def test_a_process_that_has_ended() -> None:
    """Its memory is unknown, and the estimate does not fail."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert CompilationEstimate(pid).describe() == ""
