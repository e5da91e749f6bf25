"""LiveReader: reads live output, the lines of `faasrt.protocol.json_lines`, from an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from faasrt.errors import ConnectionLostError, ProtocolError
from faasrt.protocol.json_lines import decode_line
from faasrt.protocol.response import Answer
from faasrt.results import OutputChunk


class LineTooLongError(Exception):
    """A line of the answer is too long. Callers convert this into another error."""


class LiveReader:
    """Reads the answers of one call, and delivers the output in them.

    Args:
        deliver: Waits until the caller has taken a part of the output.

    Attributes:
        live: Whether the server sends the output while the program runs.
        has_delivered: Whether the caller has got output. Then the call must not be retried.
    """

    def __init__(self, deliver: Callable[[OutputChunk], Awaitable[None]]) -> None:
        self.live = self.has_delivered = False
        self._deliver = deliver

    async def read(self, content: aiohttp.StreamReader, max_line_bytes: int, timeout: asyncio.Timeout) -> Answer:
        """Read an answer to its end, and return what it says about the program.

        Args:
            content: The body of the answer.
            max_line_bytes: The largest line that is read.
            timeout: The timeout of the request. It is extended by the time in which the caller has not taken output.

        Raises:
            LineTooLongError: A line is too long.
            ProtocolError: A line is malformed, or there are lines after the last one.
            ConnectionLostError: The last line is missing.
        """
        self.live = True
        answer: Answer | None = None
        pending = bytearray()
        while piece := await content.readany():
            searched = len(pending)
            pending += piece
            begin = 0
            while (end := pending.find(b"\n", max(begin, searched))) >= 0:
                decoded = decode_line(bytes(pending[begin:end]))
                begin = end + 1
                if decoded is not None and answer is not None:
                    raise ProtocolError("the answer goes on after its result", sent="yes", status=200)
                if isinstance(decoded, Answer):
                    answer = decoded
                elif decoded is not None and decoded.text:
                    await self._wait_delivered(decoded, timeout)
            del pending[:begin]
            if len(pending) > max_line_bytes:
                raise LineTooLongError
        if answer is None or pending:
            message = "the connection broke: the answer has no result at its end; the code may have run"
            raise ConnectionLostError(message, sent="maybe")
        return answer

    async def _wait_delivered(self, chunk: OutputChunk, timeout: asyncio.Timeout) -> None:
        self.has_delivered = True
        when = timeout.when()
        loop = asyncio.get_running_loop()
        started = loop.time()
        timeout.reschedule(None)
        await self._deliver(chunk)
        timeout.reschedule(None if when is None else when + loop.time() - started)
