"""The benchmarks run, with sizes that say nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("benchmarks.overhead --in-flight 1 4 --loops uvloop --seconds 0.02 --rounds 2", "CPU of hand"),
        ("benchmarks.envelope --runs 1 --rounds 2", "Each MB of output adds"),
        ("benchmarks.cases --start-up 0 --cases 10 --calls 2", "run_cases"),
        ("benchmarks.adaptive --calls 50", "adaptive"),
        ("benchmarks.guard --size 2000 --repeats 1", "bare loop"),
        ("benchmarks.local --runs 20 --idle 0.1", "of the bare engine"),
        ("benchmarks.map --tasks 5000", "ahead at most"),
        ("benchmarks.batch --tasks 200 --kills 2", "each id once"),
        ("benchmarks.soak --runs 60 --idle 0", "0 wrong verdicts; grown: nothing"),
    ],
)
def test_benchmarks_run(command: str, words: str) -> None:
    """Each is a module that runs alone and prints its ratios."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=root, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
