"""Overload of the embedded FaaS: ten times as many programs as it can run at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig, Settings
from faasrt.local import LocalFaaS
from faasrt.local.engines.engine import EngineJob, EngineResult
from support.helpers import PATIENT, Clock, until_active, url_of
from support.served import PATIENCE_S, Caller, is_gone, sandboxes, served, suspended, until

pytestmark = pytest.mark.servers

Answer = tuple[int, Any, Any]


async def post(session: aiohttp.ClientSession, url: str, body: Any) -> Answer:
    async with session.post(f"{url}/run_code", json=body) as response:
        return response.status, await response.json(), response.headers


def check_answers(answers: list[Answer]) -> list[int]:
    """Check that each answer is the right result or a proper refusal. Return the numbers of the programs that ran."""
    ran = []
    for number, (status, body, headers) in enumerate(answers):
        if status == 200:
            assert (body["outcome"], body["output"]["stdout"]) == ("OK", f"{number}\n")
            ran.append(number)
        else:
            assert (status, body["error"]) == (429, "overloaded")
            assert "no sandbox became free" in body["details"]
            assert headers["x-faasrt-not-started"] == "1"
            assert int(headers["Retry-After"]) > 0
    return ran


SLOW = {
    "python": "import time\ntime.sleep(0.6)\nprint({})",
    "javascript": "await new Promise((r) => setTimeout(r, 600)); console.log({})",
    "typescript": "await new Promise((r: () => void) => setTimeout(r, 600)); console.log({})",
}
COMMENT = {"python": "\n#", "javascript": "\n//", "typescript": "\n//"}


@pytest.mark.parametrize("engine", ["native", "wasm"])
@pytest.mark.usefixtures("wasm_sandbox")
async def test_overload_is_refused_and_accepted_programs_are_right(tmp_path: Path, engine: str) -> None:
    """In each of two waves, programs get the right result or a 429 before execution.

    The metrics count the same executions and refusals, and the server's memory does not grow.
    """
    arguments = ("--workers", "1", "--max-programs", "2", "--engine", f"python={engine}")
    ran: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    rss = []
    async with (
        served(
            tmp_path,
            *arguments,
            wait_for=("python is ready", "javascript is ready"),
        ) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        for _ in range(2):
            waves = {}
            for language, capacity in {"python": 2, "javascript": 2}.items():
                bodies = [
                    {
                        "language": language,
                        "code": SLOW[language].format(number) + COMMENT[language] + "x" * 100_000,
                    }
                    for number in range(10 * capacity)
                ]
                waves[language] = asyncio.gather(*(post(session, server.url, body) for body in bodies))
            for language, wave in waves.items():
                answers = await wave
                accepted = len(check_answers(answers))
                assert 0 < accepted < len(answers)
                ran[language] += accepted
                refused[language] += len(answers) - accepted
            rss.append(psutil.Process(server.process.pid).memory_info().rss)
        engines = (await server.get("/metrics"))["engines"]
        for language, name in (("python", engine), ("javascript", "deno")):
            assert engines[name]["executions"] == {language: {"OK": ran[language]}}
            assert engines[name]["refused"] == refused[language]
            assert engines[name]["failed"] == 0
        assert rss[1] - rss[0] < 16 * 2**20
        assert len(server.sandboxes("deno")) <= 2 * 2
        assert len(server.sandboxes(engine)) <= (2 if engine == "wasm" else 4)


@pytest.mark.parametrize("language", ["javascript", "typescript"])
async def test_refused_programs_never_run(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine gets the programs of the answers with 200, and no others. Each runs in its own process."""
    async with (
        LocalFaaS([language], workers=1, queue_timeout_s=1) as faas,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        await faas.wait_ready(language)
        engine = faas.engine(language)
        assert engine is not None
        execute, executed = engine.execute, []

        async def execute_and_count(job: EngineJob) -> EngineResult:
            executed.append(job.code)
            return await execute(job)

        monkeypatch.setattr(engine, "execute", execute_and_count)
        bodies = [{"language": language, "code": SLOW[language].format(number)} for number in range(40)]
        answers = await asyncio.gather(*(post(session, faas.url, body) for body in bodies))
    ran = check_answers(answers)
    assert 0 < len(ran) < len(answers)
    assert sorted(executed) == sorted(bodies[number]["code"] for number in ran)
    assert len({answers[number][1]["metadata"]["instance_id"] for number in ran}) == len(ran)


async def test_a_program_that_keeps_a_pipe_full_ends_at_its_time_limit() -> None:
    """One process of it fills stderr, and another one works. It is ended although the event loop is blocked."""
    code = """
import os
if not os.fork():
    while True:
        os.write(2, b"x")
while True:
    pass
"""
    limits = SandboxConfig(max_output_bytes=64 * 2**20)
    async with RuntimeManager.local(["python"], workers=1, sandbox=limits) as manager:
        assert (await manager.run_code("print(1)", "python")).ok
        await until_idle(manager, "python", 1)
        waiting = sandboxes([psutil.Process()], "native")
        run = asyncio.create_task(manager.run_code(code, "python", timeout_ms=4_000))
        await until(lambda: any(map(children_of, waiting)))
        program = next(process for process in waiting if children_of(process))
        block_until(lambda: is_gone(program))
        result = await run
    assert (result.outcome, result.stdout) == (Outcome.TIMEOUT, ""), result


def block_until(condition: Callable[[], bool]) -> None:
    """Block the event loop until a condition is true."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


async def until_idle(manager: RuntimeManager, language: str, count: int) -> None:
    """Wait until this number of processes wait for programs."""
    url = url_of(manager)
    await Caller(url).until_pool(language, idle=count, active=0)


def children_of(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children()
    return []


LIMIT_MS = 30_000
# How many processes end by themselves: of both engines the one with the TIMEOUT, and of native Python that with a short
# output. The others wait for the server. A worker of the engine wasm outlives its programs.
ENDING = {"deno": 1, "native": 2}


@pytest.mark.parametrize("engine", ["native", "wasm"])
@pytest.mark.usefixtures("wasm_sandbox")
async def test_a_busy_server_reports_exactly_the_programs_that_did_not_end_in_time_as_timeouts(
    engine: str, clock: Clock
) -> None:
    """The event loop of the server is blocked from before the programs begin until after their time limit.

    The long outputs do not fit into a pipe, so that their programs have to wait for the server. The programs with a
    TIMEOUT never end, and have a short limit.
    """
    limits = SandboxConfig(max_output_bytes=200_000)
    programs = [
        ("python", "print(1)", Outcome.OK, 2),
        ("python", "import sys; print('x' * 150_000); sys.exit(3)", Outcome.USER_ERROR, 150_001),
        ("python", "print('x' * 450_000)", Outcome.OUTPUT_LIMIT, 200_000),
        ("python", "import time; time.sleep(600)", Outcome.TIMEOUT, 0),
        ("js", "console.log(1)", Outcome.OK, 2),
        ("js", "console.log('x'.repeat(150_000)); Deno.exit(3)", Outcome.USER_ERROR, 150_001),
        ("js", "console.log('x'.repeat(450_000))", Outcome.OUTPUT_LIMIT, 200_000),
        ("js", "setTimeout(() => {}, 600_000)", Outcome.TIMEOUT, 0),
    ]
    settings = Settings(timeouts=PATIENT)
    async with RuntimeManager.local(workers=4, engines={"python": engine}, settings=settings) as manager:

        async def run(language: str, code: str, timeout_ms: float = LIMIT_MS) -> ExecutionResult:
            return await manager.run_code(code, language, timeout_ms=timeout_ms, sandbox=limits)

        # As many processes are warm as programs run at once.
        for language in ("python", "javascript"):
            await asyncio.gather(*(run(language, SLOW[language].format(1)) for _ in range(4)))
            await until_idle(manager, language, 4)
        with suspended(psutil.Process()):
            started = {name: sandboxes([psutil.Process()], name) for name in ENDING}
            runs = [
                asyncio.create_task(run(language, code, 1_000 if outcome is Outcome.TIMEOUT else LIMIT_MS))
                for language, code, outcome, _ in programs
            ]
            await asyncio.gather(until_active(manager, "python", 4), until_active(manager, "javascript", 4))
        block_until(lambda: all(sum(map(is_gone, started[name])) >= ENDING[name] for name in ENDING if started[name]))
        clock.advance(LIMIT_MS / 1000 + 5)
        clock.stop()  # from now on, all time has passed while the event loop was blocked
        results = await asyncio.gather(*runs)
    assert [result.outcome for result in results] == [outcome for _, _, outcome, _ in programs]
    assert [len(result.stdout) for result in results] == [size for _, _, _, size in programs]
