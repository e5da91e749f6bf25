"""CPython's own tests, run as programs on the engine `native`: `pytest -m cpython`."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from faasrt import Outcome, RuntimeManager, SandboxConfig

pytestmark = [pytest.mark.cpython, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]
SANDBOX = SandboxConfig(timeout_limit_s=500, memory_limit_mb=2048, max_output_bytes=4_000_000)
PROGRAM = """
import json, sys, unittest
from test import support
support.use_resources, support.verbose = [], 0
suite = unittest.defaultTestLoader.loadTestsFromName("test.{module}")
result = unittest.TextTestRunner(sys.stdout).run(suite)
failed = {{getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors}}
return_val(json.dumps([result.testsRun, len(result.skipped), sorted(failed)]))
"""
# The modules, and the lowest number of tests that each has in CPython 3.11 to 3.13.
MODULES = {
    "test_dataclasses": 200,
    "test_decimal": 300,
    "test_dict": 90,
    "test_functools": 200,
    "test_itertools": 80,
    "test_json": 150,
    "test_list": 50,
    "test_math": 50,
    "test_random": 80,
    "test_re": 120,
    "test_sqlite3": 350,
    "test_string": 30,
    "test_tempfile": 80,
    "test_threading": 150,
    # Modules for features that a jail could break.
    "test_atexit": 4,
    "test_exceptions": 80,
    "test_gc": 30,
    "test_generators": 20,
    "test_inspect": 100,
    "test_queue": 40,
    "test_select": 4,
    "test_selectors": 60,
    "test_shutil": 100,
    "test_subprocess": 200,
    "test_sys": 50,
    "test_traceback": 100,
    "test_warnings": 90,
    "test_weakref": 100,
}
_THREADS = "a program has at most 64 threads and processes"
_PIPES = "a pipe uses kernel memory, so its size cannot be changed"
BY_DESIGN = {
    "test.test_queue.CSimpleQueueTest.test_many_threads": _THREADS,
    "test.test_queue.CSimpleQueueTest.test_many_threads_nonblock": _THREADS,
    "test.test_queue.PySimpleQueueTest.test_many_threads": _THREADS,
    "test.test_queue.PySimpleQueueTest.test_many_threads_nonblock": _THREADS,
    "test.test_subprocess.ProcessTestCase.test_pipesizes": _PIPES,
    "test.test_subprocess.ProcessTestCaseNoPoll.test_pipesizes": _PIPES,
}
# Whether more than 64 of their threads live at once depends on the load of the machine.
MAY_FAIL = {
    "test.test_queue.CSimpleQueueTest.test_many_threads_timeout",
    "test.test_queue.PySimpleQueueTest.test_many_threads_timeout",
}


@pytest.mark.parametrize("module", MODULES)
async def test_cpythons_own_tests_pass_in_the_jail(native: RuntimeManager, module: str) -> None:
    """All tests of a module pass, except those in `BY_DESIGN`, and perhaps those in `MAY_FAIL`."""
    if importlib.util.find_spec(f"test.{module}") is None:
        pytest.skip(f"{sys.executable} has no test.{module}")
    result = await native.run_code(PROGRAM.format(module=module), "python", timeout_ms=500_000)
    assert result.outcome is Outcome.OK, result.stderr
    run, skipped, failed = json.loads(result.ret_val)
    expected = sorted(name for name in BY_DESIGN if name.startswith(f"test.{module}."))
    assert [name for name in failed if name not in MAY_FAIL] == expected, result.stdout[-20_000:]
    assert run - skipped >= MODULES[module]
