"""`FakeFaaS` and `FaultProxy`, tested with a client that counts bytes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
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


# The fake FaaS: its answers


async def test_replies_are_sent_in_the_protocol_of_a_faas() -> None:
    """The default outcome is OK. The fields of a reply are sent as output, error and metadata."""
    error = ErrorInfo("ValueError", "bad", "Traceback ...")
    async with FakeFaaS() as fake, aiohttp.ClientSession() as session:
        fake.script(
            Reply(),
            Reply.ok("hi\n", value={"score": 1}),
            Reply(outcome="USER_ERROR", stderr="oh", error=error, exit_code=3),
            Reply(outcome=Outcome.TIMEOUT),
        )
        answers = [(await post(session, fake.url))[1] for _ in range(4)]
        assert [answer["outcome"] for answer in answers] == ["OK", "OK", "USER_ERROR", "TIMEOUT"]
        assert answers[1]["output"] == {"stdout": "hi\n", "stderr": "", "ret_val": '{"score": 1}'}
        assert answers[2]["error_info"] == {"name": "ValueError", "message": "bad", "traceback": "Traceback ..."}
        metadata = [answer["metadata"] for answer in answers]
        assert [(item["status"], item["exit_code"], item["timed_out"]) for item in metadata] == [
            ("success", 0, False),
            ("success", 0, False),
            ("error", 3, False),
            ("error", None, True),
        ]
        assert all(item["language"] == "python" and item["duration"] >= 0 for item in metadata)
        assert (fake.executions, len(fake.requests), fake.in_flight, fake.peak) == (4, 4, 0, 1)


async def test_manager_with_a_fake_faas(faasrt_fake: FakeFaaS) -> None:
    """A manager can use a `FakeFaaS`, and the fixture `faasrt_fake` yields an open one."""
    faasrt_fake.default = Reply(outcome="MEMORY_LIMIT", stdout="hi")
    async with manager_for(faasrt_fake.url) as manager:
        result = await manager.run_code("print('hi')", "python")
    assert (result.outcome, result.stdout) == (Outcome.MEMORY_LIMIT, "hi")
    assert faasrt_fake.requests[0]["code"] == "print('hi')"


async def test_replies_come_in_the_order_of_the_script() -> None:
    """Scripted replies are used once each, in order, and then the default. A handler overrides both."""
    async with FakeFaaS() as fake, aiohttp.ClientSession() as session:

        async def stdout(**fields: Any) -> str:
            return (await post(session, fake.url, **fields))[1]["output"]["stdout"]

        fake.default = Reply.ok("default")
        fake.script(Reply.ok("one"), Reply.ok("two"))
        assert fake.scripted == 2
        fake.handler = lambda body: Reply.ok(body["code"])
        assert await stdout(code="mine") == "mine"
        fake.handler = None
        assert [await stdout() for _ in range(4)] == ["one", "two", "default", "default"]
        assert [body["code"] for body in fake.requests] == ["mine", "1", "1", "1", "1"]


async def test_exception_of_a_handler_is_a_500() -> None:
    """The answer contains the exception."""

    def handler(body: dict[str, Any]) -> Reply:
        raise KeyError("nope")

    async with FakeFaaS() as fake, aiohttp.ClientSession() as session:
        fake.handler = handler
        status, answer = await post(session, fake.url)
        assert status == 500
        assert "KeyError('nope')" in answer["details"]


@pytest.mark.parametrize(
    ("reply", "executions"),
    [
        (Reply.overloaded(), 0),
        (Reply.overloaded(retry_after=2), 0),
        (Reply.unavailable(), 1),
        (Reply.unavailable(retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), 0),
        (Reply.unavailable(not_started=True), 0),
        (Reply.crash(), 1),
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
        assert status == reply.status
        assert json.loads(body) == {"error": f"scripted failure {status}", "details": reply.details}
        assert headers.get("Retry-After") == (None if reply.retry_after is None else str(reply.retry_after))
        assert headers.get("x-faasrt-not-started") == ("1" if reply.not_started else None)
        assert headers.get("Location") == reply.headers.get("Location")
        assert (fake.executions, len(fake.requests)) == (executions, 1)


async def test_body_and_headers() -> None:
    """A reply may have any body and any headers, even a Content-Length that is too large."""
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.default = Reply(body=b"\xff{", headers={"content-length": "5", "Content-Type": "text/plain"})
        await client.send(REQUEST.replace(b"Host", b"Connection: close\r\nHost"))
        data, end = await client.to_end()
        head, _, body = data.partition(b"\r\n\r\n")
        assert (b"\r\ncontent-length: 5" in head, b"\r\nContent-Type: text/plain" in head) == (True, True)
        assert (head.lower().count(b"content-"), body, end) == (2, b"\xff{", "FIN")


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": "FINE"},
        {"status": 100},
        {"delay_s": -1},
        {"delay_s": float("nan")},
    ],
)
def test_invalid_replies_are_refused(wrong: dict[str, Any]) -> None:
    """A reply that cannot be sent is refused when it is created."""
    with pytest.raises(ValueError, match=r"'\w+'"):
        Reply(**wrong)
    with pytest.raises(TypeError):
        Reply(status=200.5)  # type: ignore[arg-type]


# The fake FaaS: its HTTP


async def test_several_requests_on_one_connection() -> None:
    """Requests may be sent one by one or pipelined. `Connection: close` and HTTP/1.0 end the connection with FIN."""
    async with FakeFaaS() as fake:
        fake.handler = lambda body: Reply.ok(str(len(fake.requests)))
        async with connected(fake.url) as client:
            for number in (1, 2, 3):
                await client.send(REQUEST)
                assert json.loads((await client.answer())[2])["output"]["stdout"] == str(number)
            await client.send(REQUEST * 3 + REQUEST[:10])
            numbers = [json.loads((await client.answer())[2])["output"]["stdout"] for _ in range(3)]
            assert numbers == ["4", "5", "6"]
            await client.send(REQUEST[10:])
            assert (await client.answer())[0] == 200
            assert (fake.connections, fake.accepted) == (1, 1)
        for last in (REQUEST.replace(b"Host", b"Connection: close\r\nHost"), REQUEST.replace(b"/1.1", b"/1.0")):
            async with connected(fake.url) as client:
                await client.send(last)
                assert (await client.answer())[0] == 200
                assert await client.to_end() == (b"", "FIN")
        await fake.wait_until(lambda: fake.connections == 0)
        assert fake.accepted == 3


async def test_requests_may_arrive_in_pieces() -> None:
    """A request may be split at any byte, or arrive byte by byte."""
    async with FakeFaaS() as fake, connected(fake.url) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(1, len(REQUEST)):
            await client.send(REQUEST[:place])
            await asyncio.sleep(0)
            await client.send(REQUEST[place:])
            assert (await client.answer())[0] == 200
        for byte in REQUEST:
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer())[0] == 200
        assert fake.requests == [json.loads(PROGRAM)] * len(REQUEST)


async def test_large_bodies() -> None:
    """One connection carries two requests and answers of 10 MB."""
    code = "#" * 10_000_000
    async with FakeFaaS() as fake, aiohttp.ClientSession() as session:
        fake.handler = lambda body: Reply.ok(body["code"])
        for _ in range(2):
            async with session.post(
                fake.url + "/run_code", data=io.BytesIO(json.dumps({"code": code}).encode())
            ) as response:
                assert (await response.json())["output"]["stdout"] == code
        assert fake.accepted == 1


@pytest.mark.parametrize("body", [b"{]", b"[]", b"\xff", b"[" * 100_000])
async def test_invalid_requests(body: bytes) -> None:
    """A body that is not a JSON object gets an error, and uses no scripted reply."""
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.script(Reply())
        await client.send(REQUEST.replace(PROGRAM, body).replace(b": %d" % len(PROGRAM), b": %d" % len(body)))
        status, _, answer = await client.answer()
        assert (status, json.loads(answer)["error"]) == (400, "bad request")
        assert (fake.executions, fake.requests, fake.scripted) == (0, [], 1)


async def test_other_paths_are_not_found() -> None:
    """Other paths get a 404, do not close the connection, and use no scripted reply."""
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.script(Reply())
        for other in (REQUEST.replace(b"/run_code", b"/validate_code"), b"GET /metrics HTTP/1.1\r\nHost: fake\r\n\r\n"):
            await client.send(other)
            assert (await client.answer())[0] == 404
        assert (fake.requests, fake.scripted, fake.accepted) == ([], 1, 1)


async def test_health_is_scripted_like_programs() -> None:
    """`/health` returns the fields that the test sets, counts its requests, and uses no scripted reply."""
    async with FakeFaaS() as fake, aiohttp.ClientSession() as session:
        fake.script(Reply(disconnect=True))
        async with session.get(fake.url + "/health") as response:
            health = await response.json()
            assert health.pop("languages").keys() == set(Language)
            assert health == {
                "status": "healthy",
                "version": "fake",
                "capabilities": {
                    "lossless": True,
                    "enforces_timeouts": True,
                    "cancels_on_disconnect": True,
                    "validates": False,
                    "sessions": True,
                    "displays": True,
                },
                "limits": {},
            }
        fake.health = {"capabilities": {"lossless": False}, "pool_status": {"config": {"maxSize": 8}}, "limits": None}
        fake.health_status = 503
        async with session.get(fake.url + "/health?x=1") as response:
            reported = await response.json()
            assert (response.status, reported["status"], reported["limits"]) == (503, "unhealthy", None)
            assert reported["capabilities"] == {
                "lossless": False,
                "enforces_timeouts": True,
                "cancels_on_disconnect": True,
                "validates": False,
                "sessions": True,
                "displays": True,
            }
            assert reported["pool_status"] == {"config": {"maxSize": 8}}
        assert (fake.probes, fake.scripted, fake.requests) == (2, 1, [])


# The fake FaaS: faults


@pytest.mark.parametrize("reply", [Reply(disconnect=True), Reply(disconnect=True, delay_s=FAST)])
async def test_a_connection_is_closed_in_place_of_an_answer(reply: Reply) -> None:
    """The client gets no byte, and the program counts as executed."""
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.script(reply)
        await client.send(REQUEST)
        assert await client.to_end() == (b"", "FIN")
        await fake.wait_until(lambda: fake.in_flight == fake.connections == 0)
        assert fake.executions == 1


async def test_incomplete_request_uses_no_reply() -> None:
    """The next request gets the reply."""
    async with FakeFaaS() as fake:
        fake.script(Reply.ok("one"))
        async with connected(fake.url) as client:
            await client.send(REQUEST[:-1])
            await fake.wait_until(lambda: fake.scripted == 0 or fake.connections == 1)
        await fake.wait_until(lambda: fake.connections == 0)
        async with connected(fake.url) as client:
            await client.send(REQUEST)
            assert b"one" in (await client.answer())[2]
        assert fake.executions == 1


async def test_delays() -> None:
    """The answer arrives after `delay_s`, and the program is in flight until then."""
    loop = asyncio.get_running_loop()
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.default = Reply(delay_s=FAST)
        started = loop.time()
        await client.send(REQUEST)
        await fake.wait_until(lambda: fake.in_flight == 1)
        answer = json.loads((await client.answer())[2])
        assert loop.time() - started >= FAST
        assert answer["metadata"]["duration"] >= 1_000 * FAST
        await fake.wait_until(lambda: fake.in_flight == 0)


@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(delay_s=SLOW)])
async def test_disconnected_clients_are_not_in_flight(reply: Reply) -> None:
    """When a client disconnects with FIN or RST, its program is no longer in flight."""
    async with FakeFaaS() as fake:
        fake.default = reply
        for lingers in (False, True):
            async with connected(fake.url) as client:
                await client.send(REQUEST)
                await fake.wait_until(lambda: fake.in_flight == 1)
                if lingers:
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            await fake.wait_until(lambda: fake.in_flight == fake.connections == 0)
        assert (fake.executions, fake.peak) == (2, 1)


async def test_capacity() -> None:
    """A program beyond the capacity is refused before it starts, uses no reply, and is not in flight."""
    async with FakeFaaS() as fake, aiohttp.ClientSession() as session:
        fake.capacity = 2
        fake.script(Reply(hang=True), Reply(hang=True), Reply.ok("third"))
        hanging = [asyncio.create_task(post(session, fake.url)) for _ in range(2)]
        await fake.wait_until(lambda: fake.in_flight == 2)
        async with session.post(fake.url + "/run_code", json={}) as response:
            assert response.status == 429
            assert (response.headers["Retry-After"], response.headers["x-faasrt-not-started"]) == ("1", "1")
        assert (fake.executions, fake.in_flight, fake.peak, fake.scripted) == (2, 2, 2, 1)
        hanging[0].cancel()
        await fake.wait_until(lambda: fake.in_flight == 1)
        assert (await post(session, fake.url))[1]["output"]["stdout"] == "third"
        hanging[1].cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


# Both: opening, closing, down and up


@pytest.fixture(params=["fake", "proxy"])
async def made(request: pytest.FixtureRequest, raw_server: RawServer) -> FakeFaaS | FaultProxy:
    """Return a FakeFaaS or a FaultProxy that is not open yet."""
    return FakeFaaS() if request.param == "fake" else FaultProxy(await raw_server(echo))


async def test_down_and_up(made: FakeFaaS | FaultProxy) -> None:
    """`down` closes all connections and refuses new ones. `up` serves on the same port again."""
    async with made as server:
        url = server.url
        for _ in range(3):
            async with connected(url) as client:
                await server.wait_until(lambda: server.connections == 1)
                server.down()
                server.down()
                assert await client.to_end() == (b"", "FIN")
            with pytest.raises(ConnectionRefusedError):
                async with connected(url):
                    pass
            assert server.url == url
            await server.up()
            await server.up()
        async with connected(url) as client:
            await client.send(REQUEST)
            assert await client.receive()
        assert server.accepted == 4


async def test_down_ends_programs_in_flight() -> None:
    """The connection of a program in flight is closed. Counters are kept."""
    async with FakeFaaS() as fake, connected(fake.url) as client:
        fake.default = Reply(hang=True)
        await client.send(REQUEST)
        await fake.wait_until(lambda: fake.in_flight == 1)
        fake.down()
        assert await client.to_end() == (b"", "FIN")
        await fake.wait_until(lambda: fake.in_flight == fake.connections == 0)
        assert fake.executions == 1


async def test_close_with_open_connections(made: FakeFaaS | FaultProxy) -> None:
    """No task and no file descriptor remains. A server may be closed twice."""
    before = await descriptors_at_rest(), asyncio.all_tasks()
    async with made as server:
        async with connected(server.url) as client, connected(server.url):
            await server.wait_until(lambda: server.accepted == 2)
            await client.send(REQUEST[:1])
            await server.aclose()
            assert server.connections == 0
        with pytest.raises(ConnectionRefusedError):
            async with connected(server.url):
                pass
    await server.aclose()
    server.down()
    # The target of the proxy is another server, which closes its end a moment later.
    async with asyncio.timeout(10):
        while (descriptors(), asyncio.all_tasks()) != before:
            await asyncio.sleep(0)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_close_with_a_program_in_flight(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """No task remains, with asyncio and uvloop, and nothing is logged."""

    async def main() -> None:
        async with (
            FakeFaaS() as fake,
            FaultProxy(fake.url) as proxy,
            connected(proxy.url) as client,
            connected(fake.url) as other,
        ):
            fake.default = Reply(hang=True)
            await client.send(REQUEST)
            await other.send(REQUEST[:1])
            await fake.wait_until(lambda: fake.in_flight == 1)
            await proxy.aclose()
            await fake.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert (fake.in_flight, fake.connections, proxy.connections) == (0, 0, 0)

    new_loop = pytest.importorskip(loop).new_event_loop
    with caplog.at_level(logging.INFO), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert caplog.records == []


async def test_a_connection_is_cancelled_while_the_proxy_closes_it() -> None:
    """It ends as a cancelled task. An exception would be logged as never retrieved."""
    async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy, connected(proxy.url) as client:
        fake.default = Reply(hang=True)
        proxy.upstream = Toxics(limit_bytes=len(REQUEST))
        await client.send(REQUEST)
        await fake.wait_until(lambda: fake.in_flight == 1)
        (connection,) = [task for task in asyncio.all_tasks() if "FaultProxy._serve" in repr(task)]
        assert await client.receive() == b""  # the proxy has sent FIN to both sides, and waits for theirs
        connection.cancel()
        await asyncio.wait([connection])
        assert connection.cancelled()


async def test_close_while_down(made: FakeFaaS | FaultProxy) -> None:
    """The socket that reserves the port is closed."""
    before = await descriptors_at_rest()
    async with made as server:
        server.down()
    assert descriptors() == before


async def test_use_before_opening(made: FakeFaaS | FaultProxy) -> None:
    """`url` and `up` raise RuntimeClosedError. `down` and `aclose` do nothing."""
    made.down()
    with pytest.raises(RuntimeClosedError, match="not open"):
        _ = made.url
    with pytest.raises(RuntimeClosedError):
        await made.up()
    await made.aclose()


async def test_open_twice(made: FakeFaaS | FaultProxy) -> None:
    """A server cannot be opened again, while it is open or afterwards."""
    async with made as server:
        with pytest.raises(RuntimeClosedError, match="once"):
            await server.__aenter__()
    with pytest.raises(RuntimeClosedError, match="once"):
        await server.__aenter__()
    with pytest.raises(RuntimeClosedError, match="make a new one"):
        await server.up()


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


async def test_cancelled_while_closing(made: FakeFaaS | FaultProxy) -> None:
    """If `aclose` is cancelled, the server is still closed."""
    async with made as server, connected(server.url) as client:
        await server.wait_until(lambda: server.connections == 1)
        closing = asyncio.create_task(server.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})
        assert closing.cancelled()
        assert await client.to_end() == (b"", "FIN")
        await server.aclose()
        assert server.connections == 0


async def test_many_concurrent_clients(made: FakeFaaS | FaultProxy) -> None:
    """200 clients are served. When they disconnect, the server closes its connections."""
    async with made as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.url)) for _ in range(200)]

        async def call(client: Client) -> None:
            await client.send(REQUEST)
            assert await client.receive()

        await asyncio.gather(*(call(client) for client in clients))
        await stack.aclose()
        await server.wait_until(lambda: server.connections == 0)
        assert server.accepted == 200


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
async def test_latency(raw_server: RawServer, way: str) -> None:
    """Bytes arrive after `latency_s`. When the toxic is removed, delayed bytes arrive at once."""
    loop = asyncio.get_running_loop()
    async with FaultProxy(await raw_server(echo)) as proxy, connected(proxy.url) as client:
        setattr(proxy, way, Toxics(latency_s=FAST))
        started = loop.time()
        await client.send(b"ping")
        assert await client.exactly(4) == b"ping"
        assert loop.time() - started >= FAST
        setattr(proxy, way, Toxics(latency_s=SLOW))
        await client.send(b"pong")
        if way == "downstream":
            await proxy.wait_until(lambda: proxy.bytes_upstream == 8)
        setattr(proxy, way, Toxics())
        assert await client.exactly(4) == b"pong"


async def test_bandwidth(raw_server: RawServer) -> None:
    """Only one direction is limited to `bandwidth_bytes_per_s`."""
    loop = asyncio.get_running_loop()
    async with FaultProxy(await raw_server(echo)) as proxy, connected(proxy.url) as client:
        proxy.downstream = Toxics(bandwidth_bytes_per_s=100_000)
        started = loop.time()
        await client.send(bytes(10_000))
        await proxy.wait_until(lambda: proxy.bytes_upstream == 10_000)
        assert proxy.bytes_downstream < 10_000
        await client.exactly(10_000)
        # Without the time of the last portion, which is 20 ms.
        assert loop.time() - started >= 0.079


async def test_slices(raw_server: RawServer) -> None:
    """The receiver gets slices of `slice_bytes`, each after a pause."""
    async with FaultProxy(await raw_server(echo)) as proxy, connected(proxy.url) as client:
        proxy.downstream = Toxics(slice_bytes=3, slice_pause_s=FAST)
        await client.send(b"0123456789")
        pieces = [await client.receive() for _ in range(4)]
        assert pieces == [b"012", b"345", b"678", b"9"]


@pytest.mark.parametrize("way", ["upstream", "downstream"])
async def test_timeout(raw_server: RawServer, way: str) -> None:
    """Bytes and FIN are dropped, but the connection stays open. When the toxic is removed, later bytes arrive."""
    async with FaultProxy(await raw_server(echo)) as proxy, connected(proxy.url) as client:
        setattr(proxy, way, Toxics(timeout=True))
        await client.send(b"lost")
        await proxy.wait_until(lambda: proxy.bytes_dropped == 4)
        assert proxy.bytes_downstream == 0
        assert proxy.bytes_upstream == (0 if way == "upstream" else 4)
        setattr(proxy, way, Toxics())
        await client.send(b"found")
        assert await client.exactly(5) == b"found"
        setattr(proxy, way, Toxics(timeout=True))
        client.socket.shutdown(socket.SHUT_WR)
        await asyncio.sleep(FAST)
        assert proxy.connections == 1
        setattr(proxy, way, Toxics())
        assert await client.to_end() == (b"", "FIN")


async def test_a_reset_ends_every_connection(raw_server: RawServer) -> None:
    """Both sides of open connections and all new connections are reset, until the toxic is removed."""
    sink = Sink()
    async with FaultProxy(await raw_server(sink.handle)) as proxy:
        async with connected(proxy.url) as client:
            await client.send(b"x")
            await proxy.wait_until(lambda: proxy.bytes_upstream == 1)
            proxy.upstream = Toxics(reset=True)
            assert await client.to_end() == (b"", "RST")
            assert await sink.end == "RST"
        async with connected(proxy.url) as client:
            assert await client.to_end() == (b"", "RST")
        proxy.upstream = Toxics()
        async with connected(proxy.url) as client:
            await client.send(b"x")
            await proxy.wait_until(lambda: proxy.bytes_upstream == 2)
            proxy.reset_all()
            assert await client.to_end() == (b"", "RST")
        await proxy.wait_until(lambda: proxy.connections == 0)


async def test_reset_after_bytes_downstream(raw_server: RawServer) -> None:
    """The client gets `reset_after_bytes` bytes, counted from when the toxic was set, and then RST."""
    async with FaultProxy(await raw_server(echo)) as proxy:
        for place in (0, 1, 5, 10):
            proxy.downstream = Toxics()
            async with connected(proxy.url) as client:
                await client.send(b"before")
                await client.exactly(6)
                proxy.downstream = Toxics(reset_after_bytes=place)
                await client.send(b"0123456789")
                assert await client.to_end() == (b"0123456789"[:place], "RST")
            async with connected(proxy.url) as client:
                await client.send(b"0123456789")
                assert await client.to_end() == (b"0123456789"[:place], "RST")


async def test_reset_after_bytes_upstream(raw_server: RawServer) -> None:
    """The proxy forwards `reset_after_bytes` bytes to the server. Then both sides get RST."""
    for place in (0, 1, 200_000):
        sink = Sink()
        async with FaultProxy(await raw_server(sink.handle)) as proxy, connected(proxy.url) as client:
            proxy.upstream = Toxics(reset_after_bytes=place)
            await client.send(bytes(200_000))
            assert await client.to_end() == (b"", "RST")
            assert await sink.end == "RST"
            assert proxy.bytes_upstream == place


async def test_limit_bytes(raw_server: RawServer) -> None:
    """In either direction, `limit_bytes` bytes arrive. Then both sides get FIN."""
    for place in (0, 1, 5):
        async with FaultProxy(await raw_server(echo)) as proxy, connected(proxy.url) as client:
            proxy.downstream = Toxics(limit_bytes=place)
            await client.send(b"0123456789")
            assert await client.to_end() == (b"0123456789"[:place], "FIN")
        sink = Sink()
        async with FaultProxy(await raw_server(sink.handle)) as proxy, connected(proxy.url) as client:
            proxy.upstream = Toxics(limit_bytes=place)
            await client.send(b"0123456789" * 100_000)
            assert await client.to_end() == (b"", "FIN")
            assert (await sink.end, sink.data) == ("FIN", b"0123456789"[:place])


async def test_half_close_downstream(raw_server: RawServer) -> None:
    """The client gets the first bytes and FIN, but the connection to the server stays open."""
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
        assert not sink.end.done()
        sink.writer.write(b"swallowed")
        client.socket.shutdown(socket.SHUT_WR)
        assert await sink.end == "FIN"
        assert sink.data == b"upmore"


async def test_half_close_upstream(raw_server: RawServer) -> None:
    """The server gets the first bytes and FIN, and its answer still arrives."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"got " + await reader.read())
        await writer.drain()

    async with FaultProxy(await raw_server(handle)) as proxy, connected(proxy.url) as client:
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
                await client.send(b"data")
                assert await client.exactly(4) == b"data"
                await client.send(end[:1].encode())
                assert await client.to_end() == (b"", end)
    async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy:
        fake.down()
        async with connected(proxy.url) as client:
            assert await client.to_end() == (b"", "RST")
        await fake.up()
        async with connected(proxy.url) as client:
            await client.send(REQUEST)
            assert (await client.answer())[0] == 200


async def test_proxy_forwards_the_end_of_a_client() -> None:
    """When a client disconnects, its program on the server is no longer in flight."""
    async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy:
        fake.default = Reply(hang=True)
        async with connected(proxy.url) as client:
            await client.send(REQUEST)
            await fake.wait_until(lambda: fake.in_flight == 1)
        await fake.wait_until(lambda: fake.in_flight == fake.connections == 0)
        await proxy.wait_until(lambda: proxy.connections == 0)


async def test_proxy_forwards_the_end_of_a_client_within_an_answer(raw_server: RawServer) -> None:
    """The server gets RST, as without the proxy."""
    ended = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(2**16))
                await writer.drain()
        except ConnectionError:
            ended.set_result(None)

    async with FaultProxy(await raw_server(handle)) as proxy:
        async with connected(proxy.url) as client:
            await client.exactly(10)
            client.socket.shutdown(socket.SHUT_WR)
            await client.exactly(10)
        await ended
        await proxy.wait_until(lambda: proxy.connections == 0)


async def test_url_of_a_proxy() -> None:
    """The URL has the path of the target URL. Invalid target URLs are refused."""
    async with FaultProxy("https://localhost/base/") as proxy:
        assert re.fullmatch(r"https://127\.0\.0\.1:\d+/base", proxy.url)
    for wrong in ("localhost:80", "ftp://localhost", "http://", "http://host:99999"):
        with pytest.raises(ConfigurationError, match="target_url"):
            FaultProxy(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_s": -1},
        {"latency_s": float("nan")},
        {"bandwidth_bytes_per_s": 0},
        {"slice_bytes": 0},
        {"slice_pause_s": float("inf")},
        {"limit_bytes": -1},
        {"reset_after_bytes": -1},
    ],
)
def test_invalid_toxics_are_refused(wrong: dict[str, Any]) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Toxics(**wrong)


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
