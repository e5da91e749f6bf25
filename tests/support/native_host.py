"""A server of programs in Python or C with secrets near it, for the tests of threats."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import attrs
import psutil
import pytest

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig
from faasrt.local.cache import cache_dir, module_dir
from support.package import ROOT
from support.threats import SECRET, Sink, sink

_NEIGHBOURS = {
    "python": "x = bytearray(10**6); print('well')",
    "c": '#include <stdio.h>\nint main(void) { puts("well"); }',
}
USERS = ("this user", "another user")
_UID = 12_345
_MEMORY_MB = 256
_SERVER = f"""
import asyncio, sys
from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.engines import wasi_python
level, python, language, engine, boot = sys.argv[1:]
wasi_python._BOOT = boot or wasi_python._BOOT
async def main():
    limits = SandboxConfig(memory_limit_mb={_MEMORY_MB})
    engines = {{"python": engine}}
    async with LocalFaaS([language], workers=2, sandbox=limits, engines=engines, level=level, python=python) as faas:
        await faas.wait_ready(language)
        print(faas.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@attrs.frozen
class Host:
    """A server to attack, with secrets in its environment variables, a file, and sockets near it."""

    manager: RuntimeManager
    server: psutil.Process
    sink: Sink
    words: dict[str, str]
    language: str = "python"

    async def run(self, code: str, timeout_ms: float = 20_000, **limits: int) -> ExecutionResult:
        """Run a program, and check that its result contains no secret."""
        for word, value in self.words.items():
            code = code.replace(word, value)
        sandbox = SandboxConfig(**{"memory_limit_mb": _MEMORY_MB, **limits})
        result = await self.manager.run_code(code, self.language, timeout_ms, sandbox=sandbox)
        assert SECRET not in repr(result)
        return result

    async def run_with_neighbour(self, code: str, timeout_ms: float = 20_000, **limits: int) -> ExecutionResult:
        """Run a program. Another program at the same time, and one after it, must succeed."""
        neighbour = _NEIGHBOURS[self.language]
        result, beside = await asyncio.gather(self.run(code, timeout_ms, **limits), self.run(neighbour))
        after = await self.run(neighbour)
        assert [(one.outcome, one.stdout) for one in (beside, after)] == [(Outcome.OK, "well\n")] * 2
        return result


@contextlib.asynccontextmanager
async def host_of(
    user: str,
    level: str,
    language: str = "python",
    *,
    engine: str = "native",
    boot: str = "",
    cached: Iterable[Path] = (),
) -> AsyncIterator[Host]:
    """Start a server as one of the `USERS`, at a level of the jail.

    Args:
        user: The user.
        level: The level.
        language: The language of the server.
        engine: The engine of Python.
        boot: The code that the workers of the engine `wasm` run; "" for their own.
        cached: Files in the cache of this process; if there are any, the server has a cache of its own with copies.
    """
    other = user != USERS[0]
    # Without namespaces, root runs programs as another user. That user must be able to run the interpreter.
    python = _python_for_all_users() if level == "filters" and not os.getuid() else sys.executable
    command = [sys.executable, "-c", _SERVER, level, python, language, engine, boot]
    if other:
        if os.getuid():
            pytest.skip("only root can become another user")
        command = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", _python_for_all_users()]
        command += ["-c", _SERVER, level, _python_for_all_users(), language, engine, boot]
    with contextlib.ExitStack() as stack:
        # Not in pytest's folder, which other users cannot read.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        (folder / "tmp").mkdir()
        canary, file = folder / "canary.txt", folder / "socket"
        canary.write_text(SECRET)
        hidden = f"{SECRET}-{os.urandom(4).hex()}"
        for path, abstract in ((str(file), False), (f"\0{hidden}", True)):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen()
            if not abstract:
                file.chmod(0o777)
        copies = [_copy(path, folder / "cache" / path.relative_to(cache_dir())) for path in cached]
        for owned in [folder / "tmp", canary, *copies, *{path.parent for path in copies}] if other else ():
            os.chown(owned, _UID, _UID)
        cache = folder / "tmp" / ".cache" / "faasrt"
        if engine == "wasm":  # an empty cache would make it compile the sandbox
            cache = folder / "cache" if copies else cache_dir()
        packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if "site-" in path)])
        env = {**os.environ, "TMPDIR": str(folder / "tmp"), "HOME": str(folder / "tmp"), "CANARY_KEY": SECRET}
        env["FAASRT_CACHE_DIR"] = str(cache)
        env |= {"PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"} if other else {}
        async with _server(command, env) as (url, pid), sink() as one, RuntimeManager.from_url(url) as manager:
            words = {
                "CANARY": str(canary),
                "CACHE": str(cache),
                "MODULE_DIR": str(module_dir(env)),
                "FOLDER": str(next((folder / "tmp").glob("faasrt-*"))),
                "HOST_SOCKET": str(file),
                "ABSTRACT": hidden,
                "TCP_PORT": str(one.tcp_port),
                "UDP_PORT": str(one.udp_port),
                "SERVER_PID": str(pid),
            }
            yield Host(manager, psutil.Process(pid), one, words, language)


def _copy(path: Path, target: Path) -> Path:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(shutil.copy2(path, target))


def _python_for_all_users() -> str:
    """Return the path of an interpreter of this version that every user can run."""
    found = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    for path in (Path(sys.executable).resolve(), found):
        if path.exists() and all(parent.stat().st_mode & 1 for parent in path.parents):
            return str(path)
    pytest.skip("no interpreter of this version is open to other users")


@contextlib.asynccontextmanager
async def _server(command: list[str], env: dict[str, str]) -> AsyncIterator[tuple[str, int]]:
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=env, cwd="/", stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip(), process.pid
        process.stdin.close()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
