"""URLs, headers, TLS, proxies, and sessions that the caller provides."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from faasrt import (
    ConfigurationError,
    ConnectError,
    DeadlineExceededError,
    Language,
    LimiterSettings,
    RetrySettings,
    RuntimeManager,
    Settings,
    TestCase,
)
from faasrt.cli.connect import make_settings
from faasrt.testing import FakeFaaS
from support.helpers import Clock, fast_forward, manager_for
from support.served import until
from support.servers import holding_faas

FINE = {"output": {"stdout": "hi\n", "stderr": "", "ret_val": ""}, "metadata": {"exit_code": 0}}


async def test_from_url() -> None:
    """`from_url` accepts one URL or several for all languages, or a mapping from languages to URLs."""
    async with FakeFaaS() as faas, RuntimeManager.from_url(faas.url) as manager:
        assert [(await manager.run_code("1", language)).ok for language in ("py", "js", "ts")] == [True] * 3
        assert repr(manager) == "<RuntimeManager of python, javascript, typescript, c, cpp, go, rust, java, bash>"
    settings = Settings.from_url(["http://a:1", "http://b:2"], envelope="never")
    assert settings.endpoints == dict.fromkeys(Language, ("http://a:1", "http://b:2"))
    assert settings.envelope == "never"
    assert Settings.from_url("http://a:1, http://b:2/").endpoints == settings.endpoints
    assert Settings.from_url({"py": "http://a:1"}).endpoints == {Language.PYTHON: ("http://a:1",)}
    with pytest.raises(ConfigurationError, match="not both"):
        Settings.from_url("http://a:1", endpoints={"py": "http://a:1"})
    with pytest.raises(TypeError, match="limitr"):
        Settings.from_url("http://a:1", limitr=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="limitr"):
        Settings.from_env({}, limitr=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="URL"):
        Settings.from_url(5)  # type: ignore[arg-type]


def test_local_takes_fields_of_settings() -> None:
    """They take precedence over `settings`. The message about a wrong name is about the caller's function."""
    settings = Settings(envelope="never", token="a")
    manager = RuntimeManager.local(["python"], settings=settings, token="b", limiter=LimiterSettings(max_queue=1))
    assert (manager.settings.envelope, manager.settings.token, manager.settings.limiter.max_queue) == ("never", "b", 1)
    with pytest.raises(TypeError, match=r"^local\(\) got an unexpected keyword argument 'limitr'; its options are "):
        RuntimeManager.local(limitr=LimiterSettings())  # type: ignore[call-arg]


def test_one_url_of_a_service_stands_for_the_languages_that_it_lists() -> None:
    """SandboxFusion has no C. Replicas with other protocols run it, and so may an endpoint that is named for it."""
    fusion, coze = "sandboxfusion+http://a:1", "http://b:2"
    settings = Settings.from_url(fusion)
    assert set(Language) - set(settings.endpoints) == {Language.C}
    assert Settings.from_env({"COZE_LOOP_FAAS_URL": fusion}).endpoints == settings.endpoints
    assert make_settings(fusion).endpoints == settings.endpoints
    mixed = Settings.from_url([fusion, coze]).endpoints
    assert (mixed[Language.C], mixed[Language.CPP]) == ((coze,), (fusion, coze))
    assert Settings.from_url({"c": fusion}).endpoints == {Language.C: (fusion,)}


async def test_local_fallback() -> None:
    """The embedded FaaS is used only if no endpoint is configured and `local_fallback` is true."""
    with pytest.raises(ConfigurationError, match="local_fallback=True"):
        RuntimeManager.from_env({})
    manager = RuntimeManager.from_env({}, local_fallback=True, token="unused")
    assert repr(manager) == "<RuntimeManager of embedded FaaS>"
    configured = RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": "http://a:1"}, local_fallback=True)
    assert repr(configured) == "<RuntimeManager of python, javascript, typescript, c, cpp, go, rust, java, bash>"
    with pytest.raises(ConfigurationError, match="local_fallback"):
        RuntimeManager.from_env({}, local_fallback="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="environ must map"):
        RuntimeManager.from_env(["x"], local_fallback=True)  # type: ignore[arg-type]


async def test_headers_are_sent_with_every_request(serve: Any) -> None:
    """The headers are sent once with programs and with requests to `/health`, also with the caller's session.

    Headers of the client itself are refused.
    """
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen[request.path] = request.headers
        return web.json_response(FINE if request.path == "/run_code" else {})

    url = await serve(handler, "/{path:.*}")
    headers = {"x-gateway-key": "k0", "X-Gateway-Key": "k1", "user-agent": "mine", "accept": "application/json"}
    async with aiohttp.ClientSession() as own:
        for session in (None, own):
            async with manager_for(url, headers=headers, token="t", http_session=session) as manager:
                await manager.run_code("1", "py")
            for path in ("/run_code", "/health"):
                assert (seen[path].getall("X-Gateway-Key"), seen[path].getall("User-Agent")) == (["k1"], ["mine"])
                assert seen[path].getall("Accept") == ["application/json"]
                assert (seen[path]["Authorization"], seen[path]["Accept-Encoding"]) == ("Bearer t", "identity")
    for name, value in (("Host", "x"), ("content-length", "1"), ("a b", "x"), ("x", "a\nb"), ("x", "é"), ("x", 5)):
        with pytest.raises(ConfigurationError, match="header"):
            Settings(headers={name: value})  # type: ignore[dict-item]


async def test_session_of_the_caller(serve: Any) -> None:
    """All requests use the session and its headers. Closing the manager does not close it."""
    seen: list[tuple[str, str, str, str | None]] = []

    async def handler(request: web.Request) -> web.Response:
        headers = request.headers
        seen.append((request.path, headers["X-Mine"], headers["Accept-Encoding"], headers.get("Authorization")))
        return web.json_response(FINE if request.path == "/run_code" else {})

    url = await serve(handler, "/{path:.*}")
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as session:
        for _ in range(2):
            async with manager_for(url, http_session=session, token="t") as manager:
                assert (await manager.run_code("1", "py")).stdout == "hi\n"
                assert (await manager.get_health_status()).endpoints[0].status == ""
        assert not session.closed
    assert {one[1:] for one in seen} == {("yes", "identity", "Bearer t")}
    assert [one[0] for one in seen] == ["/health", "/run_code", "/health"] * 2


@pytest.mark.parametrize("envelope", ["auto", "never"])
async def test_a_closed_session_of_the_caller_is_named_in_the_error(envelope: str) -> None:
    """Nothing is sent, and nothing is retried. The health says so, too."""
    session = aiohttp.ClientSession()
    await session.close()
    async with FakeFaaS() as faas, manager_for(faas.url, http_session=session, envelope=envelope) as manager:
        with pytest.raises(ConfigurationError, match="`http_session` of the settings is closed"):
            await manager.run_code("1", "py")
        assert "is closed" in (await manager.get_health_status()).endpoints[0].error
        metrics = manager.get_metrics()
        assert (metrics.in_flight, metrics.total.attempts, faas.executions) == (0, 1, 0)


class EmptyCache:
    async def get(self, key: str) -> bytes | None:
        return None

    async def put(self, key: str, value: bytes) -> None:
        pass


CALLS: dict[str, Callable[[RuntimeManager], Coroutine[Any, Any, Any]]] = {
    "run_code": lambda manager: manager.run_code("1", "py"),
    "run_cases": lambda manager: manager.run_cases("def f(): pass", "f", [[]], language="py"),
    "judge": lambda manager: manager.judge("1", [TestCase("2", "4")], language="py"),
    "validate_code in Python": lambda manager: manager.validate_code("1", "py"),
    "validate_code": lambda manager: manager.validate_code("1", "js"),
    "session": lambda manager: manager.session("py").__aenter__(),
    "resume_session": lambda manager: manager.resume_session("a" * 32),
}


@pytest.mark.parametrize("cache", [None, EmptyCache()], ids=["no cache", "cache"])
@pytest.mark.parametrize("name", CALLS)
async def test_each_call_names_a_closed_session_of_the_caller(name: str, cache: EmptyCache | None) -> None:
    """Also those that ask several endpoints at the same time."""
    session = aiohttp.ClientSession()
    await session.close()
    async with FakeFaaS() as one, FakeFaaS() as other:
        manager = RuntimeManager.from_url([one.url, other.url], http_session=session, cache=cache)
        async with manager:
            with pytest.raises(ConfigurationError, match="`http_session` of the settings is closed"):
                await CALLS[name](manager)
            assert manager.get_metrics().in_flight == 0


@pytest.mark.parametrize("limit", ["limit", "limit_per_host"])
async def test_the_pool_of_a_session_limits_the_calls_in_flight(limit: str) -> None:
    """Calls wait for a permit, not for a connection, and one connection is left for requests for the health."""
    async with (
        holding_faas({"python": 16}) as (url, arrived, go_on),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(**{limit: 4})) as session,
        manager_for(url, http_session=session) as manager,
    ):
        calls = [asyncio.create_task(manager.run_code("1", "py")) for _ in range(10)]
        await until(lambda: len(arrived) == 3)
        assert (await manager.get_health_status()).healthy
        assert [(state.limit, state.in_flight) for state in manager.get_metrics().states] == [(3, 3)]
        assert len(arrived) == 3
        go_on.set()
        assert all([(await call).ok for call in calls])


async def test_waiting_for_a_connection_of_the_session_is_not_a_failure_of_the_server(serve: Any, clock: Clock) -> None:
    """If the application uses all connections of its session, calls fail at their deadline. No breaker opens."""
    busy, arrived = asyncio.Event(), list[str]()

    async def handler(request: web.Request) -> web.Response:
        if request.path == "/busy":
            arrived.append(request.path)
            await busy.wait()
        return web.json_response(FINE if request.path == "/run_code" else {})

    url = await serve(handler, "/{path:.*}")
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2), timeout=aiohttp.ClientTimeout()) as session,
        manager_for(url, http_session=session, envelope="never", clock=clock) as manager,
        asyncio.TaskGroup() as group,
    ):
        requests = [group.create_task(session.get(f"{url}/busy")) for _ in range(2)]
        await until(lambda: len(arrived) == 2)
        for _ in range(6):
            with pytest.raises(DeadlineExceededError, match="no connection of `http_session`") as caught:
                await fast_forward(clock, manager.run_code("1", "py", idempotent=True), 10)
            assert (caught.value.sent, caught.value.attempts) == ("no", 1)
        assert [(state.breaker, state.abandoned) for state in manager.get_metrics().states] == [("closed", 0)]
        busy.set()
        for request in requests:
            (await request).release()
        assert (await manager.run_code("1", "py")).stdout == "hi\n"


async def test_proxy(serve: Any) -> None:
    """Requests go through the proxy, with the user info of its URL as credentials."""
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
    for wrong in (
        "proxy:3128",
        "socks5://proxy",
        "http://[bad",
        "http://proxy:99999",
        "http://proxy:0",
        b"http://p",
        5,
    ):
        with pytest.raises(ConfigurationError, match="proxy"):
            Settings(proxy=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Not allowed here\r\nContent-Length: 0\r\n\r\n", "(HTTP 403): Not allowed here"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "(HTTP 407): Proxy Auth"),
        (b"not HTTP\r\n\r\n", "(HTTP 400): "),
        (b"", "Server disconnected"),
    ],
)
async def test_a_proxy_that_does_not_connect(raw_server: Any, answer: bytes, reason: str) -> None:
    """Nothing has reached the FaaS. The error does not show the password of the proxy."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    proxy = (await raw_server(refuse)).replace("http://", "http://user:secret@")
    retry = RetrySettings(connect_retry_s=0)
    async with manager_for("https://faas.invalid:8000", proxy=proxy, retry=retry) as manager:
        for call in (manager.run_code("1", "py"), manager.validate_code("let a", "js")):
            with pytest.raises(ConnectError) as caught:
                await call
            assert reason in str(caught.value)
            assert caught.value.sent == "no"
            assert "secret" not in repr(caught.value) + str(caught.value)
        health = (await manager.get_health_status()).endpoints[0]
        assert health.status == "unreachable"
        assert "secret" not in health.error


async def test_a_proxy_that_is_down() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}"
        async with manager_for("http://faas.invalid", proxy=proxy, retry=RetrySettings(connect_retry_s=0)) as manager:
            with pytest.raises(ConnectError, match="cannot connect to the proxy: Connection refused") as caught:
                await manager.run_code("1", "py")
    assert "secret" not in str(caught.value)


async def test_an_embedded_faas_is_reached_without_the_proxy() -> None:
    async with RuntimeManager.local(["javascript"], proxy="http://proxy.invalid:3128") as manager:
        assert (await manager.run_code("console.log(1)", "js")).stdout == "1\n"
