"""The connections of the embedded FaaS: limits, refusals, TLS, and the end of a drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.http.connections import BoundedConnection
from support.helpers import Clock, fast_forward
from support.levels import NATIVE
from support.served import PATIENCE_S, Connection, connected, exchange, request, server_context, until

pytestmark = NATIVE

RUN = request(b'{"language": "bash", "code": "echo 1"}')
LIVEZ = request(method="GET", target="/livez", headers={"Content-Type": None, "Content-Length": None})
SPARE = 8


@contextlib.asynccontextmanager
async def bash(**options: Any) -> AsyncIterator[LocalFaaS]:
    async with LocalFaaS(["bash"], workers=1, **options) as faas:
        await faas.wait_ready("bash")
        yield faas


def connect(faas: LocalFaaS) -> socket.socket:
    """Return a connection that the server has not accepted yet, because the event loop does not run meanwhile."""
    url = urlsplit(faas.url)
    assert url.hostname is not None
    return socket.create_connection((url.hostname, url.port or 0), timeout=30)


@contextlib.asynccontextmanager
async def full(faas: LocalFaaS) -> AsyncIterator[None]:
    """Keep all connections of the server open, with those for probes, without a request or a TLS handshake."""
    limit = faas.listener.max_connections
    held = [connect(faas) for _ in range(limit + SPARE)]
    try:
        await until(lambda: len(faas.listener.ordinary) == limit and len(faas.listener.spare) == SPARE)
        yield
    finally:
        for one in held:
            one.close()


async def settle() -> None:
    """Let the event loop do all that is due."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_connections_in_the_backlog_get_an_answer_when_the_server_stops() -> None:
    """After a drain, the last connections are accepted, and their programs are refused. None is reset."""
    async with LocalFaaS(["bash"], workers=1, drain_s=20) as faas:
        await faas.wait_ready("bash")
        await faas.drain()
        last = [connect(faas) for _ in range(8)]
        for one in last:
            one.sendall(RUN)
        await faas.aclose()
        for one in last:
            with one:
                answer = one.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"x-faasrt-not-started: 1" in answer.lower()


async def test_a_probe_that_arrives_while_the_server_is_busy_is_answered(clock: Clock) -> None:
    """A connection for a probe is refused after a second, but not if the server has not read from it for that long."""
    async with bash(max_connections=1) as faas:
        with connect(faas), connect(faas) as probe:
            probe.setblocking(False)
            await until(lambda: len(faas.listener.spare) == 1)
            await settle()  # now its second has begun
            clock.stop()
            probe.sendall(LIVEZ)
            clock.advance(60)  # as if the event loop had been blocked
            answer = await asyncio.get_running_loop().sock_recv(probe, 10_000)
            assert answer.startswith(b"HTTP/1.1 200")


async def test_a_spare_connection_without_a_probe_is_refused_after_a_second(clock: Clock) -> None:
    """Otherwise eight idle connections would keep out all probes."""
    async with bash(max_connections=1) as faas:
        began = clock()
        with connect(faas), connect(faas) as idle:
            idle.setblocking(False)
            await until(lambda: len(faas.listener.spare) == 1)
            answer = await fast_forward(clock, asyncio.get_running_loop().sock_recv(idle, 10_000), 0.05)
            assert clock() - began >= 0.95
            assert answer.startswith(b"HTTP/1.1 503")
            assert (len(faas.listener.spare), faas.listener.refused) == (0, 1)


async def test_a_refusal_arrives_although_a_body_is_not_read() -> None:
    """The client reads the 503 instead of losing the connection. The metrics count it."""
    async with bash(max_connections=2) as faas:
        async with full(faas):
            for _ in range(5):
                answer = await exchange(faas.url, request(b" " * 3_000_000))
                assert (answer.status, answer.headers["x-faasrt-not-started"]) == (503, "1")
                assert "too many connections" in answer.json()["details"]
        await until(lambda: not faas.listener.ordinary)
        metrics = await exchange(faas.url, request(method="GET", target="/metrics", headers={"Accept": "text/plain"}))
        refused = [line.split() for line in metrics.body.decode().splitlines() if line.startswith("faasrt_local_ref")]
        assert ["faasrt_local_refused_connections_total", f"{faas.listener.refused:.1f}"] in refused
        assert faas.listener.refused >= 5


async def test_probes_go_on_when_the_limit_is_lowered(tls: ssl.SSLContext | None) -> None:
    """Connections that are open stay open, and the connections for probes are counted by themselves."""
    async with bash(max_connections=30, ssl=tls) as faas, contextlib.AsyncExitStack() as stack:
        kept = [await stack.enter_async_context(connected(faas.url)) for _ in range(20)]
        await until(lambda: len(faas.listener.ordinary) == 20)
        assert await faas.reconfigure(LocalFaaS(["bash"], workers=1, max_connections=1, ssl=tls)) == ["max_connections"]
        assert (await exchange(faas.url, LIVEZ)).status == 200
        assert (await exchange(faas.url, RUN)).status == 503
        await kept[0].send(RUN)
        assert (await kept[0].answer()).status == 200


async def test_a_probe_may_arrive_in_pieces(monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext | None) -> None:
    """A probe above the limit is answered wherever its head is split. Another request is refused."""
    received: list[bytes] = []
    receive = BoundedConnection.data_received

    def receive_recorded(connection: BoundedConnection, data: bytes) -> None:
        received.append(data)
        receive(connection, data)

    async def send_pieces(connection: Connection, *pieces: bytes) -> None:
        for piece in pieces:
            await connection.send(piece)
            await until(lambda: received[-1:] == [piece])  # noqa: B023

    monkeypatch.setattr(BoundedConnection, "data_received", receive_recorded)
    async with bash(max_connections=1, ssl=tls) as faas, connected(faas.url):
        await until(lambda: len(faas.listener.ordinary) == 1)
        for at in (1, 4, 8, 12, 20):
            async with connected(faas.url) as probe:
                await send_pieces(probe, LIVEZ[:at], LIVEZ[at:])
                assert (await probe.answer()).status == 200
        async with connected(faas.url) as other:
            await send_pieces(other, b"GET /li", b"st HTTP/1.1\r\n\r\n")
            assert (await other.answer()).status == 503
        await until(lambda: not faas.listener.refusing)


async def test_connections_without_a_handshake_count() -> None:
    """Above the limit, a TLS connection is closed before the handshake. So nothing was sent."""
    async with bash(max_connections=2, ssl=server_context()) as faas:
        async with full(faas):
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await exchange(faas.url, RUN)
            assert faas.listener.refused == 1
        await until(lambda: not faas.listener.ordinary)
        assert (await exchange(faas.url, RUN)).status == 200


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02", b"GET / HTTP/1.1\r\n\r\n"], ids=["none", "part", "http"])
async def test_a_connection_without_a_handshake_is_closed(sent: bytes, clock: Clock) -> None:
    """After ten seconds, or at once if it can be none. Nothing is logged."""
    async with bash(ssl=server_context()) as faas:
        with connect(faas) as silent:
            await until(lambda: len(faas.listener.ordinary) == 1)
            silent.sendall(sent)
            began = clock()
            while faas.listener.ordinary:
                clock.advance(0.1)
                await asyncio.sleep(0.001)
            assert (clock() - began >= 9) is not sent.startswith(b"GET")


async def test_a_handshake_in_progress_ends_with_the_server() -> None:
    async with LocalFaaS(["bash"], workers=1, ssl=server_context(), drain_s=0.01) as faas:
        listener = faas.listener
        with connect(faas):
            await until(lambda: len(listener.ordinary) == 1)
            await faas.aclose()
            await settle()
            assert not listener.ordinary


async def test_the_server_closes_connections_without_a_reply(clock: Clock, tls: ssl.SSLContext | None) -> None:
    """A client that has its answer need not read the end of the connection, or close it."""
    async with bash(ssl=tls) as faas, connected(faas.url) as connection:
        await connection.send(request(b'{"language": "bash", "code": "echo 1"}', headers={"Connection": "close"}))
        assert (await connection.answer()).status == 200
        connection.pause_reading()
        clock.stop()
        while faas.listener.ordinary:
            await asyncio.sleep(0)


async def test_a_client_that_does_not_read_does_not_keep_a_closed_tls_connection(clock: Clock) -> None:
    """It has ten seconds for the end of the connection."""
    # More than the buffers of the system hold.
    size, sandbox = 8 * 2**20, SandboxConfig(max_output_bytes=8 * 2**20)
    large = request(b'{"language": "bash", "code": "printf %%0%dd 1"}' % size)
    async with bash(ssl=server_context(), sandbox=sandbox, drain_s=1) as faas, connected(faas.url) as connection:
        listener = faas.listener
        connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.pause_reading()
        await connection.send(large)
        await until(lambda: any(one.transport.get_write_buffer_size() for one in listener.connections))
        await fast_forward(clock, faas.aclose())
        clock.advance(11)
        await settle()
        assert not listener.ordinary


@contextlib.asynccontextmanager
async def openssl(faas: LocalFaaS, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Connect with `openssl s_client`, in which the lines K and R on stdin ask for new keys and a new negotiation."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "s_client", "-connect", urlsplit(faas.url).netloc, *flags]
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    try:
        yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            client.kill()
        await client.communicate()


async def read_until(client: asyncio.subprocess.Process, text: bytes) -> bool:
    """Read the output of a process until a line contains a text. Return whether one did before the end."""
    assert client.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := await client.stdout.readline():
            if text in line:
                return True
    return False


async def ask(client: asyncio.subprocess.Process, command: str) -> bool:
    """Send a command, and return whether the client has carried it out, and not ended."""
    assert client.stdin is not None
    with contextlib.suppress(ConnectionError):
        client.stdin.write(f"{command}\n".encode())
        await client.stdin.drain()
    return await read_until(client, {"K": b"KEYUPDATE", "R": b"RENEGOTIATING"}[command])


async def test_tls_refuses_a_new_negotiation_at_once() -> None:
    """Not only with the next answer, until which the client waits."""
    async with bash(ssl=server_context()) as faas, openssl(faas, "-tls1_2") as client:
        assert await read_until(client, b"Verify return code")
        assert await ask(client, "R")
        assert await read_until(client, b"no renegotiation")


async def test_a_client_cannot_make_tls_reply_without_end() -> None:
    """Each new key has a reply. The client need not read it, which would fill the memory of the server."""
    async with bash(ssl=server_context()) as faas, openssl(faas) as client:
        assert await read_until(client, b"Verify return code")
        count = 0
        while count < 1_000 and await ask(client, "K"):
            count += 1
        assert 100 < count < 1_000
        await until(lambda: not faas.listener.ordinary)


async def test_tls_needs_no_more_memory_for_large_answers() -> None:
    """It gets them in pieces of a record, because it never gives back the memory that it once needed."""
    sizes = []

    class Watched(ssl.SSLObject):
        def write(self, data: Any) -> int:
            sizes.append(len(data))
            return super().write(data)

    context = server_context()
    context.sslobject_class = Watched
    async with bash(ssl=context) as faas:
        answer = await exchange(faas.url, request(b'{"language": "bash", "code": "printf %0900000d 1"}'))
    assert len(answer.body) > 900_000
    assert sum(sizes) > 900_000
    assert max(sizes) <= 16_384


async def test_an_idle_connection_holds_no_answer(tls: ssl.SSLContext | None) -> None:
    """1,000 connections could otherwise hold a large answer each, which `MAX_HELD_BYTES` would not count."""
    async with bash(ssl=tls) as faas, connected(faas.url) as connection:
        await connection.send(request(b'{"language": "bash", "code": "printf %0900000d 1"}'))
        assert len((await connection.answer()).body) > 900_000
        (handler,) = faas.listener.connections
        await until(lambda: cast(Any, handler)._waiter is not None)  # for the next request
        held = [one for one in gc.get_objects() if isinstance(one, web.Response) and one.body]
        assert max((len(cast(bytes, one.body)) for one in held), default=0) < 10_000


async def test_an_idle_connection_ends_a_drain_after_five_seconds(clock: Clock, tls: ssl.SSLContext | None) -> None:
    """Even if its last answer was large. It has nothing in flight."""
    large = request(b'{"language": "bash", "code": "printf %0900000d 1"}')
    async with bash(ssl=tls, drain_s=100) as faas, connected(faas.url) as connection:
        await connection.send(large)
        assert len((await connection.answer()).body) > 900_000
        began = clock()
        await fast_forward(clock, faas.drain())
        assert 4 < clock() - began < 10


async def test_new_certificates_are_used_at_once() -> None:
    """The first connection after `reconfigure` has the new certificate. An open one goes on."""
    async with bash(ssl=server_context()) as faas, connected(faas.url) as first:
        new = LocalFaaS(["bash"], workers=1, ssl=server_context())
        assert await faas.reconfigure(new) == ["ssl"]
        async with connected(faas.url) as second:
            seen = [one.writer.get_extra_info("ssl_object").getpeercert(binary_form=True) for one in (first, second)]
            for one in (first, second):
                await one.send(RUN)
                assert (await one.answer()).status == 200
        assert seen[0] != seen[1]
