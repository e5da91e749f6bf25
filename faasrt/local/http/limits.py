"""The limits of the HTTP server itself. `faasrt.local.sandbox_limits` has the limits of programs."""

from __future__ import annotations

import os

from faasrt.errors import ConfigurationError

MAX_CONNECTIONS = 1_000
"""The largest number of open connections. `max_connections` lowers it if the process may open few files."""
SPARE_CONNECTIONS = 8
"""The number of further connections that may send a probe."""
SPARE_TIMEOUT_S = 1.0
"""How long a further connection may stay open, without the time in which the event loop is blocked. Also how long the
input of a refused connection is discarded.
"""
MAX_BODY_BYTES = 8 * 2**20
"""The largest body of a request."""
MAX_HELD_BYTES = 64 * 2**20
"""The largest size of all bodies together, and of all answers. See `faasrt.local.http.body_memory`."""
SMALL_BYTES = 64 * 2**10
"""The part of each body, and of each answer, that does not count."""
SLOW_S = 1.0
"""The time for sending SMALL_BYTES of a body. A slower client is refused if another body needs its memory."""
READ_BYTES = 16 * 2**10
"""The most bytes of a connection that are read and parsed before other connections get their turn. With TLS, the start
of a record may have arrived before, and is parsed with them.
"""
MAX_STRUCTURE_BYTES = 64 * 2**10
"""The largest number of characters outside of strings, in the JSON of a body."""
MAX_STRINGS = 10_000
"""The largest number of strings in a body that is larger than MAX_STRUCTURE_BYTES."""
REQUEST_TIMEOUT_S = 30.0
"""The limit of three separate times: for receiving the head of a request, for receiving its body, and for sending the
answer."""
HANDSHAKE_TIMEOUT_S = 10.0
"""The time for the TLS handshake of a connection, and for a client to receive its end."""
LINGER_S = 10.0
"""How long the server reads and discards the rest of a refused request, so that its sender can read the refusal."""


def max_connections(wanted: int | None = None) -> int:
    """Return the largest number of open connections: at most half of the files that may be open. Raise
    ConfigurationError if `wanted` is more.
    """
    limit = _max_open_files() // 2
    if wanted is None:
        return min(MAX_CONNECTIONS, limit)
    if wanted > limit:
        raise ConfigurationError(
            f"max_connections must be at most {limit}, half of the files that this process may open (`ulimit -n`), "
            f"got {wanted}"
        )
    return wanted


def backlog() -> int:
    """Return the number of connections that the system may queue until they are accepted.

    With a shorter queue, some clients of a burst would wait a second until their system tries again. The queue may use
    a quarter of the descriptors, and open connections may use half of them. So a quarter is left for programs.
    """
    return min(MAX_CONNECTIONS, _max_open_files() // 4)


def accepted_at_once() -> int:
    """Return the number of connections that may be accepted without counting them. At most as many are refused at a
    time.
    """
    return max(1, backlog() // 2)


def _max_open_files() -> int:
    files = os.sysconf("SC_OPEN_MAX")
    return 2**20 if files < 0 else max(4, files)
