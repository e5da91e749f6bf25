"""The commands; what they are for, and the exit codes, is told by the package's docstring."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import attrs
import click

from faasrt import __version__
from faasrt.cli.batch import batch_command
from faasrt.cli.connect import make_settings, open_manager, parse_language, parse_languages, url_option
from faasrt.cli.output import (
    CODE_FAILED,
    INFRASTRUCTURE,
    INTERRUPTED,
    OK,
    USAGE,
    note,
    write,
    write_json,
)
from faasrt.cli.progress import compiling
from faasrt.cli.report import report_command
from faasrt.config import SandboxConfig
from faasrt.errors import (
    ConfigurationError,
    FaasrtError,
    InvalidRequestError,
    ServiceError,
    UnsupportedLanguageError,
)
from faasrt.languages import Language
from faasrt.results import ExecutionResult, HealthStatus

_LANGUAGE_OF_SUFFIX = {
    ".py": Language.PYTHON,
    ".js": Language.JAVASCRIPT,
    ".mjs": Language.JAVASCRIPT,
    ".ts": Language.TYPESCRIPT,
}

_FIELD_OF_OPTION = {
    "timeout_s": "timeout_limit_s",
    "memory_mb": "memory_limit_mb",
    "output_bytes": "max_output_bytes",
    "network": "network_enabled",
}


def run(arguments: list[str]) -> int:
    """Run the command line and give the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = commands.main(arguments, prog_name="faasrt", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        note("interrupted")
        return INTERRUPTED
    except (ConfigurationError, InvalidRequestError, UnsupportedLanguageError) as error:
        note(str(error))
        return USAGE
    except FaasrtError as error:
        note(f"{type(error).__name__}: {error}")
        return INFRASTRUCTURE
    except BrokenPipeError:
        # The reader of our output has gone, as in `faasrt run ... | head`: there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        note(f"cannot write the output: {error.strerror or error}")
        return INFRASTRUCTURE


def _interrupt(number: int, frame: Any) -> None:
    """End a command as Ctrl-C does: in good order, with nothing left behind."""
    # Once: `timeout` sends SIGTERM twice, to us and to our group, and asyncio gives up good order at a second SIGINT.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


_language = click.option(
    "--language",
    "-l",
    callback=parse_language,
    help="python, javascript or typescript; guessed from the file's suffix (.py .js .mjs .ts).",
)
_code = click.option("-c", "code", help="The program itself, in place of a file.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="faasrt")
def commands() -> None:
    """Run untrusted Python, JavaScript and TypeScript in sandboxes.

    Endpoints come from COZE_LOOP_PYTHON_FAAS_URL, COZE_LOOP_JS_FAAS_URL or COZE_LOOP_FAAS_URL. With none of them set,
    the FaaS that is built in is used.

    Exit codes: 0 all well, 1 the code failed, 2 wrong usage or input, 3 infrastructure, 130 interrupted.
    """


@commands.command("run")
@click.argument("file", required=False)
@_code
@_language
@click.option("--timeout-ms", type=float, help="Milliseconds that the program may run; 30000 by default.")
@_json
@url_option
def run_command(
    file: str | None,
    code: str | None,
    language: Language | None,
    timeout_ms: float | None,
    as_json: bool,
    url: str | None,
) -> int:
    """Run a program: FILE, or stdin when FILE is -.

    The program's output is passed on; the exit code is 1 when it fails.
    """
    program, spoken, _ = _read_program(file, code, language)
    settings = make_settings(url, timeout_ms)

    async def work() -> ExecutionResult:
        async with open_manager(settings, (spoken,)) as manager:
            return await manager.run_code(program, spoken, timeout_ms)

    result = asyncio.run(work())
    if as_json:
        write_json(result.to_dict())
    else:
        _show(result)
    return OK if result.ok else CODE_FAILED


@commands.command("validate")
@click.argument("file", required=False)
@_code
@_language
@_json
@url_option
def validate_command(
    file: str | None, code: str | None, language: Language | None, as_json: bool, url: str | None
) -> int:
    """Check a program's syntax: FILE, or stdin when FILE is -.

    It is not run; the exit code is 1 when it is wrong.
    """
    program, spoken, name = _read_program(file, code, language)
    settings = make_settings(url)

    async def work() -> Any:
        async with open_manager(settings, (spoken,)) as manager:
            return await manager.validate_code(program, spoken)

    result = asyncio.run(work())
    if as_json:
        write_json(attrs.asdict(result))
    elif result.valid:
        write(f"{name}: valid ({result.checked_by})\n")
    for diagnostic in () if as_json else result.diagnostics:
        place = ":".join(str(part) for part in (name, diagnostic.line, diagnostic.column) if part is not None)
        write(f"{place}: {diagnostic.message}\n", sys.stderr)
    return OK if result.valid else CODE_FAILED


@commands.command("health")
@_json
@url_option
def health_command(as_json: bool, url: str | None) -> int:
    """Ask every endpoint for its health.

    The exit code is 3 unless all are healthy.
    """
    settings = make_settings(url)

    async def work() -> HealthStatus:
        async with open_manager(settings, tuple(Language)) as manager:
            return await manager.get_health_status()

    status = asyncio.run(work())
    if as_json:
        write_json({"healthy": status.healthy, "endpoints": [attrs.asdict(entry) for entry in status.endpoints]})
    for entry in () if as_json else status.endpoints:
        words = entry.version if entry.healthy else entry.error
        label = "healthy" if entry.healthy else "UNHEALTHY"
        write(f"{label:9} {entry.endpoint}  {entry.latency_s * 1000:.1f} ms  {words}\n")
    return OK if status.healthy else INFRASTRUCTURE


@commands.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Another than loopback needs a token.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0 takes a free one.")
@click.option(
    "--language", "-l", "languages", multiple=True, callback=parse_languages, help="May be repeated; all by default."
)
@click.option("--workers", type=int, help="Python programs at once; the number of CPUs by default.")
@click.option("--timeout-s", type=float, help="Seconds that a program may run at most; 30 by default.")
@click.option("--memory-mb", type=int, help="MiB that a program may take at most; 128 by default.")
@click.option("--output-bytes", type=int, help="Bytes kept of each stream at most; 1048576 by default.")
@click.option("--network", is_flag=True, help="Let JavaScript and TypeScript ask for the network.")
@click.option("--token", envvar="FAASRT_TOKEN", help="What callers must show as a bearer token. [env: FAASRT_TOKEN]")
def serve_command(
    host: str,
    port: int,
    languages: tuple[Language, ...],
    workers: int | None,
    token: str | None,
    **limits: float | None,
) -> int:
    """Serve the built-in FaaS.

    Ctrl-C or SIGTERM ends it; programs in flight may end first.
    """
    from faasrt.local import LocalFaaS

    # As a library, faasrt is silent; here nothing else would say why an engine fails.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("faasrt: %(message)s"))
    logging.getLogger("faasrt.local").addHandler(handler)
    asked = {_FIELD_OF_OPTION[name]: limit for name, limit in limits.items() if limit is not None}
    sandbox = SandboxConfig(**asked)  # type: ignore[arg-type]

    async def work() -> int:
        faas = LocalFaaS(languages or None, workers=workers, sandbox=sandbox, host=host, port=port, token=token)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with faas:
            write(f"faasrt: serving {', '.join(faas.languages)} at {faas.url}\n")
            announcing = asyncio.create_task(_announce(faas, note))
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({announcing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if announcing.done() and not any(announcing.result()):
                    return INFRASTRUCTURE
                await stopping
            finally:
                announcing.cancel()
                stopping.cancel()
            note("stopping")
        return OK

    return asyncio.run(work())


@commands.command("warmup")
def warmup_command() -> int:
    """Prepare the built-in FaaS on this machine.

    The Python sandbox is compiled, and every engine is started once. The exit code is 3 unless all languages can run.
    """
    from faasrt.local import LocalFaaS

    async def work() -> bool:
        async with LocalFaaS(workers=1) as faas:
            with compiling(faas.languages):
                return all(await _announce(faas, lambda words: write(f"faasrt: {words}\n")))

    return OK if asyncio.run(work()) else INFRASTRUCTURE


async def _announce(faas: Any, tell: Any) -> list[bool]:
    """Tell of each language when it is ready, or why it cannot be; give which are ready."""

    async def one(language: Language) -> bool:
        try:
            await faas.wait_ready(language)
        except ServiceError as error:
            tell(f"{language} cannot run: {error}")
            return False
        tell(f"{language} is ready")
        return True

    return await asyncio.gather(*(one(language) for language in faas.languages))


def _read_program(file: str | None, code: str | None, language: Language | None) -> tuple[str, Language, str]:
    """Give the program, its language and its name."""
    if (file is None) == (code is None):
        raise click.UsageError("give a FILE, - for stdin, or -c CODE")
    if code is None and file != "-":
        assert file is not None
        language = language or _LANGUAGE_OF_SUFFIX.get(Path(file).suffix.lower())
    if language is None:
        raise click.UsageError("say which --language this is: python, javascript or typescript")
    if code is not None:
        return code, language, "<string>"
    name = "<stdin>" if file == "-" else str(file)
    if file == "-" and sys.stdin is None:
        raise click.UsageError("cannot read <stdin>: it is closed")
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(str(file)).read_bytes()
        return data.decode("utf-8-sig"), language, name
    except OSError as error:
        raise click.UsageError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} is not UTF-8 (byte {error.start})") from None


def _show(result: ExecutionResult) -> None:
    write(result.stdout)
    write(result.stderr, sys.stderr)
    if result.stderr and not result.stderr.endswith("\n"):
        write("\n", sys.stderr)
    for name in sorted(result.truncated):
        note(f"{name} was cut at the output limit")
    if result.ret_val:
        note(f"return value: {result.ret_val}")
    if not result.ok:
        error = result.error
        reason = f": {error.name}: {error.message}".rstrip(": ") if error else ""
        note(f"{result.outcome}{reason}")


commands.add_command(batch_command)
commands.add_command(report_command)
