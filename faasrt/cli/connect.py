"""Turns the options of a command into settings, and opens the manager that it uses."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from faasrt._endpoint_urls import split_endpoint
from faasrt.cli.engine_status import report_engine, show_work
from faasrt.cli.options import token_of_environment
from faasrt.cli.output import write_message
from faasrt.client.disk_cache import DiskCache
from faasrt.client.manager import RuntimeManager
from faasrt.config import LimiterSettings, NoEndpointError, RetrySettings, SandboxConfig, Settings, SettingsOptions
from faasrt.errors import UnsupportedLanguageError
from faasrt.languages import Language, OtherLanguage, family_of, has_return_val
from faasrt.protocol.health import read_profile

T = TypeVar("T")
UNKNOWN_CAPACITY = 16
"""The number of programs that are sent at once to a server whose capacity is unknown."""


def make_settings(
    url: str | None,
    timeout_ms: float | None = None,
    memory_mb: int | None = None,
    *,
    cacert: ssl.SSLContext | None = None,
    max_concurrency: int | None = None,
    waits: bool = False,
) -> Settings:
    """Return the settings of the environment, with the values of options. `cacert` replaces the CAs of the system. A
    `timeout_ms` above the default limit of the sandbox raises that limit. Calls wait for servers that are down only if
    `waits` is true.
    """
    sandbox = SandboxConfig()
    options = SettingsOptions(
        sandbox=SandboxConfig(
            timeout_limit_s=max(sandbox.timeout_limit_s, (timeout_ms or 0) / 1000),
            memory_limit_mb=memory_mb or sandbox.memory_limit_mb,
        ),
        token=token_of_environment(),
        ssl=cacert,
        retry=RetrySettings() if waits else RetrySettings(connect_retry_s=0),
    )
    if max_concurrency is not None:
        options["limiter"] = LimiterSettings(max_concurrency=max_concurrency)
    if url is not None:
        options["endpoints"] = Settings.from_url(url).endpoints
    try:
        return Settings.from_env(**options)
    except NoEndpointError:
        return Settings(**options)


def names_protocols(settings: Settings) -> bool:
    return any(split_endpoint(url)[0] for urls in settings.endpoints.values() for url in urls)


def run_with_manager(
    call: Callable[[RuntimeManager], Awaitable[T]],
    settings: Settings,
    languages: Sequence[Language | OtherLanguage] | None,
    workers: int | None = 1,
    cache: DiskCache | None = None,
) -> T:
    """Return the result of a call, which gets a manager.

    Without an endpoint, the manager has the embedded FaaS, which is ready to run `languages`. None means all languages
    of this machine, but engines that start only when they are needed are not started.
    """

    async def work() -> T:
        try:
            return await work_with_cache()
        finally:
            if cache is not None:
                await cache.aclose()

    async def work_with_cache() -> T:
        if settings.endpoints:
            async with RuntimeManager(settings=settings, cache=cache) as manager:
                return await call(manager)
        manager = RuntimeManager.local(languages, workers=workers, settings=settings, cache=cache)
        write_message("no endpoint configured; using the embedded FaaS")
        async with manager:
            assert manager.local_faas is not None
            report_engine(manager.local_faas)
            async with show_work(manager.local_faas):
                served = [language for language in manager.get_supported_languages() if has_return_val(language)]
                for language in served if languages is None else languages:
                    await manager.get_runtime(language)
            return await call(manager)

    return asyncio.run(work())


async def find_capacity(manager: RuntimeManager, languages: Sequence[Language | OtherLanguage]) -> int:
    capacity = 0
    for family in dict.fromkeys(family_of(language) for language in languages):
        members = [language for language in languages if family_of(language) == family]
        with contextlib.suppress(UnsupportedLanguageError):
            health = await (await manager.get_runtime(members[0])).get_health_status()
            for endpoint in health.endpoints:
                stated = read_profile(endpoint.details).capacities
                capacity += max((stated.get(name, 0) for name in members), default=0) or UNKNOWN_CAPACITY
    return capacity or UNKNOWN_CAPACITY
