"""Code that runs beside programs: the joined sources of the runners, and the launcher."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from faasrt.local.engines.runner_sources import RUNNERS, RunnerName, read_runner
from support.package import PACKAGE, ROOT

PYTHON: tuple[RunnerName, ...] = ("native", "wasm", "command")
# Parts repeat imports, and have them where they begin. The first line may be GUEST. The other rules are not for code
# that runs in place of a program, in a sandbox.
IGNORED = "D,E402,PERF203,PTH,S,SIM"
# The parts have no annotations, and replace functions and streams of the interpreter and of modules that have no stubs.
UNTYPED = (
    *("assignment", "attr-defined", "import-not-found", "index", "method-assign", "misc"),
    *("operator", "union-attr", "var-annotated"),
)
VERMIN = (sys.executable, "-c", "import vermin; vermin.main()", "--quiet", "--no-tips", "--violations", "-vvv")
GUARDED = ("sys.last_exc", "sys.orig_argv")  # only set, or used only where they exist


def output_of(*command: str | Path) -> str:
    """Return what a checker prints, or "" if it finds nothing."""
    check = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    return check.stdout + check.stderr if check.returncode else ""


def lint(source: Path) -> list[str]:
    """Return what ruff finds in a joined runner, without imports that several parts have."""
    ruff = ("-m", "ruff", "check", "-q", "--no-cache", "--config", ROOT / "pyproject.toml", "--target-version", "py39")
    output = output_of(sys.executable, *ruff, "--ignore", IGNORED, "--output-format", "concise", source)
    lines, found = source.read_text("utf-8").splitlines(), []
    for problem in output.splitlines():
        place = re.search(r":(\d+):\d+: (\w+) ", problem)
        line, code = (lines[int(place[1]) - 1], place[2]) if place else ("", "")
        if not (code == "F811" and line.startswith("import ")) and not (code == "E501" and line.startswith("GUEST")):
            found.append(problem)
    return found


def newer_names(*paths: Path, without: tuple[str, ...] = ()) -> str:
    """Return the names and the syntax in some files or folders that are newer than CPython 3.9."""
    return output_of(*VERMIN, "-t=3.9-", *(option for name in without for option in ("--exclude", name)), *paths)


def written(name: RunnerName, folder: Path) -> Path:
    path = folder / f"{name}_runner.py"
    path.write_text(read_runner(name), "utf-8")
    return path


@pytest.mark.parametrize("name", PYTHON)
def test_a_joined_runner_is_linted(name: RunnerName, tmp_path: Path) -> None:
    """It has no undefined names, although its parts use each other's, and no part replaces a name of another one."""
    assert lint(written(name, tmp_path)) == []


def test_undefined_and_repeated_names_are_found(tmp_path: Path) -> None:
    """A misspelt name of another part, and a function that two parts define."""
    path = written("command", tmp_path)
    path.write_text(path.read_text("utf-8") + "\n\ndef read_exactly():\n    return read_exactli(1)\n", "utf-8")
    assert re.findall(r" ([A-Z]+\d+) ", "".join(lint(path))) == ["F811", "F821"]


@pytest.mark.types
def test_the_types_of_joined_runners_are_checked(tmp_path: Path) -> None:
    """Calls between parts have the arguments that the functions take."""
    paths = [written(name, tmp_path) for name in PYTHON]
    wrong = tmp_path / "wrong.py"
    wrong.write_text(read_runner("command") + "\n\ndef wrong():\n    read_exactly()\n", "utf-8")
    mypy = ("-m", "mypy", "--config-file=", "--check-untyped-defs", "--no-error-summary", "--hide-error-context")
    options = (*mypy, "--cache-dir", tmp_path / "cache", *(f"--disable-error-code={code}" for code in UNTYPED))
    output = output_of(sys.executable, *options, *paths, wrong)
    assert re.fullmatch(r'\S*wrong.py:\d+: error: Missing positional argument "size" .*\n', output), output


@pytest.mark.parametrize("name", ["native", "command"])
def test_native_runners_run_on_the_oldest_python(name: RunnerName, tmp_path: Path) -> None:
    """Neither their syntax nor what they use of the standard library is newer than CPython 3.9."""
    assert newer_names(written(name, tmp_path), without=GUARDED) == ""


def test_the_launcher_runs_on_the_oldest_python() -> None:
    """Neither syntax nor functions nor parameters of the standard library are newer, in any of its modules."""
    assert newer_names(PACKAGE / "local" / "jail" / "launcher") == ""


def test_newer_parameters_are_found(tmp_path: Path) -> None:
    """`zip(strict=True)` is a TypeError on CPython 3.9, which no import shows."""
    module = tmp_path / "module.py"
    module.write_text("pairs = zip([1], [2], strict=True)\n")
    assert "zip(strict)" in newer_names(module)


def test_each_file_belongs_to_a_runner() -> None:
    """The table has all files of the folder."""
    files = {path.name for path in (PACKAGE / "local" / "runners").glob("*.[jp]*")} - {"__init__.py"}
    assert files == {part for parts in RUNNERS.values() for part in parts if not part.startswith("guest/")}
