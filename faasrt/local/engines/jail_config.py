"""The description of a jail."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from faasrt.local.jail.landlock import ALL, READ, WRITE

_DEVICES = ("/dev/null", "/dev/full")
# Without namespaces and root, the kernel counts the threads of programs together with all others of the user.
_MORE_THREADS = 1000


@attrs.frozen(kw_only=True)
class JailConfig:
    """The contents of a jail, and the rights of its processes.

    Attributes:
        level: What surrounds the processes.
        policy: The filter on system calls: "deno" or "python".
        mounts: Files and folders of the host, and where processes see them, read-only. At the level `filters` they are
            where they are on the host.
        files: The contents of further files, by path.
        links: The targets of symbolic links, by path.
        tmp_bytes: The size of the writable /tmp of each program; 0 makes it read-only. It needs namespaces.
        executable: The program to run, one of the paths that processes see; None runs `runner` in the launcher itself.
        runner: The source of the code that runs a program; it defines `main`.
        imports: Modules that the launcher imports for all programs. One that cannot be imported is left out.
        packages: Packages to look for.
        needed: Folders that processes must be able to read, or the jail is not used.
        env: The environment of programs.
        limits: The limits of each process, by the names of the module `resource`.
        open_files: Files of the host that each process has open for reading, after its other descriptors.
    """

    level: str
    policy: Literal["deno", "python"]
    mounts: Sequence[tuple[str, str]]
    files: Mapping[str, str] = attrs.field(factory=dict)
    links: Mapping[str, str] = attrs.field(factory=dict)
    tmp_bytes: int = 0
    executable: str | None = None
    runner: str = ""
    imports: Sequence[str] = ()
    packages: Sequence[str] = ()
    needed: Sequence[str] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    limits: Mapping[str, int] = attrs.field(factory=dict)
    open_files: Sequence[str] = ()

    def for_launcher(self, root: Path) -> dict[str, Any]:
        """Return the configuration as the launcher reads it. This blocks: not for an event loop's thread.

        Args:
            root: The folder that becomes the root of the processes.
        """
        jailed = self.level == "namespaces"
        host_paths = {target: source for source, target in self.mounts}
        if jailed:
            rights = [("/", READ)] + [(path, WRITE) for path in _DEVICES]
            rights += [("/tmp", ALL)] if self.tmp_bytes else []  # noqa: S108
        else:
            rights = [
                (os.path.realpath(source), WRITE if source in _DEVICES else READ) for source in host_paths.values()
            ]
        executable, limits = self.executable, dict(self.limits)
        if not jailed and os.getuid() and "RLIMIT_NPROC" in limits:
            limits["RLIMIT_NPROC"] = _threads_of_user() + _MORE_THREADS
        return {
            **attrs.asdict(self),
            "limits": limits,
            "mounts": [(os.path.realpath(source), target) for target, source in host_paths.items()],
            "executable": executable if jailed or executable is None else host_paths[executable],
            "tmp_bytes": self.tmp_bytes if jailed else 0,
            "policy": self.policy if jailed else f"{self.policy}-filters",
            "rights": rights,
            "root": str(root),
            # Programs with sockets would see the names of each other's, and their buffers could not be counted.
            "private_network": jailed and self.policy == "python",
        }


def _threads_of_user() -> int:
    count, uid = 0, os.getuid()
    for path in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):  # it has just ended
            count += len([*path.iterdir()]) if path.stat().st_uid == uid else 0
    return count
