"""Go, compiled by the compiler and the linker of the Go distribution. Programs have the standard library only.

The command `go build` would compile the standard library for each program. So its packages are compiled once for a
machine, and then the compiler and the linker run without `go`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from platform import machine

import attrs

from faasrt.languages import Language
from faasrt.local.cache_folder import lock_folder
from faasrt.local.engines.toolchain.toolchain import OUT, PROGRAM, Installation, Toolchain, mount_home
from faasrt.local.errors import EngineError

_LIBRARY = "/toolchain/go-library"
_BUILD = (
    "{tool}/compile -o {out}/main.a -p main -complete -pack -importcfg {library}/importcfg {sources} && "
    "{tool}/link -o {out}/main -s -w -importcfg {library}/importcfg {out}/main.a && rm {out}/main.a"
)
_BUILD_TIMEOUT_S = 900.0
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


def _prepare(installation: Installation, cache: Path) -> Installation:
    folder = cache / installation.version.replace(" ", "-")
    complete = folder / "library"
    if not complete.is_dir():
        try:
            with lock_folder(folder, wait=True):
                if not complete.is_dir():
                    _compile_library(installation.source, folder, complete)
        except OSError as error:
            raise EngineError(f"Go's standard library cannot be stored: {error.strerror or error}") from None
    return attrs.evolve(installation, mounts={**installation.mounts, _LIBRARY: str(complete)})


def _compile_library(go: str, folder: Path, complete: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
        library = Path(temporary, "library")
        library.mkdir(mode=0o755)
        env = {"PATH": os.defpath, "HOME": temporary, "GOCACHE": f"{temporary}/cache", "CGO_ENABLED": "0"}
        env |= {"GOTOOLCHAIN": "local", "GOFLAGS": "-trimpath", "GO111MODULE": "off", "GOTELEMETRY": "off"}
        command = [go, "list", "-export", "-f", "{{if .Export}}{{.ImportPath}}={{.Export}}{{end}}", "std"]
        try:
            done = subprocess.run(  # noqa: S603
                command, env=env, cwd=temporary, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=True
            )
        except subprocess.SubprocessError as error:
            reason = str(getattr(error, "stderr", None) or error).strip()[-300:]
            raise EngineError(f"Go's standard library cannot be compiled: {reason}") from None
        lines = []
        for number, line in enumerate(done.stdout.split()):
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
