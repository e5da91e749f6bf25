"""Abandoned calls: the client gave up, but the code may still run. They count against the limit of the endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from faasrt import CodeTask, ConnectionLostError, DeadlineExceededError, RuntimeManager, ServerError, TimeoutSettings
from faasrt.testing import FakeFaaS, Reply
from support.helpers import NO_WAIT, Clock, Serve, fast_forward, manager_for
from support.served import until

SLOTS = 8
TIMEOUT_MS = 5_000


class Server:
    """A server with eight slots. Programs run until their time limit, even if the client disconnects, as in js-faas.

    Attributes:
        ending: "answer" (when the program ends), "lost" (closes the connection at once), a status such as "504", or
            "late" (no answer).
    """

    def __init__(self, ending: str = "answer", capabilities: Any = None) -> None:
        self.ending, self.capabilities = ending, capabilities
        self.started = self.running = self.peak = self.probes = 0
        self.release = asyncio.Event()
        self.changed = asyncio.Condition()
        self.programs: set[asyncio.Task[None]] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/health":
            self.probes += 1
            await self._notify()
            await self.release.wait()
            health = {"status": "healthy", "languages": {"python": {"capacity": SLOTS}}}
            return web.json_response(health | {"capabilities": self.capabilities or {}})
        limit_s = (await request.json())["timeout"] / 1000
        program = asyncio.create_task(self._run(limit_s))
        self.programs.add(program)
        if self.ending == "lost":
            await self._notify()
            assert request.transport is not None
            request.transport.abort()
        elif self.ending.isdecimal():
            return web.json_response({}, status=int(self.ending))
        elif self.ending == "late":
            await asyncio.Event().wait()
        await asyncio.wait({program})
        return web.json_response({"output": {"stdout": "x"}})

    async def _run(self, limit_s: float) -> None:
        self.started += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        await self._notify()
        await asyncio.sleep(limit_s)
        self.running -= 1

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def manager(self, serve: Serve, **options: Any) -> RuntimeManager:
        return manager_for(await serve(self.handle, "/{path:.*}"), **options)


async def cancelled(call: asyncio.Task[Any]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


def abandoned(manager: RuntimeManager) -> int:
    return sum(state.abandoned for state in manager.get_metrics().states)


async def test_cancelled_calls_hold_their_slot_until_their_time_limit(serve: Serve, clock: Clock) -> None:
    """A server with eight slots never runs more than eight programs, even if calls are cancelled in a loop."""
    server = Server()
    server.release.set()
    async with await server.manager(serve, clock=clock) as manager:
        for number in range(2 * SLOTS + 2):
            call = asyncio.create_task(manager.run_code("1", "python", timeout_ms=TIMEOUT_MS))
            await fast_forward(clock, server.until(lambda number=number: server.started > number), 0.2)  # type: ignore[misc]
            await cancelled(call)
            assert 1 <= abandoned(manager) <= SLOTS
    assert server.peak <= SLOTS


@pytest.mark.parametrize(
    ("ending", "error"),
    [("lost", ConnectionLostError), ("late", DeadlineExceededError), ("408", ServerError), ("504", ServerError)],
)
async def test_calls_without_an_answer_hold_their_slot(
    serve: Serve, ending: str, error: type[Exception], clock: Clock
) -> None:
    """After a lost connection, a missed deadline, or a 408 or 504 of a proxy, the code may still run."""
    server = Server(ending)
    server.release.set()
    timeouts = TimeoutSettings(grace_s=1)
    async with await server.manager(serve, clock=clock, timeouts=timeouts, retry=NO_WAIT) as manager:
        calls = [manager.run_code("1", "python", timeout_ms=TIMEOUT_MS) for _ in range(SLOTS + 4)]
        ends = await fast_forward(clock, asyncio.gather(*calls, return_exceptions=True), 0.1)
        assert {type(end) for end in ends} == {error}
        assert server.peak <= SLOTS


async def test_a_cancelled_batch_is_charged_only_for_sent_calls(serve: Serve, clock: Clock) -> None:
    """Calls that waited for a permit are not charged. The next batch waits for the slots, and then runs."""
    server = Server()
    server.release.set()
    async with await server.manager(serve, clock=clock) as manager:
        batch = asyncio.gather(*(manager.run_code("1", "python", timeout_ms=TIMEOUT_MS) for _ in range(50)))
        await server.until(lambda: server.started == SLOTS)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert abandoned(manager) == SLOTS  # the calls that waited are not charged

        async def run_tasks() -> list[Any]:
            tasks = [CodeTask("1", "python", timeout_ms=50) for _ in range(10)]
            return [item.result async for item in manager.map(tasks)]

        assert all(await fast_forward(clock, run_tasks(), 0.2))
    assert (server.started, server.peak) == (SLOTS + 10, SLOTS)


async def test_cancelled_calls_that_were_not_sent_are_not_charged(serve: Serve) -> None:
    """For example calls that are cancelled while they wait for the answer of `/health` or for a permit."""
    server = Server()
    async with await server.manager(serve) as manager:
        calls = [asyncio.create_task(manager.run_code("1", "python")) for _ in range(3)]
        await server.until(lambda: server.probes == 1)
        for call in calls:
            await cancelled(call)
        assert abandoned(manager) == 0
        server.release.set()
        assert (await manager.run_code("1", "python", timeout_ms=1)).ok
        assert abandoned(manager) == 0


async def test_no_charge_if_the_server_cancels_on_disconnect(serve: Serve) -> None:
    """If `/health` reports `cancels_on_disconnect`, a cancelled call frees its slot at once."""
    async with FakeFaaS() as faas, manager_for(faas.url) as manager:
        faas.health = {"languages": {"python": {"capacity": 1}}}
        faas.default = Reply(hang=True)
        for _ in range(20):
            call = asyncio.create_task(manager.run_code("1", "python"))
            await faas.wait_until(lambda: faas.in_flight == 1)
            await cancelled(call)
            assert abandoned(manager) == 0
            await faas.wait_until(lambda: faas.in_flight == 0)
        assert faas.peak == 1


@pytest.mark.asyncio(loop_scope="session")
async def test_embedded_faas_frees_the_slots_of_cancelled_calls(local: RuntimeManager) -> None:
    """Three times as many calls as there are slots are cancelled, and the next program runs at once."""
    status = await local.get_health_status()
    assert status.endpoints[0].details["capabilities"]["cancels_on_disconnect"] is True
    capacity = status.endpoints[0].details["languages"]["javascript"]["capacity"]
    await local.run_code("1", "js")
    for _ in range(3):
        calls = [asyncio.create_task(local.run_code("setInterval(() => {}, 100)", "js")) for _ in range(capacity)]
        await until(lambda: local.get_metrics().in_flight == capacity)
        for call in calls:
            await cancelled(call)
        assert abandoned(local) == 0
    assert (await local.run_code("console.log(1)", "js")).stdout == "1\n"
