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
import trustme

from faasrt.local import LocalFaaS
from faasrt.local.http.connections import BoundedConnection
from support.helpers import Clock, fast_forward
from support.served import Connection, connected, exchange, request, until

RUN = request(b'{"language": "bash", "code": "echo 1"}')
LIVEZ = request(method="GET", target="/livez", headers={"Content-Type": None, "Content-Length": None})
SPARE = 8


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


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


async def test_probes_go_on_when_the_limit_is_lowered() -> None:
    """Connections that are open stay open, and the connections for probes are counted by themselves."""
    async with bash(max_connections=30) as faas, contextlib.AsyncExitStack() as stack:
        kept = [await stack.enter_async_context(connected(faas.url)) for _ in range(20)]
        await until(lambda: len(faas.listener.ordinary) == 20)
        assert await faas.reconfigure(LocalFaaS(["bash"], workers=1, max_connections=1)) == ["max_connections"]
        assert (await exchange(faas.url, LIVEZ)).status == 200
        assert (await exchange(faas.url, RUN)).status == 503
        await kept[0].send(RUN)
        assert (await kept[0].answer()).status == 200


async def test_a_probe_may_arrive_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
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
    async with bash(max_connections=1) as faas, connected(faas.url):
        await until(lambda: len(faas.listener.ordinary) == 1)
        for at in (1, 4, 8, 12, 20):
            async with connected(faas.url) as probe:
                await send_pieces(probe, LIVEZ[:at], LIVEZ[at:])
                assert (await probe.answer()).status == 200
        async with connected(faas.url) as other:
            await send_pieces(other, b"GET /li", b"st HTTP/1.1\r\n\r\n")
            assert (await other.answer()).status == 503


async def test_connections_without_a_handshake_count() -> None:
    """Above the limit, a TLS connection is closed before the handshake. So nothing was sent."""
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    async with bash(max_connections=2, ssl=server_context(authority)) as faas:
        url = urlsplit(faas.url)
        async with full(faas):
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await asyncio.open_connection(url.hostname, url.port, ssl=trust)
            assert faas.listener.refused == 1
        await until(lambda: not faas.listener.ordinary)
        reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=trust)
        connection = Connection(reader, writer)
        await connection.send(RUN)
        assert (await connection.answer()).status == 200
        writer.close()
        await writer.wait_closed()


async def test_new_certificates_are_used_at_once() -> None:
    """The first connection after `reconfigure` has the new certificate. An open one goes on."""
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    async with bash(ssl=server_context(authority)) as faas:
        url = urlsplit(faas.url)
        seen = []
        for change in (False, True):
            if change:
                new = LocalFaaS(["bash"], workers=1, ssl=server_context(authority))
                assert await faas.reconfigure(new) == ["ssl"]
            _, writer = await asyncio.open_connection(url.hostname, url.port, ssl=trust)
            seen.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
            writer.close()
            await writer.wait_closed()
        assert seen[0] != seen[1]
