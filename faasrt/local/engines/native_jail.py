"""The jail of programs that run as on a usual Linux: native Python, compilers, and compiled programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faasrt.local.jail.config import JailConfig

TMP_BYTES = 64 * 2**20
_LIMITS = {
    "RLIMIT_NOFILE": 256,
    "RLIMIT_NPROC": 64,  # processes and threads together
    "RLIMIT_FSIZE": TMP_BYTES,
    "RLIMIT_CORE": 1,  # prevents core dumps; 0 would allow core dumps that the host pipes to a program
    "RLIMIT_MEMLOCK": 65_536,
    "RLIMIT_MSGQUEUE": 0,
    "RLIMIT_SIGPENDING": 1024,  # timers and queued signals, which use kernel memory
    "RLIMIT_NICE": 0,
    "RLIMIT_RTPRIO": 0,
}
_PASSWD = "sandbox:x:1000:1000:sandbox:/tmp:/bin/sh\nroot:x:0:0:root:/:/bin/sh\n"  # noqa: S105
_FILES = {
    "/etc/passwd": _PASSWD,
    "/etc/group": "sandbox:x:1000:\nroot:x:0:\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    # Reads as zeros, too. Not the device /dev/zero itself, because a shared mapping of it is memory that is not counted
    # for any process.
    "/dev/zero": "full",
}
_DEVICES = ["/dev/null", "/dev/full", "/dev/random", "/dev/urandom"]
_SYSTEM = [
    *("/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache", "/etc/localtime"),
    *("/etc/mime.types", "/etc/protocols", "/etc/services"),
]
_ENV = {"HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108


def native_jail(
    level: str, runner: str, runner_file: str, *, mounts: Mapping[str, str], env: Mapping[str, str], **fields: Any
) -> JailConfig:
    """Return a jail with the system's libraries and programs, and other `mounts` of the host, by their paths in the
    jail. This reads files, so call it in a thread.
    """
    sources = {path: path for path in [*_DEVICES, *_SYSTEM, "/usr"] if Path(path).exists()}
    links = dict(_LINKS)
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            links[str(path)] = str(path.readlink())
        elif path.is_dir():
            sources[str(path)] = str(path)
    return JailConfig(
        level=level,
        policy="python",
        mounts=sorted((source, target) for target, source in {**sources, **mounts}.items()),
        files=_FILES,
        links=links,
        tmp_bytes=TMP_BYTES,
        shared_memory=level == "namespaces",
        runner=runner,
        runner_file=runner_file,
        env={**_ENV, **env},
        limits=_LIMITS,
        **fields,
    )
