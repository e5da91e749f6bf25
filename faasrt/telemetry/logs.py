"""Events as structlog lines, quiet until the application configures the standard library's logger "faasrt".

`logging.basicConfig(level="INFO")` is enough to see a line for each call, and what went wrong before it ended; at
DEBUG there is one for every event. A line has the name of the event, as `call_finished`, and all its fields. With
`logger=...` the lines go to a logger of the application's instead, structlog's or the standard library's, and to
whatever level that has.

Example:
    >>> import structlog
    >>> def show(logger, method, fields):
    ...     if fields["event"] == "call_finished":
    ...         print(method, fields["event"], fields["language"], fields["outcome"])
    ...     raise structlog.DropEvent
    >>> logger = structlog.wrap_logger(None, processors=[show])
    >>> async with faasrt.RuntimeManager.from_env(logger=logger) as manager:
    ...     result = await manager.run_code("print(6 * 7)", "python")
    info call_finished python OK
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, MutableMapping
from types import ModuleType
from typing import Any, TypeAlias

import attrs

from faasrt.errors import ConfigurationError, shown
from faasrt.events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    EndpointChanged,
    Event,
    ExecutionFinished,
    ExecutionStarted,
    LimitChanged,
    RetryScheduled,
)

_NAMES: dict[type[Event], str] = {
    CallStarted: "call_started",
    AttemptStarted: "attempt_started",
    AttemptFinished: "attempt_finished",
    RetryScheduled: "retry_scheduled",
    EndpointChanged: "endpoint_changed",
    LimitChanged: "limit_changed",
    CallFinished: "call_finished",
    ExecutionStarted: "execution_started",
    ExecutionFinished: "execution_finished",
}

_FIELDS = {kind: tuple(field.name for field in attrs.fields(kind)) for kind in _NAMES}

# Of those that tell of no failure.
_LEVELS: dict[type[Event], int] = {
    CallStarted: logging.DEBUG,
    AttemptStarted: logging.DEBUG,
    AttemptFinished: logging.DEBUG,
    RetryScheduled: logging.WARNING,
    EndpointChanged: logging.WARNING,
    LimitChanged: logging.DEBUG,
    CallFinished: logging.INFO,
    ExecutionStarted: logging.DEBUG,
    ExecutionFinished: logging.DEBUG,
}

_StdlibLogger: TypeAlias = "logging.Logger | logging.LoggerAdapter[Any]"

logging.getLogger("faasrt").addHandler(logging.NullHandler())


def default_logger() -> Any:
    """Make a structlog logger that goes through `logging.getLogger("faasrt")`; see `_wrap`."""
    return _wrap(logging.getLogger("faasrt"))


def _wrap(logger: _StdlibLogger) -> Any:
    """Make a structlog logger that goes through one of the standard library's.

    structlog's own default prints every line to stdout, which a library must not do.
    """
    import structlog  # a sixth of what importing the client takes, and nearly always for nothing

    return structlog.wrap_logger(
        logger,
        processors=[_render],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _render(logger: object, method: str, fields: MutableMapping[str, Any]) -> str:
    """Write what structlog's `add_log_level` and `KeyValueRenderer` would, at half the price."""
    event = fields.pop("event")
    return " ".join([f"event={event!r}", *(f"{name}={value!r}" for name, value in fields.items()), f"level={method!r}"])


class LogSink:
    """Write each event: what begins at debug, what ends at info, what failed at warning.

    Args:
        logger: A structlog logger, or one of the standard library's; `default_logger()` when None.

    Raises:
        ConfigurationError: It is no logger.
    """

    def __init__(self, logger: Any = None) -> None:
        stdlib = logging.getLogger("faasrt") if logger is None else logger
        is_stdlib = isinstance(stdlib, (logging.Logger, logging.LoggerAdapter))
        if not is_stdlib and not _is_logger(logger):
            raise ConfigurationError(f"logger must be a structlog or standard logger, got {shown(logger)}")
        # One of the standard library's knows nothing of fields: they are written into the line.
        self._stdlib: _StdlibLogger | None = stdlib if is_stdlib else None
        self._logger: Any = None if is_stdlib else logger
        # Nearly always nobody listens, and then a line is not even put together.
        self._is_enabled = stdlib.isEnabledFor if is_stdlib else None

    def __call__(self, event: Event) -> None:
        level = _level(event)
        if (self._is_enabled or self._settle())(level):
            if self._logger is None:
                assert self._stdlib is not None
                self._logger = _wrap(self._stdlib)
            kind = type(event)
            self._logger.log(level, _NAMES[kind], **{name: getattr(event, name) for name in _FIELDS[kind]})

    def hears(self, kind: type[Event]) -> bool:
        """Tell whether an event can become a line."""
        return (self._is_enabled or self._settle())(_LEVELS[kind])

    def _settle(self) -> Callable[[int], bool]:
        """Bind the application's logger when it is first used, as structlog may have been configured only now."""
        if hasattr(self._logger, "bind"):
            self._logger = self._logger.bind()
        self._is_enabled = _always
        if hasattr(type(self._logger), "is_enabled_for"):  # others would log the question
            with contextlib.suppress(AttributeError):  # one of the standard library's is asked, where it wraps one
                self._logger.is_enabled_for(logging.INFO)
                self._is_enabled = self._logger.is_enabled_for
        return self._is_enabled


def _is_logger(logger: object) -> bool:
    if isinstance(logger, (type, ModuleType)):
        return False
    # A lazy logger is not asked for `log`: it would be bound before structlog is configured.
    return callable(getattr(type(logger), "bind", None)) or callable(getattr(logger, "log", None))


def _always(level: int) -> bool:
    return True


def _level(event: Event) -> int:
    level = _LEVELS[type(event)]
    failed = level < logging.WARNING and getattr(event, "error", None) not in (None, "CancelledError")
    return logging.WARNING if failed else level
