"""Options and helpers that several commands share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import click

from faasrt.cli.output import write_message
from faasrt.config import SandboxConfig, Settings, names_endpoints
from faasrt.errors import UnsupportedLanguageError
from faasrt.languages import Language
from faasrt.manager import RuntimeManager

T = TypeVar("T")
_MAX_TIMEOUT_MS = 86_400_000


def parse_languages(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[Language, ...]:
    """Return the languages of an option that may be repeated."""
    try:
        return tuple(Language.parse(name) for name in names)
    except UnsupportedLanguageError as error:
        raise click.BadParameter(str(error)) from None


def parse_language(ctx: click.Context, param: click.Parameter, name: str | None) -> Language | None:
    """Return the language of an option."""
    return None if name is None else parse_languages(ctx, param, (name,))[0]


url_option = click.option("--url", help="The base URL of a FaaS, instead of those in the environment.")


def make_settings(url: str | None, timeout_ms: float = 0) -> Settings:
    """Return the settings of the environment. A `timeout_ms` above the default limit of the sandbox raises that."""
    options: dict[str, Any] = {}
    if timeout_ms > _MAX_TIMEOUT_MS:
        raise click.UsageError(f"--timeout-ms must be at most {_MAX_TIMEOUT_MS}, a day")
    if timeout_ms > SandboxConfig().timeout_limit_s * 1000:
        options["sandbox"] = SandboxConfig(timeout_limit_s=timeout_ms / 1000)
    if url is not None:
        options["endpoints"] = dict.fromkeys(Language, url)
    elif not names_endpoints(os.environ):
        options["endpoints"] = {}
    return Settings.from_env(**options)


@contextlib.asynccontextmanager
async def open_manager(
    settings: Settings, languages: tuple[Language, ...], *, workers: int | None = 1
) -> AsyncIterator[RuntimeManager]:
    """Yield a manager for the configured endpoints, or one with the embedded FaaS that is ready to run `languages`."""
    if settings.endpoints:
        async with RuntimeManager(settings=settings) as manager:
            yield manager
        return
    manager = RuntimeManager.local(languages, workers=workers, settings=settings)
    write_message("no endpoint configured; using the embedded FaaS")
    async with manager:
        with show_compilation(languages):
            for language in languages:
                await manager.get_runtime(language)
        yield manager


def run_with_manager(
    call: Callable[[RuntimeManager], Awaitable[T]],
    languages: tuple[Language, ...],
    url: str | None,
    timeout_ms: float = 0,
) -> T:
    """Return the result of a call, which gets a manager."""
    settings = make_settings(url, timeout_ms)

    async def work() -> T:
        async with open_manager(settings, languages) as manager:
            return await call(manager)

    return asyncio.run(work())


@contextlib.contextmanager
def show_compilation(languages: tuple[Language, ...]) -> Iterator[None]:
    """Show the elapsed time while the Python sandbox is compiled, once on a machine."""
    from faasrt.local.cache import is_compiled, module_dir

    if Language.PYTHON not in languages or is_compiled(module_dir()):
        yield
        return
    text = "compiling the Python sandbox, once (about 45 s)"
    if sys.stderr is None or not sys.stderr.isatty():
        write_message(text)
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(f"faasrt: {text}", total=None)
        yield
