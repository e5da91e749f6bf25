"""Breaker, adaptive limit, `choose` and permit pool, without servers and mostly in simulated time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from faasrt import (
    BreakerSettings,
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    LimiterSettings,
    QueueFullError,
    ServerError,
    ServiceError,
    Settings,
)
from faasrt.transport.adaptive_limit import AdaptiveLimit
from faasrt.transport.breaker import Breaker
from faasrt.transport.endpoint import Endpoint, choose
from faasrt.transport.groups import EndpointGroup
from faasrt.transport.pool import Permit, PermitPool
from support.helpers import Clock as LoopClock, acquire


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(**changes: Any) -> Breaker:
    return Breaker(BreakerSettings(**changes), lambda: 0.5)


def test_five_consecutive_failures_open_the_breaker() -> None:
    """A success resets the count of consecutive failures."""
    one = breaker()
    for _ in range(4):
        one.fail(100, 100)
    one.succeed(100, 100)
    for _ in range(4):
        one.fail(100, 100)
    assert one.state == "closed"
    one.fail(100, 100)
    assert (one.state, one.open_until, one.may_probe(104.9), one.may_probe(105)) == ("open", 105.0, False, True)


def test_early_probes_do_not_change_when_the_breaker_is_probed_otherwise() -> None:
    """If no other endpoint works, it is probed early and often. It still stays open for 5 s, and then for 10 s."""
    one = breaker(consecutive_failures=1)
    one.fail(100, 100, early_probe_s=1.0)
    assert (one.failing_since, one.open_until, one.may_probe(101, is_needed=True)) == (100, 105, True)
    for now in (101.0, 102.0, 103.0, 104.0):
        assert one.may_probe(now, is_needed=True)
        one.fail(now, now, probe=one.start_probe(), early_probe_s=1.0)
        assert (one.state, one.open_until, one.may_probe(now + 0.9, is_needed=True)) == ("open", 105, False)
    assert one.may_probe(105)
    one.fail(105, 105, probe=one.start_probe(), early_probe_s=1.0)
    assert (one.failing_since, one.open_until, one.early_probe_at) == (100, 115, 106)
    one.release_probe(106, one.start_probe())
    assert one.may_probe(106)
    slow = breaker(consecutive_failures=1, base_open_s=0.5)
    slow.fail(100, 100)
    assert slow.early_probe_at == 100.5


async def test_callers_do_not_give_up_while_a_long_probe_runs() -> None:
    """A probe of a server that is up again may run for longer than callers wait for one that is down."""
    clock, error = Clock(), ConnectError("x", sent="no")
    pool, group = pool_with_open_breaker(clock, error)
    calls = [asyncio.ensure_future(acquire(pool, group)) for _ in range(3)]
    await asyncio.sleep(0)
    assert pool.try_acquire(group) is None
    clock.now += 1
    pool.wake()
    await asyncio.sleep(0)
    assert [call.done() for call in calls] == [True, False, False]
    clock.now += 60
    pool.wake()
    probe = await calls[0]
    assert probe is not None
    assert pool.queued == 2
    calls[1].cancel()
    pool.release(probe, error)
    with pytest.raises(ConnectError) as caught:
        await calls[2]
    assert (caught.value.sent, caught.value.attempts, caught.value.endpoint) == ("no", 0, "http://one")
    assert (pool.queued, pool.in_flight) == (0, 0)
    pool.cancel_timer()


def pool_with_open_breaker(
    clock: Callable[[], float], error: ServiceError, **limits: Any
) -> tuple[PermitPool, EndpointGroup]:
    """Return a pool, and a group whose only endpoint has failed with this error. Calls wait for it for 10 s."""
    settings = Settings(breaker=BreakerSettings(consecutive_failures=1), limiter=LimiterSettings(**limits))
    pool = PermitPool(settings, clock=clock, random=lambda: 0.5)
    group = pool.groups.get("python", ["http://one"])
    group.skip_capacity()
    permit = pool.try_acquire(group)
    assert permit is not None
    pool.release(permit, error)
    return pool, group


async def test_callers_wait_only_for_probes_that_are_due_before_they_give_up() -> None:
    """Probes of several endpoints that hang in turn do not keep callers waiting. A call that has had no room to be a
    probe does not give up.
    """
    clock, error = Clock(), ConnectError("x", sent="no")
    limits = LimiterSettings(max_concurrency=2)
    breaker_settings = BreakerSettings(consecutive_failures=1)
    pool = PermitPool(Settings(breaker=breaker_settings, limiter=limits), clock=clock, random=lambda: 0.5)
    other = pool.groups.get("javascript", ["http://other"])
    group = pool.groups.get("python", ["http://one", "http://two"])
    other.skip_capacity()
    group.skip_capacity()
    for permit in [pool.try_acquire(group), pool.try_acquire(group)]:
        assert permit is not None
        pool.release(permit, error)
    assert not group.is_available
    long = [pool.try_acquire(other), pool.try_acquire(other)]
    calls = [asyncio.ensure_future(acquire(pool, group)) for _ in range(3)]
    await asyncio.sleep(0)
    clock.now += 30
    pool.wake()
    assert pool.queued == 3  # they were never probes
    for permit in long:
        assert permit is not None
        pool.release(permit, None)
    assert (pool.queued, pool.in_flight) == (1, 2)
    clock.now += 0.5
    probes = [await calls[0], await calls[1]]
    pool.release(*probes[:1], error)  # type: ignore[arg-type]
    assert pool.queued == 1  # the other probe is in flight
    clock.now += 0.1
    pool.release(*probes[1:], error)  # type: ignore[arg-type]
    with pytest.raises(ConnectError):
        await calls[2]
    assert (pool.queued, pool.in_flight) == (0, 0)
    pool.cancel_timer()


async def test_the_error_after_a_wait_has_the_time_without_further_digits() -> None:
    """The time that is left of a deadline has many digits, or is tiny."""
    pool = PermitPool(Settings(limiter=LimiterSettings(max_concurrency=1)), clock=Clock(), random=lambda: 0.5)
    group = pool.groups.get("python", ["http://one"])
    group.skip_capacity()
    permit = pool.try_acquire(group)
    assert permit is not None
    for within_s, shown in [(3.746999936993234e-06, "0"), (0.0119870319, "0.01")]:
        with pytest.raises(DeadlineExceededError, match=rf"all endpoints were busy for {shown} s, see"):
            await pool.wait(group, within_s=within_s)
    pool.release(permit, None)
    pool.cancel_timer()


async def test_later_probes_do_not_keep_callers_waiting() -> None:
    """Of two endpoints that hang, one is being probed at any time. Callers give up nevertheless."""
    clock, error = Clock(), ConnectError("x", sent="no")
    pool = PermitPool(Settings(breaker=BreakerSettings(consecutive_failures=1)), clock=clock, random=lambda: 0.5)
    group = pool.groups.get("python", ["http://one", "http://two"])
    group.skip_capacity()
    for permit in [pool.try_acquire(group), pool.try_acquire(group)]:
        assert permit is not None
        clock.now += 1.5
        pool.release(permit, error)
    calls = [asyncio.ensure_future(acquire(pool, group)) for _ in range(100)]
    for _ in range(90):
        await asyncio.sleep(0)
        for call in calls:
            permit = call.result() if call.done() and not call.exception() else None
            if permit is not None and permit.started == clock.now - 3:
                pool.release(permit, error)
        clock.now += 0.5
        pool.wake()
    assert pool.queued == 0
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(end, ConnectError) for end in ends) > 80
    pool.cancel_timer()


async def test_callers_give_up_before_the_next_probe_if_it_is_late(clock: LoopClock) -> None:
    """A call that found no room waits for `connect_retry_s`, and no longer, for an endpoint that is probed later."""
    breaker_settings = BreakerSettings(consecutive_failures=1, base_open_s=60, max_open_s=60)
    settings = Settings(breaker=breaker_settings, limiter=LimiterSettings(max_concurrency=1))
    pool = PermitPool(settings, clock=clock, random=lambda: 0.5)
    group, other = pool.groups.get("python", ["http://one"]), pool.groups.get("javascript", ["http://other"])
    pool.release(await acquire(pool, group), ServerError("x", sent="maybe"))
    held = await acquire(pool, other)
    call = asyncio.ensure_future(acquire(pool, group))
    await asyncio.sleep(0)
    assert pool.queued == 1
    clock.advance(settings.retry.connect_retry_s + 1)
    with pytest.raises(ServerError):
        await call
    pool.release(held, None)
    assert (pool.queued, pool.in_flight) == (0, 0)


async def test_a_long_probe_does_not_keep_the_event_loop_busy() -> None:
    """Callers that have waited long enough, and wait for the end of the probe, set no timer that is due already."""
    times: list[float] = []
    clock = Clock()

    def read_clock() -> float:
        times.append(clock.now)
        return clock.now

    pool, group = pool_with_open_breaker(read_clock, ConnectError("x", sent="no"))
    calls = [asyncio.ensure_future(acquire(pool, group)) for _ in range(2)]
    await asyncio.sleep(0)
    clock.now += 1
    pool.wake()
    probe = await calls[0]
    for waited_s in (9, 60):  # `connect_retry_s` has just passed, or long ago
        clock.now += waited_s
        pool.wake()
        times.clear()
        for _ in range(10):
            await asyncio.sleep(0)
        assert (times, pool.queued) == ([], 1)
    pool.release(probe, None)
    pool.release(await calls[1], None)
    pool.cancel_timer()


async def test_queued_calls_do_not_wait_for_a_server_whose_certificate_is_not_accepted() -> None:
    """Such calls fail at once."""
    error = ConnectError("the certificate is not accepted", sent="no", permanent=True)
    clock = Clock()
    pool, group = pool_with_open_breaker(clock, error, max_concurrency=1)
    permit = pool.try_acquire(group)
    assert permit is not None
    calls = [asyncio.ensure_future(acquire(pool, group)) for _ in range(3)]
    await asyncio.sleep(0)
    assert pool.queued == 0
    pool.release(permit, error)
    assert {type(end) for end in await asyncio.gather(*calls, return_exceptions=True)} == {ConnectError}
    assert pool.in_flight == 0
    pool.cancel_timer()


async def test_a_server_that_resets_every_connection_is_probed_once_at_once() -> None:
    """The first lost connection may be the end of the server. If the probe is lost, too, the next one waits, because
    otherwise all waiting calls would be sent and lost one after another.
    """
    error, clock = ConnectionLostError("x", sent="maybe"), Clock()
    pool, group = pool_with_open_breaker(clock, error, max_concurrency=1)
    probe = pool.try_acquire(group)
    assert probe is not None
    assert probe.probe is not None
    call = asyncio.ensure_future(acquire(pool, group))
    await asyncio.sleep(0)
    pool.release(probe, error)
    await asyncio.sleep(0)
    assert (pool.queued, pool.in_flight) == (1, 0)
    clock.now += 1  # a thirtieth of `connect_retry_s`
    pool.wake()
    permit = await call
    assert permit is not None
    pool.release(permit, None)
    assert group.is_available
    pool.cancel_timer()


async def test_many_retries_do_not_each_look_at_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that waits behind other retries cannot be next, so the queue is not searched for it."""
    pool, group = pool_with_open_breaker(Clock(), ConnectError("x", sent="no"))
    wake = pool.wake
    wakes: list[None] = []
    monkeypatch.setattr(pool, "wake", lambda *args: wakes.append(wake(*args)))
    calls = [asyncio.ensure_future(acquire(pool, group, avoid=["http://one"])) for _ in range(100)]
    await asyncio.sleep(0)
    assert (pool.queued, len(wakes)) == (100, 1)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert all(call.cancelled() for call in calls)
    assert pool.queued == 0
    pool.cancel_timer()


def test_a_low_success_rate_opens_the_breaker() -> None:
    """The breaker opens if fewer than 80 % of at least 20 calls in the last 30 s succeeded."""
    one = breaker()
    for second in range(19):
        (one.fail if second % 4 == 0 else one.succeed)(100 + second, 100 + second)
    assert one.state == "closed"
    one.fail(119, 119)
    assert one.state == "open"
    old = breaker()
    for second in range(0, 4_000, 100):
        (old.fail if second % 200 == 0 else old.succeed)(100 + second, 100 + second)
    assert old.state == "closed"


def test_open_time_doubles_and_resets() -> None:
    """The breaker stays open for 5, 10, 20 ... 300 s. A long period without failures resets this to 5 s."""
    one = breaker()
    now, lengths = 100.0, []
    for _ in range(5):
        one.fail(now, now)
    for _ in range(9):
        lengths.append(one.open_until - now)
        now = one.open_until
        assert one.may_probe(now)
        probe = one.start_probe()
        assert not one.may_probe(now)
        one.fail(now, now, probe=probe)
    assert lengths == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    one.start_probe()
    one.succeed(now + 300, now + 299)
    assert one.state == "closed"
    for _ in range(5):
        one.fail(now + 1_000, now + 1_000)
    assert one.open_until - (now + 1_000) == 5


def test_another_probe_may_follow_a_cancelled_one() -> None:
    """A cancelled probe says nothing about the endpoint, so the next call may probe it at once."""
    one = breaker(consecutive_failures=1)
    one.fail(100, 100)
    one.release_probe(106, one.start_probe())
    assert one.may_probe(106)


def test_a_stale_probe_does_not_change_the_breaker() -> None:
    """Only the end of the current probe counts, not that of one that began before the breaker closed."""
    one = breaker(consecutive_failures=1)
    one.fail(100, 100)
    stale = one.start_probe()
    one.succeed(106, 105)
    one.fail(107, 107)
    until = one.open_until
    one.fail(108, 106, probe=stale)
    assert one.open_until == until
    one.start_probe()
    one.release_probe(120, stale)
    assert one.state == "half-open"


def test_calls_sent_before_the_breaker_closed_do_not_reopen_it() -> None:
    changes: list[str] = []
    one = Breaker(BreakerSettings(), lambda: 0.5, lambda: changes.append(one.state))
    for _ in range(5):
        one.fail(100, 99)
    one.succeed(110, 106)
    for _ in range(20):
        one.fail(111, 99)
    assert one.state == "closed"
    assert changes == ["open", "closed"]


def test_calls_sent_before_the_breaker_opened_do_not_change_it() -> None:
    """A late success does not close the breaker, and a late failure does not keep it open for longer."""
    one = breaker(consecutive_failures=1)
    one.fail(100, 100)
    one.succeed(101, 99)
    one.fail(102, 102)
    assert (one.state, one.open_until) == ("open", 105.0)
    one.succeed(103, 101)
    assert one.state == "closed"


class Breakers(RuleBasedStateMachine):
    """For any order of events, at most one probe is out, and it starts only after `open_until`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.breaker = Breaker(BreakerSettings(), random.Random(1).random)
        self.probe = 0

    @rule(seconds=st.floats(0, 400))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(ago=st.floats(0, 50))
    def succeed(self, ago: float) -> None:
        self.breaker.succeed(self.now, self.now - ago)

    @rule(times=st.integers(1, 6))
    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.fail(self.now, self.now)

    @precondition(lambda self: self.breaker.may_probe(self.now))
    @rule()
    def start_probe(self) -> None:
        assert self.breaker.state == "open"
        assert self.now >= self.breaker.open_until
        self.probe = self.breaker.start_probe()
        assert not self.breaker.may_probe(self.now + 1e9)

    @precondition(lambda self: self.breaker.state == "half-open")
    @rule(how=st.sampled_from(["succeed", "fail", "release"]))
    def end_probe(self, how: str) -> None:
        if how == "succeed":
            self.breaker.succeed(self.now, self.now)
            assert self.breaker.state == "closed"
        elif how == "fail":
            self.breaker.fail(self.now, self.now, probe=self.probe)
            assert self.breaker.state == "open"
        else:
            self.breaker.release_probe(self.now, self.probe)
            assert self.breaker.may_probe(self.now)

    @invariant()
    def bounded(self) -> None:
        assert self.breaker.state in ("closed", "open", "half-open")
        if self.breaker.state == "open":
            assert self.breaker.open_until <= self.now + 300


TestBreakers = Breakers.TestCase


def test_limit_of_n_grows_by_one_after_n_successes() -> None:
    """After a refusal, the limit grows only while at least half of it is in use, and never above its cap."""
    limit = AdaptiveLimit(cap=18)
    assert limit.limit == 1
    limit.set_capacity(None)
    assert limit.limit == 16
    limit.shrink(now=100, started=99)
    for _ in range(8):
        limit.in_flight += 1
    for _ in range(14):
        limit.grow()
    assert limit.limit == pytest.approx(14.4)
    limit.grow()
    assert limit.limit == pytest.approx(15.4)
    limit.in_flight -= 1
    for _ in range(100):
        limit.grow()
    assert limit.limit == pytest.approx(15.4)
    limit.in_flight += 1
    limit.in_flight += 1
    for _ in range(100):
        limit.grow()
    assert limit.limit == 18


def test_limit_doubles_until_the_first_refusal() -> None:
    """Each success increases it by one, while at least half of it is in use, up to its cap. A refusal halves it."""
    limit = AdaptiveLimit(cap=33)
    limit.set_capacity(None)
    limit.in_flight = 7
    limit.grow()
    assert limit.limit == 16
    limit.in_flight = 16
    for _ in range(16):
        limit.grow()
    assert limit.limit == 32
    limit.grow()
    limit.grow()
    assert limit.limit == 33
    limit.shrink(now=100, started=99)
    assert limit.limit == 16.5
    limit.grow()
    assert limit.limit == 16.5


def test_limit_shrinks_once_per_burst_of_refusals() -> None:
    """Only a refusal of a call that began after the last decrease shrinks the limit again. It never falls below 1."""
    limit = AdaptiveLimit(cap=256)
    limit.set_capacity(None)
    for _ in range(10):
        limit.shrink(now=100, started=99)
    assert limit.limit == pytest.approx(14.4)
    limit.shrink(now=102, started=101)
    assert limit.limit == pytest.approx(12.96)
    for second in range(200):
        limit.shrink(now=200 + second, started=199.5 + second)
    assert limit.limit == 1
    assert limit.has_room(500)


def test_limit_starts_at_the_reported_capacity() -> None:
    """The capacity that the endpoint reports is also the cap of the limit, unless the configured cap is lower."""
    limit = AdaptiveLimit(cap=10)
    limit.set_capacity(None)
    assert limit.limit == 10
    limit.set_capacity(4)
    assert limit.limit == 4
    limit.shrink(100, 99)
    limit.set_capacity(4)  # an unchanged capacity does not reset the limit
    assert limit.limit == pytest.approx(3.6)
    limit.set_capacity(40)
    assert limit.limit == 10


def test_limit_calls_on_change() -> None:
    """`on_change` is called when the capacity is first known and when the limit changes, not at its cap or at 1."""
    reported: list[float] = []
    limit = AdaptiveLimit(2, lambda: reported.append(limit.limit))
    limit.set_capacity(None)
    limit.set_capacity(None)
    limit.in_flight += 1
    limit.in_flight += 1
    for _ in range(10):
        limit.grow()
    for second in range(100):
        limit.shrink(second, second - 0.5)
    assert reported == pytest.approx([2, 1.8, 1.62, 1.458, 1.3122, 1.18098, 1.062882, 1])
    limit.set_capacity(1)
    limit.set_capacity(1)
    assert reported[-1] == 1
    assert len(reported) == 9


class Limits(RuleBasedStateMachine):
    """For any order of events, there is room while the calls in flight and those that the server may still run are
    below the limit, which stays between 1 and its cap.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.limit = AdaptiveLimit(cap=20)
        self.held = 0
        self.abandoned: list[float] = []  # when each of these calls ends on the server

    @rule()
    def acquire(self) -> None:
        abandoned = sum(until > self.now for until in self.abandoned)
        has_room = self.held + abandoned + 1 <= self.limit.limit
        assert self.limit.has_room(self.now) == has_room
        if has_room:
            self.limit.in_flight += 1
            self.held += 1

    @precondition(lambda self: self.held)
    @rule(how=st.sampled_from(["grow", "shrink", "abandon", "nothing"]), ago=st.floats(0, 5))
    def release(self, how: str, ago: float) -> None:
        if how == "grow":
            self.limit.grow()
        elif how == "shrink":
            self.limit.shrink(self.now, self.now - ago)
        elif how == "abandon":
            self.limit.charge_abandoned(self.now + ago)
            self.abandoned.append(self.now + ago)
        self.limit.in_flight -= 1
        self.held -= 1

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(capacity=st.integers(1, 50))
    def set_capacity(self, capacity: int) -> None:
        self.limit.set_capacity(capacity)

    @invariant()
    def bounded(self) -> None:
        assert 1 <= self.limit.limit <= 20
        assert self.limit.abandoned(self.now) == sum(until > self.now for until in self.abandoned)


TestLimits = Limits.TestCase


def group_of(count: int, **changes: Any) -> list[Endpoint]:
    endpoints = [
        Endpoint(f"http://e{number}", Breaker(BreakerSettings(**changes), lambda: 0.5), AdaptiveLimit(16))
        for number in range(count)
    ]
    for endpoint in endpoints:
        endpoint.limit.set_capacity(None)
    return endpoints


def test_choose_spreads_calls_evenly() -> None:
    """Each of four equal endpoints gets 25 % of the calls, plus or minus 3."""
    endpoints, counts = group_of(4), Counter[str]()
    source = random.Random(7)
    held: list[Endpoint] = []
    for _ in range(10_000):
        if len(held) > 30 or (held and source.random() < 0.5):
            held.pop(source.randrange(len(held))).limit.in_flight -= 1
            continue
        choice = choose(endpoints, 0, avoid=(), random=source.random)
        assert choice is not None
        choice.limit.in_flight += 1
        held.append(choice)
        counts[choice.url] += 1
    for count in counts.values():
        assert 0.22 < count / counts.total() < 0.28


def test_choice_of_endpoint_by_load_breaker_and_earlier_attempts() -> None:
    """`choose` returns the less loaded of two endpoints, and if possible none to avoid.

    It returns one with an open breaker only if a probe is due or if all breakers are open.
    """
    endpoints = group_of(3, consecutive_failures=1)
    source = random.Random(3).random
    for _ in range(15):
        endpoints[0].limit.in_flight += 1
    assert {choose(endpoints[:2], 0, avoid=(), random=source).url for _ in range(20)} == {"http://e1"}  # type: ignore[union-attr]
    avoided = {choose(endpoints[1:], 0, avoid={"http://e1"}, random=source).url for _ in range(20)}  # type: ignore[union-attr]
    assert avoided == {"http://e2"}
    assert choose(endpoints[1:2], 0, avoid={"http://e1"}, random=source) is endpoints[1]
    endpoints[1].breaker.fail(100, 100)
    assert {choose(endpoints[1:], 101, avoid=(), random=source).url for _ in range(20)} == {"http://e2"}  # type: ignore[union-attr]
    probe = choose(endpoints[1:], 106, avoid=(), random=source)
    assert probe is endpoints[1]
    out = endpoints[1].breaker.start_probe()
    assert choose(endpoints[1:], 106, avoid=(), random=source) is endpoints[2]
    for endpoint in endpoints:
        endpoint.breaker.fail(106, 106, probe=out)
    all_open = {choose(endpoints[1:], 107, avoid=(), random=source).url for _ in range(20)}  # type: ignore[union-attr]
    assert all_open == {"http://e1", "http://e2"}
    for endpoint in endpoints:
        while endpoint.limit.has_room(107):
            endpoint.limit.in_flight += 1
    assert choose(endpoints, 107, avoid=(), random=source) is None


class Groups(RuleBasedStateMachine):
    """For any states of three endpoints, `choose` returns one if it has room, and each has at most one probe."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.random = random.Random(11).random
        self.endpoints = group_of(3)
        self.held: list[Permit] = []

    @rule(avoid=st.sets(st.integers(0, 2)))
    def call(self, avoid: set[int]) -> None:
        choice = choose(self.endpoints, self.now, avoid={f"http://e{n}" for n in avoid}, random=self.random)
        closed = [endpoint for endpoint in self.endpoints if endpoint.breaker.state == "closed"]
        usable = [endpoint for endpoint in closed or self.endpoints if endpoint.limit.has_room(self.now)]
        due = [e for e in self.endpoints if e.breaker.may_probe(self.now) and e.limit.has_room(self.now)]
        if choice is None:
            assert not usable
            assert not due
            return
        assert choice.limit.has_room(self.now)
        probes = choice.breaker.may_probe(self.now)
        assert probes is (choice in due)
        assert probes or choice in usable
        others = [e for e in usable if int(e.url[-1]) not in avoid]
        assert probes or not others or choice in others
        choice.limit.in_flight += 1
        probe = choice.breaker.start_probe() if probes else None
        self.held.append(Permit(choice, EndpointGroup("python", ()), self.now, probe))

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 1_000), succeeded=st.booleans())
    def end(self, index: int, succeeded: bool) -> None:
        choice = self.held.pop(index % len(self.held))
        breaker, limit = choice.endpoint.breaker, choice.endpoint.limit
        if succeeded:
            limit.grow()
            breaker.succeed(self.now, self.now)
        else:
            limit.shrink(self.now, self.now)
            breaker.fail(self.now, self.now, probe=choice.probe)
        limit.in_flight -= 1

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def one_probe_each(self) -> None:
        for endpoint in self.endpoints:
            probes = [choice for choice in self.held if choice.probe is not None and choice.endpoint is endpoint]
            assert endpoint.breaker.state != "half-open" or len(probes) >= 1
            assert endpoint.limit.in_flight == sum(choice.endpoint is endpoint for choice in self.held)


TestGroups = Groups.TestCase


def make_pool(clock: Clock, **limits: Any) -> PermitPool:
    pool = PermitPool(Settings(limiter=LimiterSettings(**limits)), clock=clock, random=random.Random(5).random)
    for family in ("python", "javascript"):
        for endpoint in pool.groups.get(family, ["http://a", "http://b"]).endpoints:
            endpoint.limit.set_capacity(None)
    return pool


async def test_waiters_are_served_in_order() -> None:
    """Waiting calls of all groups get permits in order. Cancelled calls are skipped, and no permit is lost."""
    pool = make_pool(Clock(), max_concurrency=1)
    python, js = pool.groups.get("python", ["http://a"]), pool.groups.get("javascript", ["http://b"])
    held = await acquire(pool, python, avoid=(), within_s=60)
    order: list[int] = []

    async def wait(number: int) -> None:
        choice = await acquire(pool, js if number % 2 else python, avoid=(), within_s=60)
        order.append(number)
        pool.release(choice, None)

    tasks = [asyncio.create_task(wait(number)) for number in range(10)]
    while pool.queued < 10:
        await asyncio.sleep(0)
    for number in (0, 3, 9):
        tasks[number].cancel()
    pool.release(held, None)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [number for number, end in enumerate(ends) if end is not None] == [0, 3, 9]
    assert order == [1, 2, 4, 5, 6, 7, 8]
    assert (pool.in_flight, pool.queued) == (0, 0)


async def test_a_permit_whose_caller_has_just_left_goes_to_the_next() -> None:
    """A call that is cancelled before it can use its permit passes it on, also to a call of another group."""
    pool = make_pool(Clock(), max_concurrency=1)
    python, js = pool.groups.get("python", ["http://a"]), pool.groups.get("javascript", ["http://b"])
    held = await acquire(pool, python)
    leaving, next_one = asyncio.create_task(acquire(pool, python)), asyncio.create_task(acquire(pool, js))
    while pool.queued < 2:
        await asyncio.sleep(0)
    pool.release(held, None)
    assert (pool.in_flight, pool.queued) == (1, 1)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    await asyncio.sleep(0)
    assert next_one.done()
    pool.release(await next_one, None)
    assert (pool.in_flight, pool.queued) == (0, 0)


async def test_a_full_endpoint_does_not_delay_other_groups() -> None:
    """A call that waits for a Python permit does not delay a JavaScript call, even at the same URL."""
    pool = make_pool(Clock(), max_concurrency=100)
    python, js = pool.groups.get("python", ["http://a"]), pool.groups.get("javascript", ["http://a"])
    for _ in range(16):
        await acquire(pool, python, avoid=(), within_s=60)
    waiting = asyncio.create_task(acquire(pool, python, avoid=(), within_s=60))
    await asyncio.sleep(0)
    assert (await acquire(pool, js, avoid=(), within_s=60)).endpoint.url == "http://a"
    assert (pool.in_flight, pool.queued) == (17, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.queued == 0
    pool.cancel_timer()


async def test_a_higher_limit_wakes_waiting_calls() -> None:
    """When the first call learns the capacity of an endpoint, other calls start before that call has ended."""
    pool = PermitPool(Settings(), clock=Clock(), random=random.Random(5).random)
    group = pool.groups.get("python", ["http://new"])
    held = await acquire(pool, group, avoid=(), within_s=60)
    waiting = [asyncio.create_task(acquire(pool, group, avoid=(), within_s=60)) for _ in range(5)]
    await asyncio.sleep(0)
    assert pool.queued == 5
    group.endpoints[0].limit.set_capacity(4)
    pool.wake()
    await asyncio.sleep(0)
    assert (pool.in_flight, pool.queued) == (4, 2)
    for permit in (held, *[task.result() for task in waiting[:3]]):
        pool.release(permit, None)
    for permit in await asyncio.gather(*waiting[3:]):
        pool.release(permit, None)
    assert (pool.in_flight, pool.queued) == (0, 0)


async def test_an_endpoint_whose_capacity_is_known_starts_with_it() -> None:
    """No call has to ask for it: as many as the capacity are sent at once, and the queue has its limit."""
    capacities = {("http://known", "python"): 4}
    settings = Settings(limiter=LimiterSettings(max_queue=2))
    pool = PermitPool(
        settings,
        clock=Clock(),
        random=random.Random(5).random,
        capacity_of=lambda url, family: capacities.get((url, family)),
    )
    group = pool.groups.get("python", ["http://known"])
    calls = [asyncio.create_task(acquire(pool, group, within_s=60)) for _ in range(9)]
    await asyncio.sleep(0)
    assert (pool.in_flight, pool.queued) == (4, 2)
    assert [type(call.exception()) for call in calls[6:]] == [QueueFullError] * 3
    for call in calls[:6]:
        pool.release(await call, None)
    # Of other endpoints, the first call learns the capacity.
    assert pool.groups.get("js", ["http://known"]).endpoints[0].limit.limit == 1


def test_endpoint_that_backs_off_gets_no_calls() -> None:
    """The endpoint has no calls in flight, but `choose` returns the other one, until the back-off ends."""
    endpoints, source = group_of(2), random.Random(3).random
    endpoints[0].limit.back_off(110)
    for _ in range(10):
        endpoints[1].limit.in_flight += 1
    assert {choose(endpoints, 109, avoid=(), random=source).url for _ in range(20)} == {"http://e1"}  # type: ignore[union-attr]
    assert choose(endpoints, 110, avoid=(), random=source) is endpoints[0]
    assert choose(endpoints[:1], 109, avoid=(), random=source) is endpoints[0]


async def test_the_queue_is_bounded_in_length_and_time() -> None:
    """A call fails at once if the queue is full. The error of a call that waited too long has `sent="no"`."""
    pool = make_pool(Clock(), max_concurrency=1, max_queue=1)
    group = pool.groups.get("python", ["http://a"])
    held = await acquire(pool, group, avoid=(), within_s=60)
    waiting = asyncio.create_task(acquire(pool, group, avoid=(), within_s=0.01))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await acquire(pool, group, avoid=(), within_s=0.01)
    with pytest.raises(DeadlineExceededError) as caught:
        await waiting
    assert caught.value.sent == "no"
    pool.release(held, None)
    assert (pool.in_flight, pool.queued) == (0, 0)


@pytest.mark.parametrize("refused", [True, False])
async def test_only_a_refused_connection_clears_abandoned_calls(refused: bool) -> None:
    """A server that refuses connections has stopped. One that is slow to accept them may still run programs."""
    clock = Clock()
    pool = make_pool(clock)
    group = pool.groups.get("python", ["http://a"])
    group.endpoints[0].limit.charge_abandoned(clock.now + 60)
    error = ConnectError("cannot connect", sent="no", connection_refused=refused)
    pool.release(await acquire(pool, group), error)
    assert group.endpoints[0].limit.abandoned(clock.now) == (0 if refused else 1)
    pool.cancel_timer()


async def test_waiting_calls_wake_when_a_penalty_ends(clock: LoopClock) -> None:
    """A waiting call gets a permit when an abandoned call is no longer charged, or when an endpoint may be probed."""
    pool = PermitPool(Settings(), clock=clock, random=random.Random(5).random)
    group = pool.groups.get("python", ["http://a"])
    limit = group.endpoints[0].limit
    limit.set_capacity(1)
    limit.charge_abandoned(clock() + 30)
    waiting = asyncio.ensure_future(acquire(pool, group, avoid=(), within_s=60))
    await asyncio.sleep(0)
    assert pool.queued == 1
    clock.advance(31)
    choice = await waiting
    pool.release(choice, None)
    two = pool.groups.get("python", ["http://b", "http://c"])
    two.endpoints[1].limit.set_capacity(1)
    two.endpoints[0].limit.set_capacity(None)
    held = await acquire(pool, pool.groups.get("python", ["http://c"]), avoid=(), within_s=60)
    opened = two.endpoints[0].breaker
    for _ in range(5):
        opened.fail(clock(), clock())
    waiting = asyncio.ensure_future(acquire(pool, two, avoid=(), within_s=60))
    await asyncio.sleep(0)
    assert pool.queued == 1
    clock.advance(31)
    probe = await waiting
    assert (probe.endpoint.url, probe.probe) == ("http://b", 1)
    pool.release(probe, asyncio.CancelledError())
    pool.release(held, None)
    assert opened.state == "open"
    pool.cancel_timer()


Start = tuple[str, int, int, int | None]
STARTS = st.tuples(
    st.sampled_from(["python", "javascript"]), st.integers(0, 3), st.integers(0, 1), st.none() | st.integers(0, 5)
)
"""The language of a call, the turns of the event loop that it holds its permit and that pass before the next call, and
the number of a call that is then cancelled, of those that have not ended.
"""


async def end_of(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the end of calls, which use no timers, and raise the errors of those that were not cancelled."""
    turns = 0
    while not all(task.done() for task in tasks):
        turns += 1
        assert turns < 1_000, "a call waits for ever"
        await asyncio.sleep(0)
    for task in tasks:
        if not task.cancelled():
            task.result()


@given(
    plan=st.lists(STARTS, max_size=40),
    most=st.integers(1, 5),
)
def test_no_permit_is_lost(plan: list[Start], most: int) -> None:
    """Whenever calls are cancelled, all others get a permit, all permits are released in the end, and never more than
    the maximum are in use.
    """

    async def play() -> None:
        pool = make_pool(Clock(), max_concurrency=most)
        peak = 0

        async def call(family: str, turns: int) -> None:
            nonlocal peak
            choice = await acquire(pool, pool.groups.get(family, ["http://a", "http://b"]))
            try:
                peak = max(peak, pool.in_flight)
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                pool.release(choice, None)

        tasks = []
        for family, turns, pause, cancelled in plan:
            tasks.append(asyncio.create_task(call(family, turns)))
            for _ in range(pause):
                await asyncio.sleep(0)
            if cancelled is not None and (left := [task for task in tasks if not task.done()]):
                left[cancelled % len(left)].cancel()
        await end_of(tasks)
        assert (pool.in_flight, pool.queued) == (0, 0)
        assert peak <= most
        assert all(endpoint.limit.in_flight == 0 for _, endpoint in pool.groups.endpoints())

    asyncio.run(play())


def test_a_higher_cap_lifts_only_limits_that_the_old_one_restricted() -> None:
    """The capacity of the server, and a limit that has shrunk, stay. A lower cap applies at once."""
    for capacity, expected in ((None, 16), (7, 7)):
        restricted = AdaptiveLimit(2)
        restricted.set_cap(300)
        assert restricted.limit == 1
        restricted.set_capacity(capacity)
        restricted.set_cap(2)
        assert restricted.limit == 2
        restricted.set_cap(300)
        assert restricted.limit == expected
    shrunk = AdaptiveLimit(10)
    shrunk.set_capacity(None)
    shrunk.shrink(100, 99)
    shrunk.set_cap(300)
    assert shrunk.limit == 9


async def test_callers_of_a_group_without_endpoints_do_not_wait() -> None:
    """Such callers get None, also those that wait when the last endpoint leaves, and look for another group."""
    replicas = ["http://a#1"]
    pool = PermitPool(
        Settings(limiter=LimiterSettings(max_concurrency=1)),
        clock=Clock(),
        random=random.Random(5).random,
        replicas_of=lambda urls: list(replicas),
    )
    held = await acquire(pool, pool.groups.get("python", ["dns+http://a"]))
    assert held is not None
    waiting = [asyncio.create_task(acquire(pool, pool.groups.get("python", ["dns+http://a"]))) for _ in range(3)]
    while pool.queued < 3:
        await asyncio.sleep(0)
    waiting[1].cancel()
    replicas.clear()
    pool.refresh()
    assert await asyncio.gather(*waiting, return_exceptions=True) == [None, ANY, None]
    assert (waiting[1].cancelled(), pool.queued) == (True, 0)
    assert await acquire(pool, pool.groups.get("python", ["dns+http://a"])) is None
    pool.release(held, None)
    assert (pool.in_flight, pool.groups.endpoints()) == (0, [])


async def test_an_endpoint_that_leaves_stays_if_a_session_needs_it() -> None:
    """The session was being opened when its endpoint left the settings, and another call still ran there."""
    replicas, idle = ["http://a#1"], list[str]()
    pool = PermitPool(
        Settings(),
        clock=Clock(),
        random=random.Random(5).random,
        replicas_of=lambda urls: list(replicas),
        on_idle=idle.append,
    )
    group = pool.groups.get("python", ["dns+http://a"])
    opening = pool.try_acquire(group)
    assert opening is not None
    opening.endpoint.limit.set_capacity(None)  # until it is known, there is one call
    other = pool.try_acquire(group)
    assert other is not None
    replicas[:] = ["http://a#2"]
    pool.refresh()
    pinned = pool.groups.pin("python", "http://a#1")
    pool.release(opening, None)
    pool.release(other, None)
    assert (idle, pool.groups.is_used("http://a#1")) == ([], True)
    held = pool.try_acquire(pinned)
    assert held is not None
    assert held.endpoint is opening.endpoint


CHANGES = st.one_of(
    st.lists(st.sampled_from(["http://a#1", "http://a#2", "http://a#3"]), min_size=1, unique=True), st.integers(1, 5)
)


@given(
    plan=st.lists(STARTS, max_size=30),
    changes=st.lists(CHANGES, min_size=1, max_size=30),
)
def test_no_permit_is_lost_while_replicas_change(plan: list[Start], changes: list[list[str] | int]) -> None:
    """After any order of calls and changes, all permits are released, and only the replicas that stay are known.

    An endpoint that has left is reported once, and not while it has calls in flight.
    """

    async def play() -> None:
        replicas, idle = ["http://a#1"], list[str]()

        def on_idle(url: str) -> None:
            assert not any(endpoint.url == url for _, endpoint in pool.groups.endpoints())
            idle.append(url)

        pool = PermitPool(
            Settings(limiter=LimiterSettings(max_concurrency=2)),
            clock=Clock(),
            random=random.Random(5).random,
            replicas_of=lambda urls: [*replicas] if urls else [],
            on_idle=on_idle,
        )

        async def call(family: str, turns: int) -> None:
            choice = await acquire(pool, pool.groups.get(family, ["dns+http://a"]))
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
                assert choice.endpoint in [endpoint for _, endpoint in pool.groups.endpoints()]
            finally:
                pool.release(choice, None)

        tasks = []
        for index, (family, turns, pause, cancelled) in enumerate(plan):
            tasks.append(asyncio.create_task(call(family, turns)))
            for _ in range(pause):
                await asyncio.sleep(0)
            if cancelled is not None and (left := [task for task in tasks if not task.done()]):
                left[cancelled % len(left)].cancel()
            change = changes[index % len(changes)]
            if isinstance(change, int):
                limiter = LimiterSettings(max_concurrency=change)
                pool.reconfigure(Settings(limiter=limiter), lambda group: group.urls)
            else:
                replicas[:] = change
                pool.refresh()
        await end_of(tasks)
        assert (pool.in_flight, pool.queued) == (0, 0)
        assert {endpoint.url for _, endpoint in pool.groups.endpoints()} <= set(replicas)
        assert all(endpoint.limit.in_flight == 0 for _, endpoint in pool.groups.endpoints())

    asyncio.run(play())
