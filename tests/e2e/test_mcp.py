"""`faasrt mcp`, with the client of the official SDK: over stdio, and over HTTP with and without sessions of MCP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import httpx2
import psutil
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.stdio import stdio_server
from mcp.types import EmbeddedResource, ImageContent, TextContent

from faasrt import RuntimeManager, SandboxConfig
from faasrt.cli import mcp_greeting
from faasrt.cli.mcp_tools import SandboxTools, SessionSetup, Workspace
from faasrt.testing import FakeFaaS, FaultProxy, Toxics
from support.cli import faasrt
from support.levels import NATIVE
from support.served import CLEAN, FAASRT, served, until

TOKEN = "mcp-token"
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
# How a client connects: over stdio, over HTTP with the newest version of MCP, and over HTTP with a session of MCP.
WAYS = ["stdio", "http", "http-session"]

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning:mcp.*")


class HttpServer:
    """A `faasrt mcp --http`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [FAASRT, "mcp", "--http", "127.0.0.1:0", *arguments], env=CLEAN, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.url = re.findall(r"http://\S+", self.output.readline())[0]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.output.close()
        return self.process.returncode


@pytest.fixture(scope="module")
def http(faasrt_local: str) -> Iterator[str]:
    """The URL of a server that uses a remote FaaS, and needs a token."""
    server = HttpServer("--url", faasrt_local, "--token", TOKEN)
    yield server.url
    assert server.stop() == 0


@contextlib.asynccontextmanager
async def over_http(url: str, token: str = TOKEN, **options: Any) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=60) as connection,
        Client(streamable_http_client(url, http_client=connection), **options) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def over_stdio(*arguments: str, log: Any = subprocess.DEVNULL, **options: Any) -> AsyncIterator[Client]:
    parameters = StdioServerParameters(command=FAASRT, args=["mcp", *arguments], env=CLEAN)
    async with Client(stdio_client(parameters, log), **options) as client:
        yield client


Connect = Callable[[], contextlib.AbstractAsyncContextManager["Tools"]]
every_way = pytest.mark.parametrize("connect", WAYS, indirect=True)
one_way = pytest.mark.parametrize("connect", ["http"], indirect=True)
"""For tests that do not depend on how the client connects. Others are in every way with `-m tables`."""


@pytest.fixture(params=["http", *(pytest.param(way, marks=pytest.mark.tables) for way in WAYS if way != "http")])
def connect(request: pytest.FixtureRequest, faasrt_local: str, http: str) -> Connect:
    """A function that connects a client to a server with a remote FaaS."""

    @contextlib.asynccontextmanager
    async def connected() -> AsyncIterator[Tools]:
        if request.param == "stdio":
            opening = over_stdio("--url", faasrt_local)
        else:
            opening = over_http(http, mode="legacy" if request.param == "http-session" else "auto")
        async with opening as client:
            yield Tools(client, request.param)

    return connected


class Tools:
    """Calls tools like a model, which passes the name of its session on."""

    def __init__(self, client: Client, way: str = "") -> None:
        self.client, self.way = client, way
        self.is_error = False
        self.content: list[Any] = []
        self.structured: dict[str, Any] | None = None
        self.session: dict[str, str] = {}

    async def __call__(self, tool: str, arguments: dict[str, Any] | None = None, **options: Any) -> str:
        """Return the text of the result."""
        result = await self.client.call_tool(tool, {**(arguments or {}), **self.session}, **options)
        self.content, self.is_error, self.structured = list(result.content), result.is_error, result.structured_content
        text = "".join(content.text for content in self.content if isinstance(content, TextContent))
        assert ", sent: " not in text  # a model has no use for the endpoint and the attempts
        if named := re.search(r'\n?To go on with this state, pass session="(\S+)" to further calls\.$', text):
            self.session = {"session": named[1]}
            text = text[: named.start()]
        return text

    async def python(self, code: str, **options: Any) -> str:
        return await self("run_python", {"code": code}, **options)

    @property
    def image(self) -> tuple[str, bytes]:
        """The only image of the last result: its type and content."""
        [image] = [content for content in self.content if isinstance(content, ImageContent)]
        return image.mime_type, base64.b64decode(image.data)


@every_way
async def test_each_client_keeps_its_state(connect: Connect) -> None:
    """Variables, imports and files of a client are kept between its calls, in both languages, and another client does
    not see them. The value of the last expression is shown. Only clients without a session can name one.
    """
    async with connect() as one, connect() as other:
        listed = {tool.name: tool for tool in (await one.client.list_tools()).tools}
        names = [name for name in listed if name not in ("begin_branch", "end_branch")]
        assert names == ["run_python", "run_javascript", "write_file", "read_file", "list_files", "reset"]
        description = str(listed["run_python"].description)
        assert all(words in description for words in ("kept for the next call", "no network", "30 s", "512 MiB"))
        assert ("session" in listed["reset"].input_schema["properties"]) is (one.way == "http")
        begin = "import math\nwho = {!r}\ndef f(n): return n + 1"
        await asyncio.gather(one.python(begin.format("one")), other.python(begin.format("other")))
        assert await one.python("print(math.floor(1.5)); f(41)") == "1\n42"
        await one("write_file", {"path": "a.txt", "content": "one"})
        assert await asyncio.gather(one.python("who"), other.python("who")) == ["'one'", "'other'"]
        assert await one("read_file", {"path": "a.txt"}) == "one"
        assert "no file" in await other("read_file", {"path": "a.txt"})
        assert await one("run_javascript", {"code": "const y = 20; console.log('js')"}) == "js\n"
        assert await one("run_javascript", {"code": "console.log(y + 1)"}) == "21\n"
        assert not one.is_error


async def test_a_program_that_fails_is_a_result(connect: Connect) -> None:
    """It is not a failure of the tool, after which clients give up. The model gets the traceback with the lines of its
    own code, in the first text and in the structured content, because clients show it one of them. The state is kept.
    """
    async with connect() as tools:
        await tools.python("x = 1")
        assert tools.structured is not None
        assert tools.structured["outcome"] == "OK"
        for _ in range(3):
            text = await tools.python("def f():\n    print('before')\n    return x / 0\ndisplay(x)\nf()")
            assert not tools.is_error
            assert text.startswith("before\n")
            assert "line 3, in f" in text
            assert text.count("ZeroDivisionError: division by zero") == 1
            assert text.endswith("\nUSER_ERROR: ZeroDivisionError\n1")
            assert "faasrt" not in text
            assert [content.text for content in tools.content] == [text]
            assert tools.structured == {"outcome": "USER_ERROR", "output": text}
        assert (await tools.python("def f(:")).endswith("SYNTAX_ERROR: SyntaxError")
        assert not tools.is_error
        assert (await tools.python("exit(3)")).endswith("USER_ERROR: the program exited with code 3")
        assert "USER_ERROR: ReferenceError" in await tools("run_javascript", {"code": "nope"})
        assert not tools.is_error
        assert await tools.python(" ") == "code must not be empty"
        assert not tools.is_error
        assert await tools.python("x") == "1"
        assert not tools.is_error


async def test_a_client_that_reads_only_structured_content_can_go_on(http: str) -> None:
    """It has the name of the session, too."""
    async with over_http(http) as client:
        result = await client.call_tool("run_python", {"code": "x = 1"})
        named = re.search(r'pass session="(\S+)" to', result.structured_content["output"])
        assert named
        result = await client.call_tool("run_python", {"code": "x", "session": named[1]})
        assert result.structured_content == {"outcome": "OK", "output": "1"}


@one_way
async def test_images_are_image_content(connect: Connect) -> None:
    """Objects with `_repr_png_` and figures of matplotlib are images."""
    async with connect() as tools:
        await tools.python(f"class Image:\n    def _repr_png_(self): return {PNG!r}\nprint('an image:')\nImage()")
        assert tools.image == ("image/png", PNG)
        assert [content.type for content in tools.content] == ["text", "image"]
        assert tools.content[0].text.startswith("an image:\n")
        assert tools.structured is None  # clients that show only this would hide the image
        await tools.python("import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()", read_timeout_seconds=100)
        mime_type, content = tools.image
        assert (mime_type, content[:4]) == ("image/png", b"\x89PNG")


async def test_an_image_that_does_not_fit_is_named(faasrt_local: str) -> None:
    """The model learns that there was one. Long texts are cut in the middle."""
    async with over_stdio("--url", faasrt_local, "--output-bytes", "2000") as client:
        tools = Tools(client)
        text = await tools.python("class Image:\n    def _repr_png_(self): return bytes(5_000)\nImage()")
        assert "(image/png was left out, because it exceeds the output limit)" in text
        assert [content.type for content in tools.content] == ["text"] * len(tools.content)
        text = await tools.python("print('a' * 3_000, 'end')")
        assert len(text) <= 2_000
        assert "bytes cut" in text
        assert text.endswith("end\n")
        text = await tools.python("print('a' * 5_000)")
        assert "OUTPUT_LIMIT: more than 4000 bytes of output" in text


@one_way
async def test_long_text_is_cut_for_the_model(connect: Connect) -> None:
    """A text has at most 40,000 bytes, even if the output limit is higher. Displays above that are left out."""
    async with connect() as tools:
        await tools.python("0")
        text = await tools.python("print('a' * 100_000, 'end')")
        assert 30_000 < len(text) <= 40_000
        assert text.endswith("end\n")
        # Not as a first statement of its own: since Python 3.13, a docstring must be valid UTF-8.
        assert await tools.python("x = '\\ud800'; print(x)") == "?\n"
        for character, shown in (("b", 39), ("é", 19)):  # of 1,002 and 2,002 bytes
            text = await tools.python(f"for n in range(100): display({character!r} * 1_000)")
            assert text.count(character) == shown * 1_000
            assert text.endswith(f"({100 - shown} further displays were left out)")


async def test_output_that_is_not_unicode_can_be_reported(connect: Connect) -> None:
    """A lone surrogate cannot be sent. The server goes on."""
    async with connect() as tools:
        messages: list[str | None] = []

        async def report(progress: float, total: float | None, message: str | None) -> None:
            messages.append(message)

        assert (await tools.python("x = 1; print('a\\ud800b')", progress_callback=report)).rstrip() == "a?b"
        assert messages == ["a?b\n"]
        assert await tools.python("x") == "1"


@NATIVE  # otherwise JavaScript has no files
@one_way
async def test_files_go_in_and_out(connect: Connect) -> None:
    """Texts are text, images are image content, and other files are resources. Each language has its own folder."""
    async with connect() as tools:
        await tools("write_file", {"path": "data/a.csv", "content": "n\n1\n2\n"})
        await tools(
            "write_file", {"path": "a.bin", "content": base64.b64encode(b"\xff\0").decode(), "encoding": "base64"}
        )
        assert await tools.python("open('data/a.csv').read().split(), open('a.bin', 'rb').read()") == (
            "(['n', '1', '2'], b'\\xff\\x00')"
        )
        await tools.python(f"open('plot.png', 'wb').write({PNG!r}); open('[x].txt', 'w').write('odd');")
        await tools.python("import os; os.chdir('data')")  # the paths are still those of the other tools
        assert await tools("list_files") == (
            f"[x].txt (3 bytes)\na.bin (2 bytes)\ndata/a.csv (6 bytes)\nplot.png ({len(PNG)} bytes)"
        )
        assert await tools("read_file", {"path": "[x].txt"}) == "odd"
        await tools("read_file", {"path": "plot.png"})
        assert tools.image == ("image/png", PNG)
        await tools("read_file", {"path": "a.bin"})
        [resource] = tools.content
        assert isinstance(resource, EmbeddedResource)
        assert base64.b64decode(resource.resource.blob) == b"\xff\0"
        assert resource.resource.uri == "file:///a.bin"
        assert "There is no file 'b'" in await tools("read_file", {"path": "b"})
        assert not tools.is_error
        assert (await tools("read_file", {"path": "/etc/passwd"})).startswith("path must be a relative path")
        assert not tools.is_error
        assert (await tools("write_file", {"path": "../b", "content": ""})).startswith(
            "the path of a file must be a relative path"
        )
        assert "cannot write files" in await tools("write_file", {"path": "data", "content": ""})
        assert not tools.is_error
        assert await tools("write_file", {"path": "b", "content": "?", "encoding": "base64"}) == (
            "The content is not Base64."
        )
        in_js = {"language": "javascript"}
        assert await tools("list_files", in_js) == "There are no files."
        await tools("write_file", {"path": "c/d.txt", "content": "js", **in_js})
        assert await tools("run_javascript", {"code": "console.log(Deno.readTextFileSync('c/d.txt'))"}) == "js\n"
        assert await tools("list_files", in_js) == "c/d.txt (2 bytes)"


@one_way
async def test_odd_arguments_are_refused_with_a_reason(connect: Connect) -> None:
    """No argument of a tool is an error of the server."""
    texts = [
        "",
        "?",
        "é",
        "\0",
        "a\0b",
        "/",
        "..",
        "../a",
        "a//b",
        "//[a",
        "data:,",
        "x" * 5_000,
        "\x1b[2J",
        "[",
        "{}",
        "a/",
    ]
    async with connect() as tools:
        await tools.python("1")
        for text in texts:
            calls: list[tuple[str, dict[str, Any]]] = [
                ("write_file", {"path": "a", "content": text, "encoding": "base64"}),
                ("write_file", {"path": text, "content": "a"}),
                ("write_file", {"path": "a", "content": "a", "encoding": text}),
                ("read_file", {"path": text}),
                ("list_files", {"language": text}),
                ("run_python", {"code": text}),
                ("run_javascript", {"code": text}),
                (text, {}),
                ("reset", {text: text}),
            ]
            for tool, arguments in calls:
                answer = await tools(tool, arguments)
                assert "error of the server" not in answer, (tool, arguments)
        assert await tools("write_file", {"path": "a", "content": "é", "encoding": "base64"}) == (
            "The content is not Base64."
        )
        assert not tools.is_error


@NATIVE  # sessions can be forked there
async def test_a_branch_is_kept_or_dropped(connect: Connect) -> None:
    """All tools for Python use the branch that began last. Its original waits, and is used again if it is dropped."""
    async with connect() as tools:
        assert await tools("end_branch", {"action": "drop"}) == "There is no branch to end. begin_branch begins one."
        await tools.python("x = 1; open('a', 'w').write('one')")
        assert "in a branch" in await tools("begin_branch")
        await tools.python("x = 2; open('a', 'w').write('two')")
        await tools("write_file", {"path": "b", "content": "b"})
        await tools("begin_branch")
        await tools.python("x = 3")
        assert await tools.python("x") == "3"
        assert "dropped" in await tools("end_branch", {"action": "drop"})
        assert await tools.python("x") == "2"
        assert await tools("read_file", {"path": "a"}) == "two"
        assert "dropped" in await tools("end_branch", {"action": "drop"})
        assert await tools.python("x, open('a').read()") == "(1, 'one')"
        assert await tools("list_files") == "a (3 bytes)"
        await tools("begin_branch")
        await tools.python("x = 4; open('a', 'w').write('four')")
        assert "kept" in await tools("end_branch", {"action": "keep"})
        assert await tools.python("x, open('a').read()") == "(4, 'four')"
        assert not tools.is_error
        assert "There is no branch" in await tools("end_branch", {"action": "keep"})
        await tools("begin_branch")
        await tools("reset")
        assert "NameError" in await tools.python("x")
        assert "There is no branch" in await tools("end_branch", {"action": "drop"})


@NATIVE  # sessions can be forked there
@one_way
async def test_a_branch_that_ends_gives_way_to_its_original(connect: Connect) -> None:
    """The model learns that the state from before the branch is there. A session that cannot be forked now is kept."""
    async with connect() as tools:
        await tools.python("x = 1")
        await tools("begin_branch")
        text = await tools.python("x = 2; import os; os._exit(3)")
        assert "It was a branch. The next call uses its original again" in text
        assert await tools.python("x") == "1"
        code = "import threading; go = threading.Event(); t = threading.Thread(target=go.wait); t.start()"
        await tools.python(code)
        text = await tools("begin_branch")
        assert "thread" in text
        assert "HTTP" not in text  # only the reason
        assert not tools.is_error
        assert "There is no branch" in await tools("end_branch", {"action": "drop"})
        await tools.python("go.set(); t.join()")
        assert await tools.python("x") == "1"


@NATIVE  # sessions can be forked there
async def test_branches_leave_no_session_behind(tmp_path: Path) -> None:
    """Neither dropped and kept ones, nor those that are open when the client ends."""
    async with served(tmp_path, "--language", "python", wait_for=["python is ready"]) as faas:
        async with over_stdio("--url", faas.url, "--output-dir", str(tmp_path / "results")) as client:
            tools = Tools(client)
            await tools("begin_branch")
            assert await open_sessions(faas.url) == 2
            code = "import os; os.mkdir('output'); open('output/a', 'w').write('kept')"
            assert await tools.python(code) == "4"  # only what is kept is collected
            assert "Given to the user, in python-1: a" in await tools("end_branch", {"action": "keep"})
            assert await open_sessions(faas.url) == 1
            assert (tmp_path / "results" / "python-1" / "a").read_text() == "kept"
            await tools("begin_branch")
            await tools("end_branch", {"action": "drop"})
            assert await open_sessions(faas.url) == 1
            await tools("begin_branch")
            await tools("begin_branch")
            assert await open_sessions(faas.url) == 3
        assert await open_sessions(faas.url) == 0


async def test_sessions_that_cannot_be_forked_have_no_branches() -> None:
    """The tools are not listed."""
    async with FakeFaaS() as fake:
        for features in (["run", "files"], ["run", "files", "fork"]):
            fake.health = {"languages": {"python": {"sessions": features}}}
            async with over_stdio("--url", fake.url) as client:
                names = {tool.name for tool in (await client.list_tools()).tools}
                assert names.issuperset(["begin_branch", "end_branch"]) is ("fork" in features)


@one_way
async def test_reset_begins_anew(connect: Connect) -> None:
    """Variables and files are gone, in all languages."""
    async with connect() as tools:
        await tools.python("x = 1; open('a', 'w').close()")
        await tools("run_javascript", {"code": "const y = 1"})
        await tools("reset")
        assert "NameError" in await tools.python("x")
        assert await tools("list_files") == "There are no files."
        assert "ReferenceError" in await tools("run_javascript", {"code": "y"})


async def test_a_cancelled_reset_leaves_no_session_behind() -> None:
    """The sessions that it has not ended are ended by the next one."""
    async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy, RuntimeManager.from_url(proxy.url) as manager:
        workspace = Workspace(manager, SessionSetup(SandboxConfig(), 600))
        for language in ("python", "javascript"):
            await workspace.call("list_files", {"language": language}, mock.AsyncMock())
        assert len(fake.sessions) == 2
        proxy.upstream = Toxics(latency_s=1_000)
        reset = asyncio.create_task(workspace.call("reset", {}, mock.AsyncMock()))
        for _ in range(10):
            await asyncio.sleep(0)
        reset.cancel()
        await asyncio.gather(reset, return_exceptions=True)
        proxy.upstream = Toxics()
        await workspace.call("reset", {}, mock.AsyncMock())
        await until(lambda: not fake.sessions)


async def test_limits(faasrt_local: str) -> None:
    """The time limit interrupts a program, and its state is kept. A session that exceeds its memory limit ends, which
    the model learns, and the next call works.
    """
    async with over_stdio("--url", faasrt_local, "--timeout-s", "1", "--memory-mb", "128") as client:
        tools = Tools(client)
        await tools.python("x = 1")
        text = await tools.python("print('begun')\nwhile True: pass")
        assert not tools.is_error
        assert text.startswith("begun\n")
        assert "TIMEOUT: timeout after 1000 ms" in text
        assert await tools.python("x") == "1"
        text = await tools.python("import os; os._exit(3)")
        assert not tools.is_error
        assert "variables and files are lost" in text
        assert "NameError" in await tools.python("x")
        text = await tools.python("b = bytearray(10**9)")
        assert "MEMORY_LIMIT: more than 128 MiB of memory" in text


@one_way
async def test_wrong_arguments(connect: Connect) -> None:
    """The model gets a message that says all that is wrong, and which values are allowed."""
    async with connect() as tools:
        for tool, arguments, message in (
            ("run_python", {}, "The argument 'code' is missing. It must be a string."),
            ("end_branch", {"keep": False}, "There is no argument 'keep'. The arguments are action"),
            ("run_python", {"code": 1}, "The argument 'code' must be a string."),
            ("run_python", {"code": "", "cod": ""}, "There is no argument 'cod'. The arguments are code"),
            ("list_files", {"language": "c"}, "The argument 'language' must be python or javascript."),
            ("run", {}, "There is no tool 'run'. The tools are run_python, "),
        ):
            assert (await tools(tool, arguments)).startswith(message)
            assert tools.is_error
        text = await tools("end_branch", {"keep": False})
        assert text.endswith("The argument 'action' is missing. It must be keep or drop.")


@every_way
async def test_cancelling_a_call_interrupts_the_program(connect: Connect) -> None:
    """The client gets the output while it runs. The next call does not wait for the time limit, and has the state."""
    async with connect() as tools:
        await tools.python("x = 1")
        began = asyncio.Event()

        async def report(progress: float, total: float | None, message: str | None) -> None:
            if "begun" in str(message):
                began.set()

        code = "import time\nx = 2\nprint('begun', flush=True)\nfor _ in range(600): time.sleep(0.05)\nx = 3"
        call = asyncio.create_task(tools.python(code, progress_callback=report))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await tools.python("x") == "2"


async def open_sessions(url: str) -> int:
    async with httpx2.AsyncClient() as client:
        return int((await client.get(f"{url}/metrics")).json()["sessions"])


async def test_a_client_that_ends_or_vanishes_leaves_no_session(tmp_path: Path) -> None:
    """Sessions at the FaaS end when stdin closes, when the session of MCP ends, and else after --idle-s."""
    async with served(tmp_path, "--language", "python", wait_for=["python is ready"]) as faas:
        async with over_stdio("--url", faas.url) as client:
            await Tools(client).python("1")
            assert await open_sessions(faas.url) == 1
        assert await open_sessions(faas.url) == 0
        server = await asyncio.to_thread(HttpServer, "--url", faas.url, "--idle-s", "1")
        try:
            async with over_http(server.url, mode="legacy") as client:
                await Tools(client).python("1")
                assert await open_sessions(faas.url) == 1
            assert await open_sessions(faas.url) == 0
            async with over_http(server.url) as client:  # has no session of MCP that it could end
                tools = Tools(client)
                assert await tools.python("1") == "1"
                async with asyncio.timeout(60):
                    while await open_sessions(faas.url):
                        await asyncio.sleep(0.05)
                assert "variables and files are lost" in await tools.python("1")
                assert tools.is_error
            async with over_http(server.url) as client:
                await Tools(client).python("1")
                assert await asyncio.to_thread(server.stop) == 0
                assert await open_sessions(faas.url) == 0
        finally:
            await asyncio.to_thread(server.stop)


async def test_more_sessions_than_the_limit_are_refused() -> None:
    """With the embedded FaaS, the limit is --max-sessions. The sessions that are open go on."""
    async with over_stdio("--max-sessions", "1", "--engine", "python=wasm") as client:
        tools = Tools(client)
        assert await tools("list_files", read_timeout_seconds=300) == "There are no files."
        text = await tools("run_javascript", {"code": "1"}, read_timeout_seconds=300)
        assert tools.is_error
        assert "too many sessions: the limit of open sessions is 1" in text
        assert await tools.python("x = 1; x") == "1"


async def test_a_model_that_begins_too_many_sessions_learns_to_name_one() -> None:
    """Over HTTP without sessions of MCP, each call without a name begins a session."""
    async with FakeFaaS() as fake:
        fake.max_sessions = 1
        server = await asyncio.to_thread(HttpServer, "--url", fake.url, "--timeout-s", "1")
        try:
            async with over_http(server.url, token="") as client:
                tools = Tools(client)
                assert await tools("list_files") == "There are no files."
                result = await client.call_tool("list_files", {})
                assert result.is_error
                assert "too many sessions" in result.content[0].text
                assert result.content[0].text.endswith("pass its name as 'session': without it, a new one begins.")
                assert await tools("list_files") == "There are no files."
        finally:
            assert await asyncio.to_thread(server.stop) == 0


def test_files_of_the_host_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """Before the server starts, with the limit."""
    for name, size in (("a", 7_000_000), ("b", 5_000_000), ("c", 1)):
        (tmp_path / name).write_bytes(b"\xff" * size)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "c").touch()
    a, b, c = (str(tmp_path / name) for name in "abc")
    for arguments, message in (
        (["--file", a], "is too large for sessions (7,000,000 bytes): as JSON, a file must have less than 8 MiB"),
        ([f"--file={n}={b}" for n in range(7)], "the files have more than 33,554,432 bytes, the most for a session"),
        (["--file", c, "--files", str(folder)], "two files have the name c"),
    ):
        code, stdout, stderr = faasrt("mcp", *arguments)
        assert (code, stdout) == (2, "")
        assert message in " ".join(stderr.split())


async def test_sessions_begin_with_files_of_the_host(faasrt_local: str, tmp_path: Path) -> None:
    """Those of the command line are in each session, even after a reset. They are copies. No link is followed, and
    files whose names begin with a dot are left out. A model can name no other file of the host.
    """
    data = tmp_path / "data.csv"
    data.write_text("n\n1\n")
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "b.bin").write_bytes(b"\xff" * 5_000_000)
    (folder / "c.bin").write_bytes(b"\xfe" * 5_000_000)
    (folder / ".env").write_text("secret")
    (folder / "link").symlink_to(data)
    (folder / "folder").symlink_to(tmp_path)
    log = tmp_path / "log"
    with log.open("w") as stream:
        options = ("--url", faasrt_local, "--file", str(data), f"--file=other/name={data}", "--files", str(folder))
        async with over_stdio(*options, log=stream) as client:
            tools = Tools(client)
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert "files of the user: data.csv (4 bytes), other/name (4 bytes)" in str(
                listed["run_python"].description
            )
            expected = (
                "c.bin (5,000,000 bytes)\ndata.csv (4 bytes)\ninner/b.bin (5,000,000 bytes)\nother/name (4 bytes)"
            )
            for _ in range(2):
                assert await tools("list_files") == expected
                assert await tools.python("open('data.csv', 'a').write('2')") == "1"
                assert await tools.python("open('data.csv').read()") == "'n\\n1\\n2'"
                await tools("reset")
            assert data.read_text() == "n\n1\n"
            for path in (str(data), "../data.csv", "/etc/hostname"):
                assert (await tools("read_file", {"path": path})).startswith("path must be a relative path")
    assert f"2 symbolic links in {folder} were left out" in log.read_text()


async def test_files_in_the_folder_output_are_collected(faasrt_local: str, tmp_path: Path) -> None:
    """After each call that changes them, and into a folder for each session, which the result names. Links of the
    session and of the host are not followed, and files that cannot be collected are named for the model.
    """
    results = tmp_path / "results"
    async with over_stdio("--url", faasrt_local, "--output-dir", str(results), "--output-bytes", "2000") as client:
        tools = Tools(client)
        described = {tool.name: str(tool.description) for tool in (await client.list_tools()).tools}
        assert described["run_python"].endswith(
            "Files that the code writes into the folder output are given to the user, but no links."
        )
        assert await tools.python("import os; os.makedirs('output/in'); open('a', 'w').write('no')") == "2"
        assert [*results.iterdir()] == []
        code = "for name in ('output/x.txt', 'output/in/y.txt'): open(name, 'w').write(name)"
        assert await tools.python(code) == "(no output)\nGiven to the user, in python-1: in/y.txt, x.txt"
        first = results / "python-1"
        assert (first / "in" / "y.txt").read_text() == "output/in/y.txt"
        assert await tools.python("1") == "1"  # nothing has changed
        assert await tools("write_file", {"path": "output/x.txt", "content": "new"}) == (
            "output/x.txt is written.\nGiven to the user, in python-1: x.txt"
        )
        assert (first / "x.txt").read_text() == "new"
        outside = tmp_path / "outside"
        outside.write_text("kept")
        (first / "x.txt").unlink()
        (first / "x.txt").symlink_to(outside)
        (first / "in" / "y.txt").unlink()
        (first / "in").rmdir()
        (first / "in").symlink_to(tmp_path)
        text = await tools.python("for name in ('x.txt', 'in/y.txt'): open('output/' + name, 'w').write('again')")
        assert "output/in/y.txt cannot be given to the user: Not a directory" in text
        assert "Given to the user, in python-1: x.txt" in text
        assert (outside.read_text(), (first / "x.txt").read_text()) == ("kept", "again")
        assert not (tmp_path / "y.txt").exists()
        (first / "in").unlink()
        await tools("reset")
        text = await tools.python(
            "import contextlib, os; os.mkdir('output'); open('output/big', 'w').write('a' * 3_000)\n"
            # As WebAssembly, Python has no links to paths of the host.
            "with contextlib.suppress(OSError): os.symlink('/etc/passwd', 'output/link')\n"
            "open('output/ok', 'w').close()\n1 / 0"
        )
        assert "output/big is not given to the user: it has more than 2,000 bytes." in text
        assert "Given to the user, in python-2: ok" in text
        assert sorted(path.relative_to(results).as_posix() for path in results.rglob("*")) == [
            "python-1",
            "python-1/x.txt",
            "python-2",
            "python-2/ok",
        ]


async def test_a_lost_session_is_named(http: str) -> None:
    """A client without a session of MCP learns that the session that it names is not there."""
    async with over_http(http) as client:
        result = await client.call_tool("run_python", {"code": "1", "session": "nope"})
        assert result.is_error
        expected = "There is no session 'nope' any more. Leave out 'session' to begin a new one."
        assert result.content[0].text == expected


async def test_failures_of_the_faas_are_errors_for_the_model(unused_tcp_port: int) -> None:
    """A FaaS that is down, or has no sessions, is named. The server goes on."""
    async with FakeFaaS() as fake:
        fake.health = {"languages": {"python": {"input": []}}}
        for url, message in ((f"http://127.0.0.1:{unused_tcp_port}", "ConnectError"), (fake.url, "has no sessions")):
            async with over_stdio("--url", url) as client:
                for tool in ("run_python", "list_files"):
                    result = await client.call_tool(tool, {"code": "1"} if tool == "run_python" else {})
                    assert result.is_error
                    assert message in result.content[0].text
                    assert "Traceback" not in result.content[0].text
                    assert ", sent: " not in result.content[0].text


async def test_a_session_that_cannot_be_reached_is_kept(faasrt_local: str) -> None:
    """The model learns that it may still be there. When the FaaS is back, its state is, too."""
    async with FaultProxy(faasrt_local) as proxy, over_stdio("--url", proxy.url) as client:
        tools = Tools(client)
        await tools.python("x = 1")
        proxy.down()
        while "cannot be reached" not in (text := await tools("list_files")):
            pass  # the connection may not be closed yet
        assert text.endswith("The session may still be there: try again.")
        await proxy.up()
        assert await tools.python("x") == "1"


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, "/mcp", 401),
        ({"Authorization": "Bearer wrong"}, "/mcp", 401),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://127.0.0.1"}, "/mcp", 403),
        ({"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": "cross-site"}, "/mcp", 403),
        ({"Authorization": f"Bearer {TOKEN}"}, "/", 404),
        ({"Authorization": f"Bearer {TOKEN}", "Mcp-Session-Id": "nope"}, "/mcp", 404),
    ],
)
async def test_http_refuses_others(http: str, headers: dict[str, str], path: str, status: int) -> None:
    """Requests without the token, and those of web pages, reach no tool."""
    await refused(http.removesuffix("/mcp") + path, headers, status)


async def refused(url: str, headers: dict[str, str], status: int) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient() as client:
        assert (await client.post(url, json=body, headers={**accept, **headers})).status_code == status


async def test_http_without_a_token_checks_the_host(faasrt_local: str) -> None:
    """A web page cannot reach it by DNS rebinding. SIGTERM stops the server, even while a client is connected."""
    server = await asyncio.to_thread(HttpServer, "--url", faasrt_local)
    try:
        await refused(server.url, {"Host": "example.org"}, 403)
        async with over_http(server.url, token="", mode="legacy") as client:
            assert await Tools(client).python("1") == "1"
            assert await asyncio.to_thread(server.stop) == 0
    finally:
        await asyncio.to_thread(server.stop)


def test_wrong_options() -> None:
    """Wrong options are refused before anything starts."""
    for arguments, message in (
        (["--http", "0.0.0.0:0"], "can be reached from other machines, so it needs --token"),
        (["--http", "8000"], "is not of the form HOST:PORT"),
        (["--token", "x"], "--token needs --http"),
        (["--idle-s", "0"], "0 must be above 0 and at most 3,600"),
        (["--http", "192.0.2.1:0", "--token", "x"], "cannot listen on 192.0.2.1:0"),
        (["--file", "missing.csv"], "cannot read missing.csv for --file: No such file or directory"),
        (["--file", "/"], "the name of / in a session must be"),
        (["--file", "x=/dev/null"], "cannot read /dev/null for --file: it is not a regular file"),
        (["--file", "../x=/etc/hostname"], "--file NAME=PATH gives a file another name"),
        (["--files", "missing"], "Directory 'missing' does not exist"),
        (["--output-dir", "/dev/null/x"], "cannot use /dev/null/x for --output-dir: Not a directory"),
    ):
        code, stdout, stderr = faasrt("mcp", *arguments)
        assert (code, stdout) == (2, "")
        assert message in " ".join(stderr.split())
    with mock.patch("faasrt.cli.mcp_command.find_spec", return_value=None):  # the extra is not installed
        assert faasrt("mcp")[2].endswith("faasrt mcp needs the SDK of MCP: pip install 'faasrt[mcp]'\n")


INITIALIZE = {
    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
}  # fmt: skip


META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
FIRST = [
    *(
        ("initialize", {**INITIALIZE, "protocolVersion": version})
        for version in ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
    ),
    ("server/discover", {"_meta": META}),
]


@pytest.mark.parametrize(("method", "params"), FIRST)
async def test_the_first_answer_is_that_of_the_sdk(method: str, params: dict[str, Any]) -> None:
    """It is sent before the SDK is loaded."""
    line = json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}) + "\n"
    server = SandboxTools(mock.Mock(), SessionSetup(SandboxConfig(), 600)).make_server()
    stdout = io.StringIO()
    async with stdio_server(anyio.wrap_file(io.StringIO(line)), anyio.wrap_file(stdout)) as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())
    assert json.loads(stdout.getvalue()) == mcp_greeting.answer(line.encode())


@pytest.mark.parametrize(
    "message",
    [
        "?",
        "[" * 100_000,
        "[]",
        {"method": "ping"},
        {"method": "initialize"},
        {"method": "initialize", "params": {**INITIALIZE, "protocolVersion": "1999-01-01"}},
        {"method": "initialize", "params": {**INITIALIZE, "clientInfo": {"name": 1, "version": "1"}}},
        {"method": "initialize", "params": INITIALIZE, "id": True},
        {"method": "initialize", "params": INITIALIZE, "id": None},
        {"method": "server/discover", "params": {"_meta": {}}},
    ],
)
def test_other_messages_are_left_to_the_sdk(message: Any) -> None:
    """They have no early answer."""
    line = message if isinstance(message, str) else json.dumps({"jsonrpc": "2.0", "id": 1, **message})
    assert mcp_greeting.answer(line.encode()) is None


@pytest.mark.parametrize(("method", "params"), FIRST[-2:])
def test_the_first_message_is_answered_while_the_sdk_loads(method: str, params: dict[str, Any], tmp_path: Path) -> None:
    """Clients need not wait for it. Here, it never loads."""
    (tmp_path / "mcp").mkdir()
    os.mkfifo(tmp_path / "never")
    (tmp_path / "mcp" / "__init__.py").write_text(f"open({str(tmp_path / 'never')!r})")
    with subprocess.Popen(
        [FAASRT, "mcp", "--url", "http://127.0.0.1:1"],
        env={**CLEAN, "PYTHONPATH": str(tmp_path)},
        stdin=-1,
        stdout=-1,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        print(
            json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}), file=server.stdin, flush=True
        )
        assert json.loads(server.stdout.readline())["id"] == 7
        server.kill()


@NATIVE
@pytest.mark.parametrize("ending", ["stdin", "SIGTERM"])
def test_stdio_ends_with_stdin_or_a_signal(ending: str, tmp_path: Path) -> None:
    """With the embedded FaaS: stdout has only messages of MCP, a running program ends with the server, no process
    or folder stays, and no code or output is in the log.
    """
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [FAASRT, "mcp"], env={**CLEAN, "TMPDIR": str(tmp_path)}, stdin=-1, stdout=-1, stderr=log, text=True
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None

        def send(method: str, params: dict[str, Any], **fields: Any) -> None:
            print(
                json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **fields}),
                file=server.stdin,
                flush=True,
            )

        send("initialize", INITIALIZE, id=1)
        assert json.loads(server.stdout.readline())["result"]["serverInfo"]["name"] == "faasrt"
        send("notifications/initialized", {})
        code = "import os, sys\nos.write(1, b'raw-output\\n'); print('secret-output', flush=True)\nwhile True: pass"
        call = {"name": "run_python", "arguments": {"code": code}, "_meta": {"progressToken": "t"}}
        send("tools/call", call, id=2)
        assert "-output" in json.loads(server.stdout.readline())["params"]["message"]
        children = psutil.Process(server.pid).children(recursive=True)
        if ending == "stdin":
            server.stdin.close()
        else:
            server.send_signal(signal.Signals[ending])
        for line in server.stdout:
            json.loads(line)
        assert server.wait(60) == 0
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert (tmp_path / "log").read_text().splitlines() == ["faasrt: no endpoint configured; using the embedded FaaS"]
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
