"""The memory that requests and answers may hold together, and the choice of the client that loses its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import attrs

from faasrt.local.http import limits
from faasrt.local.http.admission import BusyError


class Memory:
    """Limits the memory that the bodies of all requests hold together, and the memory that all answers hold together.

    The first SMALL_BYTES of each body and answer do not count, because the number of connections is limited too. So
    large requests never keep out small ones.

    If memory is short, the slowest client loses its share: the client that completed its last SMALL_BYTES the longest
    time ago. A body only takes memory from a client that needs longer than SLOW_S. If there is no such client, the body
    is refused. An answer takes memory from any client, because its program has already run. A request whose program
    waits or runs keeps its memory.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.max_answer_bytes = 0
        self._bodies = _Pool(clock, lambda: limits.MAX_HELD_BYTES)
        self._answers = _Pool(clock, lambda: max(limits.MAX_HELD_BYTES, self.max_answer_bytes))

    @property
    def held_bytes(self) -> int:
        return self._bodies.held + self._answers.held

    def share(self) -> Share:
        return Share(self._bodies, self._answers)


class Share:
    """The memory of one request, which is freed at the end of a `with` block.

    Attributes:
        counted: The part of `size` that counts.
        progress_at: When the client last completed SMALL_BYTES, or began to send or read.
    """

    def __init__(self, bodies: _Pool, answers: _Pool) -> None:
        self._pool, self._answers = bodies, answers
        self.size = self.counted = self._transferred = 0
        self.progress_at = 0.0
        self.evicted = False
        self._on_evicted: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def receive(self, on_evicted: Callable[[], object]) -> None:
        """Record that the client begins to send the body or to read the answer. `on_evicted` must end this."""
        self._on_evicted, self.progress_at = on_evicted, self._pool.clock()
        self._pool.waiting.add(self)

    def add(self, size: int) -> None:
        """Count a piece of the body. Raise BusyError if there is not enough memory."""
        self.record_progress(size)
        needed = max(0, self.size + size - limits.SMALL_BYTES) - self.counted
        if needed and not self._pool.make_room(needed, self, slow_s=limits.SLOW_S):
            reason = f"requests, because the bodies of others had {limits.MAX_HELD_BYTES >> 20} MiB: send fewer at once"
            raise BusyError("too much memory is in use by other requests", reason=reason)
        self._count(size, needed)

    def run(self) -> None:
        self._pool.waiting.discard(self)

    def answer(self, size: int, on_evicted: Callable[[], object]) -> None:
        """Count an answer instead of the body, and record that the client begins to read it."""
        self.free()
        self._pool = self._answers
        needed = max(0, size - limits.SMALL_BYTES)
        self._pool.make_room(needed, self, slow_s=0.0)
        self._count(size, needed)
        self.receive(on_evicted)

    def record_progress(self, size: int) -> None:
        self._transferred += size
        if self._transferred >= limits.SMALL_BYTES:
            self._transferred, self.progress_at = 0, self._pool.clock()

    def evict(self) -> None:
        self.evicted = True
        self.free()
        if self._on_evicted is not None:
            self._on_evicted()

    def free(self) -> None:
        self._pool.waiting.discard(self)
        self._pool.held -= self.counted
        self.size = self.counted = 0

    def _count(self, size: int, counted: int) -> None:
        self.size += size
        self.counted += counted
        self._pool.held += counted


@attrs.define(eq=False)
class _Pool:
    """The bodies or the answers of all requests. The clients of `waiting` are sending or reading."""

    clock: Callable[[], float]
    limit: Callable[[], int]
    held: int = 0
    waiting: set[Share] = attrs.field(factory=set)

    def make_room(self, size: int, share: Share, *, slow_s: float) -> bool:
        """Evict the slowest other requests until there is room, except those that completed SMALL_BYTES within
        `slow_s`. Return whether there is room.
        """
        while size and self.held + size > self.limit():
            others = (other for other in self.waiting if other.counted and other is not share)
            slowest = min(others, key=lambda other: other.progress_at, default=None)
            if slowest is None or self.clock() - slowest.progress_at < slow_s:
                return False
            slowest.evict()
        return True
