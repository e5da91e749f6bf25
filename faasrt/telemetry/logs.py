"""Events as structlog lines, quiet until the application configures the standard library's logger "faasrt"."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import structlog

from faasrt.events import CallFinished, Event

logging.getLogger("faasrt").addHandler(logging.NullHandler())


def default_logger() -> Any:
    """Make a structlog logger that goes through `logging.getLogger("faasrt")`.

    structlog's own default prints every line to stdout, which a library must not do.
    """
    return structlog.wrap_logger(
        logging.getLogger("faasrt"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class LogSink:
    """Write each event: starts at debug, ends at debug when the code could be judged, at warning when not.

    Args:
        logger: A structlog logger; `default_logger()` when None.
    """

    def __init__(self, logger: Any = None) -> None:
        self._logger = default_logger() if logger is None else logger

    def __call__(self, event: Event) -> None:
        failed = isinstance(event, CallFinished) and event.error not in (None, "CancelledError")
        write = self._logger.warning if failed else self._logger.debug
        name = "call_finished" if isinstance(event, CallFinished) else "call_started"
        write(name, **attrs.asdict(event))
