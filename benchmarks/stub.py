"""A server that answers every program at once with the same result, so that only the client's cost is measured.

    python -m benchmarks.stub [--capacity 1024]

Its `/health` says that it is lossless, and what its capacity is, if the option is given. It can hold answers back:

    GET /hold/N     hold answers until N programs are waiting, and then send all of them; 0 turns this off
    GET /waiting    return the number of waiting programs
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

from benchmarks.server import serving

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

STDOUT = "42\n"
ANSWER = {
    "output": {"stdout": STDOUT, "stderr": "", "ret_val": ""},
    "metadata": {"language": "python", "status": "success", "exit_code": 0, "timed_out": False, "duration": 1},
    "outcome": "OK",
}
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def encode(body: object) -> bytes:
    """Return a complete HTTP response with a JSON body."""
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data


class StubConnection(asyncio.Protocol):
    """A connection. Requests may arrive in pieces of any size. Their bodies are not read."""

    answer = encode(ANSWER)
    health: ClassVar[bytes]
    waiting: ClassVar[list[StubConnection]] = []
    hold = 0

    def __init__(self) -> None:
        self._received = self._path = b""
        self._missing = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._missing:
            taken = min(self._missing, len(data))
            self._missing -= taken
            if self._missing:
                return
            data = data[taken:]
            self._answer()
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, self._received = self._received[:end], self._received[end + 4 :]
            self._path = head.split(b" ", 2)[1]
            length = _LENGTH.search(head)
            missing = int(length[1]) if length else 0
            taken = min(missing, len(self._received))
            self._received = self._received[taken:]
            self._missing = missing - taken
            if self._missing:
                return
            self._answer()

    def _answer(self) -> None:
        cls = StubConnection
        if self._path == b"/run_code":
            if not cls.hold:
                self.transport.write(self.answer)
                return
            cls.waiting.append(self)
        elif self._path == b"/health":
            self.transport.write(cls.health)
        else:
            if self._path.startswith(b"/hold/"):
                cls.hold = int(self._path[6:])
            self.transport.write(encode({"waiting": len(cls.waiting)}))
        if len(cls.waiting) >= cls.hold:
            ready, cls.waiting = cls.waiting, []
            for connection in ready:
                connection.transport.write(self.answer)


async def serve(capacity: int | None) -> None:
    """Serve until the process ends."""
    languages = {} if capacity is None else {"python": {"capacity": capacity}}
    capabilities = {"lossless": True, "enforces_timeouts": True}
    StubConnection.health = encode({"status": "healthy", "capabilities": capabilities, "languages": languages})
    server = await asyncio.get_running_loop().create_server(StubConnection, "127.0.0.1", 0, backlog=4_096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def stub(capacity: int | None = None) -> Iterator[str]:
    """Run the server in a process of its own, and yield its URL.

    Args:
        capacity: The capacity that `/health` states; None states none.
    """
    options = [] if capacity is None else ["--capacity", str(capacity)]
    with serving([sys.executable, "-m", "benchmarks.stub", *options]) as server:
        yield server.url


async def control(url: str, *path: object) -> int:
    """Send `GET /hold/N` or `GET /waiting` on a new connection. Return the number of waiting programs."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /{'/'.join(map(str, path))} HTTP/1.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(_LENGTH.search(head)[1]))  # type: ignore[index]
    writer.close()
    return int(json.loads(body)["waiting"])


def raise_file_limit() -> None:
    """Raise this process's limit of open files to the maximum, for many connections."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--capacity", type=int)
    raise_file_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(parser.parse_args().capacity))


if __name__ == "__main__":
    main()
