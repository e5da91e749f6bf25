"""The levels of the jail, which of them works on this machine, and how to get a higher one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from typing import Literal

import attrs

from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.jail import open_jail
from faasrt.local.process import Spawner


@attrs.frozen(kw_only=True)
class Level:
    """A level of the jail, in the words of docs/sandboxes.md.

    Attributes:
        needs: Where it works.
        protection: What separates programs from each other, and from the machine.
        python: The engine of Python by default.
        misses: The features that programs do without.
    """

    needs: str
    protection: str
    python: Literal["native", "wasm"]
    misses: str


# From the highest to the lowest.
LEVELS = {
    "namespaces": Level(
        needs="hosts, virtual machines, and containers that allow user namespaces. Where parts of /proc are hidden, "
        "Landlock is needed (Linux 5.13)",
        protection="namespaces, Landlock, seccomp, rlimits; under root a uid for each program",
        python="native",
        misses="where parts of /proc are hidden: all of /proc, so `ps` and psutil",
    ),
    "users": Level(
        needs="root with CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID and CAP_SETUID, as in Docker, and "
        "Linux 5.13",
        protection="a uid and a folder for each program, Landlock, seccomp, rlimits",
        python="native",
        misses="/proc; Unix sockets, so `multiprocessing.Manager` and fork servers; /dev/zero; other paths in /tmp "
        "than their folder; an entry in /etc/passwd; forks of sessions; other languages than Python, JavaScript and "
        "TypeScript; files in JavaScript",
    ),
    "filters": Level(
        needs="any user, Linux 5.13; root needs CAP_KILL. Root of a container without capabilities has no level: there "
        "only Python runs, on `wasm`",
        protection="Landlock, seccomp, rlimits; under root as `users`",
        python="wasm",
        misses="the same as at `users`; on `native` also /dev/shm, so `multiprocessing.Lock` and pools; modes, times "
        "and owners of files; process groups; before Linux 6.12 other processes",
    ),
}
# After all other failures, the kernel does not support the level.
_LACKS = ("MemoryError", *map(os.strerror, (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)))
_LANDLOCK = "use Linux 5.13 or newer with Landlock (in the kernel parameter lsm)"
_CONTAINER = "in a container, use the options of `faasrt deploy containerfile`, which allow namespaces and mounts"
# For each setting of the kernel: its name, a value that forbids user namespaces, and a value that allows them.
_SETTINGS = (
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


@attrs.frozen
class FoundLevel:
    """The level of the jail on this machine.

    Attributes:
        name: "" if none works.
        reason: Why it is not higher; "" if it is the highest, or was chosen.
        remedy: How to get each higher one, or "".
    """

    name: str = ""
    reason: str = ""
    remedy: str = ""

    def describe(self) -> str:
        """Return what a level other than the highest one means, and how to get a higher one."""
        level = LEVELS[self.name]
        return (
            f"the level of the jail is {self.name}: programs are separated by {level.protection}. "
            f"They miss {level.misses}. To get a higher one: {self.remedy} ({self.reason})"
        )


async def find_level(wanted: str, folder: Path) -> FoundLevel:
    """Return the wanted level; for "auto", the highest level that works. Raise EngineError if the wanted level does not
    work, and NotStartedError if the machine lacks memory, descriptors or time at the moment.
    """
    if sys.platform != "linux":
        if wanted == "auto":
            return FoundLevel("", "the jail needs Linux", "use Linux")
        raise EngineError("the jail needs Linux")
    reasons: list[str] = []
    remedies: list[str] = []
    async with Spawner() as spawner:
        for name in LEVELS if wanted == "auto" else (wanted,):
            config = JailConfig(level=name, policy="deno", mounts=[("/usr", "/usr")])
            try:
                async with open_jail(spawner, sys.executable, folder, config):
                    return FoundLevel(name, "; ".join(reasons), "; ".join(remedies))
            except EngineError as error:
                if isinstance(error.__cause__, TimeoutError) or any(lack in str(error) for lack in _LACKS):
                    raise NotStartedError(str(error)) from None
                reasons.append(f"level {name}: {error}")
                remedy = await asyncio.to_thread(remedy_of, name, str(error))  # reads settings of the kernel
                remedies.append(f"for {name}, {remedy}")
    if wanted == "auto":
        return FoundLevel("", "; ".join(reasons), "; ".join(remedies))
    raise EngineError("; ".join([*reasons, *remedies]))


def remedy_of(name: str, problem: str, settings: Path = Path("/proc/sys")) -> str:
    """Return how to get a level that does not work because of a problem."""
    if "CAP_KILL" in problem and name == "filters":
        return "run the server as another user than root, who needs no capabilities"
    if "Landlock" in problem or name == "filters":
        return _LANDLOCK
    if name != "namespaces":
        return "run the server as root with Docker's default capabilities"
    remedies = []
    # The other settings do not restrict root.
    for setting, refusing, allowing in _SETTINGS if os.geteuid() else _SETTINGS[:1]:
        with contextlib.suppress(OSError):
            if (settings / setting.replace(".", "/")).read_text().strip() == refusing:
                remedies.append(f"run: sysctl -w {setting}={allowing}")
    return "; ".join([*remedies, _CONTAINER])


def why_unreadable(python: str) -> str:
    """Return why programs that run as another user cannot use an interpreter, or ""."""
    path = Path(python).absolute()
    for each in (path, path.resolve()):
        for needed in (each, each.parent.parent / "lib"):
            for part in (needed, *needed.parents):
                with contextlib.suppress(OSError):  # it does not exist
                    mode = part.stat().st_mode
                    if not mode & (stat.S_IXOTH if part.is_dir() else stat.S_IROTH):
                        return (
                            f"native programs run as another user, who cannot read {part}: install Python and the "
                            f"packages in a folder that all users can read, or run: chmod o+x {part}"
                        )
    return ""
