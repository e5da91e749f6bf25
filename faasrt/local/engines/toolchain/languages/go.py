"""Go, compiled by the compiler and the linker of the Go distribution. Programs have the standard library only.

The command `go build` would compile the standard library for each program. So its packages are compiled once for a
machine, and then the compiler and the linker run without `go`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from platform import machine

import attrs

from faasrt._shielded_wait import wait_shielded
from faasrt.languages import Language
from faasrt.local.cache_folder import lock_folder
from faasrt.local.engines.toolchain.toolchain import OUT, PROGRAM, Installation, Toolchain, mount_home
from faasrt.local.errors import EngineError
from faasrt.local.process import STDERR, STDOUT, Spawner

_LIBRARY = "/toolchain/go-library"
_BUILD = (
    "{tool}/compile -o {out}/main.a -p main -complete -pack -importcfg {library}/importcfg {sources} && "
    "{tool}/link -o {out}/main -s -w -importcfg {library}/importcfg {out}/main.a && rm {out}/main.a"
)
_BUILD_TIMEOUT_S, _LOCK_PAUSE_S = 900.0, 0.2
_NEW = ".new-"
# Execute a command. When stdin is closed, as at the end of the server, kill it with the compilers that it has started.
_END_WITH_STDIN = """
exec 3<&0 </dev/null
{ read -r _; kill -KILL 0; } <&3 >/dev/null 2>&1 &
exec "$0" "$@" 3<&-
"""
_MAX_CORES = 16
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}  # Go's names


def _find(path: str) -> Installation:
    # Not `go env`, which writes to the home folder of the user.
    root = Path(path).resolve().parent.parent
    try:
        version = (root / "VERSION").read_text("utf-8").split()[0].removeprefix("go")
    except (OSError, ValueError, IndexError) as error:
        raise EngineError(f"cannot read the version of Go: {error}") from None
    home, mounts = mount_home(str(root), "go")
    tools = f"{home}/pkg/tool/linux_{_MACHINES.get(machine(), machine())}"
    # A Go program starts a thread for each core, and a program may have 64 threads.
    env = {"GOMAXPROCS": str(min(_MAX_CORES, os.cpu_count() or 1))}
    return Installation(version=f"go {version}", mounts=mounts, env=env, home=tools, source=path)


async def _prepare(installation: Installation, cache: Path, spawner: Spawner) -> Installation:
    folder = cache / installation.version.replace(" ", "-")
    complete = folder / "library"
    try:
        while not complete.is_dir():
            # A thread that waits for the lock could not be cancelled.
            with lock_folder(folder, wait=False) as is_locked:
                if not is_locked:
                    await asyncio.sleep(_LOCK_PAUSE_S)
                elif not complete.is_dir():
                    await _compile_library(installation.source, folder, complete, spawner)
    except OSError as error:
        raise EngineError(f"Go's standard library cannot be stored: {error.strerror or error}") from None
    return attrs.evolve(installation, mounts={**installation.mounts, _LIBRARY: str(complete)})


async def _compile_library(go: str, folder: Path, complete: Path, spawner: Spawner) -> None:
    """Compile the library in a folder that this process has locked.

    Cancellation: ends the compilers, and removes their files. After a SIGKILL, the next compilation removes them.
    """
    try:
        await asyncio.to_thread(_remove_new, folder)
        temporary = Path(tempfile.mkdtemp(prefix=_NEW, dir=folder))
        exports = await _list_exports(go, temporary, spawner)
        await wait_shielded(asyncio.ensure_future(asyncio.to_thread(_store, exports, temporary / "library", complete)))
    finally:
        await wait_shielded(asyncio.ensure_future(asyncio.to_thread(_remove_new, folder)))


def _remove_new(folder: Path) -> None:
    for path in folder.glob(f"{_NEW}*"):
        shutil.rmtree(path, ignore_errors=True)


async def _list_exports(go: str, temporary: Path, spawner: Spawner) -> str:
    """Compile the library. Return a line for each package, with its name and the path of its file."""
    env = {"PATH": os.defpath, "HOME": str(temporary), "TMPDIR": str(temporary), "GOCACHE": f"{temporary}/cache"}
    env |= {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-trimpath", "GO111MODULE": "off"}
    env |= {"GOTELEMETRY": "off"}
    command = [go, "list", "-export", "-f", "{{if .Export}}{{.ImportPath}}={{.Export}}{{end}}", "std"]
    process = await spawner.start(["/bin/sh", "-c", _END_WITH_STDIN, *command], env=env, folder=temporary)
    output = {STDOUT: bytearray(), STDERR: bytearray()}
    process.receive(lambda fd, data: output[fd].extend(data))
    reason = ""
    try:
        async with asyncio.timeout(_BUILD_TIMEOUT_S):
            await process.ended.wait()
    except TimeoutError:
        reason = f"it takes longer than {_BUILD_TIMEOUT_S:g} s"
    finally:
        await process.end()
    if reason or process.returncode:
        reason = reason or output[STDERR].decode("utf-8", "replace").strip()[-300:] or "no reason given"
        raise EngineError(f"Go's standard library cannot be compiled: {reason}")
    return os.fsdecode(bytes(output[STDOUT]))


def _store(exports: str, library: Path, complete: Path) -> None:
    library.mkdir(mode=0o755)
    lines = []
    for number, line in enumerate(exports.split()):
        name, _, path = line.partition("=")
        shutil.copyfile(path, library / f"{number}.a")
        (library / f"{number}.a").chmod(0o644)
        lines.append(f"packagefile {name}={_LIBRARY}/{number}.a\n")
    (library / "importcfg").write_text("".join(lines))
    (library / "importcfg").chmod(0o644)
    library.rename(complete)


def _compile(installation: Installation, sources: Sequence[str]) -> list[str]:
    script = _BUILD.format(tool=installation.home, out=OUT, library=_LIBRARY, sources='"$@"')
    return ["/bin/sh", "-c", script, "sh", *sources]


GO = Toolchain(
    language=Language.GO,
    name="go",
    executable="go",
    package="golang-go",
    search_path=None,
    find=_find,
    prepare=_prepare,
    compile=_compile,
    run=lambda *_: [f"{PROGRAM}/main"],
    source_suffixes=(".go",),
    diagnostic=re.compile(
        r"^(?:\./)?(?P<file>[^\s:]+\.go):(?P<line>\d+):(?:(?P<column>\d+):)? (?P<message>.*)$", re.MULTILINE
    ),
    failure=re.compile(r"^(?P<name>panic|fatal error): (?P<message>.*)$", re.MULTILINE),
    out_of_memory=re.compile(r"^fatal error: (?:runtime: )?(?:out of memory|cannot allocate memory)", re.MULTILINE),
    sample='package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("ok") }\n',
)
