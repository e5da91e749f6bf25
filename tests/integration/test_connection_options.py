"""Headers, TLS, a proxy and a session of the caller's own."""

from __future__ import annotations

import ssl
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from faasrt import ConfigurationError, ConnectError, Language, RuntimeManager, Settings
from faasrt.testing import FakeFaas
from support.helpers import manager_for

FINE = {"output": {"stdout": "hi\n", "stderr": "", "ret_val": ""}, "metadata": {"exit_code": 0}}


async def test_one_url_for_every_language() -> None:
    """`from_url` takes a URL, several replicas, or a mapping."""
    async with FakeFaas() as faas, RuntimeManager.from_url(faas.url) as manager:
        assert [(await manager.run_code("1", language)).ok for language in ("py", "js", "ts")] == [True] * 3
        assert repr(manager) == "<RuntimeManager of python, javascript, typescript>"
    settings = Settings.for_url(["http://a:1", "http://b:2"], envelope="never")
    assert settings.endpoints == dict.fromkeys(Language, ("http://a:1", "http://b:2"))
    assert settings.envelope == "never"
    assert Settings.for_url({"py": "http://a:1"}).endpoints == {Language.PYTHON: ("http://a:1",)}
    with pytest.raises(ConfigurationError, match="not both"):
        Settings.for_url("http://a:1", endpoints={"py": "http://a:1"})
    with pytest.raises(TypeError, match="limitr"):
        Settings.for_url("http://a:1", limitr=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="limitr"):
        Settings.from_env({}, limitr=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="URL"):
        Settings.for_url(5)  # type: ignore[arg-type]


async def test_the_embedded_faas_as_a_fallback() -> None:
    """Only when no endpoint is configured, and only if the caller says so."""
    with pytest.raises(ConfigurationError, match="local_fallback=True"):
        RuntimeManager.from_env({})
    manager = RuntimeManager.from_env({}, local_fallback=True, token="unused")
    assert repr(manager) == "<RuntimeManager of embedded FaaS>"
    configured = RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": "http://a:1"}, local_fallback=True)
    assert repr(configured) == "<RuntimeManager of python, javascript, typescript>"
    with pytest.raises(ConfigurationError, match="local_fallback"):
        RuntimeManager.from_env({}, local_fallback="yes")  # type: ignore[arg-type]


async def test_headers_go_along_with_every_request(serve: Any) -> None:
    """With the program and with the probe of its server; the client's own headers cannot be set."""
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen[request.path] = request.headers
        return web.json_response(FINE if request.path == "/run_code" else {})

    url = await serve(handler, "/{path:.*}")
    async with manager_for(url, headers={"X-Gateway-Key": "k1", "User-Agent": "mine"}, token="t") as manager:
        await manager.run_code("1", "py")
    for path in ("/run_code", "/health"):
        assert (seen[path]["X-Gateway-Key"], seen[path]["User-Agent"]) == ("k1", "mine")
        assert (seen[path]["Authorization"], seen[path]["Accept-Encoding"]) == ("Bearer t", "identity")
    for name, value in (("Host", "x"), ("content-length", "1"), ("a b", "x"), ("x", "a\nb"), ("x", "é"), ("x", 5)):
        with pytest.raises(ConfigurationError, match="header"):
            Settings(headers={name: value})  # type: ignore[dict-item]


async def test_a_session_of_the_callers_own(serve: Any) -> None:
    """It carries every request, in its own way, and stays open."""
    seen: list[tuple[str, str, str, str | None]] = []

    async def handler(request: web.Request) -> web.Response:
        headers = request.headers
        seen.append((request.path, headers["X-Mine"], headers["Accept-Encoding"], headers.get("Authorization")))
        return web.json_response(FINE if request.path == "/run_code" else {})

    url = await serve(handler, "/{path:.*}")
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as session:
        for _ in range(2):
            async with manager_for(url, session=session, token="t") as manager:
                assert (await manager.run_code("1", "py")).stdout == "hi\n"
                assert (await manager.get_health_status()).endpoints[0].status == ""
        assert not session.closed
    assert {one[1:] for one in seen} == {("yes", "identity", "Bearer t")}
    assert [one[0] for one in seen] == ["/health", "/run_code", "/health"] * 2


async def test_a_proxy(serve: Any) -> None:
    """Requests go through it, with the user info of its URL."""
    seen: list[tuple[str, str | None]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers.get("Proxy-Authorization")))
        return web.json_response(FINE)

    proxy = await serve(handler, "/{path:.*}")
    with_user = proxy.replace("http://", "http://user:secret@")
    async with manager_for("http://faas.invalid:8000", proxy=with_user, envelope="never") as manager:
        assert (await manager.run_code("1", "py")).stdout == "hi\n"
    assert seen == [("http://faas.invalid:8000/run_code", "Basic dXNlcjpzZWNyZXQ=")]
    settings = Settings(proxy=with_user)
    assert "secret" not in repr(settings)
    for wrong in ("proxy:3128", "socks5://proxy", 5):
        with pytest.raises(ConfigurationError, match="proxy"):
            Settings(proxy=wrong)  # type: ignore[arg-type]


async def test_tls() -> None:
    """An unknown certificate is refused, unless the caller trusts it or verifies nothing."""
    authority, server_side = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(FINE)

    app = web.Application()
    app.router.add_post("/run_code", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_side).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with manager_for(url, envelope="never") as manager:
            with pytest.raises(ConnectError) as caught:
                await manager.run_code("1", "py")
            assert caught.value.sent == "no"
        for option in (False, trusting):
            async with manager_for(url, envelope="never", ssl=option) as manager:
                assert (await manager.run_code("1", "py")).stdout == "hi\n"
    finally:
        await runner.cleanup()
    with pytest.raises(ConfigurationError, match="ssl"):
        Settings(ssl="yes")  # type: ignore[arg-type]
