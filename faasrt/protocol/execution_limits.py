from __future__ import annotations

import attrs

from faasrt.results import ErrorInfo, Outcome

OUTPUT_FACTOR = 2
"""A program is stopped when its output exceeds `max_output_bytes` times this factor."""


@attrs.frozen(kw_only=True)
class ExecutionLimits:
    """The limits of an execution. Of the outcomes in `set_by_server`, the server and not the client has set the
    limit.
    """

    timeout_ms: float
    memory_limit_mb: int
    max_output_bytes: int
    set_by_server: tuple[Outcome, ...] = ()

    def error(self, outcome: Outcome) -> ErrorInfo | None:
        """Return the error of a program that was stopped at a limit. It names the argument that set the limit."""
        by_server = outcome in self.set_by_server
        match outcome:
            case Outcome.TIMEOUT:
                limit = "limit of the server" if by_server else "timeout_ms"
                return ErrorInfo("Timeout", f"timeout after {self.timeout_ms:.15g} ms ({limit})")
            case Outcome.MEMORY_LIMIT:
                limit = "limit of the server" if by_server else "memory_limit_mb"
                return ErrorInfo("MemoryLimit", f"more than {self.memory_limit_mb} MiB of memory ({limit})")
            case Outcome.OUTPUT_LIMIT:
                limit = "the limit of the server" if by_server else "max_output_bytes"
                size = OUTPUT_FACTOR * self.max_output_bytes
                return ErrorInfo("OutputLimit", f"more than {size} bytes of output (twice {limit})")
        return None
