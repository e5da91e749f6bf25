"""The page at `/`, over real sockets. `e2e.browser_page` checks it in a browser."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

import faasrt
from faasrt import __version__
from faasrt.local import LocalFaaS
from support.helpers import Clock
from support.served import connected, exchange, request

FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}


def get(path: str, method: str = "GET", **headers: str) -> bytes:
    return request(method=method, target=path, headers={"Content-Type": None, **headers})


class Elements(HTMLParser):
    """Collects the elements of a page, with the text in each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.all:
            tag, attributes, text = self.all[-1]
            self.all[-1] = (tag, attributes, text + data)


async def test_the_page_is_the_same_on_all_servers_and_opens_nothing() -> None:
    """It needs no token, and contains neither the token nor the version. All that it asks for needs the token."""
    async with LocalFaaS(["bash"], workers=1, token="s3cret") as closed, LocalFaaS(["bash"], workers=2) as other:
        for path in FILES:
            answers = [await exchange(faas.url, get(path)) for faas in (closed, other)]
            assert [answer.status for answer in answers] == [200, 200]
            assert answers[0].body == answers[1].body
            assert not {word for word in ("s3cret", __version__) if word in answers[0].body.decode()}
        own = {"Origin": closed.url, "Host": closed.url.removeprefix("http://"), "Sec-Fetch-Site": "same-origin"}
        for path in ("/health", "/metrics", "/openapi.json"):
            assert (await exchange(closed.url, get(path, **own))).status == 401
        run = request(b'{"language": "bash", "code": "true"}', headers=own)
        assert (await exchange(closed.url, run)).status == 401
        foreign = {**own, "Origin": "http://evil.example", "Authorization": "Bearer s3cret"}
        assert (await exchange(closed.url, get("/health", **foreign))).status == 403


@pytest.mark.parametrize("path", FILES)
async def test_the_headers_of_the_page(path: str) -> None:
    """The page runs no script but its own, connects to no other server, and cannot be embedded or sniffed."""
    async with LocalFaaS(["bash"], workers=1) as faas:
        answer = await exchange(faas.url, get(path))
        async with connected(faas.url) as connection:
            await connection.send(get(path, "HEAD"))
            head = await connection.answer(head_only=True)
        refused = await exchange(faas.url, request(b"{}", target=path))
    assert answer.headers["content-type"] == f"{FILES[path]}; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        **dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"), "'none'"),
        **dict.fromkeys(("script-src", "style-src", "connect-src"), "'self'"),
        "img-src": "data:",
        "require-trusted-types-for": "'script'",
    }
    headers = {name: answer.headers[name] for name in ("x-content-type-options", "x-frame-options", "referrer-policy")}
    assert [*headers.values()] == ["nosniff", "DENY", "no-referrer"]
    assert {answer.headers[f"cross-origin-{name}-policy"] for name in ("opener", "resource")} == {"same-origin"}
    assert not [name for name in answer.headers if name == "set-cookie" or name.startswith("access-control")]
    assert (head.status, head.headers["content-length"]) == (200, str(len(answer.body)))
    assert (refused.status, refused.headers["allow"]) == (405, "GET,HEAD")


async def test_the_page_has_nothing_inline() -> None:
    """Scripts and styles are files of the server, named relative to the page, so that it also works below a path."""
    async with LocalFaaS(["bash"], workers=1) as faas:
        elements = Elements((await exchange(faas.url, get("/"))).body.decode()).all
        linked = [values.get("src") or values.get("href") for _, values, _ in elements]
        names = {name for name in linked if name and name != "data:,"}
        assert names == {"page.css", "page.js"}
    for tag, attributes, text in elements:
        assert tag != "style"
        assert tag != "script" or not text.strip()
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


async def test_the_lines_that_configure_clients_are_those_of_the_guide() -> None:
    """The page shows them. Their URLs are those of routes, and `/health` has them only with the token."""
    guide = (Path(faasrt.__file__).parent / "docs" / "service-clients.md").read_text()
    more = {"verl": "", "sandbox-fusion (Python)": "/run_code", "open-r1": "/execute", "faasrt": "/run_code"}
    async with LocalFaaS(["bash"], workers=1, token="s3cret") as faas:
        assert (await exchange(faas.url, get("/health"))).status == 401
        health = (await exchange(faas.url, get("/health", Authorization="Bearer s3cret"))).json()
        settings = health["clients"]
        coze_loop = settings.pop("coze-loop")
        assert settings.keys() == more.keys()
        for client, line in settings.items():
            assert client == "faasrt" or line.format(url="http://host:8000") in guide
            path = line.partition("{url}")[2] + more[client]
            assert (await exchange(faas.url, get(path, Authorization="Bearer s3cret"))).status == 405
    for line in coze_loop.format(domain="faasrt", port=8000).splitlines():
        assert f"    {line}\n" in guide


async def test_health_has_the_uptime(clock: Clock) -> None:
    """It counts from the start of the server, and changed options do not reset it."""
    async with LocalFaaS(["bash"], workers=1) as faas:
        clock.stop()
        before = faas.health()["uptime_s"]
        clock.advance(100)
        await faas.reconfigure(LocalFaaS(["bash"], workers=2))
        assert faas.health()["uptime_s"] == before + 100
