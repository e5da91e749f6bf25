"""Options and helpers that several commands share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import aiohttp
import click

from faasrt.cli.output import write_message
from faasrt.config import SandboxConfig, Settings, SettingsOptions, names_endpoints
from faasrt.errors import UnsupportedLanguageError
from faasrt.languages import Language
from faasrt.manager import RuntimeManager

T = TypeVar("T")
_MAX_TIMEOUT_MS = 86_400_000


def _parse_language(name: str) -> Language:
    try:
        return Language.parse(name)
    except UnsupportedLanguageError as error:
        raise click.BadParameter(str(error)) from None  # click drops the message of a ValueError


language_option = functools.partial(click.option, "--language", "-l", type=_parse_language, metavar="LANGUAGE")
url_option = click.option("--url", help="The base URL of a FaaS, instead of those in the environment.")


def make_settings(url: str | None, timeout_ms: float | None = None) -> Settings:
    """Return the settings of the environment. A `timeout_ms` above the default limit of the sandbox raises that."""
    timeout_ms = timeout_ms or 0
    if timeout_ms > _MAX_TIMEOUT_MS:
        raise click.UsageError(f"--timeout-ms must be at most {_MAX_TIMEOUT_MS}, a day")
    limit_s = max(SandboxConfig().timeout_limit_s, timeout_ms / 1000)
    options = SettingsOptions(sandbox=SandboxConfig(timeout_limit_s=limit_s))
    if url is not None:
        options["endpoints"] = dict.fromkeys(Language, url)
    elif not names_endpoints(os.environ):
        options["endpoints"] = {}
    return Settings.from_env(**options)


def run_with_manager(
    call: Callable[[RuntimeManager], Awaitable[T]],
    settings: Settings,
    languages: Sequence[Language],
    workers: int | None = 1,
) -> T:
    """Return the result of a call, which gets a manager.

    If no endpoint is configured, the manager has the embedded FaaS, which is ready to run `languages`.
    """

    async def work() -> T:
        if settings.endpoints:
            async with RuntimeManager(settings=settings) as manager:
                return await call(manager)
        manager = RuntimeManager.local(languages, workers=workers, settings=settings)
        write_message("no endpoint configured; using the embedded FaaS")
        async with manager:
            url = (await manager.get_health_status()).endpoints[0].endpoint
            with show_compilation(await report_engine(url)):
                for language in languages:
                    await manager.get_runtime(language)
            return await call(manager)

    return asyncio.run(work())


async def report_engine(url: str, token: str | None = None, *, chosen: bool = False) -> str:
    """Return the engine of Python at an embedded FaaS, or "". Say why it is `wasm`, unless the user has `chosen` it."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{url}/health") as response:
        python = (await response.json())["languages"].get("python", {})
    engine: str = python.get("engine", "")
    if engine == "wasm" and not chosen:
        reason = python["level_reason"] or "another level was chosen"
        write_message(f"Python runs as WebAssembly, because its native engine needs the level namespaces: {reason}")
    return engine


@contextlib.contextmanager
def show_compilation(engine: str) -> Iterator[None]:
    """Show the elapsed time while the sandbox of the engine `wasm` is compiled, once on a machine."""
    from faasrt.local.cache import is_compiled, module_dir

    if engine != "wasm" or is_compiled(module_dir()):
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    text, console = "compiling the Python sandbox, once (about 45 s)", Console(stderr=True)
    if not console.is_terminal:
        write_message(text)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(f"faasrt: {text}", total=None)
        yield
