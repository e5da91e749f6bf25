"""The choice between replicas: slow and failing ones, groups of many, and the cost of a choice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from faasrt import BreakerSettings, ConnectError, ConnectionLostError, LimiterSettings, OverloadedError, Settings
from faasrt.transport.adaptive_limit import AdaptiveLimit
from faasrt.transport.breaker import Breaker
from faasrt.transport.endpoint import MANY, Endpoint, choose
from faasrt.transport.groups import EndpointGroup
from faasrt.transport.latency import EndpointLatency, TypicalLatency
from faasrt.transport.pool import PermitPool
from support.helpers import acquire


def replicas(count: int, limit: int = 16) -> list[Endpoint]:
    typical = TypicalLatency()
    endpoints = [
        Endpoint(
            f"http://e{number}",
            Breaker(BreakerSettings(), lambda: 0.5),
            AdaptiveLimit(limit),
            EndpointLatency(typical),
        )
        for number in range(count)
    ]
    for endpoint in endpoints:
        endpoint.limit.set_capacity(None)
    return endpoints


def shares(endpoints: list[Endpoint], now: float, recent: tuple[Endpoint, ...] = ()) -> Counter[str]:
    source = random.Random(3).random
    chosen = [choose(endpoints, now, avoid=(), random=source, recent=recent) for _ in range(200)]
    return Counter(endpoint.url for endpoint in chosen if endpoint is not None)


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.8])
def test_a_ten_times_slower_endpoint_gets_calls_only_when_the_other_is_full(spread: float) -> None:
    """It is found, however much the durations of programs differ."""
    one, slow = replicas(2)
    source = random.Random(5)
    for _ in range(40):
        one.latency.add(source.lognormvariate(0, spread), 100)
        slow.latency.add(10 * source.lognormvariate(0, spread), 100)
    for _ in range(100):  # most calls go to the other one, so this is what is usual
        one.latency.add(source.lognormvariate(0, spread), 100)
    slow.latency.add(10, 100)
    assert slow.latency.slowness(101, 0) > 2
    assert shares([one, slow], 101) == {"http://e0": 200}
    while one.limit.has_room(101):
        assert shares([one, slow], 101) == {"http://e0": 200}
        one.limit.in_flight += 1
    assert shares([one, slow], 101) == {"http://e1": 200}


def test_equal_endpoints_get_equal_shares() -> None:
    """Each of four endpoints gets 25 % of the calls, plus or minus 3, with up to 40 calls in flight."""
    endpoints, source, counts, in_flight = replicas(4), random.Random(3), Counter[str](), list[Endpoint]()
    for _ in range(2_400):
        chosen = choose(endpoints, 100, avoid=(), random=source.random)
        assert chosen is not None
        chosen.limit.in_flight += 1
        counts[chosen.url] += 1
        in_flight.append(chosen)
        if len(in_flight) == 40 or source.random() < 0.3:
            in_flight.pop(source.randrange(len(in_flight))).limit.in_flight -= 1
    assert all(0.22 < count / 2_400 < 0.28 for count in counts.values()), counts


def test_idle_endpoints_with_different_limits_get_equal_shares() -> None:
    """The endpoint with the larger limit gets more calls only when both are loaded."""
    small, large = replicas(2)
    small.limit.set_capacity(2)
    assert shares([small, large], 100)["http://e0"] > 60
    small.limit.in_flight += 1
    large.limit.in_flight += 1
    assert shares([small, large], 100) == {"http://e1": 200}


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.8, 2.5])
def test_equal_endpoints_do_not_look_slow(spread: float) -> None:
    """With 8 equal endpoints and programs of any mixture, at most 1 % of the answers make an endpoint look slow."""
    endpoints, source, slow = replicas(8), random.Random(2), 0
    for _ in range(20_000):
        endpoint = source.choice(endpoints)
        endpoint.latency.add(source.lognormvariate(0, spread), 100)
        slow += endpoint.latency.slowness(100, 0) > 1
    assert slow <= 200


def test_the_first_calls_make_no_endpoint_slow() -> None:
    """Neither a long first program, nor the slow start of an endpoint, nor a few different programs say much."""
    one, other = replicas(2)
    for endpoint, duration_s in ((one, 60), (one, 0.01), (other, 60), (other, 1), (one, 0.01), (other, 1)):
        endpoint.latency.add(duration_s, 100)
        assert (one.latency.slowness(100, 1), other.latency.slowness(100, 1)) == (1, 1)


def test_a_slow_endpoint_is_tried_again_with_one_call() -> None:
    """After 5 s without an answer it is chosen like others, but not while that call is in flight."""
    one, slow = replicas(2)
    for _ in range(20):
        one.latency.add(1, 100)
    for _ in range(20):
        slow.latency.add(10, 100)
        one.latency.add(1, 100)
    assert shares([one, slow], 104.9) == {"http://e0": 200}
    one.latency.add(1, 106)
    one.limit.in_flight += 1
    assert shares([one, slow], 106) == {"http://e1": 200}
    slow.limit.in_flight += 1
    assert shares([one, slow], 106) == {"http://e0": 200}
    for _ in range(20):
        slow.latency.add(1, 107)
    assert slow.latency.slowness(107, 1) == 1


@pytest.mark.parametrize("failures", [[True], [False, False]])
def test_a_failing_endpoint_gets_no_calls_until_it_is_tried_again(failures: list[bool]) -> None:
    """An endpoint that fails at once always has room, and must not get all further calls for that."""
    one, failed = replicas(2)
    for is_away in failures:
        failed.latency.add_failure(100, is_away=is_away)
    one.limit.in_flight += 1
    assert shares([one, failed], 104) == {"http://e0": 200}
    assert shares([one, failed], 106) == {"http://e1": 200}
    failed.latency.add_start(106)
    assert shares([one, failed], 106) == {"http://e0": 200}
    assert shares([one, failed], 112) == {"http://e1": 200}
    failed.latency.add_answer()
    one.limit.in_flight += 1
    assert shares([one, failed], 107) == {"http://e1": 200}
    while one.limit.has_room(107):
        one.limit.in_flight += 1
    failed.latency.add_failure(107, is_away=False)
    assert choose([one, failed], 107, avoid=(), random=lambda: 0.5) is failed  # perhaps its program was the cause
    failed.latency.add_failure(107, is_away=False)
    assert choose([one, failed], 107, avoid=(), random=lambda: 0.5) is None
    one.latency.add_failure(107, is_away=True)
    assert choose([one, failed], 107, avoid=(), random=lambda: 0.5) is failed


def test_a_client_of_many_endpoints_prefers_those_that_answered_lately() -> None:
    """An endpoint that has answered is preferred to unknown ones, until half of its limit is in use."""
    endpoints = replicas(1_000)
    known = endpoints[7]
    known.latency.add(1, 100)
    assert shares(endpoints, 101, (known,)) == {"http://e7": 200}
    for _ in range(9):
        known.limit.in_flight += 1
    assert shares(endpoints, 101, (known,))["http://e7"] == 0
    assert len(shares(endpoints, 101, (known,))) > 100


def test_many_endpoints_are_probed_avoided_and_skipped() -> None:
    """In a large group, too, a breaker is probed, and endpoints that are open, full or to avoid get no calls."""
    endpoints = replicas(MANY)
    source = random.Random(3).random
    for endpoint in endpoints[2:]:
        endpoint.breaker.fail(100, 100)
        for _ in range(4):
            endpoint.breaker.fail(100, 100)
    assert set(shares(endpoints, 101)) == {"http://e0", "http://e1"}
    avoiding = {choose(endpoints, 101, avoid={"http://e0"}, random=source) for _ in range(50)}
    assert avoiding == {endpoints[1]}
    while endpoints[1].limit.has_room(101):
        endpoints[1].limit.in_flight += 1
    assert choose(endpoints, 101, avoid={"http://e0"}, random=source) is endpoints[0]
    probed = choose(endpoints, 106, avoid=(), random=source)
    assert probed is not None
    assert probed.breaker.may_probe(106)
    for endpoint in endpoints:
        while endpoint.limit.has_room(101):
            endpoint.limit.in_flight += 1
    assert choose(endpoints, 101, avoid=(), random=source) is None


class Counted(list[Endpoint]):
    """A list that counts how many of its entries are read."""

    reads = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().__getitem__(index)

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.reads += len(self)
        return super().__iter__()


def full_pool(count: int) -> tuple[PermitPool, EndpointGroup, Counted]:
    settings = Settings(limiter=LimiterSettings(max_concurrency=100_000))
    pool = PermitPool(settings, clock=lambda: 100.0, random=random.Random(1).random)
    group = pool.groups.get("python", [f"http://e{number}" for number in range(count)])
    for endpoint in group.endpoints:
        endpoint.limit.set_capacity(2)
    counted = Counted(group.endpoints)
    group.set_endpoints(counted)
    return pool, group, counted


async def test_the_cost_of_a_call_does_not_grow_with_the_number_of_endpoints() -> None:
    """With room, and with all endpoints full and callers waiting, a call looks at a few of a thousand endpoints."""
    pool, group, counted = full_pool(1_000)
    held = [await acquire(pool, group) for _ in range(1_000)]
    assert counted.reads < 10 * 1_000
    while (permit := pool.try_acquire(group)) is not None:
        held.append(permit)
    assert len(held) == 2_000
    waiting = [asyncio.ensure_future(acquire(pool, group)) for _ in range(1_000)]
    while pool.queued < 1_000:
        await asyncio.sleep(0)
    counted.reads = 0
    for permit in held[:1_000]:
        pool.release(permit, None)
    assert pool.queued == 0
    # One look at all of them remains: setting the limits above was a change of limits.
    assert counted.reads < 10 * 1_000
    for task in waiting:
        pool.release(await task, None)
    for permit in held[1_000:]:
        pool.release(permit, None)
    assert pool.in_flight == 0
    pool.cancel_timer()


async def test_a_free_endpoint_goes_to_the_first_caller_that_may_use_it() -> None:
    """Callers of groups that share an endpoint get it in the order of their arrival; others keep waiting."""
    settings = Settings(limiter=LimiterSettings(max_concurrency=100))
    pool = PermitPool(settings, clock=lambda: 100.0, random=random.Random(1).random)
    a, b, both = (pool.groups.get("python", urls) for urls in (["http://a"], ["http://b"], ["http://a", "http://b"]))
    for endpoint in both.endpoints:
        endpoint.limit.set_capacity(1)
    held = {permit.endpoint.url: permit for permit in [await acquire(pool, both), await acquire(pool, both)]}
    order: list[str] = []

    async def wait(name: str, group: EndpointGroup) -> None:
        permit = await acquire(pool, group)
        order.append(f"{name} {permit.endpoint.url[-1]}")
        held[permit.endpoint.url] = permit

    tasks = []
    for name, group in (("first", a), ("second", both), ("third", b)):
        tasks.append(asyncio.ensure_future(wait(name, group)))
        await asyncio.sleep(0)
    for url in ("http://b", "http://b", "http://a"):
        pool.release(held[url], None)
        for _ in range(3):
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["second b", "third b", "first a"]
    for permit in held.values():
        pool.release(permit, None)
    assert (pool.in_flight, pool.queued) == (0, 0)
    pool.cancel_timer()


@pytest.mark.parametrize("count", [2, MANY])
async def test_a_retry_waits_for_another_endpoint_and_goes_first(count: int) -> None:
    """An endpoint that is down always has room. A retry is not sent there again while another one is only full."""
    pool, group, _ = full_pool(count)
    down = group.endpoints[0]
    held = [await acquire(pool, group) for _ in range(2 * count)]
    waiting = [asyncio.ensure_future(acquire(pool, group)) for _ in range(3)]
    await asyncio.sleep(0)
    retry = asyncio.ensure_future(acquire(pool, group, avoid=(down.url,)))
    await asyncio.sleep(0)
    failed = next(permit for permit in held if permit.endpoint is down)
    pool.release(failed, ConnectError("refused", sent="no"))
    await asyncio.sleep(0)
    assert not retry.done()
    held.remove(failed)
    ended = next(permit for permit in held if permit.endpoint is not down)
    pool.release(ended, None)
    held.remove(ended)
    permit = await retry
    assert permit.endpoint is ended.endpoint
    held.append(permit)
    while held:
        pool.release(held.pop(), None)
        for task in [task for task in waiting if task.done()]:
            waiting.remove(task)
            held.append(task.result())
        await asyncio.sleep(0)
    assert (pool.in_flight, pool.queued, waiting) == (0, 0, [])
    pool.cancel_timer()


async def test_a_retry_uses_the_same_endpoint_if_the_others_are_full() -> None:
    """An endpoint that has refused a call, but works, does not leave a retry and the callers behind it waiting."""
    pool, group, _ = full_pool(2)
    first = group.endpoints[0]
    held = [await acquire(pool, group) for _ in range(4)]
    ended, refused = (permit for permit in held if permit.endpoint is first)
    held = [permit for permit in held if permit.endpoint is not first]
    pool.release(ended, None)
    pool.release(refused, OverloadedError("full", status=429, sent="no"))
    retry = await acquire(pool, group, avoid=(first.url,), within_s=5)
    assert (retry.endpoint, pool.queued) == (first, 0)
    for permit in (*held, retry):
        pool.release(permit, None)
    pool.cancel_timer()


async def test_retries_are_served_in_order_before_others() -> None:
    pool, group, _ = full_pool(1)
    held = [await acquire(pool, group) for _ in range(2)]
    order: list[str] = []

    async def wait(name: str, avoid: tuple[str, ...]) -> None:
        permit = await acquire(pool, group, avoid=avoid)
        order.append(name)
        pool.release(permit, None)

    tasks = []
    for name, avoid in (("call", ()), ("retry 1", ("http://gone",)), ("retry 2", ("http://gone",))):
        tasks.append(asyncio.ensure_future(wait(name, avoid)))
        await asyncio.sleep(0)
    pool.release(held.pop(), None)
    await asyncio.gather(*tasks)
    pool.release(held.pop(), None)
    assert order == ["retry 1", "retry 2", "call"]
    assert (pool.in_flight, pool.queued) == (0, 0)
    pool.cancel_timer()


async def test_a_failed_endpoint_is_tried_while_callers_wait() -> None:
    """After five seconds a waiting call tries it, although all others stay full. Only one call does."""
    clock = [100.0]
    loop = asyncio.get_running_loop()
    started = loop.time()
    pool = PermitPool(Settings(), clock=lambda: clock[0] + loop.time() - started, random=random.Random(1).random)
    group = pool.groups.get("python", ["http://a", "http://b"])
    for endpoint in group.endpoints:
        endpoint.limit.set_capacity(1)
    held = {permit.endpoint.url: permit for permit in [await acquire(pool, group), await acquire(pool, group)]}
    waiting = [asyncio.ensure_future(acquire(pool, group)) for _ in range(2)]
    await asyncio.sleep(0)
    pool.release(held["http://a"], ConnectError("refused", sent="no"))
    await asyncio.sleep(0)
    assert pool.queued == 2
    clock[0] += 4.95  # the timer of the event loop was set for 5 s, and is set again
    pool.wake()
    permit = await waiting[0]
    assert (permit.endpoint.url, pool.queued) == ("http://a", 1)
    pool.release(held["http://b"], None)
    pool.release(permit, None)
    pool.release(await waiting[1], None)
    assert (pool.in_flight, pool.queued) == (0, 0)
    pool.cancel_timer()


def test_the_pool_remembers_fast_answers_and_failures() -> None:
    """A fast answer makes an endpoint recent, and an answer that is not a sample does not. An endpoint is failing if
    it is away, or after two other failures.
    """
    pool = PermitPool(Settings(), clock=lambda: 100.0, random=random.Random(1).random)
    group = pool.groups.get("python", ["http://a"])
    group.skip_capacity()
    for sample_s, recent in ((None, 0), (1.0, 1)):
        permit = pool.try_acquire(group)
        assert permit is not None
        pool.release(permit, None, sample_s=sample_s)
        assert list(group.recent) == [permit.endpoint] * recent
    lost = ConnectionLostError("closed")
    for error, fails in ((lost, False), (None, False), (lost, False), (lost, True), (None, False), (away(), True)):
        permit = pool.try_acquire(group)
        assert permit is not None
        pool.release(permit, error)
        assert permit.endpoint.latency.is_failing(100) is fails


def away() -> ConnectError:
    return ConnectError("refused", sent="no")


def test_other_endpoints_make_a_group_forget_recent_ones() -> None:
    """A call in flight to an endpoint that has left does not make it recent again."""
    pool = PermitPool(Settings(), clock=lambda: 100.0, random=random.Random(1).random)
    group = pool.groups.get("python", ["http://a"])
    permit = pool.try_acquire(group)
    assert permit is not None
    group.set_endpoints(pool.groups.get("python", ["http://b"]).endpoints)
    pool.release(permit, None, sample_s=1.0)
    assert (list(group.recent), {endpoint.url for endpoint in group.members}) == ([], {"http://b"})
