"""The memory that requests and answers may hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from faasrt.local import http_limits
from faasrt.local.admission import BusyError


class Reserve(Protocol):
    """Reserves more bytes for one request.

    Raises:
        BusyError: All requests together would hold more than MAX_HELD_BYTES. Bytes for the answer to a program that has
            run are reserved `beyond_limit`.
    """

    def __call__(self, size: int, *, beyond_limit: bool = False) -> None: ...


class MemoryBudget:
    """The bytes that all requests hold together."""

    def __init__(self) -> None:
        self._held = 0

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Reserve]:
        """Yield a function that reserves bytes for one request, and free them afterwards."""
        held = 0

        def add(size: int, *, beyond_limit: bool = False) -> None:
            nonlocal held
            if self._held + size > http_limits.MAX_HELD_BYTES and not beyond_limit:
                raise BusyError("too much memory is in use by other requests")
            held += size
            self._held += size

        try:
            yield add
        finally:
            self._held -= held
