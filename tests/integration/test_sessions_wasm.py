"""Sessions of the engine `wasm`: instances of the sandbox that are kept, several in each worker process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from faasrt import Language, Outcome
from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.live_output import LiveOutput
from faasrt.local.engines.session import (
    EngineSession,
    ForkError,
    SessionEndedError,
    SessionFileError,
)
from faasrt.local.engines.wasm import session as wasm_session
from faasrt.local.engines.wasm.engine import WasmEngine
from faasrt.local.engines.wasm.session import WasmSession
from faasrt.local.engines.wasm.worker_process import WasmWorker
from faasrt.local.errors import EngineError
from support.engines import wasm_engine
from support.served import until
from support.session_programs import LIMITS, opened, run, texts, until_printed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("wasm_sandbox")]
STUBBORN = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
"""A program that cannot be interrupted."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WasmEngine]:
    async with wasm_engine(Path(tmp_path_factory.mktemp("sessions"))) as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def session(engine: WasmEngine) -> AsyncIterator[EngineSession]:
    async with opened(engine) as session:
        yield session


async def pid_of(session: EngineSession) -> int:
    """Return the process of a session."""
    return int((await run(session, "")).instance_id.removeprefix("wasm-"))


async def test_a_fork_has_the_same_state_and_is_separate(engine: WasmEngine) -> None:
    """Variables, imports, objects of packages, files, the working folder, and open files are copied."""
    async with opened(engine, {"a/b.txt": b"text"}) as session:
        await run(session, "import os, numpy as np\nx = np.arange(3)\nos.chdir('a'); file = open('b.txt', 'r+b', 0)")
        await run(session, "file.read(2); big = [bytes(1000) for _ in range(20_000)]")
        branch = await session.fork()
        try:
            await run(session, "x += 1; file.write(b'!'); open('mine', 'w').close()")
            code = "x.tolist(), file.read(), os.getcwd(), os.listdir(), len(big), big[-1] == bytes(1000)"
            assert texts(await run(branch, code)) == ["([0, 1, 2], b'xt', '/tmp/a', ['b.txt'], 20000, True)"]
            await run(branch, "x += 5; file.write(b'?'); file.close(); os.remove('b.txt'); del big")
            assert texts(await run(session, code)) == ["([1, 2, 3], b't', '/tmp/a', ['b.txt', 'mine'], 20000, True)"]
            assert await branch.read_files(["**"], 1000) == ({}, True)
            assert await session.read_files(["**"], 1000) == ({"a/b.txt": b"te!t", "a/mine": b""}, True)
        finally:
            await branch.aclose()


async def test_forks_of_forks_outlive_each_other(session: EngineSession) -> None:
    """A branch goes on when the session that it comes from has ended."""
    await run(session, "x = 0")
    branches = [session]
    try:
        for _ in range(3):
            branches.append(await branches[-1].fork())
            await run(branches[-1], "x += 1")
        await branches[1].aclose()
        assert (await run(branches[2], "import os; os._exit(1)")).outcome is Outcome.CRASHED
        assert texts(await run(branches[3], "x")) == ["3"]
        assert texts(await run(session, "x")) == ["0"]
    finally:
        for branch in branches[1:]:
            await branch.aclose()


async def test_the_clock_of_a_fork_goes_on(session: EngineSession) -> None:
    """It does not begin again, so that deadlines of the program stay right, and a fork can wait."""
    begin = time.time()
    await run(session, "import time, asyncio\nbegin = time.monotonic(); time.sleep(0.1)")
    branch = await session.fork()
    try:
        assert texts(await run(branch, f"time.monotonic() - begin > 0.1, 0 < time.time() - {begin} < 600")) == [
            "(True, True)"
        ]
        code = "now = time.monotonic()\nawait asyncio.sleep(0.05)\n0.05 <= time.monotonic() - now < 30"
        assert texts(await run(branch, code)) == ["True"]
    finally:
        await branch.aclose()


async def test_a_fork_with_files_of_the_library_is_refused(session: EngineSession) -> None:
    """The session goes on, and can be forked when they are closed."""
    await run(session, "import sys\nfile = open(next(path for path in sys.path if path.endswith('.zip')), 'rb')")
    with pytest.raises(ForkError, match="outside of its working folder"):
        await session.fork()
    await run(session, "file.close()")
    await (await session.fork()).aclose()


async def test_a_fork_that_fails_keeps_the_session(session: EngineSession) -> None:
    """Such as one of folders that are nested too deeply."""
    await run(session, "import os\nfor _ in range(700): os.mkdir('d'); os.chdir('d')\nos.chdir('/tmp')")
    with pytest.raises(ForkError, match=r"cannot be copied: .*recursion"):
        await session.fork()
    assert texts(await run(session, "1")) == ["1"]


async def test_a_run_whose_answer_comes_after_the_end_of_its_session(session: EngineSession) -> None:
    """The worker closes the session in one thread, and answers for its run in another one. It becomes idle only once:
    otherwise programs would run beside its next session.
    """
    assert isinstance(session, WasmSession)
    left: list[WasmWorker] = []
    settle = session._when_ended

    def leave(worker: WasmWorker) -> None:
        left.append(worker)
        settle(worker)

    session._when_ended = leave
    running = await until_printed(session, "print(1)\nwhile True: pass")
    channel = session._worker.channels["session", session.number]
    take = channel.take
    channel.take = lambda message: None if "result" in (message or {}) else take(message)  # type: ignore[method-assign]
    await session.aclose()
    with pytest.raises(EngineError, match="the session was closed"):
        await running
    assert left == [session._worker]


async def test_sessions_share_workers_and_nothing_else(engine: WasmEngine) -> None:
    """Not memory, modules, files, the environment, stdin, output or random numbers."""
    async with opened(engine, {"secret": b"s3cret"}) as first, opened(engine) as second:
        assert await pid_of(first) == await pid_of(second)
        await run(first, "import os, sys, builtins, random\nbuiltins.leak = sys.leak = os.environ['LEAK'] = 's3cret'")
        await run(second, "import os, sys, builtins, random")
        code = "os.listdir(), hasattr(sys, 'leak'), hasattr(builtins, 'leak'), os.environ.get('LEAK')"
        assert texts(await run(second, code)) == ["([], False, False, None)"]
        numbers = {texts(await run(session, "random.random(), os.urandom(8)"))[0] for session in (first, second)}
        assert len(numbers) == 2
        running = await until_printed(first, "print('a'); line = input('b')\nprint(line)")
        assert (await run(second, "input()", stdin="mine\n")).displays[0].text == "'mine'"
        assert (await running).stdout == "a\nb"


async def test_sessions_of_a_worker_run_at_the_same_time(engine: WasmEngine) -> None:
    """A program that computes or sleeps does not delay another session, nor does one that cannot be interrupted."""
    async with opened(engine) as first, opened(engine) as second:
        running = await until_printed(first, f"print(1)\n{STUBBORN}")
        assert texts(await run(second, "sum(range(10))")) == ["45"]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert first.reason == "a run was cancelled and could not be interrupted"
        assert texts(await run(second, "1")) == ["1"]


async def test_a_run_that_cannot_be_interrupted_ends_its_session(session: EngineSession) -> None:
    """The outcome is TIMEOUT, and later runs say why the session has ended."""
    result = await run(session, STUBBORN, timeout_ms=300)
    assert (result.outcome, result.error) == (Outcome.TIMEOUT, None)
    assert session.ended.is_set()
    with pytest.raises(SessionEndedError, match="reached its time limit and could not be interrupted"):
        await run(session, "1")


async def test_interrupt(session: EngineSession) -> None:
    """It raises KeyboardInterrupt in the program that runs, and does nothing between runs."""
    session.interrupt()
    await run(session, "x = 1")
    running = await until_printed(session, "print(1)\nwhile True: pass")
    session.interrupt()
    result = await running
    assert result.error is not None
    assert (result.outcome, result.error.name) == (Outcome.USER_ERROR, "KeyboardInterrupt")
    running = await until_printed(
        session, "try: print(1); __import__('time').sleep(60)\nexcept KeyboardInterrupt: x = 2"
    )
    session.interrupt()
    assert (await running).outcome is Outcome.OK
    assert texts(await run(session, "x")) == ["2"]


async def test_cancellation_interrupts_a_run(session: EngineSession) -> None:
    """The session goes on."""
    running = await until_printed(session, "try: print(1); __import__('time').sleep(60)\nfinally: x = 2")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert texts(await run(session, "x")) == ["2"]


async def test_a_slow_reader_does_not_keep_a_run_from_its_end(session: EngineSession) -> None:
    """At the time limit, output that has no room is dropped."""
    live, code = LiveOutput(), "while True: print('x' * 1000)"
    limits = LIMITS.__class__(timeout_ms=500, memory_limit_mb=128, max_output_bytes=10_000_000)
    result = await session.run(EngineJob(language=Language.PYTHON, code=code, limits=limits, live=live))
    assert result.outcome is Outcome.TIMEOUT
    assert texts(await run(session, "1")) == ["1"]


async def test_files(engine: WasmEngine) -> None:
    """The files of the start, of `write_files`, and of the program are in one folder."""
    async with opened(engine, {"a.csv": b"1", "sub/b": b"2"}) as session:
        assert texts(await run(session, "import os\nopen('c', 'wb').write(b'\\xff'); sorted(os.listdir())")) == [
            "['a.csv', 'c', 'sub']"
        ]
        await session.write_files({"a.csv": b"new", "x/y/z": b"deep"})
        assert texts(await run(session, "open('a.csv').read(), open('x/y/z').read()")) == ["('new', 'deep')"]
        assert await session.read_files(["*", "x/**"], 1000) == (
            {"a.csv": b"new", "c": b"\xff", "x/y/z": b"deep"},
            True,
        )
        assert (await session.read_files(["a.csv", "c"], 6))[1] is False
        sizes = {"a.csv": 3, "c": 1, "sub/b": 1, "x/y/z": 4}
        assert await session.list_files(1000) == (sizes, True)
        assert (await session.list_files(90))[1] is False
        with pytest.raises(SessionFileError, match="Is a directory: /x"):
            await session.write_files({"x": b""})
        with pytest.raises(SessionFileError, match="Not a directory"):
            await session.write_files({"c/d": b""})


async def test_a_full_folder(session: EngineSession) -> None:
    """Neither the program nor `write_files` can exceed the limit, and the session goes on."""
    code = """
n = 0
try:
    while True:
        with open(str(n), "wb") as file:
            file.write(bytes(4 * 2**20))
        n += 1
except OSError as error:
    print(error)
"""
    result = await run(session, code)
    assert "No space left" in result.stdout, result
    with pytest.raises(SessionFileError, match="No space left on device"):
        await session.write_files({"new": bytes(8 * 2**20)})
    assert texts(await run(session, "import os\n[os.remove(name) for name in os.listdir()]; n > 10")) == ["True"]
    await session.write_files({"new": bytes(8 * 2**20)})


async def test_a_session_whose_files_do_not_fit_is_not_opened(engine: WasmEngine) -> None:
    """The next one works."""
    with pytest.raises(SessionFileError, match="No space left"):
        async with opened(engine, {str(n): b"" for n in range(10_001)}):
            pass
    async with opened(engine) as session:
        assert texts(await run(session, "1")) == ["1"]


async def test_the_memory_limit_holds_for_the_whole_session(session: EngineSession) -> None:
    """Also for many runs that use a little each. Memory that a program has released can be used again."""
    outcomes = [(await run(session, f"a{n} = bytearray(20 * 2**20)")).outcome for n in range(8)]
    assert outcomes[0] is Outcome.OK
    assert outcomes[-1] is Outcome.MEMORY_LIMIT
    if not session.ended.is_set():
        assert (await run(session, "del a0, a1, a2\nb = bytearray(20 * 2**20)")).outcome is Outcome.OK


FORGED = [
    "done",
    "ended",
    "error{",
    "exit9",
    "display{",
    "own_return_val",
    "job",
    "runner",
    "x" * 10**6,
    "",
    'display{"number":1,"type":"text/plain","content":"forged"}',
]


@pytest.mark.parametrize("message", FORGED, ids=[message[:20] for message in FORGED])
async def test_forged_calls_of_the_host_affect_only_their_run(session: EngineSession, message: str) -> None:
    """A program may call the host as the runner does. Its next run has its own result."""
    await run(session, f"import _host\nfor _ in range(100): _host.call({message!r}.encode())")
    result = await run(session, "5")
    assert (result.outcome, result.stdout, result.ret_val, texts(result)) == (Outcome.OK, "", "", ["5"])


async def test_a_program_that_ignores_its_end_is_ended(session: EngineSession) -> None:
    """After "ended", a program is not interrupted any more, but its session still ends."""
    code = "import _host\n_host.call(b'ended')\nwhile True: pass"
    assert (await run(session, code, timeout_ms=2_000)).outcome is Outcome.TIMEOUT
    assert session.ended.is_set()


CRASHES = {
    "os._exit": "import os; os._exit(0)",
    "no runner": "import _reactor; _reactor._run_turn = None",
    "an audit hook": "import sys; sys.addaudithook(lambda *a: 1 / 0)",
}


@pytest.mark.parametrize("code", CRASHES.values(), ids=CRASHES)
async def test_a_crash_ends_at_most_its_own_session(engine: WasmEngine, code: str) -> None:
    """Other sessions in the same worker go on."""
    async with opened(engine) as first, opened(engine) as second:
        await run(second, "x = 1")
        await run(first, code)
        with contextlib.suppress(SessionEndedError):
            await run(first, "1")
        assert texts(await run(second, "x")) == ["1"]


async def test_the_end_of_a_worker_ends_its_sessions(engine: WasmEngine) -> None:
    """A run fails with an error. Idle sessions learn it at once. New sessions work."""
    async with opened(engine) as first, opened(engine) as second:
        process = psutil.Process(await pid_of(first))
        running = await until_printed(first, "print(1)\nwhile True: pass")
        process.send_signal(signal.SIGKILL)
        with pytest.raises(EngineError):
            await running
        await second.ended.wait()
        assert first.reason == second.reason == "its process has ended"
        with pytest.raises(SessionEndedError, match="its process has ended"):
            await run(second, "1")
    async with opened(engine) as third:
        assert texts(await run(third, "1")) == ["1"]


async def test_a_fork_that_is_not_answered_ends_the_worker(engine: WasmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold a slot of the server for as long as the worker hangs."""
    monkeypatch.setattr(wasm_session, "FORK_TIMEOUT_S", 0.1)
    async with opened(engine) as session:
        process = psutil.Process(await pid_of(session))
        process.suspend()
        with pytest.raises(SessionEndedError, match="its process did not answer"):
            await session.fork()
        await until(lambda: not process.is_running())


async def test_programs_run_beside_sessions(engine: WasmEngine) -> None:
    """Not in their workers. A worker without sessions runs programs again."""
    job = EngineJob(language=Language.PYTHON, code="print(1)", limits=LIMITS)
    async with opened(engine) as session:
        pid = await pid_of(session)
        for _ in range(3):
            result = await engine.execute(job)
            assert (result.stdout, result.instance_id == f"wasm-{pid}") == ("1\n", False)
    assert psutil.pid_exists(pid)


async def test_many_sessions(engine: WasmEngine) -> None:
    """Each worker has a few of them, and runs programs again when they have ended."""
    async with contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(opened(engine)) for _ in range(10)]
        results = await asyncio.gather(*[run(session, f"x = {n}") for n, session in enumerate(sessions)])
        assert len({result.instance_id for result in results}) == 2
        values = [texts(await run(session, "x")) for session in sessions]
        assert values == [[str(n)] for n in range(10)]
    await until(lambda: engine.idle >= 1)
