from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs
import click

from faasrt import _setting_checks as checks
from faasrt.cli import mcp_greeting
from faasrt.cli.connect import make_settings
from faasrt.cli.engine_status import report_engine, show_work
from faasrt.cli.mcp_files import OutputFolder, read_host_files
from faasrt.cli.options import (
    CheckedType,
    Number,
    cacert_option,
    engine_option,
    memory_option,
    output_option,
    timeout_limit_option,
    url_option,
)
from faasrt.cli.output import OK, write, write_message
from faasrt.cli.serve_log import start_log
from faasrt.cli.signals import stop_at
from faasrt.client.manager import RuntimeManager
from faasrt.config import EngineName, SandboxConfig, Settings
from faasrt.errors import ConfigurationError
from faasrt.languages import Language

if TYPE_CHECKING:
    from mcp.server import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from starlette.types import ASGIApp, Receive, Scope, Send

    from faasrt.cli.mcp_tools import SandboxTools
    from faasrt.local.http.access import AccessPolicy

_PATH = "/mcp"
_GRACE_S = 1
_MAX_FIRST_BYTES = 65_536
_MAX_CONNECTIONS = 1_000


class _Address(click.ParamType):  # type: ignore[type-arg]
    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = value.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            self.fail(f"{value!r} is not of the form HOST:PORT, such as 127.0.0.1:8000", param, ctx)
        return host.removeprefix("[").removesuffix("]"), int(port)


@click.command(
    "mcp", short_help="Offer the sandbox to models as tools of MCP.", context_settings={"show_default": True}
)
@url_option
@cacert_option
@engine_option
@timeout_limit_option(help="The longest time that a program may run.")
@memory_option("memory_limit_mb", default=512, help="The most memory that a session may use, in MiB.")
@output_option(help="The largest size of each output stream that is kept.")
@click.option(
    "--idle-s",
    type=Number(0.0, 3_600.0, unit="seconds", above=True),
    default=1_800.0,
    help="The time after which a session that is not used ends.",
)
@click.option(
    "--max-sessions",
    default=100,
    type=Number(1, 100_000),
    help="The most sessions, with branches, that the embedded FaaS has open at once. Further ones are refused.",
)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="[NAME=]PATH",
    help="A file that each session begins with. Without NAME, it has the last part of PATH as its name. Repeatable.",
)
@click.option(
    "--files",
    "folders",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder whose files each session begins with, except those whose names begin with a dot. Repeatable.",
)
@click.option(
    "--output-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder that gets the files which code writes into its folder output.",
)
@click.option(
    "--http", "address", type=_Address(), help="Serve over HTTP at this address, instead of stdin and stdout."
)
@click.option(
    "--token",
    type=CheckedType("text", checks.check_token),
    envvar="FAASRT_MCP_TOKEN",
    show_envvar=True,
    help="The bearer token that clients must send, over HTTP.",
)
def mcp_command(
    url: str | None,
    cacert: ssl.SSLContext | None,
    engines: tuple[tuple[Language, EngineName], ...],
    idle_s: float,
    max_sessions: int,
    files: tuple[str, ...],
    folders: tuple[Path, ...],
    output_dir: Path | None,
    address: tuple[str, int] | None,
    token: str | None,
    **limits: Any,
) -> int:
    """Offer sandboxes to models as tools of MCP, the Model Context Protocol: run_python, run_javascript, write_file,
    read_file, list_files, begin_branch, end_branch and reset. Variables and files are kept between the calls of a
    client.

    The host of the model starts this command, and speaks with it over stdin and stdout. With --http, clients use
    http://HOST:PORT/mcp. --file and --files copy files into each session; a model can name no other file of the host.
    Programs run on the FaaS at --url, or that of the environment, or else on the embedded one.
    Ctrl-C, SIGTERM or the end of stdin stop it.
    """
    if find_spec("mcp") is None:
        raise click.UsageError("faasrt mcp needs the SDK of MCP: pip install 'faasrt[mcp]'")
    if address is None and token is not None:
        raise click.UsageError("--token needs --http")
    if address is not None and token is None and not checks.is_loopback(address[0]):
        raise click.UsageError(f"--http {address[0]} can be reached from other machines, so it needs --token")
    host_files = read_host_files(files, folders)
    output = OutputFolder(output_dir) if output_dir is not None else None
    start_log("text")
    # Both libraries log requests, which have the programs.
    for name in ("mcp", "uvicorn"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    settings = attrs.evolve(make_settings(url, cacert=cacert), sandbox=SandboxConfig(**limits))
    embedded = {"engines": dict(engines), "max_sessions": max_sessions}
    asyncio.run(_serve(settings, embedded, idle_s, host_files, output, address, token))
    return OK


async def _serve(
    settings: Settings,
    embedded: Mapping[str, Any],
    idle_s: float,
    files: Mapping[str, bytes],
    output: OutputFolder | None,
    address: tuple[str, int] | None,
    token: str | None,
) -> None:
    stop = stop_at(signal.SIGTERM, signal.SIGINT)
    stdin = _Stdin() if address is None else None
    loading = asyncio.get_running_loop().run_in_executor(None, _load_tools)  # while the engines start
    if settings.endpoints:
        manager = RuntimeManager(settings=settings)
    else:
        manager = RuntimeManager.local(["python", "javascript"], settings=settings, **embedded)
        write_message("no endpoint configured; using the embedded FaaS")
    async with manager:
        if manager.local_faas is not None:
            report_engine(manager.local_faas, chosen=bool(embedded["engines"]))
        await loading
        from faasrt.cli.mcp_tools import SandboxTools, SessionSetup

        tools = SandboxTools(manager, SessionSetup(settings.sandbox, idle_s, files, output))
        async with show_work(manager.local_faas):
            if stdin is not None:
                await _serve_stdio(tools.make_server(), stdin, stop)
            elif address is not None:
                await _serve_http(tools, idle_s, address, token, stop)


def _load_tools() -> None:
    # Imported objects live until the end: see `faasrt.cli.__main__`.
    gc.disable()
    try:
        importlib.import_module("faasrt.cli.mcp_tools")
    finally:
        gc.freeze()
        gc.enable()


class _Stdin:
    """The messages on stdin, which `received` has, too. The first one is answered at once, if `greeting` knows how.

    The SDK reads in a thread for which it waits at the end, but a thread that waits for stdin cannot be stopped. So
    another thread reads stdin, and the SDK reads a socket, which can be shut down.
    """

    def __init__(self) -> None:
        self.received, self._sent = socket.socketpair()
        self.answer: dict[str, Any] | None = None
        """The answer to the first message, if it was sent. It is set before the SDK can read this message."""
        self._stdout = os.dup(1)  # the SDK replaces stdout
        threading.Thread(target=self._copy, daemon=True).start()

    def _copy(self) -> None:
        with self._sent, contextlib.suppress(OSError):  # the other end is shut down
            first = b""
            while data := os.read(0, 65_536):
                first += data
                if b"\n" not in data and len(first) < _MAX_FIRST_BYTES:
                    continue
                self._greet(first.partition(b"\n")[0])
                self._sent.sendall(first)
                break
            else:
                self._sent.sendall(first)
            while data := os.read(0, 65_536):
                self._sent.sendall(data)

    def _greet(self, line: bytes) -> None:
        with os.fdopen(self._stdout, "wb") as stdout:
            if (answer := mcp_greeting.answer(line)) is not None:
                self.answer = answer
                stdout.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")


class _Writing:
    """The stream of messages to stdout, without the answer that was sent already."""

    def __init__(self, stream: Any, stdin: _Stdin) -> None:
        self._stream, self._stdin = stream, stdin

    async def send(self, item: Any) -> None:
        if (answer := self._stdin.answer) is not None and getattr(item.message, "id", None) == answer["id"]:
            self._stdin.answer = None
            return
        await self._stream.send(item)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stream.__aexit__(*exc_info)


async def _serve_stdio(server: Server[Any], stdin: _Stdin, stop: asyncio.Event) -> None:
    import anyio
    from mcp.server.stdio import stdio_server

    with stdin.received as received, received.makefile(encoding="utf-8", errors="replace", newline="\n") as lines:
        shutting_down = asyncio.create_task(_shut_down_at(stop, received))
        try:
            async with stdio_server(anyio.wrap_file(lines)) as (reading, writing):
                await server.run(reading, _Writing(writing, stdin), server.create_initialization_options())
        finally:
            shutting_down.cancel()


async def _shut_down_at(stop: asyncio.Event, received: socket.socket) -> None:
    await stop.wait()
    received.shutdown(socket.SHUT_RDWR)


async def _serve_http(
    tools: SandboxTools, idle_s: float, address: tuple[str, int], token: str | None, stop: asyncio.Event
) -> None:
    import uvicorn
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from faasrt.local.http.access import AccessPolicy

    class _Server(uvicorn.Server):
        def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
            return contextlib.nullcontext()  # `stop` is set by them

    sessions = StreamableHTTPSessionManager(tools.make_server(), session_idle_timeout=idle_s)
    app = _make_app(AccessPolicy(address[0], token), sessions, tools)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config)
    with _listen(*address) as listening:
        host, port = listening.getsockname()[:2]
        async with sessions.run(), asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=[listening]))
            write(f"faasrt: serving MCP at http://{f'[{host}]' if ':' in host else host}:{port}{_PATH}\n")
            await stop.wait()
            write_message("stopping")
            server.should_exit = True
            await serving


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def _make_app(policy: AccessPolicy, sessions: StreamableHTTPSessionManager, tools: SandboxTools) -> ASGIApp:
    from aiohttp import web
    from multidict import CIMultiDict
    from starlette.responses import PlainTextResponse

    from faasrt.cli.mcp_tools import SESSION_HEADER

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        try:
            policy.check_headers(headers)
            if scope["path"] != _PATH:
                raise web.HTTPNotFound(text=f"MCP is at {_PATH}")
        except web.HTTPException as refused:
            challenge = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else None
            await PlainTextResponse(refused.text, refused.status, challenge)(scope, receive, send)
            return
        await sessions.handle_request(scope, receive, send)
        if scope["method"] == "DELETE":  # the client ends its session of MCP
            await tools.close_workspace(headers.get(SESSION_HEADER, ""))

    return app
