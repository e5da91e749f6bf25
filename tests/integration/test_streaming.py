"""`stream_code`: the output of a program arrives while the program runs, and then its result."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import structlog

from faasrt import (
    ConnectionLostError,
    ExecutionResult,
    InvalidRequestError,
    Outcome,
    OutputChunk,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    StreamError,
    TimeoutSettings,
)
from faasrt.local import LocalFaaS
from faasrt.local.http import limits
from faasrt.telemetry.events import AttemptFinished, CallFinished, CallStarted, ExecutionFinished
from faasrt.testing import FakeFaaS, FaultProxy, Reply
from support.helpers import WASM, Clock, manager_at, manager_for, until_active, url_of
from support.levels import NATIVE_PYTHON
from support.served import until, with_word
from support.tables import block

pytestmark = pytest.mark.asyncio(loop_scope="session")

ENDLESS = {
    "python": block("""
        import time
        while True:
            print('tick', flush=True)
            time.sleep(0.05)
    """),
    "typescript": "setInterval(() => console.log('tick' as string), 50)",
}
OWN_PYTHON = """
def return_val(value):
    print("__COZE_RETURN_VAL_START__")
    print(value)
    print("__COZE_RETURN_VAL_END__")

print("before", flush=True)
return_val("[1]")
print("after")
"""
PROGRAMS = {
    "python": {
        "nothing": "pass",
        "both streams": block("""
            import sys
            for n in range(50):
                print(n)
                print(-n, file=sys.stderr)
        """),
        "split characters": block("""
            import os, time
            for n in 'é€😀'.encode(): os.write(1, bytes([n])); time.sleep(0.01)
        """),
        "invalid bytes": block(r"""
            import os, time
            for n in b'\xff\xe2\x82a\xf0': os.write(1, bytes([n])); time.sleep(.01)
        """),
        "surrogates": block(r"""
            import os
            print('\ud800', flush=True)
            os.write(1, b'\xff\xed\xa0\x80\xed\xa0')
        """),
        "return value": block("""
            print('a', end='')
            return_val('[1, 2]')
            print('b')
        """),
        "own return_val": OWN_PYTHON,
        "exception": block("""
            print('a')
            1 / 0
        """),
        "exit code": block("""
            import sys
            print('a')
            sys.exit(3)
        """),
        "hard exit": block("""
            import os
            print('a', flush=True)
            os._exit(1)
        """),
        "syntax error": "def f(:",
        "300 kB": "print('x' * 300_000)",
        "cut": "print('é' * 700_000)",
        "too much": "while True: print('x' * 1000)",
        "timeout": block("""
            import time
            print('a', flush=True)
            time.sleep(60)
        """),
        "memory": block("""
            print('a', flush=True)
            data = []
            while True: data.append(bytearray(10**6))
        """),
    },
    "typescript": {
        "nothing": "",
        "both streams": "for (let n = 0; n < 50; n++) { console.log(n); console.error(-n); }",
        "invalid bytes": "for (const b of [255, 226, 130, 97, 240, 159]) Deno.stdout.writeSync(new Uint8Array([b]));",
        "stack": block("""
            console.log(new Error('a').stack); console.error(import.meta.url);
            throw new Error('b');
        """),
        "part of the location": "console.log('blob:nul'); console.log('b'); console.error('blob');",
        "return value": "console.log('a'); return_val('[1]'); console.log('b');",
        "own return_val": block("""
            function return_val(v) { console.log(v); }
            console.log(1); return_val('{"b": 1}');
        """),
        "exit code": "console.log('a'); Deno.exit(3);",
        "syntax error": "let = ;",
        "too much": "while (true) console.log('x'.repeat(1000));",
        "timeout": "console.log('a'); await new Promise((r) => setTimeout(r, 60_000))",
        "url in pieces": block("""
            const url = new TextEncoder().encode(import.meta.url);
            for (const byte of url) {
              Deno.stdout.writeSync(new Uint8Array([byte]));
              await new Promise((resolve) => setTimeout(resolve, 1));
            }
        """),
        "memory": "console.error('a'); const all = []; while (true) all.push(new Array(10_000).fill(0.5));",
    },
}  # fmt: skip


SAMPLE = {"both streams", "split characters", "exception", "exit code", "too much", "timeout", "memory"}
"""The programs that run in WebAssembly without `-m tables`."""
LANGUAGES = {"native": "python", "wasm": "python", "deno": "typescript"}
"""The language of each engine."""


@pytest.fixture(params=LANGUAGES)
def streamed(request: pytest.FixtureRequest, local: RuntimeManager, local_wasm: RuntimeManager) -> tuple[Any, str]:
    """Return a manager and a language of each engine."""
    manager = local_wasm if request.param == "wasm" else local
    return manager, LANGUAGES[request.param]


async def read_all(
    manager: RuntimeManager, code: str, language: str, **options: Any
) -> tuple[list[OutputChunk], ExecutionResult, bool]:
    async with manager.stream_code(code, language, **options) as run:
        chunks = [chunk async for chunk in run]
        return chunks, run.result, run.live


def joined(chunks: list[OutputChunk], stream: str) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.stream == stream)


def comparable(result: ExecutionResult) -> dict[str, Any]:
    fields = result.to_dict()
    for name in ("duration_ms", "timings", "metadata"):
        del fields[name]
    return fields


@pytest.mark.parametrize(
    ("streamed", "name"),
    [
        pytest.param(engine, name, marks=pytest.mark.tables if engine == "wasm" and name not in SAMPLE else ())
        for engine, language in LANGUAGES.items()
        for name in PROGRAMS[language]
    ],
    indirect=["streamed"],
)
async def test_the_chunks_are_the_output_and_the_result_is_that_of_run_code(
    streamed: tuple[RuntimeManager, str], name: str
) -> None:
    """Every chunk has text, the chunks of a stream together are its text, and `result` equals that of `run_code`."""
    manager, language = streamed
    code, timeout_ms = PROGRAMS[language][name] or ";", 500 if name == "timeout" else 30_000
    chunks, result, live = await read_all(manager, code, language, timeout_ms=timeout_ms)
    whole = await manager.run_code(code, language, timeout_ms=timeout_ms)
    assert live
    assert all(chunk.text for chunk in chunks)
    for stream in ("stdout", "stderr"):
        if stream not in result.truncated:
            assert joined(chunks, stream) == getattr(result, stream)
    if result.outcome is Outcome.OUTPUT_LIMIT:
        assert len(joined(chunks, "stdout")) == 2 * 2**20 + 1
        assert whole.outcome is Outcome.OUTPUT_LIMIT
    elif result.outcome is Outcome.MEMORY_LIMIT:  # V8's and Python's last words vary
        assert (whole.outcome, whole.error) == (result.outcome, result.error)
    else:
        assert comparable(result) == comparable(whole)


async def test_stdin_arguments_and_files_work_as_in_run_code(local: RuntimeManager) -> None:
    """All options of `run_code` are accepted. Collected files are in the result."""
    code = "import sys; print(input(), sys.argv[1:], open('a/b').read()); open('c', 'w').write('left')"
    options: dict[str, Any] = {"stdin": "in", "argv": ["x"], "files": {"a/b": "data"}, "collect": ["c"]}
    chunks, result, _ = await read_all(local, code, "python", **options)
    assert joined(chunks, "stdout") == "in ['x'] data\n"
    assert result.files == {"c": b"left"}


async def test_output_arrives_while_the_program_runs(streamed: tuple[RuntimeManager, str]) -> None:
    """Chunks of a program that never ends arrive. Leaving the block ends it, without an error, and frees everything."""
    manager, language = streamed
    seen: list[OutputChunk] = []
    async with manager.stream_code(ENDLESS[language], language) as run:
        async for chunk in run:
            seen.append(chunk)
            if len(seen) == 4:
                assert run.live
                break
        with pytest.raises(StreamError, match="the program has not ended"):
            run.result  # noqa: B018
    assert joined(seen, "stdout").startswith("tick\n" * 4)
    times = [chunk.elapsed_s for chunk in seen]
    assert times == sorted(set(times))
    with pytest.raises(StreamError, match="the block was left before the end"):
        async for _ in run:  # output is missing, so this must not look like its end
            pass
    with pytest.raises(StreamError, match="the block was left before the end"):
        run.result  # noqa: B018
    await until_active(manager, language, 0)
    assert manager.get_metrics().in_flight == 0


@pytest.mark.parametrize("language", ["python", "typescript"])
async def test_output_passes_a_proxy_while_the_program_runs(local: RuntimeManager, language: str) -> None:
    """A proxy that buffers nothing changes nothing. If it breaks the connection, the error says so."""
    url = url_of(local)
    async with FaultProxy(url) as proxy, manager_for(proxy.url) as manager:
        async with manager.stream_code(ENDLESS[language], language, idempotent=True) as run:
            assert "tick\n" in (await anext(run)).text
            assert "tick\n" in (await anext(run)).text
            proxy.reset_all()
            with pytest.raises(ConnectionLostError) as raised:
                async for _ in run:
                    pass
            with pytest.raises(ConnectionLostError):
                run.result  # noqa: B018
        assert raised.value.attempts == 1  # not retried after the first output, although it is idempotent
    await until_active(local, language, 0)


async def test_cancellation_ends_the_program(streamed: tuple[RuntimeManager, str]) -> None:
    """A task that is cancelled while it waits for output, or in its own code, is cancelled at once."""
    manager, language = streamed
    for waits in (True, False):
        arrived = asyncio.Event()

        async def consume(waits: bool = waits, arrived: asyncio.Event = arrived) -> None:
            async with manager.stream_code(ENDLESS[language], language) as run:
                async for _ in run:
                    arrived.set()
                    if not waits:
                        await asyncio.Event().wait()

        task = asyncio.create_task(consume())
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_active(manager, language, 0)
        assert manager.get_metrics().in_flight == 0


async def test_an_error_in_the_block_is_raised_unchanged(local: RuntimeManager) -> None:
    async def fail() -> None:
        async with local.stream_code(ENDLESS["python"], "python") as run:
            await anext(run)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    await until_active(local, "python", 0)


BIG = SandboxConfig(max_output_bytes=40_000_000, timeout_limit_s=60)
LINES = 300
MORE_LINES = 1_000  # more than the buffers of a connection hold, which may grow to 36 MB
_FLOOD = {
    "python": "import os\nfor n in range(LINES): os.write(1, b'x' * 65_535 + b'\\n')",
    "typescript": """
        const line = new TextEncoder().encode("x".repeat(65_535) + "\\n");
        for (let n = 0; n < LINES; n++)
          for (let at = 0; at < line.length; ) at += Deno.stdout.writeSync(line.subarray(at));
    """,
}


def flood(language: str, lines: int) -> str:
    return _FLOOD[language].replace("LINES", str(lines))


@pytest.mark.parametrize("engine", LANGUAGES)
@pytest.mark.usefixtures("wasm_sandbox")
async def test_a_slow_reader_holds_the_program_back(engine: str) -> None:
    """A program that prints 20 MB ends when it is read. One that prints 65 MB, unread, reaches its time limit."""
    language = LANGUAGES[engine]
    engines = WASM if engine == "wasm" else {}
    async with RuntimeManager.local([language], workers=1, sandbox=BIG, engines=engines) as manager:
        chunks, result, _ = await read_all(manager, flood(language, LINES), language)
        assert (result.outcome, len(joined(chunks, "stdout"))) == (Outcome.OK, LINES * 65_536)
        assert result.truncated == {"stdout"}
        assert len(result.stdout) <= 2**20
        assert result.stdout.endswith("x\n")
        async with manager.stream_code(flood(language, MORE_LINES), language, timeout_ms=2_000) as run:
            first = await anext(run)
            await until_active(manager, language, 0)  # nothing is read until the program has been ended
            held = [first, *[chunk async for chunk in run]]
        assert run.result.outcome is Outcome.TIMEOUT
        assert 2**16 < len(joined(held, "stdout")) < MORE_LINES * 65_536


@pytest.mark.parametrize("language", ["python", "typescript"])
async def test_a_program_that_has_printed_everything_is_not_timed_out_by_its_reader(language: str) -> None:
    """Output that fits into the buffers does not delay the end of the program, however slow its reader is."""
    code = {"python": "print('x' * 100_000)", "typescript": "console.log('x'.repeat(100_000))"}[language]
    async with RuntimeManager.local([language], workers=1) as manager:
        async with manager.stream_code(code, language) as run:
            first = await anext(run)
            await until_active(manager, language, 0)
            chunks = [first, *[chunk async for chunk in run]]
        assert (run.result.outcome, len(joined(chunks, "stdout"))) == (Outcome.OK, 100_001)


@pytest.mark.asyncio(loop_scope="function")
async def test_a_reader_that_is_slower_than_the_deadline_gets_everything(clock: Clock) -> None:
    """The time that the reader takes does not count for the deadline of the call."""
    timeouts = TimeoutSettings(grace_s=1)
    async with LocalFaaS(["python"], workers=1) as faas, manager_for(faas.url, timeouts=timeouts) as manager:
        await faas.wait_ready("python")
        async with manager.stream_code("print('x' * 200_000)", "python", timeout_ms=5_000) as run:
            chunks = [await anext(run)]
            clock.advance(20)
            chunks += [chunk async for chunk in run]
        assert run.result.ok
        assert len(joined(chunks, "stdout")) == 200_001


@pytest.mark.parametrize("place", ["fake", "envelope"])
async def test_servers_without_streaming_deliver_the_output_at_the_end(local: RuntimeManager, place: str) -> None:
    """Each stream is one chunk, and `live` is False."""
    expected = [("stdout", "a\nc\n"), ("stderr", "b\n")]
    code = "import sys; print('a'); print('b', file=sys.stderr); print('c')"
    if place == "fake":
        async with FakeFaaS() as fake, manager_for(fake.url, envelope="never") as manager:
            output = {"stdout": "a\nc\n", "stderr": "b\n", "ret_val": ""}
            fake.script(Reply(body=json.dumps({"output": output}).encode()))
            chunks, result, live = await read_all(manager, code, "python")
    else:
        async with manager_at(place, local) as manager:
            chunks, result, live = await read_all(manager, code, "python")
    assert not live
    assert [(chunk.stream, chunk.text) for chunk in chunks] == expected
    assert result.ok


async def test_a_reader_in_another_task_learns_that_the_block_was_left(local: RuntimeManager) -> None:
    """Its iteration does not end as if the output were complete. Reading again after the end of a run only ends."""
    async with local.stream_code("import time; time.sleep(60)", "python") as run:
        reader = asyncio.create_task(anext(run))
        await asyncio.sleep(0)
    with pytest.raises(StreamError, match="the block was left before the end"):
        await reader
    async with local.stream_code("print(1)", "python") as run:
        assert "".join([chunk.text async for chunk in run]) == "1\n"
    assert [chunk async for chunk in run] == []


async def test_misuse_raises_clear_errors(local: RuntimeManager) -> None:
    """Wrong arguments are refused before anything is sent, and a run is used once, inside its block."""
    runtime = await local.get_runtime("python")
    with pytest.raises(InvalidRequestError, match="code must not be empty"):
        runtime.stream_code("")
    with pytest.raises(InvalidRequestError, match="argv must be a sequence"):
        runtime.stream_code("1", argv="x")
    for run in (runtime.stream_code("1"), local.stream_code("1", "python")):
        with pytest.raises(StreamError, match="must be entered first"):
            await anext(run)
        async with run:
            assert [chunk async for chunk in run] == []
            assert run.result.ok
        with pytest.raises(StreamError, match="only once"):
            await run.__aenter__()


async def test_events_and_the_access_log_are_those_of_run_code() -> None:
    """Client and server emit the same events, and the access log has the status and the bytes of the body."""
    for streams in (True, False):
        log, events = structlog.testing.LogCapture(), Counter[Any]()
        logger = structlog.wrap_logger(None, processors=[log])

        def count(event: Any, events: Counter[Any] = events) -> None:
            events[type(event), getattr(event, "outcome", None)] += 1

        faas = LocalFaaS(["js"], workers=1, access_log=logger, telemetry=[count])
        async with faas, manager_for(faas.url, telemetry=[count]) as manager:
            await faas.wait_ready("js")
            if streams:
                await read_all(manager, "console.log(1)", "js")
            else:
                await manager.run_code("console.log(1)", "js")
        entry = next(entry for entry in log.entries if entry["path"] == "/run_code")
        assert entry["status"] == 200
        assert entry["bytes"] > 100
        assert events[CallStarted, None] == events[CallFinished, "OK"] == 1
        assert events[AttemptFinished, None] == events[ExecutionFinished, "OK"] == 1


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("language", [pytest.param("python", marks=NATIVE_PYTHON), "javascript"])
async def test_a_launcher_that_is_killed_while_a_program_prints_is_a_server_error(language: str, clock: Clock) -> None:
    """The error has the status and the text that it has without streaming. The next program runs."""
    code = ENDLESS["python"] if language == "python" else "setInterval(() => console.log('tick'), 50)"
    before = set(psutil.Process().children())
    async with LocalFaaS([language], workers=1) as faas, manager_for(faas.url) as manager:
        await faas.wait_ready(language)
        engine = faas.engine(language)
        assert engine is not None
        async with manager.stream_code(code, language) as run:
            await anext(run)
            for launcher in with_word(set(psutil.Process().children()) - before, "import socket"):
                launcher.kill()
            with pytest.raises(ServerError, match="killed from outside") as raised:
                async for _ in run:
                    pass
        assert (raised.value.status, raised.value.sent) == (500, "yes")
        await until(lambda: not engine.ready)
        clock.advance(5)  # it restarts after this time, because it was ready for less than a second
        await until(lambda: engine.ready)
        assert (await manager.run_code("print(1)" if language == "python" else "console.log(1)", language)).ok


@pytest.mark.asyncio(loop_scope="function")
async def test_a_client_that_does_not_read_is_closed_only_after_the_program(clock: Clock) -> None:
    """While the program runs, only its time limit applies. Afterwards the client must read within the usual time."""
    log = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(None, processors=[log])
    faas = LocalFaaS(["python"], workers=1, sandbox=BIG, access_log=logger)
    async with faas, manager_for(faas.url, sandbox=BIG) as manager:
        await faas.wait_ready("python")
        # On a busy machine, a shorter program does not write more than the sockets can hold.
        async with manager.stream_code(flood("python", MORE_LINES), "python", timeout_ms=5_000) as run:
            await anext(run)
            clock.advance(limits.REQUEST_TIMEOUT_S + 1)
            await until_active(manager, "python", 0)
            assert "/run_code" not in [entry["path"] for entry in log.entries]
            clock.advance(limits.REQUEST_TIMEOUT_S + 1)
            await until(lambda: any(entry["status"] == 499 for entry in log.entries))
            with pytest.raises(ConnectionLostError):
                async for _ in run:
                    pass


async def test_a_stored_result_is_delivered_at_once(tmp_path: Path) -> None:
    """With a cache, a program that ran before does not run again. Its output is one chunk, and `live` is False."""
    async with RuntimeManager.local(["js"], workers=1, cache=tmp_path) as manager:
        for is_stored in (False, True):
            chunks, result, live = await read_all(manager, "console.log(1)", "js")
            assert (joined(chunks, "stdout"), result.cached, live) == ("1\n", is_stored, not is_stored)


async def test_errors_before_the_start_have_their_usual_status() -> None:
    """A request that is refused gets no lines, and a program without output gets one line."""
    headers = {"Accept": "application/x-ndjson"}
    async with LocalFaaS(["js"], workers=1) as faas, aiohttp.ClientSession(headers=headers) as session:
        await faas.wait_ready("js")
        url = f"{faas.url}/run_code"
        async with session.post(url, json={"language": "js", "code": ""}) as response:
            assert (response.status, response.content_type) == (400, "application/json")
        async with session.post(url, json={"language": "js", "code": ";"}) as response:
            assert (response.status, response.content_type) == (200, "application/x-ndjson")
            (line,) = (await response.read()).splitlines()
            assert json.loads(line)["result"]["outcome"] == "OK"


async def test_a_retry_delivers_the_output_of_a_plain_answer() -> None:
    """Even if the first answer was one of lines."""
    refusal = b'\n{"error": {"status": 503, "error": "full", "not_started": true}}\n'
    async with FakeFaaS() as fake, manager_for(fake.url, envelope="never") as manager:
        fake.script(
            Reply(body=refusal, headers={"Content-Type": "application/x-ndjson"}),
            Reply(stdout="hi\n"),
        )
        async with manager.stream_code("print('hi')", "python") as run:
            assert [chunk.text async for chunk in run] == ["hi\n"]
        assert (run.result.stdout, run.result.attempts) == ("hi\n", 2)


@pytest.mark.parametrize("content_type", ["application/json; charset*", "*", ";", "application/x-ndjson*; a*=b"])
async def test_a_malformed_content_type_is_that_of_a_plain_answer(content_type: str) -> None:
    async with FakeFaaS() as fake, manager_for(fake.url, envelope="never") as manager:
        fake.script(Reply(stdout="hi\n", headers={"Content-Type": content_type}))
        async with manager.stream_code("print('hi')", "python") as run:
            assert [chunk.text async for chunk in run] == ["hi\n"]
