"""The memory of the machine, or of the container: of the cgroups that contain this process, if they have less."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

_READ_AGAIN_S = 0.05
_NAMES = {  # of the limit, the use, and the part of the use that the kernel can free, by the version of cgroups
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_MIB = 2**20


class MachineMemory:
    """Reads the memory that is available, at most every 50 ms.

    Attributes:
        total_mb: The memory in MiB; None if it is not known.
    """

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._meminfo = proc / "meminfo"
        total = _field(self._meminfo, "MemTotal:")
        self._groups = [] if total is None else _limited_groups(proc / "self/cgroup", cgroups, total)
        self.total_mb = None if total is None else min([total, *(limit for limit, *_ in self._groups)]) // _MIB
        self._read_at, self._available_mb = -_READ_AGAIN_S, 0

    def available_mb(self) -> int:
        now = time.monotonic()
        if now >= self._read_at + _READ_AGAIN_S:
            self._read_at, self._available_mb = now, self._read()
        return self._available_mb

    def _read(self) -> int:
        available = [_field(self._meminfo, "MemAvailable:") or 0]
        for limit, folder, (_, use, freeable) in self._groups:
            used = _number(folder / use) or 0
            available.append(limit - used + (_field(folder / "memory.stat", freeable) or 0))
        return max(0, min(available)) // _MIB


def _limited_groups(own: Path, root: Path, total: int) -> list[tuple[int, Path, tuple[str, str, str]]]:
    groups = []
    with contextlib.suppress(OSError):
        for line in _lines(own):
            _, controllers, path = line.split(":", 2)
            kind = "memory" if "memory" in controllers.split(",") else controllers
            if kind not in _NAMES:
                continue
            top = root / kind
            folder = top / path.lstrip("/")
            # In a container, the path may be one of the host, and its own cgroup is the root.
            for each in [folder, *folder.parents] if folder.is_relative_to(top) and ".." not in path else [top]:
                limit = _number(each / _NAMES[kind][0])
                if limit is not None and limit < total:
                    groups.append((limit, each, _NAMES[kind]))
                if each == top:
                    break
    return groups


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel, which are in memory, so that reading them does not block."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        return [line.removesuffix("\n") for line in file]


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_lines(path)[0])
    return None


def _field(path: Path, name: str) -> int | None:
    """Return the number in a line of a file, in bytes."""
    with contextlib.suppress(OSError, ValueError):
        for line in _lines(path):
            if line.startswith(name):
                _, number, *unit = line.split()
                return int(number) * (1024 if unit else 1)
    return None
