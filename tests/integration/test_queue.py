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
)
from faasrt.testing import FakeFaaS, Reply
from support.helpers import NO_WAIT, Clock, fast_forward, manager_for
from support.served import until
from support.servers import holding_faas


async def until_queued(manager: RuntimeManager, count: int) -> None:
    await until(lambda: manager.get_metrics().queued >= count)


async def test_a_thousand_calls_may_wait_by_default() -> None:
    """While a server with a capacity of 8 runs 8 programs, 992 calls wait."""
    async with holding_faas({"python": 8}) as (url, arrived, _), manager_for(url) as manager:
        calls = [asyncio.create_task(manager.run_code("print(1)", "python")) for _ in range(1_000)]
        await until(lambda: len(arrived) == 8 and manager.get_metrics().queued == 992)
        for call in calls:
            call.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError}
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued, len(arrived)) == (0, 0, 8)


async def test_calls_beyond_the_capacity_succeed() -> None:
    """300 concurrent calls to a server with a capacity of 8 all succeed in one attempt each."""
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.health = {"pool_status": {"config": {"maxSize": 8}}}
        faas.capacity, faas.default = 8, Reply(delay_s=0.001)
        results = await asyncio.gather(*(manager.run_code("print(1)", "python") for _ in range(300)))
        assert all(result.ok for result in results)
        assert {result.attempts for result in results} == {1}
        assert (faas.executions, faas.peak) == (300, 8)


async def test_the_deadline_starts_with_the_permit(clock: Clock) -> None:
    """A call that waits in the queue for longer than its deadline still runs, with its full time limit."""
    limiter = LimiterSettings(max_concurrency=1)
    async with FakeFaaS() as faas, manager_for(faas.url, clock=clock, limiter=limiter) as manager:
        faas.default = Reply(delay_s=10)
        calls = (manager.run_code("1", "python", timeout_ms=100) for _ in range(5))
        results = await fast_forward(clock, asyncio.gather(*calls))
        assert all(result.ok for result in results)
        assert max(result.timings.queued_s for result in results) > 35  # `grace_s` is 30
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
async def test_waiting_calls_fail_when_the_breaker_opens(failure: str, error: type[FaasrtError], clock: Clock) -> None:
    """Without `connect_retry_s`, waiting calls raise the last error of an endpoint that is down, with `sent="no"`."""
    async with FakeFaaS() as faas, manager_for(faas.url, envelope="never", retry=NO_WAIT, clock=clock) as manager:
        faas.default = Reply(status=500, delay_s=0.05) if failure == "failing" else Reply()
        if failure == "down":
            faas.down()
        calls = (manager.run_code("1", "python") for _ in range(100))
        errors: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(found) for found in errors} == {error}
        never_sent = [found for found in errors if found.attempts == 0]
        assert len(never_sent) > 70
        assert {(found.sent, found.endpoint) for found in never_sent} == {("no", faas.url)}
        assert manager.get_metrics().queued == 0
        # Later calls probe the endpoint again.
        faas.default = Reply()
        await faas.up()
        clock.advance(60)
        assert (await manager.run_code("1", "python")).ok


async def test_a_cancelled_probe_does_not_fail_waiting_calls(clock: Clock) -> None:
    """Only a failure of the endpoint fails the calls that wait for it."""
    limiter = LimiterSettings(max_concurrency=1)
    async with FakeFaaS() as faas, manager_for(faas.url, envelope="never", limiter=limiter, clock=clock) as manager:
        faas.default = Reply(status=500)
        for _ in range(BreakerSettings().consecutive_failures):
            with pytest.raises(ServerError):
                await manager.run_code("1", "python")
        assert manager.get_metrics().states[0].breaker == "open"
        faas.default = Reply(hang=True)
        clock.advance(60)
        probe = asyncio.create_task(manager.run_code("1", "python", timeout_ms=100))
        await faas.wait_until(lambda: faas.in_flight == 1)
        waiting = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(5)]
        await until_queued(manager, 5)
        faas.default = Reply()
        probe.cancel()
        await asyncio.wait([probe])
        clock.advance(3)  # its program counts until its time limit
        assert all(result.ok for result in await asyncio.gather(*waiting))


async def test_call_fails_at_once_if_abandoned_calls_fill_the_limit(clock: Clock) -> None:
    """If the breaker is open and no call is in flight, a new call does not wait, but raises the last error."""
    async with FakeFaaS() as faas, manager_for(faas.url, retry=NO_WAIT, clock=clock) as manager:
        faas.health = {"capabilities": {"cancels_on_disconnect": False}, "pool_status": {"config": {"maxSize": 5}}}
        faas.default = Reply(hang=True)
        # They stay abandoned for as long as their time limit.
        calls = asyncio.gather(
            *(manager.run_code("1", "python", timeout_ms=30_000) for _ in range(5)), return_exceptions=True
        )
        await faas.wait_until(lambda: faas.in_flight == 5)
        clock.advance(61)
        await calls
        (state,) = manager.get_metrics().states
        assert (state.breaker, state.in_flight, state.abandoned) == ("open", 0, 5)
        with pytest.raises(DeadlineExceededError) as caught:
            await manager.run_code("1", "python", timeout_ms=30_000)
        assert (caught.value.attempts, caught.value.sent) == (0, "no")
