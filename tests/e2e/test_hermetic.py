"""The tests do not depend on the user's environment, on a filled cache or on other processes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from faasrt import ConfigurationError, Settings
from support.package import ROOT
from support.served import CLEAN

TESTS = ROOT / "tests"
NOWHERE = "/proc/faasrt"  # nothing can be compiled into it


def run_tests(*arguments: str, **env: str) -> tuple[int, str]:
    """Run tests in a new process. Return its exit code and output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**CLEAN, **env}, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


# It needs the sandbox, and its file imports little.
NEEDS_THE_SANDBOX = f"{TESTS}/e2e/test_other_systems.py::test_python_runs_as_webassembly_on_macos"


@pytest.mark.parametrize("processes", [("-n", "2"), pytest.param((), marks=pytest.mark.tables)], ids=["two", "one"])
def test_the_sandbox_is_compiled_before_any_test_runs(processes: tuple[str, ...]) -> None:
    """One line announces the compilation. If it fails, no test runs."""
    code, output = run_tests(NEEDS_THE_SANDBOX, *processes, FAASRT_CACHE_DIR=NOWHERE)
    assert code == 3
    assert f"compiling the Python sandbox into {NOWHERE}/wasi-python-" in output
    assert f"could not be compiled into {NOWHERE}/" in output
    assert not re.search(r"\d (passed|failed|error)", output)


def test_the_environment_names_no_endpoint() -> None:
    """The next test runs this test with an endpoint in the environment."""
    with pytest.raises(ConfigurationError, match="no endpoint is configured"):
        Settings.from_env()


def test_the_environment_and_the_sandbox_do_not_matter_to_other_tests() -> None:
    """Variables that name endpoints are removed before the first test. A test that does not need the Python sandbox
    runs although it cannot be compiled.
    """
    variables = {"COZE_LOOP_FAAS_URL": "http://127.0.0.1:1", "FAASRT_CACHE_DIR": NOWHERE}
    code, output = run_tests(f"{__file__}::test_the_environment_names_no_endpoint", **variables)
    assert code == 0, output
    assert "1 passed" in output
    assert "compiling" not in output


def test_only_one_module_lists_all_processes() -> None:
    """`served.py` lists the processes of the machine, and keeps those that belong to a folder of the test."""
    lists = "process_iter" + "("
    assert {path.name for path in TESTS.rglob("*.py") if lists in path.read_text()} == {"served.py"}


def test_every_marked_test_runs_in_a_step() -> None:
    """The README's command leaves out the tests with a marker of `setup.cfg`. A step runs the files that have them."""
    setup = (ROOT / "setup.cfg").read_text()
    markers = re.findall(r"^    (\w+): ", setup, re.MULTILINE)
    assert re.findall(r'-m "not \((.+)\)"', setup) == [" or ".join(markers)]
    steps: dict[str, str] = defaultdict(str)
    commands = (ROOT / ".ci/run").read_text().replace("\\\n", "")
    for marker, patterns in re.findall(r"^    .*python\S* -m pytest .*-m (\w+) (.+)", commands, re.MULTILINE):
        steps[marker] += f" {patterns}"
    assert sorted(steps) == sorted([*markers, "hypothesis"])  # its marker is that of the plugin
    for marker, patterns in steps.items():
        run = {path for pattern in patterns.split() for path in ROOT.glob(pattern)}
        helpers = {
            "attacks": r"threats import .*(only_with_attacks|sample|TARGETS)",
            "tables": r"tables import first_of",
        }
        marked = re.compile(rf"mark\.{marker}\b|" + helpers.get(marker, "$^"))
        for path in TESTS.glob("*/test_*.py"):
            if marked.search(path.read_text()) and path != Path(__file__):
                assert run & {path, path.parent}, f"{path.name} has tests with the marker {marker}"
