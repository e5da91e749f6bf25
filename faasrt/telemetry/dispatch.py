"""Passes events to the sinks. No sink can make a call fail."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from faasrt.errors import ConfigurationError
from faasrt.telemetry.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    Event,
    HeaderSink,
    Sink,
)
from faasrt.telemetry.logs import LogSink, log_exception

_CALL_EVENTS = (CallStarted, AttemptStarted, AttemptFinished, CallFinished)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,100}")
_HEADER_VALUE = re.compile(r"[ -~]{0,4096}")
_MOST_HEADERS = 32
# Headers that delimit a message, authenticate the caller or negotiate the answer: setting them may make a call fail.
_OWN_HEADER = re.compile(
    "accept|accept-encoding|authorization|connection|content-encoding|content-length|content-type|cookie|expect|host|"
    "keep-alive|origin|proxy-authorization|proxy-connection|range|sec-fetch-site|te|trailer|transfer-encoding|upgrade|"
    "user-agent"
)


def check_sinks(telemetry: Any) -> tuple[Sink, ...]:
    if not isinstance(telemetry, Iterable) or isinstance(telemetry, str | bytes | Mapping):
        raise ConfigurationError(
            f"telemetry must be an iterable of sinks, such as [sink], got {type(telemetry).__name__}"
        )
    sinks = tuple(telemetry)
    for sink in sinks:
        if isinstance(sink, type):
            raise ConfigurationError(f"telemetry must contain instances, not classes: pass {sink.__name__}()")
        if not callable(sink):
            raise ConfigurationError(f"telemetry must contain callables that take an event, got {type(sink).__name__}")
        if inspect.iscoroutinefunction(sink) or inspect.iscoroutinefunction(type(sink).__call__):
            raise ConfigurationError(f"telemetry must not contain async callables, got {sink!r}")
    return sinks


class EventDispatcher:
    """A sink that passes events to other sinks, in their order. A sink that fails is logged once, and never fails a
    call.
    """

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks
        self._filters = [(sink, getattr(sink, "is_enabled_for", None)) for sink in sinks]
        self._call_filters = [(sink, self._call_filter(sink)) for sink in sinks]
        self._header_sinks = [sink for sink in sinks if isinstance(sink, HeaderSink)]
        self.adds_headers = bool(self._header_sinks)
        self._logged: set[int] = set()

    def __call__(self, event: Event) -> None:
        for sink in self._sinks:
            try:
                sink(event)
            except Exception:
                self._log(sink)

    def flush(self) -> None:
        """Log the pending counts now."""
        for sink in self._sinks:
            if isinstance(sink, (LogSink, EventDispatcher)):
                sink.flush()

    def is_enabled_for(self, kind: type[Event]) -> bool:
        """Return whether any sink wants events of this kind that do not report a failure."""
        for sink, is_enabled_for in self._filters:
            try:
                if is_enabled_for is None or is_enabled_for(kind):
                    return True
            except Exception:
                self._log(sink)
        return False

    def wants_calls(self) -> bool:
        for sink, wants_calls in self._call_filters:
            try:
                if wants_calls():
                    return True
            except Exception:
                self._log(sink)
        return False

    def _call_filter(self, sink: Sink) -> Callable[[], bool]:
        if isinstance(sink, (LogSink, EventDispatcher)):
            return sink.wants_calls  # one question instead of one for each kind of event
        return lambda: any(map(self.is_enabled_for, _CALL_EVENTS))

    def request_headers(self, call_id: str) -> dict[str, str]:
        headers: dict[str, str] = {}
        for sink in self._header_sinks:
            try:
                for name, value in sink.request_headers(call_id).items():
                    if len(headers) == _MOST_HEADERS:
                        raise ValueError(f"sinks may add at most {_MOST_HEADERS} headers to a request")
                    headers[_checked_name(name, value)] = value
            except Exception:
                self._log(sink)
        return headers

    def _log(self, sink: Sink) -> None:
        if id(sink) not in self._logged:
            self._logged.add(id(sink))
            log_exception("a telemetry sink failed: %r", sink)


def _checked_name(name: str, value: str) -> str:
    """Return the name in lower case, so that two sinks cannot both add the header. Raise ValueError if it is
    refused.
    """
    lower = name.lower()
    if not _HEADER_NAME.fullmatch(lower) or _OWN_HEADER.fullmatch(lower):
        raise ValueError(f"a sink must not set the header {name[:100]!r}")
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"the header {name[:100]!r} must have at most 4,096 characters of printable ASCII")
    return lower
