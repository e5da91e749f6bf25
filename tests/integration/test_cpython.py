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

pytestmark = [pytest.mark.cpython, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]
SANDBOX = SandboxConfig(timeout_limit_s=500, memory_limit_mb=2048, max_output_bytes=4_000_000)
# Why tests of CPython fail in the jail. The guide (`faasrt/docs/differences.md`) has the same causes.
_NETWORK = "there are no sockets but Unix sockets"
_TERMINAL = "there are no terminals"
_READ_ONLY = "the interpreter is on a read-only file system, where removing a missing file has another error"
_LARGE = "files are limited to 64 MiB"
_THREADS = "a program has at most 64 threads and processes"
_MEMORY = "it would use memory of the kernel that no limit counts"
_LIMITS = "resource limits are those of the jail, and cannot be raised"
_SESSION = "all processes of a program are in one session"
_CACHE = "the flags show which files of the machine are cached"
_USERS = "other users have no number in the user namespace of a program"
_HOME = "the home of the user is the working folder"
_HANGS = "they hang without a jail, too"
_FILES = "the jail does not have this file of the machine"
_TRACING = "programs cannot trace processes"

NOT_RUN = {
    **dict.fromkeys(
        [
            *("asynchat", "asyncore", "docxmlrpc", "ftplib", "httpservers", "imaplib", "nntplib", "poplib", "smtpd"),
            *("smtplib", "socket", "socketserver", "ssl", "telnetlib", "urllib2_localnet", "xmlrpc"),
            *("asyncio", "asyncio.test_base_events", "asyncio.test_buffered_proto", "asyncio.test_events"),
            *("asyncio.test_sendfile", "asyncio.test_server", "asyncio.test_sock_lowlevel", "asyncio.test_ssl"),
            *("asyncio.test_sslproto", "asyncio.test_streams"),
            "logging.ConfigDictTest.test_listen_*",
        ],
        _NETWORK,
    ),
    **dict.fromkeys(["openpty", "pty", "readline", "termios", "tty"], _TERMINAL),
    "largefile": _LARGE,
    **dict.fromkeys(["interpreters", "_xxsubinterpreters"] if sys.version_info < (3, 12) else [], _HANGS),
}
"""Modules and patterns of tests that are not run, without "test_" in front, with the reason."""

CAUSES = {
    r"socket\.py.*PermissionError: \[Errno 13\] Permission denied\n$": _NETWORK,
    r"OSError: \[Errno 30\] Read-only file system": _READ_ONLY,
    r"out of pty devices\n$": _TERMINAL,
}
"""Regular expressions that find the cause of a failure in its traceback."""

DIFFERENT = {
    "audit.AuditTest.test_mmap": _MEMORY,
    "audit.AuditTest.test_socket": _NETWORK,
    "external_inspection.*": _TRACING,
    "fcntl.TestFcntl.test_fcntl_64_bit": _MEMORY,
    "fcntl.TestFcntl.test_fcntl_f_pipesize": _MEMORY,
    "io.*IOTest.test_large_file_ops": _LARGE,
    "logging.SysLogHandlerTest.test_udp_reconnection": _NETWORK,
    "multiprocessing_*.MiscTestCase.test_large_pool": _THREADS,
    "multiprocessing_*.WithManagerTestRemoteManager.test_remote": _NETWORK,
    "multiprocessing_*.WithProcessesTestPicklingConnections.test_pickling": _NETWORK,
    "os.ChownFileTests.test_chown_without_permission": _USERS,
    "os.FDInheritanceTests.test_openpty": _TERMINAL,
    "os.MemfdCreateTests.*": _MEMORY,
    "os.PseudoterminalTests.*": _TERMINAL,
    "os.TestInvalidFD.test_tcsetpgrpt": _TERMINAL,
    "os.TestSendfile.*": _NETWORK,
    "perf_profiler.TestPerfProfilerWithDwarf.test_python_calls_appear_*": _TRACING,
    "posix.PosixTester.test_preadv_flags": _CACHE,
    "posix.TestPosixSpawn*.test_setsid": _SESSION,
    "pdb.PdbTestCase.test_pdbrc_empty_line": _HOME,
    "pdb.PdbTestCase.test_pdbrc_semicolon": _HOME,
    "pydoc.*PydocServerTest.test_server": _NETWORK,
    "resource.ResourceTest.test_fsize_ismax": _LIMITS,
    "resource.ResourceTest.test_prlimit": _LIMITS,
    "spwd.TestSpwdNonRoot.*": _FILES,
    "subprocess.POSIXProcessTestCase.test_user": _USERS,
    "subprocess.POSIXProcessTestCase.test_start_new_session": _SESSION,
    "subprocess.ProcessTestCase*.test_pipesizes": _MEMORY,
    "venv.BasicTest.test_zippath_from_non_installed_posix": _LARGE,
}
"""Patterns of tests that fail, without "test.test_" in front, with the reason."""

MAY_FAIL = {
    "importlib.test_threaded_import.ThreadedImportTests.test_multiprocessing_pool_circular_import": _THREADS,
    "queue.*SimpleQueueTest.test_many_threads*": _THREADS,
}
"""Patterns of tests that fail if over 64 of their threads and processes live at once, which depends on the load."""

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
