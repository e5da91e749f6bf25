"""Runs `faasrt serve` as a process with its own temporary folder, inspects its processes, and sends it any bytes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import resource
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import aiohttp
import psutil
import trustme

FAASRT = str(Path(sys.executable).parent / "faasrt")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("COZE_LOOP_", "FAASRT_TOKEN"))}
PATIENCE_S = 60
LANGUAGES = {"native": "python", "wasm": "python", "deno": "javascript"}
"""The language of each engine that the tests of processes use."""


@functools.cache
def authority() -> trustme.CA:
    """Return the CA that the clients of this module trust."""
    return trustme.CA()


def server_context() -> ssl.SSLContext:
    """Return a context with a new certificate for 127.0.0.1."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def http_client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_context(), limit=0))


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition is true. Raise TimeoutError if it does not become true in time."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            started = time.process_time()
            if condition():
                return
            # A condition that reads /proc takes long. Let the tested processes have most of the CPU.
            await asyncio.sleep(max(0.01, 5 * (time.process_time() - started)))


def is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended, even if its parent has not waited for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def with_word(processes: Iterable[psutil.Process], word: str) -> list[psutil.Process]:
    """Return the processes whose command line contains a word. Ended processes have no command line."""
    matching = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if command and word in command:
                matching.append(process)
    return matching


def strays(folder: Path) -> list[psutil.Process]:
    """Return all processes that use a folder of the test, including orphans."""
    return at_work_in(folder, psutil.process_iter())


def processes_of(uid: int) -> list[psutil.Process]:
    """Return all processes of a user that only the test has."""
    return [process for process in psutil.process_iter(["uids"]) if process.info["uids"].real == uid]


def at_work_in(folder: Path, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return the processes with a folder as working folder, in their command line or in their environment."""
    working = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            traces = [process.cwd(), *process.cmdline(), *process.environ().values()]
            if any(str(folder) in trace for trace in traces):
                working.append(process)
    return working


def sandboxes(parents: Iterable[psutil.Process], engine: str) -> list[psutil.Process]:
    """Return the processes among these and their descendants that run programs of an engine, or wait for one."""
    processes = []
    for parent in parents:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [parent, *parent.children(recursive=True)]
            processes += [process for process in family if _is_sandbox(process, engine)]
    return processes


def _is_sandbox(process: psutil.Process, engine: str) -> bool:
    if engine == "native":  # looks like its launcher, except for the descriptor of its messages
        return Path(f"/proc/{process.pid}/fd/255").is_symlink()
    return bool(with_word([process], {"wasm": "wasm.worker", "deno": "--no-prompt"}[engine]))


@contextlib.contextmanager
def suspended(server: psutil.Process) -> Iterator[None]:
    """Stop the sandboxes of a server, and the processes that start them, until the end of the block."""
    children = server.children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.suspend()
    try:
        yield
    finally:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()


def trace(folder: Path) -> dict[str, str]:
    """Return an environment variable that a server passes on to its launchers, so that `at_work_in` finds them."""
    return {"LD_LIBRARY_PATH": ":".join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))}


class Caller:
    """An HTTP client of an embedded FaaS that returns the answers unchanged."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def get(self, path: str) -> Any:
        async with http_client() as session, session.get(self.url + path) as response:
            return await response.json()

    async def run(self, language: str, code: str, **fields: Any) -> tuple[int, Any]:
        """Run a program, and return the status and the body of the answer."""
        body = {"language": language, "code": code, **fields}
        async with http_client() as session, session.post(f"{self.url}/run_code", json=body) as response:
            return response.status, await response.json()

    async def until_pool(self, language: str, patience_s: float = PATIENCE_S, **wanted: int | str) -> None:
        """Wait until `/health` reports these values for a language."""
        async with asyncio.timeout(patience_s), http_client() as session:
            while True:
                async with session.get(f"{self.url}/health") as response:
                    shown = (await response.json())["languages"][language]
                if all(shown[name] == value for name, value in wanted.items()):
                    return
                await asyncio.sleep(0.02)


async def call(url: str, method: str, path: str, **fields: Any) -> tuple[int, Any]:
    """Send a request with a JSON body, except with GET. Return the status and the body of the answer."""
    body = {} if method == "GET" else {"json": fields}
    async with http_client() as session, session.request(method, url + path, **body) as response:
        return response.status, await response.json()


class Server(Caller):
    """A running `faasrt serve`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, output: Path) -> None:
        super().__init__("")
        self.process, self.folder, self._output = process, folder, output

    @property
    def output(self) -> str:
        """The stdout and stderr of the server so far."""
        return self._output.read_text()

    def children(self, word: str = "") -> list[psutil.Process]:
        """Return the descendants of the server whose command line contains a word."""
        return with_word(psutil.Process(self.process.pid).children(recursive=True), word)

    def sandboxes(self, engine: str) -> list[psutil.Process]:
        """Return the descendants of the server that run programs of an engine, or wait for one."""
        return sandboxes(psutil.Process(self.process.pid).children(), engine)

    def launchers(self) -> list[psutil.Process]:
        """Return the processes that the server has started to build jails."""
        return with_word(psutil.Process(self.process.pid).children(), "import socket")

    async def ended(self) -> int:
        """Wait until the server and all its processes have ended and its folder is empty. Return its exit code."""
        await until(lambda: self.process.poll() is not None)
        await until(lambda: not strays(self.folder))
        await until(lambda: not list(self.folder.iterdir()))
        return self.process.returncode


@contextlib.asynccontextmanager
async def served(
    tmp_path: Path,
    *arguments: str,
    wait_for: Sequence[str] = ("javascript is ready",),
    file_bytes: int | None = None,
    **env: str,
) -> AsyncIterator[Server]:
    """Start a server, and wait until its output contains the texts in `wait_for`. Kill it at the end if it still runs.

    `file_bytes` limits the size of files that the server can write, to simulate a full disk.
    """
    output = tmp_path / "output"
    # Not in `tmp_path`, whose length depends on the names of test and user: paths of sockets have at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="served-"))

    def fill_the_disk() -> None:
        if file_bytes is not None:
            # Keep the hard limit, so that a test can raise the soft limit again.
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with output.open("wb") as sink:
        process = subprocess.Popen(
            [FAASRT, "serve", "--port", "0", *arguments],
            env={**CLEAN, "TMPDIR": str(folder), **trace(folder), **env},
            stdout=sink,
            stderr=sink,
            preexec_fn=fill_the_disk,
        )
    server = Server(process, folder, output)
    try:
        await until(lambda: all(words in server.output for words in wait_for) or process.poll() is not None)
        server.url = "".join(re.findall(r"https?://\S+", server.output)[:1])
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        await asyncio.to_thread(process.wait)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


class Answer(NamedTuple):
    """One answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A connection to a server, with TLS if its URL says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def pause_reading(self) -> None:
        cast(asyncio.Transport, self.writer.transport).pause_reading()

    def resume_reading(self) -> None:
        cast(asyncio.Transport, self.writer.transport).resume_reading()

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Read one answer, whose length is in its headers."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {}
            for line in filter(None, head[1:]):
                name, _, value = line.partition(":")
                assert name.lower() not in headers, f"the header {name} occurs twice"
                headers[name.lower()] = value.strip()
            size = 0 if head_only else int(headers.get("content-length", "0"))
            return Answer(int(head[0].split()[1]), headers, await self.reader.readexactly(size))

    async def closed(self) -> bytes:
        """Wait until the server has closed the connection, and return the bytes that it sent before."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    parts = urlsplit(url)
    context = client_context() if parts.scheme == "https" else None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def exchange(url: str, data: bytes) -> Answer:
    """Send bytes over a new connection, and read the first answer."""
    async with connected(url) as connection:
        await connection.send(data)
        return await connection.answer()


def request(
    body: bytes = b"",
    *,
    target: str = "/run_code",
    method: str = "POST",
    headers: Mapping[str, str | None] | None = None,
) -> bytes:
    """Return the bytes of a valid request. `headers` replaces default headers, or removes them if the value is None."""
    fields: dict[str, str | None] = {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body
