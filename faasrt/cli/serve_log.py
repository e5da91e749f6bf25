from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from faasrt.cli.output import write_message

LOGGER = logging.getLogger("faasrt.serve")


def start_log(log_format: str) -> Callable[[str], None]:
    if log_format == "text":
        # The library logs nothing by default, but the command shows why an engine fails.
        logging.basicConfig(format="faasrt: %(message)s")
        return _write
    steps: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=steps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _json()],
        )
    )
    logging.basicConfig(handlers=[handler])
    logging.captureWarnings(capture=True)
    LOGGER.setLevel(logging.INFO)
    return LOGGER.info


def _write(text: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be closed, which must not end the server
        write_message(text)


def make_access_log(log_format: str) -> Any:
    """Return a logger that writes one line to stderr for each request. It is the same one for the same format."""
    return _make_access_log(log_format, sys.stderr)


@functools.cache
def _make_access_log(log_format: str, stream: TextIO) -> Any:
    stamp = structlog.processors.TimeStamper(fmt="iso")
    if log_format == "text":
        steps: list[Processor] = [stamp, structlog.processors.LogfmtRenderer(key_order=["timestamp", "event"])]
        return structlog.wrap_logger(structlog.WriteLogger(stream), processors=steps)
    steps = [structlog.processors.add_log_level, stamp, _json()]
    return structlog.wrap_logger(structlog.WriteLogger(stream), processors=steps).bind(logger="faasrt.access")


def _json() -> structlog.processors.JSONRenderer:
    return structlog.processors.JSONRenderer(sort_keys=True)
