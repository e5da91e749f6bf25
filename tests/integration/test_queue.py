"""Calls that wait for a permit: by default without limits, in order, and not for an endpoint that is down."""

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
    RuntimeClosedError,
    RuntimeManager,
    ServerError,
    TimeoutSettings,
)
from faasrt.testing import FakeFaaS, Reply
from support.helpers import NO_WAIT, manager_for
from support.holding import holding_faas
from support.served import until


async def until_queued(manager: RuntimeManager, count: int) -> None:
    while manager.get_metrics().queued < count:
        await asyncio.sleep(0.001)


async def test_thousands_of_calls_may_wait_by_default() -> None:
    """2,500 concurrent calls to a server with a capacity of 8 all succeed in one attempt each."""
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.health = {"pool_status": {"config": {"maxSize": 8}}}
        faas.capacity, faas.default = 8, Reply(delay_s=0.001)
        results = await asyncio.gather(*(manager.run_code("print(1)", "python") for _ in range(2_500)))
        assert all(result.ok for result in results)
        assert {result.attempts for result in results} == {1}
        assert (faas.executions, faas.peak) == (2_500, 8)


async def test_the_deadline_starts_with_the_permit() -> None:
    """A call that waits in the queue for longer than its deadline still runs, with its full time limit."""
    async with (
        FakeFaaS() as faas,
        manager_for(
            faas.url, limiter=LimiterSettings(max_concurrency=1), timeouts=TimeoutSettings(grace_s=2.9)
        ) as manager,
    ):
        faas.default = Reply(delay_s=0.4)
        calls = (manager.run_code("1", "python", timeout_ms=100) for _ in range(9))
        results = await asyncio.gather(*calls)
        assert all(result.ok for result in results)
        assert max(result.timings.queued_s for result in results) > 3
        assert {request["timeout"] for request in faas.requests} == {100}


async def test_closing_fails_waiting_calls() -> None:
    """Waiting calls raise RuntimeClosedError at once, and are not sent. The call in flight still gets its answer."""
    async with holding_faas() as (url, arrived, go_on):
        manager = manager_for(url, limiter=LimiterSettings(max_concurrency=1))
        held = asyncio.create_task(manager.run_code("1", "python"))
        await until(lambda: arrived)
        waiting = [asyncio.create_task(manager.run_code("2", "python")) for _ in range(20)]
        await until_queued(manager, 20)
        closing = asyncio.create_task(manager.aclose())
        await until(lambda: all(task.done() for task in waiting))
        assert {type(task.exception()) for task in waiting} == {RuntimeClosedError}
        go_on.set()
        assert (await held).ok
        await closing
        assert len(arrived) == 1
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued) == (0, 0)


async def test_close_runtimes_waits_for_waiting_calls() -> None:
    """Calls that wait for a permit still run."""
    async with FakeFaaS() as faas, manager_for(faas.url, limiter=LimiterSettings(max_concurrency=1)) as manager:
        faas.default = Reply(delay_s=0.05)
        calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(5)]
        await until_queued(manager, 4)
        await manager.close_runtimes()
        assert all(task.done() and task.result().ok for task in calls)


@pytest.mark.parametrize(("failure", "error"), [("down", ConnectError), ("failing", ServerError)])
async def test_waiting_calls_fail_when_the_breaker_opens(failure: str, error: type[FaasrtError]) -> None:
    """Without `connect_retry_s`, waiting calls raise the last error of an endpoint that is down, with `sent="no"`."""
    async with FakeFaaS() as faas, manager_for(faas.url, envelope="never", retry=NO_WAIT) as manager:
        faas.default = Reply(status=500, delay_s=0.05) if failure == "failing" else Reply()
        if failure == "down":
            faas.down()
        calls = (manager.run_code("1", "python") for _ in range(500))
        errors: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(found) for found in errors} == {error}
        never_sent = [found for found in errors if found.attempts == 0]
        assert len(never_sent) > 400
        assert {(found.sent, found.endpoint) for found in never_sent} == {("no", faas.url)}
        assert manager.get_metrics().queued == 0
        # Later calls probe the endpoint again.
        faas.default = Reply()
        await faas.up()
        while True:
            try:
                assert (await manager.run_code("1", "python")).ok
                break
            except error:
                await asyncio.sleep(0.01)


async def test_a_cancelled_probe_does_not_fail_waiting_calls() -> None:
    """Only a failure of the endpoint fails the calls that wait for it."""
    breaker = BreakerSettings(base_open_s=0.05, max_open_s=0.05)
    async with (
        FakeFaaS() as faas,
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


async def test_call_fails_at_once_if_abandoned_calls_fill_the_limit() -> None:
    """If the breaker is open and no call is in flight, a new call does not wait, but raises the last error."""
    async with FakeFaaS() as faas:
        timeouts = TimeoutSettings(grace_s=0.05)
        async with manager_for(faas.url, timeouts=timeouts, retry=NO_WAIT) as manager:
            faas.health = {
                "capabilities": {"cancels_on_disconnect": False},
                "pool_status": {"config": {"maxSize": 5}},
            }
            faas.default = Reply(hang=True)
            # They stay abandoned for as long as their time limit, which a busy machine must not exceed here.
            calls = (manager.run_code("1", "python", timeout_ms=3_000) for _ in range(5))
            await asyncio.gather(*calls, return_exceptions=True)
            (state,) = manager.get_metrics().states
            assert (state.state, state.in_flight) == ("open", 0)
            assert state.abandoned == 5
            with pytest.raises(DeadlineExceededError) as caught:
                await manager.run_code("1", "python", timeout_ms=30_000)
            assert (caught.value.attempts, caught.value.sent) == (0, "no")
