"""Clients of the embedded FaaS that disconnect: in the queue, during execution, and while the answer is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
from support.rawhttp import Connection, connected, request
from support.served import Caller, Server, is_gone, served, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOOP = {"python": "while True: pass", "javascript": "while (true) {}", "typescript": "for (;;) {}"}
WAIT = {"python": "import time; time.sleep(60)", "javascript": "await new Promise((r) => setTimeout(r, 60_000))"}
PRINT = {"python": "print(1)", "javascript": "console.log(1)"}


async def serve(folder: Path, engine: str) -> AsyncIterator[Server]:
    words = ("python is ready", "javascript is ready")
    async with served(folder, "--workers", "1", "--engine", f"python={engine}", wait_for=words) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async for server in serve(tmp_path_factory.mktemp("disconnect"), "native"):
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wasm_server(tmp_path_factory: pytest.TempPathFactory, wasm_sandbox: None) -> AsyncIterator[Server]:
    async for server in serve(tmp_path_factory.mktemp("disconnect"), "wasm"):
        yield server


def program(language: str, code: str, **fields: Any) -> bytes:
    return request(json.dumps({"language": language, "code": code, **fields}).encode())


async def start(server: Server, connection: Connection, language: str, code: str) -> None:
    """Send a program, and wait until the server runs it."""
    await connection.send(program(language, code))
    await server.until_pool(language, active=1)


def find_busy(server: Server, language: str) -> psutil.Process | None:
    """Return a sandbox that has used more CPU time than its start takes, or None."""
    for child in server.sandboxes("native" if language == "python" else "deno"):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cpu_times().user > 0.5:
                return child
    return None


@pytest.mark.parametrize("language", LOOP)
async def test_a_disconnect_during_execution_ends_the_process(server: Server, language: str) -> None:
    """The process of the program ends, and the pool has no active program."""
    async with connected(server.url) as connection:
        await start(server, connection, language, LOOP[language])
        await until(lambda: find_busy(server, language))
        sandbox = find_busy(server, language)
        assert sandbox is not None
    await until(lambda: is_gone(sandbox))
    await server.until_pool(language, active=0, queued=0)


@pytest.mark.parametrize("code", [LOOP["python"], "import time\ntime.sleep(60)"])
async def test_a_disconnect_during_execution_frees_the_webassembly_worker(wasm_server: Server, code: str) -> None:
    """The program is stopped, and the same worker runs the next program."""
    _, before = await wasm_server.run("python", "print(1)")
    async with connected(wasm_server.url) as connection:
        await start(wasm_server, connection, "python", code)
    await wasm_server.until_pool("python", active=0, idle=1)
    _, after = await wasm_server.run("python", "print(2)")
    assert after["output"]["stdout"] == "2\n"
    assert after["metadata"]["instance_id"] == before["metadata"]["instance_id"]


@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_a_disconnect_in_the_queue_removes_the_program(language: str) -> None:
    """A program whose client disconnects in the queue never runs. The program behind it runs."""
    async with LocalFaaS([language], workers=1, queue_timeout_s=60) as faas, contextlib.AsyncExitStack() as stack:
        await faas.wait_ready(language)
        server = Caller(faas.url)
        capacity = (await server.get("/health"))["languages"][language]["capacity"]
        for _ in range(capacity):
            before = await stack.enter_async_context(connected(faas.url))
            await before.send(program(language, WAIT[language]))
        await server.until_pool(language, active=capacity)
        async with connected(faas.url) as connection:
            await connection.send(program(language, "1 / 0" if language == "python" else "throw 1"))
            await server.until_pool(language, queued=1)
            behind = asyncio.create_task(server.run(language, PRINT[language]))
            await server.until_pool(language, queued=2)
        await server.until_pool(language, queued=1, active=capacity)
        await stack.aclose()  # ends the programs that fill the capacity
        status, body = await behind
        assert (status, body["output"]["stdout"]) == (200, "1\n")
        await server.until_pool(language, active=0, queued=0)
        (engine,) = (await server.get("/metrics"))["engines"].values()
        assert engine["executions"] == {language: {"OK": 1}}


async def test_a_disconnect_during_the_answer_frees_memory(server: Server) -> None:
    """75 answers of 1 MB would exceed the server's limit on held memory, if their memory were not freed."""
    code = "console.log('x'.repeat(1_000_000))"
    for _ in range(75):
        async with connected(server.url) as connection:
            connection.writer.transport.get_extra_info("socket").setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF
            await connection.send(program("javascript", code))
            assert (await connection.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    status, body = await server.run("javascript", code)
    assert (status, len(body["output"]["stdout"])) == (200, 1_000_001)
    await server.until_pool("javascript", active=0, queued=0)


@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_a_program_that_outlasts_drain_s_is_ended(language: str) -> None:
    """`aclose` waits `drain_s`. Then it ends the program and closes the connection."""
    faas = LocalFaaS([language], workers=1, drain_s=0.1, sandbox=SandboxConfig(timeout_limit_s=60))
    await faas.start()
    await faas.wait_ready(language)
    async with connected(faas.url) as connection:
        await connection.send(program(language, WAIT[language]))
        await Caller(faas.url).until_pool(language, active=1)
        await asyncio.wait_for(faas.aclose(), 30)
        assert await connection.closed() == b""
