"""The limits of a server: the defaults for requests that name no limits, and the largest limits of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from faasrt.config import SandboxConfig
from faasrt.errors import ConfigurationError
from faasrt.local.machine_memory import MachineMemory

MAX_TIMEOUT_S = 120.0
MAX_OUTPUT_BYTES = 4 * 2**20
MAX_MEMORY_MB = 4096
LIMIT_NAMES = ("memory_limit_mb", "timeout_limit_s", "max_output_bytes")


@attrs.frozen
class SandboxLimits:
    default: SandboxConfig
    largest: SandboxConfig

    def check(self) -> None:
        """Raise ConfigurationError if a default is larger than the largest limit."""
        for name in LIMIT_NAMES:
            default, largest = getattr(self.default, name), getattr(self.largest, name)
            if largest < default:
                raise ConfigurationError(
                    f"max_sandbox.{name} must be at least {default:g}, the default, got {largest:g}"
                )


def largest_sandbox(machine_memory_mb: int | None = None) -> SandboxConfig:
    """Return the largest limits of a server whose options set none. The memory limit is a quarter of the machine's
    memory, rounded down to a power of two, so that machines of the same kind have the same limit.
    """
    memory_mb = SandboxConfig().memory_limit_mb
    total_mb = MachineMemory().total_mb if machine_memory_mb is None else machine_memory_mb
    if total_mb is not None:
        while 2 * memory_mb <= min(MAX_MEMORY_MB, total_mb // 4):
            memory_mb *= 2
    return SandboxConfig(memory_limit_mb=memory_mb, timeout_limit_s=MAX_TIMEOUT_S, max_output_bytes=MAX_OUTPUT_BYTES)


def limits_of(default: Mapping[str, Any], largest: Mapping[str, Any]) -> SandboxLimits:
    """Return the limits of a server, given the limits that its options set. If only a default is set, it is also the
    largest limit.
    """
    most = attrs.asdict(largest_sandbox()) | {**default, **largest}
    usual = {name: min(limit, most[name]) for name, limit in attrs.asdict(SandboxConfig()).items()}
    limits = SandboxLimits(SandboxConfig(**{**usual, **default}), SandboxConfig(**most))
    limits.check()
    return limits
