"""The programs in `faasrt.examples`."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import anyio.to_thread
import psutil
import pytest
import uvicorn
from aiohttp import web
from prometheus_client import CollectorRegistry

from faasrt import LimiterSettings, RuntimeManager
from faasrt.examples import aiohttp_backend, batch_evaluation, benchmark, fastapi_backend, fastapi_streaming
from faasrt.local import LocalFaaS
from faasrt.testing import FakeFaaS, Reply
from support.documents import text_of
from support.helpers import until_active, url_of
from support.served import CLEAN, PATIENCE_S, is_gone, until

pytestmark = [pytest.mark.documentation, pytest.mark.asyncio(loop_scope="session")]

FOLDER = Path(batch_evaluation.__file__).parent
BACKENDS = ["aiohttp_backend", "fastapi_backend"]
EXACT = """
def grade(answer, expected):
    print('seen')
    return {'score': float(answer == expected), 'reason': 'r'}
"""
ENDLESS = """
def grade(a, b):
    while True: pass
"""
SURROGATES = r"""
def grade(a, b):
    print('\ud800')
    raise ValueError('\ud801')
"""
MakeManager = Callable[..., RuntimeManager]


def maker_for(url: str, **settings: Any) -> MakeManager:
    """Return a function that makes a manager for one URL."""
    environ = {"COZE_LOOP_FAAS_URL": url}
    return lambda **options: RuntimeManager.from_env(environ, **options, **settings)


@contextlib.asynccontextmanager
async def serving(backend: str, make_manager: MakeManager) -> AsyncIterator[aiohttp.ClientSession]:
    """Run the application of a backend on the server that its example uses. Yield a client."""
    async with contextlib.AsyncExitStack() as stack:
        if backend == "aiohttp_backend":
            runner = web.AppRunner(aiohttp_backend.create_app(make_manager), handler_cancellation=True)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
        else:
            app = {"fastapi_backend": fastapi_backend, "fastapi_streaming": fastapi_streaming}[backend]
            server = uvicorn.Server(uvicorn.Config(app.create_app(make_manager), port=0, log_config=None))
            running = asyncio.create_task(server.serve())

            async def stop() -> None:
                server.should_exit = True
                await running

            stack.push_async_callback(stop)
            await until(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
        yield await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}"))


async def grade(client: aiohttp.ClientSession, **body: Any) -> tuple[int, dict[str, Any]]:
    """Send a request that is valid except for the given fields."""
    body = {"grader": EXACT, "answer": "42", "expected": "42", **body}
    async with client.post("/grade", json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_failures_of_graders_are_answered_with_200(backend: str, local: RuntimeManager) -> None:
    """Grades, failures of graders and invalid grades have different bodies."""
    async with serving(backend, maker_for(url_of(local))) as client:
        right = {"outcome": "OK", "grade": {"score": 1.0, "reason": "r"}, "problem": "", "stdout": "seen\n"}
        assert await grade(client) == (200, right)
        wrong = right | {"grade": {"score": 0.0, "reason": "r"}}
        assert await grade(client, answer="41") == (200, wrong)
        script = "function grade(answer: string, expected: string) { return {score: 0.5} }"
        half = right | {"grade": {"score": 0.5, "reason": ""}, "stdout": ""}
        assert await grade(client, grader=script, language="typescript") == (200, half)

        nothing = {"outcome": "OK", "grade": None, "problem": "the grader returned no score from 0 to 1", "stdout": ""}
        for value in ("None", "1.0", "{}", "{'score': True}", "{'score': 2}", "{'score': '1'}", "{'score': 1, 'x': 1}"):
            assert await grade(client, grader=f"def grade(a, b): return {value}") == (200, nothing)

        failed = {"outcome": "USER_ERROR", "grade": None, "problem": "ValueError: no", "stdout": ""}
        assert await grade(client, grader="def grade(a, b): raise ValueError('no')") == (200, failed)
        problem = "Timeout: timeout after 300 ms (timeout_ms)"
        endless = {"outcome": "TIMEOUT", "grade": None, "problem": problem, "stdout": ""}
        assert await grade(client, grader=ENDLESS, timeout_ms=300) == (200, endless)
        status, body = await grade(client, grader=SURROGATES)
        assert (status, body["outcome"]) == (200, "USER_ERROR")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_invalid_requests_are_answered_with_422(backend: str) -> None:
    """The body has a message, and nothing is sent to the FaaS."""
    async with FakeFaaS() as fake, serving(backend, maker_for(fake.url)) as client:
        for wrong in (
            {"grader": " "},
            {"grader": 1},
            {"grader": "x" * 100_001},
            {"language": "cobol"},
            {"language": 5},
            {"answer": None},
            {"expected": "\ud800", "timeout_ms": 0},
            {"timeout_ms": 30_001},
            {"timeout_ms": "soon"},
            {"priority": "high"},
        ):
            status, body = await grade(client, **wrong)
            assert (status, sorted(body)) == (422, ["detail", "error"]), wrong
            assert body["detail"]
        for data in (b"", b"{", b"[]", b'"text"', b"\xff", b'{"answer": "42"}'):
            async with client.post("/grade", data=data, headers={"Content-Type": "application/json"}) as response:
                assert response.status in {422, 400 if backend == "fastapi_backend" else 422}, data
        assert fake.requests == []


@pytest.mark.parametrize("backend", BACKENDS)
async def test_failures_of_the_faas_are_answered_with_502_or_503(backend: str) -> None:
    """Overload gives 503 with the FaaS's Retry-After, and so does a call that was not sent. Other failures give 502. No
    answer contains the FaaS's address.
    """
    async with FakeFaaS() as fake, serving(backend, maker_for(fake.url)) as client:
        fake.script(Reply.overloaded(retry_after=40.5))
        async with client.post("/grade", json={"grader": EXACT, "answer": "", "expected": ""}) as response:
            text = await response.text()
            assert (response.status, response.headers["Retry-After"]) == (503, "41")
            assert json.loads(text)["error"] == "OverloadedError"
        fake.script(Reply.crash(), Reply(body=b"?"), Reply(disconnect=True))
        for name in ("ServerError", "ProtocolError", "ConnectionLostError"):
            status, body = await grade(client)
            assert (status, body) == (502, {"error": name, "detail": "the code could not be run"})
            text += str(body)
        fake.down()
        status, body = await grade(client)
        assert (status, body) == (503, {"error": "ConnectError", "detail": "no capacity; try again"})
        text += str(body)
        assert "127.0.0.1" not in text


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_full_queue_is_answered_with_503(backend: str) -> None:
    """The answer has a Retry-After header."""
    managers: list[RuntimeManager] = []

    def make(**options: Any) -> RuntimeManager:
        managers.append(maker_for(fake.url, limiter=LimiterSettings(max_concurrency=1, max_queue=1))(**options))
        return managers[0]

    async with FakeFaaS() as fake, serving(backend, make) as client, asyncio.TaskGroup() as group:
        fake.default = Reply(hang=True)
        waiting = [group.create_task(grade(client)) for _ in range(2)]
        await until(lambda: fake.in_flight == 1 and managers[0].get_metrics().queued == 1)
        async with client.post("/grade", json={"grader": EXACT, "answer": "", "expected": ""}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await response.json())["error"] == "QueueFullError"
        for task in waiting:
            task.cancel()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_client_that_disconnects_stops_its_grader(backend: str, local: RuntimeManager) -> None:
    """The sandbox becomes free before the time limit of 30 s, and the metrics count a cancelled call."""
    async with serving(backend, maker_for(url_of(local))) as client:
        request = asyncio.create_task(grade(client, grader=ENDLESS, timeout_ms=30_000))
        async with asyncio.timeout(PATIENCE_S):
            await until_active(local, "python", 1)
            request.cancel()
            await until_active(local, "python", 0)
        async with client.get("/metrics") as response:
            assert re.search(
                r'^faasrt_calls_total{.*error="CancelledError".*} 1\.0$', await response.text(), re.MULTILINE
            )


@pytest.mark.parametrize("backend", BACKENDS)
async def test_health_and_metrics_of_a_backend(backend: str) -> None:
    """`/health` answers 200 or 503. `/metrics` counts the calls of this application only, in Prometheus format."""
    async with FakeFaaS() as fake:
        for _ in range(2):
            async with serving(backend, maker_for(fake.url)) as client:
                async with client.get("/health") as response:
                    assert response.status == 200
                    assert await response.json() == {"healthy": True, "endpoints": {fake.url: "healthy"}}
                fake.script(Reply.crash())
                await grade(client)
                async with client.get("/metrics") as response:
                    assert response.content_type == "text/plain"
                    assert 'error="ServerError",language="python",outcome=""} 1.0' in await response.text()
                fake.down()
                async with client.get("/health") as response:
                    assert response.status == 503
                    assert await response.json() == {"healthy": False, "endpoints": {fake.url: "unreachable"}}
                await fake.up()


def streaming(make_manager: MakeManager) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientSession]:
    return serving("fastapi_streaming", make_manager)


@contextlib.asynccontextmanager
async def streamed(client: aiohttp.ClientSession, code: str) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """Run a program, and yield its events: each has a name, and data."""

    async def events() -> AsyncIterator[tuple[str, Any]]:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        while lines := (await response.content.readuntil(b"\n\n")).decode().splitlines():
            if lines[0].startswith(":"):
                yield "comment", None
            else:
                yield lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))

    async with client.post("/run", json={"code": code}) as response:
        yield events()


async def test_output_is_streamed_while_a_program_runs(local: RuntimeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each output is an event that arrives before the program ends, and so is the result. Comments keep a silent
    connection open.
    """
    code = "print('a\\n\\nb', flush=True)\nprint('\\ud800')\nprint(input())"
    async with streaming(maker_for(url_of(local))) as client:
        async with streamed(client, code) as events:
            *output, end = [pair async for pair in events]
        assert {name for name, _ in output} == {"output"}
        texts = {"stdout": "", "stderr": ""}
        for _, data in output:
            texts[data["stream"]] += data["text"]
        assert texts["stdout"] == "a\n\nb\n\ud800\n"
        assert texts["stderr"].startswith("Traceback")
        assert end == ("result", {"outcome": "USER_ERROR", "message": "EOFError: EOF when reading a line"})
        monkeypatch.setattr(fastapi_streaming, "KEEP_ALIVE_S", 0.01)
        async with streamed(client, "print('first', flush=True)\nwhile True: pass") as events:
            first = await anext(pair async for pair in events if pair[0] != "comment")
            assert first == ("output", {"stream": "stdout", "text": "first\n"})
            assert await anext(events) == ("comment", None)
            await until_active(local, "python", 1)
        await until_active(local, "python", 0)


async def test_users_have_a_limit_of_streamed_programs(local: RuntimeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third program of a user is refused with 429 and counted, and one of another user is not. A program that ends,
    or whose client disconnects, makes room.
    """
    monkeypatch.setattr(fastapi_streaming, "user_of", lambda request: request.headers["User-Agent"])
    endless = "print(1, flush=True)\nwhile True: pass"
    async with streaming(maker_for(url_of(local))) as client:
        async with streamed(client, endless) as first, streamed(client, endless) as second:
            await anext(first)
            await anext(second)
            async with client.post("/run", json={"code": "1"}) as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "1")
                assert await response.json() == {"detail": "you already run 2 programs"}
            async with client.post("/run", json={"code": "1"}, headers={"User-Agent": "another"}) as response:
                assert response.status == 200
                assert '{"outcome": "OK", "message": ""}' in await response.text()
            async with client.get("/metrics") as response:
                assert "app_refused_users_total 1.0" in await response.text()
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(4):  # one after the other
                while True:
                    async with client.post("/run", json={"code": "1"}) as response:
                        if response.status == 200:
                            break
            await until_active(local, "python", 0)


async def test_failures_of_streamed_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong request is answered with 422. Later failures are events, without the address of a server."""
    managers: list[RuntimeManager] = []
    monkeypatch.setattr(fastapi_streaming, "PROGRAMS_PER_USER", 3)

    def make(**options: Any) -> RuntimeManager:
        managers.append(maker_for(fake.url, limiter=LimiterSettings(max_concurrency=1, max_queue=1))(**options))
        return managers[0]

    async with FakeFaaS() as fake, streaming(make) as client:
        for wrong in ({}, {"code": ""}, {"code": " "}, {"code": "\ud800"}, {"code": "1", "timeout_ms": 5}):
            async with client.post("/run", json=wrong) as response:
                assert response.status == 422, wrong
                assert (await response.json())["detail"]
        assert fake.requests == []
        fake.script(Reply.crash())
        async with streamed(client, "1") as events:
            expected = {"status": 502, "error": "ServerError", "detail": "the code could not be run"}
            assert [pair async for pair in events] == [("failed", expected)]
        fake.default = Reply(hang=True)
        async with streamed(client, "1"):
            await until(lambda: fake.in_flight == 1)
            async with streamed(client, "2"):
                await until(lambda: managers[0].get_metrics().queued == 1)
                async with streamed(client, "3") as events:
                    expected = {"status": 503, "error": "QueueFullError", "detail": "no capacity; try again"}
                    assert [pair async for pair in events] == [("failed", expected)]
        await until(lambda: managers[0].get_metrics().queued == managers[0].get_metrics().in_flight == 0)


async def test_health_and_metrics_of_the_streaming_application() -> None:
    """`/health` is 503 while the FaaS cannot be reached, and `/live` is not. The counters are those of this app."""
    async with FakeFaaS() as fake, streaming(maker_for(fake.url)) as client:
        async with streamed(client, "print(1)") as events:
            assert [name async for name, _ in events][-1] == "result"
        async with client.get("/metrics") as response:
            assert re.search(r'^faasrt_calls_total{.*outcome="OK"} 1\.0$', await response.text(), re.MULTILINE)
        for up in (True, False):
            async with client.get("/health") as response:
                assert response.status == (200 if up else 503)
            async with client.get("/live") as response:
                assert response.status == 200
            fake.down()
        await fake.up()


async def test_parts_of_the_guide(local: RuntimeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page on web applications shows a short form of the example, which works with its FastAPI application."""
    text = text_of("faasrt/docs/web-applications.md")
    whole = text.partition("```python\n")[2].partition("```")[0]
    parts = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text.partition("## Show output")[2], re.MULTILINE)
    names = {**vars(fastapi_streaming), "registry": CollectorRegistry()}
    source = textwrap.dedent("".join(parts))
    monkeypatch.setenv("COZE_LOOP_FAAS_URL", url_of(local))
    monkeypatch.setattr(fastapi_streaming, "create_app", lambda make_manager: names["app"])
    exec(compile(f"{whole}\n{source}", "web-applications.md", "exec"), names)
    async with streaming(RuntimeManager) as client:
        async with client.post("/run", json={"code": "print(6 * 7)"}) as response:
            events = [json.loads(line[6:]) for line in (await response.text()).splitlines() if line]
            assert events == [{"stream": "stdout", "text": "42\n"}, {"outcome": "OK"}]
        async with client.post("/run", json={"code": "while True: pass"}):
            await until_active(local, "python", 1)
        await until_active(local, "python", 0)
        for path in ("/health", "/metrics"):
            async with client.get(path) as response:
                assert response.status == 200


async def test_size_of_the_queue() -> None:
    """The queue has the programs that can start within the patience of a user."""
    limiter = fastapi_streaming.limiter(at_once=4, mean_s=0.5, patience_s=3)
    assert (limiter.max_concurrency, limiter.max_queue, limiter.queue_timeout_s) == (4, 24, 3)


async def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments and wait until it exits."""
    command = [sys.executable, "-W", "error", *arguments]
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(command, env={**CLEAN, **environ}, capture_output=True, text=True, timeout=400)
    )


@pytest.mark.parametrize(
    ("backend", "number"), [("aiohttp_backend", signal.SIGTERM), ("fastapi_backend", signal.SIGINT)]
)
async def test_a_signal_stops_a_backend_and_its_processes(backend: str, number: signal.Signals, tmp_path: Path) -> None:
    """A backend with the embedded FaaS grades an answer. After a signal it exits and leaves no process behind."""
    output = tmp_path / "output"
    command = [sys.executable, "-W", "error", "-m", f"faasrt.examples.{backend}", "--port", "0"]
    with output.open("wb") as sink:
        process = subprocess.Popen(command, env={**CLEAN, "PYTHONUNBUFFERED": "1"}, stdout=sink, stderr=sink)
    try:
        await until(lambda: "http://" in output.read_text())
        url = re.findall(r"http://[\d.:]+", output.read_text())[0]
        async with aiohttp.ClientSession(url) as client:
            status, body = await grade(client, grader="function grade() { return {score: 1} }", language="javascript")
        assert (status, body["grade"]) == (200, {"score": 1.0, "reason": ""})
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(number)
        await until(lambda: process.poll() is not None)
        # uvicorn raises SIGTERM again after it has stopped.
        assert process.returncode in {0, -signal.SIGTERM if backend == "fastapi_backend" else 0}
        await until(lambda: all(is_gone(child) for child in children))
        assert "Traceback" not in output.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("example", "missing"),
    [("fastapi_backend", "fastapi"), ("fastapi_backend", "uvicorn"), ("aiohttp_backend", "prometheus_client")],
)
async def test_examples_name_missing_packages(example: str, missing: str) -> None:
    """If a package from an extra is missing, the last line of the traceback says which extra to install."""
    done = await run("-c", f"import sys; sys.modules[{missing!r}] = None; import faasrt.examples.{example}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: this example needs {missing}: pip install 'faasrt[local,prometheus]'")


def expected_verdict(item: batch_evaluation.Item) -> batch_evaluation.Verdict:
    """Return the verdict of the item's grader, which is run in this process."""
    if item.grader == "endless" and item.answer == item.expected:
        return "grader failed"
    namespace: dict[str, Any] = {}
    exec(batch_evaluation.GRADERS[item.grader], namespace)
    try:
        return "right" if namespace["grade"](item.answer, item.expected) else "wrong"
    except Exception:
        return "grader failed"


async def test_batch_evaluation_returns_the_verdicts_of_the_graders(
    local: RuntimeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdicts equal those of the same graders run in this process, and are in the order of the answers."""
    monkeypatch.setenv("COZE_LOOP_FAAS_URL", url_of(local))
    items = batch_evaluation.sample(120)
    graded = await batch_evaluation.grade_all(items)
    assert [answer.item for answer in graded] == items
    assert [answer.verdict for answer in graded] == [expected_verdict(item) for item in items]
    assert {item.reason for item in graded} == {"", "ValueError", "ZeroDivisionError", "Timeout"}


async def test_batch_evaluation_as_a_command() -> None:
    """It uses the embedded FaaS. Its summary has a line for each grader and for each reason."""
    done = await run("-m", "faasrt.examples.batch_evaluation", "--answers", "40")
    assert done.returncode == 0, done.stderr
    lines = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
    assert lines[0] == ["grader", "right", "wrong", "grader failed", "not graded"]
    assert [line[0] for line in lines[1:5]] == list(batch_evaluation.GRADERS)
    assert sum(int(count) for line in lines[1:5] for count in line[1:]) == 40
    assert all(line[-1] == "0" for line in lines[1:5])
    assert ["grader failed: ValueError (6)"] in lines[5:]


async def test_batch_evaluation_counts_infrastructure_failures_as_not_graded() -> None:
    """They are not counted as wrong answers, and the exit code is 3."""
    async with FakeFaaS() as fake:
        fake.default = Reply.crash()
        done = await run("-m", "faasrt.examples.batch_evaluation", "--answers", "30", COZE_LOOP_FAAS_URL=fake.url)
    assert done.returncode == 3
    assert "not graded: ServerError (30)" in done.stdout
    assert "wrong:" not in done.stdout


async def test_benchmark_splits_the_time_of_calls(local: RuntimeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phases of a call are not negative, and their sum is its total time. Both endpoints get calls."""
    async with LocalFaaS(["python"], workers=1) as second:
        await second.wait_ready("python")
        urls = {url_of(local), second.url}
        monkeypatch.setenv("COZE_LOOP_PYTHON_FAAS_URL", ",".join(urls))
        measured = await benchmark.measure(60, 8)
    assert len(measured.results) == 60
    assert not measured.errors
    assert {result.endpoint for result in measured.results} == urls
    for result in measured.results:
        *parts, total = benchmark.phases(result).values()
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(total)
    text = benchmark.describe(measured)
    assert re.match(r"60 runs in [\d.]+ s, \d+ per second: OK 60\n", text)
    assert [line.split()[0] for line in text.splitlines()[1:]] == [
        *("ms", "queued", "program", "server", "client", "total"),
        *sorted(urls),
    ]


async def test_contest_grader_as_a_command() -> None:
    """It prints the verdict that decided about each solution, and the share of right ones."""
    done = await run("-m", "faasrt.examples.contest_grader")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "sum: PASSED",
        "sum: USER_ERROR",
        "palindrome: PASSED",
        "palindrome: WRONG_ANSWER line 1: expected 'NO', got 'YES'",
        "palindrome: TIMEOUT",
        "pass@1 of sum: 0.50",
        "pass@1 of palindrome: 0.33",
    ]


async def test_benchmark_as_a_command() -> None:
    """It uses the embedded FaaS. If runs fail, it counts them by error, and the exit code is 3."""
    done = await run("-m", "faasrt.examples.benchmark", "--runs", "20", "--concurrency", "4")
    assert done.returncode == 0, done.stderr
    assert re.match(r"20 runs in .*: OK 20\n", done.stdout)
    async with FakeFaaS() as fake:
        fake.default = Reply.crash()
        fake.script(Reply.ok(), Reply.ok())
        done = await run("-m", "faasrt.examples.benchmark", "--runs", "3", COZE_LOOP_FAAS_URL=fake.url)
    assert done.returncode == 3
    assert re.match(r"3 runs in .*: ServerError 2, OK 1\n", done.stdout)


NOTEBOOK = [
    cell for cell in json.loads((FOLDER / "notebook.ipynb").read_text())["cells"] if cell["cell_type"] == "code"
]


async def execute(source: str, namespace: dict[str, Any]) -> str:
    """Run a cell in the event loop, as Jupyter does, and return its output."""

    async def evaluate(tree: Any, mode: str) -> Any:
        done = eval(compile(tree, "cell", mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)
        return await done if inspect.iscoroutine(done) else done

    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        await evaluate(tree, "exec")
        shown = None if last is None else await evaluate(ast.Expression(last.value), "eval")  # type: ignore[attr-defined]
    return printed.getvalue() + ("" if shown is None else repr(shown))


async def test_notebook_cells_print_the_stored_output(local: RuntimeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells are run in order."""
    monkeypatch.setenv("COZE_LOOP_FAAS_URL", url_of(local))
    namespace: dict[str, Any] = {}
    for cell in NOTEBOOK:
        stored = "".join("".join(output.get("text") or output["data"]["text/plain"]) for output in cell["outputs"])
        assert await execute("".join(cell["source"]), namespace) == stored


@pytest.mark.timeout(500)  # mypy without a cache, beside other tests
async def test_notebook_passes_mypy(tmp_path: Path) -> None:
    """The cells pass `mypy --strict`."""
    script = tmp_path / "notebook.py"
    cells = ["".join(cell["source"]) for cell in NOTEBOOK]
    script.write_text('# mypy: disable-error-code="top-level-await"\n' + "\n\n".join(cells))
    done = await run("-m", "mypy", "--strict", "--cache-dir", os.devnull, str(script))
    assert done.returncode == 0, done.stdout


async def test_the_package_docstring_lists_all_examples() -> None:
    """The docstring of `faasrt.examples` lists its modules and no others."""
    listed = set(re.findall(r"faasrt\.examples\.(\w+)  ", importlib.import_module("faasrt.examples").__doc__ or ""))
    assert listed == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}


async def test_the_workers_of_uvicorn_share_one_server(local: RuntimeManager, tmp_path: Path) -> None:
    """Each worker has a manager for the server in the environment, and starts no engine of its own. Their metrics are
    added up.
    """
    socket = tmp_path / "app.sock"
    command = [sys.executable, "-m", "uvicorn", "--factory", "faasrt.examples.fastapi_backend:create_app"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--workers", "2", "--uds", str(socket), "--log-level", "warning"),
        env={**CLEAN, "COZE_LOOP_FAAS_URL": url_of(local), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )
    try:
        # Each request has a connection of its own, so that both workers get some.
        connector = aiohttp.UnixConnector(str(socket), force_close=True)
        async with aiohttp.ClientSession("http://app", connector=connector) as client:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with contextlib.suppress(aiohttp.ClientConnectionError):
                        assert (await grade(client))[0] == 200
                        break
                    await asyncio.sleep(0.1)
            answers = await asyncio.gather(*(grade(client, answer=str(42 + number % 2)) for number in range(20)))
            async with client.get("/metrics") as response:
                assert re.search(r'^faasrt_calls_total{.*outcome="OK"} 21\.0$', await response.text(), re.MULTILINE)
        assert [(status, body["grade"]["score"]) for status, body in answers] == [(200, 1.0), (200, 0.0)] * 10
        # The workers, and the process that multiprocessing itself starts.
        children = psutil.Process(process.pid).children()
        assert len(children) == 3
        assert [child.children() for child in children] == [[], [], []]
    finally:
        process.terminate()
        await process.wait()
