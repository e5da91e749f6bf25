"""Time limits, also in an event loop that is busy when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from faasrt.local.time_limit import TimeLimit
from support.helpers import Clock


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def start(calls: list[str], clock: Clock) -> Callable[[float], TimeLimit]:
    """Stop the clock. Return a function that starts a limit, which adds "limit" to the calls when it ends."""
    clock.stop()
    return lambda limit_s: TimeLimit(limit_s, lambda: calls.append("limit"))


async def pass_time(clock: Clock, seconds: float) -> None:
    """Let time pass in small steps, as in an event loop that is not busy."""
    for _ in range(round(seconds / 0.05)):
        clock.advance(0.05)
        await settle()


async def settle() -> None:
    """Let the event loop call the timers that are due, and what they make due at once."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_limit_ends_on_time(calls: list[str], start: Callable[[float], TimeLimit], clock: Clock) -> None:
    """The function is called once, and not before."""
    start(10)
    await pass_time(clock, 9.8)
    assert calls == []
    await pass_time(clock, 10)
    assert calls == ["limit"]


async def test_data_is_read_before_a_late_limit_ends(
    calls: list[str], start: Callable[[float], TimeLimit], clock: Clock
) -> None:
    """Data that arrived while the event loop was busy is read first."""
    start(10)
    await pass_time(clock, 9.9)
    asyncio.get_running_loop().call_later(0.2, calls.append, "read")
    clock.advance(5)
    await settle()
    assert calls == ["read"]
    await pass_time(clock, 10)
    assert calls == ["read", "limit"]


async def test_the_time_in_which_the_event_loop_is_blocked_does_not_count(
    calls: list[str], start: Callable[[float], TimeLimit], clock: Clock
) -> None:
    """This also holds if it is blocked long before the limit ends."""
    start(10)
    clock.advance(60)
    await pass_time(clock, 9)
    assert calls == []
    await pass_time(clock, 2)
    assert calls == ["limit"]


@pytest.mark.parametrize("blocked_s", [0, 60])
async def test_a_cancelled_limit_calls_nothing(
    calls: list[str], start: Callable[[float], TimeLimit], clock: Clock, blocked_s: float
) -> None:
    """This also holds for a limit that was extended."""
    limit = start(10)
    clock.advance(blocked_s)
    await settle()
    limit.cancel()
    await pass_time(clock, 20)
    assert calls == []
