"""The memory that requests and answers may hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs

from faasrt.local import http_limits
from faasrt.local.admission import BusyError


@attrs.define
class MemoryReservation:
    """The bytes that one request holds."""

    _budget: MemoryBudget
    held: int = 0

    def add(self, size: int) -> None:
        """Reserve more bytes.

        Raises:
            BusyError: All requests together would hold more than MAX_HELD_BYTES.
        """
        if self._budget.held + size > http_limits.MAX_HELD_BYTES:
            raise BusyError("too much memory is in use by other requests", 429)
        self.add_unchecked(size)

    def add_unchecked(self, size: int) -> None:
        """Reserve bytes for the answer to a program that has run, even beyond the limit."""
        self.held += size
        self._budget.held += size


@attrs.define
class MemoryBudget:
    """The bytes that all requests hold together."""

    held: int = 0

    @contextlib.contextmanager
    def reserve(self) -> Iterator[MemoryReservation]:
        """Yield a reservation for one request, and free it afterwards."""
        reservation = MemoryReservation(self)
        try:
            yield reservation
        finally:
            self.held -= reservation.held
