"""The start of `RuntimeManager.local`. If it fails or is cancelled, the next call starts the embedded FaaS again."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest

from faasrt import (
    ConfigurationError,
    LimiterSettings,
    QueueFullError,
    RuntimeClosedError,
    RuntimeManager,
    Settings,
)
from faasrt.local import LocalFaaS

pytestmark = pytest.mark.servers


class CancelledAt:
    """Awaits a coroutine, and cancels its task at some of its waits, which are counted from 1."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waits: set[int]) -> None:
        self._coroutine = coroutine
        self._waits = waits
        self.count = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        error: BaseException | None = None
        while True:
            try:
                awaited = next(inner) if error is None else inner.throw(error)
            except StopIteration as end:
                return end.value
            self.count += 1
            if self.count in self._waits:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                error = None
                yield awaited
            except BaseException as raised:
                error = raised


async def run(awaitable: CancelledAt) -> None:
    await awaitable


def server_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "faasrt-local"]


@pytest.mark.parametrize("waits", [{1}, {2}, {3}, {1, 2}, {1, 2, 3}], ids=str)
@pytest.mark.parametrize("method", ["get_runtime", "run_code", "get_health_status", "__aenter__"])
async def test_a_start_can_be_cancelled_at_any_await(method: str, waits: set[int]) -> None:
    """The next call works, and after closing no task of either start is left."""
    arguments = {"get_runtime": ["js"], "run_code": ["1", "js"]}.get(method, [])
    manager = RuntimeManager.local(["js"], workers=1)
    try:
        first = CancelledAt(getattr(manager, method)(*arguments), waits)
        ended = await asyncio.gather(run(first), return_exceptions=True)
        assert isinstance(ended[0], asyncio.CancelledError) or first.count < min(waits)
        assert (await manager.run_code("console.log(1)", "js")).stdout == "1\n"
    finally:
        await manager.aclose()
    async with asyncio.timeout(30):
        while server_tasks():  # a start that is cancelled twice ends in the background
            await asyncio.wait(server_tasks())


async def test_a_waiting_call_takes_over_a_cancelled_start() -> None:
    """Calls that wait for the start by the first call succeed, although the first call is cancelled."""
    async with asyncio.timeout(60):
        manager = RuntimeManager.local(["js"], workers=1)
        calls = [asyncio.create_task(manager.run_code(f"console.log({n})", "js")) for n in range(3)]
        while not server_tasks():
            await asyncio.sleep(0)
        calls[0].cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert [result.stdout for result in found[1:] if not isinstance(result, BaseException)] == ["1\n", "2\n"]
        await manager.aclose()
        assert not server_tasks()


async def test_a_failed_start_can_be_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says why. When the cause is removed, the same manager works."""
    manager = RuntimeManager.local(iter(["js"]), workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="temporary"):
                await manager.run_code("1", "js")
    async with manager:
        assert (await manager.run_code("console.log(1)", "js")).stdout == "1\n"
        assert [str(language) for language in manager.get_supported_languages()] == ["javascript"]
    assert not server_tasks()


async def test_a_missing_deno_binary_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `deno` may be installed without its binary."""
    import deno

    def missing() -> str:
        raise FileNotFoundError("/nowhere/deno")

    monkeypatch.setattr(deno, "find_deno_bin", missing)
    with pytest.raises(ConfigurationError, match=r"binary of Deno is missing .*nowhere.*reinstall"):
        async with RuntimeManager.local(["js"]):
            raise AssertionError


@pytest.mark.parametrize("before", ["", "validate", "reconfigure", "run", "close"])
async def test_a_cold_manager_has_the_queue_limits_of_a_warm_one(before: str) -> None:
    """It knows the capacity before the first call."""
    settings = Settings(limiter=LimiterSettings(max_queue=3))
    async with RuntimeManager.local(["js"], workers=1, max_programs=4, settings=settings) as manager:
        if before == "validate":
            assert (await manager.validate_code("1", "js")).valid
        elif before == "reconfigure":
            await manager.reconfigure(attrs.evolve(settings, limiter=LimiterSettings(max_queue=5)))
            await manager.reconfigure(settings)
        elif before:
            await manager.run_code("1", "js")
        if before == "close":
            await manager.close_runtimes()
        calls = [asyncio.create_task(manager.run_code("setInterval(() => {}, 1_000)", "js")) for _ in range(20)]
        refused, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        while len(refused) < 13:
            done, _ = await asyncio.wait(set(calls) - refused, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        metrics = manager.get_metrics()
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert (metrics.in_flight, metrics.queued, [state.limit for state in metrics.states]) == (4, 3, [4])
    assert sum(isinstance(result, QueueFullError) for result in results) == 13


async def test_a_server_has_the_health_that_it_reports() -> None:
    async with LocalFaaS(["js"], workers=1) as faas, aiohttp.ClientSession() as session:
        await faas.wait_ready("js")
        async with session.get(f"{faas.url}/health") as answer:
            uptime_s = {"uptime_s": 0}
            assert await answer.json() | uptime_s == json.loads(json.dumps(faas.health() | uptime_s))
    with pytest.raises(RuntimeClosedError):
        faas.health()
