"""Access control of the embedded FaaS.

A web page in a browser must not be able to run code here. The server refuses a `Host` that is not its own (DNS
rebinding), any `Origin`, and a `Sec-Fetch-Site` that names another site. The routes refuse a body that is not declared
as JSON, as forms and scripts without a preflight send it. CORS allows nothing: a preflight is refused, too.
"""

from __future__ import annotations

import hmac
import re

import attrs
from aiohttp import HttpVersion10, HttpVersion11, web

# An IPv6 address stands in brackets. Any port is accepted: DNS rebinding forges names, not ports.
_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::[0-9]*)?")
# Browsers send these for requests of the server's own pages, and for addresses that were typed in.
_OWN_SITE = frozenset({"same-origin", "none"})


@attrs.frozen
class AccessPolicy:
    """Decides which requests are allowed.

    Args:
        hosts: The allowed host names, in lower case; None allows any.
        token: The token that callers must send; None requires none.
    """

    _hosts: frozenset[str] | None
    _token: str | None = attrs.field(repr=False)

    def check(self, request: web.BaseRequest) -> None:
        """Check the headers of a request. Call this before reading anything else of it.

        Raises:
            web.HTTPException: The request is refused.
        """
        if request.version not in (HttpVersion10, HttpVersion11):
            raise web.HTTPVersionNotSupported(text="this server speaks HTTP/1.1", headers={"Connection": "close"})
        if self._hosts is not None and _host_name(request.headers.get("Host", "")) not in self._hosts:
            raise web.HTTPForbidden(text="the Host header does not name this server")
        if "Origin" in request.headers:
            raise web.HTTPForbidden(text="requests from web pages are refused")
        if not {site.strip().lower() for site in request.headers.getall("Sec-Fetch-Site", ())} <= _OWN_SITE:
            raise web.HTTPForbidden(text="requests from other sites are refused")
        if self._token is not None and not _has_token(request, self._token):
            raise web.HTTPUnauthorized(
                text="this server requires its token, as 'Authorization: Bearer ...'",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _has_token(request: web.BaseRequest, expected: str) -> bool:
    # Several headers never match.
    scheme, _, token = ",".join(request.headers.getall("Authorization", ())).partition(" ")
    same = hmac.compare_digest(token.strip(" ").encode("utf-8", "surrogateescape"), expected.encode())
    return same and scheme.lower() == "bearer"


def _host_name(host: str) -> str | None:
    """Return the name in a Host header; None when it is invalid."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2] or "").lower() if match else None
