"""Breaker, limit, balancer and gate by themselves, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from faasrt import BreakerSettings, DeadlineExceededError, LimiterSettings, QueueFullError
from faasrt.transport.balancer import Choice, Endpoint, choose
from faasrt.transport.breaker import Breaker
from faasrt.transport.gate import Gate, Permit
from faasrt.transport.limiter import AdaptiveLimit


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(**changes: Any) -> Breaker:
    return Breaker(BreakerSettings(**changes), lambda: 0.5)


def test_five_failures_in_a_row_eject() -> None:
    """A success in between starts the count anew."""
    one = breaker()
    for _ in range(4):
        one.fail(100, 100)
    one.succeed(100, 100)
    for _ in range(4):
        one.fail(100, 100)
    assert one.state == "closed"
    one.fail(100, 100)
    assert (one.state, one.until, one.due(104.9), one.due(105)) == ("ejected", 105.0, False, True)


def test_too_few_successes_eject() -> None:
    """Fewer than 80 % of at least 20 calls in the last 30 seconds."""
    one = breaker()
    for second in range(19):
        (one.fail if second % 4 == 0 else one.succeed)(100 + second, 100 + second)
    assert one.state == "closed"
    one.fail(119, 119)
    assert one.state == "ejected"
    old = breaker()
    for second in range(0, 4_000, 100):
        (old.fail if second % 200 == 0 else old.succeed)(100 + second, 100 + second)
    assert old.state == "closed"


def test_ejections_double_and_are_forgiven() -> None:
    """5, 10, 20 ... 300 s, each ended by one canary; a long time of good calls starts anew."""
    one = breaker()
    now, lengths = 100.0, []
    for _ in range(5):
        one.fail(now, now)
    for _ in range(9):
        lengths.append(one.until - now)
        now = one.until
        assert one.due(now)
        canary = one.send_canary()
        assert not one.due(now)
        one.fail(now, now, canary=canary)
    assert lengths == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    one.send_canary()
    one.succeed(now + 300, now + 299)
    assert one.state == "closed"
    for _ in range(5):
        one.fail(now + 1_000, now + 1_000)
    assert one.until - (now + 1_000) == 5


def test_a_cancelled_canary_makes_room_for_another() -> None:
    """Neither well nor ill: the next call may be the canary at once."""
    one = breaker(consecutive_failures=1)
    one.fail(100, 100)
    one.forgo_canary(106, one.send_canary())
    assert one.due(106)


def test_a_stale_canary_does_nothing() -> None:
    """Only the one that is out now says whether the endpoint is well."""
    one = breaker(consecutive_failures=1)
    one.fail(100, 100)
    stale = one.send_canary()
    one.succeed(106, 105)
    one.fail(107, 107)
    until = one.until
    one.fail(108, 106, canary=stale)
    assert one.until == until
    one.send_canary()
    one.forgo_canary(120, stale)
    assert one.state == "canary"


def test_failures_from_before_a_recovery_say_nothing_of_it() -> None:
    """Calls that began before the endpoint was re-admitted do not eject it again."""
    changes: list[str] = []
    one = Breaker(BreakerSettings(), lambda: 0.5, lambda: changes.append(one.state))
    for _ in range(5):
        one.fail(100, 99)
    one.succeed(110, 106)
    for _ in range(20):
        one.fail(111, 99)
    assert one.state == "closed"
    assert changes == ["ejected", "closed"]


def test_what_was_sent_before_an_ejection_says_nothing_of_it() -> None:
    """A late success does not re-admit, a late failure does not prolong."""
    one = breaker(consecutive_failures=1)
    one.fail(100, 100)
    one.succeed(101, 99)
    one.fail(102, 102)
    assert (one.state, one.until) == ("ejected", 105.0)
    one.succeed(103, 101)
    assert one.state == "closed"


class Breakers(RuleBasedStateMachine):
    """In any order of events: one canary at most, and only when the time is over."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.breaker = Breaker(BreakerSettings(), random.Random(1).random)
        self.canary = 0

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

    @precondition(lambda self: self.breaker.due(self.now))
    @rule()
    def send_canary(self) -> None:
        assert self.breaker.state == "ejected"
        assert self.now >= self.breaker.until
        self.canary = self.breaker.send_canary()
        assert not self.breaker.due(self.now + 1e9)

    @precondition(lambda self: self.breaker.state == "canary")
    @rule(how=st.sampled_from(["succeed", "fail", "forgo"]))
    def end_canary(self, how: str) -> None:
        if how == "succeed":
            self.breaker.succeed(self.now, self.now)
            assert self.breaker.state == "closed"
        elif how == "fail":
            self.breaker.fail(self.now, self.now, canary=self.canary)
            assert self.breaker.state == "ejected"
        else:
            self.breaker.forgo_canary(self.now, self.canary)
            assert self.breaker.due(self.now)

    @invariant()
    def bounded(self) -> None:
        assert self.breaker.state in ("closed", "ejected", "canary")
        if self.breaker.state == "ejected":
            assert self.breaker.until <= self.now + 300


TestBreakers = Breakers.TestCase


def test_a_limit_grows_by_one_for_a_full_window() -> None:
    """While at least half of it is used; up to its cap."""
    limit = AdaptiveLimit(cap=18)
    assert limit.limit == 1
    limit.learn(None)
    assert limit.limit == 16
    for _ in range(8):
        limit.take()
    for _ in range(15):
        limit.grow()
    assert limit.limit == 16
    limit.grow()
    assert limit.limit == 17
    limit.give()
    for _ in range(100):
        limit.grow()
    assert limit.limit == 17
    limit.take()
    limit.take()
    for _ in range(100):
        limit.grow()
    assert limit.limit == 18


def test_a_limit_shrinks_once_for_what_was_under_way() -> None:
    """Ten refusals of one burst are one sign; a call that began later is another. Never below one."""
    limit = AdaptiveLimit(cap=256)
    limit.learn(None)
    for _ in range(10):
        limit.shrink(now=100, started=99)
    assert limit.limit == pytest.approx(14.4)
    limit.shrink(now=102, started=101)
    assert limit.limit == pytest.approx(12.96)
    for second in range(200):
        limit.shrink(now=200 + second, started=199.5 + second)
    assert limit.limit == 1
    assert limit.has_room(500)


def test_a_limit_learns_the_size() -> None:
    """Start and cap are what the endpoint says, within our own bound."""
    limit = AdaptiveLimit(cap=10)
    limit.learn(None)
    assert limit.limit == 10
    limit.learn(4)
    assert limit.limit == 4
    limit.shrink(100, 99)
    limit.learn(4)  # it still says so: nothing is learned anew
    assert limit.limit == pytest.approx(3.6)
    limit.learn(40)
    assert limit.limit == 10


def test_a_limit_tells_when_it_changes() -> None:
    """When it is first known, and then only when it is another: not at its cap, and not at its floor."""
    told: list[float] = []
    limit = AdaptiveLimit(2, lambda: told.append(limit.limit))
    limit.learn(None)
    limit.learn(None)
    limit.take()
    limit.take()
    for _ in range(10):
        limit.grow()
    for second in range(100):
        limit.shrink(second, second - 0.5)
    assert told == pytest.approx([2, 1.8, 1.62, 1.458, 1.3122, 1.18098, 1.062882, 1])
    limit.learn(1)
    limit.learn(1)
    assert told[-1] == 1
    assert len(told) == 9


class Limits(RuleBasedStateMachine):
    """Never more permits than the limit, never less than none, never outside the bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.limit = AdaptiveLimit(cap=20)
        self.held = 0

    @precondition(lambda self: self.limit.has_room(self.now))
    @rule()
    def take(self) -> None:
        assert self.limit.in_flight + self.limit.zombies(self.now) + 1 <= self.limit.limit
        self.limit.take()
        self.held += 1

    @precondition(lambda self: self.held)
    @rule(how=st.sampled_from(["grow", "shrink", "haunt", "nothing"]), ago=st.floats(0, 5))
    def give(self, how: str, ago: float) -> None:
        if how == "grow":
            self.limit.grow()
        elif how == "shrink":
            self.limit.shrink(self.now, self.now - ago)
        elif how == "haunt":
            self.limit.haunt(self.now + ago)
        self.limit.give()
        self.held -= 1

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(capacity=st.integers(1, 50))
    def learn(self, capacity: int) -> None:
        self.limit.learn(capacity)

    @invariant()
    def bounded(self) -> None:
        assert 1 <= self.limit.limit <= 20
        assert self.limit.in_flight == self.held >= 0
        assert self.limit.zombies(self.now + 100) >= 0


TestLimits = Limits.TestCase


def fleet_of(count: int, **changes: Any) -> list[Endpoint]:
    endpoints = [
        Endpoint(f"http://e{number}", Breaker(BreakerSettings(**changes), lambda: 0.5), AdaptiveLimit(16))
        for number in range(count)
    ]
    for endpoint in endpoints:
        endpoint.limit.learn(None)
    return endpoints


def test_equal_replicas_get_equal_shares() -> None:
    """Four of them get 25 % each, within 3."""
    endpoints, counts = fleet_of(4), Counter[str]()
    source = random.Random(7)
    held: list[Choice] = []
    for _ in range(10_000):
        if len(held) > 30 or (held and source.random() < 0.5):
            held.pop(source.randrange(len(held))).endpoint.limit.give()
            continue
        choice = choose(endpoints, 0, avoid=(), random=source.random)
        assert choice is not None
        choice.endpoint.limit.take()
        held.append(choice)
        counts[choice.endpoint.url] += 1
    for count in counts.values():
        assert 0.22 < count / counts.total() < 0.28


def test_who_is_chosen() -> None:
    """The emptier of two; not who is to be avoided; not who is ejected, unless all are, or its time is over."""
    endpoints = fleet_of(3, consecutive_failures=1)
    source = random.Random(3).random
    for _ in range(15):
        endpoints[0].limit.take()
    assert {choose(endpoints[:2], 0, avoid=(), random=source).endpoint.url for _ in range(20)} == {"http://e1"}  # type: ignore[union-attr]
    avoided = {choose(endpoints[1:], 0, avoid={"http://e1"}, random=source).endpoint.url for _ in range(20)}  # type: ignore[union-attr]
    assert avoided == {"http://e2"}
    assert choose(endpoints[1:2], 0, avoid={"http://e1"}, random=source) == Choice(endpoints[1])
    endpoints[1].breaker.fail(100, 100)
    assert {choose(endpoints[1:], 101, avoid=(), random=source).endpoint.url for _ in range(20)} == {"http://e2"}  # type: ignore[union-attr]
    canary = choose(endpoints[1:], 106, avoid=(), random=source)
    assert canary == Choice(endpoints[1], canary=True)
    out = endpoints[1].breaker.send_canary()
    assert choose(endpoints[1:], 106, avoid=(), random=source) == Choice(endpoints[2])
    for endpoint in endpoints:
        endpoint.breaker.fail(106, 106, canary=out)
    panic = {choose(endpoints[1:], 107, avoid=(), random=source).endpoint.url for _ in range(20)}  # type: ignore[union-attr]
    assert panic == {"http://e1", "http://e2"}
    for endpoint in endpoints:
        while endpoint.limit.has_room(107):
            endpoint.limit.take()
    assert choose(endpoints, 107, avoid=(), random=source) is None


class Fleets(RuleBasedStateMachine):
    """A fleet of three in any state: who has room is used, one canary at most, and all-bad still serves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.random = random.Random(11).random
        self.endpoints = fleet_of(3)
        self.held: list[Permit] = []

    @rule(avoid=st.sets(st.integers(0, 2)))
    def call(self, avoid: set[int]) -> None:
        choice = choose(self.endpoints, self.now, avoid={f"http://e{n}" for n in avoid}, random=self.random)
        closed = [endpoint for endpoint in self.endpoints if endpoint.breaker.state == "closed"]
        usable = [endpoint for endpoint in closed or self.endpoints if endpoint.limit.has_room(self.now)]
        due = [e for e in self.endpoints if e.breaker.due(self.now) and e.limit.has_room(self.now)]
        if choice is None:
            assert not usable
            assert not due
            return
        assert choice.endpoint.limit.has_room(self.now)
        assert choice.canary is (choice.endpoint in due)
        assert choice.canary or choice.endpoint in usable
        others = [e for e in usable if int(e.url[-1]) not in avoid]
        assert choice.canary or not others or choice.endpoint in others
        choice.endpoint.limit.take()
        canary = choice.endpoint.breaker.send_canary() if choice.canary else None
        self.held.append(Permit(choice.endpoint, canary))

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 1_000), well=st.booleans())
    def end(self, index: int, well: bool) -> None:
        choice = self.held.pop(index % len(self.held))
        breaker, limit = choice.endpoint.breaker, choice.endpoint.limit
        if well:
            limit.grow()
            breaker.succeed(self.now, self.now)
        else:
            limit.shrink(self.now, self.now)
            breaker.fail(self.now, self.now, canary=choice.canary)
        limit.give()

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def one_canary_each(self) -> None:
        for endpoint in self.endpoints:
            canaries = [choice for choice in self.held if choice.canary is not None and choice.endpoint is endpoint]
            assert endpoint.breaker.state != "canary" or len(canaries) >= 1
            assert endpoint.limit.in_flight == sum(choice.endpoint is endpoint for choice in self.held)


TestFleets = Fleets.TestCase


def make_gate(clock: Clock, **limits: Any) -> Gate:
    gate = Gate(LimiterSettings(**limits), BreakerSettings(), clock=clock, random=random.Random(5).random)
    for family in ("python", "javascript"):
        for endpoint in gate.fleet(family, ["http://a", "http://b"]).endpoints:
            endpoint.limit.learn(None)
    return gate


async def test_waiters_are_served_in_order() -> None:
    """First come, first served, over everything; cancelled ones leave no gap, and no permit is lost."""
    gate = make_gate(Clock(), max_concurrency=1)
    python, js = gate.fleet("python", ["http://a"]), gate.fleet("javascript", ["http://b"])
    held = await gate.acquire(python, avoid=(), within_s=60)
    order: list[int] = []

    async def wait(number: int) -> None:
        choice = await gate.acquire(js if number % 2 else python, avoid=(), within_s=60)
        order.append(number)
        gate.release(choice)

    tasks = [asyncio.create_task(wait(number)) for number in range(10)]
    while gate.queued < 10:
        await asyncio.sleep(0)
    for number in (0, 3, 9):
        tasks[number].cancel()
    gate.release(held)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [1, 2, 4, 5, 6, 7, 8]
    assert (gate.in_flight, gate.queued) == (0, 0)


async def test_one_full_endpoint_does_not_hold_up_the_others() -> None:
    """Who waits for Python takes nothing from who wants JavaScript."""
    gate = make_gate(Clock(), max_concurrency=100)
    python, js = gate.fleet("python", ["http://a"]), gate.fleet("javascript", ["http://a"])
    for _ in range(16):
        await gate.acquire(python, avoid=(), within_s=60)
    waiting = asyncio.create_task(gate.acquire(python, avoid=(), within_s=60))
    await asyncio.sleep(0)
    assert (await gate.acquire(js, avoid=(), within_s=60)).endpoint.url == "http://a"
    assert (gate.in_flight, gate.queued) == (17, 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert gate.queued == 0
    gate.close()


async def test_a_limit_that_is_raised_wakes_those_who_wait() -> None:
    """The first call finds out what the endpoint bears; the others need not wait until it has ended."""
    gate = Gate(LimiterSettings(), BreakerSettings(), clock=Clock(), random=random.Random(5).random)
    fleet = gate.fleet("python", ["http://new"])
    held = await gate.acquire(fleet, avoid=(), within_s=60)
    waiting = [asyncio.create_task(gate.acquire(fleet, avoid=(), within_s=60)) for _ in range(5)]
    await asyncio.sleep(0)
    assert gate.queued == 5
    fleet.endpoints[0].limit.learn(4)
    gate.pump()
    await asyncio.sleep(0)
    assert (gate.in_flight, gate.queued) == (4, 2)
    for permit in (held, *[task.result() for task in waiting[:3]]):
        gate.release(permit)
    for permit in await asyncio.gather(*waiting[3:]):
        gate.release(permit)
    assert (gate.in_flight, gate.queued) == (0, 0)


def test_one_that_refuses_is_left_alone() -> None:
    """It is empty, and would draw every call; while it asks to be left alone, the others are taken."""
    endpoints, source = fleet_of(2), random.Random(3).random
    endpoints[0].limit.cool(110)
    for _ in range(10):
        endpoints[1].limit.take()
    assert {choose(endpoints, 109, avoid=(), random=source).endpoint.url for _ in range(20)} == {"http://e1"}  # type: ignore[union-attr]
    assert choose(endpoints, 110, avoid=(), random=source) == Choice(endpoints[0])
    assert choose(endpoints[:1], 109, avoid=(), random=source) == Choice(endpoints[0])


async def test_the_queue_is_bounded_in_length_and_time() -> None:
    """One too many is told so at once; who waits too long is told that nothing was sent."""
    gate = make_gate(Clock(), max_concurrency=1, max_queue=1)
    fleet = gate.fleet("python", ["http://a"])
    held = await gate.acquire(fleet, avoid=(), within_s=60)
    waiting = asyncio.create_task(gate.acquire(fleet, avoid=(), within_s=0.01))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await gate.acquire(fleet, avoid=(), within_s=60)
    with pytest.raises(DeadlineExceededError) as caught:
        await waiting
    assert caught.value.sent == "no"
    gate.release(held)
    assert (gate.in_flight, gate.queued) == (0, 0)


async def test_time_alone_makes_room() -> None:
    """A zombie that is gone, and an ejection that is over, wake those who wait."""
    loop = asyncio.get_running_loop()
    gate = Gate(LimiterSettings(), BreakerSettings(), clock=loop.time, random=random.Random(5).random)
    fleet = gate.fleet("python", ["http://a"])
    limit = fleet.endpoints[0].limit
    limit.learn(1)
    limit.haunt(loop.time() + 0.02)
    choice = await gate.acquire(fleet, avoid=(), within_s=60)
    assert loop.time() >= 0
    gate.release(choice)
    two = gate.fleet("python", ["http://b", "http://c"])
    two.endpoints[1].limit.learn(1)
    two.endpoints[0].limit.learn(None)
    held = await gate.acquire(gate.fleet("python", ["http://c"]), avoid=(), within_s=60)
    ill = two.endpoints[0].breaker
    for _ in range(5):
        ill.fail(loop.time(), loop.time())
    ill.until = loop.time() + 0.02
    canary = await gate.acquire(two, avoid=(), within_s=60)
    assert (canary.endpoint.url, canary.canary) == ("http://b", 1)
    gate.release(canary)
    gate.release(held)
    assert ill.state == "ejected"
    gate.close()


@settings(max_examples=60, deadline=None)
@given(
    plan=st.lists(st.tuples(st.sampled_from(["python", "javascript"]), st.integers(0, 3), st.booleans()), max_size=40),
    most=st.integers(1, 5),
)
def test_no_permit_is_lost(plan: list[tuple[str, int, bool]], most: int) -> None:
    """Whatever is cancelled at whatever moment, in the end every permit is back, and never were there too many."""

    async def play() -> None:
        gate = make_gate(Clock(), max_concurrency=most)
        peak = 0

        async def call(family: str, turns: int) -> None:
            nonlocal peak
            choice = await gate.acquire(gate.fleet(family, ["http://a", "http://b"]), avoid=(), within_s=60)
            try:
                peak = max(peak, gate.in_flight)
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                gate.release(choice)

        tasks = []
        for family, turns, cancelled in plan:
            tasks.append(asyncio.create_task(call(family, turns)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if cancelled:
                tasks[-1 - turns % len(tasks)].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (gate.in_flight, gate.queued) == (0, 0)
        assert peak <= most
        assert all(endpoint.limit.in_flight == 0 for _, endpoint in gate.endpoints())

    asyncio.run(play())
