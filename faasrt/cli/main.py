"""The commands; see the docstring of the package for their purpose and exit codes."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
import click

from faasrt import __version__
from faasrt.cli.batch import batch_command
from faasrt.cli.connect import language_option, make_settings, run_with_manager, show_compilation, url_option
from faasrt.cli.input import open_input
from faasrt.cli.output import CODE_FAILED, INFRASTRUCTURE, INTERRUPTED, OK, USAGE, write, write_message
from faasrt.cli.report import report_command
from faasrt.config import SandboxConfig
from faasrt.errors import FaasrtError, ServiceError
from faasrt.languages import Language
from faasrt.results import ExecutionResult

if TYPE_CHECKING:
    from faasrt.local import LocalFaaS

_LANGUAGE_OF_SUFFIX = {".py": "python", ".js": "javascript", ".mjs": "javascript", ".ts": "typescript"}


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(commands.main(arguments, prog_name="faasrt", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        write_message("interrupted")
        return INTERRUPTED
    except FaasrtError as error:
        is_usage = isinstance(error, ValueError)
        write_message(str(error) if is_usage else f"{type(error).__name__}: {error}")
        return USAGE if is_usage else INFRASTRUCTURE
    except OSError as error:
        write_message(f"cannot write the output: {error.strerror or error}")
        return INFRASTRUCTURE


def _interrupt(number: int, frame: Any) -> None:
    """Handle SIGTERM as Ctrl-C."""
    # Only once: `timeout` signals both the process and its group, and asyncio does not clean up after a second SIGINT.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


class _GivenProgram(NamedTuple):
    """The program of `run` or `validate`; `name` is for messages."""

    code: str
    language: Language
    name: str


def _program_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options that `run` and `validate` share. The command gets the program that they name."""

    @url_option
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @language_option(help="The language; guessed from .py .js .mjs .ts.")
    @click.option("-c", "code", help="The program itself, instead of a file.")
    @click.argument("file", required=False)
    @functools.wraps(command)
    def with_program(file: str | None, code: str | None, language: Language | None, **options: Any) -> int:
        return command(_read_program(file, code, language), **options)

    return with_program


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="faasrt")
def commands() -> None:
    """Run untrusted Python, JavaScript and TypeScript in sandboxes.

    Endpoints come from COZE_LOOP_PYTHON_FAAS_URL, COZE_LOOP_JS_FAAS_URL or COZE_LOOP_FAAS_URL. If none is set, the
    embedded FaaS is used.

    Exit codes: 0 success, 1 the code failed, 2 wrong usage or input, 3 infrastructure failure, 130 interrupted.
    """


@commands.command("run")
@_program_options
@click.option("--timeout-ms", type=float, help="The time limit in milliseconds; 30000 by default.")
def run_command(program: _GivenProgram, as_json: bool, url: str | None, timeout_ms: float | None) -> int:
    """Run a program: FILE, or stdin when FILE is -.

    The program's output is passed on. The exit code is 1 when it fails.
    """
    result = run_with_manager(
        lambda manager: manager.run_code(program.code, program.language, timeout_ms),
        make_settings(url, timeout_ms),
        [program.language],
    )
    if as_json:
        write(result.to_json() + "\n")
    else:
        _show(result)
    return OK if result.ok else CODE_FAILED


@commands.command("validate")
@_program_options
def validate_command(program: _GivenProgram, as_json: bool, url: str | None) -> int:
    """Check a program's syntax: FILE, or stdin when FILE is -.

    The program does not run. The exit code is 1 when it does not parse.
    """
    result = run_with_manager(
        lambda manager: manager.validate_code(program.code, program.language), make_settings(url), [program.language]
    )
    if as_json:
        click.echo(json.dumps(attrs.asdict(result)))
    elif result.valid:
        write(f"{program.name}: valid ({result.checked_by})\n")
    else:
        for diagnostic in result.diagnostics:
            place = [str(part) for part in (program.name, diagnostic.line, diagnostic.column) if part is not None]
            write(f"{':'.join(place)}: {diagnostic.message}\n", err=True)
    return OK if result.valid else CODE_FAILED


@commands.command("health")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@url_option
def health_command(as_json: bool, url: str | None) -> int:
    """Probe every endpoint.

    The exit code is 3 unless all are healthy.
    """
    status = run_with_manager(lambda manager: manager.get_health_status(), make_settings(url), list(Language))
    if as_json:
        click.echo(json.dumps({"healthy": status.healthy, **attrs.asdict(status)}))
    else:
        for entry in status.endpoints:
            label, detail = ("healthy", entry.version) if entry.healthy else ("UNHEALTHY", entry.error)
            write(f"{label:9} {entry.endpoint}  {entry.latency_s * 1000:.1f} ms  {detail}\n")
            write("".join(f"          {line}\n" for line in _describe_languages(entry.details)))
    return OK if status.healthy else INFRASTRUCTURE


def _describe_languages(details: Mapping[str, Any]) -> list[str]:
    """Return a line for each language of a FaaS that names its engines: the engine, and the wall around programs."""
    lines = []
    languages = details.get("languages")
    for language, state in languages.items() if isinstance(languages, dict) else ():
        if isinstance(state, dict) and "engine" in state:
            reason = f" ({state['level_reason']})" if state.get("level_reason") else ""
            lines.append(
                f"{language}: {state.get('status')}, engine {state['engine']}, level {state.get('level')}{reason}"
            )
    return lines


_LIMITS = SandboxConfig()


@commands.command("serve", context_settings={"show_default": True})
@click.option("--host", default="127.0.0.1", help="The address; one other than loopback needs a token.")
@click.option("--port", default=8000, type=click.IntRange(0, 65_535), help="The port; 0 takes a free one.")
@language_option("languages", multiple=True, help="May be repeated.")
@click.option("--workers", type=int, help="Python programs at once; the number of CPUs by default.")
@click.option("--timeout-s", "timeout_limit_s", default=_LIMITS.timeout_limit_s, help="The most seconds of a program.")
@click.option("--memory-mb", "memory_limit_mb", default=_LIMITS.memory_limit_mb, help="The most MiB of a program.")
@click.option("--output-bytes", "max_output_bytes", default=_LIMITS.max_output_bytes, help="The most bytes per stream.")
@click.option("--token", envvar="FAASRT_TOKEN", help="The bearer token of callers. [env: FAASRT_TOKEN]")
@click.option("--level", default="auto", help="The wall around programs: namespaces, filters or auto.")
@click.option("--engine", "engines", multiple=True, metavar="LANGUAGE=NAME", help="As python=wasm. May be repeated.")
@click.option("--python", default=sys.executable, show_default="this one", help="The interpreter of Python programs.")
def serve_command(
    host: str,
    port: int,
    languages: tuple[Language, ...],
    workers: int | None,
    token: str | None,
    level: str,
    engines: tuple[str, ...],
    python: str,
    **limits: Any,
) -> int:
    """Serve the embedded FaaS, for every language unless some are given.

    Ctrl-C or SIGTERM stops it, after the programs in flight have finished.
    """
    from faasrt.local import LocalFaaS

    # The library logs nothing by default, but the command shows why an engine fails.
    logging.basicConfig(format="faasrt: %(message)s")
    sandbox = SandboxConfig(**limits)
    faas = LocalFaaS(
        languages or None,
        workers=workers,
        sandbox=sandbox,
        host=host,
        port=port,
        token=token,
        level=level,
        engines=dict(_parse_engine(text) for text in engines),
        python=python,
    )

    async def work() -> int:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with faas, asyncio.TaskGroup() as group:
            write(f"faasrt: serving {', '.join(faas.languages)} at {faas.url}\n")
            ready = group.create_task(_report_ready(faas, write_message))
            ready.add_done_callback(lambda task: None if task.cancelled() or any(task.result()) else stop.set())
            await stop.wait()
            if ready.done() and not any(ready.result()):
                return INFRASTRUCTURE
            ready.cancel()
            write_message("stopping")
        return OK

    return asyncio.run(work())


def _parse_engine(text: str) -> tuple[str, str]:
    language, separator, engine = text.partition("=")
    if not separator:
        raise click.BadParameter(f"{text!r} is not of the form LANGUAGE=NAME, such as python=wasm")
    return language, engine


@commands.command("warmup")
def warmup_command() -> int:
    """Prepare the embedded FaaS on this machine.

    The Python sandbox is compiled, and every engine is started once. The exit code is 3 unless all languages can run.
    """
    from faasrt.local import LocalFaaS

    async def work() -> bool:
        async with LocalFaaS(workers=1) as faas:
            with show_compilation(faas.languages):
                return all(await _report_ready(faas, lambda text: write(f"faasrt: {text}\n")))

    return OK if asyncio.run(work()) else INFRASTRUCTURE


async def _report_ready(faas: LocalFaaS, report: Callable[[str], None]) -> list[bool]:
    """Report for each language that it is ready, or why it cannot run. Return which are ready."""

    async def one(language: Language) -> bool:
        try:
            await faas.wait_ready(language)
        except ServiceError as error:
            report(f"{language} cannot run: {error}")
            return False
        report(f"{language} is ready")
        return True

    return await asyncio.gather(*(one(language) for language in faas.languages))


def _read_program(file: str | None, code: str | None, language: Language | None) -> _GivenProgram:
    if (file is None) == (code is None):
        raise click.UsageError("give a FILE, - for stdin, or -c CODE")
    if language is None and (guess := _LANGUAGE_OF_SUFFIX.get(Path(file or "").suffix.lower())):
        language = Language(guess)
    if language is None:
        raise click.UsageError("give the --language: python, javascript or typescript")
    if file is None:
        return _GivenProgram(code or "", language, "<string>")
    name = "<stdin>" if file == "-" else file
    try:
        with open_input(file) as stream:
            return _GivenProgram(stream.read().decode("utf-8-sig"), language, name)
    except OSError as error:
        raise click.UsageError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} is not UTF-8 (byte {error.start})") from None


def _show(result: ExecutionResult) -> None:
    write(result.stdout)
    write(result.stderr, err=True)
    if result.stderr and not result.stderr.endswith("\n"):
        write("\n", err=True)
    for name in sorted(result.truncated):
        write_message(f"{name} was cut at the output limit")
    if result.ret_val:
        write_message(f"return value: {result.ret_val}")
    if not result.ok:
        error = result.error
        reason = f": {error.name}: {error.message}".rstrip(": ") if error else ""
        write_message(f"{result.outcome}{reason}")


commands.add_command(batch_command)
commands.add_command(report_command)
