"""TLS: certificates that the caller trusts or not, and failures that a retry cannot mend."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from faasrt import ConfigurationError, ConnectError, RetrySettings, RuntimeManager, Settings
from faasrt.telemetry.events import Event, RetryScheduled
from support.helpers import manager_for

FINE = {"output": {"stdout": "hi\n", "stderr": "", "ret_val": ""}, "metadata": {"exit_code": 0, "duration": 1}}
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
TRUST = "Settings(ssl=ssl.create_default_context(cafile=FILE))"
BY_CA = f"the file of that CA can be given with {TRUST}; it replaces the CAs of the system"


def issued(*names: str, **options: datetime.datetime) -> Callable[[trustme.CA, Path], ssl.SSLContext]:
    def make(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(*names, **options).configure_cert(context)
        return context

    return make


def with_root(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    certificate = authority.issue_cert("127.0.0.1")
    return loaded([*certificate.cert_chain_pems, authority.cert_pem], certificate.private_key_pem, folder)


def self_signed(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    return loaded([authority.cert_pem], authority.private_key_pem, folder)


def loaded(chain: list[trustme.Blob], key: trustme.Blob, folder: Path) -> ssl.SSLContext:
    (folder / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in chain))
    key.write_to_path(folder / "key.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return context


@contextlib.asynccontextmanager
async def serving(context: ssl.SSLContext | None) -> AsyncIterator[str]:
    """Serve a FaaS with the certificate of a context, or without TLS. Yield an https:// URL."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(FINE)

    app = web.Application()
    app.router.add_post("/run_code", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize(
    ("make", "trusts", "message"),
    [
        (self_signed, False, f"is self-signed: 127.0.0.1, self-signed certificate; its file can be given with {TRUST}"),
        (
            issued("127.0.0.1"),
            False,
            f"is signed by an unknown CA: 127.0.0.1, unable to get local issuer certificate; {BY_CA}",
        ),
        (
            with_root,
            False,
            f"is signed by an unknown CA: 127.0.0.1, self-signed certificate in certificate chain; {BY_CA}",
        ),
        (
            issued("127.0.0.1", not_before=NOW - 2 * DAY, not_after=NOW - DAY),
            True,
            "has expired: 127.0.0.1, certificate has expired; the server needs a new one",
        ),
        (
            issued("127.0.0.1", not_before=NOW + DAY, not_after=NOW + 2 * DAY),
            True,
            "is not valid yet: 127.0.0.1, certificate is not yet valid; compare the clocks of both machines",
        ),
        (
            issued("faas.example"),
            True,
            "is for another name: 127.0.0.1, IP address mismatch, certificate is not valid for '127.0.0.1'; "
            "the URL needs a name or address that is in the certificate",
        ),
    ],
    ids=["self-signed", "unknown-ca", "unknown-ca-in-chain", "expired", "not-yet-valid", "other-name"],
)
async def test_a_certificate_that_is_not_accepted(
    make: Callable[[trustme.CA, Path], ssl.SSLContext], trusts: bool, message: str, tmp_path: Path
) -> None:
    """The call fails after one attempt. The error names the host, the reason and the setting that helps."""
    authority, events = trustme.CA(), list[Event]()
    async with (
        serving(make(authority, tmp_path)) as url,
        manager_for(
            url, envelope="never", ssl=trusting(authority) if trusts else None, telemetry=[events.append]
        ) as manager,
    ):
        with pytest.raises(ConnectError) as caught:
            await manager.run_code("1", "py")
        (health,) = (await manager.get_health_status()).endpoints
    text = f"the certificate of the server {message}"
    assert (caught.value.args[0], caught.value.sent, caught.value.attempts) == (text, "no", 1)
    assert str(caught.value).startswith(f"{text} [{url}, 1 attempt, ")
    assert not any(isinstance(event, RetryScheduled) for event in events)
    assert (health.status, health.error) == ("unreachable", text)


async def test_tls_certificates(tmp_path: Path) -> None:
    """An unknown certificate is refused, unless the caller trusts it or disables verification."""
    authority = trustme.CA()
    async with serving(issued("127.0.0.1")(authority, tmp_path)) as url:
        async with manager_for(url, envelope="never") as manager:
            with pytest.raises(ConnectError) as caught:
                await manager.run_code("1", "py")
            assert (caught.value.sent, caught.value.attempts) == ("no", 1)
        for option in (False, trusting(authority)):
            async with manager_for(url, envelope="never", ssl=option) as manager:
                assert (await manager.run_code("1", "py")).stdout == "hi\n"
    with pytest.raises(ConfigurationError, match="ssl"):
        Settings(ssl="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(("language", "displays"), [("go", False), ("py", True)], ids=["go", "displays"])
async def test_a_program_that_needs_a_health_report(language: str, displays: bool, tmp_path: Path) -> None:
    """The error is that of the certificate, even if another replica cannot run the program."""
    async with serving(issued("127.0.0.1")(trustme.CA(), tmp_path)) as bad, serving(None) as other:
        for urls in ([bad], [bad, other.replace("https:", "http:")]):
            async with RuntimeManager(settings=Settings(endpoints={language: urls})) as manager:
                for _ in range(4):  # the replicas are tried in any order
                    with pytest.raises(ConnectError, match="the certificate of the server is signed by an unknown CA"):
                        await manager.run_code("1", language, displays=displays)


async def test_a_server_without_tls() -> None:
    """A URL with https:// for a server that speaks HTTP is as permanent as a wrong certificate."""
    async with serving(None) as url, manager_for(url, envelope="never") as manager:
        with pytest.raises(ConnectError) as caught:
            await manager.run_code("1", "py")
    assert caught.value.attempts == 1
    assert caught.value.args == ("the server does not speak TLS: 127.0.0.1 needs a URL that begins with http://",)


async def test_a_handshake_that_breaks_is_retried() -> None:
    """A server that closes connections in the handshake may be full or starting, so the call waits for it."""
    closed = 0

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal closed
        closed += 1
        await reader.read(1)
        writer.transport.abort()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    retry = RetrySettings(connect_retry_s=0)
    async with server, manager_for(f"https://127.0.0.1:{port}", envelope="never", retry=retry) as manager:
        with pytest.raises(ConnectError) as caught:
            await manager.run_code("1", "py")
    assert caught.value.attempts == 3
    assert closed == 3


@pytest.mark.parametrize("wrong", [issued("faas.example"), None], ids=["certificate", "no-tls"])
async def test_other_replicas_serve_all_calls(
    wrong: Callable[[trustme.CA, Path], ssl.SSLContext] | None, tmp_path: Path
) -> None:
    """A call that met a replica with a wrong certificate, or without TLS, waits for another, even if that is full."""
    authority = trustme.CA()
    async with (
        serving(None if wrong is None else wrong(authority, tmp_path)) as bad,
        serving(issued("127.0.0.1")(authority, tmp_path)) as good,
        manager_for([bad, good], envelope="never", ssl=trusting(authority)) as manager,  # type: ignore[arg-type]
    ):
        results = await asyncio.gather(*(manager.run_code("1", "py") for _ in range(100)))
    assert {result.endpoint for result in results} == {good}
    assert {result.attempts for result in results} == {1, 2}
