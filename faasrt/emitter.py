"""Who gets the events: the sinks that were brought, none of which can fail what it is told of."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from faasrt.errors import ConfigurationError
from faasrt.events import Event, HeaderSink, Sink

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,100}")
_HEADER_VALUE = re.compile(r"[ -~]{0,4096}")
_MOST_HEADERS = 32
# What frames a message, says who calls, or how the answer is to come: a sink must not make a call fail.
_OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "origin",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "sec-fetch-site",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)


def check_sinks(telemetry: Any) -> tuple[Sink, ...]:
    """Check the sinks that somebody was given.

    Raises:
        ConfigurationError: They are no iterable of sinks.
    """
    if not isinstance(telemetry, Iterable) or isinstance(telemetry, str | bytes | Mapping):
        raise ConfigurationError(
            f"telemetry must be an iterable of sinks, such as [sink], got {type(telemetry).__name__}"
        )
    sinks = tuple(telemetry)
    for sink in sinks:
        if isinstance(sink, type):
            raise ConfigurationError(f"a telemetry sink must be an object, not a class: give {sink.__name__}()")
        if not callable(sink):
            raise ConfigurationError(f"a telemetry sink must be callable with an event, got {type(sink).__name__}")
        if inspect.iscoroutinefunction(sink) or inspect.iscoroutinefunction(type(sink).__call__):
            raise ConfigurationError(f"a telemetry sink must not be async, as calls do not wait for it: {sink!r}")
    return sinks


class Emitter:
    """Hands events to sinks, and is one itself, so that several emitters can share what they know of failures.

    A sink that fails is told of once in the log, and never fails a call.

    Args:
        sinks: Called with each event, in this order.
    """

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks
        self._hears = [(sink, getattr(sink, "hears", None)) for sink in sinks]
        self._header_sinks = [sink for sink in sinks if isinstance(sink, HeaderSink)]
        self._told: set[int] = set()

    def __call__(self, event: Event) -> None:
        for sink in self._sinks:
            try:
                sink(event)
            except Exception:
                self._tell(sink)

    def hears(self, kind: type[Event]) -> bool:
        """Tell whether any sink cares for a kind of event, as long as it tells of no failure: see `faasrt.events`."""
        for sink, hears in self._hears:
            try:
                if hears is None or hears(kind):
                    return True
            except Exception:
                self._tell(sink)
        return False

    def request_headers(self, call_id: str) -> dict[str, str]:
        """Give what the sinks add to a request."""
        headers: dict[str, str] = {}
        for sink in self._header_sinks:
            try:
                for name, value in sink.request_headers(call_id).items():
                    if len(headers) == _MOST_HEADERS:
                        raise ValueError(f"sinks may add {_MOST_HEADERS} headers to a request, no more")
                    headers[_checked_name(name, value)] = value
            except Exception:
                self._tell(sink)
        return headers

    def _tell(self, sink: Sink) -> None:
        if id(sink) not in self._told:
            self._told.add(id(sink))
            logging.getLogger("faasrt").exception("a telemetry sink failed: %r", sink)


def _checked_name(name: str, value: str) -> str:
    """Give the name of a header that can do no harm, in lower case, so that two sinks do not send it twice."""
    lower = name.lower()
    if not _HEADER_NAME.fullmatch(lower) or lower in _OWN_HEADERS:
        raise ValueError(f"a sink cannot set the header {name[:100]!r}")
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"the header {name[:100]!r} must be printable ASCII, of 4,096 characters at most")
    return lower
