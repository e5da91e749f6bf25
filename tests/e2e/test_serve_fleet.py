"""`faasrt serve` behind a load balancer: probes, draining, reading the configuration again, TLS and logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme

from faasrt import RuntimeManager, Settings
from faasrt.local.sandbox_limits import largest_sandbox
from support.cli import faasrt as run_command, faasrt_process
from support.served import (
    CLEAN,
    FAASRT,
    PATIENCE_S,
    Caller,
    Server,
    connected,
    exchange,
    request,
    served,
    suspended,
    until,
)

pytestmark = pytest.mark.servers

HEADERS = {"Authorization": "Bearer s3cret"}
NOT_STARTED = "x-faasrt-not-started"


ENDLESS = "while true; do :; done"


@contextlib.asynccontextmanager
async def bash_server(tmp_path: Path, *arguments: str, ready: str = "bash") -> AsyncIterator[Server]:
    """Start a server for Bash with one worker, unless it has a configuration. Wait until a language is ready."""
    defaults = () if "--config" in arguments else ("-l", "bash", "--workers", "1")
    async with served(tmp_path, *defaults, *arguments, wait_for=(f"{ready} is ready",)) as server:
        yield server


async def post(url: str, code: str, headers: dict[str, str] | None = None, **options: Any) -> tuple[int, Any, Any]:
    """Run a program in Bash. Return the status, the headers and the body of the answer."""
    body = {"language": "bash", "code": code}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{url}/run_code", json=body, **options) as response,
    ):
        return response.status, response.headers, await response.json()


async def start(server: Server, code: str, **options: Any) -> asyncio.Task[tuple[int, Any, Any]]:
    """Start a program. Return its call once it runs."""
    call = asyncio.create_task(post(server.url, code, **options))
    async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession(headers=options.get("headers")) as session:
        while True:
            async with session.get(f"{server.url}/metrics", ssl=False) as response:
                if (await response.json())["engines"]["bash"]["active"] == 1:
                    return call
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(server: Server, **options: Any) -> AsyncIterator[asyncio.Task[tuple[int, Any, Any]]]:
    """Yield the call of a program that prints "done", and that cannot end before the end of the block."""
    with suspended(psutil.Process(server.process.pid)):
        call = await start(server, "echo done", **options)
        yield call
        assert not call.done()
    assert (await call)[2]["output"]["stdout"] == "done\n"


def get(target: str, **headers: str) -> bytes:
    return request(method="GET", target=target, headers={"Content-Type": None, "Content-Length": None, **headers})


# ---- probes


async def test_probes_need_no_token(tmp_path: Path) -> None:
    """A kubelet names the address of the pod as Host. Other routes need the token, and the answers reveal nothing."""
    async with bash_server(tmp_path, "--host", "0.0.0.0", "--token", "s3cret") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        for path, status in (("/livez", "alive"), ("/readyz", "ready")):
            answer = await exchange(url, get(path, Host="10.1.2.3:8000"))
            assert (answer.status, answer.json()) == (200, {"status": status})
        for path in ("/health", "/metrics", "/openapi.json", "/livez/x"):
            assert (await exchange(url, get(path, Host="10.1.2.3:8000"))).status == 401
        assert (await exchange(url, get("/livez", Origin="http://evil.example"))).status == 403


# ---- draining


async def test_sigterm_drains_without_losing_a_call(tmp_path: Path) -> None:
    """Readiness is 503 at once, new programs are refused with `x-faasrt-not-started`, and each answer closes its
    connection. The program in flight finishes, and the server exits with 0.
    """
    async with bash_server(tmp_path) as server, connected(server.url) as kept:
        await kept.send(get("/readyz"))
        answer = await kept.answer()
        assert (answer.status, answer.headers.get("connection")) == (200, None)
        async with running(server) as call:
            server.process.send_signal(signal.SIGTERM)
            await until(lambda: "stopping" in server.output)
            await kept.send(get("/readyz"))
            answer = await kept.answer()
            assert (answer.status, answer.json()) == (503, {"status": "draining"})
            assert answer.headers["connection"] == "close"
            assert await kept.closed() == b""
            assert (await exchange(server.url, get("/livez"))).status == 200
            for path in ("/run_code", "/validate_code"):
                answer = await exchange(server.url, request(b'{"language": "bash", "code": "echo"}', target=path))
                assert (answer.status, answer.headers[NOT_STARTED], answer.headers["retry-after"]) == (503, "1", "1")
                assert (answer.headers["connection"], answer.json()["error"]) == ("close", "stopping")
        status, headers, _ = await call
        assert (status, headers["Connection"]) == (200, "close")
        assert await server.ended() == 0


async def test_a_rolling_restart_loses_no_call(tmp_path: Path) -> None:
    """A client with two replicas goes on while one of them stops, and then the other is the only one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with bash_server(tmp_path / "a") as first, bash_server(tmp_path / "b") as second:
        settings = Settings(endpoints={"bash": [first.url, second.url]})
        async with RuntimeManager(settings=settings) as manager:
            codes = [f"echo {number}" for number in range(40)]
            results = []
            async for number, code in _numbered(codes):
                results.append(await manager.run_code(code, "bash"))
                if number == 10:
                    first.process.send_signal(signal.SIGTERM)
        assert [result.stdout for result in results] == [f"{number}\n" for number in range(40)]
        assert {result.endpoint for result in results[-10:]} == {second.url}
        assert await first.ended() == 0


async def _numbered(codes: list[str]) -> AsyncIterator[tuple[int, str]]:
    for number, code in enumerate(codes):
        yield number, code


async def test_a_second_signal_ends_the_server_at_once(tmp_path: Path) -> None:
    """The program in flight is lost. No process and no file is left."""
    async with bash_server(tmp_path, "--timeout-s", "100") as server:
        call = await start(server, ENDLESS)
        server.process.send_signal(signal.SIGTERM)
        await until(lambda: "stopping" in server.output)

        def ended() -> bool:
            server.process.send_signal(signal.SIGTERM)
            return server.process.poll() is not None

        await until(ended)
        assert await server.ended() == -signal.SIGTERM
        with pytest.raises(aiohttp.ClientError):
            await call


async def test_sighup_without_files_drains_and_stops(tmp_path: Path) -> None:
    """SIGHUP is the signal of a terminal that closes. The program in flight finishes."""
    async with bash_server(tmp_path) as server:
        async with running(server):
            server.process.send_signal(signal.SIGHUP)
            await until(lambda: "stopping" in server.output)
        assert await server.ended() == 0


async def test_programs_end_after_the_grace_time(tmp_path: Path) -> None:
    """A program that runs longer than `--drain-s` is ended, and the server exits with 0."""
    async with bash_server(tmp_path, "--timeout-s", "100", "--drain-s", "0.2") as server:
        call = await start(server, ENDLESS)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(aiohttp.ClientError):
            await call
        assert await server.ended() == 0


# ---- answers


async def test_answers_say_where_the_time_went(tmp_path: Path) -> None:
    """`Server-Timing` has the times for the queue, the compilation and the run."""
    async with bash_server(tmp_path) as server:
        _, headers, body = await post(server.url, "echo 1")
        times = dict(re.findall(r"(\w+);dur=([\d.]+)", headers["Server-Timing"]))
        assert list(times) == ["queue", "compile", "run"]
        assert float(times["compile"]) == body["metadata"]["compile_ms"]
        assert round(float(times["run"])) == body["metadata"]["duration"]
        answer = await exchange(server.url, request(b'{"language": "bash", "code": "echo"}', target="/validate_code"))
        assert answer.headers["server-timing"].startswith("queue;dur=")


async def test_connections_above_the_limit_are_refused_except_probes(tmp_path: Path) -> None:
    """A refused client may ask another server, and a busy server is not restarted."""
    async with bash_server(tmp_path, "--max-connections", "2") as server, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(connected(server.url))
        body = b'{"language": "bash", "code": "echo"}'
        async with asyncio.timeout(PATIENCE_S):
            while (refused := await exchange(server.url, request(body))).status == 200:
                await asyncio.sleep(0.01)  # until the server has accepted both
        assert (refused.status, refused.headers[NOT_STARTED]) == (503, "1")
        assert "connections" in refused.json()["details"]
        for path in ("/livez", "/readyz"):
            answer = await exchange(server.url, get(path))
            assert (answer.status, answer.headers["connection"]) == (200, "close")


# ---- logs


async def test_every_line_of_the_log_is_json(tmp_path: Path) -> None:
    """With `--log-format json` these are messages, the access log, and warnings of the library."""
    async with bash_server(tmp_path, "--access-log", "--log-format", "json", "-l", "js", ready="javascript") as server:
        await post(server.url, "echo secret")
        server.launchers()[0].kill()
        await until(lambda: "killed from outside" in server.output)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
        stderr = [line for line in server.output.splitlines() if not line.startswith("faasrt: ")]
    lines = [json.loads(line) for line in stderr]
    assert all({"timestamp", "level", "event", "logger"} <= line.keys() for line in lines)
    assert {line["logger"] for line in lines} == {"faasrt.serve", "faasrt.access", "faasrt.local"}
    requests = [line for line in lines if line["event"] == "request" and line["path"] == "/run_code"]
    assert [(line["method"], line["status"]) for line in requests] == [("POST", 200)]
    assert lines[-1]["event"] == "stopping"
    assert "secret" not in server.output


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_closed_stderr_changes_nothing(tmp_path: Path, log_format: str) -> None:
    """Requests are answered, SIGHUP reads the configuration, and SIGTERM waits for the program in flight."""
    config = tmp_path / "serve.toml"
    config.write_text('language = ["bash"]\nmax-programs = 1\n')
    flags = ("--port", "0", "--access-log", "--log-format", log_format, "--config", str(config))
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        FAASRT, "serve", *flags, env=CLEAN, stdout=asyncio.subprocess.PIPE, stderr=writer
    )
    os.close(writer)
    try:
        assert process.stdout is not None
        address = re.search(rb"http://\S+", await process.stdout.readline())
        assert address is not None
        server = Caller(address[0].decode())
        await server.until_pool("bash", status="ready")
        os.close(reader)
        config.write_text('language = ["bash"]\nmax-programs = 2\n')
        process.send_signal(signal.SIGHUP)
        await server.until_pool("bash", capacity=2)
        with suspended(psutil.Process(process.pid)):
            call = asyncio.create_task(post(server.url, "echo done"))
            await server.until_pool("bash", active=1)
            process.send_signal(signal.SIGTERM)
            await until_draining(server)
        assert (await call)[2]["output"]["stdout"] == "done\n"
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_draining(server: Caller) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await server.get("/readyz"))["status"] != "draining":
            await asyncio.sleep(0.01)


def test_a_failed_start_is_json_too() -> None:
    """The line says why the server cannot listen."""
    address = ("--host", "192.0.2.1", "--token", "s3cret", "-l", "bash")
    code, stdout, stderr = faasrt_process("serve", *address, "--log-format", "json")
    assert (code, stdout) == (2, "")
    line = json.loads(stderr)
    assert line["level"] == "error"
    assert line["event"].endswith("; --host and --port name another address")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--token-file", "nothing"], "cannot read --token-file nothing: No such file or directory"),
        (["--tls-cert", "token", "--tls-key", "key.pem"], "are not a certificate and its key"),
        (["--config", "nothing.toml"], "cannot read --config nothing.toml"),
        (["--config", "wrong.toml"], "wrong.toml: engine: the engine of python must be native or wasm, got 'basic'"),
        (["--max-connections", "900000"], "--max-connections must be at most"),
        (["--host", "0.0.0.0"], "so it needs --token or --token-file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_configuration_at_the_start_is_json_too(tmp_path: Path, arguments: list[str], reason: str) -> None:
    """The only line says what is wrong, and the exit code is 2."""
    make_files(tmp_path)
    code, stdout, stderr = run_command("serve", "--port", "0", "--log-format", "json", *arguments, cwd=tmp_path)
    assert (code, stdout) == (2, "")
    line = json.loads(stderr)
    assert (line["level"], line["logger"]) == ("error", "faasrt.serve")
    assert reason in line["event"]


def test_flags_that_cannot_be_parsed_are_text() -> None:
    """The format of the log is not known then."""
    code, _, stderr = faasrt_process("serve", "--log-format", "json", "--workers", "none")
    assert code == 2
    assert stderr.startswith("Usage: faasrt serve [OPTIONS]\n")


@pytest.mark.timeout(900)  # it compiles the sandbox
async def test_the_log_is_json_from_its_first_line(tmp_path: Path) -> None:
    """Even while the sandbox of `wasm` is compiled, at a reload, a failure of it, and the end."""
    config = tmp_path / "serve.toml"
    config.write_text('language = ["python"]\nengine = ["python=wasm"]\nworkers = 1\nlog-format = "json"\n')
    command = [FAASRT, "serve", "--port", "0", "--config", str(config), "--access-log"]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**CLEAN, "FAASRT_CACHE_DIR": str(tmp_path / "cache")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[dict[str, Any]] = []

        async def until_event(words: str) -> None:
            assert process.stderr is not None
            while not any(words in line["event"] for line in lines):
                lines.append(json.loads(await process.stderr.readline()))

        address = re.search(rb"http://\S+", await process.stdout.readline())
        assert address is not None
        async with asyncio.timeout(10 * PATIENCE_S):
            await until_event("compiling")
            await until_event("python is ready")
        await Caller(address[0].decode()).get("/health")
        config.write_text("workers = 0\n")
        process.send_signal(signal.SIGHUP)
        await until_event("the configuration stays as it was")
        process.send_signal(signal.SIGTERM)
        await until_event("stopping")
        assert await process.stderr.read() == b""
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert all({"timestamp", "level", "event", "logger"} <= line.keys() for line in lines)


# ---- TLS


def write_certificate(authority: trustme.CA, folder: Path) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))


async def peer_certificate(url: str, context: ssl.SSLContext) -> bytes:
    host, port = re.findall(r"//(.+):(\d+)", url)[0]
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return certificate


async def test_tls_by_flags_and_new_certificates_at_sighup(tmp_path: Path) -> None:
    """New connections get the new certificate. A call in flight, on a connection with the old one, finishes."""
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    write_certificate(authority, tmp_path)
    files = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    async with bash_server(tmp_path, *files) as server:
        server.url = re.findall(r"https://\S+", server.output)[0]
        assert f"from_url('{server.url}'" in server.output
        settings = Settings(endpoints={"bash": server.url}, ssl=trust)
        async with RuntimeManager(settings=settings) as manager:
            assert (await manager.run_code("echo 1", "bash")).stdout == "1\n"
        async with running(server, ssl=trust):
            before = await peer_certificate(server.url, trust)
            write_certificate(authority, tmp_path)
            server.process.send_signal(signal.SIGHUP)
            await until(lambda: "changed: tls-cert, tls-key\n" in server.output)
            after = {await peer_certificate(server.url, trust) for _ in range(8)}
            assert len(after) == 1
            assert before not in after
            await reload(server, "changed: nothing\n")
            (tmp_path / "cert.pem").write_text("nonsense")
            server.process.send_signal(signal.SIGHUP)
            await until(lambda: "the configuration stays as it was: --tls-cert" in server.output)
        assert (await post(server.url, "echo 2", ssl=trust))[2]["output"]["stdout"] == "2\n"
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert "Traceback" not in server.output


# ---- SIGHUP


async def reload(server: Server, *expected: str) -> None:
    """Send SIGHUP, and wait until the server has written one more line for each expected text."""
    before = [server.output.count(text) for text in expected]
    server.process.send_signal(signal.SIGHUP)
    await until(lambda: all(server.output.count(text) > n for text, n in zip(expected, before, strict=True)))


async def test_sighup_reads_the_token_again(tmp_path: Path) -> None:
    """A call in flight with the old token finishes. Later calls need the new one, which is written nowhere."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    async with bash_server(tmp_path, "--token-file", str(token)) as server:
        async with running(server, headers=HEADERS):
            token.write_text("0ther\n")
            await reload(server, "read the configuration again; changed: token-file\n")
            assert (await post(server.url, "echo 1", HEADERS))[0] == 401
        assert (await post(server.url, "echo 1", {"Authorization": "Bearer 0ther"}))[0] == 200
        token.write_text("\n")
        await reload(server, f"the configuration stays as it was: --token-file {token}: a token must be printable")
        assert (await post(server.url, "echo 1", {"Authorization": "Bearer 0ther"}))[0] == 200
        assert not re.search("s3cret|0ther", server.output)


async def test_sighup_reads_limits_and_engines_again(tmp_path: Path) -> None:
    """A program in flight finishes on the old engine, which then ends. New programs have the new limits and engines."""
    config = tmp_path / "serve.toml"
    config.write_text('language = ["bash"]\nmax-programs = 1\n')
    async with bash_server(tmp_path, "--config", str(config)) as server:
        old = server.launchers()
        async with running(server):
            config.write_text('language = ["bash", "js"]\nmax-programs = 2\ntimeout-s = 0.3\naccess-log = true\n')
            await reload(server, "changed: language, max-programs, timeout-s, access-log\n")
            health = await server.get("/health")
            assert health["languages"]["bash"]["capacity"] == 2
            assert health["languages"]["javascript"]["status"] == "ready"
            status, _, body = await post(server.url, ENDLESS)
            assert (status, body["outcome"]) == (200, "TIMEOUT")
            assert "300 ms (limit of the server)" in body["error_info"]["message"]
        await until(lambda: not any(process.is_running() for process in old))
        assert " method=POST path=/run_code status=200 " in server.output
        # The counts go on.
        assert (await server.get("/metrics"))["engines"]["bash"]["executions"]["bash"] == {"OK": 1, "TIMEOUT": 1}
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0


@pytest.mark.parametrize(
    ("flags", "default", "largest"),
    [
        ((), (128, 30), (largest_sandbox().memory_limit_mb, 120)),
        (("--memory-mb", "64", "--timeout-s", "5"), (64, 5), (64, 5)),
        (("--memory-mb", "64", "--max-memory-mb", "96", "--max-timeout-s", "5"), (64, 5), (96, 5)),
    ],
)
async def test_the_default_and_the_largest_limits(
    tmp_path: Path, flags: tuple[str, ...], default: tuple[int, int], largest: tuple[int, int]
) -> None:
    """A server without flags accepts limits above its defaults. A default that is given alone is also the maximum."""
    async with bash_server(tmp_path, *flags) as server:
        health = await server.get("/health")
        for name, limits in (("limits", default), ("max_limits", largest)):
            assert (health[name]["memory_limit_mb"], health[name]["timeout_limit_s"]) == limits


async def test_a_wrong_configuration_is_refused_whole(tmp_path: Path) -> None:
    """The old configuration stays, and one line says why."""
    config = tmp_path / "serve.toml"
    config.write_text('language = ["bash"]\nworkers = 1\n')
    wrong = {
        "workers = ": "is not TOML",
        "workers = 0": "workers: 0 must be at least 1",
        "memory-mb = 256\nmax-memory-mb = 64": "--max-memory-mb must be at least 256, the default, got 64",
        "workers = true": "workers: must be a number",
        "workers = 1.5": "workers: '1.5' is not a whole number",
        "access-log = 1": "access-log: must be true or false",
        'language = "bash"': "language: must be a list of strings",
        'language = ["basic"]': "unknown language 'basic'",
        "wrokers = 1": "wrokers is not a key of this file",
        'token = "s3cret"': "name its file with token-file",
        'host = "127.0.0.2"': "host cannot change while the server runs",
        'log-format = "json"': "log-format cannot change while the server runs",
        'token-file = "/nothing"': "cannot read --token-file /nothing: No such file or directory",
        'python = "/nothing"': "--python /nothing: no such executable",
        "memory-mb = 1": "--memory-mb must be at least 48 for python",
        "max-connections = 1000000": "--max-connections must be at most",
        'language = ["python"]\npython = "/bin/false"': "native cannot run: the interpreter /bin/false does not run",
    }
    async with bash_server(tmp_path, "--config", str(config)) as server:
        before = server.output.count("\n")
        for text, reason in wrong.items():
            config.write_text(f"timeout-s = 7\n{text}\n")
            await reload(server, "the configuration stays as it was", reason)
            assert (await server.get("/health"))["limits"]["timeout_limit_s"] == 30
        assert (await post(server.url, "echo 1"))[0] == 200
        config.unlink()
        await reload(server, "cannot read --config")
        config.write_text('language = ["bash"]\nworkers = 1\n')
        await reload(server, "read the configuration again; changed: nothing")
        lines = server.output.count("\n") - before
        assert lines == len(wrong) + 2 + server.output.count("the engine native: the interpreter")
        assert "s3cret" not in server.output


async def test_flags_come_before_the_file(tmp_path: Path) -> None:
    """Flags precede the keys of the file, even after SIGHUP."""
    config = tmp_path / "serve.toml"
    config.write_text('language = ["js"]\nmax-programs = 3\ntimeout-s = 5\n')
    async with bash_server(tmp_path, "--config", str(config), "-l", "bash", "--max-programs", "2") as server:
        for seconds in (5, 6):
            health = await server.get("/health")
            assert (health["languages"]["bash"]["capacity"], health["limits"]["timeout_limit_s"]) == (2, seconds)
            assert list(health["languages"]) == ["bash"]
            config.write_text('language = ["js"]\nmax-programs = 3\ntimeout-s = 6\n')
            await reload(server, "read the configuration again")


async def test_no_call_is_lost_while_the_configuration_changes(tmp_path: Path) -> None:
    """Calls go on, each with one right result, while engines are replaced several times."""
    config = tmp_path / "serve.toml"
    config.write_text('language = ["bash"]\nworkers = 2\n')
    async with bash_server(tmp_path, "--config", str(config)) as server, faasrt_client(server) as client:
        over = asyncio.Event()

        async def work(name: int) -> int:
            count = 0
            while not over.is_set():
                count += 1
                assert (await client.run_code(f"echo {name} {count}", "bash")).stdout == f"{name} {count}\n"
            return count

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(work(number)) for number in range(4)]
            for number in (3, 2, 4):
                config.write_text(f'language = ["bash"]\nworkers = {number}\n')
                await reload(server, "changed: workers")
            over.set()
        counts = (await server.get("/metrics"))["engines"]["bash"]
        assert counts["executions"]["bash"] == {"OK": sum(worker.result() for worker in workers)}
        assert counts["failed"] == 0


@contextlib.asynccontextmanager
async def faasrt_client(server: Server) -> AsyncIterator[RuntimeManager]:
    async with RuntimeManager(settings=Settings(endpoints={"bash": server.url})) as manager:
        yield manager


# ---- wrong flags


def make_files(folder: Path) -> None:
    """Write certificates, keys and configurations, right ones and wrong ones."""
    write_certificate(trustme.CA(), folder)
    (folder / "other").mkdir()
    write_certificate(trustme.CA(), folder / "other")
    (folder / "token").write_text("s3cret")
    (folder / "binary").write_bytes(b"\xff\xfe")
    (folder / "wrong.toml").write_text('engine = ["python=basic"]\n')


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--token", "x", "--token-file", "token"], "give --token or --token-file, not both"),
        (["--token-file", "nothing"], "cannot read --token-file nothing: No such file or directory"),
        (["--token-file", "binary"], "--token-file binary is not UTF-8"),
        (["--host", "0.0.0.0"], "so it needs --token or --token-file"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key need each other"),
        (["--tls-key", "key.pem"], "--tls-cert and --tls-key need each other"),
        (["--tls-cert", "cert.pem", "--tls-key", "nothing"], "cannot read --tls-key nothing"),
        (["--tls-cert", "cert.pem", "--tls-key", "other/key.pem"], "are not a certificate and its key"),
        (["--tls-cert", "token", "--tls-key", "key.pem"], "are not a certificate and its key"),
        (["--config", "nothing.toml"], "cannot read --config nothing.toml"),
        (["--config", "token"], "token is not TOML"),
        (["--config", "wrong.toml"], "wrong.toml: engine: the engine of python must be native or wasm, got 'basic'"),
        (["--max-connections", "0"], "'--max-connections': 0 must be"),
        (["--max-connections", "900000"], "--max-connections must be at most"),
        (["--drain-s", "0"], "'--drain-s': 0 must be above 0"),
        (["--log-format", "xml"], "'--log-format': 'xml' is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_flags_are_refused(tmp_path: Path, arguments: list[str], reason: str) -> None:
    """The exit code is 2, and the message names the flag. A secret is not printed."""
    make_files(tmp_path)
    code, stdout, stderr = run_command("serve", "--port", "0", *arguments, cwd=tmp_path)
    assert (code, stdout) == (2, "")
    assert reason in " ".join(stderr.split())
    assert "s3cret" not in stderr
