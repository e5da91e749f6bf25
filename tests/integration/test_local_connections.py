"""The connections of the embedded FaaS: limits, refusals, TLS, and the end of a drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.http.connections import BoundedConnection
from support.helpers import Clock, fast_forward
from support.served import Connection, connected, exchange, request, server_context, until

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
        with connect(faas), connect(faas) as idle:
            idle.setblocking(False)
            await until(lambda: len(faas.listener.spare) == 1)
            await settle()
            began = clock()
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


async def test_an_idle_connection_ends_a_drain_after_five_seconds(clock: Clock, tls: ssl.SSLContext | None) -> None:
    """Also if its last answer was large. It has nothing in flight."""
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
