"""Malformed and hostile HTTP requests to the embedded FaaS, over real sockets.

If HTTP allows it, the server answers with a 4xx and an error in JSON. It runs nothing and gives no access to web pages.
No log line contains a traceback or a part of the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
import logging
import re
import socket
import ssl
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import pytest_asyncio

import faasrt
from faasrt import Outcome, RetrySettings, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.engines.deno.engine import DenoEngine
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.http import limits
from faasrt.local.http.connections import BoundedConnection
from support.helpers import Clock, fast_forward, manager_for
from support.levels import without_level
from support.served import PATIENCE_S, Answer, Connection, connected, exchange, request, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARK = "a_name_of_the_program"
CODE = f"const {MARK} = 1; console.log({MARK})"
RUN = {"language": "js", "code": CODE}


def type_name(value: object) -> str:
    """Return a short id for a parameter that is too long for one. pytest appends a number."""
    return type(value).__name__


def encoded(**fields: Any) -> bytes:
    return json.dumps({**RUN, **fields}).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def faas(tls: ssl.SSLContext | None) -> AsyncIterator[LocalFaaS]:
    """A server for JavaScript only, because that starts fast."""
    async with LocalFaaS(["js"], workers=1, sandbox=SandboxConfig(timeout_limit_s=60), ssl=tls) as server:
        await server.wait_ready("js")
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def fresh() -> AsyncIterator[LocalFaaS]:
    """A new server, which takes the limits that the test has set."""
    async with LocalFaaS(["js"], workers=1, sandbox=SandboxConfig(timeout_limit_s=60)) as server:
        await server.wait_ready("js")
        yield server


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The expected lines of the server's log, without counts of refused requests. No line of any log may contain the
    program or a traceback.
    """
    caplog.set_level(logging.DEBUG)
    lines: list[str] = []
    yield lines
    for record in caplog.get_records("call"):
        assert record.exc_info is None, record
        assert MARK not in record.getMessage()
        assert not record.name.startswith("aiohttp"), record
    logged = [record.getMessage() for record in caplog.get_records("call") if record.name.startswith("faasrt.local")]
    assert [line for line in without_level(logged) if not line.startswith("refused in 10 s: ")] == lines


async def executions(faas: LocalFaaS) -> Any:
    metrics = (await exchange(faas.url, request(method="GET", target="/metrics"))).json()
    return [engine["executions"] for engine in metrics["engines"].values()]


@contextlib.asynccontextmanager
async def nothing_runs(faas: LocalFaaS) -> AsyncIterator[None]:
    before = await executions(faas)
    yield
    assert await executions(faas) == before


def assert_refused(answer: Answer, status: int, words: str = "") -> None:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert set(answer.json()) == {"error", "details"}
    assert words in answer.json()["details"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


def body_of(extra: str) -> bytes:
    """Return a valid body with a piece of text appended as a further field."""
    return encoded()[:-1] + b", " + extra.encode() + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        encoded() + b"x",
        encoded().replace(b'"', b"'"),
        b"\xef\xbb\xbf" + encoded(),
        encoded().decode().encode("utf-16"),
        encoded().decode().encode("utf-32"),
        encoded().replace(b"const", b"\xff\xfe"),
        encoded().replace(b"const", b"\xed\xa0\x80"),
        encoded().replace(b"const", b"\x00"),
        body_of('"code": "console.log(2)"'),
        body_of('"ext": {"a": 1, "a": 2}'),
        body_of('"timeout": NaN'),
        body_of('"timeout": Infinity'),
        body_of('"ext": {"a": -Infinity}'),
        body_of('"timeout": 1e999'),
        body_of('"timeout": ' + "9" * 5_000),
        body_of('"timeout": 0x10'),
        body_of('"ext": ' + "[" * 30_000),
        body_of('"ext": ' + "[" * 30_000 + "]" * 30_000),
        body_of('"ext": ' + '{"a":' * 12_000 + "1" + "}" * 12_000),
    ],
    ids=type_name,
)
async def test_invalid_json_is_refused(faas: LocalFaaS, body: bytes) -> None:
    """Other encodings, dialects of JSON, and ambiguous JSON such as repeated names are refused, too."""
    async with nothing_runs(faas):
        for path in ("/run_code", "/validate_code"):
            assert_refused(await exchange(faas.url, request(body, target=path)), 400)


async def test_a_validation_is_not_counted_as_an_execution(faas: LocalFaaS) -> None:
    async with nothing_runs(faas):
        assert (await exchange(faas.url, request(encoded(), target="/validate_code"))).json()["valid"] is True


SIZE = 8 * 2**20 - 1_000
HOSTILE: dict[str, Callable[[], str]] = {
    "brackets": lambda: "[" * SIZE,
    "lists": lambda: "[" + "[]," * (SIZE // 3) + "[]]",
    "objects": lambda: "[" + '{"":{}},' * (SIZE // 8) + "{}]",
    "names": lambda: "{" + ",".join(f'"{number:x}":0' for number in range(SIZE // 12)) + "}",
    "numbers": lambda: "[" + "0," * (SIZE // 2) + "0]",
    "digits": lambda: "[" + ("9" * 4_000 + ",") * (SIZE // 4_001) + "0]",
    "strings": lambda: "[" + '"",' * (SIZE // 3) + '""]',
    "blanks": lambda: " " * SIZE + "1",
    "an endless string": lambda: '"' + r"\"" * (SIZE // 2),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_large_bodies_with_many_values_are_refused(faas: LocalFaaS, kind: str) -> None:
    """Decoding 8 MiB of values would block the event loop for half a second and need hundreds of MB."""
    async with nothing_runs(faas):
        assert_refused(await exchange(faas.url, request(body_of(f'"ext": {HOSTILE[kind]()}'))), 400)


async def test_a_large_program_runs(faas: LocalFaaS) -> None:
    """A large string with any characters is decoded."""
    code = "console.log('" + '\\"\n\\n\u20ac\U0001f600'.replace("\n", "") * 100_000 + "'.length)"
    answer = await exchange(faas.url, request(encoded(code=code)))
    assert answer.json()["output"]["stdout"] == f"{100_000 * 5}\n"


DEEP = json.loads('{"a":' * 400 + "1" + "}" * 400)
BAD_FIELDS = {
    "language": (None, 1, True, [], ["js"], {}, "", "ruby", "js;python", "\ud800", "j" * 10_000, DEEP),
    "code": (None, 1, True, [], ["1"], {}, "", " \n", DEEP),
    "timeout": (0, -1, -0.0, "5", True, False, [], {}, DEEP, -(10**400)),
    "priority": (1, True, [], {}, DEEP),
    "ext": (1, True, "a", [], [["a", "b"]]),
    "sandbox": (1, "a", [], {"cpus": 1}, {"\ud800": 1}, {"timeout": 5}),
}
BAD_LIMITS: dict[str, tuple[Any, ...]] = {
    "timeout_ms": (0, -1, "5", True, [], DEEP),
    "memory_limit_mb": (0, 1, -1, "64", True, [64], DEEP),
    "max_output_bytes": (0, -1, "5", True, {}, DEEP),
    "network_enabled": (0, 1, "true", [], True, DEEP),
}


@pytest.mark.parametrize("field", [*BAD_FIELDS, *BAD_LIMITS])
async def test_wrong_types_and_values_of_fields_are_refused(faas: LocalFaaS, field: str) -> None:
    """The error names the field. Limits that cannot be enforced, or are misplaced, are refused, not ignored."""
    bad = [{field: value} for value in BAD_FIELDS.get(field, ())]
    if field in BAD_LIMITS:
        bad += [{field: 100}, *({"sandbox": {field: value}} for value in BAD_LIMITS[field])]
    assert bad
    async with nothing_runs(faas):
        for fields in bad:
            assert_refused(await exchange(faas.url, request(encoded(**fields))), 400, field)


LONG = "x" * 8_000_000
LARGE_FIELDS = {
    "language": {"language": LONG},
    "timeout": {"timeout": LONG},
    "code": {"code": [LONG]},
    "priority": {"priority": [LONG]},
    "ext": {"ext": LONG},
    "sandbox": {"sandbox": {LONG: 1}},
    "memory_limit_mb": {"sandbox": {"memory_limit_mb": LONG}},
    "network_enabled": {"sandbox": {"network_enabled": LONG}},
}


@pytest.mark.parametrize("field", LARGE_FIELDS)
async def test_an_error_quotes_only_the_start_of_a_value(faas: LocalFaaS, field: str) -> None:
    """The error names the field and is short, however long the value is."""
    answer = await exchange(faas.url, request(encoded(**LARGE_FIELDS[field])))
    assert_refused(answer, 400, field)
    assert len(answer.body) < 500


@pytest.mark.parametrize(
    "data",
    [
        request(target="/" + "x" * 5_000),
        request(method="X" * 5_000),
        request(headers={"Host": "x" * 5_000}),
        request(headers={"Content-Type": "x/" + "y" * 5_000}),
        request(headers={"Content-Encoding": "x" * 5_000}),
        request(headers={"Origin": "x" * 5_000}),
        request(headers={"Content-Length": "x" * 5_000}),
        request(headers={"Transfer-Encoding": "x" * 5_000}),
        request(headers={"y" * 5_000 + "\0": "x"}),
    ],
    ids=["target", "method", "host", "type", "encoding", "origin", "length", "transfer", "name"],
)
async def test_an_error_does_not_repeat_target_method_or_headers(faas: LocalFaaS, data: bytes) -> None:
    """The error is short, however long they are."""
    answer = await exchange(faas.url, data)
    assert 400 <= answer.status < 500
    assert len(answer.body) < 500


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(("ext", "priority", "timeout", "sandbox", "displays", "stdin", "argv", "files", "collect")),
        {"sandbox": dict.fromkeys(("timeout_ms", "memory_limit_mb", "max_output_bytes", "network_enabled"))},
        {"ext": {}, "priority": "normal"},
        {"ext": {"a": "b"}, "priority": ""},
        {"ext": {"a": {"b": [1, None, {"c": "d"}]}}, "input": {"any": "thing"}, "unknown": DEEP},
        {"ext": DEEP},
        {"timeout": 1e308},
        {"timeout": 10**400},
        {"timeout": 1500.5, "sandbox": {}},
        {"language": " JavaScript "},
        {"sandbox": {"max_output_bytes": 1e300, "memory_limit_mb": 64.5, "network_enabled": False}},
    ],
    ids=type_name,
)
async def test_harmless_fields_and_values_are_accepted(faas: LocalFaaS, fields: dict[str, Any]) -> None:
    """Any `ext`, unknown fields, and limits above the server's are accepted. The server's limits apply."""
    answer = await exchange(faas.url, request(encoded(**fields)))
    assert (answer.status, answer.json()["outcome"]) == (200, "OK")


async def test_too_large_bodies_are_refused(faas: LocalFaaS) -> None:
    """A body is refused because of its Content-Length, or as it arrives. It is not kept in memory."""
    process = psutil.Process()
    before = process.memory_info().rss
    piece = b"x" * 2**20
    async with nothing_runs(faas):
        async with connected(faas.url) as connection:
            await connection.send(request(headers={"Content-Length": str(100 * 2**20)}))
            assert_refused(await connection.answer(), 413, "8388608")
        async with connected(faas.url) as connection:
            await connection.send(request(headers={"Content-Length": None, "Transfer-Encoding": "chunked"}))
            for _ in range(40):
                await connection.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            assert_refused(await connection.answer(), 413, "8388608")
    assert process.memory_info().rss - before < 24 * 2**20


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP", "identity, gzip"])
async def test_compressed_bodies_are_refused(faas: LocalFaaS, coding: str) -> None:
    """They are never decompressed, because 100 KB could become 100 MB."""
    bomb = zlib.compress(b"x" * 100_000_000) if coding == "deflate" else gzip.compress(b"x" * 10_000_000)
    before = psutil.Process().memory_info().rss
    async with nothing_runs(faas):
        answer = await exchange(faas.url, request(bomb, headers={"Content-Encoding": coding}))
    assert_refused(answer, 415, "compressed")
    assert answer.headers["accept-encoding"] == "identity"
    assert psutil.Process().memory_info().rss - before < 40 * 2**20


# ---- web pages and tokens


EVIL = "https://evil.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        *(({"Host": host}, 200) for host in ("localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]", "[::1]:8000")),
        *(
            ({"Host": host}, 403)
            for host in ("evil.example", "evil.example:80", "localhost.", "localhost.evil.example")
        ),
        *(
            ({"Host": host}, 403)
            for host in ("", "[::1%25lo]", "[::1]evil", "[::1", "::1", "127.0.0.1:80:80", "localhost:x")
        ),
        *(({"Host": host}, 403) for host in ("user@localhost", "localhost/", "127.0.0.2", "127.1", "0.0.0.0", "\xe9")),
        *(({"Origin": origin}, 200) for origin in ("http://127.0.0.1", "https://127.0.0.1", "HTTP://127.0.0.1")),
        *(({"Origin": origin}, 403) for origin in (EVIL, "null", "", "127.0.0.1", "http://", "ws://127.0.0.1")),
        *(({"Origin": origin}, 403) for origin in ("http://127.0.0.1:80", "http://127.0.0.1/", "http://localhost")),
        *(({"Origin": f"http://127.0.0.1{more}"}, 403) for more in (".evil.example", " http://evil", ", null", "@x")),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),  # DNS rebinding
        ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "cross-site"}, 403),
        *(
            ({"Sec-Fetch-Site": site}, 403)
            for site in ("cross-site", "same-site", "Cross-Site", "", "none, cross-site")
        ),
        *(({"Sec-Fetch-Site": site}, 200) for site in ("none", "same-origin")),
        *(
            ({"Content-Type": kind}, 415)
            for kind in (None, "", "text/plain", "text/plain;application/json", "text/json")
        ),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/json, text/plain"}, 415),
        ({"Content-Type": "text/plain; charset*"}, 415),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 200),
    ],
    ids=str,
)
async def test_requests_of_web_pages_are_refused(faas: LocalFaaS, headers: dict[str, str | None], status: int) -> None:
    """DNS rebinding, other sites, forms and scripts are refused on each path. Ordinary clients are served."""
    for path in ("/run_code", "/validate_code"):
        answer = await exchange(faas.url, request(encoded(), target=path, headers=headers))
        if status == 200:
            assert answer.status == 200, answer
        else:
            assert_refused(answer, status)
    if status == 403:
        for path in ("/health", "/metrics", "/openapi.json", "/", "/page.js"):
            assert_refused(await exchange(faas.url, request(method="GET", target=path, headers=headers)), 403)


async def test_cors_preflight_requests_are_refused(faas: LocalFaaS) -> None:
    """No answer has a CORS header."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    asked["Access-Control-Request-Private-Network"] = "true"
    assert_refused(await exchange(faas.url, request(method="OPTIONS", headers={"Origin": EVIL, **asked})), 403)
    assert_refused(await exchange(faas.url, request(method="OPTIONS", headers=asked)), 405)
    answer = await exchange(faas.url, request(encoded()))
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_repeated_headers_are_refused(faas: LocalFaaS) -> None:
    """If a header is sent twice, one valid value does not hide an invalid one."""
    async with nothing_runs(faas):
        for twice in (
            "Host: 127.0.0.1",
            "Content-Type: text/plain",
            "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site",
            f"Origin: http://127.0.0.1\r\nOrigin: {EVIL}",
        ):
            data = request(encoded()).replace(b"\r\n", f"\r\n{twice}\r\n".encode(), 1)
            answer = await exchange(faas.url, data)
            assert_refused(answer, 403 if "Sec" in twice or "Origin" in twice else 400)


async def test_every_path_requires_the_token() -> None:
    """Requests without the exact token get 401. The scheme `Bearer` may be written in any case."""
    async with LocalFaaS(["js"], token="s3cret", workers=1) as faas:
        await faas.wait_ready("js")
        wrong = ("", "s3cret", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crett", "Bearer S3CRET", "Basic s3cret")
        for shown in (None, *wrong, "Bearer s3cret, Bearer s3cret", "Bearer \xe9", "Bearer s3cret x"):
            for path in ("/run_code", "/health", "/nope", "/openapi.json"):
                method = "POST" if path == "/run_code" else "GET"
                data = request(encoded(), method=method, target=path, headers={"Authorization": shown})
                answer = await exchange(faas.url, data)
                assert_refused(answer, 401, "token")
                assert answer.headers["www-authenticate"] == "Bearer"
        for twice in ("Bearer s3cret\r\nAuthorization: Bearer x", "Bearer x\r\nAuthorization: Bearer s3cret"):
            assert_refused(await exchange(faas.url, request(encoded(), headers={"Authorization": twice})), 401)
        assert_refused(
            await exchange(faas.url, request(encoded(), headers={"Authorization": "Bearer s3cret", "Origin": EVIL})),
            403,
        )
        for shown in ("Bearer s3cret", "bearer s3cret", "BEARER  s3cret"):
            # With a token any Host is accepted, because no web page knows the token.
            headers = {"Authorization": shown, "Host": "faas.example"}
            assert (await exchange(faas.url, request(encoded(), headers=headers))).status == 200


# ---- paths, methods and malformed HTTP


@pytest.mark.parametrize(
    "target",
    [
        *("//run_code", "/run_code/", "/run_code//", "/./run_code", "/health/../run_code", "/run_code/../run_code"),
        *("/run_code%00", "/%72un_code", "/%2e%2e/run_code", "/run_code;x", "/RUN_CODE", "/run_code#x", "/.", "*"),
        *(
            "http://127.0.0.1/run_code",
            "http://evil.example/run_code",
            "//evil.example/run_code",
            "\\run_code",
            "run_code",
        ),
    ],
)
async def test_only_exact_paths_are_served(faas: LocalFaaS, target: str) -> None:
    """Paths are neither decoded nor normalized. A query is ignored."""
    async with nothing_runs(faas):
        answer = await exchange(faas.url, request(encoded(), target=target))
        assert_refused(answer, answer.status)
        assert answer.status in (400, 404)
    assert (await exchange(faas.url, request(encoded(), target="/run_code?any=query"))).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "CONNECT", "PROPFIND"])
async def test_other_methods_are_refused(faas: LocalFaaS, method: str) -> None:
    """The answer has an Allow header. Nothing is echoed, tunnelled or run."""
    async with nothing_runs(faas), connected(faas.url) as connection:
        target = "evil.example:443" if method == "CONNECT" else "/run_code"
        await connection.send(request(method=method, target=target, headers={"Content-Length": None}))
        answer = await connection.answer(head_only=method == "HEAD")
        assert (answer.status, answer.headers["content-type"]) == (
            404 if method == "CONNECT" else 405,
            "application/json",
        )
        assert answer.headers.get("allow") == (None if method == "CONNECT" else "POST")
    assert (await exchange(faas.url, request(method="POST", target="/health"))).headers["allow"] == "GET,HEAD"


BODY = encoded()
SMUGGLED = request(BODY)
OTHER_VERSIONS = (b"GET /health\r\n\r\n", b"GET /health HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n")
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\nnonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        *OTHER_VERSIONS,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /run_code HTTP/1.1\r\nContent-Type: application/json\r\n\r\n",
        request(BODY, headers={"X": "a\x00b"}),
        request(BODY, target="/run\x00_code"),
        request(BODY, target="/run_code" + "x" * 10_000),
        request(BODY, headers={"X": "x" * 10_000}),
        request(BODY, headers={f"X-{number}": "x" for number in range(1_000)}),
        request(BODY, headers={"Content-Length": "-1"}),
        request(BODY, headers={"Content-Length": "1e3"}),
        request(BODY, headers={"Content-Length": "9" * 30}),
        request(BODY, headers={"Content-Length": f"{len(BODY)}\r\nContent-Length: 5"}),
        request(b"0\r\n\r\n" + SMUGGLED, headers={"Transfer-Encoding": "chunked"}),
        request(CHUNKED, headers={"Content-Length": None, "Transfer-Encoding": "chunked, identity"}),
        request(CHUNKED, headers={"Content-Length": None, "Transfer-Encoding": "x\r\nTransfer-Encoding: chunked"}),
        request(CHUNKED, headers={"Content-Length": None, "Transfer-Encoding ": "chunked"}),
        request(b"-5\r\n" + BODY, headers={"Content-Length": None, "Transfer-Encoding": "chunked"}),
        request(b"fffffffffffffffff\r\n" + BODY, headers={"Content-Length": None, "Transfer-Encoding": "chunked"}),
        request(BODY, headers={"Host": "127.0.0.1\r\n folded"}),
    ],
    ids=type_name,
)
async def test_malformed_http_is_refused(faas: LocalFaaS, data: bytes) -> None:
    """There is one error, and the connection is closed. A request smuggled behind the first is never read."""
    async with nothing_runs(faas), connected(faas.url) as connection:
        await connection.send(data)
        assert_refused(await connection.answer(), 505 if data in OTHER_VERSIONS else 400)
        if connection.writer.can_write_eof():  # not with TLS
            connection.writer.write_eof()
        assert await connection.closed() == b""


async def test_http_1_0_is_served_with_a_host_header(faas: LocalFaaS) -> None:
    """Without a Host header, a request is refused."""
    async with connected(faas.url) as connection:
        await connection.send(request(encoded()).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await connection.answer()).status == 200
        assert await connection.closed() == b""
    assert_refused(await exchange(faas.url, b"GET /health HTTP/1.0\r\n\r\n"), 403)


async def test_pipelined_requests_are_answered_in_order(faas: LocalFaaS) -> None:
    """A refused request in between, and its body, do not affect the next one."""
    async with connected(faas.url) as connection:
        codes = [f"console.log({number})" for number in range(3)]
        datas = [request(encoded(code=code)) for code in codes]
        await connection.send(datas[0] + request(encoded(), target="/nope") + datas[1] + datas[2])
        answers = [await connection.answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 404, 200, 200]
    assert [answer.json()["output"]["stdout"] for answer in answers if answer.status == 200] == ["0\n", "1\n", "2\n"]


async def test_expect_100_continue_gets_an_early_answer(faas: LocalFaaS) -> None:
    """The answer is an error if the headers are refused, else 100."""
    expecting = {"Expect": "100-continue"}
    for headers, status in (
        ({"Origin": EVIL}, 403),
        ({"Content-Length": "9999999"}, 413),
        ({"Content-Type": "x/y"}, 415),
    ):
        async with connected(faas.url) as connection:
            await connection.send(
                request(encoded(), headers={**expecting, **headers}).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            )
            assert_refused(await connection.answer(), status)
    async with connected(faas.url) as connection:
        head, _, body = request(encoded(), headers=expecting).partition(b"\r\n\r\n")
        await connection.send(head + b"\r\n\r\n")
        assert (await connection.answer()).status == 100
        await connection.send(body)
        assert (await connection.answer()).json()["outcome"] == "OK"


# ---- timeouts, connections and memory


async def pass_time(clock: Clock, ended: asyncio.Future[Any], keep_sending: Callable[[], Awaitable[None]]) -> float:
    """Let time pass, and call a function each second, until something has ended. Return the seconds that it took."""
    began = clock()
    while not ended.done():
        clock.advance(1)
        with contextlib.suppress(ConnectionError):
            await keep_sending()
        await asyncio.wait({ended}, timeout=0.005)
    return clock() - began


async def read_to_the_end(connection: Connection) -> bytes:
    """Return what the server still sends before it closes the connection, however much time passes."""
    try:
        return await connection.reader.read()
    except ConnectionError:
        return b""


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize(
    "start", [b"", b"POST /run_code HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "], ids=["nothing", "head"]
)
async def test_a_connection_with_incomplete_headers_is_closed(
    start: bytes, clock: Clock, tls: ssl.SSLContext | None
) -> None:
    """Slowly arriving bytes do not extend the timeout. Neither does an earlier answer on the connection."""
    async with LocalFaaS(["js"], workers=1, ssl=tls) as faas, nothing_runs(faas), connected(faas.url) as connection:
        await connection.send(request(method="GET", target="/livez"))
        assert (await connection.answer()).status == 200
        await connection.send(start)
        ended = asyncio.create_task(read_to_the_end(connection))
        assert await pass_time(clock, ended, lambda: connection.send(b"x" if start else b"")) >= 29
        assert await ended == b""


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_incomplete_body_is_refused(chunked: bool, clock: Clock, tls: ssl.SSLContext | None) -> None:
    """Even if bytes keep arriving slowly, the server answers 408 with `x-faasrt-not-started` and closes."""
    framing = {"Content-Length": None, "Transfer-Encoding": "chunked"} if chunked else {"Content-Length": "1000"}
    async with LocalFaaS(["js"], workers=1, ssl=tls) as faas, nothing_runs(faas), connected(faas.url) as connection:
        await connection.send(request(headers=framing))
        head = asyncio.create_task(connection.reader.readuntil(b"\r\n\r\n"))
        assert await pass_time(clock, head, lambda: connection.send(b"1\r\n \r\n" if chunked else b" ")) >= 29
        lines = (await head).lower().split(b"\r\n")
        assert lines[0].startswith(b"http/1.1 408 ")
        assert {b"x-faasrt-not-started: 1", b"connection: close", b"content-type: application/json"} <= {*lines}
        assert b"did not arrive" in await fast_forward(clock, read_to_the_end(connection))


async def test_a_408_with_not_started_is_a_rejected_error(raw_server: Any) -> None:
    """Without the header, the code may have run."""
    header = b"x-faasrt-not-started: 1\r\n"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}")
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n" + header + b"Content-Length: 2\r\n\r\n{}")

    url = await raw_server(handle)
    async with manager_for(url, envelope="never") as manager:
        with pytest.raises(faasrt.RejectedError):
            await manager.run_code("1", "js")
        header = b""
        with pytest.raises(faasrt.ServerError):
            await manager.run_code("1", "js")


async def test_connections_take_turns(faas: LocalFaaS, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body is read in small pieces. In many tiny chunks, a large piece would stall the other connections."""
    sizes = []
    receive = BoundedConnection.data_received

    def receive_measured(connection: BoundedConnection, data: bytes) -> None:
        sizes.append(len(data))
        receive(connection, data)

    monkeypatch.setattr(BoundedConnection, "data_received", receive_measured)
    answer = await exchange(faas.url, request(encoded(code="x" * 2**20)))
    assert answer.status == 200
    assert sum(sizes) > 2**20
    # With TLS, the start of the first record may have arrived before.
    assert max(sizes) <= limits.READ_BYTES * (2 if faas.url.startswith("https:") else 1)


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize(("size", "count"), [(1_000_000, 16), (30_000, 500)])
async def test_a_client_that_does_not_read_answers_is_disconnected(
    size: int, count: int, clock: Clock, monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext | None
) -> None:
    """Its further requests are not answered meanwhile. It does not hold a connection and memory for long."""
    executed = []

    async def execute(self: DenoEngine, job: EngineJob) -> EngineResult:
        executed.append(job)
        return EngineResult(outcome=Outcome.OK, stdout="x" * size)

    monkeypatch.setattr(DenoEngine, "execute", execute)
    async with LocalFaaS(["js"], workers=1, ssl=tls) as faas:
        # The start of a process would time out while the clock advances.
        await until(lambda: (engine := faas.engine("js")) is not None and engine.idle == 2)
        async with connected(faas.url) as client:
            # Their answers are more than the buffers of the system and of the client hold.
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            await client.send(request(encoded()) * count)
            await until(lambda: any(one.transport.get_write_buffer_size() for one in faas.listener.connections))
            began = clock()
            while faas.listener.ordinary:
                clock.advance(1)
                await asyncio.sleep(0.001)
            assert clock() - began >= 29
            assert faas.listener.memory.held_bytes == 0
            assert len(executed) < count
        assert (await exchange(faas.url, request(method="GET", target="/livez"))).status == 200


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Memory for one large request. Return that request."""
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 100_000)
    monkeypatch.setattr(limits, "SMALL_BYTES", 10_000)
    return request(encoded(code=CODE + " " * 70_000))


async def refused(faas: LocalFaaS, large: bytes) -> Answer:
    """Send a request until it is refused. The server may not have received the body of another one yet."""
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await exchange(faas.url, large)).status == 200:
            await asyncio.sleep(0.01)
    return answer


async def test_memory_held_by_requests_is_limited(
    faas: LocalFaaS, little_memory: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large body that exceeds `MAX_HELD_BYTES` together with others gets 429 and does not run. Small ones run."""
    monkeypatch.setattr(limits, "SLOW_S", 1e9)
    async with connected(faas.url) as first:
        await first.send(little_memory[:-10])
        answer = await refused(faas, little_memory)
        assert_refused(answer, 429, "memory")
        assert (answer.headers["retry-after"], answer.headers["x-faasrt-not-started"]) == ("1", "1")
        assert (await exchange(faas.url, request(encoded()))).status == 200
        await first.send(little_memory[-10:])
        assert (await first.answer()).json()["outcome"] == "OK"
    for _ in range(5):
        assert (await exchange(faas.url, little_memory)).status == 200


async def test_a_slow_body_loses_its_memory_to_another(
    faas: LocalFaaS, little_memory: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client gets a 429 that says that nothing was started, and the connection is closed."""
    monkeypatch.setattr(limits, "LINGER_S", 0.1)  # of new connections
    monkeypatch.setattr(limits, "SLOW_S", 1e9)
    async with connected(faas.url) as slow:
        await slow.send(little_memory[:-10])
        await refused(faas, little_memory)
        monkeypatch.setattr(limits, "SLOW_S", 0.0)
        assert (await exchange(faas.url, little_memory)).json()["outcome"] == "OK"
        answer = await slow.answer()
        assert_refused(answer, 429, "slowly")
        assert answer.headers["x-faasrt-not-started"] == "1"
        assert await slow.closed() == b""


def does_not_read(faas: LocalFaaS, client: Connection) -> bool:
    """Return whether the server waits until a client reads."""
    address = client.writer.get_extra_info("sockname")
    transports = [one.transport for one in faas.listener.connections if one.transport is not None]
    return any(one.get_write_buffer_size() for one in transports if one.get_extra_info("peername") == address)


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize(
    ("accept", "outcome", "memory_mb"), [("application/json", "OK", 20), ("application/x-ndjson", "TIMEOUT", 10)]
)
async def test_clients_that_do_not_read_do_not_keep_out_others(
    accept: str,
    outcome: str,
    memory_mb: int,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tls: ssl.SSLContext | None,
) -> None:
    """When there is no memory for a further answer, the client is disconnected that has not read for the longest.

    A streamed answer also counts the body, which the server still holds then.
    """
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", memory_mb * 2**20)
    sandbox = SandboxConfig(max_output_bytes=2 * 2**20)
    code = r"console.log('\x01'.repeat(2_000_000)); console.error('\x01'.repeat(2_000_000))"
    # It ends at its time limit if its output is streamed and not read.
    body = encoded(code=code + " " * 3_500_000, timeout=30_000 if outcome == "OK" else 6_000)
    large = request(body, headers={"Accept": accept, "Connection": "close"})
    async with LocalFaaS(["js"], workers=1, sandbox=sandbox, ssl=tls) as faas, contextlib.AsyncExitStack() as stack:
        await faas.wait_ready("js")
        faas.listener.memory.max_answer_bytes = 0
        clients: list[Connection] = []
        for number in range(1, 4):
            # Not before, because the server closes a connection that is idle while the clock advances.
            client = await stack.enter_async_context(connected(faas.url))
            clients.append(client)
            # Its answer is more than the buffers of the system and of the client hold.
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            await client.send(large)
            await until(functools.partial(does_not_read, faas, client))
            while (await executions(faas))[0].get("javascript", {}).get(outcome, 0) < number:
                clock.advance(0.09)  # a longer step would extend the time limit, as if the server had been blocked
        for padding in (0, 500_000):
            answer = await exchange(faas.url, request(encoded(code=CODE + " " * padding)))
            assert answer.json()["outcome"] == "OK"
        ends = [(await client.closed())[-5:] for client in clients]
        is_complete = [end[-1:] == b"}" or end == b"0\r\n\r\n" for end in ends]
        assert (is_complete[0], is_complete[2]) == (False, True)


async def test_an_internal_error_does_not_reveal_the_program(
    fresh: LocalFaaS, log: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is a 500 in JSON. One log line says where the error is raised, without its message."""

    async def fail(self: object, job: Any) -> None:
        raise KeyError(job.code)

    monkeypatch.setattr(DenoEngine, "execute", fail)
    answer = await exchange(fresh.url, request(encoded()))
    assert_refused(answer, 500, "KeyError")
    assert MARK not in answer.body.decode()
    log.extend(record.getMessage() for record in caplog.records if record.name == "faasrt.local")
    assert len(log) == 1
    assert "in fail" in log[0]


class TestConnections:
    """The number of connections is limited. Further connections are refused at once."""

    @pytest.fixture(autouse=True)
    def few_connections(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_CONNECTIONS", 8)

    async def test_a_connection_above_the_limit_is_refused(self, fresh: LocalFaaS) -> None:
        """Open connections are served. The refusal has `x-faasrt-not-started`. When some close, new ones are served."""
        async with contextlib.AsyncExitStack() as stack:
            held = [await stack.enter_async_context(connected(fresh.url)) for _ in range(8)]
            for _ in range(3):
                for connection in held:
                    await connection.send(request(encoded()))
                    assert (await connection.answer()).status == 200
                for data in (b"", request(encoded())):
                    async with connected(fresh.url) as refused:
                        await refused.send(data)
                        answer = await refused.answer()
                        assert_refused(answer, 503, "connections")
                        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
                        assert answer.headers["x-faasrt-not-started"] == "1"
                        assert await refused.closed() == b""
        async with asyncio.timeout(PATIENCE_S):
            while (await exchange(fresh.url, request(encoded()))).status != 200:
                await asyncio.sleep(0.01)

    async def test_the_client_reports_an_overload(self, fresh: LocalFaaS) -> None:
        """The client raises OverloadedError with `not_started`, so that it may retry calls that are not idempotent."""
        async with (
            manager_for(fresh.url, retry=RetrySettings(max_attempts=1)) as manager,
            contextlib.AsyncExitStack() as stack,
        ):
            for _ in range(8):
                await stack.enter_async_context(connected(fresh.url))
            with pytest.raises(faasrt.OverloadedError) as info:
                await manager.run_code("1", "js")
            assert info.value.not_started


@pytest.mark.servers
@pytest.mark.timeout(400)  # on a machine that may be busy
async def test_10_000_connections_do_not_exhaust_the_server(tmp_path: Path) -> None:
    """Descriptors and memory stay limited, refusals are counted in one line for 10 s, and open connections are served.

    The server is `faasrt serve` with a limit of 512 descriptors, of which connections may use half.
    """
    command = Path(sys.executable).with_name("faasrt")
    script = f"ulimit -n 512 && exec '{command}' serve --language js --port 0 --workers 1"
    with (tmp_path / "stderr").open("wb") as stderr:
        server = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=-1, stderr=stderr)
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode().split()[-1]
    process = psutil.Process(server.pid)
    answered, refused, again, over = 0, 0, 0, asyncio.Event()

    async def attack(gate: asyncio.Semaphore) -> None:
        nonlocal refused
        loop = asyncio.get_running_loop()
        async with gate:
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", urlsplit(url).port))
                await loop.sock_sendall(client, b"POST /run_code HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                received = await loop.sock_recv(client, 100)
                refused += received.startswith(b"HTTP/1.1 503 ")

    async def go_on(early: Connection) -> None:
        nonlocal answered
        while not over.is_set():
            await early.send(request(encoded()))
            answered += (await early.answer()).json()["outcome"] == "OK"

    try:
        async with connected(url) as early, contextlib.AsyncExitStack() as stack:
            await until(lambda: (tmp_path / "stderr").read_text().endswith("is ready\n"))
            await early.send(request(encoded()))
            assert (await early.answer()).status == 200
            before = process.memory_info().rss
            for _ in range(255):
                held = await stack.enter_async_context(connected(url))
                await held.send(b"POST /run_code HTTP/1.1\r\n")
            using = asyncio.create_task(go_on(early))
            gate = asyncio.Semaphore(100)
            async with asyncio.timeout(300):
                await asyncio.gather(*(attack(gate) for _ in range(10_000)))
            over.set()
            await using
            assert process.num_fds() < 512
            assert process.memory_info().rss - before < 64 * 2**20
        assert answered
        assert refused == 10_000
        async with asyncio.timeout(PATIENCE_S):
            while (await exchange(url, request(encoded()))).status != 200:
                again += 1
                await asyncio.sleep(0.01)
    finally:
        server.terminate()
        await server.wait()
    ready, *lines = (tmp_path / "stderr").read_text().splitlines()
    lines.remove("faasrt: stopping")
    counted = [
        re.fullmatch(r"faasrt: refused in 10 s: ([0-9,]+) connections, because 256 were open; .+", at) for at in lines
    ]
    assert ready == "faasrt: javascript is ready"
    assert sum(int(found[1].replace(",", "")) for found in counted if found) == 10_000 + again
    assert all(counted), lines
