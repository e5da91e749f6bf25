"""The client with failing servers and networks: retries, deadlines, breakers, limits and abandoned calls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
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
    Outcome,
    OverloadedError,
    RetrySettings,
    RuntimeFactory,
    RuntimeManager,
    ServerError,
    ServiceError,
    Settings,
    TestCase,
    TimeoutSettings,
)
from faasrt.telemetry.events import CallFinished, EndpointChanged, RetryScheduled, Sink
from faasrt.testing import FakeFaaS, FaultProxy, Reply, Toxics
from support.helpers import PATIENT, QUICK, Clock, fast_forward, manager_for
from support.served import until
from support.servers import holding_faas

SHORT_DELAYS = RetrySettings(base_delay_s=0.001, max_delay_s=0.002)
"""Retries have short delays. Calls wait for endpoints that are down, as by default."""


@contextlib.asynccontextmanager
async def endpoint_group(
    count: int, *, telemetry: Iterable[Sink] = (), **settings: Any
) -> AsyncIterator[tuple[RuntimeManager, list[FakeFaaS]]]:
    """Yield a manager with several endpoints for Python, and their servers. Its clock is that of the event loop."""
    async with contextlib.AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(FakeFaaS()) for _ in range(count)]
        endpoints = {"python": [fake.url for fake in fakes]}
        options = {"retry": SHORT_DELAYS, "timeouts": PATIENT, **settings}
        factory = RuntimeFactory(
            Settings(endpoints=endpoints, **options), telemetry=telemetry, clock=asyncio.get_running_loop().time
        )
        manager = RuntimeManager(factory)
        yield await stack.enter_async_context(manager), fakes


async def outcome_of(call: Any) -> Any:
    try:
        return await call
    except FaasrtError as error:
        return error


async def outcome_after(clock: Clock, seconds: float, fake: FakeFaaS, call: Coroutine[Any, Any, Any]) -> Any:
    """Return the outcome of a call. Let time pass at once when the server has its request."""
    before, task = len(fake.requests), asyncio.create_task(outcome_of(call))
    await until(lambda: len(fake.requests) > before)
    clock.advance(seconds)
    return await task


# The default suite breaks connections at every 13th byte.
EVERY_BYTE = pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.tables)])


@pytest.fixture
async def proxied() -> AsyncIterator[tuple[RuntimeManager, FakeFaaS, FaultProxy]]:
    """A manager whose only endpoint is a proxy in front of a fake FaaS. It has made one call."""
    async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy, manager_for(proxy.url, retry=SHORT_DELAYS) as manager:
        fake.default = Reply(stdout="x")
        await manager.run_code("print(1)", "python")
        yield manager, fake, proxy


@EVERY_BYTE
async def test_at_most_once_at_every_byte_of_a_request(
    step: int, proxied: tuple[RuntimeManager, FakeFaaS, FaultProxy]
) -> None:
    """If the connection breaks while the request is sent, the code runs at most once."""
    manager, fake, proxy = proxied
    before = proxy.bytes_upstream
    await manager.run_code("print(1)", "python")
    size = proxy.bytes_upstream - before
    for offset in [*range(0, size, step), size]:
        proxy.upstream = Toxics(reset_after_bytes=offset)
        before = fake.executions
        error = await outcome_of(manager.run_code("print(1)", "python"))
        assert isinstance(error, ConnectionLostError), (offset, error)
        assert (error.sent, error.attempts) == ("maybe", 1)
        assert fake.executions - before <= (offset == size)


@EVERY_BYTE
async def test_at_most_once_at_every_byte_of_an_answer(
    step: int, proxied: tuple[RuntimeManager, FakeFaaS, FaultProxy]
) -> None:
    """If the connection breaks while the answer is sent, the request is not retried. After its last byte, the call has
    a result.
    """
    manager, fake, proxy = proxied
    before = proxy.bytes_downstream
    await manager.run_code("print(1)", "python")
    size = proxy.bytes_downstream - before
    for offset in [*range(0, size, step), size]:
        proxy.downstream = Toxics(reset_after_bytes=offset)
        executions = fake.executions
        outcome = await outcome_of(manager.run_code("print(1)", "python"))
        assert fake.executions - executions == 1, offset
        if offset < size:
            assert isinstance(outcome, ConnectionLostError), (offset, outcome)
            assert (outcome.sent, outcome.attempts) == ("maybe", 1)
        else:
            assert outcome.stdout == "x"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply.crash(), ServerError),
        (Reply.crash(502), ServerError),
        (Reply.crash(504), ServerError),
        (Reply.unavailable(), OverloadedError),
        (Reply(disconnect=True), ConnectionLostError),
        (Reply(headers={"Content-Length": "9999", "Connection": "close"}), ConnectionLostError),
    ],
)
async def test_ambiguous_failures_are_retried_only_if_idempotent(reply: Reply, error: type[ServiceError]) -> None:
    """By default the error is raised after one attempt. With `idempotent`, the next attempt gives the result."""
    async with endpoint_group(1) as (manager, (fake,)):
        fake.script(reply)
        with pytest.raises(error) as caught:
            await manager.run_code("1", "python", timeout_ms=50)
        assert (caught.value.attempts, len(fake.requests)) == (1, 1)
        fake.script(reply)
        result = await manager.run_code("1", "python", timeout_ms=50, idempotent=True)
        assert (result.ok, result.attempts, len(fake.requests)) == (True, 2, 3)
    async with endpoint_group(1, retry=attrs.evolve(SHORT_DELAYS, idempotent=True)) as (manager, (fake,)):
        fake.script(reply)
        assert (await manager.run_code("1", "python", timeout_ms=50)).ok
        fake.script(reply)
        with pytest.raises(error):
            await manager.run_code("1", "python", timeout_ms=50, idempotent=False)


async def test_a_batch_survives_the_crash_of_its_only_server() -> None:
    """If programs may run twice, every call in flight is retried. The crash costs one retry of the budget."""
    async with endpoint_group(1, breaker=BreakerSettings(base_open_s=0.1)) as (manager, (fake,)):
        fake.health = {"languages": {"python": {"capacity": 100}}}
        fake.default = Reply(disconnect=True, delay_s=1)
        calls = [asyncio.create_task(manager.run_code("1", "python", idempotent=True)) for _ in range(100)]
        await fake.wait_until(lambda: fake.in_flight == 100)
        fake.default = Reply()
        results = await asyncio.gather(*calls)
        assert all(result.ok and result.attempts > 1 for result in results)


async def test_no_retry_after_the_deadline(clock: Clock) -> None:
    """All attempts share one deadline. If the server hangs, no time is left for a retry, even if idempotent."""
    async with endpoint_group(1) as (manager, (fake,)):
        for idempotent in (False, True):
            fake.script(Reply(hang=True))
            call = manager.run_code("1", "python", timeout_ms=5_000, idempotent=idempotent)
            error = await outcome_after(clock, 36, fake, call)
            assert isinstance(error, DeadlineExceededError)
            assert (error.attempts, error.sent) == (1, "maybe")


@contextlib.asynccontextmanager
async def busy_server() -> AsyncIterator[tuple[RuntimeManager, FakeFaaS, FaultProxy]]:
    """Yield a manager, and a server whose time limits do not count the wait for a CPU, behind a proxy."""
    timeouts = TimeoutSettings(grace_s=1, health_s=2)
    async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy, manager_for(proxy.url, timeouts=timeouts) as manager:
        fake.health = {"languages": {"python": {"max_wall_factor": 10}}}
        await manager.run_code("1", "python", timeout_ms=20_000)
        yield manager, fake, proxy


async def test_a_busy_server_that_answers_others_has_more_time() -> None:
    """While a program waits for a CPU of its server, its call goes on after its deadline, if the server still answers
    requests to `/health`.
    """
    async with busy_server() as (manager, fake, _):
        probes = fake.probes
        fake.script(Reply.ok("late"), Reply.ok("late"))
        fake.script(attrs.evolve(Reply.ok("late"), delay_s=4.5))
        assert [(await manager.run_code("1", "python", timeout_ms=200)).stdout for _ in range(3)] == ["late"] * 3
        assert fake.probes > probes


async def test_a_busy_server_that_hangs_is_noticed() -> None:
    """A call to a server that answers no request any more fails soon after its deadline."""
    async with busy_server() as (manager, fake, proxy):
        fake.script(Reply(hang=True))
        call = asyncio.create_task(manager.run_code("1", "python", timeout_ms=200))
        await until(lambda: fake.in_flight == 1)
        proxy.downstream = Toxics(timeout=True)
        with pytest.raises(DeadlineExceededError, match="no answer within"):
            await call


async def test_a_pause_of_this_process_is_no_failure_of_the_server() -> None:
    """The event loop gets no CPU until after the deadline, so it could not even connect. The call goes on then."""
    timeouts = TimeoutSettings(grace_s=0.2)
    async with FakeFaaS() as fake, manager_for(fake.url, timeouts=timeouts) as manager:
        fake.health = {"languages": {"python": {"max_wall_factor": 10}}}
        await manager.run_code("1", "python")
        call, idle = (asyncio.create_task(manager.run_code("1", "python", timeout_ms=100)) for _ in range(2))
        await asyncio.sleep(0)  # one of them has a connection, and the other opens one
        resumes_at = time.monotonic() + 0.6
        while time.monotonic() < resumes_at:
            pass
        assert (await call).ok
        assert (await idle).ok


@pytest.mark.parametrize("reply", [Reply.overloaded(), Reply.overloaded("0"), Reply.unavailable("0")])
async def test_refused_requests_are_retried(reply: Reply) -> None:
    """A request that was refused before execution is retried, up to three attempts."""
    async with endpoint_group(1, retry=QUICK) as (manager, (fake,)):
        fake.script(reply, reply)
        result = await manager.run_code("1", "python")
        assert (result.attempts, fake.executions, len(result.timings.attempts_s)) == (3, 1, 3)
        fake.script(reply, reply, reply)
        with pytest.raises(OverloadedError) as caught:
            await manager.run_code("1", "python")
        assert caught.value.attempts == 3


async def test_failures_of_the_code_are_not_retried() -> None:
    """Failures of the code, rejected requests and a proxy's 408 are not retried, even if idempotent."""
    async with endpoint_group(1) as (manager, (fake,)):
        for reply in (Reply(outcome="TIMEOUT"), Reply(outcome="USER_ERROR"), Reply(status=408), Reply(status=400)):
            fake.script(reply)
            before = len(fake.requests)
            await outcome_of(manager.run_code("1", "python", idempotent=True))
            assert len(fake.requests) - before == 1


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("status", [408, 500])
async def test_a_failure_of_a_proxy_is_not_a_timeout_of_the_program(status: int, lossless: bool) -> None:
    """Only a server without capabilities can say by a failure, after the time limit, that the program timed out."""
    details = "upstream request timed out"
    async with endpoint_group(1) as (manager, (fake,)):
        fake.health = {"capabilities": {"lossless": lossless}}
        fake.script(Reply(status=status, details=details), Reply(status=status, details=details, delay_s=0.06))
        early = await outcome_of(manager.run_code("1", "python", timeout_ms=30_000))
        assert (type(early), early.status, early.details) == (ServerError, status, details)
        late = await outcome_of(manager.run_code("1", "python", timeout_ms=50))
        assert getattr(late, "outcome", type(late)) == (ServerError if lossless else "TIMEOUT")


async def test_retries_are_in_events_and_metrics() -> None:
    """A retry is an event with its wait, and a counter. The metrics contain the state of the endpoint."""
    seen: list[Any] = []
    async with endpoint_group(1, telemetry=[seen.append]) as (manager, (fake,)):
        fake.script(Reply.overloaded("0"))
        await manager.run_code("1", "python")
        metrics = manager.get_metrics()
    retries = [event for event in seen if isinstance(event, RetryScheduled)]
    assert [(event.attempt, event.error, event.endpoint) for event in retries] == [(1, "OverloadedError", fake.url)]
    assert 0 <= retries[0].wait_s < 0.1
    assert metrics.total.retries == 1
    (state,) = metrics.states
    assert (state.endpoint, state.family, state.breaker, state.in_flight) == (fake.url, "python", "closed", 0)


async def test_retry_budget_limits_retries_when_all_endpoints_are_down() -> None:
    """A hundred calls share ten retries. When the endpoints are up again, all calls succeed."""
    async with endpoint_group(2, retry=QUICK) as (manager, fakes):
        for fake in fakes:
            fake.down()
        results = await asyncio.gather(*(outcome_of(manager.run_code("1", "python")) for _ in range(100)))
        assert {type(result) for result in results} == {ConnectError}
        assert {result.sent for result in results} == {"no"}
        assert manager.get_metrics().total.attempts <= 110
        for fake in fakes:
            await fake.up()
        results = await asyncio.gather(*(outcome_of(manager.run_code("1", "python")) for _ in range(100)))
        assert all(not isinstance(result, FaasrtError) and result.ok for result in results)


TOXICS: dict[str, tuple[str, Toxics]] = {
    "slow request": ("upstream", Toxics(latency_s=600)),
    "slow answer": ("downstream", Toxics(latency_s=600)),
    "swallowed request": ("upstream", Toxics(timeout=True)),
    "swallowed answer": ("downstream", Toxics(timeout=True)),
    "dripping request": ("upstream", Toxics(bandwidth_bytes_per_s=0.5)),
    "dripping answer": ("downstream", Toxics(slice_bytes=1, slice_pause_s=5)),
    "half a request": ("upstream", Toxics(limit_bytes=200)),
    "half an answer": ("downstream", Toxics(limit_bytes=100)),
    "half-closed": ("downstream", Toxics(half_close=True, limit_bytes=20)),
    "reset": ("downstream", Toxics(reset_after_bytes=50)),
    "refused": ("upstream", Toxics(reset=True)),
}


@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("name", TOXICS)
async def test_every_call_ends_by_its_deadline(name: str, idempotent: bool, clock: Clock) -> None:
    """For each network fault, the call ends with a ServiceError, and no task and no permit remains."""
    direction, toxics = TOXICS[name]
    tasks = asyncio.all_tasks()
    async with (
        FakeFaaS() as fake,
        FaultProxy(fake.url) as proxy,
        manager_for(proxy.url, clock=clock, retry=SHORT_DELAYS) as manager,
    ):
        assert (await manager.run_code("1", "python", timeout_ms=5_000)).ok
        setattr(proxy, direction, toxics)
        call = manager.run_code("1", "python", timeout_ms=5_000, idempotent=idempotent)
        found = await fast_forward(clock, outcome_of(call))
        assert isinstance(found, ServiceError), found
        assert found.elapsed_s < 100  # the time limit, `grace_s`, and a busy machine
        setattr(proxy, direction, Toxics())
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued) == (0, 0)
        assert (await manager.run_code("1", "python", timeout_ms=5_000)).ok
    assert asyncio.all_tasks() == tasks


async def test_retries_send_the_remaining_time(clock: Clock) -> None:
    """The timeout that a second attempt sends is shortened to the time until the deadline."""
    async with endpoint_group(1) as (manager, (fake,)):
        fake.script(Reply(delay_s=36, disconnect=True))
        call = manager.run_code("1", "python", timeout_ms=20_000, idempotent=True)
        assert (await outcome_after(clock, 36, fake, call)).attempts == 2
        first, second = fake.requests
        assert first["timeout"] == first["sandbox"]["timeout_ms"] == 20_000
        assert 1 <= second["timeout"] <= 14_000  # of 20 s and `grace_s`
        assert second["sandbox"]["timeout_ms"] == second["timeout"]


async def test_abandoned_calls_are_charged_to_the_endpoint(clock: Clock) -> None:
    """The code may still run after the deadline, so the call counts against the limit of the endpoint for a while."""
    async with endpoint_group(1) as (manager, (fake,)):
        fake.health = {"capabilities": {"cancels_on_disconnect": False}}
        fake.script(Reply(hang=True))
        call = manager.run_code("1", "python", timeout_ms=20_000)
        assert isinstance(await outcome_after(clock, 51, fake, call), DeadlineExceededError)
        (state,) = manager.get_metrics().states
        assert (state.in_flight, state.abandoned) == (0, 1)
        assert state.limit < 16
        clock.advance(22)
        assert [state.abandoned for state in manager.get_metrics().states] == [0]


async def test_a_call_cancelled_between_attempts_holds_no_permit() -> None:
    """A call that waits for its next attempt holds no permit, and can be cancelled."""
    async with endpoint_group(1) as (manager, (fake,)):
        fake.default = Reply.overloaded("20")
        call = asyncio.create_task(manager.run_code("1", "python"))
        await until(lambda: fake.requests and not manager.get_metrics().in_flight)
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.queued, len(fake.requests)) == (0, 0, 1)


async def test_endpoints_with_open_breakers_get_almost_no_calls(clock: Clock) -> None:
    """One endpoint answers 503, and one hangs. When their breakers are open, calls go to the third, and none fails."""
    settings = {
        "breaker": BreakerSettings(base_open_s=10_000, max_open_s=10_000, consecutive_failures=1),
        "retry": RetrySettings(base_delay_s=0.001, max_delay_s=0.002),
    }
    async with endpoint_group(3, **settings) as (manager, (healthy, refusing, hanging)):
        refusing.default, hanging.default = Reply.unavailable(), Reply(hang=True)

        async def some(count: int) -> None:
            calls = [
                asyncio.create_task(outcome_of(manager.run_code("1", "python", timeout_ms=5_000, idempotent=True)))
                for _ in range(count)
            ]
            await until(lambda: sum(not call.done() for call in calls) == hanging.in_flight)
            clock.advance(36)
            found = await asyncio.gather(*calls)
            # A call that hung has no time left for another endpoint.
            failed = [result for result in found if isinstance(result, FaasrtError)]
            assert all(isinstance(error, DeadlineExceededError) and error.endpoint == hanging.url for error in failed)
            failures.append(len(failed))

        failures: list[int] = []
        for _ in range(6):
            await some(8)
        failures.clear()
        clock.advance(60)  # until no endpoint backs off
        states = {state.endpoint: state.breaker for state in manager.get_metrics().states}
        assert states == {healthy.url: "closed", refusing.url: "open", hanging.url: "open"}
        before = len(refusing.requests) + len(hanging.requests)
        for _ in range(20):
            await some(10)
        assert len(refusing.requests) + len(hanging.requests) - before < 0.05 * 200
        assert sum(failures) == 0


async def test_a_successful_probe_closes_the_breaker(clock: Clock) -> None:
    """One call probes the endpoint. Until it succeeds, a hundred other calls go to the other endpoint."""
    seen: list[Any] = []
    breaker = BreakerSettings(consecutive_failures=1)
    async with endpoint_group(2, breaker=breaker, telemetry=[seen.append]) as (manager, (healthy, failing)):
        failing.default = Reply.crash()
        for fake in (healthy, failing):  # so that their limits do not grow
            fake.health = {"pool_status": {"config": {"maxSize": 50}}}
        while not any(isinstance(event, EndpointChanged) for event in seen):
            await manager.run_code("1", "python", idempotent=True)
        failing.default, before = Reply(delay_s=5), len(failing.requests)
        clock.advance(60)
        clock.stop()
        probe = asyncio.create_task(manager.run_code("1", "python"))
        await failing.wait_until(lambda: failing.in_flight == 1)
        hundred = await asyncio.gather(*(manager.run_code("1", "python") for _ in range(100)))
        assert {result.endpoint for result in hundred} == {healthy.url}
        assert len(failing.requests) - before == 1
        clock.advance(5)
        assert (await probe).ok
        changes = [(event.endpoint, event.state) for event in seen if isinstance(event, EndpointChanged)]
        assert changes == [(failing.url, "open"), (failing.url, "closed")]
        failing.default, before = Reply(), len(failing.requests)
        await asyncio.gather(*(manager.run_code("1", "python") for _ in range(100)))
        assert len(failing.requests) - before > 20


async def test_all_endpoints_get_calls() -> None:
    """Each of four endpoints gets calls. How many depends on how fast they are; see `test_replica_choice`."""
    async with endpoint_group(4) as (manager, fakes):
        for _ in range(5):
            await asyncio.gather(*(manager.run_code("1", "python") for _ in range(40)))
        assert sum(fake.executions for fake in fakes) == 200
        assert all(fake.executions for fake in fakes)


@pytest.mark.parametrize(
    ("health", "limit"),
    [
        ({"pool_status": {"config": {"maxSize": 3}}}, 3),
        ({"languages": {"python": {"capacity": 5}, "javascript": {"capacity": 9}}}, 5),
        ({"pool_status": {"config": {"maxSize": "many"}}}, 16),
        ({}, 16),
    ],
)
async def test_limit_starts_at_the_reported_capacity(health: dict[str, Any], limit: int) -> None:
    """Calls beyond the capacity wait, and succeed. Without a capacity, the limit starts at 16."""
    async with endpoint_group(1) as (manager, (fake,)):
        fake.health = health
        await manager.run_code("1", "python")
        assert [state.limit for state in manager.get_metrics().states] == [limit]
        fake.default = Reply(delay_s=0.01)
        await asyncio.gather(*(manager.run_code("1", "python") for _ in range(2 * limit)))
        most = limit if limit < 16 else 3 * limit  # without a capacity, each success increases the limit
        assert fake.peak <= most + 1
        (state,) = manager.get_metrics().states
        assert limit <= state.limit <= most


async def test_limit_adapts_to_an_unreported_capacity() -> None:
    """A server refuses calls beyond 16 without reporting this. Fewer than 5 % of the calls are refused."""
    async with endpoint_group(1, retry=RetrySettings(max_attempts=1)) as (manager, (fake,)):
        fake.capacity, fake.default = 16, Reply(delay_s=0.005)
        refused = 0

        async def one() -> None:
            nonlocal refused
            refused += isinstance(await outcome_of(manager.run_code("1", "python")), OverloadedError)

        await asyncio.gather(*(one() for _ in range(300)))
        assert refused < 15
        assert fake.peak >= 14


@pytest.mark.parametrize(("capacity", "calls"), [(2, 16), (64, 64)])
async def test_first_calls_do_not_overload_a_small_server(capacity: int, calls: int, clock: Clock) -> None:
    """The first call requests the capacity before other calls are sent. The whole capacity is then used at once."""
    async with endpoint_group(1) as (manager, (fake,)):
        fake.health, fake.capacity = {"pool_status": {"config": {"maxSize": capacity}}}, capacity
        fake.default = Reply(delay_s=10)
        running = asyncio.gather(*(manager.run_code("1", "python") for _ in range(calls)))
        await until(lambda: fake.in_flight == capacity)
        results = await fast_forward(clock, running)
        assert {result.attempts for result in results} == {1}
        assert fake.peak == capacity


async def test_endpoint_that_backs_off_gets_no_calls() -> None:
    """An endpoint that answers 429 has no calls in flight. New calls still go to the other one."""
    async with endpoint_group(2, retry=RetrySettings()) as (manager, (healthy, refusing)):
        refusing.default, healthy.default = Reply.overloaded("20"), Reply(delay_s=0.002)
        for _ in range(20):
            results = await asyncio.gather(*(manager.run_code("1", "python") for _ in range(8)))
            assert all(result.endpoint == healthy.url for result in results)
        assert len(refusing.requests) < 16


async def test_sent_covers_earlier_attempts() -> None:
    """If the last attempt was not sent but an earlier one was, the error has `sent="maybe"`."""
    async with endpoint_group(1, retry=attrs.evolve(QUICK, max_attempts=2)) as (manager, (fake,)):
        await manager.run_code("1", "python")

        def last_answer(body: dict[str, Any]) -> Reply:
            asyncio.get_running_loop().call_soon(fake.down)
            return Reply(disconnect=True, delay_s=0.01)

        fake.handler = last_answer
        with pytest.raises(ServiceError) as caught:
            await manager.run_code("1", "python", idempotent=True)
        assert (caught.value.attempts, caught.value.sent) == (2, "maybe")


async def test_a_timeout_at_a_shortened_limit_is_no_outcome(clock: Clock) -> None:
    """If a retry had less time than `timeout_ms`, a TIMEOUT of the server is a DeadlineExceededError."""
    async with endpoint_group(1) as (manager, (fake,)):
        fake.script(Reply(delay_s=36, disconnect=True), Reply(outcome="TIMEOUT"), Reply(outcome="TIMEOUT"))
        call = manager.run_code("1", "python", timeout_ms=20_000, idempotent=True)
        error = await outcome_after(clock, 36, fake, call)
        assert isinstance(error, DeadlineExceededError)
        assert error.attempts == 3
        (state,) = manager.get_metrics().states
        assert (state.breaker, state.abandoned) == ("closed", 0)
        fake.script(Reply(outcome="TIMEOUT"))
        assert (await manager.run_code("1", "python", timeout_ms=20_000)).outcome == "TIMEOUT"


async def test_opening_the_breaker_is_one_event() -> None:
    """There is one event, even if many calls fail at the same time."""
    seen: list[Any] = []
    async with endpoint_group(2, telemetry=[seen.append]) as (manager, (healthy, failing)):
        await asyncio.gather(*(manager.run_code("1", "python") for _ in range(20)))
        failing.default = Reply(status=500, delay_s=0.05)
        healthy.default = Reply(delay_s=0.05)
        await asyncio.gather(*(outcome_of(manager.run_code("1", "python", idempotent=True)) for _ in range(30)))
        changes = [(event.endpoint, event.state) for event in seen if isinstance(event, EndpointChanged)]
        assert changes == [(failing.url, "open")]


async def test_connect_timeouts_are_connect_errors() -> None:
    """The error has `sent="no"`, even if the deadline is earlier than `connect_s`. The call is not abandoned."""
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
        async with manager_for(
            url, envelope="never", timeouts=TimeoutSettings(grace_s=0.1), retry=SHORT_DELAYS
        ) as manager:
            with pytest.raises(ConnectError) as caught:
                await manager.run_code("1", "python", timeout_ms=100)
            assert caught.value.sent == "no"
            assert manager.get_metrics().states[0].abandoned == 0
    finally:
        for one in (*fillers, full):
            one.close()


async def test_refused_connection_clears_abandoned_calls(clock: Clock) -> None:
    """A server that is down no longer runs abandoned calls, so they are not charged any more."""
    async with endpoint_group(1, retry=QUICK) as (manager, (fake,)):
        fake.health = {"capabilities": {"cancels_on_disconnect": False}}
        fake.script(Reply(hang=True))
        call = manager.run_code("1", "python", timeout_ms=20_000)
        assert isinstance(await outcome_after(clock, 51, fake, call), DeadlineExceededError)
        assert manager.get_metrics().states[0].abandoned == 1
        fake.down()
        with pytest.raises(ConnectError):
            await manager.run_code("1", "python")
        assert manager.get_metrics().states[0].abandoned == 0


async def test_event_of_a_call_without_a_permit_has_its_wait() -> None:
    """`queued_s` is set even if the call fails in the queue."""
    seen: list[Any] = []
    limiter = LimiterSettings(max_concurrency=1, queue_timeout_s=0.05)
    async with (
        holding_faas() as (url, arrived, go_on),
        manager_for(url, limiter=limiter, telemetry=[seen.append]) as manager,
    ):
        held = asyncio.create_task(manager.run_code("1", "python"))
        await until(lambda: arrived)
        with pytest.raises(DeadlineExceededError, match=r"all endpoints were busy for 0\.05 s"):
            await manager.run_code("1", "python")
        go_on.set()
        await held
    (ended,) = [event for event in seen if isinstance(event, CallFinished) and event.error]
    assert ended.queued_s >= 0.05


SUSPECT = Reply(status=500, headers={"x-faasrt-program-suspect": "1"})


async def test_failures_that_a_program_may_have_caused_do_not_open_the_breaker() -> None:
    """A hostile program that kills its own process must not make its server unavailable to other programs. Its outcome
    is CRASHED, and it is not retried, even if it is idempotent.
    """
    async with endpoint_group(1) as (manager, (fake,)):
        await manager.run_code("1", "python")
        for _ in range(2 * BreakerSettings().consecutive_failures):
            fake.script(SUSPECT)
            result = await manager.run_code("1", "python", idempotent=True)
            assert (result.outcome, result.attempts) == (Outcome.CRASHED, 1)
        fake.script(Reply(stdout="1"), SUSPECT, Reply(stdout="1"))
        judgement = await manager.judge("1", [TestCase(expected="1")] * 3, language="python", concurrency=1)
        assert [str(test.verdict) for test in judgement.results] == ["PASSED", "CRASHED", "PASSED"]
        assert [one.breaker for one in manager.get_metrics().states] == ["closed"]
        for _ in range(2 * BreakerSettings().consecutive_failures):
            fake.script(Reply(status=500))
            assert isinstance(await outcome_of(manager.run_code("1", "python")), ServiceError)
        assert [one.breaker for one in manager.get_metrics().states] == ["open"]
