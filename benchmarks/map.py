"""A million tasks through `RuntimeManager.map`: rate, memory, and how far the source is ahead.

    python -m benchmarks.map [--tasks 1000000] [--concurrency 64]

The server is a process of its own that answers every program at once with the same verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

from faasrt import CodeTask, RuntimeManager, Settings

HEALTH = {"status": "healthy", "capabilities": {"faithful": True, "enforces_timeouts": True}, "limits": {}}
VERDICT = {
    "output": {"stdout": "42\n", "stderr": "", "ret_val": ""},
    "metadata": {"status": "success"},
    "outcome": "OK",
}


def answer(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


class FastFaas(asyncio.Protocol):
    """Answers requests that come in one piece each, as small ones do."""

    health, verdict = answer(HEALTH), answer(VERDICT)

    def __init__(self) -> None:
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
        if end and len(body) >= int(length or 0):
            self.received = b""
            reply = self.health if head.startswith(b"GET") else self.verdict
            self.transport.write(reply)  # type: ignore[attr-defined]


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(FastFaas, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def measure(url: str, count: int, concurrency: int) -> None:
    """Print the figures."""
    read = taken = ahead = 0

    def source() -> Iterator[CodeTask]:
        nonlocal read
        for number in range(count):
            read += 1
            yield CodeTask(f"print({number})", "python", id=str(number))

    process, base, peak = psutil.Process(), 0, 0
    async with RuntimeManager(settings=Settings(endpoints={"python": url})) as manager:
        started = time.perf_counter()
        async for item in manager.map(source(), concurrency=concurrency):
            assert item.result is not None, item.error
            taken += 1
            ahead = max(ahead, read - taken)
            if taken == min(1_000, count // 10):
                gc.collect()
                base = process.memory_info().rss
            if taken % 1_000 == 0:
                peak = max(peak, process.memory_info().rss)
        elapsed_s = time.perf_counter() - started
    assert taken == count
    print(
        f"{count} tasks at {concurrency} in flight: {count / elapsed_s:.0f}/s, memory grew by "
        f"{max(0, peak - base) / 2**20:.1f} MiB, the source was {ahead} ahead at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.map", "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        asyncio.run(measure(server.stdout.readline().strip(), options.tasks, options.concurrency))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
