"""The embedded FaaS behaves the same without and with TLS, in asyncio's event loop and in uvloop's."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog
from anyio.from_thread import start_blocking_portal

from faasrt import RuntimeManager, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.engines.engine import Engine
from support.helpers import manager_for, skip_without
from support.served import Connection, authority, client_context, connected, request, server_context, until

MIB = 2**20
# Around the sizes of a record of TLS, of the buffers of asyncio, and of the pieces in which answers are written.
SIZES = (1, 1_000, 16_383, 16_384, 16_385, 65_536, 100_000, 131_072, 131_073, 262_144, 900_000, MIB, 8 * MIB)
SANDBOX = SandboxConfig(max_output_bytes=8 * MIB, timeout_limit_s=60)


class Running(NamedTuple):
    """A server in another thread, and the lines of its access log."""

    faas: LocalFaaS
    lines: list[Any]

    @property
    def engine(self) -> Engine:
        engine = self.faas.engine("python")
        assert engine is not None
        return engine

    @property
    def programs(self) -> list[Any]:
        """The lines of the programs that have been answered."""
        return [line for line in self.lines if line["path"] == "/run_code"]


@pytest.fixture(
    scope="module",
    params=[
        "asyncio-http",
        "uvloop-https",
        *(pytest.param(other, marks=pytest.mark.tables) for other in ("asyncio-https", "uvloop-http")),
    ],
)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    loop, scheme = request.param.split("-")
    if loop == "uvloop":
        skip_without("uvloop")
    captured = structlog.testing.LogCapture()
    faas = LocalFaaS(
        ["python"],
        workers=2,
        sandbox=SANDBOX,
        ssl=server_context() if scheme == "https" else None,
        access_log=structlog.wrap_logger(None, processors=[captured]),
    )
    with (
        start_blocking_portal(backend_options={"use_uvloop": loop == "uvloop"}) as portal,
        portal.wrap_async_context_manager(faas),
    ):
        portal.call(faas.wait_ready, "python")
        yield Running(faas, captured.entries)


@pytest.fixture
async def manager(running: Running) -> AsyncIterator[RuntimeManager]:
    async with manager_for(running.faas.url, ssl=client_context(), sandbox=SANDBOX) as manager:
        yield manager


def program(size: int, **fields: Any) -> bytes:
    """Return the body of a request for a program that prints this many bytes."""
    return json.dumps({"language": "python", "code": f"print('x' * {size}, end='')", **fields}).encode()


def printed(body: bytes) -> str:
    result = json.loads(body)
    assert result["outcome"] == "OK"
    stdout: str = result["output"]["stdout"]
    return stdout


async def over_one_connection(url: str, sizes: tuple[int, ...]) -> AsyncIterator[str]:
    async with connected(url) as connection:
        for size in sizes:
            await connection.send(request(program(size)))
            yield printed((await connection.answer()).body)


async def with_http_1_0(url: str, sizes: tuple[int, ...]) -> AsyncIterator[str]:
    for size in sizes:
        async with connected(url) as connection:
            await connection.send(request(program(size)).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            head, _, body = (await connection.closed()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 200 ")
            yield printed(body)


async def with_curl(url: str, sizes: tuple[int, ...], folder: Path) -> AsyncIterator[str]:
    authority().cert_pem.write_to_path(folder / "ca.pem")
    for size in sizes:
        arguments = ("--no-progress-meter", "--fail", "--cacert", folder / "ca.pem", "--json", program(size).decode())
        process = await asyncio.create_subprocess_exec("curl", *arguments, f"{url}/run_code", stdout=-1)
        body, _ = await process.communicate()
        assert process.returncode == 0
        yield printed(body)


async def with_run_code(manager: RuntimeManager, sizes: tuple[int, ...]) -> AsyncIterator[str]:
    for size in sizes:
        yield (await manager.run_code(f"print('x' * {size}, end='')", "python")).stdout


async def with_stream_code(manager: RuntimeManager, sizes: tuple[int, ...]) -> AsyncIterator[str]:
    for size in sizes:
        async with manager.stream_code(f"print('x' * {size}, end='')", "python") as run:
            yield "".join([chunk.text async for chunk in run])


@pytest.mark.parametrize("client", ["one connection", "HTTP/1.0", "curl", "run_code", "stream_code"])
async def test_answers_of_any_size_arrive(
    client: str, running: Running, manager: RuntimeManager, tmp_path: Path
) -> None:
    """From one byte to 8 MiB. The access log gets the line of each, whatever its client does next."""
    if client == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = running.faas.url
    outputs = {
        "one connection": lambda: over_one_connection(url, SIZES),
        "HTTP/1.0": lambda: with_http_1_0(url, SIZES),
        "curl": lambda: with_curl(url, SIZES, tmp_path),
        "run_code": lambda: with_run_code(manager, SIZES),
        "stream_code": lambda: with_stream_code(manager, SIZES),
    }[client]()
    running.lines.clear()
    sizes = iter(SIZES)
    async for output in outputs:
        size = next(sizes)
        assert output == "x" * size
        await until(lambda: running.programs)
        (line,) = running.programs
        assert (line["status"], line["outcome"]) == (200, "OK")
        assert line["bytes"] > size
        running.lines.clear()
    assert next(sizes, None) is None


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_a_client_that_reads_late_gets_the_whole_answer(accept: str, running: Running) -> None:
    """The server waits for it, and answers the next request on the same connection."""
    async with connected(running.faas.url) as connection:
        connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.pause_reading()
        await connection.send(request(program(8 * MIB), headers={"Accept": accept}))
        await until(lambda: waits_for(running, connection))
        connection.resume_reading()
        head = (await connection.reader.readuntil(b"\r\n\r\n")).lower()
        if accept == "application/json":
            assert head.startswith(b"http/1.1 200 ")
            size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert printed(await connection.reader.readexactly(size)) == "x" * 8 * MIB
        else:
            body = b""
            while not body.endswith(b"\r\n0\r\n\r\n"):
                body += await connection.reader.read(MIB)
            assert body.count(b"x") >= 8 * MIB
        await connection.send(request(program(1)))
        assert printed((await connection.answer()).body) == "x"


def waits_for(running: Running, connection: Connection) -> bool:
    """Return whether the server waits for this client to read."""
    address = connection.writer.get_extra_info("sockname")
    transports = [one.transport for one in running.faas.listener.connections if one.transport is not None]
    return any(one.get_write_buffer_size() for one in transports if one.get_extra_info("peername") == address)


@pytest.mark.parametrize("size", [1, 16_384, 131_072, MIB, 7 * MIB])
async def test_programs_of_any_size_run(size: int, manager: RuntimeManager) -> None:
    code = "print(len(" + repr("x" * size) + "))"
    assert (await manager.run_code(code, "python")).stdout == f"{size}\n"


async def test_files_of_any_size_are_written_and_read(running: Running, manager: RuntimeManager) -> None:
    if "files" not in running.engine.session_features:
        pytest.skip("sessions have no files on this system")
    async with manager.session("python") as session:
        for size in (1, 16_384, 131_072, 700_000, 4 * MIB):
            content = bytes(range(256)) * (size // 256) + b"." * (size % 256)
            await session.write_files({"file": content})
            assert await session.read_files(["file"]) == {"file": content}


def close(connection: Connection) -> None:
    connection.writer.close()


def abort(connection: Connection) -> None:
    connection.writer.transport.abort()


@pytest.mark.parametrize("leave", [close, abort])
@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_a_disconnect_ends_the_program(
    accept: str, leave: Callable[[Connection], None], running: Running
) -> None:
    body = json.dumps({"language": "python", "code": "while True: print('x')", "timeout": 60_000}).encode()
    if accept == "application/json":
        body = body.replace(b"print('x')", b"pass")
    running.lines.clear()
    async with connected(running.faas.url) as connection:
        await connection.send(request(body, headers={"Accept": accept}))
        await until(lambda: running.engine.active == 1)
        leave(connection)
        await until(lambda: running.engine.active == 0)
    # The line of a request of the test before may come first.
    await until(lambda: [line["status"] for line in running.programs[-1:]] == [499])
