"""The engine `native`: outcomes, hints to install packages, limits, and isolation."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import faasrt
from faasrt import ConfigurationError, ExecutionResult, Outcome, RuntimeManager, SandboxConfig, TestCase
from faasrt.local.engines.native.engine import NativeEngine, PythonTier
from support.helpers import Clock, skip_without
from support.levels import NATIVE
from support.programs import RANDOM
from support.served import until
from support.tables import block

pytestmark = [pytest.mark.asyncio(loop_scope="session"), NATIVE]
SANDBOX = SandboxConfig(timeout_limit_s=60, memory_limit_mb=512)


async def run(native: RuntimeManager, code: str, timeout_ms: float = 20_000) -> ExecutionResult:
    return await native.run_code(code, "python", timeout_ms=timeout_ms)


@pytest.mark.parametrize(
    ("code", "package"),
    [
        ("import no_such_package", "no_such_package"),
        ("import no_such_package.part as p", "no_such_package"),
        ("from no_such_package import name", "no_such_package"),
        (
            block("""
                def f():
                    import cv2_missing
                f()
            """),
            "cv2_missing",
        ),
        (
            block("""
                import importlib
                importlib.import_module('no_such_package')
            """),
            "no_such_package",
        ),
        ("import json.nope", None),
        ("from json import nope", None),
        (
            block("""
                try:
                    import no_such_package
                except ImportError:
                    1 / 0
            """),
            None,
        ),
        (
            block("""
                try:
                    import no_such_package
                except ImportError as e:
                    raise ValueError from e
            """),
            None,
        ),
        ("raise ModuleNotFoundError('x', name='a; rm -rf /')", None),
        ("raise ModuleNotFoundError('x', name='-r')", None),
        ("raise ModuleNotFoundError('x', name='a' * 100)", None),
        ("raise ModuleNotFoundError('x', name=5)", None),
        ("raise ModuleNotFoundError", None),
    ],
)
async def test_an_import_error_says_how_to_install_the_package(
    native: RuntimeManager, code: str, package: str | None
) -> None:
    """`error.message` has the pip command for the programs' environment. Stderr and the traceback are not changed."""
    result = await run(native, code)
    assert result.outcome is Outcome.USER_ERROR
    assert result.error is not None
    hint = f" (to install it for programs, run: {sys.executable} -m pip install {package})"
    assert ("pip install" in result.error.message) is (package is not None)
    if package is not None:
        assert result.error.message.endswith(hint)
    assert "pip install" not in result.stderr + result.error.traceback + result.stdout


async def test_the_install_hint_knows_packages_with_another_name(native: RuntimeManager) -> None:
    """For `import skimage` the command is `pip install scikit-image`."""
    result = await run(native, "import skimage")
    if result.outcome is Outcome.OK:
        pytest.skip("scikit-image is installed")
    assert result.error is not None
    assert result.error.message.endswith("pip install scikit-image)")


async def test_files_are_linked_and_moved_to_other_folders(native: RuntimeManager) -> None:
    """Landlock denies this by default."""
    code = """
import os
os.mkdir('folder')
open('file', 'w').close()
os.link('file', 'folder/link')
os.rename('file', 'folder/moved')
print(sorted(os.listdir('folder')))
"""
    assert (await run(native, code)).stdout == "['link', 'moved']\n"


async def test_a_program_can_reach_only_one_frame_of_the_runner(native: RuntimeManager) -> None:
    """This frame has no objects of the server, and no module of faasrt is loaded."""
    code = """
import inspect, sys
frames = inspect.stack()
print(len(frames), sys._getframe(1).f_back)
print(sorted(sys._getframe(1).f_locals))
print([name for name in sys.modules if name.split('.')[0] in ('jail', 'faasrt')])
open('jail.py', 'w').write('mine = True')
import jail
print(jail.mine)
"""
    result = await run(native, code)
    assert result.stdout.splitlines()[0] == "2 None"
    names = {"_", "job", "text", "code", "namespace", "stdout", "stderr", "limit", "failure", "exit_code"}
    assert set(eval(result.stdout.splitlines()[1])) <= names | {"program", "displays"}
    assert result.stdout.splitlines()[2:] == ["[]", "True"]


@pytest.mark.parametrize(
    ("code", "outcome", "stdout", "ret_val", "exit_code"),
    [
        (
            block("""
                import asyncio
                x = await asyncio.sleep(0, 5)
                print(x)
                return_val(x)
            """),
            Outcome.OK,
            "5\n",
            "5",
            0,
        ),
        (
            block("""
                async with __import__('asyncio').timeout(1):
                    print(1)
            """),
            Outcome.OK,
            "1\n",
            "",
            0,
        ),
        (
            block("""
                await __import__('asyncio').sleep(0)
                1 / 0
            """),
            Outcome.USER_ERROR,
            "",
            "",
            1,
        ),
        (
            block("""
                return_val({'a': 1})
                return_val('last')
            """),
            Outcome.OK,
            "",
            "last",
            0,
        ),
        (
            block("""
                return_val('kept')
                raise ValueError
            """),
            Outcome.USER_ERROR,
            "",
            "kept",
            1,
        ),
        (
            block("""
                return_val('kept')
                import os
                os._exit(3)
            """),
            Outcome.CRASHED,
            "",
            "kept",
            3,
        ),
        ("return_val('\\ud800 \\x00 é')", Outcome.OK, "", "\ud800 \x00 é", 0),
        ("\ufeffprint('after a mark')", Outcome.OK, "after a mark\n", "", 0),
        (f"x = {'1 + ' * 300}1\nprint(x)\n{'# x' * 500_000}", Outcome.OK, "301\n", "", 0),
        ("\n".join(f"x{n} = {n}" for n in range(30_000)) + "\nprint(x29999)", Outcome.OK, "29999\n", "", 0),
        # Child processes: the first process decides the outcome.
        (
            block("""
                import os
                if os.fork() == 0:
                    1 / 0
                os.wait()
            """),
            Outcome.OK,
            "",
            "",
            0,
        ),
        (
            block("""
                import os
                if os.fork() == 0:
                    raise SystemExit(3)
                os.wait()
                print(1)
            """),
            Outcome.OK,
            "1\n",
            "",
            0,
        ),
        (
            block("""
                import os
                if os.fork() == 0:
                    print(1)
                else:
                    os.wait()
                    print(2)
            """),
            Outcome.OK,
            "1\n2\n",
            "",
            0,
        ),
        (
            block("""
                import os
                if os.fork():
                    os.wait()
                    os._exit(4)
            """),
            Outcome.CRASHED,
            "",
            "",
            4,
        ),
        (
            block("""
                import os, time
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        time.sleep(1000)
                    os._exit(0)
                os.wait()
                print('the daemon holds stdout')
            """),
            Outcome.OK,
            "the daemon holds stdout\n",
            "",
            0,
        ),
        (
            block("""
                import subprocess
                subprocess.Popen(['sleep', '1000'])
                print(1)
            """),
            Outcome.OK,
            "1\n",
            "",
            0,
        ),
        # Descriptors.
        (
            block("""
                import os
                os.close(1)
                os.close(2)
            """),
            Outcome.OK,
            "",
            "",
            0,
        ),
        (
            block("""
                import os
                print(1, flush=True)
                os.closerange(0, 1000)
            """),
            Outcome.CRASHED,
            "1\n",
            "",
            0,
        ),
        (
            block("""
                import os
                os.closerange(3, 200)
                print(1)
                return_val(2)
            """),
            Outcome.OK,
            "1\n",
            "2",
            0,
        ),
        (
            block("""
                import os
                os.dup2(2, 1)
                print('to stderr')
            """),
            Outcome.OK,
            "",
            "",
            0,
        ),
        (
            block("""
                import sys
                sys.stdout = sys.stderr
                print('to stderr')
            """),
            Outcome.OK,
            "",
            "",
            0,
        ),
        (
            block("""
                import sys
                sys.stdout = open('/dev/null', 'w')
                print(1)
                return_val(2)
            """),
            Outcome.OK,
            "",
            "2",
            0,
        ),
        (
            block("""
                import sys
                print(1)
                sys.stdout.close()
            """),
            Outcome.OK,
            "1\n",
            "",
            0,
        ),
        (
            block("""
                import sys
                sys.excepthook = lambda *a: sys.exit(9)
                1 / 0
            """),
            Outcome.USER_ERROR,
            "",
            "",
            9,
        ),
        (
            block("""
                import builtins, sys
                vars(builtins).clear()
            """),
            Outcome.OK,
            "",
            "",
            0,
        ),
        (
            block("""
                import sys, gc, threading, atexit
                sys.modules.clear()
                print(1)
            """),
            Outcome.OK,
            "1\n",
            "",
            0,
        ),
        (
            block("""
                import sys, atexit
                atexit.register(print, 'bye')
                sys.excepthook = None
                1 / 0
            """),
            Outcome.USER_ERROR,
            "bye\n",
            "",
            1,
        ),
    ],
)
async def test_the_first_process_decides_the_result(
    native: RuntimeManager, code: str, outcome: Outcome, stdout: str, ret_val: str, exit_code: int
) -> None:
    """Outcome, value and exit code come from the first process, whatever child processes and descriptors do."""
    result = await run(native, code)
    assert (result.outcome, result.stdout, result.ret_val) == (outcome, stdout, ret_val), result.stderr
    assert result.exit_code == exit_code


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (
            block("""
                import signal
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                signal.pause()
            """),
            "SIGALRM",
        ),
        (
            block("""
                import signal
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)
                while True: pass
            """),
            "SIGVTALRM",
        ),
        (
            block("""
                import signal
                signal.raise_signal(signal.SIGUSR1)
            """),
            "SIGUSR1",
        ),
        (
            block("""
                import os, signal
                signal.signal(13, signal.SIG_DFL)
                r, w = os.pipe()
                os.close(r)
                os.write(w, b'x')
            """),
            "SIGPIPE",
        ),
        (
            block("""
                import os
                os.abort()
            """),
            "SIGABRT",
        ),
        (
            block("""
                import os
                os.kill(os.getpid(), 9)
            """),
            "SIGKILL",
        ),
        (
            block("""
                import os
                if os.fork() == 0:
                    os.kill(os.getppid(), 9)
                while True: pass
            """),
            "SIGKILL",
        ),
        (
            block("""
                import os, signal
                os.kill(os.getpid(), signal.SIGRTMIN)
            """),
            "SIGRTMIN",
        ),
        (
            block("""
                import os
                os.system('kill -USR2 $PPID')
                while True: pass
            """),
            "SIGUSR2",
        ),
    ],
)
async def test_a_signal_to_itself_is_a_crash_of_the_program(native: RuntimeManager, code: str, name: str) -> None:
    """The outcome is CRASHED, and the error names the signal. It is not an error of the server."""
    result = await run(native, code)
    assert result.outcome is Outcome.CRASHED
    assert result.error is not None
    assert result.error.name == name


async def test_programs_do_not_inherit_the_signals_of_the_server() -> None:
    """A server that a shell has started in the background ignores SIGINT. Its programs do not."""
    code = block("""
        import signal
        for number in sorted(signal.valid_signals()):
            if signal.getsignal(number) is signal.SIG_IGN: print(number.name)
        print(signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, []))
    """)
    ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        async with RuntimeManager.local(["python"], engines={"python": "native"}) as manager:
            result = await run(manager, code)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in ignored.items():
            signal.signal(number, handler)
    assert result.stdout == f"SIGPIPE\nSIGXFSZ\n{signal.default_int_handler} set()\n"


async def test_orphans_are_reaped(native: RuntimeManager) -> None:
    """Processes whose parent has ended do not use up the limit of 64 processes after their own end."""
    code = block("""
        import subprocess
        for i in range(100):
            subprocess.run(['sh', '-c', 'sleep 0.01 & exit 0'], check=True, capture_output=True)
        print('end')
    """)
    assert (await run(native, code)).stdout == "end\n"


async def test_the_cpu_clock_of_a_process_is_exact(native: RuntimeManager) -> None:
    """It advances between any two calls, as without a limit of CPU time."""
    result = await run(
        native,
        block("""
            import time
            print(len({time.process_time() for _ in range(1_000)}))
        """),
    )
    assert result.stdout == "1000\n"


async def test_a_limit_of_cpu_time_of_the_program_is_a_crash(native: RuntimeManager) -> None:
    """The program has set the limit itself, so the outcome is not TIMEOUT."""
    code = block("""
        import resource
        resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
        while True: pass
    """)
    result = await run(native, code)
    assert (result.outcome, result.error and result.error.name) == (Outcome.CRASHED, "SIGXCPU")


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(10**11)",
        block("""
            x = []
            while True: x.append([len(x)] * 50)
        """),
        block("""
            x = 'a'
            while True: x += x
        """),
        block("""
            def f():
                x = []
                while True: x.append(bytearray(10**6))
            f()
        """),
        "raise MemoryError",
        block("""
            import os
            x = []
            if os.fork() == 0:
                while True: x.append(bytearray(10**6))
            os.wait()
            1 / 0
        """),
    ],
)
async def test_an_uncaught_memory_error_is_memory_limit(native: RuntimeManager, code: str) -> None:
    """It has the same outcome as a program that is stopped because it uses too much memory."""
    result = await native.run_code(code, "python", 60_000, sandbox=attrs.evolve(SANDBOX, memory_limit_mb=64))
    assert result.outcome is Outcome.MEMORY_LIMIT, result
    assert (await run(native, "print(1)")).stdout == "1\n"


async def test_packages_do_not_count_even_if_the_server_has_not_imported_them_yet() -> None:
    """The first program that uses large packages gets the same outcome as the later ones."""
    skip_without("sklearn")
    skip_without("sympy")
    async with RuntimeManager.local(["python"], engines={"python": "native"}) as manager:
        result = await run(
            manager,
            block("""
                import numpy, sympy, sklearn
                print('end')
            """),
        )
    assert (result.outcome, result.stdout) == (Outcome.OK, "end\n")


async def test_the_least_memory_limit_of_the_documentation_is_enough() -> None:
    """A server of `native` may have it, and one whose engine is not chosen may not, because that may be `wasm`."""
    code = "import collections, json\nprint(json.dumps(collections.Counter(str(i % 3) for i in range(9_999))))"
    sandbox = SandboxConfig(memory_limit_mb=16)
    async with RuntimeManager.local(["python"], engines={"python": "native"}, workers=1, sandbox=sandbox) as manager:
        result = await manager.run_code(code, "python")
    assert (result.outcome, result.stdout) == (Outcome.OK, '{"0": 3333, "1": 3333, "2": 3333}\n'), result
    with pytest.raises(ConfigurationError, match="at least 48 for python"):
        RuntimeManager.local(["python"], sandbox=sandbox)


async def test_the_stack_is_large_enough_for_deep_recursion(native: RuntimeManager) -> None:
    """`@lru_cache` recurses in C code and needs more than the usual 8 MiB. Subprocesses have the usual stack."""
    depth = 100_000 if sys.version_info < (3, 12) else 300
    code = f"""
import functools, resource, subprocess, sys
sys.setrecursionlimit({3 * depth + 1000})
@functools.lru_cache(None)
def f(n):
    return n and 1 + f(n - 1)
print(f({depth}))
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
threads = '''
import threading
event = threading.Event()
threads = [threading.Thread(target=event.wait) for _ in range(40)]
for thread in threads:
    thread.start()
event.set()
print(len(threads))
'''
print(subprocess.check_output([sys.executable, '-c', threads], text=True))
"""
    result = await run(native, code)
    assert result.stdout == f"{depth}\n40\n\n", result


async def test_the_metadata_name_engine_and_level(native: RuntimeManager) -> None:
    result = await run(native, "print(1)")
    assert (result.metadata["engine"], result.metadata["level"]) == ("native", "namespaces")


@pytest.mark.parametrize(
    "code",
    [
        block(r"""
            import os
            os.write(255, b'{"kind":"started"\n')
            os._exit(1)
        """),
        block(r"""
            import os
            os.write(255, b'{"kind":"started","x":[]}\n')
            os.abort()
        """),
    ],
)
async def test_a_program_cannot_pretend_that_it_has_not_started(native: RuntimeManager, code: str) -> None:
    """Otherwise it would be run a second time."""
    assert (await run(native, code)).outcome is Outcome.CRASHED


async def test_the_memory_of_a_process_without_its_first_thread_counts(native: RuntimeManager) -> None:
    """The system shows the memory of such a process only in the folders of its other threads."""
    # 176 MiB is above the limit of 128, but not so far that the thread would get a MemoryError first.
    code = block("""
        import ctypes, threading, time
        def hold():
            time.sleep(0.2)
            kept = [bytearray(b'x' * 2**23) for _ in range(22)]
            print('held', flush=True)
            time.sleep(30)
        threading.Thread(target=hold).start()
        ctypes.CDLL(None).syscall(60, 0)
    """)
    result = await native.run_code(code, "python", timeout_ms=20_000, sandbox=SandboxConfig(memory_limit_mb=128))
    assert result.outcome is Outcome.MEMORY_LIMIT


@pytest.mark.parametrize(
    "send",
    [
        "os.close(255)\nos.kill(os.getpid(), {})",
        "os.close(255)\nsignal.raise_signal({})",
        "ctypes.CDLL(None).kill(os.getpid(), {})",
        "os.system('kill -{} $PPID')\ntime.sleep(9)",
        'os.write(255, b\'{{"kind":"done"\\n\')\nos.kill(os.getpid(), {})',
    ],
)
@pytest.mark.parametrize("number", [9, 15])
async def test_a_program_that_kills_itself_is_crashed(native: RuntimeManager, send: str, number: int) -> None:
    """No program can look like one that was killed from outside. It runs once, even if it is idempotent."""
    code = f"import ctypes, os, signal, time\nprint(1, flush=True)\n{send.format(number)}"
    result = await native.run_code(code, "python", 20_000, idempotent=True)
    assert (result.outcome, result.stdout, result.attempts) == (Outcome.CRASHED, "1\n", 1), result


async def test_a_program_that_kills_itself_keeps_the_other_verdicts(native: RuntimeManager) -> None:
    """Other tests of the program, and other cases of a function, have their own verdicts."""
    kill = "os.close(255)\n        os.kill(os.getpid(), 9)"
    end = f"import os\ndef f(text):\n    if text == 'b':\n        {kill}\n    return text"
    tests = [TestCase(text, text) for text in "abc"]
    judgement = await native.judge(f"{end}\nprint(f(input()))", tests, language="python")
    assert [str(test.verdict) for test in judgement.results] == ["PASSED", "CRASHED", "PASSED"]
    results = await native.run_cases(end, "f", [(text,) for text in "abc"], language="python")
    assert [str(result.outcome) for result in results] == ["OK", "CRASHED", "OK"]


@pytest.mark.parametrize(
    "code",
    [
        block("""
            import os
            os.utime('/dev/null')
        """),
        block("""
            import os
            os.preadv(os.open('/usr/bin/env', 0), [bytearray(1)], 0, os.RWF_NOWAIT)
        """),
        block("""
            import socket
            socket.socketpair()[0].getsockopt(socket.SOL_SOCKET, 57, 8)
        """),
        block("""
            import socket
            socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, 26, bytes(16))
        """),
    ],
)
async def test_a_program_cannot_leave_signals_for_other_programs(native: RuntimeManager, code: str) -> None:
    """Times of devices, the page cache and numbers of sockets would be channels between programs."""
    result = await run(native, code)
    assert result.error is not None
    assert result.error.name in ("PermissionError", "OSError")


# The launcher's socket gets the number of the descriptor for Deno's binary, which may be in use in this process.
RUN_WITH_SOCKET_60 = """
import asyncio, os, socket, sys
from faasrt import RuntimeManager
from faasrt.local.jail import jail
from faasrt.local.jail.launcher.seccomp import EXECUTABLE_FD

class SocketAt60(socket.socket):
    def close(self):
        os.dup2(0, self.detach())  # the number stays taken, so that the server never uses it

class SocketsAt60:
    pairs = 0

    def __getattr__(self, name):
        return getattr(socket, name)

    def socketpair(self, family, kind):
        ours, theirs = socket.socketpair(family, kind)
        with theirs:
            os.dup2(theirs.fileno(), EXECUTABLE_FD)
        self.pairs += 1
        return ours, SocketAt60(fileno=EXECUTABLE_FD)

async def main():
    os.dup2(0, EXECUTABLE_FD)
    sockets = jail.socket = SocketsAt60()
    async with RuntimeManager.local(["python"], engines={"python": "native"}, level="namespaces") as manager:
        print((await manager.run_code(sys.argv[1], "python")).stdout, end="")
    assert sockets.pairs

asyncio.run(main())
"""


async def test_a_program_has_no_descriptor_of_the_launcher() -> None:
    """The launcher's socket is closed in programs, even if it has the number of the descriptor for Deno's binary."""
    code = block("""
        import os
        found = []
        for fd in range(4096):
            try: os.fstat(fd); found.append(fd)
            except OSError: pass
        print(found)
    """)
    command = [sys.executable, "-W", "error", "-c", RUN_WITH_SOCKET_60, code]
    process = await asyncio.to_thread(
        subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100
    )
    assert (process.stdout, process.stderr) == ("[0, 1, 2, 255]\n", "")


async def test_logging_counts_from_the_start_of_the_program(native: RuntimeManager) -> None:
    """The launcher imports `logging` once for all programs, but each program has its own start time."""
    code = "import logging; print(logging._startTime)"
    first, second = [(await run(native, code)).stdout for _ in range(2)]
    assert first != second


async def test_programs_can_open_their_streams_by_name(native: RuntimeManager) -> None:
    """Solutions of contest problems often read /dev/stdin. The pipes belong to another user than the program."""
    code = block("""
        print(open('/dev/stdin').read())
        open('/dev/stdout', 'w').write('out')
        open('/proc/self/fd/2', 'w').write('err')
    """)
    result = await native.run_code(code, "python", stdin="in")
    assert (result.outcome, result.stdout, result.stderr) == (Outcome.OK, "in\nout", "err")


async def test_shared_memory_is_not_in_the_working_folder(native: RuntimeManager) -> None:
    """A file can have any name, and the folder shares its size with /dev/shm."""
    code = block("""
        import os
        print(open('.shm').read(), os.listdir('/dev/shm'))
        open('/dev/shm/a', 'wb').write(bytes(40 * 2**20))
        open('b', 'wb').write(bytes(40 * 2**20))
    """)
    result = await native.run_code(code, "python", files={".shm": "x"})
    assert result.stdout == "x []\n"
    assert result.error is not None
    assert result.error.message == "[Errno 28] No space left on device"


@pytest.mark.parametrize("name", ["random", "numpy", "numpy's seeds", "sympy", "multiprocessing", "tempfile", "ssl"])
async def test_native_programs_share_no_random_state(native: RuntimeManager, name: str) -> None:
    """The same program prints something else each time, although its modules were imported before it was started."""
    program = {**RANDOM, "ssl": "import ssl; print(ssl.RAND_bytes(16))"}[name]
    module = program.split()[1].strip(";").split(".")[0]
    skip_without(module)
    code = f"import sys\nprint({module!r} in sys.modules, file=sys.stderr)\n{program}"
    found: list[str] = []
    while len(found) < 3:  # the first programs may run before the tier of the package is ready
        result = await native.run_code(code, "python", timeout_ms=20_000)
        assert result.outcome is Outcome.OK, result
        found += [result.stdout] if result.stderr == "True\n" else []
    assert len(set(found)) == 3


async def test_numbers_that_numpy_has_drawn_in_advance_are_not_shared() -> None:
    """numpy draws normal numbers in pairs, and keeps the second one. The import of a module may have used the first."""
    skip_without("numpy")
    code = block("""
        import numpy, runpy, sys
        numpy.random.standard_normal()
        for act in (print, lambda kept: runpy.run_path(sys.argv[1])['renew_modules'](), print):
            act(numpy.random.get_state()[3])
    """)
    runner = str(Path(faasrt.__file__).with_name("local") / "runners" / "python_random.py")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, runner, stdout=subprocess.PIPE)
    assert (await process.communicate())[0].split() == [b"1", b"0"]


async def test_functions_find_their_packages_imported(native: RuntimeManager) -> None:
    """As programs do, although the guest program hides the import. Line numbers of errors are those of the program."""
    skip_without("numpy")
    code = "import sys\nready = 'numpy' in sys.modules\nimport os, numpy as np\ndef f(): return ready\ndef g(): 1 / 0"
    ready = False
    while not ready:  # until the tier of the package is ready
        ready = (await native.call_function(code, "f", language="python", timeout_ms=20_000)).value
    (case,) = await native.run_cases(code, "f", [()], language="python", timeout_ms=20_000)
    assert case.value is True
    failed = await native.call_function(code, "g", language="python", timeout_ms=20_000)
    assert failed.error is not None
    assert "line 5, in g" in failed.error.traceback


@pytest.mark.asyncio(loop_scope="function")
async def test_a_tier_that_ends_gets_no_more_programs(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """It is not ready while its processes end."""
    skip_without("numpy")
    ready_at_end: list[bool] = []
    serve = PythonTier.serve

    async def observe(self: PythonTier) -> None:
        try:
            await serve(self)
        finally:
            if not isinstance(self, NativeEngine):
                ready_at_end.append(self.ready)

    monkeypatch.setattr(PythonTier, "serve", observe)
    async with RuntimeManager.local(["python"], workers=1, engines={"python": "native"}) as manager:
        stdout = ""
        while stdout != "True\n":  # until the tier of the package is ready
            result = await manager.run_code("import sys; print('numpy' in sys.modules)\nimport numpy", "python", 20_000)
            stdout = result.stdout
        clock.advance(600)
        await until(lambda: bool(ready_at_end))
        assert ready_at_end == [False]


async def test_a_program_may_trace_the_end_of_the_runner(native: RuntimeManager) -> None:
    """The interpreter reads the table of lines of each function that it traces."""
    code = "import sys\nlines = []\ndef trace(*arguments):\n    lines.append(1)\n    return trace\nsys.settrace(trace)"
    result = await run(native, code)
    assert (result.outcome, result.stderr) == (Outcome.OK, "")
