"""Calls wait for endpoints that are down, for `connect_retry_s`, and the code of each still runs at most once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from faasrt import (
    BreakerSettings,
    CodeTask,
    CompletedTask,
    ConnectError,
    LimiterSettings,
    OverloadedError,
    RetrySettings,
    RuntimeClosedError,
    RuntimeManager,
    ServerError,
    TimeoutSettings,
)
from faasrt.testing import FakeFaaS, Reply
from support.helpers import Clock, fast_forward, manager_for
from support.served import until

LONG = RetrySettings(connect_retry_s=60)
"""For a busy machine."""
BREAKER = BreakerSettings(base_open_s=0.5)


async def is_open(manager: RuntimeManager) -> None:
    await until(lambda: any(state.breaker == "open" for state in manager.get_metrics().states))


async def test_a_batch_survives_a_restart_of_its_only_server() -> None:
    """No task of 300 is lost, and each program runs once, although the server first refuses calls, and then is down."""
    count, ran, stopping = 300, list[str](), asyncio.Event()
    close = {"Connection": "close"}  # a request on an idle connection that the server resets may have been sent

    def answer(body: dict[str, Any]) -> Reply:
        if stopping.is_set():
            return Reply(status=503, retry_after=1, not_started=True, headers=close)
        ran.append(body["code"])
        return Reply(stdout=body["code"], delay_s=0.02, headers=close)

    async with FakeFaaS() as faas, manager_for(faas.url, retry=LONG, breaker=BREAKER) as manager:
        faas.handler = answer

        async def restart() -> None:
            await until(lambda: len(ran) > count // 4)
            stopping.set()
            await until(lambda: not manager.get_metrics().total.in_flight)  # all calls wait for `Retry-After`
            faas.down()
            await is_open(manager)
            stopping.clear()
            await faas.up()

        restarting = asyncio.create_task(restart())
        tasks = (CodeTask(f"{number}", "python") for number in range(count))
        items = [item async for item in manager.map(tasks, concurrency=64)]
        await restarting
        assert [item for item in items if not isinstance(item, CompletedTask)] == []
        assert {item.result.stdout for item in items} == {str(number) for number in range(count)}  # type: ignore[union-attr]
        assert Counter(ran) == Counter(str(number) for number in range(count))
        # The calls in flight at the end of the server made further attempts, and then only probes did.
        assert manager.get_metrics().total.attempts < count + 100


async def advance_until(clock: Clock, condition: Callable[[], bool]) -> None:
    while not condition():
        clock.advance(0.1)
        await asyncio.sleep(0.005)


async def test_a_batch_survives_twenty_seconds_without_its_only_server(clock: Clock) -> None:
    """With the default settings, no call is lost that was never sent: python-faas listens up to 20 s after its start.
    That is within the deadline of a call with the default time limit.
    """
    async with FakeFaaS() as faas, manager_for(faas.url, clock=clock, timeouts=TimeoutSettings()) as manager:
        faas.down()
        calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(60)]
        started = clock()
        await advance_until(clock, lambda: clock() > started + 20)
        assert not any(call.done() for call in calls)
        await faas.up()
        await advance_until(clock, lambda: faas.executions > 0)
        assert all(result.ok for result in await asyncio.gather(*calls))
        assert faas.executions == 60


async def test_each_outage_has_a_wait_of_its_own(clock: Clock) -> None:
    """A call that meets two restarts of its only server waits for the server both times."""
    retry = RetrySettings(idempotent=True)
    async with FakeFaaS() as faas, manager_for(faas.url, clock=clock, retry=retry) as manager:
        faas.handler = lambda body: Reply(hang=faas.executions == 0)
        faas.down()
        call = asyncio.create_task(manager.run_code("1", "python"))
        await advance_until(clock, lambda: manager.get_metrics().total.attempts > 3)
        await faas.up()
        await advance_until(clock, lambda: faas.executions == 1)
        clock.advance(retry.connect_retry_s)
        attempts = manager.get_metrics().total.attempts
        faas.down()
        await advance_until(clock, lambda: call.done() or manager.get_metrics().total.attempts > attempts + 3)
        await faas.up()
        result = await fast_forward(clock, call, 0.1)
        assert (result.ok, faas.executions) == (True, 2)


async def test_calls_that_wait_for_a_group_make_no_attempts() -> None:
    """Of 200 calls to two servers that are down, those that wait make no attempts. All end once one server is up."""
    async with FakeFaaS() as one, FakeFaaS() as other:
        manager = RuntimeManager.from_url({"python": [one.url, other.url]}, retry=LONG, breaker=BREAKER)
        async with manager:
            one.down()
            other.down()
            calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(200)]
            await is_open(manager)
            await until(lambda: {state.breaker for state in manager.get_metrics().states} == {"open"})
            await one.up()
            assert all(result.ok for result in await asyncio.gather(*calls))
            assert (one.executions, other.executions) == (200, 0)
            assert manager.get_metrics().total.attempts < 300


async def test_a_dead_server_is_an_error_after_the_wait(unused_tcp_port: int, clock: Clock) -> None:
    """The error of a call names the endpoint, its attempts and its time, whether it was retried or waited."""
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with manager_for(url, clock=clock) as manager:
        calls = [manager.run_code("1", "python") for _ in range(50)]
        errors: list[Any] = await fast_forward(clock, asyncio.gather(*calls, return_exceptions=True), 0.1)
        assert {type(error) for error in errors} == {ConnectError}
        assert {(error.sent, error.endpoint) for error in errors} == {("no", url)}
        assert all(str(error).startswith("cannot connect") and url in str(error) for error in errors)
        assert max(error.attempts for error in errors) > 1
        waited = [error for error in errors if error.attempts == 0]
        assert waited
        assert all(error.elapsed_s >= 29 for error in waited)
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued) == (0, 0)


@pytest.mark.parametrize("ending", ["deadline", "queue timeout", "cancellation", "closing"])
async def test_a_wait_for_a_server_ends_early(ending: str, unused_tcp_port: int, clock: Clock) -> None:
    """The wait ends at the deadline of a call that has made an attempt, and with `queue_timeout_s`, and frees all."""
    options: dict[str, Any] = {"retry": LONG, "timeouts": TimeoutSettings(grace_s=5, close_s=0.1)}
    if ending == "queue timeout":
        options["limiter"] = LimiterSettings(queue_timeout_s=5)
        options["timeouts"] = TimeoutSettings(health_s=5)
    async with manager_for(f"http://127.0.0.1:{unused_tcp_port}", clock=clock, **options) as manager:
        timeout_ms = 5_000 if ending == "deadline" else None
        calls = [asyncio.create_task(manager.run_code("1", "python", timeout_ms=timeout_ms)) for _ in range(6)]
        if ending in ("cancellation", "closing"):
            await is_open(manager)
            await until(lambda: manager.get_metrics().queued > 0)
        if ending == "cancellation":
            for call in calls:
                call.cancel()
        if ending == "closing":
            await manager.aclose()
        ends = await fast_forward(clock, asyncio.gather(*calls, return_exceptions=True), 0.1)
        expected = {"cancellation": asyncio.CancelledError, "closing": RuntimeClosedError}.get(ending, ConnectError)
        assert {type(end) for end in ends} == {expected}
        assert all(end.sent == "no" and end.elapsed_s < 50 for end in ends if isinstance(end, ConnectError))
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued) == (0, 0)


async def test_a_server_that_starts_or_stops_is_awaited_but_not_one_that_is_full() -> None:
    """A 503 that says that nothing was started is retried more than three times. A 429 is not."""
    not_started, full = Reply(status=503, retry_after=0, not_started=True), Reply.overloaded("0")
    async with FakeFaaS() as faas, manager_for(faas.url, retry=LONG) as manager:
        faas.script(not_started, not_started, not_started, not_started, full, full)
        result = await manager.run_code("1", "python")
        assert (result.attempts, faas.executions) == (7, 1)
        faas.script(not_started, not_started, full, full, full)
        with pytest.raises(OverloadedError) as caught:
            await manager.run_code("1", "python")
        assert (caught.value.attempts, caught.value.status, faas.scripted) == (5, 429, 0)


async def test_waiting_calls_do_not_fail_with_others() -> None:
    """If the breaker of the only server opens, calls that wait for a permit wait on until a probe closes it."""
    options: dict[str, Any] = {"retry": LONG, "breaker": BREAKER, "limiter": LimiterSettings(max_concurrency=5)}
    async with FakeFaaS() as faas, manager_for(faas.url, envelope="never", **options) as manager:
        faas.script(*[Reply.crash(502)] * 5)
        calls = (manager.run_code("1", "python") for _ in range(50))
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(end, ServerError) for end in ends) == 5
        assert {end.attempts for end in ends if not isinstance(end, BaseException)} == {1}
        assert faas.executions == 50
