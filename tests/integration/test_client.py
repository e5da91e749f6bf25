"""Runtime, factory and manager against servers over real sockets."""

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
    ConfigurationError,
    InvalidRequestError,
    Language,
    LimiterSettings,
    Outcome,
    RuntimeClosedError,
    RuntimeFactory,
    RuntimeManager,
    SandboxConfig,
    Settings,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from support.helpers import manager_for

Serve = Callable[..., Awaitable[str]]
FINE = {"output": {"stdout": "hi\n", "stderr": "", "ret_val": '{"score": 1}'}, "metadata": {"duration": 12}}


async def answer(request: web.Request) -> web.Response:
    return web.json_response(FINE)


async def test_run_code_sends_the_protocol(serve: Serve) -> None:
    """The request is what the reference servers expect, with our sandbox beside it."""
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
async def test_timeout_within_the_sandbox(serve: Serve, given: Any, sent: int) -> None:
    """None means the sandbox's limit; fractions are rounded up."""
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
async def test_bad_arguments_are_refused_before_anything_is_sent(
    serve: Serve, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    """Each argument is checked, the message names it, and the server sees no connection."""
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


async def test_limits_of_a_call_win_over_those_of_the_settings(serve: Serve) -> None:
    """`sandbox=` is for this call only."""
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
    """Both go to the same FaaS, so either runtime runs both."""
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


async def test_one_runtime_for_a_thousand_callers(serve: Serve) -> None:
    """Concurrent callers get the same object, and 1,000 calls in flight use few sessions."""
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
    """Several URLs of a language get about as many each."""
    counts = [0, 0]

    def counting(index: int) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            counts[index] += 1
            return web.json_response(FINE)

        return handler

    urls = [await serve(counting(0)), await serve(counting(1))]
    async with RuntimeManager(settings=Settings(endpoints={"py": urls})) as manager:
        endpoints = [(await manager.run_code("1", "py")).endpoint for _ in range(200)]
    assert min(counts) > 50
    assert set(endpoints) == set(urls)


async def test_a_failure_tells_where_and_how_far(serve: Serve) -> None:
    """Errors carry endpoint, attempts, elapsed time and whether the code may have run."""

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


async def test_a_dead_server_is_a_connect_error(unused_tcp_port: int) -> None:
    """Nothing was sent, and the error says so."""
    async with manager_for(f"http://127.0.0.1:{unused_tcp_port}") as manager:
        with pytest.raises(faasrt.ConnectError) as info:
            await manager.run_code("1", "py")
        assert info.value.sent == "no"
        status = await manager.get_health_status()
    assert not status
    assert status.endpoints[0].error


async def test_a_silent_server_ends_at_the_deadline(raw_server: Serve) -> None:
    """The limit of the code plus the grace is all that a call waits."""
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass
        gone.set()

    async with manager_for(await raw_server(handle), timeouts=TimeoutSettings(grace_s=0.1)) as manager:
        with pytest.raises(faasrt.DeadlineExceededError) as info:
            await manager.run_code("1", "py", 100)
        assert info.value.sent != "no"
        await gone.wait()


async def test_a_broken_connection_is_a_lost_answer(raw_server: Serve) -> None:
    """The request was sent; whether the code ran is unknown."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with manager_for(await raw_server(handle)) as manager:
        with pytest.raises(faasrt.ConnectionLostError) as info:
            await manager.run_code("1", "py")
    assert info.value.sent == "maybe"


async def test_a_flood_is_cut_off(raw_server: Serve) -> None:
    """A body beyond the cap is not read to its end, and is the code's fault."""
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
    """Code goes to the configured server and to no other."""
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


async def test_permits_bound_what_is_in_flight(serve: Serve) -> None:
    """`max_concurrency` holds, the queue is bounded, and a call that waits too long fails without being sent."""
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
    async with manager_for(await serve(handler), limiter=limiter) as manager:
        calls = [asyncio.create_task(manager.run_code("1", "py")) for _ in range(5)]
        done = await asyncio.gather(*calls[2:], return_exceptions=True)
        go.set()
        first = await asyncio.gather(*calls[:2])
    assert [type(error) for error in done].count(faasrt.QueueFullError) == 1
    late = [error for error in done if isinstance(error, faasrt.DeadlineExceededError)]
    assert len(late) == 2
    assert all(error.sent == "no" for error in late)
    assert peak == 2
    assert all(result.ok for result in first)


async def test_cancellation_frees_the_permit_and_the_connection(raw_server: Serve) -> None:
    """A cancelled call leaves nothing behind: the next one gets its permit, and the server sees the end."""
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


async def test_everything_after_close_is_refused(serve: Serve) -> None:
    """Closing twice is harmless; using a closed thing is a clear error."""
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


async def test_a_runtime_of_its_own(serve: Serve) -> None:
    """The factory's runtimes share sessions, and the last one closes them."""
    factory = RuntimeFactory(Settings(endpoints={"python": await serve(answer), "js": await serve(answer)}))
    assert factory.get_supported_languages() == (Language.PYTHON, Language.JAVASCRIPT)
    async with factory.create_runtime("python") as one, factory.create_runtime("js") as two:
        assert (await one.run_code("1")).ok
        await one.aclose()
        assert (await two.run_code("1")).ok
    with pytest.raises(UnsupportedLanguageError, match="configured: python, javascript"):
        factory.create_runtime("ts")


def test_a_manager_takes_a_factory_or_settings() -> None:
    """Both together would leave it open which one counts."""
    with pytest.raises(ConfigurationError):
        RuntimeManager(RuntimeFactory(), settings=Settings())


def test_another_loop_is_a_clear_error(unused_tcp_port: int) -> None:
    """A session belongs to its loop; its use in another loop is an error and does not hang."""
    runtime = RuntimeFactory(Settings(endpoints={"py": f"http://127.0.0.1:{unused_tcp_port}"})).create_runtime("py")

    async def call() -> None:
        await runtime.run_code("1")

    with pytest.raises(faasrt.ConnectError):
        asyncio.run(call())
    with pytest.raises(ConfigurationError, match="another event loop"):
        asyncio.run(call())
    asyncio.run(runtime.aclose())


async def test_validation_travels(serve: Serve) -> None:
    """`validate_code` asks the FaaS; an empty program needs no asking; a server that cannot says so."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(await request.json())
        return web.json_response(
            {
                "valid": False,
                "diagnostics": [{"message": "bad", "line": 1, "column": None}],
                "checked_by": "test",
            }
        )

    async with manager_for(await serve(handler, "/validate_code")) as manager:
        result = await manager.validate_code("let a = ;", "js")
        assert not await manager.validate_code(" ", "js")
    assert seen == [{"language": "javascript", "code": "let a = ;"}]
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
async def test_nonsense_is_no_validation(serve: Serve, body: bytes) -> None:
    """A broken answer raises; it never reads as "invalid"."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with manager_for(await serve(handler, "/validate_code")) as manager:
        with pytest.raises(faasrt.ProtocolError):
            await manager.validate_code("let a = ;", "js")


async def test_health_is_read_off_every_endpoint(serve: Serve, unused_tcp_port: int) -> None:
    """Each endpoint is probed once; a dead or odd one is an unhealthy entry."""

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


async def test_events_hold_no_code_and_no_output(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The log holds ids, sizes, hashes and times, and no text of the user."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"output": {"stdout": "s3cret-output"}})

    caplog.set_level("DEBUG", "faasrt")
    async with manager_for(await serve(handler)) as manager:
        await manager.run_code("print('s3cret-code')", "py", ext={"k": "s3cret-ext"})
    text = caplog.text
    assert "call_started" in text
    assert "call_finished" in text
    assert "s3cret" not in text


def test_the_library_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """Without any configuration of logging nothing is printed, whatever happens."""

    async def main() -> None:
        async with manager_for("http://127.0.0.1:1") as manager:
            with pytest.raises(faasrt.ConnectError):
                await manager.run_code("1", "py")

    asyncio.run(main())
    assert capfd.readouterr() == ("", "")


def test_json_of_a_result(serve: Serve) -> None:
    """`to_dict` of a whole result is JSON."""
    result = faasrt.ExecutionResult(outcome=Outcome.OK, metadata={"nested": [1, {"a": None}]})
    assert json.loads(json.dumps(result.to_dict()))["metadata"] == {"nested": [1, {"a": None}]}
