"""The runtimes of a manager: created on first use, shared, and closed together with the embedded FaaS."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import warnings
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self, Unpack

import attrs

from faasrt.client.cache import ResultCache
from faasrt.client.factory import RuntimeFactory
from faasrt.client.map import Map, stop_maps
from faasrt.client.runtime import Runtime
from faasrt.client.streaming import StreamedRun
from faasrt.config import Settings
from faasrt.errors import ConfigurationError, RuntimeClosedError
from faasrt.languages import Language, parse_language
from faasrt.tasks import RunOptions
from faasrt.telemetry.events import Sink
from faasrt.transport.lifecycle import LoopAffinity

if TYPE_CHECKING:
    from faasrt.local.server import LocalFaaS


# How long a program may wait in the queue of the embedded FaaS if the settings have no `queue_timeout_s`.
_QUEUE_S = 30.0


def local_settings(settings: Settings) -> tuple[Settings, float]:
    """Return the settings for calls to an embedded FaaS, and how long a program may wait in its queue, in seconds.

    A program waits before its time limit starts, so the wait is added to the grace time.
    """
    queue_s = settings.limiter.queue_timeout_s or _QUEUE_S
    timeouts = attrs.evolve(settings.timeouts, grace_s=settings.timeouts.grace_s + queue_s)
    return attrs.evolve(settings, timeouts=timeouts), queue_s


class RuntimeRegistry:
    """Keeps one runtime for each language. The base class of `RuntimeManager`."""

    def __init__(
        self, factory: RuntimeFactory, logger: Any, sinks: tuple[Sink, ...], cache: ResultCache | None
    ) -> None:
        self._factory = factory
        self._logger, self._sinks, self._cache = logger, sinks, cache
        # The embedded FaaS of `RuntimeManager.local`.
        self._make_faas: functools.partial[LocalFaaS]
        self._faas: LocalFaaS | None = None
        self._given_settings: Settings  # without the endpoint of the embedded FaaS
        self._has_started_faas = False
        self._runtimes: dict[Language | str, Runtime] = {}
        self._lock = asyncio.Lock()
        self._maps: set[Map] = set()
        self._closed = False
        self._loop = LoopAffinity("manager")

    @contextlib.asynccontextmanager
    async def stream_code(
        self, code: str, language: str | Language, **options: Unpack[RunOptions]
    ) -> AsyncIterator[StreamedRun]:
        r"""Run a program, and yield its output while it runs: `get_runtime(language)` and `Runtime.stream_code`.

        Example:
            >>> async with manager.stream_code("console.log(1)", "js") as run:
            ...     print([chunk.text async for chunk in run], run.result.outcome)
            ['1\n'] OK
        """
        runtime = await self.get_runtime(language)
        async with runtime.stream_code(code, **options) as run:
            yield run

    async def get_runtime(self, language: str | Language) -> Runtime:
        """Return the runtime for a language. All callers share it, so do not close it.

        Args:
            language: A name or a `Language`.

        Raises:
            UnsupportedLanguageError: The language is unknown, or no endpoint is configured for it.
            RuntimeClosedError: The manager was closed.
            ConfigurationError: The embedded FaaS cannot listen.
            ServerError: The embedded FaaS cannot run the language.

        Cancellation: stops an embedded FaaS that is starting; the next call starts it again.

        Example:
            >>> python = await manager.get_runtime("python")
            >>> python is await manager.get_runtime("py")
            True
        """
        if self._faas is None:
            return self._cached_runtime(parse_language(language))
        parsed = Language.parse(language)
        await self._start_faas()
        # Outside the lock: JavaScript must not wait while Python is compiled.
        await self._faas.wait_ready(parsed)
        return self._cached_runtime(parsed)

    def get_supported_languages(self) -> tuple[Language | str, ...]:
        """Return the languages that have an endpoint.

        Example:
            >>> [str(language) for language in manager.get_supported_languages()]
            ['python', 'javascript', 'typescript', 'c', 'cpp', 'go', 'rust', 'java', 'bash']
        """
        return self._factory.get_supported_languages() if self._faas is None else self._faas.languages

    @property
    def settings(self) -> Settings:
        """The settings in use. Those of `RuntimeManager.local` have no `endpoints`.

        Example:
            >>> import attrs
            >>> limiter = faasrt.LimiterSettings(max_concurrency=8)
            >>> await manager.reconfigure(attrs.evolve(manager.settings, limiter=limiter))
            >>> manager.settings.limiter.max_concurrency
            8
        """
        return self._factory.settings if self._faas is None else self._given_settings

    async def reconfigure(self, settings: Settings) -> None:
        """Change the settings while calls are made; all runtimes of this manager use them.

        Calls in flight finish as they were: at their endpoint, with their deadline and limits. Further calls use the
        new settings. Further attempts, and calls that wait for a permit, go to the new endpoints. Endpoints that stay
        keep their connections, circuit breaker and adaptive limit. Those that do not stay get no further calls; their
        connections are closed after the last one. Names in `dns+` URLs are not looked up here, but when calls use them.
        Waiting calls in a language that has no endpoint any more fail with `UnsupportedLanguageError`. `logger`,
        `telemetry` and `cache` cannot change.

        The embedded FaaS of `RuntimeManager.local` stays as it is. So `endpoints` must be empty, `token` must be the
        same, and the limits of `sandbox` can only be lowered.

        Args:
            settings: All settings, not only those that change.

        Raises:
            ConfigurationError: The settings are wrong, or not possible here. Then nothing changes.
            RuntimeClosedError: The manager was closed.

        Cancellation: changes nothing.

        Example:
            >>> async with RuntimeManager.from_url("http://faas-1:8000") as manager:
            ...     settings = Settings.from_url(["http://faas-1:8000", "http://faas-2:8000"])
            ...     await manager.reconfigure(settings)
            ...     await manager.get_runtime("python")
            <Runtime python at http://faas-1:8000, http://faas-2:8000>
        """
        self._check_open()
        if self._faas is None:
            await self._factory.reconfigure(settings)
            return
        async with self._lock:  # the embedded FaaS may be starting
            self._check_open()
            used = self._settings_with_faas(settings)
            if self._has_started_faas:
                await self._factory.reconfigure(used)
            else:
                self._factory = RuntimeFactory(used, self._logger, telemetry=self._sinks)
            self._given_settings = settings

    async def close_runtimes(self) -> None:
        """Close every runtime. The next `get_runtime` creates a new one. Stored results (`cache=`) are kept.

        Waits for the calls in flight, without a time limit. New calls on a closed runtime are refused.

        Raises:
            RuntimeClosedError: The manager was closed.

        Cancellation: cancels the calls in flight.

        Example:
            >>> await manager.close_runtimes()
            >>> await manager.get_runtime("python") is runtime, runtime.closed
            (False, True)
        """
        self._check_open()
        runtimes, self._runtimes = self._runtimes, {}
        async with asyncio.TaskGroup() as group:
            for runtime in runtimes.values():
                group.create_task(runtime._close_within(None))

    async def aclose(self) -> None:
        """Close every runtime, and the embedded FaaS if there is one. Closing twice is harmless.

        Calls that wait for a permit fail with `RuntimeClosedError` at once. Calls in flight have
        `TimeoutSettings.close_s` seconds to finish, and then fail with `RuntimeClosedError` too.

        Cancellation: cancels the calls in flight at once.
        """
        self._closed = True
        async with self._lock:
            runtimes, self._runtimes = self._runtimes, {}
            try:
                async with asyncio.TaskGroup() as group:
                    for runtime in runtimes.values():
                        group.create_task(runtime.aclose())
            finally:
                try:
                    await stop_maps(self._maps)
                finally:
                    try:
                        if self._faas is not None:
                            await self._faas.aclose()
                    finally:
                        if self._cache is not None:
                            await self._cache.aclose()

    async def __aenter__(self) -> Self:
        self._check_open()
        try:
            if self._cache is not None:
                await self._cache.open()
            await self._start_faas()
        except BaseException:
            if self._cache is not None:
                await self._cache.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # If __init__ raised an error, the attributes are missing.
        if getattr(self, "_closed", True):
            return
        if self._runtimes or self._has_started_faas:
            warnings.warn(
                f"unclosed {self!r}: use async with, or await aclose()", ResourceWarning, stacklevel=2, source=self
            )

    def __repr__(self) -> str:
        kind = "embedded FaaS" if self._faas is not None else ", ".join(self.get_supported_languages()) or "no endpoint"
        return f"<RuntimeManager of {kind}{' (closed)' if self._closed else ''}>"

    def _cached_runtime(self, language: Language | str) -> Runtime:
        self._check_open()
        runtime = self._runtimes.get(language)
        if runtime is None or runtime.closed:
            runtime = self._runtimes[language] = self._factory.create_runtime(language)._use_cache(self._cache)
        return runtime

    async def _start_faas(self) -> None:
        self._check_open()
        if self._faas is None or self._has_started_faas:
            return
        async with self._lock:
            self._check_open()
            if not self._has_started_faas:
                try:
                    await self._faas.start()
                except BaseException:
                    self._faas = self._make_faas(self._faas.languages)  # a LocalFaaS can be started only once
                    raise
                endpoints = dict.fromkeys(self._faas.languages, self._faas.url)
                settings = attrs.evolve(self._factory.settings, endpoints=endpoints)
                self._factory = RuntimeFactory(settings, self._logger, telemetry=self._sinks)
                self._has_started_faas = True

    def _settings_with_faas(self, settings: Settings) -> Settings:
        """Return settings with the endpoints of the embedded FaaS. Raise ConfigurationError if it cannot have them."""
        if not isinstance(settings, Settings):
            raise ConfigurationError(f"settings must be a Settings, got {type(settings).__name__}")
        if settings.endpoints:
            raise ConfigurationError(
                "settings.endpoints must be empty, because this manager always uses its embedded FaaS: make another "
                "manager for other endpoints"
            )
        options = self._make_faas.keywords
        if settings.token != options["token"]:
            raise ConfigurationError("token must be the one with which the embedded FaaS was made")
        limits = attrs.asdict(options["sandbox"])
        for name, value in attrs.asdict(settings.sandbox).items():
            if value > limits[name]:
                limit = limits[name] if isinstance(value, bool) else f"at most {limits[name]:g}"
                raise ConfigurationError(
                    f"sandbox.{name} must be {limit}, the limit with which the embedded FaaS was made"
                )
        timeouts = attrs.evolve(settings.timeouts, grace_s=settings.timeouts.grace_s + options["queue_timeout_s"])
        return attrs.evolve(settings, timeouts=timeouts, endpoints=self._factory.settings.endpoints)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeClosedError("this manager is closed: make a new one")
        self._loop.check()
