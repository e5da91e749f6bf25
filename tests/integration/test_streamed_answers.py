"""The client of `stream_code`: answers of servers that fail, are damaged, or do not end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from faasrt import (
    ConnectionLostError,
    DeadlineExceededError,
    ExecutionResult,
    FaasrtError,
    Outcome,
    ProtocolError,
    RuntimeClosedError,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    TimeoutSettings,
)
from support.helpers import manager_for

Serve = Callable[..., Awaitable[str]]


async def read_all(manager: RuntimeManager) -> tuple[str, ExecutionResult]:
    """Run a program, and return its stdout and its result."""
    async with manager.stream_code("1", "python") as run:
        text = "".join([chunk.text async for chunk in run])
        return text, run.result


def lines_server(*lines: bytes, requests: list[str] | None = None) -> Callable[[web.Request], Any]:
    """Return a handler that answers with these lines, and then waits if the last one is empty."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if requests is not None:
            requests.append(request.headers["Accept"])
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        if lines[-1:] == (b"",):
            await asyncio.Event().wait()
        return response

    return handle


CHUNK = b'{"stream": "stdout", "text": "a", "elapsed_ms": 1}\n'
RESULT = b'{"result": {"output": {"stdout": "a"}, "outcome": "OK"}}\n'


async def test_a_failure_after_the_head_keeps_its_meaning(serve: Serve) -> None:
    """An error line becomes the error of its status. It is raised by the iteration, and by `result`."""
    error = b'{"error": {"status": 500, "error": "the engine failed", "details": "oh", "program_suspect": true}}\n'
    requests: list[str] = []
    url = await serve(lines_server(CHUNK, error, requests=requests))
    async with (
        manager_for(url, envelope="never") as manager,
        manager.stream_code("1", "python", idempotent=True) as run,
    ):
        assert (await anext(run)).text == "a"
        with pytest.raises(ServerError) as raised:
            await anext(run)
        with pytest.raises(ServerError):
            run.result  # noqa: B018
    assert (raised.value.status, raised.value.error, raised.value.details) == (500, "the engine failed", "oh")
    assert not raised.value.blames_endpoint
    assert len(requests) == 1
    assert requests[0].startswith("application/x-ndjson")


async def test_calls_are_retried_before_the_first_output(serve: Serve) -> None:
    """A refusal is retried, as by `run_code`."""
    answers = iter([503, 200])

    async def handle(request: web.Request) -> web.StreamResponse:
        if next(answers) == 503:
            return web.json_response({}, status=503, headers={"x-faasrt-not-started": "1", "Retry-After": "0"})
        return await lines_server(CHUNK, RESULT)(request)

    async with manager_for(await serve(handle), envelope="never") as manager:
        text, result = await read_all(manager)
    assert (text, result.attempts) == ("a", 2)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([b"nope\n"], ProtocolError), ([CHUNK], ConnectionLostError), ([CHUNK, RESULT, CHUNK], ProtocolError),
        ([CHUNK, RESULT[:-1]], ConnectionLostError), ([], ConnectionLostError), ([RESULT, RESULT], ProtocolError),
        ([b"\xff\n"], ProtocolError), ([b'{"result": []}\n'], ProtocolError),
        ([b'{"result": {}, "a": 1}\n'], ProtocolError),
    ],
)  # fmt: skip
async def test_malformed_answers_raise_errors_of_faasrt(serve: Serve, lines: list[bytes], error: type) -> None:
    async with manager_for(await serve(lines_server(*lines)), envelope="never") as manager:
        with pytest.raises(error):
            await read_all(manager)
        assert manager.get_metrics().in_flight == 0


async def test_a_line_that_is_too_long_is_not_read_to_its_end(serve: Serve) -> None:
    """The client keeps no more of a line than the largest answer. The verdict is that of a too large answer."""
    sent = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)
            sent += 65_536

    sandbox = SandboxConfig(max_output_bytes=1_000)
    async with manager_for(await serve(handle), envelope="never", sandbox=sandbox) as manager:
        _, result = await read_all(manager)
    assert result.outcome is Outcome.OUTPUT_LIMIT
    assert sent < 20_000_000


async def test_empty_lines_are_ignored_and_lines_may_be_split(serve: Serve) -> None:
    data = b"\n \n" + CHUNK + b"\n" + RESULT
    pieces = [data[at : at + 1] for at in range(len(data))]
    async with manager_for(await serve(lines_server(*pieces)), envelope="never") as manager:
        text, result = await read_all(manager)
    assert (text, result.stdout) == ("a", "a")


async def test_a_server_that_never_ends_its_answer_reaches_the_deadline(serve: Serve) -> None:
    timeouts = TimeoutSettings(grace_s=0.1)
    url = await serve(lines_server(CHUNK, b""))
    async with (
        manager_for(url, envelope="never", timeouts=timeouts) as manager,
        manager.stream_code("1", "python", timeout_ms=200) as run,
    ):
        await anext(run)
        with pytest.raises(DeadlineExceededError):
            await anext(run)


async def test_closing_the_runtime_ends_the_run(serve: Serve) -> None:
    timeouts = TimeoutSettings(close_s=0.1)
    manager = manager_for(await serve(lines_server(CHUNK, b"")), envelope="never", timeouts=timeouts)
    async with manager.stream_code("1", "python") as run:
        await anext(run)
        await manager.aclose()
        with pytest.raises(RuntimeClosedError):
            await anext(run)


async def test_any_answer_raises_only_errors_of_faasrt(serve: Serve) -> None:
    """Damaged lines never raise anything else, and never leave a permit behind."""
    whole = CHUNK + RESULT
    for at in range(0, len(whole), 3):
        damaged = whole[:at] + b"\x00[{" + whole[at + 1 :]
        async with manager_for(await serve(lines_server(damaged)), envelope="never") as manager:
            with contextlib.suppress(FaasrtError):
                await read_all(manager)
            assert manager.get_metrics().in_flight == 0
