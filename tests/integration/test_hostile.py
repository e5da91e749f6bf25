"""Hostile answers of servers give the documented error before the deadline, and need little memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import psutil
import pytest

import faasrt
from faasrt import (
    ConnectionLostError,
    DeadlineExceededError,
    Outcome,
    OverloadedError,
    ProtocolError,
    RejectedError,
    SandboxConfig,
    ServerError,
    TimeoutSettings,
)
from support.helpers import manager_for

RawServer = Callable[..., Awaitable[str]]
FINE = b'{"output": {"stdout": "hi", "stderr": "", "ret_val": ""}}'
OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def whole(body: bytes, head: bytes = OK_HEAD) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def endless(first: bytes, more: bytes, pause_s: float = 0.0) -> Callable[[], AsyncIterator[bytes]]:
    """Return an iterator of some first bytes, and then the same bytes forever."""

    async def parts() -> AsyncIterator[bytes]:
        yield first
        while True:
            yield more
            await asyncio.sleep(pause_s)

    return parts


BOMB = gzip.compress(bytes(50_000_000), 1)
DEFLATE_BOMB = zlib.compress(bytes(50_000_000), 1)
DEEP = b'{"output": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"

# name -> the answer of the server, which then closes the connection, and the error or outcome of the call
ANSWERS: dict[str, tuple[bytes | Callable[[], AsyncIterator[bytes]], type[BaseException] | Outcome]] = {
    "fine": (whole(FINE), Outcome.OK),
    "fine, chunked": (CHUNKED + chunk(FINE) + chunk(b""), Outcome.OK),
    "fine, until close": (OK_HEAD + b"Connection: close\r\n\r\n" + FINE, Outcome.OK),
    "wrong content type": (whole(FINE, b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"), Outcome.OK),
    "no status line": (b"hello\r\n\r\n", ProtocolError),
    "bad status": (b"HTTP/1.1 abc OK\r\n\r\n", ProtocolError),
    "bad version": (b"HTTP/9.9 200 OK\r\n\r\n", ProtocolError),
    "TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46", ProtocolError),
    "20 KB header": (OK_HEAD + b"X: " + b"a" * 20_000 + b"\r\n\r\n", ProtocolError),
    "10 MB header line": (OK_HEAD + b"X: " + b"a" * 10_000_000, ProtocolError),
    "200 headers": (OK_HEAD + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n", ProtocolError),
    "endless headers": (endless(OK_HEAD, b"X: " + b"a" * 1000 + b"\r\n"), ProtocolError),
    "endless 1xx": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), DeadlineExceededError),
    "101": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", ProtocolError),
    "body drip": (endless(OK_HEAD + b"Content-Length: 100000\r\n\r\n", b" ", 0.01), DeadlineExceededError),
    "header drip": (endless(b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.01), DeadlineExceededError),
    "silence": (endless(b"", b"", 0.01), DeadlineExceededError),
    "short content length": (whole(FINE).replace(b"Content-Length: 57", b"Content-Length: 20"), ProtocolError),
    "long content length": (whole(FINE).replace(b"Content-Length: 57", b"Content-Length: 99"), ConnectionLostError),
    "negative content length": (OK_HEAD + b"Content-Length: -5\r\n\r\n", ProtocolError),
    "two content lengths": (OK_HEAD + b"Content-Length: 5\r\nContent-Length: 57\r\n\r\n" + FINE, ProtocolError),
    "huge content length": (OK_HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", ProtocolError),
    "chunk garbage": (OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello", ProtocolError),
    "chunk size overflow": (CHUNKED + b"f" * 40 + b"\r\n", ProtocolError),
    "EOF at once": (b"", ConnectionLostError),
    "EOF in the status line": (b"HTTP/1.1 20", ConnectionLostError),
    "EOF in the headers": (OK_HEAD, ConnectionLostError),
    "EOF before the body": (OK_HEAD + b"Content-Length: 57\r\n\r\n", ConnectionLostError),
    "EOF in a chunk": (OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n39\r\n{", ConnectionLostError),
    "EOF between chunks": (CHUNKED + chunk(FINE), ConnectionLostError),
    "10 GB in chunks": (endless(CHUNKED, chunk(b"x" * 60_000)), Outcome.OUTPUT_LIMIT),
    "endless body": (endless(OK_HEAD + b"Connection: close\r\n\r\n", b"x" * 60_000), Outcome.OUTPUT_LIMIT),
    "gzip bomb": (whole(BOMB, OK_HEAD + b"Content-Encoding: gzip\r\n"), ProtocolError),
    "deflate bomb": (whole(DEFLATE_BOMB, OK_HEAD + b"Content-Encoding: deflate\r\n"), ProtocolError),
    "brotli": (whole(FINE, OK_HEAD + b"Content-Encoding: br\r\n"), ProtocolError),
    "gzip without Content-Encoding": (whole(gzip.compress(FINE)), ProtocolError),
    "302": (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", ProtocolError),
    "307": (b"HTTP/1.1 307 T\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", ProtocolError),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", ProtocolError),
    "empty": (whole(b""), ProtocolError),
    "bad UTF-8": (whole(b'{"output": {"stdout": "\xff"}}'), ProtocolError),
    "lone surrogate bytes": (whole(b'{"output": {"stdout": "\xed\xa0\x80"}}'), ProtocolError),
    "lone surrogate escape": (whole(b'{"output": {"stdout": "\\ud800"}}'), Outcome.OK),
    "BOM": (whole(b"\xef\xbb\xbf" + FINE), ProtocolError),
    "UTF-16": (whole(FINE.decode().encode("utf-16")), ProtocolError),
    "duplicate keys": (whole(b'{"output": null, "output": {"stdout": "b"}}'), Outcome.OK),
    "NaN": (whole(b'{"output": {}, "metadata": {"duration": NaN}}'), ProtocolError),
    "Infinity": (whole(b'{"output": {}, "metadata": {"duration": -Infinity}}'), ProtocolError),
    "1e999": (whole(b'{"output": {}, "metadata": {"duration": 1e999}}'), ProtocolError),
    "10k-digit integer": (whole(b'{"output": {}, "metadata": {"duration": ' + b"9" * 10_000 + b"}}"), ProtocolError),
    "400-digit duration": (whole(b'{"output": {}, "metadata": {"duration": ' + b"9" * 400 + b"}}"), ProtocolError),
    "200k-deep JSON": (whole(DEEP), ProtocolError),
    "output missing": (whole(b"{}"), ProtocolError),
    "output null": (whole(b'{"output": null}'), ProtocolError),
    "output list": (whole(b'{"output": []}'), ProtocolError),
    "strings as numbers": (whole(b'{"output": {"stdout": 5}}'), ProtocolError),
    "error in a 200": (whole(b'{"error": "pool exhausted", "output": {"stdout": "x"}}'), ServerError),
    "HTML 502": (whole(b"<html>Bad Gateway</html>", b"HTTP/1.1 502 Bad Gateway\r\n"), ServerError),
    "HTML 404": (whole(b"<html>Not Found</html>", b"HTTP/1.1 404 Not Found\r\n"), RejectedError),
    "bad Retry-After": (whole(b"", b"HTTP/1.1 429 T\r\nRetry-After: nan\r\n"), OverloadedError),
    "endless 500": (endless(b"HTTP/1.1 500 E\r\nConnection: close\r\n\r\n", b"x" * 60_000), ServerError),
    "status 999": (whole(b"", b"HTTP/1.1 999 X\r\n"), ProtocolError),
}  # fmt: skip


@pytest.fixture
def peak_memory() -> Iterator[Callable[[], int]]:
    """Return a function for the peak growth of Python's memory, in bytes."""
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        yield lambda: tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ANSWERS)
async def test_hostile_answers(name: str, raw_server: RawServer, peak_memory: Callable[[], int]) -> None:
    """Each answer gives a result or a documented error, whose message contains the endpoint."""
    answer, expected = ANSWERS[name]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
            return
        async for part in answer():
            writer.write(part)
            await writer.drain()

    url = await raw_server(handle)
    grace_s = 0.3 if expected is DeadlineExceededError else 10
    settings = {"timeouts": TimeoutSettings(grace_s=grace_s), "sandbox": SandboxConfig(max_output_bytes=100_000)}
    async with manager_for(url, **settings) as manager, asyncio.timeout(20):
        if isinstance(expected, Outcome):
            result = await manager.run_code("1", "py", 200)
            assert result.outcome is expected
        else:
            with pytest.raises(faasrt.FaasrtError) as info:
                await manager.run_code("1", "py", 200)
            assert type(info.value) is expected, repr(info.value)
            assert isinstance(info.value, faasrt.ServiceError)
            assert url in str(info.value)
            assert info.value.sent in ("maybe", "yes")
    assert peak_memory() < 32 * 2**20


async def test_endless_answers_need_little_memory(raw_server: RawServer) -> None:
    """Ten concurrent endless answers do not increase the memory of the process."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        while True:
            writer.write(chunk(b"x" * 60_000))
            await writer.drain()

    async with manager_for(await raw_server(handle), sandbox=SandboxConfig(max_output_bytes=10_000)) as manager:
        before = psutil.Process().memory_info().rss
        results = await asyncio.gather(*(manager.run_code("1", "py") for _ in range(10)))
        grown = psutil.Process().memory_info().rss - before
    assert {result.outcome for result in results} == {Outcome.OUTPUT_LIMIT}
    assert grown < 32 * 2**20


async def test_redirects_are_not_followed(raw_server: RawServer) -> None:
    """The target of a redirect gets no connection."""
    connections = 0

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1

    target = await raw_server(other)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 307 T\r\nLocation: %s/\r\nContent-Length: 0\r\n\r\n" % target.encode())
        await writer.drain()

    async with manager_for(await raw_server(handle)) as manager:
        with pytest.raises(ProtocolError, match="307"):
            await manager.run_code("1", "py")
        assert not (await manager.get_health_status()).healthy
    assert connections == 0


async def test_cookies_are_not_sent_back(raw_server: RawServer) -> None:
    """The client ignores `Set-Cookie`, so a server cannot track its callers."""
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(whole(FINE, OK_HEAD + b"Set-Cookie: a=b\r\nConnection: close\r\n"))
        await writer.drain()

    async with manager_for(await raw_server(handle), envelope="never") as manager:
        await manager.run_code("1", "py")
        await manager.run_code("1", "py")
    assert len(heads) == 2
    assert b"cookie" not in heads[1].lower()


async def test_proxy_variables_are_ignored(raw_server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variables such as HTTP_PROXY do not send programs to another host."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(json.dumps({"output": {"stdout": "direct"}}).encode()))
        await writer.drain()

    async with manager_for(await raw_server(handle)) as manager:
        assert (await manager.run_code("1", "py")).stdout == "direct"


@pytest.mark.parametrize("later", [False, True])
async def test_a_second_answer_is_not_used_for_the_next_call(raw_server: RawServer, later: bool) -> None:
    """A server sends a second answer to one request, at once or on the idle connection. The next call ignores it."""
    number = 0
    answered, sent = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            number += 1
            true, stale = (whole(b'{"output": {"stdout": "%s%d"}}' % (kind, number)) for kind in (b"true", b"stale"))
            writer.write(true if later else true + stale)
            await writer.drain()
            if later:
                await answered.wait()
                writer.write(stale)
                await writer.drain()
            sent.set()

    async with manager_for(await raw_server(handle)) as manager:
        assert (await manager.run_code("1", "py")).stdout == "true1"
        answered.set()
        await sent.wait()
        for _ in range(10):  # the second answer is in the buffer of the socket: let the client read it
            await asyncio.sleep(0)
        assert (await manager.run_code("1", "py")).stdout == "true2"
