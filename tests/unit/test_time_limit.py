"""Time limits in an event loop that is busy when they end."""

from __future__ import annotations

import asyncio
import time

import pytest

from faasrt.local.time_limit import TimeLimit
from support.served import until


def be_busy(for_s: float) -> None:
    end = time.perf_counter() + for_s
    while time.perf_counter() < end:
        pass


async def test_a_busy_event_loop_reads_before_the_limit_ends() -> None:
    """Data that arrived during the limit is read first. Then the function is called once."""
    calls: list[str] = []
    TimeLimit(0.01, lambda: calls.append("limit"))
    asyncio.get_running_loop().call_later(0.02, calls.append, "read")
    be_busy(0.3)
    await asyncio.sleep(0.01)
    assert calls == ["read"]
    await until(lambda: len(calls) > 1)
    await asyncio.sleep(0.01)
    assert calls == ["read", "limit"]


@pytest.mark.parametrize("busy_s", [0, 0.3])
async def test_a_cancelled_limit_calls_nothing(busy_s: float) -> None:
    """It can be cancelled while it is extended, too."""
    calls: list[str] = []
    limit = TimeLimit(0.1, lambda: calls.append("limit"))
    be_busy(busy_s)
    await asyncio.sleep(0)
    limit.cancel()
    await asyncio.sleep(0.7)
    assert calls == []
