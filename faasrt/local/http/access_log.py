"""The access log: one line for each request. It contains no query, headers, bodies or output."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import Any

from aiohttp import web

_STDLIB = (logging.Logger, logging.LoggerAdapter)
# The status that nginx logs if a client closes its connection before the answer.
CLIENT_GONE = 499
_MAX_PATH = 100
_SESSIONS = "/sessions/"


def log_request(logger: Any, request: web.BaseRequest, *, status: int, elapsed_s: float, size: int) -> None:
    """Write the line of a request at INFO: method, path without query, status (which may be CLIENT_GONE), duration and
    size of the answer's body.

    A logger that fails, for example because stderr is closed, does not fail the request.
    """
    fields = {
        "method": request.method,
        # A query may contain a token. The raw path cannot contain a line break.
        "path": _without_id(request.raw_path.partition("?")[0])[:_MAX_PATH],
        "status": status,
        "duration_ms": round(elapsed_s * 1000, 1),
        "bytes": size,
    }
    with contextlib.suppress(Exception):
        if isinstance(logger, _STDLIB):
            logger.info("request %s", " ".join(f"{name}={value}" for name, value in fields.items()))
        else:
            logger.info("request", **fields)


def _without_id(path: str) -> str:
    """Put a hash in place of the id of a session, because everybody who knows the id can use it."""
    before, sessions, rest = path.partition(_SESSIONS)
    session_id, slash, after = rest.partition("/")
    if not session_id:
        return path
    short_hash = hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{before}{sessions}~{short_hash}{slash}{after}"
