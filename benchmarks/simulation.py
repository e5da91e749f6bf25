"""A simulated fleet: replicas, clients and programs in simulated time, without sockets.

The clients use the package's own permit pool with its balancer, breakers and limits, and its rules for retries. Only
the servers, the network and the clock are simulated.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import selectors
from array import array
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import attrs

from faasrt import LimiterSettings, Settings
from faasrt.errors import ConnectError, ConnectionLostError, DeadlineExceededError, OverloadedError, ServiceError
from faasrt.transport.endpoint import Endpoint, has_alternative
from faasrt.transport.pool import Permit, PermitPool
from faasrt.transport.retry import FailedAttempts, RetryBudget

T = TypeVar("T")

SLOTS = 4
"""The number of programs that a replica runs at once, as it states in its health report."""
ROUND_TRIP_S = 0.001
LIMIT_S = 30.0
"""The time limit of a program."""
QUEUE_S = 1.5
"""How long a program waits on a replica, as on the embedded FaaS. Then the replica refuses it."""
SETTINGS = Settings(limiter=LimiterSettings(max_concurrency=100_000))
DEADLINE_S = LIMIT_S + SETTINGS.timeouts.grace_s
_CONNECT_S = SETTINGS.timeouts.connect_s


class _Selector(selectors.SelectSelector):
    """Waits for nothing. Instead of waiting, it moves the clock of its loop."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation is stuck: no event is scheduled")
        self.loop.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in simulated time: when nothing can run, the clock jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in simulated time, from second 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@attrs.define(eq=False)
class Replica:
    """A server with SLOTS workers and one queue.

    Attributes:
        index: Its position in the fleet.
        slowness: How many times longer programs take here.
        state: "up"; "draining" refuses new programs with 503; "down" refuses connections; "dark" answers nothing.
        outstanding: The number of calls that were given to it and have not ended.
        executions: The number of programs that it was to run, without refused ones.
        wasted: The number of programs that it began and whose results did not reach a client.
    """

    index: int
    slowness: float = 1.0
    state: str = "up"
    outstanding: int = 0
    executions: int = 0
    wasted: int = 0
    _cold_s: float = 0.0
    _cold_slots: int = 0
    _free_at: list[float] = attrs.field(factory=lambda: [0.0] * SLOTS)
    # For each call without an answer: when its program begins, when its client gives up, and the timer of the answer.
    _due: dict[asyncio.Future[None], tuple[float, float, asyncio.TimerHandle]] = attrs.field(factory=dict)

    async def run(self, demand_s: float) -> None:
        """Run a program that takes `demand_s` on a normal replica. Raise the error that a client would see."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self.state == "down":
            await asyncio.sleep(ROUND_TRIP_S)
            error = ConnectError("refused", sent="no")
            error.connection_refused = True
            raise error
        if self.state == "dark":
            await asyncio.sleep(_CONNECT_S)
            raise ConnectError("no answer", sent="no")
        if self.state == "draining":
            await asyncio.sleep(ROUND_TRIP_S)
            raise _refusal(503)
        begin = max(now, self._free_at[0])
        if begin - now > QUEUE_S:
            await asyncio.sleep(QUEUE_S)
            raise _refusal(429)
        if self._cold_slots:
            self._cold_slots -= 1
            demand_s += self._cold_s
        self.executions += 1
        end = begin + min(LIMIT_S, demand_s * self.slowness)
        heapq.heapreplace(self._free_at, end)
        answered = loop.create_future()
        self._due[answered] = begin, now + DEADLINE_S, loop.call_at(end + ROUND_TRIP_S, answered.set_result, None)
        await answered
        del self._due[answered]

    def kill(self, *, dark: bool) -> None:
        """Stop at once. If dark, the machine has no network or power, and clients wait until they give up. Otherwise
        they see that the connection is closed.
        """
        loop = asyncio.get_running_loop()
        self.state = "dark" if dark else "down"
        for answered, (begin, deadline, timer) in self._due.items():
            timer.cancel()
            self.wasted += begin <= loop.time()
            if dark:
                error: ServiceError = DeadlineExceededError("no answer", sent="maybe")
                loop.call_at(deadline, answered.set_exception, error)
            else:
                answered.set_exception(ConnectionLostError("closed", sent="maybe"))
        self._due = {}

    async def drain(self) -> None:
        """Refuse further programs, wait for the ends of those that run, and stop."""
        self.state = "draining"
        while self._due:
            await asyncio.wait(self._due)
        self.state = "down"

    def start(self, cold_s: float = 0.0) -> None:
        """Accept programs. The first program in each slot takes `cold_s` longer."""
        self.state, self._free_at = "up", [asyncio.get_running_loop().time()] * SLOTS
        self._cold_s, self._cold_slots = cold_s, SLOTS if cold_s else 0


@attrs.define
class Records:
    """The calls of a simulation.

    Attributes:
        started: When each answered call was made.
        took_s: How long each of them took, with its waits and retries.
        failed: When each failed call was made, and the name of its error.
        retries: The times of the retries.
        refused: The number of attempts that a replica refused.
        last: When the last call ended.
    """

    started: array[float] = attrs.field(factory=lambda: array("d"))
    took_s: array[float] = attrs.field(factory=lambda: array("d"))
    failed: list[tuple[float, str]] = attrs.field(factory=list)
    retries: array[float] = attrs.field(factory=lambda: array("d"))
    refused: int = 0
    last: float = 0.0


class Client:
    """A process that sends programs to all replicas, with a permit pool of its own.

    Args:
        replicas: The fleet.
        on_end: Called with the endpoint of each attempt that has ended.
        records: Where its calls are recorded.
        seed: The seed of its random numbers.
    """

    def __init__(
        self, replicas: Sequence[Replica], on_end: Callable[[Endpoint], None], records: Records, seed: int
    ) -> None:
        self.random = random.Random(seed)
        self._clock = asyncio.get_running_loop().time
        self._pool = PermitPool(SETTINGS, clock=self._clock, random=self.random.random)
        self._urls = [_url(replica.index) for replica in replicas]
        self._replicas = dict(zip(self._urls, replicas, strict=True))
        self._group = self._pool.groups.get("python", self._urls)
        self._budget = RetryBudget()
        self._on_end = on_end
        self._records = records

    async def call(self, demand_s: float) -> None:
        """Run a program, with the retries that the package allows for a program that must not run twice."""
        started, records = self._clock(), self._records
        try:
            await self._attempts(demand_s)
        except ServiceError as error:
            records.failed.append((started, type(error).__name__))
        else:
            self._budget.deposit()
            records.started.append(started)
            records.took_s.append(self._clock() - started)
        records.last = self._clock()

    async def _attempts(self, demand_s: float) -> None:
        deadline = math.inf
        failed = FailedAttempts(SETTINGS.retry)
        while True:
            permit = self._pool.try_acquire(self._group, avoid=failed.tried)
            if permit is None:
                permit = await self._pool.wait(self._group, avoid=failed.tried, since=failed.down_since)
                assert permit is not None
            deadline = min(deadline, self._clock() + DEADLINE_S)
            error = await self._attempt(permit, demand_s)
            if error is None:
                return
            now = self._clock()
            failed.add(error, now, permit.endpoint.url)
            self._records.refused += isinstance(error, OverloadedError)
            wait_s = failed.retry_delay_s(
                has_alternative=has_alternative(self._group.endpoints, now, failed.tried),
                remaining_s=deadline - now - LIMIT_S / 10,
                budget=self._budget,
                random=self.random.random,
            )
            if wait_s is None:
                raise error
            await asyncio.sleep(wait_s)
            self._records.retries.append(self._clock())

    async def _attempt(self, permit: Permit, demand_s: float) -> ServiceError | None:
        endpoint, replica = permit.endpoint, self._replicas[permit.endpoint.url]
        failure: ServiceError | None = None
        replica.outstanding += 1
        try:
            if not endpoint.limit.is_initialized and replica.state == "up":  # the health report states the capacity
                await asyncio.sleep(ROUND_TRIP_S)
                endpoint.limit.set_capacity(SLOTS)
                self._pool.wake()
            begun = self._clock()
            await replica.run(demand_s)
        except ServiceError as error:
            failure = error
        now = self._clock()
        replica.outstanding -= 1
        self._on_end(endpoint)
        self._pool.release(permit, failure, sample_s=now - begun)
        return failure


def _refusal(status: int) -> OverloadedError:
    error = OverloadedError("refused", status=status, sent="yes")
    error.retry_after_s, error.not_started = 1.0, True
    return error


def _url(index: int) -> str:
    return f"http://{index}"


def index_of(endpoint: Endpoint) -> int:
    """Return the position of an endpoint's replica in the fleet."""
    return int(endpoint.url[7:])
