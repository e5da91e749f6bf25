"""The contents of a jail, as an engine describes them and as the launcher reads them. This runs in the server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from faasrt.local.jail.launcher.landlock import ALL, FILES, READ, WRITE, abi_version

_DEVICES = ("/dev/null", "/dev/full")
# Without namespaces and root, RLIMIT_NPROC counts all threads of the user, not only the threads of the program.
_MORE_THREADS = 1000
_SIGNALS_ABI = 6  # the first version of Landlock that restricts signals to other processes of the same user


@attrs.frozen(kw_only=True)
class JailConfig:
    """The contents of a jail, and the rights of its processes.

    Attributes:
        mounts: Pairs of a path on the host and the path where processes see it, read-only. At other levels than
            "namespaces", processes see the paths of the host.
        files, links: Further files, and the targets of symbolic links, by path. Only at the level "namespaces".
        shared_memory: Whether programs have /dev/shm, whose files count for the size of /tmp.
        tmp_bytes: The size of the writable /tmp of each program; 0 makes it read-only. In a jail with an executable,
            files in /tmp cannot be executed. At other levels than "namespaces", native programs have a folder of this
            size on the disk instead, and other programs have no folder.
        executable: The program that processes execute, by the path that they see. If it is None, each process is a fork
            of the launcher that calls the `main` of `runner`.
        runner_file: The file that the runner writes before a program begins, in /tmp or /dev/shm, or in a folder there.
        imports: Modules that the launcher imports. A module that cannot be imported is skipped.
        exercise: Code that uses `imports`, and runs before the first fork.
        needed: Folders that processes must be able to read. If they cannot, the jail is not used.
        open_files: Files of the host that each process has open for reading, after its other descriptors.
    """

    level: str
    policy: Literal["deno", "deno-files", "python"]
    mounts: Sequence[tuple[str, str]]
    files: Mapping[str, str] = attrs.field(factory=dict)
    links: Mapping[str, str] = attrs.field(factory=dict)
    tmp_bytes: int = 0
    shared_memory: bool = False
    executable: str | None = None
    runner: str = ""
    runner_file: str = ""
    imports: Sequence[str] = ()
    exercise: str = ""
    packages: Sequence[str] = ()
    needed: Sequence[str] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    limits: Mapping[str, int] = attrs.field(factory=dict)
    open_files: Sequence[str] = ()

    def for_launcher(self, root: Path) -> dict[str, Any]:
        """Return the configuration for the launcher. This reads files, so call it in a thread."""
        has_namespaces = self.level == "namespaces"
        host_paths = {target: source for source, target in self.mounts}
        if has_namespaces:
            rights = [("/", READ)] + [(path, WRITE) for path in _DEVICES]
            rights += [("/dev/shm", ALL)] if self.shared_memory else []
            rights += [("/tmp", FILES if self.executable else ALL)] if self.tmp_bytes else []
        else:
            rights = [
                (os.path.realpath(source), WRITE if source in _DEVICES else READ) for source in host_paths.values()
            ]
        # Devices and the files in /proc are left out: pagemap alone has terabytes.
        finite = {Path(path).parts[1] for path in [*host_paths, *self.files]} - {"dev"}
        compiler_rights = [(f"/{name}", READ) for name in sorted(finite)]
        compiler_rights += [right for right in rights if right[0] not in ("/", "/dev/full")]
        executable, limits = self.executable, dict(self.limits)
        if not has_namespaces and os.getuid() and "RLIMIT_NPROC" in limits:
            limits["RLIMIT_NPROC"] = _count_threads_of_user() + _MORE_THREADS
        return {
            **attrs.asdict(self),
            "limits": limits,
            "mounts": [(os.path.realpath(source), target) for target, source in host_paths.items()],
            "executable": executable if has_namespaces or executable is None else host_paths[executable],
            "tmp_bytes": self.tmp_bytes if has_namespaces else 0,
            "policy": self._policy(),
            # Programs without namespaces have a folder on the disk; see users.py. The size of their files is limited.
            "disk_bytes": self.tmp_bytes if not has_namespaces and self.policy == "python" else 0,
            "rights": rights,
            "compiler_rights": compiler_rights,
            "root": str(root),
            # Python programs can have sockets. In a shared network they would see the names of each other's sockets,
            # and the socket buffers of a single program could not be counted.
            "private_network": has_namespaces and self.policy == "python",
        }

    def _policy(self) -> str:
        if self.level == "namespaces":
            return self.policy
        if self.policy != "python":
            return f"{self.policy}-filters"
        if self.level == "users" or os.getuid() == 0:
            return "python-users"
        return "python-group" if abi_version() >= _SIGNALS_ABI else "python-alone"


def _count_threads_of_user() -> int:
    count, uid = 0, os.getuid()
    for path in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):  # the process has just ended
            count += len([*path.iterdir()]) if path.stat().st_uid == uid else 0
    return count
