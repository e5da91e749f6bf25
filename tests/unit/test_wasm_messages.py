"""The engine `wasm` reads the messages of its workers, even of workers into which a program has escaped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from faasrt import Language, Outcome
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.wasm import worker_process
from faasrt.local.engines.wasm.worker_process import WasmWorker
from faasrt.local.errors import TOO_BUSY, EngineError
from faasrt.local.process import STDOUT
from faasrt.protocol.execution_limits import ExecutionLimits

LIMITS = ExecutionLimits(timeout_ms=60_000, memory_limit_mb=128, max_output_bytes=1_000)
JOB = EngineJob(language=Language.PYTHON, code="", limits=LIMITS)
BEGAN = b'{"program": 1, "began": true}\n'


def answer(stdout: str, program: int = 1) -> bytes:
    result = {"outcome": "OK", "stdout": stdout, "files": {}}
    return json.dumps({"program": program, "result": result}).encode() + b"\n"


class Child:
    """A worker process that sends what the test says."""

    def __init__(self) -> None:
        self.pid, self.returncode, self.alive, self.killed = 1, -9, True, False
        self.ended = asyncio.Event()
        self.messages: list[dict[str, Any]] = []
        self.on_message: Callable[[dict[str, Any]], None] = lambda message: None
        self.also_on_end: Callable[[], None] = lambda: None

    def receive(self, on_output: Callable[[int, bytes], None], on_end: Callable[[], None]) -> None:
        self.on_output, self.on_end = on_output, on_end

    def when_ended(self, function: Callable[[], None]) -> None:
        self.also_on_end = function

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), 2**20):
            if not self.killed:
                self.on_output(STDOUT, data[start : start + 2**20])

    def write(self, data: bytes) -> None:
        message = json.loads(data)
        self.messages.append(message)
        self.on_message(message)

    def kill(self) -> None:
        if not self.killed:
            self.killed = True
            self.on_end()
            self.also_on_end()

    async def end(self) -> None:
        self.kill()


@pytest.fixture
async def child() -> Child:
    return Child()


@pytest.mark.parametrize(
    "data",
    [
        b"x\n",
        b"1\n",
        b"[]\n",
        b"[" * 10**5 + b"\n",
        b'{"program": [], "began": true}\n',
        b'{"program": 1, "counted_s": "x"}\n',
        b'{"program": 1, "result": 1}\n',
        b'{"program": 1, "result": {"outcome": "FINE", "files": {}}}\n',
        b"x" * 100_000_000,
    ],
    ids=[
        *("no JSON", "no object", "a list", "a deep list", "no number", "no time", "no result", "an unknown outcome"),
        "no end",
    ],
)
async def test_a_worker_that_sends_a_malformed_message_is_killed(child: Child, data: bytes) -> None:
    """Its program gets an error, because it has begun."""
    worker = WasmWorker(child, Path("folder"), discard=lambda tier: None)
    child.on_message = lambda message: child.send(BEGAN + data)
    with pytest.raises(EngineError):
        await worker.execute(JOB)
    assert child.killed


@pytest.mark.parametrize(
    ("data", "discarded"),
    [
        (b'{"discard": "../x"}\n{"discard": []}\n', ["../x", []]),
        (b'{"program": 1, "output": "eA==", "fd": 9}\n', []),
        (b'{"program": 1, "unknown": 1, "began": false}\n{"unknown": 1}\n', []),
        (answer("mine", program=2), []),
    ],
    ids=["a snapshot that does not exist", "output without a stream", "unknown messages", "another program"],
)
async def test_other_messages_do_not_end_the_program(child: Child, data: bytes, discarded: list[Any]) -> None:
    worker = WasmWorker(child, Path("folder"), discard=(seen := list[Any]()).append)
    child.on_message = lambda message: child.send(BEGAN + data + answer("mine"))
    assert (await worker.execute(JOB)).stdout == "mine"
    assert (child.killed, seen) == (False, discarded)


async def test_a_program_that_waited_for_a_cpu_for_too_long_costs_no_worker(child: Child) -> None:
    """The message names the machine, not the sandbox."""
    worker = WasmWorker(child, Path("folder"), discard=lambda tier: None)
    child.on_message = lambda message: child.send(BEGAN + b'{"program": 1, "too_busy": true}\n')
    with pytest.raises(EngineError) as caught:
        await worker.execute(JOB)
    assert (str(caught.value), child.killed) == (TOO_BUSY, False)


@pytest.mark.parametrize("answers_after", range(4))
@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_program_leaves_no_answer_to_the_next(child: Child, turns: int, answers_after: int) -> None:
    """A call is cancelled twice, the second time while its program is being stopped. Then the worker has either sent
    its answer, or is killed.
    """
    worker = WasmWorker(child, Path("folder"), discard=lambda tier: None)
    loop = asyncio.get_running_loop()

    def after(turns: int, data: bytes) -> None:
        loop.call_soon(after, turns - 1, data) if turns else child.send(data)

    def stop(message: dict[str, Any]) -> None:
        if "cancel" in message:
            after(answers_after, answer("secret"))

    child.on_message = stop
    call = asyncio.create_task(worker.execute(JOB))
    await asyncio.sleep(0)
    call.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    child.on_message = lambda message: child.send(answer("mine", message["program"]))
    if not child.killed:
        assert (await worker.execute(JOB)).stdout == "mine"


@contextlib.asynccontextmanager
async def beside_another(
    child: Child, job: EngineJob = JOB
) -> AsyncIterator[tuple[WasmWorker, asyncio.Task[EngineResult], asyncio.Task[EngineResult]]]:
    """Yield a worker, the call of a program in it, and that of another program, which has begun and runs on."""
    worker = WasmWorker(child, Path("folder"), discard=lambda tier: None)
    call, other = asyncio.create_task(worker.execute(job)), asyncio.create_task(worker.execute(JOB))
    while worker.programs < 2:
        await asyncio.sleep(0)
    child.send(BEGAN + BEGAN.replace(b"1", b"2"))
    yield worker, call, other
    other.cancel()
    child.kill()
    await asyncio.wait([other])


async def test_answers_belong_to_their_programs(child: Child) -> None:
    """Whatever their order."""
    async with beside_another(child) as (worker, call, other):
        child.send(answer("second", 2) + answer("first", 1))
        assert [(await each).stdout for each in (call, other)] == ["first", "second"]
        assert (worker.is_used, worker.broken, child.killed) == (False, False, False)


async def test_a_cancelled_program_harms_no_other(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not end soon after it was cancelled keeps its process only while callers wait for others."""
    monkeypatch.setattr(worker_process, "CANCEL_TIMEOUT_S", 0.0)
    async with beside_another(child) as (worker, call, other):
        child.send(b'{"ready": "3.15"}\n')
        await worker.until_ready()
        call.cancel()
        await asyncio.wait([call])
        assert child.messages[-1] == {"program": 1, "cancel": True}
        child.send(answer("mine", 2))
        assert ((await other).stdout, child.killed, worker.is_idle) == ("mine", False, False)
        child.send(answer("late", 1))
        assert worker.is_idle


def job_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> EngineJob:
    """Return a job about which the server asks at once, and again and again."""
    monkeypatch.setattr(worker_process, "_LOOK_S", 0.001)
    monkeypatch.setattr(worker_process, "_READ_S", 0.001)
    monkeypatch.setattr(worker_process, "ANSWER_GRACE_S", 0.001)
    return attrs.evolve(JOB, limits=attrs.evolve(LIMITS, timeout_ms=1))


async def test_a_program_that_cannot_be_ended_harms_no_other(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker says that the program is over its limit, and does not end it. The process ends with the last of the
    other programs.
    """
    job = job_at_its_limit(monkeypatch)

    def report(message: dict[str, Any]) -> None:
        if "look" in message:
            child.send(json.dumps({"program": message["program"], "counted_s": 0.01}).encode() + b"\n")

    child.on_message = report
    async with beside_another(child, job) as (worker, call, other):
        assert (await call).outcome is Outcome.TIMEOUT
        assert (worker.broken, worker.has_room, child.killed) == (True, False, False)
        child.send(answer("mine", 2))
        assert (await other).stdout == "mine"
        assert child.killed


async def test_a_program_that_waits_for_the_worker_gets_its_time(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the worker says that less than the limit counts, the program is not given up, however long it takes."""
    job = job_at_its_limit(monkeypatch)

    def report(message: dict[str, Any]) -> None:
        if "look" in message:
            looks = sum("look" in each for each in child.messages)
            child.send(b'{"program": 1, "counted_s": 0.0005}\n' if looks < 100 else answer("mine"))

    child.on_message = report
    async with beside_another(child, job) as (worker, call, _):
        assert ((await call).stdout, worker.broken) == ("mine", False)


@pytest.mark.parametrize("alone", [True, False])
async def test_only_a_program_that_ran_alone_can_have_crashed_the_process(child: Child, *, alone: bool) -> None:
    """Else the failure is that of the machine, because another program may have caused it."""
    child.returncode = -signal.SIGSEGV
    async with beside_another(child) as (_, call, other):
        if alone:
            child.send(answer("mine", 2))
            await other
        child.kill()
        if alone:
            assert (await call).outcome is Outcome.CRASHED
        else:
            for each in (call, other):
                with pytest.raises(EngineError, match="process ended"):
                    await each


async def test_a_worker_whose_sandbox_failed_runs_no_more_programs(child: Child) -> None:
    """Those that it has go on."""
    async with beside_another(child) as (worker, call, other):
        child.send(b'{"program": 1, "failed": "RuntimeError: no memory"}\n')
        with pytest.raises(EngineError, match="no memory"):
            await call
        assert (worker.broken, child.killed) == (True, False)
        child.send(answer("mine", 2))
        assert (await other).stdout == "mine"
        assert child.killed
