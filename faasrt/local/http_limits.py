"""Limits on the connections and requests of clients, and the memory that they hold."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Protocol

from faasrt.local.admission import BusyError

MAX_CONNECTIONS = 1_000
"""The largest number of open connections; lower when the process may open fewer than twice as many files."""
MAX_BODY_BYTES = 8 * 2**20
"""The largest body of a request."""
MAX_HELD_BYTES = 64 * 2**20
"""The largest size of all bodies and answers together, from a body's first byte until its answer has been sent."""
MAX_STRUCTURE_BYTES = 64 * 2**10
"""Characters of a body's JSON that may stand outside of strings."""
MAX_STRINGS = 10_000
"""Strings in a body's JSON that is larger than MAX_STRUCTURE_BYTES."""
REQUEST_TIMEOUT_S = 30.0
"""Seconds for the head of a request, again for its body, and again for reading the answer."""
LINGER_S = 10.0
"""Seconds for which the rest of a refused request is read and discarded, so that its sender can read the refusal."""


def max_connections() -> int:
    """Return the largest number of open connections: at most half of the process's descriptors."""
    return min(MAX_CONNECTIONS, _open_files() // 2)


def backlog() -> int:
    """Return the number of connections that the system may queue until they are accepted.

    With a shorter queue, some clients of a burst wait a second until their system tries again. The queue takes at most
    a quarter of the descriptors, which leaves another quarter for programs.
    """
    return min(MAX_CONNECTIONS, _open_files() // 4)


def _open_files() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4 * MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(4, files)


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
            if self._held + size > MAX_HELD_BYTES and not beyond_limit:
                raise BusyError("too much memory is in use by other requests")
            held += size
            self._held += size

        try:
            yield add
        finally:
            self._held -= held
