"""Fixtures: real servers on port 0, and one embedded FaaS for the tests that only need one to run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from aiohttp import web

from faasrt import RuntimeManager

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Start aiohttp servers whose `/run_code` (and other paths) the test writes; give their base URL."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler, path: str = "/run_code") -> str:
        app = web.Application()
        app.router.add_route("*", path, handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def raw_server() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Start a TCP server whose connections the test handles byte by byte; give its base URL."""
    servers: list[asyncio.Server] = []
    handlers: set[asyncio.Task[None]] = set()

    async def start(handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> str:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            handlers.add(task)
            task.add_done_callback(handlers.discard)
            try:
                await handle(reader, writer)
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(one, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    for task in list(handlers):
        task.cancel()  # a handler that drips for ever would keep the server from closing
    for server in servers:
        await server.wait_closed()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def local() -> AsyncIterator[RuntimeManager]:
    """One embedded FaaS with both engines, shared by the whole session."""
    async with RuntimeManager.local(workers=2) as manager:
        await asyncio.gather(manager.get_runtime("python"), manager.get_runtime("js"))
        yield manager
