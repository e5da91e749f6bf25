"""The estimate of how long the compilation of the Python sandbox still takes."""

from __future__ import annotations

import os

import pytest

from faasrt.local.engines.wasm.compilation import CompilationEstimate


class Compiler:
    """A simulated compiler with its own clock. Its memory grows at a constant rate after `wait_s` seconds."""

    def __init__(self, mb_per_s: float, wait_s: float = 0) -> None:
        self.now, self.mb_per_s, self._wait_s = 0.0, mb_per_s, wait_s
        self.estimate = CompilationEstimate(0, lambda pid: self.memory_mb, lambda: self.now)

    @property
    def memory_mb(self) -> float:
        return 270 + self.mb_per_s * (self.now - self._wait_s) if self.now >= self._wait_s else 20.0

    def after(self, seconds: float) -> str:
        self.now += seconds
        return self.estimate.describe()


@pytest.mark.parametrize("pace", [1, 5])
def test_estimate_is_proportional_to_the_compilation_time(pace: int) -> None:
    """A machine that compiles five times as slowly gets an estimate that is five times as long."""
    compiler = Compiler(35.75 / pace)  # 1,430 MiB in 40 s
    assert compiler.after(0) == compiler.after(pace) == ""
    assert compiler.after(9 * pace) == f"23 %, about {round(10 * pace * 0.77 / 0.23)} s left"
    assert compiler.after(20 * pace) == f"69 %, about {round(30 * pace * 0.31 / 0.69)} s left"
    assert compiler.after(10 * pace) == "92 %, almost done"
    assert compiler.after(10 * pace) == "92 %, almost done"


def test_estimate_grows_when_the_compiler_slows_down() -> None:
    """The estimate uses the average rate since the start of the compilation."""
    compiler = Compiler(35.75)
    compiler.after(0)
    assert compiler.after(10) == "23 %, about 33 s left"
    compiler.mb_per_s /= 2
    assert compiler.after(10) == "23 %, about 67 s left"


def test_estimate_excludes_the_wait_for_another_process() -> None:
    """If another process compiles the sandbox, a second one waits for it. It gives no estimate until it compiles."""
    compiler = Compiler(35.75, wait_s=100)
    assert compiler.after(50) == compiler.after(50) == ""
    assert compiler.after(10) == "23 %, about 33 s left"


def test_estimate_is_empty_after_the_process_has_ended() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert CompilationEstimate(pid).describe() == ""
