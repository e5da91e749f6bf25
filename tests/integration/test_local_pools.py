"""The warm processes of the embedded FaaS: their number follows demand, and killed ones are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from faasrt import ConnectionLostError, Outcome, RuntimeManager, SandboxConfig, Session
from faasrt.local.engines import warm_pool
from faasrt.local.engines.deno.run import DenoRun
from faasrt.local.engines.jailed_run import JailedRun
from faasrt.local.jail.jail import Jail, JailedProcess
from support.helpers import Clock, skip_without, until_active
from support.served import LANGUAGES, PATIENCE_S, at_work_in, is_gone, sandboxes, trace, until, with_word

pytestmark = pytest.mark.servers

MIN_IDLE = {"native": 2, "wasm": 1, "deno": 2}
WAIT = {"python": "import time; time.sleep(600)", "javascript": "await new Promise((r) => setTimeout(r, 600_000))"}
PRINT = {"python": "print({})", "javascript": "console.log({})"}


@pytest.fixture(params=LANGUAGES)
def engine(request: pytest.FixtureRequest, wasm_sandbox: None) -> str:
    name: str = request.param
    return name


@pytest_asyncio.fixture
async def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> AsyncIterator[RuntimeManager]:
    """A manager with three workers, whose pools shrink soon after the demand falls."""
    monkeypatch.setattr(warm_pool, "PEAK_DECAY_S", 0.1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in trace(tmp_path).items():
        monkeypatch.setenv(name, value)
    limits = SandboxConfig(timeout_limit_s=300)
    async with RuntimeManager.local(workers=3, engines={LANGUAGES[engine]: engine}, sandbox=limits) as manager:
        await asyncio.gather(*(manager.get_runtime(language) for language in WAIT))
        yield manager


def processes(folder: Path, engine: str) -> list[psutil.Process]:
    return sandboxes(at_work_in(folder, psutil.Process().children()), engine)


async def until_at_rest(manager: RuntimeManager, folder: Path, engine: str) -> None:
    """Wait until the pool has its minimum of idle processes, and `/health` reports the same number."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            shown = (await manager.get_health_status()).endpoints[0].details["languages"][LANGUAGES[engine]]
            if shown["status"] == "ready" and shown["idle"] == MIN_IDLE[engine] == len(processes(folder, engine)):
                return
            await asyncio.sleep(0.05)


async def test_the_pool_follows_demand(manager: RuntimeManager, tmp_path: Path, engine: str) -> None:
    """Without demand the pool has few processes. Then many programs run at once, and afterwards it shrinks again."""
    language = LANGUAGES[engine]
    for _ in range(2):
        await until_at_rest(manager, tmp_path, engine)
        count = 3 if language == "python" else 9
        calls = [asyncio.create_task(manager.run_code(WAIT[language], language)) for _ in range(count)]
        await until_active(manager, language, count)
        await until(lambda: len(processes(tmp_path, engine)) >= count)  # noqa: B023
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        results = await asyncio.gather(
            *(manager.run_code(PRINT[language].format(number), language) for number in range(count))
        )
        assert [result.stdout for result in results] == [f"{number}\n" for number in range(count)]


async def test_killed_idle_processes_are_replaced(manager: RuntimeManager, tmp_path: Path, engine: str) -> None:
    """After all idle processes are killed three times, the pool is full again, and programs run."""
    for _ in range(3):
        await until_at_rest(manager, tmp_path, engine)
        victims = processes(tmp_path, engine)
        for victim in victims:
            victim.kill()
        await until(lambda: all(is_gone(victim) for victim in victims))  # noqa: B023
    await until_at_rest(manager, tmp_path, engine)
    language = LANGUAGES[engine]
    assert (await manager.run_code(PRINT[language].format(1), language)).stdout == "1\n"


@pytest.mark.parametrize("what", ["its process", "its launcher"])
@pytest.mark.parametrize("language", ["python", "js"])
async def test_a_program_whose_sandbox_ends_before_it_begins_runs_in_another_one(
    language: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds for a program whose files are collected, for which the server asks the launcher."""
    open_folder, send = JailedProcess.open_folder, Jail.send
    failures: list[str] = []

    async def open_folder_too_late(self: JailedProcess) -> Any:
        if not failures:
            failures.append(what)
            self.kill()
            await self.ended.wait()
        return await open_folder(self)

    def send_too_late(self: Jail, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        if not failures and "start" not in message and "folder" not in message:
            failures.append(what)
            raise BrokenPipeError(errno.EPIPE, "the other end is closed")
        send(self, message, descriptors)

    if what == "its process":
        monkeypatch.setattr(JailedProcess, "open_folder", open_folder_too_late)
    else:
        monkeypatch.setattr(Jail, "send", send_too_late)
    code = {"python": "open('a', 'w').write('1')", "js": "Deno.writeTextFileSync('a', '1')"}[language]
    async with RuntimeManager.local([language], workers=1) as manager:
        result = await manager.run_code(code, language, 30_000, collect=["a"])
    assert failures == [what]
    assert (result.outcome, result.files, result.attempts) == (Outcome.OK, {"a": b"1"}, 1), result


@pytest.mark.parametrize("engine", ["native"], indirect=True)
async def test_a_finished_run_is_freed_without_the_garbage_collector(manager: RuntimeManager) -> None:
    """A run holds megabytes of output, so no reference cycle may keep it."""
    gc.collect()
    gc.disable()
    try:
        for language, code, outcome in (
            ("javascript", "console.log(1)", "OK"),
            ("javascript", "for (;;) console.log('x'.repeat(1e5))", "OUTPUT_LIMIT"),
            ("python", "print(1)", "OK"),
            ("python", "while True: print('x' * 10**5)", "OUTPUT_LIMIT"),
        ):
            assert (await manager.run_code(code, language)).outcome.value == outcome
        await until(lambda: not [thing for thing in gc.get_objects() if isinstance(thing, (DenoRun, JailedRun))])
    finally:
        gc.enable()


async def test_a_tier_of_packages_ends_after_ten_minutes_without_programs(clock: Clock) -> None:
    """Its launcher has imported the packages, and so uses memory. It stays while a session is open there. A later
    program starts the tier again.
    """
    skip_without("numpy")
    code = "import sys; print('numpy' in sys.modules)"
    async with RuntimeManager.local(["python"], workers=1) as manager:

        async def run_in_tier() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while (await manager.run_code(code, "python", idempotent=True)).stdout != "True\n":
                    await asyncio.sleep(0.01)

        async def open_in_tier() -> Session:
            while True:
                session = await manager.session("python", idle_timeout_s=3000).__aenter__()
                if (await session.run_code(code)).stdout == "True\n":
                    return session
                await session.aclose()  # no process was warm in the tier

        await manager.get_runtime("python")
        others = {*launchers()}
        for _ in range(2):
            await run_in_tier()
            (tier,) = {*launchers()} - others
            for _ in range(3):
                clock.advance(400)
                await run_in_tier()
            assert {*launchers()} - others == {tier}
            async with await open_in_tier() as session:
                clock.advance(601)
                with contextlib.suppress(ConnectionLostError):  # the server closes connections that are idle
                    await session.run_code("print(1)")
                assert (await session.run_code("print(1)")).stdout == "1\n"
            clock.advance(601)
            await until(lambda: is_gone(tier))  # noqa: B023


def launchers() -> list[psutil.Process]:
    return with_word(psutil.Process().children(), "import socket")
