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
        owner = "server" if outcome in self.set_by_server else "client"
        match outcome:
            case Outcome.TIMEOUT:
                return ErrorInfo("Timeout", f"timeout after {self.timeout_ms:.15g} ms (limit of the {owner})")
            case Outcome.MEMORY_LIMIT:
                message = f"more than {self.memory_limit_mb} MiB of memory (limit of the {owner})"
                return ErrorInfo("MemoryLimit", message)
            case Outcome.OUTPUT_LIMIT:
                size = OUTPUT_FACTOR * self.max_output_bytes
                return ErrorInfo("OutputLimit", f"more than {size} bytes of output (twice the limit of the {owner})")
        return None
