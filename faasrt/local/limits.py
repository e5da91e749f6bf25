"""What a client may take of the embedded FaaS before it is told no: connections, time and memory."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

import attrs

from faasrt.local.pool import BusyError

MAX_CONNECTIONS = 1_000
"""Open connections, at most; fewer where the process may not open twice as many files."""
MAX_BODY_BYTES = 8 * 2**20
"""Bytes of one request's body."""
MAX_HELD_BYTES = 64 * 2**20
"""Bytes of all bodies and answers in hand together, from a body's first byte until its answer has been taken."""
MAX_STRUCTURE_BYTES = 64 * 2**10
"""Characters of a body's JSON that may stand outside of strings."""
MAX_STRINGS = 10_000
"""Strings in a body's JSON, where it is larger than MAX_STRUCTURE_BYTES."""
REQUEST_TIMEOUT_S = 30.0
"""Seconds in which the head of a request must arrive, then those for its body, then those for taking the answer."""
LINGER_S = 10.0
"""Seconds for which the rest of a refused request is read and thrown away, so that its sender can read the refusal."""


def max_connections() -> int:
    """Give the most connections that this process should hold: half of its descriptors at most."""
    return min(MAX_CONNECTIONS, _open_files() // 2)


def backlog() -> int:
    """Give how many connections the system may hold until they are accepted, which may be all at once.

    With fewer, some clients of a burst wait a second until their system tries again. A quarter of the descriptors at
    most, so that another quarter is left for programs.
    """
    return min(MAX_CONNECTIONS, _open_files() // 4)


def _open_files() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4 * MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(4, files)


@attrs.define
class Share:
    """What one request holds of the budget."""

    _budget: Budget
    held: int = 0

    def take(self, size: int) -> None:
        """Hold more.

        Raises:
            BusyError: All requests together would hold too much.
        """
        if self._budget.held + size > MAX_HELD_BYTES:
            raise BusyError("the requests in hand hold too much memory", 429)
        self.take_anyway(size)

    def take_anyway(self, size: int) -> None:
        """Hold more, whatever there is: what has run must be answered."""
        self.held += size
        self._budget.held += size


@attrs.define
class Budget:
    """The bytes that all requests hold together."""

    held: int = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Count for one request, until it is answered."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.held
