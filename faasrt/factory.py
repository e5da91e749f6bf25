"""RuntimeFactory: makes runtimes that share one set of sessions and permits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from faasrt.config import Settings
from faasrt.emitter import Emitter, check_sinks
from faasrt.errors import ConfigurationError, UnsupportedLanguageError
from faasrt.events import Sink
from faasrt.languages import Language
from faasrt.metrics import Metrics
from faasrt.results import HealthStatus
from faasrt.runtime import Runtime
from faasrt.telemetry.logs import LogSink
from faasrt.transport.counters import Counters
from faasrt.transport.dispatcher import Dispatcher


def check_settings(settings: object) -> Settings:
    """Give the settings back, `Settings()` for None.

    Raises:
        ConfigurationError: They are something else.
    """
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise ConfigurationError(f"settings must be a Settings, got {type(settings).__name__}")
    return settings


class RuntimeFactory:
    r"""Makes runtimes. It keeps nothing but the transport and the counters that its runtimes share.

    Args:
        settings: Endpoints and limits; `Settings()`, which has no endpoint, when None.
        logger: A structlog logger, or one of the standard library's; by default events go to its logger "faasrt", which
            is quiet until the application configures it.
        telemetry: Sinks, each of which is called with every event of `faasrt.events`. One that fails is told of once
            in the log, and fails no call.

    Raises:
        ConfigurationError: `settings`, `logger` or `telemetry` is something else.

    Example:
        >>> factory = RuntimeFactory(Settings.from_env())
        >>> async with factory.create_runtime("python") as python, factory.create_runtime("js") as js:
        ...     results = await asyncio.gather(python.run_code("print(1)"), js.run_code("console.log(2)"))
        >>> [result.stdout for result in results]
        ['1\n', '2\n']
    """

    def __init__(self, settings: Settings | None = None, logger: Any = None, *, telemetry: Iterable[Sink] = ()) -> None:
        self.settings = check_settings(settings)
        self._counters = Counters()
        self._emit = Emitter((LogSink(logger), *check_sinks(telemetry)))
        self._dispatcher = Dispatcher(self.settings, self._emit)

    def create_runtime(self, language: str | Language) -> Runtime:
        """Make a runtime; the caller closes it.

        Args:
            language: A name or a `Language`.

        Raises:
            UnsupportedLanguageError: The language is unknown, or no endpoint is configured for it.

        Example:
            >>> async with RuntimeFactory(Settings.from_env()).create_runtime("python") as runtime:
            ...     print((await runtime.run_code("print(6 * 7)")).stdout.strip())
            42
        """
        spoken = Language.parse(language)
        if not self.settings.endpoints.get(spoken):
            known = ", ".join(self.get_supported_languages()) or "none"
            raise UnsupportedLanguageError(
                f"{spoken} is not supported here: no endpoint is configured for it (configured: {known})"
            )
        return Runtime(
            spoken, settings=self.settings, dispatcher=self._dispatcher, counters=self._counters, emit=self._emit
        )

    def get_supported_languages(self) -> tuple[Language, ...]:
        """Give the languages that have an endpoint.

        Example:
            >>> RuntimeFactory(Settings(endpoints={"py": "http://faas:8000"})).get_supported_languages()
            (<Language.PYTHON: 'python'>,)
        """
        return tuple(self.settings.endpoints)

    async def get_health_status(self) -> HealthStatus:
        """Probe every endpoint of every language at once; a failure is an unhealthy entry, never an exception.

        Example:
            >>> (await RuntimeFactory(Settings.from_env()).get_health_status()).healthy
            True
        """
        urls = (url for several in self.settings.endpoints.values() for url in several)
        self._dispatcher.retain()
        try:
            return await self._dispatcher.probe_all(tuple(dict.fromkeys(urls)))
        finally:
            await self._dispatcher.release()

    def get_metrics(self) -> Metrics:
        """Give the figures of every runtime that was made here, those that are closed included.

        Example:
            >>> RuntimeFactory(Settings.from_env()).get_metrics().total.calls
            0
        """
        dispatcher = self._dispatcher
        return self._counters.snapshot(
            tuple(Language), in_flight=dispatcher.in_flight, queued=dispatcher.queued, states=dispatcher.states()
        )
