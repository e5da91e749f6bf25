"""The code that runs on the Python of programs needs no newer one than CPython 3.9."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.package import PACKAGE

VERMIN = (
    sys.executable,
    "-c",
    "import vermin; vermin.main()",
    "--quiet",
    "--no-tips",
    "--violations",
    "-vvv",
    "-t=3.9-",
)


def newer_names(*paths: Path) -> str:
    """Return the names and the syntax in some files or folders that are newer than CPython 3.9."""
    check = subprocess.run([*VERMIN, *map(str, paths)], capture_output=True, text=True, check=False)
    return check.stdout + check.stderr if check.returncode else ""


def test_the_launcher_runs_on_the_oldest_python() -> None:
    """Neither syntax nor functions nor parameters of the standard library are newer, in any of its modules."""
    assert newer_names(PACKAGE / "local" / "jail" / "launcher") == ""


def test_newer_parameters_are_found(tmp_path: Path) -> None:
    """`zip(strict=True)` is a TypeError on CPython 3.9, which no import shows."""
    module = tmp_path / "module.py"
    module.write_text("pairs = zip([1], [2], strict=True)\n")
    assert "zip(strict)" in newer_names(module)
