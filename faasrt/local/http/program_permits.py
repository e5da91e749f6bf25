"""Decides when a program may start: how many run at once, and whether the machine has memory for it.

A program starts if the available memory is enough for the limits of all running programs, and for its own limit. So a
running program is not ended because a later one needs memory. If fewer programs run than the server has workers, a
program starts in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

import attrs

from faasrt.local.engines.engine import Engine
from faasrt.local.machine_memory import MachineMemory


@attrs.define(eq=False)
class MemoryBudget:
    """The memory for the programs of all engines. `promised_mb` is the sum of the limits of the running programs."""

    memory: MachineMemory = attrs.field(factory=MachineMemory)
    promised_mb: int = 0
    _waiting: set[ProgramPermits] = attrs.field(factory=set)

    def fits(self, memory_mb: int) -> bool:
        if self.memory.total_mb is None:
            return True
        return self.promised_mb + memory_mb <= self.memory.available_mb()

    def give_back(self, memory_mb: int) -> None:
        self.promised_mb -= memory_mb
        for permits in [*self._waiting]:
            permits.wake()

    def watch(self, permits: ProgramPermits, *, waits: bool) -> None:
        (self._waiting.add if waits else self._waiting.discard)(permits)


class ProgramPermits:
    """The permits of an engine to run programs. Waiting programs get permits in the order of their arrival."""

    def __init__(self, engine: Engine, budget: MemoryBudget) -> None:
        self._engine, self._budget = engine, budget
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.taken = 0

    def take(self, memory_mb: int) -> bool:
        """Take a permit for a program with this memory limit. Return False if it must wait."""
        if self._waiting or not self._has_room(memory_mb):
            return False
        self._take(memory_mb)
        return True

    async def wait(self, memory_mb: int) -> None:
        """Wait for a permit, and take it.

        Cancellation: gives the permit back.
        """
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((memory_mb, free))
        self.wake()
        try:
            await free
        except asyncio.CancelledError:
            if free.cancelled():
                with contextlib.suppress(ValueError):  # `wake` has just removed it
                    self._waiting.remove((memory_mb, free))
                self.wake()
            else:
                self.give_back(memory_mb)
            raise

    def give_back(self, memory_mb: int) -> None:
        self.taken -= 1
        self._budget.give_back(memory_mb + self._engine.overhead_mb)
        self.wake()

    def wake(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][0]):
            memory_mb, free = self._waiting.popleft()
            if not free.done():
                self._take(memory_mb)
                free.set_result(None)
        self._budget.watch(self, waits=bool(self._waiting))

    def _has_room(self, memory_mb: int) -> bool:
        if self.taken >= self._engine.capacity:
            return False
        return self.taken < self._engine.min_capacity or self._budget.fits(memory_mb + self._engine.overhead_mb)

    def _take(self, memory_mb: int) -> None:
        self.taken += 1
        self._budget.promised_mb += memory_mb + self._engine.overhead_mb
