from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.jail.config import JailConfig
from faasrt.local.jail.jail import open_jail
from faasrt.local.process import Spawner

LEVELS = ("namespaces", "users", "filters")
# The weaknesses compared with the highest level, and how to get the next higher one. docs/sandboxes.md has all levels.
WEAKNESSES = {
    "users": "programs share the network and the processes of the machine, and only their uid, Landlock and seccomp "
    "separate them; for namespaces, let the container create user namespaces and mounts",
    "filters": "programs have the uid of the server, unless it is root, and only Landlock and seccomp separate them; "
    "for users, run the server as root with Docker's default capabilities; for native Python at this level, choose "
    "level filters and the engine native for Python",
}
# After all other failures, the kernel does not support the level.
_LACKS = ("MemoryError", *map(os.strerror, (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)))


async def find_level(wanted: str, folder: Path) -> tuple[str, str]:
    """Return the wanted level, or the highest one for "auto", and the reason why it is not higher, or "". Raise
    EngineError if none works, and NotStartedError if the machine lacks memory, descriptors or time at the moment.
    """
    if sys.platform != "linux":
        raise EngineError("the jail needs Linux")
    reasons: list[str] = []
    async with Spawner() as spawner:
        for level in LEVELS if wanted == "auto" else (wanted,):
            config = JailConfig(level=level, policy="deno", mounts=[("/usr", "/usr")])
            try:
                async with open_jail(spawner, sys.executable, folder, config):
                    return level, "; ".join(reasons)
            except EngineError as error:
                if isinstance(error.__cause__, TimeoutError) or any(lack in str(error) for lack in _LACKS):
                    raise NotStartedError(str(error)) from None
                reasons.append(f"level {level}: {error}")
    raise EngineError("; ".join(reasons))


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
