from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from faasrt.cli.engine_status import report_engine, show_work
from faasrt.cli.options import (
    MEMORY_LIMIT,
    OUTPUT_LIMIT,
    TIME_LIMIT,
    Number,
    engine_option,
    language_option,
    memory_option,
    name_options,
    output_option,
    timeout_limit_option,
    token_option,
    workers_option,
)
from faasrt.cli.output import INFRASTRUCTURE, INTERRUPTED, OK, USAGE, describe_os_error, write
from faasrt.cli.serve_config import changed_keys, make_faas, read_options, reads_files
from faasrt.cli.serve_log import LOGGER, start_log
from faasrt.cli.signals import stop_at
from faasrt.errors import ConfigurationError, FaasrtError, ServiceError
from faasrt.languages import Language
from faasrt.local.errors import AddressError
from faasrt.protocol.execution_limits import MAX_WALL_FACTOR

if TYPE_CHECKING:
    from faasrt.local import LocalFaaS

_Report = Callable[[str], None]
_FILE = click.Path(dir_okay=False)


@click.command("serve", short_help="Serve the embedded FaaS over HTTP.", context_settings={"show_default": True})
@click.option("--config", type=_FILE, help="A TOML file whose keys are the names of these flags. Flags come first.")
@click.option(
    "--host",
    default="127.0.0.1",
    help="The address to listen on. An address that other machines can reach needs a token.",
)
@click.option("--port", default=8000, type=Number(0, 65_535), help="The port; 0 takes a free one.")
@language_option(
    "languages", multiple=True, show_default="all that can run here", help="A language to serve. Can be repeated."
)
@workers_option
@click.option(
    "--max-programs",
    type=Number(1, 1_000),
    show_default="as many as there is memory for, at most 32 for each worker",
    help="The most programs of each engine that run at once. Further ones wait.",
)
@click.option(
    "--max-wall-factor",
    type=Number(1.0, 100.0),
    default=MAX_WALL_FACTOR,
    help="A program that gets too little of the machine is ended after this many times its time limit (at least 120 s "
    "more), as a failure of the server.",
)
@timeout_limit_option(default=None, show_default="30", help="The time limit of a program whose client asks for none.")
@click.option(
    "--max-timeout-s",
    "largest_timeout_limit_s",
    type=TIME_LIMIT,
    show_default="--timeout-s if it is given, else 120",
    help="The longest time that clients can ask for.",
)
@memory_option(
    "memory_limit_mb",
    default=None,
    show_default="128",
    help="The memory limit of a program whose client asks for none, in MiB.",
)
@click.option(
    "--max-memory-mb",
    "largest_memory_limit_mb",
    metavar="MiB",
    type=MEMORY_LIMIT,
    show_default="--memory-mb if it is given, else a quarter of the memory of the machine, from 128 to 4096",
    help="The most memory that clients can ask for, in MiB.",
)
@output_option(
    default=None, show_default="1048576", help="The largest size of each output stream that is kept, by default."
)
@click.option(
    "--max-output-bytes",
    "largest_max_output_bytes",
    type=OUTPUT_LIMIT,
    show_default="--output-bytes if it is given, else 4194304",
    help="The largest --output-bytes that clients can ask for.",
)
@token_option
@click.option("--token-file", type=_FILE, help="A file with the token, instead of --token.")
@click.option("--tls-cert", type=_FILE, help="A file with the certificate of the server in PEM, for HTTPS.")
@click.option("--tls-key", type=_FILE, help="A file with the key of the certificate in PEM, without a password.")
@click.option(
    "--max-connections",
    type=Number(1, 1_000_000),
    show_default="1000, or half of ulimit -n if that is less",
    help="The most connections that are open at once. Further ones are refused.",
)
@click.option(
    "--max-sessions",
    default=100,
    type=Number(0, 100_000),
    help="The most sessions that are open at once. Further ones are refused. 0 turns sessions off.",
)
@click.option(
    "--session-idle-s",
    default=3600.0,
    type=Number(0.0, 1_000_000.0, unit="seconds", above=True),
    help="How long a session may be unused, at most. Clients ask for 600 by default.",
)
@click.option(
    "--session-memory-mb",
    type=Number(1, 1_000_000_000),
    show_default="no limit",
    help="The most memory that all sessions together may use, in MiB: the sum of their limits.",
)
@click.option(
    "--drain-s",
    type=Number(0.0, 1_000_000.0, unit="seconds", above=True),
    show_default="5 more than --max-timeout-s",
    help="How long programs in flight may take to finish after SIGTERM.",
)
@click.option(
    "--level",
    type=click.Choice(["auto", "namespaces", "users", "filters"]),
    default="auto",
    help="The jail that the kernel builds around programs; auto takes the strongest that works here.",
)
@engine_option
@click.option("--python", default=sys.executable, show_default="this one", help="The interpreter of Python programs.")
@click.option(
    "--access-log",
    is_flag=True,
    show_default=False,
    help="Write a line to stderr for each request, with client, status, duration, call, language and outcome.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="The format of all lines on stderr, except about flags that cannot be parsed.",
)
@click.pass_context
def serve_command(context: click.Context, /, **_: Any) -> int:
    """Serve the embedded FaaS over HTTP. Without --language, it serves every language whose toolchain is installed.
    The clients of SandboxFusion and Piston can use it too, under /sandboxfusion and /piston/api/v2. A browser shows its
    status at /, and runs programs there.

    Ctrl-C or SIGTERM stops it, after the programs in flight have finished; a second one stops it at once. SIGHUP makes
    it read --config, --token-file and the certificates again; without these files, it stops the server as SIGTERM does.
    """
    log_format = context.params["log_format"]
    try:
        options = read_options(context)
        log_format = options["log_format"]
        report = start_log(log_format)
        return asyncio.run(_serve(context, options, make_faas(context, options), report))
    except (Exception, KeyboardInterrupt) as error:
        if log_format == "json":
            start_log(log_format)  # unless it has started
            return _log_failure(error)
        # An error that names no flag is reported without a line about the usage.
        if isinstance(error, ConfigurationError) and (message := _with_flags(error)) != str(error):
            raise click.UsageError(message) from None
        raise


def _with_flags(error: ConfigurationError) -> str:
    hint = "; --host and --port name another address" if isinstance(error, AddressError) else ""
    return f"{name_options(str(error))}{hint}"


def _log_failure(error: BaseException) -> int:
    """Log an error that ends the command, in place of text on stderr, and return the exit code."""
    match error:
        case click.ClickException():
            LOGGER.error(error.format_message())
            return error.exit_code
        case ConfigurationError():
            LOGGER.error(_with_flags(error))
            return USAGE
        case OSError():
            LOGGER.error(describe_os_error(error))
            return INFRASTRUCTURE
        case KeyboardInterrupt():
            LOGGER.info("interrupted")
            return INTERRUPTED
    LOGGER.critical("the server failed", exc_info=error)
    return INFRASTRUCTURE


async def _serve(context: click.Context, options: dict[str, Any], faas: LocalFaaS, report: _Report) -> int:
    numbers = [signal.SIGTERM, signal.SIGINT]
    hangup = asyncio.Event()
    if reads_files(context.params):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    stop = stop_at(*numbers)

    def stop_if_nothing_runs(start: asyncio.Task[list[Language]]) -> None:
        if not start.cancelled() and not start.result():
            stop.set()

    async with faas:
        write(f"faasrt: serving {', '.join(faas.languages)} at {faas.url}\n{_describe_client(faas.url, faas.token)}")
        report_engine(faas, chosen=bool(faas.engines), report=report)
        async with asyncio.TaskGroup() as group:
            ready = group.create_task(_start(faas, report))
            ready.add_done_callback(stop_if_nothing_runs)
            reloading = group.create_task(_reload(context, options, faas, hangup, report, ready))
            closed = group.create_task(faas.wait_closed())
            closed.add_done_callback(lambda _: stop.set())
            await stop.wait()
            has_failed = closed.done() or (ready.done() and not ready.result())
            for task in (ready, reloading, closed):
                task.cancel()
            if has_failed:
                return INFRASTRUCTURE
            report("stopping")
            await faas.drain()
    return OK


async def _reload(
    context: click.Context,
    options: dict[str, Any],
    faas: LocalFaaS,
    hangup: asyncio.Event,
    report: _Report,
    ready: asyncio.Task[list[Language]],
) -> None:
    """Read the configuration again at each SIGHUP, when the server is `ready`. A wrong one changes nothing."""

    def read() -> tuple[dict[str, Any], LocalFaaS]:
        new_options = read_options(context)
        if new_options["log_format"] != options["log_format"]:
            raise click.UsageError("log-format cannot change while the server runs: stop it, and start it again")
        return new_options, make_faas(context, new_options)

    await asyncio.wait({ready})
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            new_options, template = await asyncio.to_thread(read)
            keys = changed_keys(context, options, new_options, await faas.reconfigure(template))
        except click.ClickException as error:
            LOGGER.error("the configuration stays as it was: %s", error.format_message())
        except FaasrtError as error:
            LOGGER.error("the configuration stays as it was: %s", name_options(str(error)))
        except Exception:  # the server goes on, whatever fails
            LOGGER.exception("the configuration stays as it was")
        else:
            options = new_options
            report(f"read the configuration again; changed: {', '.join(keys) or 'nothing'}")


def _describe_client(url: str, token: str | None) -> str:
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:  # 0.0.0.0 and :: are not addresses for clients
            url = f"{urlsplit(url).scheme}://{socket.gethostname()}:{urlsplit(url).port}"
    variables = f"COZE_LOOP_FAAS_URL={url}"
    if token is not None:
        variables += " FAASRT_TOKEN=..."  # the token itself must not get into a log
    return (
        f"faasrt: to use it from a shell: export {variables}\n"
        f"faasrt: to use it from Python: faasrt.RuntimeManager.from_url({url!r}{', token=...' if token else ''})\n"
        f"faasrt: to see it in a browser, and run programs there: {url}/\n"
    )


async def _start(faas: LocalFaaS, report: _Report) -> list[Language]:
    async with show_work(faas, report):
        at_once = [language for language in faas.languages if language.has_return_val] or [*faas.languages]
        if later := [language for language in faas.languages if language not in at_once]:
            report(f"{', '.join(later)}: the engine starts with the first program")
        return await report_ready(faas, at_once, report)


async def report_ready(faas: LocalFaaS, languages: Iterable[Language], report: _Report) -> list[Language]:
    ready = []

    async def wait(language: Language) -> None:
        try:
            await faas.wait_ready(language)
        except ServiceError as error:
            message = f"{language} cannot run: {error}"
        else:
            ready.append(language)
            message = f"{language} is ready"
        report(message)

    await asyncio.gather(*(wait(language) for language in languages))
    return ready
