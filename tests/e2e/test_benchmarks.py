"""The benchmarks run. Their sizes here are too small for meaningful figures."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulate import SCENARIOS
from benchmarks.toolchains import INSTALLED
from support.package import ROOT

pytestmark = pytest.mark.benchmarks
# Each command, and for each of its tables: the start of the title, the number of rows, and a column.
RUNS = [
    (
        "overhead --in-flight 1 64 --loops uvloop --seconds 0.02 --rounds 2",
        [("uvloop, 1 in flight", 5, "CPU us"), ("uvloop, 64 in flight", 5, "of hand")],
    ),
    (
        "envelope --runs 1 --rounds 1",
        [("A small program", 4, "encode us"), ("Each MB of code", 4, "run ms"), ("Each MB of output", 4, "decode us")],
    ),
    ("protocols --runs 2 --rounds 1", [("A small program", 4, "decode us")]),
    ("cases --start-up 0 --cases 10 --calls 2 --rounds 1", [("A start-up", 2, "of call_function")]),
    ("judging --problems 1 --rounds 1", [("1 problems", 6, "of a process per test")]),
    ("adaptive --calls 50 --fixed 8 64 --rounds 1", [("50 calls", 3, "of the best fixed")]),
    # One row for Pyodide, and one for each method of interrupting a loop that this CPython has.
    ("guard --size 2000 --rounds 1", [("Time", 2 if sys.version_info < (3, 12) else 3, "bare loop")]),
    (
        "local --runs 4 --idle 0.1 --rounds 1",
        [
            ("python", 5, "programs/s"),
            ("numpy", 4, "p50 ms"),
            ("pandas", 4, "p50 ms"),
            ("loop", 2, "p50 ms"),
            ("javascript", 2, "p50 ms"),
            ("typescript", 2, "p95 ms"),
            *([("c", 2, "p50 ms")] if shutil.which("gcc") else []),
            ("At", 4, "native"),
        ],
    ),
    ("sessions --opens 2 --runs 4 --idle 2 --rounds 1", [("A session", 4, "run of pickled")]),
    ("processes --workers 2 --programs print --seconds 0.5 --rounds 1", [("2 processes, print", 3, "MB of server")]),
    ("map --tasks 1000 3000", [("64 in flight", 2, "source ahead")]),
    (
        "growth --in-flight 4 40 --calls 80 --rounds 1",
        [("faasrt", 2, "waiting KB"), ("hand-written", 2, "CPU - GC us")],
    ),
    ("toolchains --runs 2 --rounds 1", [("A short program", len(INSTALLED), "compile ms")]),
    # `compilation` is not here: it takes a minute. Nor is `instructions`, which `.ci/run` runs in a step of its own.
    ("startup --starts warm --rounds 1", [("Warm", 7, "ms more than bare"), ("Heavy", 3, "modules")]),
    ("batch --tasks 80 --kills 2", [("Killed", 1, "kills of the server")]),
    (
        "simulate --replicas 20 --clients 4 --calls 1000 --contenders load faasrt oracle --jobs 1",
        [(scenario, 3, "p99 s") for scenario in SCENARIOS],
    ),
    ("chaos --calls 40 --servers 2 --clients 2 --every 0.5", [("2 servers, 2 clients, SIGKILL", 1, "executions")]),
    (
        "session_chaos --runs 30 --sessions 4 --active 2 --every 5",
        [("native, 4 sessions, 2 active", 1, "runs"), ("Results", 1, "count: OK")],
    ),
    # It fails if a verdict is wrong.
    (
        "verdicts --kinds python session --right 9 --loops 2 --at-once 4 --busy 2",
        [("9 right programs", 2, "wrong")],
    ),
    ("soak --runs 40 --kills 2 --idle 0.1", [("The server", 3, "server MB"), ("8 in flight", 1, "runs/s")]),
]


def run(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *f"benchmarks.{command}".split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(value: Any) -> Iterator[float]:
    """Yield every number in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from numbers(entry)
    elif isinstance(value, (int, float)):
        yield value


@pytest.mark.parametrize(("command", "tables"), RUNS, ids=lambda value: value.split()[0] if str(value) == value else "")
def test_benchmarks_run(command: str, tables: list[tuple[str, int, str]]) -> None:
    """With `--json`, each benchmark prints one JSON document with its tables and a description of the machine."""
    document = json.loads(run(f"{command} --json"))
    assert document["benchmark"] == command.split()[0]
    assert document["machine"]["cpus"] >= 1
    assert document["machine"]["packages"]["faasrt"]
    # There is a table of errors only if calls have failed.
    printed = [(title, found) for title, found in document["tables"].items() if title != "Errors"]
    for (wanted, rows, figure), (title, found) in zip(tables, printed, strict=True):
        assert title.startswith(wanted)
        assert len(found) == rows
        assert all(figure in row for row in found)
        assert all(math.isfinite(number) for number in numbers(found))


def test_growth_writes_the_plot_of_the_readme(tmp_path: Path) -> None:
    """`--plot` writes a PNG file."""
    file = tmp_path / "growth.png"
    run(f"growth --in-flight 2 4 --calls 8 --rounds 1 --plot {file}")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_benchmarks_print_a_table_without_json() -> None:
    title, columns, row = run("map --tasks 1000").splitlines()[-3:]
    assert title == "64 in flight"
    assert columns.split()[:2] == ["tasks", "tasks/s"]
    assert row.split()[0] == "1000"
