"""The access log of the embedded FaaS, `LocalFaaS(access_log=...)`."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import pytest
import structlog

from faasrt import ConfigurationError
from faasrt.local import LocalFaaS
from support.served import until


async def test_a_structlog_logger_gets_fields() -> None:
    """The path is logged without its query. A request whose client disconnects is logged with status 499."""
    lines = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(None, processors=[lines])
    async with LocalFaaS(["js"], workers=1, access_log=logger) as faas, aiohttp.ClientSession() as session:
        await faas.wait_ready("js")
        async with session.get(f"{faas.url}/health?token=secret") as response:
            size = len(await response.read())
        body = {"code": "while (true) {}", "language": "javascript"}
        call = asyncio.create_task(session.post(f"{faas.url}/run_code", json=body))
        engine = faas.engine("js")
        assert engine is not None
        await until(lambda: engine.active == 1)
        call.cancel()
        await until(lambda: len(lines.entries) == 2)
    health, gone = lines.entries
    assert health.pop("duration_ms") >= 0
    expected: dict[str, Any] = {"event": "request", "log_level": "info", "method": "GET", "path": "/health"}
    assert health == {**expected, "status": 200, "bytes": size}
    assert (gone["path"], gone["status"], gone["bytes"]) == ("/run_code", 499, 0)


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
    assert record.getMessage().startswith("request method=GET path=/nothing status=404 duration_ms=")


def test_access_log_must_be_a_logger() -> None:
    with pytest.raises(ConfigurationError, match="access_log must be a structlog or stdlib logger, got True"):
        LocalFaaS(["js"], access_log=True)
