"""The clients that are compared. Each sends the same program with the same fields, and reads its stdout.

    hand               a loop over aiohttp, as a careful user writes it
    tuned              aiohttp with everything possible prepared before the calls: the upper limit of what is possible
    httpx              the same loop as `hand`, over httpx
    faasrt             `Runtime.run_code` without telemetry sinks
    faasrt+telemetry   `Runtime.run_code` with Prometheus, and log lines at INFO that are written to /dev/null

All have a deadline for each call, and none limits the number of connections. Each imports only the packages that it
needs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
from yarl import URL

from benchmarks.load import Call
from benchmarks.stub import STDOUT
from faasrt import LimiterSettings, RuntimeManager, Settings, TimeoutSettings
from faasrt.config import EnvelopeMode

CODE = '''\
def grade(turn):
    """Say how well the answer fits."""
    wanted = set(turn["reference"].lower().split())
    found = set(turn["answer"].lower().split())
    return {"score": len(wanted & found) / max(1, len(wanted)), "missing": sorted(wanted - found)}

print(grade({"reference": "forty two", "answer": "It is forty two"}))
'''
LIMIT_MS = 30_000
DEADLINE_S = LIMIT_MS / 1000 + 2
Client = Callable[[str, int], AbstractAsyncContextManager[Call]]


def request_body() -> dict[str, Any]:
    """Return the fields that faasrt sends."""
    sandbox = {"memory_limit_mb": 128, "timeout_ms": LIMIT_MS, "max_output_bytes": 1_048_576, "network_enabled": False}
    return {
        "language": "python",
        "code": CODE,
        "timeout": LIMIT_MS,
        "priority": "normal",
        "ext": {},
        "sandbox": sandbox,
    }


def check(stdout: str) -> None:
    if stdout != STDOUT:
        raise AssertionError(f"stdout must be {STDOUT!r}, got {stdout!r}")


@asynccontextmanager
async def hand(url: str, in_flight: int) -> AsyncIterator[Call]:
    semaphore, timeout = asyncio.Semaphore(in_flight), aiohttp.ClientTimeout(total=DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call() -> None:
            async with semaphore, session.post(f"{url}/run_code", json=request_body()) as response:
                response.raise_for_status()
                result = await response.json()
                check(result["output"]["stdout"])

        yield call


@asynccontextmanager
async def tuned(url: str, in_flight: int) -> AsyncIterator[Call]:
    body, target = json.dumps(request_body()).encode(), URL(f"{url}/run_code")
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=DEADLINE_S),
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
        auto_decompress=False,
    ) as session:

        async def call() -> None:
            async with session.post(target, data=body, allow_redirects=False) as response:
                check(json.loads(await response.read())["output"]["stdout"])

        yield call


@asynccontextmanager
async def with_httpx(url: str, in_flight: int) -> AsyncIterator[Call]:
    import httpx

    semaphore = asyncio.Semaphore(in_flight)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=DEADLINE_S, limits=limits) as client:

        async def call() -> None:
            async with semaphore:
                response = await client.post(f"{url}/run_code", json=request_body())
                response.raise_for_status()
                check(response.json()["output"]["stdout"])

        yield call


@asynccontextmanager
async def faasrt(url: str, in_flight: int, *, envelope: EnvelopeMode = "auto", **options: Any) -> AsyncIterator[Call]:
    settings = Settings(
        endpoints={"python": url},
        envelope=envelope,
        limiter=LimiterSettings(max_concurrency=max(256, in_flight)),
        timeouts=TimeoutSettings(connect_s=DEADLINE_S),
    )
    async with RuntimeManager(settings=settings, **options) as manager:
        runtime = await manager.get_runtime("python")

        async def call() -> None:
            check((await runtime.run_code(CODE)).stdout)

        yield call


@asynccontextmanager
async def faasrt_with_telemetry(url: str, in_flight: int) -> AsyncIterator[Call]:
    from prometheus_client import CollectorRegistry

    from faasrt.telemetry.prometheus import PrometheusSink

    logger = logging.getLogger("faasrt")
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(os.devnull)
    logger.addHandler(handler)
    try:
        async with faasrt(url, in_flight, telemetry=[PrometheusSink(registry=CollectorRegistry())]) as call:
            yield call
    finally:
        logger.removeHandler(handler)
        handler.close()


CLIENTS: dict[str, Client] = {
    "hand": hand,
    "tuned": tuned,
    "httpx": with_httpx,
    "faasrt": faasrt,
    "faasrt+telemetry": faasrt_with_telemetry,
}
