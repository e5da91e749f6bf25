"""Servers whose answers a test can delay, and a resolver that the test controls, with the replicas behind it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aiohttp import web

from faasrt import DiscoverySettings, RuntimeManager, Settings
from faasrt.telemetry.events import Event
from faasrt.testing import FakeFaaS

HOST = "faas.test"


class Names:
    """The addresses of names, which may change at any time, and the look-ups.

    Attributes:
        answers: The answers to look-ups by name. Exceptions are raised. The look-up of a name that is missing hangs.
        lookups: The host and the port of each look-up.
    """

    def __init__(self, *addresses: str) -> None:
        self.answers: dict[str, Sequence[str] | BaseException] = {HOST: addresses}
        self.lookups: list[tuple[str, int]] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.lookups.append((host, port))
        if host not in self.answers:
            await asyncio.Event().wait()
        answer = self.answers[host]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def settings(self, period_s: float = 0.01) -> DiscoverySettings:
        return DiscoverySettings(period_s=period_s, resolve=self.resolve)


@contextlib.asynccontextmanager
async def fakes_at(count: int) -> AsyncIterator[list[FakeFaaS]]:
    """Yield fakes at 127.0.0.1, 127.0.0.2 and so on, all with the same port."""
    while True:
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(FakeFaaS())
            port = int(first.url.rpartition(":")[2])
            others = [FakeFaaS(f"127.0.0.{number}", port) for number in range(2, count + 1)]
            try:
                for fake in others:
                    await stack.enter_async_context(fake)
            except OSError:  # another process has the port at this address
                continue
            yield [first, *others]
            return


@contextlib.asynccontextmanager
async def holding_faas(
    capacities: Mapping[str, int] = MappingProxyType({"python": 16}),
) -> AsyncIterator[tuple[str, list[int], asyncio.Event]]:
    """Yield the URL of a FaaS, a list, and an event. The FaaS answers when the event is set. For each request that
    arrived, the list has the number of requests that were in flight then.
    """
    arrived: list[int] = []
    go_on = asyncio.Event()
    in_flight = 0

    async def health(request: web.Request) -> web.Response:
        languages = {name: {"capacity": capacity} for name, capacity in capacities.items()}
        capabilities = {"lossless": True, "enforces_timeouts": True}
        return web.json_response({"status": "healthy", "capabilities": capabilities, "languages": languages})

    async def run_code(request: web.Request) -> web.Response:
        nonlocal in_flight
        in_flight += 1
        arrived.append(in_flight)
        await go_on.wait()
        in_flight -= 1
        return web.json_response({"output": {"stdout": "x", "stderr": "", "ret_val": ""}, "metadata": {"exit_code": 0}})

    app = web.Application()
    app.add_routes([web.get("/health", health), web.post("/run_code", run_code)])
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", arrived, go_on
    finally:
        await runner.cleanup()


class GatedServer:
    """A FaaS that answers programs when its gate is open.

    Attributes:
        gate: Open at first.
        hosts: The `Host` header of each request for a program.
        addresses: The address at which each of them arrived.
        running: The number of programs that wait for the gate.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.hosts: list[str] = []
        self.addresses: list[str] = []
        self.running = 0
        self.connections: set[Any] = set()

    async def handle(self, request: web.Request) -> web.Response:
        if request.path == "/health":
            return web.json_response({"status": "healthy", "version": "1", "capabilities": {"lossless": True}})
        self.hosts.append(request.headers["Host"])
        assert request.transport is not None
        self.addresses.append(request.transport.get_extra_info("sockname")[0])
        self.connections.add(request.transport)
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        return web.json_response({"output": {"stdout": "late", "stderr": "", "ret_val": ""}, "outcome": "OK"})

    @contextlib.asynccontextmanager
    async def at(self, address: str, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        """Listen at an address, and yield the port."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, address, port, ssl_context=tls, backlog=1024).start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


def address_of(fake: FakeFaaS) -> str:
    return fake.url.removeprefix("http://").partition(":")[0]


def dns_url(fake: FakeFaaS, scheme: str = "dns+http") -> str:
    """Return the URL of the name, with the port of a fake."""
    return f"{scheme}://{HOST}:{fake.url.rpartition(':')[2]}"


def replica(fake: FakeFaaS, scheme: str = "http") -> str:
    """Return the endpoint of a fake that was discovered."""
    return f"{dns_url(fake, scheme)}#{address_of(fake)}"


@contextlib.asynccontextmanager
async def discovered(
    count: int, *, period_s: float = 0.01, telemetry: Sequence[Any] = (), **settings: Any
) -> AsyncIterator[tuple[RuntimeManager, Names, list[FakeFaaS]]]:
    """Yield a manager that discovers fakes, its resolver, and the fakes."""
    async with fakes_at(count) as fakes:
        names = Names(*map(address_of, fakes))
        options = Settings(endpoints={"python": dns_url(fakes[0])}, discovery=names.settings(period_s), **settings)
        async with RuntimeManager(settings=options, telemetry=telemetry) as manager:
            yield manager, names, fakes


async def discover_and_leave(telemetry: Sequence[Any]) -> list[Event]:
    """Call a replica that was discovered, and reconfigure the manager so that it leaves. Return the events."""
    events: list[Event] = []
    async with discovered(1, telemetry=[*telemetry, events.append]) as (manager, _, (fake,)):
        await manager.run_code("1", "python")
        await manager.reconfigure(Settings(endpoints={"python": fake.url}))
        while not any(type(event).__name__ == "ReplicaRemoved" for event in events):
            await asyncio.sleep(0.001)
    return events
