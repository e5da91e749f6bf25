"""`faasrt.sync`: the API without asyncio, in threads, beside event loops, and at the end of a process."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import faasrt
from faasrt import (
    CodeTask,
    ConfigurationError,
    InvalidRequestError,
    Outcome,
    RuntimeClosedError,
    ServerError,
    StreamError,
    TimeoutSettings,
    sync,
)
from faasrt.testing import FakeFaaS, Reply
from support.served import CLEAN, PATIENCE_S, strays, trace


@pytest.fixture(scope="module")
def manager() -> Iterator[sync.RuntimeManager]:
    """A manager with an embedded FaaS."""
    with sync.RuntimeManager.local(workers=2) as manager:
        yield manager


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def public(kind: type) -> dict[str, Any]:
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("kind", "original"),
    [
        (sync.RuntimeManager, faasrt.RuntimeManager),
        (sync.Runtime, faasrt.Runtime),
        (sync.Session, faasrt.Session),
    ],
)
def test_members_are_those_of_the_asynchronous_classes(kind: type, original: type) -> None:
    """Names, parameters and defaults are the same. `close` takes the place of `aclose`."""
    ours, theirs = public(kind), public(original)
    theirs["close"] = theirs.pop("aclose")
    assert set(ours) == set(theirs)
    for name, member in ours.items():
        assert isinstance(member, property) == isinstance(theirs[name], property), name
        assert member.__doc__, name
        if isinstance(member, property):
            continue
        parameters, expected = (inspect.signature(each).parameters.values() for each in (member, theirs[name]))
        assert [(each.name, each.kind, each.default) for each in parameters] == [
            (each.name, each.kind, each.default) for each in expected
        ], name
        assert not inspect.iscoroutinefunction(member)
    own, expected = (inspect.signature(each).parameters.values() for each in (kind, original))
    if kind is sync.RuntimeManager:
        assert [(each.name, each.kind, each.default) for each in own] == [
            (each.name, each.kind, each.default) for each in expected
        ]


def test_sessions(fake: FakeFaaS) -> None:
    """They are opened and ended by `with`, even if the manager is closed in the block."""
    with sync.RuntimeManager.from_url(fake.url) as manager:
        fake.script(Reply.ok("1"), Reply.ok("2"), Reply.ok("3"))
        with manager.session("python", files={"a": "b"}) as session:
            assert session.run_code("1").stdout == "1"
            with session.stream_code("2") as run:
                assert [chunk.text for chunk in run] == ["2"]
            session.write_files({"c": b"d"})
            assert session.read_files(["*"]) == {"a": b"b", "c": b"d"}
            assert session.list_files() == {"a": 1, "c": 1}
            with session.fork() as branch:
                assert (branch.endpoint, len(fake.sessions)) == (fake.url, 2)
            assert not session.interrupt()
            same = manager.resume_session(session.id)
            assert (same.run_code("3").stdout, same.language) == ("3", "python")
            assert repr(session) == f"<sync.Session python at {fake.url}>"
        assert fake.sessions == {}
        with pytest.raises(RuntimeClosedError, match="this session was closed"):
            session.run_code("1")
        with manager.get_runtime("js").session():
            assert len(fake.sessions) == 1
            manager.close()
        assert fake.sessions == {}


def test_another_thread_interrupts_a_run(fake: FakeFaaS) -> None:
    fake.script(Reply(hang=True))
    manager = sync.RuntimeManager.from_url(fake.url)
    with manager, manager.session("python") as session, ThreadPoolExecutor() as threads:
        run = threads.submit(session.run_code, "while True: pass")
        wait_until(lambda: fake.in_flight)
        assert session.interrupt()
        assert run.result().error.name == "KeyboardInterrupt"  # type: ignore[union-attr]


def test_every_method_works(manager: sync.RuntimeManager) -> None:
    assert manager.run_code("print(6 * 7)", "py").stdout == "42\n"
    assert manager.call_function("const f = (n) => n + 1;", "f", [1], language="js").value == 2
    assert [result.value for result in manager.run_cases("def f(n): return -n", "f", [(1,), (2,)], language="py")] == [
        -1,
        -2,
    ]
    tests = [faasrt.TestCase("2", "4"), faasrt.TestCase("3", "7")]
    assert manager.judge("print(int(input()) * 2)", tests, language="py").score == 0.5
    calls = [faasrt.FunctionTest([2], 4), faasrt.FunctionTest([3], 7)]
    assert manager.judge("f = lambda n: n * 2", calls, function="f", language="py").score == 0.5
    assert not manager.validate_code("def f(:", "py").valid
    assert manager.get_health_status().endpoints[0].status in ("healthy", "degraded", "starting")
    assert manager.get_metrics().total.calls >= 3
    assert faasrt.Language.PYTHON in manager.get_supported_languages()
    runtime = manager.get_runtime("py")
    assert runtime.run_code("1 / 0", timeout_ms=5_000).outcome is Outcome.USER_ERROR
    assert runtime.get_return_val_function().startswith("def return_val")
    assert (runtime.language, runtime.closed) == (faasrt.Language.PYTHON, False)
    assert "sync.Runtime" in repr(runtime)
    assert "sync.RuntimeManager" in repr(manager)


def test_class_methods(fake: FakeFaaS, tmp_path: Path) -> None:
    """`from_env` and `from_url` take the options of the settings, and a cache."""
    fake.default = Reply.ok("hi")
    with sync.RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": fake.url}, cache=tmp_path) as manager:
        assert [manager.run_code("program", "py").cached for _ in range(2)] == [False, True]
    with sync.RuntimeManager.from_url(fake.url, envelope="never") as manager:
        assert manager.run_code("program", "py").stdout == "hi"
    with pytest.raises(ConfigurationError):
        sync.RuntimeManager.from_url("nonsense")


def test_errors_keep_their_types(fake: FakeFaaS) -> None:
    with sync.RuntimeManager.from_url(fake.url) as manager:
        with pytest.raises(InvalidRequestError, match="code must not be empty"):
            manager.run_code("", "py")
        fake.default = Reply.crash()
        with pytest.raises(ServerError) as caught:
            manager.run_code("program", "py")
        assert (caught.value.sent, caught.value.endpoint) == ("yes", fake.url)


def test_many_threads_share_a_manager(fake: FakeFaaS) -> None:
    fake.handler = lambda body: Reply.ok(body["code"])
    with sync.RuntimeManager.from_url(fake.url) as manager, ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda number: manager.run_code(f"{number}", "py").stdout, range(300)))
        assert results == [f"{number}" for number in range(300)]
        assert manager.get_metrics().total.calls == 300


def test_it_works_while_an_event_loop_runs_in_the_thread(fake: FakeFaaS) -> None:
    """As in a notebook."""
    fake.default = Reply.ok("hi")

    async def cell() -> list[str]:
        with sync.RuntimeManager.from_url(fake.url) as manager:
            mapped = [item.result.stdout for item in manager.map([CodeTask("b", "py")]) if item.result is not None]
            return [manager.run_code("a", "py").stdout, *mapped]

    assert asyncio.run(cell()) == ["hi", "hi"]


@pytest.mark.parametrize("ordered", [False, True])
def test_map_reads_lazily_in_the_calling_thread(fake: FakeFaaS, ordered: bool) -> None:
    """No more tasks are read ahead than by the asynchronous `map`."""
    threads, read = set(), 0

    def source() -> Iterator[CodeTask]:
        nonlocal read
        for number in range(200):
            threads.add(threading.get_ident())
            read += 1
            yield CodeTask(f"{number}", "py")

    with sync.RuntimeManager.from_url(fake.url) as manager:
        taken = []
        for item in manager.map(source(), concurrency=4, ordered=ordered):
            taken.append(item.index)
            assert read - len(taken) <= 8
    assert sorted(taken) == list(range(200))
    assert threads == {threading.get_ident()}
    assert fake.peak <= 4


def test_map_coalesces(manager: sync.RuntimeManager) -> None:
    code = "def f(n): return n * n"
    tasks = (CodeTask(code, "py", function="f", args=[number]) for number in range(100))
    before = manager.get_metrics().total.attempts
    items = list(manager.map(tasks, concurrency=2, coalesce=25, ordered=True))
    assert [item.result.value for item in items if item.result is not None] == [number**2 for number in range(100)]
    assert manager.get_metrics().total.attempts - before == 4


@pytest.mark.parametrize("way", ["break", "close", "with", "error", "unstarted"])
def test_leaving_a_map_stops_the_work(fake: FakeFaaS, way: str) -> None:
    """The source is closed in the calling thread, and no program is in flight when the loop has been left."""
    closed: list[int] = []

    def source() -> Iterator[CodeTask]:
        try:
            yield CodeTask("fast", "py")
            while True:
                yield CodeTask("slow", "py")
        finally:
            closed.append(threading.get_ident())

    fake.handler = lambda body: Reply(hang=body["code"] == "slow")
    with sync.RuntimeManager.from_url(fake.url) as manager:
        if way == "break":
            for _ in manager.map(source(), concurrency=3):
                break
        elif way == "close":
            results = manager.map(source(), concurrency=3)
            next(results)
            results.close()
            results.close()
        elif way == "with":
            with manager.map(source(), concurrency=3) as results:
                next(results)
        elif way == "error":
            with pytest.raises(ZeroDivisionError):
                [1 / 0 for _ in manager.map(source(), concurrency=3)]
        else:
            manager.map(source(), concurrency=3).close()
        assert closed == ([] if way == "unstarted" else [threading.get_ident()])
        assert manager.get_metrics().in_flight == 0
        wait_until(lambda: fake.in_flight == 0)


def test_an_error_of_the_source_follows_the_results_before_it(fake: FakeFaaS) -> None:
    def source(error: BaseException) -> Iterator[CodeTask]:
        yield CodeTask("a", "py")
        yield CodeTask("b", "py")
        raise error

    with sync.RuntimeManager.from_url(fake.url) as manager:
        for coalesce in (1, 10):
            seen: list[int] = []
            with pytest.raises(LookupError, match="no more"):
                seen.extend(item.index for item in manager.map(source(LookupError("no more")), coalesce=coalesce))
            assert sorted(seen) == [0, 1]
        with pytest.raises(KeyboardInterrupt):
            list(manager.map(source(KeyboardInterrupt())))
        assert manager.get_metrics().in_flight == 0


def test_wrong_arguments_of_map(fake: FakeFaaS) -> None:
    with sync.RuntimeManager.from_url(fake.url) as manager:
        with pytest.raises(InvalidRequestError, match="iterable"):
            manager.map(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="concurrency"):
            manager.map([], concurrency=0)
        with pytest.raises(InvalidRequestError, match="CodeTasks"):
            list(manager.map(["x"]))  # type: ignore[list-item]
        assert list(manager.map([])) == []


def test_a_call_in_the_thread_of_the_manager_is_refused(fake: FakeFaaS) -> None:
    """It would wait for itself."""
    with sync.RuntimeManager.from_url(fake.url) as manager:
        with pytest.raises(ConfigurationError, match="wait for itself"):
            list(manager.map([CodeTask("a", "py")], stop_on=lambda item: manager.run_code("b", "py").ok))
        with pytest.raises(ConfigurationError, match="its own thread"):
            list(manager.map([CodeTask("a", "py")], stop_on=lambda item: bool(manager.close())))  # type: ignore[func-returns-value]
        assert manager.run_code("c", "py").ok


def test_a_closed_manager_refuses_calls(fake: FakeFaaS) -> None:
    """Closing twice is harmless. A call in flight and a map fail when their manager is closed."""
    unused = sync.RuntimeManager.from_url(fake.url)
    unused.close()
    timeouts = faasrt.TimeoutSettings(close_s=0.01)
    manager = sync.RuntimeManager.from_url(fake.url, timeouts=timeouts)
    fake.default = Reply(hang=True)
    with ThreadPoolExecutor() as threads:
        calls: list[Future[Any]] = [
            threads.submit(manager.run_code, "slow", "py"),
            threads.submit(lambda: list(manager.map([CodeTask("slow", "py")]))),
        ]
        wait_until(lambda: fake.in_flight == 2)
        manager.close()
        for call in calls:
            with pytest.raises(RuntimeClosedError):
                call.result(PATIENCE_S)
    manager.close()
    for closed in (unused, manager):
        assert "(closed)" in repr(closed)
        with pytest.raises(RuntimeClosedError):
            closed.run_code("a", "py")
        with pytest.raises(RuntimeClosedError):
            list(closed.map([]))
        with pytest.raises(RuntimeClosedError):
            closed.__enter__()
    assert manager.get_metrics().total.calls == 2


def test_closing_races_with_calls(fake: FakeFaaS) -> None:
    """Every call returns a result or raises `RuntimeClosedError`, and several threads may close the manager."""
    for _ in range(20):
        manager = sync.RuntimeManager.from_url(fake.url)
        begun = threading.Barrier(7)

        def call(manager: sync.RuntimeManager = manager, begun: threading.Barrier = begun) -> None:
            assert manager.run_code("a", "py").ok
            begun.wait(PATIENCE_S)
            with pytest.raises(RuntimeClosedError):
                all(manager.run_code("a", "py").ok for _ in itertools.count())

        with ThreadPoolExecutor(10) as threads:
            calls = [threads.submit(call) for _ in range(6)]
            begun.wait(PATIENCE_S)
            calls += [threads.submit(manager.close) for _ in range(3)]
            for each in calls:
                each.result(PATIENCE_S)


def run_script(tmp_path: Path, script: str) -> subprocess.Popen[str]:
    (tmp_path / "tmp").mkdir()
    environment = {**CLEAN, "TMPDIR": str(tmp_path / "tmp"), **trace(tmp_path / "tmp")}
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


UNCLOSED = """
from faasrt import CodeTask, sync
manager = sync.RuntimeManager.local(["python"], workers=1, cache="CACHE")
print(manager.run_code("print('hi')", "py").stdout)
results = manager.map(CodeTask("print(1)", "py") for _ in range(10))
next(results)
"""


def test_unclosed_at_exit(tmp_path: Path) -> None:
    """No process and no file is left behind, and nothing is printed."""
    process = run_script(tmp_path, UNCLOSED.replace("CACHE", str(tmp_path / "cache")))
    out, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, errors) == (0, "hi\n\n", "")
    wait_until(lambda: not strays(tmp_path / "tmp"))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not list((tmp_path / "cache").glob("*-wal"))


NO_HOOK = """
import asyncio, concurrent.futures.thread, threading
del threading._register_atexit  # private, so a release of Python may not have it
from faasrt import sync
class Manager(sync.RuntimeManager):
    def close(self):
        super().close()
        print("closed")
manager = Manager.from_url("http://127.0.0.1:9")
print(manager.validate_code("1", "py").valid)
"""


def test_unclosed_at_exit_on_a_python_without_the_private_hook(tmp_path: Path) -> None:
    process = run_script(tmp_path, NO_HOOK)
    out, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, errors) == (0, "True\nclosed\n", "")


INTERRUPTED = """
import os, signal, threading, time
from faasrt import sync

def active():
    return manager.get_health_status().endpoints[0].details["languages"]["python"]["active"]

def interrupt():
    while not active():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

with sync.RuntimeManager.local(["python"], workers=1) as manager:
    manager.get_runtime("py")
    threading.Thread(target=interrupt).start()
    try:
        manager.run_code("while True: pass", "py")
    except KeyboardInterrupt:
        print("interrupted")
    while active():
        time.sleep(0.01)
    print(manager.run_code("print(1)", "py").outcome)
"""


def test_ctrl_c_ends_the_program(tmp_path: Path) -> None:
    """The call raises KeyboardInterrupt, the program is ended, and the manager can go on."""
    process = run_script(tmp_path, INTERRUPTED)
    out, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, errors) == (0, "interrupted\nOK\n", "")


FORKED = """
import os
from faasrt import RuntimeClosedError, sync
from faasrt.testing import FakeFaaS

manager = sync.RuntimeManager.from_url("http://127.0.0.1:1")
manager.get_runtime("py")
child = os.fork()
if child == 0:
    try:
        manager.run_code("print(1)", "py")
    except RuntimeClosedError:
        raise SystemExit(7)
    raise SystemExit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_needs_a_manager_of_its_own(tmp_path: Path) -> None:
    process = run_script(tmp_path, FORKED)
    out, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "7\n")
    assert "Traceback" not in errors


def test_output_arrives_while_the_program_runs(manager: sync.RuntimeManager) -> None:
    """The program waits for nothing but its reader, and leaving the block ends it."""
    code = "import time\nprint(1, flush=True)\ntime.sleep(60)"
    with manager.stream_code(code, "python") as run:
        assert next(run).text == "1\n"
        with pytest.raises(StreamError, match="has not ended"):
            _ = run.result
    with manager.get_runtime("python").stream_code("print(1); 1 / 0") as run:
        texts = {chunk.stream: chunk.text for chunk in run}
    assert texts["stdout"] == "1\n"
    assert (run.result.outcome, run.live) == (Outcome.USER_ERROR, True)


def test_a_streamed_run_must_be_entered(manager: sync.RuntimeManager) -> None:
    with pytest.raises(StreamError, match="must be entered first"):
        next(manager.stream_code("1", "python"))


@pytest.mark.parametrize("fails", [False, True])
def test_a_manager_can_be_closed_in_the_block_of_a_streamed_run(fake: FakeFaaS, fails: bool) -> None:
    """The end of the block hides no error."""
    fake.script(Reply(hang=True))
    manager = sync.RuntimeManager.from_url(fake.url, timeouts=TimeoutSettings(close_s=0.01))
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext(), manager.stream_code("1", "python"):
        manager.close()
        if fails:
            _ = 1 / 0
