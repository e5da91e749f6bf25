"""The part of a runtime that does not run code: its languages, health, metrics, and closing."""

from __future__ import annotations

import asyncio
import copy
from typing import Self

import attrs

from faasrt._endpoint_urls import configured_url
from faasrt.client.cache import ResultCache
from faasrt.client.executor import CachingExecutor, Executor
from faasrt.client.syntax import PythonChecker
from faasrt.config import Settings
from faasrt.errors import UnsupportedLanguageError
from faasrt.languages import Language, parse_language
from faasrt.protocol.return_val import check_has_return_val, return_val_function
from faasrt.results import HealthStatus
from faasrt.telemetry.dispatch import EventDispatcher
from faasrt.telemetry.metrics import Counters, Metrics
from faasrt.transport.endpoint_registry import unsupported_error
from faasrt.transport.lifecycle import CallsInFlight
from faasrt.transport.transport import Transport


@attrs.define(eq=False, kw_only=True, slots=False)
class RuntimeBase:
    """The state of a runtime.

    Attributes:
        language: The default language of calls.
    """

    language: Language | str
    _transport: Transport
    _counters: Counters
    _emit: EventDispatcher
    _calls: CallsInFlight = attrs.field(factory=CallsInFlight, init=False)
    _executor: Executor | CachingExecutor = attrs.field(init=False)
    _checker: PythonChecker = attrs.field(factory=PythonChecker, init=False)
    _closing: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self._executor = Executor(self._transport, self._calls, self._counters, self._emit)
        self._transport.endpoints.retain()

    def get_return_val_function(self) -> str:
        """Return the source of `return_val`.

        It is needed only on js-faas with `envelope="never"`. Everywhere else `return_val` is defined.

        Raises:
            InvalidRequestError: The language is not Python, JavaScript or TypeScript.

        Example:
            >>> runtime.get_return_val_function().splitlines()[0]
            'def return_val(value):'
        """
        check_has_return_val(self.language, "return_val")
        return return_val_function(Language.parse(self.language))

    def get_supported_languages(self) -> tuple[Language | str, ...]:
        """Return the languages that this runtime's endpoints serve."""
        own = self._transport.endpoints.urls(self.language)
        if not own:
            return ()
        languages = dict.fromkeys(language for language, urls in self._settings.endpoints.items() if urls == own)
        return tuple(languages | {self.language: None})

    async def get_health_status(self) -> HealthStatus:
        """Probe all endpoints of this runtime concurrently, each within `TimeoutSettings.health_s`.

        A failed probe is an unhealthy entry in the result, not an exception.

        Raises:
            RuntimeClosedError: The runtime was closed.
        """
        with self._calls.track():
            return await self._transport.endpoints.probe_all(self._transport.endpoints.urls(self.language))

    def get_metrics(self) -> Metrics:
        """Return the metrics of this runtime's languages since the factory was created."""
        endpoints = self._transport.endpoints
        own = endpoints.urls(self.language)
        return self._counters.snapshot(
            (self.language, *self.get_supported_languages()),  # it may have left the settings
            in_flight=endpoints.pool.in_flight,
            queued=endpoints.pool.queued,
            states=tuple(state for state in endpoints.states() if configured_url(state.endpoint) in own),
        )

    @property
    def _settings(self) -> Settings:
        return self._transport.endpoints.settings

    def _use_cache(self, cache: ResultCache | None) -> Self:
        """Return a view of this runtime that reuses the results in a cache. Closing either closes both."""
        view = copy.copy(self)
        executor = Executor(self._transport, self._calls, self._counters, self._emit)
        view._executor = executor if cache is None else CachingExecutor(executor, cache)
        return view

    @property
    def closed(self) -> bool:
        """Whether closing has begun."""
        return self._calls.closing

    async def aclose(self) -> None:
        """Close the runtime. The last runtime of a factory closes the sessions. Closing twice is harmless.

        Calls that wait for a permit fail with `RuntimeClosedError` at once. Calls in flight have
        `TimeoutSettings.close_s` seconds to finish, and then fail with `RuntimeClosedError` too.

        Cancellation: cancels the calls in flight at once.
        """
        self._transport.fail_waiting(self._calls)
        await self._close_within(self._settings.timeouts.close_s)

    async def _close_within(self, seconds: float | None) -> None:
        """Close the runtime. Wait at most this many seconds for all calls, without a time limit if None."""
        try:
            await self._calls.close(seconds)
        finally:
            async with self._closing:
                if not self._calls.released:
                    self._calls.released = True
                    try:
                        await self._checker.aclose()
                    finally:
                        await self._transport.endpoints.release()

    async def __aenter__(self) -> Self:
        self._calls.check_open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        endpoints = ", ".join(self._transport.endpoints.urls(self.language))
        return f"<Runtime {self.language} at {endpoints}{' (closed)' if self.closed else ''}>"

    def _language(self, language: str | Language | None) -> Language | str:
        parsed = self.language if language is None else parse_language(language)
        if parsed != self.language and parsed not in self.get_supported_languages():
            raise UnsupportedLanguageError(
                f"language must be one of this runtime ({', '.join(self.get_supported_languages())}), got {parsed}: "
                f"get a runtime for {parsed} from the manager"
            )
        if not self._transport.endpoints.urls(parsed):
            raise unsupported_error(parsed)
        return parsed
