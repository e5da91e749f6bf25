"""The client of `stream_code`: answers of servers that fail, are damaged, or do not end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp import web

from faasrt import (
    ConnectionLostError,
    DeadlineExceededError,
    ErrorInfo,
    ExecutionResult,
    FaasrtError,
    Outcome,
    OutputChunk,
    ProtocolError,
    RuntimeClosedError,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    StreamedRun,
    TimeoutSettings,
)
from faasrt.protocol.answer import Answer
from faasrt.transport.live_reader import LiveReader
from support.helpers import Serve, manager_for


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
    error = b'{"error": {"status": 500, "error": "the engine failed", "details": "oh"}}\n'
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
    assert len(requests) == 1
    assert requests[0].startswith("application/x-ndjson")


async def test_a_failure_that_the_program_may_have_caused_is_a_result(serve: Serve) -> None:
    """The outcome is CRASHED, as without live output."""
    error = b'{"error": {"status": 500, "error": "the engine failed", "details": "oh", "program_suspect": true}}\n'
    url = await serve(lines_server(CHUNK, error))
    async with manager_for(url, envelope="never") as manager, manager.stream_code("1", "python") as run:
        assert [chunk.text async for chunk in run] == ["a"]
    assert (run.result.outcome, run.result.error) == (Outcome.CRASHED, ErrorInfo("SIGKILL", "oh"))


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
    """The client keeps no more of a line than the largest answer. The outcome is that of a too large answer."""
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
    timeouts = TimeoutSettings(grace_s=1)
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


def flood(data: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return a handler that answers every program with this data again and again, without a pause."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n")
        while True:
            writer.write(data)
            await writer.drain()

    return handle


async def test_a_server_that_sends_output_without_pause_reaches_the_deadline(raw_server: Serve) -> None:
    """The time in which the client reads and the caller waits counts for the deadline."""
    timeouts, url = TimeoutSettings(grace_s=1), await raw_server(flood(CHUNK * 2_000))
    async with (
        manager_for(url, envelope="never", timeouts=timeouts) as manager,
        manager.stream_code("1", "python", timeout_ms=200) as run,
    ):
        assert (await anext(run)).text == "a"
        with pytest.raises(DeadlineExceededError):
            async for _ in run:
                pass


@pytest.mark.parametrize("stream", [b"stdout", b"stderr"])
async def test_a_server_that_sends_too_much_output_breaks_the_protocol(raw_server: Serve, stream: bytes) -> None:
    """The limit is twice the maximum size of both streams, and a margin."""
    line = b'{"stream": "%b", "text": "%b", "elapsed_ms": 1}\n' % (stream, b"x" * 10_000)
    sizes, sandbox = list[int](), SandboxConfig(max_output_bytes=100_000)

    async def read(run: StreamedRun) -> None:
        async for chunk in run:
            sizes.append(len(chunk.text))

    async with (
        manager_for(await raw_server(flood(line)), envelope="never", sandbox=sandbox) as manager,
        manager.stream_code("1", "python") as run,
    ):
        with pytest.raises(ProtocolError, match="more output than"):
            await read(run)
    assert 400_000 < sum(sizes) < 800_000


@pytest.mark.parametrize("line", [b"\n", b" \r\n", b'{"stream": "stdout", "text": "", "elapsed_ms": 1}\n'])
async def test_a_flood_of_lines_without_text_is_refused(line: bytes) -> None:
    """Other tasks run after each 100 such lines, and the client does not read more than 10,000 of them."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    assert (await read(LiveReader(nothing), line * 10_000 + RESULT)).status == 200
    assert turns >= 99
    with pytest.raises(ProtocolError, match="too many lines without text"):
        await read(LiveReader(nothing), line * 10_001 + RESULT)
    counting.cancel()


async def nothing(chunk: OutputChunk) -> None:
    """Take a part of the output."""


async def read(reader: LiveReader, body: bytes, timeout: asyncio.Timeout | None = None) -> Answer:
    """Read an answer that has arrived completely."""
    content = aiohttp.StreamReader(Mock(), 2**16, loop=asyncio.get_running_loop())
    content.feed_data(body)
    content.feed_eof()
    return await reader.read(content, 10_000, timeout or asyncio.timeout(None))


@pytest.mark.parametrize(("waits", "blocks", "counted_s"), [(False, False, 0), (True, False, 50), (False, True, 90)])
async def test_only_the_time_of_the_caller_extends_the_deadline(
    waits: bool, blocks: bool, counted_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that waits for output does not extend it. One that is busy, or blocks the event loop, does."""
    loop, now, ends = asyncio.get_running_loop(), 0.0, list[float]()
    turn_s = 0.01  # the time of the test goes on by this in each turn of the event loop

    async def count_turns() -> None:
        nonlocal now
        while True:
            now += turn_s
            await asyncio.sleep(0)

    async def start(reader: LiveReader) -> Any:
        async with asyncio.timeout(1_000) as timeout:
            begin = timeout.when() or 0
            await read(reader, CHUNK * 10 + RESULT, timeout)
            ends.append((timeout.when() or 0) - begin)

    monkeypatch.setattr(loop, "time", lambda: now)
    turns = asyncio.create_task(count_turns())
    async with StreamedRun(start) as run:
        for _ in range(10):
            await anext(run)
            now += 10 if blocks else 0
            for _ in range(600 if waits else 0):
                await asyncio.sleep(0)
        while not ends:
            await asyncio.sleep(0)
    turns.cancel()
    assert counted_s <= ends[0] <= 1.2 * counted_s + 0.001
