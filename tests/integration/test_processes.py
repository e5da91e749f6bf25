"""Child processes of the server, and the epoll that waits for their output."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faasrt.local.process import STDOUT, EpollReaders, Spawner


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Yield the readable ends of two pipes that contain a byte each."""
    ends = [os.pipe() for _ in range(2)]
    for _, writer in ends:
        os.write(writer, b"x")
    yield [reader for reader, _ in ends]
    for fd in (fd for pair in ends for fd in pair):
        os.close(fd)


async def test_output_that_arrives_early_is_kept(tmp_path: Path) -> None:
    """It is received even if the process has ended before."""
    received: list[tuple[int, bytes]] = []
    async with Spawner() as spawner:
        process = await spawner.start([sys.executable, "-c", "print('early')"], env={}, folder=tmp_path)
        await process.ended.wait()
        process.receive(lambda fd, data: received.append((fd, data)), lambda: received.append((-1, b"")))
    assert received == [(STDOUT, b"early\n"), (-1, b"")]


async def test_the_output_of_an_abandoned_process_is_not_read_to_its_end(tmp_path: Path) -> None:
    """It ends although another process, which has left its session, still has its pipes."""
    code = "import os, time; os.fork() or os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    output, changed = bytearray(), asyncio.Event()

    def receive(fd: int, data: bytes) -> None:
        output.extend(data)
        changed.set()

    async with Spawner() as spawner:
        process = await spawner.start([sys.executable, "-c", code], env={}, folder=tmp_path)
        process.receive(receive)
        while output.count(b"\n") < 2:
            await changed.wait()
            changed.clear()
        (other,) = {int(pid) for pid in output.split()} - {process.pid}
        try:
            ended: list[bool] = []
            process.when_ended(lambda: ended.append(True))
            process.abandon()
            await process.ended.wait()
        finally:
            os.kill(other, signal.SIGKILL)
    assert ended == [True]


async def test_a_reader_that_another_one_has_removed_is_not_called(pipes: list[int]) -> None:
    """Both descriptors were readable at once. The readers can be closed when none is left."""
    readers, called = EpollReaders(), []

    def read(fd: int) -> None:
        called.append(fd)
        for pipe in pipes:
            readers.remove_reader(pipe)

    for pipe in pipes:
        readers.add_reader(pipe, read, pipe)
    await readers.aclose()
    assert len(called) == 1
