from __future__ import annotations

import asyncio
import functools
import json
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import attrs
import click

from faasrt import __version__
from faasrt.cli.batch import batch_command
from faasrt.cli.connect import make_settings, run_with_manager
from faasrt.cli.deploy import deploy_command
from faasrt.cli.engine_status import report_engine, show_work
from faasrt.cli.health_text import describe_engines, describe_languages, label_of
from faasrt.cli.input import open_input
from faasrt.cli.judge_command import judge_options, judge_program, read_tests
from faasrt.cli.mcp_command import mcp_command
from faasrt.cli.options import (
    cacert_option,
    engine_option,
    language_option,
    memory_option,
    name_options,
    run_options,
    url_option,
)
from faasrt.cli.outcome_text import describe_error
from faasrt.cli.output import (
    CODE_FAILED,
    INFRASTRUCTURE,
    INTERRUPTED,
    OK,
    USAGE,
    color_of,
    colored,
    describe_os_error,
    erase_line,
    write,
    write_message,
)
from faasrt.cli.program_input import find_displays, read_files, read_stdin, write_displays, write_files
from faasrt.cli.report import report_command
from faasrt.cli.report.text import clean, one_line
from faasrt.cli.serve import report_ready, serve_command
from faasrt.client.manager import RuntimeManager
from faasrt.config import EngineName
from faasrt.errors import FaasrtError, UnsupportedLanguageError
from faasrt.languages import Language, OtherLanguage
from faasrt.results import ExecutionResult
from faasrt.tasks import RunOptions

# The suffixes that are not names of languages.
_OTHER_SUFFIXES = {".mjs": ".js", ".cc": ".cpp", ".cxx": ".cpp"}
_MAX_SHOWN = 1_000
_HEALTH_COLORS = {"healthy": "green", "degraded": "yellow", "UNHEALTHY": "red"}


def run(arguments: list[str]) -> int:
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
        message = name_options(str(error))
        write_message(message if is_usage else f"{colored(type(error).__name__, 'red')}: {message}")
        return USAGE if is_usage else INFRASTRUCTURE
    except OSError as error:
        write_message(describe_os_error(error))
        return INFRASTRUCTURE


def _interrupt(number: int, frame: Any) -> None:
    # Only once: `timeout` signals both the process and its group, and asyncio does not clean up after a second SIGINT.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


class _Program(NamedTuple):
    code: str
    language: Language | OtherLanguage
    name: str
    arguments: tuple[str, ...] = ()


def _program_options(command: Callable[..., int]) -> Callable[..., int]:
    @url_option
    @cacert_option
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @language_option(help="The language of the program. By default the suffix of FILE decides, such as .py or .cpp.")
    @click.option("-c", "code", metavar="CODE", help="The program itself, instead of a file.")
    @click.argument("file", required=False)
    @functools.wraps(command)
    def with_program(
        file: str | None, code: str | None, language: Language | OtherLanguage | None, **options: Any
    ) -> int:
        return command(_read_program(file, code, language), **options)

    return with_program


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""Completion of commands and options in bash (zsh_source and fish_source for other shells):

    \b
      eval "$(_FAASRT_COMPLETE=bash_source faasrt)"
    """,
)
@click.version_option(__version__, "-V", "--version", prog_name="faasrt")
def commands() -> None:
    """Run untrusted Python, JavaScript, TypeScript, C, C++ and more in sandboxes.

    The endpoint of Python is COZE_LOOP_PYTHON_FAAS_URL, else COZE_LOOP_PYTHON_FAAS_DOMAIN and _PORT, else
    COZE_LOOP_FAAS_URL. The variables of JavaScript and TypeScript have JS in place of PYTHON. Other languages have
    COZE_LOOP_FAAS_URL only. If none of these is set, the embedded FaaS is used. FAASRT_TOKEN is the bearer token of all
    endpoints.

    Exit codes: 0 success, 1 the code failed, fails a test or does not parse, 2 wrong usage or input, 3 the
    infrastructure failed or the output cannot be written, 130 interrupted.
    """


@commands.command("run", short_help="Run a program.")
@_program_options
@run_options
@memory_option(help="The memory limit in MiB.")
@click.option("--output-dir", metavar="DIR", type=click.Path(path_type=Path), help="The folder for collected files.")
@click.option(
    "--show",
    "show_dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write figures, tables and the value of the last expression into a folder, in place of those of the last run.",
)
@click.argument("arguments", nargs=-1, metavar="[ARG]...")
def run_command(
    program: _Program,
    arguments: tuple[str, ...],
    as_json: bool,
    url: str | None,
    cacert: ssl.SSLContext | None,
    memory_mb: int,
    output_dir: Path | None,
    show_dir: Path | None,
    **values: Any,
) -> int:
    """Run a program with arguments: FILE, or stdin when FILE is -.

    The output of the program goes to stdout and stderr, while it runs if the FaaS can send it. The exit code is 1 when
    the program fails. Arguments that begin with a dash come after --, as in: faasrt run main.py -- --verbose
    """
    _refuse_empty(program)
    if values["collect"] and output_dir is None and not as_json:
        raise click.UsageError("--collect needs --output-dir, or --json, which prints the files")
    if output_dir is not None and not values["collect"]:
        raise click.UsageError("--output-dir needs --collect")
    if output_dir is not None and show_dir is not None and output_dir.resolve() == show_dir.resolve():
        raise click.UsageError("--output-dir and --show need different folders")
    options = cast(RunOptions, values)
    options["argv"] = (*program.arguments, *arguments)
    options["stdin"] = read_stdin(values["stdin"], is_program=program.name == "<stdin>")
    options["files"] = read_files(values["files"])
    options["displays"] = show_dir is not None
    old_displays = find_displays(show_dir) if show_dir is not None else []

    async def work(manager: RuntimeManager) -> tuple[ExecutionResult, bool]:
        if as_json:
            return await manager.run_code(program.code, program.language, **options), False
        async with manager.stream_code(program.code, program.language, **options) as run:
            async for chunk in run:
                write(chunk.text, err=chunk.stream == "stderr")
            return run.result, run.live

    settings = make_settings(url, options["timeout_ms"], memory_mb, cacert=cacert)
    result, is_live = run_with_manager(work, settings, [program.language])
    if output_dir is not None:
        write_files(result.files, output_dir)
    if show_dir is not None:
        write_displays(result.displays, show_dir, old_displays)
    if as_json:
        write(result.to_json() + "\n")
    else:
        _show(result, live=is_live)
    return OK if result.ok else CODE_FAILED


@commands.command("judge", short_help="Judge a program by tests.")
@_program_options
@click.argument("tests", required=False, metavar="[TESTS]")
@judge_options
def judge_command(program: _Program, tests: str | None, tests_option: str | None, **options: Any) -> int:
    """Judge a program, FILE, by TESTS: a folder, or a file of JSON Lines (- for stdin).

    In a folder, a test is a file NAME.in with the standard input, and a file NAME.out or NAME.ans with the expected
    output. In a file, it is an object with attributes of faasrt.TestCase, such as {"stdin": "1", "expected": "2"}, or
    with --function, of faasrt.FunctionTest, such as {"args": [1], "expected": 2}, or of faasrt.AssertTest, such as
    {"program": "assert f(1) == 2"}. The exit code is 0 when all tests pass, and 1 when one does not.
    """
    _refuse_empty(program)
    sources = [source for source in (*program.arguments, tests, tests_option) if source is not None]
    if len(sources) != 1:
        raise click.UsageError("give one folder or file of tests, after the program or with --tests")
    read = read_tests(sources[0], options["function"])
    return judge_program(program.code, program.language, read, **options)


@commands.command("validate", short_help="Check the syntax of a program.")
@_program_options
def validate_command(program: _Program, as_json: bool, url: str | None, cacert: ssl.SSLContext | None) -> int:
    """Check the syntax of a program: FILE, or stdin when FILE is -.

    The program does not run. The exit code is 1 when it does not parse.
    """
    if program.arguments:
        raise click.UsageError("give a FILE or -c CODE, not both")
    result = run_with_manager(
        lambda manager: manager.validate_code(program.code, program.language),
        make_settings(url, cacert=cacert),
        [program.language],
    )
    if as_json:
        click.echo(json.dumps(attrs.asdict(result)))
    elif result.valid:
        write(f"{program.name}: valid ({result.checked_by})\n")
    else:
        for diagnostic in result.diagnostics:
            place = [str(part) for part in (program.name, diagnostic.line, diagnostic.column) if part is not None]
            write(f"{':'.join(place)}: {one_line(diagnostic.message, _MAX_SHOWN)}\n", err=True)
    return OK if result.valid else CODE_FAILED


@commands.command("health", short_help="Request /health from every endpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@url_option
@cacert_option
def health_command(as_json: bool, url: str | None, cacert: ssl.SSLContext | None) -> int:
    """Request /health from every endpoint.

    The exit code is 3 unless all are healthy.
    """
    status = run_with_manager(lambda manager: manager.get_health_status(), make_settings(url, cacert=cacert), None)
    if as_json:
        click.echo(json.dumps({"healthy": status.healthy, **attrs.asdict(status)}))
    else:
        for entry in status.endpoints:
            label = label_of(entry)
            detail = name_options(entry.error) if label == "UNHEALTHY" else entry.version
            text = colored(f"{label:9}", _HEALTH_COLORS[label], err=False)
            write(f"{text} {entry.endpoint}  {entry.latency_s * 1000:.1f} ms  {detail}\n")
            write("".join(f"          {line}\n" for line in describe_engines(entry.details)))
    return OK if status.healthy else INFRASTRUCTURE


@commands.command("languages", short_help="List the languages, and which can run.")
@url_option
@cacert_option
def languages_command(url: str | None, cacert: ssl.SSLContext | None) -> int:
    """List the languages, their names, and the versions with which the endpoints run them.

    The exit code is 3 unless all endpoints are healthy.
    """
    status = run_with_manager(lambda manager: manager.get_health_status(), make_settings(url, cacert=cacert), None)
    for entry in status.endpoints:
        detail = f"  {label}  {name_options(entry.error)}" if (label := label_of(entry)) == "UNHEALTHY" else ""
        write(f"{entry.endpoint}{detail}\n")
        write("".join(f"  {line}\n" for line in describe_languages(entry)))
    return OK if status.healthy else INFRASTRUCTURE


@commands.command("warmup", short_help="Prepare the embedded FaaS on this machine.")
@engine_option
def warmup_command(engines: tuple[tuple[Language, EngineName], ...]) -> int:
    """Prepare the embedded FaaS on this machine.

    Every engine is started once. For the engine wasm, the Python sandbox is compiled and optimized, and snapshots
    of it with its packages are made, which happens once on a machine. The exit code is 3 unless Python, JavaScript and
    TypeScript can run. Other languages are optional; those that cannot run are named.
    """
    from faasrt.local import LocalFaaS

    async def work() -> bool:
        async with LocalFaaS(workers=1, engines=dict(engines)) as faas:
            report_engine(faas, chosen=bool(engines))
            async with show_work(faas):
                ready = await report_ready(faas, faas.languages, _write_ready)
                if not all(language in ready for language in faas.languages if language.has_return_val):
                    return False
                await faas.make_snapshots()
            return True

    return OK if asyncio.run(work()) else INFRASTRUCTURE


def _write_ready(text: str) -> None:
    erase_line()  # the line of the spinner
    write(f"faasrt: {text}\n")


def _read_program(file: str | None, code: str | None, language: Language | OtherLanguage | None) -> _Program:
    if file is None and code is None:
        raise click.UsageError("give a FILE or -c CODE, or - for stdin")
    arguments = () if code is None or file is None else (file,)
    if code is not None:
        file = None
    if language is None:
        suffix = Path(file or "").suffix.lower()
        try:
            language = Language.parse(_OTHER_SUFFIXES.get(suffix, suffix).removeprefix("."))
        except UnsupportedLanguageError:
            problem = (
                f"the suffix of {file} names no language" if file not in (None, "-") else "-c and - need a language"
            )
            raise click.UsageError(f"{problem}: give --language {', '.join(Language)}") from None
    if file is None:
        return _Program(code or "", language, "<string>", arguments)
    name = "<stdin>" if file == "-" else file
    try:
        with open_input(file) as stream:
            return _Program(stream.read().decode("utf-8-sig"), language, name)
    except OSError as error:
        raise click.UsageError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} is not UTF-8 (byte {error.start})") from None


def _refuse_empty(program: _Program) -> None:
    if not program.code.strip():
        raise click.UsageError(f"{program.name} is empty: there is no program to run")


def _show(result: ExecutionResult, *, live: bool) -> None:
    """Write the lines after the output of a program. Live output was not cut, only that in the result."""
    if result.stderr and not result.stderr.endswith("\n"):
        write("\n", err=True)
    is_cut = result.truncated - ({"files", "displays", "stdout", "stderr"} if live else {"files", "displays"})
    for name in sorted(is_cut):
        write_message(f"{name} was cut at the output limit")
    if "files" in result.truncated:
        write_message("some files were not collected: they exceed the output limit, or cannot be read")
    for number, display in enumerate(result.displays, 1):
        for name in display.omitted:
            write_message(f"display {number}: {_shown(name)} was left out, because it exceeds the output limit")
    if "displays" in result.truncated and not any(display.omitted for display in result.displays):
        write_message("some displays were left out: they exceed the output limit")
    if result.ret_val:
        # Not `one_line`, which cuts, and changes spaces.
        line = clean(result.ret_val).replace("\n", "\\n")
        write_message(f"return value: {line}")
    if not result.ok:
        outcome, error = str(result.outcome), result.error
        reason = "" if error is None else one_line(describe_error(outcome, error.name, error.message), _MAX_SHOWN)
        write_message(f"{colored(outcome, color_of(outcome))}{': ' if reason else ''}{reason}")


def _shown(name: str) -> str:
    """Leave out the characters that control a terminal."""
    return name[:100] if name.isprintable() else ascii(name[:100])


commands.add_command(batch_command)
commands.add_command(deploy_command)
commands.add_command(mcp_command)
commands.add_command(report_command)
commands.add_command(serve_command)
