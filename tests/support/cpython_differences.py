"""The tests of CPython that fail in the jail, and why. The guide (`faasrt.docs.sandboxes`) has the same causes."""

from __future__ import annotations

import sys

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
