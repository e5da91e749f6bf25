"""Refused requests are counted in the logs of server and client."""

from __future__ import annotations

import asyncio
import logging
import re

import aiohttp
import pytest

from faasrt import LimiterSettings, QueueFullError, RuntimeManager, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.testing import FakeFaaS
from support.helpers import Clock, manager_for
from support.served import until

SECRET = "Jd83kq"


async def post(url: str, path: str, **fields: object) -> int:
    async with aiohttp.ClientSession() as session, session.post(url + path, json=fields) as response:
        return response.status


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_the_server_counts_what_it_refuses(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """One line for each reason and ten seconds has the number and a remedy. The rest is logged when the server ends."""
    caplog.set_level(logging.DEBUG)
    fusion, piston = "/sandboxfusion/run_code", "/piston/api/v2/execute"
    sandbox = SandboxConfig(memory_limit_mb=64)
    async with LocalFaaS(["bash"], max_programs=1, sandbox=sandbox, queue_timeout_s=0.01) as faas:
        await faas.wait_ready("bash")
        url, long = faas.url, {"language": "bash", "code": f"sleep 60 # {SECRET}"}
        running = asyncio.create_task(post(url, "/run_code", **long))
        await until(lambda: faas.health()["languages"]["bash"]["active"] == 1)
        assert [await post(url, "/run_code", **long) for _ in range(3)] == [429] * 3
        assert [await post(url, fusion, **long, memory_limit_MB=99) for _ in range(2)] == [422] * 2
        assert await post(url, fusion, **long, **{SECRET: 1}) == 422
        files = [{"content": SECRET}]
        assert await post(url, piston, language="bash", version="*", files=files, run_memory_limit=2**30) == 400
        assert warnings_of(caplog) == []
        clock.advance(10)
        await until(lambda: len(warnings_of(caplog)) == 4)
        assert await post(url, fusion, **long, memory_limit_MB=99) == 422
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    above = "clients asked for more than the maximum:"
    memory = f"SandboxFusion {above} memory_limit_MB is at most 64; --max-memory-mb of faasrt serve raises it"
    slow = "programs that waited longer than their clients do; bash runs 1 at once"
    first, *rest = (line.removeprefix("refused in 10 s: ") for line in warnings_of(caplog))
    assert re.fullmatch(rf"3 {slow}: .* add servers \(memory in use: [\d.]+ of [\d.]+ GiB\)", first)
    assert rest == [
        f"2 requests of {memory}",
        "1 requests of SandboxFusion clients were not valid here; the answers say why",
        f"1 requests of Piston {above} run_memory_limit is at most 67108864; --max-memory-mb of faasrt serve raises it",
        f"1 requests of {memory}",
    ]
    assert SECRET not in caplog.text


async def test_the_client_counts_what_its_own_queue_refuses(caplog: pytest.LogCaptureFixture) -> None:
    """Calls that find no place in the queue are one line, not one each, which is written at the latest at the end."""
    caplog.set_level(logging.DEBUG)
    limiter = LimiterSettings(max_concurrency=1, max_queue=1)
    async with FakeFaaS() as fake, manager_for(fake.url, limiter=limiter) as manager:
        results = await run_at_once(manager, 100)
        refused = sum(isinstance(result, QueueFullError) for result in results)
        assert refused > 50
        assert warnings_of(caplog) == []
    (line,) = warnings_of(caplog)
    assert line.startswith(
        f"calls_refused count={refused} within_s=10.0 error='QueueFullError' remedy='send fewer calls"
    )


async def run_at_once(manager: RuntimeManager, number: int) -> list[object]:
    calls = (manager.run_code("1", "js") for _ in range(number))
    return [*await asyncio.gather(*calls, return_exceptions=True)]
