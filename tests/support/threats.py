"""Helpers for the tests of threats: servers that are attacked, secrets near them, and sockets that must get nothing.

A `Target` runs JavaScript, or Python in WebAssembly. A `Host` runs native Python, or C.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig
from faasrt.local.cache_folder import cache_dir
from faasrt.local.engines.wasm.module_cache import module_dir
from support.helpers import PATIENT, manager_for
from support.levels import level_of_machine, record_level
from support.package import ROOT
from support.served import until, with_word
from support.tables import chosen

SECRET = "canary-4be1c0ffee"
MB = 2**20
OTHER_UID = 12_345


def only_with_attacks(row: Any) -> Any:
    """Mark a row of a table of attacks, so that only `pytest -m attacks` runs it."""
    return pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.attacks)


def sample(table: Iterable[Any], every: int = 6) -> list[Any]:
    """Return the rows of a table of attacks. Only about one in `every` rows runs without `pytest -m attacks`.

    A row that is a program, or begins with one, is named after its text without the indentation.
    """
    rows = [row if isinstance(row, tuple) else (row,) for row in table]
    names = [" ".join(values[0].split()) for values in rows]
    by_default = chosen(names, every)
    return [
        pytest.param(*values, id=name[:80], marks=[] if name in by_default else [pytest.mark.attacks])
        for name, values in zip(names, rows, strict=True)
    ]


TARGETS = [
    ("namespaces", None),
    *(
        only_with_attacks((target,))
        for target in [
            ("namespaces", OTHER_UID),
            ("filters", None),
            ("filters", OTHER_UID),
            ("folder", None),
            ("folder", OTHER_UID),
            ("pod", None),
            ("pod", OTHER_UID),
        ]
    ),
]
"""Each level of the jail, with the user of the server: this user (None) or an unprivileged one. With a folder, the
level is `namespaces`, and each program has a folder. In a pod, which hides parts of /proc, it is `namespaces`, too.
"""
SESSIONS = [
    ("session", None),
    *(only_with_attacks((target,)) for target in [("session", OTHER_UID), ("session filters", None)]),
]
"""The same for programs in sessions, which have a folder at the level `namespaces`."""
CONTAINERS = [only_with_attacks((("container", uid),)) for uid in (None, OTHER_UID)]
"""The same for a server in a container."""
FOLDERS = [("folder", None), only_with_attacks((("folder", OTHER_UID),))]
"""Those of the targets whose programs have a folder, for the tests of the folder."""
CONTAINER = Path(__file__).parent / "dockerlike.py"
POD = Path(__file__).parent / "podlike.py"
LANDLOCKLESS = Path(__file__).parent / "landlockless.py"
_SERVER = """
import asyncio, sys
from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.engines.deno import engine as deno
level, permissions, *languages = sys.argv[1:]
if permissions:
    deno.PERMISSIONS = permissions.split()
    deno.FOLDER_PERMISSIONS = ()
async def main():
    limits = SandboxConfig(memory_limit_mb=1024)
    engines = dict(argument.split("=") for argument in languages if "=" in argument)
    names = [argument.split("=")[0] for argument in languages]
    async with LocalFaaS(names, workers=2, sandbox=limits, engines=engines, level=level) as faas:
        for name in names:
            await faas.wait_ready(name)
        print(faas.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


# SQLite needs a folder for data that exceeds its cache.
SPILL = """
    const d = new (await import('node:sqlite')).DatabaseSync(':memory:');
    d.exec('pragma temp_store=1; pragma cache_size=10; create temp table t(a)');
    for (let i = 0; i < 30; i++) d.exec('insert into t values (randomblob(1000000))');
    return 'spilled'
"""


def attempt(body: str) -> str:
    """Return a program that prints "reached" if its body succeeds, and "denied" if it fails."""
    return (
        f"try {{ console.log('reached', await (async () => {{ {body} }})()); }}"
        " catch (e) { console.log('denied', e?.message ?? e); } Deno.exit(0);"
    )


@attrs.define
class Sink(asyncio.DatagramProtocol):
    """Listens on a TCP and a UDP port and records what arrives. It never answers."""

    seen: list[str] = attrs.field(factory=list)
    tcp_port: int = 0
    udp_port: int = 0

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.seen.append(f"udp {data!r}")

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.append("tcp")
        writer.close()

    async def all_received(self) -> list[str]:
        """Return what has arrived. A marker is sent and awaited first, so that nothing is still on its way."""
        before = len(self.seen)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.tcp_port)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        with socket.socket(type=socket.SOCK_DGRAM) as ours:
            ours.sendto(b"ours", ("127.0.0.1", self.udp_port))
        await until(lambda: "udp b'ours'" in self.seen[before:])
        self.seen.remove("tcp")
        self.seen.remove("udp b'ours'")
        return self.seen


@contextlib.asynccontextmanager
async def sink() -> AsyncIterator[Sink]:
    one = Sink()
    server = await asyncio.start_server(one.connected, "127.0.0.1", 0)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: one, ("127.0.0.1", 0))
    one.tcp_port = server.sockets[0].getsockname()[1]
    one.udp_port = transport.get_extra_info("sockname")[1]
    try:
        yield one
    finally:
        transport.close()
        server.close()
        await server.wait_closed()


@attrs.frozen
class Target:
    """A server to attack: its environment variables and the files near it hold secrets and settings to exploit."""

    manager: RuntimeManager
    server: psutil.Process
    sink: Sink
    canaries: list[Path]
    level: str = "auto"
    has_folder: bool = False
    in_sessions: bool = False
    in_pod: bool = False

    async def run(self, code: str, language: str, timeout_ms: float = 30_000, **limits: object) -> ExecutionResult:
        """Run a program, and check that its result contains no secret."""
        code = code.replace("TCP_PORT", str(self.sink.tcp_port)).replace("UDP_PORT", str(self.sink.udp_port))
        sandbox = SandboxConfig(**{"memory_limit_mb": 1024, **limits})  # type: ignore[arg-type]
        files = {"given": "x"} if self.has_folder else {}
        if self.in_sessions:
            async with self.manager.session(language, sandbox=sandbox, files=files) as session:
                result = await session.run_code(code, timeout_ms=timeout_ms)
        else:
            options = {"files": files, "collect": ["**"]} if self.has_folder else {}
            result = await self.manager.run_code(code, language, timeout_ms, sandbox=sandbox, **options)
        record_level(result.metadata)
        assert self.level in ("auto", result.metadata["level"])
        assert SECRET not in repr(result)
        return result


@contextlib.asynccontextmanager
async def start_target(
    folder: Path,
    *languages: str,
    level: str = "auto",
    uid: int | None = None,
    permissions: str = "",
    contained: bool = False,
    in_pod: bool = False,
    has_folder: bool = False,
    in_sessions: bool = False,
) -> AsyncIterator[Target]:
    """Start a server with secrets in its environment variables and in files near it (the canaries).

    Args:
        folder: The folder for the files.
        languages: The languages of the server.
        level: The level of its jail.
        uid: The user of the server. None means the user of this process.
        permissions: Options for Deno that replace those that remove its permissions.
        contained: Whether the server cannot create namespaces, as in a container.
        in_pod: Whether parts of /proc are hidden, as in a pod.
        has_folder: Whether programs get a file, and their files are collected.
        in_sessions: Whether each program runs in a session.
    """
    (folder / "tmp").mkdir()
    (folder / "path").mkdir()
    canaries = [folder / "canary.json", folder / "link.json"]
    canaries[0].write_text(f'"{SECRET}"')
    canaries[1].symlink_to(canaries[0])
    (folder / "imported").touch()
    (folder / "imported").chmod(0o666)
    (folder / "path" / "sitecustomize.py").write_text(f"open({str(folder / 'imported')!r}, 'a').write('x')")
    for path in () if uid is None else (folder, folder / "tmp", folder / "path"):
        os.chown(path, uid, uid)
    async with sink() as one:
        python = python_as(uid)
        wrapper = [str(CONTAINER), python[-1]] if contained else []
        if in_pod:  # only root can hide parts of /proc
            python = [sys.executable, str(POD), *([] if uid is None else [f"--uid={uid}"]), python[-1]]
        argv = [*python, *wrapper, "-c", _SERVER, "auto" if contained else level, permissions, *languages]
        # Another interpreter needs the site packages of this environment.
        env = {**_traps(folder, one), "PYTHONUSERBASE": sys.prefix}
        pipe = subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, env=env, stdin=pipe, stdout=pipe)
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            url = (await process.stdout.readline()).decode().strip()
            (own,) = (folder / "tmp").glob("faasrt-*")
            canaries.append(own / "canary.json")
            canaries[2].write_text(f'"{SECRET}"')
            async with manager_for(url) as manager:
                yield Target(
                    manager, psutil.Process(process.pid), one, canaries, level, has_folder, in_sessions, in_pod
                )
            process.stdin.close()
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        # Only the server, and `dockerlike.py` or `podlike.py` if it is used, import the module on PYTHONPATH.
        assert (folder / "imported").read_text() == "x" * (1 + contained + in_pod)


def python_as(uid: int | None) -> list[str]:
    """Return a command that runs Python as another user. That user may be unable to read this process's interpreter."""
    if uid is None:
        return [sys.executable]
    if os.getuid() != 0:
        pytest.skip("only root can start a server as another user")
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info[1]}"):
        # Root starts the shell, and the shell starts Python without root's rights.
        script = 'exec "$0" -c "import faasrt.local, aiohttp"'
        env = {**os.environ, "PYTHONUSERBASE": sys.prefix}
        if subprocess.run([*user, "/bin/sh", "-c", script, python], env=env, capture_output=True).returncode == 0:
            return [*user, python]
    pytest.skip("another user can read neither the interpreter of this process nor one like it in /usr/bin")


@contextlib.asynccontextmanager
async def target_at(where: tuple[str, int | None], *languages: str, permissions: str = "") -> AsyncIterator[Target]:
    """Start a server with the level and the user of one of TARGETS, SESSIONS, CONTAINERS or FOLDERS."""
    kind, uid = where
    level = "filters" if kind in ("filters", "container", "session filters") else "namespaces"
    if kind == "container" and uid is None and not os.getuid():
        level = "users"
    has_folder = kind in ("folder", "session")
    # A program with a folder may use /tmp, so there the secrets must be elsewhere.
    with tempfile.TemporaryDirectory(prefix="traps-", dir="/var/tmp" if has_folder else None) as name:
        Path(name).chmod(0o755)
        kinds = {"contained": kind == "container", "in_pod": kind == "pod"}
        kinds |= {"has_folder": has_folder, "in_sessions": "session" in kind}
        async with start_target(
            Path(name), *languages, permissions=permissions, level=level, uid=uid, **kinds
        ) as target:
            yield target


def _traps(folder: Path, one: Sink) -> dict[str, str]:
    proxy = f"http://127.0.0.1:{one.tcp_port}"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), proxy)
    deno = {
        "DENO_PERMISSIONS": "allow-all",
        "DENO_PERMISSION_BROKER_PATH": str(folder / "broker"),
        "DENO_AUTH_TOKENS": f"{SECRET}@127.0.0.1",
        "DENO_V8_FLAGS": "--expose-gc",
        "DENO_CERT": str(folder / "canary.json"),
        "DENO_DIR": str(folder / "deno-dir"),
        "NODE_OPTIONS": f"--require {folder / 'canary.json'}",
        "NPM_CONFIG_REGISTRY": proxy,
        "JSR_URL": proxy,
    }
    python = {
        "PYTHONPATH": str(folder / "path"),
        "PYTHONSTARTUP": str(folder / "path" / "sitecustomize.py"),
        "PYTHONINSPECT": "1",
        "PYTHONOPTIMIZE": "2",
    }
    others = {"AWS_SECRET_ACCESS_KEY": SECRET, "GLIBC_TUNABLES": "glibc.malloc.check=0", "TMPDIR": str(folder / "tmp")}
    return {**os.environ, **proxies, **deno, **python, **others}


async def run_with_neighbour(
    local: RuntimeManager, code: str, language: str, **limits: object
) -> tuple[ExecutionResult, int]:
    """Run a program that allocates memory, and an ordinary program at the same time, which must succeed.

    Also return the highest memory use in bytes: the growth of this process plus the largest sandbox. The number of
    sandboxes depends on earlier tests.
    """
    sandbox = SandboxConfig(**{"memory_limit_mb": 64, **limits})  # type: ignore[arg-type]
    before, most = psutil.Process().memory_info().rss, 0
    attack = asyncio.create_task(local.run_code(code, language, 30_000, sandbox=sandbox))
    neighbour = asyncio.create_task(local.run_code(NEIGHBOURS[language], language, 30_000))
    while not attack.done():
        await asyncio.wait({attack}, timeout=0.02)
        # In a thread, because on a busy machine it takes long, and the event loop also runs the server.
        sandbox_bytes = await asyncio.to_thread(largest_sandbox)
        most = max(most, psutil.Process().memory_info().rss - before + sandbox_bytes)
    well = await neighbour
    assert (well.outcome, well.stdout) == (Outcome.OK, "well\n")
    return await attack, most


NEIGHBOURS = {
    "python": "x = sum(range(100_000)); print('well')",
    "js": "const x = new Array(100_000).fill(1); console.log('well')",
}


def largest_sandbox() -> int:
    """Return the memory use of the largest sandbox of this process, in bytes."""
    largest = 0
    for word in ("deno run", "wasm.worker"):
        for child in with_word(psutil.Process().children(recursive=True), word):
            with contextlib.suppress(psutil.NoSuchProcess):
                largest = max(largest, child.memory_info().rss)
    return largest


def environments(server: psutil.Process, word: str) -> set[str]:
    """Return the environment variables of the server's processes whose command line contains a word."""
    variables: set[str] = set()
    for child in with_word(server.children(recursive=True), word):
        with contextlib.suppress(psutil.NoSuchProcess):
            variables |= child.environ().keys()
    return variables


_WELL = {
    "python": "x = bytearray(10**6); print('well')",
    "c": """
        #include <stdio.h>
        int main(void) { puts("well"); }
    """,
}
USERS = ("this user", "another user")
PLACES = [
    (USERS[0], "namespaces"),
    *(only_with_attacks((place,)) for place in [(USERS[1], "namespaces"), (USERS[0], "pod"), (USERS[1], "pod")]),
]
"""Where native programs run at the level "namespaces", and the user of the server."""
_MEMORY_MB = 256
_HOST = f"""
import asyncio, sys
from faasrt import SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.engines.wasm import engine as wasm_engine
level, python, language, engine, boot = sys.argv[1:]
wasm_engine.BOOT = boot or wasm_engine.BOOT
# Those of `wasm` are attacked one after another, and start slowly.
workers = 1 if engine == "wasm" else 2
async def main():
    limits = SandboxConfig(memory_limit_mb={_MEMORY_MB})
    engines = {{"python": engine}}
    options = {{"sandbox": limits, "engines": engines, "level": level, "python": python}}
    async with LocalFaaS([language], workers=workers, **options) as faas:
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
    in_pod: bool = False

    async def run(self, code: str, timeout_ms: float = 30_000, **limits: int) -> ExecutionResult:
        """Run a program, and check that its result contains no secret."""
        for word, value in self.words.items():
            code = code.replace(word, value)
        sandbox = SandboxConfig(**{"memory_limit_mb": _MEMORY_MB, **limits})
        result = await self.manager.run_code(code, self.language, timeout_ms, sandbox=sandbox)
        record_level(result.metadata)
        assert SECRET not in repr(result)
        return result

    async def run_with_neighbour(self, code: str, timeout_ms: float = 30_000, **limits: int) -> ExecutionResult:
        """Run a program. Another program at the same time, and one after it, must succeed."""
        neighbour = _WELL[self.language]
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
        level: The level; "pod" is the level "namespaces" in a pod that hides parts of its /proc; "users" is in a
            container without namespaces, which is emulated if this machine has a higher level.
        language: The language of the server.
        engine: The engine of Python.
        boot: The code that the workers of the engine `wasm` run; "" for their own.
        cached: Files in the cache of this process; if there are any, the server has a cache of its own with copies.
    """
    other = user != USERS[0]
    # Without namespaces, root runs programs as another user. That user must be able to run the interpreter.
    python = python_for_all_users() if level in ("filters", "users") and not os.getuid() else sys.executable
    # A process cannot restrict itself as in a container twice.
    in_container = level == "users" and level_of_machine()[0] == "namespaces"
    in_pod, level = level == "pod", "namespaces" if level == "pod" else level
    if in_pod and os.getuid():
        pytest.skip("only root can hide parts of /proc as in a pod")
    command = [sys.executable, "-c", _HOST, level, python, language, engine, boot]
    if other:
        if os.getuid():
            pytest.skip("only root can become another user")
        command = ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups", python_for_all_users()]
        command += ["-c", _HOST, level, python_for_all_users(), language, engine, boot]
    if in_container:
        at = 4 if other else 0
        command[at:at] = [command[at], str(CONTAINER)]
    if in_pod:
        uid = [f"--uid={OTHER_UID}"] if other else []
        command = [sys.executable, str(POD), *uid, *(command[4:] if other else command)]
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
            os.chown(owned, OTHER_UID, OTHER_UID)
        cache = folder / "tmp" / ".cache" / "faasrt"
        if engine == "wasm":  # an empty cache would make it compile the sandbox
            cache = folder / "cache" if copies else cache_dir()
        packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if "site-" in path)])
        env = {**os.environ, "TMPDIR": str(folder / "tmp"), "HOME": str(folder / "tmp"), "CANARY_KEY": SECRET}
        env["FAASRT_CACHE_DIR"] = str(cache)
        env |= {"PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"} if other else {}
        async with (
            _server(command, env) as (url, pid),
            sink() as one,
            RuntimeManager.from_url(url, timeouts=PATIENT) as manager,
        ):
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
            yield Host(manager, psutil.Process(pid), one, words, language, in_pod)


_VICTIM = """
import json, os, subprocess
from multiprocessing import shared_memory
open("secret", "w").write("other")
for path in (".", "secret"): os.chmod(path, 0o777)
try: name = (memory := shared_memory.SharedMemory(create=True, size=9)).name
except OSError: name = "none"
child = subprocess.Popen(["sleep", "1000"])
print(json.dumps({"OTHER_HOME": os.getcwd(), "OTHER_PID": os.getpid(), "OTHER_SHM": name}), flush=True)
child.wait()
"""


@contextlib.asynccontextmanager
async def beside_another(host: Host) -> AsyncIterator[Host]:
    """Run another program meanwhile, and let attacks use its folder, its pid and the name of its shared memory."""
    async with host.manager.stream_code(_VICTIM, "python", timeout_ms=30_000) as run:
        words = json.loads((await anext(aiter(run))).text)
        yield attrs.evolve(host, words={**host.words, **{name: str(value) for name, value in words.items()}})


def _copy(path: Path, target: Path) -> Path:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(shutil.copy2(path, target))


def python_for_all_users() -> str:
    """Return the path of an interpreter of this version that every user can run."""
    system_python = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    for path in (Path(sys.executable).resolve(), system_python):
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
