"""The default and the largest limits of a server."""

from __future__ import annotations

import pytest

from faasrt import ConfigurationError, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.sandbox_limits import largest_sandbox, limits_of


@pytest.mark.parametrize(
    ("machine_mb", "memory_mb"),
    [(400, 128), (1_900, 256), (3_900, 512), (7_900, 1_024), (15_900, 2_048), (99_999, 4_096)],
)
def test_the_largest_memory_follows_from_the_machine(machine_mb: int, memory_mb: int) -> None:
    """It is at most a quarter of the memory, so that a machine with 8 GiB has 1,024 MiB."""
    assert largest_sandbox(machine_mb).memory_limit_mb == memory_mb


def test_a_server_without_limits_accepts_larger_ones_than_its_defaults() -> None:
    """Programs without limits get those of `SandboxConfig`, which are those of coze-loop."""
    faas = LocalFaaS(["bash"])
    assert faas.sandbox == SandboxConfig()
    assert (faas.max_sandbox.timeout_limit_s, faas.max_sandbox.max_output_bytes) == (120, 4 * 2**20)


def test_a_default_alone_is_also_the_largest_limit() -> None:
    """A server that bounds programs with one number goes on to do so."""
    faas = LocalFaaS(["bash"], sandbox=SandboxConfig(memory_limit_mb=64))
    assert faas.max_sandbox == faas.sandbox
    limits = limits_of({"memory_limit_mb": 64}, {})
    assert (limits.largest.memory_limit_mb, limits.largest.timeout_limit_s) == (64, 120)


def test_a_default_is_not_above_the_largest_limit() -> None:
    """A low maximum alone lowers the default. Two numbers that contradict each other are an error that names both."""
    assert limits_of({}, {"timeout_limit_s": 5}).default.timeout_limit_s == 5
    with pytest.raises(
        ConfigurationError, match=r"max_sandbox\.memory_limit_mb must be at least 256, the default, got 128"
    ):
        LocalFaaS(["bash"], sandbox=SandboxConfig(memory_limit_mb=256), max_sandbox=SandboxConfig())
