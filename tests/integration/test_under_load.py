"""Many programs at once: floods of hostile ones, and servers that stop or lose their launcher meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from faasrt import LimiterSettings, Outcome, RetrySettings, RuntimeManager, SandboxConfig, ServerError
from faasrt.local import LocalFaaS
from faasrt.local.machine_memory import MachineMemory
from support.helpers import PATIENT, manager_for
from support.levels import NATIVE
from support.served import Server, is_gone, sandboxes, served, until

pytestmark = [pytest.mark.servers, NATIVE]

HOG = "data = []\nwhile True: data.append(bytearray(10**6))"
SLEEP = "import time; time.sleep({}); print('slept')"
SMALL: dict[str, Any] = {"memory_limit_mb": 16}


async def start_many(server: Server, count: int, seconds: float) -> list[asyncio.Task[tuple[int, Any]]]:
    """Start programs that sleep. Return their calls once all of them run."""
    calls = [
        asyncio.create_task(server.run("python", SLEEP.format(seconds), sandbox=SMALL, timeout=100_000))
        for _ in range(count)
    ]
    await server.until_pool("python", active=count)
    return calls


async def test_a_flood_of_memory_hogs_on_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server with memory for four programs, no more run at once. Each hog is MEMORY_LIMIT or refused, and the
    programs of a neighbour are OK.
    """
    monkeypatch.setattr(MachineMemory, "available_mb", lambda self: 4 * (128 + 4))
    most = 0

    async def hog(http: aiohttp.ClientSession, url: str) -> str:
        nonlocal most
        async with http.post(f"{url}/run_code", json={"language": "python", "code": HOG}) as response:
            body = await response.json()
            most = max(most, faas.health()["languages"]["python"]["active"])
            return str(body["outcome"]) if response.status == 200 else f"{response.status} {body['error']}"

    neighbour = LimiterSettings(max_concurrency=4)
    async with (
        LocalFaaS(["python"], workers=1) as faas,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        manager_for(faas.url, timeouts=PATIENT, limiter=neighbour, retry=RetrySettings(max_attempts=100)) as manager,
    ):
        await faas.wait_ready("python")
        hogs = asyncio.gather(*(hog(http, faas.url) for _ in range(300)))
        results = await asyncio.gather(*(manager.run_code(f"print({number})", "python") for number in range(40)))
        outcomes = Counter(await hogs)
    assert [(result.outcome, result.stdout) for result in results] == [
        (Outcome.OK, f"{number}\n") for number in range(40)
    ]
    assert outcomes["MEMORY_LIMIT"] > 0
    assert set(outcomes) <= {"MEMORY_LIMIT", "429 overloaded"}
    assert most <= 4


async def test_sigterm_while_200_programs_run(tmp_path: Path) -> None:
    """Each program gets its result. The server then exits with 0 and leaves nothing."""
    async with served(tmp_path, "--language", "python", "--max-programs", "200", wait_for=["http://"]) as server:
        await server.until_pool("python", status="ready")
        calls = await start_many(server, 200, 25)
        server.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*calls)
        assert Counter((status, body["outcome"], body["output"]["stdout"]) for status, body in answers) == {
            (200, "OK", "slept\n"): 200
        }
        assert await server.ended() == 0
        assert "Traceback" not in server.output


async def test_sigkill_of_the_launcher_while_64_programs_run(tmp_path: Path) -> None:
    """No program gets a verdict or runs again, because the server has failed. All processes end, and the next programs
    are OK.
    """
    running = 0

    async def run(manager: RuntimeManager) -> ServerError:
        nonlocal running
        code = "import time; print('running', flush=True); time.sleep(90)"
        try:
            async with manager.stream_code(code, "python", sandbox=SandboxConfig(**SMALL, timeout_limit_s=100)) as call:
                async for _ in call:
                    running += 1
        except ServerError as error:
            return error
        raise AssertionError(call.result)

    async with (
        served(tmp_path, "--language", "python", "--max-programs", "64", wait_for=["http://"]) as server,
        manager_for(server.url, sandbox=SandboxConfig(timeout_limit_s=100)) as manager,
    ):
        await server.until_pool("python", status="ready")
        calls = [asyncio.create_task(run(manager)) for _ in range(64)]
        await until(lambda: running == 64)
        [launcher] = [each for each in server.launchers() if sandboxes([each], "native")]
        everyone = [launcher, *launcher.children(recursive=True)]
        launcher.kill()
        errors = await asyncio.gather(*calls)
        assert Counter((error.attempts, error.sent) for error in errors) == {(1, "yes"): 64}
        assert running == 64
        await until(lambda: all(map(is_gone, everyone)))
        results = await asyncio.gather(*(manager.run_code("print(1)", "python") for _ in range(64)))
        assert Counter((result.outcome, result.stdout) for result in results) == {(Outcome.OK, "1\n"): 64}
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
