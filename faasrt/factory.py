"""RuntimeFactory: creates runtimes that share sessions and permits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from faasrt.config import Settings
from faasrt.errors import ConfigurationError, UnsupportedLanguageError
from faasrt.languages import Language, parse_language
from faasrt.protocol.registry import protocol_of
from faasrt.results import HealthStatus
from faasrt.runtime import Runtime
from faasrt.telemetry.dispatch import EventDispatcher, check_sinks
from faasrt.telemetry.events import Sink
from faasrt.telemetry.logs import LogSink
from faasrt.telemetry.metrics import Counters, Metrics
from faasrt.transport.call import Transport

# A Piston server may run any language. Each name that callers pass costs memory, so their number is limited.
_MOST_LISTED = 100


def check_settings(settings: object) -> Settings:
    """Return the settings, or `Settings()` for None. Raise ConfigurationError for anything else."""
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise ConfigurationError(f"settings must be a Settings, got {type(settings).__name__}")
    return settings


class RuntimeFactory:
    r"""Creates runtimes that share sessions, permits and metrics.

    Args:
        settings: Endpoints and limits. Default: None, which means `Settings()`, without endpoints.
        logger: A structlog or standard library logger. Default: None, which means structlog's logger "faasrt" if the
            application has configured structlog, and otherwise the standard library's logger "faasrt".
        telemetry: Sinks. Each sink is called with every event of `faasrt.telemetry.events`. A failing sink is logged
            once, and never fails a call.

    Raises:
        ConfigurationError: `settings`, `logger` or `telemetry` has the wrong type.

    Example:
        >>> factory = RuntimeFactory(Settings.from_env())
        >>> async with factory.create_runtime("python") as python, factory.create_runtime("js") as js:
        ...     results = await asyncio.gather(python.run_code("print(1)"), js.run_code("console.log(2)"))
        >>> [result.stdout for result in results]
        ['1\n', '2\n']
    """

    def __init__(self, settings: Settings | None = None, logger: Any = None, *, telemetry: Iterable[Sink] = ()) -> None:
        self.settings = check_settings(settings)
        self._listed: set[Language | str] = set()
        self._counters = Counters()
        self._emit = EventDispatcher((LogSink(logger), *check_sinks(telemetry)))
        self._transport = Transport(self.settings, self._emit)

    def create_runtime(self, language: str | Language) -> Runtime:
        """Return a new runtime. The caller must close it.

        Args:
            language: A name or a `Language`; or the name of another language, if an endpoint's service lists it.

        Raises:
            UnsupportedLanguageError: The language is unknown, or no endpoint is configured for it; or 100 further
                languages of services were used.

        Example:
            >>> async with RuntimeFactory(Settings.from_env()).create_runtime("python") as runtime:
            ...     print((await runtime.run_code("print(6 * 7)")).stdout.strip())
            42
        """
        parsed, settings = parse_language(language), self.settings
        if parsed not in (Language.PYTHON, Language.JAVASCRIPT) and not settings.endpoints.get(parsed):
            urls = [url for replicas in settings.endpoints.values() for url in replicas]
            listed = tuple(dict.fromkeys(url for url in urls if protocol_of(url).lists(parsed)))
            if listed:
                if len(self._listed | {parsed}) > _MOST_LISTED:
                    raise UnsupportedLanguageError(
                        f"{parsed} is one language too many: {_MOST_LISTED} languages without a configured endpoint "
                        "were used already; configure the endpoints of the language"
                    )
                self._listed.add(parsed)
                settings = attrs.evolve(settings, endpoints={**settings.endpoints, parsed: listed})
            else:
                parsed = Language.parse(language)
        if not settings.endpoints.get(parsed):
            known = ", ".join(self.get_supported_languages()) or "none"
            raise UnsupportedLanguageError(
                f"{parsed} is not supported here: no endpoint is configured for it (configured: {known})"
            )
        return Runtime(
            language=parsed, settings=settings, transport=self._transport, counters=self._counters, emit=self._emit
        )

    def get_supported_languages(self) -> tuple[Language | str, ...]:
        """Return the languages that have an endpoint.

        Example:
            >>> RuntimeFactory(Settings(endpoints={"py": "http://faas:8000"})).get_supported_languages()
            (<Language.PYTHON: 'python'>,)
        """
        return tuple(self.settings.endpoints)

    async def get_health_status(self) -> HealthStatus:
        """Probe all endpoints concurrently. A failed probe is an unhealthy entry in the result, not an exception.

        Example:
            >>> (await RuntimeFactory(Settings.from_env()).get_health_status()).healthy
            True
        """
        urls = (url for replicas in self.settings.endpoints.values() for url in replicas)
        self._transport.retain()
        try:
            return await self._transport.probe_all(tuple(dict.fromkeys(urls)))
        finally:
            await self._transport.release()

    def get_metrics(self) -> Metrics:
        """Return the metrics of all runtimes of this factory, including closed ones.

        Example:
            >>> RuntimeFactory(Settings.from_env()).get_metrics().total.calls
            0
        """
        transport = self._transport
        return self._counters.snapshot(
            None, in_flight=transport.in_flight, queued=transport.queued, states=transport.states()
        )
