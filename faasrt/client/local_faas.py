"""Imports `faasrt.local`, which needs the extra `local`, only when a `ManagedLocalFaaS` is made."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypedDict, Unpack

import attrs

from faasrt.config import EngineName, Level, SandboxConfig, Settings, SettingsOptions
from faasrt.errors import ConfigurationError
from faasrt.languages import Language, LanguageOption
from faasrt.protocol.health import EndpointProfile, read_profile
from faasrt.telemetry.events import Sink

if TYPE_CHECKING:
    from faasrt.local.server import LocalFaaS

ENDPOINT = "http://local"
"""The name of the endpoint in results, errors, logs and metrics. Unlike its URL, it is the same after each start."""
# How long a program may wait in the queue of the embedded FaaS if the settings have no `queue_timeout_s`.
_QUEUE_TIMEOUT_S = 30.0


class LocalOptions(TypedDict, total=False):
    level: Level
    engines: Mapping[LanguageOption, EngineName]
    python: str
    host: str
    port: int
    drain_s: float
    max_programs: int | None
    max_wall_factor: float
    max_sessions: int
    session_idle_s: float
    session_memory_mb: int | None


class LocalManagerOptions(LocalOptions, SettingsOptions, total=False):
    """The options of `RuntimeManager.local`: the options of its server, and the fields of `Settings`."""


def queue_timeout_of(settings: Settings) -> float:
    return settings.limiter.queue_timeout_s or _QUEUE_TIMEOUT_S


def add_queue_time(settings: Settings, queue_timeout_s: float) -> Settings:
    """Add the time in the queue of an embedded FaaS to the grace time, because the time limit starts after it."""
    return attrs.evolve(
        settings, timeouts=attrs.evolve(settings.timeouts, grace_s=settings.timeouts.grace_s + queue_timeout_s)
    )


class ManagedLocalFaaS:
    """The `LocalFaaS` of a manager, and the settings with which it was made. If its start fails, it can be started
    again, with another `server`.
    """

    def __init__(
        self,
        languages: Iterable[LanguageOption] | None,
        settings: Settings,
        *,
        workers: int | None,
        telemetry: Iterable[Sink],
        **options: Unpack[LocalOptions],
    ) -> None:
        if settings.endpoints:
            raise ConfigurationError("settings.endpoints must be empty, because the embedded FaaS is the endpoint")
        self.settings = settings
        self.is_started = False
        self._sandbox, self._token, self._queue_timeout_s = settings.sandbox, settings.token, queue_timeout_of(settings)
        self._workers, self._telemetry, self._options = workers, telemetry, options
        self.server = self._make_server(languages)
        self._wanted_languages = self.server.languages  # a server that starts leaves out languages that cannot run

    @property
    def languages(self) -> tuple[Language, ...]:
        """The languages that it serves. Before the start, this includes languages that only a lower level rules out."""
        if self.is_started:
            return self.server.languages
        from faasrt.local.engine_choice import missing_toolchains

        missing = missing_toolchains(self.server.languages)
        return tuple(language for language in self.server.languages if language not in missing)

    async def start(self) -> None:
        """Listen, and begin to start the engines.

        Cancellation: closes the server. The next call starts another one.
        """
        try:
            await self.server.start()
        except BaseException:
            self.server = self._make_server(self._wanted_languages)  # a LocalFaaS can be started only once
            raise
        self.is_started = True

    def endpoints(self) -> dict[Language, str]:
        return dict.fromkeys(self.languages, ENDPOINT) if self.is_started else {}

    @property
    def profile(self) -> EndpointProfile:
        """The profile in its health report. It must have been started."""
        return read_profile(self.server.health())

    def check(self, settings: Settings) -> Settings:
        """Return the settings for calls to it. Raise ConfigurationError if `endpoints` is not empty, `token` is another
        one, or a limit is above its own.
        """
        if not isinstance(settings, Settings):
            raise ConfigurationError(f"settings must be a Settings, got {type(settings).__name__}")
        if settings.endpoints:
            raise ConfigurationError(
                "settings.endpoints must be empty, because this manager always uses its embedded FaaS: make another "
                "manager for other endpoints"
            )
        if settings.token != self._token:
            raise ConfigurationError("token must be the one with which the embedded FaaS was made")
        for field in attrs.fields(SandboxConfig):
            value, limit = (getattr(sandbox, field.name) for sandbox in (settings.sandbox, self._sandbox))
            if value > limit:
                allowed = limit if isinstance(value, bool) else f"at most {limit:g}"
                raise ConfigurationError(
                    f"sandbox.{field.name} must be {allowed}, the limit with which the embedded FaaS was made"
                )
        return attrs.evolve(add_queue_time(settings, self._queue_timeout_s), endpoints=self.endpoints(), proxy=None)

    async def aclose(self) -> None:
        await self.server.aclose()

    def _make_server(self, languages: Iterable[LanguageOption] | None) -> LocalFaaS:
        if sys.platform == "win32":
            raise ConfigurationError("the embedded FaaS needs Linux or macOS: configure the endpoint of a server")
        from faasrt.local.server import LocalFaaS

        return LocalFaaS(
            languages,
            workers=self._workers,
            sandbox=self._sandbox,
            token=self._token,
            queue_timeout_s=self._queue_timeout_s,
            telemetry=self._telemetry,
            **self._options,
        )
