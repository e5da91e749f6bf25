"""The limits of one execution, and the errors that name them. Client and server share them."""

from __future__ import annotations

import attrs

from faasrt.results import ErrorInfo, Outcome

OUTPUT_FACTOR = 2
"""A program is stopped when its output exceeds `max_output_bytes` times this factor."""
MAX_WALL_FACTOR, MIN_WAIT_S = 10.0, 120.0


def wall_limit_s(limit_s: float, factor: float) -> float:
    """Return the limit of the wall-clock time of a program, whose time limit does not count the wait for a CPU."""
    return max(limit_s * factor, limit_s + MIN_WAIT_S)


@attrs.frozen(kw_only=True)
class ExecutionLimits:
    """The limits of an execution. Of the outcomes in `set_by_server`, the server and not the client has set the limit.
    `max_wall_factor` is for `wall_limit_s`.
    """

    timeout_ms: float
    memory_limit_mb: int
    max_output_bytes: int
    set_by_server: tuple[Outcome, ...] = ()
    max_wall_factor: float = MAX_WALL_FACTOR

    @property
    def wall_s(self) -> float:
        return wall_limit_s(self.timeout_ms / 1000, self.max_wall_factor)

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
