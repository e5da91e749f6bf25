"""Limits on connections, requests, and the memory that they use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Protocol

from faasrt.errors import ConfigurationError
from faasrt.local.admission import BusyError

MAX_CONNECTIONS = 1_000
"""The largest number of open connections. `max_connections` lowers it if the process may open few files."""
SPARE_CONNECTIONS = 8
"""The number of further connections that may send a probe."""
SPARE_TIMEOUT_S = 1.0
"""How long a further connection may stay open, plus half a second if the server is busy then. Also how long the input
of a refused one is discarded.
"""
MAX_BODY_BYTES = 8 * 2**20
"""The largest body of a request."""
MAX_HELD_BYTES = 64 * 2**20
"""The largest size of all bodies and answers together. They count until the answer has been sent."""
MAX_STRUCTURE_BYTES = 64 * 2**10
"""The largest number of characters outside of strings, in the JSON of a body."""
MAX_STRINGS = 10_000
"""The largest number of strings in a body that is larger than MAX_STRUCTURE_BYTES."""
REQUEST_TIMEOUT_S = 30.0
"""The time for receiving the head of a request, for receiving its body, and for sending the answer, each."""
HANDSHAKE_TIMEOUT_S = 10.0
"""The time for the TLS handshake of a connection, and for its end."""
LINGER_S = 10.0
"""How long the server reads and discards the rest of a refused request, so that its sender can read the refusal."""


def max_connections(wanted: int | None = None) -> int:
    """Return the largest number of open connections: `wanted`, or MAX_CONNECTIONS, or half of the files that may be
    open if this is less. Raise ConfigurationError if `wanted` is more than that half.
    """
    most = _max_open_files() // 2
    if wanted is None:
        return min(MAX_CONNECTIONS, most)
    if wanted > most:
        raise ConfigurationError(
            f"max_connections must be at most {most}, half of the files that this process may open (`ulimit -n`), "
            f"got {wanted}"
        )
    return wanted


def backlog() -> int:
    """Return the number of connections that the system may queue until they are accepted.

    With a shorter queue, some clients of a burst would wait a second until their system tries again. The queue may use
    a quarter of the descriptors. As connections may use half of them, another quarter is left for programs.
    """
    return min(MAX_CONNECTIONS, _max_open_files() // 4)


def accepted_at_once() -> int:
    """Return the number of connections that may be accepted without counting them, and of those that get a refusal."""
    return max(1, backlog() // 2)


def _max_open_files() -> int:
    files = os.sysconf("SC_OPEN_MAX")
    return 2**20 if files < 0 else max(4, files)


class Reserve(Protocol):
    """Reserves more bytes for one request.

    Args:
        size: The number of bytes.
        beyond_limit: Whether to reserve the bytes even beyond MAX_HELD_BYTES. It is true for answers, because the
            program has already run.

    Raises:
        BusyError: All requests together would hold more than MAX_HELD_BYTES.
    """

    def __call__(self, size: int, *, beyond_limit: bool = False) -> None: ...


class MemoryBudget:
    """Counts the bytes that all requests hold together, and limits them to MAX_HELD_BYTES."""

    def __init__(self) -> None:
        self._held = 0

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Reserve]:
        """Yield a function that reserves bytes for one request. Free the bytes afterwards."""
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
