"""Programs wait in the queue of a server for as long as their clients wait for the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from faasrt import SandboxConfig, TimeoutSettings
from faasrt.local import LocalFaaS
from faasrt.protocol.program import PATIENCE_HEADER
from support.helpers import Clock, manager_for
from support.served import until

SLEEPS = {"language": "python", "code": "import time; time.sleep(600)"}
PRINTS = {"language": "python", "code": "print(1)"}
FUSION, PISTON = "/sandboxfusion/run_code", "/piston/api/v2/execute"
PISTON_FIELDS = {"language": "python", "version": "*", "files": [{"content": "print(1)"}]}


async def post(url: str, path: str, fields: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as http, http.post(url + path, json=fields, headers=headers) as response:
        return response.status, await response.json()


@contextlib.asynccontextmanager
async def busy_server(**options: Any) -> AsyncIterator[LocalFaaS]:
    """A server all of whose sandboxes are taken."""
    async with LocalFaaS(["python"], max_programs=1, sandbox=SandboxConfig(timeout_limit_s=600), **options) as faas:
        await faas.wait_ready("python")
        capacity = state_of(faas)["capacity"]
        running = [asyncio.create_task(post(faas.url, "/run_code", SLEEPS)) for _ in range(capacity)]
        await until(lambda: state_of(faas)["active"] == capacity)
        yield faas
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def state_of(faas: LocalFaaS) -> dict[str, Any]:
    state: dict[str, Any] = faas.health()["languages"]["python"]
    return state


@pytest.mark.parametrize(
    ("path", "fields", "headers", "wait_s", "status"),
    [
        pytest.param("/run_code", PRINTS, {}, 1.5, 429, id="unknown client"),
        pytest.param("/run_code", PRINTS | {"timeout": 20_000}, {PATIENCE_HEADER: "100"}, 79.5, 429, id="header"),
        pytest.param("/run_code", PRINTS, {PATIENCE_HEADER: "602.5"}, 2, 429, id="a little grace"),
        pytest.param("/run_code", PRINTS, {PATIENCE_HEADER: "1.25"}, 0.75, 429, id="impatient client"),
        pytest.param(
            "/run_code", PRINTS | {"timeout": 5_000}, {"User-Agent": "Go-http-client/1.1"}, 24.5, 429, id="coze-loop"
        ),
        pytest.param(FUSION, PRINTS | {"compile_timeout": 10, "run_timeout": 10}, {}, 19.5, 504, id="verl"),
        pytest.param(FUSION, PRINTS, {}, 19.5, 504, id="SandboxFusion's SDK"),
        pytest.param(PISTON, PISTON_FIELDS | {"run_timeout": 3_000}, {}, 26.5, 429, id="open-r1"),
        pytest.param(PISTON, PISTON_FIELDS | {"run_timeout": 60_000}, {}, 8, 429, id="long program of open-r1"),
    ],
)
async def test_the_wait_follows_from_the_client(
    path: str, fields: dict[str, Any], headers: dict[str, str], wait_s: float, status: int, clock: Clock
) -> None:
    """The program waits until its client would no longer receive the answer, if it took all of its time. Then the
    refusal still arrives. Of an unknown client, and for long programs, a short wait is certain.
    """
    async with busy_server() as faas:
        waiting = asyncio.create_task(post(faas.url, path, fields, headers))
        await until(lambda: state_of(faas)["queued"] == 1)
        clock.stop()
        clock.advance(wait_s - 0.25)
        await until_served(faas)
        assert state_of(faas)["queued"] == 1
        clock.advance(0.25)
        answer = await waiting
        assert answer[0] == status
        assert f"within {wait_s:g} s" in str(answer[1])


async def test_a_limit_of_the_server_bounds_the_wait(clock: Clock) -> None:
    """A server with a limit of its own lets no program wait longer, however long its client does."""
    async with busy_server(queue_timeout_s=3) as faas:
        waiting = asyncio.create_task(post(faas.url, "/run_code", PRINTS, {PATIENCE_HEADER: "9000"}))
        await until(lambda: state_of(faas)["queued"] == 1)
        clock.advance(3)
        assert (await waiting)[0] == 429


async def test_a_wrong_header_is_refused() -> None:
    """Nothing runs. The answer says what is expected."""
    async with LocalFaaS(["js"], workers=1) as faas:
        await faas.wait_ready("js")
        for value in ("", "x", "-1", "nan", "inf", "1e3", "9" * 5_000, "1.", "0x1"):
            status, body = await post(faas.url, "/run_code", {"language": "js", "code": "1"}, {PATIENCE_HEADER: value})
            assert (status, "must be a number of seconds" in body["details"]) == (400, True), value
        assert faas.health()["languages"]["javascript"]["active"] == 0


async def test_the_client_says_how_long_it_waits(clock: Clock) -> None:
    """With a long grace time, a program of our client waits long, where it was refused after 1.5 s."""
    timeouts = TimeoutSettings(grace_s=20)
    async with busy_server() as faas, manager_for(faas.url, timeouts=timeouts) as manager:
        call = asyncio.create_task(manager.run_code("print(1)", "python", timeout_ms=4_000))
        await until(lambda: state_of(faas)["queued"] == 1)
        clock.stop()
        clock.advance(19)
        await until_served(faas)
        assert state_of(faas)["queued"] == 1
        call.cancel()
        await asyncio.wait({call})


async def until_served(faas: LocalFaaS) -> None:
    """Wait for another request, after which all timers that were due have gone off."""
    async with aiohttp.ClientSession() as http, http.get(f"{faas.url}/livez") as response:
        assert response.status == 200
