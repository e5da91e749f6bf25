"""Sessions of the engine `native`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import sys
import tempfile
import threading
import venv
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import psutil
import pytest
import pytest_asyncio

from faasrt import Language, Outcome, RuntimeManager
from faasrt.local.engines import native_jail
from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.native.engine import NativeEngine
from faasrt.local.engines.native.session import NativeSession
from faasrt.local.engines.session import (
    EngineSession,
    EngineSessionOptions,
    ForkError,
    SessionEndedError,
    SessionFileError,
)
from faasrt.local.errors import EngineError, NotStartedError
from support.engines import native_engine
from support.helpers import FOUND_IN_TMP, descriptors, descriptors_at_rest, open_files, skip_without
from support.levels import LANDLOCK, NATIVE
from support.native_attacks import PRELUDE
from support.served import until, with_word
from support.session_programs import LIMITS, closing, opened, run, texts, until_printed
from support.tables import block

pytestmark = [pytest.mark.asyncio(loop_scope="module"), NATIVE]
STUBBORN = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(60)"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NativeEngine]:
    async with native_engine(Path(tmp_path_factory.mktemp("sessions"))) as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def session(engine: NativeEngine) -> AsyncIterator[EngineSession]:
    async with opened(engine) as session:
        yield session


async def check(session: EngineSession, value: str = "1") -> None:
    """Check that a session works, and has kept `x`."""
    result = await run(session, "x")
    assert (result.outcome, texts(result), result.stdout, result.stderr) == (Outcome.OK, [value], "", "")


async def test_state_is_kept(session: EngineSession) -> None:
    """Variables, imports, the working folder, `_`, and flags of `from __future__` live on."""
    await run(session, "import os, json\nx = 41\nos.mkdir('a'); os.chdir('a'); open('b', 'w').close()")
    assert texts(await run(session, "from __future__ import annotations\nx + 1")) == ["42"]
    assert texts(await run(session, "_, json.dumps(os.listdir())")) == ["(42, '[\"b\"]')"]
    assert texts(await run(session, "def f(a: unknown): pass\nf.__annotations__")) == ["{'a': 'unknown'}"]


ENDS = {
    "an exception": ("def f():\n    return 1 / 0\nf()", Outcome.USER_ERROR, "ZeroDivisionError", 1),
    "a syntax error": ("a b", Outcome.SYNTAX_ERROR, "SyntaxError", 1),
    "return": ("1\nreturn 5", Outcome.SYNTAX_ERROR, "SyntaxError", 1),
    "exit 3": ("import sys\nsys.exit(3)", Outcome.USER_ERROR, "SystemExit", 3),
    "exit with a text": ("exit('x')", Outcome.USER_ERROR, "SystemExit", 1),
    "exit 0": ("raise SystemExit", Outcome.OK, None, 0),
    "await": ("import asyncio\nawait asyncio.sleep(0)\n1 / 0", Outcome.USER_ERROR, "ZeroDivisionError", 1),
    "exit in await": (
        "import asyncio\nawait asyncio.sleep(0)\nraise SystemExit(4)",
        Outcome.USER_ERROR,
        "SystemExit",
        4,
    ),
    "MemoryError": ("raise MemoryError", Outcome.MEMORY_LIMIT, None, None),
    "a large allocation": ("bytearray(10**10)", Outcome.MEMORY_LIMIT, None, None),
    "an output limit": (
        "print('x' * 300_000)\nimport time\nwhile True: time.sleep(0.01)",
        Outcome.OUTPUT_LIMIT,
        None,
        None,
    ),
    "many return values": ("for i in range(2000): return_val('x' * 90_000)", Outcome.OUTPUT_LIMIT, None, None),
    "an os.fork": ("import os\nif not os.fork(): 1 / 0\nos.wait(); None", Outcome.OK, None, 0),
}


@pytest.mark.parametrize(("code", "outcome", "error", "exit_code"), ENDS.values(), ids=ENDS)
async def test_a_run_ends_and_the_session_goes_on(
    session: EngineSession, code: str, outcome: Outcome, error: str | None, exit_code: int | None
) -> None:
    """Only the run fails."""
    await run(session, "x = 1")
    result = await run(session, code)
    assert (result.outcome, result.error and result.error.name, result.exit_code) == (outcome, error, exit_code)
    await check(session)


async def test_tracebacks_name_the_cells_and_their_lines(session: EngineSession) -> None:
    """Each cell has a name of its own, also in syntax errors. `inspect` finds the source."""
    await run(session, "def f():\n    return 1 / 0")
    result = await run(session, "\nf()")
    lines = [line for line in result.stderr.splitlines() if "^" not in line]
    assert lines == [
        "Traceback (most recent call last):",
        '  File "<cell 2>", line 2, in <module>',
        "    f()",
        '  File "<cell 1>", line 2, in f',
        "    return 1 / 0",
        "ZeroDivisionError: division by zero",
    ]
    assert result.error is not None
    assert result.error.traceback == result.stderr
    result = await run(session, "\nreturn 5")
    assert '  File "<cell 3>", line 2\n    return 5' in result.stderr
    assert (result.line, result.column) == (2, 1)
    assert texts(await run(session, "import inspect\ninspect.getsource(f)")) == [repr("def f():\n    return 1 / 0\n")]


async def test_the_traceback_of_a_deep_recursion_is_cut(session: EngineSession) -> None:
    """Its last 10,000 frames are formatted. A million would take longer than most time limits."""
    code = "import sys\nsys.setrecursionlimit(10**5)\ndef f(n):\n    return f(n - 1) if n else 1 / 0\nf(20_000)"
    result = await run(session, code)
    assert result.error is not None
    assert result.error.traceback == result.stderr
    assert "[Previous line repeated 9997 more times]" in result.stderr
    assert "<module>" not in result.stderr


async def test_input_reads_the_stdin_of_its_run(session: EngineSession) -> None:
    """The rest of an earlier one is gone."""
    assert texts(await run(session, "input()", stdin="a\nb\n")) == ["'a'"]
    assert texts(await run(session, "input()", stdin="c")) == ["'c'"]
    assert (await run(session, "input()")).error is not None


async def test_return_values_are_those_of_the_run(session: EngineSession) -> None:
    """The last call counts."""
    assert (await run(session, "return_val(1)\nreturn_val('2')")).ret_val == "2"
    assert (await run(session, "None")).ret_val == ""


async def test_one_event_loop_lives_for_the_session(session: EngineSession) -> None:
    """A task of one cell goes on while a later one awaits. `asyncio.run` works, too."""
    await run(session, "import asyncio\nasync def f(): await asyncio.sleep(0); return 5")
    await run(session, "task = asyncio.create_task(f()); await asyncio.sleep(0)")
    assert texts(await run(session, "asyncio.run(f())")) == ["5"]
    assert texts(await run(session, "await task")) == ["5"]


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import asyncio\nawait asyncio.sleep(60)",
        "import subprocess\nsubprocess.run(['/bin/sleep', '60'])",
        "class A:\n    def __repr__(self):\n        while True: pass\nA()",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nsignal.pause()",
    ],
)
async def test_a_run_is_interrupted_at_its_time_limit(session: EngineSession, code: str) -> None:
    """The outcome is TIMEOUT, and the session goes on."""
    await run(session, "x = 1")
    result = await run(session, code, timeout_ms=200)
    assert result.outcome is Outcome.TIMEOUT
    await check(session)


@pytest.mark.parametrize(
    "code",
    [
        STUBBORN,
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "while True:\n    try: 10**10**9\n    finally: continue",
    ],
)
async def test_a_run_that_cannot_be_interrupted_ends_the_session(session: EngineSession, code: str) -> None:
    """The outcome is TIMEOUT, too. Later runs say why the session has ended."""
    result = await run(session, code, timeout_ms=2_000)
    assert result.outcome is Outcome.TIMEOUT
    await session.ended.wait()
    with pytest.raises(SessionEndedError, match="could not be interrupted"):
        await run(session, "1")


async def test_interrupt(session: EngineSession) -> None:
    """It raises KeyboardInterrupt in the program that runs, and does nothing between runs."""
    await run(session, "x = 1")
    session.interrupt()
    await check(session)
    running = asyncio.create_task(run(session, "import time\nwhile True: time.sleep(0.01)"))
    await asyncio.sleep(0)
    session.interrupt()
    result = await running
    assert result.error is not None
    assert (result.outcome, result.error.name) == (Outcome.USER_ERROR, "KeyboardInterrupt")
    await check(session)


async def test_cancellation_interrupts_a_run(session: EngineSession) -> None:
    """`run` waits until the program has ended, and the session goes on."""
    await run(session, "x = 1")
    code = """
        import time
        try:
            print(1, flush=True)
            while True: time.sleep(0.01)
        finally: x = 2
    """
    running = await until_printed(session, block(code))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await check(session, "2")


async def test_cancellation_ends_a_session_that_cannot_be_interrupted(session: EngineSession) -> None:
    """A run after it is not sent."""
    running = await until_printed(session, STUBBORN)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert session.ended.is_set()
    with pytest.raises(SessionEndedError, match="could not be interrupted"):
        await run(session, "1")


CRASHES = {
    "os._exit": ("import os\nos._exit(3)", "", "exit code 3"),
    "a segmentation fault": ("import ctypes\nctypes.string_at(0)", "SIGSEGV", "SIGSEGV"),
    "SIGKILL": ("import os\nos.kill(os.getpid(), 9)", "SIGKILL", "SIGKILL"),
    "execve": ("import os\nos.execv('/bin/true', ['true'])", "", "exit code 0"),
    "closed descriptors": ("import os, time\nos.closerange(3, 300)\ntime.sleep(0.7)", "", "exit code 1"),
}


@pytest.mark.parametrize(("code", "signal", "reason"), CRASHES.values(), ids=CRASHES)
async def test_a_crash_ends_the_session(session: EngineSession, code: str, signal: str, reason: str) -> None:
    """The run is CRASHED, with its output, and the session has a reason."""
    result = await run(session, "print(1, flush=True)\n" + code)
    assert (result.outcome, result.stdout, result.signal) == (Outcome.CRASHED, "1\n", signal)
    await session.ended.wait()
    assert reason in session.reason
    with pytest.raises(SessionEndedError, match=reason):
        await run(session, "1")


@pytest.mark.parametrize(
    ("then", "outcome"),
    [
        ("time.sleep(60)", Outcome.TIMEOUT),
        ("for _ in range(20):\n    if not os.fork(): break\nheld = b'x' * 2**25\ntime.sleep(60)", Outcome.MEMORY_LIMIT),
    ],
)
async def test_a_program_without_the_descriptors_of_its_runner_has_its_limits(
    session: EngineSession, then: str, outcome: Outcome
) -> None:
    """However long it takes to reach them. `os.execv` closes these descriptors, too."""
    code = f"import os, time\nos.closerange(3, 300)\ntime.sleep(0.7)\n{then}"
    result = await run(session, code, timeout_ms=1_500 if outcome is Outcome.TIMEOUT else 60_000)
    assert result.outcome is outcome


async def test_a_thread_ends_the_session_between_runs(session: EngineSession) -> None:
    """`ended` is set without a run."""
    await run(session, "import os, threading\nthreading.Timer(0.2, os._exit, [5]).start()")
    await session.ended.wait()
    assert "exit code 5" in session.reason


GROW = "held = []\nwhile True: held.append(bytearray(10**6)); held[-1][:] = b'x' * 10**6"


async def test_a_late_message_about_the_time_of_a_run_does_not_end_the_next_one(session: EngineSession) -> None:
    """The launcher reports that the time of a run is over, and the server reads this only during the next run."""
    assert isinstance(session, NativeSession)
    jail, loop = session._process.jail, asyncio.get_running_loop()
    messages = jail._server.fileno()
    loop.remove_reader(messages)
    try:
        result = await run(session, "import time\ntime.sleep(0.5)", timeout_ms=100)
        assert (result.outcome, readable(messages)) == (Outcome.OK, True)
        running = await until_printed(session, "print(1, flush=True)\ntime.sleep(0.2)")
    finally:
        loop.add_reader(messages, jail.receive)
    assert (await running).outcome is Outcome.OK


async def test_a_busy_server_keeps_a_session_whose_run_has_ended(session: EngineSession) -> None:
    """The server notices the end of a run only long after its time limit, in which the session has computed nothing."""
    running = asyncio.create_task(run(session, "x = 1", timeout_ms=100))
    await asyncio.sleep(0)
    threading.Event().wait(2.5)  # the event loop is blocked for longer than the launcher waits for a server
    assert (await running).outcome is Outcome.OK
    await check(session)


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


async def test_the_memory_limit_holds_for_the_session(session: EngineSession) -> None:
    """A run that exceeds it has the outcome MEMORY_LIMIT."""
    result = await run(session, GROW)
    assert result.outcome is Outcome.MEMORY_LIMIT


async def test_the_memory_limit_holds_between_runs(session: EngineSession) -> None:
    """Processes that a run has left are counted. None of them exceeds the limit on its own."""
    hold = "import time\nheld = b'x' * 150 * 2**20\ntime.sleep(600)"
    leave = f"import subprocess, sys\nchildren = [subprocess.Popen([sys.executable, '-c', {hold!r}]) for i in range(3)]"
    assert (await run(session, leave)).outcome is Outcome.OK
    await session.ended.wait()
    assert session.reason == "it exceeded its memory limit"


async def test_the_memory_limit_holds_for_what_short_runs_keep(session: EngineSession) -> None:
    """Runs that are too short to be checked, and keep 20 MiB each, together exceed it. The session ends."""
    await run(session, "kept = []")
    with contextlib.suppress(SessionEndedError, EngineError):
        for _ in range(24):
            await run(session, "kept.append(b'x' * 20 * 2**20)")
    await session.ended.wait()
    assert session.reason == "it exceeded its memory limit"


@LANDLOCK
async def test_the_memory_limit_holds_for_a_branch_that_has_not_run(session: EngineSession) -> None:
    """Even when its session has ended."""
    code = """
        import os, sys, threading, time
        def grow():
            time.sleep(1)
            for _ in range(4):
                if not os.fork():
                    memory = b"x" * 150 * 2**20
                    time.sleep(60)
        frame = sys._getframe()
        while "descriptors" not in frame.f_locals: frame = frame.f_back
        runner = frame.f_locals["self"]
        enter = runner.enter_branch
        def enter_and_grow():
            problem = enter()
            threading.Thread(target=grow).start()
            return problem
        runner.enter_branch = enter_and_grow
    """
    await run(session, block(code))
    async with closing(await session.fork()) as branch:
        await session.aclose()
        await branch.ended.wait()
        assert branch.reason == "it exceeded its memory limit"


async def test_a_session_that_works_between_runs_lets_others_go_first(session: EngineSession) -> None:
    """Its processes get the lowest priority until its next run, on kernels that divide CPU time between jails."""
    code = "import threading\ndef work():\n    while True: pass\nthreading.Thread(target=work, daemon=True).start()"
    pid = int((await run(session, f"{code}\nx = 1")).instance_id.rpartition("-")[2])
    group = Path(f"/proc/{pid}/autogroup")
    if not group.exists() or not group.read_text():
        pytest.skip("this kernel does not divide CPU time between jails")
    await until(lambda: group.read_text().endswith("nice 19\n"))
    running = asyncio.create_task(run(session, "import time\nwhile True: time.sleep(0.1)"))
    await until(lambda: group.read_text().endswith("nice 0\n"))
    session.interrupt()
    await running


DAEMON = "import os\nif not os.fork():\n    if os.fork(): os._exit(0)\n    while True: pass\nos.wait()"


@LANDLOCK
async def test_daemons_let_others_go_first(session: EngineSession) -> None:
    """Also those of a branch, while the session and the other branches are idle."""
    async with closing(await session.fork()) as first, closing(await session.fork()):
        await run(first, DAEMON)
        pid = int((await run(first, "1")).instance_id.rpartition("-")[2])
        group = Path(f"/proc/{pid}/autogroup")
        if not group.exists() or not group.read_text():
            pytest.skip("this kernel does not divide CPU time between jails")
        await until(lambda: group.read_text().endswith("nice 19\n"))


async def test_the_memory_limit_holds_for_a_program_that_pretends_to_have_ended(session: EngineSession) -> None:
    """Even if it starts processes only afterwards. The one here would end by itself three seconds after them."""
    # The kernel may keep memory that becomes free for later processes, and not count it as available.
    len(b"x" * 2**30)
    code = """
        import os, time
        os.write(254, b'{"kind":"done"}\\n')
        time.sleep(0.3)
        reader, writer = os.pipe()
        for _ in range(4):
            if not os.fork():
                memory = b"x" * 150 * 2**20
                os.write(writer, b"x")
                time.sleep(60)
        for _ in range(4):
            os.read(reader, 1)
        time.sleep(3)
        os._exit(7)
    """
    assert (await run(session, block(code))).outcome is Outcome.OK
    await session.ended.wait()
    assert session.reason == "it exceeded its memory limit"


LEFT = {
    "a changed sys.stdout": "import io, sys\nsys.stdout = sys.__stdout__ = io.StringIO()\nsys.stderr = None",
    "a closed sys.stdout": "import sys\nsys.stdout.close(); sys.stderr.detach(); sys.stdin.close()",
    "closed descriptors": "import os\nos.closerange(0, 3)",
    "other descriptors": "import os\nfor fd in (0, 1, 2): os.dup2(os.open('/dev/full', os.O_RDWR), fd)",
    "unwritten output": "import os, sys\nos.close(1)\nprint('a' * 100, end='')",
    "patched builtins": "import builtins\nfor name in 'open exec eval compile len int zip'.split(): "
    "setattr(builtins, name, None)",
    "deleted builtins": "import builtins\ndelete = delattr\n"
    "for name in dir(builtins):\n    if name[0] != '_': delete(builtins, name)",
    "patched modules": "import os, json, socket, signal\nos.write = os.dup2 = json.loads = socket.socket = None\n"
    "signal.signal = signal.pthread_sigmask = None",
    "a settrace hook": "import sys\ndef hook(*args): raise ValueError\nsys.settrace(hook)",
    "a setprofile hook": "import sys\ndef hook(*args): raise ValueError\nsys.setprofile(hook)",
    "a thread": block("""
        import threading, time
        def work():
            while True: time.sleep(0.001)
        threading.Thread(target=work).start()
    """),
    "a child": "import subprocess\nsubprocess.Popen(['/bin/sleep', '60'])",
    "a child with its stdout": "import subprocess\nsubprocess.Popen('sleep 60; echo', shell=True)",
    "a signal handler": "import signal\ndef handle(*args): raise ValueError\nsignal.signal(signal.SIGINT, handle)\n"
    "signal.signal(signal.SIGALRM, handle)",
    "an ignored SIGINT": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)",
    "an excepthook": "import sys\nsys.excepthook = None",
    "a displayhook": "import sys\nsys.displayhook = None",
    "another working folder": "import os\nos.mkdir('a'); os.chdir('a'); os.rmdir('../a')",
    "no modules": "import sys\nsys.modules.clear()",
    "an atexit function": "import atexit\natexit.register(lambda: 1 / 0)",
    "open files": "files = [open('/dev/null') for i in range(200)]",
    "a recursion limit": "import sys\nsys.setrecursionlimit(100)",
    "a changed display": "import builtins\nbuiltins.display = None\ndisplay = None\n_ = None",
    "a closed event loop": "import asyncio\nawait asyncio.sleep(0)\nasyncio.get_running_loop().stop()",
    "a forged message": 'import os\nos.write(255, b\'x\' * 1000)\nos.write(254, b\'{"kind":"exit","code":9}\')',
    "a dead frame": "import sys\nframe = sys._getframe(1)\nframe.f_trace = lambda *args: 1 / 0",
    "a garbage collector callback": "import gc\ngc.callbacks.append(lambda *args: 1 / 0)\ngc.set_threshold(1)",
}


@pytest.mark.parametrize("code", LEFT.values(), ids=LEFT)
async def test_what_a_run_leaves_does_not_break_the_next_one(session: EngineSession, code: str) -> None:
    """The next run has its own output, value, error and exit code."""
    await run(session, "import functools\nx, write = 1, functools.partial(print, end='')")
    await run(session, code)
    result = await run(session, "write('out')\nx")
    assert (result.outcome, result.stdout, texts(result)) == (Outcome.OK, "out", ["1"])
    result = await run(session, "1 / 0")
    assert result.error is not None
    assert (result.outcome, result.error.name) == (Outcome.USER_ERROR, "ZeroDivisionError")


async def test_alarms_of_earlier_runs(session: EngineSession) -> None:
    """A signal of the program between runs waits for the next one. It never fails the runner."""
    await run(
        session, "import signal\nx = 1\ndef handle(*args): raise ValueError\nsignal.signal(signal.SIGALRM, handle)"
    )
    await run(session, "signal.setitimer(signal.ITIMER_REAL, 0.5)")
    await asyncio.sleep(0.7)
    result = await run(session, "import time\ntime.sleep(1)")
    assert result.error is not None
    assert result.error.name == "ValueError"
    await check(session)


async def test_output_between_runs_is_dropped(session: EngineSession) -> None:
    """A thread that writes all the time writes to the run that is current."""
    code = """
import itertools, threading, time
last = 0
def work():
    global last
    for last in itertools.count(): print(last, flush=True); time.sleep(0.001)
threading.Thread(target=work).start()
"""
    before = (await run(session, code)).stdout.split()
    await asyncio.sleep(0.3)
    during = (await run(session, "first = last\nwhile last < first + 3: time.sleep(0.01)")).stdout.split()
    assert int(during[1]) > len(before) + 20


async def test_a_program_that_floods_its_channel(engine: NativeEngine, session: EngineSession) -> None:
    """The server does not read it, and other sessions go on."""
    flood = "import os, threading\ndef work():\n    while True: os.write(255, b'x' * 65536)\n"
    await run(session, flood + "threading.Thread(target=work).start()")
    async with opened(engine) as other:
        await run(other, "x = 1")
        await check(other)


async def test_files(engine: NativeEngine) -> None:
    """Files of the start, of the program, and of `write_files` can be read."""
    async with opened(engine, {"a/b.txt": b"1", "c.csv": b"2"}) as session:
        await run(session, "import os\nopen('d.png', 'w').write(open('a/b.txt').read())\nos.chdir('a')")
        await session.write_files({"a/b.txt": b"3", "e/f/g.csv": b"4" * 100_000})
        assert await session.read_files(["*.png", "**/*.txt"], 1000) == ({"a/b.txt": b"3", "d.png": b"1"}, True)
        await run(session, "sorted = os.mkdir('hidden', 0)\nopen(b'\\xff', 'w').close()")
        sizes = {"a/b.txt": 1, "c.csv": 1, "d.png": 1, "e/f/g.csv": 100_000}
        assert await session.list_files(1000) == (sizes, True)
        assert (await session.list_files(100))[1] is False
        files, complete = await session.read_files(["**"], 1000)
        assert (sorted(files), complete) == (["a/b.txt", "c.csv", "d.png"], False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/b": b""}, "a/b: File exists|a/b: Not a directory"),
        ({"folder": b""}, "folder: Is a directory"),
        ({"pipe": b""}, "pipe: No such device or address"),
        ({"big": b"x" * 70 * 2**20}, "big: No space left on device|big: File too large"),
    ],
)
async def test_files_that_cannot_be_written(engine: NativeEngine, files: dict[str, bytes], message: str) -> None:
    """The error says why, and the session goes on."""
    async with opened(engine, {"a": b"", "folder/a": b""}) as session:
        await run(session, "import os\nx = 1\nos.mkfifo('pipe')")
        with pytest.raises(SessionFileError, match=message):
            await session.write_files(files)
        await check(session)


async def test_closing_ends_all_processes(engine: NativeEngine) -> None:
    """Also those that a run has started, and the run itself fails."""
    async with opened(engine) as session:
        word = f"sleep 60.{id(session)}"
        await run(session, f"import subprocess\nsubprocess.Popen({word!r}, shell=True)")
        running = asyncio.create_task(run(session, "import time\ntime.sleep(60)"))
        await asyncio.sleep(0.1)
    with pytest.raises(Exception, match=r"closed|killed"):
        await running
    assert session.reason == "the session was closed"
    await until(lambda: not sleeping(word))


async def test_no_state_crosses_sessions(engine: NativeEngine) -> None:
    """Sessions see neither the variables nor the files nor the processes of others."""
    async with opened(engine) as one, opened(engine) as other:
        code = """
            import os, random
            try: others = {pid for pid in os.listdir("/proc") if pid.isdigit()} - {str(os.getpid())}
            except PermissionError: others = set()  # in a pod that hides parts of /proc
            "x" in globals(), os.listdir(), others
        """
        assert texts(await run(other, block(code))) == [f"(False, {FOUND_IN_TMP}, set())"]
        assert texts(await run(one, "random.random()")) != texts(await run(other, "random.random()"))


@LANDLOCK
async def test_the_end_of_the_engine_ends_its_sessions(tmp_path: Path) -> None:
    """A run that is going on fails, also in a branch, and so does a later one."""
    async with native_engine(tmp_path) as engine:
        session = await engine.open_session(EngineSessionOptions(language=Language.PYTHON, limits=LIMITS))
        await run(session, "x = 1")
        branch = await session.fork()
        running = [asyncio.create_task(run(one, "import time\ntime.sleep(60)")) for one in (session, branch)]
        await asyncio.sleep(0.1)
    for one, task in zip((session, branch), running, strict=True):
        with pytest.raises(EngineError, match="killed from outside"):
            await task
        await one.ended.wait()
        with pytest.raises(SessionEndedError):
            await run(one, "x")
        await one.aclose()


@LANDLOCK
async def test_a_fork_that_is_cancelled_leaves_no_process(engine: NativeEngine) -> None:
    """The session goes on, whenever this happens."""
    async with opened(engine) as session:
        await run(session, "x = 1")
        for delay_s in (0, 0.001, 0.003, 0.01, 0.02):
            forking = asyncio.create_task(session.fork())
            await asyncio.sleep(delay_s)
            forking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await forking).aclose()
            await check(session)
        process = psutil.Process(int((await run(session, "1")).instance_id.partition("-")[2]))
        await until(lambda: process.parent().children(recursive=True) == [process])


@LANDLOCK
async def test_a_branch_has_the_same_state(engine: NativeEngine) -> None:
    """Variables, files, numbers of cells and the working folder are the same. From then on, both are separate."""
    async with opened(engine, {"a/b": b"1"}) as session:
        await run(
            session, "import os\nx = [1]\nos.chdir('a')\nos.symlink('b', 'link'); os.chmod('b', 0o640); os.mkfifo('f')"
        )
        async with closing(await session.fork()) as branch:
            await run(branch, "x.append(2)\nopen('b', 'a').write('2')\nopen('c', 'w').close()")
            await run(session, "x.append(3)\nopen('b', 'a').write('3')")
            for one, value, content in ((branch, "[1, 2]", b"12"), (session, "[1, 3]", b"13")):
                assert texts(await run(one, "x")) == [value]
                assert (await one.read_files(["*/*"], 1000))[0]["a/b"] == content
            result = await run(branch, "print(sorted(os.listdir()), oct(os.stat('link').st_mode))\n1 / 0")
            assert result.stdout == "['b', 'c', 'link'] 0o100640\n"
            assert 'File "<cell 4>", line 2' in result.stderr
            await branch.write_files({"d": b""})
            assert texts(
                await run(branch, "sorted(os.listdir('..')), os.environ['HOME'] == os.path.dirname(os.getcwd())")
            ) == [f"({sorted(['a', 'd', *FOUND_IN_TMP])}, True)"]
            assert texts(await run(session, "os.path.exists('../d'), os.getcwd()")) == ["(False, '/tmp/a')"]


@LANDLOCK
async def test_branches_live_without_their_session(engine: NativeEngine) -> None:
    """Branches of branches, too. When the last one has ended, no process is left."""
    word = f"61.{os.getpid()}"
    async with opened(engine) as session:
        await run(session, "x = 1")
        branch = await session.fork()
    other = await branch.fork()
    await run(other, f"import subprocess\nchild = subprocess.Popen(['/bin/sleep', '{word}'])")
    await branch.aclose()
    with pytest.raises(SessionEndedError, match="closed"):
        await branch.fork()
    await check(other)
    await until(lambda: len(sleeping(word)) == 1)
    await other.aclose()
    await until(lambda: not sleeping(word))


def sleeping(word: str) -> list[psutil.Process]:
    return with_word(psutil.Process().children(recursive=True), word)


@LANDLOCK
async def test_a_branch_ends_without_the_others(engine: NativeEngine) -> None:
    """A crash, a time limit or a call of `aclose` ends one of them, with the processes that it has started."""
    word = f"62.{os.getpid()}"
    async with opened(engine) as session:
        await run(session, "x = 1\nimport os, subprocess")
        for code in (
            f"subprocess.Popen(['/bin/sleep', '{word}'])\n{STUBBORN}",
            "os._exit(3)",
            "os.kill(os.getpid(), 11)",
        ):
            branch = await session.fork()
            result = await run(branch, code, timeout_ms=2_000 if code.startswith("sub") else 60_000)
            assert result.outcome is (Outcome.TIMEOUT if code.startswith("sub") else Outcome.CRASHED)
            await branch.ended.wait()
            assert branch.reason.endswith("could not be interrupted" if code.startswith("sub") else "an unknown status")
            await until(lambda: not sleeping(word))
            await check(session)
            await branch.aclose()
        branch = await session.fork()
        assert (await run(session, "os._exit(3)")).outcome is Outcome.CRASHED
        await check(branch)
        await branch.aclose()


@LANDLOCK
async def test_a_session_that_pretends_to_be_its_branch(session: EngineSession) -> None:
    """The fork is refused, and the session still ends at a time limit."""
    code = """
        import os, signal, socket, sys
        x = 1
        frame = sys._getframe()
        while "descriptors" not in frame.f_locals: frame = frame.f_back
        def forge(channel):
            os.write(254, b'{"kind":"started"}\\n')
            other = socket.socket(fileno=channel)
            other.send(b"b")
            other.recv(1)
            return True
        frame.f_locals["self"].fork = forge;
    """
    await run(session, block(code))
    with pytest.raises(ForkError, match="none of a branch"):
        await session.fork()
    await check(session)
    assert (await run(session, STUBBORN, timeout_ms=2_000)).outcome is Outcome.TIMEOUT
    assert session.ended.is_set()


@LANDLOCK
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import threading\nthreading.Thread(target=threading.Event().wait).start()", "other threads"),
        ("import subprocess\nchild = subprocess.Popen(['/bin/sleep', '60'])", "child processes"),
        ("import os\nopen('a', 'w').close()\nos.chmod('a', 0)", "Permission denied"),
        ("import os\nos.getcwd = None", "cannot start"),
        ("import os\nos.waitid = None", "cannot be copied"),
    ],
)
async def test_a_session_that_cannot_be_forked(session: EngineSession, code: str, message: str) -> None:
    """The error says why, and the session goes on."""
    await run(session, "x = 1\n" + code)
    with pytest.raises(ForkError, match=message):
        await session.fork()
    await check(session)


@LANDLOCK
async def test_a_branch_is_a_process_of_its_own(session: EngineSession) -> None:
    """The program of the session cannot wait for it. It can send signals to itself, and start threads and processes."""
    await run(session, "import os, signal, subprocess, threading\nsignals = []\n")
    await run(session, "signal.signal(signal.SIGCHLD, lambda *arguments: signals.append(1));")
    await run(session, "hooks = {'before': 2, 'after_in_child': 3}")
    await run(session, "for name in hooks: os.register_at_fork(**{name: lambda n=hooks[name]: signals.append(n)})")
    async with closing(await session.fork()) as branch:
        wait = await run(session, "os.waitpid(-1, os.WNOHANG)")
        assert wait.error is not None
        assert wait.error.name == "ChildProcessError"
        code = """
            signal.signal(signal.SIGUSR1, lambda *arguments: signals.append(4))
            signal.raise_signal(signal.SIGUSR1)
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            thread = threading.Thread(target=signals.append, args=[5])
            thread.start(); thread.join()
            subprocess.run(["/bin/true"], check=True)
            signals, threading.get_native_id() == os.getpid()
        """
        assert texts(await run(branch, block(code))) == ["([2, 3, 4, 4, 5, 1], True)"]
    assert texts(await run(session, "signals")) == ["[]"]


@LANDLOCK
async def test_a_session_starts_with_the_packages_of_its_first_program(engine: NativeEngine) -> None:
    """It moves to a process that has imported them, if one is warm, with its files. A branch does not move."""
    probe = "import sys\n'numpy' in sys.modules, open('a').read(), open('b').read() # numpy"
    limits = attrs.evolve(LIMITS, timeout_ms=30_000)
    await engine.execute(EngineJob(language=Language.PYTHON, code="import numpy", limits=limits))

    async def first() -> list[str]:
        async with opened(engine, {"a": b"1", "b": b"1"}) as session:
            await session.write_files({"b": b"2"})
            return texts(await run(session, probe))

    while await first() != ["(True, '1', '2')"]:
        await asyncio.sleep(0.1)
    async with opened(engine, {"a": b"1", "b": b"2"}) as session:
        assert (await session.list_files(1000))[0] == {"a": 1, "b": 1}
        async with closing(await session.fork()) as branch:
            assert texts(await run(branch, probe)) == ["(False, '1', '2')"]
        assert texts(await run(session, probe)) == ["(False, '1', '2')"]


async def warm_up_numpy(engine: NativeEngine) -> None:
    limits = attrs.evolve(LIMITS, timeout_ms=30_000)
    await engine.execute(EngineJob(language=Language.PYTHON, code="import numpy", limits=limits))

    async def is_warm() -> bool:
        async with opened(engine) as session:
            return texts(await run(session, "import sys\n'numpy' in sys.modules # numpy")) == ["True"]

    while not await is_warm():
        await asyncio.sleep(0.1)


async def test_a_first_program_can_be_interrupted_while_its_session_moves(engine: NativeEngine) -> None:
    """It has not begun in the process that has imported its packages, and is interrupted as soon as it begins."""
    await warm_up_numpy(engine)
    async with opened(engine) as session:
        running = asyncio.create_task(run(session, "import numpy, time\ntime.sleep(60)"))
        await asyncio.sleep(0)  # the task has begun
        session.interrupt()
        result = await running
        assert result.error is not None
        assert result.error.name == "KeyboardInterrupt"
        assert texts(await run(session, "1")) == ["1"]


async def test_files_are_kept_for_a_move_only_if_they_were_written(engine: NativeEngine) -> None:
    """The contents of other files do not stay in the memory of the server, nor those of many."""
    refused, large = os.urandom(1000), os.urandom(5 * 2**20)
    references = sys.getrefcount(refused), sys.getrefcount(large)
    async with opened(engine, {"folder/a": b"1"}) as session:
        await session.write_files({"large": large})
        assert sys.getrefcount(large) > references[1]
        await session.write_files({"other": os.urandom(5 * 2**20)})
        assert sys.getrefcount(large) == references[1]
    async with opened(engine, {"folder/a": b"1"}) as session:
        with pytest.raises(SessionFileError):
            await session.write_files({"b": b"2", "folder": refused})
        assert sys.getrefcount(refused) == references[0]
        assert texts(await run(session, "open('b').read() # numpy")) == ["'2'"]


@LANDLOCK
async def test_branches_can_be_nested_ten_times(session: EngineSession) -> None:
    """The kernel limits this, and the error says so."""
    await run(session, "x = 1")
    branches = [session]
    try:
        with pytest.raises(ForkError, match="too many others"):  # noqa: PT012
            while len(branches) < 20:
                branches.append(await branches[-1].fork())
        assert len(branches) > 10
        await check(branches[-1])
    finally:
        for branch in branches[1:]:
            await branch.aclose()


@LANDLOCK
async def test_a_branch_has_no_event_loop_and_random_numbers_of_its_session(session: EngineSession) -> None:
    """The tasks of the session go on there only. Its own generators are copied."""
    await run(
        session,
        "import asyncio, random, os\nown = random.Random(5)\n"
        "task = asyncio.create_task(asyncio.sleep(0.01, 7))\nawait asyncio.sleep(0)",
    )
    async with closing(await session.fork()) as branch:
        assert texts(await run(branch, "await asyncio.sleep(0.01, 8)")) == ["8"]
        assert texts(await run(session, "await task")) == ["7"]
        first, second = [
            texts(await run(one, "own.random(), random.random(), os.urandom(1)")) for one in (session, branch)
        ]
        assert first != second
        assert first[0].split(",")[0] == second[0].split(",")[0]


@LANDLOCK
async def test_a_branch_has_other_numbers_of_the_generator_that_numpy_was_given(session: EngineSession) -> None:
    skip_without("numpy")
    result = await run(session, "import numpy; numpy.random.set_bit_generator(numpy.random.PCG64(1))")
    assert result.outcome is Outcome.OK
    code = "type(numpy.random.get_bit_generator()).__name__, numpy.random.random()"
    async with closing(await session.fork()) as branch:
        first, second = [texts(await run(one, code)) for one in (session, branch)]
    assert first != second
    assert first[0].split(",")[0] == second[0].split(",")[0] == "('PCG64'"


@LANDLOCK
async def test_programs_of_a_branch_use_its_folder(session: EngineSession) -> None:
    """Temporary files, shared memory and subprocesses work."""
    await run(session, "import mmap, multiprocessing as m, subprocess, tempfile, os\ntempfile.gettempdir()")
    async with closing(await session.fork()) as branch:
        code = """
with tempfile.NamedTemporaryFile() as file: print(file.name.startswith(os.getcwd()))
mmap.mmap(-1, 10)[0] = 1
value = m.Value('i', 5)
child = m.get_context('fork').Process(target=lambda: setattr(value, 'value', 6))
child.start(); child.join()
print(value.value, subprocess.check_output('pwd', text=True) == os.getcwd() + chr(10))
"""
        result = await run(branch, code)
        assert result.stdout == "True\n6 True\n", result.stderr


REACHED = {
    "send a signal": "os.kill(PID, 0)",
    "send a signal to its group": "os.killpg(PID, 0)",
    "send a signal to process 1": "os.kill(1, 9)",
    "read its memory": "open(f'/proc/{PID}/mem', 'rb')",
    "list its descriptors": "os.listdir(f'/proc/{PID}/fd')",
    "list its root folder": "os.listdir(f'/proc/{PID}/root/tmp')",
    "enter its root folder": "os.chroot(f'/proc/{PID}/root')",
    "enter its working folder": "os.chdir(f'/proc/{PID}/cwd')",
    "trace it": "call(101, 16, PID, 0, 0)",
    "connect to an abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0name')",
    "connect to a socket with a path": "socket.socket(socket.AF_UNIX).connect('/tmp/socket')",
    "open its pidfd": "signal.pidfd_send_signal(os.pidfd_open(PID), 0)",
    "change a limit": "resource.prlimit(PID, resource.RLIMIT_CPU, (1, 1))",
    "write to its own /proc": "open('/proc/self/oom_score_adj', 'w')",
}


@LANDLOCK
async def test_a_branch_cannot_reach_its_session(session: EngineSession) -> None:
    """Neither its processes, nor its sockets, nor those of other branches."""
    await run(session, PRELUDE + "PID = os.getpid()")
    await run(
        session,
        "listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]\n"
        "for listener, name in zip(listeners, ('\\0name', '/tmp/socket')): listener.bind(name); listener.listen()",
    )
    async with closing(await session.fork()) as other, closing(await session.fork()) as branch:
        await run(branch, "for listener in listeners: listener.close()")
        for name, code in REACHED.items():
            result = await run(branch, code)
            assert result.outcome is Outcome.USER_ERROR, name
            assert result.error is not None
            assert result.error.name.endswith(
                ("PermissionError", "NotFoundError", "LookupError", "ProcessError", "OSError")
            ), name
        await run(branch, "os.kill(-1, 9)")
        assert texts(await run(session, "1")) == texts(await run(other, "1")) == ["1"]
        await run(session, "os.kill(0, signal.SIGCONT)")
        assert texts(await run(branch, "1")) == ["1"]


@LANDLOCK
async def test_open_files_of_a_branch_are_copies(session: EngineSession) -> None:
    """With their positions and flags; also files that were removed, and shared memory."""
    code = """
        import mmap, multiprocessing, os, tempfile
        named, removed, appended = open("named", "w+"), tempfile.TemporaryFile("w+"), open("named", "a")
        for file in (named, removed): file.write("abcdef"); file.flush(); file.seek(2)
        folder, path = os.open("/tmp", os.O_RDONLY), os.open("named", os.O_PATH)
        with open("/dev/shm/block", "w+b") as file: file.truncate(4); block = mmap.mmap(file.fileno(), 4)
        memory, value = mmap.mmap(-1, 5000), multiprocessing.Value("i", 1)
        block[:4] = memory[4096:4100] = b"abcd"
        def values():
            with open("named") as file: content = file.read()
            with open("/dev/shm/block") as file: shared = file.read()
            mapped = bytes(block[:4]), memory[4096:4100], value.value
            names = sorted(os.listdir(folder))
            return named.read(), removed.read(), names, os.stat(path).st_size, content, shared, *mapped
    """
    assert (await run(session, block(code))).outcome is Outcome.OK
    async with closing(await session.fork()) as branch:
        changes = """
            for file in (named, removed): file.seek(0); file.write("ABC"); file.flush(); file.seek(3)
            appended.write("new"); appended.flush()
            os.rename("named", "moved", src_dir_fd=folder); os.symlink("moved", "named"); os.remove("/dev/shm/block")
            os.truncate(named.fileno(), 8)
            block[:4] = memory[4096:4100] = b"ABCD"; value.value += 1
            contents = named.read(), removed.read(), sorted(os.listdir(folder)), os.stat(path).st_size
            *contents, bytes(block[:4]), memory[4096:4100], value.value
        """
        result = await run(branch, "values()")
        names = sorted(["named", *FOUND_IN_TMP])
        expected = f"('cdef', 'cdef', {names}, 6, 'abcdef', 'abcd', b'abcd', b'abcd', 1)"
        assert texts(result) == [expected], result.stderr
        result = await run(branch, block(changes))
        names = sorted(["moved", "named", *FOUND_IN_TMP])
        assert texts(result) == [f"('defne', 'def', {names}, 8, b'ABCD', b'ABCD', 2)"], result.stderr
        assert texts(await run(session, "values()")) == [expected]


@LANDLOCK
async def test_files_of_a_branch_that_are_open_in_other_ways_are_copies(session: EngineSession) -> None:
    """A link, a folder of the system and one that was removed, a removed file with holes, and its mapping."""
    code = """
        import mmap, os
        os.symlink("target", "link"); os.mkdir("folder")
        link = os.open("link", os.O_PATH | os.O_NOFOLLOW)
        system, gone = os.open("/usr", os.O_RDONLY), os.open("folder", os.O_RDONLY)
        sparse = os.open("sparse", os.O_CREAT | os.O_RDWR)
        os.truncate(sparse, 2**22 + 1); os.pwrite(sparse, b"part", 2**21); os.lseek(sparse, 7, os.SEEK_SET)
        mapped = mmap.mmap(sparse, 4, offset=2**21)
        os.remove("sparse"); os.rmdir("folder")
        def values():
            status = os.fstat(sparse)
            texts = os.readlink(b"", dir_fd=link), "bin" in os.listdir(system), mapped[:]
            return *texts, status.st_size, status.st_blocks, os.lseek(sparse, 0, os.SEEK_CUR)
    """
    assert (await run(session, block(code))).outcome is Outcome.OK
    expected = f"(b'target', True, b'part', {2**22 + 1}, 8, 7)"
    async with closing(await session.fork()) as branch:
        assert texts(await run(branch, "values()")) == [expected]
        result = await run(branch, "os.pwrite(sparse, b'PA', 2**21); os.lseek(sparse, 1, os.SEEK_SET); values()")
        assert texts(result) == [f"(b'target', True, b'PArt', {2**22 + 1}, 8, 1)"], result.stderr
        result = await run(branch, "os.stat('.', dir_fd=gone)")
        assert result.error is not None
        assert result.error.name == "NotADirectoryError"
        assert texts(await run(branch, "sorted(os.listdir())")) == texts(await run(session, "sorted(os.listdir())"))
        assert texts(await run(session, "values()")) == [expected]


@LANDLOCK
async def test_open_files_of_a_branch_whose_mode_denies_to_open_them_are_copies(session: EngineSession) -> None:
    """Those that were created as read-only, or made so, or are mapped."""
    code = """
        import mmap, os
        created = os.open("created", os.O_CREAT | os.O_RDWR, 0o444)
        changed = os.open("changed", os.O_CREAT | os.O_RDWR)
        for file in (created, changed): os.write(file, b"state")
        os.chmod("changed", 0o400)
        mapped = mmap.mmap(changed, 5)
        def values():
            modes = [oct(os.stat(name).st_mode & 0o777) for name in ("created", "changed")]
            return modes, os.pread(created, 9, 0), os.pread(changed, 9, 0), mapped[:]
    """
    await run(session, block(code))
    async with closing(await session.fork()) as branch:
        expected = "(['0o444', '0o400'], b'state', b'state', b'state')"
        assert texts(await run(branch, "values()")) == [expected]
        result = await run(branch, "mapped[:2] = b'ST'; os.pwrite(created, b'ST', 0); os.fchmod(created, 0); values()")
        assert texts(result) == ["(['0o0', '0o400'], b'STate', b'STate', b'STate')"], result.stderr
        assert texts(await run(session, "values()")) == [expected]


@LANDLOCK
async def test_a_branch_moves_files_to_other_folders(session: EngineSession) -> None:
    """And links them, as its session can. So can a branch of it."""
    code = """
        os.makedirs("a/b", exist_ok=True)
        open("file", "w").close()
        os.rename("file", "a/b/file")
        os.link("a/b/file", "link")
        os.rename("a/b", "b")
        os.rename("link", "b/link")
        sorted(os.listdir("b"))
    """
    await run(session, "import os")
    async with closing(await session.fork()) as branch, closing(await branch.fork()) as other:
        for one in (session, branch, other):
            result = await run(one, block(code))
            assert texts(result) == ["['file', 'link']"], result.stderr


@LANDLOCK
async def test_a_branch_cannot_change_the_event_loop_of_its_session(session: EngineSession) -> None:
    """An event loop that a branch has changed would no longer notice that a thread has ended."""
    await run(session, "import asyncio\nloop = asyncio.get_running_loop()\nawait asyncio.sleep(0)")
    async with closing(await session.fork()) as branch:
        code = """
            import ctypes, os
            libc, ended = ctypes.CDLL(None), []
            for epoll in range(3, 256):
                for registered in range(3, 256):
                    if libc.epoll_ctl(epoll, 2, registered, None) == 0: ended.append(registered)
            ended
        """
        assert texts(await run(branch, block(code))) == ["[]"]
        assert texts(await run(branch, "await asyncio.to_thread(len, 'ab')")) == ["2"]
    assert texts(await run(session, "await asyncio.to_thread(len, 'abc')")) == ["3"]


@LANDLOCK
async def test_the_memory_limit_of_branches(engine: NativeEngine) -> None:
    """Each has the limit of the session. The one that exceeds it ends, and the others go on."""
    async with opened(engine) as session:
        await run(session, "x = 1")
        async with closing(await session.fork()) as branch:
            result = await run(branch, GROW)
            assert result.outcome is Outcome.MEMORY_LIMIT
        await check(session)


@LANDLOCK
async def test_sessions_leave_no_descriptors(engine: NativeEngine) -> None:
    """After sessions, runs, branches and failures, this process has as many descriptors as before."""

    async def use() -> None:
        async with opened(engine, {"a": b"1"}) as session:
            await run(session, "x = 1")
            await run(session, "1 / 0")
            await session.read_files(["a"], 10)
            branches = [await session.fork() for _ in range(3)]
            branches.append(await branches[0].fork())
            await check(branches[-1])
            await run(branches[1], "import os\nos._exit(1)")
            await run(session, "import threading\nthreading.Thread(target=threading.Event().wait).start()")
            with pytest.raises(ForkError):
                await session.fork()
            with pytest.raises(SessionFileError):
                await session.write_files({"a/b": b""})
            await asyncio.gather(*(branch.aclose() for branch in branches))

    await use()
    await until(lambda: engine.idle == 2)
    before = open_files()
    for _ in range(3):
        await use()
    try:
        await until(lambda: len(open_files()) <= len(before) + 8)  # of processes that wait in the pool
    except TimeoutError:
        pytest.fail(f"{engine.idle} processes wait; before: {before}; now: {open_files()}")


def fail_to_copy(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    """Let this process copy so many descriptors, and then have too many."""
    left, dup = iter(range(copies)), os.dup

    def copy(fd: int) -> int:
        if next(left, None) is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return dup(fd)

    monkeypatch.setattr(os, "dup", copy)


@LANDLOCK
@pytest.mark.parametrize("copies", [0, 1], ids=["for the branch", "for the session of the branch"])
async def test_a_fork_without_free_descriptors_leaves_nothing(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    """The fork is refused, its process ends, and the session goes on."""
    async with opened(engine) as session:
        assert isinstance(session, NativeSession)
        jail = session._process.jail
        await run(session, "x = 1")
        async with closing(await session.fork()):
            pass  # the session has now opened its folder
        # That of the branch has ended, and none of an earlier test is left.
        await until(lambda: len(jail._processes) == 1 + engine.idle == 1 + engine.min_capacity)
        before = await descriptors_at_rest(), {*jail._processes}
        for _ in range(3):
            with monkeypatch.context() as patch:
                fail_to_copy(patch, copies)
                with pytest.raises(ForkError, match="Too many open files"):
                    await session.fork()
        await until(lambda: (descriptors(), {*jail._processes}) == before)
        assert not jail._starts
        await check(session)


async def test_a_session_without_free_descriptors_does_not_start(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may try it again."""
    with monkeypatch.context() as patch:
        fail_to_copy(patch, 0)
        with pytest.raises(NotStartedError, match="Too many open files"):
            await engine.open_session(EngineSessionOptions(language=Language.PYTHON, limits=LIMITS))
    async with opened(engine) as session:
        await run(session, "x = 1")
        await check(session)


@LANDLOCK
async def test_a_session_is_used_by_many_tasks_until_it_is_closed(engine: NativeEngine) -> None:
    """Each run of many sessions at once has its own result, while some crash and others fork."""

    async def work(number: int) -> None:
        async with opened(engine) as session:
            await run(session, f"x = {number}")
            async with closing(await session.fork()) as branch:
                results = [await run(one, f"print(x * {i}); x") for i in range(5) for one in (session, branch)]
                assert [result.stdout for result in results] == [f"{number * (i // 2)}\n" for i in range(10)]
                assert {text for result in results for text in texts(result)} == {str(number)}
            if number % 3 == 0:
                assert (await run(session, "import os\nos.abort()")).outcome is Outcome.CRASHED

    await asyncio.gather(*map(work, range(12)))


@LANDLOCK
async def test_a_session_of_an_environment_below_tmp_is_forked(tmp_path: Path) -> None:
    """Its /tmp has folders above the environment, and those of the branch exist before its files are copied."""
    venv.create(tmp_path / "environment", symlinks=True)
    python = str(tmp_path / "environment/bin/python")
    async with RuntimeManager.local(["python"], python=python) as manager, manager.session("python") as session:
        await session.run_code("open('file', 'w').write('text')")
        async with await session.fork() as branch:
            assert (await branch.run_code("print(open('file').read())")).stdout == "text\n"


@LANDLOCK
async def test_a_session_is_forked_after_a_file_of_the_system_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installing a package replaces /etc/ld.so.cache, which the jails have mounted."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        file = Path(folder, "file")
        file.touch()
        monkeypatch.setattr(native_jail, "_SYSTEM", [*native_jail._SYSTEM, str(file)])
        async with native_engine(tmp_path) as engine:
            file.unlink()
            async with opened(engine) as session:
                await run(session, "x = 1")
                async with closing(await session.fork()) as branch:
                    await check(branch)
