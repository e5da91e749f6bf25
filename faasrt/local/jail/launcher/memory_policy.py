"""How the memory of programs is bounded: when the memory watch adds it up, and what a kill by the kernel means."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterable
from typing import Any

from . import process_memory
from .program import RunningProgram
from .shared_jails import SharedJails

LOOK_INTERVAL_S = 0.25
"""While sessions are idle, the time between two looks at the memory of the machine."""
_MORE_BYTES = 64 * 2**20  # this much more use of it makes a check of the sessions necessary


class MemoryPolicy:
    """Lets the memory watch (`watch.py`), if there is one, add up the memory of programs.

    Attributes:
        watch: The socket of the memory watch.
        base_bytes: The resident memory of the launcher, which each process has from its start.
        looked_at: The time of the last look at the memory of the machine.
    """

    def __init__(self, watch: socket.socket | None, oom_counter: int | None, jails: SharedJails) -> None:
        self.watch, self._oom_counter, self._jails = watch, oom_counter, jails
        self.base_bytes, self._base_tables = process_memory.sizes("/proc/self")
        self.looked_at, self._least_used = 0.0, (math.inf, math.inf)

    def count_oom_kills(self) -> int:
        return process_memory.count_oom_kills(self._oom_counter)

    def is_kill_for_lack(self, program: RunningProgram) -> bool:
        """Return whether the kernel has killed processes for lack of memory since a program began."""
        return self.count_oom_kills() > program.oom_kills

    def has_grown(self) -> bool:
        """Look at the memory of the machine. Return whether much more of it is in use than before."""
        self.looked_at, used = time.monotonic(), process_memory.used_bytes()
        self._least_used = min(self._least_used[0], used[0]), min(self._least_used[1], used[1])
        if any(size > least + _MORE_BYTES for size, least in zip(used, self._least_used)):
            self._least_used = used  # since this check
            return True
        return False

    def is_large(self, program: RunningProgram) -> bool:
        if program.max_bytes is None:
            return False
        return process_memory.sizes(f"/proc/{program.pid}")[0] > self.base_bytes + program.max_bytes

    def add_up(self, program: RunningProgram) -> None:
        """Let the watch add up the memory of a program from now on."""
        if program.max_bytes is not None and not program.is_watched and self.watch is not None:
            program.is_watched = True
            watched: dict[str, Any] = {"watch": program.number, "pid": program.pid, "init": program.init_pid}
            if program.owner is not None:
                owner = program.owner
                watched |= {"uid": owner.uid, "group": owner.group, "home": owner.home}
            limits = {"bytes": program.max_bytes + self.base_bytes, "tables": self._base_tables}
            living = self._jails.living_devices(program.jail_owner)
            devices = {"device": program.device, "living": [*living]}
            self.watch.send(json.dumps({**watched, **limits, **devices}).encode())

    def forget(self, program: RunningProgram) -> None:
        if program.is_watched and self.watch is not None:
            program.is_watched = False
            self.watch.send(json.dumps({"forget": program.number}).encode())

    def update(self, programs: Iterable[RunningProgram]) -> None:
        """Send the watch the present state of a jail, which has these programs."""
        for program in programs:
            if program.is_watched:
                program.is_watched = False
                self.add_up(program)
