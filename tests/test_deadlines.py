"""One timer for many deadlines: what each of them does, and what is left of them."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from faasrt.transport.deadlines import Deadlines


async def forever() -> None:
    await asyncio.Event().wait()


async def test_what_takes_too_long_ends_with_a_timeout_error() -> None:
    """The block ends, its task goes on, and bears no trace of a cancellation."""
    deadlines = Deadlines()
    with pytest.raises(TimeoutError), deadlines.within(0.01):
        await forever()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_block_that_ends_in_time_is_left_alone() -> None:
    """Even when its deadline passes later, while others are still open."""
    deadlines, go = Deadlines(), asyncio.Event()

    async def quick() -> str:
        with deadlines.within(0.01):
            await asyncio.sleep(0)
        await go.wait()
        return "unharmed"

    task = asyncio.create_task(quick())
    with pytest.raises(TimeoutError), deadlines.within(0.02):
        await forever()
    go.set()
    assert await task == "unharmed"


async def test_an_earlier_deadline_that_comes_later_is_kept() -> None:
    """The timer is set forward for it, and back again for the other."""
    deadlines, ended = Deadlines(), []

    async def limited(seconds: float) -> None:
        try:
            with deadlines.within(seconds):
                await forever()
        except TimeoutError:
            ended.append(seconds)

    await asyncio.gather(*(limited(seconds) for seconds in (0.06, 0.02, 0.04)))
    assert ended == [0.02, 0.04, 0.06]


@pytest.mark.parametrize("first", ["cancel", "expire"])
async def test_a_cancellation_from_outside_stays_one(first: str) -> None:
    """Also when the deadline passes in the same turn of the loop."""
    deadlines, inside = Deadlines(), asyncio.Event()

    async def limited() -> None:
        with deadlines.within(60):
            inside.set()
            await forever()

    task = asyncio.create_task(limited())
    await inside.wait()
    (_, _, deadline), *_ = deadlines._heap
    for act in (task.cancel, deadline.expire) if first == "cancel" else (deadline.expire, task.cancel):
        act()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_two_in_one_task_each_ends_its_own_block() -> None:
    """The inner one does not end the outer block, and the outer one ends both."""
    deadlines = Deadlines()
    with deadlines.within(60):
        with pytest.raises(TimeoutError), deadlines.within(0.01):
            await forever()
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), deadlines.within(0.01), deadlines.within(60):
        await forever()


def test_deadlines_of_less_than_a_millisecond_on_uvloop() -> None:
    """There a timer that is nearly due is of another kind, and does not know its time."""

    async def limited(deadlines: Deadlines) -> None:
        with pytest.raises(TimeoutError), deadlines.within(0.000_3):
            await forever()
        await asyncio.sleep(0)

    async def main() -> None:
        deadlines = Deadlines()
        for _ in range(50):
            await asyncio.gather(*(limited(deadlines) for _ in range(3)))
        assert deadlines._timer is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_nothing_is_left_when_all_have_ended() -> None:
    """No timer, and no entry that would keep a task alive."""
    deadlines = Deadlines()
    with deadlines.within(60), deadlines.within(30):
        assert deadlines._timer is not None
    assert deadlines._timer is None
    assert not deadlines._heap


async def test_short_blocks_beside_a_long_one_do_not_pile_up() -> None:
    """What has ended is swept out in time, however long the others last."""
    deadlines, most = Deadlines(), 0
    with deadlines.within(60):
        for _ in range(2_000):
            with deadlines.within(60):
                most = max(most, len(deadlines._heap))
    assert most <= 102
