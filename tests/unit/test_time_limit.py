"""Time limits in an event loop that is busy when they end."""

from __future__ import annotations

import asyncio

import pytest

from faasrt.local import time_limit
from faasrt.local.time_limit import TimeLimit
from support.helpers import be_busy
from support.served import until


@pytest.fixture
def calls() -> list[str]:
    return []


async def test_a_limit_that_ends_on_time_is_not_extended(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is never late enough for an extension here, also on a busy machine."""
    monkeypatch.setattr(time_limit, "_LATE_S", 60)
    TimeLimit(0.01, lambda: calls.append("limit"))
    await until(lambda: calls)


async def test_data_is_read_before_a_late_limit_ends(calls: list[str]) -> None:
    """Data that arrived while the event loop was busy is read first. Then the function is called once."""
    TimeLimit(0.01, lambda: calls.append("limit"))
    asyncio.get_running_loop().call_later(0.02, calls.append, "read")
    be_busy(0.3)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert calls == ["read"]
    await until(lambda: len(calls) > 1)
    await asyncio.sleep(0.01)
    assert calls == ["read", "limit"]


async def test_the_time_in_which_the_event_loop_is_blocked_does_not_count(calls: list[str]) -> None:
    """This also holds if it is blocked before the limit ends."""
    limit = TimeLimit(60, lambda: calls.append("limit"))
    ends, first = limit._ends, limit._timer
    be_busy(0.5)
    await until(lambda: limit._timer is not first)
    assert limit._ends > ends + 0.2
    limit.cancel()
    assert calls == []


async def test_a_cancelled_limit_calls_nothing(calls: list[str]) -> None:
    """The event loop comes to the end of the limit after the cancellation."""
    limit = TimeLimit(0.1, lambda: calls.append("limit"))
    limit.cancel()
    await asyncio.sleep(0.2)
    assert calls == []


async def test_an_extended_limit_can_be_cancelled(calls: list[str]) -> None:
    """The function is not called then either."""
    limit = TimeLimit(0.01, lambda: calls.append("limit"))
    first = limit._timer
    be_busy(0.3)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert limit._timer is not first
    limit.cancel()
    await asyncio.sleep(0.7)
    assert calls == []
