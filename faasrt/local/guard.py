"""Who may call the embedded FaaS.

A web page in somebody's browser must not be able to run code here. Refused are a `Host` that is not this server's (DNS
rebinding), any `Origin`, a `Sec-Fetch-Site` that tells of another site, and (by the routes) a body that is not declared
as JSON: a form, or a script that wants no preflight. Nothing is ever allowed by CORS: a preflight is refused, too.
"""

from __future__ import annotations

import hmac
import re

from aiohttp import HttpVersion10, HttpVersion11, web

# An address of IPv6 stands in brackets. A port may follow, and any one will do: rebinding forges names, not ports.
_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::[0-9]*)?")
# What browsers say of a page's own requests, and of an address that somebody typed. Other programs say nothing.
_OWN_SITE = frozenset({"same-origin", "none"})


class Guard:
    """Lets requests in, or raises the refusal.

    Args:
        hosts: The host names under which the server may be called, in lower case; any when None.
        token: What callers must show, or None.
    """

    def __init__(self, *, hosts: frozenset[str] | None, token: str | None) -> None:
        self._hosts = hosts
        self._token = token.encode() if token else None

    def check(self, request: web.BaseRequest) -> None:
        """Check where a request comes from, before anything else of it is looked at.

        Raises:
            web.HTTPException: It is refused.
        """
        if request.version not in (HttpVersion10, HttpVersion11):
            raise web.HTTPVersionNotSupported(text="this server speaks HTTP/1.1", headers={"Connection": "close"})
        if self._hosts is not None and _host_name(request.headers.get("Host", "")) not in self._hosts:
            raise web.HTTPForbidden(text="the Host header does not name this server")
        if "Origin" in request.headers:
            raise web.HTTPForbidden(text="requests from web pages are refused")
        if not {site.strip().lower() for site in request.headers.getall("Sec-Fetch-Site", ())} <= _OWN_SITE:
            raise web.HTTPForbidden(text="requests from other sites are refused")
        if self._token is not None and not self._is_shown(request):
            raise web.HTTPUnauthorized(
                text="this server wants its token, as 'Authorization: Bearer ...'",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _is_shown(self, request: web.BaseRequest) -> bool:
        shown = request.headers.getall("Authorization", ())
        if len(shown) != 1 or self._token is None:
            return False
        scheme, _, token = shown[0].partition(" ")
        same = hmac.compare_digest(token.strip(" ").encode("utf-8", "surrogateescape"), self._token)
        return same and scheme.lower() == "bearer"


def _host_name(host: str) -> str | None:
    """Take the port off a Host header; None when it is none."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2] or "").lower() if match else None
