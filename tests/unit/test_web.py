"""`run_until_disconnect`: cancellation passes from the client to the call, and from the caller to the call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from faasrt.web import run_until_disconnect
from support.served import until

Message = MutableMapping[str, Any]


class Client:
    """A request whose client can disconnect, after an empty body."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def receive(self) -> Message:
        return await self._messages.get()

    def disconnect(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})


class Call:
    """A call that waits until it is released or cancelled. After a cancellation, its clean-up takes a while."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.release = asyncio.Event()

    async def run(self) -> str:
        self.events.append("started")
        try:
            await self.release.wait()
            return "result"
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.events.append("cancelled")
            raise


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    """Check that no task is left."""
    yield Client()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest_asyncio.fixture
async def call() -> Call:
    return Call()


async def test_the_result_is_returned(client: Client, call: Call) -> None:
    call.release.set()
    assert await run_until_disconnect(client, call.run()) == "result"


async def test_an_error_is_raised_unchanged(client: Client) -> None:
    error = ValueError("mine")

    async def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="mine") as caught:
        await run_until_disconnect(client, fail())
    assert caught.value is error


async def test_a_disconnect_cancels_the_call_and_waits_for_its_end(client: Client, call: Call) -> None:
    running = asyncio.create_task(run_until_disconnect(client, call.run()))
    await until(lambda: call.events == ["started"])
    client.disconnect()
    with pytest.raises(HTTPException) as caught:
        await running
    assert caught.value.status_code == 499
    assert call.events == ["started", "cancelled"]


async def test_a_cancelled_caller_cancels_the_call_and_waits_for_its_end(client: Client, call: Call) -> None:
    running = asyncio.create_task(run_until_disconnect(client, call.run()))
    await until(lambda: call.events == ["started"])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert call.events == ["started", "cancelled"]


async def test_a_cancelled_call_raises_cancelled_error(client: Client, call: Call) -> None:
    """Another task may cancel the call; the client then gets no wrong answer."""
    task = asyncio.create_task(call.run())
    running = asyncio.create_task(run_until_disconnect(client, task))
    await until(lambda: call.events == ["started"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_connection_that_fails_cancels_the_call(call: Call) -> None:
    """The error of `receive` is raised."""

    class Broken:
        async def receive(self) -> Message:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await run_until_disconnect(Broken(), call.run())
    assert call.events in ([], ["started", "cancelled"])


@pytest.mark.parametrize("has_middleware", [False, True])
async def test_starlette_answers_and_ends(client: Client, call: Call, has_middleware: bool) -> None:
    """The handler ends at a disconnect, behind a middleware, too."""
    app = Starlette()

    async def handle(request: Request) -> Response:
        await request.body()
        return PlainTextResponse(await run_until_disconnect(request, call.run()))

    async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request)

    app.add_route("/", handle)
    if has_middleware:
        from starlette.middleware.base import BaseHTTPMiddleware

        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    running = asyncio.create_task(app(scope, client.receive, send))
    await until(lambda: call.events == ["started"])
    client.disconnect()
    await running
    assert call.events == ["started", "cancelled"]
    assert [message.get("status") for message in sent if message["type"] == "http.response.start"] in ([499], [])
