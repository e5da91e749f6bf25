"""Refused requests are counted in the logs of server and client. The servers run Python, which all levels have."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from faasrt import LimiterSettings, QueueFullError, RuntimeManager, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.errors import TOO_BUSY, EngineError
from faasrt.local.http.admission import BusyError
from faasrt.local.http.refusals import RefusalLog
from faasrt.testing import FakeFaaS
from support.helpers import Clock, manager_for
from support.levels import without_level
from support.served import connected, until

SECRET = "Jd83kq"


FUSION, PISTON, COZE_LOOP = "/sandboxfusion/run_code", "/piston/api/v2/execute", {"User-Agent": "Go-http-client/1.1"}


async def post(url: str, path: str, headers: Mapping[str, str] | None = None, **fields: object) -> int:
    sent = {"Content-Type": "application/json"} | dict(headers or {})
    body = io.BytesIO(json.dumps(fields).encode())  # aiohttp warns of large bodies that are bytes
    async with aiohttp.ClientSession(headers=sent) as session, session.post(url + path, data=body) as response:
        return response.status


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return without_level(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.mark.usefixtures("wasm_sandbox")
async def test_the_server_counts_what_it_refuses(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """One line for each reason and ten seconds has the number and a remedy. The rest is logged when the server ends."""
    caplog.set_level(logging.DEBUG)
    sandbox = SandboxConfig(memory_limit_mb=64)
    async with LocalFaaS(["python"], max_programs=1, sandbox=sandbox, queue_timeout_s=0.01) as faas:
        await faas.wait_ready("python")
        url, long = faas.url, {"language": "python", "code": f"import time; time.sleep(60) # {SECRET}"}
        running = asyncio.create_task(post(url, "/run_code", **long))
        await until(lambda: faas.health()["languages"]["python"]["active"] == 1)
        assert [await post(url, "/run_code", **long) for _ in range(3)] == [429] * 3
        assert [await post(url, FUSION, **long, memory_limit_MB=99) for _ in range(2)] == [422] * 2
        assert await post(url, FUSION, **long, **{SECRET: 1}) == 422
        files = [{"content": SECRET}]
        assert await post(url, PISTON, language="python", version="*", files=files, run_memory_limit=2**30) == 400
        assert warnings_of(caplog) == []
        clock.advance(10)
        await until(lambda: len(warnings_of(caplog)) == 4)
        assert await post(url, FUSION, **long, memory_limit_MB=99) == 422
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    above = "clients asked for more than the maximum:"
    memory = f"SandboxFusion {above} memory_limit_MB is at most 64; --max-memory-mb of faasrt serve raises it"
    slow = r"programs that waited longer than their clients do; \w+ runs 1 at once"
    first, *rest = (line.removeprefix("refused in 10 s: ") for line in warnings_of(caplog))
    assert re.fullmatch(rf"3 {slow}: .* add servers \(memory in use: [\d.]+ of [\d.]+ GiB\)", first)
    assert rest == [
        f"2 requests of {memory}",
        "1 requests of SandboxFusion clients were not valid here: the answers say why, and --access-log shows their "
        "addresses",
        f"1 requests of Piston {above} run_memory_limit is at most 67108864; --max-memory-mb of faasrt serve raises it",
        f"1 requests of {memory}",
    ]
    assert SECRET not in caplog.text


def piston_run(language: str, version: str = "*") -> dict[str, Any]:
    return {"language": language, "version": version, "files": [{"content": SECRET}]}


FILES = {"files": {"a": "YQ=="}}
REFUSED: list[tuple[str, dict[str, str], dict[str, Any], int, str]] = [
    (FUSION, {}, {"language": "go"}, 200, "SandboxFusion clients asked for go, which this server does not run: .*"),
    (FUSION, {}, {"language": "php"}, 200, "SandboxFusion clients asked for php, .* run: it runs python"),
    (PISTON, {}, piston_run("go"), 400, "Piston clients asked for go, .*; --language of faasrt serve adds it"),
    (PISTON, {}, piston_run("python", "99.x"), 400, r"Piston clients asked for another version of python .* any"),
    (PISTON, {}, piston_run(SECRET), 400, "Piston clients asked for languages .* GET /piston/api/v2/runtimes lists .*"),
    (FUSION, {}, {"language": "python", "memory_limit_MB": 1}, 422, "SandboxFusion clients asked for less .* MiB"),
    ("/sandboxfusion/run_jupyter", {}, {"cells": [SECRET]}, 200, "SandboxFusion clients had notebooks, .* above 0"),
    ("/run_code", COZE_LOOP, {"language": SECRET}, 400, "coze-loop clients were not valid here: .*"),
    ("/run_code", {}, {"language": "python", "run_timeout": 9}, 400, "to /run_code were those of SandboxFusion: .*"),
    (FUSION, {"Authorization": "Bearer no"}, {}, 401, "SandboxFusion clients had no token, .* http://user:TOKEN@host"),
    ("/run_code", COZE_LOOP | {"Authorization": "x"}, {}, 401, "coze-loop clients had no token, .*"),
    ("/sandboxfusion/x", {}, {}, 404, "SandboxFusion clients were for paths that .*"),
    ("/api/v2/execute", {}, {}, 404, "Piston clients were for paths that .*"),
    (FUSION, {"Content-Type": "text/plain"}, {}, 415, "SandboxFusion clients were compressed, or .* application/json"),
    (PISTON, {}, piston_run("python") | {"stdin": 9 * 2**20 * "a"}, 413, "Piston clients had more than 8 MiB: .*"),
]


@pytest.mark.usefixtures("wasm_sandbox")
@pytest.mark.parametrize(("path", "headers", "fields", "status", "line"), REFUSED)
async def test_refusals_of_foreign_clients_are_counted(
    caplog: pytest.LogCaptureFixture, path: str, headers: dict[str, str], fields: dict[str, Any], status: int, line: str
) -> None:
    """Their own logs may hide the reason. The line has the remedy, and nothing of the request."""
    caplog.set_level(logging.DEBUG)
    async with LocalFaaS(["python"], workers=1, token="s3cret", max_sessions=0) as faas:
        await faas.wait_ready("python")
        sent = {"Authorization": "Bearer s3cret"} | headers
        assert await post(faas.url, path, sent, **{"code": f"# {SECRET}"} | fields) == status
    (logged,) = warnings_of(caplog)
    of = "" if line.startswith("to ") else "of "
    assert re.fullmatch(f"refused in 10 s: 1 requests {of}{line}", logged), logged
    assert SECRET not in caplog.text


async def test_refused_connections_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Clients of other services take the 503 for a failure of the program."""
    async with LocalFaaS(["js"], workers=1, max_connections=1) as faas, connected(faas.url), connected(faas.url):
        assert [await post(faas.url, FUSION) for _ in range(2)] == [503, 503]
    (line,) = warnings_of(caplog)
    assert line == ("refused in 10 s: 2 connections, because 1 were open; --max-connections of faasrt serve raises it")


def test_programs_that_got_no_cpu_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """So are the cells of a notebook that could not run: their clients see a failure of the service."""
    busy = BusyError("", reason="programs that waited")
    cell = EngineError("cell 2 could not run")
    cell.__cause__ = busy

    async def count() -> None:
        refusals = RefusalLog()
        for error in (EngineError(TOO_BUSY), cell, busy, EngineError("it crashed")):
            refusals.count(error, "SandboxFusion")
        refusals.flush()

    asyncio.run(count())
    slow, waited = warnings_of(caplog)
    assert slow.startswith("refused in 10 s: 1 programs at the limit of their wall-clock time, because they got too")
    assert "raise --max-wall-factor" in slow
    assert waited.startswith("refused in 10 s: 2 programs that waited")


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
