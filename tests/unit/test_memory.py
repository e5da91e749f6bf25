"""The memory of requests is limited, and slow clients lose theirs to others."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from faasrt.local.http import limits
from faasrt.local.http.admission import BusyError
from faasrt.local.http.body_memory import Memory, Share
from faasrt.local.http.limits import MAX_HELD_BYTES, SLOW_S, SMALL_BYTES

LARGE = limits.MAX_BODY_BYTES


class Server:
    """Memory with a clock that only the test moves. Requests end when `requests` is closed."""

    def __init__(self, requests: contextlib.ExitStack) -> None:
        self.now, self._requests = 0.0, requests
        self.memory = Memory(lambda: self.now)
        self.evicted: list[Share] = []

    def share(self) -> Share:
        return self._requests.enter_context(self.memory.share())

    def body(self, size: int) -> Share:
        share = self.share()
        share.receive(lambda: self.evicted.append(share))
        share.add(size)
        return share

    def answer(self, size: int) -> Share:
        share = self.share()
        share.answer(size, lambda: self.evicted.append(share))
        return share


@pytest.fixture
def server() -> Iterator[Server]:
    """Yield a server. After the test and all its requests, nothing counts any more."""
    with contextlib.ExitStack() as requests:
        server = Server(requests)
        yield server
    assert server.memory.held_bytes == 0


def test_small_requests_need_no_free_memory(server: Server) -> None:
    """Any number of bodies and answers of SMALL_BYTES fits beside bodies and answers that use all of the memory."""
    full = [server.body(LARGE) for _ in range(8)] + [server.answer(LARGE) for _ in range(8)]
    full += [server.body(SMALL_BYTES * 9), server.answer(SMALL_BYTES * 9)]
    with pytest.raises(BusyError):
        server.body(SMALL_BYTES + 1)
    for _ in range(5_000):
        server.answer(SMALL_BYTES)
        server.body(SMALL_BYTES)
    assert not server.evicted


def test_the_slowest_body_goes_first(server: Server) -> None:
    """The oldest body stays, and so does each one whose client sends SMALL_BYTES in SLOW_S."""
    bodies = []
    for _ in range(8):
        bodies.append(server.body(LARGE - 2 * SMALL_BYTES))
        server.now += SLOW_S / 16
    with pytest.raises(BusyError):
        server.body(LARGE)
    server.now += SLOW_S
    for share, size in zip(bodies, (SMALL_BYTES, SMALL_BYTES * 3 // 4, SMALL_BYTES), strict=False):
        share.record_progress(size)
    added = [server.body(LARGE) for _ in range(6)]
    assert server.evicted == [bodies[1], *bodies[3:]]
    with pytest.raises(BusyError):
        server.body(LARGE)
    assert not any(share.evicted for share in (bodies[0], bodies[2], *added))


def test_a_request_keeps_its_memory_while_its_program_runs(server: Server) -> None:
    """Only while it waits for its client, another request can get the memory."""
    bodies = [server.body(LARGE) for _ in range(8)]
    for share in bodies:
        share.run()
    server.now += 100
    with pytest.raises(BusyError):
        server.body(LARGE)
    bodies[0].answer(LARGE, lambda: None)
    server.body(LARGE)
    assert not server.evicted


def test_an_answer_never_waits(server: Server) -> None:
    """It displaces those that have waited for their readers for longer, and is sent even if it is too large alone."""
    answers = []
    for _ in range(8):
        server.now += 0.001
        answers.append(server.answer(LARGE))
    server.now += 0.001
    answers[0].record_progress(SMALL_BYTES)
    server.answer(LARGE)
    assert server.evicted == [answers[1]]
    largest = server.answer(MAX_HELD_BYTES * 2)
    assert largest.counted > MAX_HELD_BYTES
    assert not largest.evicted
    largest.free()
    server.memory.max_answer_bytes = 2 * MAX_HELD_BYTES
    for _ in range(16):
        server.answer(LARGE)
    assert len(server.evicted) == 9


def test_freed_memory_can_be_used_again(server: Server) -> None:
    """After any order of eviction and end, nothing counts any more, and no share is kept."""
    for _ in range(3):
        with server.memory.share() as share:
            share.receive(lambda: None)
            share.add(LARGE)
            share.evict()
            share.answer(LARGE, lambda: None)
            assert server.memory.held_bytes == LARGE - SMALL_BYTES
            share.evict()
    assert server.memory.held_bytes == 0
    ended = weakref.ref(share)
    del share
    gc.collect()
    assert ended() is None
