"""Clients of the embedded FaaS that disconnect: in the queue, during execution, and while the answer is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.engines.wasm import worker_process
from support.helpers import WASM, Clock, fast_forward
from support.levels import NATIVE_PYTHON
from support.served import (
    PATIENCE_S,
    Caller,
    Connection,
    at_work_in,
    connected,
    is_gone,
    request,
    sandboxes,
    trace,
    until,
)

LOOP = {"python": "while True: pass", "javascript": "while (true) {}", "typescript": "for (;;) {}"}
WAIT = {"python": "import time; time.sleep(600)", "javascript": "await new Promise((r) => setTimeout(r, 600_000))"}
PRINT = {"python": "print(1)", "javascript": "console.log(1)"}
LOOP_S = 0.1
"""Only the process of an endless loop uses more CPU time than this while no process starts."""


@contextlib.asynccontextmanager
async def serve(language: str, **options: Any) -> AsyncIterator[tuple[LocalFaaS, Caller]]:
    """Yield a server with one worker, in which no program reaches its time limit, and a client of it."""
    limits = SandboxConfig(timeout_limit_s=300)
    async with LocalFaaS([language], workers=1, sandbox=limits, **options) as faas:
        await faas.wait_ready(language)
        yield faas, Caller(faas.url)


def program(language: str, code: str, **fields: Any) -> bytes:
    return request(json.dumps({"language": language, "code": code, **fields}).encode())


async def start(caller: Caller, connection: Connection, language: str, code: str) -> None:
    """Send a program, and wait until the server runs it."""
    await connection.send(program(language, code))
    await caller.until_pool(language, active=1)


def cpu_times(folder: Path, language: str) -> dict[psutil.Process, float]:
    """Return the CPU time of each sandbox of the server that has this folder."""
    engine = "native" if language == "python" else "deno"
    times = {}
    for process in sandboxes(at_work_in(folder, psutil.Process().children()), engine):
        with contextlib.suppress(psutil.NoSuchProcess):
            times[process] = process.cpu_times().user
    return times


# A worker of WebAssembly lives on: see the next test.
@pytest.mark.parametrize("language", [pytest.param("python", marks=NATIVE_PYTHON), "javascript", "typescript"])
async def test_a_disconnect_during_execution_ends_the_process(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext | None
) -> None:
    """The process of the program ends, and the pool has no active program."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in trace(tmp_path).items():
        monkeypatch.setenv(name, value)
    async with serve(language, ssl=tls) as (_, caller):
        await caller.until_pool(language, idle=1 if language == "python" else 2)
        before = cpu_times(tmp_path, language)

        def busy() -> list[psutil.Process]:
            # The program may run in a process that has started since.
            now = cpu_times(tmp_path, language)
            return [process for process, used_s in now.items() if used_s > before.get(process, 0) + LOOP_S]

        async with connected(caller.url) as connection:
            await start(caller, connection, language, LOOP[language])
            await until(busy)
            (sandbox,) = busy()
        await until(lambda: is_gone(sandbox))
        await caller.until_pool(language, active=0, queued=0)


@pytest.mark.usefixtures("wasm_sandbox")
async def test_a_disconnect_during_execution_frees_the_webassembly_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is stopped, and the same worker runs the next program."""
    monkeypatch.setattr(worker_process, "CANCEL_TIMEOUT_S", PATIENCE_S)  # a busy machine may need more than a second
    async with serve("python", engines=WASM) as (_, caller):
        _, before = await caller.run("python", PRINT["python"])
        for code in (LOOP["python"], WAIT["python"]):
            async with connected(caller.url) as connection:
                await start(caller, connection, "python", code)
            await caller.until_pool("python", active=0, idle=1)
            _, after = await caller.run("python", PRINT["python"])
            assert after["output"]["stdout"] == "1\n"
            assert after["metadata"]["instance_id"] == before["metadata"]["instance_id"]


@pytest.mark.parametrize("language", PRINT)
async def test_a_disconnect_in_the_queue_removes_the_program(language: str, tls: ssl.SSLContext | None) -> None:
    """A program whose client disconnects in the queue never runs. The program behind it runs."""
    options = {"queue_timeout_s": 300, "ssl": tls}
    async with serve(language, **options) as (_, caller), contextlib.AsyncExitStack() as stack:
        capacity = (await caller.get("/health"))["languages"][language]["capacity"]
        for _ in range(capacity):
            before = await stack.enter_async_context(connected(caller.url))
            await before.send(program(language, WAIT[language]))
        await caller.until_pool(language, active=capacity)
        async with connected(caller.url) as connection:
            await connection.send(program(language, "1 / 0" if language == "python" else "throw 1"))
            await caller.until_pool(language, queued=1)
            behind = asyncio.create_task(caller.run(language, PRINT[language]))
            await caller.until_pool(language, queued=2)
        await caller.until_pool(language, queued=1, active=capacity)
        await stack.aclose()  # ends the programs that fill the capacity
        status, body = await behind
        assert (status, body["output"]["stdout"]) == (200, "1\n")
        await caller.until_pool(language, active=0, queued=0)
        (engine,) = (await caller.get("/metrics"))["engines"].values()
        assert engine["executions"] == {language: {"OK": 1}}


async def test_a_disconnect_during_the_answer_frees_memory(tls: ssl.SSLContext | None) -> None:
    """The answer counts until its client has gone. It does not fit into the buffers of the system."""
    code = "const line = '\\x01'.repeat(1_000_000); console.log(line); console.error(line);"
    async with serve("javascript", ssl=tls) as (faas, caller):
        async with connected(caller.url) as connection:
            connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await connection.send(program("javascript", code))
            assert (await connection.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            assert faas.listener.memory.held_bytes > 1_000_000
        await until(lambda: faas.listener.memory.held_bytes == 0)
        await caller.until_pool("javascript", active=0, queued=0)


@pytest.mark.parametrize("language", PRINT)
async def test_a_program_that_outlasts_drain_s_is_ended(
    language: str, clock: Clock, tls: ssl.SSLContext | None
) -> None:
    """`aclose` waits `drain_s`. Then it ends the program and closes the connection."""
    async with serve(language, drain_s=100, ssl=tls) as (faas, caller), connected(caller.url) as connection:
        await start(caller, connection, language, WAIT[language])
        began = clock()
        await fast_forward(clock, faas.aclose())
        assert clock() - began >= 100
        assert await connection.closed() == b""
