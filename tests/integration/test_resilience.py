"""Never twice, never late, never lost: the client against servers and networks that fail in every way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest

from faasrt import (
    BreakerSettings,
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    FaasrtError,
    LimiterSettings,
    OverloadedError,
    RetrySettings,
    RuntimeManager,
    ServerError,
    ServiceError,
    Settings,
    TimeoutSettings,
)
from faasrt.telemetry.events import CallFinished, EndpointChanged, RetryScheduled
from faasrt.testing import FakeFaas, FaultProxy, Reply, Toxics
from support.helpers import manager_for

QUICK = RetrySettings(base_delay_s=0.001, max_delay_s=0.002, throttled_base_delay_s=0.001, throttled_max_delay_s=0.002)


@contextlib.asynccontextmanager
async def fleet(count: int, **settings: Any) -> AsyncIterator[tuple[RuntimeManager, list[FakeFaas]]]:
    """A manager with several replicas for Python."""
    async with contextlib.AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(FakeFaas()) for _ in range(count)]
        endpoints = {"python": [fake.url for fake in fakes]}
        options = {"retry": QUICK, **settings}
        manager = RuntimeManager(settings=Settings(endpoints=endpoints, **options))
        yield await stack.enter_async_context(manager), fakes


async def outcome_of(call: Any) -> Any:
    try:
        return await call
    except FaasrtError as error:
        return error


async def test_at_most_once_at_every_byte_of_a_request() -> None:
    """Wherever the connection breaks while the request is on its way, the code ran once at most."""
    async with fleet(1) as (manager, (fake,)):
        await manager.run_code("print(1)", "python")
        size = 600
        for offset in range(size):
            fake.script(Reply(reset_on_request_byte=offset))
            before = fake.executions
            error = await outcome_of(manager.run_code("print(1)", "python"))
            assert isinstance(error, ConnectionLostError), (offset, error)
            assert (error.sent, error.attempts) == ("maybe", 1)
            assert fake.executions - before <= 1


async def test_at_most_once_at_every_byte_of_an_answer() -> None:
    """Wherever the connection breaks while the answer is on its way, the code is not sent again."""
    async with fleet(1) as (manager, (fake,)):
        errors = results = 0
        for offset in range(480):
            reply = Reply(stdout="x", reset_after=offset)
            fake.handler = lambda body, reply=reply: reply  # type: ignore[misc]
            before, requests = fake.executions, len(fake.requests)
            found = await outcome_of(manager.run_code("print(1)", "python"))
            # None, when the connection that it was sent on had just been reset behind the answer before.
            assert fake.executions - before == len(fake.requests) - requests <= 1, offset
            if isinstance(found, ServiceError):
                errors += 1
                assert isinstance(found, ConnectionLostError), (offset, found)
                assert (found.sent, found.attempts) == ("maybe", 1)
            else:
                results += 1
                assert found.stdout == "x"
        # The last offsets lie behind the answer: then it has come.
        assert errors > 300
        assert results > 0


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply.crash(), ServerError),
        (Reply.crash(502), ServerError),
        (Reply.crash(504), ServerError),
        (Reply.unavailable(), OverloadedError),
        (Reply(reset_after=0), ConnectionLostError),
        (Reply(reset_after=30), ConnectionLostError),
    ],
)
async def test_what_may_have_run_runs_again_only_if_it_may(reply: Reply, error: type[ServiceError]) -> None:
    """By default it is raised after one attempt; with `idempotent` the next attempt gives the result."""
    timeouts = TimeoutSettings(grace_s=0.5)
    async with fleet(1, timeouts=timeouts) as (manager, (fake,)):
        fake.script(reply)
        with pytest.raises(error) as caught:
            await manager.run_code("1", "python", timeout_ms=50)
        assert (caught.value.attempts, len(fake.requests)) == (1, 1)
        fake.script(reply)
        result = await manager.run_code("1", "python", timeout_ms=50, idempotent=True)
        assert (result.ok, result.attempts, len(fake.requests)) == (True, 2, 3)
    async with fleet(1, timeouts=timeouts, retry=attrs.evolve(QUICK, idempotent=True)) as (manager, (fake,)):
        fake.script(reply)
        assert (await manager.run_code("1", "python", timeout_ms=50)).ok
        fake.script(reply)
        with pytest.raises(error):
            await manager.run_code("1", "python", timeout_ms=50, idempotent=False)


async def test_a_server_that_hangs_uses_up_the_call() -> None:
    """Attempts share one deadline, so that nothing is left for a retry, whether the code may run again or not."""
    async with fleet(1, timeouts=TimeoutSettings(grace_s=0.1)) as (manager, (fake,)):
        for idempotent in (False, True):
            fake.script(Reply(hang=True))
            with pytest.raises(DeadlineExceededError) as caught:
                await manager.run_code("1", "python", timeout_ms=50, idempotent=idempotent)
            assert (caught.value.attempts, caught.value.sent) == (1, "maybe")


@pytest.mark.parametrize("reply", [Reply.overloaded(), Reply.overloaded("0"), Reply.unavailable("0")])
async def test_what_cannot_have_run_is_tried_again(reply: Reply) -> None:
    """A refusal before execution is no reason to fail; three attempts are."""
    async with fleet(1) as (manager, (fake,)):
        fake.script(reply, reply)
        result = await manager.run_code("1", "python")
        assert (result.attempts, fake.executions, len(result.timings.attempts)) == (3, 1, 3)
        fake.script(reply, reply, reply)
        with pytest.raises(OverloadedError) as caught:
            await manager.run_code("1", "python")
        assert caught.value.attempts == 3


async def test_the_users_own_failure_is_never_tried_again() -> None:
    """Neither a timeout nor an error of the code, nor a request that is refused as wrong."""
    async with fleet(1) as (manager, (fake,)):
        for reply in (Reply(outcome="TIMEOUT"), Reply(outcome="USER_ERROR"), Reply(status=408), Reply(status=400)):
            fake.script(reply)
            before = len(fake.requests)
            await outcome_of(manager.run_code("1", "python", idempotent=True))
            assert len(fake.requests) - before == 1


async def test_events_and_metrics_tell_of_retries() -> None:
    """A retry is an event with its wait, and counted; the endpoint's state is there to see."""
    seen: list[Any] = []
    async with fleet(1) as (manager, (fake,)):
        await manager.run_code("1", "python")
        manager._factory._emit._sinks += (seen.append,)
        fake.script(Reply.overloaded("0"))
        await manager.run_code("1", "python")
        metrics = manager.get_metrics()
    retries = [event for event in seen if isinstance(event, RetryScheduled)]
    assert [(event.attempt, event.error, event.endpoint) for event in retries] == [(1, "OverloadedError", fake.url)]
    assert 0 <= retries[0].wait_s < 0.1
    assert metrics.total.retries == 1
    (state,) = metrics.states
    assert (state.endpoint, state.family, state.state, state.in_flight) == (fake.url, "python", "closed", 0)


async def test_no_storm_on_a_dead_fleet() -> None:
    """A thousand calls make ten retries; when it is back, so is the throughput, at once."""
    async with fleet(2) as (manager, fakes):
        for fake in fakes:
            fake.down()
        results = await asyncio.gather(*(outcome_of(manager.run_code("1", "python")) for _ in range(1_000)))
        assert {type(result) for result in results} == {ConnectError}
        assert {result.sent for result in results} == {"no"}
        assert manager.get_metrics().total.attempts <= 1_010
        for fake in fakes:
            await fake.up()
        results = await asyncio.gather(*(outcome_of(manager.run_code("1", "python")) for _ in range(100)))
        assert all(not isinstance(result, FaasrtError) and result.ok for result in results)


TOXICS: dict[str, tuple[str, Toxics]] = {
    "slow request": ("upstream", Toxics(latency_s=60)),
    "slow answer": ("downstream", Toxics(latency_s=60)),
    "swallowed request": ("upstream", Toxics(timeout=True)),
    "swallowed answer": ("downstream", Toxics(timeout=True)),
    "dripping request": ("upstream", Toxics(bandwidth_bytes_per_s=5)),
    "dripping answer": ("downstream", Toxics(slice_bytes=1, slice_pause_s=0.05)),
    "half a request": ("upstream", Toxics(limit_bytes=200)),
    "half an answer": ("downstream", Toxics(limit_bytes=100)),
    "half-closed": ("downstream", Toxics(half_close=True, limit_bytes=20)),
    "reset": ("downstream", Toxics(reset_after_bytes=50)),
    "refused": ("upstream", Toxics(reset=True)),
}


@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("name", TOXICS)
async def test_every_call_ends_by_its_deadline(name: str, idempotent: bool) -> None:
    """Whatever the network does, in whatever phase; and nothing stays behind."""
    direction, toxics = TOXICS[name]
    tasks = asyncio.all_tasks()
    async with FakeFaas() as fake, FaultProxy(fake.url) as proxy:
        settings = {
            "timeouts": TimeoutSettings(grace_s=0.1, health_s=0.1, connect_s=0.2),
            "limiter": LimiterSettings(queue_timeout_s=0.1),
            "retry": QUICK,
        }
        async with manager_for(proxy.url, **settings) as manager:
            assert (await manager.run_code("1", "python", timeout_ms=100)).ok
            setattr(proxy, direction, toxics)
            # The deadline is 0.3 s after the call; the rest is for a machine that is busy.
            async with asyncio.timeout(10):
                found = await outcome_of(manager.run_code("1", "python", timeout_ms=100, idempotent=idempotent))
            assert isinstance(found, ServiceError), found
            assert found.elapsed_s < 5
            setattr(proxy, direction, Toxics())
            metrics = manager.get_metrics()
            assert (metrics.in_flight, metrics.queued) == (0, 0)
            # An abandoned call may still run there: the next one waits for no more than that.
            assert (await manager.run_code("1", "python", timeout_ms=5_000)).ok
    assert asyncio.all_tasks() == tasks


async def test_the_server_is_told_the_time_that_is_left() -> None:
    """A second attempt has less of it, and says so."""
    async with fleet(1, timeouts=TimeoutSettings(grace_s=0.1)) as (manager, (fake,)):
        await manager.run_code("1", "python", timeout_ms=400)
        fake.script(Reply(delay_s=0.2, reset_after=0))
        assert (await manager.run_code("1", "python", timeout_ms=400, idempotent=True)).attempts == 2
        first, second = fake.requests[-2:]
        assert first["timeout"] == first["sandbox"]["timeout_ms"] == 400
        assert 1 <= second["timeout"] <= 310
        assert second["sandbox"]["timeout_ms"] == second["timeout"]


async def test_a_call_that_was_given_up_keeps_its_slot() -> None:
    """The code may still run there: the slot is charged until the server's own limit has passed."""
    async with fleet(1, timeouts=TimeoutSettings(grace_s=0.05)) as (manager, (fake,)):
        fake.health = {"capabilities": {"cancels_on_disconnect": False}}
        await manager.run_code("1", "python")
        fake.script(Reply(hang=True))
        with pytest.raises(DeadlineExceededError):
            await manager.run_code("1", "python", timeout_ms=300)
        (state,) = manager.get_metrics().states
        assert (state.in_flight, state.abandoned) == (0, 1)
        assert state.limit < 16


async def test_cancelled_between_attempts() -> None:
    """A call that waits to be tried again holds nothing."""
    async with fleet(1) as (manager, (fake,)):
        fake.default = Reply.overloaded("20")
        call = asyncio.create_task(manager.run_code("1", "python"))
        while len(fake.requests) < 1 or manager.get_metrics().in_flight:
            await asyncio.sleep(0.001)
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued, len(fake.requests)) == (0, 0, 1)


async def test_sick_replicas_are_left_out() -> None:
    """One answers 503, one hangs: once that is seen they get next to nothing, and no call fails any more."""
    settings = {
        "timeouts": TimeoutSettings(grace_s=0.4),
        "breaker": BreakerSettings(base_open_s=60),
        "retry": RetrySettings(base_delay_s=0.001, max_delay_s=0.002, budget=1_000, throttled_base_delay_s=0.001),
    }
    async with fleet(3, **settings) as (manager, (well, refusing, hanging)):
        refusing.default, hanging.default = Reply.unavailable(), Reply(hang=True)

        async def some(count: int) -> None:
            calls = (manager.run_code("1", "python", timeout_ms=200, idempotent=True) for _ in range(count))
            found = await asyncio.gather(*(outcome_of(call) for call in calls))
            # A call that hung has no time left for another replica.
            failed = [result for result in found if isinstance(result, FaasrtError)]
            assert all(isinstance(error, DeadlineExceededError) and error.endpoint == hanging.url for error in failed)
            failures.append(len(failed))

        failures: list[int] = []
        for _ in range(6):
            await some(8)
        failures.clear()
        states = {state.endpoint: state.state for state in manager.get_metrics().states}
        assert states == {well.url: "closed", refusing.url: "open", hanging.url: "open"}
        before = len(refusing.requests) + len(hanging.requests)
        for _ in range(20):
            await some(10)
        assert len(refusing.requests) + len(hanging.requests) - before < 0.05 * 200
        assert sum(failures) == 0


async def test_a_canary_brings_a_replica_back() -> None:
    """When its time is over, one of a hundred waiting calls tries it; if that is well, it is back."""
    seen: list[Any] = []
    settings = {"breaker": BreakerSettings(base_open_s=0.05, consecutive_failures=2)}
    async with fleet(2, **settings) as (manager, (well, sick)):
        await manager.run_code("1", "python")
        manager._factory._emit._sinks += (seen.append,)
        sick.default = Reply.crash()
        while not any(isinstance(event, EndpointChanged) for event in seen):
            await manager.run_code("1", "python", idempotent=True)
        sick.default = Reply(delay_s=0.5)
        before, calls = len(sick.requests), []
        while sick.in_flight == 0:
            calls.append(asyncio.create_task(manager.run_code("1", "python", idempotent=True)))
            await asyncio.sleep(0.005)
        hundred = await asyncio.gather(*(manager.run_code("1", "python") for _ in range(100)))
        assert {result.endpoint for result in hundred} == {well.url}
        assert len(sick.requests) - before == 1
        assert all(result.ok for result in await asyncio.gather(*calls))
        changes = [(event.endpoint, event.state) for event in seen if isinstance(event, EndpointChanged)]
        assert changes == [(sick.url, "open"), (sick.url, "closed")]
        sick.default, before = Reply(), len(sick.requests)
        await asyncio.gather(*(manager.run_code("1", "python") for _ in range(100)))
        assert len(sick.requests) - before > 20


async def test_equal_replicas_get_equal_shares() -> None:
    """25 % each, within 3."""
    async with fleet(4) as (manager, fakes):
        for _ in range(60):
            await asyncio.gather(*(manager.run_code("1", "python") for _ in range(40)))
        shares = [fake.executions / 2_400 for fake in fakes]
        assert all(0.22 < share < 0.28 for share in shares), shares


@pytest.mark.parametrize(
    ("health", "limit"),
    [
        ({"pool_status": {"config": {"maxSize": 3}}}, 3),
        ({"languages": {"python": {"capacity": 5}, "javascript": {"capacity": 9}}}, 5),
        ({"pool_status": {"config": {"maxSize": "many"}}}, 16),
        ({}, 16),
    ],
)
async def test_the_servers_size_bounds_what_it_gets(health: dict[str, Any], limit: int) -> None:
    """The limit starts there, and those who wait for it are served all the same."""
    async with fleet(1) as (manager, (fake,)):
        fake.health = health
        await manager.run_code("1", "python")
        fake.default = Reply(delay_s=0.01)
        await asyncio.gather(*(manager.run_code("1", "python") for _ in range(2 * limit)))
        assert fake.peak <= limit + 1
        (state,) = manager.get_metrics().states
        assert limit <= state.limit <= limit + (1 if limit == 16 else 0)


async def test_a_limit_settles_where_the_server_does() -> None:
    """A server that refuses beyond 16 and does not tell: few refusals, and it is used."""
    async with fleet(1, retry=RetrySettings(max_attempts=1)) as (manager, (fake,)):
        fake.capacity, fake.default = 16, Reply(delay_s=0.005)
        refused = 0

        async def one() -> None:
            nonlocal refused
            refused += isinstance(await outcome_of(manager.run_code("1", "python")), OverloadedError)

        await asyncio.gather(*(one() for _ in range(900)))
        assert refused < 45
        assert fake.peak >= 14


async def test_the_first_calls_do_not_overrun_a_small_server() -> None:
    """Before anything else is sent, one call finds out the size; and a large one is used at once."""
    for capacity, calls in ((2, 16), (64, 64)):
        async with fleet(1, limiter=LimiterSettings(queue_timeout_s=30)) as (manager, (fake,)):
            fake.health, fake.capacity = {"pool_status": {"config": {"maxSize": capacity}}}, capacity
            fake.default = Reply(delay_s=0.05)
            results = await asyncio.gather(*(manager.run_code("1", "python") for _ in range(calls)))
            assert {result.attempts for result in results} == {1}
            assert fake.peak == capacity


async def test_a_replica_that_refuses_draws_no_calls() -> None:
    """One answers 429 whatever comes, and is therefore empty: the calls go to the other."""
    async with fleet(2, retry=RetrySettings()) as (manager, (well, refusing)):
        refusing.default, well.default = Reply.overloaded("20"), Reply(delay_s=0.002)
        for _ in range(20):
            results = await asyncio.gather(*(manager.run_code("1", "python") for _ in range(8)))
            assert all(result.endpoint == well.url for result in results)
        assert len(refusing.requests) < 16


async def test_an_earlier_attempt_may_have_run() -> None:
    """The error of the last attempt does not say that nothing was sent when an earlier one was."""
    async with fleet(1, retry=RetrySettings(max_attempts=2, base_delay_s=0.001)) as (manager, (fake,)):
        await manager.run_code("1", "python")

        def last_answer(body: dict[str, Any]) -> Reply:
            asyncio.get_running_loop().call_soon(fake.down)
            return Reply(reset_after=0, delay_s=0.01)

        fake.handler = last_answer
        with pytest.raises(ServiceError) as caught:
            await manager.run_code("1", "python", idempotent=True)
        assert (caught.value.attempts, caught.value.sent) == (2, "maybe")


async def test_a_shortened_limit_is_no_verdict() -> None:
    """Code that had less time than it was promised was not ended for its own sake."""
    async with fleet(1, timeouts=TimeoutSettings(grace_s=0.1)) as (manager, (fake,)):
        fake.script(Reply(delay_s=0.5, reset_after=0), Reply(outcome="TIMEOUT"), Reply(outcome="TIMEOUT"))
        with pytest.raises(DeadlineExceededError) as caught:
            await manager.run_code("1", "python", timeout_ms=1_000, idempotent=True)
        assert caught.value.attempts == 3
        (state,) = manager.get_metrics().states
        assert (state.state, state.abandoned) == ("closed", 0)
        fake.script(Reply(outcome="TIMEOUT"))
        assert (await manager.run_code("1", "python", timeout_ms=1_000)).outcome == "TIMEOUT"


async def test_one_ejection_is_one_event() -> None:
    """However many calls were under way when it happened."""
    seen: list[Any] = []
    async with fleet(2) as (manager, (well, sick)):
        await asyncio.gather(*(manager.run_code("1", "python") for _ in range(20)))
        manager._factory._emit._sinks += (seen.append,)
        sick.default = Reply(status=500, delay_s=0.05)
        well.default = Reply(delay_s=0.05)
        await asyncio.gather(*(outcome_of(manager.run_code("1", "python", idempotent=True)) for _ in range(30)))
        changes = [(event.endpoint, event.state) for event in seen if isinstance(event, EndpointChanged)]
        assert changes == [(sick.url, "open")]


async def test_a_connection_that_cannot_be_made_in_time_sent_nothing() -> None:
    """Also when the attempt's own time is shorter than that for connecting: it is tried elsewhere."""
    # A listener that accepts no connection: its backlog is full, and further connections hang.
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        fillers.append(filler)
    try:
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with manager_for(url, envelope="never", timeouts=TimeoutSettings(grace_s=0.1), retry=QUICK) as manager:
            with pytest.raises(ConnectError) as caught:
                await manager.run_code("1", "python", timeout_ms=100)
            assert caught.value.sent == "no"
            assert manager.get_metrics().states[0].abandoned == 0
            # A server that is slow to accept may still run what was given up before.
            ((_, endpoint),) = manager._factory._transport._pool.endpoints()
            endpoint.limit.charge_abandoned(asyncio.get_running_loop().time() + 60)
            with pytest.raises(ConnectError):
                await manager.run_code("1", "python", timeout_ms=100)
            assert manager.get_metrics().states[0].abandoned == 1
    finally:
        for one in (*fillers, full):
            one.close()


async def test_a_restart_frees_what_was_given_up() -> None:
    """When the server is gone, nothing runs there any more."""
    async with fleet(1, timeouts=TimeoutSettings(grace_s=0.05)) as (manager, (fake,)):
        fake.health = {"capabilities": {"cancels_on_disconnect": False}}
        await manager.run_code("1", "python")
        fake.script(Reply(hang=True))
        with pytest.raises(DeadlineExceededError):
            await manager.run_code("1", "python", timeout_ms=300)
        fake.down()
        with pytest.raises(ConnectError):
            await manager.run_code("1", "python")
        assert manager.get_metrics().states[0].abandoned == 0


async def test_a_wait_in_vain_is_told() -> None:
    """A call that found no permit says how long it waited."""
    seen: list[Any] = []
    limiter = LimiterSettings(max_concurrency=1, queue_timeout_s=0.05)
    async with fleet(1, limiter=limiter) as (manager, (fake,)):
        await manager.run_code("1", "python")
        manager._factory._emit._sinks += (seen.append,)
        fake.default = Reply(delay_s=0.5)
        held = asyncio.create_task(manager.run_code("1", "python"))
        while not fake.in_flight:
            await asyncio.sleep(0.001)
        with pytest.raises(DeadlineExceededError):
            await manager.run_code("1", "python")
        await held
    (ended,) = [event for event in seen if isinstance(event, CallFinished) and event.error]
    assert ended.queued_s >= 0.05


@pytest.mark.parametrize(("headers", "state"), [({}, "open"), ({"x-faasrt-program-suspect": "1"}, "closed")])
async def test_failures_that_a_program_may_have_caused_do_not_open_the_breaker(
    headers: dict[str, str], state: str
) -> None:
    """A hostile program that kills its own process must not make its server unavailable to other programs."""
    async with fleet(1) as (manager, (fake,)):
        await manager.run_code("1", "python")
        for _ in range(2 * BreakerSettings().consecutive_failures):
            fake.script(Reply(status=500, headers=headers))
            assert isinstance(await outcome_of(manager.run_code("1", "python")), ServiceError)
        assert [one.state for one in manager.get_metrics().states] == [state]
