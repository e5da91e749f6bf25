"""The access log: one line for each request. It contains no query, body or output, and only two headers: X-Request-Id,
the id of a call, and X-Forwarded-For.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from typing import Any

from aiohttp import web

from faasrt.protocol.program import CALL_ID_HEADER

_STDLIB = (logging.Logger, logging.LoggerAdapter)
# The status that nginx logs if a client closes its connection before the answer.
CLIENT_GONE = 499
_MAX_PATH = 100
_SESSIONS = "/sessions/"
_PROGRAM: web.RequestKey[dict[str, str]] = web.RequestKey("program", dict)
# Not the characters that end a field, a line or a string.
_CALL_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_ADDRESSES = re.compile(r"[0-9A-Za-z_.:\[\],-]{1,200}")


def begin_line(request: web.BaseRequest) -> None:
    """Let `note_program` add fields to the line of a request."""
    request[_PROGRAM] = {}


def note_program(request: web.BaseRequest, **fields: str) -> None:
    """Add fields about the program of a request to its line, if there is an access log."""
    if (noted := request.get(_PROGRAM)) is not None:
        noted.update(fields)


def log_request(logger: Any, request: web.BaseRequest, *, status: int, elapsed_s: float, size: int) -> None:
    """Write the line of a request at INFO: client, method, path without query, status (which may be CLIENT_GONE),
    duration and size of the answer's body, the id of the call, and the language and outcome of the program.

    Fields without a value are left out. A logger that fails, for example because stderr is closed, does not fail the
    request.
    """
    fields = {
        "client": request.remote,
        "forwarded_for": _header(request, "X-Forwarded-For", _ADDRESSES),
        "method": request.method,
        # A query may contain a token. The raw path cannot contain a line break.
        "path": _without_id(request.raw_path.partition("?")[0])[:_MAX_PATH],
        "status": status,
        "duration_ms": round(elapsed_s * 1000, 1),
        "bytes": size,
        "call_id": _header(request, CALL_ID_HEADER, _CALL_ID),
        **request.get(_PROGRAM, {}),
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    with contextlib.suppress(Exception):
        if isinstance(logger, _STDLIB):
            logger.info("request %s", " ".join(f"{name}={value}" for name, value in fields.items()))
        else:
            logger.info("request", **fields)


def _header(request: web.BaseRequest, name: str, pattern: re.Pattern[str]) -> str | None:
    """Return the values of a header, joined by commas; None if there is none, or if a value cannot be logged."""
    value = ",".join(request.headers.getall(name, ())).replace(" ", "")
    return value if pattern.fullmatch(value) else None


def _without_id(path: str) -> str:
    """Put a hash in place of the id of a session, because everybody who knows the id can use it."""
    before, sessions, rest = path.partition(_SESSIONS)
    session_id, slash, after = rest.partition("/")
    if not session_id:
        return path
    short_hash = hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{before}{sessions}~{short_hash}{slash}{after}"
