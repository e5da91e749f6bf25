"""Many programs of the engine `wasm` at once, in one worker process: WebAssembly separates them from each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig
from faasrt.local.jail.launcher.scheduling import AGES, IS_WAIT_KNOWN
from support.helpers import PATIENT, WASM, until_active
from support.served import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("wasm_sandbox")]

WAIT = "print('begun', flush=True); import time; time.sleep(600)"
LOOP = "print('begun', flush=True)\nwhile True: pass"


def one_worker() -> RuntimeManager:
    """Return a manager with one worker process, and another one for sessions."""
    limits = SandboxConfig(timeout_limit_s=600)
    return RuntimeManager.local(["python"], workers=1, engines=WASM, sandbox=limits, timeouts=PATIENT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(wasm_sandbox: None) -> AsyncIterator[RuntimeManager]:
    async with one_worker() as manager:
        yield manager


@contextlib.asynccontextmanager
async def running(manager: RuntimeManager, count: int, code: str) -> AsyncIterator[None]:
    """Run programs that do not end by themselves, and that have begun, beside the block."""
    begun = asyncio.Semaphore(0)

    async def run() -> None:
        async with manager.stream_code(code, "python") as run:
            async for _ in run:
                begun.release()

    calls = [asyncio.create_task(run()) for _ in range(count)]
    try:
        for _ in calls:
            await begun.acquire()
        yield
    finally:
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


def process_of(*results: ExecutionResult) -> psutil.Process:
    """Return the process that has run all of these programs."""
    (name,) = {str(result.metadata["instance_id"]) for result in results}
    return psutil.Process(int(name.removeprefix("wasm-")))


async def test_many_programs_run_at_once_in_one_process(manager: RuntimeManager) -> None:
    """More than there are workers. Those that wait and compute do not keep others from running. They end with their
    calls, and the process goes on.
    """
    before = process_of(await manager.run_code("print(1)", "python"))
    async with running(manager, 8, WAIT), running(manager, 2, LOOP):
        assert process_of(await manager.run_code("print(1)", "python")) == before
        await until_active(manager, "python", 10)
    await until_active(manager, "python", 0)
    assert process_of(await manager.run_code("print(1)", "python")) == before


async def test_each_program_has_its_own_input(manager: RuntimeManager) -> None:
    """And those without input have none."""
    inputs = ["" if number % 3 == 0 else f"{number}\n" * number for number in range(60)]
    code = "import sys; print(sys.stdin.read(), end='')"
    results = await asyncio.gather(*(manager.run_code(code, "python", stdin=text) for text in inputs))
    assert [result.stdout for result in results] == inputs


HOSTILE = {
    "data = []\nwhile True: data.append(bytearray(10**6))": Outcome.MEMORY_LIMIT,
    "x = bytearray(10**9)": Outcome.MEMORY_LIMIT,
    "while True: print('x' * 10**5)": Outcome.OUTPUT_LIMIT,
    "import os; os._exit(7)": Outcome.CRASHED,
    "def f(n): return list(map(f, [n]))\ntry: f(1)\nexcept RecursionError: print('deep')": Outcome.OK,
    "while True: pass": Outcome.TIMEOUT,
    "import time; time.sleep(600)": Outcome.TIMEOUT,
}


async def test_programs_that_end_at_limits_or_crash_harm_no_others(manager: RuntimeManager) -> None:
    """Each gets its own verdict, and those beside them are OK, in the same process."""
    code = "import time\nfor _ in range(20): time.sleep(0.02); sum(range(10_000))\nprint('right')"
    hostile, right = await asyncio.gather(
        asyncio.gather(*(manager.run_code(code, "python", timeout_ms=1_000) for code in HOSTILE)),
        asyncio.gather(*(manager.run_code(code, "python") for _ in range(10))),
    )
    assert dict(zip(HOSTILE, [result.outcome for result in hostile], strict=True)) == HOSTILE
    assert [(result.outcome, result.stdout) for result in right] == [(Outcome.OK, "right\n")] * 10
    process_of(*hostile, *right)


async def test_a_program_sees_nothing_of_another_that_runs(manager: RuntimeManager) -> None:
    """Neither its modules, nor its environment, nor its files."""
    leave = (
        "import os, sys, random; sys.secret = 'FOUND' * 1000; os.environ['SECRET'] = 'FOUND'; random.seed(1)\n"
        "open('found', 'w').write('FOUND'); print(os.getpid(), flush=True)\nwhile True: pass"
    )
    look = "import os, sys; print(hasattr(sys, 'secret'), 'SECRET' in os.environ, os.path.exists('found'))"
    async with running(manager, 3, f"{leave}  # matplotlib, so that it has a folder"):
        result = await manager.run_code(look, "python", collect=["found"])
    assert (result.stdout, result.stderr, dict(result.files)) == ("False False False\n", "", {})


@pytest.mark.skipif(not IS_WAIT_KNOWN, reason="needs the times and priorities of threads")
async def test_the_priority_of_a_program_sinks_and_that_of_others_does_not(manager: RuntimeManager) -> None:
    """Its thread sinks as it uses CPU time. The other threads of its process keep their priority."""
    process = process_of(await manager.run_code("print(1)", "python"))

    def lowered() -> list[int]:
        stats = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/stat")]
        return sorted({int(stat.rpartition(")")[2].split()[16]) - process.nice() for stat in stats})

    assert lowered() == [0]
    async with running(manager, 1, LOOP), running(manager, 1, WAIT):
        await until(lambda: lowered() == [0, AGES[-1][1]])
        assert (await manager.run_code("print(1)", "python")).stdout == "1\n"
    await until(lambda: lowered() == [0])


async def test_a_session_gets_a_process_of_its_own_while_programs_run() -> None:
    """The programs go on, and another process runs later ones."""
    async with one_worker() as manager:
        async with running(manager, 2, WAIT), manager.session("python") as session:
            in_session = process_of(await session.run_code("x = 1"))
            assert process_of(await manager.run_code("print(1)", "python")) != in_session
            assert (await session.run_code("print(x)")).stdout == "1\n"
        assert (await manager.run_code("print(1)", "python")).stdout == "1\n"
