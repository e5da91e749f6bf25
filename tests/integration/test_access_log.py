"""The access log of the embedded FaaS, `LocalFaaS(access_log=...)`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import structlog

from faasrt import ConfigurationError, RuntimeManager, Settings
from faasrt.local import LocalFaaS
from faasrt.telemetry.events import CallStarted, Event
from support.helpers import WASM
from support.served import client_context, http_client, until


async def test_a_structlog_logger_gets_fields(tls: ssl.SSLContext | None) -> None:
    """The path is logged without its query. A request whose client disconnects is logged with status 499."""
    async with logged(["js"], ssl=tls) as (faas, lines), http_client() as session:
        await faas.wait_ready("js")
        async with session.get(f"{faas.url}/health?token=secret") as response:
            size = len(await response.read())
        body = {"code": "while (true) {}", "language": "javascript"}
        call = asyncio.create_task(session.post(f"{faas.url}/run_code", json=body))
        engine = faas.engine("js")
        assert engine is not None
        await until(lambda: engine.active == 1)
        call.cancel()
        await until(lambda: len(lines) == 2)
    health, gone = lines
    assert health.pop("duration_ms") >= 0
    expected: dict[str, Any] = {"event": "request", "log_level": "info", "method": "GET", "path": "/health"}
    assert health == {**expected, "client": "127.0.0.1", "status": 200, "bytes": size}
    assert (gone["path"], gone["status"], gone["bytes"]) == ("/run_code", 499, 0)
    assert (gone["language"], gone["error"]) == ("javascript", "CancelledError")
    assert "outcome" not in gone


@pytest.mark.usefixtures("wasm_sandbox")
async def test_each_program_has_its_call_language_and_outcome(tls: ssl.SSLContext | None) -> None:
    """Also in a session, while its output is sent, and if another service's client sent it. Nothing of it is logged."""
    events: list[Event] = []
    async with (
        logged(["js", "python"], engines=WASM, ssl=tls) as (faas, lines),
        RuntimeManager(
            settings=Settings.from_url(faas.url, ssl=client_context()), telemetry=[events.append]
        ) as manager,
    ):
        await asyncio.gather(faas.wait_ready("js"), faas.wait_ready("python"))
        result = await manager.run_code("console.log('s3cret')", "js")
        await manager.run_code("throw 's3cret'", "js")
        async with manager.stream_code("for (;;);", "js", timeout_ms=100) as run:
            async for _ in run:
                pass
        await manager.validate_code("s3cret(", "js", where="remote")
        async with manager.session("python") as session:
            await session.run_code("s3cret = 1")
        async with RuntimeManager.from_url(f"piston+{faas.url}/piston/api/v2", ssl=client_context()) as piston:
            await piston.run_code("print('s3cret')", "python", timeout_ms=10_000)
    calls = [event.call_id for event in events if isinstance(event, CallStarted)]
    programs = [line for line in lines if "outcome" in line]
    assert [(without_id(line["path"]), line["language"], line["outcome"]) for line in programs] == [
        ("/run_code", "javascript", "OK"),
        ("/run_code", "javascript", "USER_ERROR"),
        ("/run_code", "javascript", "TIMEOUT"),
        ("/validate_code", "javascript", "SYNTAX_ERROR"),
        ("/sessions/ID/run", "python", "OK"),
        ("/piston/api/v2/execute", "python", "OK"),
    ]
    assert [line["call_id"] for line in programs[:3]] == calls[:3]
    assert programs[0]["task_id"] == result.metadata["task_id"]
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    assert "s3cret" not in repr(lines)


def without_id(path: str) -> str:
    return re.sub("/~[0-9a-f]{8}/", "/ID/", path)


async def test_a_proxy_names_its_client() -> None:
    """X-Forwarded-For is a field of its own. Values that could be taken for other fields are left out."""
    async with logged(["js"]) as (faas, lines), aiohttp.ClientSession() as session:
        for addresses, call_id in (
            ("203.0.113.7, 2001:db8::1", "a-call/1"),
            ("unknown status=200", 'a" status=200'),
            ("1" * 201, "1" * 129),
        ):
            headers = {"X-Forwarded-For": addresses, "X-Request-Id": call_id}
            await session.get(f"{faas.url}/livez", headers=headers)
    named, *others = lines
    assert (named["client"], named["forwarded_for"]) == ("127.0.0.1", "203.0.113.7,2001:db8::1")
    assert named["call_id"] == "a-call/1"
    assert len(others) == 2
    assert all({"forwarded_for", "call_id"}.isdisjoint(line) for line in others)


@contextlib.asynccontextmanager
async def logged(languages: list[str], **options: Any) -> AsyncIterator[tuple[LocalFaaS, list[Any]]]:
    """Yield a server, and the lines of its access log."""
    lines = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(None, processors=[lines])
    async with LocalFaaS(languages, workers=1, access_log=logger, **options) as faas:
        yield faas, lines.entries


async def test_a_standard_logger_gets_a_message(caplog: pytest.LogCaptureFixture) -> None:
    """One line at INFO contains the same fields."""
    caplog.set_level(logging.INFO, "access")
    async with (
        LocalFaaS(["js"], workers=1, access_log=logging.getLogger("access")) as faas,
        aiohttp.ClientSession() as session,
        session.get(f"{faas.url}/nothing") as response,
    ):
        assert response.status == 404
    (record,) = [record for record in caplog.records if record.name == "access"]
    assert record.getMessage().startswith("request client=127.0.0.1 method=GET path=/nothing status=404 duration_ms=")


def test_access_log_must_be_a_logger() -> None:
    with pytest.raises(ConfigurationError, match="access_log must be a structlog or stdlib logger, got True"):
        LocalFaaS(["js"], access_log=True)
