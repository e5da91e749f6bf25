"""The limits of an execution, and the errors of programs that exceeded them."""

from __future__ import annotations

import attrs

from faasrt.results import Outcome, UserError

OUTPUT_FACTOR = 2
"""A program is ended when it writes more than this many times `max_output_bytes`."""


@attrs.frozen(kw_only=True)
class ExecutionLimits:
    """The limits of an execution.

    Attributes:
        timeout_ms: Milliseconds of wall-clock time.
        memory_limit_mb: MiB.
        max_output_bytes: UTF-8 bytes to keep of each stream.
        set_by_server: The outcomes whose limit is the server's; the client set the others.
    """

    timeout_ms: float
    memory_limit_mb: int
    max_output_bytes: int
    set_by_server: tuple[Outcome, ...] = ()

    def error(self, outcome: Outcome) -> UserError | None:
        """Return the error that names the limit of an outcome; None for outcomes without a limit."""
        owner = "server" if outcome in self.set_by_server else "client"
        size = OUTPUT_FACTOR * self.max_output_bytes
        errors = {
            Outcome.TIMEOUT: ("Timeout", f"timeout after {self.timeout_ms:.15g} ms (limit of the {owner})"),
            Outcome.MEMORY_LIMIT: (
                "MemoryLimit",
                f"more than {self.memory_limit_mb} MiB of memory (limit of the {owner})",
            ),
            Outcome.OUTPUT_LIMIT: ("OutputLimit", f"more than {size} bytes of output (twice the limit of the {owner})"),
        }
        return UserError(*errors[outcome]) if outcome in errors else None
