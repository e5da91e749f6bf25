"""The page at `/`: a browser shows the status of the server there, and runs programs.

Its files are the same on every server and need no token. The page asks the API for the rest, with the token that the
user enters. The headers allow only its own script, which cannot turn text into markup, and no page may embed it.
"""

from __future__ import annotations

from importlib import resources

from aiohttp import web

from faasrt.local.http.body_memory import Share
from faasrt.local.http.responses import Handler

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def _make_handler(name: str, content_type: str) -> Handler:
    # Read at import, so that the event loop never waits for the file.
    body = resources.files("faasrt.local.http").joinpath("static", name).read_bytes()

    async def answer(request: web.BaseRequest, share: Share) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return answer


ROUTES = {
    "/": {"GET": _make_handler("page.html", "text/html")},
    "/page.css": {"GET": _make_handler("page.css", "text/css")},
    "/page.js": {"GET": _make_handler("page.js", "text/javascript")},
}
