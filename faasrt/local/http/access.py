"""Access control of the embedded FaaS.

A web page in a browser must not be able to run code here, except the server's own page. So the server refuses a `Host`
that is not its own (against DNS rebinding), an `Origin` with another host or port than `Host`, and a `Sec-Fetch-Site`
that names another site. The routes also refuse bodies that are not declared as JSON, because forms and scripts can send
such bodies without a CORS preflight. Preflights are refused.
"""

from __future__ import annotations

import base64
import hmac
import re

from aiohttp import HttpVersion10, HttpVersion11, web
from multidict import MultiMapping

# An IPv6 address is in brackets. Any port is accepted, because DNS rebinding forges names, not ports.
_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::[0-9]*)?")
# Browsers send these values for requests from the server's own pages, and for addresses that a user typed.
_OWN_SITE = frozenset({"same-origin", "none"})


class AccessPolicy:
    """Decides which requests are allowed on a server that listens on `host`. With a token, it does not check names."""

    def __init__(self, host: str, token: str | None) -> None:
        self._hosts = None if token else {"localhost", "127.0.0.1", "::1", host.lower()}
        self._token = token

    def check(self, request: web.BaseRequest, *, needs_token: bool = True) -> None:
        """Check the headers of a request before its body is read. Raise HTTPException if the request is refused."""
        if request.version not in (HttpVersion10, HttpVersion11):
            raise web.HTTPVersionNotSupported(text="this server speaks HTTP/1.1", headers={"Connection": "close"})
        self.check_headers(request.headers, needs_token=needs_token)

    def check_headers(self, headers: MultiMapping[str], *, needs_token: bool = True) -> None:
        if self._hosts is not None and _host_name(headers.get("Host", "")) not in self._hosts:
            raise web.HTTPForbidden(text="the Host header does not name this server")
        if "Origin" in headers and not _is_own_origin(headers):
            raise web.HTTPForbidden(text="requests from other web pages are refused (Origin header)")
        if not {site.strip().lower() for site in headers.getall("Sec-Fetch-Site", ())} <= _OWN_SITE:
            raise web.HTTPForbidden(text="requests from other sites are refused (Sec-Fetch-Site header)")
        if needs_token and self._token is not None and not _has_token(headers, self._token):
            raise web.HTTPUnauthorized(
                text="the token is missing or wrong: send 'Authorization: Bearer TOKEN', or http://user:TOKEN@...",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _is_own_origin(headers: MultiMapping[str]) -> bool:
    # A proxy may have removed TLS, so the scheme in the header may differ from the scheme of this connection.
    host = headers.get("Host", "").lower()
    return {origin.lower() for origin in headers.getall("Origin")} <= {f"http://{host}", f"https://{host}"}


def _has_token(headers: MultiMapping[str], expected: str) -> bool:
    # Several Authorization headers are joined, so that they never match.
    scheme, _, token = ",".join(headers.getall("Authorization", ())).partition(" ")
    sent = token.strip(" ").encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        sent = _password(sent)
    same = hmac.compare_digest(sent, expected.encode())
    return same and scheme.lower() in ("bearer", "basic")


def _password(credentials: bytes) -> bytes:
    """Return the password of `http://user:password@host`, which clients send by the scheme Basic; b"" if it is
    malformed.
    """
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _host_name(host: str) -> str | None:
    match = _HOST.fullmatch(host)
    return (match[1] or match[2] or "").lower() if match else None
