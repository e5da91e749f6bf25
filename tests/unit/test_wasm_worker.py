"""A worker of the engine `wasm` on a machine that is too busy to run its programs."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from faasrt.local.engines.wasm import worker_sessions
from faasrt.local.engines.wasm.bridge import HostBridge, read_result
from faasrt.local.engines.wasm.instance import Ended
from faasrt.local.engines.wasm.output import Stop
from faasrt.local.engines.wasm.program_clock import ProgramClock
from faasrt.local.engines.wasm.worker_sessions import Interrupter, WorkerSessions
from faasrt.local.errors import TooBusyError
from faasrt.local.jail.launcher.scheduling import IS_WAIT_KNOWN
from faasrt.results import Outcome

JOB = {"max_output_bytes": 1_000, "kept_bytes": 1_000}
SESSION_LIMITS = {"memory_limit_mb": 128}
RUN = {**JOB, "code": "", "timeout_ms": 60_000, "max_wall_factor": 10, "live": False}
STOPPED = Ended(exit_code=None, trapped="cancelled", memory_bytes=0)


class Clock(ProgramClock):
    """A clock that a test sets."""

    elapsed_s = counted_s = 0.0  # type: ignore[assignment]


class Instance:
    """The instance of a session, whose program waits for a CPU until it is ended."""

    def set_stdin(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def interrupt(self) -> None: ...

    def run(self, source: bytes, *, host: HostBridge, cancel: Stop, clock: ProgramClock, **options: Any) -> Ended:
        clock.begin()
        host(b"job")
        while not cancel.is_set() and not clock.is_late:
            time.sleep(0.001)  # takes no CPU time, and does not count as a wait of the program itself
        return STOPPED


class Sandbox:
    def open_session(self, *arguments: Any) -> Instance:
        return Instance()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Send a message for a session; return the answer, unless there is none."""
    monkeypatch.setattr(worker_sessions, "use_large_stacks", lambda: None)
    answers = queue.SimpleQueue[dict[str, Any]]()
    sessions = WorkerSessions(cast(Any, Sandbox()), lambda **message: answers.put(message))

    def send(*, has_answer: bool = True, **message: Any) -> dict[str, Any]:
        sessions.take(1, message)
        return answers.get(timeout=60) if has_answer else {}

    assert send(open=SESSION_LIMITS, files={}) == {"session": 1, "opened": True}
    return lambda **message: send(**message) if message else answers.get(timeout=60)


def run_of(clock: ProgramClock, ended: Ended = STOPPED, *requests: bytes, **options: Any) -> dict[str, Any]:
    """Return the fields of the result of a program that makes requests, and is stopped."""
    bridge = HostBridge(JOB, threading.Event(), clock, on_begin=lambda: None, **options)

    def run(**options: Any) -> Ended:
        for request in requests:
            bridge(request)
        return ended

    return read_result(bridge, run, memory_bytes=2**27)[0]


@pytest.mark.skipif(not IS_WAIT_KNOWN, reason="the clock is that of the machine")
def test_the_clock_of_a_thread_that_has_ended() -> None:
    """It can still be read. A worker cancels runs that have just ended, and must not fail then."""
    clock = ProgramClock(60)
    thread = threading.Thread(target=clock.begin)
    thread.start()
    thread.join()
    task = Path(f"/proc/self/task/{thread.native_id}")
    while task.exists():  # `join` returns sooner
        time.sleep(0.001)
    interrupter = Interrupter(cast(Any, Instance()), 60, clock)
    interrupter.set()
    assert 0 <= clock.counted_s <= clock.elapsed_s
    assert not interrupter.is_set()


def test_a_cancelled_run_that_gets_no_cpu_ends_its_session(
    session: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller waits for this, so it does not take until the time that counts is over. Other sessions go on."""
    monkeypatch.setattr(worker_sessions, "CANCEL_WALL_S", 0.01)
    assert session(**RUN)["began"]
    session(cancel=True, has_answer=False)
    assert session()["ended"] == "a run was cancelled and could not be interrupted"


def test_only_a_cancelled_run_ends_by_wall_clock_time() -> None:
    """After another limit, the session ends by the time that counts, which does not depend on the machine."""
    clock = Clock(60)
    interrupter = Interrupter(cast(Any, Instance()), 60, clock)
    interrupter.set()
    clock.elapsed_s = 1_000.0
    assert not interrupter.is_set()
    interrupter.cancel()
    assert not interrupter.is_set()
    clock.elapsed_s += worker_sessions.CANCEL_WALL_S
    assert interrupter.is_set()


def test_a_run_on_a_machine_that_is_too_busy_ends_its_session(
    session: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says so, and the failure is not that of its sandbox."""
    monkeypatch.setattr(worker_sessions, "wall_limit_s", lambda limit_s, factor: -math.inf)
    assert session(**RUN)["began"]
    assert session() == {"session": 1, "too_busy": True}


def test_a_program_that_reaches_another_limit_is_not_a_victim_of_the_machine() -> None:
    """If an output limit, or the time limit of a session, ends it near the limit of the wall-clock time, the outcome
    is that of its own limit.
    """
    late = ProgramClock(60, wall_s=0.0)
    late.begin()
    with pytest.raises(TooBusyError):
        run_of(late)
    assert run_of(late, STOPPED, b"output_limit")["outcome"] is Outcome.OUTPUT_LIMIT
    cut = Ended(exit_code=None, trapped="cancelled", memory_bytes=0, truncated=("stdout",))
    assert run_of(late, cut)["outcome"] is Outcome.OUTPUT_LIMIT
    run_of(late, timed_out=lambda: True)  # the session sets the outcome


def test_the_wait_of_a_program_is_never_negative() -> None:
    """The clock goes on between its two readings, even if all of the time counts."""
    clock = Clock(60)
    clock.elapsed_s, clock.counted_s = 1.0, 1.000_5
    assert run_of(clock, Ended(exit_code=0, trapped=None, memory_bytes=0))["waited_ms"] == 0
