"""The folder for what is made once on a machine, such as compiled modules, and its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from faasrt.errors import ConfigurationError

_LOCK = ".lock"


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return `$FAASRT_CACHE_DIR`, else `$XDG_CACHE_HOME/faasrt`, else `~/.cache/faasrt`."""
    variables = os.environ if environ is None else environ
    root = variables.get("FAASRT_CACHE_DIR") or f"{variables.get('XDG_CACHE_HOME') or '~/.cache'}/faasrt"
    try:
        return Path(root).expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(f"there is no such home folder: {root}; set FAASRT_CACHE_DIR") from None


def is_private(status: os.stat_result) -> bool:
    """Return whether only this user can have written a regular file."""
    is_own = status.st_uid == os.getuid() and status.st_nlink == 1 and not status.st_mode & 0o077
    return stat.S_ISREG(status.st_mode) and is_own


@contextlib.contextmanager
def lock_folder(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Lock the folder, so that one of several processes fills it and the others wait for it. Yield whether the lock is
    held.

    A missing folder is created, accessible to its owner only. Waiting blocks the thread, so do not `wait` in an event
    loop.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with (folder / _LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
