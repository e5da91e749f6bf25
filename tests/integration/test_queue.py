"""Waiting for a permit: any number of calls by default, in order, and never for a server that is gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faasrt import (
    BreakerSettings,
    ConnectError,
    DeadlineExceededError,
    FaasrtError,
    LimiterSettings,
    QueueFullError,
    RuntimeClosedError,
    RuntimeManager,
    ServerError,
    TimeoutSettings,
)
from faasrt.testing import FakeFaas, Reply
from support.helpers import manager_for


async def until_queued(manager: RuntimeManager, count: int) -> None:
    while manager.get_metrics().queued < count:
        await asyncio.sleep(0.001)


async def test_gather_works_by_default() -> None:
    """2,500 calls at once, on a server that runs 8: each has its turn."""
    async with FakeFaas() as faas, manager_for(faas.url) as manager:
        faas.health = {"pool_status": {"config": {"maxSize": 8}}}
        faas.capacity, faas.default = 8, Reply(delay_s=0.001)
        results = await asyncio.gather(*(manager.run_code("print(1)", "python") for _ in range(2_500)))
        assert all(result.ok for result in results)
        assert {result.attempts for result in results} == {1}
        assert (faas.executions, faas.peak) == (2_500, 8)


async def test_the_deadline_starts_with_the_permit() -> None:
    """Calls that wait for longer than their own time are served all the same, with their whole time."""
    async with (
        FakeFaas() as faas,
        manager_for(
            faas.url, limiter=LimiterSettings(max_concurrency=1), timeouts=TimeoutSettings(grace_s=0.2)
        ) as manager,
    ):
        faas.default = Reply(delay_s=0.1)
        calls = (manager.run_code("1", "python", timeout_ms=100) for _ in range(8))
        results = await asyncio.gather(*calls)
        assert all(result.ok for result in results)
        assert max(result.timings.queued_s for result in results) > 0.5
        assert {request["timeout"] for request in faas.requests} == {100}


async def test_closing_fails_the_calls_that_wait() -> None:
    """At once, while the call in flight gets its time; nothing of them was sent."""
    async with FakeFaas() as faas:
        manager = manager_for(faas.url, limiter=LimiterSettings(max_concurrency=1))
        faas.default = Reply(delay_s=0.3)
        held = asyncio.create_task(manager.run_code("1", "python"))
        while not faas.in_flight:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(manager.run_code("2", "python")) for _ in range(20)]
        await until_queued(manager, 20)
        closing = asyncio.create_task(manager.aclose())
        done, _ = await asyncio.wait(waiting, return_when=asyncio.ALL_COMPLETED)
        assert not held.done()
        assert {type(task.exception()) for task in done} == {RuntimeClosedError}
        assert (await held).ok
        await closing
        assert faas.executions == 1
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued) == (0, 0)


async def test_clearing_the_cache_waits_for_the_calls_that_wait() -> None:
    """They were accepted, so they run."""
    async with FakeFaas() as faas, manager_for(faas.url, limiter=LimiterSettings(max_concurrency=1)) as manager:
        faas.default = Reply(delay_s=0.05)
        calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(5)]
        await until_queued(manager, 4)
        await manager.clear_cache()
        assert all(task.done() and task.result().ok for task in calls)


@pytest.mark.parametrize(("gone", "error"), [("down", ConnectError), ("failing", ServerError)])
async def test_a_dead_server_hangs_no_call(gone: str, error: type[FaasrtError]) -> None:
    """Once its breaker is open, the calls that wait get the last error; they were not sent."""
    async with FakeFaas() as faas, manager_for(faas.url, envelope="never") as manager:
        faas.default = Reply(status=500, delay_s=0.05) if gone == "failing" else Reply()
        if gone == "down":
            faas.down()
        calls = (manager.run_code("1", "python") for _ in range(500))
        errors: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(found) for found in errors} == {error}
        never_sent = [found for found in errors if found.attempts == 0]
        assert len(never_sent) > 400
        assert {(found.sent, found.endpoint) for found in never_sent} == {("no", faas.url)}
        assert manager.get_metrics().queued == 0
        # It is tried again, by the calls that come next.
        faas.default = Reply()
        await faas.up()
        while True:
            try:
                assert (await manager.run_code("1", "python")).ok
                break
            except error:
                await asyncio.sleep(0.01)


async def test_a_cancelled_probe_fails_nobody() -> None:
    """Only a failure of the endpoint fails the calls that wait for it."""
    breaker = BreakerSettings(base_open_s=0.05, max_open_s=0.05)
    async with (
        FakeFaas() as faas,
        manager_for(faas.url, envelope="never", breaker=breaker, limiter=LimiterSettings(max_concurrency=1)) as manager,
    ):
        faas.default = Reply(status=500)
        for _ in range(breaker.consecutive_failures):
            with pytest.raises(ServerError):
                await manager.run_code("1", "python")
        assert manager.get_metrics().states[0].state == "open"
        faas.default = Reply(delay_s=60)
        await asyncio.sleep(0.2)
        probe = asyncio.create_task(manager.run_code("1", "python", timeout_ms=2_000))
        await faas.wait_until(lambda: faas.in_flight == 1)
        waiting = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(5)]
        await until_queued(manager, 5)
        faas.default = Reply()
        probe.cancel()
        assert all(result.ok for result in await asyncio.gather(*waiting))


async def test_a_server_full_of_abandoned_calls_hangs_no_call() -> None:
    """With its breaker open and no call in flight, a call that finds no room gets the last error at once."""
    async with FakeFaas() as faas:
        timeouts = TimeoutSettings(grace_s=0.05)
        async with manager_for(faas.url, timeouts=timeouts) as manager:
            faas.health = {
                "capabilities": {"cancels_on_disconnect": False},
                "pool_status": {"config": {"maxSize": 5}},
            }
            faas.default = Reply(hang=True)
            calls = (manager.run_code("1", "python", timeout_ms=60) for _ in range(5))
            await asyncio.gather(*calls, return_exceptions=True)
            (state,) = manager.get_metrics().states
            assert (state.state, state.in_flight) == ("open", 0)
            assert state.abandoned == 5
            with pytest.raises(DeadlineExceededError) as caught:
                await manager.run_code("1", "python", timeout_ms=30_000)
            assert (caught.value.attempts, caught.value.sent) == (0, "no")


async def test_a_bounded_queue() -> None:
    """`max_queue` refuses at once, `queue_timeout_s` after a while; both only when they are set."""
    limiter = LimiterSettings(max_concurrency=1, max_queue=2, queue_timeout_s=0.1)
    async with FakeFaas() as faas, manager_for(faas.url, limiter=limiter) as manager:
        assert (await manager.run_code("1", "python")).ok
        faas.default = Reply(delay_s=0.5)
        held = asyncio.create_task(manager.run_code("1", "python"))
        while not faas.in_flight:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(2)]
        await until_queued(manager, 2)
        with pytest.raises(QueueFullError):
            await manager.run_code("1", "python")
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in errors] == [DeadlineExceededError] * 2
        assert (await held).ok
