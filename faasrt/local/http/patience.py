"""How long the client of a request waits for its answer, if this is known. A program waits in the queue for as long as
its client would still receive the answer, if the program took all of its time.
"""

from __future__ import annotations

import math
import re

from aiohttp import web

from faasrt.local.http.request_body import BadRequestError
from faasrt.protocol.program import PATIENCE_HEADER

_COZE_LOOP = "Go-http-client/"
COZE_LOOP_S = 30.0
"""The time for which the backend of coze-loop waits for an answer."""
_LARGEST_S = 86_400.0
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


def is_coze_loop(request: web.BaseRequest) -> bool:
    """Return whether the backend of coze-loop may have sent a request, which has Go's name for its client."""
    # Source: http_faas_runtime.go of coze-loop.
    return request.headers.get("User-Agent", "").startswith(_COZE_LOOP)


def read_patience(request: web.BaseRequest) -> float:
    """Return the seconds for which the client waits; infinity if this is unknown. Raise BadRequestError if the
    header is wrong.
    """
    text = request.headers.get(PATIENCE_HEADER)
    if text is None:
        return COZE_LOOP_S if is_coze_loop(request) else math.inf
    if not _SECONDS.fullmatch(text):
        raise BadRequestError(f"the header {PATIENCE_HEADER} must be a number of seconds, such as 12.5")
    return min(float(text), _LARGEST_S)
