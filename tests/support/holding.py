"""A server that holds its answers until the test releases them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

from aiohttp import web


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
