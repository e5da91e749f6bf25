"""The embedded FaaS with the Go client of a coze-loop backend: the bytes that it sends, and the types that it requires.

Source: `backend/modules/evaluation/infra/runtime/http_faas_runtime.go` of coze-loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from faasrt import RuntimeManager, SandboxConfig
from support.helpers import url_of
from support.served import Connection, connected, exchange, request, served

pytestmark = pytest.mark.asyncio(loop_scope="session")

# The struct of the answer. Go reads null or a missing field as the zero value of the type.
ANSWER = {
    "output": {"stdout": str, "stderr": str, "ret_val": str},
    "metadata": {
        "language": str,
        "runtime": str,
        "duration": int,
        "status": str,
        "exit_code": int,
        "timed_out": bool,
        "task_id": str,
        "instance_id": str,
        "pool_stats": {"totalInstances": int, "idleInstances": int, "activeInstances": int},
    },
    "error": str,
    "details": str,
}


class _Float(float):
    """A number that is written with a point or an exponent, which Go does not accept as an int."""


def unmarshal(body: bytes) -> dict[str, Any]:
    """Decode an answer like `json.Unmarshal` with the struct. Unknown fields are ignored."""
    return _fill(ANSWER, json.loads(body.decode("utf-8"), parse_float=_Float))


def _fill(kind: Any, value: Any) -> Any:
    if isinstance(kind, dict):
        assert value is None or isinstance(value, dict)
        # Go ignores the case of names, so it would read a field `Error` as `error`.
        given = {name.lower(): field for name, field in (value or {}).items()}
        return {name: _fill(field, given.get(name.lower())) for name, field in kind.items()}
    if value is None:
        return kind()
    assert type(value) is kind, f"cannot unmarshal {value!r} into {kind.__name__}"
    return value


def marshal(language: str, code: str, timeout: int, ext: dict[str, str] | None) -> bytes:
    """Encode a request like `json.Marshal`: fields in the order of the struct, and HTML and line separators escaped."""
    fields = {"language": language, "code": code, "timeout": timeout, "priority": "normal", "ext": ext}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


class GoClient:
    """Sends the same requests as `net/http`, over one connection that stays open."""

    def __init__(self, url: str, connection: Connection) -> None:
        self.host = urlsplit(url).netloc
        self.connection = connection

    async def run(
        self, language: str, code: str, *, timeout_ms: int = 5_000, ext: dict[str, str] | None = None
    ) -> dict[str, Any]:
        body = marshal(language, code, timeout_ms, ext)
        head = (
            f"POST /run_code HTTP/1.1\r\nHost: {self.host}\r\nUser-Agent: Go-http-client/1.1\r\n"
            f"Content-Length: {len(body)}\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
            "Accept-Encoding: gzip\r\n\r\n"
        )
        await self.connection.send(head.encode() + body)
        answer = await self.connection.answer()
        # The Go client decodes only gzip. For it, a status other than 200 or a top-level `error` is a failure.
        assert answer.headers.get("content-encoding", "gzip") == "gzip"
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        fields = unmarshal(answer.body)
        assert fields["error"] == ""
        metadata = fields["metadata"]
        assert metadata["duration"] >= 0
        assert metadata["task_id"]
        assert metadata["instance_id"]
        assert metadata["runtime"]
        pool = metadata["pool_stats"]
        assert pool["totalInstances"] == pool["idleInstances"] + pool["activeInstances"]
        return fields


# The names of languages in the backend and in the protocol of faasrt.
PROGRAMS = [
    (
        "python",
        "import json\nprint('a < b & \"c\" é')\nreturn_val(json.dumps({'score': 0.50}))",
        '{"score": 0.5}',
        "python",
    ),
    ("py", "print('a < b & \"c\" é')\nreturn_val('0.50')", "0.50", "python"),
    ("js", "console.log('a < b & \"c\" é'); return_val('{\"score\": 1}')", '{"score": 1}', "javascript"),
    ("javascript", "console.log(`a < b & \"c\" é`); return_val('\u2028')", "\u2028", "javascript"),
    ("ts", "const x: string = 'a < b & \"c\" é'; console.log(x); return_val(String(1 as number))", "1", "typescript"),
]


@pytest.mark.parametrize(("language", "code", "ret_val", "reported"), PROGRAMS)
async def test_programs_run(local: RuntimeManager, language: str, code: str, ret_val: str, reported: str) -> None:
    """Output and return value are exact, for each name of a language."""
    url = url_of(local)
    async with connected(url) as connection:
        fields = await GoClient(url, connection).run(language, code, ext={"span": "1"})
    assert fields["output"] == {"stdout": 'a < b & "c" é\n', "stderr": "", "ret_val": ret_val}
    metadata = fields["metadata"]
    assert (metadata["language"], metadata["status"], metadata["exit_code"]) == (reported, "success", 0)
    assert metadata["timed_out"] is False


@pytest.mark.parametrize(
    ("language", "code", "words"),
    [
        ("python", "print(1)\nraise ValueError('boom')", "ValueError: boom"),
        ("js", "console.log(1); throw new TypeError('boom')", "TypeError: boom"),
        ("ts", "console.log(1); throw new TypeError('boom')", "TypeError: boom"),
        ("python", "print(1", "SyntaxError"),
        ("ts", "const x: = 1", "SyntaxError"),
        ("python", "import sys\nprint('why', file=sys.stderr)\nsys.exit(3)", "why"),
    ],
)
async def test_errors_of_programs_are_in_stderr(local: RuntimeManager, language: str, code: str, words: str) -> None:
    """The answer is a 200 without `error`, because the client would retry a program with `error` three times."""
    url = url_of(local)
    async with connected(url) as connection:
        fields = await GoClient(url, connection).run(language, code)
    assert words in fields["output"]["stderr"]
    assert fields["output"]["stdout"] == ("1\n" if "(1)" in code else "")
    assert fields["metadata"]["status"] == "error"
    assert fields["metadata"]["exit_code"] == (3 if "exit(3)" in code else 1)


@pytest.mark.parametrize(
    ("language", "code"), [("python", "while True: pass"), ("js", "for (;;);"), ("ts", "for (;;);")]
)
async def test_timeouts_are_reported(local: RuntimeManager, language: str, code: str) -> None:
    """The answer is a 200 with `timed_out`. Its exit code may be null, which Go reads as 0."""
    url = url_of(local)
    async with connected(url) as connection:
        fields = await GoClient(url, connection).run(language, code, timeout_ms=300)
    assert (fields["metadata"]["timed_out"], fields["metadata"]["status"]) == (True, "error")
    assert fields["metadata"]["duration"] > 0


async def test_connection_stays_open(local: RuntimeManager) -> None:
    """Several programs of 1 MB run over one connection. `ext` may be null, as Go writes an empty map, or `{}`."""
    url = url_of(local)
    async with connected(url) as connection:
        client = GoClient(url, connection)
        tasks = []
        for language, code in (("python", "print(1)"), ("js", "console.log(1)"), ("ts", "console.log(1 as number)")):
            fields = await client.run(language, code + " " * 1_000_000, ext={} if language == "js" else None)
            assert fields["output"]["stdout"] == "1\n"
            tasks.append(fields["metadata"]["task_id"])
    assert len(set(tasks)) == 3


async def test_many_connections_at_once(local: RuntimeManager) -> None:
    """Each client gets the answer to its own program."""
    url = url_of(local)

    async def one(number: int) -> None:
        async with connected(url) as connection:
            fields = await GoClient(url, connection).run("js", f"return_val('{number}')")
            assert fields["output"]["ret_val"] == str(number)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(one(number))


async def test_unmarshal_is_as_strict_as_go() -> None:
    """The helper of these tests refuses wrong types, and ignores the case of names."""
    good = {"output": {"stdout": "a"}, "metadata": {"duration": 1, "exit_code": None}}
    assert unmarshal(json.dumps(good).encode())["metadata"]["exit_code"] == 0
    assert unmarshal(json.dumps({**good, "Error": "x"}).encode())["error"] == "x"
    for bad in (
        {"metadata": {"duration": 1.0}},
        {"metadata": {"exit_code": True}},
        {"output": {"stdout": 1}},
        {"output": ""},
    ):
        with pytest.raises(AssertionError):
            unmarshal(json.dumps({**good, **bad}).encode())


NOTICES = [
    ("python", "while True: pass", {"timeout": 500}, "faasrt: timeout after 500 ms (timeout_ms)\n"),
    ("js", "for (;;);", {"timeout": 500}, "faasrt: timeout after 500 ms (timeout_ms)\n"),
    ("python", "import sys; sys.exit(3)", {}, "faasrt: exited with code 3 (error)\n"),
    ("ts", "Deno.exit(3 as number)", {}, "faasrt: exited with code 3 (error)\n"),
    ("python", "import os; os._exit(4)", {}, "faasrt: crashed (exit code 4)\n"),
    ("python", "import os; os.abort()", {}, "faasrt: crashed (the program was ended by SIGABRT)\n"),
    ("js", "process.kill(process.pid, 'SIGKILL'); for (;;);", {}, "faasrt: crashed\n"),
    (
        "js",
        "const a = []; for (;;) a.push(new Array(1000).fill(a.length))",
        {"sandbox": {"memory_limit_mb": 16}},
        "faasrt: more than 16 MiB of memory (memory_limit_mb)\n",
    ),
    (
        "python",
        "while True: print('x' * 99)",
        {"sandbox": {"max_output_bytes": 20}},
        "faasrt: more than 40 bytes of output (twice max_output_bytes)\n",
    ),
    ("python", "import os, sys; os.close(2); raise KeyError(1)", {}, "faasrt: ended by an error (KeyError)\n"),
]


@pytest.mark.parametrize(("language", "code", "fields", "notice"), NOTICES)
async def test_failures_without_stderr_get_a_notice(
    local: RuntimeManager, language: str, code: str, fields: dict[str, Any], notice: str
) -> None:
    """The backend treats an empty stderr as a success, so the server writes to it how the program ended."""
    url = url_of(local)
    if (await local.run_code("1", "python")).metadata["engine"] == "wasm":  # which has no signals
        notice = notice.replace("the program was ended by SIGABRT", "unreachable")
    body = json.dumps({"language": language, "code": code, **fields}).encode()
    raw = await exchange(url, request(body, target="/run_code"))
    assert unmarshal(raw.body)["output"]["stderr"] == notice
    assert (raw.status, raw.json()["output"]["stderr"], raw.json()["notice"]) == (200, notice, notice)
    asked = fields.get("sandbox", {})
    result = await local.run_code(code, language, fields.get("timeout", 20_000), sandbox=SandboxConfig(**asked))
    assert not result.ok
    assert (result.outcome, result.stderr) == (raw.json()["outcome"], "")
    assert "stderr" not in result.truncated


@pytest.mark.parametrize(
    ("language", "code", "stderr"),
    [
        ("python", "print(1)", ""),
        ("js", "console.log(1)", ""),
        ("python", "import sys; print('why', file=sys.stderr); sys.exit(3)", "why\n"),
        ("js", "console.error('why'); for (;;);", "why\n"),
        ("python", "import sys; sys.stderr.write('faasrt: exited with code 3 (error)\\n'); sys.exit(3)", NOTICES[2][3]),
        ("python", "import sys; sys.stderr.write('\\n'); sys.exit(3)", "\n"),
    ],
)
async def test_stderr_of_programs_is_not_changed(local: RuntimeManager, language: str, code: str, stderr: str) -> None:
    """A program that succeeds or writes to stderr gets no notice, and the client removes nothing from its stderr."""
    timeout_ms = 500 if "for (;;)" in code else 20_000
    body = json.dumps({"language": language, "code": code, "timeout": timeout_ms}).encode()
    answer = (await exchange(url_of(local), request(body))).json()
    assert "notice" not in answer
    assert answer["output"]["stderr"] == stderr
    assert (await local.run_code(code, language, timeout_ms)).stderr == stderr


class ResilientGoClient:
    """Runs programs as the backend does: it waits 30 s for an answer, and sends a program up to four times, with a
    pause of a second, after any failure. Counts what failed.
    """

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url, self.http = url, http
        self.failures: list[str] = []

    async def run(self, language: str, code: str) -> str:
        """Return the return value. Raise AssertionError after four failures."""
        headers = {"User-Agent": "Go-http-client/1.1", "Content-Type": "application/json"}
        for attempt in range(4):
            await asyncio.sleep(1 if attempt else 0)
            try:
                async with self.http.post(
                    f"{self.url}/run_code",
                    data=marshal(language, code, 5_000, {}),
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=30),
                ) as response:
                    body = await response.read()
                if response.status == 200:
                    fields = unmarshal(body)
                    assert fields["error"] == ""
                    return str(fields["output"]["ret_val"])
                self.failures.append(f"{response.status}: {body!r:.200}")
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures.append(repr(error))
        raise AssertionError(f"failed for good: {self.failures}")


SLEEPERS = {
    "python": "import time; time.sleep(2); return_val('{number}')",
    "js": "await new Promise((done) => setTimeout(done, 2000)); return_val('{number}')",
}


@pytest.mark.servers
@pytest.mark.parametrize("max_programs", [(), ("--max-programs", "2")], ids=["defaults", "two at once"])
async def test_evaluators_that_sleep(tmp_path: Path, max_programs: Sequence[str]) -> None:
    """With 16 in flight, no evaluator that sleeps for 2 s fails, or is sent a second time, for want of a sandbox."""
    count, in_flight = (32, 16) if not max_programs else (16, 16)
    async with (
        served(tmp_path, "--language", "python", "--language", "js", *max_programs, wait_for=["http://"]) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        for language in ("python", "javascript"):
            await server.until_pool(language, status="ready")
        client, gate = ResilientGoClient(server.url, http), asyncio.Semaphore(in_flight)

        async def evaluate(number: int) -> None:
            language = ("python", "js")[number % 2]
            async with gate:
                assert await client.run(language, SLEEPERS[language].format(number=number)) == str(number)

        await asyncio.gather(*map(evaluate, range(count)))
    assert client.failures == []
