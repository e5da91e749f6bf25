"""The command `serve`: the embedded FaaS for other processes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from faasrt import _checks
from faasrt.cli.connect import report_engine, show_start
from faasrt.cli.options import (
    Number,
    engine_option,
    language_option,
    memory_option,
    output_option,
    timeout_limit_option,
    token_option,
    workers_option,
)
from faasrt.cli.output import INFRASTRUCTURE, OK, erase_line, write, write_message
from faasrt.config import SandboxConfig
from faasrt.errors import ConfigurationError, ServiceError
from faasrt.languages import Language

if TYPE_CHECKING:
    from faasrt.local import LocalFaaS


@click.command("serve", short_help="Serve the embedded FaaS over HTTP.", context_settings={"show_default": True})
@click.option(
    "--host",
    default="127.0.0.1",
    help="The address to listen on. An address that other machines can reach needs --token.",
)
@click.option("--port", default=8000, type=Number(0, 65_535), help="The port; 0 takes a free one.")
@language_option(
    "languages", multiple=True, show_default="all that can run here", help="A language to serve. Can be repeated."
)
@workers_option
@timeout_limit_option
@memory_option("memory_limit_mb", help="The most memory that a program may use, in MiB.")
@output_option
@token_option
@click.option(
    "--level",
    type=click.Choice(["auto", "namespaces", "filters"]),
    default="auto",
    help="The jail that the kernel builds around programs; auto takes the strongest that works here.",
)
@engine_option
@click.option("--python", default=sys.executable, show_default="this one", help="The interpreter of Python programs.")
@click.option("--access-log", is_flag=True, show_default=False, help="Write a line to stderr for each request.")
def serve_command(
    languages: tuple[Language, ...],
    token: str | None,
    engines: tuple[tuple[Language, str], ...],
    access_log: bool,
    timeout_limit_s: float,
    memory_limit_mb: int,
    max_output_bytes: int,
    **options: Any,
) -> int:
    """Serve the embedded FaaS over HTTP. Without --language, it serves every language whose toolchain is installed.

    Ctrl-C or SIGTERM stops it, after the programs in flight have finished.
    """
    from faasrt.local import LocalFaaS

    # The library logs nothing by default, but the command shows why an engine fails.
    logging.basicConfig(format="faasrt: %(message)s")
    if token is None and not _checks.is_loopback(options["host"]):
        raise click.UsageError(f"--host {options['host']} can be reached from other machines, so it needs --token")
    if shutil.which(options["python"]) is None:
        raise click.UsageError(f"--python {options['python']}: no such executable")
    sandbox = SandboxConfig(
        timeout_limit_s=timeout_limit_s, memory_limit_mb=memory_limit_mb, max_output_bytes=max_output_bytes
    )
    faas = LocalFaaS(
        languages or None,
        sandbox=sandbox,
        token=token,
        engines=dict(engines),
        access_log=_make_access_log() if access_log else None,
        **options,
    )

    async def work() -> int:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with faas, asyncio.TaskGroup() as group:
            write(f"faasrt: serving {', '.join(faas.languages)} at {faas.url}\n{_describe_client(faas.url, token)}")
            engine = await report_engine(faas.url, token, chosen=bool(engines))
            ready = group.create_task(_start(faas, engine, token))
            ready.add_done_callback(lambda task: None if task.cancelled() or any(task.result()) else stop.set())
            await stop.wait()
            if ready.done() and not any(ready.result()):
                return INFRASTRUCTURE
            ready.cancel()
            write_message("stopping")
        return OK

    try:
        return asyncio.run(work())
    except ConfigurationError as error:
        if str(error).startswith("cannot listen on"):
            raise click.UsageError(f"{error}; --host and --port name another address") from None
        raise


def _describe_client(url: str, token: str | None) -> str:
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:  # 0.0.0.0 and :: are no addresses for clients
            url = f"http://{socket.gethostname()}:{urlsplit(url).port}"
    variables = f"COZE_LOOP_FAAS_URL={url}"
    if token is not None:
        variables += " FAASRT_TOKEN=..."  # the token itself must not get into a log
    return (
        f"faasrt: to use it from a shell: export {variables}\n"
        f"faasrt: to use it from Python: faasrt.RuntimeManager.from_url({url!r}{', token=...' if token else ''})\n"
    )


def _make_access_log() -> Any:
    """Return a logger that writes one line to stderr for each request."""
    import structlog

    return structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "event"]),
        ],
    )


async def _start(faas: LocalFaaS, engine: str, token: str | None) -> list[bool]:
    async with show_start(engine, faas.url, token, live=False):
        at_once = [language for language in faas.languages if language.has_return_val] or [*faas.languages]
        if later := [language for language in faas.languages if language not in at_once]:
            write_message(f"{', '.join(later)}: the engine starts with the first program")
        return await report_ready(faas, at_once, write_message)


async def report_ready(faas: LocalFaaS, languages: Iterable[Language], report: Callable[[str], None]) -> list[bool]:
    """Report for each language that it is ready, or why it cannot run. Return which are ready."""

    async def one(language: Language) -> bool:
        try:
            await faas.wait_ready(language)
        except ServiceError as error:
            erase_line()
            report(f"{language} cannot run: {error}")
            return False
        erase_line()
        report(f"{language} is ready")
        return True

    return await asyncio.gather(*(one(language) for language in languages))
