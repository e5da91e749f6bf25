"""Events as log lines.

If the application has configured structlog, the lines go to `structlog.get_logger("faasrt")`, with the application's
processors and context variables. Otherwise they go to the standard library's logger "faasrt", which is silent until
the application configures logging. The argument `logger` replaces both; it may be a structlog or standard library
logger. Failures of the embedded FaaS go to the logger "faasrt.local" of structlog or the standard library.

    Level    Lines
    WARNING  `call_finished` of a call that failed; `endpoint_changed` when a circuit breaker opens;
             `replicas_changed` when a look-up fails; `calls_refused`, once for each error and ten seconds, with the
             number of calls that found no place in the manager's own queue, or waited there too long.
    INFO     `call_finished` of every other call, including cancelled ones; `endpoint_changed` when a breaker closes;
             `replicas_changed` when a look-up finds other addresses, with their number. It has the addresses if
             DEBUG is enabled.
    DEBUG    All other events, including failed attempts: `call_finished` reports the error if no retry succeeds.

So at level INFO there is one line per call. A line consists of the name of the event and its fields. Fields that are
None or empty are left out, and numbers have at most four decimals.

Example:
    >>> import structlog
    >>> lines = structlog.testing.LogCapture()
    >>> logger = structlog.wrap_logger(None, processors=[lines])
    >>> async with faasrt.RuntimeManager.from_env(logger=logger) as manager:
    ...     result = await manager.run_code("print(6 * 7)", "python")
    >>> lines.entries[-1]["event"], lines.entries[-1]["log_level"], lines.entries[-1]["outcome"]
    ('call_finished', 'info', 'OK')
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import attrs

from faasrt.errors import ConfigurationError, safe_repr
from faasrt.telemetry.counted_lines import INTERVAL_S, CountedLines
from faasrt.telemetry.events import EVENT_NAMES, CallFinished, EndpointChanged, Event, ReplicasChanged

_FIELDS = {kind: tuple(field.name for field in attrs.fields(kind)) for kind in EVENT_NAMES}
_METHODS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning"}
_INFO = (CallFinished, EndpointChanged, ReplicasChanged)
# By the error of a call that was not sent.
_REMEDIES = {
    "QueueFullError": "send fewer calls at once, or raise LimiterSettings.max_queue or max_concurrency",
    "DeadlineExceededError": "add servers, or raise LimiterSettings.queue_timeout_s or TimeoutSettings.grace_s",
}
_STDLIB = (logging.Logger, logging.LoggerAdapter)
_stdlib_logger = logging.getLogger("faasrt")
_stdlib_logger.addHandler(logging.NullHandler())


class LogSink:
    """Writes a log line for each event. Raise ConfigurationError if `logger` is not one of structlog or the standard
    library.
    """

    def __init__(self, logger: Any = None) -> None:
        if logger is not None and not _is_logger(logger):
            raise ConfigurationError(f"logger must be a structlog or standard library logger, got {safe_repr(logger)}")
        self._given = logger
        self._structlog: Any = None
        self._refused = CountedLines(self._write_refused)

    def __call__(self, event: Event) -> None:
        level, logger = _level(event), self._logger()
        if not _is_enabled(logger, level):
            return
        if isinstance(event, CallFinished) and not event.attempts and event.error in _REMEDIES and self._count(event):
            return
        _write(logger, level, EVENT_NAMES[type(event)], lambda: _fields(event, logger))

    def flush(self) -> None:
        """Log the pending number of refused calls."""
        self._refused.flush()

    def _count(self, event: CallFinished) -> bool:
        with contextlib.suppress(RuntimeError):  # no event loop runs
            self._refused.count(str(event.error))
            return True
        return False

    def _write_refused(self, error: str, number: int) -> None:
        fields = {"count": number, "within_s": INTERVAL_S, "error": error, "remedy": _REMEDIES[error]}
        logger = self._logger()
        if _is_enabled(logger, logging.WARNING):
            _write(logger, logging.WARNING, "calls_refused", lambda: fields)

    def is_enabled_for(self, kind: type[Event]) -> bool:
        return self._writes(logging.INFO if kind in _INFO else logging.DEBUG)

    def wants_calls(self) -> bool:
        return self._writes(logging.INFO)  # the level of `CallFinished`; the other events have lower ones

    def _writes(self, level: int) -> bool:
        if self._given is None and not _structlog_is_configured():
            return _stdlib_logger.isEnabledFor(level)
        return _is_enabled(self._logger(), level)

    def _logger(self) -> Any:
        """Return the current logger; the application may configure structlog at any time."""
        logger = self._given
        if logger is None:
            if not _structlog_is_configured():
                return _stdlib_logger
            if self._structlog is None:
                self._structlog = _structlog_logger("faasrt")
            logger = self._structlog
        # A lazy structlog logger binds to the current configuration, or only once with `cache_logger_on_first_use`.
        return logger.bind() if hasattr(logger, "bind") else logger


def log_exception(message: str, *args: object, name: str = "faasrt") -> None:
    _log("exception", name, message, args)


def log_error(message: str, *args: object, name: str = "faasrt") -> None:
    _log("error", name, message, args)


def log_warning(message: str, *args: object, name: str = "faasrt") -> None:
    _log("warning", name, message, args)


def _log(method: str, name: str, message: str, args: tuple[object, ...]) -> None:
    if _structlog_is_configured():
        with contextlib.suppress(Exception):  # a processor of the application may fail
            getattr(_structlog_logger(name), method)(message, *args)
            return
    getattr(logging.getLogger(name), method)(message, *args)


def _write(logger: Any, level: int, name: str, fields: Callable[[], dict[str, Any]]) -> None:
    if isinstance(logger, _STDLIB):
        logger.log(level, f"{name} %s", _Fields(fields))
    elif hasattr(logger, "bind"):
        getattr(logger, _METHODS[level])(name, **fields())
    else:
        logger.log(level, name, **fields())


class _Fields:
    """The fields of a line as text, which is built when a handler formats the record."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Callable[[], dict[str, Any]]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return " ".join(f"{name}={value!r}" for name, value in self._fields().items())


def _fields(event: Event, logger: Any) -> dict[str, Any]:
    fields = {name: getattr(event, name) for name in _FIELDS[type(event)]}
    if isinstance(event, ReplicasChanged):
        # There may be hundreds.
        fields |= {"added": len(event.added) or None, "removed": len(event.removed) or None}
        if _is_enabled(logger, logging.DEBUG):
            fields |= {"added_replicas": event.added, "removed_replicas": event.removed}
    kept = {name: value for name, value in fields.items() if value is not None and value not in ("", ())}
    # To a tenth of a millisecond, because further digits are noise, and small numbers would have an exponent.
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in kept.items()}


def _level(event: Event) -> int:
    if isinstance(event, CallFinished):
        return logging.INFO if event.error in (None, "CancelledError") else logging.WARNING
    if isinstance(event, EndpointChanged):
        return logging.WARNING if event.state == "open" else logging.INFO
    if isinstance(event, ReplicasChanged):
        return logging.INFO if event.error is None else logging.WARNING
    return logging.DEBUG


def _structlog_is_configured() -> bool:
    # Do not import structlog, because that is slow. An application that configures it has imported it.
    structlog = sys.modules.get("structlog")
    return structlog is not None and structlog.is_configured()


def _structlog_logger(name: str) -> Any:
    import structlog

    return structlog.get_logger(name)


def _is_enabled(logger: Any, level: int) -> bool:
    if isinstance(logger, _STDLIB):
        return logger.isEnabledFor(level)
    # Look the method up in the class, as structlog loggers pass unknown methods to the logger that they wrap. Older
    # versions of structlog have only the second name.
    is_enabled_for = getattr(type(logger), "is_enabled_for", None) or getattr(type(logger), "isEnabledFor", None)
    try:
        return is_enabled_for is None or is_enabled_for(logger, level) or _is_captured()
    except AttributeError:  # structlog.stdlib.BoundLogger around a logger without levels
        return True


def _is_captured() -> bool:
    """Return whether `structlog.testing.capture_logs` is active; it records lines of every level."""
    import structlog

    return any(isinstance(each, structlog.testing.LogCapture) for each in structlog.get_config()["processors"])


def _is_logger(logger: object) -> bool:
    if isinstance(logger, (type, ModuleType)):
        return False
    # Do not access `log` of a lazy structlog logger, because that binds it before structlog is configured.
    return callable(getattr(type(logger), "bind", None)) or callable(getattr(logger, "log", None))
