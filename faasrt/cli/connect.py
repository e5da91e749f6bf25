"""What several commands share: which FaaS they use, and how a program is named."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import click

from faasrt.cli.output import note
from faasrt.cli.progress import compiling
from faasrt.config import SandboxConfig, Settings, names_endpoints
from faasrt.errors import UnsupportedLanguageError
from faasrt.languages import Language
from faasrt.manager import RuntimeManager


def parse_languages(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[Language, ...]:
    """Read an option that may be repeated."""
    try:
        return tuple(Language.parse(name) for name in names)
    except UnsupportedLanguageError as error:
        raise click.BadParameter(str(error)) from None


def parse_language(ctx: click.Context, param: click.Parameter, name: str | None) -> Language | None:
    """Read an option."""
    return None if name is None else parse_languages(ctx, param, (name,))[0]


url_option = click.option("--url", help="The base URL of a FaaS, in place of the environment's.")


def make_settings(url: str | None, timeout_ms: float | None = None) -> Settings:
    """Read the settings from the environment, for an endpoint and a time limit that were named."""
    changes: dict[str, Any] = {}
    if timeout_ms is not None and timeout_ms > SandboxConfig().timeout_limit_s * 1000:
        changes["sandbox"] = SandboxConfig(timeout_limit_s=timeout_ms / 1000)
    if url is not None:
        changes["endpoints"] = dict.fromkeys(Language, (url,))
    elif not names_endpoints(os.environ):
        changes["endpoints"] = {}
    return Settings.from_env(**changes)


@contextlib.asynccontextmanager
async def open_manager(
    settings: Settings, languages: tuple[Language, ...], *, workers: int | None = 1
) -> AsyncIterator[RuntimeManager]:
    """Give a manager for the configured endpoints, or one with the built-in FaaS, ready to run `languages`."""
    if settings.endpoints:
        async with RuntimeManager(settings=settings) as manager:
            yield manager
        return
    local = RuntimeManager.local(languages, workers=workers, settings=settings)
    note("no FaaS is configured, so the one built in runs this")
    async with local as manager:
        with compiling(languages):
            for language in languages:
                await manager.get_runtime(language)
        yield manager
