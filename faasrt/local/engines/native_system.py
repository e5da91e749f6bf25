"""What native programs see of the system, and their resource limits. All engines with native programs share this."""

from __future__ import annotations

from pathlib import Path

LIMITS = {
    "RLIMIT_NOFILE": 256,
    "RLIMIT_NPROC": 64,  # processes and threads together
    "RLIMIT_FSIZE": 64 * 2**20,
    "RLIMIT_CORE": 1,  # prevents core dumps; 0 would not prevent those that the host pipes to a program
    "RLIMIT_MEMLOCK": 65_536,
    "RLIMIT_MSGQUEUE": 0,
    "RLIMIT_SIGPENDING": 1024,  # timers and queued signals, which use kernel memory
    "RLIMIT_NICE": 0,
    "RLIMIT_RTPRIO": 0,
}
TMP_BYTES = 64 * 2**20
_PASSWD = "sandbox:x:1000:1000:sandbox:/tmp:/bin/sh\nroot:x:0:0:root:/:/bin/sh\n"  # noqa: S105
FILES = {
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
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime"),
    *("/etc/mime.types", "/etc/protocols", "/etc/services"),
]


def find_system() -> tuple[dict[str, str], dict[str, str]]:
    """Return the mounts and the links of a jail with the system's libraries and programs, by the paths in the jail.
    This reads files, so call it in a thread.
    """
    mounts = {path: path for path in [*_DEVICES, *_SYSTEM, "/usr"] if Path(path).exists()}
    links = dict(_LINKS)
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            links[str(path)] = str(path.readlink())
        elif path.is_dir():
            mounts[str(path)] = str(path)
    return mounts, links
