"""Runtime, factory and manager with real servers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

import faasrt
from faasrt import (
    BreakerSettings,
    ConfigurationError,
    InvalidRequestError,
    Language,
    LimiterSettings,
    Outcome,
    RetrySettings,
    RuntimeClosedError,
    RuntimeFactory,
    RuntimeManager,
    SandboxConfig,
    Settings,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt.testing import FakeFaaS, Reply
from support.helpers import NO_WAIT, QUICK, Clock, Serve, fast_forward, manager_for
from support.served import until

FINE = {"output": {"stdout": "hi\n", "stderr": "", "ret_val": '{"score": 1}'}, "metadata": {"duration": 12}}


async def answer(request: web.Request) -> web.Response:
    return web.json_response(FINE)


async def test_run_code_sends_the_protocol(serve: Serve) -> None:
    """The request has the fields that the reference servers expect, and the limits in `sandbox`."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((await request.json(), dict(request.headers)))
        return web.json_response(FINE)

    async with manager_for(await serve(handler), token="s3cret", envelope="never") as manager:
        result = await manager.run_code("print('é')", "py", 1_500, {"trace": "t1"}, priority="high")
    body, headers = seen[0]
    assert body == {
        "language": "python",
        "code": "print('é')",
        "timeout": 1_500,
        "priority": "high",
        "ext": {"trace": "t1"},
        "sandbox": {
            "memory_limit_mb": 128,
            "timeout_ms": 1_500,
            "max_output_bytes": 1_048_576,
            "network_enabled": False,
        },
    }
    assert headers["Content-Type"] == "application/json"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Authorization"] == "Bearer s3cret"
    assert result.outcome is Outcome.OK
    assert (result.stdout, result.value, result.duration_ms, result.attempts) == ("hi\n", {"score": 1}, 12.0, 1)
    assert result.timings.total_s >= result.timings.attempts_s[0] > 0


@pytest.mark.parametrize(("given", "sent"), [(None, 2_000), (1_000, 1_000), (0.2, 1), (2_000, 2_000), (1_999.5, 2_000)])
async def test_timeout_defaults_to_the_limit_of_the_sandbox(serve: Serve, given: Any, sent: int) -> None:
    """Fractions of milliseconds are rounded up."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((await request.json())["timeout"])
        return web.json_response(FINE)

    async with manager_for(await serve(handler), sandbox=SandboxConfig(timeout_limit_s=2)) as manager:
        await manager.run_code("1", "py", given)
    assert seen == [sent]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"code": ""}, InvalidRequestError, "empty"),
        ({"code": " \n\t"}, InvalidRequestError, "empty"),
        ({"code": b"1"}, InvalidRequestError, "str"),
        ({"code": None}, InvalidRequestError, "str"),
        ({"code": "'\ud800'"}, InvalidRequestError, "surrogate"),
        *(
            ({"timeout_ms": value}, InvalidRequestError, "timeout_ms")
            for value in (0, -1, True, math.nan, math.inf, "5")
        ),
        ({"timeout_ms": 30_001}, InvalidRequestError, "sandbox's limit of 30000 ms, got 30001"),
        ({"timeout_ms": 10**400}, InvalidRequestError, "sandbox's limit of 30000 ms"),
        ({"ext": {"a": 1}}, InvalidRequestError, "ext"),
        ({"ext": {1: "a"}}, InvalidRequestError, "ext"),
        ({"ext": [("a", "b")]}, InvalidRequestError, "ext"),
        ({"ext": {"a": "\udfff"}}, InvalidRequestError, "surrogate"),
        ({"priority": ""}, InvalidRequestError, "priority"),
        ({"priority": 3}, InvalidRequestError, "priority"),
        ({"priority": "\ud800"}, InvalidRequestError, "surrogate"),
        ({"language": "ruby"}, UnsupportedLanguageError, "ruby"),
        ({"language": "ts"}, UnsupportedLanguageError, "typescript"),
        ({"sandbox": {"memory_limit_mb": 1}}, InvalidRequestError, "sandbox"),
        ({"idempotent": "yes"}, InvalidRequestError, "idempotent"),
    ],
)
async def test_wrong_arguments_are_refused_before_a_request(
    serve: Serve, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    """The message names the argument, and the server gets no request."""
    calls = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.json_response(FINE)

    async with RuntimeManager(settings=Settings(endpoints={"python": await serve(handler)})) as manager:
        runtime = await manager.get_runtime("python")
        with pytest.raises(kind, match=words):
            await runtime.run_code(**{"code": "1", **arguments})
    assert calls == 0


async def test_limits_of_a_call_override_those_of_the_settings(serve: Serve) -> None:
    """The argument `sandbox` of a call replaces the sandbox of the settings."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((await request.json())["sandbox"])
        return web.json_response({"output": {"stdout": "x" * 100}})

    async with manager_for(await serve(handler)) as manager:
        result = await manager.run_code(
            "1", "py", sandbox=SandboxConfig(memory_limit_mb=64, timeout_limit_s=1, max_output_bytes=50)
        )
    assert seen == [{"memory_limit_mb": 64, "timeout_ms": 1_000, "max_output_bytes": 50, "network_enabled": False}]
    assert result.truncated == {"stdout"}
    assert len(result.stdout) <= 50


async def test_javascript_and_typescript_share_a_runtime(serve: Serve) -> None:
    """One FaaS runs both languages, so the runtime of either runs both."""
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((await request.json())["language"])
        return web.json_response(FINE)

    url = await serve(handler)
    async with RuntimeManager.from_env({"COZE_LOOP_JS_FAAS_URL": url}, envelope="never") as manager:
        runtime = await manager.get_runtime("js")
        assert set(runtime.get_supported_languages()) == {Language.JAVASCRIPT, Language.TYPESCRIPT}
        await runtime.run_code("1")
        await runtime.run_code("1", "ts")
        with pytest.raises(UnsupportedLanguageError, match="python"):
            await manager.get_runtime("python")
    assert seen == ["javascript", "typescript"]


async def test_concurrent_callers_share_one_runtime(serve: Serve) -> None:
    """1,000 callers get the same runtime, and 200 concurrent calls use at most `max_concurrency` connections."""
    peers: set[Any] = set()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response(FINE)

    made: list[Language] = []

    class Factory(RuntimeFactory):
        def create_runtime(self, language: str | Language) -> faasrt.Runtime:
            made.append(Language.parse(language))
            return super().create_runtime(language)

    url = await serve(handler)
    factory = Factory(Settings(endpoints={"python": url}, limiter=LimiterSettings(max_concurrency=8)))
    async with RuntimeManager(factory) as manager:
        runtimes = await asyncio.gather(*(manager.get_runtime("py") for _ in range(1_000)))
        assert len({id(runtime) for runtime in runtimes}) == 1
        await asyncio.gather(*(manager.run_code("1", "py") for _ in range(200)))
    assert made == [Language.PYTHON]
    assert len(peers) <= 8


async def test_replicas_share_the_calls(serve: Serve) -> None:
    """If a language has two URLs, each gets many of the calls. One that seems slow on a busy machine gets fewer."""
    counts = [0, 0]

    def counting(index: int) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            counts[index] += 1
            return web.json_response(FINE)

        return handler

    urls = [await serve(counting(0)), await serve(counting(1))]
    async with RuntimeManager(settings=Settings(endpoints={"py": urls})) as manager:
        endpoints = [(await manager.run_code("1", "py")).endpoint for _ in range(200)]
    assert min(counts) > 10
    assert set(endpoints) == set(urls)


async def test_errors_contain_endpoint_attempts_time_and_sent(serve: Serve) -> None:

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"error": "full"}, status=503, headers={"Retry-After": "3"})

    url = await serve(handler)
    async with manager_for(url, retry=faasrt.RetrySettings(max_retry_after_s=2)) as manager:
        with pytest.raises(faasrt.OverloadedError, match="full") as info:
            await manager.run_code("1", "py")
    error = info.value
    assert (error.endpoint, error.attempts, error.status, error.sent) == (url, 1, 503, "yes")
    assert error.retry_after_s == 3.0
    assert error.elapsed_s > 0


async def test_refused_connection_is_a_connect_error(unused_tcp_port: int) -> None:
    """The error has `sent="no"`, and the endpoint is unhealthy."""
    async with manager_for(f"http://127.0.0.1:{unused_tcp_port}", retry=NO_WAIT) as manager:
        with pytest.raises(faasrt.ConnectError) as info:
            await manager.run_code("1", "py")
        assert info.value.sent == "no"
        status = await manager.get_health_status()
    assert not status.healthy
    assert status.endpoints[0].error


async def test_call_to_a_silent_server_ends_at_its_deadline(raw_server: Serve) -> None:
    """The deadline is the time limit of the code plus `grace_s`. Then the connection is closed."""
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass
        gone.set()

    async with manager_for(
        await raw_server(handle), envelope="never", timeouts=TimeoutSettings(grace_s=0.1)
    ) as manager:
        with pytest.raises(faasrt.DeadlineExceededError) as info:
            await manager.run_code("1", "py", 100)
        assert info.value.sent != "no"
        await gone.wait()


async def test_connection_closed_after_the_request_is_a_lost_connection(raw_server: Serve) -> None:
    """The code may have run, so the error has `sent="maybe"`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with manager_for(await raw_server(handle)) as manager:
        with pytest.raises(faasrt.ConnectionLostError) as info:
            await manager.run_code("1", "py")
    assert info.value.sent == "maybe"


async def test_too_large_answer_is_an_output_limit(raw_server: Serve) -> None:
    """The client stops reading a body that is larger than the limits allow."""
    sent = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            sent += 65_536
            await writer.drain()

    async with manager_for(await raw_server(handle), sandbox=SandboxConfig(max_output_bytes=1_000)) as manager:
        result = await manager.run_code("1", "py")
    assert result.outcome is Outcome.OUTPUT_LIMIT
    assert result.truncated == {"stdout", "stderr", "ret_val"}
    assert sent < 100_000_000


async def test_a_redirect_is_not_followed(serve: Serve) -> None:
    """Code is sent only to configured servers."""
    calls = 0

    async def elsewhere(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.json_response(FINE)

    other = await serve(elsewhere)

    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(other + "/run_code")

    async with manager_for(await serve(handler)) as manager:
        with pytest.raises(faasrt.ProtocolError, match="307"):
            await manager.run_code("1", "py")
    assert calls == 0


async def test_max_concurrency_and_queue_limits(serve: Serve) -> None:
    """The server runs at most `max_concurrency` calls. Calls beyond the queue, or that wait too long, are not sent."""
    running, peak = 0, 0
    go = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await go.wait()
        running -= 1
        return web.json_response(FINE)

    limiter = LimiterSettings(max_concurrency=2, max_queue=2, queue_timeout_s=0.05)
    async with manager_for(await serve(handler), envelope="never", limiter=limiter) as manager:
        calls = [asyncio.create_task(manager.run_code("1", "py")) for _ in range(2)]
        await until(lambda: running == 2)
        done = await asyncio.gather(*(manager.run_code("1", "py") for _ in range(3)), return_exceptions=True)
        go.set()
        first = await asyncio.gather(*calls)
    assert [type(error) for error in done].count(faasrt.QueueFullError) == 1
    late = [error for error in done if isinstance(error, faasrt.DeadlineExceededError)]
    assert len(late) == 2
    assert all(error.sent == "no" for error in late)
    assert peak == 2
    assert all(result.ok for result in first)


async def test_cancellation_frees_the_permit_and_the_connection(raw_server: Serve) -> None:
    """The next call gets the permit of a cancelled one, and the server sees that the connection is closed."""
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        while await reader.read(65_536):
            pass
        gone.set()

    limiter = LimiterSettings(max_concurrency=1)
    async with manager_for(await raw_server(handle), limiter=limiter) as manager:
        for _ in range(3):
            arrived.clear()
            gone.clear()
            call = asyncio.create_task(manager.run_code("1", "py"))
            await arrived.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await gone.wait()


async def test_use_after_close_is_an_error(serve: Serve) -> None:
    """Every method of a closed manager or runtime raises RuntimeClosedError. Closing twice is allowed."""
    manager = manager_for(await serve(answer))
    runtime = await manager.get_runtime("py")
    assert (await runtime.run_code("1")).ok
    await manager.aclose()
    await manager.aclose()
    await runtime.aclose()
    for call in (
        runtime.run_code("1"),
        runtime.validate_code("1"),
        runtime.get_health_status(),
        manager.run_code("1", "py"),
        manager.get_runtime("py"),
        manager.get_health_status(),
        manager.__aenter__(),
    ):
        with pytest.raises(RuntimeClosedError):
            await call


async def test_runtimes_of_a_factory_share_sessions(serve: Serve) -> None:
    """After one runtime is closed, the others still work."""
    factory = RuntimeFactory(Settings(endpoints={"python": await serve(answer), "js": await serve(answer)}))
    assert factory.get_supported_languages() == (Language.PYTHON, Language.JAVASCRIPT)
    async with factory.create_runtime("python") as one, factory.create_runtime("js") as two:
        assert (await one.run_code("1")).ok
        await one.aclose()
        assert (await two.run_code("1")).ok
    with pytest.raises(UnsupportedLanguageError, match="configured: python, javascript"):
        factory.create_runtime("ts")


def test_manager_refuses_a_factory_with_settings() -> None:
    with pytest.raises(ConfigurationError):
        RuntimeManager(RuntimeFactory(), settings=Settings())


def test_use_in_another_event_loop_is_an_error(unused_tcp_port: int) -> None:
    """A session belongs to its event loop. In another loop a runtime or a manager can only be closed."""
    settings = Settings(endpoints={"py": f"http://127.0.0.1:{unused_tcp_port}"}, retry=NO_WAIT)
    runtime, manager = RuntimeFactory(settings).create_runtime("py"), RuntimeManager(settings=settings)

    async def call() -> None:
        await runtime.run_code("1")

    async def call_manager() -> None:
        await manager.run_code("1", "py")

    for function, owner in ((call, "runtime"), (call_manager, "manager")):
        with pytest.raises(faasrt.ConnectError):
            asyncio.run(function())
        with pytest.raises(ConfigurationError, match=f"this {owner} belongs to another event loop"):
            asyncio.run(function())
    asyncio.run(runtime.aclose())
    asyncio.run(manager.aclose())


def test_a_factory_without_open_runtimes_belongs_to_no_event_loop(unused_tcp_port: int) -> None:
    """After its runtimes are closed, it makes others in the next event loop."""
    factory = RuntimeFactory(Settings(endpoints={"py": f"http://127.0.0.1:{unused_tcp_port}"}, retry=NO_WAIT))

    async def call() -> None:
        async with factory.create_runtime("py") as runtime:
            await runtime.run_code("1")

    for _ in range(2):
        with pytest.raises(faasrt.ConnectError):
            asyncio.run(call())


async def test_validate_code_uses_the_server(serve: Serve) -> None:
    """`validate_code` sends JavaScript to the FaaS, unless it is empty. It needs no health report. A server that cannot
    validate is an error.
    """
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.path, await request.text()))
        return web.json_response(
            {
                "valid": False,
                "diagnostics": [{"message": "bad", "line": 1, "column": None}],
                "checked_by": "test",
            }
        )

    async with manager_for(await serve(handler, "/{path}")) as manager:
        result = await manager.validate_code("let a = ;", "js")
        assert not (await manager.validate_code(" ", "js")).valid
    assert [(path, json.loads(body)) for path, body in seen] == [
        ("/validate_code", {"language": "javascript", "code": "let a = ;"})
    ]
    assert result == faasrt.ValidationResult(False, (faasrt.Diagnostic("bad", 1, None),), "test")
    async with manager_for(await serve(answer)) as manager:
        with pytest.raises(faasrt.RejectedError):
            await manager.validate_code("1", "js")


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{}", b'{"valid": 1, "diagnostics": [], "checked_by": ""}',
     b'{"valid": false, "diagnostics": [1], "checked_by": ""}',
     b'{"valid": false, "diagnostics": [{"message": "x", "line": 0, "column": 1}], "checked_by": ""}'],
)  # fmt: skip
async def test_invalid_answer_to_a_validation_is_an_error(serve: Serve, body: bytes) -> None:
    """An invalid answer is a ProtocolError, and does not mean that the code is invalid."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with manager_for(await serve(handler, "/validate_code")) as manager:
        with pytest.raises(faasrt.ProtocolError):
            await manager.validate_code("let a = ;", "js")


@pytest.mark.parametrize("reply", [Reply.overloaded(), Reply.overloaded("0"), Reply.unavailable(not_started=True)])
async def test_a_validation_that_was_refused_is_repeated(serve: Serve, reply: Reply) -> None:
    """It makes three attempts, as a run does. An answer that does not say that nothing was started is final."""
    replies: list[Reply] = []
    requests: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        requests.append(request.path)
        if replies:
            return replies.pop().make_response()
        return web.json_response({"valid": True, "diagnostics": [], "checked_by": "test"})

    async with manager_for(await serve(handler, "/validate_code"), retry=QUICK) as manager:
        for _ in range(12):  # successes refill the budget
            replies += [reply, reply]
            assert (await manager.validate_code("1", "js")).valid
            for _ in range(10):
                assert (await manager.validate_code("1", "js")).valid
        for last, attempts in (([reply] * 3, 3), ([Reply.unavailable()], 1), ([Reply.crash()], 1)):
            replies += last
            requests.clear()
            with pytest.raises(faasrt.ServiceError) as caught:
                await manager.validate_code("1", "js")
            assert (caught.value.attempts, len(requests), replies) == (attempts, attempts, [])
            assert caught.value.status == last[0].status
        assert manager.get_metrics().in_flight == 0


async def test_a_validation_goes_to_another_replica(serve: Serve, unused_tcp_port: int) -> None:
    """So it does not fail while one replica is down, refuses it, or has a certificate that is not accepted."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"valid": True, "diagnostics": [], "checked_by": "test"})

    async def refuse(request: web.Request) -> web.Response:
        return Reply.overloaded(60).make_response()

    url = await serve(handler, "/validate_code")
    down, no_tls = f"http://127.0.0.1:{unused_tcp_port}", url.replace("http", "https")
    for other in (await serve(refuse, "/validate_code"), down, no_tls):
        async with RuntimeManager.from_url([other, url], retry=NO_WAIT) as manager:
            runtime = await manager.get_runtime("js")
            assert all([(await runtime.validate_code("1")).valid for _ in range(20)])


async def test_a_validation_waits_for_its_server() -> None:
    """It is sent once the server is up. Closing the manager ends the wait."""
    retry, breaker = RetrySettings(connect_retry_s=60), BreakerSettings(consecutive_failures=1, base_open_s=0.1)
    async with FakeFaaS() as fake:
        fake.down()
        for error in (RuntimeClosedError, faasrt.RejectedError):  # a fake cannot validate
            async with manager_for(fake.url, retry=retry, breaker=breaker) as manager:
                validation = asyncio.create_task(manager.validate_code("1", "js"))
                await until(lambda: any(state.breaker == "open" for state in manager.get_metrics().states))
                if error is RuntimeClosedError:
                    await manager.aclose()
                else:
                    await fake.up()
                with pytest.raises(error):
                    await validation


async def test_a_validation_whose_server_stays_away_fails_at_its_deadline(unused_tcp_port: int, clock: Clock) -> None:
    """`connect_retry_s` may be longer than the time of the call."""
    timeouts, sandbox = TimeoutSettings(grace_s=5), SandboxConfig(timeout_limit_s=1)
    options = {"retry": RetrySettings(connect_retry_s=3_600), "timeouts": timeouts, "sandbox": sandbox}
    async with manager_for(f"http://127.0.0.1:{unused_tcp_port}", clock=clock, **options) as manager:
        with pytest.raises(faasrt.ConnectError) as caught:
            await fast_forward(clock, manager.validate_code("1", "js"), 0.1)
        assert caught.value.elapsed_s < 60
        assert caught.value.sent == "no"


async def test_health_of_every_endpoint(serve: Serve, unused_tcp_port: int) -> None:
    """The status has one entry per endpoint. An unreachable endpoint, or one with an invalid answer, is unhealthy."""

    async def healthy(request: web.Request) -> web.Response:
        return web.json_response({"status": "healthy", "version": "v1"})

    async def sick(request: web.Request) -> web.Response:
        return web.json_response({"status": "degraded"})

    async def odd(request: web.Request) -> web.Response:
        return web.Response(body=b"[1]")

    urls = [await serve(handler, "/health") for handler in (healthy, sick, odd)]
    urls.append(f"http://127.0.0.1:{unused_tcp_port}")
    async with RuntimeManager(settings=Settings(endpoints={"py": urls, "js": urls})) as manager:
        status = await manager.get_health_status()
    assert [entry.endpoint for entry in status.endpoints] == urls
    assert [entry.healthy for entry in status.endpoints] == [True, False, False, False]
    assert status.endpoints[0].version == "v1"
    assert all(entry.error for entry in status.endpoints[1:])


async def test_log_contains_no_code_and_no_output(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The log contains ids, sizes, hashes and times, but no text of programs or callers."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"output": {"stdout": "s3cret-output"}})

    caplog.set_level("DEBUG", "faasrt")
    async with manager_for(await serve(handler)) as manager:
        await manager.run_code("print('s3cret-code')", "py", ext={"k": "s3cret-ext"})
    text = caplog.text
    assert "call_started" in text
    assert "call_finished" in text
    assert "s3cret" not in text


def test_nothing_is_printed_without_logging(capfd: pytest.CaptureFixture[str]) -> None:
    """If logging is not configured, a failed call prints nothing."""

    async def main() -> None:
        async with manager_for("http://127.0.0.1:1", retry=NO_WAIT) as manager:
            with pytest.raises(faasrt.ConnectError):
                await manager.run_code("1", "py")

    asyncio.run(main())
    assert capfd.readouterr() == ("", "")


def test_result_with_metadata_can_be_encoded_as_json(serve: Serve) -> None:
    result = faasrt.ExecutionResult(outcome=Outcome.OK, metadata={"nested": [1, {"a": None}]})
    assert json.loads(json.dumps(result.to_dict()))["metadata"] == {"nested": [1, {"a": None}]}
