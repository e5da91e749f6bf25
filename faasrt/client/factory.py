"""Creates runtimes that share connections, permits and metrics. The manager is built on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from faasrt.client.runtime import Runtime
from faasrt.config import Settings
from faasrt.errors import ConfigurationError, UnsupportedLanguageError
from faasrt.languages import Language, LanguageOption, OtherLanguage, parse_language
from faasrt.protocol.registry import protocol_of
from faasrt.results import HealthStatus
from faasrt.telemetry.dispatch import EventDispatcher, check_sinks
from faasrt.telemetry.events import Sink
from faasrt.telemetry.logs import LogSink
from faasrt.telemetry.metrics import Counters, Metrics
from faasrt.transport.endpoint_registry import EndpointRegistry
from faasrt.transport.transport import Transport

# A Piston server may run any language. Each name that callers pass costs memory, so their number is limited.
_MAX_LISTED = 100


def check_settings(settings: object) -> Settings:
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise ConfigurationError(f"settings must be a Settings, got {type(settings).__name__}")
    return settings


class RuntimeFactory:
    r"""Creates runtimes that share connections, permits and metrics.

    Args:
        settings: Endpoints and limits. Default: None, which means `Settings()`, without endpoints.
        logger: A structlog or standard library logger. Default: None, which means structlog's logger "faasrt" if the
            application has configured structlog, and otherwise the standard library's logger "faasrt".
        telemetry: Sinks. Each sink is called with every event of `faasrt.telemetry.events`. A failing sink is logged
            once, and never fails a call.
        clock: Returns the time in seconds, for tests. Calls wait by the clock of the event loop, so a test that
            advances this clock must replace `time` of its loop, too. Default: `time.monotonic`.

    Raises:
        ConfigurationError: `settings`, `logger`, `telemetry` or `clock` has the wrong type.

    Example:
        >>> factory = RuntimeFactory(Settings.from_env())
        >>> async with factory.create_runtime("python") as python, factory.create_runtime("js") as js:
        ...     results = await asyncio.gather(python.run_code("print(1)"), js.run_code("console.log(2)"))
        >>> [result.stdout for result in results]
        ['1\n', '2\n']
    """

    def __init__(
        self,
        settings: Settings | None = None,
        logger: Any = None,
        *,
        telemetry: Iterable[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        checked = check_settings(settings)
        if not callable(clock):
            raise ConfigurationError(f"clock must be a function without arguments, got {type(clock).__name__}")
        self._listed: set[Language | OtherLanguage] = set()
        emit = EventDispatcher((LogSink(logger), *check_sinks(telemetry)))
        counters = Counters()
        endpoints = EndpointRegistry(checked, emit, clock, counters.fold)
        # What its runtimes share, for the manager. It is not part of the interface.
        self.transport = Transport(endpoints, emit, counters)

    @property
    def settings(self) -> Settings:
        """The settings now."""
        return self.transport.settings

    def create_runtime(self, language: LanguageOption) -> Runtime:
        """Return a new runtime. The caller must close it.

        Args:
            language: See `Runtime.run_code`.

        Raises:
            UnsupportedLanguageError: The language is unknown, or no endpoint is configured for it; or 100 further
                languages of services were used.

        Example:
            >>> async with RuntimeFactory(Settings.from_env()).create_runtime("python") as runtime:
            ...     print((await runtime.run_code("print(6 * 7)")).stdout.strip())
            42
        """
        parsed = parse_language(language)
        urls = self.transport.registry.urls(parsed)
        if urls and not self.settings.endpoints.get(parsed):  # services list it
            if len(self._listed | {parsed}) > _MAX_LISTED:
                raise UnsupportedLanguageError(
                    f"{parsed} is one language too many: {_MAX_LISTED} languages without a configured endpoint "
                    "were used already; configure the endpoints of the language"
                )
            self._listed.add(parsed)
        if not urls:
            parsed = Language.parse(language)
            known = ", ".join(self.get_supported_languages()) or "none"
            raise UnsupportedLanguageError(
                f"{parsed} is not supported here: no endpoint is configured for it (configured: {known})"
            )
        return Runtime(language=parsed, transport=self.transport)

    async def reconfigure(self, settings: Settings) -> None:
        """Change the settings of this factory and its runtimes; see `RuntimeManager.reconfigure` for what calls do.

        Args:
            settings: All settings, not only the changed ones.

        Raises:
            ConfigurationError: `settings` is not a `Settings`, has no endpoints, or names a protocol that cannot be
                loaded. The previous settings stay.

        Cancellation: changes nothing.

        Example:
            >>> factory = RuntimeFactory(Settings.from_url("http://faas-1:8000"))
            >>> await factory.reconfigure(Settings.from_url(["http://faas-1:8000", "http://faas-2:8000"]))
            >>> factory.settings.endpoints[Language.PYTHON]
            ('http://faas-1:8000', 'http://faas-2:8000')
        """
        if not isinstance(settings, Settings):
            raise ConfigurationError(f"settings must be a Settings, got {type(settings).__name__}")
        urls = [url for replicas in settings.endpoints.values() for url in replicas]
        if not urls:
            raise ConfigurationError("settings.endpoints must not be empty: pass all settings, not only the changes")
        for url in urls:
            protocol_of(url)
        self.transport.registry.reconfigure(settings)

    def get_supported_languages(self) -> tuple[Language | OtherLanguage, ...]:
        """Return the languages that have an endpoint.

        Example:
            >>> RuntimeFactory(Settings(endpoints={"py": "http://faas:8000"})).get_supported_languages()
            (<Language.PYTHON: 'python'>,)
        """
        return tuple(map(parse_language, self.settings.endpoints))

    async def get_health_status(self) -> HealthStatus:
        """Probe all endpoints concurrently. A failed probe is an unhealthy entry in the result, not an exception.

        Example:
            >>> (await RuntimeFactory(Settings.from_env()).get_health_status()).healthy
            True
        """
        urls = (url for replicas in self.settings.endpoints.values() for url in replicas)
        self.transport.registry.retain()
        try:
            return await self.transport.registry.probe_all(tuple(dict.fromkeys(urls)))
        finally:
            await self.transport.registry.release()

    def get_metrics(self) -> Metrics:
        """Return the metrics of all runtimes of this factory, including closed ones.

        Example:
            >>> RuntimeFactory(Settings.from_env()).get_metrics().total.calls
            0
        """
        registry = self.transport.registry
        return self.transport.counters.snapshot(
            None, in_flight=registry.pool.in_flight, queued=registry.pool.queued, states=registry.states()
        )
