"""Calls that end when the client of a web application disconnects.

Starlette and FastAPI do not cancel a handler whose client has gone, so its program would run to its end, and take the
place of other programs. `run_until_disconnect` awaits a call, and cancels it when the client disconnects. aiohttp needs
no help: `web.run_app(app, handler_cancellation=True)` cancels the handler. `faasrt/docs/web-applications.md` has both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeVar

__all__ = ["run_until_disconnect"]

T = TypeVar("T")


class Request(Protocol):
    """A request of Starlette or FastAPI: anything with the `receive` of ASGI."""

    @property
    def receive(self) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
        """The function that returns the next message of the connection."""


async def run_until_disconnect(request: Request, awaitable: Awaitable[T]) -> T:
    """Return the result of an awaitable. If the client disconnects first, cancel it.

    Args:
        request: The request of the handler. Its body must have been read, as FastAPI does for a handler with a model;
            a body that is read later is lost.
        awaitable: The call, such as `manager.run_code(...)`. It runs in a separate task.

    Returns:
        The result of the awaitable. Its error is raised unchanged.

    Raises:
        HTTPException: The client has disconnected. This is the `HTTPException` of Starlette, with the status 499, as in
            logs of nginx. No client receives the answer.

    Cancellation: If the caller is cancelled, the awaitable is, too. In both cases, this function waits until it has
    ended.

    Example:
        >>> from fastapi import FastAPI, Request
        >>> from faasrt.web import run_until_disconnect
        >>> app = FastAPI()
        >>> @app.post("/run")
        ... async def run(code: str, request: Request) -> str:
        ...     return (await run_until_disconnect(request, manager.run_code(code, "python"))).stdout
    """
    call = asyncio.ensure_future(awaitable)
    disconnect = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({call, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if call.done():
            return call.result()
        disconnect.result()  # raises the error of a broken connection
    finally:
        call.cancel()
        disconnect.cancel()
        await asyncio.gather(call, disconnect, return_exceptions=True)
    from starlette.exceptions import HTTPException  # not at the top, because faasrt does not depend on it

    raise HTTPException(499, "the client has disconnected")


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
