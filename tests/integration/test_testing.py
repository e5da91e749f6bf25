"""`FakeFaaS` and `FaultProxy`, tested with a client that counts bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from faasrt import ConfigurationError, ErrorInfo, Language, Outcome, RuntimeClosedError
from faasrt.results import Display
from faasrt.testing import FakeFaaS, FaultProxy, Reply, Toxics
from support.helpers import descriptors, descriptors_at_rest, manager_for
from support.served import call

RawServer = Callable[..., Awaitable[str]]
PROGRAM = json.dumps({"language": "python", "code": "1"}).encode()
REQUEST = b"POST /run_code HTTP/1.1\r\nHost: fake\r\nContent-Length: %d\r\n\r\n%s" % (len(PROGRAM), PROGRAM)
FAST, SLOW = 0.02, 3_600.0
LINGER_0 = struct.pack("ii", 1, 0)  # closing sends RST


class Client:
    """A TCP client that distinguishes RST from FIN. Streams of asyncio would lose the bytes before an RST."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self, size: int = 2**16) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, size)

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await self.receive(size - len(data))
            assert piece, f"FIN after {data!r}"
            data += piece
        return data

    async def to_end(self) -> tuple[bytes, str]:
        """Return the bytes until the end, and the kind of end."""
        data = b""
        while True:
            try:
                piece = await self.receive()
            except ConnectionResetError:
                return data, "RST"
            if not piece:
                return data, "FIN"
            data += piece

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer, and return its status, headers and body."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.exactly(1)
        first, *lines = head.decode().rstrip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, await self.exactly(int(headers["Content-Length"]))


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        yield Client(sock)


async def post(session: aiohttp.ClientSession, url: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    async with session.post(url + "/run_code", json={"language": "python", "code": "1", **fields}) as response:
        return response.status, await response.json()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()


class Sink:
    """A server that keeps the bytes that it receives, and whether they ended with FIN or RST."""

    def __init__(self) -> None:
        self.data = b""
        self.writer: asyncio.StreamWriter | None = None
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        try:
            while data := await reader.read(2**16):
                self.data += data
            self.end.set_result("FIN")
        except ConnectionResetError:
            self.end.set_result("RST")


# The fake FaaS


async def test_replies_are_sent_in_the_protocol_of_a_faas() -> None:
    """The default outcome is OK. The fields of a reply are sent as output, error and metadata."""
    error = ErrorInfo("ValueError", "bad", "Traceback ...")
    rows: list[tuple[Reply, tuple[Any, ...]]] = [
        (Reply(), ("OK", "", "", None, "success", 0, False)),
        (Reply.ok("hi\n", value={"score": 1}), ("OK", "hi\n", '{"score": 1}', None, "success", 0, False)),
        (Reply(outcome="USER_ERROR", error=error, exit_code=3), ("USER_ERROR", "", "", "bad", "error", 3, False)),
        (Reply(outcome=Outcome.TIMEOUT), ("TIMEOUT", "", "", None, "error", None, True)),
    ]
    async with FakeFaaS() as fake, aiohttp.ClientSession() as session:
        fake.script(*(reply for reply, _ in rows))
        for _, expected in rows:
            answer = (await post(session, fake.url))[1]
            output, metadata, failure = answer["output"], answer["metadata"], answer["error_info"] or {}
            assert metadata["duration"] >= 0
            assert (answer["outcome"], output["stdout"], output["ret_val"], failure.get("message")) == expected[:4]
            assert (metadata["status"], metadata["exit_code"], metadata["timed_out"]) == expected[4:]
        assert (fake.executions, len(fake.requests), fake.in_flight, fake.peak) == (4, 4, 0, 1)


async def test_replies_come_in_the_order_of_the_script(faasrt_fake: FakeFaaS) -> None:
    """Scripted replies are used once each, in order, and then the default. A handler overrides both."""
    fake = faasrt_fake
    async with manager_for(fake.url) as manager, aiohttp.ClientSession() as session:

        async def stdout(code: str = "1") -> str:
            return (await manager.run_code(code, "python")).stdout

        fake.default = Reply.ok("default")
        fake.script(Reply.ok("one"), Reply.ok("two"))
        assert fake.scripted == 2
        fake.handler = lambda body: Reply.ok(body["code"])
        assert await stdout("mine") == "mine"
        fake.handler = lambda body: Reply(delay_s=1 / 0)
        status, answer = await post(session, fake.url)
        assert (status, "ZeroDivisionError" in answer["details"]) == (500, True)
        fake.handler = None
        assert [await stdout() for _ in range(4)] == ["one", "two", "default", "default"]
        assert [body["code"] for body in fake.requests] == ["mine", "1", "1", "1", "1", "1"]


@pytest.mark.parametrize(
    ("reply", "executions"),
    [
        (Reply.overloaded(retry_after=2), 0),
        (Reply.unavailable(), 1),
        (Reply.unavailable(retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), 0),
        (Reply.unavailable(not_started=True), 0),
        (Reply.crash(502), 1),
        (Reply(status=302, headers={"Location": "/"}), 0),
        (Reply(status=400), 0),
        (Reply(status=408), 1),
    ],
)
async def test_failure_replies(reply: Reply, executions: int) -> None:
    """A failure is sent with its headers. It counts as an execution unless it is a refusal."""
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.default = reply
        await client.send(REQUEST)
        status, headers, body = await client.answer()
        assert (status, json.loads(body)["error"]) == (reply.status, f"scripted failure {reply.status}")
        assert json.loads(body)["details"] == reply.details
        assert headers.get("Retry-After") == (None if reply.retry_after is None else str(reply.retry_after))
        assert headers.get("x-faasrt-not-started") == ("1" if reply.not_started else None)
        assert headers.get("Location") == reply.headers.get("Location")
        assert (fake.executions, len(fake.requests)) == (executions, 1)


async def test_body_and_headers() -> None:
    """A reply may have any body and any headers, even a Content-Length that is too large."""
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.default = Reply(body=b"\xff{", headers={"content-length": "5", "Connection": "close"})
        await client.send(REQUEST)
        data, end = await client.to_end()
        assert (b"\r\ncontent-length: 5" in data, data.lower().count(b"content-l"), end) == (True, 1, "FIN")
        assert data.endswith(b"\r\n\r\n\xff{")


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        *((Reply, wrong) for wrong in ({"outcome": "?"}, {"status": 100}, {"delay_s": -1}, {"delay_s": math.nan})),
        *((Toxics, {name: -1}) for name in ("latency_s", "limit_bytes", "reset_after_bytes")),
        *((Toxics, {name: 0}) for name in ("bandwidth_bytes_per_s", "slice_bytes")),
        (Toxics, {"slice_pause_s": math.inf}),
        (Toxics, {"latency_s": math.nan}),
    ],
)
def test_wrong_values_are_refused_when_they_are_given(make: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "outcome" not in wrong else "not a valid"):
        make(**wrong)


def test_a_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError):
        Reply(status=200.5)  # type: ignore[arg-type]


BAD_REQUESTS = {
    **{
        f"body {body[:2]!r}": (REQUEST.replace(PROGRAM, body).replace(b": %d" % len(PROGRAM), b": %d" % len(body)), 400)
        for body in (b"{]", b"[]", b"\xff", b"[" * 100_000)
    },
    "another path": (REQUEST.replace(b"/run_code", b"/validate_code"), 404),
    "another method": (b"GET /run_code HTTP/1.1\r\nHost: fake\r\n\r\n", 404),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_requests_that_use_no_reply(name: str) -> None:
    """Nor does one that is not complete."""
    request, expected = BAD_REQUESTS[name]
    async with FakeFaaS() as fake:
        fake.script(Reply())
        async with connected(fake.url) as client:
            await client.send(request)
            assert (await client.answer())[0] == expected
            await client.send(REQUEST[:-1])
        await fake.wait_until(lambda: fake.connections == 0)
        assert (fake.executions, fake.requests, fake.scripted, fake.accepted) == (0, [], 1, 1)


async def test_health_is_scripted_like_programs() -> None:
    """`/health` returns the fields that the test sets, counts its requests, and uses no scripted reply."""
    names = ("lossless", "enforces_timeouts", "cancels_on_disconnect", "validates", "sessions", "displays")
    capabilities = dict.fromkeys(names, True) | {"validates": False}
    async with FakeFaaS() as fake:
        fake.script(Reply(disconnect=True))
        status, health = await call(fake.url, "GET", "/health")
        assert (status, health.pop("languages").keys()) == (200, set(Language))
        assert health == {"status": "healthy", "version": "fake", "capabilities": capabilities, "limits": {}}
        fake.health = {"capabilities": {"lossless": False}, "pool_status": {"config": {"maxSize": 8}}, "limits": None}
        fake.health_status = 503
        status, health = await call(fake.url, "GET", "/health?x=1")
        assert (status, health["status"]) == (503, "unhealthy")
        assert health["capabilities"] == {**capabilities, "lossless": False}
        assert {name: health[name] for name in ("pool_status", "limits")}.items() <= fake.health.items()
        assert (fake.probes, fake.scripted, fake.requests) == (2, 1, [])


@pytest.mark.parametrize("delay_s", [0.0, FAST])
async def test_a_connection_is_closed_in_place_of_an_answer(delay_s: float) -> None:
    """The client gets no byte, and the program counts as executed, and as in flight until then."""
    loop = asyncio.get_running_loop()
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.script(Reply(disconnect=True, delay_s=delay_s))
        started = loop.time()
        await client.send(REQUEST)
        assert await client.to_end() == (b"", "FIN")
        assert loop.time() - started >= delay_s
        await fake.wait_until(lambda: fake.in_flight == fake.connections == 0)
        assert fake.executions == 1


@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(delay_s=SLOW)])
async def test_disconnected_clients_are_not_in_flight(reply: Reply) -> None:
    """When a client disconnects with FIN or RST, its program is no longer in flight, here or behind a proxy."""
    async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy:
        fake.default = reply
        for url, lingers in ((fake.url, False), (fake.url, True), (proxy.url, False)):
            async with connected(url) as client:
                await client.send(REQUEST)
                await fake.wait_until(lambda: fake.in_flight == 1)
                if lingers:
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            await fake.wait_until(lambda: fake.in_flight == fake.connections == 0)
        await proxy.wait_until(lambda: proxy.connections == 0)
        assert (fake.executions, fake.peak) == (3, 1)


async def test_capacity() -> None:
    """A program beyond the capacity is refused before it starts, uses no reply, and is not in flight."""
    async with FakeFaaS() as fake, aiohttp.ClientSession() as session:
        fake.capacity = 1
        fake.script(Reply(hang=True), Reply.ok("second"))
        hanging = asyncio.create_task(post(session, fake.url))
        await fake.wait_until(lambda: fake.in_flight == 1)
        async with session.post(fake.url + "/run_code", json={}) as response:
            assert response.status == 429
            assert (response.headers["Retry-After"], response.headers["x-faasrt-not-started"]) == ("1", "1")
        assert (fake.executions, fake.in_flight, fake.peak, fake.scripted) == (1, 1, 1, 1)
        hanging.cancel()
        await fake.wait_until(lambda: fake.in_flight == 0)
        assert (await post(session, fake.url))[1]["output"]["stdout"] == "second"


# Both: opening, closing, down and up


@pytest.fixture(params=["fake", "proxy"])
async def made(request: pytest.FixtureRequest, raw_server: RawServer) -> FakeFaaS | FaultProxy:
    """Return a FakeFaaS or a FaultProxy that is not open yet."""
    return FakeFaaS() if request.param == "fake" else FaultProxy(await raw_server(echo))


async def test_down_and_up(made: FakeFaaS | FaultProxy) -> None:
    """`down` closes all connections and refuses new ones. `up` serves on the same port again. Both may be repeated."""
    async with made as server:
        url = server.url
        async with connected(url) as client:
            await server.wait_until(lambda: server.connections == 1)
            server.down()
            server.down()
            assert await client.to_end() == (b"", "FIN")
        with pytest.raises(ConnectionRefusedError):
            async with connected(url):
                pass
        await server.up()
        await server.up()
        assert server.url == url
        async with connected(url) as client:
            await client.send(REQUEST)
            assert await client.receive()
        assert server.accepted == 2


async def test_a_server_is_opened_once(made: FakeFaaS | FaultProxy) -> None:
    """Before it is open, only `down` and `aclose` may be used, and afterwards too. No descriptor remains."""
    before = await descriptors_at_rest()
    made.down()
    with pytest.raises(RuntimeClosedError, match="not open"):
        _ = made.url
    with pytest.raises(RuntimeClosedError):
        await made.up()
    await made.aclose()
    async with made as server:
        with pytest.raises(RuntimeClosedError, match="once"):
            await server.__aenter__()
        server.down()
    assert descriptors() == before
    for again in (server.__aenter__, server.up):
        with pytest.raises(RuntimeClosedError, match="make a new one"):
            await again()


async def test_close_with_open_connections(made: FakeFaaS | FaultProxy) -> None:
    """No task and no file descriptor remains. A server may be closed twice, even if the first close was cancelled."""
    before = await descriptors_at_rest(), asyncio.all_tasks()
    async with made as server:
        async with connected(server.url) as client, connected(server.url):
            await server.wait_until(lambda: server.accepted == 2)
            await client.send(REQUEST[:1])
            closing = asyncio.create_task(server.aclose())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait({closing})
            assert closing.cancelled()
            await server.aclose()
            assert server.connections == 0
        with pytest.raises(ConnectionRefusedError):
            async with connected(server.url):
                pass
    # The target of the proxy is another server, which closes its end a moment later.
    async with asyncio.timeout(10):
        while (descriptors(), asyncio.all_tasks()) != before:
            await asyncio.sleep(0)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_close_with_a_program_in_flight(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """No task remains, with asyncio and uvloop, and nothing is logged."""

    async def main() -> None:
        async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy, connected(proxy.url) as client:
            fake.default = Reply(hang=True)
            await client.send(REQUEST)
            await fake.wait_until(lambda: fake.in_flight == 1)
            await proxy.aclose()
            await fake.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert (fake.in_flight, fake.connections, proxy.connections) == (0, 0, 0)

    new_loop = pytest.importorskip(loop).new_event_loop
    with caplog.at_level(logging.INFO), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert caplog.records == []


@pytest.mark.parametrize("steps", range(5))
async def test_cancelled_while_opening(made: FakeFaaS | FaultProxy, steps: int) -> None:
    """If opening is cancelled at any await, no task and no file descriptor remains."""
    before = await descriptors_at_rest(), asyncio.all_tasks()
    opening = asyncio.create_task(made.__aenter__())
    for _ in range(steps):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait({opening})
    if not opening.cancelled():
        await made.aclose()  # it had already ended
    assert (descriptors(), asyncio.all_tasks()) == before


# The fault proxy


async def test_proxy_without_toxics(raw_server: RawServer) -> None:
    """The proxy forwards all bytes and FIN in both directions, and counts the bytes."""
    data = bytes(range(256)) * 10_000
    async with FaultProxy(await raw_server(echo)) as proxy, connected(proxy.url) as client:
        _, back = await asyncio.gather(client.send(data), client.exactly(len(data)))
        assert back == data
        assert proxy.bytes_upstream == proxy.bytes_downstream == len(data)
        client.socket.shutdown(socket.SHUT_WR)
        assert await client.to_end() == (b"", "FIN")
        await proxy.wait_until(lambda: proxy.connections == 0)


@pytest.mark.parametrize("way", ["upstream", "downstream"])
async def test_toxics_that_delay_or_drop(raw_server: RawServer, way: str) -> None:
    """Bytes arrive later, or never. When the toxic is removed, delayed and new bytes arrive at once."""
    loop = asyncio.get_running_loop()
    async with FaultProxy(await raw_server(echo)) as proxy, connected(proxy.url) as client:
        for toxics, least_s in (
            (Toxics(latency_s=FAST), FAST),
            (Toxics(bandwidth_bytes_per_s=50_000), 0.059),  # without the time of the last portion, which is 20 ms
            (Toxics(slice_bytes=1_500, slice_pause_s=FAST), 2 * FAST),
        ):
            setattr(proxy, way, toxics)
            started = loop.time()
            await client.send(bytes(4_000))
            await client.exactly(4_000)
            assert loop.time() - started >= least_s
        setattr(proxy, way, Toxics(latency_s=SLOW))
        await client.send(b"pong")
        await asyncio.sleep(FAST)
        setattr(proxy, way, Toxics())
        assert await client.exactly(4) == b"pong"
        setattr(proxy, way, Toxics(timeout=True))
        await client.send(b"lost")
        await proxy.wait_until(lambda: proxy.bytes_dropped == 4)
        client.socket.shutdown(socket.SHUT_WR)
        await asyncio.sleep(FAST)
        assert (proxy.connections, proxy.bytes_downstream) == (1, 12_004)
        setattr(proxy, way, Toxics())
        assert await client.to_end() == (b"", "FIN")


ENDS = {
    **{f"reset after {n}": (Toxics(reset_after_bytes=n), n, "RST") for n in (0, 1, 5, 10)},
    **{f"limit of {n}": (Toxics(limit_bytes=n), n, "FIN") for n in (0, 1, 5)},
    "reset": (Toxics(reset=True), 0, "RST"),
}


@pytest.mark.parametrize("name", ENDS)
async def test_toxics_that_end_a_connection(raw_server: RawServer, name: str) -> None:
    """The bytes count from when the toxic was set. Both sides are closed or reset, here and on new connections."""
    toxics, passed, expected = ENDS[name]
    async with FaultProxy(await raw_server(echo)) as proxy:
        async with connected(proxy.url) as client:
            await client.send(b"before")
            await client.exactly(6)
            proxy.downstream = toxics
            with contextlib.suppress(ConnectionError):  # it has been reset at once
                await client.send(b"0123456789")
            assert await client.to_end() == (b"0123456789"[:passed], expected)
        async with connected(proxy.url) as client:
            await client.send(b"0123456789")
            assert await client.to_end() == (b"0123456789"[:passed], expected)
    sink = Sink()
    async with FaultProxy(await raw_server(sink.handle)) as proxy, connected(proxy.url) as client:
        await client.send(b"x")
        await proxy.wait_until(lambda: proxy.bytes_upstream == 1)
        proxy.upstream = toxics
        with contextlib.suppress(ConnectionError):
            await client.send(b"0123456789" * 20_000)
        assert await client.to_end() == (b"", expected)
        assert (await sink.end, proxy.bytes_upstream) == (expected, 1 + passed)
        await proxy.wait_until(lambda: proxy.connections == 0)


async def test_reset_all_spares_new_connections(raw_server: RawServer) -> None:
    async with FaultProxy(await raw_server(echo)) as proxy:
        for _ in range(2):
            async with connected(proxy.url) as client:
                await client.send(b"x")
                assert await client.exactly(1) == b"x"
                proxy.reset_all()
                assert await client.to_end() == (b"", "RST")


async def test_half_close(raw_server: RawServer) -> None:
    """One side gets the first bytes and FIN; the other direction stays open."""
    sink = Sink()
    async with FaultProxy(await raw_server(sink.handle)) as proxy, connected(proxy.url) as client:
        proxy.downstream = Toxics(half_close=True, limit_bytes=2)
        await client.send(b"up")
        await proxy.wait_until(lambda: proxy.bytes_upstream == 2)
        while sink.writer is None:
            await asyncio.sleep(0)
        sink.writer.write(b"down")
        assert await client.to_end() == (b"do", "FIN")
        await client.send(b"more")
        await proxy.wait_until(lambda: proxy.bytes_upstream == 6)
        sink.writer.write(b"swallowed")
        client.socket.shutdown(socket.SHUT_WR)
        assert (await sink.end, sink.data) == ("FIN", b"upmore")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"got " + await reader.read())
        await writer.drain()

    async with FaultProxy(await raw_server(answer)) as proxy, connected(proxy.url) as client:
        proxy.upstream = Toxics(half_close=True)
        await client.send(b"up")
        assert await client.to_end() == (b"got up", "FIN")


async def test_proxy_forwards_the_end_of_a_server(raw_server: RawServer) -> None:
    """FIN and RST of the server are forwarded after the same bytes. If the server is down, the client gets RST."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        await writer.drain()
        if await reader.readexactly(1) == b"R":
            writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)

    async with FaultProxy(await raw_server(handle)) as proxy:
        for end in ("FIN", "RST"):
            async with connected(proxy.url) as client:
                await client.send(b"data" + end[:1].encode())
                assert await client.to_end() == (b"data", end)
    async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy:
        fake.down()
        async with connected(proxy.url) as client:
            assert await client.to_end() == (b"", "RST")


async def test_url_of_a_proxy() -> None:
    """The URL has the path of the target URL. Invalid target URLs are refused."""
    async with FaultProxy("https://localhost/base/") as proxy:
        assert re.fullmatch(r"https://127\.0\.0\.1:\d+/base", proxy.url)
    for wrong in ("localhost:80", "ftp://localhost", "http://", "http://host:99999"):
        with pytest.raises(ConfigurationError, match="target_url"):
            FaultProxy(wrong)


# The package


def test_public_names_are_imported_lazily() -> None:
    """Importing the package imports no server. An unknown name is an AttributeError."""
    code = (
        "import sys, faasrt.testing as t; assert 'aiohttp' not in sys.modules and 'asyncio' not in sys.modules; t.Nope"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AttributeError: module 'faasrt.testing' has no attribute 'Nope'" in done.stderr


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        (None, {"language": "cobol"}),
        (None, {"language": "go"}),
        (None, {"language": "python", "sandbox": {"memory_mb": 64}}),
        (None, {"language": "python", "sandbox": {"network_enabled": True}}),
        (None, {"language": "python", "sandbox": {"timeout_ms": 0}}),
        (None, {"language": "python", "files": {"../a": ""}}),
        (None, {"language": "python", "idle_timeout_s": 0}),
        (None, {"language": "python", "idle_timeout_s": "60"}),
        (None, {"language": "python", "id": "short"}),
        ("fork", {"idle_timeout_s": -1}),
        ("run", {}),
        ("run", {"code": " "}),
        ("run", {"code": "1", "argv": ["a"]}),
        ("run", {"code": "1", "collect": ["*"]}),
        ("run", {"code": "1", "sandbox": {"memory_limit_mb": 64}}),
        ("files", {"patterns": ["/etc"]}),
    ],
)
async def test_a_fake_refuses_what_a_server_refuses_in_sessions(action: str | None, fields: dict[str, Any]) -> None:
    async with FakeFaaS() as fake:
        _, opened = await call(fake.url, "POST", "/sessions", language="python")
        path = "/sessions" if action is None else f"/sessions/{opened['id']}/{action}"
        status, answer = await call(fake.url, "POST", path, **fields)
        assert (status, answer["error"], fake.executions) == (400, "bad request", 0)


async def test_a_fake_has_sessions() -> None:
    """It keeps their files, and forks and ends them. Programs get scripted replies, and can end their session."""
    async with FakeFaaS() as fake:
        status, opened = await call(fake.url, "POST", "/sessions", language="python", files={"a/b.txt": "hi"})
        assert (status, opened["language"], opened["limits"]["memory_limit_mb"]) == (201, "python", 128)
        session = f"/sessions/{opened['id']}"
        fake.script(Reply(stdout="1\n", displays=[Display({"text/plain": "2"})]))
        status, answer = await call(fake.url, "POST", f"{session}/run", code="x")
        assert (status, answer["output"]["stdout"], answer["session"]) == (200, "1\n", {"ended": ""})
        assert answer["displays"] == [{"data": {"text/plain": "2"}, "omitted": []}]
        await call(fake.url, "PUT", f"{session}/files", files={"c.csv": "1"})
        status, branch = await call(fake.url, "POST", f"{session}/fork")
        found = await call(fake.url, "POST", f"/sessions/{branch['id']}/files", patterns=["**/*.txt", "*.csv"])
        assert found == (200, {"files": {"a/b.txt": "hi", "c.csv": "1"}})
        found = await call(fake.url, "GET", f"/sessions/{branch['id']}/files")
        assert found == (200, {"sizes": {"a/b.txt": 2, "c.csv": 1}})
        fake.script(Reply(hang=True), Reply(outcome="TIMEOUT", session_ended="it did not end"))
        run = asyncio.create_task(call(fake.url, "POST", f"{session}/run", code="x"))
        while not fake.in_flight:
            await asyncio.sleep(0)
        assert await call(fake.url, "POST", f"{session}/interrupt") == (200, {"interrupted": True})
        assert (await run)[1]["error_info"]["name"] == "KeyboardInterrupt"
        assert (await call(fake.url, "POST", f"{session}/run", code="x"))[1]["session"] == {"ended": "it did not end"}
        assert await call(fake.url, "GET", session) == (404, {"error": "session lost", "details": "it did not end"})
        assert (fake.executions, fake.requests[0], [*fake.sessions]) == (3, {"code": "x"}, [branch["id"]])
        fake.max_sessions = 1
        refusal = {"error": "too many sessions", "details": "no more may be open"}  # as of a real server
        assert await call(fake.url, "POST", "/sessions", language="python") == (503, refusal)
        for _ in range(2):
            assert await call(fake.url, "DELETE", f"/sessions/{branch['id']}") == (200, {})
        assert (await call(fake.url, "GET", "/sessions/unknown"))[0] == 404
