"""The engine `wasm` reads the messages of its workers, even of workers into which a program has escaped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faasrt import Language
from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.wasm.worker_process import WasmWorker
from faasrt.local.errors import TOO_BUSY, EngineError
from faasrt.local.process import STDOUT
from faasrt.protocol.execution_limits import ExecutionLimits

LIMITS = ExecutionLimits(timeout_ms=60_000, memory_limit_mb=128, max_output_bytes=1_000)
JOB = EngineJob(language=Language.PYTHON, code="", limits=LIMITS)
BEGAN = b'{"began": true}\n'


def answer(stdout: str) -> bytes:
    return json.dumps({"result": {"outcome": "OK", "stdout": stdout, "files": {}}}).encode() + b"\n"


class Child:
    """A worker process that sends what the test says."""

    def __init__(self) -> None:
        self.pid, self.returncode, self.alive, self.killed = 1, -9, True, False
        self.ended = asyncio.Event()
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
        self.on_message(json.loads(data))

    def kill(self) -> None:
        if not self.killed:
            self.killed = True
            self.on_end()
            self.also_on_end()


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
        b'{"result": 1}\n',
        b'{"result": {"outcome": "FINE", "files": {}}}\n',
        b"x" * 100_000_000,
    ],
    ids=["no JSON", "no object", "a list", "a deep list", "no result", "an unknown outcome", "no end"],
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
        (b'{"output": "eA==", "fd": 9}\n', []),
        (b'{"unknown": 1, "began": false}\n', []),
    ],
    ids=["a snapshot that does not exist", "output without a stream", "an unknown message"],
)
async def test_other_messages_do_not_end_the_program(child: Child, data: bytes, discarded: list[Any]) -> None:
    worker = WasmWorker(child, Path("folder"), discard=(seen := list[Any]()).append)
    child.on_message = lambda message: child.send(BEGAN + data + answer("mine"))
    assert (await worker.execute(JOB)).stdout == "mine"
    assert (child.killed, seen) == (False, discarded)


async def test_a_program_that_waited_for_a_cpu_for_too_long_costs_no_worker(child: Child) -> None:
    """The message names the machine, not the sandbox."""
    worker = WasmWorker(child, Path("folder"), discard=lambda tier: None)
    child.on_message = lambda message: child.send(BEGAN + b'{"too_busy": true}\n')
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
    child.on_message = lambda message: child.send(answer("mine"))
    if not child.killed:
        assert (await worker.execute(JOB)).stdout == "mine"
