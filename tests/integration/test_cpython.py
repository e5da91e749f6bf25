"""CPython's own tests, run as programs on the engine `native`: `pytest -m cpython`."""

from __future__ import annotations

import asyncio
import fnmatch
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from faasrt import Outcome, RuntimeManager, SandboxConfig
from support.cpython_differences import CAUSES, DIFFERENT, MAY_FAIL, NOT_RUN

pytestmark = [pytest.mark.cpython, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]
SANDBOX = SandboxConfig(timeout_limit_s=500, memory_limit_mb=2048, max_output_bytes=4_000_000)
PROGRAM = """
import fnmatch, json, sys, unittest
from test import support
passed = []
class Result(unittest.TextTestResult):
    def addSuccess(self, test):
        super().addSuccess(test)
        passed.append(test.id())
def select(tests):
    if isinstance(tests, unittest.TestSuite):
        return unittest.TestSuite(filter(None, map(select, tests)))
    return None if any(fnmatch.fnmatchcase(tests.id(), "test.test_" + pattern) for pattern in {not_run}) else tests
def main():
    support.use_resources, support.verbose = [], 0
    try:
        suite = unittest.defaultTestLoader.loadTestsFromName("test.{module}")
    except unittest.SkipTest as error:
        return str(error)
    for _ in range(5):  # a test of tracemalloc relies on a stack as deep as that of CPython's own runner
        suite = unittest.TestSuite([suite])
    runner = unittest.TextTestRunner(sys.stdout, resultclass=Result)
    result = runner.run(select(suite))
    failures = result.failures + result.errors
    if not passed and not failures:
        return "all of its tests are skipped"
    return passed, {{getattr(test, "test_case", test).id(): text[-2000:] for test, text in failures}}
if __name__ == "__main__":  # not when a test starts a process that imports this program
    return_val(json.dumps(main()))
"""


def find_modules() -> list[str]:
    """Return the names of all test modules of this interpreter, except those in `NOT_RUN`. The modules of test_asyncio
    are separate, because some of them need a network.
    """
    spec = importlib.util.find_spec("test.support")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent.parent
    patterns = ("test_*.py", "test_*/__init__.py", "test_asyncio/test_*.py")
    paths = [path.relative_to(folder).with_suffix("") for pattern in patterns for path in folder.glob(pattern)]
    names = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    return sorted(name for name in names if name.removeprefix("test_") not in NOT_RUN)


def cause_of(test: str, text: str) -> str | None:
    """Return why a test of CPython fails in the jail; None if there is no known cause."""
    causes = [cause for pattern, cause in CAUSES.items() if re.search(pattern, text, re.DOTALL)]
    listed = {**DIFFERENT, **MAY_FAIL}
    return next(iter(causes + [listed[pattern] for pattern in listed if matching(pattern, [test])]), None)


def matching(pattern: str, tests: Iterable[str]) -> list[str]:
    return fnmatch.filter(tests, f"test.test_{pattern}")


def fails_without_jail(test: str) -> bool:
    """Return whether a test of CPython also fails in this interpreter on this machine."""
    command = [sys.executable, "-m", "unittest", test]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("module", find_modules())
async def test_cpythons_own_tests_pass_in_the_jail(native: RuntimeManager, module: str) -> None:
    """All tests of a module that pass without a jail also pass in the jail, except those with a known cause."""
    code = PROGRAM.format(module=module, not_run=[*NOT_RUN])
    result = await native.run_code(code, "python", timeout_ms=500_000)
    assert result.outcome is Outcome.OK, result.stdout[-2_000:] + result.stderr
    answer = json.loads(result.ret_val)
    if isinstance(answer, str):
        pytest.skip(answer)
    passed, failed = answer
    unexplained = {test: text for test, text in failed.items() if cause_of(test, text) is None}
    bare = {test: await asyncio.to_thread(fails_without_jail, test) for test in unexplained}
    assert {test: text for test, text in unexplained.items() if not bare[test]} == {}
    assert [pattern for pattern in DIFFERENT if matching(pattern, passed)] == [], "remove them from the table"
